"""How well a score tells films apart."""

from pathlib import Path

import numpy as np
import pytest

from emrrg_core.data.studies import Study
from emrrg_core.text.labeler import NO_FINDING
from train.measures import area_under_curve, balanced_accuracy, groups, told_apart

ILL, WELL = {NO_FINDING: 0, "Pneumonia": 1}, {NO_FINDING: 1}


def study(number: int, known: dict[str, int], source: str = "a", view: str | None = None) -> Study:
    return Study(f"{number}", source, "train", f"{number}", (Path("x.png"),), known, view, "", "")


def test_balanced_accuracy_is_a_half_for_whoever_always_says_the_same():
    truth = np.array([True] * 9 + [False])
    assert balanced_accuracy(truth, np.ones(10, bool)) == 0.5
    assert balanced_accuracy(truth, truth) == 1
    assert balanced_accuracy(truth, ~truth) == 0


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order():
    truth = np.array([True, False, True, False, False])
    # pairs: 3 > 2, 3 > 1, 3 > 0 and 1 > 0 are in order, 1 < 2 is not, 1 = 1 is half
    assert area_under_curve(truth, np.array([3.0, 2, 1, 1, 0])) == pytest.approx(4.5 / 6)
    assert area_under_curve(truth, np.array([3.0, 1, 2, 1, 0])) == 1
    assert area_under_curve(truth, -np.array([3.0, 1, 2, 1, 0])) == 0
    for order in (truth, truth[::-1]):
        assert area_under_curve(order, np.ones(5)) == 0.5


def test_films_of_one_kind_have_neither_accuracy_nor_area():
    for truth in (np.ones(3, bool), np.zeros(3, bool), np.zeros(0, bool)):
        assert np.isnan(balanced_accuracy(truth, truth))
        assert np.isnan(area_under_curve(truth, truth.astype(float)))


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
