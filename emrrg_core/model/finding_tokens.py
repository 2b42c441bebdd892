"""From probabilities to findings, and from findings to the tokens that the hybrid layers see.

b films · s findings that can be told (NAMES) · h language-model width

The tower's logits are calibrated on development films (train/calibrate.py). A finding is *present* from its threshold on, *absent* below the
probability up to which a denial was measured to be right, and *open* between the two: a draft then says nothing of it. What was never taught well
enough has no thresholds: it is not assessed, and neither stated nor denied.

Each assessed finding is one token: what it is, whether it is there, on which side, in which zone and how severe, bound together. These tokens and
the tower's patches are all that the hybrid layers see of a film. (Findings predicted first, then given to the language model, as words of its
prompt: PromptMRG, Jin et al. 2024, arXiv 2308.12604. Here nothing of them is in the prompt.)
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor, nn

from emrrg_core.model.disease_queries import Seen
from emrrg_core.text.changes import Change
from emrrg_core.text.labeler import LABELS, NO_FINDING

# what can be told, in the order in which it is told, and the label that is read for it; ABNORMAL is the film as a whole
ABNORMAL = "abnormal"
NAMES: dict[str, str] = {
    ABNORMAL: NO_FINDING,
    "opacity": "Lung Opacity",
    "consolidation": "Consolidation",
    "nodule": "Lung Lesion",
    "edema": "Edema",
    "atelectasis": "Atelectasis",
    "effusion": "Pleural Effusion",
    "pneumothorax": "Pneumothorax",
    "pleura": "Pleural Other",
    "heart": "Cardiomegaly",
    "mediastinum": "Enlarged Cardiomediastinum",
    "fracture": "Fracture",
}
PNEUMONIA = "Pneumonia"  # what an opacity may be; said in the Impression only, and hedged
NEVER_READ = ("Support Devices",)  # no film here teaches it
SIDES = ("", "right", "left", "bilateral")
ZONES = ("", "upper", "mid", "lower", "upper and mid", "mid and lower")
SEVERITIES = ("", "mild", "moderate", "severe")  # of an effusion: small, moderate, large
# whose patches tell where a finding lies
PLACED_BY = {
    "opacity": "Lung Opacity",
    "consolidation": "Lung Opacity",
    "atelectasis": "Lung Opacity",
    "nodule": "Lung Lesion",
    "effusion": "Pleural Effusion",
}
SHOWN = {
    ABNORMAL: "any abnormality",
    "opacity": "airspace opacity",
    "nodule": "nodule or mass",
    "effusion": "pleural effusion",
    "pleura": "other pleural finding",
    "heart": "enlarged heart",
    "mediastinum": "enlarged mediastinum",
}
_NAMED, _SECOND = 0.4, 0.5  # probabilities of a region from which a place is named, and from which a second one is
HEART = (0.35, 0.77)  # of the lungs' height, from the top: rows in which the heart parts the lungs
UNEVEN = 0.25  # of the taller lung's height, by which the other may end above it
NEVER = 1.0  # a threshold that no probability reaches: not assessed


class Presence(StrEnum):
    PRESENT = "present"  # a draft states it
    ABSENT = "absent"  # a draft may deny it
    OPEN = "open"  # between the thresholds: a draft says nothing of it


@dataclass(frozen=True)
class Earlier:
    """What was read of a finding in the prior film, and how it has changed since.

    side: of SIDES, zone: of ZONES, as in a Finding. change: None where it is not told, for it was not read surely enough. sure: the probability of
    that change (emrrg_core.model.prior_film), 0 where none is told.
    """

    presence: Presence
    side: str = ""
    zone: str = ""
    change: Change | None = None
    sure: float = 0.0


@dataclass(frozen=True)
class Finding:
    """What was read of one finding in one study.

    name: of NAMES. probability: calibrated, 0 to 1. threshold: from which it is stated. side: of SIDES, zone: of ZONES, severity: of SEVERITIES,
    "" where none is named or none makes sense. pneumonia: of an opacity that may be one. map: share of every patch (g²,), sum 1, per film of
    the study: what the finding's logit is made of where it is present, where it was looked for otherwise. earlier: of the prior film, None
    where none was given.
    """

    name: str
    presence: Presence
    probability: float
    threshold: float
    side: str = ""
    zone: str = ""
    severity: str = ""
    pneumonia: bool = False
    maps: tuple[np.ndarray, ...] = field(default=(), compare=False, repr=False)
    earlier: Earlier | None = None

    @property
    def change(self) -> Change | None:
        """Since the prior film; None where none was given, or none is told."""
        return self.earlier.change if self.earlier else None

    @property
    def label(self) -> str:
        """CheXpert's name."""
        return NAMES[self.name]

    def __str__(self) -> str:
        """As a reader would note it: "nodule or mass, left upper lung"."""
        zone = f"{self.zone} " if self.zone else ""
        where = {"": "", "bilateral": f", both {zone}lungs"}.get(self.side, f", {self.side} {zone}lung")
        if self.name == "effusion":
            where = f", {self.side}" if self.side else ""
        return SHOWN.get(self.name, self.name) + where

    @property
    def code(self) -> tuple[int, int, int, int, int]:
        """For `FindingTokens`. The name 0 is no token; an opacity that may be pneumonia has the last name of all."""
        kind = 1 + len(NAMES) if self.pneumonia else 1 + list(NAMES).index(self.name)
        presence = list(Presence).index(self.presence)
        return kind, presence, SIDES.index(self.side), ZONES.index(self.zone), SEVERITIES.index(self.severity)


