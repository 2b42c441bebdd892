"""Draft: what the model wrote about a study, sentence by sentence, with what stood behind each, and where it came from.
Report: what a reader makes of it, sentence by sentence, with every edit and its time.

A draft is never changed; the report is another text, kept beside it. A report is never changed either: every operation
gives a new one, so a screen holds the last and an edit that fails leaves it as it was.
"""

import dataclasses
import io
import re
import zipfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from difflib import SequenceMatcher
from enum import StrEnum
from itertools import pairwise
from typing import Any, Literal, Self

import numpy as np

from emrrg_core.errors import EmrrgError
from emrrg_core.model.finding_tokens import NAMES, Finding, Presence
from emrrg_core.model.generation import Token, Writing
from emrrg_core.text.labeler import LABELS, NO_FINDING, read_findings
from emrrg_core.text.labeler import sentences as sentence_spans
from emrrg_core.text.sections import compose as compose
from emrrg_core.text.sections import split as split

SCHEMA = "emrrg.draft/2"
KEPT_SCHEMA = "emrrg.kept-draft/2"  # a draft as `Draft.dump` keeps it
REPORT_SCHEMA = "emrrg.report/1"
SECTIONS = ("findings", "impression")
NOT_REVIEWED = "DRAFT, NOT REVIEWED"
DISCLAIMER = "Research and teaching only, not a medical device. A draft by a machine, not reviewed by a radiologist."


@dataclass(frozen=True)
class FilmRecord:
    """What a draft remembers of a film: never its pixels, never its header's words about a person."""

    name: str
    format: str
    sha256: str  # of the pixels as read
    height: int
    width: int
    spacing: tuple[float, float] | None  # mm a pixel: row, column
    view: str | None
    steps: tuple[str, ...]
    overridden: tuple[str, ...] = ()  # rules that refused it, and that the reader overrode (docs/refusals.md)


@dataclass(frozen=True)
class Sentence:
    """One sentence of the draft."""

    text: str
    section: str  # "findings" or "impression"
    start: int  # in its section's text
    end: int
    tokens: tuple[int, int]  # draft.tokens[first:last]
    confidence: float  # geometric mean of its tokens' probabilities, 0 to 1
    gates: tuple[float, ...]  # per hybrid layer, mean over its tokens
    findings: tuple[str, ...] = ()  # names of the read findings that it speaks of, of finding_tokens.NAMES


