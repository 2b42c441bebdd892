"""What a frozen tower sees is kept on disk: the same as computed, never of another tower or film, and computed once."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from emrrg_core.errors import ConfigError, DataError
from emrrg_core.model.emrrg import Emrrg
from train.finetune import Lessons, Ways, WordLessons
from train.kept_features import KeptFeatures, tower_hash
from train.loop import Part

TOLD = [
    (["The lungs are clear."], ["Normal chest."]),
    (["There is a nodule."], ["Nodule."]),
    (["Hazy lungs."], ["Hazy."]),
]
PART = Part(0, 0, 1, torch.device("cpu"))


@pytest.fixture(params=["no queries", "queries", "queries of a stem"])
def model(request, build, open_gates) -> Emrrg:
    """A model whose tower is frozen while all else that learns does."""
    kind = {"queries": request.param != "no queries", "stem": request.param == "queries of a stem"}
    made = open_gates(build(**kind))
    made.visual_encoder.requires_grad_(False)
    return made


@pytest.fixture
def keep(tmp_path) -> Callable[[Emrrg], KeptFeatures]:
    return lambda model: KeptFeatures(model, tmp_path)


def words(model: Emrrg, images: torch.Tensor, kept: KeptFeatures | None) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of reports of these films, and the gradients of all that learns."""
    model.zero_grad()
    loss, _ = WordLessons(model).loss(model.see(images, look=kept), TOLD, PART)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_kept_features_give_the_loss_and_the_gradients_of_computed_ones(model, images, keep):
    expected, gradients = words(model, images, None)
    for kept in (keep(model), keep(model)):  # computed and written, then read by another run
        loss, found = words(model, images, kept)
        assert loss == pytest.approx(expected, rel=1e-6)
        assert found.keys() == gradients.keys()
        assert not any(name.startswith("visual_encoder.") for name in found)
        for name, value in found.items():
            torch.testing.assert_close(value, gradients[name], rtol=1e-4, atol=1e-7)
    assert (kept.found, kept.computed) == (3, 0)


def test_a_film_that_was_seen_goes_through_no_tower_and_comes_back_to_the_bit(model, images, keep, monkeypatch):
    kept = keep(model)
    first = kept(images[:, 0])
    assert (kept.found, kept.computed) == (0, 3)
    monkeypatch.setattr(model, "look", None)
    again = kept(images[[2, 0], 0])  # in another order
    assert torch.equal(again.tokens, first.tokens[[2, 0]])
    if first.lungs is not None:
        assert torch.equal(again.lungs, first.lungs[[2, 0]])
    assert (first.stem is None) is (again.stem is None)
    assert (kept.found, kept.computed) == (2, 3)


def test_another_film_another_weight_and_another_setting_are_computed_anew(model, images, keep):
    keep(model)(images[:, 0])
    other = images[:, 0].clone()
    other[1, 0, 5, 5] += 1e-3
    kept = keep(model)
    kept(other)
    assert (kept.found, kept.computed) == (2, 1)
    with torch.no_grad():
        next(model.visual_encoder.parameters()).view(-1)[0] += 1e-3
    kept = keep(model)
    changed = kept(images[:, 0])
    assert (kept.found, kept.computed) == (0, 3)
    torch.testing.assert_close(changed.tokens, model.look(images[:, 0]).tokens)
    before = tower_hash(model)
    x = model.config.adapters.x
    model.config = replace(model.config, adapters=replace(model.config.adapters, x=replace(x, scale=2.0)))
    assert tower_hash(model) != before


def test_another_precision_is_another_tower(model, images, keep):
    keep(model)(images[:, 0])
    with torch.autocast("cpu", torch.bfloat16):
        kept = keep(model)
        kept(images[:, 0])
    assert kept.found == 0


def test_what_the_language_model_learns_leaves_the_tower_what_it_is(model):
    before = tower_hash(model)
    with torch.no_grad():
        model.llama_proj.weight += 1
    assert tower_hash(model) == before


def test_new_films_are_seen_without_dropout_and_the_model_goes_on_training(model, images, keep):
    for module in model.visual_encoder.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.9
    expected = model.eval().look(images[:, 0]).tokens
    model.train()
    assert not torch.allclose(model.look(images[:, 0]).tokens, expected)
    torch.testing.assert_close(keep(model)(images[:, 0]).tokens, expected)
    assert model.visual_encoder.training


def test_a_torn_file_is_written_anew(model, images, keep, tmp_path):
    first = keep(model)(images[:, 0])
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 3
    files[1].write_bytes(files[1].read_bytes()[:30])
    kept = keep(model)
    torch.testing.assert_close(kept(images[:, 0]).tokens, first.tokens)
    assert (kept.found, kept.computed) == (2, 1)
    assert sorted(tmp_path.rglob("*")) == sorted([*files, files[0].parent])  # nothing is left beside


def test_a_tower_that_learns_is_refused_and_so_is_a_folder_that_cannot_be(build, images, tmp_path):
    model = build(queries=True)
    with pytest.raises(ConfigError, match=r"visual_encoder\..*tower = false"):
        KeptFeatures(model, tmp_path)
    model.visual_encoder.requires_grad_(False)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be kept"):
        KeptFeatures(model, Path(tmp_path / "file"))(images[:, 0])


# --------------------------------------------------------------------------------------------------- ways of a film


def test_without_ways_every_draw_goes_on_with_the_steps_own_generator():
    rng = np.random.default_rng(0)
    mine, as_it_is = Ways(0).draw("film", rng)
    assert mine is rng
    assert not as_it_is


def test_a_film_is_shown_in_as_many_ways_as_asked_for_the_same_in_every_run():
    def shown(name: str, seed: int) -> set[tuple[float, bool]]:
        rng, ways = np.random.default_rng(seed), Ways(3)
        drawn = [ways.draw(name, rng) for _ in range(60)]
        return {(mine.random(), as_it_is) for mine, as_it_is in drawn}

    first = shown("film", 0)
    assert len(first) == 3
    assert [as_it_is for _, as_it_is in first].count(True) == 1
    assert shown("film", 1) == first
    assert not shown("another", 0) & first


def test_a_negative_number_of_ways_is_refused():
    with pytest.raises(ConfigError, match="ways must be 0 or more"):
        Lessons(ways=-1)
