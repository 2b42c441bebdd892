"""A report beside the reference: which findings agree, which differ and in what, and what that makes of each sentence.

Findings are compared over the whole report, wherever they stand: "No effusion or pneumothorax." is "No effusion. No pneumothorax.", and a left and a
right effusion in two sentences are one on both sides. Of each statement the label reader (labeler.py) tells label, certainty and side; place,
number, size and kind are read here. `consistency.contradictions` decides what cannot both be true. A sentence in which the reader finds nothing is
compared by its words. It is help for a talk about a report, not a mark: the reader knows 14 labels.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from enum import StrEnum
from itertools import pairwise
from typing import Any

from emrrg_core.text.consistency import contradictions
from emrrg_core.text.labeler import (
    LABELS,
    NO_FINDING,
    Mention,
    Status,
    labels,
    read_findings,
    report_text,
    sentences,
)
from emrrg_core.text.metrics import text_scores

ALIKE = 0.6  # of the words that two sentences share in order, for them to be laid side by side for their words alone
MEASURED = 1.25  # two measures of one finding agree where the larger is at most so many times the smaller
_WORD = re.compile(r"\w+")
_DENIED = "denied"


class Kind(StrEnum):
    """How a sentence stands to the other report."""

    SAME = "same"  # the other says it too, in these words or in others
    PARTLY = "partly"  # the other says a part of it, or says it of another place, number or size, or uses much the same words
    OPPOSITE = "opposite"  # both cannot be true
    ALONE = "alone"  # the other says nothing of it


class Aspect(StrEnum):
    """In what a finding of the report differs from the reference's."""

    MISSED = "missed"
    ADDED = "added"
    CERTAINTY = "certainty"
    SIDE = "side"
    PLACE = "place"
    NUMBER = "number"
    SIZE = "size"
    KIND = "kind"


@dataclass(frozen=True)
class Difference:
    """One thing in which the report differs from the reference. said, known: what the report and the reference say, "" for nothing."""

    aspect: Aspect
    label: str
    said: str
    known: str

    def __str__(self) -> str:
        """In words, for who wrote the report."""
        if self.aspect is Aspect.MISSED:
            if self.said == _DENIED:
                return f"{self.label}: denied, and the reference states it"
            return f"{self.label}: missed" + (f" ({self.known})" if self.known else "")
        if self.aspect is Aspect.ADDED:
            if self.known == _DENIED:
                return f"{self.label}: stated, and the reference denies it"
            return f"{self.label}: added" + (f" ({self.said})" if self.said else "")
        if not self.said:
            return f"{self.label}, {self.aspect}: not said (the reference: {self.known})"
        if not self.known:
            return f"{self.label}, {self.aspect}: {self.said} (the reference names none)"
        return f"{self.label}, {self.aspect}: {self.said}, not {self.known}"


@dataclass(frozen=True)
class Match:
    """One sentence of a report, and its like in the other."""

    section: str  # "findings" or "impression"
    text: str
    kind: Kind
    partner: int | None  # the number of the sentence in the other report that is most like it; None: it stands alone
    partners: tuple[int, ...] = ()  # every sentence of the other report that says something of it, in order
    differences: tuple[Difference, ...] = ()  # in what the two reports differ there


@dataclass(frozen=True)
class LabelRow:
    """What two reports say of one label; None: not mentioned."""

    label: str
    known: Status | None
    said: Status | None

    @property
    def agrees(self) -> bool:
        return self.known is self.said

    @property
    def verdict(self) -> str:
        """In words. To leave out what the reference denies is less than to say otherwise."""
        if self.agrees:
            return "agrees"
        return "left out" if self.said is None else "not in the reference" if self.known is None else "differs"


@dataclass(frozen=True)
class Comparison:
    """A report against the reference."""

    sentences: tuple[Match, ...]  # of the report
    reference: tuple[Match, ...]  # of the reference: what the report says of each
    labels: tuple[LabelRow, ...]  # those that either of the two mentions, in CheXpert's order
    scores: Mapping[str, Any]  # of metrics.text_scores, on the words alone
    differences: tuple[Difference, ...] = ()  # of the findings that either of the two states, in CheXpert's order

    @property
    def agreed(self) -> int:
        """Labels on which the two agree, of those in `labels`."""
        return sum(row.agrees for row in self.labels)


