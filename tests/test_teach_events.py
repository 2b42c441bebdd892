"""The view functions of the Teach screen, called as its events call them, without a browser, a server or a model."""

import csv
import html
import io
import json
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emrrg_core import Draft, EmrrgError, Film
from emrrg_core.explain.occlusion import Rescored
from emrrg_core.teaching.classroom import Classes, ClassGoneError
from tests import test_read as read_tests
from tests.screen_events import Screen
from tests.test_teach import CASE, MINE, painted
from ui import teach
from ui.teach import cases, layout, learner, teacher, wiring
from ui.teach.context import Context, TeachState
from ui.teach.drafts import CELLS, Drafts
from ui.updates import Change

reporter, drafted = read_tests.reporter, read_tests.drafted  # fixtures
SECRETS = [*filter(None, CASE.findings.split("\n")), CASE.impression, *CASE.points, CASE.source]


@dataclass
class Model:
    """Stands in for the reporter: drafts our own words, or fails as it is told."""

    drafted: Callable[..., Draft]
    error: Exception | None = None
    asked: list[Any] = field(default_factory=list)

    def draft(self, films: tuple[Film, ...]) -> Draft:
        self.asked.append(films)
        if self.error:
            raise self.error
        return self.drafted(list(films))

    def rescore(self, films: Any, draft: Draft, changed: list[np.ndarray], *, earlier: Rescored | None) -> Rescored:
        self.asked.append(changed)
        count = len(draft.sentences)
        return Rescored((-3.0,) * count, (-7.5,) + (-3.0,) * (count - 1), (3,) * count)


@pytest.fixture
def model(drafted: Callable[..., Draft]) -> Model:
    return Model(drafted)


@pytest.fixture
def store(tmp_path: Path) -> Classes:
    return Classes(tmp_path / "classes")


@pytest.fixture
def screen(model: Model, store: Classes) -> Screen:
    """The screen with a model that is loaded."""
    loaded: Future[Any] = Future()
    loaded.set_result(model)
    return Screen(layout, wiring, Context(loaded, teach.SHIPPED, Drafts(loaded), lambda: store))


@pytest.fixture
def opened(screen: Screen) -> TeachState:
    """A tab in which the case is open, and nothing is written."""
    state = TeachState()
    screen.show(cases.choose, state, CASE.id)
    return state


def committed(screen: Screen, state: TeachState) -> dict[str, Any]:
    return screen.show(learner.hand_in, state, CASE.id, *MINE)


# ------------------------------------------------------------------------------------------------------------- cases


def test_the_page_lists_the_cases_before_the_model_is_loaded(store: Classes) -> None:
    def not_yet() -> Classes:
        raise AssertionError("the store waits for the model")

    loading: Future[Any] = Future()
    context = Context(loading, teach.SHIPPED, Drafts(loading), not_yet)
    shown = cases.on_load(TeachState(), "", "", context)
    assert (CASE.title, CASE.id) in shown["choice"]["choices"]
    assert "Choose a case" in shown["figures"]
    assert shown["status"] == ""
    assert "answers are fetched" in cases.on_load(TeachState(), "somebody", "", context)["status"]


def test_a_case_that_is_opened_shows_its_film_and_question_and_none_of_its_answer(screen: Screen) -> None:
    shown = screen.show(cases.choose, TeachState(), CASE.id)
    assert "film-0" in shown["figures"]
    assert CASE.question in shown["head"]
    assert (shown["writing"], shown["looking"], shown["seen"]) == tuple(
        Change(visible=seen) for seen in (True, False, False)
    )
    assert shown["commit"] == Change(interactive=True)
    assert [words for words in SECRETS if words in str(shown)] == []


def test_a_case_that_is_not_there_any_more_is_said_and_nothing_of_the_last_one_stays(
    screen: Screen, opened: TeachState
) -> None:
    shown = screen.show(cases.choose, opened, "nothing-like-it")
    assert 'role="alert"' in shown["status"]
    assert (shown["case_id"], shown["figures"], shown["head"]) == ("", "", "")
    assert shown["writing"] == Change(visible=False)
    assert opened.case is None
    assert "Choose a case" in screen.show(cases.choose, opened, None)["figures"]


def test_a_learner_who_comes_back_finds_the_case_and_the_words(screen: Screen, opened: TeachState) -> None:
    screen.show(learner.keep, opened, CASE.id, *MINE)
    tab = TeachState()
    shown = screen.show(cases.resume, tab, opened.learner.id, CASE.id)
    assert shown["findings"] == Change(value=MINE[0], interactive=True)
    assert shown["impression"] == Change(value=MINE[1], interactive=True)
    assert shown["leave"] == Change(visible=True)
    assert screen.show(cases.resume, TeachState(), "", CASE.id) == {"status": ""}
    gone = screen.show(cases.resume, TeachState(), "somebody-else", CASE.id)
    assert gone["learner_id"] == "", "the browser forgets who it was"
    assert gone["status"]


