"""Several films of a study: stitched or averaged, which are read, and whose map is whose."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emrrg_core import DecodeConfig, Draft, Film, FilmError, Reporter, heat_map, no_map
from emrrg_core.__main__ import main
from emrrg_core.config import StudyConfig, Views
from emrrg_core.errors import ConfigError
from emrrg_core.explain.heat_map import lay_over, patch_weights
from emrrg_core.films.film import model_input, pixel_digest
from emrrg_core.films.views import GAP, in_order, stitch
from tests.phantom import make_phantom

SHORT = DecodeConfig(max_new_tokens=12)
STITCH, AVERAGE = StudyConfig(views=Views.STITCH), StudyConfig()
SIZES = [(300, 200), (260, 340), (400, 260), (280, 280)]


def film_of(pixels: np.ndarray, view: str | None = None, name: str = "Film 1") -> Film:
    pixels = pixels.astype(np.float32)
    return Film(name, pixels, None, view, (), pixel_digest(pixels), "PNG")


@pytest.fixture(scope="module")
def films() -> list[Film]:
    """Two frontal views and a lateral one."""
    made = [make_phantom(seed, height=140 + 20 * seed, width=190).pixels for seed in range(3)]
    return [
        film_of(p, view, f"Film {n}") for n, (p, view) in enumerate(zip(made, ("AP", "PA", "LATERAL"), strict=True), 1)
    ]


@pytest.fixture(scope="module")
def reporter(reading_checkpoint) -> Reporter:
    return Reporter.load(reading_checkpoint, download=False)


# ---------------------------------------------------------------------------------------------------------- the canvas


def test_films_stand_side_by_side_in_the_order_of_their_views_and_none_is_resized():
    shades = (0.2, 0.4, 0.6, 0.8)
    films = [np.full(size, shade, np.float32) for size, shade in zip(SIZES, shades, strict=True)]
    found = stitch(films, ["LATERAL", "AP", None, "PA"])
    height, width = found.pixels.shape
    assert (height, width) == (400, sum(w for _, w in SIZES) + 3 * GAP)
    left = 0
    for number in (3, 1, 2, 0):  # PA, AP, the unknown one, lateral
        rows, columns = SIZES[number]
        assert (found.pixels[:rows, left : left + columns] == films[number]).all()
        assert (found.pixels[rows:, left : left + columns] == 0).all()
        assert found.places[number] == (0.0, left / width, rows / height, (left + columns) / width)
        left += columns
        assert (found.pixels[:, left : left + GAP] == 0).all()
        left += GAP
    assert in_order(["LL", "PA", "LL"]) == [1, 0, 2]
    with pytest.raises(ValueError, match="no film"):
        stitch([])


@pytest.mark.parametrize("marked", range(4))
def test_a_mark_on_one_of_four_films_is_found_at_its_place_on_that_film_and_on_no_other(marked):
    grid = 28
    films = [np.zeros(size, np.float32) for size in SIZES]
    row, column = (np.array(SIZES[marked]) * (0.3, 0.7)).astype(int)
    films[marked][row - 9 : row + 9, column - 9 : column + 9] = 1.0
    found = stitch(films, [None, "LATERAL", "PA", "AP"])
    black = model_input(np.zeros_like(found.pixels), 448)
    seen = (model_input(found.pixels, 448) - black)[0].reshape(grid, 16, grid, 16).mean((1, 3)).ravel()
    maps = [lay_over(seen, grid, *size, place) for size, place in zip(SIZES, found.places, strict=True)]
    inside = [heat.sum() / sum(m.sum() for m in maps) for heat in maps]
    assert inside[marked] > 0.99
    middle = np.array(np.unravel_index(maps[marked].argmax(), SIZES[marked]))
    patch = np.array(found.pixels.shape) / grid
    assert (np.abs(middle - (row, column)) <= patch).all()
    weighed = np.indices(SIZES[marked]).reshape(2, -1) @ maps[marked].ravel() / maps[marked].sum()
    assert (np.abs(weighed - (row, column)) <= 0.5 * patch + 1).all()


def test_all_maps_of_a_canvas_hold_what_lies_on_its_films():
    places = stitch([np.zeros(size, np.float32) for size in SIZES]).places
    even = np.full(14 * 14, 1 / 14**2)
    on_films = [lay_over(even, 14, *size, place).sum() for size, place in zip(SIZES, places, strict=True)]
    areas = [(bottom - top) * (right - left) for top, left, bottom, right in places]
    assert on_films == pytest.approx(areas, rel=1e-4)


# ----------------------------------------------------------------------------------------------------------- the draft


def test_a_stitched_draft_is_that_of_the_canvas(reporter, films):
    two = films[:2]
    draft = reporter.draft(two, SHORT, STITCH)
    canvas = stitch([f.pixels for f in two], [f.view for f in two]).pixels
    alone = reporter.draft([film_of(canvas)], SHORT)
    assert draft.text() == alone.text()
    assert [t.log_prob for t in draft.tokens] == pytest.approx([t.log_prob for t in alone.tokens], abs=1e-5)
    assert draft.films[1].place[1] == 0.0 < draft.films[0].place[1]  # PA at the left, though it was given second
    assert any("stitched side by side" in words for words in draft.warnings)
    assert patch_weights(draft, (0, 4), 0) == pytest.approx(patch_weights(draft, (0, 4), 1))
    maps = [heat_map(draft, n, (0, 4)) for n in (0, 1)]
    assert [m.shape for m in maps] == [f.pixels.shape for f in two]
    assert 0.3 < sum(m.sum() for m in maps) <= 1 + 1e-4
    averaged = reporter.draft(two, SHORT, AVERAGE)
    assert [f.place for f in averaged.films] == [None, None]
    assert [t.log_prob for t in averaged.tokens] != pytest.approx([t.log_prob for t in draft.tokens], abs=1e-5)


def test_what_is_asked_of_a_stitched_draft_is_asked_of_the_canvas_whatever_the_order(reporter, films):
    draft = reporter.draft(films[:2], SHORT, STITCH)
    read = [reporter.rescore(some, draft, [f.pixels for f in some]).before for some in (films[:2], films[1::-1])]
    assert read[0] == pytest.approx(read[1], abs=1e-6)
    own = [sum(t.log_prob for t in draft.tokens[slice(*s.tokens)] if not t.forced) for s in draft.sentences]
    assert read[0] == pytest.approx(own, abs=1e-3)
    changed = reporter.rescore(films[:2], draft, [films[0].pixels, 1 - films[1].pixels])
    assert changed.after != pytest.approx(changed.before, abs=1e-4)
    assert reporter.looking(films[1::-1], draft) == reporter.looking(films[:2], draft)
    again = Draft.load(*draft.dump())
    assert again.films == draft.films
    for finding in draft.read:
        assert [m.shape for m in finding.maps] == [(draft.grid**2,)] * 2


# ------------------------------------------------------------------------------------------------------ lateral films


@pytest.mark.parametrize("study", [AVERAGE, STITCH])
def test_a_lateral_film_changes_no_word_unless_it_is_asked_for(reporter, films, study):
    beside = reporter.draft([films[0], films[2]], SHORT, study)
    alone = reporter.draft(films[:1], SHORT, study)
    assert beside.text() == alone.text()
    assert [t.log_prob for t in beside.tokens] == pytest.approx([t.log_prob for t in alone.tokens], abs=1e-5)
    assert [f.read for f in beside.films] == [True, False]
    assert [f.place for f in beside.films] == [None, None]
    assert any("Film 3 is a lateral view: it is shown, and was not read" in words for words in beside.warnings)
    assert heat_map(beside, 1, (0, 4)) is None
    assert "not read" in no_map(beside, (0, 4), 1)
    assert heat_map(beside, 0, (0, 4)) == pytest.approx(heat_map(alone, 0, (0, 4)), abs=1e-9)
    assert all(not finding.maps[1].any() for finding in beside.read)
    assert reporter.looking([films[0], films[2]], beside).blank == pytest.approx(
        reporter.looking(films[:1], alone).blank
    )
    both = reporter.draft([films[0], films[2]], SHORT, replace(study, laterals=True))
    assert [f.read for f in both.films] == [True, True]
    assert [t.log_prob for t in both.tokens] != pytest.approx([t.log_prob for t in alone.tokens], abs=1e-5)


def test_a_study_without_a_frontal_film_is_refused_and_it_is_said_what_to_do(reporter, films):
    with pytest.raises(FilmError, match="no frontal film") as refused:
        reporter.draft(films[2:], SHORT)
    assert refused.value.rule == "lateral"
    assert reporter.draft(films[2:], SHORT, StudyConfig(laterals=True)).films[0].read


@pytest.fixture
def pair(tmp_path) -> list[str]:
    """Paths of a frontal film and a lateral one."""
    for seed, view in ((1, "PA"), (2, "LL")):
        make_phantom(seed, height=200, width=150).save_dicom(tmp_path / f"{seed}.dcm", view=view)
    return [str(tmp_path / f"{seed}.dcm") for seed in (1, 2)]


def test_the_command_line_takes_both_choices(reading_checkpoint, pair, capsys):
    words = ["draft", *pair, "--json", "--checkpoint", str(reading_checkpoint)]
    assert main([*words, "--views", "stitch", "--laterals"]) == 0
    films = json.loads(capsys.readouterr().out)["films"]
    assert [film["read"] for film in films] == [True, True]
    assert films[0]["place"][3] < films[1]["place"][1]
    assert main(words) == 0
    films = json.loads(capsys.readouterr().out)["films"]
    assert [film["place"] for film in films] == [None, None]


# --------------------------------------------------------------------------------------- as the checkpoint's settings say


@pytest.fixture(scope="module")
def stitching(reading_checkpoint, tmp_path_factory) -> Path:
    """A checkpoint whose own settings are to stitch."""
    folder = Path(shutil.copytree(reading_checkpoint, tmp_path_factory.mktemp("checkpoints") / "stitching"))
    config = json.loads((folder / "config.json").read_text())
    config["model"]["study"] = STITCH.to_dict()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_what_is_not_asked_for_is_as_the_checkpoints_settings_say(reporter, stitching):
    trained = Reporter.load(stitching, download=False)
    assert (reporter.study(), trained.study()) == (AVERAGE, STITCH)
    assert trained.study(laterals=True) == replace(STITCH, laterals=True)
    assert trained.study("average") == AVERAGE
    trained._model.config = replace(trained._model.config, study=replace(STITCH, laterals=True))
    assert trained.study("average") == replace(AVERAGE, laterals=True)
    assert trained.study(laterals=False) == STITCH
    with pytest.raises(ConfigError, match="views"):
        reporter.study("in a row")


def test_the_command_line_leaves_to_the_checkpoint_what_it_is_not_told(stitching, pair, capsys):
    words = ["draft", *pair, "--json", "--checkpoint", str(stitching)]
    assert main([*words, "--laterals"]) == 0
    films = json.loads(capsys.readouterr().out)["films"]
    assert all(film["place"] for film in films)
    assert main([*words, "--laterals", "--views", "average"]) == 0
    films = json.loads(capsys.readouterr().out)["films"]
    assert [(film["read"], film["place"]) for film in films] == [(True, None)] * 2
