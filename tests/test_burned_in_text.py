"""Burned-in text: what may name a patient is found before it leaves; the marker that every film carries is left in peace."""

import time
from dataclasses import replace

import numpy as np
import pytest
from pydicom.data import get_testdata_file

from emrrg_core import Film, read_film
from emrrg_core.films.burned_in_text import burned_in, burned_in_warning, text_lines
from tests.phantom import make_phantom
from train.burned_in_text import CONTRASTS, FONTS, identity, written

WORDS = ["SPECIMEN, ADA", "04.07.1931", "ID 20770184"]


@pytest.fixture(scope="module")
def chest() -> np.ndarray:
    """A drawn chest as a small detector would give it: (1024, 896), with grain."""
    grain = np.random.default_rng(0).normal(size=(1024, 896)) * 0.01
    return np.clip(make_phantom(3, height=1024, width=896, lesion=None).pixels + grain, 0, 1).astype(np.float32)


def film(pixels: np.ndarray, **known) -> Film:
    return replace(Film("Film 1", pixels, None, None, (), "0", "PNG"), **known)


@pytest.mark.parametrize("font", FONTS)
def test_a_name_a_date_and_a_number_are_found_where_they_stand(chest, font):
    lettered, place = written(chest, WORDS, 18, 0.5, font, np.random.default_rng(1))
    boxes = burned_in(film(lettered))
    assert boxes
    for box in boxes:
        middle = box.x + box.width / 2, box.y + box.height / 2
        assert place.x <= middle[0] <= place.x + place.width
        assert place.y <= middle[1] <= place.y + place.height
    assert sum(box.width * box.height for box in boxes) > 0.2 * place.width * place.height
    assert [box.y for box in boxes] == sorted(box.y for box in boxes)


@pytest.mark.parametrize("contrast", CONTRASTS)
@pytest.mark.parametrize("cap", [12, 24, 48])
def test_letters_of_any_height_and_contrast_are_found(chest, cap, contrast):
    lettered, _ = written(chest, WORDS, cap, contrast, "DejaVuSans", np.random.default_rng(cap))
    assert burned_in(film(lettered))


def test_text_that_runs_up_the_film_is_found(chest):
    lettered, place = written(
        np.ascontiguousarray(np.rot90(chest)), WORDS, 20, 1.0, "DejaVuSans", np.random.default_rng(2)
    )
    for turns in (1, 3):
        upright = np.ascontiguousarray(np.rot90(lettered, turns))
        boxes = burned_in(film(upright))
        assert boxes
        assert all(box.height > box.width for box in boxes)
    assert place.width > place.height


@pytest.mark.parametrize("marker", ["L", "R", "AP", "AP ERECT", "PORTABLE"])
@pytest.mark.parametrize("font", ["DejaVuSans-Bold", "hershey"])
def test_a_marker_raises_no_alarm(chest, marker, font):
    marked, _ = written(chest, [marker], 40, 1.0, font, np.random.default_rng(3))
    assert burned_in(film(marked)) == ()
    assert burned_in_warning(film(marked)) is None


def test_a_film_without_letters_has_no_lines(chest):
    assert text_lines(chest) == []
    assert text_lines(np.zeros((300, 260), np.float32)) == []
    noise = np.random.default_rng(4).random((900, 800)).astype(np.float32)
    assert burned_in(film(noise)) == ()


def test_a_real_chest_film_raises_no_alarm():
    assert burned_in(read_film(get_testdata_file("RG1_UNCR.dcm", download=False))) == ()


def test_the_warning_says_what_to_do_and_repeats_no_word_of_the_film(chest):
    lettered, _ = written(chest, WORDS, 20, 1.0, "DejaVuSans", np.random.default_rng(5))
    words = burned_in_warning(film(lettered))
    assert "look before you export" in words
    assert words.startswith("Film 1 ")
    assert "SPECIMEN" not in words


def test_the_headers_word_is_enough(chest):
    assert "header" in burned_in_warning(film(chest, annotated=True))
    assert burned_in_warning(film(chest, annotated=False)) is None
    lettered, _ = written(chest, WORDS, 20, 1.0, "DejaVuSans", np.random.default_rng(5))
    assert burned_in_warning(film(lettered, annotated=False)), "headers that say NO are wrong often enough"


def test_a_large_film_takes_less_than_a_second_of_one_core():
    rng = np.random.default_rng(6)
    large = np.clip(make_phantom(5, height=3000, width=3000).pixels + rng.normal(size=(3000, 3000)) * 0.02, 0, 1)
    lettered, _ = written(large.astype(np.float32), WORDS, 40, 0.5, "DejaVuSans", rng)
    begun = time.process_time()
    assert burned_in(film(lettered))
    assert time.process_time() - begun < 1


def test_made_up_identities_are_never_shorter_than_what_is_warned_about():
    rng = np.random.default_rng(7)
    assert min(sum(c.isalnum() for line in identity(rng) for c in line) for _ in range(300)) >= 10