@dataclass(frozen=True, eq=False)
class Draft:
    """What the model wrote about one to four films."""

    findings: str
    impression: str
    sentences: tuple[Sentence, ...]
    tokens: tuple[Token, ...]
    layers: tuple[int, ...]  # numbers of the hybrid layers, as gates and attention are ordered
    grid: int  # patches along a side
    films: tuple[FilmRecord, ...]
    warnings: tuple[str, ...]
    timings: dict[str, float]  # seconds
    model: dict[str, str]  # names and hashes of checkpoint and language model
    decoding: dict[str, Any]  # settings, the seed among them
    finished: bool  # the text came to its end; False: it was cut at the limit
    closed: tuple[str, ...] = ()  # sections ended for the model because it began to say a sentence again
    # what was read of every finding that is assessed, in the order of finding_tokens.NAMES; None: a checkpoint that reads none
    read: tuple[Finding, ...] | None = None
    ratio: float | None = None  # cardiothoracic ratio, by the lung borders that the tower sees

    @property
    def not_assessed(self) -> tuple[str, ...]:
        """CheXpert's labels that this checkpoint has not learned well enough to state or deny."""
        read = {finding.label for finding in self.read or ()}
        return tuple(label for label in LABELS if label not in read and label not in (NO_FINDING, "Pneumonia"))

    def finding(self, name: str) -> Finding | None:
        """What was read of one finding; None where it is not assessed."""
        return next((finding for finding in self.read or () if finding.name == name), None)

    def text(self) -> str:
        """As a reader would paste it, with the notice that it is a draft."""
        return as_text(self.findings, self.impression)

    def to_dict(self, maps: dict[int, list[str]] | None = None) -> dict[str, Any]:
        """The documented JSON object (docs/draft.md). maps: paths of heat maps per sentence, one per film."""
        rows = []
        for number, sentence in enumerate(self.sentences):
            paths = (maps or {}).get(number)
            rows.append(
                {
                    "text": sentence.text,
                    "section": sentence.section,
                    "start": sentence.start,
                    "end": sentence.end,
                    "confidence": sentence.confidence,
                    "gates": {str(i): gate for i, gate in zip(self.layers, sentence.gates, strict=True)},
                    "findings": [
                        {"name": f.name, "probability": f.probability, "threshold": f.threshold}
                        for f in map(self.finding, sentence.findings)
                        if f is not None
                    ],
                    "map": paths[0] if paths else None,
                    "maps": paths or [],
                }
            )
        return {
            "schema": SCHEMA,
            "notice": DISCLAIMER,
            "films": [dataclasses.asdict(film) for film in self.films],
            "findings": self.findings,
            "impression": self.impression,
            "sentences": rows,
            "tokens": [
                {"text": t.text, "log_prob": t.log_prob, "gates": list(t.gates), "forced": t.forced}
                for t in self.tokens
            ],
            "finished": self.finished,
            "closed": list(self.closed),
            "read": None if self.read is None else [self._read_row(finding) for finding in self.read],
            "not_assessed": list(self.not_assessed),
            "cardiothoracic_ratio": self.ratio,
            "warnings": list(self.warnings),
            "timings": self.timings,
            "model": self.model,
            "decoding": self.decoding,
            "seed": self.decoding["seed"],
        }

    def _read_row(self, finding: Finding) -> dict[str, Any]:
        maps = [np.round(m.astype(float), 5).reshape(self.grid, self.grid).tolist() for m in finding.maps]
        return {**_without_maps(finding), "label": finding.label, "maps": maps}

    def dump(self) -> tuple[dict[str, Any], bytes]:
        """The whole draft for keeping: values for JSON, and the numbers behind the tokens as an npz file. `Draft.load` reads them back.

        Everything comes back exactly but attention and maps, kept as float16: within 0.05 % of each weight above 6e-5, and 3e-8 below.
        """
        record = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "tokens"}
        record |= {name: [dataclasses.asdict(row) for row in record[name]] for name in ("films", "sentences")}
        record["read"] = None if self.read is None else [_without_maps(finding) for finding in self.read]
        tokens = [
            {n: v for n, v in vars(t).items() if n not in ("attention", "gates", "log_prob")} for t in self.tokens
        ]
        numbers = io.BytesIO()
        np.savez(  # attention does not compress
            numbers,
            attention=np.array([t.attention for t in self.tokens], np.float16),  # (tokens, layers, patches + findings)
            maps=np.array([f.maps for f in self.read or ()], np.float16),  # (findings, films, patches)
            gates=np.array([t.gates for t in self.tokens], np.float64),  # (tokens, layers)
            log_probs=np.array([t.log_prob for t in self.tokens], np.float64),
        )
        return {"schema": KEPT_SCHEMA, **record, "tokens": tokens}, numbers.getvalue()

    @classmethod
    def load(cls, record: Any, numbers: bytes) -> Self:
        """A draft from what `dump` gave. Raises EmrrgError where that is damaged or of another version."""
        try:
            if record["schema"] != KEPT_SCHEMA:
                raise ValueError(f"its form is {record['schema']}, not {KEPT_SCHEMA}")
            with np.load(io.BytesIO(numbers), allow_pickle=False) as arrays:
                behind = zip(
                    arrays["log_probs"].tolist(),
                    map(tuple, arrays["gates"].tolist()),
                    arrays["attention"].astype(np.float32),
                    strict=True,
                )
                maps = arrays["maps"].astype(np.float32)
                tokens = tuple(
                    Token(**row, log_prob=log_prob, gates=gates, attention=attention)
                    for row, (log_prob, gates, attention) in zip(record["tokens"], behind, strict=True)
                )
            values = {name: _frozen(value) for name, value in record.items() if name != "schema"}
            films = tuple(FilmRecord(**_frozen_row(row)) for row in record["films"])
            found = tuple(Sentence(**_frozen_row(row)) for row in record["sentences"])
            read = None
            if record["read"] is not None:
                read = tuple(
                    Finding(**row | {"presence": Presence(row["presence"]), "maps": tuple(mine)})
                    for row, mine in zip(record["read"], maps, strict=True)
                )
            return cls(**values | {"tokens": tokens, "films": films, "sentences": found, "read": read})
        except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise EmrrgError(f"The kept draft cannot be read ({error}): draft the report anew.") from error


