"""Evidence lands where the model looked: exactly on the patch's rectangle of the original film, and nothing is lost."""

import io
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure

from emrrg_core.decode import Token
from emrrg_core.evidence import gate_figure, heat_map, lay_over, overlay, patch_weights
from emrrg_core.report import Draft, FilmRecord, Sentence

SIZES = [(224, 224), (280, 140), (129, 301), (301, 129), (14, 14), (20, 15), (9, 30), (700, 500)]


def unit(grid: int, r: int, c: int) -> np.ndarray:
    weights = np.zeros(grid * grid)
    weights[r * grid + c] = 1.0
    return weights


def token(gates: tuple[float, ...], attention: np.ndarray, text: str = "a") -> Token:
    return Token(1, text, -0.1, gates, np.asarray(attention, np.float32))


def draft(tokens: list[Token], sizes: list[tuple[int, int]], grid: int, layers: tuple[int, ...] = (0, 5)) -> Draft:
    films = tuple(FilmRecord(f"Film {i}", "PNG", "", h, w, None, None, ()) for i, (h, w) in enumerate(sizes, 1))
    sentence = Sentence("a", "findings", 0, 1, (0, len(tokens)), 0.5, (0.1,) * len(layers))
    return Draft("a", "", (sentence,), tuple(tokens), layers, grid, films, (), {}, {}, {"seed": 0}, True)


