"""Where a finding is: marks are held against the boxes of a case and against the model's own map."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from emrrg_core import EmrrgError
from emrrg_core.teaching.cases import CaseError, read_case, read_cases
from emrrg_core.teaching.locate import (
    MOST_MARKS,
    Box,
    Mark,
    ModelPlace,
    Verdict,
    in_words,
    locate,
    marks_of,
    model_agrees,
    model_places,
    plain_marks,
)
from tests.phantom import make_phantom

ROOT = Path(__file__).resolve().parent.parent
NODULE, FLUID = Box("Lung Lesion", 0, 0.2, 0.2, 0.1, 0.1), Box("Pleural Effusion", 0, 0.6, 0.7, 0.2, 0.2)


def at(
    x: float, y: float, finding: str = "Lung Lesion", width: float = 0.0, height: float = 0.0, film: int = 0
) -> Mark:
    return Mark(finding, film, x, y, width, height)


@pytest.mark.parametrize(
    ("marks", "verdicts", "hits", "missed", "false"),
    [
        ([], [], 0, 2, 0),
        ([at(0.25, 0.25)], ["hit"], 1, 1, 0),
        ([at(0.25, 0.25), at(0.7, 0.8, "Pleural Effusion")], ["hit", "hit"], 2, 0, 0),
        ([at(0.25, 0.25), at(0.26, 0.26)], ["hit", "again"], 1, 1, 0),
        ([at(0.5, 0.5)], ["false"], 0, 2, 1),
        ([at(0.25, 0.25, "Lung Opacity")], ["other name"], 0, 1, 0),
        ([at(0.25, 0.25, film=1)], ["false"], 0, 2, 1),
        ([at(0.2, 0.2, width=0.1, height=0.1)], ["hit"], 1, 1, 0),
        ([at(0.15, 0.15, width=0.2, height=0.2)], ["hit"], 1, 1, 0),  # four times as large, and no more
        ([at(0.05, 0.05, width=0.4, height=0.4)], ["false"], 0, 2, 1),  # a rectangle over everything points at nothing
        ([at(0.25, 0.25, width=0.3, height=0.01)], ["false"], 0, 2, 1),  # its middle is beside the box
        ([at(0.25, 0.25, "Lung Opacity"), at(0.25, 0.25)], ["other name", "hit"], 1, 1, 0),
    ],
)  # fmt: skip
def test_a_mark_hits_where_its_middle_lies_in_the_box_of_that_finding(
    marks: list[Mark], verdicts: list[str], hits: int, missed: int, false: int
) -> None:
    found = locate(marks, [NODULE, FLUID])
    assert [verdict.value for verdict in found.verdicts] == verdicts
    assert (found.hits, found.missed, found.false) == (hits, missed, false)


def test_two_boxes_of_one_finding_need_two_marks_and_the_smaller_of_two_that_overlap_is_hit_first() -> None:
    large = Box("Lung Lesion", 0, 0.1, 0.1, 0.4, 0.4)
    found = locate([at(0.25, 0.25), at(0.25, 0.25)], [large, NODULE])
    assert found.verdicts == (Verdict.HIT, Verdict.HIT)
    assert locate([at(0.25, 0.25)], [large, NODULE]).boxes == (None, Verdict.HIT)


def test_where_there_is_nothing_to_be_found_every_mark_is_false() -> None:
    assert locate([at(0.5, 0.5)], []).false == 1


def test_on_a_mask_only_what_it_marks_is_hit() -> None:
    mask = np.zeros((100, 100), bool)
    mask[20:30, 20] = True
    box = Box("Lung Lesion", 0, 0.2, 0.2, 0.1, 0.1, mask)
    assert locate([at(0.205, 0.25)], [box]).hits == 1
    assert locate([at(0.25, 0.25)], [box]).hits == 0


def test_marks_come_back_from_plain_values_and_are_cut_off_at_the_edge() -> None:
    marks = (at(0.123456, 0.5), at(0.9, 0.9, "Fracture", 0.05, 0.08, 1))
    assert marks_of(plain_marks(marks), 2) == (at(0.1235, 0.5), marks[1])
    (cut,) = marks_of([{"finding": "Edema", "film": 0, "x": 0.75, "y": 0.75, "width": 0.5, "height": 0.5}], 1)
    assert (cut.width, cut.height) == (0.25, 0.25)
    assert in_words(marks) == "Lung Lesion, film 1 at 12 %, 50 %; Fracture, film 2 at 92 %, 94 %"


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        7,
        [7],
        [{}],
        [{"finding": "No Finding", "film": 0, "x": 0, "y": 0}],
        [{"finding": "Edema", "film": 1, "x": 0, "y": 0}],
        [{"finding": "Edema", "film": True, "x": 0, "y": 0}],
        [{"finding": "Edema", "film": 0, "x": 1.5, "y": 0}],
        [{"finding": "Edema", "film": 0, "x": "nan", "y": 0}],
        [{"finding": ["Edema"], "film": 0, "x": 0, "y": 0}],
        [{"finding": "Edema", "film": 0, "x": 0, "y": 0}] * (MOST_MARKS + 1),
    ],
)
def test_anything_else_is_refused_in_a_sentence(wrong: object) -> None:
    with pytest.raises(EmrrgError, match=r"Mark again|too many marks"):
        marks_of(wrong, 1)


# --- the model's own map ----------------------------------------------------------------------------------------------


def draft_of(patch: int, presence: str = "present", place: tuple | None = None) -> SimpleNamespace:
    """What is asked of a draft: one finding, seen in one patch of 4 × 4."""
    weights = np.full(16, 0.01, np.float32)
    weights[patch] = 1
    finding = SimpleNamespace(label="Lung Lesion", maps=(weights,), presence=SimpleNamespace(value=presence))
    return SimpleNamespace(read=(finding,), grid=4, films=(SimpleNamespace(place=place, read=True),))


def test_a_mark_lies_in_the_models_map_or_beside_it() -> None:
    places = model_places(draft_of(6))  # second row, third column
    assert places[0].stated
    assert model_agrees(at(0.625, 0.375), places) is True
    assert model_agrees(at(0.1, 0.9), places) is False
    assert model_agrees(at(0.625, 0.375, "Fracture"), places) is None, "the model has no map of it"
    assert not model_places(draft_of(6, "absent"))[0].stated
    assert model_places(SimpleNamespace(read=None, grid=4, films=())) == ()


def test_a_film_of_a_stitched_study_has_the_part_of_the_map_that_lies_on_it() -> None:
    (place,) = model_places(draft_of(6, place=(0.0, 0.5, 1.0, 1.0)))  # the right half of the canvas
    assert model_agrees(at(0.25, 0.375), [place]) is True
    assert model_agrees(at(0.75, 0.375), [place]) is False


def test_a_contour_may_have_a_gap_and_a_map_that_is_even_points_nowhere() -> None:
    ring, gap = (np.array([(a, a), (b, a), (b, b), (a, b)]) for a, b in ((0.2, 0.8), (0.4, 0.6)))
    place = ModelPlace("Lung Lesion", 0, True, (ring, gap))
    assert [place.holds(at(x, 0.5)) for x in (0.1, 0.3, 0.5, 0.7)] == [False, True, False, True]
    assert not place.holds(at(0.3, 0.5, film=1))
    even = draft_of(6)
    even.read[0].maps[0][:] = 1
    assert model_places(even) == ()


# --- boxes of a case --------------------------------------------------------------------------------------------------

WHOLE = """
title = "A case"
films = ["a.png"]
source = "drawn"
licence = "CC0-1.0"
{}
[reference]
findings = "The lungs are clear."
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_phantom(1, height=200, width=160).save_png(tmp_path / "a.png")
    return tmp_path


