"""The view functions of the Teach screen, called as its events call them, without a browser, a server or a model."""

import asyncio
import csv
import html
import io
import json
import re
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest

from emrrg_core import Draft, EmrrgError, Film
from emrrg_core.explain.occlusion import Rescored
from emrrg_core.teaching.cases import CaseBox
from emrrg_core.teaching.classroom import Classes, ClassGoneError
from emrrg_core.teaching.locate import Mark, plain_marks
from tests import test_read as read_tests
from tests.phantom import make_phantom
from tests.screen_events import Screen
from tests.test_teach import CASE, MINE, painted
from ui import teach
from ui.teach import author, cases, layout, learner, teacher, wiring
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
    return screen.show(learner.hand_in, state, CASE.id, *MINE, "")


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
    screen.show(learner.hand_in, opened, CASE.id, "Something else.", "", "")
    assert store.answer(opened.learner.id, CASE.id).findings == MINE[0]


def test_an_empty_answer_and_one_for_another_case_are_refused(screen: Screen, opened: TeachState) -> None:
    assert "Write your own report first" in screen.show(learner.hand_in, opened, CASE.id, None, " ", "")["unsaved"]
    assert "Choose a case first" in screen.show(learner.hand_in, opened, "another", *MINE, "")["status"]
    assert "Choose a case first" in screen.show(learner.hand_in, TeachState(), "", *MINE, "")["status"]


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
    assert "▼ 90 × less likely" in done["moved"]
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


# --------------------------------------------------------------------------------------------------- marks on the films


def told(*marks: Mark) -> str:
    """As the page holds them."""
    return json.dumps(plain_marks(marks))


def test_marks_are_kept_before_the_draft_and_come_back_and_nonsense_is_refused_in_a_sentence(
    screen: Screen, store: Classes, model: Model, opened: TeachState
) -> None:
    assert screen.steps(learner.keep_marks, opened, CASE.id, "") == [{}], "nothing to mark on is there"
    shown = screen.show(learner.keep_marks, opened, CASE.id, told(Mark("Edema", 0, 0.25, 0.5)))
    assert "Kept on this server" in shown["unsaved"]
    assert store.answer(opened.learner.id, CASE.id).marks == (Mark("Edema", 0, 0.25, 0.5),)
    tab = TeachState()
    back = screen.show(cases.resume, tab, opened.learner.id, CASE.id)
    assert html.escape(told(Mark("Edema", 0, 0.25, 0.5))) in back["marking"]
    assert "Mark again" in screen.show(learner.keep_marks, opened, CASE.id, "[7]")["unsaved"]
    assert "Mark again" in screen.show(learner.hand_in, opened, CASE.id, *MINE, "not json")["unsaved"]
    assert store.answer(opened.learner.id, CASE.id).committed is None
    assert model.asked == []


def test_boxes_and_contours_are_drawn_over_the_marks_after_the_commit_and_not_before(
    screen: Screen, opened: TeachState
) -> None:
    (box,) = CASE.places() or ()
    hit = Mark(box.finding, 0, box.x + box.width / 2, box.y + box.height / 2)
    before = screen.show(cases.choose, TeachState(), CASE.id)
    assert "rr-truth" not in str(before)
    assert "rr-plate" in before["marking"]
    screen.show(learner.hand_in, opened, CASE.id, *MINE, told(hit, Mark("Fracture", 0, 0.1, 0.1, 0.2, 0.2)))
    shown = screen.show(learner.reveal, opened)
    assert "1 of 1 finding located" in shown["located"]
    assert "1 false mark" in shown["located"]
    assert "the model’s contour of it" in shown["located"]
    assert [word for word in ("hit", "false") if f'data-verdict="{word}"' in shown["located"]] == ["hit", "false"]
    assert shown["marking"].count('class="rr-spot') == 2
    assert shown["marking"].count('class="rr-truth') == 1
    assert 'class="rr-stated"' in shown["marking"]
    assert "rr-plate" not in shown["marking"], "nothing can be marked any more"


