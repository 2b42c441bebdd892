"""Warnings of a report, each with the sentence that it is about, until the reader has decided on it.

They are made anew of what stands: a sentence that was deleted or has other words has none of its old ones. Of two kinds:

    in the text     what contradicts what, words about an earlier film that was not given, a finding that only the Impression names
                    (emrrg_core.text.consistency); of every sentence
    by the film     what a sentence says otherwise than was read in the film; of the model's words only, as they were written: other words are the
                    reader's own reading. What the reader said of a finding by switching it counts in place of what was read, and of every sentence.

The sentences are read by the label reader (emrrg_core.text.labeler), whose errors are counted in.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from emrrg_core.model.finding_tokens import ABNORMAL, NAMES, SHOWN, Finding, Presence
from emrrg_core.report.draft import SECTIONS, Draft
from emrrg_core.report.report import Choice, Line, Report
from emrrg_core.report.told import Said, Spoken, named, spoken, switched
from emrrg_core.text.changes import changes
from emrrg_core.text.consistency import Kind, flags
from emrrg_core.text.labeler import NO_FINDING


class CautionKind(StrEnum):
    """What a reader should look at twice."""

    NEGATION = Kind.NEGATION.value  # stated here and denied there
    SIDE = Kind.SIDE.value  # left here and right there
    NORMAL = Kind.NORMAL.value  # normal beside a finding
    PRIOR = Kind.PRIOR.value  # words about an earlier film, where none was given
    ONLY_IMPRESSION = Kind.ONLY_IMPRESSION.value  # the Impression names what the Findings lack
    NOT_READ = "not read"  # states a finding that was not read in the film
    NOT_RULED_OUT = "not ruled out"  # denies one that was not ruled out
    OTHER_SIDE = "other side"  # than was read
    CHANGE = "change"  # says a change since the prior film that was not read
    NOT_ASSESSED = "not assessed"  # speaks of what the checkpoint does not assess
    SWITCHED = "switched"  # says otherwise of a finding than the reader did when switching it
    NOT_STATED = "not stated"  # of the whole report: read in the film, or said by the reader, and no sentence says so


@dataclass(frozen=True)
class Caution:
    """One thing to decide on. key: for `Report.decide`; of another kind, sentence or message it is another. line: None: of the report as a whole."""

    key: str
    line: int | None
    kind: CautionKind
    message: str  # a sentence for the reader


def cautions(report: Report, draft: Draft | None, *, has_prior: bool) -> tuple[Caution, ...]:
    """The warnings of a report as it stands, decided ones too, in the order of its lines; at last those of the report as a whole.

    draft: that it was made of; None, or one of a checkpoint that reads no findings: the film is not asked. has_prior: whether an earlier film was
    given. What was read and is stated nowhere is no warning where the reader deleted or edited the sentence of the Findings that stated it.
    """
    live = [line for line in report.lines if line.choice is not Choice.DELETED]
    found: dict[int, list[tuple[CautionKind, str]]] = {line.id: [] for line in live}
    for id, kind, message in _in_the_text(report, has_prior=has_prior):
        found[id].append((kind, message))
    whole: list[tuple[CautionKind, str]] = []
    if draft is not None and draft.read is not None:
        known = {finding.name for finding in draft.read}
        says = {name: said for name, said in report.says.items() if name in known}
        read = {finding.label: finding for finding in switched(draft.read, says) if finding.name != ABNORMAL}
        for line in live:
            mine = found[line.id]
            mine += _against_the_reader(line, says)
            if line.by_model and line.choice is not Choice.EDITED:
                earlier = any(kind is CautionKind.PRIOR for kind, _ in mine)
                mine += _by_the_film(line, read, says)
                mine += [] if earlier else _changed(line, read, says)
        whole = list(_not_stated(report, live, read, says))
    ordered = [line for section in SECTIONS for line in live if line.section == section]
    made = [_caution(line, *each) for line in ordered for each in dict.fromkeys(found[line.id])]
    return (*made, *(_caution(None, *each) for each in whole))


def _caution(line: Line | None, kind: CautionKind, message: str) -> Caution:
    where = ("", "") if line is None else (line.section, line.text)
    key = hashlib.sha256("\n".join((kind, *where, message)).encode()).hexdigest()[:12]
    return Caution(key, None if line is None else line.id, kind, message)


# ---------------------------------------------------------------------------------------------------------- in the text


def _in_the_text(report: Report, *, has_prior: bool) -> Iterator[tuple[int, CautionKind, str]]:
    """The flags of both sections by line; words about an earlier film once a line."""
    where, sections = report.places(), {line.id: line.section for line in report.lines}
    earlier: dict[int, list[str]] = {}
    for flag in flags(report.findings, report.impression, has_prior=has_prior):
        for id, (start, end) in where.items():
            if sections[id] == flag.section and flag.start < end and start < flag.end:
                if flag.kind is Kind.PRIOR:
                    earlier.setdefault(id, []).append(flag.message)
                else:
                    yield id, CautionKind(flag.kind.value), flag.message
    for id, messages in earlier.items():
        yield id, CautionKind.PRIOR, " ".join(dict.fromkeys(messages))


# ---------------------------------------------------------------------------------------------------------- by the film


Found = Iterator[tuple[CautionKind, str]]


def _shown(label: str) -> str:
    """A label as a reader would call it."""
    name = next((name for name, mine in NAMES.items() if mine == label), label)
    return SHOWN.get(name, name if name in NAMES else label.lower())


def _by_name(text: str) -> dict[str, tuple[str, Spoken]]:
    """What a sentence says of findings, with the label that says so; a pneumonia that is denied denies no opacity."""
    found: dict[str, tuple[str, Spoken]] = {}
    for label, said in spoken(text).items():
        name = named(label)
        if name is None or (label != NAMES[name] and not said.states):
            continue
        if name not in found or said.states > found[name][1].states:
            found[name] = label, said
    return found


def _against_the_reader(line: Line, says: Mapping[str, Said]) -> Found:
    for name, (_, mine) in _by_name(line.text).items():
        if name not in says or (says[name].present is None and (line.choice is Choice.EDITED or not line.by_model)):
            continue
        said, shown = says[name], SHOWN.get(name, name)
        if mine.states is not said.present:
            yield CautionKind.SWITCHED, f"You said of {shown}: {said}. This sentence {_verb(mine)} it."
        elif mine.states and mine.beside(said.side):
            yield CautionKind.SWITCHED, f"You said of {shown}: {said}. This sentence names another side."


def _verb(said: Spoken) -> str:
    return "states" if said.states else "denies"


def _by_the_film(line: Line, read: Mapping[str, Finding], says: Mapping[str, Said]) -> Found:
    present = {label for label, finding in read.items() if finding.presence is Presence.PRESENT}
    allowed = present | ({"Pneumonia"} if any(finding.pneumonia for finding in read.values()) else set())
    if present & {"Consolidation", "Lung Lesion", "Edema", "Atelectasis"}:
        allowed |= {"Lung Opacity"}
    for label, mine in spoken(line.text).items():
        if label == NO_FINDING or named(label) in says or (label == "Pneumonia" and not mine.states):
            continue
        shown = _shown(label)
        if label not in read and label != "Pneumonia":
            yield (
                CautionKind.NOT_ASSESSED,
                f"This sentence {_verb(mine)} {shown}, which this checkpoint does not assess.",
            )
        elif not mine.states and read[label].presence is not Presence.ABSENT:
            yield CautionKind.NOT_RULED_OUT, f"This sentence denies {shown}, which was not ruled out in the film."
        elif mine.states and label not in allowed:
            yield CautionKind.NOT_READ, f"This sentence states {shown}: not read in the film."
        elif mine.states and label in present and mine.beside(read[label].side):
            yield CautionKind.OTHER_SIDE, f"Read in the film: {read[label]}. This sentence names another side."


def _changed(line: Line, read: Mapping[str, Finding], says: Mapping[str, Said]) -> Found:
    for label, change in changes(line.text):
        label = "Lung Opacity" if label == "Pneumonia" else label
        if named(label) in says:
            continue
        finding = read.get(label)
        was = finding.change if finding else None
        if was is not change:
            but = f"Compared with the prior film, it is {was}" if was else "No change of it was read"
            yield CautionKind.CHANGE, f"This sentence says that {_shown(label)} is {change}. {but}."


# ------------------------------------------------------------------------------------------------------- not in any line


def _not_stated(report: Report, live: list[Line], read: Mapping[str, Finding], says: Mapping[str, Said]) -> Found:
    """What was read or said and no line states, and changes that were read and no line tells."""
    stated = {name for line in live for name, (_, mine) in _by_name(line.text).items() if mine.states}
    told = {named(label) for line in live for label, _ in changes(line.text)}
    weighed = [line for line in report.lines if line.section == "findings" and line.choice in (Choice.DELETED, Choice.EDITED)]  # fmt: skip
    before = [report.drafted(line.id) or "" for line in weighed]
    decided = {name for text in before for name, (_, mine) in _by_name(text).items() if mine.states}
    decided_changes = {named(label) for text in before for label, _ in changes(text)}
    for finding in read.values():
        name = finding.name
        present = finding.presence is Presence.PRESENT
        if present and name not in stated and name in says:
            yield CautionKind.NOT_STATED, f"You said of {SHOWN.get(name, name)}: {says[name]}. No sentence states it."
        elif present and name not in stated and name not in decided:
            yield CautionKind.NOT_STATED, f"Read in the film, but not stated: {finding}."
        elif finding.change and name not in told | decided_changes and (name in stated or not present):
            yield (
                CautionKind.CHANGE,
                f"Compared with the prior film, {finding} is {finding.change}: no sentence says so.",
            )
