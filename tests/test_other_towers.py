"""Swin and CLIP stand where the Mamba stands: the same layout, the same settings in a checkpoint, and everything above them works."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel, SwinForImageClassification

from emrrg_core.config import (
    AdapterConfig,
    DecodeConfig,
    LowRankConfig,
    ModelConfig,
    PromptConfig,
    PromptTokens,
    QueryConfig,
    Stem,
    Tower,
    VisionConfig,
)
from emrrg_core.errors import CheckpointError, ConfigError
from emrrg_core.films.film import MEAN, STD
from emrrg_core.model import checkpoint as checkpoints
from emrrg_core.model.emrrg import Emrrg
from emrrg_core.model.finding_tokens import finding_maps
from emrrg_core.model.generation import write
from emrrg_core.model.other_towers import TransformersTower, build_tower, load_published
from emrrg_core.model.partial_lora import attach
from emrrg_core.model.vision_mamba import VisionMamba
from emrrg_core.text.labeler import LABELS
from tests import tiny
from tests.conftest import TINY, surely
from train import parameters
from train.finetune import load_start
from train.targets import TAUGHT, Example
from train.tower import Eye, Lessons, begin, loss_of_seen

SWIN = VisionConfig(tower=Tower.SWIN, image_size=56, patch_size=8, d_model=64, depth=2, drop_path=0.0)
CLIP = VisionConfig(tower=Tower.CLIP, image_size=28, patch_size=7, d_model=32, depth=3)
SWIN_L = VisionConfig(tower=Tower.SWIN, image_size=224, patch_size=32, d_model=1536, depth=18)
CLIP_L = VisionConfig(tower=Tower.CLIP, image_size=336, patch_size=14, d_model=1024, depth=24)
SMALL = pytest.mark.parametrize("vision", [SWIN, CLIP], ids=lambda vision: vision.tower)
FROZEN, FULL = AdapterConfig.only(), replace(AdapterConfig.only(), full=True)
TEXTS = ["The lungs are clear.", "There is a nodule in the right lung."]


def tower_of(vision: VisionConfig, seed: int = 0) -> TransformersTower:
    torch.manual_seed(seed)
    made = build_tower(vision).eval()
    assert isinstance(made, TransformersTower)
    return made


def films(vision: VisionConfig, n: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 3, vision.image_size, vision.image_size, generator=torch.Generator().manual_seed(seed))


def config_of(vision: VisionConfig, **more) -> ModelConfig:
    prompt = PromptConfig(before="Human:", after="Report:", pooled_grid=vision.grid)
    return replace(TINY, vision=vision, **{"adapters": FROZEN, "prompt": prompt} | more)


@pytest.fixture
def model_of(make_llm, tokenizer):
    """A whole tiny model on another tower: `model_of(SWIN, adapters=FULL)`."""

    def made(vision: VisionConfig, **more) -> Emrrg:
        torch.manual_seed(4)
        return Emrrg(config_of(vision, **more), make_llm(), tokenizer).eval()

    return made


# ---------------------------------------------------------------------------------------------------------------- layout


@SMALL
def test_tokens_are_the_patches_in_raster_order_around_one_class_token(vision):
    tower, given = tower_of(vision), films(vision)
    assert vision.tokens == vision.grid**2 + 1
    with torch.no_grad():
        before = tower(given)
        assert before.shape == (2, vision.tokens, vision.d_model)
        for row, column in ((0, 0), (vision.grid - 1, 1), (2, vision.grid - 1)):
            marked, size = given.clone(), vision.patch_size
            marked[:, :, row * size : (row + 1) * size, column * size : (column + 1) * size] += 3
            moved = (tower(marked) - before).norm(dim=-1)
            patch = row * vision.grid + column
            # the class token stands in the middle, so the patches behind it are one further on
            assert (moved.argmax(1) == patch + (patch >= vision.class_position)).all(), (row, column)


def test_the_class_token_of_a_swin_is_the_mean_of_its_patches_after_the_last_norm():
    tower, given = tower_of(SWIN), films(SWIN)
    with torch.no_grad():
        tokens, plain = tower(given), tower.net(pixel_values=given).last_hidden_state
    middle = SWIN.class_position
    torch.testing.assert_close(tokens[:, middle], plain.mean(1))
    torch.testing.assert_close(torch.cat([tokens[:, :middle], tokens[:, middle + 1 :]], 1), plain)


def test_the_tokens_of_a_clip_are_those_of_its_last_layer_but_one_of_a_film_normalised_as_clip_was_taught(tmp_path):
    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 1, "image_size": 28, "patch_size": 7}
    whole = CLIPVisionModel(CLIPVisionConfig(**sizes, num_hidden_layers=CLIP.depth)).eval()
    whole.save_pretrained(tmp_path)
    tower = tower_of(CLIP)
    load_published(tower, tmp_path)
    grey = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    ours = (grey - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    # from CLIP's own preprocessor_config.json
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    theirs = (grey - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        expected = whole(pixel_values=theirs, output_hidden_states=True).hidden_states[-2]
        tokens = tower(ours)
    middle = CLIP.class_position
    torch.testing.assert_close(tokens[:, middle], expected[:, 0], rtol=1e-4, atol=1e-5)
    patches = torch.cat([tokens[:, :middle], tokens[:, middle + 1 :]], 1)
    torch.testing.assert_close(patches, expected[:, 1:], rtol=1e-4, atol=1e-5)


@SMALL
def test_films_of_another_size_are_refused_and_nothing_finer_is_seen(vision):
    tower = tower_of(vision)
    with pytest.raises(ValueError, match="the tower takes images of shape"):
        tower(torch.zeros(1, 3, 32, 32))
    tokens, fine = tower.with_fine(films(vision))
    assert fine is None
    assert tokens.shape[1] == vision.tokens


# ---------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("vision", "tower"),
    # Swin-L as transformers builds it, without its head; CLIP ViT-L/14-336 without the last layer, the norm after it and any projection
    [(SWIN_L, 194_995_476), (CLIP_L, 303_507_456 - 12_596_224 - 2_048)],
    ids=["swin", "clip"],
)
def test_the_published_sizes_have_the_published_parameters(vision, tower, language_folder):
    prompt = PromptConfig(tokens=PromptTokens.ALL)
    config = ModelConfig(vision=vision, adapters=FULL, prompt=prompt, language=str(language_folder))
    counts = parameters.count(config)
    assert counts.all["tower"] == counts.trainable["tower"] == tower


def test_only_designs_without_adapters_are_counted(language_folder):
    config = config_of(SWIN, language=str(language_folder))
    assert list(parameters.designs(config)) == ["recipe", "llm", "projector", "full"]
    assert "tower" not in parameters.count(config).trainable


# -------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tower": "swin", "stem": "convolution", "d_model": 256}, 'only a Mamba tower has a convolutional stem: set stem to "patch"'),
        ({"tower": "swin", "patch_size": 14}, "patch_size 14 is no multiple of 8"),
        ({"tower": "swin", "d_model": 768 + 64}, "a Swin tower needs d_model in steps of 256, or below that of 8, not 832"),
        ({"tower": "swin", "d_model": 60}, "not 60"),
        ({"tower": "clip", "d_model": 100}, "a CLIP tower above d_model 64 needs it in steps of 64, not 100"),
        ({"tower": "clip", "depth": 1}, "depth 1 has none"),
        ({"tower": "resnet"}, "tower"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        VisionConfig.from_dict({"image_size": 224, "patch_size": 16 if "patch_size" not in wrong else 14} | wrong)


@SMALL
def test_adapters_of_another_tower_are_refused_saying_what_to_set(vision):
    for adapters in (AdapterConfig(), AdapterConfig.only(out_proj=LowRankConfig(rank=2))):
        with pytest.raises(ConfigError, match=r"this tower is a \w+: set the ranks .* adapters\.full"):
            config_of(vision, adapters=adapters)
        with pytest.raises(ValueError, match="adapters are of a Mamba's projections"):
            attach(tower_of(vision), adapters)


def test_what_needs_a_mamba_refuses_other_towers():
    with pytest.raises(ConfigError, match='set tower to "mamba", not "swin"'):
        VisionMamba(SWIN)
    assert isinstance(build_tower(replace(TINY.vision, depth=1)), VisionMamba)


def test_a_checkpoint_of_before_there_were_other_towers_has_a_mamba():
    kept = {name: value for name, value in VisionConfig().to_dict().items() if name != "tower"}
    assert VisionConfig.from_dict(kept) == VisionConfig()
    assert VisionConfig.from_dict(SWIN.to_dict()) == SWIN
    assert VisionConfig().stem is Stem.PATCH


# ---------------------------------------------------------------------------------------------------------------- learns


@SMALL
def test_the_tower_is_frozen_or_learns_in_full(vision, model_of):
    rows = torch.tensor([[5, 9, 200, 2]] * 2)
    for adapters, learns in ((FROZEN, False), (FULL, True)):
        model = model_of(vision, adapters=adapters).train()
        model(model.encode(films(vision).unsqueeze(1)), rows).total.backward()
        reached = {n for n, p in model.visual_encoder.named_parameters() if p.grad is not None and p.grad.any()}
        asked = {n for n, p in model.visual_encoder.named_parameters() if p.requires_grad}
        everything = {n for n, _ in model.visual_encoder.named_parameters()}
        assert asked == (everything if learns else set())
        assert reached == asked


@pytest.mark.parametrize(
    ("vision", "pooled"),
    [(replace(SWIN_L, depth=2), 7), (replace(CLIP_L, depth=3), 8)],
    ids=["Swin-L", "CLIP ViT-L/14-336"],
)
def test_published_widths_train_and_write(vision, pooled):
    llm, tokenizer = tiny.make_language(TEXTS, steps=2, seed=0)
    prompt = PromptConfig(before="Human:", after="Report:", pooled_grid=pooled)
    torch.manual_seed(0)
    model = Emrrg(replace(tiny.CONFIG, vision=vision, adapters=FULL, prompt=prompt), llm, tokenizer).train()
    rows = torch.tensor([[*tokenizer(TEXTS[0]).input_ids, tokenizer.eos_token_id]])
    images = films(vision, 1).unsqueeze(1)
    loss = model(model.encode(images), rows)
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert all(p.grad is not None for p in model.visual_encoder.parameters())
    with torch.inference_mode():
        (writing,) = write(model.eval(), model.encode(images), DecodeConfig(max_new_tokens=4))
    assert 1 <= len(writing.tokens) <= 4
    assert np.shape(writing.tokens[0].attention) == (3, vision.patches)  # by hybrid layer


# ------------------------------------------------------------------------------------------------------------ queries


@SMALL
def test_disease_queries_read_other_towers(vision, model_of, open_gates):
    """Logits, maps, lung borders, findings and their tokens, at another grid than the Mamba's."""
    prompt = replace(TINY.prompt, tokens=PromptTokens.NONE)
    model = open_gates(surely(model_of(vision, queries=QueryConfig(depth=1, heads=2), prompt=prompt)))
    with torch.no_grad():
        seen = model.see(films(vision, 4).view(2, 2, 3, vision.image_size, vision.image_size))
        film = model.project(seen)
        (writing, _) = write(model, film, DecodeConfig(max_new_tokens=4))
    assert seen.logits.shape == (2, len(LABELS))
    torch.testing.assert_close(seen.attribution.sum(-1) + seen.bias, seen.logits, rtol=1e-4, atol=1e-4)
    assert seen.lungs.shape == (2, 2, 4 * vision.grid, 4 * vision.grid)
    assert seen.regions().shape == (2, len(LABELS), 2, 3)
    maps = finding_maps(seen)
    assert maps.shape == (2, len(LABELS), 2, vision.patches)
    np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-4)
    assert len(film.findings[0]) > 0
    assert len(writing.tokens) > 0


