"""The Teach screen in a real browser: write first, then compare; a class and its teacher; the brush; nothing is shown too early."""

import base64
import csv
import io
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import app
from emrrg_core import EmrrgError, Reporter, compare, read_cases
from emrrg_core.explain.occlusion import Fill, Rescored
from emrrg_core.teaching.classroom import Answer
from tests.phantom import make_phantom
from tests.test_app import SLOW, Server, browser_page
from tests.test_cases import WHEN
from ui import teach, teach_html
from ui.teach import drafts

CASE = read_cases(teach.SHIPPED).cases[0]
MINE = ("There is a left pleural effusion. The heart is enlarged.", "Left effusion.")

# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_what_anybody_typed_is_shown_as_text_and_never_as_html():
    evil = "<img src=x onerror=alert(1)>"
    case = replace(CASE, title=evil, question=evil, points=(evil,), source=evil, licence=evil, findings=evil)
    found = compare((evil, evil), (evil, "Normal."))
    answer = Answer(evil, "a", evil, evil, WHEN, WHEN)
    for drawn in (
        teach_html.head(case),
        teach_html.beside(case, found, found),
        teach_html.beside(case, found, None),
        teach_html.answers(case, [answer], [found], found),
        teach_html.problems(replace(read_cases(teach.SHIPPED), problems=(evil,))),
    ):
        assert "&lt;img" in drawn
        assert "<img" not in drawn


def test_a_sentence_says_in_a_word_and_a_sign_what_it_is_to_the_reference():
    found = compare(("There is no pleural effusion. The heart is enlarged.", ""), (CASE.findings, CASE.impression))
    drawn = teach_html.beside(CASE, found, None)
    assert "contradicts the reference" in drawn
    assert "✕" in drawn
    assert "There is no draft." in drawn
    assert drawn.count("You: ") == len(found.reference)
    assert "Draft: " not in drawn
    assert all(point[:20] in drawn for point in CASE.points)


def test_every_label_of_either_report_has_a_row():
    mine = compare(MINE, (CASE.findings, CASE.impression), CASE.labels)
    other = compare(("Fracture.", ""), (CASE.findings, CASE.impression), CASE.labels)
    drawn = teach_html.labels(mine, other)
    for name in {row.label for found in (mine, other) for row in found.labels}:
        assert f'<th scope="row">{name}</th>' in drawn


def test_sentences_that_move_say_so_and_the_others_say_that_they_do_not(reporter, drafted):
    count = len(drafted.sentences)
    found = Rescored((-3.0,) * count, (-7.5,) + (-3.0,) * (count - 1), (3,) * count)
    drawn = teach_html.moved(drafted, found)
    assert [float(x) for x in re.findall(r'data-change="([^"]+)"', drawn)] == list(found.change)
    assert drawn.count("<b>▼ 90 × less likely</b>") == 1
    assert drawn.count("<b>as before</b>") == count - 1
    assert f"{100 * np.exp(-1):.1f}" in drawn
    assert 'aria-busy="true"' in teach_html.moved(drafted, None, busy=True)


def painted(*masks: np.ndarray, fill: str = "blank") -> dict:
    return {"fill": fill, "masks": [base64.b64encode(np.packbits(mask).tobytes()).decode() for mask in masks]}


def test_what_the_browser_paints_arrives_bit_by_bit():
    mask = np.random.default_rng(0).random((drafts.CELLS, drafts.CELLS)) < 0.5
    fill, (there, empty) = drafts.marked(painted(mask, np.zeros_like(mask), fill="side"), 2)
    assert fill == Fill.SIDE
    assert np.array_equal(there, mask)
    assert not empty.any()


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        {},
        {"fill": "blank", "masks": []},
        {"fill": "blank", "masks": ["AAAA"]},
        {"fill": "blank", "masks": ["not base64!"]},
        {"fill": "blank", "masks": [7]},
        painted(np.zeros((112, 112), bool), fill="erase"),
        painted(np.zeros((112, 112), bool), np.zeros((112, 112), bool)),
    ],
)
def test_anything_else_that_arrives_is_refused_in_a_sentence(wrong):
    with pytest.raises(EmrrgError, match="Paint again"):
        drafts.marked(wrong, 1)


@pytest.fixture(scope="module")
def reporter(checkpoint: Path) -> Reporter:
    return Reporter.load(checkpoint, download=False)


@pytest.fixture(scope="module")
def drafted(reporter):
    return reporter.draft(CASE.read())


