"""train/contrast.py: what films are shown, what is asked of them, and that the stem learns."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from emrrg_core.config import QueryConfig, Stem, VisionConfig
from emrrg_core.data.studies import Study, normalise
from emrrg_core.errors import ConfigError
from train import contrast as program
from train.contrast import Draw, Member, contrast, cropped, images_of, warp
from train.tower import Eye, load_stem

FILMS = 255 * torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
VISION = VisionConfig(image_size=64, d_model=64, depth=1, d_state=4, drop_path=0.0, stem=Stem.CONVOLUTION)


# -------------------------------------------------------------------------------------------------------------- films


def whole(number: float) -> torch.Tensor:
    return torch.full((3, 1, 1), number)


def test_a_window_of_the_whole_film_is_the_film_and_a_mirrored_one_its_mirror_image():
    same = warp(FILMS, whole(0), whole(1), whole(1), whole(0), whole(0), 64)
    torch.testing.assert_close(same, FILMS, atol=1e-2, rtol=1e-4)
    mirrored = warp(FILMS, whole(0), whole(-1), whole(1), whole(0), whole(0), 64)
    torch.testing.assert_close(mirrored, FILMS.flip(-1), atol=1e-2, rtol=1e-4)


def test_a_window_shows_the_part_that_it_names():
    lower_left = warp(FILMS, whole(0), whole(0.5), whole(0.5), whole(-0.5), whole(0.5), 32)
    torch.testing.assert_close(lower_left, FILMS[:, 32:, :32], atol=1e-2, rtol=1e-4)


def test_outside_the_film_it_is_black():
    beside = warp(FILMS, whole(0), whole(1), whole(1), whole(3), whole(0), 64)
    assert beside.abs().max() == 0


def test_changed_films_keep_the_range_of_grey_and_differ_from_film_to_film():
    torch.manual_seed(1)
    seen = cropped(FILMS[:1].expand(4, -1, -1), 48)
    assert seen.shape == (4, 48, 48)
    assert 0 <= seen.min() < seen.max() <= 255
    assert (seen[0] - seen[1]).abs().mean() > 5


def test_half_of_the_films_are_mirrored():
    halves = torch.zeros(64, 64, 64)
    halves[..., :32] = 200
    torch.manual_seed(2)
    seen = cropped(halves, 64)
    left, right = seen[..., :20].mean((1, 2)), seen[..., -20:].mean((1, 2))
    assert (left > right + 50).sum() > 10
    assert (left < right - 50).sum() > 10


def test_images_are_normalised_as_everywhere():
    torch.testing.assert_close(images_of(FILMS), torch.from_numpy(normalise(FILMS.numpy())), atol=1e-5, rtol=1e-5)


# -------------------------------------------------------------------------------------------------------------- losses


def test_the_contrast_is_the_cross_entropy_written_out():
    draw = torch.Generator().manual_seed(3)
    first, second = torch.randn(3, 5, generator=draw), torch.randn(3, 5, generator=draw)
    both = [row / row.norm() for row in (*first, *second)]
    lost = 0.0
    for i, row in enumerate(both):
        alike = [math.exp(float(row @ other) / 0.2) for other in both]
        lost -= math.log(alike[(i + 3) % 6] / (sum(alike) - alike[i]))
    assert contrast(first, second, 0.2).item() == pytest.approx(lost / 6, rel=1e-5)
    assert contrast(first, first, 0.2) < contrast(first, second, 0.2)


# ----------------------------------------------------------------------------------------------------------- which films


def hospital(source: str, count: int) -> list[Study]:
    return [Study(f"{source} {i}", source, "train", str(i), (Path("x.png"),), {}, None, "", "") for i in range(count)]


def test_no_film_is_in_a_step_twice_while_there_are_enough():
    studies = hospital("one", 100) + hospital("two", 60)
    draw = Draw(studies, {"one": 0.5, "two": 0.5, "none": 1.0}, 7)
    for step in range(20):
        chosen = draw.step(step, 40)
        assert len(set(chosen.tolist())) == 40
        np.testing.assert_array_equal(chosen, Draw(studies, {"one": 0.5, "two": 0.5}, 7).step(step, 40))
    few = Draw(hospital("few", 3), {"few": 1.0}, 0).step(0, 7)
    assert sorted(set(few.tolist())) == [0, 1, 2]


def test_every_source_has_its_share_whatever_its_size():
    studies = hospital("many", 500) + hospital("few", 30)
    draw = Draw(studies, {"many": 0.25, "few": 0.75}, 0)
    share = np.mean([studies[i].source == "few" for step in range(60) for i in draw.step(step, 20)])
    assert share == pytest.approx(0.75, abs=0.04)


def test_a_recipe_whose_sources_are_not_there_is_refused():
    with pytest.raises(ConfigError, match="no training film"):
        Draw(hospital("one", 3), {"two": 1.0}, 0)


# ----------------------------------------------------------------------------------------------------------- the program

RECIPE = """
[contrast]
steps = 80
batch = 24
warmup = 4
clip = 10.0
save_every = 80
learning_rates = { stem = 1e-3, head = 1e-3 }
size = 64
sources = { ours = 1.0 }
[model]
vision = { image_size = 64, d_model = 64, depth = 1, d_state = 4, drop_path = 0.0, stem = "convolution" }
"""


def patterns(folder: Path, name: str, numbers: range) -> Path:
    """A film set of clouds, each its own, of which nothing is known. Phantoms are too alike to be told apart in a few steps."""
    lines = []
    for i in numbers:
        cloud = np.random.default_rng(i).uniform(0, 255, (6, 6)).astype(np.float32)
        film = cv2.resize(cloud, (128, 128), interpolation=cv2.INTER_CUBIC).clip(0, 255)
        cv2.imwrite(str(folder / f"{i}.png"), film.astype(np.uint8))
        row = {"id": f"{i}", "source": "ours", "split": "train", "patient": f"{i}", "files": [f"{i}.png"]}
        lines.append(json.dumps(row | {"labels": {}}))
    (folder / name).write_text("\n".join(lines))
    return folder / name


def test_the_stem_learns_from_two_film_sets_and_the_tower_goes_on_from_it(tmp_path):
    films = [patterns(tmp_path, "films.jsonl", range(24)), patterns(tmp_path, "more.jsonl", range(24, 40))]
    (tmp_path / "recipe.toml").write_text(RECIPE)
    where = ["--cache", f"{tmp_path}/cache", "--out", f"{tmp_path}/contrast", "--threads", "1"]
    program.main(["--recipe", f"{tmp_path}/recipe.toml", "--films", *map(str, films), *where])
    with (tmp_path / "contrast" / "log.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2
    saved = load_file(tmp_path / "contrast" / "reader.safetensors")
    assert {name.split(".")[0] for name in saved} == {"stem", "head"}
    eye = Eye(VISION, QueryConfig(depth=1))
    load_stem(eye, tmp_path / "contrast")
    for name, value in eye.visual_encoder.patch_embed.state_dict().items():
        assert torch.equal(value, saved[f"stem.{name}"]), name
    torch.manual_seed(0)
    fresh = Member(VISION).state_dict()  # what it began with
    assert not torch.equal(saved["stem.stages.0.weight"], fresh["stem.stages.0.weight"])


def test_a_recipe_that_does_not_suit_is_refused_in_words(tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("[contrast]", "[other]"))
    said = ["--films", "none", "--out", "never"]
    with pytest.raises(ConfigError, match=r"no section \['contrast'\].*other"):
        program.main(["--recipe", f"{tmp_path}/recipe.toml", *said])
    with pytest.raises(ConfigError, match="convolutional stem, and this recipe's tower has a patch one"):
        Member(replace(VISION, stem=Stem.PATCH))