@SMALL
def test_a_tower_of_another_kind_learns_to_read_whatever_the_grid_of_its_teacher(vision):
    """One step of train.tower: AM-MRG's first stage with its own tower."""
    torch.manual_seed(0)
    eye = Eye(vision, QueryConfig(depth=1, heads=2)).train()
    taught = np.full((len(TAUGHT), 14, 14), 0.5, np.float32)
    film = np.zeros((vision.image_size, vision.image_size), np.float32)
    known = Example(film, {"Edema": 1.0}, None, {"Fracture": film}, None, None, {"Pneumonia": 0.5}, taught)
    total, numbers = loss_of_seen(eye(films(vision, 1)), [known], Lessons())
    total.backward()
    assert numbers["taught"] > 0
    assert [n for n, p in eye.visual_encoder.named_parameters() if p.grad is None] == []


# ----------------------------------------------------------------------------------------------------- what is kept


@SMALL
def test_a_saved_model_comes_back_with_its_tower(vision, model_of, make_llm, tokenizer, tmp_path):
    model = model_of(vision)
    folder = checkpoints.save(model, tmp_path / "saved", language={"name": "tiny"}, training={})
    config = checkpoints.read_config(folder)["model"]
    assert config == model.config
    torch.manual_seed(9)
    other = Emrrg(config, make_llm(), tokenizer).eval()
    checkpoints.restore(other, folder)
    for name, value in other.visual_encoder.state_dict().items():
        assert torch.equal(value, model.visual_encoder.state_dict()[name].half().float()), name
    with torch.no_grad():
        kept, given = other.visual_encoder(films(vision)), model.visual_encoder(films(vision))
    torch.testing.assert_close(kept, given, rtol=0.02, atol=0.02)  # half precision


