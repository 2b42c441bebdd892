"""Which map finds what a box encloses: Grad-CAM, as AM-MRG cuts its crops by, or the closed form that drafts use (docs/method.md 8.1, 9.1).

    python -m train.regions --films FILMS.jsonl FILMS_MORE.jsonl --radiologists RADIOLOGISTS.jsonl

Of every film of the split with a box of a finding that its labels state, both maps of that finding's label are measured, and cut into regions in the
same way (emrrg_core.explain.grad_cam):

    cells       how many regions a map has
    inside      of all regions, the share whose middle lies in a box
    pointing    share of the films whose highest patch has its middle in a box
    another's   pointing by the maps of the same finding in the other films: what is due to where such findings lie in any film
    chance      the boxes' share of the film's area: what a map that knows nothing would reach

A film with several such findings counts once, by their sums or means. Brackets hold 95 % intervals over films (bootstrap).
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from emrrg_core.data.studies import Study, read_studies
from emrrg_core.errors import DataError
from emrrg_core.explain.grad_cam import CELLS, grad_cam, regions
from emrrg_core.model import checkpoint as checkpoints
from emrrg_core.model.emrrg import Emrrg
from emrrg_core.model.finding_tokens import NAMES, finding_maps
from emrrg_core.reporter import DEFAULT_CHECKPOINT
from emrrg_core.text.labeler import LABELS
from emrrg_core.text.metrics import Score, bootstrap
from train.evaluate import load_film
from train.maps import Box, boxes_of, covered, peaks_inside
from train.probabilities import known, ratio
from train.targets import Truth, read_radiologists, truth_of

METHODS = ("Grad-CAM", "closed form")


@dataclass(frozen=True)
class Case:
    """A finding in a film: its boxes, and its maps (g, g) by METHODS. film: its study's id."""

    film: str
    name: str
    boxes: tuple[Box, ...]
    maps: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Measured:
    """One map of one finding in one film. regions: how many; inside: how many of them in a box; pointing: whether its peak is."""

    regions: int
    inside: int
    pointing: bool


def measured(heat: np.ndarray, boxes: Sequence[Box]) -> Measured:
    """heat: one map (g, g), not negative. One that is 0 everywhere points nowhere."""
    highest = float(heat.max())
    cells = regions(heat / highest) if highest > 0 else []
    inside = sum(any(_holds(box, (c + 0.5) / CELLS, (r + 0.5) / CELLS) for box in boxes) for r, c in cells)
    return Measured(len(cells), inside, peaks_in(heat, boxes))


def peaks_in(heat: np.ndarray, boxes: Sequence[Box]) -> bool:
    """Whether the highest patch of a map (g, g) has its middle in a box; one that is 0 everywhere has none."""
    return bool(heat.max() > 0) and peaks_inside(heat.ravel(), boxes)


def _holds(box: Box, x: float, y: float) -> bool:
    left, top, width, height = box
    return left <= x <= left + width and top <= y <= top + height


def boxed(study: Study, truth: Truth) -> dict[str, tuple[Box, ...]]:
    """The boxes of every finding of NAMES that has any and whose label says that it is there."""
    found = boxes_of(study, truth)
    return {name: boxes for name, boxes in found.items() if truth.labels.get(NAMES[name], 0.0) > 0.5}


def maps_of(model: Emrrg, film: np.ndarray, label: int) -> dict[str, np.ndarray]:
    """Both maps of a label in a film (3, s, s), (g, g) each, by METHODS."""
    image = torch.from_numpy(film).unsqueeze(0)
    with torch.inference_mode():
        closed = finding_maps(model.see(image.unsqueeze(1)))[0, label, 1]
    grid = model.config.vision.grid
    return dict(
        zip(
            METHODS, (grad_cam(model, image, torch.tensor([label]))[0].numpy(), closed.reshape(grid, grid)), strict=True
        )
    )


def cases_of(model: Emrrg, studies: Sequence[Study], truths: Mapping[str, Truth]) -> list[Case]:
    """Every finding with boxes that a film's labels state. Raises DataError where there is none."""
    cases = []
    for study in studies:
        places = boxed(study, truths[study.id])
        film = load_film(study, model.config.vision.image_size) if places else None
        for name, boxes in places.items():
            assert film is not None
            cases.append(Case(study.id, name, boxes, maps_of(model, film, LABELS.index(NAMES[name]))))
    if not cases:
        raise DataError("No film of this split has a box of a finding that its labels state.")
    return cases


def measure(cases: Sequence[Case], method: str) -> np.ndarray:
    """(n, 5) of n films: regions and those inside, summed over a film's findings; pointing, that by other films' maps (NaN where no other film has
    the finding), and chance, their means."""
    rows: dict[str, list[list[float]]] = {}
    for case in cases:
        own = measured(case.maps[method], case.boxes)
        others = [peaks_in(o.maps[method], case.boxes) for o in cases if o.name == case.name and o.film != case.film]
        row = [own.regions, own.inside, own.pointing, _mean(others), covered(case.boxes)]
        rows.setdefault(case.film, []).append(row)
    films = [np.array(mine, float) for mine in rows.values()]
    return np.array([[*mine[:, :2].sum(0), *map(_mean, mine[:, 2:].T)] for mine in films])


def _mean(values: Iterable[float]) -> float:
    """Of those that are known; NaN of none."""
    finite = known(np.array(list(values), float))
    return float(finite.mean()) if len(finite) else np.nan


def table(cases: Sequence[Case]) -> str:
    """Both methods as a Markdown table."""
    lines = ["| map | cells | inside | pointing | another's | chance |", "|---|---:|---:|---:|---:|---:|"]
    for method in METHODS:
        cells, inside, pointing, other, chance = measure(cases, method).T
        scores = (
            bootstrap(cells),
            ratio(inside, cells),
            bootstrap(pointing),
            bootstrap(known(other)),
            bootstrap(chance),
        )
        lines.append(f"| {method} | {' | '.join(map(_said, scores))} |")
    return "\n".join(lines)


def _said(score: Score) -> str:
    if score["value"] is None:
        return "–"
    return f"{score['value']:.2f} ({score['low']:.2f}–{score['high']:.2f}, n {score['n']})"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=Path, nargs="+", required=True)
    parser.add_argument("--radiologists", type=Path, help="radiologists' readings of some of the films")
    parser.add_argument("--checkpoint", type=Path, default=DEFAULT_CHECKPOINT)
    parser.add_argument("--split", default="val")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    model, _ = checkpoints.load(args.checkpoint)
    read = read_radiologists(args.radiologists)
    studies = [study for path in args.films for study in read_studies(path, args.split)]
    studies = [study for study in studies if study.boxes or "rsna" in read.get(study.id, {})]
    print(table(cases_of(model, studies, {s.id: truth_of(s, read.get(s.id)) for s in studies})))
    print(f"\nsplit {args.split}, checkpoint {checkpoints.fingerprint(args.checkpoint)[:12]}…")


if __name__ == "__main__":
    main()
