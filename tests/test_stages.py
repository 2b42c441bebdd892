"""The programs that make a checkpoint, one after another as a user runs them, on a few phantoms and for a step or two."""

import csv
import json
import os
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from emrrg_core import Reporter
from emrrg_core.config import DecodeConfig, ModelConfig
from emrrg_core.errors import ConfigError
from emrrg_core.model.checkpoint import read_config
from emrrg_core.model.emrrg import Emrrg
from emrrg_core.model.finding_tokens import ABNORMAL, NAMES, Presence
from tests import tiny
from tests.phantom import make_phantom
from train import calibrate, contrast, finetune, loop, tower
from train.kept_features import KeptFeatures
from train.loop import Run, apart, groups
from train.tower import Eye

pytestmark = pytest.mark.slow


SHIPPED = Path(__file__).parent.parent / "train" / "recipes" / "small.toml"
KINDS = (None, "nodule", None, "effusion", None, "opacity")
VISION = '{ image_size = 64, d_model = 64, depth = 1, d_state = 4, drop_path = 0.0, stem = "convolution" }'


def small(text: str) -> str:
    """The shipped recipe with other numbers: of steps, films, sources and sizes."""
    changed = {"steps": 2, "batch": 4, "warmup": 1, "save_every": 1, "size": 64, "simulate": 1.0}
    for name, value in changed.items():
        text, count = re.subn(rf"^{name} = [\d.]+", f"{name} = {value}", text, flags=re.M)
        assert count, name
    text = re.sub(r"^sources = .*$", "sources = { kermany = 0.5, nih_talo = 0.5 }", text, flags=re.M)
    text = re.sub(r"^outlines = .*$", 'outlines = ["kermany"]', text, flags=re.M)
    text = re.sub(r"^vision = .*$", f"vision = {VISION}", text, flags=re.M)
    return text + "\n[decode]\nmax_new_tokens = 12\n"


