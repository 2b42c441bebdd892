"""A photo of a film, cropped and straightened by its reader: four corners -> the film alone, seen face to face.

    corners = suggested_corners(film)      four points, or None where it is not sure
    film = straighten(film, corners)
    film = turned(film, 1)                 by 90° clockwise

Each makes a new Film with new pixels and a new hash, and says in its steps what was done. `Film.source_sha256` keeps the
hash of what was read: places in the new pixels are no places in the file, so nothing that refers to the file by
coordinates may be made of it (`Film.straightened`).

A point is (x, y), shares of the picture's width and height from its upper left corner, each from 0 to 1.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import cv2
import numpy as np

from emrrg_core.errors import FilmError
from emrrg_core.films.film import MIN_SIDE, Film, pixel_digest, refuse_blank

Point = tuple[float, float]
Corners = tuple[Point, Point, Point, Point]  # clockwise as seen, from the upper left one

MOST_SLANTED = (
    3.0  # how much longer a side may be than the opposite one: beyond it hardly any detail is left at the far end
)
LONGEST = 32766  # pixels: OpenCV warps no longer side

# --- what is looked for in a photo ---------------------------------------------------------------------------------------

SIDE = 640  # pixels, longer side of the copy that is searched
AREA = (0.12, 0.94)  # of the picture, that a film in a photo covers
ANGLES = (50.0, 130.0)  # degrees, at its corners
SAMPLES = 64  # along a side
STEP = 0.03  # of the full range, across the film's edge
STRAIGHT = 1.5  # pixels of the copy, that a point of a side may lie beside its line
SUPPORT = 0.7  # of a side, that must be seen as an edge along one line; else the answer is None


def straighten(film: Film, corners: Sequence[Point]) -> Film:
    """The part of a film within four corners, given in any order, as a rectangle.

    Its sides are the means of opposite ones, so that nothing is enlarged beyond the photo's own resolution. Corners that lie
    straight cut whole pixels out and keep spacing; others are seen through a perspective transform, bilinear, and leave
    none. The whole picture is the film itself. Raises FilmError for corners outside the picture, for four that span no
    shape of four sides, and for a part too small or blank; ValueError for anything but four points.
    """
    height, width = film.pixels.shape
    points = _ordered(corners) * (width, height)
    straight = _whole_pixels(points)
    if straight is not None:
        left, top, right, bottom = straight
        if (left, top, right, bottom) == (0, 0, width, height):
            return film
        _refuse_small(bottom - top, right - left)
        pixels = film.pixels[top:bottom, left:right]
        step = f"cropped by the reader to columns {left} to {right - 1} and rows {top} to {bottom - 1} of {width} × {height}"
        return _changed(film, pixels, step, film.spacing)
    sides = np.linalg.norm(np.roll(points, -1, axis=0) - points, axis=1)  # top, right, bottom, left
    wide, tall = (sides[0] + sides[2]) / 2, (sides[1] + sides[3]) / 2
    for one, other in ((sides[0], sides[2]), (sides[1], sides[3])):
        if min(one, other) * MOST_SLANTED < max(one, other):
            raise FilmError("This photo was taken at too flat an angle: take it again from straight before the film.")
    scale = min(1.0, math.sqrt(height * width / (wide * tall)))
    columns, rows = round(wide * scale), round(tall * scale)
    _refuse_small(rows, columns)
    if max(rows, columns, height, width) > LONGEST:
        raise FilmError("This picture is too long to be straightened: crop it parallel to its sides.", rule="too-large")
    # from edge to edge: pixel centres lie half a pixel inside
    target = np.array([(0, 0), (columns, 0), (columns, rows), (0, rows)], np.float32) - 0.5
    transform = cv2.getPerspectiveTransform((points - 0.5).astype(np.float32), target)
    pixels = cv2.warpPerspective(
        film.pixels, transform, (columns, rows), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    named = ", ".join(f"({x:.4f}, {y:.4f})" for x, y in points / (width, height))
    step = f"cropped and straightened by the reader to 4 corners: {named}; now {columns} × {rows} pixels"
    return _changed(film, pixels, step, None)


def turned(film: Film, quarter: int) -> Film:
    """A film turned clockwise by 1, 2 or 3 times 90°. Raises ValueError for another number."""
    if quarter not in (1, 2, 3):
        raise ValueError(f"a film is turned by 1, 2 or 3 quarters, not {quarter}")
    spacing = film.spacing[::-1] if film.spacing and quarter != 2 else film.spacing
    step = f"turned by {90 * quarter}° clockwise by the reader"
    return _changed(film, np.rot90(film.pixels, -quarter), step, spacing)


def mirrored(film: Film) -> Film:
    """A film with left and right exchanged."""
    return _changed(film, film.pixels[:, ::-1], "mirrored left to right by the reader", film.spacing)


def _changed(film: Film, pixels: np.ndarray, step: str, spacing: tuple[float, float] | None) -> Film:
    refuse_blank(pixels)
    steps = [*film.steps, step]
    if film.spacing and not spacing:
        steps.append("spacing left out: it is not true of a straightened picture")
    pixels = np.ascontiguousarray(np.clip(pixels, 0, 1), dtype=np.float32)
    return replace(
        film,
        pixels=pixels,
        spacing=spacing,
        steps=tuple(steps),
        sha256=pixel_digest(pixels),
        source_sha256=film.source_sha256 or film.sha256,
    )


def _ordered(corners: Sequence[Point]) -> np.ndarray:
    """(4, 2) float64, clockwise as seen, from the one nearest to the upper left. Raises as `straighten` does."""
    points = np.asarray(corners, dtype=np.float64)
    if points.shape != (4, 2):
        raise ValueError(f"corners are four points (x, y), not an array of {points.shape}")
    if not ((points >= 0) & (points <= 1)).all():  # written so that NaN fails too
        raise FilmError("Each corner must lie within the picture: move those that do not.")
    spokes = points - points.mean(axis=0)
    points = points[np.argsort(np.arctan2(spokes[:, 1], spokes[:, 0]), kind="stable")]
    sides = np.roll(points, -1, axis=0) - points
    following = np.roll(sides, -1, axis=0)
    if (sides[:, 0] * following[:, 1] - sides[:, 1] * following[:, 0] <= 1e-6).any():
        raise FilmError("These corners do not span a shape of four sides: put one on each corner of the film.")
    return np.roll(points, -int(np.argmin(points.sum(axis=1))), axis=0)


def _whole_pixels(points: np.ndarray) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom in whole pixels, where the sides are parallel to the picture's to half a pixel."""
    left, right = points[[0, 3], 0], points[[1, 2], 0]
    top, bottom = points[[0, 1], 1], points[[2, 3], 1]
    if max(np.ptp(side) for side in (left, right, top, bottom)) > 0.5:
        return None
    return round(left.mean()), round(top.mean()), round(right.mean()), round(bottom.mean())


