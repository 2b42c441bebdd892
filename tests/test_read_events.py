"""The view functions of the Read screen, called as its events call them, without a browser, a server or a model."""

import base64
import json
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from emrrg_core import Draft, EmrrgError, Film, Report, Sessions, read_film
from emrrg_core.errors import FilmError
from emrrg_core.explain.faithfulness import DependenceTest, Why
from emrrg_core.memory.cases import Memory
from emrrg_core.report.session_store import SessionGoneError
from emrrg_core.reporter import Summary
from tests import test_read as read_tests
from tests.screen_events import Screen
from ui.handlers import Handlers
from ui.read import drafting, events, layout, maps, wiring
from ui.read.context import Context
from ui.session_state import SessionState
from ui.updates import Change

reporter, drafted, rg1, pictures, state = (  # fixtures
    read_tests.reporter,
    read_tests.drafted,
    read_tests.rg1,
    read_tests.pictures,
    read_tests.state,
)
FINDINGS, IMPRESSION, OWN = read_tests.FINDINGS, read_tests.IMPRESSION, read_tests.OWN
TEST = DependenceTest(0.5, 0.6, 0.7, 0.1, 20)


class Model:
    """Stands in for the reporter: drafts our own words, or fails as it is told."""

    def __init__(self, drafted: Callable[..., Draft]) -> None:
        self._drafted = drafted
        self.error: Exception | None = None  # raised after the first words
        self.refused: FilmError | None = None
        self.stopped = False  # the model was told, without waiting for the next words
        self.meanwhile: Callable[[], object] = lambda: None  # happens in the middle of the work
        self.asked: list[Any] = []  # how films are to be put together, and what was then given to `stream`

    def study(self, views: str | None = None, laterals: bool | None = None) -> str:
        self.asked.append((views, laterals))
        return "as asked"

    def check(self, film: Film, *, anyway: Any = ()) -> Film:
        if self.refused and self.refused.rule not in anyway:
            raise self.refused
        return film

    def stream(
        self, films: list[Film], decoding: Any, study: Any, *, prior: list[Film], stopped: Callable[[], bool]
    ) -> Iterator[Draft]:
        assert not stopped()
        self.asked.append(study)
        yield self._drafted(films, findings=FINDINGS[:1], impression=())
        self.meanwhile()
        self.stopped = stopped()
        if self.error:
            raise self.error
        yield self._drafted(films)

    def looking(self, films: list[Film], draft: Draft, *, progress: Callable[[int, int], None]) -> DependenceTest:
        progress(1, 3)
        self.meanwhile()
        if self.error:
            raise self.error
        return TEST

    def why(self, films: list[Film], draft: Draft, sentence: int, *, progress: Callable[[int, int], None]) -> Why:
        progress(1, 9)
        self.meanwhile()
        if self.error:
            raise self.error
        return Why(sentence, -3.0, 2.0, (0.1, 0.2), (5,), 0)


@pytest.fixture
def model(drafted: Callable[..., Draft]) -> Model:
    return Model(drafted)


@pytest.fixture
def store(tmp_path: Path) -> Sessions:
    return Sessions(tmp_path / "sessions")


@pytest.fixture
def loading() -> "Future[Any]":
    return Future()


@pytest.fixture
def screen(model: Model, store: Sessions, loading: "Future[Any]", rg1: Path) -> Screen:
    """The screen with a model that is loaded."""
    loading.set_result(model)
    return Screen(layout, wiring, Context(loading, lambda name: rg1, lambda: store))


@pytest.fixture
def uploads(pictures: list[Path], tmp_path: Path) -> list[Path]:
    """Two films as Gradio stores uploads, each in a folder of its own."""
    found = []
    for number, picture in enumerate(pictures[:2]):
        (tmp_path / str(number)).mkdir()
        found.append(Path(shutil.copy(picture, tmp_path / str(number) / "upload")))
    return found


def idle(shown: dict[str, Any]) -> bool:
    """Whether the buttons say that no draft is under way."""
    assert shown["stop"] == Change(interactive=not shown["write"]["interactive"])
    assert shown["drop"]["interactive"] == shown["write"]["interactive"]
    assert shown["new_study"] == shown["close_study"] == Change(interactive=shown["write"]["interactive"])
    return shown["write"]["interactive"]