# -------------------------------------------------------------------------------------------------------------- maps


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("grid", [4, 14])
def test_a_unit_of_attention_lands_on_its_rectangle_of_the_film(height, width, grid):
    """Patch (r, c) is rows [r·height/grid, (r+1)·height/grid) and the like columns, pixels on the edge by their share."""
    for r, c in [(0, 0), (grid - 1, grid - 1), (1, grid - 2), (grid // 2, 0)]:
        got = lay_over(unit(grid, r, c), grid, height, width)
        top, bottom = r * height / grid, (r + 1) * height / grid
        left, right = c * width / grid, (c + 1) * width / grid
        rows = np.array([max(0.0, min(y + 1, bottom) - max(y, top)) for y in range(height)])
        columns = np.array([max(0.0, min(x + 1, right) - max(x, left)) for x in range(width)])
        np.testing.assert_allclose(got, np.outer(rows, columns) * (grid / height) * (grid / width), atol=1e-7)
        assert got.sum(dtype=np.float64) == pytest.approx(1, abs=1e-5)
        away = got.copy()
        away[int(top) : int(np.ceil(bottom - 1e-9)), int(left) : int(np.ceil(right - 1e-9))] = 0
        assert away.max() < 1e-9


def test_patches_that_divide_the_film_evenly_are_flat_and_sharp():
    got = lay_over(unit(4, 1, 2), 4, 8, 12)
    expected = np.zeros((8, 12), np.float32)
    expected[2:4, 6:9] = 1 / 6
    np.testing.assert_allclose(got, expected, atol=1e-9)


@pytest.mark.parametrize(("height", "width"), [*SIZES, (2500, 2048)])
def test_the_sum_of_the_weights_is_kept(height, width):
    weights = np.random.default_rng(0).random(196)
    got = lay_over(weights, 14, height, width)
    assert (got.shape, got.dtype) == ((height, width), np.float32)
    assert got.sum(dtype=np.float64) == pytest.approx(weights.sum(), rel=1e-6)
    assert (got >= 0).all()


def test_equal_weights_give_an_even_map():
    got = lay_over(np.ones(196), 14, 129, 301)
    np.testing.assert_allclose(got, 196 / (129 * 301), rtol=1e-5)


def test_weights_of_another_grid_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        lay_over(np.ones(197), 14, 100, 100)


def test_a_tokens_weights_are_attention_times_gate_summed_over_the_layers():
    attention = np.array([[0.5, 0.3, 0.1, 0.0], [0.0, 0.2, 0.2, 0.5]])
    weights = patch_weights([token((0.5, -2.0), attention), token((0.0, 1.0), attention)])
    np.testing.assert_allclose(weights, 0.5 * attention[0] + 3 * attention[1], rtol=1e-6)


def test_a_map_is_laid_over_each_film_in_its_own_geometry_with_sum_1():
    attention = np.stack([unit(4, 1, 2), unit(4, 3, 0)]) * 0.25
    made = draft([token((0.5, 0.1), attention)], [(129, 301), (400, 100)], 4)
    for film, (height, width) in enumerate([(129, 301), (400, 100)]):
        got = heat_map(made, film, (0, 1))
        assert (got.shape, got.dtype) == ((height, width), np.float32)
        assert got.sum(dtype=np.float64) == pytest.approx(1, abs=1e-6)
        assert got[int(1.5 / 4 * height), int(2.5 / 4 * width)] == pytest.approx(got.max())
        assert got[int(3.5 / 4 * height), int(0.5 / 4 * width)] == pytest.approx(got.max() / 5, rel=1e-4)
        assert got[0, 0] == 0


def test_a_map_covers_the_tokens_asked_for_only():
    made = draft([token((1.0,), [unit(4, r, r)]) for r in range(4)], [(64, 64)], 4, layers=(0,))
    for r in range(4):
        np.testing.assert_allclose(heat_map(made, 0, (r, r + 1)), lay_over(unit(4, r, r), 4, 64, 64), atol=1e-9)
    both = heat_map(made, 0, (1, 3))
    assert both[24, 24] == pytest.approx(both[40, 40])
    assert both[8, 8] == both[56, 56] == 0


def test_a_map_of_a_large_film_has_sum_1_in_float32_too():
    attention = np.random.default_rng(1).random((1, 196)).astype(np.float32) / 200
    got = heat_map(draft([token((0.01,), attention)], [(3000, 2500)], 14, layers=(0,)), 0, (0, 1))
    assert got.sum(dtype=np.float64) == pytest.approx(1, abs=1e-6)
    assert got.sum() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    "tokens",
    [[token((0.0, 0.0), np.full((2, 16), 0.05))], [token((), np.zeros((0, 16)))], []],
    ids=["gates shut", "no hybrid layer", "no token"],
)
def test_there_is_no_map_where_the_model_did_not_look(tokens):
    made = draft(tokens, [(64, 64)], 4)
    assert heat_map(made, 0, (0, len(tokens))) is None


# ----------------------------------------------------------------------------------------------------------- pictures


def ramp(height: int, width: int) -> np.ndarray:
    return np.linspace(0, 1, height * width, dtype=np.float32).reshape(height, width)


def test_an_overlay_of_opacity_0_is_the_film():
    pixels = ramp(30, 50)
    plain = overlay(pixels, lay_over(unit(4, 1, 1), 4, 30, 50), opacity=0)
    assert (plain.shape, plain.dtype) == ((30, 50, 3), np.uint8)
    np.testing.assert_array_equal(plain, np.repeat(np.round(pixels * 255)[..., None], 3, 2))
    np.testing.assert_array_equal(plain, overlay(pixels, None, opacity=0.7))


def test_an_overlay_colours_what_was_looked_at_and_leaves_the_rest():
    pixels, heat = ramp(40, 40), lay_over(unit(4, 1, 2), 4, 40, 40)
    plain = overlay(pixels, None).astype(int)
    weak, strong = (np.abs(overlay(pixels, heat, o).astype(int) - plain).max(-1) for o in (0.3, 0.9))
    assert not strong[heat == 0].any()
    assert (strong[heat > 0] > weak[heat > 0]).mean() > 0.9


def test_pixels_beyond_black_and_white_are_clipped_in_an_overlay():
    pixels = np.array([[-0.5, 1.5]], np.float32)
    assert overlay(pixels, None).tolist() == [[[0, 0, 0], [255, 255, 255]]]


def drawn(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def test_the_gate_figure_shows_the_strength_of_every_gate():
    made = draft([token((0.1 * i, -0.3), np.zeros((2, 16)), f"t{i}$") for i in range(5)], [(64, 64)], 4)
    figure = gate_figure(made)
    (image,) = figure.axes[0].images
    np.testing.assert_allclose(image.get_array(), [[0, 0.1, 0.2, 0.3, 0.4], [0.3] * 5])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["layer 0", "layer 5"]
    assert drawn(figure).startswith(b"\x89PNG")


def test_the_gate_figure_of_a_sentence_shows_its_tokens_only():
    made = draft([token((0.1 * i, 0.0), np.zeros((2, 16))) for i in range(6)], [(64, 64)], 4)
    made = replace(made, sentences=(replace(made.sentences[0], tokens=(2, 5)),))
    (image,) = gate_figure(made, 0).axes[0].images
    np.testing.assert_allclose(image.get_array()[0], [0.2, 0.3, 0.4])


@pytest.mark.parametrize("count", [0, 1, 200])
def test_a_gate_figure_can_be_drawn_of_any_number_of_tokens(count):
    made = draft([token((0.2, 0.1), np.zeros((2, 16))) for _ in range(count)], [(64, 64)], 4)
    assert drawn(gate_figure(made)).startswith(b"\x89PNG")


def test_a_gate_figure_can_be_drawn_without_hybrid_layers():
    made = draft([token((), np.zeros((0, 16)))], [(64, 64)], 4, layers=())
    assert drawn(gate_figure(made)).startswith(b"\x89PNG")


def test_neighbouring_patches_meet_without_gap_or_overlap():
    maps = [lay_over(unit(4, 1, c), 4, 129, 301) for c in range(4)]
    assert all((a * b > 0).any(0).sum() <= 1 for a, b in pairwise(maps))  # at most one shared column
    rows = np.sum(maps, axis=0)[40]
    np.testing.assert_allclose(rows, rows[0], rtol=1e-5)
