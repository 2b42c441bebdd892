"""Report: what a reader makes of a draft, sentence by sentence, with every edit and its time.

The draft is never changed; the report is another text, kept beside it. A report is never changed either: every operation
gives a new one, so a screen holds the last and an edit that fails leaves it as it was.
"""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from difflib import SequenceMatcher
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Self

from emrrg_core.errors import EmrrgError
from emrrg_core.model.finding_tokens import NAMES, SIDES
from emrrg_core.report.draft import (
    DISCLAIMER,
    NOT_REVIEWED,
    SECTIONS,
    Draft,
)
from emrrg_core.report.rewrite import Rewritten, Standing, plans
from emrrg_core.report.told import Said
from emrrg_core.text.labeler import sentences as sentence_spans
from emrrg_core.text.sections import compose as compose
from emrrg_core.text.sections import split as split

if TYPE_CHECKING:
    from emrrg_core.report.cautions import Caution

REPORT_SCHEMA = "emrrg.report/1"


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
    drafted: int | None  # index into draft.sentences; None: it is not of the draft
    written: str | None = (
        None  # the model's words, of a line that it wrote after the draft (`summarise`, `rewrite`); None, and drafted None: the reader added it
    )

    @property
    def by_model(self) -> bool:
        """Whether the model wrote it first."""
        return self.drafted is not None or self.written is not None


@dataclass(frozen=True)
class Fields:
    """What stands in a report before its Findings, in the reader's words; "" where nothing stands. In the order of a report."""

    indication: str = ""  # why the films were taken
    comparison: str = ""  # earlier films that were looked at
    technique: str = ""


FIELDS = tuple(each.name for each in dataclasses.fields(Fields))


@dataclass(frozen=True)
class Edit:
    """One thing that was done to a report."""

    time: str  # UTC, ISO 8601 with Z
    action: str  # one of ACTIONS
    line: int | None  # None: the whole report
    before: str | None  # what stood in the report; None: the line was not in it
    after: str | None
    field: str | None = None  # one of FIELDS, where the action is "field"


# keep: a warning was seen, and the sentence stays. switch: the reader said of a finding that it is there, or not; before and after are what was said
ACTIONS = frozenset(
    {"accept", "edit", "delete", "restore", "add", "write", "keep", "switch", "undo", "redo", "sign", "unsign", "field"}
)


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
    drafted: str | None  # the model's words, of the draft or since; None: the reader added the line
    written: str | None  # the report's words; None: deleted
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Step:
    """What one step of undo brings back."""

    lines: tuple[Line, ...]
    decided: frozenset[str] = frozenset()
    says: Mapping[str, Said] = field(default_factory=dict, hash=False)


_UNDO_STEPS = 200  # more are forgotten; the log of edits forgets nothing