# ------------------------------------------------------------------------------------------------------------- films


def test_films_that_are_added_are_shown_with_their_buttons_and_leave_the_disk(
    screen: Screen, uploads: list[Path]
) -> None:
    state = SessionState()
    shown = screen.show(events.add_films, state, [str(path) for path in uploads], "")
    assert [f"film-{n}" in shown["figures"] for n in range(3)] == [True, True, False]
    assert shown["study"].count("Mark as prior") == 4, "a button and its name, for each film"
    assert 'aria-label="Remove Film 2"' in shown["study"]
    assert shown["notice"] == ""
    assert shown["drop"] is None, "the box is empty again"
    assert not any(path.exists() or path.parent.exists() for path in uploads)


def test_a_file_that_is_no_film_is_said_by_its_place_and_the_good_one_stays(
    screen: Screen, uploads: list[Path]
) -> None:
    uploads[0].write_bytes(b"words")
    state = SessionState()
    shown = screen.show(events.add_films, state, [str(path) for path in uploads], "")
    assert 'role="alert">File 1 was not taken.' in shown["notice"]
    assert "film-0" in shown["figures"]
    assert "film-1" not in shown["figures"]
    assert not uploads[0].exists(), "a refused file does not stay on the disk either"


def test_a_film_can_be_marked_and_removed_but_not_while_a_draft_is_under_way(
    screen: Screen, pictures: list[Path]
) -> None:
    state = SessionState()
    state.take(pictures[:2], first=1)
    marked = screen.show(events.act, state, "", {"action": "mark", "number": 0})
    assert "The draft may say what has changed since" in marked["study"]
    state.busy = True
    refused = screen.show(events.act, state, "", {"action": "remove", "number": 0})
    assert refused.keys() == {"status"}
    assert "Wait until the draft is done" in refused["status"]
    state.busy = False
    screen.show(events.act, state, "", {"action": "remove", "number": 1})
    screen.show(events.act, state, "", {"action": "remove", "number": "nonsense"})
    assert [film.name for film in state.shown] == ["Film 1"]


def test_without_the_example_film_the_reader_is_told_what_to_install(screen: Screen, store: Sessions) -> None:
    shown = screen.show(events.act, SessionState(), "", {"action": "example", "name": "real"})
    assert "film-0" in shown["figures"]
    assert "drop" not in shown, "an upload under way goes on"
    without = Context(screen.context.reporter, lambda name: None, lambda: store)
    assert "pip install pydicom-data" in events.add_example(SessionState(), "real", without)["notice"]


# ---------------------------------------------------------------------------------------------------------- drafting


def test_no_draft_begins_without_a_film_while_busy_or_of_a_signed_report(
    screen: Screen, state: SessionState, pictures: list[Path]
) -> None:
    empty = SessionState()
    assert screen.show(drafting.begin, empty) == {"status": events.say(drafting.NO_FILM, bad=True)}
    assert not empty.busy
    prior = SessionState()
    prior.take(pictures[:1], first=1)
    prior.mark(0)
    assert "marked as prior" in screen.show(drafting.begin, prior)["status"]
    state.report = state.report.sign([line.id for line in state.report.unreviewed])
    assert "This report is signed" in screen.show(drafting.begin, state)["status"]
    state.report = state.report.unsign()
    assert screen.show(drafting.begin, state).keys() > {"status", "report", "write"}
    again = screen.show(drafting.begin, state)
    assert again.keys() == {"status"}, "a second click changes nothing but the message"
    assert "a draft is under way" in again["status"]


@pytest.mark.parametrize("loaded", [True, False])
def test_a_draft_that_begins_locks_the_buttons_and_says_what_it_waits_for(
    loaded: bool, loading: "Future[Any]", model: Model, store: Sessions, state: SessionState
) -> None:
    if loaded:
        loading.set_result(model)
    shown = drafting.begin(state, Context(loading, lambda name: None, lambda: store))
    assert not idle(shown)
    assert ("Waiting for the model" if loaded else "The model is loading") in shown["status"]
    assert FINDINGS[0] not in shown["report"], "the former draft is off the screen"
    assert state.report.findings, "and not lost yet"