def test_a_box_that_does_not_fit_its_film_hides_nothing_else(screen: Screen, opened: TeachState) -> None:
    committed(screen, opened)
    wide = CaseBox("Edema", 0, (0.0, 0.0, 5000.0, 5.0), None)
    opened.case = replace(CASE, boxes=(wide,))
    shown = screen.show(learner.reveal, opened)
    assert "ends outside film 1" in shown["located"]
    assert "The reference" in shown["compared"]


def test_a_class_is_seen_on_the_film_and_counted_finding_by_finding_and_learner_by_learner(
    screen: Screen, store: Classes
) -> None:
    made, key = store.begin("Year 4")
    (box,) = CASE.places() or ()
    for name, place in (("Owl", box.x + 0.01), ("<Fox>", 0.01)):
        pupil = TeachState()
        screen.show(learner.enrol, pupil, made.code, name)
        screen.show(cases.choose, pupil, CASE.id)
        screen.show(learner.hand_in, pupil, CASE.id, *MINE, told(Mark(box.finding, 0, place, box.y + 0.01)))
    state = TeachState()
    screen.show(teacher.unlock, state, key)
    every = screen.show(teacher.survey, state, CASE.id)["every"]
    assert 'title="Owl: Pleural Effusion, hit"' in every
    assert "&lt;Fox&gt;: Pleural Effusion, nothing of it there" in every
    assert "<Fox>" not in every
    row = every.partition('<th scope="row">Pleural Effusion</th>')[2].partition("</tr>")[0]
    assert re.findall(r">([^<]+)</td>", row) == ["yes", "2 of 2", "1 of 2"]
    file = json.loads(screen.show(teacher.export_class, state)["download"])
    rows = list(csv.DictReader(io.StringIO(file["body"].lstrip("\ufeff"), newline="")))
    mine = [row for row in rows if row["row"] == "learner"]
    assert [row["boxes_hit"] for row in mine] == ["1", "0"]
    assert all(row["marks_in_model_map"] in ("0", "1") for row in mine)


# ------------------------------------------------------------------------------------------------------- search and tags


def test_the_list_is_narrowed_by_words_and_tags_and_never_by_what_the_reference_says(
    screen: Screen, opened: TeachState
) -> None:
    def ids(words: str, *tags: str) -> list[str]:
        return [id for _, id in screen.show(cases.narrow, opened, words, list(tags))["choice"]["choices"]]

    every = [case.id for case in screen.context.cases().cases]
    assert ids("") == every
    assert ids("CASE 2") == ["case-02"]
    assert ids("", "cough") == ["case-03", "case-04"]
    assert ids("", "cough", "moderate") == ["case-04"]
    assert ids("", "cough", "before surgery") == []
    assert ids("fever", "cough") == ["case-04"]
    assert ids("nodule") == ids("effusion") == []
    shown = screen.show(cases.narrow, opened, "case 2", [])
    assert f"1 of {len(every)} cases" in shown["matches"]
    assert shown["choice"]["value"] is None, "the one that is open is not listed, and stays open"
    assert opened.case is not None
    loaded = screen.show(cases.on_load, TeachState(), "", "")
    assert {"cough", "easy", "moderate"} <= set(loaded["tags"]["choices"])


# ------------------------------------------------------------------------------------------------------------ authoring


@pytest.fixture
def desk(screen: Screen, tmp_path: Path) -> Screen:
    """The screen of a server on which cases may be made."""
    screen.context = replace(screen.context, own=lambda: tmp_path / "own", author=True)
    return screen


FILLED = ("Night 7", "", "A nodule.", "", "night, own", "Look twice.\n", "", "", "hard")


