"""Writing on the Read screen: macros, blanks, templates, fields, half-typed words, findings that are switched, copying, and a telephone."""

import html
import json
import re
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from emrrg_core import Draft, Report, Sessions, read_film
from emrrg_core.report.macros import Macros, builtin
from emrrg_core.report.rewrite import Rewritten
from emrrg_core.report.told import Said
from tests import test_read as read_tests
from tests import test_read_events as event_tests
from tests.test_app import browser_page
from tests.test_read import FINDINGS, IMPRESSION, RunningApp, do, item, keep_all, said
from ui.read import drafting, events, layout, wiring
from ui.read.context import Context
from ui.session_state import SessionState

reporter, drafted, rg1, stranger, pictures, state, running = (  # fixtures
    read_tests.reporter,
    read_tests.drafted,
    read_tests.rg1,
    read_tests.stranger,
    read_tests.pictures,
    read_tests.state,
    read_tests.running,
)
kept, model, store = read_tests.kept, event_tests.model, event_tests.store
Screen = event_tests.Screen

TOML = """[[macro]]
word = ".wren"
text = "A [size] mm wren in the [side] upper zone."
section = "findings"

[[template]]
name = "Wren report"
findings = "No wren is seen. The sky is clear."
impression = "No wren."
technique = "PA view."
"""
MRRT = """<!DOCTYPE html><html><head><title>Chest of a finch</title></head><body>
<section data-section-name="Findings"><p>The finch is <input type="text" value="[colour]">.</p></section>
<section data-section-name="Impression"><p>Finch.</p></section></body></html>"""


@pytest.fixture
def screen(model: Any, store: Sessions, rg1: Path) -> Any:
    """The screen with the macros that come with EMRRG."""
    loaded: Future[Any] = Future()
    loaded.set_result(model)
    return Screen(layout, wiring, Context(loaded, lambda name: rg1, lambda: store, macros=builtin))


def own_of(shown: dict[str, Any]) -> dict[str, Any]:
    """What the browser is told to keep."""
    (given,) = re.findall(r'data-macros="(.*?)"', shown["macros"])
    found: dict[str, Any] = json.loads(html.unescape(given))["own"]
    return found


# --- without a browser ---------------------------------------------------------------------------------------------------


def test_a_file_of_macros_is_added_to_what_the_browser_has_and_an_mrrt_template_too(screen: Any) -> None:
    shown = screen.show(events.act, SessionState(), "", {"action": "macros", "text": TOML, "own": ""})
    own = own_of(shown)
    assert [each["word"] for each in own["macros"]] == [".wren"]
    assert "1 macros and 1 templates" in shown["status"]
    shown = screen.show(events.act, SessionState(), "", {"action": "macros", "text": MRRT, "own": own["toml"]})
    both = own_of(shown)
    assert both["macros"] == own["macros"]
    assert [each["name"] for each in both["templates"]] == ["Wren report", "Chest of a finch"]
    assert "[colour]" in both["templates"][1]["findings"]
    assert Macros.from_toml(both["toml"]).macros[0].word == ".wren"


@pytest.mark.parametrize(
    "text", ["[[macro]\nword = 1", "[[macro]]\nword = 'a b'\ntext = 'x'", "<html>", "", "\x00", "<" * 3000]
)
def test_a_broken_file_is_refused_in_words_and_nothing_is_taken(text: str, screen: Any) -> None:
    shown = screen.show(events.act, SessionState(), "", {"action": "macros", "text": text, "own": TOML})
    if text == "":  # an empty file is a file of no macros
        assert [each["word"] for each in own_of(shown)["macros"]] == [".wren"]
        return
    assert shown.keys() == {"status"}, "what was there stays"
    assert 'role="alert"' in shown["status"]


def test_a_template_begins_an_empty_report_and_no_other(screen: Any, store: Sessions, state: SessionState) -> None:
    (name, *_) = [each.name for each in builtin().templates]
    before = state.report
    assert (
        "begins an empty report" in screen.show(events.act, state, "", {"action": "template", "name": name})["status"]
    )
    assert state.report is before
    empty = SessionState()
    screen.show(events.act, empty, "", {"action": "template", "name": name})
    assert [line.choice.value for line in empty.report.lines] == ["added"] * len(empty.report.lines)
    assert empty.report.findings
    own = SessionState()
    parts = {"findings": "No wren is seen. The sky is clear.", "technique": "PA view.", "signed": "x"}
    screen.show(events.act, own, "", {"action": "template", "name": "Wren report", "parts": parts})
    assert [line.text for line in own.report.lines] == ["No wren is seen.", "The sky is clear."]
    assert own.report.fields.technique == "PA view."
    assert store.load(own.session.id).report == own.report


def test_fields_are_kept_and_reach_the_text(screen: Any, store: Sessions, state: SessionState) -> None:
    shown = screen.show(events.act, state, "", {"action": "field", "name": "indication", "text": "Cough & <fever>."})
    assert "Cough &amp; &lt;fever&gt;." in shown["report"]
    assert "INDICATION:\nCough & <fever>." in store.load(state.session.id).report.text()


