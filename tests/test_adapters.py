"""Adapters are docs/method.md 3: zero at the start, on the right rows, mergeable, one per layer; every row of the ablation touches its slice only."""

import copy
from dataclasses import replace

import pytest
import torch

from emrrg_core.config import (
    MODEL_PRESETS,
    VISION_PRESETS,
    AdapterConfig,
    HybridConfig,
    LanguageLoraConfig,
    LowRankConfig,
    Stem,
    VisionConfig,
)
from emrrg_core.errors import ConfigError
from emrrg_core.model.emrrg import Emrrg
from emrrg_core.model.partial_lora import DESIGNS, ROWS, AdaptedConv2d, AdaptedLinear, ablate, attach, merge
from emrrg_core.model.vision_mamba import VisionMamba
from tests.conftest import TINY

SMALL = VisionConfig(image_size=64, patch_size=16, d_model=16, depth=3, d_state=4, drop_path=0.0)
# dt, B, C and the width are all of different sizes: no slice can be taken for another
WIDE = VisionConfig(image_size=64, patch_size=16, d_model=40, depth=2, d_state=4, drop_path=0.0)
DT, STATE, WIDTH = 3, 4, 40
STEM = VisionConfig(image_size=32, patch_size=8, d_model=64, depth=1, d_state=4, drop_path=0.0, stem=Stem.CONVOLUTION)
EACH_WAY = ("", "_b", "_c", "_c_b")
# layers of a mixer and the rows that change, by docs/method.md 3.4; "embedding" lies outside the mixer
SLICES = {
    "x": (["in_proj"], range(WIDTH)),
    "in_proj": (["in_proj"], range(2 * WIDTH)),
    "z": (["in_proj"], range(WIDTH, 2 * WIDTH)),
    "out_proj": (["out_proj"], range(WIDTH)),
    "x_proj": ([f"x_proj{way}" for way in EACH_WAY], range(DT + 2 * STATE)),
    "dt": ([f"x_proj{way}" for way in EACH_WAY], range(DT)),
    "b": ([f"x_proj{way}" for way in EACH_WAY], range(DT, DT + STATE)),
    "c": ([f"x_proj{way}" for way in EACH_WAY], range(DT + STATE, DT + 2 * STATE)),
    "dt_proj": ([f"dt_proj{way}" for way in EACH_WAY], range(WIDTH)),
}
OFF = LowRankConfig(rank=0)


def ranks(x: int, in_proj: int, *, dropout: float = 0.0, scale: float = 0.7) -> AdapterConfig:
    return AdapterConfig(
        x=LowRankConfig(rank=x, scale=scale, dropout=dropout),
        in_proj=LowRankConfig(rank=in_proj, scale=scale, dropout=dropout),
    )


