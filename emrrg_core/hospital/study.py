"""Files of a study → the films that can be read → the files that are stored beside them.

The UIDs of what is stored are drawn from the study, its films and the checkpoint, so that the same films under the same
checkpoint give the same objects: an archive can be asked whether it has them, and to store them again changes nothing.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from emrrg_core.config import MOST_FILMS
from emrrg_core.errors import EmrrgError, FilmError
from emrrg_core.export import KeyImage, version
from emrrg_core.export.dicom import document_uid, identified, referable
from emrrg_core.export.dicom_capture import picture, to_dicom_capture
from emrrg_core.export.dicom_pdf import to_dicom_pdf
from emrrg_core.export.dicom_sr import to_dicom_sr
from emrrg_core.films.burned_in_text import burned_in_warning
from emrrg_core.films.film import Film, header_value, quiet_decoders, read_film
from emrrg_core.report.draft import Draft
from emrrg_core.report.report import Report
from emrrg_core.reporter import Reporter

FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"
# PS3.4 B.5: Computed Radiography, Digital X-Ray for presentation and for processing. No secondary captures: ours are such
FILM_CLASSES = ("1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1", FOR_PROCESSING)


@dataclass(frozen=True, eq=False)
class Study:
    """The films of a study that can be read, in the order of their series and instance numbers.

    files     whose they are, in the same order
    uid       Study Instance UID
    sops      SOP Instance UIDs, in the same order
    left_out  why each of the others is not among them; no word of a header
    """

    films: tuple[Film, ...]
    files: tuple[Path, ...]
    uid: str
    sops: tuple[str, ...]
    left_out: tuple[str, ...]

    def key(self, names: Mapping[str, str]) -> str:
        """Stands for these films under this checkpoint (`Reporter.names`): a SHA-256, in hex."""
        weights = sorted((name, value) for name, value in names.items() if name.endswith("sha256"))
        films = sorted(zip(self.sops, (film.sha256 for film in self.films), strict=True))
        return hashlib.sha256(json.dumps([version(), weights, self.uid, films]).encode()).hexdigest()


def read_study(paths: Collection[Path], reporter: Reporter) -> Study:
    """The chest films among files of one study. Raises FilmError where there is none, or more than MOST_FILMS."""
    heads = {path: head for path in paths if (head := _head(path)) is not None}
    finished = any(header_value(head, "SOPClassUID") in FILM_CLASSES[:2] for head in heads.values())
    films: list[Film] = []
    files: list[Path] = []
    left_out = ["This file cannot be read as a DICOM film."] * (len(paths) - len(heads))
    for path in sorted(heads, key=lambda path: _order(heads[path])):
        sop_class = header_value(heads[path], "SOPClassUID")
        if sop_class not in FILM_CLASSES:
            left_out.append("This is no CR or DX film.")
        elif sop_class == FOR_PROCESSING and finished:
            left_out.append("Raw detector values: the study has the same for presentation.")
        else:
            try:
                film = reporter.check(read_film(path, name=f"Film {len(films) + 1}"))
            except FilmError as error:
                left_out.append(str(error))
                continue
            if film.sha256 in {other.sha256 for other in films}:
                left_out.append("The same film twice.")
                continue
            films.append(film)
            files.append(path)
    if not films:
        raise FilmError("No chest film that can be read" + (f": {left_out[0]}" if left_out else "."))
    if len(films) > MOST_FILMS:
        raise FilmError(f"{len(films)} chest films in one study: at most {MOST_FILMS} are drafted from.")
    uids = {str(heads[path].StudyInstanceUID) for path in files}
    if len(uids) > 1:
        raise FilmError("These films are of different studies.")
    sops = tuple(str(heads[path].SOPInstanceUID) for path in files)
    return Study(tuple(films), tuple(files), uids.pop(), sops, tuple(left_out))


def _head(path: Path) -> Dataset | None:
    """A file's header; None of one without its UIDs, to which nothing can refer."""
    try:
        with quiet_decoders():
            head = pydicom.dcmread(path, stop_before_pixels=True)
            return head if referable(head) else None
    except Exception:  # a damaged file may fail in as many ways as there are files
        return None


def _order(head: Dataset) -> tuple[int, int, str]:
    def number(keyword: str) -> int:
        try:
            return int(header_value(head, keyword) or 0)
        except (TypeError, ValueError):
            return 0

    return number("SeriesNumber"), number("InstanceNumber"), str(head.SOPInstanceUID)


# ------------------------------------------------------------------------------------------------------ what is stored


@dataclass(frozen=True, eq=False)
class Drafted:
    """What the stored files are made from. burned_in: whether the films show who the patient is; None: nobody knows."""

    study: Study
    draft: Draft
    report: Report
    at: datetime
    burned_in: bool | None


def _pdf(made: Drafted) -> bytes:
    """With every film as read, and on it the map of the first sentence."""
    from emrrg_core.export.pdf import to_pdf  # its library takes a second

    sentence = 0 if made.draft.sentences else None
    shown = [np.round(film.pixels * 255).astype(np.uint8) for film in made.study.films]
    images = [KeyImage(number, pixels, sentence) for number, pixels in enumerate(shown)]
    pages = to_pdf(made.report, made.draft, images=images, created=made.at)
    return to_dicom_pdf(pages, made.report, made.draft, made.study.files, at=made.at, burned_in=made.burned_in)


def _findings(made: Drafted) -> bytes:
    from emrrg_core.export.dicom_tid1500 import to_dicom_measurements  # so does its one

    return to_dicom_measurements(made.report, made.draft, made.study.files, at=made.at)


def _capture(made: Drafted) -> bytes:
    """The map of the whole draft over the first film that was read."""
    number = next((n for n, film in enumerate(made.draft.films) if film.read), 0)
    shown = picture(made.study.films[number], made.draft, number, None)
    return to_dicom_capture(
        shown, made.draft, made.study.files, film=number, sentence=None, at=made.at, burned_in=made.burned_in
    )


# One row, one file in the study; each function gives a DICOM file that says of itself that nobody has reviewed it. One that raises
# EmrrgError has nothing to say of this draft, and is left out.
STORED: dict[str, Callable[[Drafted], bytes]] = {
    "sr": lambda made: to_dicom_sr(made.report, made.draft, made.study.files, at=made.at),
    "pdf": _pdf,
    "capture": _capture,
    "findings": _findings,
}


def stored_uids(key: str) -> dict[str, str]:
    """The SOP Instance UIDs of what is stored, by its kind. key: `Study.key`."""
    return {kind: document_uid(key, kind) for kind in STORED}


def draft_study(study: Study, reporter: Reporter, at: datetime) -> dict[str, bytes]:
    """What is stored for a study, by its kind: DICOM files in the same study. Raises FilmError as `Reporter.draft` and `origin` do."""
    draft = reporter.draft(study.films)
    unmarked = all(film.annotated is False for film in study.films)
    burned_in = True if any(map(burned_in_warning, study.films)) else False if unmarked else None
    made = Drafted(study, draft, Report.of(draft), at, burned_in)
    key, files = study.key(reporter.names), {}
    for kind, make in STORED.items():
        try:
            files[kind] = identified(make(made), key, kind)
        except FilmError:
            raise
        except EmrrgError:
            continue
    return files


def study_name(number: int, uid: str) -> str:
    """What a log calls a study: its running number and 32 bits of a hash of its UID."""
    return f"Study {number} ({short_hash(uid)})"


def short_hash(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()[:8]


def in_words(reasons: Sequence[str]) -> str:
    """Films left out, in a few words for the log."""
    return "; ".join(" ".join(reason.split()) for reason in dict.fromkeys(reasons))
