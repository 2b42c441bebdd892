"""Simulated findings lie where they are said to lie, and the rest of the film stays as it was.

As films are hung, the patient's right is the image's left half.
"""

import cv2
import numpy as np
import pytest

from emrrg_core.films.synthetic_findings import LABEL_OF, Drawn, Side, Sign, Zone, draw, split_lungs, zone_of
from tests.phantom import make_phantom

SIZE = 224
LOCAL = [Sign.NODULE, Sign.OPACITY, Sign.EFFUSION]


@pytest.fixture(scope="module")
def chests() -> list[tuple[np.ndarray, np.ndarray]]:
    """Films (s, s) in [0, 255] and lung masks of four normal phantoms."""
    made = [make_phantom(seed, height=SIZE, width=SIZE, lesion=None) for seed in range(4)]
    return [(p.pixels * 255, p.lungs) for p in made]


def drawings(chests, sign: Sign, n: int = 12) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, Drawn]]:
    """(film, lungs, film with the finding, what was drawn) n times."""
    rng, made = np.random.default_rng(1), []
    for i in range(n):
        film, lungs = chests[i % len(chests)]
        made.append((film, lungs, *draw(film, lungs, sign, rng)))
    return made


def lung_of(lungs: np.ndarray, side: Side) -> np.ndarray:
    return split_lungs(lungs)[0 if side is Side.RIGHT else 1]


def share_in(mask: np.ndarray, where: np.ndarray) -> float:
    return float((mask * where).sum() / mask.sum())


# ---------------------------------------------------------------------------------------------------------------- lungs


def test_the_right_lung_is_in_the_left_half_of_the_image(chests):
    for _, lungs in chests:
        right, left = split_lungs(lungs)
        assert right.dtype == left.dtype == np.bool_
        assert np.nonzero(right)[1].mean() < SIZE / 2 < np.nonzero(left)[1].mean()
        assert not (right & left).any()
        assert (right | left).sum() > 0.95 * lungs.sum()


def test_specks_beside_the_lungs_belong_to_neither(chests):
    lungs = chests[0][1].copy()
    clean = split_lungs(lungs)
    lungs[2:6, 2:6] = True
    for with_speck, without in zip(split_lungs(lungs), clean, strict=True):
        np.testing.assert_array_equal(with_speck, without)


