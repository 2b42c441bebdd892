"""Text burned into a film's pixels, names and dates among it: found before anything is exported, told from the usual side marker by its amount.

No letters are read. Light strokes on dark and dark strokes on light are what a top-hat or black-hat filter leaves (Serra 1982); of these,
pieces of the size and evenness of letters are joined to lines where they stand side by side, alike in height and shade. The film is searched in
halved copies, so that letters of any height are found by one filter of STROKE pixels. Error rates are in docs/refusals.md.
"""

from typing import NamedTuple

import cv2
import numpy as np

from emrrg_core.films.film import Film

STROKE = 11  # pixels: the filter keeps strokes thinner than this
TALL = (6, 34)  # pixels, of a letter in the copy where it is looked for; lower ones are found in a finer copy
LARGEST = (
    3200  # pixels, longer side of the finest copy: letters below TALL[0] there are a five-hundredth of the film high
)
SMALLEST = 220
CONTRAST = 0.14  # of the full range, between a stroke and what it lies on
SOFTEST = 0.33  # what is left of that contrast a pixel beside the stroke: ribs and vessels fade, letters end
LETTERS = 3  # in a line, at least
MANY = (
    10  # letters on a film that are no marker any more: "AP ERECT" has seven, "PORTABLE" eight, a name and a date more
)
MOST_PIECES = 3000  # in one copy: beyond it a film is noise, and the strongest are taken


class Box(NamedTuple):
    """A rectangle of a film, in its own pixels: columns from `x` to `x + width`, rows from `y` to `y + height`."""

    x: int
    y: int
    width: int
    height: int


class Line(NamedTuple):
    """Letters side by side. letters: about how many."""

    box: Box
    letters: int


def burned_in(film: Film) -> tuple[Box, ...]:
    """Where text of more than a marker's length seems to be burned in, line by line, from the top; empty where none was found."""
    lines = text_lines(film.pixels)
    return tuple(line.box for line in lines) if sum(line.letters for line in lines) >= MANY else ()


def burned_in_warning(film: Film) -> str | None:
    """What a reader should know before anything of this film is exported; None where nothing is known of text in it."""
    check = "It may name a patient: look before you export or share anything of it."
    if film.annotated:
        return f"The header of {film.name} says that text which identifies someone is burned into its pixels. {check}"
    return f"{film.name} seems to have text burned into its pixels. {check}" if burned_in(film) else None


def text_lines(pixels: np.ndarray) -> list[Line]:
    """Every line of at least LETTERS letters, short markers too, from the top. pixels: (height, width) float in [0, 1]."""
    height, width = pixels.shape
    grey = np.rint(pixels * 255).astype(np.uint8)
    if (scale := LARGEST / max(height, width)) < 1:
        grey = cv2.resize(grey, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    found: list[tuple[float, Line]] = []
    while max(grey.shape) >= SMALLEST:
        zoom = height / grey.shape[0]
        for score, box, letters in _lines(grey):
            found.append((score, Line(Box(*(round(v * zoom) for v in box)), letters)))
        grey = cv2.resize(grey, (max(1, grey.shape[1] // 2), max(1, grey.shape[0] // 2)), interpolation=cv2.INTER_AREA)
    kept: list[Line] = []
    for _, line in sorted(found, key=lambda pair: -pair[0]):
        # a line may be found in two copies, and letters of lines below one another look like a line that runs down
        if 3 * sum(_shared(line.box, other.box) for other in kept) <= line.box.width * line.box.height:
            kept.append(line)
    return sorted(kept, key=lambda line: (line.box.y, line.box.x))


def _shared(a: Box, b: Box) -> int:
    """Pixels of both."""
    w = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
    h = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
    return max(w, 0) * max(h, 0)


Found = list[tuple[float, tuple[int, int, int, int], int]]  # score, box (x, y, width, height), letters


def _lines(grey: np.ndarray) -> Found:
    """The lines in one copy, those that run along the film and those that run up or down it."""
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (STROKE, STROKE))
    found: Found = []
    for operation in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT):
        pieces = _pieces(cv2.morphologyEx(grey, operation, kernel))
        found += _joined(pieces)
        found += [(score, (y, x, h, w), n) for score, (x, y, w, h), n in _joined(pieces[:, [1, 0, 3, 2, 4]])]
    return found


def _pieces(strokes: np.ndarray) -> np.ndarray:
    """What may be letters: (n, 5) of x, y, width, height and mean strength."""
    _, mask = cv2.threshold(strokes, int(CONTRAST * 255), 255, cv2.THRESH_BINARY)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8, ltype=cv2.CV_32S)
    x, y, w, h, area = stats.T
    short, long = np.minimum(w, h), np.maximum(w, h)
    good = (long >= TALL[0]) & (short <= TALL[1]) & (long <= 6 * short.clip(TALL[0])) & (area >= 0.15 * w * h)
    good[0] = False  # the ground
    strength = _means(labels, strokes, count)
    around = cv2.dilate(labels.astype(np.float32), np.ones((3, 3), np.uint8)).astype(np.int32)
    around[mask > 0] = 0
    places = np.flatnonzero(good & (_means(around, strokes, count) <= SOFTEST * strength))
    places = places[np.argsort(-strength[places])][:MOST_PIECES]
    return np.stack([x, y, w, h, strength], 1)[places].astype(np.float64)


def _means(labels: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Mean value of each label's pixels; of the ground, label 0, nothing."""
    where = np.flatnonzero(labels)
    mine = labels.ravel()[where]
    return np.bincount(mine, values.ravel()[where], count) / np.bincount(mine, minlength=count).clip(1)


def _joined(pieces: np.ndarray) -> Found:
    """Pieces that stand side by side from left to right, alike in height and strength, as lines."""
    pieces = pieces[(pieces[:, 3] >= TALL[0]) & (pieces[:, 3] <= TALL[1])]
    x, y, w, h, strength = pieces[np.argsort(pieces[:, 0])].T
    right, bottom, parents = x + w, y + h, list(range(len(x)))

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = parents[parents[i]]
            i = parents[i]
        return i

    for i in range(len(x)):  # those that begin within a space of this one's end
        last = int(np.searchsorted(x, right[i] + 1.1 * TALL[1], side="right"))
        some = slice(i + 1, last)
        low, tall, gap = np.minimum(h[i], h[some]), np.maximum(h[i], h[some]), x[some] - right[i]
        shared = np.minimum(bottom[i], bottom[some]) - np.maximum(y[i], y[some])
        alike = (gap > -0.3 * low) & (gap < 1.1 * tall) & (shared > 0.6 * low) & (low > 0.5 * tall)
        alike &= np.minimum(strength[i], strength[some]) > 0.6 * np.maximum(strength[i], strength[some])
        for j in np.flatnonzero(alike):
            parents[root(i)] = root(i + 1 + int(j))
    groups: dict[int, list[int]] = {}
    for i in range(len(x)):
        groups.setdefault(root(i), []).append(i)
    found: Found = []
    for m in groups.values():
        left, top = int(x[m].min()), int(y[m].min())
        wide, high, size = int(right[m].max()) - left, int(bottom[m].max()) - top, float(np.median(h[m]))
        if len(m) < LETTERS or high > 2.2 * size or wide < 1.5 * size:
            continue
        letters = int(np.maximum(1, np.round(w[m] / (1.1 * size))).sum())  # some touch
        found.append((letters * float(strength[m].mean()), (left, top, wide, high), letters))
    return found
