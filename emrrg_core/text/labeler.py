"""Reads report text: which of CheXpert's 14 labels a sentence affirms, denies or doubts, and on which side.

The knowledge is in findings.toml, in phrases that a radiologist can amend; this file only knows how to apply it. The
method is the classical one (mention, then cues of negation and doubt within the clause: Chapman et al. 2001, Irvin et
al. 2019); the phrases are our own.

    sentences      text → spans
    read_findings  text → every mention with its status, side and place
    labels         text → one status per label, CheXpert's way
    present        text → the labels that a human indexer would code, yes or no
    read_report    text → all of this as JSON ("emrrg.labels/1")
    is_abnormal    text → does it state anything abnormal at all
    prior_words    text → where it speaks of an earlier film
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources
from typing import Any

from emrrg_core.errors import ConfigError, DataError

LABELS: tuple[str, ...] = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
NO_FINDING, SUPPORT_DEVICES = LABELS[0], LABELS[-1]
OTHER = "Other Abnormal"  # abnormal statements outside the 14 labels; never returned by read_findings or labels


class Status(StrEnum):
    """What a sentence says of a finding."""

    POSITIVE = "positive"
    NEGATIVE = "negative"
    UNCERTAIN = "uncertain"


@dataclass(frozen=True)
class Mention:
    """One place where a report speaks of a finding.

    side      "left", "right" (the patient's), "bilateral" or None where none is named or none makes sense
    sentence  index into `sentences(text)`
    start     first character of the words in the whole text;  end  one past the last
    cue       the words that deny it or cast doubt on it, in lower case; "" where it is plainly affirmed
    """

    label: str
    status: Status
    side: str | None
    sentence: int
    start: int
    end: int
    cue: str = ""


# ------------------------------------------------------------------------------------------------------- sentences

_STOP = re.compile(r"[.!?]+[)\"'\]]*(?=\s|$)|(?<=[A-Za-z0-9)%])\.(?=[A-Z])|\n")
_MARKER = re.compile(r"\s*(?:\(?(\d{1,2})[.)](?!\d)|[-*•–])\s*")
_NEXT_ITEM = re.compile(r"(?<=\s)(\d{1,2})\.(?=\s|$)")
_ABBREVIATION = re.compile(
    r"(?:\b(?:dr|mr|mrs|ms|prof|st|vs|e\.g|i\.e|cf|al|fig|approx|etc|incl|resp)|\b[A-Z]\.[A-Z])$", re.I
)
_UNIT = re.compile(r"\b(?:cm|mm|ml|no|a\.m|p\.m|min|hr)$", re.I)


def sentences(text: str) -> list[tuple[int, int]]:
    """The spans (start, end) of the sentences of `text`, in order; together they hold every character but space.

    A list number belongs to the sentence it opens. Abbreviations, decimals, missing spaces after a full stop and
    numbered items that follow without one are seen through.
    """
    spans: list[tuple[int, int]] = []
    for start, end in _pieces(text):
        while start < end and text[start].isspace():
            start += 1
        while end > start and text[end - 1].isspace():
            end -= 1
        if start == end:
            continue
        if (
            not any(character.isalnum() for character in text[start:end])
            and spans
            and "\n" not in text[spans[-1][1] : start]
        ):
            spans[-1] = (spans[-1][0], end)  # a stray full stop belongs to what it follows
        else:
            spans.append((start, end))
    return spans


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Cuts of the text, spaces and stray punctuation still on them."""
    start, item = 0, 0  # item: the last number of a numbered list
    for stop in _STOP.finditer(text):
        if stop.end() <= start:
            continue
        if (marker := _MARKER.match(text, start)) and marker.group(1):
            item = int(marker.group(1))
        following = _NEXT_ITEM.search(text, start, stop.end() + 1) if stop.group() == "." else None
        if following and following.end(1) == stop.start() and int(following.group(1)) == item + 1:
            # "1. A 2. B": the list goes on without a full stop
            yield start, following.start()
            start, item = following.start(), item + 1
        elif _ends_sentence(text, start, stop):
            yield start, stop.end()
            start = stop.end()
    yield start, len(text)


def _ends_sentence(text: str, start: int, stop: re.Match[str]) -> bool:
    after = text[stop.end() :].lstrip(" \t\r")
    if stop.group() == "\n":
        # a line wrapped in mid-sentence goes on in lower case
        return not after or after[0] in "\n-*•–" or after[0].isupper() or bool(_MARKER.match(after))
    before = text[start : stop.start()]
    if (marker := _MARKER.match(text, start)) and marker.end() > stop.start():
        return False  # the full stop of "1."
    if stop.group() != ".":
        return True
    if _ABBREVIATION.search(before):
        return not after
    return not (_UNIT.search(before) and (after[:1].islower() or (before[-2:].lower() == "no" and after[:1].isdigit())))


# ---------------------------------------------------------------------------------------------------------- phrases

# possessive (++): the two never share a character, so there is nothing to gain by trying less
_BETWEEN = r"[\s/()\"-]++"
_PUNCTUATION = (",", ":")
_WORD = r"[\w'.%]*\w[\w'.%]*"


def _pattern(phrase: str) -> str:
    """A phrase of findings.toml as a regular expression."""
    tokens = phrase.split()
    parts: list[str] = []
    for place, token in enumerate(tokens):
        if token == "...":
            parts.append(rf"(?:{_WORD}{_BETWEEN}){{0,4}}?")
        elif token in _PUNCTUATION:
            if parts and parts[-1] == _BETWEEN:
                parts.pop()
            parts.append(rf"{token}\s*" if not place else rf"\s*{token}\s*")
        else:
            optional = token.startswith("(") and token.endswith(")")
            words = [
                re.escape(word.removesuffix("*")) + (r"\w*" if word.endswith("*") else "")
                for word in token.strip("()").replace(")/(", "/").split("/")
            ]
            one = words[0] if len(words) == 1 else f"(?:{'|'.join(words)})"
            if optional and any(t not in ("...",) and not t.startswith("(") for t in tokens[place + 1 :]):
                parts.append(f"(?:{one}{_BETWEEN})?")
            elif optional:
                if parts and parts[-1] == _BETWEEN:
                    parts.pop()
                parts.append(f"(?:{_BETWEEN}{one})?")
            else:
                parts.append(one)
                if place + 1 < len(tokens):
                    parts.append(_BETWEEN)
    if parts and parts[-1] == _BETWEEN:
        parts.pop()
    return "".join(parts)


def _compile(phrases: Iterable[str]) -> re.Pattern[str] | None:
    words: list[str] = []
    marks: list[str] = []
    for phrase in phrases:
        (marks if phrase.startswith(_PUNCTUATION) else words).append(_pattern(phrase))
    # the guard stands before the whole group: one before each phrase makes the search five times slower
    groups = [rf"(?<!\w)(?:{'|'.join(words)})(?!\w)"] * bool(words) + [rf"(?:{'|'.join(marks)})(?!\w)"] * bool(marks)
    return re.compile("|".join(groups)) if groups else None


def pattern_of(phrases: Iterable[str]) -> re.Pattern[str]:
    """Phrases, written as in findings.toml, as one pattern for text in lower case. Raises ConfigError where there are none."""
    if (pattern := _compile(phrases)) is None:
        raise ConfigError("A list of phrases is empty: give it one, or take it out.")
    return pattern


Spans = list[tuple[int, int]]


def _find(pattern: re.Pattern[str] | None, text: str) -> Spans:
    return [match.span() for match in pattern.finditer(text)] if pattern else []


# ------------------------------------------------------------------------------------------------------------ rules

_CUES = {
    *("negation_before", "negation_after", "not_negation", "doubt_before", "doubt_after", "doubt_between"),
    *("ends", "not_now", "coded"),
}
_KINDS = ("present", "doubtful", "absent")


@dataclass(frozen=True)
class _Finding:
    """One label's phrases, compiled; kinds in the order of _KINDS."""

    label: str
    sided: bool
    kinds: tuple[re.Pattern[str] | None, ...]
    not_this: re.Pattern[str] | None


@dataclass(frozen=True)
class _Rules:
    findings: tuple[_Finding, ...]
    cues: dict[str, re.Pattern[str] | None]
    sides: dict[str, re.Pattern[str] | None]
    normal: re.Pattern[str] | None
    prior: re.Pattern[str] | None
    not_prior: re.Pattern[str] | None


@cache
def _rules() -> _Rules:
    data = tomllib.loads(resources.files("emrrg_core.text").joinpath("labeler.toml").read_text("utf-8"))
    named = {**data["finding"], OTHER: data["other"]}
    if named.keys() != {*LABELS[1:], OTHER}:
        raise ConfigError(f"findings.toml must describe each label once: {sorted(named.keys() ^ {*LABELS[1:], OTHER})}")
    if data["cues"].keys() != _CUES:
        raise ConfigError(f"findings.toml: [cues] must hold exactly {', '.join(sorted(_CUES))}")
    return _Rules(
        findings=tuple(
            _Finding(
                label=label,
                sided=rule.get("sided", True),
                kinds=tuple(_compile(rule[kind]) for kind in _KINDS),
                not_this=_compile(rule["not_this"]),
            )
            for label, rule in named.items()
        ),
        cues={name: _compile(phrases) for name, phrases in data["cues"].items()},
        sides={name: _compile(phrases) for name, phrases in data["sides"].items()},
        normal=_compile(data["normal"]["phrases"]),
        prior=_compile(data["prior"]["phrases"]),
        not_prior=_compile(data["prior"]["not_this"]),
    )


# ---------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Candidate:
    finding: _Finding
    kind: str
    start: int
    end: int


def _candidates(text: str, rules: _Rules) -> list[_Candidate]:
    found = []
    for finding in rules.findings:
        own = [
            _Candidate(finding, kind, *span)
            for kind, pattern in zip(_KINDS, finding.kinds, strict=True)
            for span in _find(pattern, text)
        ]
        if own and (others := _find(finding.not_this, text)):
            own = [c for c in own if not any(start <= c.start and c.end <= end for start, end in others)]
        found += own
    return sorted(found, key=lambda c: (c.start, c.end))


class _Sentence:
    """One sentence in lower case, with its cues found once."""

    def __init__(self, text: str, rules: _Rules) -> None:
        self.text, self.rules = text, rules
        self.candidates = _candidates(text, rules)
        if self.candidates:
            self._read_cues()

    def _read_cues(self) -> None:
        cues = self.rules.cues
        self.ends = _find(cues["ends"], self.text) + [
            m.span() for m in re.finditer(r"[;\[\]]|:(?!\s*(?:no|none|absent)\b)", self.text)
        ]
        self.not_now = _find(cues["not_now"], self.text)
        self.doubt_after = _find(cues["doubt_after"], self.text)
        self.doubt_before = _find(cues["doubt_before"], self.text)
        # "cannot be excluded" holds no denial: what is read as doubt is blotted out first
        rest = self._blot(self.text, self.doubt_after + self.doubt_before)
        rest = self._blot(rest, _find(cues["not_negation"], rest))
        after = _find(cues["negation_after"], rest)
        onward = [span for span in after if self._denied_behind(*span)]
        # "Effusion: no effusion" denies both
        self.negation_after = [
            (a, b)
            for a, b in after
            if (a, b) not in onward
            or any(c.finding in self._denied_behind(a, b) for c in self.candidates if c.end <= a)
        ]
        rest = self._blot(rest, [span for span in after if span not in onward])
        self.negation_before = _find(cues["negation_before"], rest)
        self.between = _find(cues["doubt_between"], self.text)

    def _denied_behind(self, start: int, end: int) -> list[_Finding]:
        """The findings that a colon and a denial speak of behind them: effusion in "Pleura: no effusion", none in "Effusion: no"."""
        clause = re.split("[,;]", self.text[end:])[0]
        behind = [c.finding for c in self.candidates if end <= c.start < end + len(clause)]
        return behind if self.text[start] == ":" else []

    @staticmethod
    def _blot(text: str, spans: Spans) -> str:
        for start, end in spans:
            text = text[:start] + "#" * (end - start) + text[end:]
        return text

    def _open(self, start: int, end: int) -> bool:
        """Whether nothing between two places ends the reach of a cue."""
        return not any(start <= stop < end for stop, _ in self.ends)

    def _before(self, cues: Spans, mention: _Candidate) -> str:
        """The last of the cues that stand before the end of the mention and reach it."""
        reach = [(a, b) for a, b in cues if a < mention.end and (b > mention.start or self._open(b, mention.start))]
        return self.text[slice(*max(reach))] if reach else ""

    def _after(self, cues: Spans, mention: _Candidate) -> str:
        """The first of the cues that stand behind the mention and reach it."""
        reach = [(a, b) for a, b in cues if a >= mention.end and self._open(mention.end, a)]
        return self.text[slice(*min(reach))] if reach else ""

    def _words(self, start: int, end: int) -> int:
        return len(self.text[start:end].split())

    def _alternative(self, mention: _Candidate) -> str:
        """The "or" that joins this mention to one of another finding."""
        others = [c for c in self.candidates if c.finding != mention.finding]
        for a, b in self.between:
            left, right = self._ending(others, a), self._starting(others, b)
            if (right and self._ending([mention], a)) or (left and self._starting([mention], b)):
                return self.text[a:b]
        return ""

    def _ending(self, candidates: list[_Candidate], place: int) -> bool:
        return any(c.end <= place and self._words(c.end, place) <= 3 and self._open(c.end, place) for c in candidates)

    def _starting(self, candidates: list[_Candidate], place: int) -> bool:
        return any(
            c.start >= place and self._words(place, c.start) <= 4 and self._open(place, c.start) for c in candidates
        )

    def status(self, mention: _Candidate) -> tuple[Status, str] | None:
        """What the sentence says of the mention and the words that say so; None where it asks or means another time."""
        words = self.text[mention.start : mention.end]
        if mention.kind == "absent":
            inside = any(mention.start <= a and b <= mention.end for a, b in self.negation_before)
            return None if inside else (Status.NEGATIVE, words)
        if any(b <= mention.start and self._open(b, mention.start) for _, b in self.not_now):
            return None
        if cue := self._before(self.negation_before, mention) or self._after(self.negation_after, mention):
            return Status.NEGATIVE, cue
        cue = self._before(self.doubt_before, mention) or self._after(self.doubt_after, mention)
        if cue := cue or self._alternative(mention) or (words if mention.kind == "doubtful" else ""):
            return Status.UNCERTAIN, cue
        return Status.POSITIVE, ""

    def side(self, mention: _Candidate) -> str | None:
        """The side named in the mention, else the nearest before it, else the nearest after it, within the clause."""
        if not mention.finding.sided:
            return None
        blotted = self._blot(self.text, _find(self.rules.sides["neither"], self.text))
        named: list[tuple[int, int, str]] = []
        for side in ("bilateral", "left", "right"):
            spans = _find(self.rules.sides[side], blotted)
            blotted = self._blot(blotted, spans)
            named += [(a, b, side) for a, b in spans]
        if not named:
            return None
        near: list[tuple[int, tuple[int, int, str]]] = []
        for a, b, side in named:
            if b <= mention.start and self._open(b, mention.start):
                near.append((self._words(b, mention.start), (a, b, side)))
            elif a >= mention.end and self._open(mention.end, a):
                near.append((self._words(mention.end, a) + self._between_mentions(mention, a), (a, b, side)))
            elif a < mention.end and b > mention.start:
                near.append((0, (a, b, side)))
        if not near:
            return None
        nearest = min(near, key=lambda pair: pair[0])[1]
        return "bilateral" if any(self._joined(nearest, other, mention) for other in named) else nearest[2]

    def _joined(self, one: tuple[int, int, str], two: tuple[int, int, str], mention: _Candidate) -> bool:
        """Whether "left base and right apex" names both sides of the same mention."""
        (_, gap, left), (start, end, right) = sorted((one, two))
        if {left, right} != {"left", "right"} or self._words(gap, start) > 4:
            return False
        if not re.search(r"\band\b|,", self.text[gap:start]) or not self._open(gap, start):
            return False
        own = any(gap <= c.start < start for c in self.candidates)
        others = [c for c in self.candidates if c.finding != mention.finding]
        taken = any(end <= c.start and self._words(end, c.start) <= 3 for c in others)
        return not own and not taken

    def _between_mentions(self, mention: _Candidate, place: int) -> int:
        """A side behind another mention is that one's own."""
        return 10 * any(
            mention.end <= c.start and c.end <= place and c.finding != mention.finding for c in self.candidates
        )


def _read(text: str) -> list[Mention]:
    """Every mention, those outside the 14 labels under OTHER and calls of normal under No Finding."""
    rules = _rules()
    found: list[Mention] = []
    for index, (start, end) in enumerate(sentences(text)):
        sentence = _Sentence(text[start:end].lower(), rules)
        own: list[Mention] = []
        for candidate in sentence.candidates:
            if said := sentence.status(candidate):
                side, place = sentence.side(candidate), (start + candidate.start, start + candidate.end)
                own.append(Mention(candidate.finding.label, said[0], side, index, *place, said[1]))
        own += [
            Mention(NO_FINDING, Status.POSITIVE, None, index, start + a, start + b)
            for a, b in _find(rules.normal, sentence.text)
        ]
        found += _settled(own)
    return found


_RANK = {Status.POSITIVE: 2, Status.UNCERTAIN: 1, Status.NEGATIVE: 0, None: -1}


def _settled(mentions: list[Mention]) -> list[Mention]:
    """Where two phrases of one label overlap, what affirms wins over what denies, then the longer over the shorter."""
    kept: list[Mention] = []
    for mention in sorted(mentions, key=lambda m: (-_RANK[m.status], m.start - m.end)):
        if not any(k.label == mention.label and k.start < mention.end and mention.start < k.end for k in kept):
            kept.append(mention)
    return sorted(kept, key=lambda m: (m.start, m.end, m.label))


def read_findings(text: str) -> tuple[Mention, ...]:
    """Every mention of the 14 labels in `text`, in order of place.

    A mention of No Finding is a sentence that calls the film normal; what the whole report amounts to is in `labels`.
    """
    return tuple(mention for mention in _read(text) if mention.label != OTHER)


def labels(text: str) -> dict[str, Status | None]:
    """One status for each of the 14 labels; None where the report is silent.

    Of several mentions positive wins over uncertain and uncertain over negative. No Finding follows from the others,
    not from what the report calls itself: it is positive exactly when the text is not empty and no other label,
    Support Devices aside, is positive or uncertain; negative when one is; None for an empty text.
    """
    return _statuses(text, read_findings(text))


def _statuses(text: str, mentions: Iterable[Mention]) -> dict[str, Status | None]:
    result: dict[str, Status | None] = dict.fromkeys(LABELS)
    for mention in mentions:
        if mention.label != NO_FINDING and _RANK[mention.status] > _RANK[result[mention.label]]:
            result[mention.label] = mention.status
    if text.strip():
        found = (result[label] for label in LABELS if label not in (NO_FINDING, SUPPORT_DEVICES))
        result[NO_FINDING] = Status.NEGATIVE if any(map(_affirmed, found)) else Status.POSITIVE
    return result


def present(text: str) -> tuple[str, ...]:
    """The labels that a human indexer would code, in the order of LABELS: affirmed, or in a doubt that leans towards them.

    Indexers leave out what "may" or "could" be, and code what is borderline or probable and both of "A or B" ([cues] coded
    in findings.toml; measured in docs/findings.md). For the three-valued reading see `labels`; No Finding as there.
    """
    return _present(text, read_findings(text))


def _present(text: str, mentions: Sequence[Mention]) -> tuple[str, ...]:
    coded = _rules().cues["coded"]
    found = {
        mention.label
        for mention in mentions
        if mention.status is Status.POSITIVE
        or (mention.status is Status.UNCERTAIN and _find(coded, mention.cue.replace("less likely", "")))
    } - {NO_FINDING}
    if _statuses(text, mentions)[NO_FINDING] is Status.POSITIVE:
        found.add(NO_FINDING)
    return tuple(label for label in LABELS if label in found)


LABELS_SCHEMA = "emrrg.labels/1"
NOT_MENTIONED = "not mentioned"


def read_report(text: str) -> dict[str, Any]:
    """All that is read from one report, as plain values: what `python -m emrrg_core label` prints. Places count characters of `text`."""
    mentions = read_findings(text)
    return {
        "schema": LABELS_SCHEMA,
        **_labels_as_dict(text, mentions),
        "sentences": [{"start": start, "end": end, "text": text[start:end]} for start, end in sentences(text)],
        "mentions": [
            {
                "label": m.label,
                "status": m.status.value,
                "side": m.side,
                "cue": m.cue,
                "sentence": m.sentence,
                "start": m.start,
                "end": m.end,
                "text": text[m.start : m.end],
            }
            for m in mentions
        ],
    }


def labels_of_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The labels of one row of a report set (`id`, `findings`, `impression`; either text may be null, not both be absent).

    Raises DataError, naming the row, for one of another form.
    """
    name = row.get("id")
    texts = [row.get(section) for section in ("findings", "impression")]
    if not isinstance(name, str) or not name:
        raise DataError("A report has no id: give each row one.")
    if not {"findings", "impression"} & row.keys() or not all(isinstance(text, str | None) for text in texts):
        raise DataError(f"Report {name} has no text under findings or impression.")
    text = report_text(*texts)
    return {"schema": LABELS_SCHEMA, "id": name, **_labels_as_dict(text, read_findings(text))}


def report_text(findings: str | None, impression: str | None) -> str:
    """A report as the reader takes it: findings, then impression."""
    return f"{findings or ''}\n\n{impression or ''}".strip()


def _labels_as_dict(text: str, mentions: Sequence[Mention]) -> dict[str, Any]:
    statuses = _statuses(text, mentions)
    return {
        "labels": {label: status.value if status else NOT_MENTIONED for label, status in statuses.items()},
        "present": list(_present(text, mentions)),
    }


def is_abnormal(text: str) -> bool:
    """Whether the report states or suspects anything abnormal, in the 14 labels or outside them ([other] in the rules).

    A line, tube or pacemaker alone is not an abnormality; False for an empty text.
    """
    return any(_affirmed(m.status) for m in _read(text) if m.label not in (NO_FINDING, SUPPORT_DEVICES))


def prior_words(text: str) -> Spans:
    """Where `text` speaks of an earlier film ("unchanged", "compared to", "interval"): (start, end) in characters, in order.

    A draft is written from the films given, so such words in it are made up. What one film can show (an old fracture, a chronic change, earlier
    surgery) and what is advised for later is left out. The words are in findings.toml under [prior].
    """
    rules, found = _rules(), []
    for start, end in sentences(text):
        sentence = text[start:end].lower()
        others = _find(rules.not_prior, sentence)
        found += [
            (start + a, start + b)
            for a, b in _find(rules.prior, sentence)
            if not any(first <= a and b <= last for first, last in others)
        ]
    return found


def _affirmed(status: Status | None) -> bool:
    return status in (Status.POSITIVE, Status.UNCERTAIN)
