"""Contours: the smallest region that holds half of a map, drawn smooth, closed and within the film."""

import re

import numpy as np
import pytest
from matplotlib.path import Path

from emrrg_core.explain.contours import Contour, isolines, svg_path
from emrrg_core.explain.heat_map import lay_over


def blob(height: int, width: int, *centres: tuple[float, float], sigma: float = 0.07) -> np.ndarray:
    """Gaussians around centres (x, y) and of a σ that are shares of the film."""
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5)[:, None] / height
    return sum(np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2)) for cx, cy in centres)


def held(weights: np.ndarray, rings: tuple[Contour, ...]) -> float:
    """The share of a map's mass on pixels whose centres are inside an odd number of rings."""
    height, width = weights.shape
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    at = np.column_stack([x.ravel(), y.ravel()])
    inside = sum(Path(ring.points).contains_points(at).astype(int) for ring in rings) % 2 == 1
    return float(weights.ravel()[inside].sum() / weights.sum())


def area(ring: Contour) -> float:
    x, y = ring.points.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_a_blob_has_one_closed_ring_around_its_centre_that_holds_its_share(share):
    weights = blob(300, 240, (0.3, 0.6))
    (ring,) = isolines(weights, shares=(share,))
    assert ring.closed
    assert not ring.hole
    assert ring.share == share
    assert ring.level > 1  # denser than the map's mean
    assert ring.points.mean(axis=0) == pytest.approx((0.3, 0.6), abs=0.01)
    assert held(weights, (ring,)) == pytest.approx(share, abs=0.02)
    # a disc, of the radius within which a two-dimensional Gaussian has this share
    assert area(ring) == pytest.approx(2 * np.pi * 0.07**2 * -np.log(1 - share), rel=0.05)


def test_two_blobs_have_two_rings_the_heavier_first():
    weights = blob(200, 200, (0.25, 0.5)) + 1.5 * blob(200, 200, (0.75, 0.4))
    rings = isolines(weights)
    assert [ring.points.mean(axis=0) for ring in rings] == [
        pytest.approx(at, abs=0.02) for at in [(0.75, 0.4), (0.25, 0.5)]
    ]
    assert held(weights, rings) == pytest.approx(0.5, abs=0.02)


def test_rings_of_several_shares_come_in_their_order_and_lie_within_each_other():
    inner, outer = isolines(blob(100, 100, (0.5, 0.5)), shares=(0.3, 0.7))
    assert (inner.share, outer.share) == (0.3, 0.7)
    assert inner.level > outer.level
    assert Path(outer.points).contains_points(inner.points).all()


@pytest.mark.parametrize("shape", [(14, 14), (90, 130)])
def test_a_transposed_map_has_transposed_rings(shape):
    weights = np.random.default_rng(5).random(shape) ** 8
    rings, turned = isolines(weights), isolines(weights.T)
    assert len(rings) == len(turned) > 0
    grid = np.stack(np.meshgrid(*[np.arange(0.005, 1, 0.01)] * 2), axis=-1).reshape(-1, 2)
    for ring, other in zip(rings, turned, strict=True):
        assert np.allclose(ring.level, other.level)
        assert (
            Path(ring.points).contains_points(grid) != Path(other.points).contains_points(grid[:, ::-1])
        ).mean() < 1e-3


@pytest.mark.parametrize("at", [(0.0, 0.0), (1.0, 0.5), (0.4, 1.0)])
def test_a_region_that_the_border_cuts_is_closed_along_it_and_stays_on_the_film(at):
    weights = blob(150, 150, at)
    (ring,) = isolines(weights)
    assert ring.points.min() >= 0
    assert ring.points.max() <= 1
    assert (np.abs(ring.points - at).min(axis=0) == 0)[[at[0] in (0, 1), at[1] in (0, 1)]].all()
    assert held(weights, (ring,)) == pytest.approx(0.5, abs=0.02)


def test_patches_and_their_map_on_the_film_have_the_same_rings():
    patches = blob(14, 14, (0.3, 0.4), sigma=0.1)
    (small,), (large,) = isolines(patches), isolines(lay_over(patches.ravel(), 14, 700, 560))
    assert np.allclose(small.points, large.points, atol=1e-3)
    turns = np.diff(np.unwrap(np.arctan2(*np.diff(small.points, axis=0).T)))
    assert np.abs(turns).max() < 0.5  # no corners of patches


def test_a_ring_with_a_gap_has_two_rings_the_second_a_hole():
    x, y = np.meshgrid(np.linspace(-1, 1, 200), np.linspace(-1, 1, 200))
    weights = np.exp(-((np.hypot(x, y) - 0.6) ** 2) / 0.02)
    rings = isolines(weights)
    assert [ring.hole for ring in rings] == [False, True]
    assert held(weights, rings) == pytest.approx(0.5, abs=0.02)


def test_specks_are_left_out():
    weights = blob(200, 200, (0.3, 0.3)) + 0.9 * blob(200, 200, (0.8, 0.8), sigma=0.015)
    assert len(isolines(weights, smooth=0)) == 1
    assert len(isolines(weights, smooth=0, speck=0.01)) == 2


@pytest.mark.parametrize(
    "weights",
    [
        np.ones((14, 14)),
        np.zeros((14, 14)),
        np.zeros((0, 0)),
        1 + 0.01 * np.random.default_rng(1).random((200, 100)),
    ],
    ids=["uniform", "empty", "no pixels", "nearly uniform"],
)
def test_a_map_that_points_nowhere_has_no_contour(weights):
    assert isolines(weights) == ()
    assert svg_path(isolines(weights)) == ""


@pytest.mark.parametrize("weights", [np.ones(196), -np.ones((4, 4)), np.full((4, 4), np.nan)])
def test_what_is_no_map_is_refused(weights):
    with pytest.raises(ValueError, match="a map is"):
        isolines(weights)


def test_a_share_beyond_the_map_is_refused():
    with pytest.raises(ValueError, match="within 0 and 1"):
        isolines(np.ones((4, 4)), shares=(0.5, 1.0))


def test_the_svg_path_holds_the_same_points_in_thousandths():
    rings = isolines(blob(100, 100, (0.25, 0.5), (0.75, 0.5)))
    path = svg_path(rings)
    assert re.fullmatch(r"(M[\d. ]+Z ?){2}", path)
    for drawn, ring in zip(path.split("Z")[:2], rings, strict=True):
        points = np.array(drawn.strip("M ").split(), float).reshape(-1, 2)
        assert np.abs(points - 1000 * ring.points).max() <= 0.051