@pytest.fixture
def tower() -> VisionMamba:
    torch.manual_seed(0)
    return VisionMamba(SMALL).eval()


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def move(tower: VisionMamba) -> None:
    """As if trained a little: no `up` is zero any more."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if name.endswith("up.weight"):
                parameter.normal_(0, 0.3, generator=generator)


@pytest.mark.parametrize("config", [ranks(4, 0), ranks(0, 4), ranks(4, 2)])
def test_fresh_adapters_give_exactly_the_frozen_tower(tower, image, config):
    expected = tower(image)
    attach(tower, config)
    assert torch.equal(tower(image), expected)
    assert torch.equal(tower.train()(image), expected)


def test_moved_adapters_change_the_output(tower, image):
    expected = tower(image)
    attach(tower, ranks(4, 2))
    move(tower)
    assert (tower(image) - expected).abs().max() > 1e-3


def test_merged_adapters_give_the_same_output_bit_for_bit(tower, image):
    names = list(tower.state_dict())
    attach(tower, ranks(4, 2))
    move(tower)
    expected = tower(image)
    merge(tower)
    assert torch.equal(tower(image), expected)
    assert list(tower.state_dict()) == names
    assert not any(isinstance(module, AdaptedLinear | AdaptedConv2d) for module in tower.modules())
    assert not any(module.training for module in tower.modules())


def test_adding_to_activations_equals_adding_to_weights(tower, image):
    """Training with dropout adds the update to the activations; with a rate too small to drop anything it is the same sum."""
    attach(tower, ranks(4, 2, dropout=1e-12))
    move(tower)
    expected = tower.eval()(image)
    torch.testing.assert_close(tower.train()(image), expected, rtol=0, atol=1e-5)


def test_without_dropout_training_gives_what_evaluation_gives(tower, image):
    attach(tower, ranks(4, 2))
    move(tower)
    expected = tower.eval()(image)
    torch.testing.assert_close(tower.train()(image), expected, rtol=0, atol=1e-6)


def test_dropout_acts_while_training_only(tower, image):
    attach(tower, ranks(4, 2, dropout=0.5))
    move(tower)
    still = tower(image)
    assert torch.equal(tower(image), still)
    tower.train()
    assert not torch.equal(tower(image), tower(image))


def test_adapters_take_the_mode_of_the_tower_they_are_attached_to(tower):
    attach(tower, ranks(4, 2, dropout=0.5))
    assert not any(module.training for module in tower.modules())


def test_gradient_reaches_every_layers_own_adapter(tower, image):
    """E3: a closure over the loop variable once sent every layer through the last layer's mixer."""
    attach(tower, ranks(4, 2))
    move(tower)
    tower.train()(image).square().sum().backward()
    adapters = {name: p for name, p in tower.named_parameters() if ".lora." in name}
    assert len(adapters) == SMALL.depth * 2 * 2
    assert [name for name, p in adapters.items() if p.grad is None or not p.grad.any()] == []
    ups = [p.grad for name, p in adapters.items() if name.endswith("x.up.weight")]
    assert not any(torch.equal(a, b) for i, a in enumerate(ups) for b in ups[:i])


def test_an_adapter_of_one_layer_changes_that_layer_and_what_follows_it(tower, image):
    attach(tower, ranks(4, 0))
    inputs: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda _m, _i, out: inputs.append(out.detach())) for layer in tower.layers]
    tower(image)
    before = inputs.copy()
    inputs.clear()
    with torch.no_grad():
        tower.layers[1].mixer.in_proj.lora["x"].up.weight.normal_()
    tower(image)
    for hook in hooks:
        hook.remove()
    assert [torch.equal(a, b) for a, b in zip(before, inputs, strict=True)] == [True, False, False]


@pytest.mark.parametrize(("config", "changed"), [(ranks(4, 0), 16), (ranks(0, 4), 32)])
def test_an_update_changes_exactly_its_own_rows(tower, config, changed):
    """LoRA_p(X) is rows [0 : d_inner], LoRA(in_proj) is all 2 · d_inner rows (docs/method.md 3.1, 3.2)."""
    attach(tower, config)
    move(tower)
    for layer in tower.layers:
        adapted = layer.mixer.in_proj
        rows = (adapted.effective_weight() != adapted.weight).any(1)
        assert rows.tolist() == [True] * changed + [False] * (32 - changed)