def test_a_case_is_drafted_once_for_all_who_answer_it(reporter):
    soon: Future[Reporter] = Future()
    soon.set_result(reporter)
    made = drafts.Drafts(soon)
    assert made.known(CASE) is None
    first = made.of(CASE, CASE.read())
    assert made.of(CASE, CASE.read()) is first
    assert made.known(CASE) is first


def test_the_folder_of_cases_is_an_option_or_else_an_environment_variable(monkeypatch, tmp_path):
    given = []

    def build(_: object, *, cases: Path | None, memory: str | None, author: bool | None) -> None:
        given.append(cases)
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "build_demo", build)
    monkeypatch.setattr(app.signal, "signal", lambda *_: None)
    for variable, options in (("there", []), ("there", ["--cases", "here"]), ("", [])):
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
        monkeypatch.setenv("EMRRG_CASES", variable)
        assert app.main(options) == 0
    assert given == [Path("there"), Path("here"), None]


# --- in the browser ---------------------------------------------------------------------------------------------------

# All that the server says to the page, also what is not shown: gathered while it streams in.
HEARING = """
window.heard = '';
const plain = window.fetch;
window.fetch = async (...asked) => {
    const answer = await plain(...asked), copy = answer.clone(), words = new TextDecoder();
    if (copy.body) (async () => {
        for (const reader = copy.body.getReader();;) {
            const {done, value} = await reader.read();
            if (done) break;
            window.heard += words.decode(value, {stream: true});
        }
    })().catch(() => {});
    return answer;
};
"""


