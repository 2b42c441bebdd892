"""The keys of the app: one list without doubles, heard wherever the focus is, silent while a reader types, and the reader's to change."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import test_marks
from tests.test_marks import a_film, rest
from ui import keys
from ui.window_level import PRESETS

ROOT = Path(__file__).resolve().parent.parent
FIELDS = (
    '<textarea id="area" aria-label="Report"></textarea><input id="line" aria-label="Name"><select id="choice" aria-label="Choice"><option>i</option>'
    '</select><div id="free" contenteditable="true"></div><input type="checkbox" id="tick" aria-label="Tick"><button id="button">B</button>'
)

browser, shown = test_marks.browser, test_marks.shown  # its fixtures


# --- the list -----------------------------------------------------------------------------------------------------------


def test_no_key_and_no_action_is_there_twice() -> None:
    assert len({each.key for each in keys.KEYS}) == len({each.action for each in keys.KEYS}) == len(keys.KEYS)
    assert all(len(each.key) == 1 and each.key == each.key.lower() for each in keys.KEYS)


def test_undo_and_zoom_have_keys_of_their_own() -> None:
    known = {each.action: each.key for each in keys.KEYS}
    assert (known["undo"], known["zoom"]) == ("u", "z")


def test_every_key_is_heard_and_every_key_that_is_heard_is_listed() -> None:
    """A key that does nothing, or one that no one is told of."""
    read, film = ((ROOT / "ui" / name).read_text("utf-8") for name in ("read.js", "viewer.js"))
    table = re.search(r"for \(const \[name, work\] of Object\.entries\(\{(.*?)\}\)\) K\.on\(name", read, re.DOTALL)
    assert table
    of_report = {name.strip("'") for name in re.findall(r"('?[a-z][a-z-]*'?): \(\) =>", table[1])}
    assert of_report == {each.action for each in keys.KEYS if each.group == "Report"}
    plain = re.search(r"for \(const action of \[([^\]]*)\]\)", film)
    ink = re.search(r"const INK = \[([^\]]*)\]", film)
    tools = re.search(r"for \(const tool of \[([^.]*), \.\.\.INK\]\)", film)
    assert plain
    assert ink
    assert tools
    heard = {name for found in (plain, ink, tools) for name in re.findall(r'"([a-z-]+)"', found[1])}
    heard |= {f"preset-{number + 1}" for number in range(len(PRESETS))}
    assert heard == {each.action for each in keys.KEYS if each.group == "Film"}


def test_the_dialog_lists_every_key_and_every_gesture() -> None:
    page = keys.dialog()
    for each in keys.KEYS:
        assert re.search(rf'data-key-of="{each.action}"[^>]*>{re.escape(each.key.upper())}</button></dt><dd>', page)
    listed = re.findall(r"<dd>(.*?)</dd>", page)
    assert listed == [each.words for each in keys.KEYS] + [words for _, words in keys.POINTER]


# --- in a real browser --------------------------------------------------------------------------------------------------


def now(page: Any) -> str:
    rest(page)
    return str(page.locator(".rr-now").text_content()).replace("\N{NO-BREAK SPACE}", " ")


def inverts(page: Any, key: str) -> bool:
    """Whether a key inverts the film."""
    before = "inverted" in now(page)
    page.keyboard.press(key)
    return ("inverted" in now(page)) != before


def opened(page: Any) -> bool:
    return page.locator("dialog[open]").count() == 1


def said(page: Any) -> str:
    return str(page.locator("[data-keys-said]").text_content())


def change(page: Any, action: str, key: str) -> str:
    """Give an action another key in the dialog; what is said to it."""
    page.click(f'[data-key-of="{action}"]')
    assert page.text_content(f'[data-key-of="{action}"]') == "…"
    page.keyboard.press(key)
    return said(page)


def test_a_key_works_in_large_and_small_and_rests_in_every_field_that_takes_letters(
    shown: Callable[..., Any],
) -> None:
    page = shown([a_film()], FIELDS)
    assert inverts(page, "i")
    assert inverts(page, "Shift+I")
    for field in ("area", "line", "choice", "free"):
        page.focus(f"#{field}")
        assert not inverts(page, "i"), field
    for field in ("tick", "button"):
        page.focus(f"#{field}")
        assert inverts(page, "i"), field
    assert not inverts(page, "Control+i")
    assert not inverts(page, "Alt+i")


def test_the_question_mark_opens_the_list_and_keys_rest_behind_it(shown: Callable[..., Any]) -> None:
    page = shown([a_film()])
    page.keyboard.press("?")
    assert opened(page)
    assert not inverts(page, "i")
    page.keyboard.press("Escape")
    assert not opened(page)
    assert inverts(page, "i")
    page.click(".rr-tools [data-do=keys]")
    assert opened(page)
    page.click('[data-keys="shut"]')
    assert not opened(page)


def test_a_changed_key_is_kept_over_a_reload_and_the_old_one_no_longer_works(shown: Callable[..., Any]) -> None:
    page = shown([a_film()])
    page.keyboard.press("?")
    assert change(page, "invert", "h") == "H: invert. Kept in this browser."
    page.keyboard.press("Escape")
    assert inverts(page, "h")
    assert not inverts(page, "i")
    page.reload()
    page.wait_for_selector(".rr-viewer[data-adopted]")
    assert inverts(page, "h")
    assert not inverts(page, "i")
    page.keyboard.press("?")
    assert page.text_content('[data-key-of="invert"]') == "H"
    assert change(page, "map", "i").startswith("I: heat map"), "the key that was given up is free"
    page.click('[data-keys="reset"]')
    assert page.text_content('[data-key-of="invert"]') == "I"
    page.keyboard.press("Escape")
    assert inverts(page, "i")
    assert not inverts(page, "h")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("m", "M is the key of “heat map and contours on or off”: choose another, or change that one first."),
        ("?", "? is the key of “this list”: choose another, or change that one first."),
        ("Enter", "Enter has a meaning of its own: choose another key."),
        ("Space", "Space has a meaning of its own: choose another key."),
        ("Tab", "Tab has a meaning of its own: choose another key."),
        ("ArrowLeft", "ArrowLeft has a meaning of its own: choose another key."),
        ("Escape", "Nothing was changed."),
    ],
)
def test_a_key_that_is_taken_is_refused_in_words(shown: Callable[..., Any], key: str, words: str) -> None:
    page = shown([a_film()])
    page.keyboard.press("?")
    assert change(page, "invert", key) == words
    assert opened(page), "the dialog stays"
    assert page.text_content('[data-key-of="invert"]') == "I"
    page.keyboard.press("Escape")
    assert not opened(page)
    assert inverts(page, "i")
    assert page.evaluate("localStorage.getItem('emrrg-keys')") is None


def test_who_closes_the_list_instead_of_pressing_a_key_changes_nothing(shown: Callable[..., Any]) -> None:
    page = shown([a_film()])
    page.keyboard.press("?")
    page.click('[data-key-of="invert"]')
    page.click('[data-keys="shut"]')
    page.keyboard.press("h")
    assert page.evaluate("localStorage.getItem('emrrg-keys')") is None
    assert inverts(page, "i")


def test_single_keys_can_be_switched_off_and_stay_off(shown: Callable[..., Any]) -> None:
    """WCAG 2.1, 2.1.4: who speaks to a machine presses single keys without meaning to."""
    page = shown([a_film()])
    page.keyboard.press("?")
    page.uncheck("[data-keys-on]")
    page.keyboard.press("Escape")
    assert not inverts(page, "i")
    page.reload()
    page.wait_for_selector(".rr-viewer[data-adopted]")
    assert not inverts(page, "i")
    page.keyboard.press("?")
    assert not opened(page)
    page.click(".rr-tools [data-do=keys]")
    assert not page.is_checked("[data-keys-on]")
    page.check("[data-keys-on]")
    page.keyboard.press("Escape")
    assert inverts(page, "i")


def test_what_the_browser_kept_may_be_nonsense(shown: Callable[..., Any]) -> None:
    page = shown([a_film()])
    for kept in ("{", "null", "7", '{"invert": 3}'):
        page.evaluate("kept => localStorage.setItem('emrrg-keys', kept)", kept)
        page.reload()
        page.wait_for_selector(".rr-viewer[data-adopted]")
        assert inverts(page, "i"), kept


def test_a_key_that_means_nothing_here_is_left_to_the_page(shown: Callable[..., Any]) -> None:
    page = shown([a_film()])
    page.evaluate(
        "() => { window.left = []; window.addEventListener('keydown', (event) => left.push([event.key, event.defaultPrevented])); }"
    )
    page.keyboard.press("i")
    page.keyboard.press("d")  # nobody drafts on this page
    page.keyboard.press("q")
    assert page.evaluate("left") == [["i", True], ["d", False], ["q", False]]