def test_the_update_is_scale_times_up_times_down(tower):
    attach(tower, ranks(3, 2, scale=0.25))
    move(tower)
    adapted = tower.layers[0].mixer.in_proj
    x, both = adapted.lora["x"], adapted.lora["in_proj"]
    expected = adapted.weight + 0.25 * both.up.weight @ both.down.weight
    expected[:16] += 0.25 * x.up.weight @ x.down.weight
    torch.testing.assert_close(adapted.effective_weight(), expected, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------- the ablation's rows


def slot(name: str, **changes) -> AdapterConfig:
    return AdapterConfig.only(**{name: LowRankConfig(**{"rank": 4, "scale": 0.7, "dropout": 0.0} | changes)})


def towers() -> list:
    """Every slice on a tower of the published kind, and the embedding also on a convolutional stem."""
    made = [pytest.param(name, WIDE, id=name) for name in [*SLICES, "embedding"]]
    return [*made, pytest.param("embedding", STEM, id="embedding-stem")]


def slices(tower: VisionMamba, name: str) -> dict[str, list[int]]:
    """Names of the weights that a row of the ablation changes, and which of their rows."""
    if name == "embedding":
        return {
            f"{path}.weight": list(range(layer.out_channels))
            for path, layer in tower.named_modules()
            if isinstance(layer, torch.nn.Conv2d) and path.startswith("patch_embed.")
        }
    layers, rows = SLICES[name]
    return {f"layers.{i}.mixer.{layer}.weight": list(rows) for i in range(WIDE.depth) for layer in layers}


def lora_names(tower: VisionMamba, name: str) -> set[str]:
    halves = {f"{path.removesuffix('.weight')}.lora.{name}." for path in slices(tower, name)}
    return {f"{half}{leaf}.weight" for half in halves for leaf in ("up", "down")}


def film(config: VisionConfig) -> torch.Tensor:
    size = config.image_size
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def fresh(config: VisionConfig) -> VisionMamba:
    torch.manual_seed(0)
    return VisionMamba(config).eval()


@pytest.mark.parametrize(("name", "config"), towers())
def test_a_row_of_the_ablation_changes_exactly_its_slice_of_the_effective_weights(name, config):
    """Over all weights of the tower, so that nothing else can have changed unseen."""
    tower = fresh(config)
    before, expected = copy.deepcopy(tower.state_dict()), slices(tower, name)
    attach(tower, slot(name))
    move(tower)
    merge(tower)
    after, changed = tower.state_dict(), {}
    assert after.keys() == before.keys()
    for key, value in after.items():
        if rows := (value != before[key]).flatten(1).any(1).nonzero().flatten().tolist() if value.dim() > 1 else []:
            changed[key] = rows
        else:
            assert torch.equal(value, before[key])
    assert changed == expected


@pytest.mark.parametrize(("name", "config"), towers())
def test_the_gradient_of_a_row_reaches_exactly_its_own_parameters(name, config):
    tower = fresh(config)
    expected = lora_names(tower, name)
    attach(tower, slot(name))
    assert {n for n, p in tower.named_parameters() if p.requires_grad} == expected
    move(tower)
    tower.train()(film(config)).square().sum().backward()
    assert {n for n, p in tower.named_parameters() if p.grad is not None} == expected
    assert {n for n, p in tower.named_parameters() if p.grad is not None and p.grad.any()} == expected


@pytest.mark.parametrize(("name", "config"), towers())
def test_a_row_starts_as_the_plain_tower_and_merges_to_what_it_has_become(name, config):
    tower, image = fresh(config), film(config)
    plain = tower(image)
    attach(tower, slot(name, dropout=0.5))
    assert torch.equal(tower(image), plain)
    assert torch.equal(tower.train()(image), plain)
    move(tower.eval())
    moved = tower(image)
    assert (moved - plain).abs().max() > 1e-5
    merge(tower)
    assert torch.equal(tower(image), moved)
    assert not any(module.training for module in tower.modules())


@pytest.mark.parametrize(("name", "config"), towers())
def test_every_row_adds_to_activations_what_it_adds_to_weights(name, config):
    """The two ways of computing an update, with dropout and without."""
    tower, image = fresh(config), film(config)
    attach(tower, slot(name, dropout=1e-12))
    move(tower)
    torch.testing.assert_close(tower.train()(image), tower.eval()(image), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("name", "config"), towers())
def test_every_row_has_dropout_while_training(name, config):
    tower, image = fresh(config), film(config)
    attach(tower, slot(name, dropout=0.5))
    move(tower)
    tower.train()
    assert not torch.equal(tower(image), tower(image))


def test_each_direction_has_an_update_of_its_own():
    """E9: the target "x_proj" once matched the forward direction only."""
    tower = fresh(WIDE)
    attach(tower, slot("x_proj"))
    move(tower)
    mixer = tower.layers[0].mixer
    deltas = [getattr(mixer, f"x_proj{way}").lora["x_proj"].weight() for way in EACH_WAY]
    assert not any(torch.equal(a, b) for i, a in enumerate(deltas) for b in deltas[:i])


def test_slices_of_one_weight_add_up():
    """X, Z and both; and B beside C: every update keeps to its rows when others lie on the same weight."""
    tower = fresh(WIDE)
    low = LowRankConfig(rank=2, dropout=0.0)
    attach(tower, AdapterConfig(x=low, in_proj=low, z=low, b=low, c=low))
    move(tower)
    mixer = tower.layers[1].mixer
    updates = {name: update.weight() for name, update in [*mixer.in_proj.lora.items(), *mixer.x_proj_c.lora.items()]}
    expected = mixer.in_proj.weight + updates["in_proj"] + torch.cat([updates["x"], updates["z"]])
    torch.testing.assert_close(mixer.in_proj.effective_weight(), expected, rtol=0, atol=1e-6)
    nothing = torch.zeros(DT, WIDTH)
    expected = mixer.x_proj_c.weight + torch.cat([nothing, updates["b"], updates["c"]])
    torch.testing.assert_close(mixer.x_proj_c.effective_weight(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "base", "large"),
    [
        ("embedding", 24_576, 28_672),
        ("x_proj", 651_264, 1_720_320),
        ("dt_proj", 626_688, 1_671_168),
        ("in_proj", 442_368, 1_179_648),
        ("out_proj", 294_912, 786_432),
        ("z", 294_912, 786_432),
        ("dt", 626_688, 1_671_168),
        ("b", 602_112, 1_597_440),
        ("c", 602_112, 1_597_440),
        ("x", 294_912, 786_432),
    ],
)
def test_adapter_sizes_are_those_of_the_ablation_table(name, base, large):
    """docs/method.md 3.4, rank 16."""
    for size, parameters in (("base", base), ("large", large)):
        with torch.device("meta"):
            tower = VisionMamba(VISION_PRESETS[size])
            attach(tower, slot(name, rank=16))
        assert sum(p.numel() for p in tower.parameters() if p.requires_grad) == parameters


def test_a_tower_that_is_trained_in_full_is_all_trainable_and_has_no_adapters(tower):
    names = list(tower.state_dict())
    attach(tower.requires_grad_(False), replace(AdapterConfig.only(), full=True))
    assert all(p.requires_grad for p in tower.parameters())
    assert list(tower.state_dict()) == names
    with pytest.raises(ConfigError, match="trained in full has no adapters"):
        AdapterConfig(full=True)


# ------------------------------------------------------------------------------------------------- settings of a row


def test_the_ablation_has_the_eleven_rows_of_the_paper():
    assert list(ROWS) == [
        *("llm", "embedding", "x_proj", "dt_proj", "in_proj", "out_proj", "z", "dt", "b", "c", "x"),
    ]
    assert DESIGNS.keys() - ROWS.keys() == {"projector", "combined", "full"}


@pytest.mark.parametrize("row", [row for row in ROWS if row != "llm"])
def test_a_row_asks_for_its_own_slice_and_nothing_else(row):
    made = ablate(MODEL_PRESETS["base"], row)
    assert made.adapters.low_rank() == {row: LowRankConfig(rank=16, scale=1.0, dropout=0.1)}
    assert (made.hybrid.every_n, made.language_lora.rank, made.adapters.full) == (0, 0, False)
    assert made.vision == MODEL_PRESETS["base"].vision


def test_the_language_models_row_leaves_the_tower_alone():
    made = ablate(MODEL_PRESETS["base"], "llm")
    assert made.language_lora == LanguageLoraConfig(rank=16, alpha=16, dropout=0.1, targets=("q_proj", "v_proj"))
    assert (made.adapters, made.hybrid.every_n) == (AdapterConfig.only(), 0)
    assert ablate(MODEL_PRESETS["base"], "llm", LowRankConfig(rank=4, scale=2.0)).language_lora.alpha == 8


def test_the_combined_design_keeps_the_hybrid_layers_that_the_model_asks_for():
    base = MODEL_PRESETS["base"]
    made = ablate(base, "combined", LowRankConfig(rank=3))
    assert made.adapters.low_rank() == {"x": LowRankConfig(rank=3), "in_proj": LowRankConfig(rank=3)}
    assert made.hybrid == base.hybrid
    with pytest.raises(ConfigError, match="needs hybrid layers"):
        ablate(replace(base, hybrid=HybridConfig(every_n=0)), "combined")


def test_an_unknown_row_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"no design called 'y'; choose one of llm, embedding"):
        ablate(MODEL_PRESETS["base"], "y")


