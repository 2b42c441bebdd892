"""AM-MRG's associative memory (stage 2, docs/method.md 8.2): disease tokens ask, stored patterns answer.

b films · f findings, a disease token each · d tower width · n stored patterns of width e · k width of a head · h language-model width

Two memories: patterns of regions where training films show a finding, and patterns of training reports. A modern Hopfield network (Ramsauer et al.
2021, arXiv 2008.02217) answers a state with softmax(β · state · patternsᵀ) · patterns; at a high β that is the stored pattern nearest to it. The
layer around it projects states and patterns first, as HopfieldLayer of ml-jku/hflayers does. What both memories answer are tokens that the hybrid
layers see beside the patches and the disease tokens.

The patterns are built once, from training films and reports alone (train/patterns.py), and travel in the checkpoint as vectors, without text.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from emrrg_core.config import MemoryConfig
from emrrg_core.errors import CheckpointError
from emrrg_core.text.labeler import LABELS

SCHEMA = "emrrg.patterns/1"
KINDS = ("visual", "report")


def retrieve(states: Tensor, stored: Tensor, beta: float, steps: int = 1) -> Tensor:
    """A modern Hopfield network: states (…, k) after `steps` updates towards the stored patterns (n, k), at inverse temperature `beta`."""
    for _ in range(steps):
        states = (beta * states @ stored.transpose(-1, -2)).softmax(-1) @ stored
    return states


class HopfieldMemory(nn.Module):
    """States ask a fixed memory, head by head. beta takes the place of 1/√k.

    With one step, a state is asked once, as published (update_steps_max 0 of hflayers); each further step moves the state towards the patterns' keys
    before. Weights start as N(0, 0.02), biases at 0.
    """

    def __init__(self, width: int, stored: int, config: MemoryConfig) -> None:
        """width: of states and answers, d. stored: of patterns, e."""
        super().__init__()
        self.heads, self.beta, self.steps = config.heads, config.beta, config.steps
        self.norm_state, self.norm_stored, self.norm_answer = (
            nn.LayerNorm(width),
            nn.LayerNorm(stored),
            nn.LayerNorm(stored),
        )
        self.queries = nn.Linear(width, config.heads * config.head_width)
        self.keys = nn.Linear(stored, config.heads * config.head_width)
        self.values = nn.Linear(stored, config.heads * width)
        self.out = nn.Linear(config.heads * width, width)
        self.dropout = nn.Dropout(config.dropout)
        for layer in (self.queries, self.keys, self.values, self.out):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, states: Tensor, patterns: Tensor) -> tuple[Tensor, Tensor]:
        """States (b, f, d) and patterns (n, e) to answers (b, f, d) and, averaged over heads, what each pattern gave, (b, f, n), sum 1."""
        q = self.queries(self.norm_state(states)).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (b, heads, f, k)
        k = self.keys(self.norm_stored(patterns)).unflatten(-1, (self.heads, -1)).transpose(0, 1)  # (heads, n, k)
        v = self.values(self.norm_answer(patterns)).unflatten(-1, (self.heads, -1)).transpose(0, 1)  # (heads, n, d)
        q = retrieve(q, k, self.beta, self.steps - 1)
        weights = (self.beta * q @ k.transpose(-1, -2)).float().softmax(-1)  # (b, heads, f, n)
        found = self.dropout(weights).to(v.dtype) @ v
        answers: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return answers, weights.mean(1)


class AssociativeMemory(nn.Module):
    """Disease tokens, and what the memories answer them, ready for the projector into the language model's width."""

    visual: Tensor
    report: Tensor

    def __init__(self, width: int, config: MemoryConfig) -> None:
        """Empty patterns of the sizes that the settings say; `hold` fills them."""
        super().__init__()
        self.register_buffer("visual", torch.zeros(config.visual, width))
        self.register_buffer("report", torch.zeros(config.report, config.report_width))
        self.out = nn.Linear(width, width)  # O of docs/method.md 8.2: disease tokens and answers alike
        nn.init.eye_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        sizes = {"visual": width, "report": config.report_width}
        self.memories = nn.ModuleDict(
            {k: HopfieldMemory(width, sizes[k], config) for k in KINDS if len(getattr(self, k))}
        )

    def forward(self, disease: Tensor) -> tuple[Tensor, Tensor]:
        """Disease tokens (b, f, d) to themselves, (b, f, d), and what all memories answer them, (b, m·f, d) of m memories."""
        answers = [memory(disease, getattr(self, kind))[0] for kind, memory in self.memories.items()]
        found = torch.cat(answers, 1) if answers else disease[:, :0]
        return self.out(disease), self.out(found)

    @torch.no_grad()
    def hold(self, patterns: "Patterns") -> None:
        """Raises CheckpointError where the settings ask for other sizes."""
        for kind in KINDS:
            mine, given = getattr(self, kind), getattr(patterns, kind)
            if mine.shape != given.shape:
                raise CheckpointError(
                    f"The settings ask for {kind} patterns {tuple(mine.shape)}, and there are {tuple(given.shape)}: "
                    f"set memory.{kind} = {len(given)}"
                    + (f", memory.report_width = {given.shape[1]}." if kind == "report" else ".")
                )
            mine.copy_(given)


@dataclass(frozen=True)
class Patterns:
    """Both memories with where each pattern comes from. visual: (n, d), report: (m, e), float32.

    films, reports: the study or report that each is of. labels: the finding of each region, of LABELS.
    """

    visual: Tensor
    report: Tensor
    films: tuple[str, ...]
    reports: tuple[str, ...]
    labels: tuple[str, ...]

    def save(self, path: Path) -> None:
        """One safetensors file, float16. The same patterns give the same bytes."""
        notes = {"schema": SCHEMA, **{name: getattr(self, name) for name in ("films", "reports", "labels")}}
        # one entry: safetensors writes several in any order
        kept = {kind: getattr(self, kind).half().contiguous() for kind in KINDS}
        save_file(kept, path, metadata={"patterns": json.dumps(notes)})
        path.chmod(0o644)  # safetensors writes for its owner's eyes only

    @classmethod
    def load(cls, path: Path) -> "Patterns":
        """Raises CheckpointError where the file is missing, damaged or of another form."""
        try:
            with safe_open(path, framework="pt") as file:
                notes = json.loads((file.metadata() or {})["patterns"])
                if notes["schema"] != SCHEMA:
                    raise ValueError(f"it is {notes['schema']}, not {SCHEMA}")
                names = {name: tuple(map(str, notes[name])) for name in ("films", "reports", "labels")}
                visual, report = (file.get_tensor(kind).float() for kind in KINDS)
                found = cls(visual, report, names["films"], names["reports"], names["labels"])
            if not (
                len(found.visual) == len(found.films) == len(found.labels) and len(found.report) == len(found.reports)
            ):
                raise ValueError("patterns and names are not as many")
            if unknown := set(found.labels) - set(LABELS):
                raise ValueError(f"unknown labels {sorted(unknown)}")
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} cannot be read as patterns ({error}): build them with train.patterns."
            ) from error
        return found


__all__ = ["AssociativeMemory", "HopfieldMemory", "Patterns", "retrieve"]