def placed(regions: Tensor) -> tuple[str, str]:
    """Side and zone by the probabilities of the regions (2, 3) of one finding, the right lung first; "" where they do not tell."""
    strongest = regions.amax(1)
    if strongest.max() < _NAMED:
        return "", ""
    if strongest.min() >= _SECOND:
        return "bilateral", zone_of(regions.amax(0))
    side = int(strongest[1] > strongest[0])
    return SIDES[1 + side], zone_of(regions[side])


def zone_of(zones: Tensor) -> str:
    """The zones of a lung, upper first, probabilities (3,), in words; "" for none, for all, and for those that do not touch."""
    present = "".join(str(int(value >= _SECOND)) for value in zones.tolist())
    return ZONES[{"100": 1, "010": 2, "001": 3, "110": 4, "011": 5}.get(present, 0)]


# ------------------------------------------------------------------------------------------------------------ measures


def cardiothoracic_ratio(lungs: np.ndarray) -> float | None:
    """Width of the heart over the inner width of the chest, from lung borders (2, m, m) in [0, 1], the patient's right lung first.

    The heart reaches from the innermost border of the right lung to that of the left, in the rows HEART of the lungs' height: below it the domes of
    the diaphragm, not the heart, part the lungs. The chest reaches from the outermost border to the other (Danzer 1919; on a PA film a ratio above
    0.5 means an enlarged heart; of the outlines of 224 normal films, 98 % are below). None where two lungs are not seen, and where one ends far
    above the other (UNEVEN): what hides its lower half hides the heart's border too. Films are squashed to a square, which changes no ratio of
    widths.
    """
    m = lungs.shape[-1]
    rows = [np.flatnonzero((lung >= 0.5).any(1)) for lung in lungs]
    if min(map(len, rows)) < m // 8:
        return None
    top, bottom = max(r[0] for r in rows), min(r[-1] for r in rows)
    height = bottom - top
    if height < m // 8 or max(r[-1] for r in rows) - bottom > UNEVEN * max(r[-1] - r[0] for r in rows):
        return None
    first, last = (round(top + share * height) for share in HEART)
    outer, inner = [], []
    for row in range(top, bottom + 1):
        right, left = lungs[0, row], lungs[1, row]
        if right.max() < 0.5 or left.max() < 0.5:
            continue
        outer.append((m - _edge(left[::-1])) - _edge(right))
        if first <= row <= last:
            inner.append((m - _edge(right[::-1]), _edge(left)))
    if len(inner) < 2 or max(outer) < m / 4:
        return None
    # one row may be wrong: the border that the second most of them reach
    start, end = sorted(a for a, _ in inner)[1], sorted(b for _, b in inner)[-2]
    return float(np.clip((end - start) / max(outer), 0, 1))


