"""Whether what the map shows matters, and whether the text depends on its film.

Attention is where the model looked, not why it wrote; two tests ask the second question. Both read the same words again and change only what the
hybrid layers see: the patches and the findings that are read in the changed film.

Why this sentence?   The highlighted place (the top tenth of the sentence's map) is hidden, and so are random places: the same shape moved,
                     mirrored and turned, for a blob beside scattered patches would be an unfair comparison. Hidden patches are filled
                     from their surroundings (inpainting). Even grey, the usual choice, is probably a finding itself in a dark lung: under it our
                     sentences lost more elsewhere than where they look (docs/experiments.md 22).
Is it looking?       The whole text is read under a blank film, under noise and under another chest, and what it loses a token is compared
                     with a threshold (BARELY). The other chest is drawn (`drawn_chest`): no one's film is shipped with EMRRG.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import cv2
import numpy as np

from emrrg_core.explain.likelihood import likelihood
from emrrg_core.films.film import model_input
from emrrg_core.model.finding_tokens import SHOWN
from emrrg_core.model.writing import Token

FEWEST_PLACES, PLACES = 8, 19  # random places at least, and by default: where none of 19 costs as much, p is 1/20
FILL = 5  # pixels around a hidden one that fill it
RARE = 0.05  # of the random places may cost as much as the highlighted one, for that to matter
WORTH = 0.1  # nats that the highlighted place must cost, and cost more than random ones: a tenth less likely
# Nats a token: a text that moves less barely depends on its film. From `python -m train.image_dependence --limit 160` on the shipped checkpoint's
# validation films: below 0.98 of the drafts, above 0.67 of other films' texts (the mean of the three tells them apart with an area of 0.86).
# Another checkpoint needs it measured anew.
BARELY = 0.2


# ---------------------------------------------------------------------------------------------------- why this sentence?


class Bar(NamedTuple):
    """One bar of a chart."""

    label: str
    nats: float


@dataclass(frozen=True)
class Why:
    """What a sentence loses when the highlighted place is hidden from the hybrid layers, beside random places of the same shape."""

    sentence: int  # its number in the draft
    log_prob: float  # of the sentence under its film, nats: under the model itself, the forced tokens left out
    drop: float  # nats lost through the hybrid layers with the highlighted place hidden; below 0: the sentence became likelier
    random: tuple[float, ...]  # the same for each random place
    patches: tuple[int, ...]  # the highlighted ones, in raster order, the same in every view (docs/method.md 5.1)
    wrapped: int  # random places that did not fit into the film and go on at its opposite edge
    whole: float = (
        0.0  # nats lost when the place is hidden from the prompt too; the same where the prompt holds no film
    )
    finding: str | None = None  # the finding that the sentence speaks of first, of finding_tokens.NAMES
    probability: float | None = None  # of that finding in the film
    hidden: float | None = None  # of that finding with the highlighted place hidden
    elsewhere: float | None = None  # of that finding with a random place hidden, the mean

    @property
    def mean(self) -> float:
        """Nats lost with a random place masked, on average."""
        return float(np.mean(self.random))

    @property
    def as_large(self) -> int:
        """How many random places cost the sentence at least as much."""
        return sum(other >= self.drop for other in self.random)

    @property
    def p(self) -> float:
        """Of a permutation test: how probable such a rank were if the highlighted place was a place like any other."""
        return (1 + self.as_large) / (1 + len(self.random))

    @property
    def matters(self) -> bool:
        """The highlighted place costs the sentence clearly more than places elsewhere: in rank (RARE) and in size (WORTH)."""
        return self.as_large <= RARE * len(self.random) and self.drop - max(self.mean, 0) >= WORTH

    @property
    def verdict(self) -> str:
        """In words: the answer, what hiding places does to the sentence, and what hiding this one does to its finding."""
        answer, it = (
            ("This place matters for this sentence", "it")
            if self.matters
            else ("The map does not explain this sentence", "its place")
        )
        said = (
            f"{answer}: with {it} hidden, the sentence is {likelihood(self.drop)}; with other places hidden, {likelihood(self.mean)} on "
            f"average ({self.as_large or 'none'} of {len(self.random)} cost it as much)."
        )
        if self.finding is None or self.probability is None or self.hidden is None:
            return said
        others = f" ({self.elsewhere:.0%} with other places hidden)" if self.elsewhere is not None else ""
        name = SHOWN.get(self.finding, self.finding)
        return f"{said} The probability of {name} goes from {self.probability:.0%} to {self.hidden:.0%}{others}."

    @property
    def bars(self) -> tuple[Bar, ...]:
        """A small chart: the highlighted place, the mean of the random ones, then each of these, largest first."""
        each = [Bar(f"Random place {n}", nats) for n, nats in enumerate(sorted(self.random, reverse=True), 1)]
        return (Bar("Highlighted place", self.drop), Bar("Random places, mean", self.mean), *each)

    def to_dict(self) -> dict[str, Any]:
        """The documented JSON object (docs/draft.md)."""
        return {
            "sentence": self.sentence,
            "log_prob": self.log_prob,
            "drop": self.drop,
            "whole": self.whole,
            "finding": self.finding,
            "probability": self.probability,
            "hidden_probability": self.hidden,
            "elsewhere_probability": self.elsewhere,
            "random": list(self.random),
            "random_mean": self.mean,
            "p": self.p,
            "matters": self.matters,
            "verdict": self.verdict,
            "patches": list(self.patches),
            "wrapped": self.wrapped,
        }


def highlighted(weights: np.ndarray) -> np.ndarray:
    """The top tenth of the patches, at least one: weights (g²,) to (g²,) bool. Of equal weights the first in raster order."""
    region = np.zeros(len(weights), bool)
    region[np.argsort(-weights, kind="stable")[: max(len(weights) // 10, 1)]] = True
    return region


def places(region: np.ndarray, count: int, rng: np.random.Generator) -> tuple[list[np.ndarray], int]:
    """At most `count` different random places of the same shape elsewhere on the film, (g²,) bool each, and how many of them are wrapped.

    The shape is moved, and mirrored or turned by quarters. A place that shares more than half of its patches with the region is not elsewhere.
    Where too few fit into the film, as of a shape that is as wide as the film, the rest goes on at the opposite edge: cut there, but not
    scattered. There are fewer than `count` on a small grid only.
    """
    grid = round(len(region) ** 0.5)
    inside: dict[bytes, np.ndarray] = {}
    across: dict[bytes, np.ndarray] = {}
    square = region.reshape(grid, grid)
    for turned in (np.rot90(side, quarters) for side in (square, square[:, ::-1]) for quarters in range(4)):
        rows, columns = np.flatnonzero(turned.any(1)), np.flatnonzero(turned.any(0))
        corner = np.roll(turned, (-rows[0], -columns[0]), (0, 1))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        for row, column in product(range(grid), range(grid)):
            moved = np.roll(corner, (row, column), (0, 1)).ravel()
            if 2 * (moved & region).sum() <= region.sum():
                fits = row + height <= grid and column + width <= grid
                (inside if fits else across)[moved.tobytes()] = moved
    fitting = list(inside.values())
    chosen = [fitting[i] for i in rng.permutation(len(fitting))[:count]]
    rest = [place for key, place in across.items() if key not in inside]
    wrapped = [rest[i] for i in rng.permutation(len(rest))[: count - len(chosen)]]
    return [*chosen, *wrapped], len(wrapped)


def masked(film: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Films as the tower takes them, (..., 3, s, s), with the region's patches (g²,) bool filled from their surroundings.

    Inpainting (Telea 2004, An image inpainting technique based on the fast marching method), at 8 bits: what OpenCV makes of floating-point
    numbers overshoots.
    """
    grid = round(len(region) ** 0.5)
    side = film.shape[-1] // grid
    hidden = region.reshape(grid, grid).repeat(side, 0).repeat(side, 1)
    low, high = (end(film, axis=(-2, -1), keepdims=True) for end in (np.min, np.max))
    span = np.where(high > low, high - low, 1)
    grey = np.round(255 * ((film - low) / span)[..., 0, :, :]).astype(np.uint8)  # the three planes are one film
    planes = grey.reshape(-1, *grey.shape[-2:])
    filled = np.stack([cv2.inpaint(plane, hidden.astype(np.uint8), FILL, cv2.INPAINT_TELEA) for plane in planes])
    inside = low + span * (filled.reshape(grey.shape)[..., None, :, :] / 255)
    return np.where(hidden, inside, film).astype(np.float32)