@pytest.fixture(scope="module")
def server(reading_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    chosen = Path(os.environ.get("EMRRG_TEST_CHECKPOINT", reading_checkpoint))
    running = Server(tmp_path_factory.mktemp("server"), chosen)
    try:
        yield running
    finally:
        running.stop()


def faults(wrong: list[str]) -> list[str]:
    """Without what Gradio logs when a page is left while an answer streams in."""
    return [line for line in wrong if "AbortError" not in line and "errored out" not in line]


def enter(page, address: str) -> None:
    page.goto(address)
    page.get_by_role("tab", name="Teach").click()
    page.locator("#teach-cases label").first.wait_for()


def choose(page, title: str = CASE.title) -> None:
    page.locator("#teach-cases label").filter(has_text=title).click()
    page.locator("#teach-head").get_by_text(title).wait_for()


def write(page, findings: str, impression: str) -> None:
    page.locator("#teach-findings textarea").fill(findings)
    page.locator("#teach-impression textarea").fill(impression)
    page.locator("#teach-saved").get_by_text("Kept on this server").wait_for()


def changes(page) -> list[float]:
    return [float(row.get_attribute("data-change")) for row in page.locator("#teach-moved li").all()]


MAP = "getComputedStyle(document.querySelector('#teach-films .film-0 .rr-map')).backgroundImage"


def test_a_learner_writes_first_and_sees_draft_and_reference_only_after(server: Server) -> None:
    with browser_page(1440, 900) as (page, wrong, expect):
        page.add_init_script(HEARING)
        enter(page, server.address)
        expect(page.locator("#teach-films")).to_contain_text("Choose a case")
        choose(page)
        expect(page.locator("#teach-films .film-0 img")).to_be_visible()
        page.click("#teach-commit")
        expect(page.locator("#teach-saved [role=alert]")).to_contain_text("Write your own report first")
        write(page, MINE[0], MINE[1])

        secrets = [line for line in CASE.findings.split("\n") if line] + [CASE.impression, *CASE.points, CASE.source]
        everything = page.content() + page.evaluate("heard + JSON.stringify(window.gradio_config)")
        assert CASE.question in everything
        assert [line for line in secrets if line in everything] == []

        page.reload()  # what was written is kept, and the case is open again
        page.get_by_role("tab", name="Teach").click()
        expect(page.locator("#teach-findings textarea")).to_have_value(MINE[0])
        expect(page.locator("#teach-impression textarea")).to_have_value(MINE[1])
        assert [line for line in secrets if line in page.content() + page.evaluate("heard")] == []

        page.click("#teach-commit")
        expect(page.locator("#teach-status")).to_contain_text("Your answer is committed")
        columns = page.locator("#teach-compared .rr-three > section")
        expect(columns).to_have_count(3)
        for column, said in zip(columns.all(), ("Your report", "The draft", "The reference"), strict=True):
            expect(column.locator("h3")).to_contain_text(said)
            assert column.locator("li").count() > 0
        expect(columns.nth(0)).to_contain_text("The heart is enlarged. contradicts the reference")
        assert columns.nth(2).locator("li").count() == len(compare(MINE, (CASE.findings, CASE.impression)).reference)
        expect(columns.nth(2)).to_contain_text("The visualized bones are unremarkable. You: – not said")
        expect(page.locator("#teach-compared")).to_contain_text("BLEU-1")
        expect(page.locator("#teach-compared")).to_contain_text(CASE.points[0])
        expect(page.locator("#teach-cases")).to_contain_text(f"{CASE.title} ✓")
        expect(page.locator("#teach-findings")).to_be_hidden()

        page.locator("#teach-words .rr-head").first.click()
        expect(page.locator("#teach-caption")).to_contain_text("The brighter a place")
        page.wait_for_function(
            "getComputedStyle(document.querySelector('#teach-films .film-0 .rr-map')).backgroundImage != 'none'"
        )
        of_sentence = page.evaluate(MAP)
        expect(page.locator("#teach-read")).to_contain_text("Not assessed: ")
        page.locator("#teach-read .rr-find").last.click()
        expect(page.locator("#teach-caption")).to_contain_text("stated from")
        page.wait_for_function(f"old => {MAP} != old && {MAP} != 'none'", arg=of_sentence)
        expect(page.locator("#teach-words [aria-pressed=true]")).to_have_count(0)

        page.reload()
        page.get_by_role("tab", name="Teach").click()
        expect(page.locator("#teach-compared .rr-three > section")).to_have_count(3)
        expect(page.locator("#teach-compared")).to_contain_text("The heart is enlarged.")
        expect(page.locator("#teach-findings")).to_be_hidden()
        assert faults(wrong) == []
    assert "Traceback" not in server.output()


def test_the_brush_moves_the_sentences_and_an_untouched_film_moves_none(server: Server) -> None:
    with browser_page(1440, 900) as (page, wrong, expect):
        enter(page, server.address)
        choose(page)
        write(page, MINE[0], MINE[1])
        page.click("#teach-commit")
        rows = page.locator("#teach-moved li")
        expect(rows.first).to_be_visible()
        sentences = page.locator("#teach-words .rr-sentence").count()
        assert rows.count() == sentences, "every sentence of the draft, in its order"

        canvas = page.locator("#teach-brush canvas")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.5 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.8 * box["height"], steps=8)
        page.mouse.up()
        moved = page.locator("#teach-moved li:not([data-change='0.0'])")
        expect(moved.first).to_be_visible()
        first = changes(page)
        assert len(first) == sentences
        assert (
            canvas.evaluate("c => c.getContext('2d').getImageData(c.width * 0.75, c.height * 0.65, 1, 1).data[3]")
            == 255
        )

        page.get_by_label("Swap with another chest").check()
        page.wait_for_function(
            "first => { const rows = [...document.querySelectorAll('#teach-moved li')].map((row) => Number(row.dataset.change));"
            " return rows.some(Boolean) && rows.join() !== first; }",
            arg=",".join(map(str, first)),
        )
        page.get_by_role("button", name="Clear").click()
        expect(moved).to_have_count(0)
        assert changes(page) == [0.0] * sentences, "exactly"

        canvas.focus()  # by keyboard
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Space")
        expect(moved.first).to_be_visible()
        page.keyboard.press("Backspace")
        expect(moved).to_have_count(0)
        assert changes(page) == [0.0] * sentences
        assert faults(wrong) == []
    assert "Traceback" not in server.output()


def mark(page, finding: str, *corners: tuple[float, float], where: str = "#teach-marking") -> None:
    """Press on one place of the film, or drag from one to another; places are shares of the film."""
    page.select_option(f"{where} [data-set=finding]", finding)
    plate = page.locator(f"{where} .rr-plate")
    plate.scroll_into_view_if_needed()
    box = plate.bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    page.mouse.move(*places[0])
    page.mouse.down()
    page.mouse.move(*places[-1], steps=4)
    page.mouse.up()