def _without_maps(finding: Finding) -> dict[str, Any]:
    return {f.name: getattr(finding, f.name) for f in dataclasses.fields(finding) if f.name != "maps"}


def _frozen(value: Any) -> Any:
    """Lists of JSON as the tuples that they were."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _frozen_row(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _frozen(value) for name, value in row.items()}


def as_text(findings: str, impression: str) -> str:
    """The two sections as plain text, with the notice."""
    return f"FINDINGS:\n{findings.strip()}\n\nIMPRESSION:\n{impression.strip()}\n\n{DISCLAIMER}\n"


def sections(writing: Writing, *, partial: bool = False) -> tuple[str, str, tuple[Sentence, ...]]:
    """Findings, impression and their sentences, each with the tokens that wrote it."""
    text = writing.text
    ends = np.cumsum([len(token.text) for token in writing.tokens]) if writing.tokens else np.zeros(0, int)
    spans = split(text, partial=partial)
    found: list[Sentence] = []
    for section, (begin, end) in spans.items():
        body = text[begin:end]
        for start, stop in sentence_spans(body):
            first = int(np.searchsorted(ends, begin + start, side="right"))
            last = int(np.searchsorted(ends, begin + stop, side="left")) + 1
            mine = writing.tokens[first:last]
            found.append(
                Sentence(
                    text=body[start:stop],
                    section=section,
                    start=start,
                    end=stop,
                    tokens=(first, min(last, len(writing.tokens))),
                    confidence=float(np.exp(np.mean([t.log_prob for t in mine]))),
                    gates=tuple(float(g) for g in np.mean([t.gates for t in mine], axis=0)),
                    findings=findings_of(body[start:stop]),
                )
            )
    findings, impression = (text[slice(*spans[name])] for name in ("findings", "impression"))
    return findings, impression, tuple(found)


def findings_of(sentence: str) -> tuple[str, ...]:
    """The findings that a sentence states or denies, names of finding_tokens.NAMES in their order, by the label reader."""
    said = {mention.label for mention in read_findings(sentence)}
    if "Pneumonia" in said:  # what an opacity may be
        said.add("Lung Opacity")
    return tuple(name for name, label in NAMES.items() if label in said)


# ------------------------------------------------------------------------------------------------------------ the report


class Choice(StrEnum):
    """What the reader did with a sentence."""

    UNREVIEWED = "unreviewed"  # as drafted, and nobody has said yes to it
    ACCEPTED = "accepted"  # as drafted, and the reader said yes
    EDITED = "edited"  # drafted, with words of the reader's
    DELETED = "deleted"  # no part of the report; kept, so that it can be shown struck out and restored
    ADDED = "added"  # the reader's own


@dataclass(frozen=True)
class Line:
    """One sentence of a report."""

    id: int  # never used for another line of the same report, not even after an undo
    section: str  # "findings" or "impression"
    text: str
    choice: Choice
    drafted: int | None  # index into draft.sentences; None: the reader added it


@dataclass(frozen=True)
class Edit:
    """One thing that was done to a report."""

    time: str  # UTC, ISO 8601 with Z
    action: str  # "accept", "edit", "delete", "restore", "add", "undo", "redo", "sign" or "unsign"
    line: int | None  # None: the whole report
    before: str | None  # what stood in the report; None: the line was not in it
    after: str | None


ACTIONS = frozenset({"accept", "edit", "delete", "restore", "add", "undo", "redo", "sign", "unsign"})


@dataclass(frozen=True)
class Piece:
    """Words of a line beside the draft."""

    kind: Literal["same", "removed", "added"]
    text: str


@dataclass(frozen=True)
class Difference:
    """A line beside the sentence it was drafted as. The pieces that are not removed, joined, are `written` exactly."""

    line: int
    section: str
    choice: Choice
    drafted: str | None  # the model's words; None: the reader added the line
    written: str | None  # the report's words; None: deleted
    pieces: tuple[Piece, ...]


_UNDO_STEPS = 200  # more are forgotten; the log of edits forgets nothing


@dataclass(frozen=True)
class Report:
    """The reader's report: the lines of Findings, then of Impression, deleted ones among them, and every edit in order.

    There is no "accept all": what stands unreviewed is confirmed sentence by sentence, at the latest when it is signed.
    Every operation raises EmrrgError for an unknown line and, but for `unsign`, for a signed report; one that would change
    nothing gives the report itself back and is not logged.
    """

    lines: tuple[Line, ...] = ()
    edits: tuple[Edit, ...] = ()
    signed: str | None = None  # time of the sign-off
    past: tuple[tuple[Line, ...], ...] = ()  # the lines before each step, for undo
    future: tuple[tuple[Line, ...], ...] = ()  # the lines after each undone step, the next one last

    @classmethod
    def of(cls, draft: Draft) -> Self:
        """The draft as a report that nobody has read."""
        return cls(tuple(Line(i, s.section, s.text, Choice.UNREVIEWED, i) for i, s in enumerate(draft.sentences)))

    # what it says

    @property
    def findings(self) -> str:
        """The Findings, without heading."""
        return _joined(self._live("findings"))

    @property
    def impression(self) -> str:
        """The Impression, without heading."""
        return _joined(self._live("impression"))

    @property
    def unreviewed(self) -> tuple[Line, ...]:
        """The lines that nobody has said yes to."""
        return tuple(line for line in self.lines if line.choice is Choice.UNREVIEWED)

    @property
    def status(self) -> str:
        """ "preliminary" until it is signed, then "final" (the codes of FHIR's DiagnosticReport.status)."""
        return "preliminary" if self.signed is None else "final"

    def text(self) -> str:
        """As a reader would paste it; what nobody reviewed or signed says so."""
        notice = "Drafted with EMRRG: research and teaching software, not a medical device."
        if self.signed is not None:
            head, foot = "", f"Signed off {self.signed}. {notice}"
        elif self.unreviewed:
            head, foot = f"{NOT_REVIEWED}\n\n", DISCLAIMER
        else:
            head, foot = "", f"Preliminary, not signed off. {notice}"
        return f"{head}FINDINGS:\n{self.findings}\n\nIMPRESSION:\n{self.impression}\n\n{foot}\n"

    def line(self, id: int) -> Line:
        """The line of that number, deleted or not. Raises EmrrgError for an unknown one."""
        for line in self.lines:
            if line.id == id:
                return line
        raise EmrrgError(f"This report has no sentence number {id}: it was changed meanwhile. Load the page again.")

    def drafted(self, id: int) -> str | None:
        """The words that the model wrote for a line; None where the reader added it."""
        line = self.line(id)
        if line.drafted is None:
            return None
        # what stood there before the first edit of it; the log is never cut
        return next((edit.before for edit in self.edits if edit.line == id), line.text)

    def diff(self, draft: Draft) -> tuple[Difference, ...]:
        """Every line beside the draft's words, for a screen to draw, in the report's order. draft: the one it was made of."""
        rows = []
        for line in self.lines:
            old = None if line.drafted is None else draft.sentences[line.drafted].text
            new = None if line.choice is Choice.DELETED else line.text
            rows.append(Difference(line.id, line.section, line.choice, old, new, tuple(_pieces(old or "", new or ""))))
        return tuple(rows)

    # what a reader does

    def accept(self, id: int) -> Self:
        """Say yes to a sentence as it was drafted. What the reader wrote needs no yes."""
        line = self._open(id)
        return (
            self
            if line.choice is not Choice.UNREVIEWED
            else self._step("accept", replace(line, choice=Choice.ACCEPTED))
        )

    def edit(self, id: int, text: str) -> Self:
        """Put other words in a sentence's place; none at all delete it.

        A sentence edited back to the drafted words counts as accepted: the reader weighed it and left it as it was, and
        none of its words are the reader's. The same words again are no edit: leaving a text box is no review.
        """
        line, text = self._open(id), text.strip()
        if text == line.text:
            return self
        return self._step("edit", self._reworded(line, text)) if text else self.delete(id)

    def delete(self, id: int) -> Self:
        """Take a sentence out of the report. It stays among the lines and can be restored."""
        self._unsigned()
        line = self.line(id)
        return self if line.choice is Choice.DELETED else self._step("delete", replace(line, choice=Choice.DELETED))

    def restore(self, id: int) -> Self:
        """Take back a deletion. Drafted words come back unreviewed, whatever they were: to want a sentence back is not yet to say yes."""
        self._unsigned()
        line = self.line(id)
        return self._step("restore", self._restored(line)) if line.choice is Choice.DELETED else self

    def add(self, section: str, text: str, after: int | None = None) -> Self:
        """Put a sentence of the reader's own after a line of that section; None: before all others. Raises EmrrgError for no words."""
        self._unsigned()
        _check_section(section)
        if not text.strip():
            raise EmrrgError("Write the sentence first.")
        line = Line(self._next_id(), section, text.strip(), Choice.ADDED, None)
        if after is None:
            place = 0 if section == "findings" else sum(old.section == "findings" for old in self.lines)
        elif (before := self.line(after)).section == section:
            place = self.lines.index(before) + 1
        else:
            raise EmrrgError(f"Sentence {after} is not in the {section.capitalize()}.")
        return self._stepped((*self.lines[:place], line, *self.lines[place:]), [("add", line.id)])

    def retype(self, section: str, text: str) -> Self:
        """Take over a whole section from a text box: its words are laid beside the lines, and lines without a change keep their state.

        Where the words on both sides of a gap are untouched, lines end where they ended; elsewhere the text is cut into
        sentences. A sentence that half resembles the line in its place is an edit of it, any other is an addition; words
        that were moved, or deleted earlier and pasted again, are the line they were. All of it is one step for undo.
        """
        self._unsigned()
        _check_section(section)
        old = self._live(section)
        new = _cut(old, text)
        lines: list[Line | None] = [None] * len(new)  # what each new sentence is
        actions: list[tuple[str, int]] = []
        blocks = SequenceMatcher(None, [_plain(x.text) for x in old], [_plain(x) for x in new], False).get_opcodes()
        for kind, i, _, j, end in blocks:
            if kind == "equal":
                lines[j:end] = old[i : i + end - j]
        free = [line for line in self.lines if line.section == section and line not in lines]
        for j, words in enumerate(new):
            if lines[j] is None and (same := next((x for x in free if _plain(x.text) == _plain(words)), None)):
                free.remove(same)
                gone = same.choice is Choice.DELETED
                lines[j] = self._restored(same) if gone else same
                actions += [("restore", same.id)] if gone else [("delete", same.id), ("restore", same.id)]
        for _, i, stop, j, end in blocks:
            here = [x for x in old[i:stop] if x in free]
            there = [k for k in range(j, end) if lines[k] is None]
            for a, b in _alike([x.text for x in here], [new[k] for k in there]):
                free.remove(here[a])
                lines[there[b]] = self._reworded(here[a], new[there[b]])
                actions.append(("edit", here[a].id))
        id = self._next_id()
        for j, words in enumerate(new):
            if lines[j] is None:
                lines[j] = Line(id, section, words, Choice.ADDED, None)
                actions.append(("add", id))
                id += 1
        actions += [("delete", line.id) for line in free if line.choice is not Choice.DELETED]
        if not actions:
            return self
        mine = [line for line in lines if line is not None]
        for line in free:  # those that are deleted stay behind the line they followed
            place = self.lines.index(line)
            before = self.lines[place - 1].id if place else None
            after = next((n + 1 for n, x in enumerate(mine) if x.id == before), 0)
            mine.insert(after, replace(line, choice=Choice.DELETED))
        rest = [line for line in self.lines if line.section != section]
        return self._stepped(tuple(mine + rest if section == "findings" else rest + mine), actions)

    def undo(self) -> Self:
        """Take back the last step. The log keeps the step and the undo. A signature is not a step: see `unsign`."""
        self._unsigned()
        if not self.past:
            return self
        *past, lines = self.past
        return self._moved("undo", lines, tuple(past), (*self.future, self.lines))

    def redo(self) -> Self:
        """Do again what was undone last, unless something else was done since."""
        self._unsigned()
        if not self.future:
            return self
        *future, lines = self.future
        return self._moved("redo", lines, (*self.past, self.lines), tuple(future))

    def sign(self, confirmed: Collection[int] = ()) -> Self:
        """Sign the report off. confirmed: the unreviewed lines that the reader has said yes to, one by one; they become accepted.

        Raises EmrrgError naming the sentences that were neither reviewed nor confirmed, and for a report without a word.
        """
        self._unsigned()
        if left := [line.text for line in self.unreviewed if line.id not in confirmed]:
            words = " ".join(f"“{text}”" for text in left)
            raise EmrrgError(f"Not signed: accept, edit or delete each sentence that nobody has reviewed yet: {words}")
        if not (self.findings or self.impression):
            raise EmrrgError("Not signed: the report has no words.")
        report, yes = self, {line.id for line in self.unreviewed}
        if yes:
            lines = tuple(replace(x, choice=Choice.ACCEPTED) if x.id in yes else x for x in self.lines)
            report = self._stepped(lines, [("accept", line.id) for line in self.unreviewed])
        now = _now()
        return replace(report, signed=now, edits=(*report.edits, Edit(now, "sign", None, None, None)))

    def unsign(self) -> Self:
        """Take the signature back, so that the report can be changed; the log keeps both."""
        if self.signed is None:
            return self
        return replace(self, signed=None, edits=(*self.edits, Edit(_now(), "unsign", None, None, None)))

    # to keep it

    def to_dict(self) -> dict[str, Any]:
        """The documented JSON object (docs/sessions.md)."""
        kept = list(dict.fromkeys(line for lines in (*self.past, *self.future) for line in lines))
        number = {line: i for i, line in enumerate(kept)}
        return {
            "schema": REPORT_SCHEMA,
            "status": self.status,
            "signed": self.signed,
            "findings": self.findings,
            "impression": self.impression,
            "lines": [dataclasses.asdict(line) for line in self.lines],
            "edits": [dataclasses.asdict(edit) for edit in self.edits],
            "undo": {
                "lines": [dataclasses.asdict(line) for line in kept],
                "past": [[number[line] for line in lines] for lines in self.past],
                "future": [[number[line] for line in lines] for lines in self.future],
            },
        }

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """A report from its JSON object; "undo" may be missing. Raises EmrrgError where it is damaged or of another version."""
        try:
            if data["schema"] != REPORT_SCHEMA:
                raise ValueError(f"its form is {data['schema']}, not {REPORT_SCHEMA}")
            undo = data.get("undo") or {"lines": [], "past": [], "future": []}
            kept = _lines(undo["lines"])
            report = cls(
                lines=_lines(data["lines"]),
                edits=tuple(Edit(**row) for row in data["edits"]),
                signed=data["signed"],
                past=tuple(tuple(kept[i] for i in lines) for lines in undo["past"]),
                future=tuple(tuple(kept[i] for i in lines) for lines in undo["future"]),
            )
            if len({line.id for line in report.lines}) < len(report.lines):
                raise ValueError("two sentences have one number")
            if not isinstance(report.signed, str | None):
                raise ValueError("the signature has no time")
            if strange := {edit.action for edit in report.edits} - ACTIONS:
                raise ValueError(f"unknown actions {sorted(strange)}")
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise EmrrgError(
                f"The report cannot be read ({error}): it was damaged or made by another version."
            ) from error
        return report

    # within

    def _live(self, section: str) -> list[Line]:
        return [line for line in self.lines if line.section == section and line.choice is not Choice.DELETED]

    def _unsigned(self) -> None:
        if self.signed is not None:
            raise EmrrgError("This report is signed. Take the signature back before you change it.")

    def _open(self, id: int) -> Line:
        self._unsigned()
        if (line := self.line(id)).choice is Choice.DELETED:
            raise EmrrgError("This sentence is deleted. Restore it first.")
        return line

    def _next_id(self) -> int:
        return 1 + max((*(x.id for x in self.lines), *(e.line for e in self.edits if e.line is not None)), default=-1)

    def _reworded(self, line: Line, text: str) -> Line:
        if line.drafted is None:
            return replace(line, text=text)
        return replace(line, text=text, choice=Choice.ACCEPTED if text == self.drafted(line.id) else Choice.EDITED)

    def _restored(self, line: Line) -> Line:
        if line.drafted is None:
            return replace(line, choice=Choice.ADDED)
        return replace(line, choice=Choice.UNREVIEWED if line.text == self.drafted(line.id) else Choice.EDITED)

    def _step(self, action: str, line: Line) -> Self:
        return self._stepped(tuple(line if old.id == line.id else old for old in self.lines), [(action, line.id)])

    def _stepped(self, lines: tuple[Line, ...], actions: Iterable[tuple[str, int]]) -> Self:
        """One step for undo, with an entry in the log for each action on a line."""
        now, old, new = _now(), _said(self.lines), _said(lines)
        log = [
            Edit(
                now,
                action,
                id,
                None if action == "restore" else old.get(id),
                None if action == "delete" else new.get(id),
            )
            for action, id in actions
        ]
        past = (*self.past, self.lines)[-_UNDO_STEPS:]
        return replace(self, lines=lines, edits=(*self.edits, *log), past=past, future=())

    def _moved(self, action: str, lines: tuple[Line, ...], past: Sequence[Any], future: Sequence[Any]) -> Self:
        """To a state that was here before: an entry for each line that it changes, or one for the report if only the order changes."""
        old, new = ({line.id: line for line in some} for some in (self.lines, lines))
        changed = [id for id in sorted(old.keys() | new.keys()) if old.get(id) != new.get(id)]
        now, before, after = _now(), _said(self.lines), _said(lines)
        log = [Edit(now, action, id, before.get(id), after.get(id)) for id in changed]
        log = log or [Edit(now, action, None, None, None)]
        return replace(self, lines=lines, edits=(*self.edits, *log), past=tuple(past), future=tuple(future))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _check_section(section: str) -> None:
    if section not in SECTIONS:
        raise ValueError(f"{section!r} is not a section of a report: {SECTIONS}")


def _said(lines: Iterable[Line]) -> dict[int, str]:
    """What stands in the report, by line."""
    return {line.id: line.text for line in lines if line.choice is not Choice.DELETED}


def _lines(rows: Iterable[dict[str, Any]]) -> tuple[Line, ...]:
    lines = tuple(Line(**row | {"choice": Choice(row["choice"])}) for row in rows)
    for line in lines:
        _check_section(line.section)
        if not (type(line.id) is int and isinstance(line.text, str) and isinstance(line.drafted, int | None)):
            raise TypeError(f"{line} makes no sense")
    return lines


_ENDED = re.compile(r"[.!?][)\"'\]]*$")
_ITEM = re.compile(r"\(?\d{1,2}[.)]\s|[-*•–]\s")


def _joined(lines: Sequence[Line]) -> str:
    """Lines as running text. An item of a list and what follows a line without a full stop begin on a line of their own."""
    text = ""
    for line in lines:
        if text:
            text += "\n" if _ITEM.match(line.text) or not _ENDED.search(text) else " "
        text += line.text
    return text


_WORD = re.compile(r"\w+|[^\w\s]")


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text))


