"""The whole app as a reader with a screen reader, a keyboard or weak sight meets it, in Chromium, in light and dark.

Names, pictures and headings are those of the browser's own accessibility tree; contrast is measured by access.js; the rest is axe-core's to find.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("axe_playwright_python")
from axe_playwright_python.sync_playwright import Axe

from emrrg_core import Draft, Sessions, read_film
from tests import test_read
from tests.test_app import Server, browser_page

CONTRAST = (Path(__file__).parent / "access.js").read_text("utf-8")
CONTROLS = {
    "button", "checkbox", "combobox", "DisclosureTriangle", "image", "img", "link", "listbox", "menuitem", "radio", "radiogroup",
    "searchbox", "slider", "spinbutton", "switch", "tab", "textbox", "toolbar",
}  # fmt: skip

reporter, drafted, rg1 = test_read.reporter, test_read.drafted, test_read.rg1  # its fixtures


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server(checkpoint: Path, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server"), checkpoint, home=home)
    try:
        yield running
    finally:
        running.stop()


@contextmanager
def opened(server: Server, session: str = "") -> Iterator[tuple[Any, Any]]:
    """The app in a browser, its model loaded."""
    with browser_page(1440, 900) as (page, _, expect):
        page.goto(server.address)
        if session:
            page.evaluate("id => sessionStorage.setItem('emrrg-session', id)", session)
            page.reload()
        expect(page.locator("#status")).to_contain_text("as you left it" if session else "Ready")
        yield page, expect


def unfold(page: Any) -> None:
    """Open everything that is folded away, so that it is looked at as well."""
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    page.evaluate("document.querySelectorAll('button.label-wrap:not(.open)').forEach((one) => one.click())")
    page.wait_for_timeout(500)


def tree(page: Any) -> list[dict[str, Any]]:
    """What the browser tells a screen reader, in reading order."""
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    by_id = {node["nodeId"]: node for node in nodes}
    found, ahead = [], [nodes[0]]
    while ahead:
        node = ahead.pop()
        ahead += [by_id[child] for child in reversed(node.get("childIds", [])) if child in by_id]
        if not node.get("ignored"):
            role, name = (str(node.get(key, {}).get("value", "")) for key in ("role", "name"))
            told = {each["name"]: each["value"].get("value") for each in node.get("properties", [])}
            found.append(
                {"role": role, "name": name.strip(), "level": told.get("level"), "dom": node.get("backendDOMNodeId")}
            )
    for node in found:
        if node["role"] in CONTROLS and not node["name"]:
            html = session.send("DOM.getOuterHTML", {"backendNodeId": node["dom"]})["outerHTML"]
            if not html.startswith("<svg") or "role=" in html.partition(">")[0]:  # an icon of Gradio's says nothing
                node["html"] = html[:240]
    session.detach()
    return found


def switch(page: Any, theme: str) -> None:
    """To light or dark, by the app's own switch (which a dialog may lie over)."""
    page.evaluate(
        "dark => { if (document.body.classList.contains('dark') !== dark) document.querySelector('[data-theme]').click(); }",
        theme == "dark",
    )
    page.wait_for_timeout(400)
    assert page.evaluate("document.body.classList.contains('dark')") == (theme == "dark")


def broken_rules(page: Any) -> list[str]:
    """Of axe-core: WCAG and its own best practice, a line for each element."""
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']} ({each['impact']}): {node['target']} {node['html'][:200]} {node['failureSummary'][:300]}"
        for each in found
        for node in each["nodes"]
    ]


