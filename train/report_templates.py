"""Writes findings as a report in the words of radiologists: exactly what the finding tokens say.

Few films come with their own report. For the others, what is read is put into words here, with other wordings at every step: first what is present,
then what has resolved since the prior film, where there is one, then what may be denied, in the order of finding_tokens.NAMES. Findings that are open
or not assessed are left out. The wordings are in report_templates.toml.
"""

import re
import tomllib
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from emrrg_core.errors import ConfigError
from emrrg_core.model.finding_tokens import (
    ABNORMAL,
    NAMES,
    PLACED_BY,
    SEVERITIES,
    SIDES,
    ZONES,
    Earlier,
    Finding,
    Presence,
)
from emrrg_core.model.prior_film import COMPARED, POSSIBLE
from emrrg_core.text.changes import Change, resolved, with_change
from emrrg_core.text.labeler import NO_FINDING, Status, is_abnormal, labels, read_findings

SIZES = {"effusion": ("", "small", "moderate", "large"), "heart": ("", "mildly", "moderately", "severely")}
_NOUN = {"mildly": "mild", "moderately": "moderate", "severely": "severe"}
BOTH = SIDES[3]


def place_of(finding: Finding) -> str:
    """ "in the right lower lung", "in both mid lungs", "in both lungs", or "" where none is named."""
    if finding.name not in PLACED_BY or not finding.side:
        return ""
    zone = f"{finding.zone} " if finding.zone else ""
    return f"in both {zone}lungs" if finding.side == BOTH else f"in the {finding.side} {zone}lung"


def site_of(finding: Finding) -> str:
    """The same before a noun: "right lower lung", "bilateral mid and lower lung", "bilateral"."""
    if finding.name not in PLACED_BY or not finding.side:
        return ""
    if finding.side == BOTH:
        return f"bilateral {finding.zone} lung" if finding.zone else "bilateral"
    return " ".join(word for word in (finding.side, finding.zone, "lung") if word)


def fill(text: str, finding: Finding) -> str:
    """A wording with its blanks filled, in good English."""
    size = SIZES.get(finding.name, ("",) * len(SEVERITIES))[SEVERITIES.index(finding.severity)]
    if "cardiomegaly" in text:
        size = _NOUN.get(size, size)
    side = "" if finding.side == BOTH else finding.side
    blanks = {"place": place_of(finding), "Site": site_of(finding), "side": side, "size": size, "Size": size}
    told = re.sub(r"\s+", " ", text.format(**blanks))
    told = re.sub(r"\s+([.,])", r"\1", told).strip()
    told = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", told)
    return told[0].upper() + told[1:]


def wordings(finding: Finding) -> tuple[list[str], list[str]]:
    """The wordings of a present finding, for Findings and for the Impression."""
    entry = templates()["pneumonia" if finding.pneumonia else finding.name]
    many = finding.side == BOTH
    return (
        entry["many"] if many and "many" in entry else entry["findings"],
        entry["impression_many"] if many and "impression_many" in entry else entry["impression"],
    )


@cache
def templates() -> dict[str, Any]:
    """report_templates.toml. Raises ConfigError for a wording that the label reader does not read as it is meant."""
    table = tomllib.loads(resources.files("train").joinpath("report_templates.toml").read_text("utf-8"))
    _check(table)
    return table


def _check(table: dict[str, Any]) -> None:
    for name in (*NAMES, "pneumonia"):
        entry = table[name]
        for key in ("findings", "many", "impression", "impression_many"):
            for text in entry.get(key, []):
                side, zone = (BOTH, "mid and lower") if "many" in key else ("right", "lower")
                kind = "opacity" if name == "pneumonia" else name
                severity = "moderate" if name in SIZES else ""
                told = fill(text, Finding(kind, Presence.PRESENT, 1.0, 0.5, side, zone, severity))
                _require(is_abnormal(told), told, "something abnormal")
                stated = {label for label, status in labels(told).items() if status is not Status.NEGATIVE}
                stated = {label for label in stated if labels(told)[label] in (Status.POSITIVE, Status.UNCERTAIN)}
                allowed = {NAMES[kind], *(("Pneumonia",) if name == "pneumonia" else ())}
                _require(stated <= allowed and (name == ABNORMAL or NAMES[kind] in stated), told, str(sorted(allowed)))
                sides = {m.side for m in read_findings(told)} - {None}
                _require(sides <= {side}, told, side)
    for row in table["denial"]:
        for told in row["findings"]:
            denied = {m.label for m in read_findings(told) if m.status is Status.NEGATIVE}
            _require(not is_abnormal(told) and bool(denied) and denied <= {NAMES[name] for name in row["of"]}, told, "a denial")  # fmt: skip
    for told in (text for texts in table["whole"].values() for text in texts):
        _require(not is_abnormal(told), told, "nothing abnormal")


