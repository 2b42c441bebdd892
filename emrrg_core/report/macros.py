"""Macros: words that expand while a report is written, and whole reports to begin with.

    Macros            what a reader has of both; one TOML file (docs/macros.md), beside the few that come with EMRRG
    fields            where the words in square brackets stand that are still to be filled in
    from_mrrt         a template of IHE's Management of Radiology Report Templates (MRRT), as radreport.org gives them

A macro's text goes into the report as the reader's own words: nothing here writes into a report by itself.
"""

import json
import os
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from html import unescape
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any, Self

from emrrg_core.errors import EmrrgError
from emrrg_core.report.draft import SECTIONS
from emrrg_core.report.report import FIELDS, Fields

PLACES = (*SECTIONS, *FIELDS)
LARGEST = 1_000_000  # bytes of a file, of either kind
_BLANK = re.compile(r"\[[^\[\]\n]{1,60}\]")


def fields(text: str) -> tuple[tuple[int, int], ...]:
    """Where the words in square brackets stand, brackets included: (start, end), in order. A screen selects the next one."""
    return tuple(match.span() for match in _BLANK.finditer(text))


@dataclass(frozen=True)
class Macro:
    """A word that expands. Raises EmrrgError where it makes no sense."""

    word: str  # without a space
    text: str
    section: str = ""  # where it expands, one of PLACES; "": anywhere

    def __post_init__(self) -> None:
        named = f"The macro “{self.word}”"
        _check_text(named, self.word, self.text)
        if not self.word or re.search(r"\s", self.word):
            raise EmrrgError(f"{named} needs one word without a space.")
        if not self.text.strip():
            raise EmrrgError(f"{named} has no text.")
        if self.section not in ("", *PLACES):
            raise EmrrgError(f"{named} is for “{self.section}”: choose one of {', '.join(PLACES)}, or leave it out.")


@dataclass(frozen=True)
class Template:
    """A report to begin with. Raises EmrrgError where it has no name."""

    name: str
    fields: Fields = field(default_factory=Fields)
    findings: str = ""
    impression: str = ""

    def __post_init__(self) -> None:
        _check_text(f"The template “{self.name}”", self.name, *self.parts.values())
        if not self.name.strip():
            raise EmrrgError("A template needs a name.")

    @property
    def parts(self) -> dict[str, str]:
        """Its text by place, in the order of a report: the fields, then the sections."""
        above = {name: getattr(self.fields, name) for name in FIELDS}
        return above | {"findings": self.findings, "impression": self.impression}


@dataclass(frozen=True)
class Macros:
    """A reader's macros and templates. Raises EmrrgError where two have one word, or one name; case does not count."""

    macros: tuple[Macro, ...] = ()
    templates: tuple[Template, ...] = ()

    def __post_init__(self) -> None:
        for kind, names in (("macro", [m.word for m in self.macros]), ("template", [t.name for t in self.templates])):
            known: set[str] = set()
            for name in names:
                if name.casefold() in known:
                    raise EmrrgError(f"The {kind} “{name}” stands there twice: give one of them another name.")
                known.add(name.casefold())

    def find(self, word: str, section: str) -> Macro | None:
        """The macro of that word that expands in that place, one of PLACES; case does not count."""
        fits = (m for m in self.macros if m.word.casefold() == word.casefold() and m.section in ("", section))
        return next(fits, None)

    def merged(self, other: Self) -> Self:
        """With the other's added; where both have a word or a name, the other's stands in its place."""
        macros = {macro.word.casefold(): macro for macro in (*self.macros, *other.macros)}
        templates = {template.name.casefold(): template for template in (*self.templates, *other.templates)}
        return replace(self, macros=tuple(macros.values()), templates=tuple(templates.values()))

    # the file

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Macros from their file's text (docs/macros.md). Raises EmrrgError that names the line, the macro or the template."""
        try:
            data = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise EmrrgError(f"The macros cannot be read, mend their file first: {error}.") from error
        if strange := sorted(data.keys() - {"macro", "template"}):
            raise EmrrgError(f"The macros' file has “{strange[0]}”: it may have [[macro]] and [[template]] only.")
        macros = [
            Macro(**_row("macro", number, row, "word", ("text", "section")))
            for number, row in enumerate(_rows(data, "macro"), 1)
        ]
        templates = []
        for number, row in enumerate(_rows(data, "template"), 1):
            said = _row("template", number, row, "name", PLACES)
            above = Fields(**{name: said.pop(name) for name in FIELDS if name in said})
            templates.append(Template(**said, fields=above))
        return cls(tuple(macros), tuple(templates))

    def to_toml(self) -> str:
        """The text of a file that `from_toml` reads back exactly."""
        tables = [
            _table("macro", {"word": each.word, "section": each.section, "text": each.text}) for each in self.macros
        ]
        tables += [_table("template", {"name": each.name} | each.parts) for each in self.templates]
        return "\n".join(tables)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The macros of a file; none where there is no file. Raises EmrrgError where it cannot be read."""
        try:
            if path.stat().st_size > LARGEST:
                raise EmrrgError(f"The macros' file is larger than {LARGEST // 1_000_000} MB.")
            return cls.from_toml(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        except UnicodeDecodeError as error:
            raise EmrrgError("The macros' file is not in UTF-8: save it in UTF-8.") from error
        except OSError as error:
            raise EmrrgError(f"The macros' file cannot be read ({error.strerror or error}).") from error


def default_path() -> Path:
    """Where a reader's macros lie: emrrg/macros.toml in $XDG_CONFIG_HOME, or in ~/.config (XDG Base Directory Specification)."""
    home = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    return (home if home.is_absolute() else Path.home() / ".config") / "emrrg" / "macros.toml"


