"""The phantom is only worth something if what it says of itself is true."""

import cv2
import numpy as np
import pydicom
import pytest

from tests.phantom import LESIONS, SIDES, make_phantom, phantom_set

SIZES = [(256, 224), (128, 300), (301, 128)]


def test_the_same_seed_draws_the_same_film_and_another_seed_another():
    first, again, other = (make_phantom(seed, height=160, width=144) for seed in (5, 5, 6))
    assert np.array_equal(first.pixels, again.pixels)
    assert (first.lesion, first.box, first.findings) == (again.lesion, again.box, again.findings)
    assert not np.array_equal(first.pixels, other.pixels)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_lungs_are_darker_than_the_body_and_lie_on_both_sides(height, width):
    film = make_phantom(1, height=height, width=width, lesion=None)
    assert film.pixels.shape == film.lungs.shape == (height, width)
    assert film.pixels.dtype == np.float32
    assert film.pixels.min() >= 0
    assert film.pixels.max() <= 1
    assert film.lungs[:, : width // 2].mean() > 0.1
    assert film.lungs[:, width // 2 :].mean() > 0.1
    spine = film.pixels[height // 2 :, width // 2 - 4 : width // 2 + 4]
    assert film.pixels[film.lungs].mean() + 0.2 < spine.mean()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("lesion", [name for name in LESIONS if name])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_lesion_lies_in_its_box_in_the_lung_of_the_side_named(height, width, lesion, side):
    for seed in range(6):
        film = make_phantom(seed, height=height, width=width, lesion=lesion, side=side)
        healthy = make_phantom(seed, height=height, width=width, lesion=None)
        x, y, w, h = film.box
        assert min(x, y) >= 0
        assert x + w <= width
        assert y + h <= height
        assert (x + w / 2 < width / 2) == (side == "right")  # the image's left is the patient's right
        assert film.lungs[y : y + h, x : x + w].mean() > 0.3
        added = film.pixels - healthy.pixels  # the same anatomy, exposure and grain
        assert added[y : y + h, x : x + w].sum() > 0.7 * added.sum()
        assert added[y : y + h, x : x + w].max() > 0.1
        assert side in film.findings.split(". ")[0]
        assert side in film.impression.lower()


def test_a_film_without_lesion_names_no_side_and_no_box():
    film = make_phantom(2, height=128, width=128, lesion=None, side="left")
    assert (film.lesion, film.side, film.box) == (None, None, None)
    assert "nodule" not in film.findings
    assert "left" not in film.findings


def test_a_set_is_balanced_over_lesion_and_side():
    films = phantom_set(16, seed=4, height=128, width=128)
    pairs = [(film.lesion, film.side) for film in films]
    assert all(pairs.count((lesion, side)) == 2 for lesion in LESIONS if lesion for side in SIDES)
    assert pairs.count((None, None)) == 4
    assert len({film.pixels.tobytes() for film in films}) == 16


def test_written_files_hold_the_film(tmp_path):
    film = make_phantom(3, height=144, width=128)
    film.save_png(tmp_path / "eight.png")
    film.save_png16(tmp_path / "sixteen.png")
    eight, sixteen = (cv2.imread(str(tmp_path / name), cv2.IMREAD_UNCHANGED) for name in ("eight.png", "sixteen.png"))
    assert (eight.dtype, sixteen.dtype) == (np.uint8, np.uint16)
    assert np.abs(eight / 255 - film.pixels).max() < 1 / 500
    assert np.abs(sixteen / 65535 - film.pixels).max() < 1e-4
    for inverted in (False, True):
        film.save_dicom(tmp_path / "film.dcm", monochrome1=inverted, view="AP")
        ds = pydicom.dcmread(tmp_path / "film.dcm")
        stored = ds.pixel_array / 4095
        assert np.abs((1 - stored if inverted else stored) - film.pixels).max() < 1 / 4000
        assert (ds.PhotometricInterpretation, ds.ViewPosition) == ("MONOCHROME1" if inverted else "MONOCHROME2", "AP")
        assert str(ds.PatientName) == "Phantom"


def test_a_size_or_lesion_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="at least 128"):
        make_phantom(0, height=100, width=200)
    with pytest.raises(ValueError, match="unknown lesion"):
        make_phantom(0, lesion="fracture")
