"""Low-rank adapters of the tower, in weight space (docs/method.md 3).

An adapted layer computes with weight + Σ scale · up @ down, each update on its own slice of the weight's rows. d: d_inner, r: dt_rank, n: d_state.

    x          LoRA_p(X)         rows [0 : d] of in_proj: X, before the convolution and the scans (docs/method.md 3.1)
    in_proj    LoRA(in_proj)     all rows of in_proj: X and Z (docs/method.md 3.2)
    z          LoRA_p(Z)         rows [d : 2d] of in_proj: the gate
    out_proj   LoRA(out_proj)    all rows of out_proj
    x_proj     LoRA(x_proj)      all rows of x_proj, one update for each of the four directions, as for the next four
    dt         LoRA_p(dt)        rows [0 : r] of x_proj: what dt_proj reads
    b          LoRA_p(B)         rows [r : r + n] of x_proj
    c          LoRA_p(C)         rows [r + n : r + 2n] of x_proj
    dt_proj    LoRA(dt_proj)     all rows of dt_proj; its bias stays
    embedding  LoRA(embedding)   all rows of the convolutions that make patches: the one of the published towers, every one of a convolutional stem

These and LoRA in the language model, which peft does, are the eleven rows of the ablation (docs/method.md 3.4): `ablate` makes a
model's settings from the name
of a row. `up` starts at zero, so fresh adapters change nothing. The adapted layer keeps the names of its weights: adapter keys are added below
`lora.`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emrrg_core.config import AdapterConfig, LanguageLoraConfig, LowRankConfig, ModelConfig, Sections
from emrrg_core.errors import ConfigError
from emrrg_core.model.other_towers import TransformersTower
from emrrg_core.model.vision_mamba import DIRECTIONS, VisionMamba

# the ablation's rows, in the order of the paper's Table 6 (docs/method.md 3.4)
ROWS = {
    "llm": "LoRA(LLM)",
    "embedding": "LoRA(embedding)",
    "x_proj": "LoRA(x_proj)",
    "dt_proj": "LoRA(dt_proj)",
    "in_proj": "LoRA(in_proj)",
    "out_proj": "LoRA(out_proj)",
    "z": "LoRA_p(Z)",
    "dt": "LoRA_p(dt)",
    "b": "LoRA_p(B)",
    "c": "LoRA_p(C)",
    "x": "LoRA_p(X)",
}
# the rows, and what they are compared with
DESIGNS = {
    **ROWS,
    "projector": "projector only",
    "combined": "LoRA_p(X) + LoRA(in_proj) + hybrid",
    "full": "full fine-tuning",
}


def ablate(config: ModelConfig, design: str, low_rank: LowRankConfig | None = None) -> ModelConfig:
    """The same model with one of DESIGNS in place of its own adapters, hybrid layers and language-model LoRA.

    A row of the ablation has its own slice and nothing else of these; "projector" has none of them; "combined" is the paper's design, with the
    hybrid layers that `config` asks for; "full" trains the whole tower. The projector learns in all of them, and one model writes both sections.
    low_rank: of every update; rank 16
    and scale 1 as in the table when it is None. Raises ConfigError for another name, and for "combined" where `config` has no hybrid layers.
    """
    if design not in DESIGNS:
        raise ConfigError(f"There is no design called {design!r}; choose one of {', '.join(DESIGNS)}.")
    slot = low_rank or LowRankConfig()
    adapters, lora, hybrid = AdapterConfig.only(), LanguageLoraConfig(), replace(config.hybrid, every_n=0)
    if design == "llm":
        # peft multiplies by alpha / rank
        lora = LanguageLoraConfig(rank=slot.rank, alpha=round(slot.scale * slot.rank), dropout=slot.dropout)
    elif design == "combined":
        if not config.hybrid.every_n:
            raise ConfigError(
                "The combined design needs hybrid layers: set every_n of the hybrid decoder to 1 or more."
            )
        adapters, hybrid = AdapterConfig.only(x=slot, in_proj=slot), config.hybrid
    elif design == "full":
        adapters = replace(AdapterConfig.only(), full=True)
    elif design != "projector":
        adapters = AdapterConfig.only(**{design: slot})
    return replace(config, adapters=adapters, language_lora=lora, hybrid=hybrid, sections=Sections.JOINT)


class LowRank(nn.Module):
    """An update of some rows of a weight: scale · up @ down, added to rows `first` to `first + rows`.

    down: (rank, in_features), Kaiming-uniform with a = √5.   up: (rows, rank), zeros.
    """

    def __init__(self, in_features: int, first: int, rows: int, config: LowRankConfig) -> None:
        super().__init__()
        self.first, self.rows, self.scale, self.dropout = first, rows, config.scale, config.dropout
        self.down = nn.Linear(in_features, config.rank, bias=False)
        self.up = nn.Linear(config.rank, rows, bias=False)
        nn.init.zeros_(self.up.weight)

    def weight(self) -> Tensor:
        """The update itself: (rows, in_features)."""
        return self.scale * (self.up.weight @ self.down.weight)

    def forward(self, h: Tensor) -> Tensor:
        """What the update adds to the output for h (…, in_features): (…, rows), with dropout on the rank activations while training."""
        return self.scale * self.up(F.dropout(self.down(h), self.dropout, self.training))


class AdaptedLinear(nn.Linear):
    """A frozen linear layer and its low-rank updates. Shares the layer's own parameters, under their own names."""

    def __init__(self, base: nn.Linear, updates: dict[str, LowRank]) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        _take(self, base)
        self.lora = nn.ModuleDict(updates)

    def effective_weight(self) -> Tensor:
        """(out_features, in_features): the weight with its updates, as `merge` would leave it."""
        return _effective(self.weight, self.lora)

    def forward(self, h: Tensor) -> Tensor:
        if not _drops(self):
            return F.linear(h, self.effective_weight(), self.bias)
        out = F.linear(h, self.weight, self.bias)
        for update in _updates(self.lora):
            out = out + F.pad(update(h), (update.first, self.out_features - update.first - update.rows))
        return out


