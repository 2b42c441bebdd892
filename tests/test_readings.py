"""What a checkpoint reads is counted right: classes, sides beside notes, and findings that were drawn."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from emrrg_core.config import SignsConfig
from emrrg_core.data import NO_FINDING, FilmCache, Study, read_studies
from emrrg_core.errors import DataError
from emrrg_core.findings import LABELS
from emrrg_core.model import Emrrg
from emrrg_core.signs import PLACES, Signs
from emrrg_core.simulate import Sign
from emrrg_core.stated import Fact
from tests import tiny
from tests.conftest import TINY
from tests.phantom import make_phantom
from train import readings
from train.readings import FEWEST, drawn, labels, main, normal, sides, tables
from train.warmup import groups, told_apart

GRID = 4
ILL, WELL = {NO_FINDING: 0, "Pneumonia": 1}, {NO_FINDING: 1}


def study(number: int, known: dict[str, int], source: str = "a", view: str | None = None, note: str = "") -> Study:
    return Study(f"{number}", source, "train", f"{number}", (Path("x.png"),), known, view, "", "", note=note)


def signs_of(values: list[float], label: str = NO_FINDING) -> Signs:
    """Films of whose labels nothing is read but one, by its logit."""
    logits = torch.zeros(len(values), len(LABELS))
    logits[:, LABELS.index(label)] = torch.tensor(values)
    return Signs(logits, torch.full((len(values), GRID**2, len(PLACES)), -8.0), torch.zeros(len(values), 3))


def test_projections_are_judged_apart_where_a_source_has_several():
    studies = [study(0, ILL, view="AP"), study(1, WELL, view="PA"), study(2, WELL, view="AP"), study(3, {}, view="PA")]
    studies += [study(4, WELL, "b", "AP"), study(5, ILL, "b", "AP")]
    found = {name: mine.tolist() for name, mine in groups(studies).items()}
    assert found == {"a": [0, 1, 2], "a, AP": [0, 2], "a, PA": [1], "b": [4, 5]}
    # a, PA has one class only; one film of a and both of b are in the wrong order
    assert told_apart(studies, np.array([0.4, 0.6, 0.1, 9.0, 0.8, 0.3])) == {
        "a": (0.5, 0.75),
        "a, AP": (1.0, 1.0),
        "b": (0.0, 0.5),
    }


def test_classes_are_judged_by_their_scores_and_by_what_is_told(monkeypatch):
    studies = [study(i, ILL if i < 4 else WELL) for i in range(8)]
    told = [[Fact("pneumonia")]] * 3 + [[]] * 4 + [[Fact("nodule")]]  # one ill film missed, one normal film alarmed
    read = signs_of([-2.0, -1, -1, 1, 2, 2, 2, 0])
    assert normal(read, told, studies) == {}, "too few films to say anything"
    monkeypatch.setattr(readings, "FEWEST", 4)
    row = normal(read, told, studies)["a"]
    assert row == {
        "normal": 4,
        "abnormal": 4,
        "area": 0.938,  # 15 of 16 pairs: 1 and 0 are in the wrong order
        "best": 0.875,
        "told": 0.75,
        "alarms": 0.25,
        "found": 0.75,
    }


def test_a_label_is_judged_on_the_films_that_know_it():
    studies = [study(i, {"Edema": int(i < FEWEST)}) for i in range(2 * FEWEST)]
    read = signs_of([2.0] * FEWEST + [-2.0] * FEWEST + [9.0], "Edema")
    assert labels(read, [*studies, study(99, {})]) == {"Edema": {"films": 2 * FEWEST, "have it": FEWEST, "area": 1.0}}
    assert labels(signs_of([0.0] * (2 * FEWEST - 1)), studies[1:]) == {}, "too few films have it"


def test_sides_are_those_of_the_first_fact_that_lies_somewhere():
    note = "There is consolidation in the left lung."
    studies = [
        study(0, ILL),
        study(1, ILL, note=note),
        study(2, ILL),
        study(3, WELL),
        study(4, ILL),
        study(5, ILL, "b"),
    ]
    told = [
        [Fact("heart"), Fact("pneumonia", "right"), Fact("effusion", "left")],
        [Fact("pneumonia", "bilateral")],
        [Fact("heart")],
        [Fact("nodule", "left")],  # a normal film says nothing of a leaning
        [],
        [Fact("nodule")],
    ]
    counts, notes = sides(told, studies)
    assert counts == {
        "a": {"right": 1, "left": 0, "bilateral": 1, "no side": 0},
        "b": {"right": 0, "left": 0, "bilateral": 0, "no side": 1},
    }
    assert notes == {"left, bilateral": 1}


def test_drawn_findings_count_by_their_channel_and_their_side(monkeypatch, reading_model):
    """Every film is told a pneumonia on the right: opacities are told, rightly on one side only, and nothing else is."""
    phantoms = [make_phantom(i, height=128, width=128) for i in range(4)]
    films = [p.pixels * 255 for p in phantoms]
    lungs = torch.stack([torch.from_numpy(seen(p.lungs)) for p in phantoms])
    signs = Signs(torch.zeros(4, len(LABELS)), lungs, torch.zeros(4, 3))
    made: Counter = Counter()

    def noted(*args):
        film, finding = drawing(*args)
        made[finding.sign, finding.side] += 1
        return film, finding

    drawing = readings.draw
    monkeypatch.setattr(readings, "draw", noted)
    monkeypatch.setattr(readings, "read_all", lambda model, films: films)
    monkeypatch.setattr(readings, "facts", lambda films, *_: [[Fact("heart"), Fact("pneumonia", "right")]] * len(films))
    studies = [study(i, WELL) for i in range(3)] + [study(3, ILL)]
    found = drawn(reading_model, studies, films, signs, count=9, seed=0)
    assert found["nodule"]["films"] == found["opacity"]["films"] == found["effusion"]["films"] == 3
    assert found["nodule"]["told"] == found["effusion"]["told"] == 0
    row = found["opacity"]
    assert (row["told"], row["correct"], row["wrong"], row["both"]) == (
        3,
        made[Sign.OPACITY, "right"],
        made[Sign.OPACITY, "left"],
        0,
    )


def seen(lungs: np.ndarray) -> np.ndarray:
    """Logits of the patches (14², 5) of a reader that sees these lungs (s, s) and nothing in them."""
    rows, columns = (np.arange(14) * lungs.shape[0] // 14 + lungs.shape[0] // 28,) * 2
    inside = lungs[np.ix_(rows, columns)] > 0
    left = np.arange(14) >= 7
    places = np.full((14, 14, len(PLACES)), -8.0, np.float32)
    places[..., 0] = np.where(inside & ~left, 8, -8)
    places[..., 1] = np.where(inside & left, 8, -8)
    return places.reshape(-1, len(PLACES))


@pytest.fixture(scope="module")
def reading_model(make_llm, tokenizer) -> Emrrg:
    return Emrrg(replace(TINY, signs=SignsConfig(tokens=2, facts=2, appearance=3)), make_llm(seed=2), tokenizer)


def test_films_of_which_nothing_is_known_are_refused(reading_model, tmp_path):
    films = tiny.film_set(tmp_path, [(make_phantom(0, height=128, width=128), {"split": "train", "labels": {}})])
    studies = read_studies(films)
    with pytest.raises(DataError, match="labels"):
        readings.readings(reading_model, studies, FilmCache(studies, tmp_path / "cache"))


def test_a_checkpoint_without_facts_is_refused_in_a_line(checkpoint, tmp_path, capsys):
    assert main(["--checkpoint", str(checkpoint), "--films", str(tmp_path / "none.jsonl")]) == 2
    assert "has no facts" in capsys.readouterr().err


def test_the_tables_hold_every_number():
    found = {
        "films": 9,
        "normal": {"a": {"area": 0.75, "told": 0.5}},
        "labels": {},
        "sides": {"a": {"right": 3, "left": 4}},
        "notes": {"left, right": 2},
        "drawn": {"nodule": {"films": 7}},
    }
    assert tables(found).splitlines() == [
        "9 films of development patients",
        "",
        "| normal | area | told |",
        "|---|---|---|",
        "| a | 0.75 | 0.5 |",
        "",
        "| sides | right | left |",
        "|---|---|---|",
        "| a | 3 | 4 |",
        "",
        "| drawn | films |",
        "|---|---|",
        "| nodule | 7 |",
        "",
        "note, told: left, right 2",
    ]
