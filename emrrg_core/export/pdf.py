"""PDF: the report with its key images, the films and the models behind it, on A4 or letter.

The font is DejaVu Sans, which comes with matplotlib: any Latin, Greek or Cyrillic text. A character that it has not,
and any of a script written from right to left (which would need shaping), is shown as its Unicode code point, and the
page says so; no character is dropped or replaced by a box.
"""

import unicodedata
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import matplotlib
from reportlab.graphics.shapes import Drawing, Line, String
from reportlab.lib.colors import HexColor, black
from reportlab.lib.pagesizes import A4, LETTER
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfdoc, pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    BaseDocTemplate,
    Flowable,
    Frame,
    Image,
    PageTemplate,
    Paragraph,
    Spacer,
    Table,
)

from emrrg_core.export import (
    EMPTY,
    HEADINGS,
    TITLE,
    Figure,
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

PAPERS = {"A4": A4, "letter": LETTER}
MARGIN = 18 * mm
FONT, BOLD, MONO = "DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono"
RED = HexColor("#a40000")  # 7.9 : 1 on white

BODY = ParagraphStyle("body", fontName=FONT, fontSize=10, leading=14.5, splitLongWords=1)
SMALL = ParagraphStyle("small", parent=BODY, fontSize=8, leading=11)
CODE = ParagraphStyle("code", parent=SMALL, fontName=MONO, fontSize=7)
HEAD1 = ParagraphStyle("head1", parent=BODY, fontName=BOLD, fontSize=16, leading=22)
HEAD2 = ParagraphStyle("head2", parent=BODY, fontName=BOLD, fontSize=12, leading=16, spaceBefore=10, spaceAfter=3)
TOP = ParagraphStyle("top", parent=BODY, fontName=BOLD, fontSize=12, leading=18, textColor=RED)
POINTS = "Characters that this document's font has not are shown as their Unicode code points, such as [U+5F20]."


def to_pdf(
    report: Report,
    draft: Draft,
    *,
    images: Sequence[KeyImage] = (),
    paper: str = "A4",
    created: datetime | None = None,
    reader: Reader | None = None,
) -> bytes:
    """A PDF file. paper: "A4" or "letter". created: the creation date in its properties; None leaves it out. reader: who signed.

    Text can be selected and searched, the title and the language (English) are in the properties. It is not a tagged
    PDF: for a screen reader the DOCX is better.
    """
    _fonts()
    out = BytesIO()
    size = PAPERS[paper]
    width = size[0] - 2 * MARGIN
    frame = Frame(MARGIN, MARGIN + 6 * mm, width, size[1] - 2 * MARGIN - 12 * mm, 0, 0, 0, 0)
    document = BaseDocTemplate(out, pagesize=size, pageTemplates=[PageTemplate("page", [frame])])
    story = [
        *_report(report, reader, width),
        *(flowable for image in images for flowable in _pictures(list(figures(report, draft, image)), width)),
        *_behind(draft, width),
    ]
    note = notice(report, reader)

    def canvas(*args: Any, **kwargs: Any) -> Canvas:
        return _Pages(*args, note=note, top=banner(report), created=created, **kwargs | {"invariant": 1, "lang": "en"})

    document.build(story, canvasmaker=canvas)
    return out.getvalue()


def _report(report: Report, reader: Reader | None, width: float) -> list[Flowable]:
    said = [text for section in HEADINGS for text, _ in passages(report, section)]
    said += [text for _, text in (*header(report, reader), *preface(report))]
    story = [Paragraph(TITLE, HEAD1)]
    if top := banner(report):
        story.append(Paragraph(top, TOP))
    story += [Paragraph(_markup(notice(report, reader)), SMALL), Spacer(1, 4), _table(header(report, reader), width)]
    for heading, words in preface(report):
        story += [Paragraph(heading, HEAD2), Paragraph(_markup(words), BODY)]
    for section, heading in HEADINGS.items():
        marked = f'<font name="{BOLD}" color="#{RED.hexval()[2:]}">[{NOT_REVIEWED}]</font> '
        body = " ".join(
            (marked if unreviewed else "") + _markup(text) for text, unreviewed in passages(report, section)
        )
        story += [Paragraph(heading, HEAD2), Paragraph(body or EMPTY, BODY)]
    if any(_shown(text) != text for text in said):
        story += [Spacer(1, 4), Paragraph(POINTS, SMALL)]
    return story


def _pictures(found: list[Figure], width: float) -> list[Flowable]:
    """A film, or a film and its map side by side, each with its scale and caption and never parted from them."""
    room = width if len(found) == 1 else width / 2 - 3 * mm
    columns = [_figure(figure, room) for figure in found]
    plain = [("LEFTPADDING", (0, 0), (-1, -1), 0), ("VALIGN", (0, 0), (-1, -1), "TOP")]
    return [Spacer(1, 10), Table([columns], colWidths=[width / len(found)] * len(found), style=plain, hAlign="LEFT")]


def _figure(figure: Figure, width: float) -> list[Flowable]:
    wide, tall = figure.size
    factor = min(width / wide, 110 * mm / tall)
    parts: list[Flowable] = [Image(BytesIO(figure.jpeg), wide * factor, tall * factor, hAlign="LEFT")]
    if figure.width_mm:
        parts.append(_scale(wide * factor / figure.width_mm))
    return [*parts, Paragraph(_markup(figure.caption), SMALL)]


def _scale(points: float) -> Drawing:
    """A bar of 50 mm on the film; points: of the page per millimetre of the film."""
    bar = Drawing(50 * points + 150, 12)
    length = 50 * points
    for line in ((0, 6, length, 6), (0, 3, 0, 9), (length, 3, length, 9)):
        bar.add(Line(*line, strokeColor=black, strokeWidth=0.8))
    bar.add(String(length + 6, 3, "50 mm by the file's spacing", fontName=FONT, fontSize=7))
    return bar


def _behind(draft: Draft, width: float) -> list[Flowable]:
    story: list[Flowable] = []
    if draft.warnings:
        story.append(Paragraph("What the draft warned of", HEAD2))
        story += [Paragraph(f"• {_markup(warning)}", SMALL) for warning in draft.warnings]
    for film in draft.films:
        story += [Paragraph(_markup(film.name), HEAD2), _table(facts_of_film(film), width)]
    return [*story, Paragraph("Model", HEAD2), _table(facts_of_model(draft), width)]


def _table(rows: list[tuple[str, str]], width: float) -> Table:
    cells = [[Paragraph(_markup(k), SMALL), Paragraph(_markup(v), CODE if "SHA" in k else SMALL)] for k, v in rows]
    lines = [("LINEBELOW", (0, 0), (-1, -1), 0.25, HexColor("#999999")), ("VALIGN", (0, 0), (-1, -1), "TOP")]
    return Table(cells, colWidths=[width * 0.28, width * 0.72], style=lines, hAlign="LEFT", splitInRow=1)


class _Pages(Canvas):
    """Writes the notice and "page x of y" on every page once their number is known, and the properties."""

    def __init__(self, *args: Any, note: str, top: str | None, created: datetime | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._note, self._top = note, top
        self._done: list[dict[str, Any]] = []
        self._doc.info = _Properties(created)
        self.setViewerPreference("DisplayDocTitle", "true")

    def showPage(self) -> None:  # noqa: N802 — reportlab's name
        self._done.append(dict(self.__dict__))
        self._startPage()

    def save(self) -> None:
        pages, (width, height) = self._done, self._pagesize
        for number, page in enumerate(pages, 1):
            self.__dict__.update(page)
            self.setFont(FONT, 7)
            self.drawString(MARGIN, MARGIN - 2 * mm, _shown(self._note))
            self.drawRightString(width - MARGIN, MARGIN - 6 * mm, f"Page {number} of {len(pages)}")
            if self._top and number > 1:
                self.setFillColor(RED)
                self.setFont(BOLD, 9)
                self.drawString(MARGIN, height - MARGIN + 1 * mm, self._top)
            Canvas.showPage(self)
        super().save()


class _Properties(pdfdoc.PDFInfo):
    """The document's properties without an author, and without a date unless one is given."""

    def __init__(self, created: datetime | None) -> None:
        super().__init__()
        self._created = created

    def format(self, document: Any) -> bytes:
        entries = {"Title": TITLE, "Creator": f"EMRRG {version()}", "Producer": self.producer}
        if self._created:
            entries["CreationDate"] = self._created.strftime("D:%Y%m%d%H%M%S") + _zone(self._created)
        return pdfdoc.PDFDictionary({key: pdfdoc.PDFString(value) for key, value in entries.items()}).format(document)


def _zone(time: datetime) -> str:
    """A PDF date's offset from UTC (ISO 32000-1, 7.9.4): +HH'mm', or nothing where it is not known."""
    offset = time.strftime("%z")
    return f"{offset[:3]}'{offset[3:5]}'" if offset else ""


def _markup(text: str) -> str:
    return escape(_shown(clean(text)))


def _shown(text: str) -> str:
    """The text with every run of characters that the font cannot show as [U+XXXX …]."""
    has = _fonts()
    out: list[str] = []
    points: list[str] = []
    for character in [*text, ""]:
        right_to_left = character and unicodedata.bidirectional(character) in ("R", "AL", "AN")
        if character and (ord(character) not in has or right_to_left):
            points.append(f"U+{ord(character):04X}")
            continue
        if points:
            out.append(f"[{' '.join(points)}]")
            points = []
        out.append(character)
    return "".join(out)


@cache
def _fonts() -> frozenset[int]:
    """Registers the three faces; the code points that all of them have."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    faces = [TTFont(name, str(folder / f"{name}.ttf")) for name in (FONT, BOLD, MONO)]
    for face in faces:
        pdfmetrics.registerFont(face)
    return frozenset.intersection(*(frozenset(face.face.charToGlyph) for face in faces))