def _plain(text: str) -> str:
    """Without its line breaks: a text box wraps lines as it likes."""
    return " ".join(text.split())


def _cut(lines: Sequence[Line], text: str) -> list[str]:
    """A section as it was retyped, in sentences; what was not touched is cut as the lines were."""
    spans = [match.span() for match in _WORD.finditer(text)]
    begins = {start for start, _ in sentence_spans(text)}
    cut = [start in begins for start, _ in spans]
    old = [(word, not n) for line in lines for n, word in enumerate(_words(line.text))]
    new = [text[slice(*span)] for span in spans]
    for i, j, size in SequenceMatcher(None, [word for word, _ in old], new, False).get_matching_blocks():
        for k in range(1, size):
            cut[j + k] = old[i + k][1]
    edges = [0, *(n for n in range(1, len(spans)) if cut[n]), len(spans)] if spans else []
    return [text[spans[a][0] : spans[b - 1][1]] for a, b in pairwise(edges)]


def _alike(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs (number in old, number in new) that share at least half their words, the closest first, none crossing another."""
    a, b = ([_words(text.casefold()) for text in some] for some in (old, new))
    scores = [(SequenceMatcher(None, x, y, False).ratio(), i, j) for i, x in enumerate(a) for j, y in enumerate(b)]
    pairs: list[tuple[int, int]] = []
    for score, i, j in sorted(scores, key=lambda row: -row[0]):
        if score >= 0.5 and all((i - p) * (j - q) > 0 for p, q in pairs):
            pairs.append((i, j))
    return sorted(pairs)


def _pieces(old: str, new: str) -> Iterable[Piece]:
    """Two texts word by word. Spaces go with the word before them and are not compared."""
    a, b = (
        [match.group() for match in re.finditer(r"(?:\w+(?:[^\w\s]+\w+)*|[^\w\s])\s*", text)] for text in (old, new)
    )
    matcher = SequenceMatcher(None, [word.strip() for word in a], [word.strip() for word in b], False)
    for kind, i, stop, j, end in matcher.get_opcodes():
        if kind == "equal":
            yield Piece("same", "".join(b[j:end]))
            continue
        if stop > i:
            yield Piece("removed", "".join(a[i:stop]))
        if end > j:
            yield Piece("added", "".join(b[j:end]))
