"""A finding was switched on, off or to another side, and the model has written the draft anew: which sentences of the report follow.

Only what rests on the finding is exchanged, in Findings and Impression alike: sentences of the model's words that speak of it, and beside a finding
that is switched on those that call the film normal or the lungs clear, or that say that nothing can be named. All others stay, edited ones too. The
reader's own words are never taken out: of a sentence that the reader added words to, the model's are, where they stand in it as they were written;
where they do not, the sentence stays, and a caution says that it says otherwise (emrrg_core.report.cautions).

A new sentence stands where the one stood that it replaces, else where the new writing has it among the others. One that says otherwise of the finding
than the reader does is not taken over: the model did not follow, and a caution says what is missing.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from emrrg_core.model.finding_tokens import NAMES
from emrrg_core.report.told import Said, Spoken, named, spoken
from emrrg_core.text.consistency import clear_lungs, lung_labels
from emrrg_core.text.labeler import NO_FINDING, SUPPORT_DEVICES
from emrrg_core.text.labeler import sentences as sentence_spans

_UNNAMED = re.compile(r"\babnormal", re.IGNORECASE)  # "the chest looks abnormal", "no definite abnormality"


@dataclass(frozen=True)
class Rewritten:
    """The draft as the model writes it when some findings are as the reader says, without sentences that say otherwise.

    changed: what the reader says, by name of finding_tokens.NAMES. missed: those of them that are not stated in both sections although they are
    present: the model did not follow.
    """

    findings: str
    impression: str
    changed: Mapping[str, Said]
    missed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Standing:
    """A sentence of a section as it stands. words: the model's, None where the reader added it. live: it is in the report."""

    id: int
    text: str
    words: str | None
    live: bool


@dataclass(frozen=True)
class Plan:
    """What becomes of a section. gone: lines that leave it. trimmed: what is left of lines with words of the reader's, by line. back: deleted lines
    that come again. fresh: new sentences, each with the line that it follows (None: it is the first), where two follow one line in their order."""

    gone: tuple[int, ...]
    trimmed: Mapping[int, str]
    back: tuple[int, ...]
    fresh: tuple[tuple[int | None, str], ...]


def missed(findings: str, impression: str, changed: Mapping[str, Said]) -> tuple[str, ...]:
    """The findings that a text does not have as the reader says: not stated in both sections although present, stated although not."""
    found = []
    texts = [_by_name(findings), _by_name(impression)]
    for name, said in changed.items():
        mine = [text.get(name) for text in texts]
        stated = [bool(one and one.states and not one.beside(said.side)) for one in mine]
        if not (all(stated) if said.present else not any(one and one.states for one in mine)):
            found.append(name)
    return tuple(found)


def agreeing(text: str, changed: Mapping[str, Said], more: Iterable[str] = ()) -> str:
    """A section without the sentences that say otherwise of what has changed, or state it once more. more: other writings of it: their sentences that
    state something that has changed and is not stated here are put behind what is told before it, in the order of finding_tokens.NAMES."""
    kept: list[str] = []
    for words in (text[i:j] for i, j in sentence_spans(text)):
        if not (_otherwise(words, changed) or _once_more(words, kept, changed)):
            kept.append(words)
    for other in more:
        for words in (other[i:j] for i, j in sentence_spans(other)):
            new = _states(words) & changed.keys() - {name for mine in kept for name in _states(mine)}
            if new and not _otherwise(words, changed):
                before = [n for n, mine in enumerate(kept) if _states(mine) and _rank(mine) <= _rank(words)]
                kept.insert(before[-1] + 1 if before else 0, words)
    return " ".join(kept)


def _once_more(words: str, kept: Iterable[str], changed: Mapping[str, Said]) -> bool:
    """Whether a sentence states only what has changed and what another has stated, on no other side."""
    mine = _by_name(words)
    known = {(name, said.side) for other in kept for name, said in _by_name(other).items() if said.states}
    return bool(mine) and all(
        name in changed and said.states and {(name, said.side), (name, changed[name].side)} & known
        for name, said in mine.items()
    )


def _states(words: str) -> set[str]:
    """The findings that a sentence states, by name."""
    return {name for name, said in _by_name(words).items() if said.states}


def _rank(words: str) -> int:
    """Where in the order of findings a sentence stands that states some."""
    return min(list(NAMES).index(name) for name in _states(words))


def plans(lines: Mapping[str, Sequence[Standing]], written: Rewritten) -> dict[str, Plan]:
    """What becomes of each section, "findings" and "impression". lines: all of a section's, deleted ones too."""
    texts = {"findings": written.findings, "impression": written.impression}
    new = {section: [text[i:j] for i, j in sentence_spans(text)] for section, text in texts.items()}
    rest = {section: _rest(lines[section], new[section], written.changed) for section in texts}
    stated = _stated([left for mine in rest.values() for left in mine.values() if left])
    return {section: _plan(lines[section], rest[section], new[section], written.changed, stated) for section in texts}


def _rest(section: Sequence[Standing], new: Sequence[str], changed: Mapping[str, Said]) -> dict[int, str]:
    """What stays of every line that is in the report: all of it, nothing, or the reader's words around the model's."""
    again = {_plain(words) for words in new if not _otherwise(words, changed)}
    return {
        line.id: line.text if _plain(line.text) in again else _without(line, changed) for line in section if line.live
    }


