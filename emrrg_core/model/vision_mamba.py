"""The tower: a vision Mamba that reads the patch grid in four directions (docs/method.md 1).

b batch · l tokens (patches + 1 class token, in the middle) · d model width (= scan width) · n state size · r rank of dt · g patches along a side

Parameter names are those of the released checkpoints (docs/method.md 1.7), so a released state dict loads by name, strictly.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emrrg_core.config import Stem, Tower, VisionConfig
from emrrg_core.errors import ConfigError
from emrrg_core.model.selective_scan import causal_conv_silu, selective_scan

DIRECTIONS = (
    "",
    "_b",
    "_c",
    "_c_b",
)  # rows, rows backward, columns, columns backward: the suffixes of the released names


def scan_orders(grid: int) -> list[list[int]]:
    """Token orders for the four scans over a grid × grid film whose class token sits at index grid² // 2 (docs/method.md 1.4).

    Entry t of an order is the index of the token that the scan reads at time t. The class token keeps its place in the forward orders.
    """
    middle = grid * grid // 2
    rows = list(range(grid * grid + 1))
    patches = [token for token in rows if token != middle]
    columns = [patches[r * grid + c] for c in range(grid) for r in range(grid)]
    columns.insert(middle, middle)
    return [rows, rows[::-1], columns, columns[::-1]]


class _Reorder(torch.autograd.Function):
    """Tokens (b, l, d) in another order; the gradient goes back by the inverse order, a copy where indexing would scatter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(1, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grad.index_select(1, inverse), None, None


class DropPath(nn.Module):
    """Stochastic depth: leaves a residual branch out for a random share of the samples while training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return branch
        keep = torch.rand(branch.shape[0], 1, 1, device=branch.device) >= self.rate
        return branch * keep / (1.0 - self.rate)


class PatchEmbed(nn.Module):
    """Non-overlapping patches, in raster order: (b, 3, image, image) -> (b, g², d)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.d_model, config.patch_size, config.patch_size)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image).flatten(2).transpose(1, 2)