def faults(page: Any, *, modal: bool) -> list[str]:
    """Everything that is wrong with the page as it stands. modal: a dialog is open, and the page behind it is not there for a reader."""
    nodes = tree(page)
    wrong = [f"no name: {node['role']} {node['html']}" for node in nodes if "html" in node]
    levels = [(int(node["level"]), node["name"]) for node in nodes if node["role"] == "heading"]
    wrong += [f"heading without words at level {level}" for level, name in levels if not name]
    if not modal and ([level for level, _ in levels].count(1) != 1 or levels[0][0] != 1):
        wrong.append(f"the page does not begin with its one first heading: {levels[:3]}")
    for (above, _), (level, name) in pairwise(levels):
        if level > above + 1:
            wrong.append(f"heading “{name}” of level {level} follows one of level {above}")
    wrong += page.evaluate(
        "(() => { const ids = [...document.querySelectorAll('[id]')].map((one) => one.id);"
        " return ids.filter((id, n) => id && ids.indexOf(id) !== n).map((id) => `two elements have the id ${id}`); })()"
    )
    if not page.evaluate("document.documentElement.lang"):
        wrong.append("the page does not say its language")
    page.add_style_tag(content="* { transition: none !important; }")  # a busy machine may be seconds at it
    for theme in ("light", "dark"):
        switch(page, theme)
        wrong += [f"{theme}: {line}" for line in page.evaluate(CONTRAST)]
        wrong += [f"{theme}: {line}" for line in broken_rules(page)]
    for width in (1440, 390):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(300)
        if (wide := page.evaluate("document.documentElement.scrollWidth")) > width:
            wrong.append(f"at {width} px the page is {wide} px wide")
    wrong += [f"on a telephone: {line}" for line in broken_rules(page)]
    page.set_viewport_size({"width": 1440, "height": 900})
    return wrong


def assert_fair(page: Any, *, modal: bool = False) -> None:
    if not modal:
        unfold(page)
    wrong = faults(page, modal=modal)
    assert not wrong, "\n".join(wrong)


def test_read_without_a_film(server: Server) -> None:
    with opened(server) as (page, expect):
        expect(page.locator("#example")).to_be_visible()
        assert_fair(page)


def test_read_with_film_draft_and_evidence(
    server: Server, home: Path, drafted: Callable[..., Draft], rg1: Path
) -> None:
    """The report with a sentence's evidence open, then each thing that lies beside or over it."""
    session = Sessions(home / "sessions").begin(drafted([read_film(rg1, name="Film 1")])).id
    with opened(server, session) as (page, expect):
        page.set_input_files("#drop input[type=file]", rg1)
        expect(page.locator(".film-0")).to_be_visible()
        page.locator("#report .rr-item-text").first.click()
        page.locator("#report [data-action=why]").first.click()
        expect(page.locator("#report .rr-why").first).to_be_visible()
        page.locator("[data-do=about]").first.click()
        page.locator("[data-do=window]").first.click()
        page.keyboard.press("t")
        box = page.locator(".film-0 .rr-stage").bounding_box()
        page.mouse.move(box["x"] + 200, box["y"] + 200)
        page.mouse.down()
        page.mouse.move(box["x"] + 300, box["y"] + 250)
        page.mouse.up()
        expect(page.locator("[data-unmark]")).to_be_visible()
        expect(page.locator(".rr-lines path").first).to_be_attached()
        assert_fair(page)

        page.locator("#report [data-action=edit]").first.click()  # a text box in its place
        expect(page.locator("#report textarea")).to_be_visible()
        assert_fair(page)
        page.keyboard.press("Escape")

        for name, inside in (("Evidence", "#words"), ("Export", "#menu")):
            page.get_by_role("tab", name=name).click()
            expect(page.locator(inside)).to_be_visible()
            assert_fair(page)
        page.get_by_role("tab", name="Report").click()

        page.locator("[data-do=keys]").first.click()
        expect(page.locator('dialog[data-dialog="keys"]')).to_be_visible()
        assert_fair(page, modal=True)
        page.keyboard.press("Escape")
        page.locator("[data-action=ask-sign]").click()
        expect(page.locator('dialog[data-dialog="sign"]')).to_be_visible()
        assert_fair(page, modal=True)


def test_teach_before_and_behind_a_case(server: Server) -> None:
    with opened(server) as (page, expect):
        page.get_by_role("tab", name="Teach").click()
        expect(page.locator("#teach-cases")).to_be_visible()
        assert_fair(page)
        page.locator("#teach-cases input[type=radio]").first.check()
        expect(page.locator("#teach-films img").first).to_be_visible()
        assert_fair(page)


def test_about(server: Server) -> None:
    with opened(server) as (page, expect):
        page.get_by_role("tab", name="About").click()
        expect(page.locator("#measured table").first).to_be_visible()
        assert_fair(page)