def compare(
    report: tuple[str, str], reference: tuple[str, str], known: Mapping[str, Status | None] | None = None
) -> Comparison:
    """Lay a report, (findings, impression), beside the reference.

    known: the labels that the teacher stated; those left out, or all where it is None, are read from the reference. The NLG scores are those of
    words in lower case without punctuation, as reports are scored in the field; BLEU-4 of one short report is 0 more often than not, and METEOR,
    which needs Java and many seconds, is left out. Raises ValueError for a reference without words.
    """
    mine, theirs = _Report.read(*report), _Report.read(*reference)
    opposite = _opposites(report_text(*_stripped(report)), report_text(*_stripped(reference)))
    opposite = {(i, j) for i, j in opposite if mine.told[i].words != theirs.told[j].words}
    said, truth = labels(report_text(*report)), {**labels(report_text(*reference)), **(known or {})}
    rows = [LabelRow(label, truth[label], said[label]) for label in said if truth[label] or said[label]]
    scores = text_scores([_plain(*reference)], [_plain(*report)], draws=1, meteor=False)
    return Comparison(
        sentences=tuple(_match(n, mine, theirs, opposite, turned=False) for n in range(len(mine.told))),
        reference=tuple(
            _match(n, theirs, mine, {(j, i) for i, j in opposite}, turned=True) for n in range(len(theirs.told))
        ),
        labels=tuple(rows),
        scores={name: score for name, score in scores.items() if isinstance(score, dict)},
        differences=tuple(dict.fromkeys(_differences(mine, theirs, said, truth))),
    )


# ------------------------------------------------------------------------------------------------- what a sentence states

