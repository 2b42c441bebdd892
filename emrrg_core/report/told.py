"""What a reader's Findings say, as the findings that the model writes an Impression from."""

from collections.abc import Sequence
from dataclasses import replace

from emrrg_core.model.finding_tokens import ABNORMAL, NAMES, PNEUMONIA, Earlier, Finding, Presence
from emrrg_core.model.prior_film import COMPARED
from emrrg_core.text.changes import Change, changes
from emrrg_core.text.labeler import NO_FINDING, Status, read_findings


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
            named = sides - {""}
            side = "" if not named else "bilateral" if len(named) > 1 or "bilateral" in named else named.pop()
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
    whole = Presence.PRESENT if stated else Presence.ABSENT
    found = [replace(f, presence=whole) if f.name == ABNORMAL else f for f in found]
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