# --------------------------------------------------------------------------------------------------- write and commit


def test_words_are_kept_while_they_are_written_and_nobody_is_made_a_learner_by_empty_boxes(
    screen: Screen, store: Classes, opened: TeachState
) -> None:
    assert screen.steps(learner.keep, opened, CASE.id, None, "") == [{}]
    assert screen.steps(learner.keep, opened, CASE.id, " ", "") == [{}]
    assert screen.steps(learner.keep, opened, "", *MINE) == [{}], "no case is open"
    assert opened.learner is None
    shown = screen.show(learner.keep, opened, CASE.id, *MINE)
    assert "Kept on this server" in shown["unsaved"]
    assert shown["learner_id"] == opened.learner.id
    kept = store.answer(opened.learner.id, CASE.id)
    assert (kept.findings, kept.impression, kept.committed) == (*MINE, None)


def test_a_commit_locks_the_boxes_ticks_the_case_and_comes_before_the_draft(
    screen: Screen, store: Classes, model: Model, opened: TeachState
) -> None:
    shown = committed(screen, opened)
    assert "Your answer is committed. The model writes its draft" in shown["status"]
    assert {shown[name]["interactive"] for name in ("findings", "impression", "commit")} == {False}
    assert (f"{CASE.title} ✓", CASE.id) in shown["choice"]["choices"]
    assert shown["choice"]["value"] == CASE.id
    assert store.answer(opened.learner.id, CASE.id).committed
    assert model.asked == [], "the draft comes after"
    screen.show(learner.hand_in, opened, CASE.id, "Something else.", "")
    assert store.answer(opened.learner.id, CASE.id).findings == MINE[0]


def test_an_empty_answer_and_one_for_another_case_are_refused(screen: Screen, opened: TeachState) -> None:
    assert "Write your own report first" in screen.show(learner.hand_in, opened, CASE.id, None, " ")["unsaved"]
    assert "Choose a case first" in screen.show(learner.hand_in, opened, "another", *MINE)["status"]
    assert "Choose a case first" in screen.show(learner.hand_in, TeachState(), "", *MINE)["status"]


# ------------------------------------------------------------------------------------------------------------ compare


def test_draft_and_reference_are_shown_after_the_commit_and_not_before(
    screen: Screen, model: Model, opened: TeachState
) -> None:
    screen.show(learner.keep, opened, CASE.id, *MINE)
    assert screen.steps(learner.reveal, opened) == [{}]
    assert model.asked == []
    committed(screen, opened)
    shown = screen.show(learner.reveal, opened)
    assert all(name in shown["compared"] for name in ("Your report", "The draft", "The reference"))
    assert all(html.escape(point) in shown["compared"] for point in CASE.points)
    assert read_tests.FINDINGS[0] in shown["words"]
    assert (shown["writing"], shown["looking"], shown["seen"]) == tuple(
        Change(visible=seen) for seen in (False, True, True)
    )
    assert "canvas" in shown["brush"]


@pytest.mark.parametrize("bug", [False, True])
def test_without_a_draft_the_reference_is_shown_and_a_bug_never_lets_the_learner_wait(
    bug: bool, screen: Screen, model: Model, opened: TeachState
) -> None:
    committed(screen, opened)
    model.error = RuntimeError("a bug") if bug else EmrrgError("The disk is full.")
    steps = []
    try:
        for step in learner.reveal(opened, screen.context):
            steps.append(step)
    except RuntimeError:
        assert bug
    (shown,) = steps
    if bug:
        assert "The comparison failed" in shown["status"]
    else:
        assert "The disk is full." in shown["status"]
        assert "There is no draft." in shown["compared"]
        assert shown["looking"] == shown["seen"] == Change(visible=False)


def test_another_case_that_was_opened_meanwhile_is_not_overwritten(
    screen: Screen, model: Model, opened: TeachState
) -> None:
    committed(screen, opened)
    first = model.drafted

    def opens_another(films: list[Film]) -> Draft:
        screen.show(cases.choose, opened, None if len(screen.context.cases().cases) < 2 else _other(screen))
        return first(films)

    model.drafted = opens_another
    assert screen.steps(learner.reveal, opened) == []
    assert opened.draft is None


def _other(screen: Screen) -> str:
    return next(case.id for case in screen.context.cases().cases if case.id != CASE.id)


def test_a_sentence_and_a_finding_show_their_maps_and_nothing_does_before_the_commit(
    screen: Screen, opened: TeachState
) -> None:
    assert screen.steps(learner.look, opened, {"index": [0, None]}) == [{}]
    assert screen.steps(learner.look_at_finding, opened, {"index": "effusion"}) == [{}]
    assert screen.steps(learner.paint, opened, {}) == []
    committed(screen, opened)
    screen.show(learner.reveal, opened)
    sentence = screen.show(learner.look, opened, {"index": [1, None]})
    assert read_tests.FINDINGS[1] in sentence["caption"]
    finding = screen.show(learner.look_at_finding, opened, {"index": "effusion"})
    assert "stated from" in finding["caption"]
    assert "#teach-view .film-0 .rr-map" in sentence["layers"]
    assert sentence["layers"] != finding["layers"]
    assert screen.steps(learner.look, opened, {"index": "nonsense"}) == [{}]


