"""Tells a film whose findings are known as a report, and says of every sentence where in the film it should look.

Few films come with their own report. What is known of the others (labels, a simulated finding with its place) is put into words here: findings
first, then normal sentences about what is known, or read by the tower, to be normal. Sides of findings that were not drawn are those of the film's
note, where it has one that names them; else places are the tower's own reading, so a draft never claims a place that the model did not read; how
good that reading is, is measured on boxes (train/evaluate.py).
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import torch

from emrrg_core.data import NO_FINDING, ReportText, Wording
from emrrg_core.errors import ConfigError
from emrrg_core.findings import LABELS, Status, labels, read_findings
from emrrg_core.simulate import Drawn, Sign
from emrrg_core.stated import CHANNEL_OF, SIDES, Fact, named, placed, third_of

_ABSENT = 0.3  # probability up to which a label that is not known is read as absent
_OF_SIGN = {Sign.NODULE: "nodule", Sign.OPACITY: "opacity", Sign.EFFUSION: "effusion", Sign.HEART: "heart"}
_SIZES = {  # limits of `Drawn.size`, and the words between them
    Sign.NODULE: ((0.025,), ("small", "large")),
    Sign.OPACITY: ((), ("",)),
    Sign.EFFUSION: ((0.15, 0.3), ("small", "moderate", "large")),
    Sign.HEART: ((0.45,), ("mildly", "moderately")),
}
_NOUN = {"mildly": "mild", "moderately": "moderate"}


@dataclass(frozen=True)
class Statement:
    """One sentence or more of a report. where: the share of every patch (g²,) that it speaks of, or None."""

    text: str
    where: np.ndarray | None = None


@dataclass(frozen=True)
class Reading:
    """What the tower reads in one film, as probabilities. regions: (3, 2, 3), see Signs.regions. places: (g², 5). code: (k,) bool."""

    labels: Mapping[str, float]
    regions: np.ndarray
    places: np.ndarray
    code: np.ndarray


@cache
def phrases() -> dict[str, dict[str, list[str]]]:
    """telling.toml. Raises ConfigError for a wording that the label reader does not read as it is meant."""
    table = tomllib.loads(resources.files("train").joinpath("telling.toml").read_text("utf-8"))
    for name, entry in table.items():
        for text in entry["findings"] + entry["impression"]:
            for place, side, size in (
                ("in the right lower lung", "right", ""),
                ("", "", "moderate"),
                ("in both lungs", "bilateral", "small"),
                ("in both mid and lower lungs", "bilateral", "large"),
            ):
                told = fill(
                    text, place, side, size if name in ("nodule", "effusion") else "mildly" if name == "heart" else ""
                )
                stated = {label for label, status in labels(told).items() if status is Status.POSITIVE} - {NO_FINDING}
                if not stated & set(entry["labels"]) or stated - set(entry["labels"]) - {"Lung Opacity"}:
                    raise ConfigError(
                        f"telling.toml: {told!r} should state {entry['labels']}, but reads as {sorted(stated)}."
                    )
                sides = {m.side for m in read_findings(told)} - {None}
                if side and sides - {side}:
                    raise ConfigError(f"telling.toml: {told!r} reads as {sorted(map(str, sides))}.")
    return table


def fill(text: str, place: str, side: str, size: str) -> str:
    """A wording with its blanks filled, in good English."""
    if "enlargement" in text or "cardiomegaly" in text:
        size = _NOUN.get(size, size)
    told = re.sub(r"\s+", " ", text.format(place=place, side=side, size=size))
    told = re.sub(r"\s+([.,])", r"\1", told).strip()
    told = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", told)
    if side == "bilateral":
        told = re.sub(r"\b[Tt]here is an? (.*effusion)", r"There are \1s", told)
        told = re.sub(r"^An? (.*?effusion) is\b", r"\1s are", told)
        told = re.sub(r"\ban? (.*effusion)", r"\1s", told)
        told = re.sub(r"effusion\b", "effusions", told)
    return told[0].upper() + told[1:]


class Teller:
    """Reports for films without one. Normal sentences are those of the report texts it is given (data.Wording)."""

    def __init__(self, reports: Sequence[ReportText]) -> None:
        self._wording = Wording(reports)

    def tell(
        self,
        known: Mapping[str, int],
        reading: Reading,
        drawn: Drawn | None,
        mask: np.ndarray | None,
        sides: Mapping[str, str] | None = None,
    ) -> tuple[list[Statement], list[Statement]]:
        """Findings and impression of one film.

        known: its labels, 1 or 0. drawn: what was simulated on it, with its mask (g²,) on the patches. sides: see `noted_sides`.
        """
        code = reading.code
        lungs = reading.places[:, :2].max(1)
        positive = {name for name, value in known.items() if value and name != NO_FINDING}
        told = self.facts(known, reading, drawn, sides)
        findings, impression = [], []
        for number, fact in enumerate(told):
            where = mask if drawn else _where(fact, reading, lungs)
            blanks = (_place(fact), fact.side, _size(drawn) if drawn else "")
            # the slot of the lungs' normal sentence, which is not said, then others
            for section, slot, out in (("findings", (1, 0, 3, 2)[number % 4], findings), ("impression", 5, impression)):
                text = phrases()[fact.name][section][self._wording.pick(code, slot)]
                out.append(Statement(fill(text, *blanks), where))
        free = {
            name for name in LABELS if known.get(name) == 0 or (name not in known and reading.labels[name] < _ABSENT)
        }
        if known.get(NO_FINDING) == 1:
            free |= set(LABELS)
        for subject, text in self._wording.sentences(code, set(LABELS) - free - {NO_FINDING} | positive):
            findings.append(Statement(text, lungs if subject in ("lungs", "pleura") else None))
        if not told:
            impression.append(Statement(self._wording.impression(code)))
        return findings, impression

    @staticmethod
    def facts(
        known: Mapping[str, int],
        reading: Reading,
        drawn: Drawn | None = None,
        sides: Mapping[str, str] | None = None,
    ) -> list[Fact]:
        """What `tell` states of a film that is abnormal, in its order."""
        if drawn:
            return [Fact(_OF_SIGN[drawn.sign], str(drawn.side or ""), str(drawn.zone or ""))]
        regions = torch.from_numpy(reading.regions)
        found = []
        for name in named(label for label, value in known.items() if value and label != NO_FINDING):
            side, third = placed(name, regions)
            if sides and name in sides and name in CHANNEL_OF:
                side, mine = sides[name], regions[CHANNEL_OF[name]]
                third = third_of(name, mine.amax(0) if side == SIDES[3] else mine[SIDES.index(side) - 1])
            found.append(Fact(name, side, third))
        return found


def _place(fact: Fact) -> str:
    """Where a fact lies, in words."""
    third = f"{fact.third} " if fact.third else ""
    if not fact.side or fact.name not in CHANNEL_OF:
        return ""
    return f"in both {third}lungs" if fact.side == SIDES[3] else f"in the {fact.side} {third}lung"


def _size(drawn: Drawn) -> str:
    limits, words = _SIZES[drawn.sign]
    return words[int(np.searchsorted(limits, drawn.size))]


def _where(fact: Fact, reading: Reading, lungs: np.ndarray) -> np.ndarray | None:
    """The patches (g²,) in which the tower reads a fact; the lungs where it reads no place; None where none makes sense."""
    if fact.name not in CHANNEL_OF:
        return None
    if not fact.side:
        return lungs
    here = lungs if fact.side == SIDES[3] else reading.places[:, SIDES.index(fact.side) - 1]
    where = reading.places[:, 2 + CHANNEL_OF[fact.name]] * here
    return where / max(float(where.max()), 1e-6)


_NOTED = {  # labels of a note that say where what is told under a name lies
    **{name: {"Lung Opacity", "Pneumonia", "Consolidation"} for name in ("opacity", "pneumonia", "consolidation")},
    "nodule": {"Lung Lesion"},
    "effusion": {"Pleural Effusion"},
    "atelectasis": {"Atelectasis"},
}


def noted_sides(note: str) -> dict[str, str]:
    """The sides, "right", "left" or "bilateral", at which a note affirms what `Teller` tells under a name."""
    sides: dict[str, set[str]] = {}
    for mention in read_findings(note):
        if mention.side and mention.status is Status.POSITIVE:
            for name, wanted in _NOTED.items():
                if mention.label in wanted:
                    sides.setdefault(name, set()).add(mention.side)
    return {name: next(iter(found)) if len(found) == 1 else "bilateral" for name, found in sides.items()}
