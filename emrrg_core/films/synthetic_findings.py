"""Findings drawn on real normal films at a known place and size, with the words that are then true.

They teach a model what place and side are, and they are ground truth for its maps; they are not a radiologist's findings, and every score
measured on them says so. All geometry is in pixels of the square film that a tower sees, s × s; row 0 is the top, and, as films are hung, column 0
is the patient's right.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

import cv2
import numpy as np


class Sign(StrEnum):
    """What can be drawn."""

    NODULE = "nodule"
    OPACITY = "opacity"
    EFFUSION = "effusion"
    HEART = "large heart"


class Side(StrEnum):
    RIGHT = "right"
    LEFT = "left"


class Zone(StrEnum):
    """Thirds of a lung's height."""

    UPPER = "upper"
    MID = "mid"
    LOWER = "lower"


LABEL_OF = {  # the CheXpert label that is then true
    Sign.NODULE: "Lung Lesion",
    Sign.OPACITY: "Lung Opacity",
    Sign.EFFUSION: "Pleural Effusion",
    Sign.HEART: "Cardiomegaly",
}


@dataclass(frozen=True)
class Drawn:
    """A simulated finding. mask: (s, s) float32 in [0, 1], where it lies. size: its share of the lung's area (heart: how much wider)."""

    sign: Sign
    side: Side | None  # None: the heart
    zone: Zone | None  # None: the heart, and effusions, which are basal
    size: float
    mask: np.ndarray


