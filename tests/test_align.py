"""Stage 2: films and reports in one space."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from emrrg_core.config import QueryConfig, VisionConfig
from emrrg_core.errors import CheckpointError, ConfigError, LanguageModelError
from emrrg_core.model.convert import load_tower, save_tower
from emrrg_core.model.vision_mamba import VisionMamba
from tests import tiny
from tests.phantom import make_phantom
from tests.rounding import assert_alike
from train import align
from train.align import Aligner, Alignment, FrozenText, TrainedText, start_tower
from train.tower import Eye

RECIPE = """
[align]
steps = {steps}
batch = 12
warmup = 4
weight_decay = 0.01
save_every = {steps}
select = "retrieval"
learning_rates = {{ visual_encoder = 3e-3, vision_proj = 5e-3, text = 1e-3, text_proj = 5e-3, logit_scale = 1e-2 }}
width = 32
sources = {{ ours = 1.0 }}
"""


@pytest.fixture
def encoder_folder(tmp_path, tokenizer) -> Path:
    """An encoder as BERT is one, with random weights."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5,
    )
    folder = tmp_path / "bert"
    BertModel(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tower_folder(tmp_path) -> Path:
    torch.manual_seed(0)
    save_tower(tmp_path / "tower", VisionMamba(tiny.CONFIG.vision).state_dict(), tiny.CONFIG.vision, {})
    return tmp_path / "tower"


def aligner(language_folder: Path) -> Aligner:
    torch.manual_seed(0)
    return Aligner(VisionMamba(tiny.CONFIG.vision), FrozenText(str(language_folder), 64), 16).eval()


def test_a_text_is_the_mean_of_the_frozen_models_states_and_is_read_once(language_folder):
    text = FrozenText(str(language_folder), 64)
    (language,) = text._language
    one = "The lungs are clear."
    ids = language.tokenizer(one, return_tensors="pt").input_ids
    with torch.no_grad():
        want = language.model.get_decoder()(input_ids=ids).last_hidden_state[0].float().mean(0)
    seen = text([one, one], torch.device("cpu"))
    torch.testing.assert_close(seen, torch.stack([want, want]))
    language.model = None  # nothing is read again
    torch.testing.assert_close(text([one], torch.device("cpu"))[0], want)
    assert not list(text.parameters())


def test_a_trained_encoder_answers_at_its_last_real_token_whatever_stands_beside(encoder_folder):
    text = TrainedText(str(encoder_folder), 64).eval()
    short, long = "Clear.", "There is a nodule in the right upper zone."
    together = text([short, long], torch.device("cpu"))
    assert_alike(together[0], text([short], torch.device("cpu"))[0], text)
    ids = text._tokenizer(short, return_tensors="pt").input_ids
    assert_alike(together[0], text.encoder(input_ids=ids).last_hidden_state[0, -1], text)
    together.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in text.encoder.parameters())


def test_the_text_side_is_one_thing_and_is_there(tmp_path):
    with pytest.raises(ConfigError, match="name one"):
        Alignment()
    with pytest.raises(ConfigError, match="name one"):
        Alignment(language="a", encoder="b")
    with pytest.raises(LanguageModelError, match="text encoder"):
        TrainedText(str(tmp_path), 64)


def test_the_loss_is_the_published_one_where_all_texts_differ(language_folder):
    model = aligner(language_folder)
    seen, read = (torch.nn.functional.normalize(torch.randn(4, 16), dim=-1) for _ in range(2))
    logits = seen @ read.T / 0.07
    own = torch.arange(4)
    want = (torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(model.loss(seen, read, ["a", "b", "c", "d"]), want)
    assert math.isclose(model.logit_scale.exp().item(), 1 / 0.07, rel_tol=1e-5)


def test_films_with_the_same_text_are_not_pushed_apart(language_folder):
    model = aligner(language_folder)
    seen = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), dim=-1)
    # the first two share text and feature: as low as it gets is ln 2 a row for them, and nothing for the third
    loss = model.loss(seen, seen, ["same", "same", "other"])
    assert loss.item() == pytest.approx(2 / 3 * math.log(2), abs=1e-4)
    assert model.loss(seen, seen, ["one", "two", "other"]).item() == pytest.approx(loss.item(), abs=1e-4)
    apart = seen.clone()
    apart[1] = torch.tensor([0.6, 0.8])
    assert model.loss(apart, apart, ["same", "same", "other"]) > loss


