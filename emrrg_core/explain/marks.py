"""What a reader measures or points at on a film: a length, the cardiothoracic ratio, an arrow; as numbers, in words, and drawn for key images.

Points are (x, y) in shares of the film's width and height, 0 to 1. `ui/overlay.js` shows the same numbers while they are drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from emrrg_core.errors import EmrrgError

POINTS = {"ruler": 2, "arrow": 2, "ratio": 4}  # of a ratio: both ends of the heart, then of the chest
MOST_MARKS = 50  # of one film
_INK, _UNDER = (255, 222, 89), (0, 0, 0)


@dataclass(frozen=True)
class Mark:
    """kind: of POINTS. points: that many."""

    kind: str
    points: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, given: Any) -> Self:
        """From what a browser sent or a session kept: {"kind", "points"}. Raises EmrrgError for anything else."""
        try:
            kind, points = str(given["kind"]), tuple((float(x), float(y)) for x, y in given["points"])
            if POINTS[kind] == len(points) and all(0 <= value <= 1 for point in points for value in point):
                return cls(kind, points)
        except (KeyError, TypeError, ValueError):
            pass
        raise EmrrgError("That measurement did not arrive whole: draw it again.")

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "points": [list(point) for point in self.points]}


def length(mark: Mark, shape: tuple[int, int], spacing: tuple[float, float]) -> float:
    """Of a ruler in mm. shape: (height, width) of the film; spacing: mm a pixel, between rows and between columns (PS3.3 10.7.1.3)."""
    (a, b), (c, d) = mark.points
    return math.hypot((c - a) * shape[1] * spacing[1], (d - b) * shape[0] * spacing[0])


def ratio(mark: Mark) -> float:
    """The cardiothoracic ratio: the smaller of the two widths over the larger (Danzer 1919). It needs no scale."""
    (a, _), (b, _), (c, _), (d, _) = mark.points
    heart, chest = sorted((abs(b - a), abs(d - c)))
    return heart / max(chest, 1e-6)


def in_words(mark: Mark, shape: tuple[int, int], spacing: tuple[float, float] | None, view: str | None) -> str:
    """What stands beside a mark. Says where a length has no scale, and where the view makes the heart look larger than it is."""
    if mark.kind == "ruler":
        if spacing is None:
            return f"{length(mark, shape, (1.0, 1.0)):.0f} pixels, no scale"
        return f"{length(mark, shape, spacing):.0f} mm"
    if mark.kind == "ratio":
        beware = ", AP: overestimates" if (view or "").startswith("AP") else "" if view else ", view not known"
        return f"CTR {ratio(mark):.2f}{beware}"
    return "Arrow"


def draw_marks(
    picture: np.ndarray,
    marks: Sequence[Mark],
    shape: tuple[int, int],
    spacing: tuple[float, float] | None,
    view: str | None,
) -> np.ndarray:
    """The marks over a picture of the film, (height, width, 3) uint8 → the same. shape, spacing, view: of the film itself."""
    if not marks:
        return picture
    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image)
    thick = max(2, round(max(image.size) / 500))
    font = ImageFont.load_default(size=max(12, round(max(image.size) / 50)))
    for mark in marks:
        points = [(x * image.width, y * image.height) for x, y in mark.points]
        for start, end in zip(points[::2], points[1::2], strict=True):
            _line(pen, start, end, thick, arrow=mark.kind == "arrow")
        if mark.kind != "arrow":
            words = in_words(mark, shape, spacing, view)
            x, y = points[-1]
            box = pen.textbbox((0, 0), words, font=font)
            x = min(max(0.0, x + 4 * thick), image.width - (box[2] - box[0]) - 4)
            y = min(max(0.0, y - 4 * thick - (box[3] - box[1])), image.height - (box[3] - box[1]) - 4)
            pen.text((x, y), words, font=font, fill=_INK, stroke_width=thick, stroke_fill=_UNDER)
    return np.asarray(image)


def _line(
    pen: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], thick: int, *, arrow: bool
) -> None:
    (a, b), (c, d) = start, end
    size = math.hypot(c - a, d - b) or 1.0
    u, v = (c - a) / size, (d - b) / size
    strokes = [(start, end)]
    if arrow:
        back = 7 * thick
        strokes += [(end, (c - back * u + side * back / 2 * v, d - back * v - side * back / 2 * u)) for side in (1, -1)]
    else:
        tick = 3 * thick
        strokes += [((x - tick * v, y + tick * u), (x + tick * v, y - tick * u)) for x, y in (start, end)]
    for colour, width in ((_UNDER, 2 * thick + 1), (_INK, thick)):
        for stroke in strokes:
            pen.line(stroke, fill=colour, width=width)
