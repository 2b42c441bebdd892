"""Grad-CAM is what its formula says, its regions are AM-MRG's, and the program that compares it counts as it claims."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from emrrg_core.explain.grad_cam import CELLS, MOST, grad_cam, regions
from emrrg_core.model.emrrg import TowerFeatures
from emrrg_core.text.labeler import LABELS
from tests import tiny
from tests.phantom import make_phantom
from train import regions as program
from train.regions import METHODS, Case, boxed, measure, measured
from train.targets import Truth

GRID, WIDTH = 4, 16  # of the tiny model
MIDDLE = GRID**2 // 2


class Head(nn.Module):
    """Reads each label from some of the patches, linearly: all alike, or one; and from the class token."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__()
        made = torch.Generator().manual_seed(5)
        self.weight = torch.randn(len(LABELS), WIDTH, generator=made)
        self.of_class = torch.randn(len(LABELS), WIDTH, generator=made)
        self.at = at

    def forward(self, tokens: Tensor, middle: int, stem: Tensor | None = None) -> dict[str, Tensor]:
        patches = torch.cat([tokens[:, :middle], tokens[:, middle + 1 :]], 1)
        read = patches.mean(1) if self.at is None else patches[:, self.at]
        return {"logits": read @ self.weight.T + tokens[:, middle] @ self.of_class.T}


def shown(model, monkeypatch, tokens: Tensor) -> None:
    """The tower makes these tokens of any film."""
    monkeypatch.setattr(model, "look", lambda films: TowerFeatures(tokens[: len(films)]))


def test_the_map_of_a_linear_head_is_its_weights_times_the_tokens_where_that_is_positive(reading, images):
    reading.disease = Head()
    films, labels = images[:, 0], torch.tensor([0, 5, 13])
    heat = grad_cam(reading, films, labels)
    with torch.no_grad():
        tokens = reading.visual_encoder(films)
    patches = np.delete(tokens.numpy(), MIDDLE, axis=1)
    expected = np.maximum(np.einsum("bpd,bd->bp", patches, reading.disease.weight[labels].numpy()), 0)
    expected /= expected.max(1, keepdims=True)
    assert heat.shape == (3, GRID, GRID)
    np.testing.assert_allclose(heat.flatten(1).numpy(), expected, rtol=1e-4, atol=1e-6)
    assert 0 < (expected == 0).mean() < 1


@pytest.mark.parametrize("at", [0, MIDDLE - 1, MIDDLE, GRID**2 - 1])
def test_a_logit_that_depends_on_one_patch_only_points_there(reading, monkeypatch, at):
    reading.disease, label = Head(at), 3
    tokens = torch.zeros(1, GRID**2 + 1, WIDTH)
    tokens[0, at + (at >= MIDDLE)] = reading.disease.weight[label]
    tokens[0, MIDDLE] = 9  # no patch
    shown(reading, monkeypatch, tokens)
    (heat,) = grad_cam(reading, torch.zeros(1, 3, 64, 64), torch.tensor([label]))
    expected = torch.zeros(GRID**2)
    expected[at] = 1
    assert torch.equal(heat.flatten(), expected)


def test_a_patch_that_is_alike_is_shown_too_though_the_logit_does_not_depend_on_it(reading, monkeypatch):
    """Which `finding_maps` does not do, and why both are kept."""
    reading.disease, label = Head(2), 3
    tokens = torch.zeros(1, GRID**2 + 1, WIDTH)
    tokens[0, [2, 7]] = reading.disease.weight[label]
    shown(reading, monkeypatch, tokens)
    (heat,) = grad_cam(reading, torch.zeros(1, 3, 64, 64), torch.tensor([label]))
    assert heat.flatten().nonzero().flatten().tolist() == [2, 7]


def test_where_no_patch_speaks_for_it_the_map_is_empty(reading, monkeypatch):
    reading.disease, label = Head(2), 3
    tokens = torch.zeros(1, GRID**2 + 1, WIDTH)
    tokens[0, 2] = -reading.disease.weight[label]
    shown(reading, monkeypatch, tokens)
    heat = grad_cam(reading, torch.zeros(1, 3, 64, 64), torch.tensor([label]))
    assert not heat.any()
    assert regions(heat[0]) == []


