"""What a report says of each label and where; where it contradicts itself; and what it cannot know.

    findings_table   Findings, Impression → 14 rows: label, status, the sentences that say so
    contradictions   Findings, Impression → pairs of sentences that cannot both be true
    only_concluded   Findings, Impression → what the Impression names and the Findings lack
    clear_lungs      a sentence → whether it calls the lungs clear
    flags            all of that and the words about an earlier film, as marks in the text, for a screen

The reading is that of `findings`; what does and does not go together is told in consistency.toml, in phrases that a radiologist can amend.
How often it is right is measured in docs/findings.md.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources
from itertools import product
from typing import Any

from emrrg_core.errors import ConfigError
from emrrg_core.text.labeler import (
    LABELS,
    NO_FINDING,
    SUPPORT_DEVICES,
    Mention,
    Status,
    labels,
    pattern_of,
    prior_words,
    read_findings,
    report_text,
    sentences,
)


@dataclass(frozen=True)
class Place:
    """A sentence of a report: characters start to end of the text of its section, "findings" or "impression"."""

    section: str
    start: int
    end: int


@dataclass(frozen=True)
class Row:
    """What a report says of one label: its status (None: not mentioned), and the sentences that say so, in order.

    No Finding has the sentences that call the film normal where it is positive, those that state something where it is
    negative; a report that is normal only because it states nothing has none.
    """

    label: str
    status: Status | None
    places: tuple[Place, ...]


class Kind(StrEnum):
    """What is wrong with a place in a report."""

    NEGATION = "negation"  # a finding is stated and denied
    SIDE = "side"  # a finding is on one side in the Findings and on the other in the Impression
    NORMAL = "normal"  # the film is called normal beside a finding
    PRIOR = "prior"  # words about an earlier film, where none was given
    ONLY_IMPRESSION = "only in the Impression"  # the Impression names a finding that the Findings lack


@dataclass(frozen=True)
class Contradiction:
    """Two sentences that cannot both be true (the same one twice where it contradicts itself), in reading order."""

    kind: Kind
    label: str
    places: tuple[Place, Place]
    message: str  # a sentence for the reader


@dataclass(frozen=True)
class Flag:
    """A mark in the text: characters start to end of a section, why, and a sentence for the reader."""

    section: str
    start: int
    end: int
    kind: Kind
    message: str


# ------------------------------------------------------------------------------------------------------------- phrases

Patterns = tuple[re.Pattern[str], ...]


@dataclass(frozen=True)
class _Rules:
    adjectives: Patterns
    sites: Patterns
    leaves_room: Patterns
    clear: Patterns
    beside_clear: Patterns
    only_acute: Patterns
    one_place: tuple[str, ...]
    lung: tuple[str, ...]
    acute: tuple[str, ...]
    kinds: dict[str, Patterns]
    rests_on: dict[str, tuple[str, ...]]


@cache
def _rules() -> _Rules:
    data: dict[str, Any] = tomllib.loads(
        resources.files("emrrg_core.text").joinpath("consistency.toml").read_text("utf-8")
    )
    resting = [*data["rests_on"], *(label for labels in data["rests_on"].values() for label in labels)]
    if unknown := {*data["one_place"], *data["lung"], *data["acute"], *data["kinds"], *resting} - set(LABELS):
        raise ConfigError(f"consistency.toml names labels that do not exist: {', '.join(sorted(unknown))}")
    phrases = ("adjectives", "sites", "leaves_room", "clear", "beside_clear", "only_acute")
    return _Rules(
        **{name: _patterns(data[name]) for name in phrases},
        one_place=tuple(data["one_place"]),
        lung=tuple(data["lung"]),
        acute=tuple(data["acute"]),
        kinds={label: _patterns(names) for label, names in data["kinds"].items()},
        rests_on={label: tuple(others) for label, others in data["rests_on"].items()},
    )


def _patterns(names: Iterable[str | list[str]]) -> Patterns:
    """One pattern for each name: a phrase, or several that stand for the same."""
    return tuple(pattern_of([name] if isinstance(name, str) else name) for name in names)


def _named(patterns: Patterns, text: str) -> frozenset[int]:
    return frozenset(number for number, pattern in enumerate(patterns) if pattern.search(text))


# ---------------------------------------------------------------------------------------------------------- statements

_JOINT = re.compile(r"[,;:\[\]()]|\b(?:and|or|nor)\b")
_COMMA = re.compile(r"[,;\[\]()]")


@dataclass(frozen=True)
class _Statement:
    """A mention with its sentence, in lower case; start and end are the mention's place in that."""

    mention: Mention
    place: Place
    quote: str
    text: str
    start: int
    end: int

    @property
    def label(self) -> str:
        return self.mention.label

    def _begin(self, joint: re.Pattern[str]) -> int:
        """Where the words begin that belong to the mention: behind the last joint, or at the word that denies it."""
        stops = [match.end() for match in joint.finditer(self.text, 0, self.start)]
        cue = self.text.rfind(self.mention.cue, 0, self.start) if self.mention.cue else -1
        return max(0, cue, *stops)

    @property
    def kinds(self) -> frozenset[int]:
        own = self.text[self._begin(_JOINT) : self.end]
        return _named(_rules().kinds.get(self.label, ()), own)

    @property
    def adjectives(self) -> frozenset[int]:
        return _named(_rules().adjectives, self.text[self._begin(_COMMA) : self.end])

    @property
    def sites(self) -> frozenset[int]:
        if self.label in _rules().one_place:
            return frozenset()
        stop = _COMMA.search(self.text, self.end)
        behind = self.text[self.end : stop.start() if stop else len(self.text)]
        return _named(_rules().sites, self.text[self._begin(_COMMA) : self.start]) | _named(_rules().sites, behind)

    @property
    def leaves_room(self) -> bool:
        return bool(_named(_rules().leaves_room, self.text))

    @property
    def clears(self) -> bool:
        """Whether it calls the lungs clear."""
        return self.mention.label == "Lung Opacity" and bool(_named(_rules().clear, self.text[self.start : self.end]))


