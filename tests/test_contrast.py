"""train/reader.py: what films are shown, what is asked of them, and that both stages learn."""

import csv
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from emrrg_core.config import VISION_PRESETS
from emrrg_core.data import NO_FINDING, Study, normalise
from emrrg_core.errors import CheckpointError, ConfigError
from emrrg_core.findings import LABELS
from train import reader
from train.reader import FEWEST, Draw, contrast, cropped, images_of, label_loss, retaken, targets_of, warp

FILMS = 255 * torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))


def study(name: str, source: str, *, abnormal: bool | None, view: str | None = None) -> Study:
    labels = {} if abnormal is None else {NO_FINDING: int(not abnormal)} | ({"Pneumonia": 1} if abnormal else {})
    return Study(name, source, "train", name, (Path("x.png"),), labels, view, "", "")


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


@pytest.mark.parametrize("change", [cropped, retaken])
def test_changed_films_keep_the_range_of_grey_and_differ_from_film_to_film(change):
    torch.manual_seed(1)
    seen = change(FILMS[:1].expand(4, -1, -1), 48)
    assert seen.shape == (4, 48, 48)
    assert 0 <= seen.min() < seen.max() <= 255
    assert (seen[0] - seen[1]).abs().mean() > 5


def test_a_film_for_the_labels_is_never_mirrored():
    """Its left half stays on the left: sides matter, and the contrast alone forgets them."""
    halves = torch.zeros(64, 64, 64)
    halves[..., :32] = 200
    torch.manual_seed(2)
    seen = retaken(halves, 64)
    assert (seen[..., :20].mean((1, 2)) > seen[..., -20:].mean((1, 2)) + 50).all()
    cut = cropped(halves, 64)
    assert (cut[..., :20].mean((1, 2)) < cut[..., -20:].mean((1, 2)) - 50).any()


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


def test_what_is_not_known_is_not_asked_and_normal_counts_four_times():
    known = study("a", "one", abnormal=True, view="PA")
    nothing = study("b", "one", abnormal=None)
    targets = torch.from_numpy(targets_of([known, nothing], ()))
    logits = torch.zeros(2, len(LABELS) + 1)
    logits[0, LABELS.index("Pneumonia")] = 2.0
    logits[1] = 100  # of which nothing is known
    found, weight = label_loss(logits, targets)
    assert weight == 4 + 1 + 1  # No Finding, Pneumonia, the projection
    assert found.item() == pytest.approx((5 * math.log(2) + math.log(1 + math.exp(-2))) / 6, rel=1e-5)


def test_the_projection_is_asked_of_adults_where_it_is_known():
    films = [study(view, "one", abnormal=False, view=view) for view in ("PA", "AP", "AP Supine", "LATERAL")]
    child = study("child", "children", abnormal=False, view="AP")
    assert targets_of([*films, child], ["children"])[:, -1].tolist() == [0, 1, 1, -1, -1]


# ----------------------------------------------------------------------------------------------------------- which films


def hospital(source: str, counts: dict[tuple[bool, str], int]) -> list[Study]:
    return [
        study(f"{source} {abnormal} {view} {i}", source, abnormal=abnormal, view=view)
        for (abnormal, view), count in counts.items()
        for i in range(count)
    ]


def test_where_the_projection_tells_who_is_ill_the_four_kinds_are_drawn_alike():
    studies = hospital("one", {(True, "AP"): 150, (True, "PA"): FEWEST, (False, "AP"): 30, (False, "PA"): 90})
    draw = Draw(studies, {"one": 1.0}, 0, by_kind=True)
    chosen = [studies[i] for step in range(40) for i in draw.step(step, 40)]
    kinds = [(s.abnormal, s.view) for s in chosen]
    assert all(0.2 < kinds.count(kind) / len(kinds) < 0.3 for kind in set(kinds))
    few = [s for s in studies if not (s.abnormal and s.view == "PA")] + studies[150 : 150 + FEWEST - 1]
    draw = Draw(few, {"one": 1.0}, 0, by_kind=True)  # too few of a kind: it would be learned by heart
    share = np.mean([few[i].view == "PA" and bool(few[i].abnormal) for step in range(40) for i in draw.step(step, 40)])
    assert share < 0.1


def test_no_film_is_in_a_step_twice_while_there_are_enough():
    studies = hospital("one", {(True, "AP"): 50, (False, "PA"): 50}) + hospital("two", {(False, "AP"): 60})
    draw = Draw(studies, {"one": 0.5, "two": 0.5, "none": 1.0}, 7, by_kind=False)
    for step in range(20):
        chosen = draw.step(step, 40)
        assert len(set(chosen.tolist())) == 40
        np.testing.assert_array_equal(chosen, Draw(studies, {"one": 0.5, "two": 0.5}, 7, by_kind=False).step(step, 40))
    share = np.mean([studies[i].source == "two" for step in range(50) for i in draw.step(step, 40)])
    assert 0.45 < share < 0.55


def test_a_recipe_whose_sources_are_not_there_is_refused():
    with pytest.raises(ConfigError, match="no training film"):
        Draw(hospital("one", {(True, "AP"): 3}), {"two": 1.0}, 0, by_kind=True)


# ------------------------------------------------------------------------------------------------------------ both stages