@pytest.mark.parametrize("stem", [False, True])
def test_the_map_of_the_models_own_queries_is_in_range_and_leaves_nothing_behind(build, open_gates, images, stem):
    model = open_gates(build(queries=True, stem=stem)).requires_grad_(False)
    labels = torch.arange(3)
    heat = grad_cam(model, images[:, 0], labels)
    assert torch.equal(heat.amax((1, 2)), torch.ones(3))
    assert (heat >= 0).all()
    assert all(parameter.grad is None for parameter in model.parameters())
    for i in range(3):  # no film has a part in another's map
        alone = grad_cam(model, images[i : i + 1, 0], labels[i : i + 1])
        torch.testing.assert_close(heat[i : i + 1], alone, rtol=1e-3, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(grad_cam(model, images[:, 0], labels), heat)


def test_what_cannot_be_asked_is_refused(tiny, reading, images):
    with pytest.raises(ValueError, match="no disease queries"):
        grad_cam(tiny, images[:, 0], torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="not one for each of 3 films"):
        grad_cam(reading, images[:, 0], torch.zeros(2, dtype=torch.long))


# ---------------------------------------------------------------------------------------------------------------- regions


def test_regions_are_the_strongest_cells_above_three_quarters():
    heat = torch.zeros(CELLS, CELLS)
    assert regions(heat) == []
    heat[3, 4], heat[0, 13], heat[13, 0], heat[5, 5] = 0.8, 1.0, 0.75, 0.76
    assert regions(heat) == [(0, 13), (3, 4), (5, 5)]
    assert regions(heat.numpy()) == regions(heat)


def test_regions_are_six_at_most_and_of_equal_ones_the_first():
    heat = torch.full((CELLS, CELLS), 0.9)
    heat[7, 7] = 1.0
    assert regions(heat) == [(7, 7), *((0, column) for column in range(MOST - 1))]


@pytest.mark.parametrize("grid", [7, 24])
def test_a_map_of_another_grid_is_laid_over_the_same_film(grid):
    """The middle of a cell lies in the patch that is high."""
    heat = torch.zeros(grid, grid)
    row, column = grid // 2, grid - 1
    heat[row - 1 : row + 2, column - 1 : column + 1] = 1
    found = regions(heat)
    assert 0 < len(found) <= MOST
    for r, c in found:
        assert heat[int((r + 0.5) / CELLS * grid), int((c + 0.5) / CELLS * grid)] == 1


# ---------------------------------------------------------------------------------------------------------------- program


def test_a_map_is_measured_by_its_regions_and_its_peak():
    heat = np.zeros((CELLS, CELLS), np.float32)
    heat[2, 3], heat[2, 4], heat[10, 10] = 2.0, 1.8, 1.6  # of its maximum 1, 0.9 and 0.8
    box = (3 / CELLS, 2 / CELLS, 1 / CELLS, 1 / CELLS)
    one = measured(heat, [box])
    assert (one.regions, one.inside, one.pointing) == (3, 1, True)
    elsewhere = measured(heat, [(10 / CELLS, 10 / CELLS, 1 / CELLS, 1 / CELLS)])
    assert (elsewhere.regions, elsewhere.inside, elsewhere.pointing) == (3, 1, False)
    nothing = measured(np.zeros((CELLS, CELLS)), [(0.0, 0.0, 1.0, 1.0)])
    assert (nothing.regions, nothing.inside, nothing.pointing) == (0, 0, False)


def test_a_film_counts_once_and_is_compared_with_the_maps_of_other_films():
    def heat(row: int) -> dict[str, np.ndarray]:
        made = np.zeros((CELLS, CELLS))
        made[row, 0] = 1
        return dict.fromkeys(METHODS, made)

    above, below = ((0.0, 0.0, 1.0, 0.5),), ((0.0, 0.5, 1.0, 0.5),)
    cases = [
        Case("a", "opacity", above, heat(0)),
        Case("a", "effusion", below, heat(0)),
        Case("b", "opacity", above, heat(13)),
        Case("c", "opacity", above, heat(1)),
    ]
    a, b, c = measure(cases, METHODS[0])
    np.testing.assert_allclose(a, [2, 1, 0.5, 0.5, 0.5])  # effusion is in no other film
    np.testing.assert_allclose(b, [1, 0, 0, 1, 0.5])
    np.testing.assert_allclose(c, [1, 1, 1, 0.5, 0.5])


def test_boxes_count_where_the_label_says_that_the_finding_is_there():
    class Boxed:
        boxes = ()

    box = ((0.1, 0.2, 0.3, 0.4),)
    assert boxed(Boxed(), Truth({"Lung Opacity": 1.0}, box)) == {"opacity": box}
    for labels in ({"Lung Opacity": 0.5}, {"Edema": 1.0}):
        assert boxed(Boxed(), Truth(labels, box)) == {}


def test_the_program_prints_both_maps(reading_checkpoint, tmp_path, capsys):
    phantoms = [make_phantom(i, lesion="opacity", height=tiny.HEIGHT, width=tiny.WIDTH) for i in range(2)]
    path = tiny.film_set(tmp_path, [(p, {"split": "val"}) for p in phantoms])
    program.main(["--films", str(path), "--checkpoint", str(reading_checkpoint), "--threads", "1"])
    said = capsys.readouterr().out
    for method in METHODS:
        assert f"| {method} |" in said
    assert "n 2" in said