def test_an_image_feature_is_the_mean_of_all_tokens_over_the_views(language_folder):
    model = aligner(language_folder)
    images = torch.randn(2, 2, 3, tiny.SIZE, tiny.SIZE)
    views = torch.tensor([[True, True], [True, False]])
    with torch.no_grad():
        seen = model.see(images, views)
        tokens = [model.visual_encoder(images[i, j][None]).mean((0, 1)) for i, j in ((0, 0), (0, 1), (1, 0))]
        want = [
            torch.nn.functional.normalize(model.vision_proj(t), dim=-1)
            for t in ((tokens[0] + tokens[1]) / 2, tokens[2])
        ]
    torch.testing.assert_close(seen, torch.stack(want), atol=1e-5, rtol=1e-5)


def test_it_starts_from_the_tower_that_disease_queries_were_taught_on(tmp_path):
    vision = VisionConfig(image_size=64, d_model=64, depth=1, d_state=4)
    torch.manual_seed(3)
    eye = Eye(vision, QueryConfig(depth=1))
    save_file(eye.state_dict(), tmp_path / "eye.safetensors")
    tower = start_tower(tmp_path, vision)
    for name, value in eye.visual_encoder.state_dict().items():
        assert torch.equal(tower.state_dict()[name], value), name
    with pytest.raises(CheckpointError, match="this recipe's size"):
        start_tower(tmp_path, VisionConfig(image_size=64, d_model=64, depth=2, d_state=4))
    assert start_tower(None, vision).config == vision


@pytest.mark.parametrize("side", ["language", "encoder"])
def test_the_program_aligns_films_with_reports_and_leaves_a_tower_that_loads(
    tmp_path, tower_folder, language_folder, encoder_folder, side, capsys
):
    """Films with their own reports, half with a large white square: after training, held-out films find their own among the others'."""
    phantoms = [make_phantom(i, height=128, width=128, lesion=("opacity", None)[i % 2]) for i in range(60)]
    for phantom in phantoms[::2]:
        phantom.pixels[30:100, 30:100] = 1
    clear = ("The lungs are clear.", "No acute disease.")
    own = [("There is an opacity in the lung.", "Opacity.") if p.lesion else clear for p in phantoms]
    rows = [
        (p, {"split": "train", "patient": f"{i}", "findings": f, "impression": s})
        for i, (p, (f, s)) in enumerate(zip(phantoms, own, strict=True))
    ]
    films = tiny.film_set(tmp_path, rows)
    recipe = tmp_path / "recipe.toml"
    source = language_folder if side == "language" else encoder_folder
    recipe.write_text(RECIPE.format(steps=60).replace("width = 32", f"width = 32\n{side} = {json.dumps(str(source))}"))
    out = tmp_path / "out"
    align.main(
        [
            "--recipe",
            str(recipe),
            "--films",
            str(films),
            "--start",
            str(tower_folder),
            "--out",
            str(out),
            "--cache",
            str(tmp_path / "cache"),
        ]
    )
    rows_of_log = list(csv.DictReader((out / "log.csv").read_text().splitlines()))
    # of 12 films half share a text: the least that the loss can be is about ln 6, and who tells no film from another loses ln 12
    assert np.mean([float(row["loss"]) for row in rows_of_log[-20:]]) < math.log(12) - 0.2
    assert "held-out" in capsys.readouterr().out
    scores = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert scores[-1]["retrieval"] >= 0.75 if "retrieval" in scores[-1] else scores[-1]["scores"]["retrieval"] >= 0.75
    tower = load_tower(out)
    before = load_tower(tower_folder).state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in tower.state_dict().items())