def test_a_draft_streams_its_words_and_ends_as_an_unreviewed_report_that_is_kept(
    screen: Screen, store: Sessions, pictures: list[Path]
) -> None:
    state = SessionState()
    state.take(pictures[:1], first=1)
    screen.show(drafting.begin, state)
    first, *middle, last = screen.steps(drafting.draft_report, state, 1, "average", False, True, "")
    assert first["kept_id"]
    assert first["earlier"]["visible"] == "hidden"
    assert any("Drafting…" in step["status"] and FINDINGS[0] in step["report"] for step in middle)
    assert "Draft done" in last["status"]
    assert "DRAFT, NOT REVIEWED" in last["report"]
    assert idle(last)
    assert not state.busy
    assert store.load(last["kept_id"]).report.findings == " ".join(FINDINGS)
    assert screen.steps(drafting.draft_report, state, 1, "average", False, True, "") == [{}], (
        "nothing was asked for any more"
    )


def test_stop_keeps_what_was_written_so_far(screen: Screen, model: Model, pictures: list[Path]) -> None:
    state = SessionState()
    state.take(pictures[:1], first=1)
    screen.show(drafting.begin, state)
    model.meanwhile = state.halt
    last = screen.steps(drafting.draft_report, state, 1, "average", False, True, "")[-1]
    assert "Stopped. What was written so far is kept." in last["status"]
    assert model.stopped
    assert idle(last)
    assert state.report.findings
    assert screen.steps(drafting.measure_dependence, state) == [{}], "a stopped draft is not measured"


@pytest.mark.parametrize(
    ("chosen", "asked"),
    [(("", False), (None, None)), (("stitch", False), ("stitch", None)), (("average", True), ("average", True))],
)
def test_films_are_put_together_as_the_checkpoint_says_unless_the_reader_chooses(
    chosen: tuple[str, bool], asked: tuple[Any, Any], screen: Screen, model: Model, pictures: list[Path]
) -> None:
    state = SessionState()
    state.take(pictures[:2], first=1)
    screen.show(drafting.begin, state)
    screen.show(drafting.draft_report, state, 1, *chosen, True, "")
    assert model.asked == [asked, "as asked"]


@pytest.mark.parametrize("error", [EmrrgError("The disk is full."), RuntimeError("a bug")])
def test_a_draft_that_fails_says_so_and_never_leaves_the_screen_locked(
    error: Exception, screen: Screen, model: Model, pictures: list[Path]
) -> None:
    state = SessionState()
    state.take(pictures[:1], first=1)
    screen.show(drafting.begin, state)
    model.error = error
    bug = isinstance(error, RuntimeError)
    steps = []
    with pytest.raises(RuntimeError, match="a bug") if bug else nullcontext():  # a bug goes on to the server's console
        for step in drafting.draft_report(state, 1, "average", False, True, "", screen.context):
            steps.append(step)
    expected = "the server&#x27;s console says more" if bug else "The disk is full."
    assert expected in steps[-1]["status"]
    assert 'role="alert"' in steps[-1]["status"]
    assert idle(steps[-1])
    assert not state.busy


def test_a_film_that_the_model_refuses_leaves_the_former_report_and_offers_to_use_it(
    screen: Screen, model: Model, state: SessionState
) -> None:
    state.report = state.report.edit(0, OWN)
    screen.show(drafting.begin, state)
    model.refused = FilmError("This does not look like a chest film.", rule="looks", overridable=True)
    shown = screen.show(drafting.draft_report, state, 1, "average", False, True, "")
    assert "Not drafted: a film was refused" in shown["status"]
    assert 'data-action="use"' in shown["notice"]
    assert state.report.lines[0].text == OWN
    assert "granuloma" in shown["report"]
    assert idle(shown)


def test_what_the_reader_wrote_moves_to_the_earlier_text_when_drafted_anew(screen: Screen, state: SessionState) -> None:
    state.report = state.report.edit(0, OWN)
    screen.show(drafting.begin, state)
    shown = screen.show(drafting.draft_report, state, 1, "average", False, True, "")
    assert shown["earlier"]["visible"] is True
    assert shown["earlier"]["value"].startswith(f"Findings: {OWN}")
    assert "granuloma" not in shown["report"]