def split_lungs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A lung mask (s, s) to the patient's right and left lung, (s, s) bool each.

    Raises ValueError when there are not two lungs to tell apart.
    """
    count, numbered, stats, centres = cv2.connectedComponentsWithStats((mask > 0).astype(np.uint8))
    large = sorted(range(1, count), key=lambda i: -stats[i, cv2.CC_STAT_AREA])[:2]
    if len(large) == 2 and stats[large[1], cv2.CC_STAT_AREA] >= 0.25 * stats[large[0], cv2.CC_STAT_AREA]:
        right, left = sorted(large, key=lambda i: centres[i][0])
        if centres[left][0] - centres[right][0] > 0.15 * mask.shape[1]:
            return numbered == right, numbered == left
    raise ValueError("the mask does not show two lungs apart from each other")


def zone_of(lung: np.ndarray, row: float) -> Zone:
    """The third of a lung (s, s) bool in which a row lies."""
    rows = np.flatnonzero(lung.any(1))
    third = (row - rows[0]) / max(rows[-1] + 1 - rows[0], 1)
    return Zone.UPPER if third < 1 / 3 else Zone.MID if third < 2 / 3 else Zone.LOWER


def draw(
    film: np.ndarray, lungs: np.ndarray, sign: Sign, rng: np.random.Generator, growth: float = 1.0
) -> tuple[np.ndarray, Drawn]:
    """A film (s, s) in [0, 255] with one finding drawn on it, float32, and what was drawn. lungs: its lung mask (s, s).

    growth: factor on its width (an effusion's height): two generators of one seed draw the same finding, smaller and larger. Raises ValueError when
    the mask does not show two lungs.
    """
    right, left = split_lungs(lungs)
    grey = film.astype(np.float32)
    if sign is Sign.HEART:
        made, drawn = _heart(grey, right, left, rng, growth)
    else:
        side = Side.RIGHT if rng.random() < 0.5 else Side.LEFT
        made, drawn = _DRAWERS[sign](grey, right if side is Side.RIGHT else left, side, rng, growth)
    return made.astype(np.float32), replace(drawn, mask=np.clip(drawn.mask, 0, 1).astype(np.float32))


def _centre(lung: np.ndarray, inside: float, rng: np.random.Generator) -> tuple[int, int]:
    """A random (row, column) of a lung, at least `inside` pixels from its edge where it is wide enough."""
    depth = cv2.distanceTransform(lung.astype(np.uint8), cv2.DIST_L2, 5)
    rows, columns = np.nonzero(depth >= min(inside, 0.7 * depth.max()))
    i = rng.integers(len(rows))
    return int(rows[i]), int(columns[i])


def _noise(size: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise (size, size), mean 0, deviation 1; scale is its grain in pixels."""
    field = cv2.GaussianBlur(rng.normal(size=(size, size)).astype(np.float32), (0, 0), scale)
    return (field - field.mean()) / (field.std() + 1e-6)


def _distance(size: int, row: float, column: float, ratio: float, angle: float) -> np.ndarray:
    """Elliptic distance of every pixel from a point; ratio is the longer over the shorter axis."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    c, s = np.cos(angle), np.sin(angle)
    u, v = (x - column) * c + (y - row) * s, (y - row) * c - (x - column) * s
    return np.sqrt((u / ratio**0.5) ** 2 + (v * ratio**0.5) ** 2)


def _edge(beyond: np.ndarray) -> np.ndarray:
    """1 inside a border, 0 beyond it, one half on it; `beyond` in widths of the border."""
    return 1 / (1 + np.exp(np.clip(beyond, -40, 40)))


def _nodule(
    grey: np.ndarray, lung: np.ndarray, side: Side, rng: np.random.Generator, growth: float
) -> tuple[np.ndarray, Drawn]:
    size = grey.shape[0]
    radius = size * rng.uniform(0.018, 0.055)
    row, column = _centre(lung, radius, rng)
    radius *= growth
    distance = _distance(size, row, column, rng.uniform(1, 1.4), rng.uniform(0, np.pi))
    distance = distance * (1 + 0.08 * _noise(size, radius / 2, rng))
    shape = _edge((distance - radius) / (radius * rng.uniform(0.10, 0.25)))
    film = _brighten(grey, shape, rng.uniform(0.22, 0.6))
    return film, Drawn(Sign.NODULE, side, zone_of(lung, row), float(shape.sum() / lung.sum()), shape)


def _opacity(
    grey: np.ndarray, lung: np.ndarray, side: Side, rng: np.random.Generator, growth: float
) -> tuple[np.ndarray, Drawn]:
    size = grey.shape[0]
    radius = size * rng.uniform(0.06, 0.17)
    row, column = _centre(lung, 0.5 * radius, rng)
    radius *= growth
    distance = _distance(size, row, column, rng.uniform(1, 1.8), rng.uniform(0, np.pi))
    distance = distance * (1 + 0.25 * _noise(size, radius / 2.5, rng))
    soft = cv2.GaussianBlur(lung.astype(np.float32), (0, 0), 0.012 * size)
    shape = _edge((distance - radius) / (radius * 0.22)) * soft
    texture = np.clip(0.85 + 0.3 * _noise(size, 0.012 * size, rng), 0.2, 1.5)
    film = _brighten(grey, shape * texture, rng.uniform(0.25, 0.7))
    return film, Drawn(Sign.OPACITY, side, zone_of(lung, row), float(shape.sum() / lung.sum()), shape)


def _effusion(
    grey: np.ndarray, lung: np.ndarray, side: Side, rng: np.random.Generator, growth: float
) -> tuple[np.ndarray, Drawn]:
    size = grey.shape[0]
    rows, columns = np.flatnonzero(lung.any(1)), np.flatnonzero(lung.any(0))
    top, bottom = rows[0], rows[-1]
    height = (bottom - top) * rng.uniform(0.12, 0.5) * growth
    y, x = np.mgrid[:size, :size].astype(np.float32)
    # the meniscus climbs towards the chest wall: away from the midline
    outward = (columns[-1] - x if side is Side.RIGHT else x - columns[0]) / max(np.ptp(columns), 1)
    level = bottom - height * (0.75 + rng.uniform(0.3, 0.8) * np.clip(outward, 0, 1) ** 2)
    edge = 0.012 * size
    soft = cv2.GaussianBlur(cv2.dilate(lung.astype(np.uint8), np.ones((5, 5))).astype(np.float32), (0, 0), edge)
    shape = soft * _edge(-(y - level) / edge)
    bright = np.percentile(grey[lung], 97) * rng.uniform(0.95, 1.1) + 8 * _noise(size, 0.03 * size, rng)
    share = np.clip(shape * rng.uniform(0.75, 0.97), 0, 1)
    film = np.clip(grey * (1 - share) + np.maximum(bright, grey) * share, 0, 255)
    return film, Drawn(Sign.EFFUSION, side, None, float((shape * lung).sum() / lung.sum()), shape)


def _heart(
    grey: np.ndarray, right: np.ndarray, left: np.ndarray, rng: np.random.Generator, growth: float
) -> tuple[np.ndarray, Drawn]:
    size = grey.shape[0]
    rows = np.flatnonzero((right | left).any(1))
    # between the lungs, in their lower half, a little to the patient's left
    lower = slice(int(rows[0] + 0.45 * len(rows)), rows[-1] + 1)
    inner_right = [np.flatnonzero(r)[-1] for r in right[lower] if r.any()]
    inner_left = [np.flatnonzero(r)[0] for r in left[lower] if r.any()]
    if not inner_right or not inner_left:
        raise ValueError("the mask does not show where the heart lies")
    start, end = float(np.median(inner_right)), float(np.median(inner_left))
    column, row = (start + end) / 2, rows[0] + 0.72 * len(rows)
    half = max((end - start) / 2, 0.08 * size)
    factor = 1 + (rng.uniform(1.3, 1.65) - 1) * growth
    y, x = np.mgrid[:size, :size].astype(np.float32)
    reach, tall = half * factor * 1.5, 0.30 * len(rows)
    nearness = np.exp(-(((x - column) / reach) ** 4) - ((y - row) / (1.4 * tall)) ** 4)
    shrink = 1 + nearness * (1 / factor - 1)
    film = cv2.remap(
        grey,
        (column + (x - column) * shrink).astype(np.float32),
        (row + (y - row) * (1 + nearness * (1 / (1 + 0.5 * (factor - 1)) - 1))).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    inside = ((x - column) / (half * factor)) ** 2 + ((y - row) / tall) ** 2 <= 1
    return film, Drawn(Sign.HEART, None, None, float(factor - 1), inside.astype(np.float32))


def _brighten(grey: np.ndarray, shape: np.ndarray, strength: float) -> np.ndarray:
    """Lets less light through where `shape` is: part of the way to a little above the film's bright tissue."""
    bright = np.percentile(grey, 92)
    room = np.maximum(bright * 1.05 - grey, 25.0)
    return np.clip(grey + np.clip(shape, 0, 1.6) * strength * room, 0, 255).astype(np.float32)


_DRAWERS: dict[Sign, Callable[..., tuple[np.ndarray, Drawn]]] = {
    Sign.NODULE: _nodule,
    Sign.OPACITY: _opacity,
    Sign.EFFUSION: _effusion,
}
