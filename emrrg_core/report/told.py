"""What a reader says of the findings, as the findings that the model writes from: by the words of a text, or by switching one.

told       what was read, a text → the findings as the text has them: *Impression from these findings*
switched   what was read, name → Said → the findings as the reader says: a finding is switched on, off or to another side
spoken     a text → label → what it says of it
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from emrrg_core.errors import EmrrgError
from emrrg_core.model.finding_tokens import (
    ABNORMAL,
    NAMES,
    PLACED_BY,
    PNEUMONIA,
    SHOWN,
    SIDES,
    Earlier,
    Finding,
    Presence,
)
from emrrg_core.model.prior_film import COMPARED
from emrrg_core.text.changes import Change, changes
from emrrg_core.text.labeler import NO_FINDING, SUPPORT_DEVICES, Status, read_findings


@dataclass(frozen=True)
class Said:
    """What a reader says of a finding. present: None: nothing is to be said of it. side: of SIDES; "" where none is told."""

    present: bool | None
    side: str = ""

    def __str__(self) -> str:
        """ "present, left", "absent" or "not mentioned"."""
        if self.present is None:
            return "not mentioned"
        return ("present" if self.present else "absent") + (f", {self.side}" if self.side else "")


@dataclass(frozen=True)
class Spoken:
    """What a text says of a label. states: it affirms or suspects it; else it denies it. side: of SIDES, "" where it tells none."""

    states: bool
    side: str = ""

    def beside(self, side: str) -> bool:
        """Whether this is on another side than the one given; never where either tells none."""
        return bool(side and self.side) and side != self.side


def spoken(text: str) -> dict[str, Spoken]:
    """What `text` says of each label of the label reader that it mentions; what is stated wins over what is denied. A call of normal is stated."""
    found: dict[str, list[tuple[bool, str]]] = {}
    for mention in read_findings(text):
        found.setdefault(mention.label, []).append((mention.status is not Status.NEGATIVE, mention.side or ""))
    result = {}
    for label, mine in found.items():
        states = any(there for there, _ in mine)
        result[label] = Spoken(states, _side(side for there, side in mine if there is states))
    return result


def _side(sides: Iterable[str]) -> str:
    """One side of several: both, where more than one is told."""
    told = set(sides) - {""}
    return "bilateral" if len(told) > 1 else next(iter(told), "")


def named(label: str) -> str | None:
    """The finding of NAMES that a label is told as: a pneumonia is what an opacity may be. None for what is never told."""
    label = "Lung Opacity" if label == PNEUMONIA else label
    return next((name for name, mine in NAMES.items() if mine == label and name != ABNORMAL), None)


def switched(read: Sequence[Finding], changed: Mapping[str, Said], text: str | None = None) -> tuple[Finding, ...]:
    """The findings as they were read, but for what the reader says of some of them. Whether anything is abnormal follows: where a finding is present.

    changed: by name, of NAMES. What was read as the reader says keeps its place, its severity and what was read of a prior film; what was not has
    none of these. text: the reader's Findings as they stand; what they say of all other findings is told in place of what was read (`told`).
    Probabilities stay: they are the film's. Raises EmrrgError for a finding that is not assessed or that has no sides.
    """
    known = {finding.name for finding in read}
    for name, said in changed.items():
        shown = SHOWN.get(name, name)
        if name == ABNORMAL or name not in NAMES:
            raise EmrrgError(f"“{name}” cannot be switched: choose one of the findings that were read.")
        if name not in known:
            raise EmrrgError(f"This checkpoint does not assess {shown}: write the sentence yourself.")
        if said.side not in SIDES or (said.side and (name not in PLACED_BY or not said.present)):
            raise EmrrgError(f"“{said.side}” is no side of “{shown}, {said}” here: write the sentence yourself.")
    base, others = list(read), False
    if text is not None:
        stands = told(read, text)[0]
        base = [r if (r.presence, r.side) == (t.presence, t.side) else t for r, t in zip(read, stands, strict=True)]
        base = [r if r.name in changed else b for r, b in zip(read, base, strict=True)]
        stated = {label for label, mine in spoken(text).items() if mine.states} - {NO_FINDING, SUPPORT_DEVICES}
        others = any(named(label) not in known for label in stated)
    found = [_as_said(finding, changed[finding.name]) if finding.name in changed else finding for finding in base]
    return _with_whole(found, others or any(f.presence is Presence.PRESENT for f in found if f.name != ABNORMAL))


def _as_said(finding: Finding, said: Said) -> Finding:
    presence = {True: Presence.PRESENT, False: Presence.ABSENT, None: Presence.OPEN}[said.present]
    if finding.presence is presence and said.side in ("", finding.side):
        return finding
    return replace(finding, presence=presence, side=said.side, zone="", severity="", pneumonia=False, earlier=None)


def _with_whole(findings: Sequence[Finding], abnormal: bool) -> tuple[Finding, ...]:
    whole = Presence.PRESENT if abnormal else Presence.ABSENT
    return tuple(replace(f, presence=whole) if f.name == ABNORMAL else f for f in findings)


def told(
    read: Sequence[Finding], text: str, *, changes_too: bool = False
) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """The findings as `text` has them, and the labels that it states and this checkpoint does not know.

    changes_too: the text's words on how a finding has changed since a prior film are told as well, whether one was given or not; else nothing of a
    change is. read: what was read in the film. What the text states is present, at the text's side; what it denies is absent; what it no longer
    speaks of is open, unless it was absent. Zone and severity stay where the side is the same. Probabilities stay: they are the film's.
    """
    by_label: dict[str, list[tuple[bool, str]]] = {}
    pneumonia = False
    for mention in read_findings(text):
        states = mention.status is not Status.NEGATIVE
        pneumonia = pneumonia or (states and mention.label == PNEUMONIA)
        label = "Lung Opacity" if mention.label == PNEUMONIA else mention.label
        if label != NO_FINDING:
            by_label.setdefault(label, []).append((states, mention.side or ""))
    found = []
    for finding in read:
        said = by_label.get(finding.label, [])
        sides = {side for states, side in said if states}
        if finding.name == ABNORMAL:
            found.append(finding)
        elif sides:
            side = _side(sides)
            same = finding.presence is Presence.PRESENT and side == finding.side
            kept = finding if same else replace(finding, zone="", severity="")
            hedged = pneumonia or (same and finding.pneumonia)
            found.append(
                replace(kept, presence=Presence.PRESENT, side=side, pneumonia=finding.name == "opacity" and hedged)
            )
        else:
            presence = Presence.ABSENT if said or finding.presence is Presence.ABSENT else Presence.OPEN
            found.append(replace(finding, presence=presence, side="", zone="", severity="", pneumonia=False))
    stated = {label for label, said in by_label.items() if any(states for states, _ in said)}
    found = list(_with_whole(found, bool(stated)))
    found = _with_changes(found, text) if changes_too else [replace(f, earlier=None) for f in found]
    known = {finding.label for finding in read}
    return tuple(found), tuple(label for label in (*NAMES.values(), "Support Devices") if label in stated - known)


def _with_changes(findings: Sequence[Finding], text: str) -> list[Finding]:
    said = {("Lung Opacity" if label == PNEUMONIA else label): change for label, change in changes(text)}
    found = []
    for finding in findings:
        change = said.get(finding.label) if finding.name in COMPARED else None
        if change is None:
            found.append(replace(finding, earlier=None))
            continue
        then = Presence.ABSENT if change is Change.NEW else Presence.PRESENT
        side = finding.side or (finding.earlier.side if finding.earlier else "")
        found.append(replace(finding, earlier=Earlier(then, side if then is Presence.PRESENT else "", "", change)))
    return found
