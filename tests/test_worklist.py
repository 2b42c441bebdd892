"""Several studies of one browser: zips and folders sorted into a worklist, switched, brought back after a reload, closed, and seen by no other."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest

from emrrg_core import Draft, Report, Sessions, read_film
from emrrg_core.report.session_store import SessionGoneError
from tests import test_read as read_tests
from tests import test_read_events as event_tests
from tests.phantom import make_phantom
from tests.test_app import SLOW, browser_page
from tests.test_read import FINDINGS, OWN, RunningApp, choose
from ui import messages
from ui.read import events
from ui.session_state import MOST_STUDIES, Desk, SessionState

reporter, drafted, rg1, pictures, state, running = (  # fixtures
    read_tests.reporter,
    read_tests.drafted,
    read_tests.rg1,
    read_tests.pictures,
    read_tests.state,
    read_tests.running,
)
model, store, loading, screen = event_tests.model, event_tests.store, event_tests.loading, event_tests.screen
Screen = event_tests.Screen


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """The file of a DICOM film, of a patient and a study of its own unless it is said otherwise."""
    path = tmp_path_factory.mktemp("study") / "film"

    def make(seed: int, *, study: int | None = None, day: str = "20200101") -> bytes:
        make_phantom(seed, height=200, width=160).save_dicom(path)
        header = pydicom.dcmread(path)
        header.StudyInstanceUID, header.PatientID = f"2.25.{study or seed}", f"WREN-{study or seed}"
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = f"2.25.1{seed}{day}"
        header.StudyDate = header.SeriesDate = header.AcquisitionDate = header.ContentDate = day
        if day != "20200101":
            header.StudyInstanceUID += day
        made = io.BytesIO()
        header.save_as(made)
        return made.getvalue()

    return make


@pytest.fixture(scope="module")
def two(study: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip of two patients' studies, the second of two films, and of a letter."""
    path = tmp_path_factory.mktemp("zips") / "WREN^ANNA.zip"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("WREN/IM1", study(1))
        made.writestr("FINCH/IM2", study(2))
        made.writestr("FINCH/IM3", study(3, study=2))
        made.writestr("FINCH/letter.txt", "Dear colleague")
    return path


def keys(state: SessionState) -> list[str]:
    return [each.key for each in state.listed()]


def waiting(state: SessionState) -> list[Desk]:
    return [each for each in state.listed() if each.key != state.key]


# --- without a browser ---------------------------------------------------------------------------------------------------


def test_a_zip_of_two_studies_opens_the_first_and_the_other_waits(two: Path, screen: Screen) -> None:
    state = SessionState()
    said = state.take([two], first=1)
    assert len(state.films) == 1
    (other,) = waiting(state)
    assert [len(other.held), other.label, other.state] == [2, "PA · 2 films", "new"]
    assert said[0].startswith("File 4 of the zip was not taken. This is a text file, not a film.")
    assert keys(state) == [state.key, other.key], "in the order of the zip"
    assert said[1] == "1 more study waits in the list of studies."
    assert state.arrived["studies"] == {state.key: [0], other.key: [0]}, "the browser keeps the zip with both"
    page = messages.worklist(state)
    assert page.count('data-action="switch"') == 2
    assert page.count("aria-current") == 1
    for name in ("WREN", "FINCH", "letter", "2.25"):
        assert name not in page + messages.study(state) + " ".join(said)


def test_two_studies_dropped_beside_an_open_one_leave_it_alone(two: Path, pictures: list[Path]) -> None:
    state = SessionState()
    state.take(pictures[:1], first=1)
    key, (film,) = state.key, state.films
    assert state.take([two], first=1)[-1] == "2 more studies wait in the list of studies."
    assert (state.key, state.films) == (key, [film])
    assert [len(each.held) for each in waiting(state)] == [1, 2]