# --------------------------------------------------------------------------------------------------------- is it looking?


@dataclass(frozen=True)
class DependenceTest:
    """What a text loses a token, in nats, when it is read under what is not its film; below 0: it became likelier."""

    blank: float  # even grey
    noise: float
    swapped: float  # another chest, drawn
    gate: float  # mean strength of the gates over tokens and hybrid layers; 0: no hybrid layer looked
    tokens: int  # that were counted: those that the model chose

    @property
    def moved(self) -> float:
        """How far the text moves: the mean of the three."""
        return (self.blank + self.noise + self.swapped) / 3

    @property
    def threshold(self) -> float:
        """Nats a token below which a text barely depends on its film: BARELY."""
        return BARELY

    @property
    def looks(self) -> bool:
        """Whether the text depends on its film: `moved` is at least the threshold."""
        return self.moved >= self.threshold

    @property
    def verdict(self) -> str:
        """In words, to stand above the draft."""
        depends = "depends" if self.looks else "barely depends"
        said = f"This text {depends} on its film: without it, each word or piece of one is on average {likelihood(self.moved)}."
        return said if self.looks else f"{said} Do not take it for a reading of this film."

    @property
    def bars(self) -> tuple[Bar, ...]:
        """A small chart, to be drawn with a line at `threshold`."""
        return Bar("Blank film", self.blank), Bar("Noise", self.noise), Bar("Another chest", self.swapped)

    def to_dict(self) -> dict[str, Any]:
        """The documented JSON object (docs/draft.md)."""
        return {
            "blank": self.blank,
            "noise": self.noise,
            "swapped": self.swapped,
            "moved": self.moved,
            "threshold": self.threshold,
            "looks": self.looks,
            "gate": self.gate,
            "tokens": self.tokens,
            "verdict": self.verdict,
        }