def test_a_case_is_made_of_dropped_films_and_listed_beside_the_others(desk: Screen, tmp_path: Path) -> None:
    state = TeachState()
    assert desk.show(author.begin, state)["author"] == Change(visible=True)
    (tmp_path / "up").mkdir()
    film, other = tmp_path / "up" / "a.dcm", tmp_path / "b.txt"
    make_phantom(3, height=150, width=130).save_dicom(film)
    other.write_text("no film")
    shown = desk.show(author.take, state, [str(film), str(other)])
    assert not film.exists()
    assert not other.exists()
    assert "File 2 was not taken" in shown["new_notice"]
    assert "rr-plate" in shown["new_marking"]
    box = told(Mark("Lung Lesion", 0, 0.1, 0.1, 0.2, 0.2))
    assert "Look at every film first" in desk.show(author.save, state, *FILLED, False, False, box)["made"]
    assert "Give the case a title" in desk.show(author.save, state, "", *FILLED[1:], False, True, box)["made"]
    assert "nothing is to be found" in desk.show(author.save, state, *FILLED, True, True, box)["made"]
    saved = desk.show(author.save, state, *FILLED, False, True, box)
    assert "“Night 7” is in the list" in saved["made"]
    assert ("Night 7", "night-7") in saved["choice"]["choices"]
    assert {"night", "own", "hard"} <= set(saved["tags"]["choices"])
    assert saved["author"] == Change(visible=False)
    assert state.making == ()
    case = desk.context.cases()["night-7"]
    assert (case.points, len(case.boxes or ())) == (("Look twice.",), 1)
    assert (tmp_path / "own" / "night-7.toml").is_file()


def test_a_report_of_another_screen_fills_the_form_in(desk: Screen, opened: TeachState) -> None:
    shown = author.offer(opened, opened.films, "A nodule.", "Nodule.", desk.context)
    assert shown["author"] == Change(visible=True)
    assert (shown["new_findings"], shown["new_impression"], shown["new_title"]) == ("A nodule.", "Nodule.", "")
    assert "rr-plate" in shown["new_marking"]
    assert shown.keys() <= set(author.FORM)
    assert "is in the list" in desk.show(author.save, opened, *FILLED, True, True, "[]")["made"]
    assert desk.context.cases()["night-7"].boxes == ()


def test_what_is_burned_in_is_told_before_a_case_is_made_of_it(desk: Screen, opened: TeachState) -> None:
    film = replace(opened.films[0], annotated=True)
    shown = author.offer(opened, [film], "A nodule.", "", desk.context)
    assert "burned into its pixels" in shown["new_notice"]


def test_where_cases_may_not_be_made_nothing_is_written(screen: Screen, opened: TeachState, tmp_path: Path) -> None:
    screen.context = replace(screen.context, folder=tmp_path / "none", author=False)
    opened.making = opened.films
    for shown in (
        screen.show(author.begin, opened),
        screen.show(author.save, opened, *FILLED, True, True, ""),
        author.offer(opened, opened.films, "A nodule.", "", screen.context),
    ):
        assert "cannot be made on this server" in str(shown)
        assert "author" not in shown
    assert not (tmp_path / "none").exists()


def test_a_space_makes_no_cases_unless_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def allowed(asked: bool | None) -> bool:
        async def build() -> bool:
            with gr.Blocks(analytics_enabled=False) as demo:
                return teach.screen(demo, Future(), author=asked).allowed

        return asyncio.run(build())

    monkeypatch.delenv("SPACE_ID", raising=False)
    assert allowed(None)
    monkeypatch.setenv("SPACE_ID", "somebody/emrrg")
    assert not allowed(None)
    assert allowed(True)


def test_another_screen_may_hand_over_a_report_by_an_event_of_its_own() -> None:
    async def build() -> list[Any]:
        with gr.Blocks(analytics_enabled=False) as demo:
            with gr.Tabs() as tabs:
                with gr.Tab("Read", id="read"):
                    button, text = gr.Button(), gr.Textbox(label="Words")
                with gr.Tab("Teach", id="teach"):
                    desk = teach.screen(demo, Future(), author=True)
            desk.offered(button.click, [text], lambda words: ((), words, ""), tabs)
        return [event for event in demo.fns.values() if (button._id, "click") in event.targets]

    (event,) = asyncio.run(build())
    assert event.inputs[1].label == "Words"
    assert len(event.outputs) == len(author.FORM)
