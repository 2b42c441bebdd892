"""The films of one study side by side on one canvas, as Med-CXRGen gives them to its tower (docs/method.md 8.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

GAP = 10  # black pixels between two films
_ORDER = ("PA", "AP", None, "LATERAL")  # left to right; a view of another name stands where none is known

Place = tuple[float, float, float, float]  # top, left, bottom, right: shares of the canvas' height and width


@dataclass(frozen=True)
class Stitched:
    """pixels: (height, width) float32. places: where each film lies on it, in the order in which the films were given."""

    pixels: np.ndarray
    places: tuple[Place, ...]


def in_order(views: Sequence[str | None]) -> list[int]:
    """The numbers of films in the order in which they stand side by side: PA, AP, those whose view is not known, lateral; else as given."""

    def rank(number: int) -> int:
        view = views[number]
        return _ORDER.index(view) if view in _ORDER else _ORDER.index(None)

    return sorted(range(len(views)), key=rank)


def stitch(films: Sequence[np.ndarray], views: Sequence[str | None] | None = None) -> Stitched:
    """Films (height, width) in [0, 1] from left to right, their upper edges aligned, black between and below them; none is resized.

    views: of each film, for their order; None: as given. Raises ValueError for no film.
    """
    if not films:
        raise ValueError("there is no film to stitch")
    order = in_order(views if views is not None else [None] * len(films))
    height = max(film.shape[0] for film in films)
    width = sum(film.shape[1] for film in films) + GAP * (len(films) - 1)
    canvas, places, left = np.zeros((height, width), np.float32), {}, 0
    for number in order:
        rows, columns = films[number].shape
        canvas[:rows, left : left + columns] = films[number]
        places[number] = (0.0, left / width, rows / height, (left + columns) / width)
        left += columns + GAP
    return Stitched(canvas, tuple(places[number] for number in range(len(films))))
