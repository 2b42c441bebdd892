"""Exports: what a reader made of a draft, as text, PDF, DOCX, JSON, FHIR or DICOM. One file each, one function each.

All are pure functions of a report, its draft and what the caller gives besides: they read no clock and no file of the
reader's, so the same input gives the same bytes. Nothing here imports the libraries that write these formats; each
file imports its own, when it is first asked for.

This file holds what they share: the mark of what nobody has reviewed, the notice, the header, the reader, the key image.

Who signed is kept on the reader's own computer and is no part of a report or a session: a caller hands it in as `reader`.
An export names it only where the report is signed.
"""

import re
import tomllib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from emrrg_core.explain.heat_map import lay_over, no_map, overlay, patch_weights
from emrrg_core.report.draft import DISCLAIMER, NOT_REVIEWED, Draft, FilmRecord
from emrrg_core.report.report import FIELDS, Choice, Report

UNSIGNED = "PRELIMINARY, NOT SIGNED OFF"  # every sentence was reviewed, or there is none
TITLE = "Chest X-ray report"
HEADINGS = {"findings": "Findings", "impression": "Impression"}
EMPTY = "(empty)"
STATUSES = {"preliminary": "Preliminary", "final": "Final"}

_SHOWN_SIDE = 1400  # pixels: sharp on half a page; the film itself stays where it is
_QUOTED = 160  # characters of a sentence in a caption: picture and caption must fit on a page, even as code points
_BEYOND = re.compile("[\ud800-\udfff\ufffe\uffff]")  # no XML and no FHIR string may hold these


# LOINC, by the number of films
STUDY_CODES = {1: ("36554-4", "XR Chest Single view"), 2: ("36643-5", "XR Chest 2 Views")}
ANY_STUDY = ("30745-4", "XR Chest Views")


@dataclass(frozen=True)
class Reader:
    """Who answers for a signed report. Raises ValueError without a name or an organization."""

    name: str  # as DICOM writes names: "Family^Given"
    organization: str

    def __post_init__(self) -> None:
        if not (self.name.strip("^= ") and self.organization.strip()) or "\\" in self.name + self.organization:
            raise ValueError("a reader who verifies a report needs a name and an organization")

    @property
    def parts(self) -> tuple[str, str, str, str, str]:
        """Family, given, middle, prefix, suffix: of the first way in which the name is written (PS3.5 6.2.1.2)."""
        written = next(group for group in self.name.split("=") if group.strip("^ "))
        family, given, middle, prefix, suffix, *_ = [*(clean(part) for part in written.split("^")), *[""] * 5]
        return family, given, middle, prefix, suffix

    @property
    def plain(self) -> str:
        """The name in plain words, as "Jana Roe"."""
        family, given, middle, prefix, suffix = self.parts
        words = " ".join(part for part in (prefix, given, middle, family) if part)
        return f"{words}, {suffix}" if suffix else words


@dataclass(frozen=True, eq=False)
class KeyImage:
    """A film to be shown beside the report.

    film      its number in draft.films
    pixels    (height, width) or (height, width, 3) uint8, the film as the reader saw it, on the film's own pixels
    sentence  number in draft.sentences whose map is laid over it; None: the film alone
    """

    film: int
    pixels: np.ndarray
    sentence: int | None = None


@dataclass(frozen=True)
class Figure:
    """A picture as a page shows it."""

    jpeg: bytes
    size: tuple[int, int]  # of the film: width, height in pixels
    width_mm: float | None  # of the film, by its spacing
    caption: str
    alt: str  # for who cannot see it


def banner(report: Report) -> str | None:
    """What must stand at the top, in sight: None once the report is signed."""
    if report.signed is not None:
        return None
    return NOT_REVIEWED if report.unreviewed else UNSIGNED


def notice(report: Report, reader: Reader | None = None) -> str:
    """What must stay with the text. reader: who signed."""
    if report.signed is None and report.unreviewed:
        return DISCLAIMER
    whose = f" by {reader.plain}" if reader else ""
    state = "Preliminary, not signed off." if report.signed is None else f"Signed off {report.signed}{whose}."
    return f"{state} Drafted with EMRRG: research and teaching software, not a medical device."


def header(report: Report, reader: Reader | None = None) -> list[tuple[str, str]]:
    """What a report is, as rows of a table: its status and, once it is signed, when and by whom."""
    rows = [("Status", STATUSES[report.status])]
    if report.signed is not None:
        rows.append(("Signed off", report.signed))
        rows += [("Reader", f"{reader.plain}, {clean(reader.organization)}")] if reader else []
    return rows


