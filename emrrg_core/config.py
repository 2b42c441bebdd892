"""Settings as small frozen dataclasses. A model's configuration travels inside its checkpoint; wrong values fail here, not at step 40,000.

Presets: `small` (ours, for a laptop's CPU), `base` and `large` (the published towers, docs/method.md 1.1).
"""

import dataclasses
import json
import math
import typing
from dataclasses import field
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from emrrg_core.errors import ConfigError

MOST_FILMS = 4  # of one study

Count = Annotated[int, Field(ge=1)]
OrOff = Annotated[int, Field(ge=0)]  # 0 turns it off
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]


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


class Views(StrEnum):
    """How several films of a study become what the tower sees."""

    AVERAGE = "average"  # each film by itself, the tokens averaged, as EMRRG does (docs/method.md 5.1)
    STITCH = "stitch"  # one canvas, the films side by side, as Med-CXRGen does (docs/method.md 8.3)


class Tower(StrEnum):
    """Which network reads the film."""

    MAMBA = "mamba"  # the published one (docs/method.md 1)
    SWIN = "swin"  # AM-MRG's first stage (docs/method.md 8.1)
    CLIP = "clip"  # Med-CXRGen's (docs/method.md 8.3)


class Former(StrEnum):
    """The Q-Former by which the disease queries read the tower's tokens."""

    OWN = "own"  # ours, pre-norm, as wide as the tower
    BLIP2 = (
        "blip2"  # transformers' Blip2QFormerModel, 768 wide, cross-attention in every second layer (docs/method.md 8.2)
    )


class Stem(StrEnum):
    """How a film becomes patch tokens."""

    PATCH = "patch"  # one linear projection a patch: the published towers (docs/method.md 1.2)
    CONVOLUTION = (
        "convolution"  # strided convolutions with residual blocks: learns from thousands of films, not millions
    )


class Projector(StrEnum):
    """How a tower's token becomes one of the language model's width; a LayerNorm follows."""

    LINEAR = "linear"  # one matrix (docs/method.md 5.1)
    MLP = "mlp2x_gelu"  # two with a GELU between them, as Med-CXRGen has it (docs/method.md 8.3)


class Section(StrEnum):
    """A part of a report."""

    FINDINGS = "findings"
    IMPRESSION = "impression"


class Sections(StrEnum):
    """Who writes the sections of a report."""

    JOINT = "joint"  # one model, both in one go
    # the Findings first, then the Impression from them; where a checkpoint says so, each with a LoRA and a projector of its own, as Med-CXRGen does
    # (docs/method.md 8.3)
    SEPARATE = "separate"


class PromptTokens(StrEnum):
    """Which visual tokens stand in the prompt; cross-attention always sees all of them."""

    NONE = "none"  # no film in the prompt: all of it comes through the gates
    POOLED = "pooled"  # slow/fast: the patches averaged on a coarse grid, and the class token
    ALL = "all"  # all of them, as in docs/method.md 5.1


class _SaysWhy(type):
    """Turns what pydantic finds wrong at construction into a ConfigError."""

    def __call__(cls, *args: Any, **values: Any) -> Any:
        try:
            return super().__call__(*args, **values)
        except ValidationError as error:
            raise _in_words(cls, error) from error


class Settings(metaclass=_SaysWhy):
    """Base of all settings. Types are strict: true is not a number and a text is not a list, but a whole number is a number."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON or TOML; `from_dict` reads them back."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Build from plain values: a table as JSON or TOML gives it. Raises ConfigError on an unknown key or a wrong value, naming it."""
        if not isinstance(data, dict):
            raise ConfigError(f"{cls.__name__} must be a table of settings, not {data!r}.")
        try:
            return TypeAdapter(cls).validate_json(json.dumps(data))  # in JSON a list serves as tuple, a text as choice
        except ValidationError as error:
            raise _in_words(cls, error) from error
        except TypeError as error:
            raise ConfigError(f"{cls.__name__} takes text, numbers, true, false, lists and tables: {error}.") from error


