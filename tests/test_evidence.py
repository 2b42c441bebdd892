"""Evidence lands where the model looked: exactly on the patch's rectangle of the original film, and nothing is lost."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure

from emrrg_core.data.studies import normalise
from emrrg_core.explain.faithfulness import (
    WORTH,
    DependenceTest,
    Why,
    drawn_chest,
    gate_strength,
    highlighted,
    masked,
    places,
    stand_ins,
)
from emrrg_core.explain.heat_map import (
    gate_figure,
    heat_map,
    lay_over,
    look_on_findings,
    no_map,
    overlay,
    patch_weights,
)
from emrrg_core.explain.likelihood import likelihood
from emrrg_core.films.film import model_input
from emrrg_core.model.finding_tokens import NAMES, Finding, Presence
from emrrg_core.model.writing import Token
from emrrg_core.report.draft import Draft, FilmRecord, Sentence

SIZES = [(224, 224), (280, 140), (129, 301), (301, 129), (14, 14), (20, 15), (9, 30), (700, 500)]


def unit(grid: int, r: int, c: int) -> np.ndarray:
    weights = np.zeros(grid * grid)
    weights[r * grid + c] = 1.0
    return weights


def token(gates: tuple[float, ...], attention: Sequence | np.ndarray, text: str = "a") -> Token:
    patches, told = attention if isinstance(attention, tuple) else (attention, np.zeros((len(gates), 0)))
    return Token(1, text, -0.1, gates, np.asarray(patches, np.float32), np.asarray(told, np.float32))


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
    made = draft([token((0.5, -2.0), attention), token((0.0, 1.0), attention)], [(8, 8)], 2)
    np.testing.assert_allclose(patch_weights(made, (0, 2)), 0.5 * attention[0] + 3 * attention[1], rtol=1e-6)


def attending(patches: list[float], **findings: float) -> tuple[list[list[float]], list[list[float]]]:
    """Attention on the patches (1, g²) and on the finding tokens (1, s)."""
    return [patches], [[findings.get(name, 0.0) for name in NAMES]]


def reading(made: Draft, **maps: tuple[list[float], ...]) -> Draft:
    """The draft with these findings read, each with its map of every film."""
    read = [
        Finding(name, Presence.PRESENT, 0.9, 0.5, maps=tuple(np.array(m, np.float32) for m in mine))
        for name, mine in maps.items()
    ]
    return replace(made, read=tuple(read))


def test_attention_on_a_finding_is_carried_to_the_patches_by_that_findings_map_of_that_film():
    attention = attending([0.1, 0.2, 0.0, 0.0], nodule=0.4, effusion=0.2, heart=0.1)
    made = draft([token((-0.5,), attention)], [(8, 8), (8, 8)], 2, layers=(3,))
    # the heart is not assessed: what is looked at in its token is nowhere in the film
    made = reading(made, effusion=([0, 0, 0, 1], [0, 0, 1, 0]), nodule=([1, 0, 0, 0], [0.5, 0.5, 0, 0]))
    np.testing.assert_allclose(patch_weights(made, (0, 1), 0), 0.5 * np.array([0.5, 0.2, 0, 0.2]), rtol=1e-6)
    np.testing.assert_allclose(patch_weights(made, (0, 1), 1), 0.5 * np.array([0.3, 0.4, 0.2, 0]), rtol=1e-6)
    heat = heat_map(made, 1, (0, 1))
    assert heat.sum() == pytest.approx(1)
    assert heat[0, 7] * 16 == pytest.approx(0.4 / 0.9)


def test_sentences_that_look_at_different_findings_have_different_maps():
    tokens = [token((1.0,), attending([0.05] * 4, **{name: 0.6})) for name in ("nodule", "effusion")]
    made = reading(draft(tokens, [(8, 8)], 2, layers=(3,)), nodule=([1, 0, 0, 0],), effusion=([0, 0, 0, 1],))
    one, other = (heat_map(made, 0, (i, i + 1)) for i in range(2))
    assert one.argmax() == 0
    assert other.argmax() > 32
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] < 0


def sentence(text: str, *findings: str) -> Sentence:
    return Sentence(text, "findings", 0, len(text), (0, 1), 0.9, (1.0,), findings)


def test_the_map_of_a_sentence_is_of_the_findings_that_it_speaks_of_and_that_of_a_word_of_all():
    tokens = [token((0.5,), attending([0.05, 0, 0, 0.05], nodule=0.6, effusion=0.3))]
    made = reading(draft(tokens, [(8, 8)], 2, layers=(3,)), nodule=([0, 1, 0, 0],), effusion=([0, 0, 1, 0],))
    one, both = sentence("No effusion.", "effusion"), sentence("A nodule, no effusion.", "nodule", "effusion")
    np.testing.assert_allclose(patch_weights(made, one), [0.025, 0, 0.15, 0.025], rtol=1e-6)
    assert look_on_findings(made, one) == pytest.approx(0.4)
    np.testing.assert_allclose(patch_weights(made, both), [0.025, 0.3, 0.15, 0.025], rtol=1e-6)
    assert look_on_findings(made, both) == pytest.approx(1)
    whole = sentence("No acute disease.", "abnormal")
    for what in ((0, 1), whole, sentence("The film is rotated.")):  # speak of no single finding
        np.testing.assert_allclose(patch_weights(made, what), [0.025, 0.3, 0.15, 0.025], rtol=1e-6)
    assert look_on_findings(made, whole) is None
    # a finding that was not read has no token that could have been looked at
    np.testing.assert_allclose(patch_weights(made, sentence("No fracture.", "fracture")), patch_weights(made, (0, 1)))


def test_a_sentence_that_hardly_looks_at_its_finding_has_no_map_and_says_so():
    tokens = [token((0.5,), attending([0.01, 0, 0, 0], nodule=0.92, effusion=0.07))]
    made = reading(draft(tokens, [(8, 8)], 2, layers=(3,)), nodule=([0, 1, 0, 0],), effusion=([0, 0, 1, 0],))
    denial = sentence("No effusion.", "effusion")
    assert heat_map(made, 0, denial) is None
    assert (
        no_map(made, denial)
        == "No map: only 8% of what the model looked at while it wrote this was about this finding."
    )
    assert heat_map(made, 0, (0, 1)) is not None
    shut = reading(
        draft([token((0.0,), attending([0.2] * 4, effusion=0.2))], [(8, 8)], 2, layers=(3,)), effusion=([1, 0, 0, 0],)
    )
    assert heat_map(shut, 0, denial) is None
    assert "every gate was shut" in no_map(shut, denial)


def test_a_finding_that_is_looked_at_without_any_map_leaves_the_patches_as_they_are():
    made = draft([token((1.0,), attending([0.1, 0.2, 0.3, 0.0], nodule=0.4))], [(8, 8)], 2, layers=(3,))
    for read in (None, (Finding("nodule", Presence.OPEN, 0.4, 0.5),)):
        np.testing.assert_allclose(patch_weights(replace(made, read=read), (0, 1)), [0.1, 0.2, 0.3, 0.0], rtol=1e-6)


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


# -------------------------------------------------------------------------------------------------------------- places


def blob(grid: int, *patches: tuple[int, int]) -> np.ndarray:
    region = np.zeros((grid, grid), bool)
    region[tuple(zip(*patches, strict=True))] = True
    return region.ravel()


CORNER = blob(14, *[(r, c) for r in range(4) for c in range(4)], (4, 0), (5, 0), (6, 0))  # 19 patches, like a P
WIDE = blob(14, *[(5, c) for c in range(14)])


def shapes(region: np.ndarray) -> set[bytes]:
    """The region in the upper left corner, in all eight ways to lay it."""
    grid = round(len(region) ** 0.5)
    found = set()
    for side in (region.reshape(grid, grid), region.reshape(grid, grid)[::-1]):
        for quarters in range(4):
            turned = np.rot90(side, quarters)
            rows, columns = np.flatnonzero(turned.any(1)), np.flatnonzero(turned.any(0))
            found.add(np.roll(turned, (-rows[0], -columns[0]), (0, 1)).tobytes())
    return found


def test_the_highlighted_place_is_the_top_tenth_of_the_patches():
    weights = np.random.default_rng(0).permutation(196).astype(float)
    assert sorted(weights[highlighted(weights)]) == list(range(177, 196))
    assert highlighted(np.array([0.1, 0.4, 0.4, 0.1])).tolist() == [False, True, False, False]


def test_random_places_are_the_same_shape_elsewhere_on_the_film():
    found, wrapped = places(CORNER, 30, np.random.default_rng(0))
    assert (len(found), wrapped) == (30, 0)
    assert len({place.tobytes() for place in found}) == 30
    assert all((place & CORNER).sum() <= 9 for place in found)
    laid = shapes(CORNER)
    assert all(shapes(place) == laid for place in found)


def test_a_shape_as_wide_as_the_film_is_turned_and_moved_before_it_is_wrapped():
    found, wrapped = places(WIDE, 27, np.random.default_rng(0))
    assert (len(found), wrapped) == (27, 0)  # 13 other rows and 14 columns
    everywhere = blob(14, *[(0, c) for c in range(14)], *[(r, 0) for r in range(1, 14)], (7, 7))
    found, wrapped = places(everywhere, 19, np.random.default_rng(0))
    assert (len(found), wrapped) == (19, 16)  # three quarter turns fit, that is all
    assert all(place.sum() == everywhere.sum() and 2 * (place & everywhere).sum() <= place.sum() for place in found)
    assert not any(shapes(place) == shapes(everywhere) for place in found[3:])


def test_there_are_fewer_places_than_asked_for_only_where_there_are_no_more():
    found, wrapped = places(blob(4, (1, 2)), 19, np.random.default_rng(0))
    assert (len(found), wrapped) == (15, 0)
    assert (np.sum(found, axis=0) == ~blob(4, (1, 2))).all()


def test_a_seed_repeats_the_places_and_another_changes_them():
    one, again, other = (places(CORNER, 8, np.random.default_rng(seed))[0] for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_masked_patches_are_filled_from_what_surrounds_them_and_the_rest_stays():
    """A disc in a dark lung is gone, and no grey square stands there in its place: that would be a finding itself."""
    grey = np.full((2, 64, 64), 40.0)
    grey[:, :, 32:] = 200  # so that the film's mean is far from its lung
    row, column = np.mgrid[:64, :64]
    grey[0][(row - 24) ** 2 + (column - 8) ** 2 < 36] = 255
    films = normalise(grey)
    got = masked(films, blob(4, (1, 0)))
    inside = np.zeros((64, 64), bool)
    inside[16:32, :16] = True
    assert got.shape == films.shape
    assert got.dtype == np.float32
    assert (got[..., ~inside] == films[..., ~inside]).all()
    np.testing.assert_allclose(got, normalise(np.where(inside, 40.0, grey)), atol=0.1)  # some five of 255 levels


# ------------------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (0.0, "as likely"),
        (-0.004, "as likely"),
        (0.02, "1.02 times less likely"),
        (math.log(1.4), "1.4 times less likely"),
        (-math.log(1.2), "1.2 times more likely"),
        (math.log(9.96), "10 times less likely"),
        (-math.log(12.4), "12 times more likely"),
        (math.log(1001), "more than 1000 times less likely"),
        (-5000.0, "more than 1000 times more likely"),
    ],
)
def test_nats_are_told_as_how_many_times_less_or_more_likely(lost, said):
    assert likelihood(lost) == said
    assert likelihood(lost, "×") == said.replace("times", "×")


def test_no_verdict_speaks_of_nats_or_layers():
    verdicts = [one.verdict for one in (why(2.1, *[0.3] * 19), why(-0.2, *[0.1] * 19))]
    verdicts += [DependenceTest(*[lost] * 3, 0.1, 40).verdict for lost in (0.0, 0.4, -0.4)]
    assert not re.search(r"\bnats?\b|layer|token", " ".join(verdicts))


def why(drop: float, *random: float) -> Why:
    return Why(0, -9.0, drop, random, (5,), 0)


def test_a_place_matters_when_it_costs_more_than_nearly_all_others_and_enough():
    assert why(2.0, *[0.3] * 19).matters
    assert why(2.0, *[0.3] * 19, 2.5).matters  # one of 20 may
    assert not why(2.0, *[0.3] * 18, 2.0).matters  # one of 19 costs as much
    assert not why(0.9 * WORTH, *[0.0] * 19).matters  # first, but by nothing worth the name
    assert not why(-1.0, *[-2.0] * 19).matters  # first, but the sentence is likelier without it
    assert why(2.0, *[0.3] * 18, 2.0).p == pytest.approx(2 / 20)
    assert why(2.0, *[0.3] * 19).p == pytest.approx(1 / 20)


def test_the_verdict_on_a_sentence_says_the_numbers_and_what_they_mean():
    assert why(math.log(1.5), *[0.05] * 19, 0.6).verdict == (
        "This place matters for this sentence: with it hidden, the sentence is 1.5 times less likely; with other places hidden, 1.08 times "
        "less likely on average (1 of 20 cost it as much)."
    )
    assert why(2.1, *[0.0] * 19).verdict.endswith(
        "with other places hidden, as likely on average (none of 19 cost it as much)."
    )
    assert why(-0.2, *[-0.1] * 18, -0.4).verdict == (
        "The map does not explain this sentence: with its place hidden, the sentence is 1.2 times more likely; with other places hidden, 1.1 "
        "times more likely on average (18 of 19 cost it as much)."
    )


def test_the_verdict_says_what_becomes_of_the_findings_probability():
    about = replace(why(2.1, *[0.3] * 19), finding="effusion", probability=0.91, hidden=0.42, elsewhere=0.9)
    assert about.verdict.endswith(
        "The probability of pleural effusion goes from 91% to 42% (90% with other places hidden)."
    )
    assert "probability" not in why(2.1, *[0.3] * 19).verdict
    assert about.to_dict()["hidden_probability"] == 0.42


def test_the_chart_of_a_sentence_has_its_place_the_mean_and_every_random_place():
    bars = why(2.0, 0.1, 0.5, 0.3).bars
    assert [bar.label for bar in bars[:2]] == ["Highlighted place", "Random places, mean"]
    assert [bar.nats for bar in bars] == pytest.approx([2.0, 0.3, 0.5, 0.3, 0.1])


def test_a_text_that_moves_little_is_said_not_to_depend_on_its_film():
    still, moving = DependenceTest(0.002, -0.001, 0.01, 0.1, 40), DependenceTest(0.4, 0.3, 0.2, 0.1, 40)
    assert (still.looks, moving.looks) == (False, True)
    assert "barely depends on its film" in still.verdict
    assert "on average as likely." in still.verdict
    assert "on average 1.2 times more likely." in DependenceTest(-0.1, -0.3, -0.2, 0.1, 40).verdict
    assert "Do not take it for a reading of this film" in still.verdict
    assert (
        moving.verdict
        == "This text depends on its film: without it, each word or piece of one is on average 1.3 times less likely."
    )
    assert moving.moved == pytest.approx(0.3)
    assert [bar.nats for bar in moving.bars] == [0.4, 0.3, 0.2]
    assert DependenceTest(*[still.threshold] * 3, 0.1, 40).looks


def test_gates_are_as_strong_as_they_are_far_from_shut():
    assert gate_strength([token((0.5, -0.1), np.zeros((2, 4))), token((0.2, 0.0), np.zeros((2, 4)))]) == pytest.approx(
        0.2
    )
    assert gate_strength([]) == gate_strength([token((), np.zeros((0, 4)))]) == 0


# ------------------------------------------------------------------------------------------------------------ stand-ins


def test_the_stand_ins_are_an_even_film_noise_and_a_chest():
    blank, noise, chest = stand_ins(64, np.random.default_rng(0))
    assert np.ptp(blank, axis=(1, 2)) == pytest.approx(0, abs=1e-5)
    assert noise.std() > 4 * np.abs(np.diff(chest, axis=2)).std()  # a chest is smooth, noise is not
    assert blank.shape == chest.shape == (3, 64, 64)
    again, other = (stand_ins(64, np.random.default_rng(seed)) for seed in (0, 1))
    assert np.array_equal(again, [blank, noise, chest])
    assert not np.array_equal(other[2], chest)


@pytest.mark.parametrize("seed", range(5))
def test_a_drawn_chest_has_dark_lungs_beside_a_bright_middle_over_a_bright_belly(seed):
    chest = drawn_chest(100, np.random.default_rng(seed))
    assert model_input(chest, 32).shape == (3, 32, 32)
    lungs = np.stack([chest[35:50, 26:36], chest[35:50, 64:74]]).mean((1, 2))
    middle, belly, heart = chest[20:50, 48:53].mean(), chest[90:, 30:70].mean(), chest[58:68, 54:62].mean()
    assert lungs.max() + 0.2 < min(middle, belly, heart)