def test_whether_the_text_depends_on_its_film_is_measured_kept_and_never_shown_for_another_study(
    screen: Screen, model: Model, store: Sessions, state: SessionState
) -> None:
    reading, done = screen.steps(drafting.measure_dependence, state)
    assert "Reading 1 of 3" in reading["looked"]
    assert "depends on its film" in done["looked"]
    assert store.load(done["kept_id"]).settings["looking"]["blank"] == TEST.blank
    assert screen.steps(drafting.measure_dependence, state) == [{}], "once"
    state.looked = None
    model.meanwhile = state.clear
    assert screen.steps(drafting.measure_dependence, state)[-1] == {"looked": ""}
    assert state.looked is None


# ------------------------------------------------------------------------------------------------- the reader's actions


def test_an_action_on_a_sentence_changes_the_report_says_so_and_is_kept(
    screen: Screen, store: Sessions, state: SessionState
) -> None:
    shown = screen.show(events.act, state, "", {"action": "accept", "line": 0})
    assert "Accepted. 3 sentences not reviewed." in shown["status"]
    shown = screen.show(events.act, state, "", {"action": "edit", "line": 1, "text": OWN})
    assert "granuloma &lt;b&gt;" in shown["report"]
    assert store.load(shown["kept_id"]).report == state.report


def test_a_report_with_an_undecided_warning_is_not_signed_by_a_forged_event_either(
    screen: Screen, store: Sessions, state: SessionState
) -> None:
    every = [line.id for line in state.report.lines]
    forged = {"action": "sign", "confirmed": every, "cautions": [], "blocked": 0}
    shown = screen.show(events.act, state, "", forged)
    assert "decide on each warning first" in shown["status"]
    assert 'data-blocked="1"' in shown["report"]
    assert state.report.signed is None
    keys = [caution.key for caution in state.cautions]
    assert len(keys) > 1
    for key in keys[:-1]:
        screen.show(events.act, state, "", {"action": "decide", "key": key})
    screen.show(events.act, state, "", {"action": "decide", "key": "0" * 12})  # of no warning
    assert "decide on each warning first" in screen.show(events.act, state, "", forged)["status"]
    shown = screen.show(events.act, state, "", {"action": "decide", "key": keys[-1]})
    assert 'data-blocked="0"' in shown["report"]
    assert "Signed off." in screen.show(events.act, state, "", forged)["status"]
    assert store.load(state.session.id).report.signed


def test_a_decision_is_of_the_words_that_stood_there_and_other_words_are_asked_anew(
    screen: Screen, state: SessionState
) -> None:
    (prior,) = [caution for caution in state.cautions if caution.line == 2]
    screen.show(events.act, state, "", {"action": "decide", "key": prior.key})
    assert not [caution for caution in state.cautions if caution.line == 2]
    screen.show(events.act, state, "", {"action": "edit", "line": 2, "text": "The lungs have not changed."})
    assert [caution.kind for caution in state.cautions if caution.line == 2] == [prior.kind]
    screen.show(events.act, state, "", {"action": "undo"})
    assert not [caution for caution in state.cautions if caution.line == 2], "the same words are decided still"


def test_a_sentence_that_nobody_has_reviewed_is_signed_by_no_event(screen: Screen, state: SessionState) -> None:
    for caution in state.cautions:
        screen.show(events.act, state, "", {"action": "decide", "key": caution.key})
    for confirmed in ([], [0, 1, 2], ["0", "1", "2", "3"], [None, {}]):
        shown = screen.show(events.act, state, "", {"action": "sign", "confirmed": confirmed})
        assert IMPRESSION[0] in shown["status"]
        assert "accept, edit or delete" in shown["status"]
    for confirmed in (3, None, "0123"):
        assert (
            'role="alert"' in screen.show(events.act, state, "", {"action": "sign", "confirmed": confirmed})["status"]
        )
    assert state.report.signed is None