@dataclass(frozen=True)
class Report:
    """The reader's report: the lines of Findings, then of Impression, deleted ones among them, and every edit in order.

    Nothing is accepted unnamed: `accept_all` takes the sentences that the reader has seen, and what is left is confirmed when it is signed.
    Every operation raises EmrrgError for an unknown line and, but for `unsign`, for a signed report; one that would change
    nothing gives the report itself back and is not logged.
    """

    lines: tuple[Line, ...] = ()
    edits: tuple[Edit, ...] = ()
    signed: str | None = None  # time of the sign-off
    past: tuple[Step, ...] = ()  # what stood before each step, for undo
    future: tuple[Step, ...] = ()  # what stood after each undone step, the next one last
    fields: Fields = Fields()  # no part of undo: a text box has its own
    decided: frozenset[str] = (
        frozenset()
    )  # keys of the cautions that the reader has seen and decided to keep the sentence
    says: Mapping[str, Said] = field(default_factory=dict, hash=False)  # of findings that the reader switched, by name

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
        above = "".join(f"{name.upper()}:\n{words}\n\n" for name in FIELDS if (words := getattr(self.fields, name)))
        return f"{head}{above}FINDINGS:\n{self.findings}\n\nIMPRESSION:\n{self.impression}\n\n{foot}\n"

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
            return line.written
        # what stood there before the first edit of it; the log is never cut
        return next((edit.before for edit in self.edits if edit.line == id), line.text)

    def places(self) -> dict[int, tuple[int, int]]:
        """Where each line that is not deleted stands in the text of its section: first character, one past the last."""
        found: dict[int, tuple[int, int]] = {}
        for section in SECTIONS:
            text, end = _joined(self._live(section)), 0
            for line in self._live(section):
                start = text.index(line.text, end)
                end = start + len(line.text)
                found[line.id] = start, end
        return found

    def diff(self, draft: Draft) -> tuple[Difference, ...]:
        """Every line beside the draft's words, for a screen to draw, in the report's order. draft: the one it was made of."""
        rows = []
        for line in self.lines:
            old = line.written if line.drafted is None else draft.sentences[line.drafted].text
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

    def accept_all(self, ids: Collection[int]) -> Self:
        """Say yes to several sentences, each of which the reader has seen. One step for undo; those that need no yes stay as they are."""
        yes = {line.id for line in map(self._open, ids) if line.choice is Choice.UNREVIEWED}
        if not yes:
            return self
        lines = tuple(replace(x, choice=Choice.ACCEPTED) if x.id in yes else x for x in self.lines)
        return self._stepped(lines, [("accept", line.id) for line in lines if line.id in yes])

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

    def summarise(self, text: str) -> Self:
        """Put an Impression that the model wrote from these Findings in the place of the one that is there, unreviewed. One step for undo.

        What the model had written before is deleted and can be restored; a sentence that comes again stays as it is, and so do the reader's own.
        """
        self._unsigned()
        new = [text[i:j] for i, j in sentence_spans(text)]
        kept = {_plain(line.text) for line in self._live("impression")} & {_plain(words) for words in new}
        gone = [x for x in self._live("impression") if x.by_model and _plain(x.text) not in kept]
        first = self._next_id()
        fresh = [words for words in new if _plain(words) not in kept]
        added = [Line(first + n, "impression", words, Choice.UNREVIEWED, None, words) for n, words in enumerate(fresh)]
        if not gone and not added:
            return self
        lines = [replace(x, choice=Choice.DELETED) if x in gone else x for x in self.lines]
        actions = [*(("delete", line.id) for line in gone), *(("write", line.id) for line in added)]
        return self._stepped((*lines, *added), actions)

    def rewrite(self, written: Rewritten) -> Self:
        """Take over what the model wrote after the reader switched findings: the sentences that rest on them are exchanged for the new ones,
        unreviewed; every other line stays (emrrg_core.report.rewrite). One step for undo, with what the reader said (`says`).
        """
        self._unsigned()
        before, says = dict(self.says), {**self.says, **written.changed}
        standing: dict[str, list[Standing]] = {section: [] for section in SECTIONS}
        for x in self.lines:
            standing[x.section].append(Standing(x.id, x.text, self.drafted(x.id), x.choice is not Choice.DELETED))
        id = self._next_id()
        lines: list[Line] = []
        actions: list[tuple[str, int]] = []
        for section, plan in plans(standing, written).items():
            after: dict[int | None, list[Line]] = {}
            for place, words in plan.fresh:
                after.setdefault(place, []).append(Line(id, section, words, Choice.UNREVIEWED, None, words))
                id += 1
            lines += after.get(None, [])
            for old in (x for x in self.lines if x.section == section):
                line = old
                if old.id in plan.gone:
                    line = replace(old, choice=Choice.DELETED)
                elif old.id in plan.trimmed:
                    line = self._reworded(old, plan.trimmed[old.id])
                elif old.id in plan.back:
                    line = self._restored(old)
                lines += [line, *after.get(old.id, [])]
            actions += [("delete", n) for n in plan.gone] + [("edit", n) for n in plan.trimmed]
            actions += [("restore", n) for n in plan.back]
            actions += [("write", x.id) for fresh in after.values() for x in fresh]
        if not actions and says == before:
            return self
        report = self._stepped(tuple(lines), actions)
        told = [(name, before.get(name), said) for name, said in written.changed.items() if before.get(name) != said]
        log = [Edit(_now(), "switch", None, f"{n}: {old}" if old else None, f"{n}: {new}") for n, old, new in told]
        edits = (*report.edits[: len(self.edits)], *log, *report.edits[len(self.edits) :])
        return replace(report, says=says, edits=edits)

    def decide(self, key: str, line: int | None = None) -> Self:
        """The reader has seen a warning (`Caution.key`) and keeps the sentence as it stands. line: of the sentence, for the log. One step for undo.

        Raises EmrrgError for what is no key of a caution.
        """
        self._unsigned()
        if not re.fullmatch(r"[0-9a-f]{12}", key):
            raise EmrrgError("This warning is not known: load the page again.")
        text = None if line is None else self._open(line).text
        if key in self.decided:
            return self
        report = self._stepped(self.lines, [])
        log = (*self.edits, Edit(_now(), "keep", line, text, text))
        return replace(report, decided=self.decided | {key}, edits=log)

    def with_field(self, name: str, text: str) -> Self:
        """Put words into one of FIELDS; none at all empty it. Logged, and no step for undo. Raises EmrrgError for another name."""
        self._unsigned()
        if name not in FIELDS:
            raise EmrrgError(f"A report has no field “{name}”: choose one of {', '.join(FIELDS)}.")
        old, text = getattr(self.fields, name), text.strip()
        if text == old:
            return self
        edit = Edit(_now(), "field", None, old or None, text or None, name)
        return replace(self, fields=replace(self.fields, **{name: text}), edits=(*self.edits, edit))

    def undo(self) -> Self:
        """Take back the last step. The log keeps the step and the undo. A signature is not a step: see `unsign`."""
        self._unsigned()
        if not self.past:
            return self
        *past, step = self.past
        return self._moved("undo", step, tuple(past), (*self.future, self._now_stands))

    def redo(self) -> Self:
        """Do again what was undone last, unless something else was done since."""
        self._unsigned()
        if not self.future:
            return self
        *future, step = self.future
        return self._moved("redo", step, (*self.past, self._now_stands), tuple(future))

    def sign(self, confirmed: Collection[int] = (), cautions: "Collection[Caution]" = ()) -> Self:
        """Sign the report off. confirmed: the unreviewed lines that the reader has said yes to, one by one; they become accepted.

        cautions: of the report as it stands (emrrg_core.report.cautions). Raises EmrrgError naming the sentences that were neither reviewed nor
        confirmed, then those with a caution that is not decided, and for a report without a word.
        """
        self._unsigned()
        if left := [line.text for line in self.unreviewed if line.id not in confirmed]:
            words = " ".join(f"“{text}”" for text in left)
            raise EmrrgError(f"Not signed: accept, edit or delete each sentence that nobody has reviewed yet: {words}")
        if open_ := [caution for caution in cautions if caution.key not in self.decided]:
            where = [c.message if c.line is None else f"“{self.line(c.line).text}”" for c in open_]
            words = " ".join(dict.fromkeys(where))
            raise EmrrgError(f"Not signed: decide on each warning first: {words}")
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
        kept = list(dict.fromkeys(line for step in (*self.past, *self.future) for line in step.lines))
        number = {line: i for i, line in enumerate(kept)}
        return {
            "schema": REPORT_SCHEMA,
            "status": self.status,
            "signed": self.signed,
            "findings": self.findings,
            "impression": self.impression,
            "fields": dataclasses.asdict(self.fields),
            "lines": [dataclasses.asdict(line) for line in self.lines],
            "edits": [dataclasses.asdict(edit) for edit in self.edits],
            "decided": sorted(self.decided),
            "says": _of_says(self.says),
            "undo": {
                "lines": [dataclasses.asdict(line) for line in kept],
                "past": [_of_step(step, number) for step in self.past],
                "future": [_of_step(step, number) for step in self.future],
            },
        }

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """A report from its JSON object; "undo", "fields", "decided" and "says" may be missing. Raises EmrrgError where it is damaged or of another
        version."""
        try:
            if data["schema"] != REPORT_SCHEMA:
                raise ValueError(f"its form is {data['schema']}, not {REPORT_SCHEMA}")
            undo = data.get("undo") or {"lines": [], "past": [], "future": []}
            kept = _lines(undo["lines"])
            report = cls(
                lines=_lines(data["lines"]),
                edits=tuple(Edit(**row) for row in data["edits"]),
                signed=data["signed"],
                past=tuple(_step(row, kept) for row in undo["past"]),
                future=tuple(_step(row, kept) for row in undo["future"]),
                decided=_decided(data.get("decided", ())),
                says=_says(data.get("says", {})),
                fields=Fields(**(data.get("fields") or {})),  # reports kept before they came have none
            )
            if not all(isinstance(getattr(report.fields, name), str) for name in FIELDS):
                raise TypeError(f"{report.fields} makes no sense")
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

    @property
    def _now_stands(self) -> Step:
        return Step(self.lines, self.decided, self.says)

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
        if not line.by_model:
            return replace(line, text=text)
        return replace(line, text=text, choice=Choice.ACCEPTED if text == self.drafted(line.id) else Choice.EDITED)

    def _restored(self, line: Line) -> Line:
        if not line.by_model:
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
        past = (*self.past, self._now_stands)[-_UNDO_STEPS:]
        return replace(self, lines=lines, edits=(*self.edits, *log), past=past, future=())

    def _moved(self, action: str, to: Step, past: tuple[Step, ...], future: tuple[Step, ...]) -> Self:
        """To a state that was here before: an entry for each line that it changes, or one for the report if only the order changes."""
        lines = to.lines
        old, new = ({line.id: line for line in some} for some in (self.lines, lines))
        changed = [id for id in sorted(old.keys() | new.keys()) if old.get(id) != new.get(id)]
        now, before, after = _now(), _said(self.lines), _said(lines)
        log = [Edit(now, action, id, before.get(id), after.get(id)) for id in changed]
        edits = (*self.edits, *(log or [Edit(now, action, None, None, None)]))
        return replace(self, lines=lines, decided=to.decided, says=to.says, edits=edits, past=past, future=future)


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
        known = isinstance(line.drafted, int | None) and isinstance(line.written, str | None)
        if not (type(line.id) is int and isinstance(line.text, str) and known):
            raise TypeError(f"{line} makes no sense")
    return lines