def _refuse_small(height: int, width: int) -> None:
    if min(height, width) < MIN_SIDE:
        raise FilmError(
            f"Only {width} × {height} pixels would be left; a film must have at least {MIN_SIDE} on its shorter side. "
            "Put the corners further apart, or take the photo from nearer.",
            rule="too-small",
        )


# --- suggested corners ---------------------------------------------------------------------------------------------------


def suggested_corners(film: Film) -> Corners | None:
    """The corners of the film in a photo of one; None where no shape of four straight sides stands out.

    Shapes are the outlines of what is lighter or darker than a row of thresholds, or framed by edges (Canny 1986), reduced
    to four sides. Each side is then fitted to the edge beside it, and a shape counts only where every side is seen as one
    straight edge along most of its length. How often it is right: tests/test_straighten.py.
    """
    height, width = film.pixels.shape
    scale = min(1.0, SIDE / max(height, width))
    small = cv2.resize(film.pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    if min(small.shape) < 64:
        return None
    small = cv2.GaussianBlur(small, (0, 0), 1.0)
    size = np.array(small.shape[::-1], dtype=np.float64)
    best, best_score = None, 0.0
    for shape in _shapes(small):
        found, support = _fitted(small, shape)
        if found is None or support < SUPPORT or not _plausible(found, size):
            continue
        score = support + 0.3 * cv2.contourArea(found.astype(np.float32)) / size.prod()
        if score > best_score:
            best, best_score = found, score
    if best is None:
        return None
    try:
        first, second, third, fourth = _ordered(np.clip((best + 0.5) / size, 0, 1).tolist()).tolist()
    except FilmError:
        return None
    return tuple(first), tuple(second), tuple(third), tuple(fourth)


def _shapes(small: np.ndarray) -> Iterator[np.ndarray]:
    """Rough shapes of four corners, (4, 2) in pixels' centres, each given once."""
    grey = np.rint(small * 255).astype(np.uint8)
    otsu = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[0]
    levels = {int(otsu), *(int(level) for level in np.percentile(grey, range(5, 100, 5)))}
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (5, 5))
    masks = [mask for level in sorted(levels) for mask in ((grey > level), (grey < level))]
    masks = [cv2.morphologyEx(mask.astype(np.uint8) * 255, cv2.MORPH_OPEN, kernel) for mask in masks]
    for low, high in ((20, 60), (50, 150)):
        masks.append(cv2.morphologyEx(cv2.Canny(grey, low, high), cv2.MORPH_CLOSE, kernel))
    seen = set()
    for mask in masks:
        for contour in cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)[0]:
            hull = cv2.convexHull(contour)
            if not AREA[0] <= cv2.contourArea(hull) / grey.size <= AREA[1]:
                continue
            around = cv2.arcLength(hull, True)
            reduced = (cv2.approxPolyDP(hull, share * around, True)[:, 0] for share in (0.01, 0.02, 0.03, 0.05, 0.08))
            rough = [next((shape for shape in reduced if len(shape) == 4), None), cv2.boxPoints(cv2.minAreaRect(hull))]
            for shape in rough:
                key = () if shape is None else tuple(sorted(map(tuple, (shape // 6).astype(int).tolist())))
                if shape is not None and key not in seen:
                    seen.add(key)
                    yield shape.astype(np.float64)


def _fitted(small: np.ndarray, shape: np.ndarray) -> tuple[np.ndarray | None, float]:
    """A shape with each side moved onto the edge beside it, and the share of the worst side that is seen as an edge."""
    support = 0.0
    for reach in (12, 5):  # pixels to either side: coarse, then fine
        lines = []
        support = 1.0
        for start, end in zip(shape, np.roll(shape, -1, axis=0), strict=True):
            line, seen = _edge(small, start, end, reach)
            if line is None:
                return None, 0.0
            lines.append(line)
            support = min(support, seen)
        corners = [_crossing(lines[number - 1], lines[number]) for number in range(4)]
        if any(corner is None for corner in corners):
            return None, 0.0
        shape = np.array(corners)
        if not np.isfinite(shape).all() or np.abs(shape).max() > 4 * SIDE:
            return None, 0.0
    return shape, support


Line = tuple[np.ndarray, np.ndarray]  # a point, a direction


def _edge(small: np.ndarray, start: np.ndarray, end: np.ndarray, reach: int) -> tuple[Line | None, float]:
    """The straight edge within `reach` pixels of a side, and the share of the side along which it is seen."""
    along = end - start
    length = float(np.linalg.norm(along))
    if length < 24:
        return None, 0.0
    across = np.array([-along[1], along[0]]) / length
    places = np.linspace(0.06, 0.94, SAMPLES)
    offsets = np.arange(-reach - 2, reach + 3, dtype=np.float64)
    points = start + places[:, None, None] * along + offsets[None, :, None] * across
    x, y = points[..., 0].astype(np.float32), points[..., 1].astype(np.float32)
    profiles = cv2.remap(small, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    slopes = np.abs(profiles[:, 4:] - profiles[:, :-4])  # over four pixels, about offsets[2:-2]
    peaks = slopes.argmax(axis=1)
    strong = slopes.max(axis=1) >= STEP
    if strong.sum() < SAMPLES * SUPPORT / 2:
        return None, 0.0
    # the middle of the peak, by its own weight: finer than a pixel
    near = np.clip(peaks[:, None] + np.arange(-2, 3), 0, slopes.shape[1] - 1)
    weights = np.take_along_axis(slopes, near, axis=1)
    beside = (weights * offsets[2:-2][near]).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-9)
    chosen = _most_straight(places[strong], beside[strong])
    slope, offset = np.polyfit(places[strong][chosen], beside[strong][chosen], 1)
    first = start + offset * across
    last = end + (slope + offset) * across
    return (first, last - first), float(chosen.sum()) / SAMPLES


def _most_straight(places: np.ndarray, beside: np.ndarray) -> np.ndarray:
    """Which points lie along the line that most of them lie along, of all lines through two points some way apart."""
    first, second = np.triu_indices(len(places), max(1, len(places) // 4))
    first, second = first[::5], second[::5]
    slopes = (beside[second] - beside[first]) / (places[second] - places[first])
    apart = np.abs(beside - beside[first, None] - slopes[:, None] * (places - places[first, None]))
    lies: np.ndarray = apart <= STRAIGHT
    return lies[lies.sum(axis=1).argmax()]


def _crossing(one: Line, other: Line) -> np.ndarray | None:
    (start, along), (begin, across) = one, other
    turn = along[0] * across[1] - along[1] * across[0]
    if abs(turn) < 1e-9:
        return None
    gap = begin - start
    return start + along * ((gap[0] * across[1] - gap[1] * across[0]) / turn)


def _plausible(corners: np.ndarray, size: np.ndarray) -> bool:
    """Convex, all of it in the picture, of a film's size and angles."""
    if (corners < 1).any() or (corners > size - 2).any():
        return False
    if not cv2.isContourConvex(corners.astype(np.float32)):
        return False
    if not AREA[0] <= cv2.contourArea(corners.astype(np.float32)) / size.prod() <= AREA[1]:
        return False
    before, after = np.roll(corners, 1, axis=0) - corners, np.roll(corners, -1, axis=0) - corners
    lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    angles = np.degrees(np.arccos(np.clip((before * after).sum(axis=1) / lengths, -1, 1)))
    return bool((angles >= ANGLES[0]).all() and (angles <= ANGLES[1]).all())