def _without(line: Standing, changed: Mapping[str, Said]) -> str:
    """A line without the model's words, where these rest on what has changed and stand in it as they were written."""
    if line.words is None or line.words not in line.text:
        return line.text
    if not (_by_name(line.words).keys() & changed.keys() or _beside(line.words, changed)):
        return line.text
    return " ".join(line.text.replace(line.words, " ", 1).split())


def _plan(
    section: Sequence[Standing],
    rest: Mapping[int, str],
    new: Sequence[str],
    changed: Mapping[str, Said],
    stated: Collection[str],
) -> Plan:
    """stated: labels that what stays of the report states."""
    left = [text for text in rest.values() if text]
    gone = [line for line in section if line.live and not rest[line.id]]
    trimmed = {line.id: text for line in section if line.live and (text := rest[line.id]) and text != line.text}
    lost = {name for line in gone for name in _by_name(line.text)} - {name for text in left for name in _by_name(text)}
    known = {_plain(text) for text in left}
    wanted = [
        n for n, words in enumerate(new) if _plain(words) not in known and _wanted(words, changed, lost, stated, left)
    ]
    back, fresh = _placed(section, gone, rest, new, wanted)
    return Plan(tuple(line.id for line in gone), trimmed, back, fresh)


def _beside(words: str, changed: Mapping[str, Said]) -> bool:
    """Whether a sentence cannot stand beside what is present now, though it does not name it."""
    on = [name for name, said in changed.items() if said.present]
    return bool(on) and (whole(words) or (clear_lungs(words) and any(named(label) in on for label in lung_labels())))


def whole(words: str) -> bool:
    """Whether a sentence speaks of the film as a whole: it calls it normal, or abnormal without a name."""
    said = spoken(words)
    return NO_FINDING in said or (not said and bool(_UNNAMED.search(words)))


def _by_name(text: str) -> dict[str, Spoken]:
    """What a text says of findings, by name. A pneumonia that is denied denies no opacity, but speaks of it."""
    found: dict[str, Spoken] = {}
    for label, said in spoken(text).items():
        name = named(label)
        if name and (name not in found or said.states > found[name].states):
            found[name] = said
    return found


def _otherwise(words: str, changed: Mapping[str, Said]) -> bool:
    """Whether a sentence says otherwise of a finding than the reader does."""
    mine = _by_name(words)
    for name, said in changed.items():
        one = mine.get(name)
        if one and (said.present is None or one.states is not said.present or (one.states and one.beside(said.side))):
            return True
    return _beside(words, changed)


def _stated(texts: Iterable[str]) -> set[str]:
    """The labels that some texts state, but for devices."""
    found = {label for text in texts for label, said in spoken(text).items() if said.states}
    return found - {NO_FINDING, SUPPORT_DEVICES}


def _wanted(
    words: str,
    changed: Mapping[str, Said],
    lost: Collection[str],
    stated: Collection[str],
    left: Sequence[str],
) -> bool:
    """Whether a sentence of the new writing belongs into the section. lost: findings of which its lines spoke and speak no more. left: what stays."""
    if _otherwise(words, changed):
        return False
    off = {name for name, said in changed.items() if not said.present}
    if whole(words):
        return bool(off) and not stated and not any(map(whole, left))
    mine = _by_name(words).keys()
    if mine & (changed.keys() | set(lost)):
        return True
    lung = {named(label) for label in lung_labels()}
    silent = not any("opacity" in _by_name(text) for text in left)
    return clear_lungs(words) and bool(off & lung) and silent and not set(stated) & set(lung_labels())


def _placed(
    section: Sequence[Standing],
    gone: Sequence[Standing],
    rest: Mapping[int, str],
    new: Sequence[str],
    wanted: Sequence[int],
) -> tuple[tuple[int, ...], tuple[tuple[int | None, str], ...]]:
    """Where each wanted sentence stands: the lines that come back, and the fresh sentences as a Plan has them."""
    struck = [line for line in section if not line.live and line.text == line.words]
    back: list[int] = []
    fresh: list[tuple[int | None, str]] = []
    after: dict[int, int | None] = {}  # of each sentence of the new writing, the line in its place, or before it
    for n, words in enumerate(new):
        if n not in wanted:
            same = _line_of(words, rest)
        else:
            same = next((x.id for x in struck if _plain(x.text) == _plain(words) and x.id not in back), None)
            back += [] if same is None else [same]
        if same is not None:
            after[n] = same
    order = [line.id for line in section]
    for n in wanted:
        if n in after:
            continue
        mine = _by_name(new[n]).keys()
        there = [x.id for x in gone if _by_name(x.text).keys() & mine] or [x.id for x in gone if whole(x.text)][-1:]
        before = [after[k] for k in sorted(after) if k < n]
        behind = next((after[k] for k in sorted(after) if k > n), None)
        if there:
            after[n] = there[-1]
        elif before:
            after[n] = before[-1]
        elif behind is not None:
            after[n] = next(iter(order[: order.index(behind)][-1:]), None)
        else:
            after[n] = next(iter(order[-1:]), None)
        fresh.append((after[n], new[n]))
    return tuple(back), tuple(fresh)


def _line_of(words: str, rest: Mapping[int, str]) -> int | None:
    """The line that says what a sentence says: in the same words, else of the same findings."""
    same = [id for id, text in rest.items() if text and _plain(text) == _plain(words)]
    alike = [id for id, text in rest.items() if _by_name(text).keys() & _by_name(words).keys()]
    return next(iter(same + alike), None)


def _plain(text: str) -> str:
    return " ".join(text.split())
