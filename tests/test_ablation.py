"""train/ablation.py: rows that differ in their slice alone, done once, resumed, and a page that says what the results say."""

import csv
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from emrrg_core.model.convert import save_tower
from emrrg_core.model.emrrg import IGNORED
from emrrg_core.model.partial_lora import ROWS
from emrrg_core.model.vision_mamba import VisionMamba
from tests import tiny
from tests.phantom import make_phantom
from train import ablation, finetune

pytestmark = pytest.mark.slow


SHIPPED = Path(__file__).parent.parent / "train" / "recipes" / "ablation.toml"
RECIPE = """
[finetune]
steps = 2
batch = 2
warmup = 0
seed = 3
save_every = 1
learning_rates = { ".lora" = 1e-2, llama_proj = 1e-2, layer_norm = 1e-2 }
sources = { ours = 1.0 }
[decode]
max_new_tokens = 1
[ablation]
films = 6
drafts = 4
tokens = 5
texts = 1
[model]
vision = { image_size = 32, patch_size = 4, d_model = 48, depth = 1, d_state = 4, drop_path = 0.0 }
prompt = { before = "Human:", after = "Report:", pooled_grid = 1 }
language = "tiny"
"""


@pytest.fixture(scope="module")
def common(tmp_path_factory, language_folder) -> list[str]:
    """Arguments for films of twenty patients, each with a normal and an abnormal one, and a tower that nobody taught."""
    folder = tmp_path_factory.mktemp("ablation")
    kinds = (None, "nodule", None, "effusion", None, "opacity")
    rows = [
        (make_phantom(i, height=128, width=128, lesion=kinds[i % 6]), {"split": "train", "patient": f"p{i // 2}"})
        for i in range(40)
    ]
    films = tiny.film_set(folder, rows)
    (folder / "recipe.toml").write_text(RECIPE)
    torch.manual_seed(0)
    save_tower(folder / "tower", VisionMamba(tiny.CONFIG.vision).state_dict(), tiny.CONFIG.vision, {})
    paths = {"recipe": "recipe.toml", "reports": "reports.jsonl", "start": "tower", "out": "out", "cache": "cache"}
    named = [word for name, path in paths.items() for word in (f"--{name}", f"{folder / path}")]
    return ["--films", f"{films}", "--language-model", f"{language_folder}", "--threads", "1", *named]


def at(common: list[str], name: str) -> Path:
    return Path(common[common.index(f"--{name}") + 1])


def having(common: list[str], **other: Path) -> list[str]:
    changed = list(common)
    for name, path in other.items():
        changed[changed.index(f"--{name}") + 1] = f"{path}"
    return changed


@pytest.fixture(scope="module")
def out(common) -> Path:
    """Two rows of two seeds."""
    assert ablation.main([*common, "--rows", "llm", "x", "--seeds", "2"]) == 0
    return at(common, "out")


def read(out: Path, run: str) -> dict:
    return json.loads((out / f"{run}.json").read_text())


def test_every_run_leaves_its_scores_its_settings_and_what_it_trained(out):
    assert {p.stem for p in out.glob("*-*.json")} == {"llm-3", "x-3", "llm-4", "x-4"}
    recipe = tomllib.loads(RECIPE)
    for row in ("llm", "x"):
        result = read(out, f"{row}-3")
        saved = load_file(out / f"{row}-3" / "checkpoint" / "model.safetensors")
        trained = [value for name, value in saved.items() if ".lora" in name or not name.startswith("visual_encoder.")]
        assert result["trainable"] == sum(value.numel() for value in trained)
        assert result["settings"]["recipe"] == recipe
        assert result["seconds"]["training"] > 0
        scores = result["scores"]
        assert scores["nll"]["n"] == scores["looks"]["n"] == scores["auc"]["n"] == len(result["films"]["nll"]) == 4
        assert scores["nll"]["value"] == pytest.approx(np.mean(result["films"]["nll"]), abs=1e-5)
        assert 0 <= scores["auc"]["value"] == scores["auc_ours"]["value"] <= 1
        assert all(scores[name]["value"] is not None for name in ("balanced_accuracy", "bleu4", "rouge_l", "cider"))