def test_a_finding_that_is_said_to_be_otherwise_changes_its_sentences_in_both_sections_and_no_other(
    screen: Any, model: Any, state: SessionState, drafted: Callable[..., Draft]
) -> None:
    asked: list[Any] = []

    def rewrite(films: Any, draft: Draft, says: Any, findings: str) -> Rewritten:
        """What a model would write that keeps its words but for the effusion."""
        asked.append((films, draft, dict(says)))
        return Rewritten(
            " ".join((FINDINGS[0], "No pleural effusion is seen.", FINDINGS[2])), "No acute disease.", dict(says), ()
        )

    state.draft = drafted(state.films, impression=("Small left pleural effusion.", "Heart of normal size."))
    state.report = Report.of(state.draft).accept(0)
    before = state.report
    screen.context.reporter.result().rewrite = rewrite
    shown = screen.show(events.act, state, "", {"action": "says", "finding": "effusion", "value": "absent"})
    assert "written anew: review them" in shown["status"]
    assert asked == [(state.films, state.draft, {"effusion": Said(False, "")})]
    gone = {line.text for line in state.report.lines if line.choice.value == "deleted"}
    assert gone == {FINDINGS[1], "Small left pleural effusion."}
    assert state.report.findings == " ".join((FINDINGS[0], "No pleural effusion is seen.", FINDINGS[2]))
    assert state.report.line(0) == before.line(0), "what does not speak of it stays as it was"
    assert state.report.line(2) == before.line(2)
    assert "Heart of normal size." in state.report.impression
    assert '<option value="absent" selected>' in shown["reading"]
    screen.show(events.act, state, "", {"action": "undo"})
    assert state.report.lines == before.lines
    assert state.says == {}


def test_a_finding_is_not_written_anew_without_its_films_nor_one_that_is_not_assessed(
    screen: Any, state: SessionState
) -> None:
    before = state.report
    shown = screen.show(events.act, state, "", {"action": "says", "finding": "wren", "value": "absent"})
    assert "not assessed here" in shown["status"]
    state.held = ()
    shown = screen.show(events.act, state, "", {"action": "says", "finding": "effusion", "value": "absent"})
    assert "Drop the films of this report again" in shown["status"]
    assert state.report is before
    assert screen.show(drafting.begin, state).keys() == {"status"}


# --- in a browser ----------------------------------------------------------------------------------------------------------


def add(page: Any, section: str = "findings") -> Any:
    page.locator(f"#report [data-section={section}] [data-action=add]").last.click()
    return page.locator("#report textarea")


def chosen(page: Any) -> str:
    """The words that are selected in the text box."""
    words: str = page.evaluate(
        "() => { const a = document.activeElement; return a.value.slice(a.selectionStart, a.selectionEnd); }"
    )
    return words


