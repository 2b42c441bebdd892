"""Films cropped, straightened and turned by their reader: exact where it can be, recorded always, and no corners where none are sure."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from emrrg_core.errors import FilmError
from emrrg_core.films.film import Film, pixel_digest
from emrrg_core.films.straighten import mirrored, straighten, suggested_corners, turned
from tests.phantom import make_phantom

BOX = ((0.25, 0.125), (0.75, 0.125), (0.75, 0.875), (0.25, 0.875))


def as_film(pixels: np.ndarray, **known) -> Film:
    pixels = np.ascontiguousarray(pixels, dtype=np.float32)
    made = Film("Film 1", pixels, None, "PA", ("PNG decoded, 8 bits",), pixel_digest(pixels), "PNG")
    return replace(made, **known)


@pytest.fixture(scope="module")
def chest() -> Film:
    return as_film(make_phantom(3).pixels, spacing=(0.2, 0.1))  # 512 × 448


def photo(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A photo of a film on a light box, a table or a dark screen: pixels (rows, columns), and its corners (4, 2) as shares."""
    rng = np.random.default_rng(seed)
    rows, columns = (960, 1280) if seed % 2 else (1280, 960)
    y, x = np.mgrid[0 : 1 : rows * 1j, 0 : 1 : columns * 1j]
    level = (0.02, 0.96, 0.4, 0.9, 0.06)[seed % 5]
    shade = rng.uniform(-0.12, 0.12, 2)
    back = level + shade[0] * (x - 0.5) + shade[1] * (y - 0.5)
    back += 0.02 * cv2.GaussianBlur(rng.standard_normal((rows, columns)), (0, 0), 3) * 6  # the table's grain
    film = 0.1 + 0.7 * make_phantom(seed + 50).pixels  # neither paper nor screen is ever quite black
    height, width = film.shape
    box = np.array([(0.2, 0.14), (0.8, 0.14), (0.8, 0.86), (0.2, 0.86)])
    if seed % 2:
        box = np.array([(0.28, 0.08), (0.72, 0.08), (0.72, 0.92), (0.28, 0.92)])
    turn = np.radians(rng.uniform(-9, 9))
    spin = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    size = np.array([columns, rows])
    corners = ((box - 0.5) * size @ spin) + size / 2 + rng.uniform(-0.035, 0.035, (4, 2)) * size
    source = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32) - 0.5
    transform = cv2.getPerspectiveTransform(source, (corners - 0.5).astype(np.float32))
    laid = cv2.warpPerspective(film, transform, (columns, rows))
    mask = cv2.warpPerspective(np.ones_like(film), transform, (columns, rows))
    seen = cv2.GaussianBlur(back * (1 - mask) + laid * mask, (0, 0), rng.uniform(0.6, 1.6))
    noisy = np.clip(seen + 0.015 * rng.standard_normal(seen.shape), 0, 1)
    packed = cv2.imencode(".jpg", np.rint(noisy * 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return cv2.imdecode(packed, cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255, corners / size


def error_of(found: tuple, corners: np.ndarray, shape: tuple[int, ...]) -> float:
    """Mean distance of corners, in shares of the picture's width."""
    apart = (np.array(found) - corners) * shape[::-1]
    return float(np.linalg.norm(apart, axis=1).mean()) / shape[1]


# --- cropping ------------------------------------------------------------------------------------------------------------


def test_corners_that_lie_straight_cut_whole_pixels_out_and_keep_spacing(chest):
    cut = straighten(chest, BOX)
    np.testing.assert_array_equal(cut.pixels, chest.pixels[64:448, 112:336])
    assert cut.spacing == chest.spacing
    assert cut.steps == (
        *chest.steps,
        "cropped by the reader to columns 112 to 335 and rows 64 to 447 of 448 × 512",
    )


def test_corners_may_come_in_any_order(chest):
    slanted = ((0.1, 0.1), (0.85, 0.15), (0.9, 0.9), (0.12, 0.8))
    expected = straighten(chest, slanted)
    for order in ((2, 0, 3, 1), (3, 2, 1, 0), (1, 3, 0, 2)):
        again = straighten(chest, [slanted[n] for n in order])
        assert again.sha256 == expected.sha256
        assert again.steps == expected.steps


def test_a_straightened_film_says_so_and_keeps_what_is_known_of_its_file(chest):
    whole = replace(chest, overridden=("colour",), annotated=True, format="DICOM")
    cut = straighten(whole, ((0.1, 0.1), (0.85, 0.15), (0.9, 0.9), (0.12, 0.8)))
    assert cut.straightened
    assert not whole.straightened
    assert cut.source_sha256 == whole.sha256
    assert cut.sha256 == pixel_digest(cut.pixels) != whole.sha256
    assert cut.spacing is None
    height, width = cut.pixels.shape
    assert cut.steps[len(whole.steps) :] == (
        "cropped and straightened by the reader to 4 corners: (0.1000, 0.1000), (0.8500, 0.1500), (0.9000, 0.9000), "
        f"(0.1200, 0.8000); now {width} × {height} pixels",
        "spacing left out: it is not true of a straightened picture",
    )
    assert (cut.name, cut.view, cut.format, cut.overridden, cut.annotated) == (
        "Film 1",
        "PA",
        "DICOM",
        ("colour",),
        True,
    )
    assert (cut.pixels.dtype, cut.pixels.min() >= 0, cut.pixels.max() <= 1) == (np.float32, True, True)
    twice = turned(cut, 1)
    assert twice.source_sha256 == whole.sha256


def test_the_whole_picture_is_the_film_itself(chest):
    assert straighten(chest, ((0, 0), (1, 0), (1, 1), (0, 1))) is chest


@pytest.mark.parametrize("seed", range(4))
def test_a_film_straightened_out_of_a_photo_is_that_film(seed):
    """Warped onto a photo and back, it differs from the film by blur and noise alone."""
    pixels, corners = photo(seed)
    back = straighten(as_film(pixels), corners.tolist()).pixels
    film = 0.1 + 0.7 * make_phantom(seed + 50).pixels
    film = cv2.resize(film, back.shape[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(back - film)[8:-8, 8:-8].mean() < 0.02
    assert np.corrcoef(back[8:-8, 8:-8].ravel(), film[8:-8, 8:-8].ravel())[0, 1] > 0.99


def test_a_photo_is_never_enlarged(chest):
    diamond = ((0.5, 0.02), (0.98, 0.5), (0.5, 0.98), (0.02, 0.5))
    wide = as_film(np.tile(chest.pixels[:256], (1, 4)))
    made = straighten(wide, diamond)
    assert made.pixels.size <= wide.pixels.size
    height, width = straighten(chest, diamond).pixels.shape
    assert max(height, width) <= np.hypot(512, 448) / 2 + 1


@pytest.mark.parametrize(
    ("corners", "words"),
    [
        (((0.1, 0.1), (0.9, 0.1), (0.5, 0.2), (0.5, 0.9)), "do not span"),  # one lies within the other three
        (((0.1, 0.1), (0.5, 0.1), (0.9, 0.1), (0.5, 0.9)), "do not span"),  # three in a row
        (((0.1, 0.1), (0.1, 0.1), (0.9, 0.9), (0.1, 0.9)), "do not span"),
        (((0.1, 0.1), (1.1, 0.1), (0.9, 0.9), (0.1, 0.9)), "within the picture"),
        (((0.1, float("nan")), (0.9, 0.1), (0.9, 0.9), (0.1, 0.9)), "within the picture"),
        (((0.4, 0.4), (0.5, 0.4), (0.5, 0.5), (0.4, 0.5)), "pixels would be left"),
        (((0.4, 0.41), (0.5, 0.4), (0.5, 0.5), (0.4, 0.5)), "pixels would be left"),
        (((0.45, 0.1), (0.55, 0.1), (0.95, 0.9), (0.05, 0.9)), "too flat an angle"),
    ],
)
def test_corners_that_make_no_film_are_refused_in_words(chest, corners, words):
    with pytest.raises(FilmError, match=words):
        straighten(chest, corners)


def test_a_blank_part_is_refused(chest):
    pixels = chest.pixels.copy()
    pixels[:, :224] = 0.5
    with pytest.raises(FilmError) as caught:
        straighten(as_film(pixels), ((0, 0), (0.5, 0), (0.5, 1), (0, 1)))
    assert caught.value.rule == "blank"


@pytest.mark.parametrize("corners", [(), BOX[:3], (*BOX, (0.5, 0.5)), (1, 2, 3, 4)])
def test_anything_but_four_points_is_a_mistake(chest, corners):
    with pytest.raises(ValueError, match="four points"):
        straighten(chest, corners)


# --- turning -------------------------------------------------------------------------------------------------------------


def test_turning_is_exact_and_turns_spacing_with_it(chest):
    once = turned(chest, 1)
    np.testing.assert_array_equal(
        once.pixels[0], chest.pixels[::-1, 0]
    )  # the left side from below is the upper side now
    assert once.spacing == (0.1, 0.2)
    assert once.steps[-1] == "turned by 90° clockwise by the reader"
    assert turned(chest, 2).spacing == chest.spacing
    around = turned(turned(turned(chest, 1), 2), 1)
    np.testing.assert_array_equal(around.pixels, chest.pixels)
    np.testing.assert_array_equal(turned(chest, 3).pixels, turned(turned(chest, 1), 2).pixels)
    assert around.source_sha256 == chest.sha256
    assert around.pixels.flags.c_contiguous


@pytest.mark.parametrize("quarter", [0, 4, -1])
def test_only_quarters_turn(chest, quarter):
    with pytest.raises(ValueError, match="quarters"):
        turned(chest, quarter)


def test_mirroring_exchanges_left_and_right(chest):
    other = mirrored(chest)
    np.testing.assert_array_equal(other.pixels, chest.pixels[:, ::-1])
    assert (other.spacing, other.steps[-1]) == (chest.spacing, "mirrored left to right by the reader")
    assert other.straightened


# --- suggested corners ---------------------------------------------------------------------------------------------------


def test_corners_are_found_in_most_photos_and_are_right_wherever_they_are_given():
    errors = []
    for seed in range(10):
        pixels, corners = photo(seed)
        found = suggested_corners(as_film(pixels))
        errors.append(None if found is None else error_of(found, corners, pixels.shape))
    given = [error for error in errors if error is not None]
    assert sum(error < 0.02 for error in given) >= 8, errors
    assert max(given) < 0.02, errors


def test_the_suggestion_can_be_given_to_straighten():
    pixels, _ = photo(1)
    found = suggested_corners(as_film(pixels))
    assert found is not None
    assert straighten(as_film(pixels), found).straightened


def test_a_film_alone_gets_no_suggestion():
    assert [suggested_corners(as_film(make_phantom(seed).pixels)) for seed in range(5)] == [None] * 5


def test_a_picture_without_straight_sides_gets_no_suggestion():
    rng = np.random.default_rng(0)
    clouds = cv2.GaussianBlur(rng.standard_normal((500, 400)), (0, 0), 12)
    ellipse = cv2.ellipse(np.zeros((500, 400)), (200, 250), (150, 200), 0, 0, 360, 1.0, -1)
    for pixels in (np.clip(0.5 + 8 * clouds, 0, 1), rng.random((500, 400)), ellipse, np.full((500, 400), 0.5)):
        assert suggested_corners(as_film(pixels)) is None
