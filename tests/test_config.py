"""Settings refuse what makes no sense, name it, and come back from JSON as they were."""

import json
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import date
from types import NoneType
from typing import get_args

import pytest

from emrrg_core.config import (
    MODEL_PRESETS,
    VISION_PRESETS,
    AdapterConfig,
    DecodeConfig,
    Gate,
    HybridConfig,
    LanguageLoraConfig,
    LowRankConfig,
    ModelConfig,
    PromptConfig,
    PromptTokens,
    QueryConfig,
    Settings,
    Stem,
    VisionConfig,
)
from emrrg_core.errors import ConfigError

KINDS = [
    VisionConfig,
    LowRankConfig,
    AdapterConfig,
    LanguageLoraConfig,
    HybridConfig,
    PromptConfig,
    QueryConfig,
    ModelConfig,
    DecodeConfig,
]


@pytest.mark.parametrize("kind", KINDS)
def test_settings_come_back_from_json_as_they_were(kind):
    assert kind.from_dict(json.loads(json.dumps(kind().to_dict()))) == kind()


@pytest.mark.parametrize("preset", MODEL_PRESETS.values(), ids=list(MODEL_PRESETS))
def test_presets_come_back_from_json_as_they_were(preset):
    changed = replace(
        preset,
        hybrid=HybridConfig(gate=Gate.CHANNEL_WISE_DYNAMIC_SIGMOID),
        prompt=PromptConfig(tokens=PromptTokens.ALL),
        language_lora=LanguageLoraConfig(rank=4, targets=("q_proj", "k_proj", "v_proj")),
        queries=QueryConfig(depth=1, heads=2, dropout=0.1),
    )
    for config in (preset, changed):
        back = ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())))
        assert back == config
        assert isinstance(back.hybrid.gate, Gate)
        assert isinstance(back.vision.stem, Stem)
        assert isinstance(back.language_lora.targets, tuple)


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_settings_are_refused_by_name(kind):
    with pytest.raises(ConfigError, match=rf"{kind.__name__} has no settings called \['colour'\]; it knows "):
        kind.from_dict({"colour": 1})
    with pytest.raises(ConfigError, match=rf"{kind.__name__} has no settings called \['colour'\]"):
        kind(colour=1)