def _require(holds: bool, told: str, meant: str) -> None:
    if not holds:
        read = [(m.label, m.status.value, m.side) for m in read_findings(told)]
        raise ConfigError(f"report_templates.toml: {told!r} should state {meant}, but reads as {read}.")


def tell(findings: Sequence[Finding], rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """The sentences of Findings and Impression."""
    table = templates()

    def one(choices: Sequence[str]) -> str:
        return choices[int(rng.integers(len(choices)))]

    by_name = {finding.name: finding for finding in findings}
    present = [f for f in findings if f.presence is Presence.PRESENT and f.name != ABNORMAL]
    absent = {f.name for f in findings if f.presence is Presence.ABSENT}
    whole = by_name.get(ABNORMAL)
    said, concluded = [], []
    for finding in present:
        body, short = wordings(finding)
        told = fill(one(body), finding), fill(one(short), finding)
        if finding.change is not None:
            told = with_change(told[0], finding.change, "findings"), with_change(told[1], finding.change, "impression")
        said.append(told[0])
        concluded.append(told[1])
    if not present and whole is not None and whole.presence is Presence.PRESENT:
        said.append(one(table[ABNORMAL]["findings"]))
        concluded.append(one(table[ABNORMAL]["impression"]))
    for finding in findings:
        if finding.change is Change.RESOLVED and finding.earlier is not None:
            said.append(resolved(finding.name, finding.earlier.side, "findings"))
            concluded.append(resolved(finding.name, finding.earlier.side, "impression"))
    done: set[str] = set()
    for row in table["denial"]:
        # of a group, the widest words that are true: those that need the most findings to be absent stand first
        of = {name for name in row["of"] if name in by_name}
        if row["group"] in done or not of or row["of"][0] not in of or not of <= absent:
            continue
        if len(row["of"]) > 1 and len(of) == 1 and row["group"] != "lungs":
            continue  # "effusion or pneumothorax" where only one of them is assessed
        done.add(row["group"])
        said.append(one(row["findings"]))
    if not said:
        said.append(one(table["whole"]["findings"]))
    if not concluded:
        key = "absent" if whole is None or whole.presence is Presence.ABSENT else "open"
        concluded.append(one(table["whole"][key]))
    return said, concluded


def made_up(
    assessed: Sequence[str], rng: np.random.Generator, deniable: Collection[str] | None = None
) -> tuple[Finding, ...]:
    """Findings that nobody read in a film, to be told all the same: so the words are learned from the tokens, not from what goes with what.

    deniable: those that may be absent; None: all.
    """
    names = [name for name in assessed if name != ABNORMAL]
    many = int(rng.choice([0, 1, 2, 3], p=[0.25, 0.4, 0.22, 0.13]))
    there = set(rng.permutation(names)[:many].tolist()) if names else set()
    unnamed = not there and rng.random() < 0.2
    found = []
    for name in assessed:
        if name == ABNORMAL:
            presence = (
                Presence.PRESENT if there or unnamed else Presence.ABSENT if rng.random() < 0.8 else Presence.OPEN
            )
        elif name in there:
            presence = Presence.PRESENT
        else:
            clear = deniable is None or name in deniable
            left_open = rng.random() < (0.5 if there or unnamed else 0.3)
            presence = Presence.ABSENT if clear and not left_open else Presence.OPEN
        side = zone = severity = ""
        pneumonia = False
        if presence is Presence.PRESENT and name in PLACED_BY:
            side = str(rng.choice(SIDES, p=[0.1, 0.3, 0.3, 0.3]))
            zone = str(rng.choice(ZONES)) if side and name != "effusion" else ""
            pneumonia = name == "opacity" and rng.random() < 0.6
        if presence is Presence.PRESENT and name in SIZES:
            severity = str(rng.choice(SEVERITIES))
        found.append(Finding(name, presence, 1.0, 0.5, side, zone, severity, pneumonia))
    return tuple(found)


def with_prior(findings: Sequence[Finding], rng: np.random.Generator) -> tuple[Finding, ...]:
    """Findings with a prior film that nobody has seen, and changes that go with both; for one finding in five no change is told."""
    found = []
    for finding in findings:
        then = Presence(str(rng.choice([*Presence], p=[0.45, 0.3, 0.25])))
        side = str(rng.choice(SIDES, p=[0.1, 0.3, 0.3, 0.3])) if finding.name in PLACED_BY else ""
        here = finding.presence is Presence.PRESENT
        if here and finding.side and rng.random() < 0.8:
            side = finding.side
        change = None
        if finding.name in COMPARED and rng.random() < 0.8:
            if here:
                change = Change(str(rng.choice([*POSSIBLE[then]])))
            elif finding.presence is Presence.ABSENT and then is Presence.PRESENT:
                change = Change.RESOLVED
        found.append(replace(finding, earlier=Earlier(then, side if then is Presence.PRESENT else "", "", change)))
    return tuple(found)


__all__ = ["NO_FINDING", "fill", "made_up", "place_of", "tell", "templates", "with_prior", "wordings"]
