"""The November checkpoint as a teacher: what its file holds is read as it was, and another file is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from emrrg_core.config import VISION_PRESETS, AdapterConfig, QueryConfig
from emrrg_core.data.studies import FilmCache, normalise, read_studies
from emrrg_core.errors import CheckpointError
from emrrg_core.model.disease_queries import WHOLE
from emrrg_core.model.partial_lora import attach
from emrrg_core.model.vision_mamba import ConvolutionalStem, VisionMamba
from emrrg_core.text.labeler import LABELS
from tests import tiny
from tests.phantom import make_phantom
from train import teacher
from train.teacher import LEARNED, PLACES, Readings, Teacher
from train.tower import Eye, load_stem

CONFIG = VISION_PRESETS["small"]
WIDTH = 2 * CONFIG.d_model


@pytest.fixture(scope="module")
def november() -> dict[str, Tensor]:
    """Weights of that form: a tower with adapters, three stems, a layer that averages what they read, and one for places."""
    torch.manual_seed(0)
    tower, places, labels = (
        VisionMamba(CONFIG),
        nn.Linear(CONFIG.d_model, len(PLACES)),
        nn.Linear(3 * WIDTH, len(LABELS)),
    )
    attach(tower, AdapterConfig())
    state = {f"visual_encoder.{n}": v for n, v in tower.state_dict().items()}
    for i in range(3):
        state |= {f"second.stems.{i}.{n}": v for n, v in ConvolutionalStem(CONFIG).state_dict().items()}
    state |= {f"second.labels.{n}": v for n, v in labels.state_dict().items()}
    state |= {f"signs.places.{n}": v for n, v in places.state_dict().items()}
    others = {"llama_proj.weight": torch.zeros(2, 2), "signs.labels.weight": torch.zeros(2, 2)}  # which no one asks for
    return {name: value.half() for name, value in (state | others).items()}


@pytest.fixture
def weights(november, tmp_path) -> Path:
    save_file({name: value.contiguous() for name, value in november.items()}, tmp_path / "november.safetensors")
    return tmp_path / "november.safetensors"


def test_it_reads_as_the_third_stem_and_the_old_tower_did(november, weights):
    made = Teacher(weights)
    assert not made.training
    assert not any(parameter.requires_grad for parameter in made.parameters())
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels, places = made(images)
        stem = ConvolutionalStem(CONFIG)
        third = "second.stems.2."
        stem.load_state_dict({n.removeprefix(third): v.float() for n, v in november.items() if n.startswith(third)})
        patches = stem(images)
        pooled = torch.cat([patches.mean(1), patches.amax(1)], 1)
        weight, bias = (november[f"second.labels.{name}"].float() for name in ("weight", "bias"))
    # three stems side by side, and the mean of their readings: the third alone counts three times its share
    torch.testing.assert_close(labels, 3 * pooled @ weight[:, 2 * WIDTH :].T + bias, atol=1e-3, rtol=1e-3)
    assert places.shape == (1, CONFIG.patches, len(PLACES))


@pytest.mark.parametrize(
    "missing",
    ["visual_encoder.pos_embed", "second.stems.2.stages.0.weight", "second.labels.weight", "signs.places.bias"],
)
def test_another_file_is_refused(november, tmp_path, missing):
    path = tmp_path / "other.safetensors"
    save_file({name: value.contiguous() for name, value in november.items() if name != missing}, path)
    with pytest.raises(CheckpointError, match="not the checkpoint of November 2026"):
        Teacher(path)


def test_a_file_that_is_torn_or_of_two_stems_is_refused(november, tmp_path):
    path = tmp_path / "other.safetensors"
    narrow = {"second.labels.weight": november["second.labels.weight"][:, :WIDTH]}
    save_file({name: value.contiguous() for name, value in (november | narrow).items()}, path)
    with pytest.raises(CheckpointError, match="not the checkpoint of November 2026"):
        Teacher(path)
    path.write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        Teacher(path)


def test_the_program_keeps_readings_of_training_films_and_the_stem_with_which_a_tower_begins(weights, tmp_path):
    rows = [
        (make_phantom(i, height=128, width=128, lesion=None), {"split": "train" if i < 2 else "val"}) for i in range(3)
    ]
    films, out = tiny.film_set(tmp_path, rows), tmp_path / "teacher"
    teacher.main(
        [
            "--weights",
            f"{weights}",
            "--films",
            f"{films}",
            "--out",
            f"{out}",
            "--cache",
            f"{tmp_path}",
            "--threads",
            "1",
        ]
    )
    studies = read_studies(films)
    readings, cache = Readings(out), FilmCache(studies, tmp_path)
    assert readings[studies[2]] is None  # nothing is read of films that judge
    made = Teacher(weights)
    for study in studies[:2]:
        labels, places = readings[study]
        with torch.no_grad():
            own = made(torch.from_numpy(normalise(cache[study]))[None])
        learned = [LABELS.index(name) for name in LEARNED]
        assert set(np.flatnonzero(~np.isnan(labels))) == set(learned)
        # kept in float16, read in bfloat16 where that pays
        np.testing.assert_allclose(labels[learned], own[0][0][learned], atol=0.05, rtol=0.02)
        np.testing.assert_allclose(places, own[1][0], atol=0.05, rtol=0.02)
    torch.manual_seed(3)
    eye = Eye(CONFIG, QueryConfig(depth=1, stem=True))
    bias = eye.disease.bias.detach().clone()
    load_stem(eye, out)
    for name, value in eye.visual_encoder.patch_embed.state_dict().items():
        assert torch.equal(value, made.stem.state_dict()[name]), name
    whole = [LABELS.index(name) for name in WHOLE]
    assert torch.equal(torch.cat([eye.disease.stem_mean, eye.disease.stem_max], 1), made.labels.weight[whole])
    bias[whole] += made.labels.bias[whole]
    torch.testing.assert_close(eye.disease.bias.detach(), bias)
    assert "stem.stages.0.weight" in load_file(out / "reader.safetensors")


def test_a_folder_without_readings_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no readings of train\.teacher"):
        Readings(tmp_path)