def case_of(folder: Path, boxes: str, above: str = ""):
    (folder / "one.toml").write_text(WHOLE.format(above) + boxes)
    return read_case(folder / "one.toml")


@pytest.mark.parametrize("place", ["x = 40\ny = 50\nw = 16\nh = 20", "x = 0.25\ny = 0.25\nw = 0.1\nh = 0.1"])
def test_a_box_is_in_pixels_or_in_shares(place: str, folder: Path) -> None:
    (box,) = case_of(folder, f'[[boxes]]\nfinding = "Edema"\n{place}\n').places()
    assert box.film == 0
    assert (box.x, box.y, box.width, box.height) == pytest.approx((0.25, 0.25, 0.1, 0.1))


def test_a_mask_is_a_picture_of_the_films_size(folder: Path) -> None:
    mask = np.zeros((200, 160), np.uint8)
    mask[50:70, 40:56] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    case = case_of(folder, '[[boxes]]\nfinding = "Edema"\nmask = "mask.png"\n')
    (box,) = case.places()
    assert (box.x, box.y, box.width, box.height) == pytest.approx((0.25, 0.25, 0.1, 0.1))
    assert box.mask.sum() == 320
    Image.fromarray(mask[:100]).save(folder / "mask.png")
    with pytest.raises(CaseError, match="not 160 × 200 pixels"):
        case.places()