def test_a_tower_begins_with_published_weights_below_whatever_head(tmp_path, model_of):
    """Swin with a classifier, CLIP with its half that reads text."""
    swin = tower_of(SWIN, seed=5)
    SwinForImageClassification(swin.net.config).save_pretrained(tmp_path / "swin")
    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 1, "num_hidden_layers": CLIP.depth}
    clip = CLIPConfig(vision_config={**sizes, "image_size": 28, "patch_size": 7}, text_config=sizes)
    CLIPModel(clip).save_pretrained(tmp_path / "clip")
    for vision, name in ((SWIN, "swin"), (CLIP, "clip")):
        model = model_of(vision)
        before = {n: v.clone() for n, v in model.visual_encoder.state_dict().items()}
        load_start(model, tmp_path / name)
        stored = load_file(tmp_path / name / "model.safetensors").values()
        for key, value in model.visual_encoder.state_dict().items():
            assert any(value.shape == v.shape and torch.equal(value, v) for v in stored), key
        assert any(not torch.equal(v, before[n]) for n, v in model.visual_encoder.state_dict().items())
        eye = Eye(vision, QueryConfig(depth=1, heads=2))
        begin(eye, tmp_path / name)
        for key, value in eye.visual_encoder.state_dict().items():
            assert torch.equal(value, model.visual_encoder.state_dict()[key]), key