def test_an_earlier_study_of_the_same_patient_lies_beside_the_newer_as_prior(
    study: Callable[..., bytes], tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(study(4, day="20190304"))
    (tmp_path / "b").write_bytes(study(5, study=4))
    state = SessionState()
    state.take([tmp_path / "a", tmp_path / "b"], first=1)
    assert state.others == ()
    assert [film.name for film in state.shown] == ["Film 1", "Prior film"]
    assert state.films[0].sha256 == read_film(tmp_path / "b").sha256


def test_more_than_four_films_of_one_study_are_counted_and_none_is_taken(
    study: Callable[..., bytes], tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as made:
        for seed in range(10, 15):
            made.writestr(f"IM{seed}", study(seed, study=10))
    state = SessionState()
    (said,) = state.take([tmp_path / "x.zip"], first=1)
    assert said.startswith("A study may have at most 4 films; 5 were given.")
    assert state.films == []


def test_switching_keeps_each_study_with_its_films_marks_and_words(
    two: Path, screen: Screen, store: Sessions, drafted: Callable[..., Draft]
) -> None:
    state = SessionState()
    state.take([two], first=1)
    first, second = keys(state)
    sha = state.films[0].sha256
    state.draft = drafted(state.films)
    state.report = Report.of(state.draft).edit(0, OWN)
    state.keep(store)
    mark = {"kind": "ruler", "points": [[0.1, 0.1], [0.6, 0.6]]}
    screen.show(events.act, state, "", {"action": "marks", "film": sha, "marks": [mark]})
    shown = screen.show(events.act, state, "", {"action": "next-study"})
    assert "Ready." in shown["status"]
    assert (state.key, len(state.films), state.report, state.draft) == (second, 2, None, None)
    assert shown["kept_id"] == ""
    assert "granuloma" not in "".join(str(value) for value in shown.values())
    shown = screen.show(events.act, state, "", {"action": "switch", "key": first})
    assert "as you left it" in shown["status"]
    assert "granuloma" in shown["report"]
    assert [film.sha256 for film in state.films] == [sha]
    assert len(state.marks[sha]) == 1
    assert keys(state) == [first, second], "the list keeps its order"
    assert [each.state for each in state.listed()] == ["drafted", "new"]


@pytest.mark.parametrize("key", ["", "0" * 16, "../../sessions", None, 7, ["x"]])
def test_a_forged_key_opens_nothing(key: Any, two: Path, screen: Screen) -> None:
    state = SessionState()
    state.take([two], first=1)
    before, films = keys(state), state.films
    shown = screen.show(events.act, state, "", {"action": "switch", "key": key})
    if key == "":  # as the key S: the next one
        assert state.key == before[1]
        return
    assert state.key == before[0]
    assert state.films == films
    assert keys(state) == before
    assert "status" in shown


def test_the_next_study_passes_over_signed_ones_and_says_where_there_is_none(
    screen: Screen, store: Sessions, pictures: list[Path]
) -> None:
    state = SessionState()
    state.take(pictures[:1], first=1)
    assert "no other study that waits" in screen.show(events.act, state, "", {"action": "next-study"})["status"]
    state.know([{"key": "a" * 16, "id": "", "label": "1 film", "state": "signed"}])
    assert "no other study that waits" in screen.show(events.act, state, "", {"action": "next-study"})["status"]
    state.know([{"key": "b" * 16, "id": "", "label": "1 film", "state": "new"}])
    screen.show(events.act, state, "", {"action": "next-study"})
    assert state.key == "b" * 16


def test_a_study_that_is_gone_from_the_server_leaves_the_list_and_the_open_one_stays(
    screen: Screen, store: Sessions, state: SessionState
) -> None:
    state.keep(store)
    state.know([{"key": "a" * 16, "id": "gone", "label": "1 film", "state": "drafted"}])
    shown = screen.show(events.act, state, "", {"action": "switch", "key": "a" * 16})
    assert 'role="alert"' in shown["status"]
    assert "a" * 16 not in shown["worklist"]
    assert state.report is not None
    assert state.report.findings == " ".join(FINDINGS)


def test_a_browser_can_name_no_more_studies_than_are_listed(screen: Screen) -> None:
    state = SessionState()
    row = {"id": "", "label": "1 film", "state": "new"}
    state.know([row | {"key": f"{n:016x}"} for n in range(MOST_STUDIES + 50)])
    assert len(state.others) == MOST_STUDIES
    state.clear()
    other = SessionState()
    other.know([row | {"key": "a" * 16, "label": "<b>" + "x" * 90}, row | {"key": "c" * 16, "state": "lost"}])
    assert "<b>xx" not in messages.worklist(other)
    assert [each.key for each in other.others] == ["a" * 16]


def test_a_new_study_puts_the_open_one_aside_and_closing_removes_only_the_open_one(
    screen: Screen, store: Sessions, state: SessionState, pictures: list[Path]
) -> None:
    state.keep(store)
    id, key = state.session.id, state.key
    shown = screen.show(events.new_study, state)
    assert "No film yet" in shown["figures"]
    assert store.load(id), "nothing is deleted"
    state.take(pictures[:1], first=1)
    shown = screen.show(events.act, state, "", {"action": "close"})
    assert keys(state)[0] == key
    assert len(shown["worklist"].split('data-action="switch"')) == 3, "the one aside and the empty one"
    screen.show(events.act, state, "", {"action": "switch", "key": key})
    screen.show(events.act, state, id, {"action": "close"})
    with pytest.raises(SessionGoneError):
        store.load(id)
    assert key not in keys(state)


def test_a_film_of_another_study_begins_a_new_one_or_is_shown_as_a_prior_film(
    screen: Screen, store: Sessions, state: SessionState, pictures: list[Path]
) -> None:
    state.keep(store)
    key = state.key
    state.take(pictures[:1], first=1)
    page = messages.films(state, [])
    assert "Begin a new study with it" in page
    assert "Show it as a prior film" in page
    shown = screen.show(events.act, state, "", {"action": "use", "number": 0})
    assert state.key != key
    assert [film.sha256 for film in state.films] == [read_film(pictures[0]).sha256]
    assert state.report is None
    assert FINDINGS[1] not in shown["report"]
    assert [each.state for each in state.listed()] == ["drafted", "new"]


# --- in a browser ----------------------------------------------------------------------------------------------------------


LIST = "#worklist [data-action=switch]"


def ready(page: Any, expect: Any, address: str) -> None:
    page.goto(address)
    expect(page.locator("#status")).to_contain_text("Ready")


def test_two_studies_of_a_zip_are_read_one_after_the_other_and_outlive_a_reload(running: RunningApp, two: Path) -> None:
    with browser_page(1440, 900) as (page, wrong, expect):
        ready(page, expect, running.server.address)
        page.set_input_files("#drop input[type=file]", str(two))
        expect(page.locator("#notice")).to_contain_text("1 more study waits in the list of studies")
        expect(page.locator(LIST)).to_have_count(2)
        expect(page.locator(".rr-film")).to_have_count(1)
        page.keyboard.press("s")
        expect(page.locator(".rr-film")).to_have_count(2)
        page.locator("#report [data-section=findings] [data-action=add]").last.click()
        page.keyboard.type("Written by hand.")
        page.keyboard.press("Enter")
        expect(page.locator("#report .rr-item")).to_contain_text("Written by hand.")

        stranger = page.context.browser.new_context().new_page()
        stranger.set_default_timeout(SLOW)
        ready(stranger, expect, running.server.address)
        assert stranger.locator(LIST).count() <= 1
        stranger.close()

        page.reload()
        expect(page.locator("#status")).to_contain_text("as you left it")
        expect(page.locator("#report .rr-item")).to_contain_text("Written by hand.")
        expect(page.locator(".rr-film")).to_have_count(2)
        expect(page.locator("#notice [role=alert]")).to_have_count(0)
        expect(page.locator(LIST)).to_have_count(2)
        page.keyboard.press("s")
        expect(page.locator(".rr-film")).to_have_count(1)
        expect(page.locator("#report .rr-item")).to_have_count(0)

        page.click("#close")
        expect(page.locator("#films")).to_contain_text("No film yet")
        page.wait_for_function("JSON.parse(localStorage.getItem('emrrg-studies')).length == 1")
        page.wait_for_function(f"({KEPT})().then((rows) => rows.length == 1)")
        page.keyboard.press("s")
        expect(page.locator("#report .rr-item")).to_contain_text("Written by hand.")
        page.click("#close")
        page.locator("#notice [data-action=close]").click()
        expect(page.locator("#report .rr-item")).to_have_count(0)
        page.wait_for_function(f"({KEPT})().then((rows) => rows.length == 0)")
        assert wrong == []
    left = [path for path in running.server.folder.rglob("*") if path.is_file() and path.stat().st_size]
    assert left == [], "films are kept by the browser alone"


# the studies whose films this browser keeps
KEPT = """() => new Promise((done) => {
    const asked = indexedDB.open('emrrg', 1);
    asked.onsuccess = () => {
        const rows = asked.result.transaction('films').objectStore('films').getAll();
        rows.onsuccess = () => { asked.result.close(); done(rows.result); };
    };
})"""


def test_what_is_prior_and_a_turned_film_outlive_a_reload(running: RunningApp, pictures: list[Path]) -> None:
    with browser_page(1440, 900) as (page, wrong, expect):
        ready(page, expect, running.server.address)
        page.set_input_files("#drop input[type=file]", [str(path) for path in pictures[:2]])
        expect(page.locator(".film-1")).to_be_visible()
        page.click("#mark-1")
        expect(page.locator(".film-1")).to_contain_text("Prior film")
        page.locator("[data-action=straighten][data-number='0']").click()
        page.locator("[data-action=crop-turn]").click()
        expect(page.locator(".film-0")).to_have_attribute("data-width", "200")
        page.wait_for_function(f"({KEPT})().then((rows) => Object.keys(rows[0].kept.ops).length == 1)")
        page.reload()
        expect(page.locator("#status")).to_contain_text("Ready")
        expect(page.locator(".film-0")).to_have_attribute("data-width", "200")
        expect(page.locator(".film-1")).to_contain_text("Prior film")
        assert wrong == []


def test_a_film_of_another_study_is_asked_about_while_a_report_is_open(
    running: RunningApp, drafted: Callable[..., Draft], pictures: list[Path]
) -> None:
    kept = running.store.begin(drafted([read_film(pictures[0], name="Film 1")])).id
    with browser_page(1440, 900) as (page, wrong, expect):
        running.open(page, expect, kept)
        page.set_input_files("#drop input[type=file]", str(pictures[0]))
        expect(page.locator(".film-0")).to_be_visible()
        choose(page, expect, 1)
        page.set_input_files("#drop input[type=file]", str(pictures[1]))
        asked = page.locator("#notice")
        expect(asked).to_contain_text("no two patients may be mixed")
        asked.locator("[data-action=use_other]").click()
        expect(page.locator(".film-1")).to_contain_text("Prior film")
        page.set_input_files("#drop input[type=file]", str(pictures[2]))
        asked.locator("[data-action=use]").click()
        expect(page.locator("#report .rr-item")).to_have_count(0)
        expect(page.locator(".rr-film")).to_have_count(1)
        expect(page.locator(".rr-laid")).to_have_count(0)
        expect(page.locator(LIST)).to_have_count(2)
        page.locator(LIST).first.click()
        expect(page.locator("#report .rr-item")).to_have_count(4)
        expect(page.locator(".rr-film")).to_have_count(2)
        assert wrong == []
