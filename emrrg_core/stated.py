"""Findings as facts: what, in which lung, in which third. What the tower's readings amount to, and how a fact stands in the prompt.

b films · n facts a film at most · g patches along a side · h language-model width

A probability in a prompt tells the language model little: it must learn from reports what 0.7 means, and where nothing forces it, its prior wins. A
fact leaves no doubt about what is to be said. In training it is what the report that is taught states; in drafting it is what the readings amount
to, by limits that held-out films have set (train/limits.py). So a draft states what the tower read, and how often that is right is the readers'
score alone. (Findings first predicted, then put into the prompt as words: PromptMRG, Jin et al. 2024, arXiv 2308.12604.)
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emrrg_core.findings import LABELS, NO_FINDING, SUPPORT_DEVICES, Status, read_findings
from emrrg_core.signs import Signs

# what can be stated, in the order in which it is told, and the labels that are then true, the telling one last
NAMES: dict[str, tuple[str, ...]] = {
    "pneumonia": ("Lung Opacity", "Pneumonia"),
    "consolidation": ("Consolidation",),
    "nodule": ("Lung Lesion",),
    "effusion": ("Pleural Effusion",),
    "heart": ("Cardiomegaly",),
    "atelectasis": ("Atelectasis",),
    "edema": ("Edema",),
    "pneumothorax": ("Pneumothorax",),
    "pleura": ("Pleural Other",),
    "mediastinum": ("Enlarged Cardiomediastinum",),
    "fracture": ("Fracture",),
    "opacity": ("Lung Opacity",),
}
_SPECIAL = {"consolidation", "nodule", "atelectasis", "edema"}  # are opacities in other words
CHANNELS = {"nodule": 0, "opacity": 1, "effusion": 2}  # of Signs.regions, and the limits behind those of the labels
# the channel that tells where a finding lies
CHANNEL_OF = CHANNELS | {"pneumonia": 1, "consolidation": 1, "atelectasis": 1}
IN_ANY_FILM = ("Cardiomegaly",)  # labels that count without the film as a whole being abnormal, as the signs do
_PLACED, _PRESENT = 0.4, 0.5  # probabilities from which a place is named, and from which a second one is
_APART = 1.0  # difference of the lungs from which only one is named, where leanings have cancelled out (docs/experiments.md 26)
SIDES = ("", "right", "left", "bilateral")
THIRDS = ("", "upper", "mid", "lower", "upper and mid", "mid and lower")
# the words whose own embeddings a fact starts with
_WORDS = {
    "": " normal",
    "heart": " cardiomegaly",
    "pleura": " pleural thickening",
    "mediastinum": " mediastinum",
}
_SHOWN = {
    "heart": "enlarged heart",
    "effusion": "pleural effusion",
    "pleura": "other pleural finding",
    "mediastinum": "enlarged mediastinum",
    "opacity": "airspace opacity",
}
LIMITS = (*LABELS, *CHANNELS)  # what has a limit


@dataclass(frozen=True)
class Fact:
    """One finding. name: of NAMES. side: of SIDES, third: of THIRDS, "" where none is named or none makes sense."""

    name: str
    side: str = ""
    third: str = ""

    def __str__(self) -> str:
        """As a reader would note it: "nodule, left upper lung"."""
        third = f"{self.third} " if self.third else ""
        where = {"": "", "bilateral": f", both {third}lungs"}.get(self.side, f", {self.side} {third}lung")
        return _SHOWN.get(self.name, self.name) + where

    @property
    def code(self) -> tuple[int, int, int]:
        """For `FactTokens`; (0, 0, 0) is no finding."""
        return 1 + list(NAMES).index(self.name), SIDES.index(self.side), THIRDS.index(self.third)


def named(positive: Iterable[str]) -> list[str]:
    """Positive labels as the fewest names that state them, in the order of NAMES: an opacity that is a pneumonia is not named again."""
    left, told = set(positive), []
    for name, labels in NAMES.items():
        if labels[-1] in left:
            told.append(name)
            left -= {*labels, *(("Lung Opacity",) if name in _SPECIAL else ())}
    return told


def placed(name: str, regions: Tensor, apart: float = torch.inf) -> tuple[str, str]:
    """Side and third of a finding by the readings of a film, probabilities (3, 2, 3) as in Signs.regions; "" where they do not tell.

    apart: by how much the lungs may differ at most, in the logit, for both to be named.
    """
    if name not in CHANNEL_OF:
        return "", ""
    mine = regions[CHANNEL_OF[name]]  # (2, 3), right first
    strongest = mine.amax(1)
    if strongest.max() < _PLACED:
        return "", ""
    if strongest.min() >= _PRESENT and strongest.logit(eps=1e-6).diff().abs().item() <= apart:
        return "bilateral", third_of(name, mine.amax(0))
    side = int(strongest[1] > strongest[0])
    return SIDES[1 + side], third_of(name, mine[side])


def third_of(name: str, thirds: Tensor) -> str:
    """The thirds of a lung, upper first, probabilities (3,), in words; "" for none, for all, and for those that do not touch."""
    present = "".join(str(int(value >= _PRESENT)) for value in thirds.tolist())
    third = THIRDS[{"100": 1, "010": 2, "001": 3, "110": 4, "011": 5}.get(present, 0)]
    return "" if name == "nodule" and " and " in third else third  # a nodule is in one of them


def facts(signs: Signs, limits: Tensor, most: int) -> list[list[Fact]]:
    """What the readings of each film amount to: at most `most` facts, the surest first; none of a normal film.

    limits: (len(LIMITS),) probabilities, 14 labels and then the signs that can lie somewhere. A film is abnormal where No Finding is below its
    limit: then every label counts that reaches its own, or else the one that comes nearest. A sign that is read somewhere above its limit, and a
    large heart, count in any film: the film as a whole may look normal.
    """
    labels = signs.labels.detach().float().cpu() - limits[: len(LABELS)].cpu().logit()
    regions = signs.regions().detach().float().cpu()  # logits
    sides = signs.sides().detach().float().cpu().sigmoid()
    apart = torch.inf if signs.places_mirrored is None else _APART
    spots = regions.flatten(2).amax(2) - limits[len(LABELS) :].cpu().logit()  # (b, 3)
    result = []
    for row in range(len(labels)):
        margin = dict(zip(LABELS, labels[row].tolist(), strict=True))
        abnormal = margin.pop(NO_FINDING) < 0
        tellable = {label: m for label, m in margin.items() if any(label in told for told in NAMES.values())}
        positive = {label: m for label, m in tellable.items() if m >= 0 and (abnormal or label in IN_ANY_FILM)}
        for name, channel in CHANNELS.items():
            if (m := float(spots[row, channel])) >= 0:
                label = NAMES[name][-1]
                positive[label] = max(positive.get(label, m), m)
        if abnormal and not positive:
            nearest = max(tellable, key=lambda label: tellable[label])
            positive = {nearest: tellable[nearest]}
        sure = {name: max(positive.get(label, -torch.inf) for label in NAMES[name]) for name in named(positive)}
        chosen = sorted(sure, key=lambda name: -sure[name])[:most]
        result.append([Fact(name, *placed(name, sides[row], apart)) for name in chosen])
    return result


def differences(read: Sequence[Fact], text: str) -> list[str]:
    """Where a report text states other findings or sides than were read, as sentences for its reader; most often empty.

    The text is read by the label reader (emrrg_core.findings), whose errors are counted in. What the text leaves open, the side for instance, is
    no difference.
    """
    stated: dict[str, set[str]] = {}
    for mention in read_findings(text):
        if mention.status is not Status.NEGATIVE and mention.label not in (NO_FINDING, SUPPORT_DEVICES):
            stated.setdefault(mention.label, set()).add(mention.side or "")
    found, allowed = [], set()
    for fact in read:
        labels = {*NAMES[fact.name], *(("Lung Opacity",) if fact.name in _SPECIAL else ())}
        allowed |= labels
        sides = set().union(*(stated.get(label, set()) for label in labels))
        if not labels & stated.keys():
            found.append(f"Read in the film, but not stated by the draft: {fact}.")
        elif fact.side and sides - {"", fact.side}:
            found.append(f"Read in the film: {fact}. The draft names another side.")
    found += [
        f"Stated by the draft, but not read in the film: {label}."
        for label in LABELS
        if label in stated.keys() - allowed
    ]
    return found


def codes(facts: Sequence[Sequence[Fact]], most: int) -> Tensor:
    """(b, n, 3) long: the codes of each film's first `most` facts, zeros behind them."""
    result = torch.zeros(len(facts), most, 3, dtype=torch.long)
    for row, mine in enumerate(facts):
        for place, fact in enumerate(mine[:most]):
            result[row, place] = torch.tensor(fact.code)
    return result