def _in_words(kind: type, error: ValidationError) -> ConfigError:
    found = error.errors()
    unknown = [fault for fault in found if fault["type"] == "unexpected_keyword_argument"]
    # a misspelt name comes before the setting that is missing because of it
    first = (unknown or found)[0]
    path = list(map(str, first["loc"]))
    while len(path) > 1 and isinstance(inner := typing.get_type_hints(kind).get(path[0]), _SaysWhy):
        kind, path = inner, path[1:]
    if unknown:
        known = sorted(typing.get_type_hints(kind))
        return ConfigError(f"{kind.__name__} has no settings called {path}; it knows {known}.")
    where = ".".join((kind.__name__, *path))
    if first["type"] == "missing":
        return ConfigError(f"{where}: is missing.")
    return ConfigError(f"{where}: {first['msg'].removeprefix('Input ')}, not {first['input']!r}.")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(f"{message}.")


@dataclass(frozen=True, kw_only=True)
class VisionConfig(Settings):
    """The tower (docs/method.md 1.1). A Mamba's expansion is 1: the scans are as wide as the model.

    The sizes of other towers, which transformers builds (emrrg_core.model.other_towers):

    swin  patch_size is that of the last stage, 8 times the first (Swin-L: 32, from 4), d_model its width, 8 times the first (1536, from 192), and
          depth the third stage's (18; the others have 2). Heads are 32 wide; below d_model 256, which serves tests, the first stage has one of its
          own width.
    clip  ViT-L/14-336: image_size 336, patch_size 14, d_model 1024, depth 24. The tokens are those of the last layer but one, so the last is not
          built. Heads are 64 wide; below d_model 64 there is one.

    d_state and d_conv are a Mamba's only, and CLIP has no drop_path.
    """

    image_size: Count = 224  # pixels, square
    patch_size: Count = 16  # pixels, square
    d_model: Count = 768
    depth: Count = 12
    d_state: Count = 16
    d_conv: Count = 4
    drop_path: Share = 0.1  # of the last layer; rises linearly from 0
    stem: Stem = Stem.PATCH
    tower: Tower = Tower.MAMBA

    def __post_init__(self) -> None:
        _require(
            self.image_size % self.patch_size == 0,
            f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}",
        )
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
            _require(
                self.tower is Tower.MAMBA,
                f'only a Mamba tower has a convolutional stem: set stem to "patch" for tower = "{self.tower}"',
            )
        if self.tower is Tower.SWIN:
            _require(
                self.patch_size % 8 == 0,
                f"a Swin tower merges patches three times: patch_size {self.patch_size} is no multiple of 8",
            )
            _require(
                self.d_model % 8 == 0 and (self.d_model <= 256 or self.d_model % 256 == 0),
                f"a Swin tower needs d_model in steps of 256, or below that of 8, not {self.d_model}",
            )
        if self.tower is Tower.CLIP:
            _require(
                self.d_model <= 64 or self.d_model % 64 == 0,
                f"a CLIP tower above d_model 64 needs it in steps of 64, not {self.d_model}",
            )
            _require(
                self.depth >= 2, f"a CLIP tower gives the tokens of the last layer but one: depth {self.depth} has none"
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

    rank: OrOff = 16
    scale: float = 1.0
    dropout: Share = 0.1  # on the rank activations, while training (MambaPEFT)


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

    rank: OrOff = 0
    alpha: int = 16
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")


@dataclass(frozen=True, kw_only=True)
class HybridConfig(Settings):
    """Which decoder layers look at the image, and how (docs/method.md 4)."""

    every_n: OrOff = 8  # layers 0, n, 2n, … are hybrid; 0 turns the hybrid decoder off
    gate: Gate = Gate.WHOLE_DYNAMIC_TANH_WARMUP
    warmup_start: float = 0.0  # α at the start; 0 is exactly the plain language model
    keys_from_llm: bool = True  # start K/V as copies of the layer's own k_proj and v_proj, head by head


@dataclass(frozen=True, kw_only=True)
class PromptConfig(Settings):
    """What the language model reads before it writes (docs/method.md 5.1). Where sections are separate, "{section}" stands for the section's name."""

    before: str = "Human: <Img>"
    after: str = "</Img> Generate a comprehensive and detailed diagnosis report for this chest xray image. \nAssistant:"
    tokens: PromptTokens = PromptTokens.POOLED
    pooled_grid: Count = 7  # pooled: patches averaged to this many along one side; divides the tower's grid


@dataclass(frozen=True, kw_only=True)
class QueryConfig(Settings):
    """The disease queries (emrrg_core.model.disease_queries) and the finding tokens that the hybrid layers see. depth 0 turns both off."""

    depth: OrOff = 0  # layers of the Q-Former
    former: Former = Former.OWN
    heads: Count = 4  # BLIP-2's: 12
    hidden: Count = 256  # width of the heads' hidden layer
    stem: bool = False  # the heads also read what a convolutional stem saw
    # what all patches weigh beside all finding tokens in a hybrid layer's attention before anything is learned
    patches: Positive = 1.0
    # of training films whose finding tokens are hidden, so that the language model learns to look at the patches too
    dropout: Share = 0.0
    # the hybrid layers see a finding token a finding: what was read, bound to its place; False: the disease tokens themselves, as in AM-MRG
    told: bool = True


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(Settings):
    """AM-MRG's associative memory (emrrg_core.model.associative_memory; docs/method.md 8.2). It asks with the disease tokens, so it needs queries."""

    visual: OrOff = 0  # patterns of regions of training films; 0 turns this memory off
    report: OrOff = 0  # patterns of training reports
    report_width: Count = 576  # of a report's pattern
    heads: Count = 6
    head_width: Count = 64  # published: 1024
    beta: Positive = 4.0  # inverse temperature
    steps: Count = 1  # times that the memory is asked
    dropout: Share = 0.1  # on what each pattern gives, while training


@dataclass(frozen=True, kw_only=True)
class StudyConfig(Settings):
    """Which films of a study are read, and how they are put together."""

    views: Views = Views.AVERAGE
    laterals: bool = False  # lateral films are read too; False: shown, not read, as long as no model has learned them


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """Everything that a checkpoint must know to be built again."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    adapters: AdapterConfig = field(default_factory=AdapterConfig)
    hybrid: HybridConfig = field(default_factory=HybridConfig)
    queries: QueryConfig = field(default_factory=QueryConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    study: StudyConfig = field(default_factory=StudyConfig)  # what a draft does where it is not told otherwise
    language: str = "smollm2-135m"  # a preset of emrrg_core.model.language_model, or a folder
    language_lora: LanguageLoraConfig = field(default_factory=LanguageLoraConfig)
    projector: Projector = Projector.LINEAR
    sections: Sections = Sections.JOINT

    def __post_init__(self) -> None:
        if self.sections is Sections.SEPARATE:
            _require(
                self.language_lora.rank > 0,
                'sections = "separate" gives each section a LoRA of its own in the language model, and this has none: set language_lora.rank above 0',
            )
            _require(
                self.prompt.tokens is not PromptTokens.NONE or self.hybrid.every_n > 0,
                "no section would see the film: set prompt.tokens to pooled or all, or hybrid.every_n above 0",
            )
        _require(
            self.prompt.tokens is not PromptTokens.POOLED or self.vision.grid % self.prompt.pooled_grid == 0,
            f"pooled_grid {self.prompt.pooled_grid} does not divide the tower's grid of {self.vision.grid}",
        )
        _require(
            self.queries.depth > 0 or not (self.memory.visual or self.memory.report),
            "the associative memory is asked by disease tokens: set queries.depth, or memory.visual and memory.report to 0",
        )
        _require(
            not self.queries.stem or self.vision.stem is Stem.CONVOLUTION,
            "queries.stem lets the heads read a convolutional stem, and this tower has a patch stem: "
            'turn queries.stem off, or set vision.stem to "convolution"',
        )
        _require(
            self.vision.tower is Tower.MAMBA or not self.adapters.low_rank(),
            f"adapters are updates of a Mamba's projections, and this tower is a {self.vision.tower}: set the ranks of adapters.x and "
            "adapters.in_proj to 0 (AdapterConfig.only()), which freezes the tower, and adapters.full to true where it is to learn",
        )


@dataclass(frozen=True, kw_only=True)
class DecodeConfig(Settings):
    """How a draft is written. No forced minimum length: a draft ends where the model ends it."""

    beams: int = 1  # 1 is greedy
    max_new_tokens: Count = 160  # of a draft; of each section where sections are separate
    length_penalty: float = 1.0  # beams are ranked by log-probability / length ** length_penalty
    repetition_penalty: Positive = 1.0  # 1 is off; the published settings use 2.0
    seed: int = 0  # recorded with the draft; greedy and beam search draw no random numbers
    sections: Sections | None = None  # None: as the checkpoint's settings say

    def __post_init__(self) -> None:
        _require(1 <= self.beams <= 16, f"beams must be from 1 to 16, not {self.beams}")


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
