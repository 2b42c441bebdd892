"""Exports: the menu of files that a report can be taken away as, and what goes into each.

A file is made in memory and saved by the browser; it never lies on the server's disk.
"""

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from ui.session_state import SessionState, core

if TYPE_CHECKING:
    from emrrg_core import Draft, Film
    from emrrg_core.export import KeyImage
    from emrrg_core.export.dicom_sr import Reader

_JSON, _DICOM = "application/json", "application/dicom"
_WORD = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"


@dataclass(frozen=True)
class Kind:
    """A row of the menu."""

    name: str
    label: str
    note: str
    file: str
    type: str
    refers: bool = False  # to the films' own files, which this tab has to hold where they are DICOM
    shows: bool = False  # nothing without a film


KINDS = (
    Kind("text", "Text", "to paste", "emrrg-report.txt", "text/plain;charset=utf-8"),
    Kind("pdf", "PDF", "with the key image and its map", "emrrg-report.pdf", "application/pdf"),
    Kind("docx", "Word (DOCX)", "the same, to go on with", "emrrg-report.docx", _WORD),
    Kind("json", "JSON", "with the draft, every edit and what it was made by", "emrrg-report.json", _JSON),
    Kind("fhir-r5", "FHIR R5", "DiagnosticReport with the PDF", "emrrg-report-fhir-r5.json", _JSON),
    Kind("fhir-r4", "FHIR R4", "the same for R4 servers", "emrrg-report-fhir-r4.json", _JSON),
    Kind("sr", "DICOM structured report", "Basic Text SR", "emrrg-report-sr.dcm", _DICOM, refers=True),
    Kind(
        "findings-sr", "DICOM findings", "coded, with contours (TID 1500)", "emrrg-findings-sr.dcm", _DICOM, refers=True
    ),
    Kind("dicom-pdf", "DICOM encapsulated PDF", "the PDF for the archive", "emrrg-report-pdf.dcm", _DICOM, refers=True),
    Kind(
        "capture", "DICOM heat map", "the map of the selected sentence on its film", "emrrg-map.dcm", _DICOM, True, True
    ),
)


def menu(state: SessionState) -> str:
    """The menu as HTML; what cannot be made yet says why."""
    if state.report is None or not any(state.texts):
        return '<p class="rr-none">Nothing to export yet: draft a report, or write one.</p>'
    rows = []
    for kind in KINDS:
        reason = unavailable_reason(kind, state)
        rows.append(
            f'<li><button type="button" data-action="export" data-event="save" data-kind="{kind.name}" {"disabled" if reason else ""}>'
            f"{kind.label}</button> <span>{html.escape(reason or kind.note)}</span></li>"
        )
    case = '<button type="button" data-action="make-case">Teaching case</button> <span>films and words for Teach, to be looked over first</span>'
    return f'{_caution(state)}<ul class="rr-exports">{"".join(rows)}<li>{case}</li></ul>'


def _caution(state: SessionState) -> str:
    report = state.report
    said = []
    if report and report.signed is None:
        standing = "“DRAFT, NOT REVIEWED”" if report.unreviewed else "“PRELIMINARY, NOT SIGNED OFF”"
        said.append(f"Every export says {standing} until the report is signed off.")
    if state.draft and state.missing:
        said.append("Without the films there are no key images in PDF and Word.")
    elif state.draft:
        said.append("Pictures show each film as read, not as windowed on the screen.")
    burned = "".join(f'<div class="rr-say rr-warn" role="alert">{html.escape(words)}</div>' for words in state.burned)
    return burned + (f'<p class="rr-hint">{" ".join(said)}</p>' if said else "")


def unavailable_reason(kind: Kind, state: SessionState) -> str:
    """Why an export cannot be made now; empty where it can."""
    if kind.name == "text":
        return ""
    draft = state.draft
    if draft is None:
        return "needs a draft: this report has none"
    away = [draft.films[number].name for number in state.missing if draft.films[number].format == "DICOM"]
    if kind.refers and away:
        return f"drop {' and '.join(away)} again: it refers to the film’s own file"
    if kind.shows and not state.films:
        return "drop the film again: films are not stored"
    return ""