def _statements(section: str, text: str) -> list[_Statement]:
    spans = sentences(text)
    found = []
    for mention in read_findings(text):
        start, end = spans[mention.sentence]
        sentence = text[start:end]
        place = Place(section, start, end)
        found.append(_Statement(mention, place, sentence, sentence.lower(), mention.start - start, mention.end - start))
    return found


def _read(findings: str, impression: str) -> list[_Statement]:
    return [*_statements("findings", findings), *_statements("impression", impression)]


# --------------------------------------------------------------------------------------------------------------- table


def findings_table(findings: str, impression: str) -> tuple[Row, ...]:
    """What the report says of each of CheXpert's 14 labels, in the order of LABELS, and the sentences that say so.

    The status is that of `findings.labels`: positive wins over uncertain, uncertain over negative.
    """
    stated = _read(findings, impression)
    rows = []
    for label, status in labels(report_text(findings, impression)).items():
        if label == NO_FINDING and status is Status.NEGATIVE:
            wanted = [s for s in stated if s.label not in (NO_FINDING, SUPPORT_DEVICES) and not _denied(s)]
        else:
            wanted = [s for s in stated if s.label == label and s.mention.status is status]
        rows.append(Row(label, status, tuple(dict.fromkeys(s.place for s in wanted))))
    return tuple(rows)


# ------------------------------------------------------------------------------------------------------ contradictions


def contradictions(findings: str, impression: str) -> list[Contradiction]:
    """Pairs of sentences that cannot both be true, within and between the sections, in reading order.

    negation  a finding is stated in one sentence and denied in another, on a side and of a kind that the denial covers;
              or a finding of the lungs is stated beside lungs that are called clear
    side      the Findings have it on one side only, the Impression on the other only
    normal    a sentence calls the film normal, or denies anything acute, beside a finding that is (acute)

    What is doubted ("possible effusion") contradicts nothing, and neither does a denial with an exception ("no other
    opacity"), of a part ("no large effusion", "no rib fracture") or of what is only a kind of the other ("no
    consolidation" beside "opacity").
    """
    stated = _read(findings, impression)
    found: dict[tuple[Kind, str, Place, Place], Contradiction] = {}
    for kind, one, two, message in (*_negations(stated), *_normals(stated), *_sides(stated)):
        first, second = sorted((one.place, two.place), key=_order)
        label = one.label
        found.setdefault((kind, label, first, second), Contradiction(kind, label, (first, second), message))
    return sorted(found.values(), key=lambda c: (*map(_order, c.places), LABELS.index(c.label)))


def _order(place: Place) -> tuple[bool, int, int]:
    return place.section == "impression", place.start, place.end


Found = Iterator[tuple[Kind, _Statement, _Statement, str]]


def _denied(statement: _Statement) -> bool:
    return statement.mention.status is Status.NEGATIVE


def _affirmed(statements: list[_Statement]) -> list[_Statement]:
    return [s for s in statements if s.mention.status is Status.POSITIVE and s.label != NO_FINDING]


def _negations(stated: list[_Statement]) -> Found:
    rules = _rules()
    for yes, no in product(_affirmed(stated), filter(_denied, stated)):
        if no.leaves_room or not _covers(no.mention.side, yes.mention.side):
            continue
        if no.clears:
            if not no.adjectives and yes.label in rules.lung and not _named(rules.beside_clear, yes.text):
                yield Kind.NEGATION, yes, no, f"{_says(no)} that the lungs are clear, but {_states(yes)}."
        elif (
            yes.label == no.label
            and no.kinds <= yes.kinds
            and no.adjectives <= _named(rules.adjectives, yes.text)
            and no.sites <= _named(rules.sites, yes.text)
        ):
            yield Kind.NEGATION, yes, no, f"{_says(no)} that there is no {_name(no)}, but {_states(yes)}."