class AdaptedConv2d(nn.Conv2d):
    """The same for a convolution, whose weight counts as a matrix (out_channels, in_channels · height · width)."""

    def __init__(self, base: nn.Conv2d, updates: dict[str, LowRank]) -> None:
        super().__init__(**_shape(base), device="meta")
        _take(self, base)
        self.lora = nn.ModuleDict(updates)

    def effective_weight(self) -> Tensor:
        """(out_channels, in_channels, height, width): the weight with its updates, as `merge` would leave it."""
        return _effective(self.weight, self.lora)

    def forward(self, image: Tensor) -> Tensor:
        if not _drops(self):
            return self._conv_forward(image, self.effective_weight(), self.bias)
        out = self._conv_forward(image, self.weight, self.bias)
        for update in _updates(self.lora):
            # down is a convolution of the same kind, to the ranks; up mixes them place by place
            ranks = self._conv_forward(image, update.down.weight.view(-1, *self.weight.shape[1:]), None)
            added = update.up(F.dropout(ranks, update.dropout, self.training).movedim(1, -1)).movedim(-1, 1)
            rest = self.out_channels - update.first - update.rows
            out = out + F.pad(update.scale * added, (0, 0, 0, 0, update.first, rest))
        return out


def _shape(layer: nn.Conv2d) -> dict[str, Any]:
    """What a convolution of the same kind is made with."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {**{name: getattr(layer, name) for name in names}, "bias": layer.bias is not None}


def _take(layer: AdaptedLinear | AdaptedConv2d, base: nn.Linear | nn.Conv2d) -> None:
    """Give a layer the parameters of another, frozen."""
    layer.weight, layer.bias = base.weight, base.bias
    for parameter in base.parameters():
        parameter.requires_grad_(False)


def _updates(lora: nn.ModuleDict) -> Iterator[LowRank]:
    for update in lora.values():
        assert isinstance(update, LowRank)
        yield update


def _drops(layer: AdaptedLinear | AdaptedConv2d) -> bool:
    """Whether dropout acts now: then an update must be added to the output, else to the weight."""
    return layer.training and any(update.dropout for update in _updates(layer.lora))


def _effective(weight: Tensor, lora: nn.ModuleDict) -> Tensor:
    matrix = weight.flatten(1)
    for update in _updates(lora):
        delta = update.weight()
        matrix = matrix + F.pad(delta, (0, 0, update.first, len(weight) - update.first - update.rows))
    return matrix.view_as(weight)


def _slices(tower: VisionMamba, names: Iterable[str]) -> Iterator[tuple[str, str, int, int]]:
    """Where the named updates go: name, path of a layer of the tower, its first row and how many rows."""
    everywhere = tuple(f"x_proj{s}" for s in DIRECTIONS)
    for i, block in enumerate(tower.blocks()):
        d, r, n = block.mixer.d_inner, block.mixer.dt_rank, block.mixer.d_state
        layers_and_rows: dict[str, tuple[tuple[str, ...], int, int]] = {
            "x": (("in_proj",), 0, d),
            "in_proj": (("in_proj",), 0, 2 * d),
            "z": (("in_proj",), d, d),
            "out_proj": (("out_proj",), 0, d),
            "x_proj": (everywhere, 0, r + 2 * n),
            "dt": (everywhere, 0, r),
            "b": (everywhere, r, n),
            "c": (everywhere, r + n, n),
            "dt_proj": (tuple(f"dt_proj{s}" for s in DIRECTIONS), 0, d),
        }
        for name in names:
            if name in layers_and_rows:
                layers, first, rows = layers_and_rows[name]
                for layer in layers:
                    yield name, f"layers.{i}.mixer.{layer}", first, rows
    if "embedding" in names:
        for path, layer in tower.named_modules():
            if path.startswith("patch_embed.") and isinstance(layer, nn.Conv2d):
                yield "embedding", path, 0, layer.out_channels


def attach(tower: VisionMamba | TransformersTower, config: AdapterConfig) -> None:
    """Freeze the tower and give every layer its own adapters. Leaves a kind of rank 0 out; with all off the tower is only frozen.

    With `config.full` nothing is frozen or added. Raises ValueError when the tower has adapters already, or has no projections of a Mamba.
    """
    if any(isinstance(module, AdaptedLinear | AdaptedConv2d) for module in tower.modules()):
        raise ValueError("this tower has adapters already; merge them before attaching new ones")
    tower.requires_grad_(config.full)
    wanted = config.low_rank()
    if not isinstance(tower, VisionMamba):
        if wanted:
            raise ValueError("adapters are of a Mamba's projections; another tower is frozen or learns in full")
        return
    updates: dict[str, dict[str, LowRank]] = {}
    for name, path, first, rows in _slices(tower, wanted):
        weight = tower.get_parameter(f"{path}.weight")
        update = LowRank(weight[0].numel(), first, rows, wanted[name]).to(weight.device, weight.dtype)
        updates.setdefault(path, {})[name] = update
    for path, kinds in updates.items():
        base = tower.get_submodule(path)
        assert isinstance(base, nn.Linear | nn.Conv2d)
        adapted = AdaptedLinear(base, kinds) if isinstance(base, nn.Linear) else AdaptedConv2d(base, kinds)
        # new modules are born in training mode: in an evaluated tower their dropout would act
        tower.set_submodule(path, adapted.train(base.training))


@torch.no_grad()
def merge(tower: VisionMamba) -> None:
    """Add every update to its weight and take the adapters away: the outputs stay the same, bit for bit, in evaluation mode."""
    adapted = {path: m for path, m in tower.named_modules() if isinstance(m, AdaptedLinear | AdaptedConv2d)}
    for path, layer in adapted.items():
        plain: nn.Linear | nn.Conv2d
        if isinstance(layer, AdaptedLinear):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        else:
            plain = nn.Conv2d(**_shape(layer), device="meta")
        plain.weight = nn.Parameter(layer.effective_weight(), requires_grad=layer.weight.requires_grad)
        plain.bias = layer.bias
        tower.set_submodule(path, plain.train(layer.training))