def test_a_change_in_one_section_offers_what_belongs_to_it_in_the_other_until_the_next_action(
    screen: Screen, state: SessionState
) -> None:
    state.report = (
        Report().add("impression", "Left pleural effusion.").add("findings", "There is a left pleural effusion.")
    )
    (finding,) = [line.id for line in state.report.lines if line.section == "findings"]
    (concluded,) = [line.id for line in state.report.lines if line.section == "impression"]
    shown = screen.show(events.act, state, "", {"action": "delete", "line": finding})
    assert shown["report"].count('class="rr-offer"') == 1
    assert f'data-offer="delete" data-line="{concluded}"' in shown["report"]
    assert 'class="rr-offer"' not in screen.show(events.act, state, "", {"action": "dismiss"})["report"]
    assert [line.choice.value for line in state.report.lines] == ["deleted", "added"], "an offer does nothing by itself"
    screen.show(events.act, state, "", {"action": "restore", "line": finding})
    changed = {"action": "edit", "line": finding, "text": "There is a right pleural effusion."}
    shown = screen.show(events.act, state, "", changed)
    assert 'data-offer="edit"' in shown["report"]
    assert "Right pleural effusion." in shown["report"]


INF = float("inf")


@pytest.mark.parametrize(
    "action",
    [
        {},
        {"action": "to_dict"},
        {"action": ["edit"]},
        {"action": "edit", "line": 99, "text": "x"},
        {"action": "says", "finding": {}, "value": []},
        {"action": "template", "name": []},
        {"action": "template", "parts": {"findings": {}}},
        {"action": "marks", "film": [], "marks": 3},
        {"action": "marks", "film": "x", "marks": [{}]},
    ],
)
def test_an_action_that_makes_no_sense_changes_nothing(
    action: dict[str, Any], screen: Screen, state: SessionState
) -> None:
    before = state.report
    shown = screen.show(events.act, state, "", action)
    assert 'role="alert"' in shown["status"]
    assert state.report is before


@pytest.mark.parametrize(
    "given",
    [
        {"turn": None},
        {"turn": "x"},
        {"turn": [1]},
        {"corners": 3},
        {"corners": [[0, 0]]},
        {"corners": [[0], [1], [2], [3]]},
        {"corners": [[0, 0], [0, 0], [0, 0], [0, 0]]},
        {"corners": [[INF, 0], [1, 0], [1, 1], [0, 1]]},
        {"corners": [[10**400, 0], [1, 0], [1, 1], [0, 1]]},
        {"turn": INF},
        {},
    ],
)
def test_a_crop_that_makes_no_sense_leaves_the_film_as_it_is(
    given: dict[str, Any], screen: Screen, pictures: list[Path]
) -> None:
    state = SessionState()
    state.take(pictures[:1], first=1)
    (before,) = state.held
    screen.show(events.act, state, "", {"action": "straighten", "number": 0, **given})
    assert state.held[0].film.pixels is before.film.pixels


def test_a_report_of_a_tab_that_was_left_alone_too_long_is_opened_again_before_it_is_changed(
    screen: Screen, store: Sessions, state: SessionState
) -> None:
    state.keep(store)
    cleared = SessionState()
    shown = screen.show(events.act, cleared, state.session.id, {"action": "delete", "line": 0})
    assert len(cleared.report.lines) == len(state.report.lines)
    assert "Deleted" in shown["status"]


def test_closing_a_study_asks_first_and_then_deletes_everything(
    screen: Screen, store: Sessions, state: SessionState
) -> None:
    state.keep(store)
    id = state.session.id
    assert screen.show(events.ask_to_close, state).keys() == {"notice"}
    assert (
        "deletes the report from the server and its films from this browser"
        in screen.show(events.ask_to_close, state)["notice"]
    )
    assert "deletes the report" not in screen.show(events.act, state, id, {"action": "leave-open"})["notice"]
    assert store.load(id)

    shown = screen.show(events.act, state, id, {"action": "close"})
    assert "No film yet" in shown["figures"]
    assert "The draft appears here" in shown["report"]
    assert (shown["kept_id"], shown["layers"], shown["evidence"], shown["download"]) == ("", "", "", "")
    assert (state.report, state.draft, state.shown) == (None, None, [])
    with pytest.raises(SessionGoneError):
        store.load(id)


def test_a_study_without_words_is_closed_at_once_and_none_while_a_draft_is_under_way(
    screen: Screen, pictures: list[Path]
) -> None:
    state = SessionState()
    state.take(pictures[:1], first=1)
    state.busy = True
    assert screen.steps(events.ask_to_close, state) == [{}]
    assert screen.steps(events.new_study, state) == [{}]
    assert state.shown
    state.busy = False
    assert "No film yet" in screen.show(events.ask_to_close, state)["figures"]


# --------------------------------------------------------------------------------------------------- opening the page


