"""DOCX: the same as the PDF, to be gone on with in a word processor. Headings are headings, pictures have an alt text."""

import zipfile
from collections.abc import Sequence
from datetime import datetime
from io import BytesIO
from typing import Any

from docx import Document
from docx.oxml import OxmlElement
from docx.oxml.ns import qn
from docx.shared import Mm, Pt, RGBColor

from emrrg_core.export import (
    EMPTY,
    HEADINGS,
    TITLE,
    KeyImage,
    Reader,
    banner,
    clean,
    facts_of_film,
    facts_of_model,
    figures,
    header,
    notice,
    passages,
    preface,
    version,
)
from emrrg_core.report.draft import NOT_REVIEWED, Draft
from emrrg_core.report.report import Report

PAPERS = {"A4": (Mm(210), Mm(297)), "letter": (Mm(215.9), Mm(279.4))}
RED = RGBColor(0xA4, 0x00, 0x00)


def to_docx(
    report: Report,
    draft: Draft,
    *,
    images: Sequence[KeyImage] = (),
    paper: str = "A4",
    created: datetime | None = None,
    reader: Reader | None = None,
) -> bytes:
    """A DOCX file. paper: "A4" or "letter". created: the creation date in its properties; None leaves it out. reader: who signed."""
    note = notice(report, reader)
    document = Document()
    _properties(document, created)
    _page(document, banner(report), note, PAPERS[paper])
    document.add_heading(TITLE, 0)
    if top := banner(report):
        _mark(document.add_paragraph(), top)
    document.add_paragraph(note)
    _table(document, header(report, reader))
    for heading, words in preface(report):
        document.add_heading(heading, 1)
        document.add_paragraph(words)
    for section, heading in HEADINGS.items():
        document.add_heading(heading, 1)
        paragraph = document.add_paragraph()
        for number, (text, marked) in enumerate(found := passages(report, section)):
            if marked:
                _mark(paragraph, f"[{NOT_REVIEWED}] ")
            paragraph.add_run(text + (" " if number + 1 < len(found) else ""))
        if not found:
            paragraph.add_run(EMPTY)
    for image in images:
        for figure in figures(report, draft, image):
            wide, tall = figure.size
            shape = document.add_picture(BytesIO(figure.jpeg), width=Mm(min(130, 105 * wide / tall)))
            shape._inline.docPr.set("descr", figure.alt)  # python-docx has no name for the alt text
            document.paragraphs[-1].paragraph_format.keep_with_next = True
            document.add_paragraph(figure.caption, style="Caption")
    if draft.warnings:
        document.add_heading("What the draft warned of", 1)
        for warning in draft.warnings:
            document.add_paragraph(clean(warning), style="List Bullet")
    for film in draft.films:
        document.add_heading(clean(film.name), 1)
        _table(document, facts_of_film(film))
    document.add_heading("Model", 1)
    _table(document, facts_of_model(draft))
    return _timeless(document)


def _properties(document: Any, created: datetime | None) -> None:
    """python-docx's template names its own author and year: out with them."""
    core = document.core_properties
    core.title, core.language = TITLE, "en"
    core.author, core.last_modified_by, core.keywords = "", "", ""
    core.comments = f"EMRRG {version()}"
    for tag in ("dcterms:created", "dcterms:modified"):
        for element in core._element.findall(qn(tag)):
            core._element.remove(element)
    if created:
        core.created = created


def _page(document: Any, top: str | None, note: str, paper: tuple[Any, Any]) -> None:
    """Paper, and on every page the notice, the mark and "page x of y"."""
    section = document.sections[0]
    section.page_width, section.page_height = paper
    section.left_margin = section.right_margin = Mm(22)
    if top:
        _mark(section.header.paragraphs[0], top)
    footer = section.footer
    for run in (footer.paragraphs[0].add_run(note), (last := footer.add_paragraph()).add_run("Page ")):
        run.font.size = Pt(8)
    for code, after in (("PAGE", " of "), ("NUMPAGES", "")):
        field = OxmlElement("w:fldSimple")
        field.set(qn("w:instr"), code)
        last._p.append(field)
        last.add_run(after).font.size = Pt(8)


def _mark(paragraph: Any, text: str) -> None:
    run = paragraph.add_run(text)
    run.bold = True
    run.font.color.rgb = RED


def _table(document: Any, rows: list[tuple[str, str]]) -> None:
    table = document.add_table(0, 2, style="Table Grid")
    for row in rows:
        for cell, text in zip(table.add_row().cells, row, strict=True):
            cell.text = clean(text)
            cell.paragraphs[0].runs[0].font.size = Pt(8)


def _timeless(document: Any) -> bytes:
    """The file, packed with one fixed date: by itself a ZIP would tell when it was written, and differ every time."""
    packed, out = BytesIO(), BytesIO()
    document.save(packed)
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(zipfile.ZipInfo(name), source.read(name), zipfile.ZIP_DEFLATED)
    return out.getvalue()