class FactTokens(nn.Module):
    """Three tokens a fact: what, side, third. They start as the mean embedding of their words in the language model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.name = nn.Embedding(1 + len(NAMES), width)
        self.side = nn.Embedding(len(SIDES), width)
        self.third = nn.Embedding(len(THIRDS), width)

    @torch.no_grad()
    def start(self, words: Mapping[str, Tensor]) -> None:
        """words: the embedding (h,) of every word of `vocabulary`."""
        for table, entries in zip((self.name, self.side, self.third), _tables(), strict=True):
            for row, word in enumerate(entries):
                table.weight[row] = words[word]

    def forward(self, codes: Tensor) -> Tensor:
        """(b, n, 3) to (b, 3n, h)."""
        parts = (self.name(codes[..., 0]), self.side(codes[..., 1]), self.third(codes[..., 2]))
        return torch.stack(parts, dim=2).flatten(1, 2)


def vocabulary() -> list[str]:
    """The words that facts are made of."""
    return sorted({word for table in _tables() for word in table})


def _tables() -> tuple[list[str], list[str], list[str]]:
    names = ["", *NAMES]
    return (
        [_WORDS.get(name, f" {name}") for name in names],
        [f" {side}" if side else "," for side in SIDES],
        [f" {third}" if third else "," for third in THIRDS],
    )
