"""Stage 1: the tower learns to predict what comes next of a film, cluster by cluster, before it meets a word (docs/method.md 2.1, 2.2).

b batch · g patches along a side · k patches along a cluster's side · c clusters · n = k² tokens of a cluster · d tower width · w decoder width
p values of a patch

The film's clusters are read in raster order, and inside a cluster its patches. The encoder reads all clusters but the last in one forward scan; the
decoder asks, for every patch of the next cluster, what the encoder knew by then. Parameter names are those of the released `Pretrain-*.pth`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emrrg_core.config import VISION_PRESETS, Settings, Stem, VisionConfig
from emrrg_core.errors import ConfigError
from emrrg_core.model.vision_mamba import DIRECTIONS, FourWayMixer, VisionMamba

_HEAD = 64  # width of an attention head of the decoder


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig(Settings):
    """What is pretrained and how (docs/method.md 2.1). Raises ConfigError for sizes that do not fit, and for a tower with a convolutional stem."""

    vision: VisionConfig = field(default_factory=VisionConfig)  # the tower that comes of it
    image_size: int = 192  # pixels, square: of the films in this stage
    cluster: int = 4  # patches along a cluster's side
    taps: tuple[int, ...] = (
        6,
        8,
        10,
        12,
    )  # the decoder's blocks read the encoder after these many layers, one block each
    width: int = 512  # of the decoder

    def __post_init__(self) -> None:
        if self.vision.stem is not Stem.PATCH:
            raise ConfigError(
                f"A tower with stem = '{self.vision.stem}' cannot be pretrained on its films' next cluster: its "
                "neighbouring tokens have seen the same pixels, so the answer would leak into the question. "
                "Use stem = 'patch', or leave this stage out."
            )
        grid = self.encoder.grid
        if grid % self.cluster or grid == self.cluster:
            raise ConfigError(
                f"A film of {self.image_size} pixels has {grid} × {grid} patches, which is not two or more clusters of "
                f"{self.cluster} × {self.cluster}."
            )
        rising = all(a < b for a, b in zip((0, *self.taps), (*self.taps, self.vision.depth + 1), strict=False))
        if not self.taps or not rising:
            raise ConfigError(
                f"taps {list(self.taps)} must rise, and lie between 1 and the tower's {self.vision.depth} layers."
            )
        if self.width % _HEAD:
            raise ConfigError(f"The decoder's width must be a multiple of {_HEAD}, not {self.width}.")
        if self.vision.d_model % 4:
            raise ConfigError(f"d_model must be a multiple of 4 to be given positions, not {self.vision.d_model}.")

    @property
    def encoder(self) -> VisionConfig:
        """The tower as it is in this stage: its films are smaller and it drops no paths."""
        return replace(self.vision, image_size=self.image_size, drop_path=0.0)

    @property
    def clusters(self) -> int:
        return (self.encoder.grid // self.cluster) ** 2


PRETRAINING_PRESETS: dict[str, PretrainingConfig] = {
    "base": PretrainingConfig(vision=VISION_PRESETS["base"]),
    "large": PretrainingConfig(vision=VISION_PRESETS["large"], taps=(12, 16, 20, 24)),
}


def cluster_order(grid: int, cluster: int) -> Tensor:
    """Raster numbers of the patches in the order in which they are read: (grid²,)."""
    side = grid // cluster
    return torch.arange(grid * grid).view(side, cluster, side, cluster).transpose(1, 2).flatten()


def sine_positions(grid: int, width: int) -> Tensor:
    """Fixed position embeddings of a grid in raster order, (1, grid², width): the column in the first half, the row in the second."""
    rates = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * rates  # (g, width / 4)
    place = torch.cat([angles.sin(), angles.cos()], dim=1)  # (g, width / 2)
    columns, rows = place.expand(grid, -1, -1), place[:, None].expand(-1, grid, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1)[None].float()


class OneWayMixer(FourWayMixer):
    """Only the first of a mixer's four scans, with that mixer's own parameters: a token knows what comes before it and nothing else."""

    def __init__(self, four: FourWayMixer) -> None:
        nn.Module.__init__(self)
        self.d_inner, self.dt_rank, self.d_state = four.d_inner, four.dt_rank, four.d_state
        for name in ("A_log", "D"):
            self.register_parameter(name, four.get_parameter(name))
        for name in ("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj"):
            self.add_module(name, four.get_submodule(name))

    def forward(self, h: Tensor) -> Tensor:
        x, z = self.in_proj(h).chunk(2, dim=-1)  # (b, l, d) each
        with torch.autocast(h.device.type, enabled=False):
            y = self._scan("", x.float())
        return self.out_proj(y * F.silu(z))


class CrossAttention(nn.Module):
    """Queries (b, q, w) look at what the encoder knew, (b, l, w), where the mask (q, l) is 0 and not -∞."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, known: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (-1, _HEAD)).transpose(1, 2)  # (b, heads, q or l, 64)
            for part in (self.q(queries), *self.kv(known).chunk(2, dim=-1))
        )
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype))
        return self.proj(seen.transpose(1, 2).flatten(2))


