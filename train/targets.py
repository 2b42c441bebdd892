"""Collects the training targets of a film: labels, places, zones, lungs and drawings, and the teacher's readings where there is no label.

A label is a probability: where NIH's text mining and a radiologist disagree, it lies between 0 and 1. A label that is missing is unknown, and no
loss counts it.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from emrrg_core.data.studies import SIGHTS, FilmCache, Study, augment
from emrrg_core.errors import DataError
from emrrg_core.films.synthetic_findings import LABEL_OF, Drawn, Sign, draw, split_lungs
from emrrg_core.model.disease_queries import SIDES, ZONES
from emrrg_core.text.labeler import LABELS, NO_FINDING

OPACITY_BOXES = ("Pneumonia", "Infiltrate", "Infiltration", "Lung Opacity")
_GOOGLE = {"Nodule or mass": "Lung Lesion", "Pneumothorax": "Pneumothorax", "Airspace opacity": "Lung Opacity", "Fracture": "Fracture"}  # fmt: skip
_BRIXIA = {"upper": "upper", "mid": "middle", "lower": "lower"}
OPACITIES = ("Lung Opacity", "Pneumonia")  # the labels of most abnormal films of our sets
# drawn findings that lie in a place
PLACED = tuple(label for sign, label in LABEL_OF.items() if sign is not Sign.HEART)
LUNGS = ("right lung", "left lung")
TAUGHT = (*LUNGS, *PLACED)  # the teacher's places, as labels
ALIKE = 0.86  # correlation of thumbnails from which two films are compared
COPY = 0.7  # correlation of two films from which they are one picture


@dataclass(frozen=True)
class Truth:
    """What radiologists and labels say of one film. boxes: of opacities, (x, y, w, h) as shares of the film; None: not known.

    zones: (2, 3) severity 0 to 3 by side and zone, the mean of two readers; agree: where both call it present or both absent; or None.
    """

    labels: Mapping[str, float]
    boxes: tuple[tuple[float, float, float, float], ...] | None = None
    zones: np.ndarray | None = None
    agree: np.ndarray | None = None
    rsna: str | None = None
    google: Mapping[str, int] = field(default_factory=dict)


def read_radiologists(path: Path | None) -> dict[str, dict]:
    """radiologists.jsonl by study id; nothing where there is none. Raises DataError."""
    if path is None:
        return {}
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {row["id"]: row for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read as radiologists' readings: {error}.") from error


def truth_of(study: Study, read: Mapping | None) -> Truth:
    """One film's truth. read: its row of radiologists.jsonl, or None."""
    labels = {name: float(value) for name, value in study.labels.items()}
    read, boxes, rsna = read or {}, None, None
    height, width = _size(study) if study.boxes or read.get("rsna") else (1, 1)
    mine = [box for name, box in study.boxes if name in OPACITY_BOXES]
    if mine:
        boxes = [(x / width, y / height, w / width, h / height) for x, y, w, h in mine]
    if "rsna" in read:
        rsna = read["rsna"]["class"]
        opacity, normal = float(rsna == "Lung Opacity"), float(rsna == "Normal")
        for name, said in (("Lung Opacity", opacity), ("Pneumonia", opacity), (NO_FINDING, normal)):
            labels[name] = 0.5 * labels[name] + 0.5 * said if name in labels else said
        theirs = [(x / width, y / height, w / width, h / height) for x, y, w, h in read["rsna"]["boxes"]]
        if theirs or not opacity:
            boxes = [*(boxes or []), *theirs]
    if labels.get("Pneumonia") == 1:
        labels.setdefault("Lung Opacity", 1.0)  # on a film a pneumonia is seen as an opacity
    google = {_GOOGLE[name]: int(value) for name, value in read.get("google", {}).items() if value is not None}
    labels |= {name: float(value) for name, value in google.items()}
    zones = agree = None
    if "brixia" in read:
        each = np.array(
            [
                [[float(row[f"{side} {_BRIXIA[zone]}"]) for zone in ZONES] for side in SIDES]
                for row in read["brixia"].values()
                if row
            ]
        )
        zones, agree = each.mean(0), ((each > 0).all(0) | (each == 0).all(0))
    return Truth(labels, None if boxes is None else tuple(boxes), zones, agree, rsna, google)


def _size(study: Study) -> tuple[int, int]:
    film = cv2.imread(str(study.files[0]), cv2.IMREAD_GRAYSCALE)
    if film is None:
        raise DataError(f"study {study.id}: its film cannot be read.")
    return film.shape[0], film.shape[1]