def make(name: str, state: SessionState, *, reader: "Reader | None" = None) -> str:
    """The file of that kind as a download for the browser (`pack`). Where it cannot be made, raises EmrrgError that says what to do."""
    kind = next((kind for kind in KINDS if kind.name == name), None)
    with state.lock:
        report, draft = state.report, state.draft
    if kind is None or report is None or not any(state.texts):
        raise core().EmrrgError("There is nothing to export yet: draft a report, or write one.")
    if reason := unavailable_reason(kind, state):
        raise core().EmrrgError(f"{kind.label}: {reason}.")
    if draft is None:
        return pack(kind, core().to_text(report, reader=reader))
    at = datetime.now().astimezone()
    files = [state.source(number) for number in range(len(draft.films))]

    def pdf() -> bytes:
        return core().to_pdf(report, draft, images=key_images(state, draft), created=at, reader=reader)

    def fhir(release: str) -> bytes:
        known = not any(draft.films[number].format == "DICOM" for number in state.missing)
        sources = core().origin(draft, files).images if known else []
        return core().diagnostic_report(
            report, draft, release=release, presented=pdf(), sources=sources, issued=report.signed, reader=reader
        )

    made = {
        "text": lambda: core().to_text(report, reader=reader),
        "pdf": pdf,
        "docx": lambda: core().to_docx(report, draft, images=key_images(state, draft), created=at, reader=reader),
        "json": lambda: core().to_json(report, draft, reader=reader),
        "fhir-r5": lambda: fhir("R5"),
        "fhir-r4": lambda: fhir("R4B"),
        "sr": lambda: core().to_dicom_sr(report, draft, files, at=at, reader=reader),
        "findings-sr": lambda: core().to_dicom_measurements(report, draft, files, at=at, reader=reader),
        "dicom-pdf": lambda: core().to_dicom_pdf(pdf(), report, draft, files, at=at, burned_in=burned(state)),
        "capture": lambda: capture(state, draft, files, at),
    }[kind.name]()
    return pack(kind, made)


def key_images(state: SessionState, draft: "Draft") -> "list[KeyImage]":
    """Every film that this tab holds, the first with the map of the selected sentence, or of the first one that has a map."""
    sentence = state.picked.sentence if state.picked else None
    if sentence is None and draft.sentences:
        sentence = 0
    images = []
    for number in range(len(draft.films)):
        if film := state.film(number):
            shown = np.round(film.pixels * 255).astype(np.uint8)
            images.append(core().KeyImage(number, marked(state, film, shown), sentence))
    return images


def marked(state: SessionState, film: "Film", picture: np.ndarray) -> np.ndarray:
    """A picture of a film, (height, width) or (height, width, 3) uint8, with what the reader measured or pointed at on it."""
    marks = state.marks.get(film.sha256, ())
    if not marks:
        return picture
    colour = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
    drawn: np.ndarray = core().draw_marks(colour, marks, film.pixels.shape, film.spacing, film.view)
    return drawn


def capture(state: SessionState, draft: "Draft", files: "Sequence[bytes | None]", at: datetime) -> bytes:
    """The heat map of the selected sentence, or of the whole draft, over the first film that this tab holds."""
    sentence = state.picked.sentence if state.picked else None
    number = state.places[0]
    film = state.film(number)
    if film is None:
        raise core().EmrrgError("Drop the film again: films are not stored.")
    picture = marked(state, film, core().picture(film, draft, number, sentence))
    return core().to_dicom_capture(
        picture, draft, files, film=number, sentence=sentence, at=at, burned_in=burned(state)
    )


def burned(state: SessionState) -> bool | None:
    """Whether the films show who the patient is. None where that is not known: finding no text does not prove that there is none."""
    if state.burned:
        return True
    return False if state.films and all(film.annotated is False for film in state.films) else None


def pack(kind: Kind, data: bytes) -> str:
    """A file for the browser to save."""
    return json.dumps({"name": kind.file, "type": kind.type, "body": base64.b64encode(data).decode()})


def reader_of(name: str | None, organization: str | None) -> Any:
    """The reader who is named in a signed structured report; None where nobody is named. Raises EmrrgError for half a name.

    A text box that was never unfolded gives None.
    """
    name, organization = (name or "").strip(), (organization or "").strip()
    if not (name or organization):
        return None
    try:
        return core().Reader(name, organization)
    except ValueError as error:
        raise core().EmrrgError("To verify the structured report, give both name and organization.") from error
