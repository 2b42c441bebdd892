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

from emrrg_core.model.language_model import cache_home

HERE = Path(__file__).resolve().parent.parent
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
        hand.expect(rest).to_be_enabled()
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


TASKS: dict[str, Callable[[Hand], None]] = {"normal": normal, "abnormal": abnormal}


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