def test_a_learner_marks_where_findings_are_and_sees_box_and_contour_over_them_after_the_commit(server: Server) -> None:
    (box,) = CASE.places() or ()
    middle = (box.x + box.width / 2, box.y + box.height / 2)
    with browser_page(1440, 900) as (page, wrong, expect):
        page.add_init_script(HEARING)
        enter(page, server.address)
        choose(page)
        page.locator("#teach-marking").get_by_role("button", name="Mark findings").click()
        spots = page.locator("#teach-marking .rr-spot")
        page.locator("#teach-marking .rr-plate").click()
        expect(page.locator("#teach-marking .rr-marks-said")).to_contain_text("Choose a finding first")
        mark(page, box.finding, middle)
        mark(page, "Lung Lesion", (0.2, 0.2), (0.3, 0.3))
        expect(spots).to_have_count(2)
        page.locator("#teach-marking .rr-plate").focus()  # by keyboard
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        expect(spots).to_have_count(3)
        page.keyboard.press("Backspace")
        expect(spots).to_have_count(2)
        expect(page.locator("#teach-saved")).to_contain_text("Kept on this server")
        write(page, *MINE)

        page.reload()
        page.get_by_role("tab", name="Teach").click()
        page.locator("#teach-marking").get_by_role("button", name="Mark findings (2)").click()
        expect(spots).to_have_count(2)
        assert page.locator(".rr-truth").count() == 0
        assert "rr-truth" not in page.evaluate("heard"), "the boxes come after the commit"

        mark(page, "Fracture", (0.5, 0.1))
        page.click("#teach-commit")  # at once: the last mark is kept too
        located = page.locator("#teach-located")
        expect(located).to_contain_text("1 of 1 finding located")
        expect(located).to_contain_text("2 false marks")
        verdicts = [row.get_attribute("data-verdict") for row in located.locator("li").all()]
        assert verdicts == ["hit", "false", "false"]
        truth = page.locator("#teach-marking .rr-truth")
        expect(truth).to_be_visible()
        expect(spots).to_have_count(3)
        assert page.locator("#teach-marking .rr-plate").count() == 0, "nothing can be marked any more"

        page.mouse.move(1100, 700)
        page.mouse.wheel(0, 500)
        page.wait_for_timeout(500)
        film = page.locator("#teach-marking .rr-paper").bounding_box()
        assert film["y"] >= 0
        assert film["y"] + film["height"] <= 900, "the film stays in sight while texts are compared"
        page.set_viewport_size({"width": 390, "height": 844})
        page.locator("#teach-compared .rr-three > section").nth(1).evaluate("one => one.scrollIntoView({block: 'end'})")
        page.wait_for_timeout(500)
        pinned = page.locator("#teach-view").bounding_box()
        assert pinned["y"] >= 0
        assert pinned["height"] <= 0.4 * 844 + 1
        assert page.evaluate("document.documentElement.scrollWidth") <= 390

        page.set_viewport_size({"width": 1440, "height": 900})
        page.reload()
        page.get_by_role("tab", name="Teach").click()
        expect(located).to_contain_text("1 of 1 finding located")
        assert faults(wrong) == []
    assert "Traceback" not in server.output()


