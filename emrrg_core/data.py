"""Studies and report texts from JSON Lines, and the films decoded once for training.

A film set is a `films.jsonl`: one study a line with `id`, `source`, `split`, `files`, `labels` (CheXpert's names → 1 or 0; a name that is missing
is unknown, never negative), and optionally `patient`, `view`, `findings`, `impression`, `note`, `boxes`, `lung_mask`.
A report set is a `reports.jsonl`: `id`, `split`, `findings`, `impression`.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from emrrg_core.errors import DataError, FilmError
from emrrg_core.films import model_input, read_film
from emrrg_core.findings import LABELS, Status, is_abnormal, labels, read_findings, sentences

NO_FINDING = "No Finding"
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet's, as in METHOD §6
_STD = np.array([0.229, 0.224, 0.225], np.float32)


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
                )
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path.name}, line {number}, study {name}: {error}.") from error
    if missing := [s.id for s in studies if not all(f.is_file() for f in s.files)]:
        raise DataError(
            f"{path.name}: {len(missing)} studies have films that are not there, the first is {missing[0]}."
        )
    return studies


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
        if len(sentence.split()) >= 2 and not _UNWANTED.search(sentence):
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


_PLACES = {  # what a normal sentence speaks of, and the labels that forbid it beside a finding
    "heart": (re.compile(r"\b(?:heart|cardi\w+|mediastin\w+)", re.I), {"Cardiomegaly", "Enlarged Cardiomediastinum"}),
    "lungs": (re.compile(r"\blungs?\b", re.I), {*SIGHTS, "Lung Lesion", "Edema", "Atelectasis"}),
    "pleura": (
        re.compile(r"\b(?:effusions?|pneumothora\w+)\b", re.I),
        {"Pleural Effusion", "Pneumothorax", "Pleural Other"},
    ),
    "bones": (re.compile(r"\b(?:bon\w+|osseous|skelet\w+|spine)\b", re.I), {"Fracture"}),
}
_ORDERS = (("heart", "lungs", "pleura", "bones"), ("lungs", "heart", "pleura", "bones"), ("pleura", "heart", "lungs", "bones"),
           ("lungs", "pleura", "bones", "heart"))  # fmt: skip


class Wording:
    """Chooses among equivalent normal sentences by how a film looks, so that every sentence has to come from the film.

    Report texts that are drawn at random teach a model that the film does not matter for its words, and its drafts become one draft. Here a
    film's code (CODE_BITS booleans from its appearance) picks the order of the sentences and one of four common wordings for each place. The
    choice means nothing medically.
    """

    CODE_BITS = 2 * (len(_PLACES) + 2)  # four wordings a place, four impressions, four orders

    def __init__(self, reports: Sequence[ReportText]) -> None:
        counts: dict[str, dict[str, int]] = {place: {} for place in (*_PLACES, "impression")}
        for report in reports:
            if report.abnormal:
                continue
            for sentence in (report.findings[i:j] for i, j in sentences(report.findings)):
                places = [place for place, (pattern, _) in _PLACES.items() if pattern.search(sentence)]
                if len(places) == 1 and _states(sentence)[1] <= _PLACES[places[0]][1]:
                    counts[places[0]][sentence] = counts[places[0]].get(sentence, 0) + 1
            counts["impression"][report.impression] = counts["impression"].get(report.impression, 0) + 1
        self._wordings = {
            place: sorted(found, key=lambda sentence: (-found[sentence], sentence))[:4]
            for place, found in counts.items()
        }
        if short := [place for place, found in self._wordings.items() if len(found) < 4]:
            raise DataError(f"The report texts have fewer than four normal wordings for {short}.")

    def normal(self, code: Sequence[bool]) -> tuple[str, str]:
        """Findings and impression of a normal film with this code."""
        return self._sentences(code, frozenset()), self._wordings["impression"][self._pick(code, 5)]

    def abnormal(
        self, findings: str, impression: str, code: Sequence[bool], positive: frozenset[str]
    ) -> tuple[str, str]:
        """The abnormal sentences of a matched text, followed by normal ones of places that `positive` leaves free."""
        stated = " ".join(s for s in (findings[i:j] for i, j in sentences(findings)) if _states(s)[2])
        return f"{stated} {self._sentences(code, positive | _states(stated)[0])}".strip(), impression

    def _sentences(self, code: Sequence[bool], positive: frozenset[str]) -> str:
        chosen = []
        for place in _ORDERS[self._pick(code, 4)]:
            if not _PLACES[place][1] & positive:
                chosen.append(self._wordings[place][self._pick(code, list(_PLACES).index(place))])
        return " ".join(chosen)

    @staticmethod
    def _pick(code: Sequence[bool], which: int) -> int:
        return 2 * int(code[2 * which]) + int(code[2 * which + 1])


def codes(features: np.ndarray, bits: int = Wording.CODE_BITS) -> np.ndarray:
    """Appearance codes (n, bits) of films from their features (n, d): each leading principal component, split at its median."""
    centred = (features - features.mean(0)).astype(np.float64)
    _, _, components = np.linalg.svd(centred, full_matrices=False)
    scores = centred @ components[:bits].T
    return scores > np.median(scores, axis=0)


class FilmCache:
    """Films of a set, decoded and resized once to 8-bit squares in one file on disk, shared by all runs.

    Raises DataError naming the study whose film cannot be read.
    """

    def __init__(self, studies: Sequence[Study], folder: Path | str, size: int = 224) -> None:
        self.size = size
        self._at = {study.id: i for i, study in enumerate(studies)}
        stamps = [[s.id, (stat := s.files[0].stat()).st_size, stat.st_mtime_ns] for s in studies]
        key = hashlib.sha256(json.dumps([size, stamps]).encode()).hexdigest()[:16]
        path = Path(folder) / f"films-{size}-{key}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            array = np.stack([self._decode(study) for study in studies])
            with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npy", delete=False) as file:
                np.save(file, array)
            os.replace(file.name, path)
        self._films = np.load(path, mmap_mode="r")

    def _decode(self, study: Study) -> np.ndarray:
        try:
            film = model_input(read_film(study.files[0]), self.size)
        except FilmError as error:
            raise DataError(f"study {study.id}: {error}") from error
        grey = film.transpose(1, 2, 0) * _STD + _MEAN
        return np.round(grey[..., 0] * 255).astype(np.uint8)

    def __getitem__(self, study: Study) -> np.ndarray:
        """(size, size) uint8."""
        return self._films[self._at[study.id]]


def normalise(grey: np.ndarray) -> np.ndarray:
    """(…, size, size) in [0, 255] to (…, 3, size, size) float32, ImageNet-normalised, as `films.model_input` does."""
    scaled = grey.astype(np.float32)[..., None, :, :] / 255
    return (scaled - _MEAN[:, None, None]) / _STD[:, None, None]


def augment(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A film as another technician might have taken it: slightly turned, scaled, shifted, exposed. Never mirrored: sides matter.

    grey: (size, size) uint8; returns float32 in [0, 255].
    """
    size = grey.shape[0]
    angle, scale = rng.uniform(-8, 8), rng.uniform(0.88, 1.15)
    matrix = cv2.getRotationMatrix2D((size / 2, size / 2), angle, scale)
    matrix[0, 0] *= (stretch := rng.uniform(0.92, 1.08))
    matrix[0, 1] *= stretch
    matrix[:, 2] += rng.uniform(-0.06, 0.06, 2) * size
    turned = cv2.warpAffine(np.ascontiguousarray(grey), matrix, (size, size), flags=cv2.INTER_LINEAR).astype(np.float32)
    gamma, gain, shift = rng.uniform(0.75, 1.3), rng.uniform(0.85, 1.15), rng.uniform(-18, 18)
    exposed = 255 * (turned / 255) ** gamma * gain + shift
    return np.clip(exposed + rng.normal(0, rng.uniform(0, 5), turned.shape), 0, 255).astype(np.float32)
