"""Where a finding is: what a learner marked on the films, what the case says, and what the model's own map says.

All places are shares of a film's width and height, from its upper left corner, so that they fit every size in which a film is shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from emrrg_core.errors import EmrrgError
from emrrg_core.text.labeler import LABELS, NO_FINDING

if TYPE_CHECKING:
    from emrrg_core.report.draft import Draft

MARKABLE = tuple(label for label in LABELS if label != NO_FINDING)
MOST_MARKS = 40  # of one answer
WIDEST = 4.0  # times a box's area: a larger rectangle points at nothing
CELLS = 56  # of a map on a film, along a side: the patches of a stitched study are cut by its borders


@dataclass(frozen=True)
class Mark:
    """A place that somebody marked. film: counted from 0. x, y: the upper left corner; of a point, which has no width and height, the point."""

    finding: str  # of MARKABLE
    film: int
    x: float
    y: float
    width: float = 0.0
    height: float = 0.0

    @property
    def centre(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height / 2


@dataclass(frozen=True, eq=False)
class Box:
    """Where a finding of a case is. mask: (height, width) bool of the film, where the case has more than a rectangle."""

    finding: str  # of MARKABLE
    film: int
    x: float
    y: float
    width: float
    height: float
    mask: np.ndarray | None = field(default=None, repr=False)

    def holds(self, mark: Mark) -> bool:
        """Whether a mark points here: its middle lies in the box (on the mask), and it is at most WIDEST times as large."""
        x, y = mark.centre
        if mark.film != self.film or not (0 <= x - self.x <= self.width and 0 <= y - self.y <= self.height):
            return False
        if mark.width * mark.height > WIDEST * self.width * self.height:
            return False
        if self.mask is None:
            return True
        height, width = self.mask.shape
        return bool(self.mask[min(height - 1, int(y * height)), min(width - 1, int(x * width))])


class Verdict(StrEnum):
    """What a mark is to the boxes of its case."""

    HIT = "hit"
    AGAIN = "again"  # in a box that an earlier mark has hit
    OTHER_NAME = "other name"  # in a box of another finding
    FALSE = "false"


@dataclass(frozen=True)
class Located:
    """Marks against the boxes of a case."""

    verdicts: tuple[Verdict, ...]  # of each mark
    boxes: tuple[Verdict | None, ...]  # of each box: hit, other name, or None where it was missed

    @property
    def hits(self) -> int:
        return self.boxes.count(Verdict.HIT)

    @property
    def missed(self) -> int:
        return self.boxes.count(None)

    @property
    def false(self) -> int:
        return self.verdicts.count(Verdict.FALSE)


def marks_of(values: Any, films: int) -> tuple[Mark, ...]:
    """Marks from plain values, as a browser sends or a file keeps them: a list of tables with Mark's keys. Places are cut off at the film's edge.

    films: how many there are. Raises EmrrgError for anything else, and for more than MOST_MARKS.
    """
    try:
        found = [_mark(value, films) for value in values]
    except (KeyError, TypeError, ValueError) as error:
        raise EmrrgError("The marks did not arrive whole. Mark again, or load the page again.") from error
    if len(found) > MOST_MARKS:
        raise EmrrgError(f"These are too many marks: at most {MOST_MARKS} are kept.")
    return tuple(found)


def _mark(value: Mapping[str, Any], films: int) -> Mark:
    finding, film = value["finding"], value["film"]
    if finding not in MARKABLE or type(film) is not int or not 0 <= film < films:
        raise ValueError(f"there is no {finding} on film {film}")
    numbers = [float(value[key]) for key in ("x", "y")] + [float(value.get(key, 0)) for key in ("width", "height")]
    if not np.isfinite(numbers).all() or min(numbers) < 0 or max(numbers) > 1:
        raise ValueError("a place is a share of the film")
    x, y, width, height = numbers
    return Mark(finding, film, x, y, min(width, 1 - x), min(height, 1 - y))


def plain_marks(marks: Sequence[Mark]) -> list[dict[str, Any]]:
    """Marks as `marks_of` takes them, rounded to a ten-thousandth of the film."""
    return [{name: round(v, 4) if isinstance(v, float) else v for name, v in asdict(mark).items()} for mark in marks]


def in_words(marks: Sequence[Mark]) -> str:
    """For a table: "Lung Lesion, film 1 at 41 %, 63 %; …"; shares from the left and from the top, of a rectangle its middle."""
    return "; ".join(
        f"{mark.finding}, film {mark.film + 1} at {100 * mark.centre[0]:.0f} %, {100 * mark.centre[1]:.0f} %"
        for mark in marks
    )


def locate(marks: Sequence[Mark], boxes: Sequence[Box]) -> Located:
    """Hold marks against the boxes of their case, in the order in which they were set."""
    found: list[Verdict | None] = [None] * len(boxes)
    verdicts = []
    for mark in marks:
        here = sorted((b.width * b.height, n) for n, b in enumerate(boxes) if b.holds(mark))
        named = [n for _, n in here if boxes[n].finding == mark.finding]
        free = [n for n in named if found[n] is not Verdict.HIT]
        if free:
            found[free[0]] = Verdict.HIT
            verdicts.append(Verdict.HIT)
        elif named:
            verdicts.append(Verdict.AGAIN)
        elif here:
            found[here[0][1]] = found[here[0][1]] or Verdict.OTHER_NAME
            verdicts.append(Verdict.OTHER_NAME)
        else:
            verdicts.append(Verdict.FALSE)
    return Located(tuple(verdicts), tuple(found))


# ---------------------------------------------------------------------------------------------------------- the model


@dataclass(frozen=True, eq=False)
class ModelPlace:
    """Where the model's own map of a finding lies on a film: rings (n, 2) in shares of the film, around half of the map's weight.

    stated: the model states the finding; else the map is where it looked for it.
    """

    finding: str
    film: int
    stated: bool
    rings: tuple[np.ndarray, ...] = field(repr=False)

    def holds(self, mark: Mark) -> bool:
        """Whether the middle of a mark lies within the contour, gaps left out."""
        inside = [cv2.pointPolygonTest(ring.astype(np.float32), mark.centre, False) >= 0 for ring in self.rings]
        return mark.film == self.film and sum(inside) % 2 == 1


def model_places(draft: "Draft") -> tuple[ModelPlace, ...]:
    """The model's own maps of every finding that it read, film by film. A map that is so even that it points nowhere is left out."""
    from emrrg_core.explain.contours import isolines
    from emrrg_core.explain.heat_map import lay_over

    found = []
    for finding in draft.read or ():
        if finding.label not in MARKABLE or not finding.maps:
            continue
        for film, record in enumerate(draft.films):
            density = lay_over(finding.maps[film], draft.grid, CELLS, CELLS, record.place)
            rings = tuple(contour.points for contour in isolines(density)) if record.read else ()
            if rings:
                found.append(ModelPlace(finding.label, film, finding.presence.value == "present", rings))
    return tuple(found)


def model_agrees(mark: Mark, places: Sequence[ModelPlace]) -> bool | None:
    """Whether the model's map of what a mark names lies there; None where the model has no such map on that film."""
    own = [place for place in places if place.finding == mark.finding and place.film == mark.film]
    return any(place.holds(mark) for place in own) if own else None
