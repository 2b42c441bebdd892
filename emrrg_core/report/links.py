"""Findings and Impression say the same twice: which lines speak of one finding, and what to offer in one section after the other was changed.

    linked    a line → the lines of the other section that say the same of a finding
    offers    a report before and after an action on a line → what the reader may want to do in the other section

Nothing here changes a report: an offer is a question. What a line says is the label reader's opinion (emrrg_core.text.labeler). A call of normal
("no acute abnormality") is linked with no line: it rests on all of them.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from emrrg_core.report.report import Choice, Line, Report
from emrrg_core.report.told import Spoken, spoken
from emrrg_core.text.labeler import NO_FINDING, read_findings

_OTHER = {"findings": "impression", "impression": "findings"}
_SHOWN = {"findings": "The Findings still say", "impression": "The Impression still says"}


@dataclass(frozen=True)
class Offer:
    """Something to do in the other section, as a question to the reader.

    action: "delete", "edit" or "restore" of `line`; "summarise": write the Impression from these Findings. words: the question. text: the words that
    an "edit" puts in the line's place, else "".
    """

    action: Literal["delete", "edit", "restore", "summarise"]
    line: int | None
    words: str
    text: str = ""


def linked(report: Report, line_id: int) -> tuple[int, ...]:
    """The lines of the other section, in order, that state a finding that this line states, or deny one that it denies, on no other side.

    A pneumonia counts with the opacity that it may be. Raises EmrrgError for an unknown line; a deleted one is linked as if it stood.
    """
    line = report.line(line_id)
    mine = _of(line.text)
    return tuple(other.id for other in _live(report, _OTHER[line.section]) if _shared(mine, _of(other.text)))


def offers(before: Report, after: Report) -> tuple[Offer, ...]:
    """What to offer after an action on a line, in the order of the lines. before, after: the report without and with it.

    A line was taken out, or no longer states a finding: to delete the lines of the other section that state nothing else, where no other line states
    it. It names another side: the same words with that side, if they are read so; else the Impression written anew. It was restored: to restore the
    lines of the other section that were deleted and say the same. None for lines that the same action changed, and none for a signed report.
    """
    if after.signed is not None:
        return ()
    old, new = ({line.id: line for line in report.lines} for report in (before, after))
    touched = {id for id in old.keys() | new.keys() if old.get(id) != new.get(id)}
    found: list[Offer] = []
    for line in after.lines:
        was = old.get(line.id)
        if was is None or line.id not in touched:
            continue
        if was.choice is Choice.DELETED and line.choice is not Choice.DELETED:
            found += _restored(after, line, touched)
        elif was.choice is not Choice.DELETED:
            text = "" if line.choice is Choice.DELETED else line.text
            if text != was.text:
                found += _reworded(after, line.section, _stated(was.text), _stated(text), touched)
    return _once(found)


def _reworded(
    report: Report, section: str, was: Mapping[str, Spoken], now: Mapping[str, Spoken], touched: set[int]
) -> Iterator[Offer]:
    """What to offer where a line of a section stated one thing and now states another."""
    still = [_stated(line.text) for line in _live(report, section)]
    gone = {label: said for label, said in was.items() if label not in now and not _any(label, said, still)}
    moved = {
        label: (said.side, now[label].side)
        for label, said in was.items()
        if label in now and said.side and now[label].beside(said.side)
    }
    for other in _live(report, _OTHER[section]):
        mine = _stated(other.text)
        if other.id in touched or not mine:
            continue
        lost = {label for label, said in gone.items() if label in mine and not said.beside(mine[label].side)}
        sides = {label: pair for label, pair in moved.items() if label in mine and mine[label].side == pair[0]}
        if lost and all(label in lost or not _any(label, said, still) for label, said in mine.items()):
            yield Offer("delete", other.id, f"{_SHOWN[other.section]}: “{other.text}” Delete it too?")
        elif lost and other.section == "impression":
            yield _summarise(other)
        elif sides:
            if (text := _with_sides(other.text, sides)) is not None:
                yield Offer("edit", other.id, f"{_SHOWN[other.section]}: “{other.text}” Change it to “{text}”?", text)
            elif other.section == "impression":
                yield _summarise(other)


def _restored(report: Report, line: Line, touched: set[int]) -> Iterator[Offer]:
    mine, section = _stated(line.text), _OTHER[line.section]
    still = [_stated(other.text) for other in _live(report, section)]
    for other in report.lines:
        if other.section != section or other.choice is not Choice.DELETED or other.id in touched:
            continue
        if (same := _shared(mine, _stated(other.text))) and not any(_any(label, mine[label], still) for label in same):
            yield Offer(
                "restore", other.id, f"“{other.text}” was deleted from the {section.capitalize()}. Restore it too?"
            )


def _summarise(line: Line) -> Offer:
    return Offer("summarise", None, f"{_SHOWN[line.section]}: “{line.text}” Write the Impression from these findings?")


def _once(found: Iterable[Offer]) -> tuple[Offer, ...]:
    """One offer a line, and one to write the Impression anew at most."""
    return tuple({(offer.action, offer.line): offer for offer in reversed(list(found))}.values())[::-1]


def _live(report: Report, section: str) -> list[Line]:
    return [line for line in report.lines if line.section == section and line.choice is not Choice.DELETED]


def _of(text: str) -> dict[str, Spoken]:
    """What a line says of each label but the film as a whole; of a pneumonia as of an opacity."""
    found: dict[str, Spoken] = {}
    for label, said in spoken(text).items():
        if label == "Pneumonia":
            label = "Lung Opacity"
        if label != NO_FINDING and (label not in found or said.states > found[label].states):
            found[label] = said
    return found


def _stated(text: str) -> dict[str, Spoken]:
    return {label: said for label, said in _of(text).items() if said.states}


def _shared(one: Mapping[str, Spoken], two: Mapping[str, Spoken]) -> set[str]:
    """The labels of which both say the same, on no other side; both sides are another side than neither of them."""
    return {
        label
        for label, said in one.items()
        if label in two and said.states is two[label].states and not _apart(said.side, two[label].side)
    }


def _apart(one: str, two: str) -> bool:
    return {one, two} == {"left", "right"}


def _any(label: str, said: Spoken, lines: Sequence[Mapping[str, Spoken]]) -> bool:
    """Whether some line states a label where it was said to be."""
    return any(label in line and not _apart(said.side, line[label].side) for line in lines)


# ---------------------------------------------------------------------------------------------------- another side

_ZONE = r"(?:(?:upper|mid|middle|lower|and) )*"
_NAMES = re.compile(
    rf"\b(?:both (?P<both>{_ZONE})lungs|the (?P<one>left|right) (?P<zone>{_ZONE})lung|(?P<word>left|right)(?P<sided>-sided)?|bilateral)\b",
    re.IGNORECASE,
)


def _with_sides(text: str, sides: Mapping[str, tuple[str, str]]) -> str | None:
    """The words with other sides; None where the label reader does not read them so. sides: by label, from and to."""
    if len(pairs := set(sides.values())) != 1:
        return None
    old, new = pairs.pop()
    wanted = [(label, status, new if label in sides else side) for label, status, side in _mentions(text)]
    named = [match for match in _NAMES.finditer(text) if _side(match) == old]
    for some in (named, *([match] for match in named)):  # at every place, else at one
        changed = text
        for match in reversed(some):
            changed = changed[: match.start()] + _renamed(match, new) + changed[match.end() :]
        if changed != text and _mentions(changed) == wanted:
            return changed
    return None


def _mentions(text: str) -> list[tuple[str, str, str]]:
    """Label, status and side of every mention; a pneumonia is where its opacity is."""
    return [(m.label, m.status.value, "" if m.label == "Pneumonia" else m.side or "") for m in read_findings(text)]


def _side(match: re.Match[str]) -> str:
    return (match["one"] or match["word"] or "bilateral").lower()


def _renamed(match: re.Match[str], side: str) -> str:
    """The words of a side, of another side: "the left lower lung" and "both lower lungs", "left" and "bilateral"."""
    zone = match["zone"] or match["both"] or ""
    if match["one"] or match["both"] is not None:
        words = f"both {zone}lungs" if side == "bilateral" else f"the {side} {zone}lung"
    else:
        words = side + ("" if side == "bilateral" else match["sided"] or "")
    return words[0].upper() + words[1:] if match.group()[0].isupper() else words