@dataclass(frozen=True)
class Example:
    """One film to learn from, after augmentation, and what is known of it. Everything is by position: right is the left half of the film."""

    film: np.ndarray  # (s, s) float32 in [0, 255]
    labels: dict[str, float]
    lungs: np.ndarray | None  # (2, s, s)
    places: dict[
        str, np.ndarray | None
    ]  # label -> where it lies (s, s), all zero: nowhere; None: nowhere but in `boxes`
    boxes: np.ndarray | None  # (s, s): inside a radiologist's box of an opacity, which is somewhere in each
    zones: np.ndarray | None  # (2, 3): probability that an opacity lies there, nan where readers disagree
    distilled: dict[str, float]  # label -> the teacher's probability
    taught: np.ndarray | None  # (5, g, g) probabilities of the teacher's places, warped with the film
    drawn: Drawn | None = None
    drawn_mask: np.ndarray | None = None

    def is_nowhere(self, name: str) -> bool:
        """Whether a finding is known to be in no part of the film."""
        place = self.places.get(name)
        return place is not None and not place.any()


def drawable(study: Study) -> bool:
    return study.abnormal is False


def example(
    film: np.ndarray,
    study: Study,
    truth: Truth,
    lungs: np.ndarray | None,
    rng: np.random.Generator,
    *,
    simulate: float = 0.0,
    mirror: float = 0.0,
    true_mask: bool = False,
    teacher: tuple[np.ndarray, np.ndarray] | None = None,
    signs: Sequence[Sign] = tuple(Sign),
    augmented: bool = True,
) -> Example:
    """A film (s, s) as an example; a normal one with lungs (s, s) bool gets a drawn finding with probability `simulate`.

    mirror: the probability that the film is shown mirrored; what is right of it is then left. true_mask: the lungs are a person's outline.
    augmented: the film is turned, scaled and exposed otherwise (`augment`).
    """
    halves = None if lungs is None else _halves(lungs)
    grey, drawn = film.astype(np.float32), None
    if lungs is not None and halves is not None and drawable(study) and rng.random() < simulate:
        with contextlib.suppress(ValueError):  # a mask that shows too little
            grey, drawn = draw(film, lungs, signs[int(rng.integers(len(signs)))], rng)
    labels = dict(truth.labels)
    if drawn:
        # some drawings can hardly be seen: they must not teach that a film that looks normal is not
        labels = {name: value for name, value in labels.items() if name not in (*SIGHTS, NO_FINDING)}
        labels[LABEL_OF[drawn.sign]] = 1.0
    planes = _planes(truth, halves, drawn, film.shape[0])
    distilled: dict[str, float] = {}
    if teacher is not None and not drawn:
        said, where = teacher
        distilled = {name: float(_sigmoid(x)) for name, x in zip(LABELS, said, strict=True) if not np.isnan(x)}
        planes |= _taught_planes(where, film.shape[0])
    if augmented:
        grey, moved = augment(grey, rng, list(planes.values()))
        planes = dict(zip(planes, moved, strict=True))
    zones = None
    if truth.zones is not None and truth.agree is not None:
        zones = np.where(truth.agree, (truth.zones > 0).astype(float), np.nan)
    if mirror and rng.random() < mirror:
        grey = grey[:, ::-1]
        planes = {_mirrored(name): plane[:, ::-1] for name, plane in planes.items()}
        zones = None if zones is None else zones[::-1].copy()
    return Example(
        film=grey,
        labels=labels,
        lungs=np.stack([planes[name] for name in LUNGS]) if halves is not None and true_mask else None,
        places=_places(truth, labels, drawn, planes, film.shape),
        boxes=planes.get("boxes"),
        zones=zones,
        distilled=distilled,
        taught=_taught(planes, round(len(teacher[1]) ** 0.5)) if teacher is not None and distilled else None,
        drawn=drawn,
        drawn_mask=planes.get("drawn"),
    )


def _halves(lungs: np.ndarray) -> np.ndarray | None:
    """The right and the left lung of a mask (s, s), (2, s, s); None where it does not show two."""
    try:
        return np.stack(split_lungs(lungs)).astype(np.float32)
    except ValueError:
        return None


def _planes(truth: Truth, halves: np.ndarray | None, drawn: Drawn | None, size: int) -> dict[str, np.ndarray]:
    """All that moves with the film, (size, size) each: lungs, what was drawn, and boxes, which a drawn film is not to be judged by."""
    planes: dict[str, np.ndarray] = {}
    if halves is not None:
        planes |= dict(zip(LUNGS, halves, strict=True))
    if drawn:
        planes["drawn"] = drawn.mask
    elif truth.boxes:
        boxes = np.zeros((size, size), np.float32)
        for x, y, w, h in truth.boxes:
            boxes[int(y * size) : int(np.ceil((y + h) * size)), int(x * size) : int(np.ceil((x + w) * size))] = 1
        planes["boxes"] = boxes
    return planes