def test_a_page_that_had_a_report_opens_it_and_films_wait_until_then(
    screen: Screen, store: Sessions, drafted: Callable[..., Draft], pictures: list[Path]
) -> None:
    id = store.begin(drafted([read_film(pictures[0], name="Film 1")])).id
    tab = SessionState()
    assert "Your report is being opened" in screen.show(events.on_load, tab, id, "")["status"]
    assert tab.take(pictures[:1], first=1) == ["Nothing was taken: wait until the draft is done."]
    shown = screen.show(events.resume, tab, id, "")
    assert "as you left it" in shown["status"]
    assert "Drop Film 1" in shown["notice"]
    assert shown["kept_id"] == id
    assert not tab.busy


def test_the_example_film_of_a_kept_report_is_brought_back_by_itself(
    screen: Screen, store: Sessions, state: SessionState
) -> None:
    state.keep(store)
    tab = SessionState()
    screen.show(events.on_load, tab, state.session.id, "")
    shown = screen.show(events.resume, tab, state.session.id, "")
    assert [film.sha256 for film in tab.films] == [film.sha256 for film in state.films]
    assert "Drop" not in shown["notice"]
    assert tab.report == state.report


@pytest.mark.parametrize(
    "known",
    [
        "",
        "null",
        "[]",
        "{",
        '{"key": 3, "studies": 4}',
        '{"key": "../../x", "studies": [null, {"key": "x"}, {"key": 1, "id": []}]}',
    ],
)
def test_nonsense_that_a_browser_says_of_its_studies_is_passed_over(known: str, screen: Screen) -> None:
    tab = SessionState()
    shown = screen.show(events.resume, tab, "", known)
    assert "Ready." in shown["status"]
    assert tab.others == ()
    assert re.fullmatch("[0-9a-f]{16}", tab.key)


def test_a_report_that_is_gone_is_said_and_its_id_forgotten(screen: Screen) -> None:
    tab = SessionState()
    screen.show(events.on_load, tab, "nothing-like-it", "")
    shown = screen.show(events.resume, tab, "nothing-like-it", "")
    assert 'role="alert"' in shown["status"]
    assert shown["kept_id"] == ""
    assert not tab.busy


def test_a_model_that_cannot_be_loaded_is_said_in_words(store: Sessions, loading: "Future[Any]") -> None:
    loading.set_exception(EmrrgError("There is no checkpoint in that folder."))
    context = Context(loading, lambda name: None, lambda: store)
    assert "no checkpoint in that folder" in events.resume(SessionState(), "", "", context)["status"]


# ------------------------------------------------------------------------------------------------- looking and asking


def place_of(shown: dict[str, Any]) -> str:
    """Where read.js lays the evidence: the attributes of its outermost element."""
    (found,) = re.findall(r'^<div class="rr-evidence"(.*?)>', shown["evidence"])
    return found.strip()


def test_a_sentence_a_word_and_a_finding_show_their_own_map_and_a_sentence_of_the_readers_has_none(
    screen: Screen, state: SessionState
) -> None:
    state.report = state.report.add("findings", OWN)
    sentence = screen.show(maps.look_at_line, state, {"line": 1})
    assert place_of(sentence) == 'data-line="1" data-sentence="1"'
    assert "rr-tokens" in sentence["evidence"]
    assert 'data-action="why"' in sentence["evidence"]
    word = screen.show(maps.look_at_words, state, {"index": [1, 4]})
    assert place_of(word) == place_of(sentence), "a word's evidence stands at its sentence"
    finding = screen.show(maps.look_at_finding, state, {"index": "effusion"})
    assert place_of(finding) == 'data-finding="effusion"'
    assert "pleural effusion" in finding["evidence"]
    assert len({each["layers"] for each in (sentence, word, finding)}) == 3
    assert all(".film-0 .rr-map" in each["layers"] for each in (sentence, word, finding))
    (mine,) = [line.id for line in state.report.lines if line.drafted is None]
    own = screen.show(maps.look_at_line, state, {"line": mine})
    assert place_of(own) == f'data-line="{mine}"'
    assert "Your own words: they have no map." in own["evidence"]
    assert own["layers"] == ""
    assert state.picked is None


