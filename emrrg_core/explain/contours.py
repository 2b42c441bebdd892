"""Contours of a map: the smallest region of a film that holds half of the map's mass (its highest-density region), as smooth rings.

A contour is a way to draw a map. It says where half of what the model looked at lies; it is no measured border of disease, and a narrow map of a
wrong finding has as sharp a contour as any.

R. J. Hyndman, Computing and Graphing Highest Density Regions, The American Statistician 50(2), 1996.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DRAWN = 0.5  # of a map's mass lies within its contour
HALF_A_PATCH = 0.5 / 14  # of the film's side, at 14 × 14 patches
SPECK = 0.05  # of the map's mass: a region with less is not drawn
GAP = 0.0025  # of the film: half a patch of 14 × 14; a smaller gap within a region is not drawn
EVEN = 0.8  # a map whose region for a share covers at least this × share of the film points nowhere: an even map covers just that share
_SAMPLES = 160  # along each side of the film, on which rings are sought
_APART = 0.25 / _SAMPLES  # of the film's sides
_BEYOND = 1e-6  # how far outside the film the field falls to nothing, so that each ring closes along the border


@dataclass(frozen=True, eq=False)
class Contour:
    """A ring of a map.

    points  (n, 2) float64: x, y as shares of the film's width and height, in [0, 1], from its top left corner
    closed  the last point joins the first; a region that the film's border cuts is closed along the border
    level   of the smoothed map on the ring, as a multiple of the map's mean
    share   of the map's mass that all rings of this share hold together, before specks are left out
    hole    it bounds a gap within a region, whose fill is by the even-odd rule
    """

    points: np.ndarray
    closed: bool
    level: float
    share: float
    hole: bool = False


def isolines(
    weights: np.ndarray, *, shares: Sequence[float] = (DRAWN,), smooth: float = HALF_A_PATCH, speck: float = SPECK
) -> tuple[Contour, ...]:
    """The rings around the highest-density regions of a map, for each share in turn, the heaviest region first.

    weights: (h, w) ≥ 0, on patches (grid, grid) or on a film's pixels (`heat_map.lay_over`); its sum does not matter.
    shares: of the map's mass, each within (0, 1). smooth: σ of the Gaussian that smooths the map, as a share of the film's sides. The order of
    points is by the smoothed map, the mass is the map's own. speck: regions with a smaller share of the mass are left out.
    No rings of an empty map, and none of one so even that it points nowhere (EVEN). Raises ValueError where weights are no map.
    """
    if weights.ndim != 2 or not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError("a map is (h, w), finite and not negative")
    if not all(0 < share < 1 for share in shares):
        raise ValueError(f"shares of a map's mass lie within 0 and 1, not {tuple(shares)}")
    if not weights.size or not weights.sum() > 0:
        return ()
    down, across = (_overlap(side) for side in weights.shape)
    mass = down @ (weights / weights.sum()) @ across.T
    blur = _gaussian(smooth)
    field = blur @ mass @ blur.T
    field = field / field.mean()
    order = np.argsort(field, axis=None)[::-1]
    held = np.cumsum(mass.ravel()[order])
    found: list[Contour] = []
    for share in shares:
        last = int(np.searchsorted(held, share))
        if (last + 1) / field.size < EVEN * share:
            found += _rings(field, mass, float(field.ravel()[order[last]]), share, speck)
    return tuple(found)


def svg_path(contours: Iterable[Contour]) -> str:
    """The rings as the `d` of one SVG path in coordinates 0..1000 of the film's width and height; "" of none. Fill it by the even-odd rule."""
    drawn = []
    for ring in contours:
        points = " ".join(f"{x:g} {y:g}" for x, y in np.round(ring.points * 1000, 1))
        drawn.append(f"M{points}{'Z' if ring.closed else ''}")
    return " ".join(drawn)


def _rings(field: np.ndarray, mass: np.ndarray, level: float, share: float, speck: float) -> list[Contour]:
    """The rings of a field at a level: regions with their holes, the heaviest first."""
    from contourpy import contour_generator

    at = np.concatenate([[-_BEYOND, 0.0], _centres(), [1.0, 1.0 + _BEYOND]])
    padded = np.pad(np.pad(field, 1, mode="edge"), 1)
    filled: tuple[Any, Any] = contour_generator(at, at, padded, fill_type="OuterOffset").filled(level, np.inf)  # type: ignore[assignment]
    regions: list[tuple[float, list[np.ndarray]]] = []
    for points, starts in zip(*filled, strict=True):
        outer, *gaps = (_thinned(np.clip(points[a : b - 1], 0, 1)) for a, b in itertools.pairwise(starts.tolist()))
        inside = _within(outer)
        for gap in gaps:
            inside &= ~_within(gap)
        if (held := float(mass[inside].sum())) >= speck:
            regions.append((held, [outer, *(gap for gap in gaps if _within(gap).mean() >= GAP)]))
    regions.sort(key=lambda region: -region[0])
    return [Contour(ring, True, level, share, number > 0) for _, rings in regions for number, ring in enumerate(rings)]


def _thinned(ring: np.ndarray) -> np.ndarray:
    """Without points that lie closer than _APART to the one before: they are the corners of samples, and make a smooth line jagged."""
    kept = [ring[0]]
    for point in ring[1:]:
        if np.hypot(*(point - kept[-1])) >= _APART:
            kept.append(point)
    return np.array(kept)


def _centres() -> np.ndarray:
    return (np.arange(_SAMPLES) + 0.5) / _SAMPLES


def _overlap(side: int) -> np.ndarray:
    """(samples, side): how much of each of the map's cells along a side lies in each sample; columns sum to 1."""
    edges = np.linspace(0, side, _SAMPLES + 1)[:, None]
    return np.diff(np.clip(edges - np.arange(side), 0, 1), axis=0)


def _gaussian(sigma: float) -> np.ndarray:
    """(samples, samples): a Gaussian around each sample, cut off at the film's border; rows sum to 1."""
    if not sigma > 0:
        return np.eye(_SAMPLES)
    kernel = np.exp(-0.5 * ((_centres()[:, None] - _centres()) / sigma) ** 2)
    return kernel / kernel.sum(axis=1, keepdims=True)


def _within(ring: np.ndarray) -> np.ndarray:
    """(samples, samples) bool: the samples whose centres lie inside a ring."""
    from matplotlib.path import Path

    x, y = np.meshgrid(_centres(), _centres())
    return Path(ring).contains_points(np.column_stack([x.ravel(), y.ravel()])).reshape(x.shape)