def gate_strength(tokens: Sequence[Token]) -> float:
    """Mean |gate| over the tokens and hybrid layers; 0 where there are none."""
    gates = np.abs([token.gates for token in tokens])
    return float(gates.mean()) if gates.size else 0.0


def stand_ins(size: int, rng: np.random.Generator) -> np.ndarray:
    """A blank film, noise and another chest as the tower takes them: (3, 3, size, size) float32, in the order of `DependenceTest`."""
    blank = np.full((size, size), 118 / 255)  # as bright as films are on average
    noise = rng.uniform(0, 1, (size, size))
    return np.stack([model_input(pixels, size) for pixels in (blank, noise, drawn_chest(size, rng))])


def drawn_chest(size: int, rng: np.random.Generator) -> np.ndarray:
    """A frontal chest that is no one's, drawn from smooth shapes: (size, size) in [0, 1], every number of its anatomy a little random."""
    y, x = np.mgrid[:size, :size] / size

    def near(value: float) -> float:
        return value * rng.uniform(0.94, 1.06)

    def ellipse(cx: float, cy: float, rx: float, ry: float, edge: float = 0.04) -> np.ndarray:
        out = np.hypot((x - near(cx)) / near(rx), (y - near(cy)) / near(ry)) - 1
        return np.asarray(1 / (1 + np.exp(np.clip(out / edge, -40, 40))))

    body = np.maximum(ellipse(0.5, 0.8, 0.56, 0.76), ellipse(0.5, 0.05, 0.13, 0.3))
    heart = np.maximum(ellipse(0.55, 0.63, 0.14, 0.14), ellipse(0.5, 0.4, 0.07, 0.3))
    dome = np.maximum(ellipse(0.3, 0.98, 0.24, 0.22), ellipse(0.7, 1.0, 0.24, 0.22))
    lungs = np.maximum(ellipse(0.31, 0.47, 0.15, 0.33), ellipse(0.69, 0.47, 0.15, 0.33))
    air = lungs * (1 - heart) * (1 - dome)
    out = np.abs(x - 0.5)
    ribs = np.clip(np.sin(2 * np.pi * (y + near(0.9) * out**2) / near(0.085)) - 0.2, 0, None) * (out > 0.05)
    spine = np.exp(-(((x - 0.5) / near(0.035)) ** 2))
    film = 0.06 + body * (0.66 - 0.42 * air + 0.09 * ribs * air + 0.1 * spine)
    return np.clip(film + rng.normal(0, 0.01, film.shape), 0, 1)