@pytest.mark.slow
def test_a_case_is_made_on_the_page_answered_by_a_learner_and_seen_by_the_class_teacher(
    server: Server, tmp_path: Path
) -> None:
    drawn = make_phantom(22, lesion="nodule", side="right")
    x, y, w, h = (share / side for share, side in zip(drawn.box, drawn.pixels.shape[::-1] * 2, strict=True))
    drawn.save_dicom(tmp_path / "DOE.dcm")
    with browser_page(1440, 900) as (page, wrong, expect):
        enter(page, server.address)
        page.get_by_role("button", name="For teachers").click()
        page.click("#teach-make")
        page.set_input_files("#teach-new-films input[type=file]", str(tmp_path / "DOE.dcm"))
        expect(page.locator("#teach-new-marking .rr-plate")).to_be_visible()
        mark(page, "Lung Lesion", (x - 0.01, y - 0.01), (x + w + 0.01, y + h + 0.01), where="#teach-new-marking")
        expect(page.locator("#teach-new-marking .rr-rect")).to_have_count(1)
        for name, words in {
            "title": "Night shift 7",
            "findings": "A nodule in the right lower lung zone.",
            "impression": "Right lower lung nodule.",
            "tags": "night, own",
        }.items():
            page.locator(f"#teach-new-{name} textarea, #teach-new-{name} input").fill(words)
        page.click("#teach-save")
        expect(page.locator("#teach-made [role=alert]")).to_contain_text("Look at every film first")
        page.get_by_label("I have looked at every film").check()
        page.click("#teach-save")
        expect(page.locator("#teach-made")).to_contain_text("“Night shift 7” is in the list")
        expect(page.locator("#teach-author")).to_be_hidden()
        (written,) = (server.home / "cases").glob("*.toml")
        assert written.stem == "night-shift-7"
        assert "DOE" not in written.read_text()

        rows = page.locator("#teach-cases label")
        everything = rows.count()
        page.locator("#teach-search textarea, #teach-search input").fill("shift")
        expect(rows).to_have_count(1)
        page.locator("#teach-search textarea, #teach-search input").fill("nodule")  # of the reference
        expect(rows).to_have_count(0)
        page.locator("#teach-search textarea, #teach-search input").fill("")
        expect(rows).to_have_count(everything)
        page.locator("#teach-tags label").filter(has_text="own").click()
        expect(rows).to_have_count(1)

        page.click("#teach-begin")
        code = page.locator("#teach-begun .rr-code").inner_text()
        pupil = page.context.browser.new_context(viewport={"width": 1000, "height": 900}).new_page()
        pupil.set_default_timeout(SLOW)
        enter(pupil, server.address)
        pupil.get_by_role("button", name="Join a class").click()
        pupil.get_by_label("Class code").fill(code)
        pupil.get_by_label("Pseudonym").fill("Owl")
        pupil.click("#teach-join-now")
        expect(pupil.locator("#teach-who")).to_contain_text("You are Owl")
        choose(pupil, "Night shift 7")
        pupil.locator("#teach-marking").get_by_role("button", name="Mark findings").click()
        mark(pupil, "Lung Lesion", (x + w / 2, y + h / 2))
        mark(pupil, "Fracture", (0.8, 0.3))
        write(pupil, "Left pleural effusion.", "")
        pupil.click("#teach-commit")
        expect(pupil.locator("#teach-located")).to_contain_text("1 of 1 finding located")
        expect(pupil.locator("#teach-compared .rr-differ")).to_contain_text("Lung Lesion: missed (right, lower zone)")

        choose(page, "Night shift 7")
        page.click("#teach-open")
        over = page.locator("#teach-answers .rr-marking")
        expect(over.locator(".rr-spot")).to_have_count(2)
        assert over.locator(".rr-spot").first.get_attribute("title") == "Owl: Lung Lesion, hit"
        expect(over.locator(".rr-truth")).to_have_count(1)
        lesion = page.locator(".rr-tally-findings tr").filter(has_text="Lung Lesion").locator("td")
        assert lesion.all_inner_texts() == ["yes", "0 of 1", "1 of 1"]
        owl = page.locator(".rr-tally-learners tr").filter(has_text="Owl").locator("td")
        assert owl.all_inner_texts()[2:4] == ["1 of 1", "1"]
        assert page.evaluate("document.documentElement.scrollWidth") <= 1440
        page.set_viewport_size({"width": 390, "height": 844})
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.set_viewport_size({"width": 1440, "height": 900})
        with page.expect_download() as download:
            page.click("#teach-export")
        text = Path(download.value.path()).read_bytes().decode("utf-8-sig")
        row = list(csv.DictReader(io.StringIO(text, newline="")))[-1]
        assert (row["boxes_hit"], row["marks_false"]) == ("1", "1")
        assert row["marks"].startswith("Lung Lesion, film 1 at ")
        assert faults(wrong) == []
    assert "Traceback" not in server.output()
    assert "DOE" not in server.output()


