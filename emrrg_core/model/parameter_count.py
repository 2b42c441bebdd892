"""What learns and what is frozen: the parameters of a built model, counted by part, and what share of what they are (docs/method.md 3.4, 3.6)."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

WHOLES = {  # what a share may be of
    "tower": ("tower",),
    "full fine-tuning": ("tower", "projector"),
    "tower + LLM": ("tower", "LLM"),
    "everything": (),
}
PARTS = {  # of a model, by the first word of a parameter's name
    "visual_encoder": "tower",
    "llama_proj": "projector",
    "layer_norm": "projector",
    "llama_proj_impression": "projector",
    "layer_norm_impression": "projector",
    "hybrid": "hybrid",
    "disease": "queries",
    "lungs": "queries",
    "finding_tokens": "finding tokens",
    "memory": "associative memory",
    "prior": "prior film",
    "llm": "LLM",
}


@dataclass(frozen=True)
class Counts:
    """Parameters of one built model by part: tower, adapters, projector (with its norm), hybrid, queries (with the lung borders), finding
    tokens, associative memory, prior film, LLM, LLM LoRA. The calibration has no parameters: its numbers are fitted, not trained.

    all        every part that the model has
    trainable  of these, what learns; a part where nothing does is left out
    """

    all: dict[str, int]
    trainable: dict[str, int]

    @property
    def learned(self) -> int:
        """How many parameters learn."""
        return sum(self.trainable.values())

    def whole(self, name: str) -> int:
        """How many parameters one of WHOLES has."""
        return sum(self.all[part] for part in WHOLES[name] or self.all)

    def percent(self, name: str, learned: int | None = None) -> float:
        """What learns, or `learned` parameters, in per cent of one of WHOLES."""
        return 100 * (self.learned if learned is None else learned) / self.whole(name)

    def to_dict(self) -> dict[str, Any]:
        """The learning ones in all and by part, and each of WHOLES that the model has with the share of it that learns."""
        known = [name for name, parts in WHOLES.items() if self.all.keys() >= set(parts)]
        of = {name: {"parameters": self.whole(name), "percent": round(self.percent(name), 4)} for name in known}
        return {"trainable": self.learned, "parts": self.trainable, "of": of}


def part_of(name: str) -> str:
    """The part of a model (emrrg_core.model.emrrg.Emrrg) that a parameter of that name belongs to."""
    part = PARTS[name.split(".")[0]]
    if ".lora." in name or ".lora_" in name:
        return "adapters" if part == "tower" else "LLM LoRA"
    return part


def count(model: nn.Module, learns: Collection[str] | None = None, part: Callable[[str], str] = part_of) -> Counts:
    """The parameters of a built model. learns: names of those that learn; None: those that require a gradient now."""
    counted = Counts({}, {})
    for name, parameter in model.named_parameters():
        whose = part(name)
        counted.all[whose] = counted.all.get(whose, 0) + parameter.numel()
        if parameter.requires_grad if learns is None else name in learns:
            counted.trainable[whose] = counted.trainable.get(whose, 0) + parameter.numel()
    return counted