def test_settings_written_before_there_were_other_rows_mean_the_same():
    old = {"x": {"rank": 8, "scale": 1.0, "dropout": 0.1}, "in_proj": {"rank": 16, "scale": 0.5, "dropout": 0.0}}
    read = AdapterConfig.from_dict(old)
    assert {name: low.to_dict() for name, low in read.low_rank().items()} == old
    assert not read.full


PROJECTOR = {f"{part}.{leaf}" for part in ("llama_proj", "layer_norm") for leaf in ("weight", "bias")}


@pytest.mark.parametrize("design", DESIGNS)
def test_a_model_of_each_design_trains_its_slice_and_the_projector_only(design, make_llm, tokenizer):
    """E4, E5, E16, E20, of the whole model."""
    model = Emrrg(ablate(TINY, design, LowRankConfig(rank=2)), make_llm().requires_grad_(True), tokenizer)
    by_layer = {
        **{row: {f"layers.{i}.mixer.{x}" for i in (0, 1) for x in layers} for row, (layers, _) in SLICES.items()},
        "embedding": {"patch_embed.proj"},
    }
    expected = set(PROJECTOR)
    for name in {"combined": ("x", "in_proj"), "llm": (), "projector": (), "full": ()}.get(design, (design,)):
        halves = ("up", "down")
        expected |= {f"visual_encoder.{layer}.lora.{name}.{h}.weight" for layer in by_layer[name] for h in halves}
    if design == "full":
        expected |= {f"visual_encoder.{n}" for n, _ in VisionMamba(TINY.vision).named_parameters()}
    if design == "combined":
        leaves = ("kv_proj.weight", "kv_proj.bias", "gate_proj.weight", "gate_proj.bias", "warm_up_gate")
        expected |= {f"hybrid.layers.{i}.{leaf}" for i in (0, 2) for leaf in leaves}
    if design == "llm":
        targets = [f"model.layers.{i}.self_attn.{p}" for i in range(4) for p in ("q_proj", "v_proj")]
        expected |= {f"llm.{target}.lora_{half}.default.weight" for target in targets for half in "AB"}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == expected


