"""Settings as small frozen dataclasses. A model's configuration travels inside its checkpoint; wrong values fail here, not at step 40,000.

Presets: `small` (ours, for a laptop's CPU), `base` and `large` (the published towers, docs/method.md 1.1).
"""

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from emrrg_core.errors import ConfigError

MOST_FILMS = 4  # of one study


class Gate(StrEnum):
    """How a hybrid layer weighs what it saw (docs/method.md 4.2). `a` is the self-attention output, `ctx` the cross-attention's."""

    WHOLE_DYNAMIC = "whole-dynamic"  # a + (wᵀa + b)·ctx
    WHOLE_DYNAMIC_TANH = "whole-dynamic-tanh"  # a + tanh(wᵀa + b)·ctx
    WHOLE_DYNAMIC_WARMUP = "whole-dynamic-warmup"  # a + (wᵀa + b)·tanh(α)·ctx
    WHOLE_DYNAMIC_TANH_WARMUP = "whole-dynamic-tanh-warmup"  # a + tanh(wᵀa + b)·tanh(α)·ctx
    CHANNEL_WISE_DYNAMIC_SIGMOID = "channel-wise-dynamic-sigmoid"  # per head: (1 - g)·a + g·ctx, g = σ(W a + b)

    @property
    def has_warmup(self) -> bool:
        return self.value.endswith("warmup")


class Stem(StrEnum):
    """How a film becomes patch tokens."""

    PATCH = "patch"  # one linear projection a patch: the published towers (docs/method.md 1.2)
    CONVOLUTION = (
        "convolution"  # strided convolutions with residual blocks: learns from thousands of films, not millions
    )


class PromptTokens(StrEnum):
    """Which visual tokens stand in the prompt; cross-attention always sees all of them."""

    NONE = "none"  # no film in the prompt: all of it comes through the gates
    POOLED = "pooled"  # slow/fast: the patches averaged on a coarse grid, and the class token
    ALL = "all"  # all of them, as in docs/method.md 5.1


class Settings:
    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON or TOML; `from_dict` reads them back."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Build from plain values: a table as JSON or TOML gives it. Raises ConfigError on an unknown key or a wrong value, naming it."""
        if not isinstance(data, dict):
            raise ConfigError(f"{cls.__name__} must be a table of settings, not {data!r}.")
        fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(data.keys() - fields.keys()):
            raise ConfigError(f"{cls.__name__} has no settings called {unknown}; it knows {sorted(fields)}.")
        hints = typing.get_type_hints(cls)
        values = {}
        for name, value in data.items():
            try:
                values[name] = _typed(hints[name], value)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{cls.__name__}.{name}: {error}.") from error
        return cls(**values)


