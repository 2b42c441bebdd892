"""Fine-tuning as published: films with their own reports, several views, no disease queries, a tower from an earlier stage."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from emrrg_core.errors import CheckpointError, ConfigError, DataError
from emrrg_core.model.checkpoint import read_config
from emrrg_core.model.convert import save_tower
from emrrg_core.model.vision_mamba import VisionMamba
from tests import tiny
from tests.phantom import make_phantom
from train import finetune
from train.finetune import Lessons
from train.loop import apart

RECIPE = """
[finetune]
steps = 2
batch = 3
views = 2
warmup = 0
save_every = 2
select = "0.8*bleu4 + 0.2*cider"
learning_rates = { visual_encoder = 1e-3, llama_proj = 1e-3, layer_norm = 1e-3, hybrid = 1e-3 }
sources = { ours = 1.0 }
[decode]
beams = 2
max_new_tokens = 12
repetition_penalty = 2.0
length_penalty = 2.0
[model]
vision = { image_size = 32, patch_size = 4, d_model = 48, depth = 1, d_state = 4, drop_path = 0.0 }
adapters = { x = { rank = 2, scale = 1.0, dropout = 0.0 }, in_proj = { rank = 2, scale = 1.0, dropout = 0.0 } }
hybrid = { every_n = 2, gate = "whole-dynamic-tanh-warmup", warmup_start = 0.0 }
language = "tiny"
[model.prompt]
before = "Human:"
after = "Report:"
tokens = "all"
[variants.deeper]
vision = { image_size = 32, patch_size = 4, d_model = 48, depth = 2, d_state = 4, drop_path = 0.0 }
"""


@pytest.fixture
def common(tmp_path, language_folder) -> list[str]:
    """Arguments for a film set of 24 studies, every third of two views, and a tower of one layer."""
    phantoms = [make_phantom(i, height=128, width=128, lesion=("opacity", None)[i % 2]) for i in range(24)]
    rows = []
    for i, phantom in enumerate(phantoms):
        row = {
            "split": "train",
            "patient": f"p{i}",
            "labels": {},
            "findings": phantom.findings,
            "impression": phantom.impression,
        }
        rows.append((phantom, row | ({"files": [f"{i}.png", f"{(i + 1) % 24}.png"]} if i % 3 == 0 else {})))
    films = tiny.film_set(tmp_path, rows)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    torch.manual_seed(0)
    save_tower(tmp_path / "tower", VisionMamba(tiny.CONFIG.vision).state_dict(), tiny.CONFIG.vision, {})
    names = {"recipe": "recipe.toml", "start": "tower", "out": "out", "cache": "cache"}
    named = [part for name, path in names.items() for part in (f"--{name}", f"{tmp_path / path}")]
    return ["--films", f"{films}", "--language-model", f"{language_folder}", *named]


def test_films_learn_their_own_reports_and_the_best_checkpoint_is_chosen_by_the_published_score(
    tmp_path, common, capsys
):
    finetune.main(common)
    films, own = re.search(r"(\d+) films, (\d+) of them with their own report", capsys.readouterr().out).groups()
    assert films == own == "21"  # the rest, every tenth patient, is kept for decisions
    scores = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    found = scores[-1].get("scores", scores[-1])
    assert {"bleu4", "cider"} <= found.keys()
    assert (tmp_path / "out" / "best.safetensors").is_file()
    saved = load_file(tmp_path / "out" / "checkpoint" / "model.safetensors")
    tower = load_file(tmp_path / "tower" / "tower.safetensors")
    for name, value in tower.items():  # frozen: only adapters, projector and hybrid layers learned
        torch.testing.assert_close(saved[f"visual_encoder.{name}"].float(), value, rtol=1e-3, atol=1e-6)
    assert any(".lora." in name and ".up" in name and value.abs().sum() > 0 for name, value in saved.items())


def test_a_variant_and_a_row_of_the_ablation_replace_the_recipes_model(tmp_path, common):
    with pytest.raises(CheckpointError, match="missing"):
        finetune.main([*common, "--variant", "deeper"])  # the tower that it starts from has one layer
    finetune.main([*common, "--design", "projector"])
    config = read_config(tmp_path / "out" / "checkpoint")["model"]
    assert config.hybrid.every_n == 0
    assert not config.adapters.low_rank()


def test_what_a_recipe_asks_for_and_cannot_have_is_said(tmp_path, common):
    recipe = Path(common[common.index("--recipe") + 1])
    recipe.write_text(RECIPE.replace("[model.prompt]", "queries = { depth = 1 }\n[model.prompt]"))
    with pytest.raises(CheckpointError, match=r"no eye\.safetensors.*disease queries"):
        finetune.main(common)
    recipe.write_text(RECIPE.replace("ours = 1.0", "theirs = 1.0"))
    with pytest.raises(DataError, match=r"theirs.*give --reports"):
        finetune.main(common)
    with pytest.raises(ConfigError, match="viewz"):
        apart(Lessons, {"steps": 1, "batch": 1, "learning_rates": {}, "viewz": 2})
