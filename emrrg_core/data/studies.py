"""Studies and report texts from JSON Lines, and the films decoded once for training.

A film set is a `films.jsonl`: one study a line with `id`, `source`, `split`, `files`, `labels` (CheXpert's names → 1 or 0; a name that is missing
is unknown, never negative), and optionally `patient`, `view`, `findings`, `impression`, `note`, `boxes`, `lung_mask`.
A report set is a `reports.jsonl`: `id`, `split`, `findings`, `impression`.
"""

import hashlib
import json
import multiprocessing
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from emrrg_core.errors import DataError, FilmError
from emrrg_core.films.film import MEAN, STD, model_input, read_film
from emrrg_core.films.views import stitch
from emrrg_core.text.labeler import (
    LABELS,
    NO_FINDING,
    Status,
    is_abnormal,
    labels,
    prior_words,
    read_findings,
    sentences,
)


@dataclass(frozen=True)
class Study:
    """One study: its film files and what is known of them."""

    id: str
    source: str
    split: str
    patient: str
    files: tuple[Path, ...]
    labels: dict[str, int]
    view: str | None
    findings: str
    impression: str
    lung_mask: Path | None = None  # of the first film, of its size
    boxes: tuple[
        tuple[str, tuple[float, float, float, float]], ...
    ] = ()  # label and (x, y, width, height) in pixels of the first film
    note: str = ""  # sentences of a clinical note that speak of the film

    @property
    def abnormal(self) -> bool | None:
        """Whether the study shows any finding; None when that is not known."""
        if self.labels.get(NO_FINDING) == 1:
            return False
        if any(value == 1 for name, value in self.labels.items() if name not in (NO_FINDING, "Support Devices")):
            return True
        return None if self.labels.get(NO_FINDING) is None else True


@dataclass(frozen=True)
class ReportText:
    """A report without its film: cleaned sentences, abnormal ones first, and the labels that our own reader finds in it."""

    id: str
    findings: str
    impression: str
    labels: dict[str, int]  # 1 stated (also when uncertain), 0 not stated or denied
    abnormal: bool  # also by what lies outside the 14 labels


def _rows(path: Path, split: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"{path.name}, line {number}: not JSON ({error}).") from error
                if not isinstance(row, dict):
                    raise DataError(
                        f"{path.name}, line {number}: a study is an object with names, not {type(row).__name__}."
                    )
                if split is None or row.get("split") == split:
                    yield number, row
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 text: {error}.") from error


def read_studies(path: Path | str, split: str | None = None) -> list[Study]:
    """The studies of a film set, one split or all. Raises DataError naming the line and study that cannot be used."""
    path = Path(path)
    studies = []
    for number, row in _rows(path, split):
        name = row.get("id", "?")
        try:
            files = tuple(path.parent / file for file in row["files"])
            if not files or not row["id"]:
                raise ValueError("it has no files or no id")
            known = {label: int(value) for label, value in row["labels"].items() if value is not None}
            if bad := sorted(known.keys() - set(LABELS)):
                raise ValueError(f"unknown labels {bad}")
            studies.append(
                Study(
                    id=row["id"],
                    source=row["source"],
                    split=row["split"],
                    patient=row.get("patient") or row["id"],
                    files=files,
                    labels=known,
                    view=row.get("view"),
                    findings=row.get("findings") or "",
                    impression=row.get("impression") or "",
                    lung_mask=path.parent / row["lung_mask"] if row.get("lung_mask") else None,
                    boxes=tuple((str(box["label"]), _box(box["xywh"])) for box in row.get("boxes") or ()),
                    note=str(row.get("note") or ""),
                )
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path.name}, line {number}, study {name}: {error}.") from error
    if missing := [s.id for s in studies if not all(f.is_file() for f in (*s.files, s.lung_mask or path))]:
        raise DataError(
            f"{path.name}: {len(missing)} studies have films or masks that are not there, the first is {missing[0]}."
        )
    return studies


