"""Measures how often text burned into films is found (`emrrg_core.films.burned_in_text`), and how often markers and clean films raise a false alarm.

    python -m train.burned_in_text --films FILMS.jsonl [--split val] [--repeats N] [--docs docs/refusals.md]

Films are used as they are, and enlarged with added grain to resemble files from a detector. Made-up names, dates and numbers are written into them
in several heights, contrasts and fonts, and so are the short markers that most films carry. The constants of `emrrg_core.films.burned_in_text` were
tuned on the split `train`. The tables go between the markers `<!-- burned -->` of the document.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, Python looks beside the script only

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from emrrg_core.data.studies import Study, read_studies
from emrrg_core.films.burned_in_text import MANY, Box, Line, text_lines
from emrrg_core.films.film import read_film
from train.confidence import publish, rate

SIDES = (0, 1024, 2048)  # pixels, longer side; 0: as the film is
HEIGHTS = (0.012, 0.02, 0.035)  # of a capital letter, as a share of the longer side, but at least LEAST pixels
LEAST = 9
CONTRASTS = (0.25, 0.5, 1.0)  # between letters and what they lie on
MARKERS = ("L", "R", "AP", "PA", "L ERECT", "AP ERECT", "PORTABLE", "SUPINE", "R SITTING")
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSansMono",
    "DejaVuSerif",
    "STIXGeneral",
    "cmss10",
    "default",
    "hershey",
)

Rng = np.random.Generator


def enlarged(pixels: np.ndarray, side: int, rng: Rng) -> np.ndarray:
    """A film (height, width) in [0, 1] with a longer side of `side` pixels and a detector's grain; 0 leaves it as it is."""
    if not side:
        return pixels
    scale = side / max(pixels.shape)
    large = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    grain = cv2.GaussianBlur(np.asarray(rng.normal(size=large.shape)), (0, 0), float(rng.uniform(0.4, 1)))
    return np.clip(large + grain / grain.std() * rng.uniform(0.004, 0.02), 0, 1).astype(np.float32)


def identity(rng: Rng) -> list[str]:
    """Made up: a name, alone or with a date of birth and a number."""
    letters = list("ABCDEFGHIJKLMNOPRSTUVWZ")
    family, given = ("".join(rng.choice(letters, rng.integers(4, 9))) for _ in range(2))
    name = f"{family}, {given}" if rng.random() < 0.5 else f"{family.title()} {given.title()}"
    if rng.random() < 0.4:
        return [name if len(name) > 12 else f"{name} {family}"]
    date = f"{rng.integers(1, 29):02}.{rng.integers(1, 13):02}.{rng.integers(1930, 2020)}"
    return [name, date, f"ID {rng.integers(10**5, 10**8)}", "GENERAL HOSPITAL"][: int(rng.integers(2, 5))]


def written(pixels: np.ndarray, lines: Sequence[str], cap: int, contrast: float, font: str, rng: Rng) -> tuple[np.ndarray, Box]:  # fmt: skip
    """Lines of text with capitals `cap` pixels high somewhere near the rim of a film; also where they stand."""
    height, width = pixels.shape
    cover = _cover(lines, cap, font)
    cover = cover[: height - 2, : width - 2]
    h, w = cover.shape
    margin = int(0.02 * max(height, width))
    x = [margin, width - w - margin, int(rng.integers(0, max(1, width - w)))][rng.integers(3)]
    y = [margin, height - h - margin][rng.integers(2)]
    x, y = int(np.clip(x, 0, width - w)), int(np.clip(y, 0, height - h))
    below = pixels[y : y + h, x : x + w]
    ground = float(np.median(below))
    lighter = ground < 0.5 or (contrast < 0.5 and ground + contrast <= 1)
    ink = ground + contrast if lighter else ground - contrast
    done = pixels.copy()
    done[y : y + h, x : x + w] = below * (1 - cover) + np.clip(ink, 0, 1) * cover
    return done, Box(x, y, w, h)