def _taught_planes(where: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """The teacher's places, logits of patches (g², 5), as probabilities on the film."""
    grid = round(len(where) ** 0.5)
    planes = _sigmoid(where).T.reshape(-1, grid, grid)
    return {
        f"taught {name}": cv2.resize(plane, (size, size), interpolation=cv2.INTER_LINEAR)
        for name, plane in zip(TAUGHT, planes, strict=True)
    }


def _taught(planes: Mapping[str, np.ndarray], grid: int) -> np.ndarray:
    """The teacher's places after the film has moved, as patches again: (5, g, g)."""
    moved = [np.ascontiguousarray(planes[f"taught {name}"]) for name in TAUGHT]
    return np.stack([cv2.resize(plane, (grid, grid), interpolation=cv2.INTER_AREA) for plane in moved])


def _mirrored(name: str) -> str:
    """The name of a plane after right and left have changed places."""
    other = {"right": "left", "left": "right"}
    return " ".join(other.get(word, word) for word in name.split())


def _places(
    truth: Truth, labels: Mapping[str, float], drawn: Drawn | None, planes: Mapping[str, np.ndarray], shape: tuple[int, ...]
) -> dict[str, np.ndarray | None]:  # fmt: skip
    """Where each finding lies, as of `Example.places`."""
    nothing = np.zeros(shape, np.float32)
    places: dict[str, np.ndarray | None] = {}
    if drawn:
        places = dict.fromkeys(PLACED, nothing)
        places[LABEL_OF[drawn.sign]] = planes["drawn"]
        return places
    for name in LABELS:
        if name != NO_FINDING and (labels.get(NO_FINDING) == 1 or labels.get(name) == 0):
            places[name] = nothing
    if truth.boxes is not None:
        places["Lung Opacity"] = None if truth.boxes else nothing
    return places


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(x, np.float32)))


def lungs_of(places: np.ndarray, size: int) -> np.ndarray | None:
    """Both lungs (size, size) bool, by probabilities of patches (g², 2); None where they do not show two."""
    grid = round(len(places) ** 0.5)
    both = cv2.resize(places.max(1).reshape(grid, grid), (size, size), interpolation=cv2.INTER_CUBIC) >= 0.5
    try:
        right, left = split_lungs(both)
    except ValueError:
        return None
    return right | left if both.mean() > 0.08 else None


def near_copies(films: Sequence[Study], held: Sequence[Study], cache: FilmCache) -> set[str]:
    """Ids of those of `films` that are the same picture as one of `held`: under another name, re-cropped, rescaled or exposed anew.

    Two chests are alike from afar, so thumbnails only propose (the two closest above ALIKE); the middle of one film is then looked for in the other
    at five scales, each film less its own blur. Pairs in our sets lie below 0.65 but for 21, copies at 0.70 to 0.92 (docs/experiments.md 28).
    """
    ours, theirs = _thumbnails(films, cache), _thumbnails(held, cache)
    if not len(ours) or not len(theirs):
        return set()
    alike = ours @ theirs.T
    found = set()
    for i, study in enumerate(films):
        close = [j for j in np.argsort(-alike[i])[:2] if alike[i, j] >= ALIKE]
        if any(_found_in(cache[held[j]], cache[study]) >= COPY for j in close):
            found.add(study.id)
    return found


def _thumbnails(films: Sequence[Study], cache: FilmCache) -> np.ndarray:
    """(n, 576), each of mean 0 and length 1."""
    rows = []
    for study in films:
        edges = _sharp(cache[study], 24, 4)
        rows.append(edges.ravel() / max(float(np.linalg.norm(edges)), 1e-6))
    return np.array(rows, np.float32).reshape(-1, 576)


def _sharp(film: np.ndarray, size: int, blur: float) -> np.ndarray:
    """A film (s, s) at another size, less its own blur."""
    small = cv2.resize(film, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
    return small - cv2.GaussianBlur(small, (0, 0), blur)


def _found_in(film: np.ndarray, other: np.ndarray, size: int = 112) -> float:
    """How well the middle of one film is found in another, both (s, s): the highest correlation over places and five scales."""
    where, best = _sharp(other, size, 3), -1.0
    for scale in (0.9, 0.95, 1.0, 1.05, 1.1):
        edge = round(scale * size)
        middle = _sharp(film, edge, 3)[(cut := round(0.15 * edge)) : edge - cut, cut : edge - cut]
        best = max(best, float(cv2.matchTemplate(where, middle, cv2.TM_CCOEFF_NORMED).max()))
    return best