def _box(values: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, width, height = (float(value) for value in values)
    if width <= 0 or height <= 0:
        raise ValueError(f"a box of {width} × {height} pixels")
    return x, y, width, height


def development(studies: Sequence[Study]) -> tuple[list[Study], list[Study]]:
    """A training split in what is learned from and what is kept for decisions: every tenth patient, in the order of a hash of their names."""
    patients = sorted({s.patient for s in studies}, key=lambda name: hashlib.sha256(name.encode()).digest())
    held = set(patients[::10])
    return [s for s in studies if s.patient not in held], [s for s in studies if s.patient in held]


# Words that a draft from one film must not learn: de-identification marks, priors, other views, people.
_UNWANTED = re.compile(
    r"XXXX|_{2,}|\b(?:prior|previous(?:ly)?|compar\w+|interval(?!ly)|unchanged|stable|again|since|new(?:ly)?|"
    r"persist\w+|resol\w+|improv\w+|wors\w+|lateral (?:view|projection|film)|on the lateral|follow-?\s?up|recommend\w*|"
    r"clinical\w*|history|patient\w*|discussed|dictat\w+|CT|telephone|Dr|remov\w+|no change|developed|no longer|"
    r"notif\w+|critical result|coronal|sagittal|reconstruct\w*|images?|radiographs?|exam(?:ination)?|now|study)\b",
    re.IGNORECASE,
)
_LIST_NUMBER = re.compile(r"^\s*\d+\s*[.)]\s*")


def clean_sentences(text: str) -> list[str]:
    """The sentences of a report section that can be learned from one film, as written, without list numbers."""
    kept = []
    for start, end in sentences(re.sub(r"\s+", " ", text)):
        sentence = _LIST_NUMBER.sub("", re.sub(r"\s+", " ", text)[start:end]).strip()
        if len(sentence.split()) >= 2 and not _UNWANTED.search(sentence) and not prior_words(sentence):
            kept.append(sentence[0].upper() + sentence[1:].rstrip(" .;,") + ".")
    return kept


def abnormal_first(kept: Sequence[str]) -> list[str]:
    """Sentences that state an abnormality before those that do not, otherwise in their order: the first words must come from the film."""
    return sorted(kept, key=lambda sentence: not is_abnormal(sentence))


def read_reports(path: Path | str, split: str) -> list[ReportText]:
    """The report texts of one split, cleaned; those from which nothing is left are left out. Raises DataError."""
    reports = []
    for number, row in _rows(Path(path), split):
        try:
            raw = f"{row['findings']} {row['impression']}"
            findings = abnormal_first(clean_sentences(row["findings"]))
            impression = abnormal_first(clean_sentences(row["impression"]))
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}, report {row.get('id', '?')}: {error}.") from error
        if not findings or not impression:
            continue
        text = " ".join([*findings, *impression])
        if is_abnormal(raw) != is_abnormal(text):
            continue  # cleaning took the finding away: the rest would call the film normal
        found = {name: int(status in (Status.POSITIVE, Status.UNCERTAIN)) for name, status in labels(text).items()}
        reports.append(ReportText(row["id"], " ".join(findings), " ".join(impression), found, is_abnormal(text)))
    return reports


SIGHTS = ("Lung Opacity", "Consolidation", "Pneumonia")  # what a film cannot tell apart counts as the same sight


@cache
def _states(sentence: str) -> tuple[frozenset[str], frozenset[str], bool]:
    """Labels that a sentence affirms or suspects, those that it denies, and whether it states anything abnormal."""
    mentions = read_findings(sentence)
    affirmed = frozenset(m.label for m in mentions if m.status is not Status.NEGATIVE)
    return affirmed, frozenset(m.label for m in mentions if m.status is Status.NEGATIVE), is_abnormal(sentence)


class Matcher:
    """Pairs a film that has labels but no report with report texts whose findings agree.

    These pairs are not true reports: they state what the labels say, in words, places and sides that belong to somebody else.
    """

    def __init__(self, reports: Sequence[ReportText]) -> None:
        self._reports = list(reports)
        self._made: dict[tuple, list[tuple[str, str]]] = {}

    def texts(self, study: Study) -> list[tuple[str, str]]:
        """(findings, impression) texts for a film; empty when its labels say too little.

        A normal film takes reports without any abnormality. An abnormal one takes reports that state one of its positive labels, without
        their sentences that state anything else abnormal or deny what the film has; those that agree on most labels only.
        """
        key = tuple(sorted(study.labels.items()))
        if key not in self._made:
            self._made[key] = self._normal() if study.abnormal is False else self._abnormal(study)
        return self._made[key]

    def _normal(self) -> list[tuple[str, str]]:
        return [(r.findings, r.impression) for r in self._reports if not r.abnormal]

    def _abnormal(self, study: Study) -> list[tuple[str, str]]:
        positive = {
            name for name, value in study.labels.items() if value and name not in (NO_FINDING, "Support Devices")
        }
        wanted = positive | set(SIGHTS) if positive & set(SIGHTS) else positive
        scored = []
        for report in self._reports:
            if not any(report.labels[name] for name in wanted):
                continue
            sections = [
                " ".join(s for s in (text[i:j] for i, j in sentences(text)) if self._fits(s, wanted))
                for text in (report.findings, report.impression)
            ]
            if all(sections) and all(_states(text)[2] for text in sections):
                stated = _states(" ".join(sections))[0]
                others = positive - set(SIGHTS)
                scored.append((len(others & stated) - 0.5 * len(stated - wanted), sections[0], sections[1]))
        if not scored:
            return []
        least = sorted((score for score, *_ in scored), reverse=True)[min(30, len(scored) - 1)]
        return [(findings, impression) for score, findings, impression in scored if score >= least]

    @staticmethod
    def _fits(sentence: str, wanted: set[str]) -> bool:
        affirmed, denied, abnormal = _states(sentence)
        return not denied & wanted and (not abnormal or bool(affirmed & wanted))