class DecoderBlock(nn.Module):
    """Cross-attention and a two-layer perceptron, each in a residual branch; the queries never look at each other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn2 = CrossAttention(width)
        self.norm2_1 = nn.LayerNorm(width)
        self.norm2_2 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, queries: Tensor, known: Tensor, mask: Tensor) -> Tensor:
        queries = queries + self.attn2(self.norm2_1(queries), self.norm2_2(known), mask)
        return queries + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(queries))))


class ClusterPredictor(nn.Module):
    """Films (b, 3, s, s), ImageNet-normalised, to what each cluster but the first is thought to look like: (b, (c - 1) · n, p)."""

    pos_embed: Tensor  # (1, g², d), in raster order
    dec_pos_embed: Tensor  # (1, g², w), in raster order
    mask: Tensor  # ((c - 1) · n, (c - 1) · n): 0 or -∞
    order: Tensor  # (g²,)

    def __init__(self, config: PretrainingConfig) -> None:
        super().__init__()
        self.config = config
        d, w, grid, taps = config.vision.d_model, config.width, config.encoder.grid, len(config.taps)
        tower = VisionMamba(config.encoder)  # whose initial values these are
        for block in tower.blocks():
            block.mixer = OneWayMixer(block.mixer)
        self.patch_embed, self.layers = tower.patch_embed, tower.layers
        self.ar_token = nn.Parameter(torch.zeros(1, 1, w))
        self.enc2dec = nn.Linear(taps * d, taps * w)
        self.dec_block = nn.ModuleList(DecoderBlock(w) for _ in range(taps))
        for i in range(1, taps + 1):
            self.add_module(f"norm_{i}", nn.LayerNorm(d))
        self.ar_norm = nn.LayerNorm(w)
        self.ar_pred = nn.Linear(w, 3 * config.vision.patch_size**2)
        self.register_buffer("pos_embed", sine_positions(grid, d))
        self.register_buffer("dec_pos_embed", sine_positions(grid, w))
        self.register_buffer("order", cluster_order(grid, config.cluster), persistent=False)
        step = torch.arange((config.clusters - 1) * config.cluster**2) // config.cluster**2
        self.register_buffer("mask", torch.zeros(len(step), len(step)).masked_fill(step[:, None] < step, -math.inf))
        nn.init.trunc_normal_(self.ar_token, std=0.02)
        for module in (self.enc2dec, self.ar_pred, *self.dec_block.modules()):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        size = self.config.image_size
        if images.dim() != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(f"this stage takes images of shape (b, 3, {size}, {size}), not {tuple(images.shape)}")
        n = self.config.cluster**2
        x = (self.patch_embed(images) + self.pos_embed)[:, self.order[:-n]]  # (b, (c - 1) · n, d)
        taps: list[Tensor] = []
        for i, layer in enumerate(self.layers, 1):
            x = layer(x)
            if i in self.config.taps:
                taps.append(self.get_submodule(f"norm_{len(taps) + 1}")(x))
        # the tap is the fastest axis: (b, (c - 1) · n, w, taps)
        known = self.enc2dec(torch.cat(taps, dim=-1)).unflatten(-1, (-1, len(taps)))
        queries = (self.ar_token + self.dec_pos_embed[:, self.order[n:]]).expand(len(images), -1, -1)
        for i, block in enumerate(self.dec_block):
            queries = block(queries, known[..., i], self.mask)
        return self.ar_pred(self.ar_norm(queries))

    def targets(self, images: Tensor) -> Tensor:
        """The pixels that are asked for, each patch with mean 0 and variance 1, in the order of the prediction: (b, (c - 1) · n, p)."""
        size, grid = self.config.vision.patch_size, self.config.encoder.grid
        patches = images.float().view(len(images), 3, grid, size, grid, size)
        patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (b, g², p): rows, columns, colours
        patches = patches[:, self.order[self.config.cluster**2 :]]
        mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
        return (patches - mean) / (variance + 1e-6).sqrt()

    def loss(self, predicted: Tensor, images: Tensor) -> Tensor:
        """Mean squared error of a prediction for these films."""
        return F.mse_loss(predicted.float(), self.targets(images))


_ONE_SCAN = re.compile(r"(layers\.\d+\.mixer\.)(A|D|conv1d|x_proj|dt_proj)((?:_log|\.weight|\.bias)?)")


def to_tower(pretrained: Mapping[str, Tensor], vision: VisionConfig, *, seed: int = 0) -> dict[str, Tensor]:
    """A whole tower's state from a ClusterPredictor's, for films of `vision.image_size` (docs/method.md 2.2). Copies; changes nothing.

    All four directions start as the one that was pretrained. The positions are resized (bicubic) to the tower's grid, with zeros for the class
    token in the middle. What stage 1 does not have starts as in a new tower, here from `seed`: cls_token normal, norm_f one and zero. The
    decoder and its norms have no place. Raises ValueError when the positions are not those of a square grid.
    """
    tower: dict[str, Tensor] = {}
    for name, value in pretrained.items():
        if not name.startswith(("patch_embed.", "layers.")):
            continue
        if one := _ONE_SCAN.fullmatch(name):
            at, part, leaf = one.groups()
            tower |= {f"{at}{part}{s}{leaf}": value.detach().clone() for s in DIRECTIONS}
        else:
            tower[name] = value.detach().clone()
    positions = pretrained["pos_embed"].detach().float()  # (1, g², d)
    _, patches, d = positions.shape
    grid = math.isqrt(patches)
    if grid * grid != patches:
        raise ValueError(f"{patches} positions are not those of a square grid")
    resized = F.interpolate(
        positions.transpose(1, 2).unflatten(-1, (grid, grid)), vision.grid, mode="bicubic", align_corners=False
    )
    rows = resized.flatten(2).transpose(1, 2)  # (1, patches of the tower, d)
    middle = vision.class_position
    tower["pos_embed"] = torch.cat([rows[:, :middle], rows.new_zeros(1, 1, d), rows[:, middle:]], dim=1)
    generator = torch.Generator().manual_seed(seed)
    tower["cls_token"] = nn.init.trunc_normal_(torch.empty(1, 1, d), std=0.02, generator=generator)
    tower |= {"norm_f.weight": torch.ones(d), "norm_f.bias": torch.zeros(d)}
    return tower