def test_what_is_painted_is_read_again_and_nonsense_is_refused_in_a_sentence(
    screen: Screen, model: Model, opened: TeachState
) -> None:
    committed(screen, opened)
    screen.show(learner.reveal, opened)
    mask = np.zeros((CELLS, CELLS), bool)
    mask[:56] = True
    busy, done = screen.steps(learner.paint, opened, painted(mask))
    assert 'aria-busy="true"' in busy["moved"]
    assert "less likely (−4.50)" in done["moved"]
    (changed,) = model.asked[-1]
    film = opened.films[0].pixels
    half = film.shape[0] // 2
    assert np.ptp(changed[: half - 1]) == 0, "the upper half is blank"
    assert np.array_equal(changed[half + 1 :], film[half + 1 :])
    assert "Paint again" in screen.steps(learner.paint, opened, {"fill": "blank"})[-1]["moved"]


# -------------------------------------------------------------------------------------------------- classes and leaving


def test_a_learner_joins_a_class_under_a_pseudonym_and_leaves_the_computer(
    screen: Screen, store: Classes, opened: TeachState
) -> None:
    made, _ = store.begin("Year 4")
    assert 'role="alert"' in screen.show(learner.enrol, opened, "XXX-XXX", "Owl")["joined"]
    shown = screen.show(learner.enrol, opened, made.code.lower(), "Owl")
    assert "You are <b>Owl</b>" in shown["whom"]
    assert (shown["joined"], shown["code"], shown["name"], shown["case_id"]) == ("", "", "", "")
    left = screen.show(learner.leave_computer, opened)
    assert "You practise alone" in left["whom"]
    assert left["learner_id"] == ""
    assert (opened.learner, opened.case, opened.films) == (None, None, ())


def test_leaving_deletes_what_one_who_practises_alone_wrote(screen: Screen, store: Classes, opened: TeachState) -> None:
    screen.show(learner.keep, opened, CASE.id, *MINE)
    id = opened.learner.id
    screen.show(learner.leave_computer, opened)
    with pytest.raises(ClassGoneError):
        store.learner(id)


# ---------------------------------------------------------------------------------------------------------- the teacher


def test_a_teacher_begins_a_class_sees_every_answer_exports_and_ends_it(screen: Screen, store: Classes) -> None:
    begun = screen.show(teacher.begin_class, "Year 4", "30 days")
    pupil = TeachState()
    screen.show(learner.enrol, pupil, store.open(begun["key"]).code, "Owl")
    screen.show(cases.choose, pupil, CASE.id)
    committed(screen, pupil)

    state = TeachState()
    assert screen.steps(teacher.survey, state, CASE.id) == [{}], "without the key nothing is shown"
    refused = screen.show(teacher.unlock, state, "no key")
    assert refused.keys() == {"opening"}
    assert state.key == ""
    shown = screen.show(teacher.unlock, state, begun["key"])
    assert shown["class_view"] == Change(visible=True)
    assert shown["key"] == "", "the key does not stay on the screen"

    at_once, with_draft = screen.steps(teacher.survey, state, CASE.id)
    assert "1 answer to this case" in at_once["facts"]
    assert "Owl" in at_once["every"]
    assert "The draft" not in at_once["every"]
    assert "The draft" in with_draft["every"]
    assert len(screen.steps(teacher.survey, state, CASE.id)) == 1, "the draft is there already"

    file = json.loads(screen.show(teacher.export_class, state)["download"])
    rows = list(csv.DictReader(io.StringIO(file["body"].lstrip("\ufeff"), newline="")))
    assert [row["pseudonym"] for row in rows if row["row"] == "learner"] == ["Owl"]

    ended = screen.show(teacher.end_class, state)
    assert "its answers are deleted" in ended["opening"]
    assert ended["class_view"] == Change(visible=False)
    assert state.key == ""
    with pytest.raises(ClassGoneError):
        store.open(begun["key"])


def test_a_class_that_ended_elsewhere_closes_the_view_and_says_so(screen: Screen, store: Classes) -> None:
    _, key = store.begin("Year 4")
    state = TeachState(key=key)
    store.end(key)
    shown = screen.show(teacher.survey, state, CASE.id)
    assert shown["class_view"] == Change(visible=False)
    assert 'role="alert"' in shown["opening"]
    assert state.key == ""


def test_closing_the_view_leaves_the_class(screen: Screen, store: Classes) -> None:
    _, key = store.begin("Year 4")
    state = TeachState(key=key)
    assert screen.show(teacher.close_class, state)["every"] == ""
    assert state.key == ""
    assert store.open(key)
