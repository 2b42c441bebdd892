"""Low-rank adapters of the tower, in weight space (METHOD §3).

An adapted layer computes with weight + Σ scale · up @ down, each update on its own slice of the weight's rows:

    LoRA_p(X)       rows [0 : d_inner] of in_proj: X, before the convolution and the scans (§3.1)
    LoRA(in_proj)   all rows of in_proj: X and Z (§3.2)

`up` starts at zero, so fresh adapters change nothing. The adapted layer keeps the names of its weights: adapter keys are added below `lora.`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emrrg_core.config import AdapterConfig, LowRankConfig
from emrrg_core.vision import VisionMamba


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
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                parameter.requires_grad_(False)
        self.lora = nn.ModuleDict(updates)

    def effective_weight(self) -> Tensor:
        """(out_features, in_features): the weight with its updates, as `merge` would leave it."""
        weight = self.weight
        for update in self.lora.values():
            assert isinstance(update, LowRank)
            delta = update.weight()
            weight = weight + F.pad(delta, (0, 0, update.first, self.out_features - update.first - update.rows))
        return weight

    def forward(self, h: Tensor) -> Tensor:
        if self.training and any(update.dropout for update in self.lora.values()):
            out = F.linear(h, self.weight, self.bias)
            for update in self.lora.values():
                assert isinstance(update, LowRank)
                out = out + F.pad(update(h), (update.first, self.out_features - update.first - update.rows))
            return out
        return F.linear(h, self.effective_weight(), self.bias)


def attach(tower: VisionMamba, config: AdapterConfig) -> None:
    """Freeze the tower and give every layer its own adapters. Leaves a kind of rank 0 out; with both off the tower is only frozen.

    Raises ValueError when the tower has adapters already.
    """
    if any(isinstance(module, AdaptedLinear) for module in tower.modules()):
        raise ValueError("this tower has adapters already; merge them before attaching new ones")
    tower.requires_grad_(False)
    for block in tower.blocks():
        mixer = block.mixer
        base = mixer.in_proj
        slices = {"x": (config.x, mixer.d_inner), "in_proj": (config.in_proj, 2 * mixer.d_inner)}
        updates = {
            name: LowRank(base.in_features, 0, rows, low_rank).to(base.weight.device, base.weight.dtype)
            for name, (low_rank, rows) in slices.items()
            if low_rank.rank
        }
        if updates:
            # new modules are born in training mode: in an evaluated tower their dropout would act
            mixer.in_proj = AdaptedLinear(base, updates).train(base.training)


@torch.no_grad()
def merge(tower: VisionMamba) -> None:
    """Add every update to its weight and take the adapters away: the outputs stay the same, bit for bit, in evaluation mode."""
    for block in tower.blocks():
        adapted = block.mixer.in_proj
        if isinstance(adapted, AdaptedLinear):
            plain = nn.Linear(adapted.in_features, adapted.out_features, bias=adapted.bias is not None, device="meta")
            plain.weight = nn.Parameter(adapted.effective_weight(), requires_grad=adapted.weight.requires_grad)
            plain.bias = adapted.bias
            block.mixer.in_proj = plain.train(adapted.training)