def _edge(row: np.ndarray) -> float:
    """Where a row (m,) first rises to one half, between two cells, from its start."""
    i = int(np.argmax(row >= 0.5))
    if i == 0:
        return 0.0
    before, here = float(row[i - 1]), float(row[i])
    return i - 1 + 0.5 + (0.5 - before) / max(here - before, 1e-6)


def severity_of(name: str, side: str, seen: Seen, row: int, ratio: float | None) -> str:
    """How severe: of a heart by its ratio, of an effusion by the share of the lung's patches that it covers; "" of others."""
    if name == "heart":
        return "" if ratio is None else SEVERITIES[1 + int(ratio >= 0.55) + int(ratio >= 0.6)]
    if name != "effusion" or not side:
        return ""
    lungs = seen.patch_lungs()[row].detach()  # (g², 2)
    mine = lungs.amax(-1) if side == "bilateral" else lungs[:, SIDES.index(side) - 1]
    grid = round(len(mine) ** 0.5)
    there = seen.evidence[row, LABELS.index("Pleural Effusion")].detach() > 0
    beside = torch.arange(grid, device=mine.device).repeat(grid) >= grid / 2
    near = there if side == "bilateral" else there & (beside if side == "left" else ~beside)
    share = float(near.sum()) / max(float(mine.sum()), 1.0)
    return SEVERITIES[1 + int(share >= 0.25) + int(share >= 0.6)]


# --------------------------------------------------------------------------------------------------- calibration


class Calibration(nn.Module):
    """From logits to probabilities, and from which probability on a finding is told. All numbers are fitted on development films.

    curve: (14, 3): probability = σ(scale · logit + weight · (ratio of the heart - 0.5) + offset). thresholds: (14, 3): present in a film that is
    abnormal as a whole, present in any film, and the probability below which it may be denied (0: it is never denied). Labels in the order of
    LABELS; the probability of "No Finding" is that of a normal film. A ratio that could not be measured counts as 0.5, so as nothing.
    """

    curve: Tensor
    thresholds: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("curve", torch.tensor([[1.0, 0.0, 0.0]]).repeat(len(LABELS), 1))
        self.register_buffer("thresholds", torch.tensor([[0.5, 0.9, 0.1]]).repeat(len(LABELS), 1))

    def probabilities(self, logits: Tensor, ratios: Sequence[float | None]) -> Tensor:
        """(b, 14) of logits (b, 14)."""
        ratio = torch.tensor([[(r if r is not None else 0.5) - 0.5] for r in ratios], device=logits.device)
        curve = self.curve.float()
        return (curve[:, 0] * logits.float() + curve[:, 1] * ratio + curve[:, 2]).sigmoid()

    def assessed(self, name: str) -> bool:
        """Whether a finding is told at all."""
        return bool(self.thresholds[LABELS.index(NAMES[name]), 0] < NEVER)


def ratios_of(seen: Seen) -> list[float | None]:
    """The cardiothoracic ratio of every film, None where its lungs are not seen."""
    if not seen.lungs.numel():
        return [None] * len(seen.logits)
    return [cardiothoracic_ratio(row) for row in seen.lungs.detach().float().sigmoid().cpu().numpy()]


def select_findings(seen: Seen, calibration: Calibration) -> list[tuple[Finding, ...]]:
    """What is read of every assessed finding in every film, in the order of NAMES.

    A film is abnormal as a whole where the probability of "No Finding" is below its threshold; then each finding that reaches its first
    threshold is present, else only what reaches the second. Nothing below its own threshold is stated.
    """
    ratios = ratios_of(seen)
    probabilities = calibration.probabilities(seen.logits, ratios).cpu()
    regions = seen.regions().detach().float().sigmoid().cpu()
    thresholds = calibration.thresholds.float().cpu()
    maps = finding_maps(seen)
    result = []
    for row, mine in enumerate(probabilities):
        p = dict(zip(LABELS, mine.tolist(), strict=True))
        normal = LABELS.index(NO_FINDING)
        whole = 1 - p[NO_FINDING] >= float(thresholds[normal, 0])
        found = []
        for name, label in NAMES.items():
            if not calibration.assessed(name):
                continue
            i = LABELS.index(label)
            alone = name != ABNORMAL and not whole
            probability = 1 - p[label] if name == ABNORMAL else p[label]
            threshold, denied = float(thresholds[i, int(alone)]), float(thresholds[i, 2])
            presence = Presence.OPEN
            if probability >= threshold:
                presence = Presence.PRESENT
            elif probability < denied:
                presence = Presence.ABSENT
            side = zone = severity = ""
            pneumonia = False
            if presence is Presence.PRESENT:
                if name in PLACED_BY:
                    side, zone = placed(regions[row, LABELS.index(PLACED_BY[name])])
                    zone = "" if name == "effusion" else zone
                severity = severity_of(name, side, seen, row, ratios[row])
                k = LABELS.index(PNEUMONIA)
                pneumonia = name == "opacity" and p[PNEUMONIA] >= float(thresholds[k, 0])
            found.append(
                Finding(
                    name,
                    presence,
                    probability,
                    threshold,
                    side,
                    zone,
                    severity,
                    pneumonia,
                    (maps[row, i, int(presence is Presence.PRESENT)],),
                )
            )
        result.append(tuple(found))
    return result


