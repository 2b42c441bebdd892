"""A report beside the reference, sentence by sentence: what says the same, what says otherwise, what contradicts, what stands alone.

Two sentences are laid side by side for what they state, as the label reader finds it (findings.py), and where that finds nothing, for their
words; `consistency.contradictions` decides what cannot both be true. It is help for a talk about a report, not a mark: the reader knows 14 labels.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import StrEnum
from typing import Any

from emrrg_core.text.consistency import contradictions
from emrrg_core.text.labeler import Status, labels, read_findings, report_text, sentences
from emrrg_core.text.metrics import text_scores

ALIKE = 0.6  # of the words that two sentences share in order, for them to be laid side by side for their words alone
_WORD = re.compile(r"\w+")
_RANK = {Status.NEGATIVE: 0, Status.UNCERTAIN: 1, Status.POSITIVE: 2}


class Kind(StrEnum):
    """How a sentence stands to the other report."""

    SAME = "same"  # the other says it too, in these words or in others
    PARTLY = "partly"  # the other says a part of it, or doubts it, or uses much the same words
    OPPOSITE = "opposite"  # both cannot be true
    ALONE = "alone"  # the other says nothing of it


@dataclass(frozen=True)
class Match:
    """One sentence of a report, and its like in the other."""

    section: str  # "findings" or "impression"
    text: str
    kind: Kind
    partner: int | None  # the number of that sentence in the other report; None: it stands alone


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
    mine, theirs = _told(*report), _told(*reference)
    opposite = _opposites(report_text(*_stripped(report)), report_text(*_stripped(reference)))
    matched = {(i, j): kind for i, a in enumerate(mine) for j, b in enumerate(theirs) if (kind := _kind(a, b))}
    matched |= {pair: Kind.OPPOSITE for pair in opposite if mine[pair[0]].words != theirs[pair[1]].words}
    said, truth = labels(report_text(*report)), {**labels(report_text(*reference)), **(known or {})}
    rows = [LabelRow(label, truth[label], said[label]) for label in said if truth[label] or said[label]]
    scores = text_scores([_plain(*reference)], [_plain(*report)], draws=1, meteor=False)
    return Comparison(
        sentences=tuple(_matches(mine, theirs, matched)),
        reference=tuple(_matches(theirs, mine, {(j, i): kind for (i, j), kind in matched.items()})),
        labels=tuple(rows),
        scores={name: score for name, score in scores.items() if isinstance(score, dict)},
    )


@dataclass(frozen=True)
class _Told:
    """A sentence and what it states."""

    section: str
    text: str
    words: tuple[str, ...]
    states: Mapping[str, tuple[Status, frozenset[str | None]]]  # label → its status and sides


def _told(findings: str, impression: str) -> list[_Told]:
    findings, impression = _stripped((findings, impression))
    text = report_text(findings, impression)
    states: dict[int, dict[str, tuple[Status, frozenset[str | None]]]] = {}
    for mention in read_findings(text):
        own = states.setdefault(mention.sentence, {})
        before = own.get(mention.label)
        if before is None or _RANK[mention.status] > _RANK[before[0]]:  # positive wins, as in findings.labels
            own[mention.label] = mention.status, frozenset({mention.side})
        elif mention.status is before[0]:
            own[mention.label] = mention.status, before[1] | {mention.side}
    told = []
    for number, (start, end) in enumerate(sentences(text)):
        section = "findings" if start < len(findings) else "impression"
        words = tuple(_WORD.findall(text[start:end].casefold()))
        told.append(_Told(section, text[start:end], words, states.get(number, {})))
    return told


def _stripped(report: tuple[str, str]) -> tuple[str, str]:
    return report[0].strip(), report[1].strip()


def _plain(findings: str, impression: str) -> str:
    return " ".join(_WORD.findall(f"{findings} {impression}".casefold()))


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


def _kind(a: _Told, b: _Told) -> Kind | None:
    """What one sentence is to another, contradictions apart; None: nothing."""
    if a.words == b.words or (a.states and a.states == b.states):
        return Kind.SAME
    if a.states.keys() & b.states.keys():
        return Kind.PARTLY
    if (
        a.states and b.states
    ):  # of other things: alike in words only, as "the heart is normal" and "the lungs are normal"
        return None
    return Kind.PARTLY if _likeness(a, b) >= ALIKE else None


def _likeness(a: _Told, b: _Told) -> float:
    return SequenceMatcher(None, a.words, b.words, False).ratio()


_WEIGHT = {Kind.OPPOSITE: 2, Kind.SAME: 1, Kind.PARTLY: 0}  # a contradiction is never hidden behind a likeness


def _matches(own: list[_Told], other: list[_Told], matched: Mapping[tuple[int, int], Kind]) -> list[Match]:
    """Every sentence with its best like in the other report: one sentence may stand for several of the other."""
    rows = []
    for i, told in enumerate(own):
        likes = [
            (
                told.words == other[j].words,
                _WEIGHT[kind],
                told.section == other[j].section,
                _likeness(told, other[j]),
                -j,
            )
            for (n, j), kind in matched.items()
            if n == i
        ]
        partner = -max(likes)[-1] if likes else None
        kind = Kind.ALONE if partner is None else matched[i, partner]
        rows.append(Match(told.section, told.text, kind, partner))
    return rows