def test_a_sentence_with_other_words_says_that_its_map_is_of_the_drafted_ones(
    screen: Screen, state: SessionState
) -> None:
    before = screen.show(maps.look_at_line, state, {"line": 1})
    assert FINDINGS[1] not in before["evidence"].partition("<details")[0]
    state.report = state.report.edit(1, OWN)
    edited = screen.show(maps.look_at_line, state, {"line": 1})
    assert f"The drafted words, “{FINDINGS[1]}”" in edited["evidence"]
    assert OWN not in edited["evidence"]


@pytest.mark.parametrize("data", [{}, {"index": None}, {"index": [99, None]}, {"index": "nothing"}, {"line": "x"}])
def test_a_place_that_is_not_there_changes_nothing(data: dict[str, Any], screen: Screen, state: SessionState) -> None:
    assert screen.steps(maps.look_at_words, state, data) == [{}]
    assert screen.steps(maps.look_at_finding, state, data) == [{}]


def test_no_map_is_shown_while_a_draft_is_under_way(screen: Screen, state: SessionState) -> None:
    state.busy = True
    assert screen.steps(maps.look_at_line, state, {"line": 1}) == [{}]
    assert screen.steps(maps.look_at_words, state, {"index": [1, None]}) == [{}]
    assert screen.steps(maps.look_at_finding, state, {"index": "effusion"}) == [{}]


def test_why_is_answered_at_the_chosen_sentence_and_dropped_once_another_is_chosen(
    screen: Screen, model: Model, state: SessionState
) -> None:
    assert screen.steps(maps.why_this, state) == [{}], "none is chosen"
    screen.show(maps.look_at_words, state, {"index": [1, None]})
    waiting, reading, answer = screen.steps(maps.why_this, state)
    assert "Waiting for the model" in waiting["evidence"]
    assert "reading 1 of 9" in reading["evidence"]
    assert FINDINGS[1] in answer["evidence"]
    assert {place_of(each) for each in (waiting, reading, answer)} == {'data-line="1" data-sentence="1"'}
    model.meanwhile = lambda: screen.show(maps.look_at_words, state, {"index": [0, None]})
    assert all("rr-why" not in step["evidence"] for step in screen.steps(maps.why_this, state))


@pytest.mark.parametrize("error", [None, EmrrgError("The disk is full.")])
def test_why_says_nothing_more_once_a_new_draft_is_asked_for_or_another_sentence_chosen(
    error: Exception | None, screen: Screen, model: Model, state: SessionState
) -> None:
    model.error = error
    draft = state.draft

    def another() -> None:
        """The same sentence of another study."""
        screen.show(events.new_study, state)
        state.draft, state.report = replace(draft), Report.of(draft)
        screen.show(maps.look_at_words, state, {"index": [1, None]})

    for meanwhile in (
        lambda: screen.show(drafting.begin, state),
        lambda: screen.show(maps.look_at_finding, state, {"index": "opacity"}),
        lambda: screen.show(events.new_study, state),
        another,
    ):
        screen.show(maps.look_at_words, state, {"index": [1, None]})
        model.meanwhile = meanwhile
        told = [step for step in screen.steps(maps.why_this, state) if step]
        assert all("reading" in step["evidence"] or "Waiting" in step["evidence"] for step in told)
        state.busy, state.draft, state.report = False, draft, Report.of(draft)


# ------------------------------------------------------------------------------------------------------------- export


def test_an_export_is_handed_to_the_browser_or_says_why_it_cannot_be_made(screen: Screen, state: SessionState) -> None:
    making, made = screen.steps(events.export, state, {"kind": "text"})
    assert "Text is being made" in making["packing"]
    assert making["download"] == ""
    file = json.loads(made["download"])
    assert file["name"] == "emrrg-report.txt"
    assert FINDINGS[0] in base64.b64decode(file["body"]).decode()
    state.held = ()
    *_, refused = screen.steps(events.export, state, {"kind": "capture"})
    assert "drop Film 1 again" in refused["packing"]
    assert refused["download"] == ""
    *_, unknown = screen.steps(events.export, state, {})
    assert 'role="alert"' in unknown["packing"]


# ----------------------------------------------------------------------------------------- from view functions to Gradio


