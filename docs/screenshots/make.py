"""The pictures of README and docs/guide.md, made anew: python -m docs.screenshots.make [read] [films] [teach] [about]

Starts the real app with the checkpoint that comes with EMRRG, does in a real browser what the guide says, and takes the
pictures on the way, beside this file. Needs requirements-dev.txt and Chromium, as the browser tests do. In the pictures
are RG1 (a film of pydicom-data), phantoms and the drawn cases only.
"""

import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image

from app import example_film
from emrrg_core.films.synthetic_findings import Sign, draw
from emrrg_core.reporter import DEFAULT_CHECKPOINT
from tests.phantom import make_phantom
from tests.test_app import Server, browser_page

HERE = Path(__file__).parent
MOST_BYTES = 150_000
HEIGHT = {1440: 900, 1920: 1080, 390: 844}  # of a picture of the whole screen, in pixels
PART = 1900  # of the screen while one part of it is taken: the page's header must not lie over it


def save(data: bytes, name: str) -> None:
    """As PNG with as many colours as MOST_BYTES allow."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    for colours in (256, 192, 128, 96, 64, 48, 32, 24, 16):
        buffer = io.BytesIO()
        picture.quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE).save(
            buffer, "PNG", optimize=True
        )
        if buffer.tell() <= MOST_BYTES:
            break
    (HERE / f"{name}.png").write_bytes(buffer.getvalue())
    print(f"{name}.png: {picture.width} × {picture.height}, {colours} colours, {buffer.tell() // 1000} kB", flush=True)


def shoot(
    page: Any, name: str, part: str | None = None, *, width: int = 1440, light: bool = False, top: str | None = None
) -> None:
    """The screen from its top, or one part of it, on a screen that is `width` pixels wide. light: in the light theme. top: what it is scrolled to."""
    if light:
        page.locator("[data-theme]").click()
    page.set_viewport_size({"width": width, "height": PART if part else HEIGHT[width]})
    page.evaluate("document.activeElement?.blur(), window.scrollTo({top: 0, behavior: 'instant'})")
    if top:
        page.locator(top).evaluate("one => one.scrollIntoView({behavior: 'instant', block: 'start'})")
    page.mouse.move(0, 0)
    page.wait_for_timeout(700)  # films are drawn anew for the new size
    taken = page.locator(part) if part else page
    save(taken.screenshot(animations="disabled"), f"{name}-{width}")
    if light:
        page.locator("[data-theme]").click()
    page.set_viewport_size({"width": 1440, "height": HEIGHT[1440]})


def ready(page: Any, expect: Any, address: str) -> None:
    page.goto(address)
    expect(page.locator("#status")).to_contain_text("Ready")


def with_map(page: Any, films: str) -> None:
    page.wait_for_function(
        "films => getComputedStyle(document.querySelector(films + ' .film-0 .rr-map')).backgroundImage != 'none'",
        arg=films,
    )


def read(page: Any, expect: Any, address: str, folder: Path) -> None:
    """Draft RG1, look at a sentence, ask why, edit, sign, export."""
    ready(page, expect, address)
    page.click("#example")
    expect(page.locator(".film-0")).to_contain_text("PA view")
    page.click("#write")
    expect(page.locator("#status")).to_contain_text("Draft done")
    rows = page.locator("#report .rr-item")
    rows.first.locator(".rr-item-text").click()
    with_map(page, "#films")
    shoot(page, "read")
    shoot(page, "read", width=1920)
    shoot(page, "read", width=390)

    tab = page.get_by_role("tab", name="Evidence")
    tab.click()
    expect(page.locator("#looked .rr-looking")).to_be_visible()
    page.locator("#looked summary").first.click()
    shoot(page, "looking", "#looked", light=True)
    page.get_by_role("tab", name="Report").click()
    rows.first.locator("[data-action=why]").click()
    rows.first.locator(".rr-why summary").first.click()
    expect(rows.first.locator(".rr-why svg")).to_be_visible()
    shoot(page, "why", "#report .rr-item[data-current]")

    def do(row: int, action: str, said: str, words: str = "") -> None:
        rows.nth(row).hover()
        rows.nth(row).locator(f"[data-action={action}]").click()
        if words:
            page.locator("#report textarea").fill(words)
            page.keyboard.press("Enter")
        expect(page.locator("#status")).to_contain_text(said)

    last = rows.count() - 1
    do(0, "accept", "Accepted.")
    drafted = rows.nth(last).locator(".rr-item-text").inner_text()
    do(last, "edit", "Edited.", f"{drafted.rstrip('.')} on this view.")
    do(last, "add", "Added.", "Follow-up in six weeks.")
    if last > 1:
        do(1, "delete", "Deleted")
    page.locator("#report [data-action=changes]").click()
    shoot(page, "changes", "#report")
    while page.locator(".rr-caution [data-action=decide]").count():
        left = page.locator(".rr-caution").count()
        page.locator(".rr-caution [data-action=decide]").first.click()
        expect(page.locator(".rr-caution")).to_have_count(left - 1)
    page.locator("#report [data-action=ask-sign]").click()
    shoot(page, "sign", "dialog[data-dialog=sign]")
    for tick in page.locator("dialog[data-dialog=sign] input[type=checkbox]").all():
        tick.check()
    page.locator("dialog[data-dialog=sign] [data-action=sign]").click()
    expect(page.locator(".rr-stand")).to_contain_text("Signed off")
    page.get_by_role("tab", name="Export").click()
    shoot(page, "export", "#menu", light=True)


def films(page: Any, expect: Any, address: str, folder: Path) -> None:
    """A film that is refused; a film and a prior one side by side, with what is new."""
    hand = pydicom.dcmread(example_film())
    hand.BodyPartExamined = "HAND"
    hand.save_as(folder / "hand.dcm")
    ready(page, expect, address)
    page.set_input_files("#drop input[type=file]", str(folder / "hand.dcm"))
    expect(page.locator("#notice [data-action=use]")).to_be_visible()
    shoot(page, "refused", "#notice")
    page.evaluate("sessionStorage.clear(), localStorage.clear()")

    ready(page, expect, address)
    phantom, paths = make_phantom(2, height=640, width=640, lesion=None), [folder / "now.png", folder / "before.png"]
    before = phantom.pixels.astype(np.float32) / phantom.pixels.max() * 255
    now, _ = draw(before, phantom.lungs > 0, Sign.OPACITY, np.random.default_rng(2), 1.5)
    for path, film in zip(paths, (now, before), strict=True):
        Image.fromarray(film.round().clip(0, 255).astype(np.uint8)).save(path)
    page.set_input_files("#drop input[type=file]", [str(path) for path in paths])
    expect(page.locator(".film-1")).to_be_visible()
    page.click("#mark-2")
    expect(page.locator("#films")).to_contain_text("Prior film")
    page.locator("#films [data-do=show][data-value=all]").click()
    page.click("#write")
    expect(page.locator("#status")).to_contain_text("Draft done")
    page.locator("#report .rr-item .rr-item-text").first.click()
    expect(page.locator("#was-read")).to_contain_text("new since the prior film")
    with_map(page, "#films")
    shoot(page, "prior")


def teach(page: Any, expect: Any, address: str, folder: Path) -> None:
    """Write first, commit, compare, paint; then a class as its teacher sees it."""
    page.goto(address)
    page.get_by_role("tab", name="Teach").click()
    page.get_by_role("button", name="For teachers").click()
    page.get_by_label("Name of the class").fill("Year 4")
    page.click("#teach-begin")
    code = page.locator("#teach-begun .rr-code").inner_text()
    page.get_by_role("button", name="Join a class").click()
    page.get_by_label("Class code").fill(code)
    page.get_by_label("Pseudonym").fill("Blue fox")
    page.click("#teach-join-now")
    expect(page.locator("#teach-who")).to_contain_text("Blue fox")
    for name in ("Join a class", "For teachers"):
        page.get_by_role("button", name=name).click()
    page.locator("#teach-cases label").first.click()
    expect(page.locator("#teach-films .film-0 img")).to_be_visible()
    page.locator("#teach-findings textarea").fill("There is a left pleural effusion. The heart is enlarged.")
    page.locator("#teach-impression textarea").fill("Left effusion.")
    expect(page.locator("#teach-saved")).to_contain_text("Kept")
    shoot(page, "write", width=390, top="#teach-head")
    page.click("#teach-commit")
    expect(page.locator("#teach-compared .rr-three > section")).to_have_count(3)
    page.locator("#teach-words .rr-head").first.click()
    expect(page.locator("#teach-caption")).to_contain_text("The brighter a place")
    shoot(page, "teach")
    shoot(page, "teach", width=390, top="#teach-located")

    canvas = page.locator("#teach-brush canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.8 * box["height"], steps=8)
    page.mouse.up()
    expect(page.locator("#teach-moved li:not([data-change='0.0'])").first).to_be_visible()
    shoot(page, "seen", "#teach-seen")

    page.get_by_role("button", name="For teachers").click()
    page.click("#teach-open")  # the key stands there already
    expect(page.locator("#teach-answers")).to_contain_text("Blue fox")
    shoot(page, "class", "#teach-class")


def about(page: Any, expect: Any, address: str, folder: Path) -> None:
    page.goto(address)
    page.get_by_role("tab", name="About").click()
    expect(page.locator("#measured")).to_contain_text("parameters were trained")
    shoot(page, "about")


SCENES = {scene.__name__: scene for scene in (read, films, teach, about)}


def main(wanted: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "uploads").mkdir()
        server = Server(folder / "uploads", DEFAULT_CHECKPOINT)
        try:
            for scene in wanted or SCENES:
                with browser_page(1440, HEIGHT[1440]) as (page, wrong, expect):
                    SCENES[scene](page, expect, server.address, folder)
                    if wrong:
                        print("\n".join(wrong), file=sys.stderr)
        finally:
            server.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