def _typed(hint: Any, value: Any) -> Any:
    """Turn a plain value into what the field holds: nested configurations, enums, tuples; other values are type-checked."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if value is None:
            return None
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):  # a string would fall apart into its letters
            raise TypeError(f"{value!r} is not a list")
        (inner, *_) = typing.get_args(hint)
        return tuple(_typed(inner, v) for v in value)
    if isinstance(hint, type) and issubclass(hint, Settings):
        return hint.from_dict(value)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        if value not in list(hint):
            raise ValueError(f"{value!r} is none of {', '.join(hint)}")
        return hint(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise TypeError(f"{value!r} is not {_KINDS.get(hint, hint.__name__)}")
    return value


_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(f"{message}.")


@dataclass(frozen=True, kw_only=True)
class VisionConfig(Settings):
    """The tower (docs/method.md 1.1). Expansion is 1: the scans are as wide as the model."""

    image_size: int = 224  # pixels, square
    patch_size: int = 16  # pixels, square
    d_model: int = 768
    depth: int = 12
    d_state: int = 16
    d_conv: int = 4
    drop_path: float = 0.1  # of the last layer; rises linearly from 0
    stem: Stem = Stem.PATCH

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "d_model", "depth", "d_state", "d_conv"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        _require(
            self.image_size % self.patch_size == 0,
            f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}",
        )
        _require(0 <= self.drop_path < 1, f"drop_path {self.drop_path} is not in [0, 1)")
        if self.stem is Stem.CONVOLUTION:
            _require(
                self.patch_size >= 4 and self.patch_size & (self.patch_size - 1) == 0,
                f"a convolutional stem halves the film until a patch is left: patch_size {self.patch_size} is no power of 2 from 4 on",
            )
            widest = 8 * self.patch_size // 2
            _require(
                self.d_model % widest == 0,
                f"a convolutional stem needs d_model in steps of {widest}, not {self.d_model}",
            )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        return self.grid**2

    @property
    def tokens(self) -> int:
        """Patches and the one class token."""
        return self.patches + 1

    @property
    def class_position(self) -> int:
        """Index of the class token: in the middle (docs/method.md 1.2)."""
        return self.patches // 2

    @property
    def dt_rank(self) -> int:
        return math.ceil(self.d_model / 16)

    @property
    def mlp_hidden(self) -> int:
        return self.d_model * 8 // 3


@dataclass(frozen=True, kw_only=True)
class LowRankConfig(Settings):
    """One low-rank update of docs/method.md 3: weight += scale · up @ down. Rank 0 turns it off."""

    rank: int = 16
    scale: float = 1.0
    dropout: float = 0.1  # on the rank activations, while training (MambaPEFT)

    def __post_init__(self) -> None:
        _require(self.rank >= 0, f"an adapter's rank must be 0 (off) or more, not {self.rank}")
        _require(0 <= self.dropout < 1, f"dropout {self.dropout} is not in [0, 1)")


def _off() -> LowRankConfig:
    return LowRankConfig(rank=0)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(Settings):
    """What of the tower learns: a low-rank update of each of these slices, the rows of the ablation (docs/method.md 3.4). The rest is frozen.

    The default is the paper's design, LoRA_p(X) and LoRA(in_proj). `emrrg_core.model.partial_lora.ablate` gives each row alone.
    """

    x: LowRankConfig = field(
        default_factory=LowRankConfig
    )  # in_proj, rows of X: before convolution and scan (docs/method.md 3.1)
    in_proj: LowRankConfig = field(default_factory=LowRankConfig)  # in_proj, all rows: X and Z (docs/method.md 3.2)
    z: LowRankConfig = field(default_factory=_off)  # in_proj, rows of the gate Z
    out_proj: LowRankConfig = field(default_factory=_off)  # all rows
    x_proj: LowRankConfig = field(default_factory=_off)  # of each direction: all rows (dt, B and C)
    dt: LowRankConfig = field(default_factory=_off)  # x_proj of each direction, rows of dt
    b: LowRankConfig = field(default_factory=_off)  # x_proj of each direction, rows of B
    c: LowRankConfig = field(default_factory=_off)  # x_proj of each direction, rows of C
    dt_proj: LowRankConfig = field(default_factory=_off)  # of each direction: all rows, not the bias
    embedding: LowRankConfig = field(default_factory=_off)  # the convolutions that make patches
    full: bool = False  # no adapters: the tower itself learns, as in MambaXray-VL's stage 3 (docs/method.md 2.4)

    def __post_init__(self) -> None:
        _require(
            not (self.full and self.low_rank()), "a tower that is trained in full has no adapters: set their ranks to 0"
        )

    def low_rank(self) -> dict[str, LowRankConfig]:
        """The slices that have an update, by name."""
        slots = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "full"}
        return {name: slot for name, slot in slots.items() if slot.rank}

    @classmethod
    def only(cls, **slots: LowRankConfig) -> Self:
        """These slices and no other, the default ones neither; `only()` freezes all of the tower."""
        return cls(**{"x": _off(), "in_proj": _off(), **slots})  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class LanguageLoraConfig(Settings):
    """LoRA inside the language model, through peft. Rank 0 turns it off."""

    rank: int = 0
    alpha: int = 16
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")

    def __post_init__(self) -> None:
        _require(self.rank >= 0, f"the language model's LoRA rank must be 0 (off) or more, not {self.rank}")


@dataclass(frozen=True, kw_only=True)
class HybridConfig(Settings):
    """Which decoder layers look at the image, and how (docs/method.md 4)."""

    every_n: int = 8  # layers 0, n, 2n, … are hybrid; 0 turns the hybrid decoder off
    gate: Gate = Gate.WHOLE_DYNAMIC_TANH_WARMUP
    warmup_start: float = 0.0  # α at the start; 0 is exactly the plain language model
    keys_from_llm: bool = True  # start K/V as copies of the layer's own k_proj and v_proj, head by head

    def __post_init__(self) -> None:
        _require(self.every_n >= 0, f"every_n must be 0 (off) or more, not {self.every_n}")


@dataclass(frozen=True, kw_only=True)
class PromptConfig(Settings):
    """What the language model reads before it writes (docs/method.md 5.1)."""

    before: str = "Human: <Img>"
    after: str = "</Img> Generate a comprehensive and detailed diagnosis report for this chest xray image. \nAssistant:"
    tokens: PromptTokens = PromptTokens.POOLED
    pooled_grid: int = 7  # pooled: patches averaged to this many along one side; divides the tower's grid

    def __post_init__(self) -> None:
        _require(self.pooled_grid >= 1, f"pooled_grid must be at least 1, not {self.pooled_grid}")


@dataclass(frozen=True, kw_only=True)
class QueryConfig(Settings):
    """The disease queries (emrrg_core.model.disease_queries) and the finding tokens that the hybrid layers see. depth 0 turns both off."""

    depth: int = 0  # layers of the Q-Former
    heads: int = 4
    hidden: int = 256  # width of the heads' hidden layer
    stem: bool = False  # the heads also read what a convolutional stem saw
    # what all patches weigh beside all finding tokens in a hybrid layer's attention before anything is learned
    patches: float = 1.0
    # of training films whose finding tokens are hidden, so that the language model learns to look at the patches too
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _require(self.depth >= 0, f"the Q-Former has 0 (off) or more layers, not {self.depth}")
        _require(self.heads >= 1, f"the Q-Former has 1 or more heads, not {self.heads}")
        _require(self.hidden >= 1, f"the heads' hidden layer is 1 or more wide, not {self.hidden}")
        _require(self.patches > 0, f"patches must weigh more than 0, not {self.patches}")
        _require(0 <= self.dropout < 1, f"dropout {self.dropout} is not in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """Everything that a checkpoint must know to be built again."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    adapters: AdapterConfig = field(default_factory=AdapterConfig)
    hybrid: HybridConfig = field(default_factory=HybridConfig)
    queries: QueryConfig = field(default_factory=QueryConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    language: str = "smollm2-135m"  # a preset of emrrg_core.model.language_model, or a folder
    language_lora: LanguageLoraConfig = field(default_factory=LanguageLoraConfig)

    def __post_init__(self) -> None:
        _require(
            self.prompt.tokens is not PromptTokens.POOLED or self.vision.grid % self.prompt.pooled_grid == 0,
            f"pooled_grid {self.prompt.pooled_grid} does not divide the tower's grid of {self.vision.grid}",
        )


@dataclass(frozen=True, kw_only=True)
class DecodeConfig(Settings):
    """How a draft is written. No forced minimum length: a draft ends where the model ends it."""

    beams: int = 1  # 1 is greedy
    max_new_tokens: int = 160
    length_penalty: float = 1.0  # beams are ranked by log-probability / length ** length_penalty
    repetition_penalty: float = 1.0  # 1 is off; the published settings use 2.0
    seed: int = 0  # recorded with the draft; greedy and beam search draw no random numbers

    def __post_init__(self) -> None:
        _require(1 <= self.beams <= 16, f"beams must be from 1 to 16, not {self.beams}")
        _require(self.max_new_tokens >= 1, f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        _require(self.repetition_penalty > 0, f"repetition_penalty must be above 0, not {self.repetition_penalty}")


# `small`: a convolutional stem and 4 layers of width 256 are 5.7 M parameters. Of the same size without the stem, 8 layers learned from 8,000 films
# far less in the same time (docs/experiments.md), and cost more.
VISION_PRESETS: dict[str, VisionConfig] = {
    "small": VisionConfig(d_model=256, depth=4, stem=Stem.CONVOLUTION),
    "base": VisionConfig(d_model=768, depth=12),
    "large": VisionConfig(d_model=1024, depth=24),
}

MODEL_PRESETS: dict[str, ModelConfig] = {
    "small": ModelConfig(
        vision=VISION_PRESETS["small"],
        hybrid=HybridConfig(every_n=5),
        queries=QueryConfig(depth=2, stem=True, patches=0.02),
        prompt=PromptConfig(tokens=PromptTokens.NONE),
        language="smollm2-135m",
    ),
    "base": ModelConfig(vision=VISION_PRESETS["base"], language="llama2-7b"),
    "large": ModelConfig(vision=VISION_PRESETS["large"], language="llama2-7b"),
}