RECIPE = """
vision = "small"
[contrast]
steps = 40
batch = 12
warmup = 4
clip = 10.0
save_every = 40
learning_rates = { stem = 2e-4, head = 2e-4 }
size = 64
sources = { ours = 1.0 }
[labels]
steps = 30
batch = 12
warmup = 4
seed = 1
save_every = 30
learning_rates = { stem = 5e-4, labels = 5e-3, projection = 2e-3 }
size = 64
sources = { ours = 1.0 }
"""


def losses(folder: Path) -> tuple[float, float]:
    """Of the first and of the last five steps."""
    with (folder / "log.csv").open() as file:
        found = [float(row["loss"]) for row in csv.DictReader(file)]
    return float(np.mean(found[:5])), float(np.mean(found[-5:]))


def patterns(folder: Path, count: int) -> Path:
    """A film set of clouds, each its own, half of them with a bright square. Phantoms are too alike to be told apart in a few steps."""
    lines = []
    for i in range(count):
        cloud = np.random.default_rng(i).uniform(0, 200, (6, 6)).astype(np.float32)
        film = cv2.resize(cloud, (128, 128), interpolation=cv2.INTER_CUBIC).clip(0, 200)
        if i % 2:
            film[40:80, 40:80] = 255
        cv2.imwrite(str(folder / f"{i}.png"), film.astype(np.uint8))
        row = {"id": f"{i}", "source": "ours", "split": "train", "patient": f"{i}", "files": [f"{i}.png"]}
        lines.append(json.dumps(row | {"labels": {NO_FINDING: 1 - i % 2}}))
    (folder / "films.jsonl").write_text("\n".join(lines))
    return folder / "films.jsonl"


def test_both_stages_learn_and_the_second_goes_on_from_the_first(tmp_path, capsys):
    films = patterns(tmp_path, 40)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    common = ["--recipe", f"{tmp_path}/recipe.toml", "--films", f"{films}", "--cache", f"{tmp_path}/cache"]
    common += ["--threads", "1"]
    reader.main([*common, "--stage", "contrast", "--out", f"{tmp_path}/contrast"])
    first, last = losses(tmp_path / "contrast")
    assert last < first - 0.2
    start = ["--start", f"{tmp_path}/contrast"]
    reader.main([*common, "--stage", "labels", *start, "--out", f"{tmp_path}/reader"])
    first, last = losses(tmp_path / "reader")
    assert last < first - 0.1
    assert "step 30: held-out training films {'ours': (" in capsys.readouterr().out
    before, after = (load_file(tmp_path / name / "reader.safetensors") for name in ("contrast", "reader"))
    torch.manual_seed(1)
    fresh = reader.Member(
        VISION_PRESETS["small"], "labels"
    ).state_dict()  # what the second stage would begin with otherwise
    name = "stem.stages.0.weight"
    moved, apart = ((after[name] - other[name]).abs().mean() for other in (before, fresh))
    assert 0 < moved < 0.2 * apart
    save_file({"stem.odd": torch.zeros(1)}, tmp_path / "contrast" / "reader.safetensors")
    with pytest.raises(CheckpointError, match="another stem"):
        reader.main([*common, "--stage", "labels", *start, "--out", f"{tmp_path}/never"])
    with pytest.raises(CheckpointError, match=r"nowhere has no reader.safetensors.*train.reader"):
        reader.main([*common, "--stage", "labels", "--start", f"{tmp_path}/nowhere", "--out", f"{tmp_path}/never"])


def test_every_patient_is_held_out_once_and_the_development_patients_never(tmp_path, monkeypatch, capsys):
    films = patterns(tmp_path, 40)
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("steps = 30", "steps = 1"))
    judged, shown = [], []
    monkeypatch.setattr(reader, "check", lambda member, studies, films: judged.append({s.patient for s in studies}))
    draw = reader.Draw
    monkeypatch.setattr(
        reader, "Draw", lambda learn, *a, **k: shown.append({s.patient for s in learn}) or draw(learn, *a, **k)
    )
    common = ["--recipe", f"{tmp_path}/recipe.toml", "--films", f"{films}", "--cache", f"{tmp_path}/cache"]
    common += ["--stage", "labels", "--threads", "1"]
    reader.main([*common, "--out", f"{tmp_path}/all"])
    development = judged.pop()
    assert development
    assert development.isdisjoint(shown.pop())
    for part in ("1/3", "2/3", "3/3"):
        reader.main([*common, "--fold", part, "--out", f"{tmp_path}/{part[0]}"])
    everyone = {f"{i}" for i in range(40)}
    assert [len(judged[i] & judged[i - 1]) for i in range(3)] == [0, 0, 0]
    assert set().union(*judged) == everyone - development
    assert [judged[i] | shown[i] for i in range(3)] == [everyone - development] * 3
    with pytest.raises(SystemExit):
        reader.main([*common, "--fold", "4/3", "--out", f"{tmp_path}/never"])
    assert "2/5 for example" in capsys.readouterr().err


def test_a_recipe_without_the_stage_is_refused_by_what_it_has(tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("[labels]", "[other]"))
    with pytest.raises(ConfigError, match=r"no section \[labels\].*contrast"):
        reader.main(["--recipe", f"{tmp_path}/recipe.toml", "--films", "none", "--stage", "labels", "--out", "never"])
