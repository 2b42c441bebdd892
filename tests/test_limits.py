"""Limits are where held-out films say that a reading is right more often than wrong."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from emrrg_core.config import SignsConfig, Stem
from emrrg_core.data import Study
from emrrg_core.errors import CheckpointError
from emrrg_core.findings import LABELS, NO_FINDING
from emrrg_core.model import Emrrg
from emrrg_core.signs import PLACES, SecondReader, Signs
from emrrg_core.stated import IN_ANY_FILM, LIMITS, facts
from tests.conftest import TINY
from train.limits import ALARMS, FEWEST, NEVER, add_second, choose
from train.reader import Member
from train.warmup import APPEARANCE

GRID = 4


def study(source: str, name: str, known: dict[str, int]) -> Study:
    return Study(name, source, "train", name, (), known, None, "", "")


def readings(count: int, **logits: np.ndarray) -> Signs:
    """count films of whose labels nothing is read but what is given."""
    labels = torch.full((count, len(LABELS)), -2.0)
    places = torch.full((count, GRID**2, len(PLACES)), -8.0)
    for name, values in logits.items():
        if name in ("nodule", "opacity", "effusion"):
            places[:, 5, 2 + ("nodule", "opacity", "effusion").index(name)] = torch.from_numpy(values).float()
        else:
            labels[:, LABELS.index(name.replace("_", " "))] = torch.from_numpy(values).float()
    return Signs(labels, places, torch.zeros(count, 3))


def limit(signs: Signs, studies: list, name: str) -> float:
    return float(choose(signs, studies)[LIMITS.index(name)])


def sigmoid(value: float) -> float:
    return 1 / (1 + np.exp(-value))


def test_normal_and_abnormal_are_parted_where_both_are_right_most_often():
    """Twenty normal films read 1 to 2, twenty abnormal ones -1 to 0.9: the limit lies between 0.9 and 1."""
    studies = [study("a", str(i), {NO_FINDING: int(i < 20)}) for i in range(40)]
    values = np.concatenate([np.linspace(1, 2, 20), np.linspace(-1, 0.9, 20)])
    assert sigmoid(0.9) < limit(readings(40, No_Finding=values), studies, NO_FINDING) < sigmoid(1)


def test_every_source_counts_the_same_however_many_films_it_has():
    """Source a (200 films) is parted at 2, b (40) at -2: the limit that both can live with beats the one that suits the larger."""
    large = np.concatenate([np.linspace(1.8, 4, 100), np.linspace(-4, 1.7, 100)])
    small = np.concatenate([np.full(20, 1.0), np.linspace(-4, -2.0, 20)])
    studies = [study("a", str(i), {NO_FINDING: int(i < 100)}) for i in range(200)]
    studies += [study("b", str(i), {NO_FINDING: int(i < 20)}) for i in range(40)]
    found = limit(readings(240, No_Finding=np.concatenate([large, small])), studies, NO_FINDING)
    assert found < sigmoid(1.0)  # b's normal films are normal


def test_signs_may_be_seen_in_few_normal_films_only():
    values = np.linspace(-4, 4, 1000)
    studies = [study("a", str(i), {NO_FINDING: 1}) for i in range(1000)]
    for name in ("nodule", "opacity", "effusion", "Cardiomegaly"):
        found = limit(readings(1000, **{name: values}), studies, name)
        alarms = np.mean(1 / (1 + np.exp(-values)) > found)
        assert 0.5 * ALARMS <= alarms <= ALARMS + 1e-3


def test_the_source_whose_normal_films_show_most_sets_the_limit_of_a_sign():
    """One limit for all of them: a few films of another hospital must not be called abnormal because the many of the first are quieter."""
    values = np.concatenate([np.linspace(-4, 0, 400), np.linspace(-2, 2, FEWEST)])
    studies = [study("ab"[i >= 400], str(i), {NO_FINDING: 1}) for i in range(400 + FEWEST)]
    assert sigmoid(1.8) < limit(readings(len(studies), effusion=values), studies, "effusion") <= sigmoid(2)
    few = studies[:-1]  # too few to say anything
    assert limit(readings(len(few), effusion=values[:-1]), few, "effusion") < sigmoid(0)


def test_a_sign_that_is_read_faintly_everywhere_may_be_told_below_one_half():
    """A rare finding's reader seldom exceeds one half; what only few normal films reach still says something."""
    values = np.linspace(-4, 4, 1000) - 5
    studies = [study("a", str(i), {NO_FINDING: 1}) for i in range(1000)]
    found = limit(readings(1000, Cardiomegaly=values), studies, "Cardiomegaly")
    assert sigmoid(-1.2) < found < sigmoid(-1)


