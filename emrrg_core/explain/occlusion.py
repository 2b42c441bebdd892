"""*What does the model see?*: places of a film are blanked or swapped, and the draft is read again under what is left.

film = retouched(film.pixels, region, Fill.BLANK)      what a learner's brush has left of it
reporter.rescore(films, draft, [film])                 what each sentence of the draft has lost by that
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import cv2
import numpy as np

from emrrg_core.explain.faithfulness import drawn_chest


class Fill(StrEnum):
    """What takes the place of what is brushed away."""

    BLANK = "blank"  # the film's own mean grey
    SIDE = "side"  # the film's other side: left and right are swapped there
    CHEST = "chest"  # another chest, which is drawn and no one's


def retouched(pixels: np.ndarray, region: np.ndarray, fill: Fill) -> np.ndarray:
    """A film (height, width) in [0, 1] with `region` (rows, columns) bool, a grid of any fineness laid over the whole film, filled.

    Where nothing is marked the pixels are exactly those of the film. Raises ValueError for a region that is not two-dimensional.
    """
    if region.ndim != 2 or not region.size:
        raise ValueError(f"a region is a grid (rows, columns), not {region.shape}")
    height, width = pixels.shape
    rows, columns = (np.arange(n) * cells // n for n, cells in zip((height, width), region.shape, strict=True))
    marked = region.astype(bool)[rows[:, None], columns[None]]
    return np.where(marked, _filling(pixels, fill), pixels).astype(np.float32)


def _filling(pixels: np.ndarray, fill: Fill) -> np.ndarray:
    if fill is Fill.BLANK:
        return np.full_like(pixels, pixels.mean(dtype=np.float64))
    if fill is Fill.SIDE:
        return pixels[:, ::-1]
    height, width = pixels.shape
    return cv2.resize(_chest(), (width, height), interpolation=cv2.INTER_LINEAR).clip(0, 1)


@cache
def _chest() -> np.ndarray:
    return drawn_chest(448, np.random.default_rng(0)).astype(np.float32)


@dataclass(frozen=True)
class Rescored:
    """Every sentence of a draft, in its order, under its films and under changed ones."""

    before: tuple[
        float, ...
    ]  # log-probability under the films, nats: under the model itself, the forced tokens left out
    after: tuple[float, ...]  # the same under the changed films
    tokens: tuple[int, ...]  # that were counted

    @property
    def change(self) -> tuple[float, ...]:
        """Nats that each sentence gains by the change; below 0: it lost, so it rested on what is gone."""
        return tuple(after - before for before, after in zip(self.before, self.after, strict=True))

    @property
    def likely(self) -> tuple[tuple[float, float], ...]:
        """How probable a word piece of each sentence is, before and after: the geometric mean over its tokens, 0 to 1."""
        return tuple(
            (float(np.exp(before / max(count, 1))), float(np.exp(after / max(count, 1))))
            for before, after, count in zip(self.before, self.after, self.tokens, strict=True)
        )