_Row = tuple[str, tuple[Path, ...]]  # a study's id, and the files that are one film


class FilmCache:
    """Films of a set, decoded and resized once to 8-bit squares in files on disk, shared by all runs.

    One file holds the first film of every study, and another, where studies have more, all the rest: (n, size, size) uint8 each, written
    film by film, so that memory does not grow with the set. Until it is whole it has another name: an interrupted build leaves nothing that
    could be taken for a cache, and of two processes that build the same one, the later replaces equal by equal.

    together: films of a study at most that lie side by side on one canvas (emrrg_core.films.views), which then is its only film; 1: each is its own.
    workers: processes that decode; 0 means this one. They import the main module anew, so a script needs its `if __name__ == "__main__":`.
    Raises DataError naming the study whose film cannot be read (`films.read_film` caps its bytes and pixels), or when the disk is full.
    """

    def __init__(
        self, studies: Sequence[Study], folder: Path | str, size: int = 224, *, workers: int = 0, together: int = 1
    ) -> None:
        self.size = size
        self._at = {study.id: i for i, study in enumerate(studies)}
        if len(self._at) != len(studies):
            raise DataError(f"Of {len(studies)} studies only {len(self._at)} have an id of their own.")
        first: list[_Row] = [(s.id, tuple(file.absolute() for file in s.files[:together])) for s in studies]
        self._films = self._open(folder, "films", first, workers)
        more: list[_Row] = [(s.id, (file.absolute(),)) for s in studies for file in s.files[1:] if together == 1]
        self._more = self._open(folder, "views", more, workers)
        self._rows: dict[str, list[int]] = {}  # a study's films in the second file
        for row, (name, _) in enumerate(more):
            self._rows.setdefault(name, []).append(row)

    def _open(self, folder: Path | str, kind: str, films: list[_Row], workers: int) -> np.ndarray:
        if not films:
            return np.zeros((0, self.size, self.size), np.uint8)
        stamps: list[list[str | int]] = []
        for name, files in films:
            stamp: list[str | int] = [name]
            stamps.append(stamp)
            for file in files:
                try:
                    stamp += [(stat := file.stat()).st_size, stat.st_mtime_ns]
                except OSError as error:
                    raise DataError(f"study {name}: its film {file.name} cannot be read: {error.strerror}.") from error
        key = hashlib.sha256(json.dumps([self.size, stamps]).encode()).hexdigest()[:16]
        path = Path(folder) / f"{kind}-{self.size}-{key}.npy"
        if not path.exists():
            try:
                self._build(path, films, workers)
            except OSError as error:
                raise DataError(f"The film cache {path} cannot be written: {error.strerror or error}.") from error
            except BrokenProcessPool as error:
                raise DataError("A process that decoded films was ended, for want of memory perhaps: try fewer workers.") from error  # fmt: skip
        return np.load(path, mmap_mode="r")

    def _build(self, path: Path, films: list[_Row], workers: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        area, many = self.size * self.size, 32  # a task: enough films that handing it over costs nothing beside them
        if (free := shutil.disk_usage(path.parent).free) < len(films) * area:
            raise DataError(f"The film cache {path} needs {len(films) * area:,} bytes, and the disk has {free:,} left.")
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(films), self.size, self.size)}
            np.lib.format.write_array_header_1_0(part, header)
            begin = part.tell()
        starts = range(0, len(films), many)
        tasks = ((part.name, begin + i * area, films[i : i + many], self.size) for i in starts)
        try:
            if workers:
                # not by fork: this process has torch's threads, and a child would inherit the locks that they hold
                method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
                context = multiprocessing.get_context(method)
                context.set_forkserver_preload([__name__])  # imported once instead of in every worker
                with ProcessPoolExecutor(workers, context) as pool:
                    for _ in pool.map(self._fill, *zip(*tasks, strict=True)):
                        pass
            else:
                for task in tasks:
                    self._fill(*task)
            os.replace(part.name, path)
        except BaseException:  # an interruption too
            os.unlink(part.name)
            raise

    @staticmethod
    def _fill(part: str, begin: int, films: list[_Row], size: int) -> None:
        with open(part, "r+b") as file:
            file.seek(begin)
            for name, (film, *others) in films:
                decoded = (
                    FilmCache._canvas(name, [film, *others], size) if others else FilmCache._decode(name, film, size)
                )
                file.write(decoded.tobytes())

    @staticmethod
    def _decode(name: str, file: Path, size: int) -> np.ndarray:
        try:
            return eight_bits(model_input(read_film(file), size))
        except FilmError as error:
            raise DataError(f"study {name}: {error}") from error

    @staticmethod
    def _canvas(name: str, files: Sequence[Path], size: int) -> np.ndarray:
        """As a draft of stitched films sees them: side by side as they are, then squashed to a square."""
        try:
            films = [read_film(file) for file in files]
        except FilmError as error:
            raise DataError(f"study {name}: {error}") from error
        whole = stitch([film.pixels for film in films], [film.view for film in films])
        return eight_bits(model_input(whole.pixels, size))

    def __getitem__(self, study: Study) -> np.ndarray:
        """(size, size) uint8: the first film, or the canvas of all."""
        return self._films[self._at[study.id]]

    def views(self, study: Study) -> np.ndarray:
        """(views, size, size) uint8: every film, in the order of the study's files, or the canvas of all."""
        return np.concatenate([self[study][None], self._more[self._rows.get(study.id, [])]])


