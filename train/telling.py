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

from emrrg_core.data import NO_FINDING, ReportText, Wording
from emrrg_core.errors import ConfigError
from emrrg_core.findings import LABELS, Status, labels, read_findings
from emrrg_core.simulate import LABEL_OF, Drawn, Sign

_PRESENT, _ABSENT, _PLACED = 0.5, 0.3, 0.4  # probabilities from or up to which a reading is believed
_CHANNEL = {"nodule": 0, "opacity": 1, "pneumonia": 1, "consolidation": 1, "effusion": 2, "atelectasis": 1}
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


def clearest(reading: Reading) -> dict[Sign, float]:
    """How clearly each sign is read anywhere in a film, as a probability: the strongest patch of a lung, of a large heart its label."""
    return {
        sign: reading.labels[LABEL_OF[sign]] if sign is Sign.HEART else float(reading.regions[_CHANNEL[name]].max())
        for sign, name in _OF_SIGN.items()
    }


def clarity(reading: Reading, drawn: Drawn, mask: np.ndarray) -> float:
    """How clearly a simulated finding is read where it was drawn. mask: (g²,), its share of every patch."""
    if drawn.sign is Sign.HEART:
        return reading.labels[LABEL_OF[drawn.sign]]
    return float(reading.places[mask >= 0.5 * mask.max(), 2 + _CHANNEL[_OF_SIGN[drawn.sign]]].max())


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
        told = self._names(positive, drawn)
        findings, impression = [], []
        for number, name in enumerate(told):
            place, side, size, where = self._describe(name, reading, drawn, mask, lungs, sides or {})
            # the slot of the lungs' normal sentence, which is not said, then others
            for section, slot, out in (("findings", (1, 0, 3, 2)[number % 4], findings), ("impression", 5, impression)):
                text = phrases()[name][section][self._wording.pick(code, slot)]
                out.append(Statement(fill(text, place, side, size), where))
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
    def _names(positive: set[str], drawn: Drawn | None) -> list[str]:
        if drawn:
            return [_OF_SIGN[drawn.sign]]
        left, told = set(positive), []
        for name in ("pneumonia", "consolidation", "nodule", "effusion", "heart", "atelectasis", "edema", "pneumothorax", "pleura",
                     "mediastinum", "fracture", "opacity"):  # fmt: skip
            wanted = phrases()[name]["labels"]
            if wanted[-1] in left:
                told.append(name)
                left -= set(wanted)
                if name in ("consolidation", "nodule", "atelectasis", "edema"):
                    left -= {"Lung Opacity"}  # which it is, in other words
        return told

    @staticmethod
    def _describe(
        name: str,
        reading: Reading,
        drawn: Drawn | None,
        mask: np.ndarray | None,
        lungs: np.ndarray,
        sides: Mapping[str, str],
    ) -> tuple[str, str, str, np.ndarray | None]:
        """Place, side, size, and where."""
        if drawn:
            limits, words = _SIZES[drawn.sign]
            size = words[int(np.searchsorted(limits, drawn.size))]
            side = drawn.side.value if drawn.side else ""
            zone = drawn.zone.value + " " if drawn.zone else ""
            return (f"in the {side} {zone}lung" if side else ""), side, size, mask
        if name not in _CHANNEL:
            return "", "", "", None
        channel = _CHANNEL[name]
        regions = reading.regions[channel]  # (2, 3), right first
        strongest = regions.max(1)
        if name in sides:
            read = sides[name] == "bilateral", sides[name] != "left"
        elif strongest.max() < _PLACED:
            return "", "", "", lungs
        else:
            read = bool(strongest.min() >= _PRESENT), bool(strongest[0] >= strongest[1])
        both, right = read
        here = lungs if both else reading.places[:, 0 if right else 1]
        where = reading.places[:, 2 + channel] * here
        where = where / max(float(where.max()), 1e-6)
        zone = _zone((regions.max(0) if both else regions[0 if right else 1]) >= _PRESENT)
        if name == "nodule" and " and " in zone:  # which is in one of them
            zone = ""
        if both:
            return f"in both {zone}lungs", "bilateral", "", where
        side = "right" if right else "left"
        return f"in the {side} {zone}lung", side, "", where


def _zone(present: np.ndarray) -> str:
    """The thirds of a lung, upper first, (3,) bool, in words; "" for none, for all, and for thirds that do not touch."""
    names = {
        (1, 0, 0): "upper",
        (0, 1, 0): "mid",
        (0, 0, 1): "lower",
        (1, 1, 0): "upper and mid",
        (0, 1, 1): "mid and lower",
    }
    zone = names.get(tuple(present.astype(int).tolist()), "")
    return f"{zone} " if zone else ""


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
