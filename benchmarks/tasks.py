"""How many steps and seconds three tasks take in the app: python benchmarks/tasks.py [ROOT ...]

    normal     a normal film: drafted, every sentence seen and accepted, signed
    abnormal   an abnormal film: drafted, one sentence looked at, one edited, one deleted, signed, exported as PDF
    case       a teaching case made of that report, answered by two learners, opened by the teacher   (docs/guide.md)

A step is a click, a key, a word typed into one box, or a file chosen: what a person does, counted by the script that does it. Seconds are those of a
script that never hesitates, so they say what the machine and the screen cost, not what reading costs. Travel is how far the page or the report was
scrolled, in screen heights. ROOT: folders of EMRRG to compare, side by side in one run; default: this one.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))

from emrrg_core.model.language_model import cache_home  # noqa: E402

SIZE = {"width": 1440, "height": 900}
_WATCH = """() => { window.travel = 0; document.addEventListener('scroll', (event) => {
    const at = event.target === document ? document.documentElement : event.target, before = at.dataset.at ?? 0;
    window.travel += Math.abs(at.scrollTop - before) / innerHeight; at.dataset.at = at.scrollTop; }, true); }"""


class Hand:
    """A page, and how often it was touched."""

    def __init__(self, page: Any, expect: Any) -> None:
        self.page, self.expect, self.steps = page, expect, 0

    def click(self, what: Any) -> None:
        (self.page.locator(what) if isinstance(what, str) else what).first.click()
        self.steps += 1

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)
        self.steps += 1

    def type(self, words: str) -> None:
        self.page.keyboard.type(words)
        self.steps += 1

    def file(self, path: Path) -> None:
        self.page.set_input_files("#drop input[type=file]", str(path))
        self.steps += 1

    def said(self, words: str) -> None:
        self.expect(self.page.locator("#status")).to_contain_text(words)


@contextmanager
def serving(root: Path, folder: Path) -> Iterator[str]:
    environment = os.environ | {"EMRRG_HOME": str(folder), "PYTHONUNBUFFERED": "1"}
    for kept in cache_home().iterdir():  # the converted language model is not made again
        if kept.name != "sessions":
            (folder / kept.name).symlink_to(kept)
    with subprocess.Popen(
        [sys.executable, "app.py"], cwd=root, env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            if server.stdout is None:
                raise RuntimeError("the server has no output")
            address = next(line.split()[3] for line in server.stdout if " is at " in line)
            next(line for line in server.stdout if "loaded" in line)
            yield address
        finally:
            server.terminate()


def sign(hand: Hand) -> None:
    page = hand.page
    hand.click("[data-action=ask-sign]")
    for tick in page.locator("dialog[data-dialog=sign] input[type=checkbox]").all():
        tick.check()
        hand.steps += 1
    hand.click("dialog[data-dialog=sign] [data-action=sign]")
    hand.expect(page.locator(".rr-stand")).to_contain_text("Signed off")


def accept_all(hand: Hand) -> None:
    """As quickly as the screen allows: all at once where each was seen, else one after the other by keys."""
    page = hand.page
    rest = page.locator("[data-action=accept-rest]")
    if rest.count():
        page.wait_for_timeout(900)  # sentences count as seen once they stood in sight for a moment
        while not rest.is_enabled():
            page.locator("#report").hover()
            page.mouse.wheel(0, 400)
            hand.steps += 1
            page.wait_for_timeout(900)
        hand.click(rest)
        hand.said("Accepted.")
        return
    for _ in range(page.locator("#report .rr-item").count()):
        hand.press("j")
        hand.press("a")
        page.wait_for_timeout(300)
    hand.expect(page.locator("#report .rr-unreviewed")).to_have_count(0)


def decide_all(hand: Hand) -> None:
    page = hand.page
    while page.locator(".rr-caution [data-action=decide]").count():
        left = page.locator(".rr-caution").count()
        hand.click(".rr-caution [data-action=decide]")
        hand.expect(page.locator(".rr-caution")).to_have_count(left - 1)


def normal(hand: Hand) -> None:
    hand.file(HERE / "assets" / "examples" / "normal.jpg")
    hand.expect(hand.page.locator(".film-0")).to_be_visible()
    hand.press("d")
    hand.said("Draft done")
    accept_all(hand)
    decide_all(hand)
    sign(hand)


def abnormal(hand: Hand) -> None:
    from pydicom.data import get_testdata_file

    page = hand.page
    hand.file(Path(str(get_testdata_file("RG1_UNCR.dcm", download=False))))
    hand.expect(page.locator(".film-0")).to_be_visible()
    hand.press("d")
    hand.said("Draft done")
    rows = page.locator("#report .rr-item")
    hand.click(rows.first.locator(".rr-item-text"))
    page.wait_for_function("getComputedStyle(document.querySelector('.film-0 .rr-map')).backgroundImage != 'none'")
    hand.press("e")
    page.locator("#report textarea").press("End")
    hand.type(" Compare with older films.")
    hand.press("Enter")
    hand.said("Edited.")
    hand.press("j")
    hand.press("x")
    hand.said("Deleted")
    accept_all(hand)
    decide_all(hand)
    sign(hand)
    if page.get_by_role("tab", name="Export").count():
        hand.click(page.get_by_role("tab", name="Export"))
    with page.expect_download():
        hand.click("[data-kind=pdf]")


def case(hand: Hand) -> None:
    """The steps of all four people together: who makes the case, two learners, the teacher who opens the class."""
    page = hand.page
    hand.click("[data-action=example][data-name=opacity]")
    hand.expect(page.locator(".film-0")).to_be_visible()
    hand.press("d")
    hand.said("Draft done")
    hand.click(page.get_by_role("tab", name="Export"))
    hand.click("[data-action=make-case]")
    fill(hand, "#teach-new-title textarea, #teach-new-title input", "A dense lung")
    hand.click(page.get_by_label("I have looked at every film"))
    hand.click("#teach-save")
    hand.expect(page.locator("#teach-made")).to_contain_text("is in the list")
    if not page.locator("#teach-begin").is_visible():
        hand.click(page.get_by_role("button", name="For teachers"))
    hand.click("#teach-begin")
    code = page.locator("#teach-begun .rr-code").inner_text()
    for name in ("Owl", "Fox"):
        learner = Hand(page.context.browser.new_context(viewport=SIZE).new_page(), hand.expect)
        learner.page.set_default_timeout(120_000)
        learner.page.goto(page.url)
        learner.click(learner.page.get_by_role("tab", name="Teach"))
        learner.click(learner.page.get_by_role("button", name="Join a class"))
        fill(learner, "#teach-code textarea, #teach-code input", code)
        fill(learner, "#teach-name textarea, #teach-name input", name)
        learner.click("#teach-join-now")
        hand.expect(learner.page.locator("#teach-who")).to_contain_text(name)
        learner.click(learner.page.locator("#teach-cases label").filter(has_text="A dense lung"))
        hand.expect(learner.page.locator("#teach-films .film-0 img")).to_be_visible()
        fill(learner, "#teach-findings textarea", "Right lung opacity.")
        fill(learner, "#teach-impression textarea", "Right pneumonia.")
        learner.click("#teach-commit")
        hand.expect(learner.page.locator("#teach-compared .rr-three")).to_be_visible()
        hand.steps += learner.steps
        learner.page.context.close()
    hand.click(page.locator("#teach-cases label").filter(has_text="A dense lung"))
    hand.expect(page.locator("#teach-films .film-0 img")).to_be_visible()
    hand.click("#teach-open")
    hand.expect(page.locator("#teach-answers")).to_contain_text("Fox")


def fill(hand: Hand, box: str, words: str) -> None:
    hand.page.locator(box).first.fill(words)
    hand.steps += 1


TASKS: dict[str, Callable[[Hand], None]] = {"normal": normal, "abnormal": abnormal, "case": case}


def measure(root: Path, address: str) -> dict[str, tuple[int, float, float]]:
    """Of every task: steps, seconds, screens scrolled."""
    from playwright.sync_api import expect, sync_playwright

    found = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-background-networking"]
        )
        for name, task in TASKS.items():
            page = browser.new_page(viewport=SIZE)
            page.set_default_timeout(120_000)
            expect.set_options(timeout=120_000)
            page.goto(address)
            expect(page.locator("#status")).to_contain_text("Ready")
            if name == "case" and not page.locator("[data-action=example]").count():
                continue  # cases were made by hand, in an editor, and the server started anew
            page.evaluate(_WATCH)
            hand, begun = Hand(page, expect), time.perf_counter()
            task(hand)
            found[name] = hand.steps, time.perf_counter() - begun, page.evaluate("window.travel")
            page.close()
        browser.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="*", type=Path, default=[HERE], metavar="ROOT")
    print(f"{'':28}{'steps':>7}{'seconds':>9}{'screens scrolled':>18}")
    for root in parser.parse_args().roots:
        with tempfile.TemporaryDirectory() as folder, serving(root.resolve(), Path(folder)) as address:
            for name, (steps, seconds, travel) in measure(root, address).items():
                print(f"{root.name + ', ' + name:28}{steps:7}{seconds:9.1f}{travel:18.1f}", flush=True)


if __name__ == "__main__":
    main()