def normalise(grey: np.ndarray) -> np.ndarray:
    """(…, size, size) in [0, 255] to (…, 3, size, size) float32, ImageNet-normalised, as `films.model_input` does."""
    scaled = grey.astype(np.float32)[..., None, :, :] / 255
    return (scaled - MEAN[:, None, None]) / STD[:, None, None]


def eight_bits(image: np.ndarray) -> np.ndarray:
    """What `films.model_input` made of a film, (3, size, size), as grey values 0 to 255, (size, size) uint8: the inverse of `normalise`, rounded."""
    return np.round((image[0] * STD[0] + MEAN[0]) * 255).astype(np.uint8)


def augment(
    grey: np.ndarray, rng: np.random.Generator, planes: Sequence[np.ndarray] = ()
) -> tuple[np.ndarray, list[np.ndarray]]:
    """A film as another technician might have taken it: slightly turned, scaled, shifted, exposed. Never mirrored: sides matter.

    grey: (size, size) in [0, 255]; returns it as float32, and `planes` (masks of the same size) turned, scaled and shifted with it.
    """
    size = grey.shape[0]
    angle, scale = rng.uniform(-8, 8), rng.uniform(0.88, 1.15)
    matrix = cv2.getRotationMatrix2D((size / 2, size / 2), angle, scale)
    matrix[0, 0] *= (stretch := rng.uniform(0.92, 1.08))
    matrix[0, 1] *= stretch
    matrix[:, 2] += rng.uniform(-0.06, 0.06, 2) * size
    turned = cv2.warpAffine(np.ascontiguousarray(grey), matrix, (size, size), flags=cv2.INTER_LINEAR).astype(np.float32)
    moved = [cv2.warpAffine(np.asarray(p, np.float32), matrix, (size, size), flags=cv2.INTER_LINEAR) for p in planes]
    gamma, gain, shift = rng.uniform(0.75, 1.3), rng.uniform(0.85, 1.15), rng.uniform(-18, 18)
    exposed = 255 * (turned / 255) ** gamma * gain + shift
    return np.clip(exposed + rng.normal(0, rng.uniform(0, 5), turned.shape), 0, 255).astype(np.float32), moved


def lung_mask(study: Study, size: int = 224) -> np.ndarray:
    """A study's lung mask as the tower sees its film, (size, size) bool. Raises DataError when it cannot be read."""
    mask = cv2.imread(str(study.lung_mask), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise DataError(f"study {study.id}: its lung mask cannot be read.")
    return cv2.resize((mask > 0).astype(np.float32), (size, size), interpolation=cv2.INTER_AREA) >= 0.5
