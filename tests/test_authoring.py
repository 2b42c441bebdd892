"""A case made in the app: written whole or not at all, over nothing, with nothing of a header, and read back as it was meant."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emrrg_core import EmrrgError, read_film
from emrrg_core.films.film import Film
from emrrg_core.teaching import authoring
from emrrg_core.teaching.authoring import AuthoringError, own_folder, write_case
from emrrg_core.teaching.cases import read_case, read_cases
from emrrg_core.teaching.locate import Mark
from tests.phantom import make_phantom

BOX = Mark("Lung Lesion", 0, 0.25, 0.5, 0.125, 0.1)
WORDS = {
    "title": "Chest pain, 60 y",
    "findings": 'A "round" nodule\\mass\non the right.',
    "impression": "Nodule. \u2028 \U0001fac1",
}


@pytest.fixture
def film(tmp_path: Path) -> Film:
    path = tmp_path / "DOE^JANE.dcm"
    make_phantom(3, height=150, width=130).save_dicom(path, view="LATERAL")
    return read_film(path, name="Film 1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cases"


def test_a_case_is_read_back_as_it_was_written_to_the_pixel(film: Film, folder: Path) -> None:
    id = write_case(
        folder,
        films=[film],
        boxes=[BOX],
        tags=["Night ", "night", "Night"],
        difficulty="hard",
        points=["One."],
        **WORDS,
    )
    case = read_case(folder / f"{id}.toml")
    assert id == "chest-pain-60-y"
    assert (case.title, case.findings, case.impression) == tuple(
        WORDS[key] for key in ("title", "findings", "impression")
    )
    assert (case.tags, case.difficulty, case.points) == (("Night", "night"), "hard", ("One.",))
    (shown,) = case.read()
    assert np.abs(shown.pixels - film.pixels).max() <= 0.5 / 65535 + 1e-6, "neither stretched nor cut to 8 bits"
    assert (shown.view, shown.spacing) == (film.view, pytest.approx(film.spacing))
    (box,) = case.places() or ()
    assert box.finding == "Lung Lesion"
    assert (box.x, box.y, box.width, box.height) == pytest.approx((0.25, 0.5, 0.125, 0.1))


def test_no_word_of_a_header_and_no_name_of_a_file_is_written(film: Film, folder: Path) -> None:
    write_case(folder, films=[film], **WORDS)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["chest-pain-60-y.toml", "film-1.png"]
    for path in files:
        content = path.read_bytes()
        assert not any(word in content for word in (b"DOE", b"JANE", b"Phantom", b"PHANTOM", b"1.2.826"))
    with Image.open(folder / "chest-pain-60-y" / "film-1.png") as picture:
        assert picture.mode == "I;16"
        assert {key for key in picture.info if isinstance(picture.info[key], str)} == {
            "emrrg:film",
            "emrrg:view",
            "emrrg:spacing",
        }


def test_a_png_of_somebody_else_is_read_as_ever(film: Film, folder: Path) -> None:
    write_case(folder, films=[film], **WORDS)
    path = folder / "chest-pain-60-y" / "film-1.png"
    with Image.open(path) as picture:
        picture.save(path, "PNG")  # the text that says how it was written is gone
    (case,) = read_cases(folder).cases
    (step,) = [step for step in case.read()[0].steps if "deeper" in step]
    assert step


@pytest.mark.parametrize("boxes", [None, ()])
def test_whether_there_is_nothing_to_be_found_or_nobody_has_said_it_is_kept_apart(
    boxes: tuple | None, film: Film, folder: Path
) -> None:
    id = write_case(folder, films=[film], boxes=boxes, **WORDS)
    assert read_case(folder / f"{id}.toml").boxes == boxes


def test_cases_of_one_title_get_ids_of_their_own_and_nothing_is_overwritten(film: Film, folder: Path) -> None:
    folder.mkdir()
    (folder / "chest-pain-60-y.toml").write_text("mine")
    (folder / "chest-pain-60-y-2").mkdir()
    (folder / "chest-pain-60-y-2" / "film-1.png").write_text("mine")
    assert write_case(folder, films=[film], taken={"chest-pain-60-y-3"}, **WORDS) == "chest-pain-60-y-4"
    assert (folder / "chest-pain-60-y.toml").read_text() == "mine"
    assert (folder / "chest-pain-60-y-2" / "film-1.png").read_text() == "mine"
    assert write_case(folder, films=[film], **WORDS | {"title": "病例 «∞»"}) == "case"


def test_two_who_write_at_once_get_two_cases(film: Film, folder: Path) -> None:
    start = threading.Barrier(6)

    def work(_: int) -> str:
        start.wait()
        return write_case(folder, films=[film], **WORDS)

    with ThreadPoolExecutor(6) as many:
        ids = list(many.map(work, range(6)))
    assert len(set(ids)) == 6
    assert {case.id for case in read_cases(folder).cases} == set(ids)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"title": " "}, "Give the case a title"),
        ({"findings": " ", "impression": ""}, "Write the reference report"),
        ({"films": []}, "one to 4 films"),
        ({"boxes": [Mark("Lung Lesion", 0, 0.5, 0.5)]}, "A point is no box"),
        ({"boxes": [replace(BOX, film=1)]}, "on a film that the case does not have"),
        ({"difficulty": "fair"}, "easy, moderate, hard"),
    ],
)
def test_a_case_that_lacks_something_is_refused_and_leaves_nothing(
    changed: dict, told: str, film: Film, folder: Path
) -> None:
    with pytest.raises(AuthoringError, match=told):
        write_case(folder, **WORDS | {"films": [film]} | changed)
    assert not folder.exists() or list(folder.iterdir()) == []


def test_a_case_that_fails_half_way_leaves_nothing(film: Film, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for where in ("link", None):
        with monkeypatch.context() as broken:
            broken.setattr(*(authoring.os, "link") if where else (authoring, "_save"), full)
            with pytest.raises(AuthoringError, match=r"not written.*No space left"):
                write_case(folder, films=[film], **WORDS)
        assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_told_in_a_sentence(film: Film, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AuthoringError, match="cannot be written to") as refused:
        write_case(tmp_path / "file" / "cases", films=[film], **WORDS)
    assert isinstance(refused.value, EmrrgError)
    assert str(tmp_path) not in str(refused.value)


def test_ones_own_cases_lie_where_the_desktop_keeps_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EMRRG_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert own_folder() == tmp_path / "emrrg" / "cases"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert own_folder() == Path.home() / ".local" / "share" / "emrrg" / "cases"
    monkeypatch.setenv("EMRRG_HOME", str(tmp_path / "home"))
    assert own_folder() == tmp_path / "home" / "cases"


def test_the_folder_is_its_owners(film: Film, folder: Path) -> None:
    write_case(folder, films=[film], **WORDS)
    assert folder.stat().st_mode & 0o077 == 0
