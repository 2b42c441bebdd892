"""Adapters are METHOD §3: zero at the start, on the right rows, mergeable, one per layer."""

import copy

import pytest
import torch

from emrrg_core.adapters import AdaptedLinear, attach, merge
from emrrg_core.config import VISION_PRESETS, AdapterConfig, LowRankConfig, VisionConfig
from emrrg_core.vision import VisionMamba

SMALL = VisionConfig(image_size=64, patch_size=16, d_model=16, depth=3, d_state=4, drop_path=0.0)
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
    assert not any(isinstance(module, AdaptedLinear) for module in tower.modules())
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
    """LoRA_p(X) is rows [0 : d_inner], LoRA(in_proj) is all 2 · d_inner rows (METHOD §3.1, §3.2)."""
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


@pytest.mark.parametrize(
    ("size", "x", "in_proj", "parameters"),
    [
        ("base", 16, 0, 294_912),
        ("base", 0, 16, 442_368),
        ("large", 16, 0, 786_432),
        ("large", 0, 16, 1_179_648),
    ],
)
def test_adapter_sizes_are_those_of_the_ablation_table(size, x, in_proj, parameters):
    """METHOD §3.4, rank 16."""
    with torch.device("meta"):
        tower = VisionMamba(VISION_PRESETS[size])
        attach(tower, ranks(x, in_proj))
    assert sum(p.numel() for p in tower.parameters() if p.requires_grad) == parameters


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