_ZONES = {
    "upper": r"upper|apex|apices|apical|biapical|[rl]ul",
    "mid": r"mid|middle|midlung|midzone|lingula\w*|rml",
    "lower": r"lower|bas(?:e|es|al|ilar)|bibas(?:al|ilar)|retrocardiac|[rl]ll",
    "hilar": r"hil(?:um|a|ar)|(?:peri|supra|infra)hilar",
}
_ZONED = ("Lung Opacity", "Lung Lesion", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Other")
_NUMBERS = {
    1: r"one|single|solitary|1",
    2: r"two|both|pair|2",
    3: r"three|3",
    4: r"four|4",
    5: r"five|5",
    0: r"multiple|several|numerous|many|innumerable|scattered|few|couple",
}
SEVERAL = 0  # how many is not said, but more than one
_COUNTED = ("Lung Lesion", "Fracture")
_PLURAL = re.compile(r"(?:s|metast\w*)$")
_SINGULAR = re.compile(r"(?:ss|sis|ic|us)$")
_SIZES = {
    "small": r"small|tiny|minimal|trace|little|mild|subtle|minor|slight",
    "moderate": r"moderate|medium(?:-sized)?",
    "large": r"large|massive|severe|marked|extensive|big|huge",
}
_MEASURE = re.compile(r"(\d+(?:\.\d+)?)(?:\s*[x×]\s*\d+(?:\.\d+)?)*\s*(mm|cm)\b")
_KINDS = {  # what one label holds of different kinds, which are not to be taken for each other
    "Lung Lesion": {"nodule": r"nodul\w*", "mass": r"mass(?:es|like)?|tumou?rs?", "metastases": r"metasta\w*", "cavity": r"cavit\w*"},
    "Fracture": {"rib": r"ribs?", "clavicle": r"clavic\w*", "vertebra": r"vertebra\w*|spine|lumbar", "shoulder": r"humer\w*|scapula\w*|shoulder"},
    "Pleural Other": {"thickening": r"thicken\w*|cap|capping", "plaque": r"plaques?", "calcification": r"calcif\w*"},
    "Support Devices": {
        "pacemaker": r"pac(?:emaker|er|ing)s?|a?icds?|defibrillators?|generator|leads?",
        "endotracheal tube": r"endotracheal|ett|tracheostomy",
        "gastric tube": r"nasogastric|ng|enteric|gastric|feeding",
        "chest tube": r"chest tubes?|pleural drain",
        "central line": r"picc|central|port|portacath|mediport|jugular|subclavian|swan",
        "valve": r"valv\w+",
    },
}  # fmt: skip


def _compiled(words: Mapping[Any, str]) -> dict[Any, re.Pattern[str]]:
    return {name: re.compile(rf"\b(?:{pattern})\b") for name, pattern in words.items()}


_ZONE, _NUMBER, _SIZE = _compiled(_ZONES), _compiled(_NUMBERS), _compiled(_SIZES)
_KIND = {label: _compiled(kinds) for label, kinds in _KINDS.items()}


@dataclass(frozen=True)
class _Statement:
    """What a sentence says of one label. sentence: its number in the report."""

    sentence: int
    label: str
    status: Status
    sides: frozenset[str]
    zones: frozenset[str] = frozenset()
    number: int | None = None  # SEVERAL: more than one; None: not said
    millimetres: float | None = None
    size: str = ""
    kinds: frozenset[str] = frozenset()

    @property
    def denied(self) -> bool:
        return self.status is Status.NEGATIVE

    def __str__(self) -> str:
        """Where it is, in words."""
        return ", ".join(filter(None, (_sides(self.sides), _zones(self.zones))))


def _sides(sides: Iterable[str]) -> str:
    return "both sides" if len(found := set(sides)) == 2 else "".join(found)


def _zones(zones: Iterable[str]) -> str:
    found = [zone for zone in _ZONES if zone in set(zones)]
    return f"{' and '.join(found)} zone{'s' if len(found) > 1 else ''}" if found else ""


def _many(number: int | None) -> str:
    return {None: "", SEVERAL: "several", 1: "one"}.get(number, str(number))


def _large(statement: _Statement) -> str:
    return f"{statement.millimetres:g} mm" if statement.millimetres else statement.size


def _statement(mention: Mention, own: str, words: str) -> _Statement:
    """own: what of the sentence speaks of this mention; words: the mention's own."""
    sides = {"bilateral": {"left", "right"}, None: set()}.get(mention.side, {str(mention.side)})
    plain = _Statement(mention.sentence, mention.label, mention.status, frozenset(sides))
    if plain.denied or mention.label == NO_FINDING:
        return plain  # how large or where it would have been is left to contradictions
    measured = _MEASURE.search(own)
    numbers = re.sub(_MEASURE, " ", own)
    zones = {zone for zone, pattern in _ZONE.items() if pattern.search(own)} if mention.label in _ZONED else ()
    return replace(
        plain,
        zones=frozenset(zones),
        number=_counted(numbers, words) if mention.label in _COUNTED else None,
        millimetres=float(measured[1]) * (10 if measured[2] == "cm" else 1) if measured else None,
        size=next((size for size, pattern in _SIZE.items() if pattern.search(own)), ""),
        kinds=frozenset(kind for kind, pattern in _KIND.get(mention.label, {}).items() if pattern.search(own)),
    )


def _counted(own: str, words: str) -> int | None:
    before = own.partition(words)[0]
    stated = [number for number, pattern in _NUMBER.items() if pattern.search(before)]
    if stated:
        return stated[0]
    noun = words.split()[-1] if words.split() else ""
    return SEVERAL if _PLURAL.search(noun) and not _SINGULAR.search(noun) else 1


_JOINT = re.compile(r"[,;:]|\b(?:and|or|nor|with)\b")


def _shares(text: str, mentions: Sequence[tuple[int, int]]) -> list[str]:
    """The part of a sentence that speaks of each mention: up to the joint between it and its neighbours."""
    cuts = [0] if mentions else []
    for (_, end), (start, _) in pairwise(mentions):
        joints = [match.start() for match in _JOINT.finditer(text, end, max(end, start))]
        cuts.append(joints[-1] if joints else start)
    return [text[first:last] for first, last in pairwise([*cuts, len(text)])]


@dataclass(frozen=True)
class _Told:
    """A sentence and what it states."""

    section: str
    text: str
    words: tuple[str, ...]
    states: tuple[_Statement, ...]


@dataclass(frozen=True)
class _Report:
    """A report's sentences, and whether it calls or leaves the film normal."""

    told: tuple[_Told, ...]
    normal: bool

    @classmethod
    def read(cls, findings: str, impression: str) -> "_Report":
        findings, impression = _stripped((findings, impression))
        text = report_text(findings, impression)
        spans, mentions = sentences(text), read_findings(text)
        told = []
        for number, (start, end) in enumerate(spans):
            section = "findings" if start < len(findings) else "impression"
            words = tuple(_WORD.findall(text[start:end].casefold()))
            own = [mention for mention in mentions if mention.sentence == number]
            told.append(_Told(section, text[start:end], words, tuple(_stated(text[start:end].lower(), start, own))))
        states = _resolved([state for each in told for state in each.states])
        told = [replace(each, states=tuple(s for s in states if s.sentence == n)) for n, each in enumerate(told)]
        return cls(tuple(told), labels(text)[NO_FINDING] is Status.POSITIVE)

    def of(self, label: str, *, denied: bool) -> list[_Statement]:
        """All statements of a label, those that deny it or the others."""
        return [s for told in self.told for s in told.states if s.label == label and s.denied == denied]


def _stated(text: str, start: int, mentions: Sequence[Mention]) -> list[_Statement]:
    """What one sentence, in lower case, states; start: its place in the report."""
    places = [(m.start - start, m.end - start) for m in mentions]
    found = [
        _statement(mention, own, text[a:b])
        for mention, own, (a, b) in zip(mentions, _shares(text, places), places, strict=True)
    ]
    return list(dict.fromkeys(found))


def _resolved(states: Sequence[_Statement]) -> list[_Statement]:
    """Each with what the rest of the report says of the same finding: "Effusion." is on the left where another sentence says so."""
    found = []
    for one in states:
        others = [s for s in states if s.label == one.label and not s.denied and s is not one]
        if one.denied or one.label == NO_FINDING or not others:
            found.append(one)
            continue
        sides = one.sides or frozenset().union(*(s.sides for s in others))
        near = [s for s in others if not (s.sides and sides) or s.sides & sides]
        zones = one.zones or frozenset().union(*(s.zones for s in near))
        kinds = one.kinds or frozenset().union(*(s.kinds for s in near))
        sure = one.status is Status.POSITIVE or any(s.status is Status.POSITIVE for s in near)  # as in labeler.labels
        sized = next((s for s in (one, *near) if s.size or s.millimetres), one)
        found.append(
            replace(
                one,
                status=Status.POSITIVE if sure else one.status,
                sides=sides,
                zones=zones,
                kinds=kinds,
                size=sized.size,
                millimetres=sized.millimetres,
            )
        )
    return found


def _stripped(report: tuple[str, str]) -> tuple[str, str]:
    return report[0].strip(), report[1].strip()


def _plain(findings: str, impression: str) -> str:
    return " ".join(_WORD.findall(f"{findings} {impression}".casefold()))


# ---------------------------------------------------------------------------------------------- one statement and another


def _apart(one: _Statement, two: _Statement, own: Sequence[_Statement], other: Sequence[_Statement]) -> list[Aspect]:
    """In what two statements of one finding differ. own, other: all that the two reports state of it."""
    found = []
    if one.status is not two.status:
        found.append(Aspect.CERTAINTY)
    if not _together(one, two, own, other, "sides"):
        found.append(Aspect.SIDE)
    if not _together(one, two, own, other, "zones"):
        found.append(Aspect.PLACE)
    same_sides = one.sides == two.sides or not (one.sides and two.sides)
    if same_sides and _numbers_differ(one.number, two.number):
        found.append(Aspect.NUMBER)
    if same_sides and _sizes_differ(one, two):
        found.append(Aspect.SIZE)
    if one.kinds and two.kinds and not one.kinds & two.kinds:
        found.append(Aspect.KIND)
    return found


def _together(
    one: _Statement, two: _Statement, own: Sequence[_Statement], other: Sequence[_Statement], what: str
) -> bool:
    """Whether sides or zones agree: they are the same, or each report names those of the other's statement, in however many sentences."""
    mine, theirs = getattr(one, what), getattr(two, what)
    if mine == theirs:
        return True
    if not mine & theirs:
        return False
    near = [[s for s in all_of if not (s.sides and one.sides) or s.sides & one.sides] for all_of in (own, other)]
    if what == "sides":
        near = [list(own), list(other)]
    whole, wanted = (frozenset().union(*(getattr(s, what) for s in each)) for each in near)
    return bool(theirs <= whole and mine <= wanted)


def _numbers_differ(a: int | None, b: int | None) -> bool:
    if a is None or b is None:
        return False
    return (a == 1) != (b == 1) or (a != b and SEVERAL not in (a, b))


def _sizes_differ(one: _Statement, two: _Statement) -> bool:
    if one.millimetres and two.millimetres:
        small, large = sorted((one.millimetres, two.millimetres))
        return large > MEASURED * small
    return bool(one.size and two.size and one.size != two.size)


_WHERE = {Aspect.SIDE, Aspect.PLACE}


def _named(aspects: Iterable[Aspect], said: _Statement, known: _Statement) -> list[Difference]:
    """The differences in words."""
    words = {
        Aspect.CERTAINTY: lambda s: s.status.value,
        Aspect.SIDE: lambda s: _sides(s.sides),
        Aspect.PLACE: lambda s: _zones(s.zones),
        Aspect.NUMBER: lambda s: _many(s.number),
        Aspect.SIZE: _large,
        Aspect.KIND: lambda s: " and ".join(sorted(s.kinds)),
    }
    return [Difference(aspect, said.label, words[aspect](said), words[aspect](known)) for aspect in aspects]


def _nearest(one: _Statement, own: _Report, other: _Report) -> tuple[list[_Statement], list[Aspect]]:
    """The statements of the other report that are nearest to one of this, all of them, and in what they differ; none: nothing is said of it."""
    mine = own.of(one.label, denied=one.denied)
    theirs = [two for two in other.of(one.label, denied=one.denied) if not _another(one, two)]
    apart = [_apart(one, two, mine, theirs) for two in theirs]
    fewest = min(map(len, apart), default=0)
    best = next((each for each in apart if len(each) == fewest), [])
    return [two for two, each in zip(theirs, apart, strict=True) if each == best], best


def _another(one: _Statement, two: _Statement) -> bool:
    """Whether two statements of one label are of different things: a tube is no pacemaker."""
    return one.label != "Lung Lesion" and bool(one.kinds and two.kinds and not one.kinds & two.kinds)


def _like(one: _Statement, own: _Report, other: _Report) -> tuple[list[_Statement], list[Aspect]]:
    """As `_nearest`; none too where those that are nearest stand elsewhere and are told by another sentence of this report."""
    near, aspects = _nearest(one, own, other)
    if set(aspects) & _WHERE and all(not set(_nearest(two, other, own)[1]) & _WHERE for two in near):
        return [], []
    return near, aspects


# ----------------------------------------------------------------------------------------------------------- the sentences


def _opposites(report: str, reference: str) -> set[tuple[int, int]]:
    """Pairs (sentence of the report, sentence of the reference) that cannot both be true."""
    # the two stand where the Findings and the Impression of one report would: what holds between those holds between these
    starts = {"findings": [start for start, _ in sentences(report)], "impression": [s for s, _ in sentences(reference)]}
    found = set()
    for pair in contradictions(report, reference):
        here, there = pair.places
        if (here.section, there.section) == ("findings", "impression"):
            found.add((starts["findings"].index(here.start), starts["impression"].index(there.start)))
    return found


def _match(number: int, own: _Report, other: _Report, opposite: set[tuple[int, int]], *, turned: bool) -> Match:
    """One sentence against the other report. turned: it is the reference's, and the other is the report."""
    one = own.told[number]
    against = [j for i, j in sorted(opposite) if i == number]
    same_words = [j for j, each in enumerate(other.told) if each.words == one.words]
    kind, partners, differences = _by_findings(one, own, other, turned=turned)
    if against:  # a contradiction is never hidden behind a likeness
        kind, partners = Kind.OPPOSITE, against
    elif same_words:
        kind, partners, differences = Kind.SAME, same_words, []
    elif kind is Kind.ALONE and (alike := _alike(one, other)):
        kind, partners = Kind.PARTLY, alike
    best = max(partners, key=lambda j: (*_nearness(one, other.told[j]), -j), default=None)
    return Match(one.section, one.text, kind, best, tuple(sorted(set(partners))), tuple(dict.fromkeys(differences)))


def _nearness(one: _Told, two: _Told) -> tuple[bool, bool, float]:
    return one.words == two.words, one.section == two.section, _likeness(one, two)


def _by_findings(one: _Told, own: _Report, other: _Report, *, turned: bool) -> tuple[Kind, list[int], list[Difference]]:
    """What the other report says of all that a sentence states."""
    partners: list[int] = []
    differences: list[Difference] = []
    agreed = 0
    related = crossed = False  # crossed: it is on the one side here and on the other there
    for state in one.states:
        near, aspects = _like(state, own, other)
        if not near:  # does it say the reverse, or nothing?
            near = other.of(state.label, denied=not state.denied)
            related |= bool(near) or (state.label == NO_FINDING and other.normal)
            if near or not state.denied:
                differences += _unsaid(state, bool(near), turned=turned)
        elif aspects:
            related = True
            crossed |= Aspect.SIDE in aspects and all(
                state.sides and s.sides and not state.sides & s.sides for s in near
            )
            differences += _named(aspects, *((near[0], state) if turned else (state, near[0])))
        else:
            agreed += 1
        partners += [two.sentence for two in near]
    if one.states and agreed == len(one.states):
        return Kind.SAME, partners, []
    if crossed:
        return Kind.OPPOSITE, partners, differences
    return (Kind.PARTLY if agreed or related else Kind.ALONE), partners, differences


def _unsaid(state: _Statement, reverse: bool, *, turned: bool) -> list[Difference]:
    """A statement that the other report does not make. reverse: it says the contrary."""
    if state.label == NO_FINDING:
        return []
    missed = turned != state.denied  # a report that denies what the reference states has missed it
    if missed:
        return [Difference(Aspect.MISSED, state.label, _DENIED if reverse else "", "" if state.denied else str(state))]
    return [Difference(Aspect.ADDED, state.label, "" if state.denied else str(state), _DENIED if reverse else "")]


def _alike(one: _Told, other: _Report) -> list[int]:
    """The sentences that use much the same words, where one of the two states nothing that the reader knows."""
    return [
        j
        for j, each in enumerate(other.told)
        # of other things: alike in words only, as "the heart is normal" and "the lungs are normal"
        if not (one.states and each.states) and _likeness(one, each) >= ALIKE
    ]


def _likeness(a: _Told, b: _Told) -> float:
    return SequenceMatcher(None, a.words, b.words, False).ratio()


# ------------------------------------------------------------------------------------------------------------ the findings


def _differences(
    mine: _Report, theirs: _Report, said: Mapping[str, Status | None], truth: Mapping[str, Status | None]
) -> list[Difference]:
    """In what the findings that either report states differ, label by label."""
    found: list[Difference] = []
    for label in LABELS:
        if label == NO_FINDING:
            continue
        mine_there, there = (status in (Status.POSITIVE, Status.UNCERTAIN) for status in (said[label], truth[label]))
        own, other = mine.of(label, denied=False), theirs.of(label, denied=False)
        if there and not mine_there:
            words = "; ".join(dict.fromkeys(filter(None, map(str, other))))
            found.append(Difference(Aspect.MISSED, label, _DENIED if said[label] else "", words))
        elif mine_there and not there:
            words = "; ".join(dict.fromkeys(filter(None, map(str, own))))
            found.append(Difference(Aspect.ADDED, label, words, _DENIED if truth[label] else ""))
        else:
            found += _within(mine, theirs, own, other)
    return found


def _within(mine: _Report, theirs: _Report, own: Sequence[_Statement], other: Sequence[_Statement]) -> list[Difference]:
    """In what two reports differ that both state a finding. One that stands elsewhere beside one that agrees is missed, or added."""
    found: list[Difference] = []
    for states, reports, turned in ((own, (mine, theirs), False), (other, (theirs, mine), True)):
        for state in states:
            near, aspects = _like(state, *reports)
            found += _named(aspects, *((near[0], state) if turned else (state, near[0]))) if aspects else []
            found += [] if near else _unsaid(state, False, turned=turned)
    return found