def test_names_become_components_and_a_change_becomes_an_update() -> None:
    class Parts:
        def __init__(self) -> None:
            self.status, self.write = gr.HTML(""), gr.Button("Write")

    def view(word: str, context: str) -> dict[str, Any]:
        return {"status": f"{word} {context}", "write": Change(interactive=False)} if word else {}

    def steps(context: str) -> Iterator[dict[str, Any]]:
        yield {"status": context}
        yield {}

    parts = Parts()
    handlers = Handlers(parts, "there")
    shown = handlers.of(view)("hello")
    assert shown[parts.status] == "hello there"
    assert isinstance(shown[parts.write], gr.Button)
    assert shown[parts.write].interactive is False
    assert handlers.of(view)("") == gr.skip(), "nothing changes"
    assert list(handlers.of(steps)()) == [{parts.status: "there"}, gr.skip()]
    assert handlers.of(view) is handlers.of(view), "Gradio counts the calls of one function together"
    assert handlers.components("write", "status") == [parts.write, parts.status]


@pytest.mark.parametrize(("sent", "told"), [({"line": 3}, {"line": 3}), (None, {}), ("x", {})])
def test_what_a_browser_sends_with_an_event_reaches_the_view_and_nonsense_reaches_it_empty(
    sent: Any, told: Any
) -> None:
    heard: list[Any] = []
    handler = Handlers(object(), None).of(lambda value, data, context: heard.append((value, data)) or {}, data=True)
    handler(gr.EventData(None, sent), "state")
    assert heard == [("state", told)]


def test_a_report_of_ones_own_needs_no_draft(screen: Screen, store: Sessions) -> None:
    state = SessionState()
    shown = screen.show(events.act, state, "", {"action": "add", "section": "findings", "text": OWN})
    assert state.report != Report()
    assert shown["kept_id"]
    assert "have no map" in screen.show(maps.look_at_line, state, {"line": state.report.lines[0].id})["evidence"]


# --------------------------------------------------------------------------------------------- Impression from these findings


def with_draft(screen: Screen, pictures: list[Path]) -> SessionState:
    state = SessionState()
    state.take(pictures[:1], first=1)
    screen.show(drafting.begin, state)
    screen.show(drafting.draft_report, state, 1, "average", False, True, "")
    return state


def test_the_impression_is_written_anew_from_the_findings_and_kept(
    screen: Screen, pictures: list[Path], store: Sessions
) -> None:
    state = with_draft(screen, pictures)
    asked: list[Any] = []

    def impression(films: list[Film], draft: Draft, text: str) -> Summary:
        asked.append((films, draft, text))
        return Summary("Left effusion. All else is clear.", ("Fracture",))

    screen.context.reporter.result().impression = impression
    shown = screen.show(events.act, state, "", {"action": "summarise"})
    assert asked == [(state.films, state.draft, state.report.findings)]
    assert state.report.impression == "Left effusion. All else is clear."
    assert "review it" in shown["status"]
    assert "does not know: Fracture" in shown["status"]
    assert store.load(state.session.id).report.impression == state.report.impression
    assert "written from what you said, without a map" in shown["report"]
    shown = screen.show(events.act, state, "", {"action": "summarise"})
    assert "says so already" in shown["status"]


def test_without_its_films_no_impression_is_written(screen: Screen, pictures: list[Path]) -> None:
    state = with_draft(screen, pictures)
    state.held = ()
    before = state.report
    shown = screen.show(events.act, state, "", {"action": "summarise"})
    assert "Drop the films" in shown["status"]
    assert state.report == before


# --------------------------------------------------------------------------------------------------------- remembered cases


def test_remembered_cases_stand_under_the_findings_and_come_back_with_a_kept_report(
    screen: Screen, pictures: list[Path], store: Sessions, tmp_path: Path
) -> None:
    memory = Memory(tmp_path / "memory")
    memory.add([(None, "A nodule in the left upper lung.", "", None)])
    screen.context = replace(screen.context, memory=lambda: memory)
    state = with_draft(screen, pictures)
    assert [case.findings for case in state.near] == ["A nodule in the left upper lung."]
    shown = screen.show(events.act, state, "", {"action": "accept", "line": 0})
    assert "Remembered cases like this film (1)" in shown["near"]
    again = SessionState()
    screen.show(events.act, again, state.session.id, {"action": "accept", "line": 1})
    assert [case.id for case in again.near] == [case.id for case in state.near]