class _Residual(nn.Module):
    """relu(x + f(x)), f two normalised 3 × 3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(8, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(8, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


@dataclass(frozen=True)
class FineFeatures:
    """What a convolutional stem saw.

    patches: (b, g², d). Finer, on its way there: eighth (b, d / 2, s / 8, s / 8), quarter (b, d / 4, s / 4, s / 4).
    """

    patches: Tensor
    eighth: Tensor
    quarter: Tensor


class ConvolutionalStem(nn.Module):
    """(b, 3, image, image) -> (b, g², d) in raster order: halved by strided convolutions, each time twice as wide, until a patch is left.

    No batch statistics: a film's tokens never depend on its neighbours in a batch. Neighbouring tokens have seen parts of the same pixels, so
    next-patch pretraining (docs/method.md 2.1), which must not, refuses this stem.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        halvings = config.patch_size.bit_length() - 1
        layers: list[nn.Module] = []
        narrow = 3
        for i in range(halvings):
            width = config.d_model >> (halvings - 1 - i)
            layers += [nn.Conv2d(narrow, width, 3, stride=2, padding=1, bias=False), nn.GroupNorm(8, width), nn.ReLU()]
            # where most of the film's detail is left and convolutions are still cheap
            layers += [_Residual(width) for _ in range((0, 1, 2, 1)[min(i, 3)] if i < halvings - 1 else 1)]
            narrow = width
        self.stages = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        return self.stages(image).flatten(2).transpose(1, 2)

    def with_fine(self, image: Tensor) -> tuple[Tensor, FineFeatures]:
        """The same tokens, and what was seen at a quarter and an eighth of the film's resolution. Needs patches of 16 pixels."""
        size, kept = image.shape[-1], {}
        x = image
        for stage in self.stages:
            x = stage(x)
            kept[x.shape[-1]] = x  # the last of each resolution
        patches = x.flatten(2).transpose(1, 2)
        return patches, FineFeatures(patches, kept[size // 8], kept[size // 4])


class SwiGLU(nn.Module):
    """W3(SiLU(W1 u) * (W2 u)), all with bias (docs/method.md 1.3)."""

    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(d, hidden)
        self.w2 = nn.Linear(d, hidden)
        self.w3 = nn.Linear(hidden, d)

    def forward(self, u: Tensor) -> Tensor:
        return self.w3(F.silu(self.w1(u)) * self.w2(u))


class FourWayMixer(nn.Module):
    """One projection in, four scans over the patch grid, one projection out (docs/method.md 1.4).

    The four scans share in_proj, out_proj and the gate half Z. Since Z is permuted together with X, gating each direction and averaging equals
    averaging the four scans and gating once, which is what is done here.
    """

    orders: Tensor  # (4, l)
    inverses: Tensor  # (4, l)
    dt_proj: nn.Linear

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        d, r, n = config.d_model, config.dt_rank, config.d_state
        self.d_inner, self.dt_rank, self.d_state = d, r, n
        for middle in ("", "_b", "_c", "_c_b"):
            self.register_parameter(f"A{middle}_log", nn.Parameter(torch.empty(d, n)))
        for s in DIRECTIONS:
            self.register_parameter(f"D{s}", nn.Parameter(torch.ones(d)))
        self.in_proj = nn.Linear(d, 2 * d, bias=False)
        for s in DIRECTIONS:
            self.add_module(f"conv1d{s}", nn.Conv1d(d, d, config.d_conv, groups=d, padding=config.d_conv - 1))
            self.add_module(f"x_proj{s}", nn.Linear(d, r + 2 * n, bias=False))
            self.add_module(f"dt_proj{s}", nn.Linear(r, d))
        self.out_proj = nn.Linear(d, d, bias=False)
        orders = torch.tensor(scan_orders(config.grid))
        self.register_buffer("orders", orders, persistent=False)
        self.register_buffer("inverses", orders.argsort(dim=1), persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        x, z = self.in_proj(h).chunk(2, dim=-1)  # (b, l, d) each
        # the scans are float32 also under autocast: their matmuls are narrow, and casting back and forth costs more than it saves
        with torch.autocast(h.device.type, enabled=False):
            x, views = x.float(), []
            for s, order, inverse in zip(DIRECTIONS, self.orders, self.inverses, strict=True):
                y = self._scan(s, _Reorder.apply(x, order, inverse))
                views.append(_Reorder.apply(y, inverse, order))  # (b, l, d), back in token order
            mean = (views[0] + views[1] + views[2] + views[3]) * 0.25
        return self.out_proj(mean * F.silu(z))  # (b, l, d)

    def _scan(self, s: str, x: Tensor) -> Tensor:
        """One direction, before the gate. x (b, l, d) float32, in the order of the scan."""
        conv, dt_proj = getattr(self, f"conv1d{s}"), getattr(self, f"dt_proj{s}")
        a = causal_conv_silu(x, conv.weight.squeeze(1), conv.bias)  # (b, l, d)
        dt, B, C = getattr(self, f"x_proj{s}")(a).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = F.softplus(dt_proj(dt).float())  # (b, l, d)
        A = -torch.exp(getattr(self, f"A{s}_log").float())  # (d, n)
        return selective_scan(a, delta, A, B, C, getattr(self, f"D{s}").float())


class Block(nn.Module):
    """Pre-norm: mixer and SwiGLU, each in a residual branch (docs/method.md 1.3)."""

    def __init__(self, config: VisionConfig, drop_path: float) -> None:
        super().__init__()
        self.mixer = FourWayMixer(config)
        self.mlp = SwiGLU(config.d_model, config.mlp_hidden)
        self.norm1 = nn.LayerNorm(config.d_model)
        self.norm2 = nn.LayerNorm(config.d_model)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class VisionMamba(nn.Module):
    """Images (b, 3, image, image), ImageNet-normalised, to tokens (b, l, d): all of them, the class token at index g² // 2 (docs/method.md 1.6).

    Raises ConfigError for settings of another tower (emrrg_core.model.other_towers).
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        if config.tower is not Tower.MAMBA:
            raise ConfigError(
                f'This needs a vision Mamba, and the settings ask for another tower: set tower to "mamba", not "{config.tower}".'
            )
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.d_model))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.tokens, config.d_model))
        self.patch_embed = ConvolutionalStem(config) if config.stem is Stem.CONVOLUTION else PatchEmbed(config)
        # layer 0 and 1 keep everything, the rate rises from there (docs/method.md 1.1): entry i - 1 of depth points from 0 to drop_path
        rates = [config.drop_path * max(i - 1, 0) / max(config.depth - 1, 1) for i in range(config.depth)]
        self.layers = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm_f = nn.LayerNorm(config.d_model)
        self.reset_parameters()

    def forward(self, image: Tensor) -> Tensor:
        size = self.config.image_size
        if image.dim() != 4 or image.shape[1:] != (3, size, size):
            raise ValueError(f"the tower takes images of shape (b, 3, {size}, {size}), not {tuple(image.shape)}")
        return self.read(self.patch_embed(image))

    def with_fine(self, image: Tensor) -> tuple[Tensor, FineFeatures | None]:
        """As `forward`, and the finer features of a convolutional stem; None of linear patches, which see nothing finer."""
        if not isinstance(self.patch_embed, ConvolutionalStem):
            return self(image), None
        patches, fine = self.patch_embed.with_fine(image)
        return self.read(patches), fine

    def read(self, patches: Tensor) -> Tensor:
        """Patches (b, g², d), in raster order, to tokens (b, l, d)."""
        middle = self.config.class_position
        cls = self.cls_token.expand(patches.shape[0], -1, -1).to(patches.dtype)
        x = torch.cat([patches[:, :middle], cls, patches[:, middle:]], dim=1) + self.pos_embed  # (b, l, d)
        for block in self.blocks():
            x = block(x)
        return self.norm_f(x)

    def blocks(self) -> list[Block]:
        """The layers, in order."""
        return [block for block in self.layers if isinstance(block, Block)]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initial values as published (docs/method.md 1.5)."""
        c = self.config
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if isinstance(self.patch_embed, PatchEmbed):
            fan_in = 3 * c.patch_size**2
            nn.init.trunc_normal_(
                self.patch_embed.proj.weight, std=math.sqrt(1 / fan_in) / 0.87962566103423978
            )  # lecun
            assert self.patch_embed.proj.bias is not None
            nn.init.zeros_(self.patch_embed.proj.bias)
        states = torch.arange(1, c.d_state + 1, dtype=torch.float32)
        for block in self.blocks():
            mixer = block.mixer
            for s in DIRECTIONS:
                getattr(mixer, f"A{s}_log").copy_(states.log().expand(c.d_model, -1))
                dt = torch.exp(torch.empty(c.d_model).uniform_(math.log(1e-3), math.log(1e-1))).clamp(min=1e-4)
                getattr(mixer, f"dt_proj{s}").bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
            nn.init.uniform_(mixer.dt_proj.weight, -(c.dt_rank**-0.5), c.dt_rank**-0.5)
            nn.init.kaiming_uniform_(mixer.out_proj.weight, a=math.sqrt(5))
            mixer.out_proj.weight /= math.sqrt(c.depth)