def test_without_boxes_nobody_has_said_it_and_with_none_there_is_nothing_to_find(folder: Path) -> None:
    assert case_of(folder, "").places() is None
    assert case_of(folder, "", "boxes = []").places() == ()


@pytest.mark.parametrize(
    ("box", "told"),
    [
        ('finding = "No Finding"\nx = 0\ny = 0\nw = 1\nh = 1', "a box has a finding: one of"),
        ('finding = "Edema"\nfilm = 2\nx = 0\ny = 0\nw = 1\nh = 1', "Films are counted from 1"),
        ('finding = "Edema"\nx = 0\ny = 0\nw = 1', "needs x, y, w and h"),
        ('finding = "Edema"\nx = 0\ny = 0\nw = 0\nh = 1', "is empty or ends outside"),
        ('finding = "Edema"\nx = 0.8\ny = 0\nw = 0.3\nh = 1', "is empty or ends outside"),
        ('finding = "Edema"\nx = -1\ny = 0\nw = 1\nh = 1', "needs x, y, w and h"),
        ('finding = "Edema"\nmask = "../m.png"', "lies outside the folder"),
        ('finding = "Edema"\nmask = "m.png"', "is not in the folder"),
        ('finding = "Edema"\nmask = "a.png"\nx = 0', "numbers and a mask"),
        ('finding = "Edema"\nleft = 0', "there is no key left under [[boxes]]"),
    ],
)
def test_a_box_with_a_mistake_is_refused_and_the_remedy_named(box: str, told: str, folder: Path) -> None:
    with pytest.raises(CaseError) as refused:
        case_of(folder, f"[[boxes]]\n{box}\n")
    assert told in str(refused.value)


def test_a_box_beyond_its_film_is_told_once_the_film_is_read(folder: Path) -> None:
    case = case_of(folder, '[[boxes]]\nfinding = "Edema"\nx = 100\ny = 0\nw = 80\nh = 20\n')
    with pytest.raises(CaseError, match="ends outside film 1"):
        case.places()


def test_the_drawn_cases_have_the_boxes_that_were_drawn() -> None:
    lesions = {"nodule": "Lung Lesion", "opacity": "Lung Opacity", "effusion": "Pleural Effusion"}
    for case in read_cases(ROOT / "cases").cases:
        seed = int(case.source.split("seed ")[1].split(":")[0])
        side = "right" if "right" in case.impression.lower() else "left"
        lesion = next((name for name in lesions if name in case.impression.lower()), None)
        drawn = make_phantom(seed, lesion=lesion, side=side)
        boxes = case.places()
        assert boxes is not None
        if lesion is None:
            assert boxes == ()
            continue
        height, width = drawn.pixels.shape
        x, y, w, h = drawn.box
        (box,) = boxes
        assert box.finding == lesions[lesion]
        assert (box.x, box.y, box.width, box.height) == pytest.approx((x / width, y / height, w / width, h / height))