def test_unknown_settings_are_refused_at_any_depth():
    data = ModelConfig().to_dict()
    data["adapters"]["x"]["alpha"] = 16
    with pytest.raises(
        ConfigError,
        match=r"LowRankConfig has no settings called \['alpha'\]; it knows \['dropout', 'rank', 'scale'\]\.",
    ):
        ModelConfig.from_dict(data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", [None, 3, "small", [1]])
def test_what_is_no_table_is_refused(kind, data):
    with pytest.raises(ConfigError, match="must be a table"):
        kind.from_dict(data)


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_another_type_are_refused_by_the_name_of_the_setting(kind):
    for f in fields(kind):
        if is_dataclass(f.type):
            continue
        for value in ({}, None, [{}]):
            if value is None and NoneType in get_args(f.type):
                continue  # a setting that may be left to the checkpoint
            with pytest.raises(ConfigError, match=rf"{kind.__name__}.{f.name}"):
                kind.from_dict({f.name: value})


@pytest.mark.parametrize(
    ("kind", "data", "said"),
    [
        (VisionConfig, {"depth": True}, "VisionConfig.depth: should be a valid integer, not True."),
        (VisionConfig, {"depth": 2.0}, "VisionConfig.depth: should be a valid integer, not 2.0."),
        (VisionConfig, {"depth": "12"}, "VisionConfig.depth: should be a valid integer, not '12'."),
        (VisionConfig, {"depth": 0}, "VisionConfig.depth: should be greater than or equal to 1, not 0."),
        (LowRankConfig, {"scale": "1"}, "LowRankConfig.scale: should be a valid number, not '1'."),
        (HybridConfig, {"keys_from_llm": "no"}, "HybridConfig.keys_from_llm: should be a valid boolean, not 'no'."),
        (HybridConfig, {"keys_from_llm": 1}, "HybridConfig.keys_from_llm: should be a valid boolean, not 1."),
        (VisionConfig, {"stem": "cnn"}, "VisionConfig.stem: should be 'patch' or 'convolution', not 'cnn'."),
        (PromptConfig, {"before": 5}, "PromptConfig.before: should be a valid string, not 5."),
        (LanguageLoraConfig, {"targets": ["q", 1]}, "LanguageLoraConfig.targets.1: should be a valid string, not 1."),
        (ModelConfig, {"adapters": {"x": {"rank": 1.5}}}, "LowRankConfig.rank: should be a valid integer"),
        (DecodeConfig, {"seed": date(2026, 1, 1)}, "DecodeConfig takes text, numbers, true, false, lists and tables"),
    ],
)
def test_a_wrong_value_is_named_with_its_setting(kind, data, said):
    with pytest.raises(ConfigError) as caught:
        kind.from_dict(data)
    assert said in str(caught.value)


def test_a_text_is_not_a_list_of_its_letters():
    """E28: `type=list` once split a name into characters."""
    with pytest.raises(ConfigError, match=r"targets: should be a valid array, not 'q_proj'"):
        LanguageLoraConfig.from_dict({"targets": "q_proj"})


def test_a_whole_number_serves_as_a_number():
    for made in (LowRankConfig.from_dict({"scale": 2}), LowRankConfig(scale=2)):
        assert made.scale == 2.0
        assert isinstance(made.scale, float)


def test_a_wrong_type_fails_at_construction_too():
    with pytest.raises(ConfigError, match=r"^VisionConfig\.depth: should be a valid integer, not True\.$"):
        VisionConfig(depth=True)
    with pytest.raises(ConfigError, match=r"^HybridConfig\.every_n: should be"):
        replace(HybridConfig(), every_n="8")


def test_settings_of_other_modules_are_read_the_same_way():
    """The training programs derive their own from Settings, as plain dataclasses."""

    @dataclass(frozen=True, kw_only=True)
    class Lesson(Settings):
        steps: int
        sources: tuple[str, ...] = ()
        vision: VisionConfig = field(default_factory=VisionConfig)

    read = Lesson.from_dict({"steps": 3, "sources": ["ours"], "vision": {"stem": "patch"}})
    assert read == Lesson(steps=3, sources=("ours",), vision=VisionConfig())
    for data, said in (
        ({"steps": True}, "Lesson.steps: should be a valid integer, not True."),
        ({}, "Lesson.steps: is missing."),
        ({"stepps": 3}, "Lesson has no settings called ['stepps']; it knows ['sources', 'steps', 'vision']."),
    ):
        with pytest.raises(ConfigError) as caught:
            Lesson.from_dict(data)
        assert str(caught.value) == said


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (VisionConfig, {"image_size": 100}),
        (VisionConfig, {"depth": 0}),
        (VisionConfig, {"d_state": -1}),
        (VisionConfig, {"drop_path": 1.0}),
        (LowRankConfig, {"rank": -1}),
        (LowRankConfig, {"dropout": 1.0}),
        (VisionConfig, {"stem": Stem.CONVOLUTION, "patch_size": 14, "d_model": 256}),
        (VisionConfig, {"stem": Stem.CONVOLUTION, "patch_size": 2, "d_model": 256}),
        (VisionConfig, {"stem": Stem.CONVOLUTION, "d_model": 96}),
        (QueryConfig, {"depth": -1}),
        (QueryConfig, {"heads": 0}),
        (QueryConfig, {"patches": 0.0}),
        (QueryConfig, {"dropout": 1.0}),
        (LanguageLoraConfig, {"rank": -2}),
        (HybridConfig, {"every_n": -1}),
        (PromptConfig, {"pooled_grid": 0}),
        (ModelConfig, {"prompt": PromptConfig(pooled_grid=5)}),
        (DecodeConfig, {"beams": 0}),
        (DecodeConfig, {"beams": 17}),
        (DecodeConfig, {"max_new_tokens": 0}),
        (DecodeConfig, {"repetition_penalty": 0.0}),
    ],
)
def test_values_that_make_no_sense_fail_at_construction(kind, values):
    with pytest.raises(ConfigError):
        kind(**values)


def test_heads_that_read_the_stem_need_a_convolutional_one():
    with pytest.raises(ConfigError, match=r"this tower has a patch stem: turn queries\.stem off, or set vision\.stem"):
        ModelConfig(queries=QueryConfig(depth=1, stem=True))
    assert ModelConfig(vision=VISION_PRESETS["small"], queries=QueryConfig(depth=1, stem=True)).queries.stem


def test_settings_cannot_be_changed_afterwards_and_serve_as_keys():
    with pytest.raises(AttributeError):
        VisionConfig().depth = 3
    assert {VisionConfig(): 1}[VisionConfig()] == 1


@pytest.mark.parametrize(("size", "patch"), [(224, 16), (64, 16), (96, 8)])
def test_derived_sizes_follow_from_the_settings(size, patch):
    c = VisionConfig(image_size=size, patch_size=patch, d_model=100)
    assert (c.grid, c.patches, c.tokens) == (size // patch, (size // patch) ** 2, (size // patch) ** 2 + 1)
    assert (c.class_position, c.dt_rank, c.mlp_hidden) == (c.patches // 2, 7, 266)


def test_the_published_towers_keep_their_patches():
    assert {name for name, config in VISION_PRESETS.items() if config.stem is Stem.PATCH} == {"base", "large"}
    assert all(MODEL_PRESETS[name].queries.depth == 0 for name in ("base", "large"))
    # what the published settings do not say of themselves
    assert VisionConfig.from_dict({"d_model": 768}).stem is Stem.PATCH
    assert ModelConfig.from_dict({}).queries.depth == 0


def test_the_small_model_reads_findings_and_has_no_film_in_its_prompt():
    assert MODEL_PRESETS["small"].queries.depth > 0
    assert MODEL_PRESETS["small"].prompt.tokens is PromptTokens.NONE