def test_rows_train_their_own_slice_and_seeds_differ(out, common):
    tower = load_file(at(common, "start") / "tower.safetensors")
    kept = {run: load_file(out / run / "checkpoint" / "model.safetensors") for run in ("llm-3", "x-3", "x-4")}
    for state in kept.values():
        assert not any(name.startswith("hybrid.") for name in state)
        for name, value in tower.items():
            torch.testing.assert_close(state[f"visual_encoder.{name}"].float(), value, rtol=1e-3, atol=1e-6)
    slices = {run: {n.split(".lora")[1] for n in state if ".lora" in n} for run, state in kept.items()}
    assert all(name.startswith(("_A", "_B")) for name in slices["llm-3"])
    assert slices["x-3"] == {".x.down.weight", ".x.up.weight"}
    assert not torch.equal(kept["x-3"]["llama_proj.weight"], kept["x-4"]["llama_proj.weight"])


def test_what_is_done_is_not_done_again(out, common):
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert ablation.main([*common, "--rows", "llm", "x", "--seeds", "2"]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


def test_an_interrupted_row_goes_on_to_the_same_result(out, common, tmp_path):
    """One step was done when the machine went down."""
    other = having(common, out=tmp_path / "again")
    (tmp_path / "again" / "x-3").mkdir(parents=True)
    stopped = tmp_path / "stopped.toml"
    stopped.write_text(RECIPE.replace("steps = 2", "steps = 2\nstop = 1"))
    finetune.main([*having(other, recipe=stopped, out=tmp_path / "again" / "x-3"), "--design", "x"])
    assert ablation.main([*other, "--rows", "x", "--seeds", "1"]) == 0
    with (tmp_path / "again" / "x-3" / "log.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["0", "1"]
    again, unbroken = read(tmp_path / "again", "x-3"), read(out, "x-3")
    assert again["films"]["nll"] == pytest.approx(unbroken["films"]["nll"], abs=1e-4)


def test_the_page_says_what_the_results_say(out, capsys):
    assert ablation.main(["--report", f"{out}"]) == 0
    page = capsys.readouterr().out
    cells = {row: [c.strip() for c in line.split("|")[1:-1]] for row in ("LoRA(LLM)", "LoRA_p(X)")
             for line in page.splitlines() if line.startswith(f"| {row} |") and len(line.split("|")) == 18}  # fmt: skip
    heading = next(line for line in page.splitlines() if line.startswith("| row | trained"))
    titles = [title.strip() for title in heading.split("|")[1:-1]]
    results = {"LoRA(LLM)": read(out, "llm-3"), "LoRA_p(X)": read(out, "x-3")}
    for row, result in results.items():
        assert cells[row][titles.index("trained")] == f"{result['trainable']:,}"
        for score, title in (("nll", "nats a token"), ("auc", "AUC"), ("bleu4", "BLEU-4")):
            value = result["scores"][score]
            assert cells[row][titles.index(title)].startswith(f"{value['value']:.3f}")
    # docs/method.md 7.2
    assert cells["LoRA_p(X)"][-5:] == ["0.485", "0.169", "0.388", "0.216", "0.474"]
    assert cells["LoRA(LLM)"][-5:] == ["0.479", "0.177", "0.386", "0.212", "0.489"]
    nll = {run: read(out, run)["films"]["nll"] for run in ("llm-3", "x-3", "x-4")}
    saved = np.mean(nll["x-3"]) - np.mean(nll["llm-3"])
    line = next(rest for rest in page.split("film by film")[1].splitlines() if rest.startswith("| LoRA(LLM)"))
    assert line.startswith(f"| LoRA(LLM) | {saved:.3f} (")
    values = [read(out, run)["scores"]["nll"]["value"] for run in ("x-3", "x-4")]
    assert f"| LoRA_p(X) | 2 | {np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f}) |" in page
    assert "Of 1 pairs of rows" in page


def test_scores_that_look_equal_are_not_ranked(out):
    results = ablation.read_results(out)
    for number, result in enumerate(results.values()):
        result["scores"]["bleu4"]["value"] = number * 1e-10
    page = ablation.page(results)
    assert "| BLEU-4 | – | – | – | – | – | – | – |" in page
    line = next(line for line in page.split("first and last")[1].splitlines() if line.startswith("| BLEU-4 | "))
    assert line.split(" | ")[1:3] == ["LoRA(LLM)", "2 rows alike"]


def test_what_cannot_be_compared_is_refused(out, common, tmp_path, capsys):
    def said(argv: list[str]) -> str:
        assert ablation.main(argv) == 2
        return capsys.readouterr().err

    assert "no row called 'w'; choose from llm," in said([*common, "--rows", "x", "w"])
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.replace("steps = 2", "steps = 3"))
    assert "made with other settings (recipe)" in said(having(common, recipe=recipe))
    assert "made with other settings (films)" in said(having(common, films=at(common, "reports")))
    recipe.write_text(RECIPE.replace("[model]", "[model]\nqueries = { depth = 1 }"))
    assert "without disease queries" in said(having(common, recipe=recipe))
    recipe.write_text(RECIPE.replace("seed = 3\n", ""))
    assert "line `seed = N`" in said(having(common, recipe=recipe))
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    assert "no results" in said(["--report", f"{mixed}"])
    (mixed / "llm-3.json").write_text((out / "llm-3.json").read_text())
    (mixed / "x-3.json").write_text((out / "x-3.json").read_text().replace('"batch": 2', '"batch": 4'))
    assert "x-3 and llm-3 cannot be compared" in said(["--report", f"{mixed}"])


def test_texts_of_a_batch_score_as_they_would_alone(tiny, images):
    texts = ["Findings: The lungs are clear.", "Impression: Nodule, right.", "Findings: Effusion on the left, 2.5 cm."]
    with torch.inference_mode():
        seen = tiny.encode(images)
        together, begun = (ablation.log_probs(tiny, seen, texts, end=end) for end in (True, False))
        for i, text in enumerate(texts):
            ids = torch.tensor([[*tiny.tokenizer(text).input_ids, tiny.tokenizer.eos_token_id]])
            assert IGNORED not in ids
            alone = tiny.log_probs(seen.select([i]), ids)[0]
            assert together[i] == pytest.approx(alone.mean().item(), abs=1e-4)
            assert begun[i] == pytest.approx(alone[:-1].mean().item(), abs=1e-4)


def test_ranks_share_ties_and_correlate_from_one_end_to_the_other():
    assert ablation.ranks([0.5, 0.9, 0.5, 0.1]).tolist() == [2.5, 1, 2.5, 4]
    assert ablation.rank_correlation([1, 2, 3], [10, 20, 40]) == pytest.approx(1)
    assert ablation.rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert ablation.rank_correlation([1, 1, 1], [3, 2, 1]) is None


def test_the_papers_table_is_copied_rightly():
    """By what docs/method.md 7.2 says of it, and a row of its numbers."""
    assert ablation.PAPER.keys() == ROWS.keys()
    columns = {
        metric: {row: values[i] for row, values in ablation.PAPER.items()} for i, metric in enumerate(ablation.METRICS)
    }
    first = {metric: max(column, key=column.get) for metric, column in columns.items()}
    assert first == {"bleu1": "x", "bleu2": "llm", "bleu3": "llm", "bleu4": "llm", "rouge_l": "x", "meteor": "x", "cider": "embedding"}  # fmt: skip
    assert {min(column, key=column.get) for column in columns.values()} == {"in_proj"}
    assert ablation.PAPER["dt"] == (0.458, 0.299, 0.221, 0.157, 0.387, 0.197, 0.484)


def test_the_shipped_recipe_suits_every_row():
    recipe = tomllib.loads(SHIPPED.read_text())
    run, trial = ablation.trial_of(recipe)
    assert tomllib.loads(ablation.with_seed(SHIPPED.read_text(), 7))["finetune"]["seed"] == 7
    assert trial.drafts <= trial.films
    assert run.seed == 0