def test_the_language_models_row_changes_its_queries_and_values_only(make_llm, tokenizer):
    llm = make_llm()
    before = {name: value.clone() for name, value in llm.state_dict().items()}
    model = Emrrg(ablate(TINY, "llm", LowRankConfig(rank=2)), llm, tokenizer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_()
    for module in llm.modules():
        if hasattr(module, "get_delta_weight"):
            module.merge()
    after = {n.replace(".base_layer", ""): value for n, value in llm.state_dict().items() if ".lora_" not in n}
    assert after.keys() == before.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {f"model.layers.{i}.self_attn.{p}.weight" for i in range(4) for p in ("q_proj", "v_proj")}


# ------------------------------------------------------------------------------------------------------- the tower


def test_only_the_adapters_of_an_adapted_tower_are_trainable(tower):
    attach(tower, ranks(4, 2))
    trainable = {name for name, p in tower.named_parameters() if p.requires_grad}
    assert trainable == {name for name, _ in tower.named_parameters() if ".mixer.in_proj.lora." in name}
    assert len(trainable) == SMALL.depth * 2 * 2


def test_with_both_ranks_at_zero_the_tower_is_only_frozen(tower, image):
    expected, names = tower(image), list(tower.state_dict())
    attach(tower, AdapterConfig(x=OFF, in_proj=OFF))
    assert torch.equal(tower(image), expected)
    assert list(tower.state_dict()) == names
    assert not any(p.requires_grad for p in tower.parameters())


def test_the_adapted_tower_keeps_the_names_of_its_weights(tower):
    names = set(tower.state_dict())
    attach(tower, ranks(4, 2))
    added = set(tower.state_dict()) - names
    assert names <= set(tower.state_dict())
    assert added == {
        f"layers.{i}.mixer.in_proj.lora.{kind}.{half}.weight"
        for i in range(SMALL.depth)
        for kind in ("x", "in_proj")
        for half in ("up", "down")
    }


def test_attaching_twice_is_refused_and_after_merging_it_is_not(tower):
    attach(tower, ranks(4, 2))
    with pytest.raises(ValueError, match="adapters already"):
        attach(tower, ranks(4, 2))
    merge(tower)
    attach(tower, ranks(4, 2))


def test_merging_a_plain_tower_changes_nothing(tower, image):
    before = copy.deepcopy(tower.state_dict())
    merge(tower)
    assert before.keys() == tower.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())