def preface(report: Report) -> list[tuple[str, str]]:
    """What stands before the Findings: heading and words of the fields that have any."""
    return [(name.capitalize(), words) for name in FIELDS if (words := clean(getattr(report.fields, name)))]


def passages(report: Report, section: str) -> list[tuple[str, bool]]:
    """The sentences of a section that are not deleted, each with whether it must carry the mark."""
    kept = [line for line in report.lines if line.section == section and line.choice is not Choice.DELETED]
    return [(clean(line.text), line.choice is Choice.UNREVIEWED and report.signed is None) for line in kept]


def clean(text: str) -> str:
    """Composed (NFC), in one line, without the control characters and half characters that no XML may hold."""
    kept = "".join(" " if unicodedata.category(c) == "Cc" else c for c in _BEYOND.sub("\ufffd", text))
    return " ".join(unicodedata.normalize("NFC", kept).split())


def facts_of_film(film: FilmRecord) -> list[tuple[str, str]]:
    """What a draft remembers of a film, as rows of a table."""
    spacing = "not known" if film.spacing is None else "{:g} × {:g} mm between rows, columns".format(*film.spacing)
    return [
        ("Format", film.format),
        ("Size", f"{film.width} × {film.height} pixels"),
        ("Spacing", spacing),
        ("View", film.view or "not known"),
        ("SHA-256 of the stored pixels", film.sha256),
        *((f"Step {number}", step) for number, step in enumerate(film.steps, 1)),
    ]


def facts_of_model(draft: Draft) -> list[tuple[str, str]]:
    """What wrote the draft and how, as rows of a table."""
    named = {
        "checkpoint": "Checkpoint",
        "checkpoint_sha256": "Its SHA-256",
        "settings_sha256": "SHA-256 of its settings",
        "language_model": "Language model",
        "language_model_sha256": "Its SHA-256",
    }
    rows = [(named[key], draft.model[key]) for key in named if key in draft.model]
    return [*rows, ("Decoding", ", ".join(f"{key} {value}" for key, value in draft.decoding.items()))]


def figures(report: Report, draft: Draft, image: KeyImage) -> Iterator[Figure]:
    """The film as displayed and, where a sentence is named and its gates were open, the map laid over it.

    Raises ValueError where the pixels are not those of the film.
    """
    film, pixels = draft.films[image.film], image.pixels
    if pixels.dtype != np.uint8 or pixels.shape not in ((film.height, film.width), (film.height, film.width, 3)):
        raise ValueError(f"a key image of {film.name} is uint8, {film.height} × {film.width}: got {pixels.shape}")
    shown = _reduced(pixels)
    width_mm = film.spacing[1] * film.width if film.spacing else None
    name = clean(film.name)
    scale = f" {width_mm:.0f} mm wide by the spacing in its file." if width_mm else " Its scale is not known."
    view = f", {film.view}" if film.view else ""
    words = f"{name}{view}, as displayed to the reader, reduced for the page."
    yield Figure(_jpeg(shown), (film.width, film.height), width_mm, words + scale, f"Chest X-ray: {words}")
    if image.sentence is None:
        return
    sentence = draft.sentences[image.sentence]
    line = next((line for line in report.lines if line.drafted == image.sentence), None)
    since = {Choice.EDITED: " (since edited by the reader)", Choice.DELETED: " (since deleted by the reader)"}
    quoted = clean(sentence.text)
    quoted = quoted if len(quoted) <= _QUOTED else f"{quoted[: _QUOTED - 1]}…"
    quoted = f"“{quoted}”{since.get(line.choice, '') if line else ''}"
    weights = patch_weights(draft, sentence, image.film)
    heat = None
    if weights.sum() > 0 and film.read:
        heat = lay_over(weights, draft.grid, shown.shape[0], shown.shape[1], film.place)
        words = f"Map on {name} of the drafted sentence {quoted}: where the model looked while it wrote, not why it wrote it."
    else:
        words = f"{name}; the drafted sentence {quoted} has no map. {no_map(draft, sentence, image.film)}"
    grey = shown if shown.ndim == 2 else shown.mean(axis=2)
    yield Figure(_jpeg(overlay(grey / 255, heat)), (film.width, film.height), width_mm, words, f"Chest X-ray: {words}")


def version() -> str:
    """Of EMRRG: from the project file beside the library, or from the installed package."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if project.is_file():
        return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
    return metadata.version("emrrg")


def _reduced(pixels: np.ndarray) -> np.ndarray:
    """At most _SHOWN_SIDE pixels along a side, the aspect kept."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _jpeg(pixels: np.ndarray) -> bytes:
    out = BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=92, subsampling=0)
    return out.getvalue()