@cache
def builtin() -> Macros:
    """The few that come with EMRRG."""
    return Macros.from_toml(resources.files("emrrg_core.report").joinpath("macros.toml").read_text("utf-8"))


def _check_text(named: str, *texts: str) -> None:
    if any(re.search("[\ud800-\udfff]", text) for text in texts):
        raise EmrrgError(f"{named} has a broken character: type it anew.")


def _rows(data: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    rows = data.get(kind, [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise EmrrgError(f"The macros' file has [{kind}]: write [[{kind}]], in two pairs of brackets.")
    return rows


def _row(kind: str, number: int, row: dict[str, Any], name: str, others: Iterable[str]) -> dict[str, str]:
    """A table of the file, checked: the name and "text" must be there, and every value must be text."""
    named = f"The {kind} “{row[name]}”" if isinstance(row.get(name), str) else f"{kind.capitalize()} number {number}"
    for key, value in row.items():
        if key not in (name, *others):
            raise EmrrgError(f"{named} has “{key}”: it may have {', '.join((name, *others))}.")
        if not isinstance(value, str):
            raise EmrrgError(f"{named}: put what follows “{key} =” in quotation marks.")
    for key in (name, *(["text"] if kind == "macro" else [])):
        if key not in row:
            raise EmrrgError(f"{named} has no “{key}”.")
    return row


def _table(kind: str, row: dict[str, str]) -> str:
    """A table with its values that are not empty; the first one is its name."""
    rows = [f"{key} = {_quoted(value)}\n" for number, (key, value) in enumerate(row.items()) if value or not number]
    return f"[[{kind}]]\n{''.join(rows)}"


def _quoted(text: str) -> str:
    """A string of TOML: a basic one, or over several lines where it has several. JSON's escapes are TOML's."""
    lines = [json.dumps(line, ensure_ascii=False)[1:-1].replace("\x7f", "\\u007f") for line in text.split("\n")]
    return f'"{lines[0]}"' if len(lines) == 1 else '"""\n' + "\n".join(lines) + '"""'


# ------------------------------------------------------------------------------------------------------------- MRRT

_HEADINGS = {
    "technique": "technique, procedure, procedure information, procedure description, imaging technique, examination, exam",
    "indication": "indication, indications, clinical information, clinical indication, clinical history, history, reason for exam, "
    "reason for examination, reason for study",
    "comparison": "comparison, comparisons, comparison study, prior studies, previous studies",
    "findings": "findings, finding, observations",
    "impression": "impression, impressions, conclusion, conclusions, opinion",
}
_KNOWN = {name: place for place, names in _HEADINGS.items() for name in names.split(", ")}
_NOT_SHOWN = frozenset({"audio", "iframe", "math", "noscript", "object", "svg", "template", "title", "video"})
_HEADS = "header legend h1 h2 h3 h4 h5 h6"
_TITLES = frozenset(_HEADS.split())
_BLOCKS = frozenset(
    f"{_HEADS} article blockquote body dd div dl dt fieldset footer form li main ol p pre section table tbody thead tr ul".split()
)
_VOID = frozenset({"br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"})
_INLINE = frozenset({"abbr", "b", "em", "font", "i", "small", "span", "strong", "sub", "sup", "u"})
_NO_WORDS = frozenset({"button", "file", "hidden", "image", "password", "reset", "submit"})  # kinds of input
_UNNAMED = re.compile(r"[A-Z_]*\d+|.*_\d{4,}|.*Text", re.DOTALL)  # names that an editor of templates gave
_UNCLOSED = re.compile(r"<[A-Za-z/][^<>]*(?=<[A-Za-z/]|\Z)")
_BROKEN = 20  # tags without an end that are put up with: html.parser looks for the end of each through the whole text


def from_mrrt(html: str | bytes) -> Template:
    """A template of MRRT (IHE Radiology Technical Framework, profile MRRT): HTML with sections that have a data-section-name.

    Its text is put together as a reader sees it: what is chosen or filled in, and the words between. A field that is empty becomes
    [its name], a choice that is open [one/or the other]. Sections go to the places of a report by their names; any other to the
    Findings, headed by its name. Scripts, styles, comments and whatever a page would fetch are left out unread.

    Raises EmrrgError where it is no such template, has no words, or is larger than 1 MB.
    """
    if len(html) > LARGEST or (isinstance(html, str) and len(html.encode(errors="replace")) > LARGEST):
        raise EmrrgError(f"This template is larger than {LARGEST // 1_000_000} MB.")
    if isinstance(html, bytes):
        try:
            html = html.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise EmrrgError("This template is not in UTF-8: save it in UTF-8.") from error
    title = re.search(r"<title\b[^<>]*>([^<]*)", html, re.IGNORECASE)
    page = _Page()
    page.feed(_harmless(html))
    page.close()
    page.end_line(last=True)
    if not page.recognised:
        raise EmrrgError(
            "This is no report template: it has no section with a data-section-name, and no heading such as Findings or Impression."
        )
    found = page.composed()
    if not any(found.values()):
        raise EmrrgError("This template has no words.")
    name = _plain(unescape(title.group(1)))[:100].strip() if title else ""
    above = Fields(**{place: found[place] for place in FIELDS})
    return Template(name or "Template without a name", above, found["findings"], found["impression"])


def _harmless(html: str) -> str:
    """Without comments, declarations, scripts, styles and lone "<". Raises EmrrgError where many tags have no end."""
    html = re.sub(r"<!--.*?(?:-->|\Z)", " ", html, flags=re.DOTALL)
    html = re.sub(r"<(script|style)\b.*?(?:</\1\s*>|\Z)", " ", html, flags=re.DOTALL | re.IGNORECASE)
    html = re.sub(r"<[!?][^>]*(?:>|\Z)", " ", html)
    html = re.sub(r"<(?![A-Za-z/])", "&lt;", html)
    for number, _ in enumerate(_UNCLOSED.finditer(html), 1):
        if number > _BROKEN:
            raise EmrrgError("This template is damaged: many of its tags have no end.")
    return html


@dataclass(eq=False)
class _Section:
    """A section of the page, and its name until the first line of it is written."""

    place: str  # one of PLACES
    name: str
    known: bool  # whether the name says the place
    heading: str = ""  # to stand before its first line
    begun: bool = False  # whether it has words


@dataclass(eq=False)
class _Field:
    """Something to fill in or to choose."""

    id: str
    kind: str  # of the input; "select", "datalist" and "textarea" too
    name: str
    value: str
    checked: bool
    suggestions: str  # id of their list
    options: list[tuple[str, bool]] = field(default_factory=list)  # words, and whether they are chosen
    group: "list[_Field]" = field(default_factory=list)  # boxes of one name
    caption: str = ""  # of a box: the words behind it
    label: str = ""  # the words of its label

    @property
    def box(self) -> bool:
        return self.kind in ("checkbox", "radio")

    @property
    def words(self) -> str:
        """Of a box."""
        return self.label or _plain(self.caption) or ("" if self.value == "on" else _plain(self.value))


@dataclass(eq=False)
class _Label:
    """The words beside a field."""

    of: str  # its id
    field: _Field | None = None  # the one within it
    text: str = ""


@dataclass(eq=False)
class _Line:
    section: _Section
    parts: list[str | _Label | _Field]
    last: bool = False  # of its paragraph


class _Page(HTMLParser):
    """Reads a page into lines; `composed` then writes them, when all that a box or a list of suggestions needs is known."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.recognised = False
        self.sections: list[_Section] = []
        self.flat: _Section | None = None  # begun by a heading outside of every section
        self.lines: list[_Line] = []
        self.parts: list[str | _Label | _Field] = []
        self.fields: dict[str, _Field] = {}  # by id
        self.groups: dict[str, list[_Field]] = {}  # boxes, by name
        self.suggested: dict[str, str] = {}
        self.label: _Label | None = None
        self.caption: _Field | None = None
        self.area: _Field | None = None
        self.choice: _Field | None = None  # the list whose options are read
        self.option: str | None = None
        self.title: str | None = None
        self.skipped, self.depth = "", 0

    # what the page says

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        if self.skipped:
            self.depth += tag == self.skipped
            return
        if self.area:
            return
        if tag in _NOT_SHOWN or ("hidden" in given and tag not in _VOID):
            self.skipped, self.depth = tag, 1
            return
        if tag not in _INLINE:
            self.caption = None
        if tag in _BLOCKS:
            self.end_line(last=True)
        if tag == "section":
            self.begin(given.get("data-section-name", ""))
        elif tag in _TITLES:
            self.title = ""
        elif tag == "br":
            self.end_line(last=False)
        elif tag in ("td", "th"):
            self.parts.append(" ")
        elif tag == "label":
            self.label = _Label(given.get("for", ""))
            self.parts.append(self.label)
        elif tag == "option":
            self.end_option()
            if self.choice:
                self.option = ""
                self.choice.options.append((given.get("label") or given.get("value", ""), "selected" in given))
        elif tag in ("input", "select", "datalist", "textarea") and "hidden" not in given:
            self.field(tag, given)

    def handle_endtag(self, tag: str) -> None:
        if self.skipped:
            self.depth -= tag == self.skipped
            self.skipped = self.skipped if self.depth else ""
            return
        if self.area and tag != "textarea":
            return
        if tag not in _INLINE and tag != "input":
            self.caption = None
        if tag in _TITLES and self.title is not None:
            title, self.title = _plain(self.title), None
            self.head(title)
        if tag == "textarea":
            self.area = None
        elif tag in _BLOCKS:
            self.end_line(last=True)
        if tag == "section" and self.sections:
            self.sections.pop()
        elif tag == "label":
            self.label = None
        elif tag in ("option", "select", "datalist"):
            self.end_option()
            if tag != "option":
                self.end_choice()

    def handle_data(self, data: str) -> None:
        if self.skipped:
            return
        if self.area:
            self.area.value += data
        elif self.choice:
            self.option = None if self.option is None else self.option + data
        elif self.title is not None:
            self.title += data
        elif self.caption:
            self.caption.caption += data
        elif self.label:
            self.label.text += data
        else:
            self.parts.append(data)

    # sections

    @property
    def section(self) -> _Section | None:
        return self.sections[-1] if self.sections else self.flat

    def begin(self, name: str) -> None:
        self.recognised |= bool(_plain(name))
        self.sections.append(self.named(_plain(name), self.section))

    def named(self, name: str, above: _Section | None) -> _Section:
        place = _KNOWN.get(_key(name))
        self.recognised |= place is not None
        if place:
            return _Section(place, name, True)
        return _Section(above.place if above else "findings", name, False, name.rstrip(":"))

    def head(self, title: str) -> None:
        """A heading: the name of its section, where that has none or one that says nothing; else of the lines that follow."""
        here, known = self.section, _KNOWN.get(_key(title))
        if not title or (here and _key(here.name) == _key(title)):
            return
        if here is None:
            self.flat = self.named(title, None) if known else None
        elif not here.name or (known and not (here.known and here.place == known)):
            self.place(self.named(title, self.sections[-2] if len(self.sections) > 1 else None))
        else:
            above = f"{here.heading}: " if here.heading and not here.begun else ""
            self.place(replace(here, heading=above + title.rstrip(":"), begun=False))

    def place(self, section: _Section) -> None:
        """Lines to come are of that section."""
        if self.sections:
            self.sections[-1] = section
        else:
            self.flat = section

    def end_line(self, *, last: bool) -> None:
        if self.section and (self.parts or last):
            self.lines.append(_Line(self.section, self.parts, last))
            self.section.begun |= any(not isinstance(part, str) or part.strip() for part in self.parts)
        self.parts = []
        if last:
            self.label = None  # one that nobody closed

    # fields

    def field(self, tag: str, given: dict[str, str]) -> None:
        kind = given.get("type", "text").casefold() if tag == "input" else tag
        if kind in _NO_WORDS:
            return
        names = (_said(given.get(key, "")) for key in ("name", "data-field-label", "aria-label", "placeholder"))
        name = next((words for words in names if words), "")
        made = _Field(
            given.get("id", ""), kind, name, given.get("value", ""), "checked" in given, given.get("list", "")
        )
        if tag in ("select", "datalist"):
            self.end_option()
            self.end_choice()
            self.choice = made
        if tag == "datalist":
            return
        self.parts.append(made)
        if made.id:
            self.fields.setdefault(made.id, made)
        if self.label and not self.label.of:
            self.label.field = made
        if tag == "textarea":
            self.area = made
        if made.box:
            made.group = self.groups.setdefault(given.get("name", ""), [])
            made.group.append(made)
            self.caption = made

    def end_option(self) -> None:
        if self.choice and self.option is not None:
            value, chosen = self.choice.options[-1]
            self.choice.options[-1] = (_plain(self.option) or _plain(value), chosen)
        self.option = None

    def end_choice(self) -> None:
        if self.choice and self.choice.kind == "datalist":
            self.suggested[self.choice.id] = next((text for text, chosen in self.choice.options if chosen), "")
        self.choice = None

    # what comes of it

    def composed(self) -> dict[str, str]:
        """The text of each place."""
        for label in (part for line in self.lines for part in line.parts if isinstance(part, _Label)):
            label.field = label.field or self.fields.get(label.of)
            if label.field and _key(label.text) != "text":  # what an editor of templates puts where there is none
                label.field.label = _plain(label.text)
        found: dict[str, list[str]] = {place: [] for place in PLACES}
        waiting, asked, here = "", False, None  # a label that stands alone belongs to the next line of its section
        for line in self.lines:
            if line.section is not here:
                waiting, here = "", line.section
            text = self.written(line)
            asked = any(isinstance(part, _Field) for part in line.parts) or (asked and bool(waiting))
            if text.endswith(":") and all(not isinstance(part, _Field) or part.box for part in line.parts):
                waiting, text = f"{waiting} {text}".strip() if len(waiting) < 100 else text, ""
            if not text:
                if line.last and asked:  # boxes, and none of them ticked
                    waiting = ""
                continue
            rows = f"{waiting} {text}".strip().split("\n")
            if (heading := here.heading) and not _key(rows[0]).startswith(_key(heading)):
                rows[0] = f"{heading}: {rows[0]}"
            waiting, here.heading = "", ""
            if len(rows) == 1 and not (rows[0][-1] in ".!?:;" or _BLANK.fullmatch(rows[0])):
                rows[0] += "."
            found[here.place] += rows
        return {place: "\n".join(rows) for place, rows in found.items()}

    def written(self, line: _Line) -> str:
        """The words of a line; several lines where a text field has several."""
        words = ""
        for part in line.parts:
            if isinstance(part, str):
                words += part
            elif isinstance(part, _Field):
                words += f" {self.value(part, line.section.name)} "
            elif _key(part.text) != "text" and not (part.field and part.field.box):
                words += f"{part.text} "
        rows = (re.sub(r"\s+([.,;:!?)])", r"\1", _plain(row)) for row in words.split("\f"))
        return "\n".join(row for row in rows if row)

    def value(self, made: _Field, section: str) -> str:
        """What a field says. \\f: there a line ends."""
        if made.box:
            first = made.kind == "radio" and made is made.group[0]
            if first and not any(box.checked for box in made.group):
                return _blank([box.words for box in made.group], section)
            return made.words if made.checked else ""
        box = self.fields.get(made.id.removesuffix("_FreeText"))
        if box and box.box and (not box.checked or box.value == made.value):  # a box's words once more, to be changed
            return ""
        name = made.name or _said(made.label) or section
        if made.kind == "select":
            chosen = [words for words, selected in made.options if selected]
            chosen = chosen or [words for words, _ in made.options if words == _plain(made.value)]
            return ", ".join(words for words in chosen if words) or _blank([words for words, _ in made.options], name)
        value = made.value if made.value.strip() else self.suggested.get(made.suggestions, "")
        return "\f".join(value.splitlines()) if value.strip() else _blank([], name)


def _plain(text: str) -> str:
    """In one line, without control characters or halves of characters."""
    return " ".join(re.sub("[\x00-\x1f\x7f-\x9f\ud800-\udfff]", " ", text).split())


def _key(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _said(name: str) -> str:
    """A name that a person gave, as it stands in brackets; "" for an editor's own."""
    if _UNNAMED.fullmatch(name) or _key(name) == "text":
        return ""
    name = _plain(re.sub(r"[\[\]_]", " ", name)).rstrip(": ")
    return " ".join(word.lower() if word[1:].islower() else word for word in name.split())


def _blank(options: list[str], name: str) -> str:
    """[one/or the other], or [name] where there are too many, or none."""
    choices = "/".join(_plain(re.sub(r"[\[\]]", " ", words)).rstrip(".") for words in options if words)
    return f"[{(choices if '/' in choices and len(choices) <= 60 else _said(name) or 'text')[:60].strip()}]"
