"""The programs that make a checkpoint, one after another as a user runs them, on a few phantoms and for a step or two."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from emrrg_core import checkpoint
from emrrg_core.checkpoint import read_config
from tests import tiny
from tests.phantom import make_phantom
from train import average, finetune, limits, reader, readings, warmup

RECIPE = Path(__file__).parent.parent / "train" / "recipes" / "small.toml"
KINDS = (None, "nodule", None, "effusion", None, "opacity")


@pytest.fixture(scope="module")
def made(tmp_path_factory, language_folder) -> Path:
    """Everything that the shipped recipe's stages leave behind, with other numbers of steps and films."""
    folder = tmp_path_factory.mktemp("stages")
    rows = [
        (
            make_phantom(i, height=128, width=128, lesion=KINDS[i % 6]),
            {"split": "train", "source": ("kermany", "nih_talo")[i // 12]},
        )
        for i in range(24)
    ]
    films = tiny.film_set(folder, rows)
    text = RECIPE.read_text()
    for name, value in {"steps": 1, "batch": 3, "warmup": 1, "save_every": 1}.items():
        text = re.sub(rf"^{name} = \d+", f"{name} = {value}", text, flags=re.M)
    text = re.sub(r"^simulate = [\d.]+", "simulate = 1.0", text, flags=re.M)
    text = re.sub(r"^sources = .*$", "sources = { kermany = 0.5, nih_talo = 0.5 }", text, flags=re.M)
    (folder / "recipe.toml").write_text(text)
    common = [
        "--recipe",
        f"{folder}/recipe.toml",
        "--films",
        f"{films}",
        "--cache",
        f"{folder}/cache",
        "--threads",
        "1",
    ]
    warmup.main([*common, "--stage", "lungs", "--out", f"{folder}/lungs"])
    warmup.main([*common, "--stage", "stem", "--start", f"{folder}/lungs", "--out", f"{folder}/stem"])
    warmup.main([*common, "--stage", "tower", "--start", f"{folder}/stem", "--out", f"{folder}/tower"])
    reader.main([*common, "--stage", "contrast", "--out", f"{folder}/contrast"])
    for seed in ("1", "2"):
        labels = [
            "--stage",
            "labels",
            "--start",
            f"{folder}/contrast",
            "--seed",
            seed,
            "--out",
            f"{folder}/reader{seed}",
        ]
        reader.main([*common, *labels])
    last = ["--start", f"{folder}/tower", "--out", f"{folder}/finetune", "--language-model", f"{language_folder}"]
    finetune.main([*common, "--reports", f"{folder}/reports.jsonl", *last])
    return folder


def columns(path: Path) -> dict[str, float]:
    with path.open() as file:
        (row,) = csv.DictReader(file)
    return {name: float(value) for name, value in row.items()}


def test_every_stage_logs_what_it_learned_from(made):
    for stage, names in (
        ("lungs", {"normal", "labels", "lungs", "absent"}),
        ("stem", {"normal", "labels", "lungs", "absent"}),
        ("tower", {"normal", "labels", "lungs", "absent"}),
        ("contrast", {"loss", "norm"}),
        ("reader1", {"loss", "norm"}),
        ("finetune", {"nll", "away", "gate", "normal", "labels", "lungs", "absent"}),
    ):
        row = columns(made / stage / "log.csv")
        assert names <= row.keys()
        assert all(row[name] > 0 for name in names), stage


def test_a_stage_teaches_its_part_and_leaves_the_rest(made):
    stem, tower = (load_file(made / stage / "reader.safetensors") for stage in ("stem", "tower"))
    moved = {name for name in stem if not torch.equal(stem[name], tower[name])}
    assert any(name.startswith("tower.layers.") for name in moved)
    assert any(name.startswith("tower.patch_embed.") for name in moved)
    assert {"signs.labels.weight", "signs.places.weight"} <= moved
    assert not {name for name in moved if ".appearance." in name}  # which is fitted, never trained
    saved = load_file(made / "finetune" / "checkpoint" / "model.safetensors")
    for name, value in tower.items():
        if name.startswith("tower."):  # frozen but for its adapters
            kept = saved[name.replace("tower.", "visual_encoder.", 1)].float()
            torch.testing.assert_close(kept, value, rtol=1e-3, atol=1e-6)
    assert not torch.equal(saved["signs.appearance.weight"].float(), tower["signs.appearance.weight"])


def test_a_run_that_begins_with_another_goes_on_from_what_that_has_learned(made, language_folder, tmp_path):
    """But with appearance components that are fitted to the tower as it has become: words follow from the bits, whatever these mean."""
    shutil.copytree(made / "finetune", tmp_path / "begin")
    weights = tmp_path / "begin" / "checkpoint" / "model.safetensors"
    first = load_file(weights)
    name = "signs.appearance.weight"
    first[name] = first[name] * 2  # what no fit to these films gives
    save_file(first, weights)
    said = ["--recipe", f"{made}/recipe.toml", "--films", f"{made}/films.jsonl", "--reports", f"{made}/reports.jsonl"]
    said += ["--section", "wording", "--begin", f"{tmp_path}/begin", "--start", f"{made}/tower", "--threads", "1"]
    finetune.main(
        [*said, "--out", f"{tmp_path}/out", "--cache", f"{made}/cache", "--language-model", f"{language_folder}"]
    )
    second = load_file(tmp_path / "out" / "checkpoint" / "model.safetensors")
    assert 0.4 < (second[name].float().norm() / first[name].float().norm()).item() < 0.6
    for name in ("sign_proj.weight", "llama_proj.weight", "facts.name.weight"):  # a step of a low rate away
        moved = (first[name].float() - second[name].float()).abs().max()
        assert 0 < moved < 0.05, name


def test_the_checkpoint_is_the_recipes_model_and_can_be_given_its_average_film(made, language_folder):
    first = made / "finetune" / "checkpoint"
    config = read_config(first)
    assert config["training"]["step"] == 1
    evidence = config["model"].signs.length
    assert evidence > 0
    # the recipe names its language model by name; here there is only a folder of another
    named = json.loads((first / "config.json").read_text())
    named["model"]["language"] = str(language_folder)
    (first / "config.json").write_text(json.dumps(named))
    common = ["--films", f"{made}/films.jsonl", "--cache", f"{made}/cache", "--count", "8", "--contrast", "2"]
    average.main(["--checkpoint", f"{first}", "--out", f"{made}/averaged", *common])
    model, _ = checkpoint.load(made / "averaged")
    vision = model.config.vision
    assert model.config == replace(read_config(first)["model"], contrast=2.0)
    assert model.average_film.shape == (vision.tokens + evidence, 32)
    assert model.average_film.abs().sum() > 0
    assert read_config(made / "averaged")["training"]["average_of"] == 8

    said = [
        "--checkpoint",
        f"{made}/averaged",
        "--out",
        f"{made}/small",
        "--second",
        f"{made}/reader1",
        f"{made}/reader2",
    ]
    limits.main([*said, *common[:4]])
    shipped, _ = checkpoint.load(made / "small")
    assert shipped.config == replace(model.config, signs=replace(model.config.signs, second=True, members=2))
    taught = [load_file(made / f"reader{seed}" / "reader.safetensors")["labels.weight"] for seed in (1, 2)]
    torch.testing.assert_close(shipped.second.labels.weight, torch.cat(taught, 1) / 2, rtol=1e-3, atol=1e-6)
    assert not torch.equal(*taught)  # another seed draws other films
    assert torch.equal(shipped.average_film, model.average_film)


def test_what_the_checkpoint_reads_can_be_told_from_its_files_alone(made, capsys):
    said = [
        "--checkpoint",
        f"{made}/small",
        "--films",
        f"{made}/films.jsonl",
        "--cache",
        f"{made}/cache",
        "--threads",
        "1",
    ]
    capsys.readouterr()
    told = {}
    for places in ("film", "both"):
        assert readings.main([*said, "--places", places, "--json"]) == 0
        told[places] = json.loads(capsys.readouterr().out)
    assert told["film"]["films"] == 3  # of 24 phantoms, each its own patient
    assert told["film"]["normal"] == told["both"]["normal"]  # whether anything is there is asked of the film alone
    assert readings.main(said) == 0
    assert "| drawn | films | told | correct |" in capsys.readouterr().out