def _covers(denied: str | None, affirmed: str | None) -> bool:
    """Whether what is denied on one side holds what is affirmed on another."""
    return denied in (None, "bilateral", affirmed) or affirmed == "bilateral"


def _normals(stated: list[_Statement]) -> Found:
    rules = _rules()
    for normal in stated:
        if normal.label != NO_FINDING or normal.leaves_room:
            continue
        only_acute = bool(_named(rules.only_acute, normal.text[normal.start : normal.end]))
        for yes in _affirmed(stated):
            if yes.label != SUPPORT_DEVICES and (not only_acute or yes.label in rules.acute):
                what = "that nothing is acute" if only_acute else "that the film is normal"
                yield Kind.NORMAL, yes, normal, f"{_says(normal)} {what}, but {_states(yes)}."


def _sides(stated: list[_Statement]) -> Found:
    for label in LABELS:
        told = [s for s in stated if s.label == label and not _denied(s) and s.label != NO_FINDING]
        above, below = ([s for s in told if s.place.section == section] for section in ("findings", "impression"))
        for here, there in (("left", "right"), ("right", "left")):
            if {s.mention.side for s in above} == {here} and {s.mention.side for s in below} == {there}:
                for one, two in product(above, below):
                    if one.kinds <= two.kinds or two.kinds <= one.kinds:
                        yield (
                            Kind.SIDE,
                            one,
                            two,
                            (
                                f"The Findings have {_name(one)} on the {here} (“{one.quote}”), the Impression on the {there} (“{two.quote}”)."
                            ),
                        )


def _name(statement: _Statement) -> str:
    return {"Support Devices": "such device"}.get(statement.label, statement.label.lower())


def _says(statement: _Statement) -> str:
    verb = "say" if statement.place.section == "findings" else "says"
    return f"The {statement.place.section.capitalize()} {verb} (“{statement.quote}”)"


def _states(statement: _Statement) -> str:
    verb = "state" if statement.place.section == "findings" else "states"
    name = "a device" if statement.label == SUPPORT_DEVICES else _name(statement)
    return f"the {statement.place.section.capitalize()} {verb} {name} (“{statement.quote}”)"


# --------------------------------------------------------------------------------------------- Findings and Impression


def only_concluded(findings: str, impression: str) -> list[tuple[str, Place]]:
    """The labels that the Impression states or suspects and that nothing in the Findings stands for, each with the sentence that names it, in
    reading order. What a label may rest on besides itself is told in consistency.toml ([rests_on])."""
    above = {s.label for s in _statements("findings", findings) if not _denied(s)}
    found = []
    for stated in _statements("impression", impression):
        rests = {stated.label, *_rules().rests_on.get(stated.label, ())}
        if not _denied(stated) and stated.label != NO_FINDING and not rests & above:
            found.append((stated.label, stated.place))
    return list(dict.fromkeys(found))


def clear_lungs(sentence: str) -> bool:
    """Whether a sentence calls the lungs clear, which denies every one of `lung_labels`."""
    return any(s.clears and _denied(s) for s in _statements("findings", sentence))


def lung_labels() -> tuple[str, ...]:
    """What clear lungs deny: Lung Opacity and the labels below it."""
    return _rules().lung


# --------------------------------------------------------------------------------------------------------------- flags


def flags(findings: str, impression: str, *, has_prior: bool) -> list[Flag]:
    """Everything in a report that a reader should look at twice, where it stands, in reading order.

    Both sentences of each contradiction; each finding that only the Impression names, unless the Findings deny it, which is a contradiction; and,
    unless an earlier film was given (`has_prior`), each word about one.
    """
    against = contradictions(findings, impression)
    found = [
        Flag(place.section, place.start, place.end, c.kind, c.message)
        for c in against
        for place in dict.fromkeys(c.places)
    ]
    denied = {(c.label, place) for c in against if c.kind is Kind.NEGATION for place in c.places}
    for label, place in only_concluded(findings, impression):
        if (label, place) not in denied:
            name = "a device" if label == SUPPORT_DEVICES else label.lower()
            message = f"The Impression names {name} (“{impression[place.start : place.end]}”), and the Findings do not."
            found.append(Flag(place.section, place.start, place.end, Kind.ONLY_IMPRESSION, message))
    if not has_prior:
        for section, text in (("findings", findings), ("impression", impression)):
            for start, end in prior_words(text):
                message = f"“{text[start:end]}” compares with an earlier film, and none was given."
                found.append(Flag(section, start, end, Kind.PRIOR, message))
    return sorted(dict.fromkeys(found), key=lambda f: (*_order(Place(f.section, f.start, f.end)), f.kind, f.message))
