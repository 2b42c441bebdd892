"""Draws images that are no chest films, from a seed. `train.film_check` learns from them what to refuse.

No patient's film is in them, except in `jigsaw`, which cuts a chest film into tiles.
"""

from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Array = np.ndarray
Rng = np.random.Generator


def _grid(size: int) -> tuple[Array, Array]:
    """x and y from -1 to 1."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    return x, y


def _cloud(size: int, rng: Rng, slope: float) -> Array:
    """Fractal noise, amplitude as 1 / frequency ** slope; from 0 to 1."""
    fx, fy = np.fft.rfftfreq(size)[None], np.fft.fftfreq(size)[:, None]
    amplitude = np.hypot(fx, fy).clip(1 / size) ** -slope
    phase = np.exp(2j * np.pi * rng.random(amplitude.shape))
    return _stretched(np.fft.irfft2(amplitude * phase, (size, size)))


def _stretched(values: Array) -> Array:
    low, high = np.percentile(values, (0.5, 99.5))
    return np.clip((values - low) / max(high - low, 1e-6), 0, 1)


def _soft(mask: Array, sigma: float) -> Array:
    return cv2.GaussianBlur(np.asarray(mask, np.float64), (0, 0), sigma)


def noise(size: int, rng: Rng) -> Array:
    """White to coarse, of any contrast."""
    grain = rng.normal(size=(size, size))
    if rng.random() < 0.7:
        grain = _soft(grain, float(rng.uniform(0.5, 6)))
    return np.clip(0.5 + grain / grain.std() * rng.uniform(0.1, 0.4), 0, 1)


def gradient(size: int, rng: Rng) -> Array:
    """Linear or round, smooth or in steps, with a little grain."""
    x, y = _grid(size)
    angle = rng.uniform(0, 2 * np.pi)
    values = x * np.cos(angle) + y * np.sin(angle)
    if rng.random() < 0.5:
        values = np.hypot(x - rng.uniform(-0.5, 0.5), (y - rng.uniform(-0.5, 0.5)) * rng.uniform(0.5, 2))
    values = _stretched(values) ** rng.uniform(0.5, 2)
    if rng.random() < 0.3:
        steps = int(rng.integers(4, 20))
        values = np.floor(values * steps) / steps
    values = 1 - values if rng.random() < 0.5 else values
    return np.clip(values + rng.normal(size=values.shape) * rng.uniform(0, 0.03), 0, 1)


def texture(size: int, rng: Rng) -> Array:
    """Fractal noise, or leaves that lie on one another, as in photographs of nature (dead leaves)."""
    if rng.random() < 0.35:
        return _cloud(size, rng, float(rng.uniform(0.6, 1.8)))
    values = _cloud(size, rng, 1.5) * 0.5
    for _ in range(int(rng.integers(40, 250))):
        radius = float(np.exp(rng.uniform(np.log(0.01), np.log(0.35)))) * size
        axes = (max(1, int(radius)), max(1, int(radius * rng.uniform(0.3, 1))))
        centre = tuple(int(v) for v in rng.integers(0, size, 2))
        leaf = np.zeros((size, size), np.uint8)
        if rng.random() < 0.6:
            cv2.ellipse(leaf, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
        else:
            corners = rng.normal(size=(int(rng.integers(3, 6)), 2)) * radius + centre
            cv2.fillPoly(leaf, [corners.astype(np.int32)], 1)
        shade = rng.random() + 0.3 * (_cloud(size, rng, 1.2) - 0.5) if radius > 0.15 * size else rng.random()
        values = np.where(leaf > 0, shade, values)
    return np.clip(_soft(values, float(rng.uniform(0.3, 1))), 0, 1)


def text(size: int, rng: Rng) -> Array:
    """A page, dark on light or light on dark."""
    page = Image.new("L", (size, size), 255)
    draw, y = ImageDraw.Draw(page), int(rng.integers(2, 20))
    letters = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:-")
    height = int(rng.integers(6, 24))
    while y < size:
        if rng.random() < 0.85:
            line = " ".join("".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(rng.integers(2, 14)))
            draw.text((int(rng.integers(2, 20)), y), line, int(rng.integers(0, 120)), ImageFont.load_default(height))
        y += int(height * rng.uniform(1.1, 1.8))
    values = np.asarray(page, np.float64) / 255
    return 1 - values if rng.random() < 0.4 else values


def diagram(size: int, rng: Rng) -> Array:
    """Axes, curves, boxes and graphs, as in slides and figures."""
    paper, ink = (255, int(rng.integers(0, 100))) if rng.random() < 0.7 else (0, int(rng.integers(150, 255)))
    page = np.full((size, size), paper, np.uint8)
    points = rng.integers(size // 10, size * 9 // 10, (int(rng.integers(3, 14)), 2))
    thick = int(rng.integers(1, 4))
    for _ in range(int(rng.integers(3, 20))):
        a, b = (tuple(int(v) for v in points[i]) for i in rng.integers(0, len(points), 2))
        what = rng.integers(4)
        if what == 0:
            cv2.line(page, a, b, ink, thick, cv2.LINE_AA)
        elif what == 1:
            cv2.rectangle(page, a, b, ink, thick if rng.random() < 0.6 else -1)
        elif what == 2:
            cv2.circle(page, a, int(rng.integers(3, size // 4)), ink, thick if rng.random() < 0.6 else -1, cv2.LINE_AA)
        else:
            cv2.putText(page, str(rng.integers(1000)), a, cv2.FONT_HERSHEY_SIMPLEX, 0.4, ink, 1, cv2.LINE_AA)
    return page / 255


def limb(size: int, rng: Rng) -> Array:
    """One or two long bones and a joint in soft tissue, at any angle; outside them black, or white where the film was shuttered."""
    x, y = _grid(size)
    angle = rng.normal(0, 0.35) + (np.pi / 2 if rng.random() < 0.3 else 0)
    along, across = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
    across = across - rng.uniform(-0.4, 0.4) + 0.2 * rng.normal() * along**2
    width = rng.uniform(0.2, 0.6) * (1 + 0.25 * along * rng.normal())
    inside = _soft(np.abs(across) < width, 2)
    film = inside * np.sqrt((1 - (across / width).clip(-1, 1) ** 2).clip(0)) * rng.uniform(0.3, 0.6)
    joint = rng.uniform(-0.8, 0.8)
    bones = 1 if rng.random() < 0.5 else 2
    for bone in range(bones):
        middle = (bone - (bones - 1) / 2) * width * rng.uniform(0.5, 0.9)
        flare = 1 + rng.uniform(0.5, 2) * np.exp(-(((along - joint) / 0.15) ** 2))
        half = rng.uniform(0.05, 0.16) * flare
        shape = np.clip(1 - ((across - middle) / half) ** 2, 0, 1)
        film += shape**0.5 * rng.uniform(0.25, 0.5) * (1 - 0.5 * np.exp(-(((across - middle) / (0.4 * half)) ** 2)))
    film *= 1 - 0.7 * np.exp(-(((along - joint) / 0.015) ** 2)) * (inside > 0.5)
    film = _stretched(_soft(film + 0.05 * _cloud(size, rng, 1) * inside, 1))
    if rng.random() < 0.4:
        edge = rng.uniform(0.4, 0.9)
        film = np.where(np.abs(x) > edge, float(rng.random() < 0.6), film)
    return film


def section(size: int, rng: Rng) -> Array:
    """A slice across a body or a head, as of CT and MR: an oval in black with a bright rim and organs in it."""
    x, y = _grid(size)
    a, b, turn = rng.uniform(0.5, 0.95), rng.uniform(0.4, 0.9), rng.uniform(0, np.pi)
    r = np.hypot((x - rng.normal(0, 0.05)) / a, (y - rng.normal(0, 0.05)) / b)
    r = r + 0.04 * np.sin(rng.integers(2, 5) * np.arctan2(y, x) + turn)
    film = (r < 1) * rng.uniform(0.2, 0.6)
    if rng.random() < 0.7:
        film = film + ((r < 1) & (r > rng.uniform(0.8, 0.96))) * rng.uniform(-0.2, 0.8)
    for _ in range(int(rng.integers(4, 16))):
        cx, cy = rng.uniform(-0.6, 0.6, 2) * (a, b)
        ca, cb, turn = rng.uniform(0.04, 0.35), rng.uniform(0.04, 0.35), rng.uniform(0, np.pi)
        u, v = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn), (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
        film = np.where((np.hypot(u / ca, v / cb) < 1) & (r < 0.9), rng.uniform(0, 1), film)
    if rng.random() < 0.4:  # the table
        film = film + (np.abs(np.hypot(x, y + 1.5) - rng.uniform(2.3, 2.5)) < 0.015) * 0.6
    film = film + (r < 1) * 0.15 * (_cloud(size, rng, 0.8) - 0.5)
    return np.clip(_soft(film, float(rng.uniform(0.4, 1.5))), 0, 1)


def sector(size: int, rng: Rng) -> Array:
    """An ultrasound picture: speckle in a fan or a box, black around it, and a few letters."""
    x, y = _grid(size)
    top = rng.uniform(-1.0, -0.6)
    r, angle = np.hypot(x, y - top), np.arctan2(x, y - top)
    inside = (r < rng.uniform(1.2, 1.8)) & (np.abs(angle) < rng.uniform(0.4, 0.8)) & (r > rng.uniform(0.05, 0.4))
    if rng.random() < 0.4:
        inside = (np.abs(x) < rng.uniform(0.4, 0.9)) & (np.abs(y) < rng.uniform(0.4, 0.9))
    speckle = _soft(rng.rayleigh(size=(size, size)), float(rng.uniform(0.6, 1.5)))
    film = inside * _stretched(speckle * _cloud(size, rng, 1.6)) * rng.uniform(0.5, 1)
    letters = np.zeros((size, size), np.uint8)
    for _ in range(int(rng.integers(2, 12))):
        at = tuple(int(v) for v in rng.integers(0, size, 2))
        cv2.putText(letters, "".join(rng.choice(list("ABCDEFG0123 :."), 8)), at, cv2.FONT_HERSHEY_PLAIN, 0.6, 230, 1)
    return np.maximum(film, letters / 255)


def jigsaw(film: Array, rng: Rng) -> Array:
    """A chest film (size, size) from 0 to 1 in tiles, laid anew: all of its texture, none of its anatomy."""
    parts = int(rng.integers(3, 6))
    edge = film.shape[0] // parts
    tiles = [film[r * edge : (r + 1) * edge, c * edge : (c + 1) * edge] for r in range(parts) for c in range(parts)]
    tiles = [np.rot90(tiles[i], int(rng.integers(4))) for i in rng.permutation(len(tiles))]
    laid = np.block([tiles[r * parts : (r + 1) * parts] for r in range(parts)])
    return cv2.resize(laid.astype(np.float64), film.shape, interpolation=cv2.INTER_LINEAR)


DRAWN: dict[str, Callable[[int, Rng], Array]] = {
    "noise": noise,
    "gradients": gradient,
    "textures": texture,
    "pages of text": text,
    "diagrams": diagram,
    "drawn limbs": limb,
    "drawn sections": section,
    "drawn ultrasound": sector,
}