def _of_says(says: Mapping[str, Said]) -> dict[str, Any]:
    return {name: dataclasses.asdict(said) for name, said in says.items()}


def _of_step(step: Step, number: Mapping[Line, int]) -> dict[str, Any]:
    lines = [number[line] for line in step.lines]
    return {"lines": lines, "decided": sorted(step.decided), "says": _of_says(step.says)}


def _step(row: Any, kept: Sequence[Line]) -> Step:
    """From what `_of_step` gave; reports kept before there were decisions have the lines alone."""
    given: Mapping[str, Any] = {"lines": row} if isinstance(row, list) else row
    lines = tuple(kept[i] for i in given["lines"])
    return Step(lines, _decided(given.get("decided", ())), _says(given.get("says", {})))


def _decided(keys: Iterable[Any]) -> frozenset[str]:
    found = frozenset(keys)
    if not all(isinstance(key, str) for key in found):
        raise TypeError("a decision on a warning makes no sense")
    return found


def _says(rows: Mapping[str, Any]) -> dict[str, Said]:
    found = {name: Said(**row) for name, row in rows.items()}
    for name, said in found.items():
        if name not in NAMES or not isinstance(said.present, bool | None) or said.side not in SIDES:
            raise ValueError(f"what was said of {name} makes no sense")
    return found


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