def test_a_word_expands_as_it_is_typed_and_tab_goes_from_blank_to_blank(running: RunningApp, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(TOML)
    (tmp_path / "broken.toml").write_text("[[macro]\n")
    (tmp_path / "finch.html").write_text(MRRT)
    with browser_page(1200, 800) as (page, wrong, expect):
        page.goto(running.server.address)
        said(page, expect, "Ready")
        given = page.locator("[data-macros-file]")
        given.set_input_files(str(tmp_path / "own.toml"))
        said(page, expect, "1 macros and 1 templates")
        given.set_input_files(str(tmp_path / "broken.toml"))
        expect(page.locator("#status [role=alert]")).to_contain_text("mend their file first")
        given.set_input_files(str(tmp_path / "finch.html"))
        said(page, expect, "0 macros and 1 templates")
        page.reload()
        said(page, expect, "Ready")

        box = add(page)
        page.keyboard.type(".wre ")
        expect(box).to_have_value(".wre ")
        page.keyboard.press("Control+a")
        page.keyboard.type(".WREN ")
        expect(box).to_have_value("A [size] mm wren in the [side] upper zone. ")
        assert chosen(page) == "[size]"
        page.keyboard.type("5")
        page.keyboard.press("Tab")
        assert chosen(page) == "[side]"
        page.keyboard.type("left")
        page.keyboard.press("Enter")
        expect(page.locator("#report .rr-item")).to_contain_text("A 5 mm wren in the left upper zone.")
        box = add(page, "impression")
        page.keyboard.type(".wren ")
        expect(box).to_have_value(".wren ")  # it is of the Findings
        page.keyboard.press("Escape")
        menu = page.locator("select[data-macro=findings]")
        menu.select_option(
            label=next(words for words in menu.locator("option").all_inner_texts() if words.startswith(".wren"))
        )
        assert chosen(page) == "[size]"
        page.keyboard.press("Escape")

        page.click("#new")
        page.locator("[data-action=template]", has_text="Chest of a finch").click()
        expect(page.locator("#report .rr-item").first).to_contain_text("The finch is [colour].")
        assert wrong == []


def test_half_typed_words_a_field_and_the_copied_text(running: RunningApp, kept: str) -> None:
    with browser_page(1200, 800) as (page, wrong, expect):
        running.open(page, expect, kept)
        page.evaluate(
            "() => { window.copied = null; navigator.clipboard.writeText = async (text) => { window.copied = text; }; }"
        )
        page.locator("[data-field=indication] button").click()
        page.locator("#report textarea").fill("Cough for two weeks.")
        page.keyboard.press("Enter")
        expect(page.locator("[data-field=indication]")).to_contain_text("Cough for two weeks.")
        page.locator("#report [data-action=copy]").click()
        said(page, expect, "The report is copied.")
        copied = page.evaluate("() => window.copied")
        assert copied == running.store.load(kept).report.text()
        assert "Cough for two weeks." in copied

        do(page, 1, "edit")
        page.locator("#report textarea").fill("Half a sent")
        page.reload()
        said(page, expect, "as you left it")
        expect(item(page, 1).locator("textarea")).to_have_value("Half a sent")
        page.keyboard.press("Escape")
        expect(item(page, 1).locator(".rr-item-text")).to_have_text(FINDINGS[1])
        page.reload()
        said(page, expect, "as you left it")
        expect(item(page, 3)).to_contain_text(IMPRESSION[0])
        expect(page.locator("#report textarea")).to_have_count(0)
        assert wrong == []


def test_the_rest_is_accepted_once_each_sentence_stood_in_sight(
    running: RunningApp, drafted: Callable[..., Draft], stranger: Path
) -> None:
    many = tuple(f"The heart of bed {number} is of normal size." for number in range(12))
    id = running.store.begin(drafted([read_film(stranger, name="Film 1")], findings=many, impression=())).id
    with browser_page(1200, 420) as (page, wrong, expect):
        running.open(page, expect, id)
        rest = page.locator("[data-action=accept-rest]")
        expect(item(page, 0)).to_be_visible()
        page.wait_for_timeout(1200)
        expect(rest).to_be_disabled()
        for number in range(0, 12, 2):
            item(page, number).evaluate("row => row.scrollIntoView({block: 'center'})")
            page.wait_for_timeout(800)
        expect(rest).to_be_enabled()
        rest.click()
        said(page, expect, "Every sentence is reviewed.")
        expect(rest).to_have_count(0)
        assert wrong == []
    assert len(running.store.load(id).report.edits) == 12


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_the_film_stays_in_sight_while_the_report_is_scrolled(
    width: int, height: int, running: RunningApp, drafted: Callable[..., Draft], stranger: Path
) -> None:
    many = tuple(f"The heart of bed {number} is of normal size." for number in range(24))
    id = running.store.begin(drafted([read_film(stranger, name="Film 1")], findings=many)).id
    with browser_page(width, height) as (page, wrong, expect):
        running.open(page, expect, id)
        page.set_input_files("#drop input[type=file]", str(stranger))
        film = page.locator(".film-0 .rr-stage")
        expect(film).to_be_visible()
        item(page, 12).evaluate("row => row.scrollIntoView({block: 'end'})")
        page.wait_for_timeout(300)
        top, before = film.bounding_box()["y"], item(page, 0).bounding_box()["y"]
        item(page, 23).evaluate("row => row.scrollIntoView({block: 'end'})")
        page.wait_for_timeout(300)
        assert item(page, 0).bounding_box()["y"] < before - 200, "the report was scrolled"
        box = film.bounding_box()
        assert box["y"] == pytest.approx(top, abs=1)
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= height
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "no sideways scroll"
        bar = page.locator(".rr-phonebar")
        if width > 800:
            expect(bar).to_be_hidden()
        else:
            bar.locator("[data-action=phone-next]").click()
            expect(item(page, 0)).to_have_attribute("aria-current", "true")
            bar.locator("[data-action=phone-accept]").click()
            said(page, expect, "Accepted.")
            bar.locator("[data-action=phone-next]").click()
            expect(item(page, 1)).to_have_attribute("aria-current", "true")
            page.wait_for_timeout(800)  # it glides there
            row, held = item(page, 1).bounding_box(), bar.bounding_box()
            films = page.locator("#viewer").bounding_box()
            assert row["y"] >= films["y"] + films["height"] - 1, "the sentence is not under the film"
            assert row["y"] < held["y"], "nor under the bar"
        assert wrong == []


def test_what_a_change_suggests_in_the_impression_is_done_by_a_press(running: RunningApp) -> None:
    id = running.store.begin(
        None, Report().add("impression", "Left pleural effusion.").add("findings", "There is a left pleural effusion.")
    ).id
    with browser_page(1200, 800) as (page, wrong, expect):
        running.open(page, expect, id)
        do(page, 1, "delete")
        offer = item(page, 0).locator(".rr-offer")
        expect(offer).to_contain_text("Delete it too?")
        offer.locator("[data-action=dismiss]").click()
        expect(page.locator(".rr-offer")).to_have_count(0)
        do(page, 1, "restore")
        expect(item(page, 0).locator(".rr-choice")).to_have_text("yours")
        do(page, 1, "edit")
        page.locator("#report textarea").fill("There is a right pleural effusion.")
        page.keyboard.press("Enter")
        item(page, 0).locator("[data-action=offer]").click()
        expect(item(page, 0).locator(".rr-item-text")).to_have_text("Right pleural effusion.")
        keep_all(page, expect)
        assert wrong == []