def test_a_label_is_stated_from_where_precision_and_recall_are_best_together():
    labels = [{"Pneumonia": int(i < 30)} for i in range(60)]
    values = np.concatenate([np.linspace(-1.5, 1, 30), np.linspace(-4, -1.6, 30)])
    found = limit(
        readings(60, Pneumonia=values), [study("a", str(i), known) for i, known in enumerate(labels)], "Pneumonia"
    )
    assert sigmoid(-1.6) < found < sigmoid(-1.5)


def test_a_label_that_no_film_has_is_never_stated():
    """Its reader was never told what the label looks like."""
    signs = readings(60, Fracture=np.full(60, 9.0), No_Finding=np.linspace(3, -3, 60))
    studies = [study("a", str(i), {NO_FINDING: int(i < 30)}) for i in range(60)]
    limits = choose(signs, studies)
    assert limits[LIMITS.index("Fracture")] == NEVER
    assert not any(fact.name == "fracture" for film in facts(signs, limits, 3) for fact in film)


@pytest.mark.parametrize("positive", [1, FEWEST - 1])
def test_what_too_few_films_can_say_stays_at_one_half(positive):
    studies = [study("a", str(i), {"Edema": int(i < positive)}) for i in range(60)]
    assert limit(readings(60, Edema=np.linspace(3, -3, 60)), studies, "Edema") == 0.5


def test_the_second_reader_says_the_mean_of_what_its_members_say_of_three_readings(
    make_llm, tokenizer, images, tmp_path
):
    vision = replace(TINY.vision, d_model=64, stem=Stem.CONVOLUTION)
    config = replace(TINY, vision=vision, signs=SignsConfig(tokens=2, facts=2, appearance=APPEARANCE))
    model = Emrrg(config, make_llm(), tokenizer).eval()
    torch.manual_seed(1)
    members = [Member(vision, "labels").eval() for _ in range(2)]
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, member in zip(folders, members, strict=True):
        folder.mkdir()
        save_file(member.state_dict(), folder / "reader.safetensors")
    add_second(model, folders)
    assert (model.config.signs.second, model.config.signs.members) == (True, 2)
    with torch.no_grad():
        read = model.read_signs(model.see(images))
        film = images[:, 0]
        size = film.shape[-1]
        edge = round(SecondReader.BORDER * size)
        inside = F.interpolate(film[..., edge:-edge, edge:-edge], size=(size, size), mode="bilinear")
        three = (film, film.flip(-1), inside)
        said = torch.stack([member(one)[:, :-1] for member in members for one in three]).mean(0)
    assert 0 < edge < size / 10
    with torch.no_grad():  # who asks for the tower's patches need not wait for it
        whole, tower = model.see(images), model.see(images, alone=True)
    assert (tower.shape[1], whole.shape[1]) == (vision.tokens, vision.tokens + 2 * SecondReader.TOKENS)
    assert torch.equal(model.patches(tower), model.patches(whole))
    others = [i for i, label in enumerate(LABELS) if label not in IN_ANY_FILM]
    torch.testing.assert_close(read.labels[:, others], said[:, others], rtol=1e-4, atol=1e-5)
    save_file({"stem.odd": torch.zeros(1)}, folders[1] / "reader.safetensors")
    with pytest.raises(CheckpointError, match="not the stem"):
        add_second(model, folders)


def test_a_film_and_its_mirror_image_are_read_on_opposite_sides(make_llm, tokenizer, images):
    """With places read twice nothing in the tower can lean to one side: not so without."""
    vision = replace(TINY.vision, d_model=64, stem=Stem.CONVOLUTION)
    signs = SignsConfig(tokens=2, facts=2, appearance=APPEARANCE, mirrored=True)
    torch.manual_seed(2)
    model = Emrrg(replace(TINY, vision=vision, signs=signs), make_llm(), tokenizer).eval()
    with torch.no_grad():
        torch.nn.init.normal_(model.signs.places.weight, std=3.0)  # lungs that differ, so that thirds are the same
        film, mirror = (model.read_signs(model.see(seen)) for seen in (images, images.flip(-1)))
        assert model.see(images).shape[1] == vision.tokens + vision.patches
        assert model.see(images, alone=True).shape[1] == vision.tokens
    assert film.places_mirrored is not None
    torch.testing.assert_close(film.sides(), mirror.sides().flip(2), atol=1e-3, rtol=1e-3)
    assert (film.regions() - mirror.regions().flip(2)).abs().max() > 0.1
    # what it sees of a draft is the same, but for the side that a fact names
    torch.testing.assert_close(model.patches(model.see(images)), model.patches(model.see(images, alone=True)))