def finding_maps(seen: Seen) -> np.ndarray:
    """(b, 14, 2, g²) float32: where each finding was looked for, and what its logit is made of; each sums to 1.

    The first is how much a patch counts more than the one that counts least. The second is the part of the attribution that speaks for it, of
    "No Finding" the part that speaks against; of an opacity also what speaks for pneumonia, which is seen as one and told in the same words. Where
    nothing speaks for it, it is the first.
    """
    share = seen.share.detach().float()
    looked = share - share.amin(-1, keepdim=True)  # what all patches count alike is no place
    evenly = looked.sum(-1, keepdim=True)
    looked = torch.where(evenly > 1e-6, looked / evenly.clamp_min(1e-6), share)
    signs = torch.ones(len(LABELS), 1, device=looked.device)
    signs[LABELS.index(NO_FINDING)] = -1
    for_it = (seen.attribution.detach().float() * signs).clamp_min(0)
    opacity = LABELS.index("Lung Opacity")
    for_it[:, opacity] = for_it[:, opacity] + for_it[:, LABELS.index(PNEUMONIA)]
    total = for_it.sum(-1, keepdim=True)
    made = torch.where(total > 1e-6, for_it / total.clamp_min(1e-6), looked)
    return torch.stack([looked, made], dim=2).cpu().numpy()


# ------------------------------------------------------------------------------------------------------------- tokens


def codes(findings: Sequence[Iterable[Finding]]) -> Tensor:
    """(b, s, 5) long, a row a finding of NAMES; zeros where it is not assessed."""
    result = torch.zeros(len(findings), len(NAMES), 5, dtype=torch.long)
    places = {name: i for i, name in enumerate(NAMES)}
    for row, mine in enumerate(findings):
        for finding in mine:
            result[row, places[finding.name]] = torch.tensor(finding.code)
    return result


class FindingTokens(nn.Module):
    """One token a finding: name, presence, side, zone and severity, each an embedding, added up.

    They start as the embeddings of their words in the language model, which the hybrid layers' keys and values are copies of.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        tables = ([*NAMES], [*Presence], SIDES, ZONES, SEVERITIES)
        sizes = [2 + len(NAMES), *map(len, tables[1:])]
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in sizes)

    @torch.no_grad()
    def start(self, embedding_of: Callable[[str], Tensor]) -> None:
        """embedding_of: a word's embedding (h,) in the language model."""
        for table, words in zip(self.tables, _words(), strict=True):
            assert isinstance(table, nn.Embedding)
            for row, word in enumerate(words):
                table.weight[row] = embedding_of(word)

    def forward(self, codes: Tensor) -> Tensor:
        """(b, s, 5) to (b, s, h)."""
        parts = [table(codes[..., i]) for i, table in enumerate(self.tables)]
        return torch.stack(parts).sum(0)


def _words() -> list[list[str]]:
    names = [" none", *(f" {SHOWN.get(name, name)}" for name in NAMES), " pneumonia"]
    return [
        names,
        [" present", " absent", " unclear"],
        [f" {side}" if side else "," for side in SIDES],
        [f" {zone}" if zone else "," for zone in ZONES],
        [f" {severity}" if severity else "," for severity in SEVERITIES],
    ]