def test_two_learners_of_one_class_and_their_teacher_who_alone_sees_and_exports_all(server: Server) -> None:
    with browser_page(1440, 900) as (teacher, wrong, expect):
        enter(teacher, server.address)
        teacher.get_by_role("button", name="For teachers").click()
        teacher.get_by_label("Name of the class").fill("Year <4>")
        teacher.click("#teach-begin")
        code = teacher.locator("#teach-begun .rr-code").inner_text()
        key = teacher.locator("#teach-begun .rr-key").inner_text()
        assert len(key) >= 24

        browser = teacher.context.browser
        evil = '=HYPERLINK("http://x"), "left"'
        learners = {}
        for name, text in (("Blue fox", "Left pleural effusion."), ("Owl", evil)):
            page = learners[name] = browser.new_context(viewport={"width": 390, "height": 844}).new_page()
            page.set_default_timeout(SLOW)
            enter(page, server.address)
            page.get_by_role("button", name="Join a class").click()
            page.get_by_label("Class code").fill(code.lower())
            if name == "Owl":
                page.get_by_label("Pseudonym").fill("blue FOX")
                page.click("#teach-join-now")
                expect(page.locator("#teach-joined [role=alert]")).to_contain_text("taken")
            page.get_by_label("Pseudonym").fill(name)
            page.click("#teach-join-now")
            expect(page.locator("#teach-who")).to_contain_text(f"You are {name} in class {code} “Year <4>”")
            choose(page)
            write(page, text, "")
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, "a telephone must not scroll sideways"

        teacher.click("#teach-open")  # the key stands there already
        facts, answers = teacher.locator("#teach-facts"), teacher.locator("#teach-answers")
        expect(facts).to_contain_text("2 learners")
        expect(facts).to_contain_text("0 answers to this case, 2 still being written")
        expect(answers).not_to_contain_text("Blue fox")
        for page in learners.values():
            page.click("#teach-commit")
            expect(page.locator("#teach-compared .rr-three")).to_be_visible()
        assert "Owl" not in learners["Blue fox"].locator("body").inner_text(), "learners do not see each other"
        assert key not in learners["Owl"].content()
        teacher.click("#teach-refresh")
        expect(facts).to_contain_text("2 answers to this case, 0 still being written")
        for said in ("The reference", "The draft", "Blue fox", "Owl"):
            expect(answers.locator("h3").filter(has_text=said)).to_have_count(1)

        with teacher.expect_download() as download:
            teacher.click("#teach-export")
        assert download.value.suggested_filename == f"emrrg-class-{code}.csv"
        text = Path(download.value.path()).read_bytes().decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        assert [(row["row"], row["pseudonym"]) for row in rows] == [
            ("reference", ""),
            ("draft", ""),
            ("learner", "Blue fox"),
            ("learner", "Owl"),
        ]
        assert rows[2]["findings"] == "Left pleural effusion."
        assert rows[2]["Pleural Effusion"] == "positive"
        assert rows[3]["findings"] == f"'{evil}", "no formula"

        teacher.reload()  # the key is not kept
        teacher.get_by_role("tab", name="Teach").click()
        expect(teacher.locator("#teach-answers")).to_be_hidden()
        teacher.get_by_role("button", name="For teachers").click()
        teacher.get_by_label("Your key").fill(code)
        teacher.click("#teach-open")
        expect(teacher.locator("#teach-opening [role=alert]")).to_contain_text("No class opens with this key")
        teacher.get_by_label("Your key").fill(key)
        teacher.click("#teach-open")
        expect(answers).to_contain_text("Owl")
        teacher.get_by_role("button", name="End the class").click()
        teacher.click("#teach-end-now")
        expect(teacher.locator("#teach-opening")).to_contain_text("its answers are deleted")
        learners["Owl"].reload()
        learners["Owl"].get_by_role("tab", name="Teach").click()
        expect(learners["Owl"].locator("#teach-status")).to_contain_text("not kept here any more")
        expect(learners["Owl"].locator("#teach-who")).to_contain_text("You practise alone")
        assert faults(wrong) == []
    assert "Traceback" not in server.output()
    assert "Blue fox" not in server.output()


def test_a_folder_of_ones_own_is_read_anew_with_every_visit_and_its_faults_are_told(
    checkpoint, tmp_path, monkeypatch
) -> None:
    folder = tmp_path / "cases"
    folder.mkdir()
    monkeypatch.setenv("EMRRG_CASES", str(folder))
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server", checkpoint)
    try:
        with browser_page(800, 900) as (page, _, expect):
            page.goto(server.address)
            page.get_by_role("tab", name="Teach").click()
            expect(page.locator("#teach-films")).to_contain_text("There are no cases yet")
        make_phantom(1, height=140, width=130).save_png(folder / "a.png")
        good = {"title": "Mine", "films": ["a.png"], "source": "drawn", "licence": "CC0-1.0"}
        lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in good.items())
        (folder / "good.toml").write_text(f'{lines}[reference]\nimpression = "Normal."\n')
        (folder / "bad.toml").write_text("titel = 1\n")
        with browser_page(800, 900) as (page, wrong, expect):
            enter(page, server.address)
            choose(page, "Mine")
            page.get_by_role("button", name="For teachers").click()
            expect(page.locator("#teach-faults")).to_contain_text("bad.toml: there is no key titel")
            assert faults(wrong) == []
    finally:
        server.stop()