class Chain:
    """A film set, the recipe, and what the programs are told of both; a stage writes into a folder of its name."""

    def __init__(self, folder: Path, language: Path) -> None:
        self.folder, self.language = folder, language
        rows = []
        for i in range(60):
            lesion = KINDS[i % 6]
            labels = {label: int(label == tiny.LABEL_OF.get(lesion or "")) for label in tiny.LABEL_OF.values()}
            row = {"split": ("train", "val")[i >= 54], "source": ("kermany", "nih_talo")[i % 12 // 6]}
            rows.append(
                (
                    make_phantom(i, height=128, width=128, lesion=lesion),
                    row | {"labels": labels | {"No Finding": int(not lesion)}},
                )
            )
        self.films = tiny.film_set(folder, rows)
        (folder / "recipe.toml").write_text(small(SHIPPED.read_text()))
        self.common = ["--films", f"{self.films}", "--cache", f"{folder}/cache", "--threads", "1"]

    def recipe(self, stop: int) -> list[str]:
        """Of a run that ends after so many steps, its schedule unfinished; 0: of a whole one."""
        if not stop:
            return ["--recipe", f"{self.folder}/recipe.toml"]
        path = self.folder / f"stop{stop}.toml"
        path.write_text(
            re.sub(r"^steps = 2", f"steps = 2\nstop = {stop}", (self.folder / "recipe.toml").read_text(), flags=re.M)
        )
        return ["--recipe", f"{path}"]

    def contrast(self, out: str) -> None:
        contrast.main([*self.common, *self.recipe(0), "--out", f"{self.folder}/{out}"])

    def tower(self, out: str, stop: int = 0) -> None:
        start = ["--start", f"{self.folder}/contrast", "--out", f"{self.folder}/{out}"]
        tower.main([*self.common, *self.recipe(stop), *start])

    def finetune(self, out: str, stop: int = 0, *more: str) -> None:
        start = ["--start", f"{self.folder}/tower", "--out", f"{self.folder}/{out}", *more]
        finetune.main([*self.common, *self.recipe(stop), *start, "--language-model", f"{self.language}"])

    def heads(self, out: str, stop: int = 0) -> None:
        self.finetune(out, stop, "--section", "heads", "--begin", f"{self.folder}/finetune")

    def tell(self, out: str, stop: int = 0) -> None:
        self.finetune(out, stop, "--section", "tell", "--begin", f"{self.folder}/heads/checkpoint")


@pytest.fixture(scope="module", autouse=True)
def _few() -> Iterator[None]:
    """Of a few phantoms, which are more alike than people, none may be left out, and a few must do for a finding."""
    with pytest.MonkeyPatch.context() as patch:
        for program in (tower, finetune):
            patch.setattr(program, "near_copies", lambda *_: set())
        for name, value in {"FEWEST": 1, "LEAST": 1, "LEAST_AREA": 0.0}.items():
            patch.setattr(calibrate, name, value)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory, language_folder) -> Chain:
    """Everything that the shipped recipe's stages leave behind."""
    chain = Chain(tmp_path_factory.mktemp("stages"), language_folder)
    chain.contrast("contrast")
    chain.tower("tower")
    chain.finetune("finetune")
    chain.heads("heads")
    chain.tell("tell")
    # the recipe names its language model by name; here there is only a folder of another
    first = chain.folder / "tell" / "checkpoint"
    config = json.loads((first / "config.json").read_text())
    config["model"]["language"] = str(language_folder)
    (first / "config.json").write_text(json.dumps(config))
    calibrate.main([*chain.common, "--checkpoint", f"{first}", "--out", f"{chain.folder}/small"])
    return chain


def columns(path: Path) -> list[dict[str, float]]:
    with path.open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_every_stage_logs_what_it_learned_from(made):
    for stage, names in (
        ("contrast", {"loss", "norm"}),
        ("tower", {"labels", "normal", "absent", "present", "lungs"}),
        ("finetune", {"nll", "gate", "on_findings", "readings"}),
        ("heads", {"labels", "normal", "absent"}),
        ("tell", {"nll", "gate", "on_findings", "attention_cost"}),
    ):
        rows = columns(made.folder / stage / "log.csv")
        assert [row["step"] for row in rows] == [0, 1]
        for name in names:
            assert any(row[name] > 0 for row in rows), (stage, name)


def test_a_stage_teaches_its_part_and_leaves_the_rest(made):
    stem = load_file(made.folder / "contrast" / "reader.safetensors")
    eye = load_file(made.folder / "tower" / "eye.safetensors")
    saved = load_file(made.folder / "finetune" / "checkpoint" / "model.safetensors")
    for name in ("stages.0.weight", "stages.1.bias"):  # the tower goes on from the stem, in small steps
        moved = (eye[f"visual_encoder.patch_embed.{name}"] - stem[f"stem.{name}"]).abs().max()
        assert 0 < moved < 0.01, name
    frozen = {
        name: value for name, value in eye.items() if name.split(".")[0] in ("visual_encoder", "disease", "lungs")
    }
    assert frozen.keys() == eye.keys()
    for name, value in frozen.items():  # the tower has adapters, and its readers stay as they were taught
        torch.testing.assert_close(saved[name].float(), value, rtol=1e-3, atol=1e-6)
    learned = {name.split(".")[0] for name in saved.keys() - eye.keys()}
    assert learned == {"visual_encoder", "llama_proj", "layer_norm", "hybrid", "llm", "finding_tokens", "calibration"}
    assert any(value.any() for name, value in saved.items() if name.startswith("llm.") and ".lora_B." in name)


def test_the_checkpoint_is_the_recipes_model_reads_findings_and_writes_a_draft(made):
    recipe = tomllib.loads((made.folder / "recipe.toml").read_text())
    config = read_config(made.folder / "small")
    wanted = ModelConfig.from_dict(recipe["model"] | {"language": str(made.language)})
    assert config["model"] == wanted
    assert config["training"]["recipe"] == recipe
    assert config["training"]["step"] == 2
    found = config["training"]["calibration"]
    reporter = Reporter.load(made.folder / "small", download=False)
    draft = reporter.draft([reporter.read(made.folder / "3.png")], DecodeConfig(max_new_tokens=20))
    assert draft.tokens
    assert any(any(token.gates) for token in draft.tokens)
    read = {finding.name: finding for finding in draft.read}
    assert read.keys() == {name for name, label in NAMES.items() if found[label]["assessed"]} >= {ABNORMAL}
    assert "Fracture" in draft.not_assessed  # no film here says whether there is one
    for finding in read.values():
        assert 0 <= finding.probability <= 1
        assert (finding.presence is Presence.PRESENT) is (finding.probability >= finding.threshold)
        assert finding.maps[0].shape == (16,)
        assert finding.maps[0].sum() == pytest.approx(1, abs=1e-4)


def test_the_words_are_learned_on_with_the_tower_as_it_is(made):
    first, second = (load_file(made.folder / stage / "checkpoint" / "model.safetensors") for stage in ("heads", "tell"))
    for name, value in first.items():
        if name.startswith(("visual_encoder.", "disease.", "lungs.")):
            assert torch.equal(second[name], value), name
    for name in ("llama_proj.weight", "finding_tokens.tables.0.weight", "hybrid.layers.0.gate_proj.weight"):
        moved = (second[name].float() - first[name].float()).abs().max()
        assert 0 < moved < 0.05, name


def test_what_is_read_is_learned_on_with_tower_and_words_as_they_are(made):
    first, second = (
        load_file(made.folder / stage / "checkpoint" / "model.safetensors") for stage in ("finetune", "heads")
    )
    moved = {name for name, value in first.items() if not torch.equal(second[name], value)}
    assert {"disease.head.0.weight", "disease.queries", "disease.stem_mean"} <= moved
    assert {name for name in moved if not name.startswith(("disease.", "calibration."))} == set()


def test_calibrating_again_changes_no_weight(made):
    first, again = (load_file(made.folder / path / "model.safetensors") for path in ("tell/checkpoint", "small"))
    assert first.keys() == again.keys()
    changed = {name for name, value in first.items() if not torch.equal(value, again[name])}
    assert changed <= {"calibration.curve", "calibration.thresholds"}


@pytest.mark.parametrize("stage", ["tower", "finetune", "heads", "tell"])
def test_a_stage_that_was_stopped_ends_as_an_unbroken_one(made, stage):
    run: Callable[..., None] = getattr(made, stage)
    run(f"{stage} broken", stop=1)
    assert [row["step"] for row in columns(made.folder / f"{stage} broken" / "log.csv")] == [0]
    run(f"{stage} broken")
    broken, whole = (
        torch.load(made.folder / name / "last.pt", weights_only=True) for name in (f"{stage} broken", stage)
    )
    assert broken["step"] == whole["step"] == 2
    for name, value in whole["trained"].items():
        assert torch.equal(broken["trained"][name], value), name
    if stage == "tower":
        eyes = [load_file(made.folder / name / "eye.safetensors") for name in ("tower broken", "tower")]
        assert all(torch.equal(value, eyes[1][name]) for name, value in eyes[0].items())


# ---------------------------------------------------------------------------------------------------------- the recipe


def rates(run: Run, model: torch.nn.Module) -> set[str]:
    """Which of a run's learning rates any parameter takes."""
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups(model, run)  # every parameter has one
    return {max((part for part in run.learning_rates if part in name), key=len) for name in names}


def test_every_learning_rate_of_the_shipped_recipe_is_taken_by_something(make_llm, tokenizer):
    recipe = tomllib.loads(SHIPPED.read_text())
    config = ModelConfig.from_dict(recipe["model"] | {"vision": tomllib.loads(f"vision = {VISION}")["vision"]})
    _, run = apart(contrast.Lessons, recipe["contrast"])
    assert rates(run, contrast.Member(config.vision)) == set(run.learning_rates)
    _, run = apart(tower.Lessons, recipe["tower"])
    assert rates(run, Eye(config.vision, config.queries)) == set(run.learning_rates)
    _, run = apart(finetune.Lessons, recipe["finetune"])
    model = Emrrg(config, make_llm(), tokenizer)
    assert rates(run, model) == set(run.learning_rates)
    _, run = apart(finetune.Lessons, recipe["tell"])
    assert recipe["heads"]["heads"]
    model.visual_encoder.requires_grad_(False)
    assert rates(run, model) == set(run.learning_rates)


# --------------------------------------------------------------------------------------------------------- the command

SCRIPT = Path(__file__).parent.parent / "train" / "small.sh"
STAND_IN = """\
#!/usr/bin/env bash
echo "$@" >> "$LOG"
while [ $# -gt 0 ]; do
    if [ "$1" = --out ]; then mkdir -p "$2"; fi
    if [ "$1" = --checkpoint ]; then checkpoint=$2; fi
    if [ "$1" = train.film_check ]; then made=looks.safetensors; fi
    if [ "$1" = train.phrases ]; then made=phrases.json; fi
    shift
done
if [ -n "${made:-}" ]; then touch "$checkpoint/$made"; fi
"""


@pytest.fixture
def command(tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """train/small.sh with a stand-in for Python that only notes what it is asked for."""
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    paths = {"PYTHON": f"{python}", "RUNS": f"{tmp_path}/runs", "LOG": f"{tmp_path}/log", "FROM_SCRATCH": "1"}

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", f"{SCRIPT}", *arguments], env=inherited | paths, capture_output=True, text=True, check=False
        )

    return run


def test_the_one_command_runs_every_stage_once_with_options_that_it_has(command, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("films.jsonl", "films_more.jsonl", "radiologists.jsonl"):
        (data / name).touch()
    first = command(f"{data}")
    assert first.returncode == 0, first.stderr
    asked = (tmp_path / "log").read_text().splitlines()
    modules = [line.split()[1] for line in asked]
    assert [m for i, m in enumerate(modules) if m not in modules[:i]] == [
        f"train.{stage}"
        for stage in ("contrast", "tower", "finetune", "calibrate", "film_check", "phrases", "prior", "evaluate")
    ]
    sections = tomllib.loads(SHIPPED.read_text())
    for line in asked:
        words = line.split()
        source = (SCRIPT.parent / f"{words[1].removeprefix('train.')}.py").read_text()
        for word in words:
            assert not word.startswith("--") or f'"{word}"' in source, (words[1], word)
        if "--section" in words:
            assert words[words.index("--section") + 1] in sections
    second = command(f"{data}")
    assert second.returncode == 0, second.stderr
    assert (tmp_path / "log").read_text().splitlines() == asked
    assert second.stdout.count("there already") == len(asked)


def test_the_one_command_says_what_it_needs(command, tmp_path):
    assert "Name the folder" in command().stderr
    (tmp_path / "films.jsonl").touch()
    done = command(f"{tmp_path}")
    assert done.returncode == 2
    assert "has no films_more.jsonl" in done.stderr


def test_kept_features_and_layers_computed_again_are_the_stages_own_business(made, monkeypatch):
    """`ways` and `recompute` in the recipe: the tower sees no film of a second run, which learns the same to the last digit of its log."""
    text = (made.folder / "recipe.toml").read_text()
    kept = made.folder / "kept.toml"
    kept.write_text(re.sub(r"^deciding = .*$", "deciding = 4.0\nways = 2\nrecompute = true", text, flags=re.M))
    monkeypatch.setattr(Chain, "recipe", lambda *_: ["--recipe", f"{kept}"])
    looked = []
    look = KeptFeatures._look
    monkeypatch.setattr(KeptFeatures, "_look", lambda self, films: looked.append(len(films)) or look(self, films))
    calibrated = []
    see_all = calibrate.see_all
    monkeypatch.setattr(calibrate, "see_all", lambda *given: calibrated.append(1) or see_all(*given))
    again: list[dict] = []
    enable = PreTrainedModel.activation_checkpointing_enable
    monkeypatch.setattr(
        PreTrainedModel, "activation_checkpointing_enable", lambda llm, how: again.append(how) or enable(llm, how)
    )
    made.tell("kept")
    assert again == [{"use_reentrant": False}]
    assert 0 < sum(looked) <= 8
    assert len(calibrated) == 1  # two checkpoints were saved, and nothing that reads has learned
    there = len(list((made.folder / "cache").glob("tower-*/*.safetensors")))
    assert there == sum(looked)
    looked.clear()
    made.tell("kept again")
    assert looked == []
    rows, others = (columns(made.folder / name / "log.csv") for name in ("kept", "kept again"))
    for row, other in zip(rows, others, strict=True):
        assert {**row, "seconds": 0} == {**other, "seconds": 0}
    saved = [json.loads((made.folder / n / "checkpoint/config.json").read_text()) for n in ("tell", "kept")]
    assert saved[0]["training"]["calibration"] == saved[1]["training"]["calibration"]


def test_a_stage_whose_tower_learns_keeps_no_features(made, monkeypatch):
    kept = made.folder / "refused.toml"
    kept.write_text((made.folder / "recipe.toml").read_text().replace("gate_bias = 1.0", "gate_bias = 1.0\nways = 2"))
    monkeypatch.setattr(Chain, "recipe", lambda *_: ["--recipe", f"{kept}"])
    with pytest.raises(ConfigError, match="set tower = false"):
        made.finetune("refused")


@pytest.mark.parametrize(("asked", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_the_frozen_language_model_has_the_precision_that_a_launcher_asks_for(made, monkeypatch, asked, dtype):
    """In bfloat16 beside hybrid layers in float32, without autocast, no step would run."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    for fast in (True, False):
        monkeypatch.setattr(loop, "prefers_bfloat16", lambda device, fast=fast: fast)
        given = ["--start", f"{made.folder}/tower", "--out", f"{made.folder}/x", "--language-model", f"{made.language}"]
        args = finetune._parser().parse_args([*made.common, *made.recipe(0), *given])
        model, _ = finetune.build_model(args, finetune.read_plan(args))
        assert model.llm.get_input_embeddings().weight.dtype is dtype