@SMALL
def test_a_tower_begins_with_what_train_tower_left(vision, model_of, tmp_path):
    torch.manual_seed(8)
    queries = QueryConfig(depth=1, heads=2)
    eye = Eye(vision, queries)
    save_file(eye.state_dict(), tmp_path / "eye.safetensors")
    model = model_of(vision, queries=queries)
    load_start(model, tmp_path)
    for part in ("visual_encoder", "disease", "lungs"):
        for name, value in getattr(eye, part).state_dict().items():
            assert torch.equal(getattr(model, part).state_dict()[name], value), name


@SMALL
def test_a_folder_without_such_a_tower_is_refused(vision, model_of, tmp_path):
    def refused(folder: Path, tower: VisionConfig = vision) -> str:
        with pytest.raises(CheckpointError) as caught:
            load_start(model_of(tower), folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert f"holds no {vision.tower} tower" in refused(tmp_path)
    tower_of(vision).net.save_pretrained(tmp_path / "small")
    assert f"holds no {vision.tower} tower" in refused(tmp_path / "small", replace(vision, d_model=2 * vision.d_model))
    assert "weights missing ['encoder" in refused(tmp_path / "small", replace(vision, depth=vision.depth + 2))
    tower_of(replace(vision, depth=vision.depth + 2)).net.save_pretrained(tmp_path / "deep")
    assert "0 weights missing [], " in refused(tmp_path / "deep")
    with pytest.raises(CheckpointError, match=r"no eye\.safetensors"):
        load_start(model_of(vision, queries=QueryConfig(depth=1, heads=2)), tmp_path / "small")