def _cover(lines: Sequence[str], cap: int, font: str) -> np.ndarray:
    """How much of each pixel the letters cover, 0 to 1."""
    if font == "hershey":  # what consoles draw
        scale, thick = cap / 21, max(1, round(cap / 12))
        sizes = [cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)[0] for line in lines]
        page = np.zeros((round(1.7 * cap) * len(lines) + cap // 2, max(w for w, _ in sizes) + 4), np.uint8)
        for n, line in enumerate(lines):
            at = (1, round(1.7 * cap * n + 1.3 * cap))
            cv2.putText(page, line, at, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thick, cv2.LINE_AA)
        return page / np.float32(255)
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    size = cap / 0.72
    kind = ImageFont.load_default(size) if font == "default" else ImageFont.truetype(str(path), size)
    step = 1.75 * cap
    sheet = Image.new("L", (int(max(kind.getlength(line) for line in lines)) + 6, int(step * len(lines) + cap)))
    for n, line in enumerate(lines):
        ImageDraw.Draw(sheet).text((2, step * n), line, 255, kind)
    left, top, right, bottom = sheet.getbbox() or (0, 0, 1, 1)
    return np.asarray(sheet.crop((left, top, right, bottom)), np.float32) / 255


def variants() -> Iterator[tuple[int, float, float]]:
    """Side, height and contrast of every cell of the table."""
    for side in SIDES:
        for height in HEIGHTS:
            for contrast in CONTRASTS:
                yield side, height, contrast


def flagged(lines: Sequence[Line]) -> bool:
    return sum(line.letters for line in lines) >= MANY


def measure(studies: Sequence[Study], repeats: int, rng: Rng) -> str:
    """The tables: each cell's text in `repeats` films, and each of these films without it and with a marker."""
    pools: dict[str, list[Study]] = {}
    for i in rng.permutation(len(studies)):
        pools.setdefault(studies[i].source, []).append(studies[i])
    text: dict[tuple[int, float, float], list[bool]] = {}
    fonts: dict[str, list[bool]] = {font: [] for font in FONTS}
    clean: dict[str, list[bool]] = {}
    marked: dict[str, list[bool]] = {}
    for side, height, contrast in tqdm([*variants()] * repeats, unit="film", disable=None):
        pool = str(rng.choice(list(pools)))  # drawn: in turn, each cell would always meet the same source
        pools[pool].append(study := pools[pool].pop(0))  # every film once before any twice
        film = enlarged(read_film(study.files[0]).pixels, side, rng)
        cap = max(LEAST, round(height * max(film.shape)))
        font = FONTS[int(rng.integers(len(FONTS)))]
        lettered, _ = written(film, identity(rng), cap, contrast, font, rng)
        found = flagged(text_lines(lettered))
        text.setdefault((side, height, contrast), []).append(found)
        fonts[font].append(found)
        before = flagged(text_lines(film))
        clean.setdefault(study.source, []).append(before)
        if not before:
            marker = str(rng.choice(MARKERS))
            marks, _ = written(film, [marker], 2 * cap, 1.0, font, rng)
            marked.setdefault(marker, []).append(flagged(text_lines(marks)))
    lines = [f"| film, letters | {' | '.join(f'contrast {c:g}' for c in CONTRASTS)} |", "|---" * 4 + "|"]
    for side in SIDES:
        for height in HEIGHTS:
            cells = [_rate(text[side, height, contrast]) for contrast in CONTRASTS]
            size = f"{side} px" if side else "as it is (224 to 384 px)"
            lines.append(f"| {size}, {100 * height:g} % high, at least {LEAST} px | {' | '.join(cells)} |")
    parts = ["Text found:", "\n".join(lines)]
    for heading, first, rows in (
        ("Text found, by font:", "font", fonts),
        ("Warned about though nothing was added, by source of the film:", "source", clean),
        ("Warned about after a marker was added:", "marker", marked),
    ):
        body = [f"| {name} | {_rate(values)} |" for name, values in rows.items()]
        every = [value for values in rows.values() for value in values]
        parts += [heading, "\n".join([f"| {first} | |", "|---|---|", *body, f"| **all** | **{_rate(every)}** |"])]
    return "\n\n".join(parts)


def _rate(values: Sequence[bool]) -> str:
    return rate(sum(values), len(values))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--repeats", type=int, default=12, help="films for each of the table's 27 cells")
    parser.add_argument("--docs", type=Path, help="a document to put the tables in; default: print them only")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    rng = np.random.default_rng(args.seed)
    return publish(lambda: measure(read_studies(args.films, args.split), args.repeats, rng), args.docs, "burned")


if __name__ == "__main__":
    sys.exit(main())