def ellipses(*centres: tuple[int, int, int]) -> np.ndarray:
    """Upright ellipses (column, half width, half height) side by side."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    for column, width, height in centres:
        cv2.ellipse(mask, (column, SIZE // 2), (width, height), 0, 0, 360, 1, -1)
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((SIZE, SIZE), np.uint8),
        ellipses((60, 30, 70)),  # one lung
        ellipses((60, 30, 70), (160, 10, 20)),  # the other hardly there
        ellipses((100, 40, 70), (140, 40, 70)),  # grown together
        ellipses((100, 8, 70), (124, 8, 70)),  # two lungs are never this near each other
    ],
    ids=["none", "one", "a rest", "one piece", "too near"],
)
@pytest.mark.parametrize("sign", Sign)
def test_a_mask_without_two_lungs_is_refused(mask, sign):
    with pytest.raises(ValueError, match="two lungs"):
        draw(np.full((SIZE, SIZE), 100.0), mask, sign, np.random.default_rng(0))


def test_thirds_of_a_lung_are_counted_from_its_own_top():
    lung = np.zeros((30, 30), bool)
    lung[9:21] = True  # four rows a third
    zones = [zone_of(lung, row) for row in range(9, 21)]
    assert zones == [Zone.UPPER] * 4 + [Zone.MID] * 4 + [Zone.LOWER] * 4


# ------------------------------------------------------------------------------------------------------------- findings


@pytest.mark.parametrize("sign", Sign)
def test_the_same_generator_draws_the_same_film_and_another_another(chests, sign):
    film, lungs = chests[0]
    before = film.copy()
    (one, said), (same, again), (other, _) = (draw(film, lungs, sign, np.random.default_rng(s)) for s in (5, 5, 6))
    np.testing.assert_array_equal(one, same)
    np.testing.assert_array_equal(said.mask, again.mask)
    assert (said.side, said.zone, said.size) == (again.side, again.zone, again.size)
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(film, before)  # what was given is not drawn on


@pytest.mark.parametrize("sign", Sign)
def test_a_drawn_film_is_a_film_and_its_mask_a_mask(chests, sign):
    for film, _, changed, drawn in drawings(chests, sign):
        assert (changed.shape, changed.dtype) == (film.shape, np.float32)
        assert changed.min() >= 0
        assert changed.max() <= 255
        assert (drawn.mask.shape, drawn.mask.dtype, drawn.sign) == (film.shape, np.float32, sign)
        assert drawn.mask.min() >= 0
        assert 0.4 < drawn.mask.max() <= 1
        assert LABEL_OF[sign] != "No Finding"


@pytest.mark.parametrize("sign", LOCAL)
def test_a_finding_lies_in_the_lung_that_is_named(chests, sign):
    for _, lungs, _, drawn in drawings(chests, sign):
        around = cv2.dilate(lung_of(lungs, drawn.side).astype(np.uint8), np.ones((9, 9)))
        assert share_in(drawn.mask, around) > (0.8 if sign is Sign.NODULE else 0.9)
        middle = (drawn.mask.sum(0) * np.arange(SIZE)).sum() / drawn.mask.sum()
        assert bool(middle < SIZE / 2) is (drawn.side is Side.RIGHT)


@pytest.mark.parametrize("sign", [Sign.NODULE, Sign.OPACITY])
def test_a_finding_peaks_in_the_third_that_is_named(chests, sign):
    thirds = set()
    for _, lungs, _, drawn in drawings(chests, sign, 24):
        lung = lung_of(lungs, drawn.side)
        row = (drawn.mask.sum(1) * np.arange(SIZE)).sum() / drawn.mask.sum()
        height = np.ptp(np.flatnonzero(lung.any(1)))
        # the lung cuts large opacities, so their middle may lie a little beyond a border of thirds
        slack = 0.06 * height if sign is Sign.OPACITY else 2
        assert drawn.zone in {zone_of(lung, row - slack), zone_of(lung, row + slack)}
        thirds.add(drawn.zone)
    assert thirds == set(Zone)


def test_an_effusion_is_basal_and_climbs_towards_the_chest_wall(chests):
    for _, lungs, _, drawn in drawings(chests, Sign.EFFUSION):
        assert drawn.zone is None
        lung = lung_of(lungs, drawn.side)
        rows, columns = np.nonzero(lung)
        top, height = rows.min(), np.ptp(rows)
        inside = drawn.mask * lung
        assert inside[: top + height // 3].sum() < 0.02 * inside.sum()
        assert inside[top + height // 2 :].sum() > 0.8 * inside.sum()
        # the fluid stands higher at the wall than in the middle of the lung
        thirds = np.array_split(np.arange(columns.min(), columns.max() + 1), 3)
        outer, middle = (thirds[0], thirds[1]) if drawn.side is Side.RIGHT else (thirds[2], thirds[1])
        highest = [np.flatnonzero((inside[:, strip] > 0.5).any(1)) for strip in (outer, middle)]
        assert len(highest[0])
        assert not len(highest[1]) or highest[0][0] <= highest[1][0]


@pytest.mark.parametrize("sign", LOCAL)
def test_a_finding_is_brighter_and_the_film_far_from_it_is_unchanged(chests, sign):
    for film, lungs, changed, drawn in drawings(chests, sign):
        # of an effusion the part that was air: below the diaphragm it is as bright as what was there
        core = drawn.mask > 0.7
        core = core & lungs if sign is Sign.EFFUSION else core
        assert (changed - film)[core].mean() > 4
        near = cv2.dilate((drawn.mask > 0.01).astype(np.uint8), np.ones((15, 15))) > 0
        assert near.mean() < 0.5
        assert np.abs(changed - film)[~near].max() < 1


@pytest.mark.parametrize("sign", LOCAL)
def test_both_sides_are_drawn_about_equally_often(chests, sign):
    film, lungs = chests[0]
    rng = np.random.default_rng(0)
    right = [draw(film, lungs, sign, rng)[1].side is Side.RIGHT for _ in range(60)]
    assert 0.3 < np.mean(right) < 0.7


@pytest.mark.parametrize("sign", LOCAL)
def test_size_is_the_share_of_the_lung(chests, sign):
    for _, lungs, _, drawn in drawings(chests, sign):
        lung = lung_of(lungs, drawn.side)
        covered = drawn.mask * lung if sign is Sign.EFFUSION else drawn.mask
        assert drawn.size == pytest.approx(covered.sum() / lung.sum(), rel=1e-3)
        assert 0 < drawn.size < 0.7


def test_a_large_heart_pushes_the_lungs_apart_and_names_no_side(chests):
    for film, lungs, changed, drawn in drawings(chests, Sign.HEART):
        assert (drawn.side, drawn.zone) == (None, None)
        right, left = split_lungs(lungs)
        row = int((drawn.mask.sum(1) * np.arange(SIZE)).sum() / drawn.mask.sum())
        inner = np.flatnonzero(right[row])[-1], np.flatnonzero(left[row])[0]
        assert inner[0] < (drawn.mask[row] * np.arange(SIZE)).sum() / drawn.mask[row].sum() < inner[1]
        assert drawn.mask[row].sum() > inner[1] - inner[0]  # wider than what lies between the lungs
        # denser where the lungs begin: what was air beside the heart is heart now
        beside = np.zeros_like(lungs)
        beside[row - 8 : row + 8, inner[0] - 8 : inner[0] + 1] = beside[row - 8 : row + 8, inner[1] : inner[1] + 9] = (
            True
        )
        assert (changed - film)[beside & lungs].mean() > 4
        assert np.abs(changed - film)[: SIZE // 8].mean() < 1  # apices and what is above them stay


def test_a_wider_heart_says_so_by_its_size(chests):
    made = drawings(chests[:1], Sign.HEART, 12)
    sizes = [drawn.size for *_, drawn in made]
    widths = [drawn.mask.max(0).sum() for *_, drawn in made]
    assert np.corrcoef(sizes, widths)[0, 1] > 0.95
    assert 0.25 < min(sizes) < max(sizes) < 0.7
