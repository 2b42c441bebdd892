"""The About screen: there before the model is, then true of the model that was loaded; every file that is missing is told."""

import html
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from emrrg_core import DISCLAIMER, Reporter
from emrrg_core.model.parameter_count import Counts
from emrrg_core.reporter import DEFAULT_CHECKPOINT
from tests.test_app import Server, browser_page
from ui import about
from ui.read import NOTICE

ROOT = Path(__file__).resolve().parent.parent
PARTS = ["Indication", "Body part", "Population", "User", "Environment", "Principle of operation"]


@pytest.fixture(scope="module")
def reporter(checkpoint: Path) -> Reporter:
    return Reporter.load(checkpoint)


BUILT = """
import json, sys, app
from concurrent.futures import Future
from pathlib import Path
from ui import about
about.ROOT = Path(sys.argv[1])
demo = app.build_demo(Future())
print(json.dumps(demo.config, ensure_ascii=False, default=repr), "torch" in sys.modules)
"""


def built(root: Path) -> str:
    """Everything that the page holds when it answers, with the files of a project. In a process of its own: Gradio leaves event loops open."""
    done = subprocess.run(
        [sys.executable, "-c", BUILT, str(root)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


# ------------------------------------------------------------------------------------------------------- before the model


def test_the_page_is_there_before_the_model_and_says_what_it_waits_for() -> None:
    page = built(ROOT)
    facts = about.facts()
    assert all(html.escape(words) in page for words in facts["intended_use"].values())
    assert "Measured as soon as the model is loaded" in page
    assert "rr-architecture" in page
    assert page.endswith("False\n"), "torch takes seconds"


def test_the_page_says_that_this_is_for_research_and_teaching_and_never_for_the_care_of_a_patient() -> None:
    use = about.facts()["intended_use"]
    assert list(use) == PARTS
    assert "Research" in use["Indication"]
    assert "never use a draft for the care of a patient" in use["Indication"]
    assert "Not patients" in use["User"]
    assert html.escape(use["Indication"]) in built(ROOT)


def test_what_is_missing_is_told_and_the_rest_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(about, "ROOT", tmp_path)
    page = built(tmp_path)
    for name in (about.CARD, about.RECIPES, about.DRAWING):
        assert f"{name} is not here" in page
    assert "is not here" in about.validated(about.text_of(about.RESULTS), "0" * 64, "1" * 64)
    assert about.facts()["intended_use"]["Indication"] in page


def test_a_page_of_the_project_fits_into_this_one() -> None:
    shown = about._shown(
        "---\nlicense: x\n---\n\n# Title\n<!-- a\nb -->\n## Part\n[docs](docs/a.md#b), [x](https://x.org)\n### Deeper\n",
        "A.md",
    )
    assert shown == "### Part\ndocs, [x](https://x.org)\n#### Deeper\n"
    table = "| a | b |\n|---|---|\n| 1 | 2 |\n"
    before, _, after = about._shown(f"## Part\n\n{table}\nAfter.\n", "A.md").partition(table)
    assert 'tabindex="0"' in before, "who has no mouse scrolls a wide table with the arrow keys"
    assert before.endswith(">\n\n"), "Markdown within HTML begins behind an empty line"
    assert after == "\n</div>\n\nAfter.\n"


def test_the_drawing_is_one_that_a_screen_reader_can_tell_and_shows_what_learns() -> None:
    svg = ElementTree.parse(ROOT / about.DRAWING).getroot()
    name = "{http://www.w3.org/2000/svg}"
    parts = {part.get("id"): part for part in svg if part.tag in (f"{name}title", f"{name}desc")}
    assert svg.get("role") == "img"
    assert set((svg.get("aria-labelledby") or "").split()) == set(parts)
    assert all((part.text or "").strip() for part in parts.values())
    words = [text.text for text in svg.iter(f"{name}text")]
    assert {"LoRA_p(X)", "LoRA(in_proj)", "gate g(a)", "cross-attention", "in_proj", "X", "Z"} <= set(words)
    assert {"Disease queries", "Calibrated probability", "Finding tokens, one each", "text only,", "no film"} <= set(
        words
    )
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", (ROOT / about.DRAWING).read_text(encoding="utf-8"))


# ---------------------------------------------------------------------------------------------------- of the loaded model


def test_the_counts_are_those_of_the_tensors_of_the_loaded_model(reporter: Reporter) -> None:
    counts, model = reporter.parameters(), reporter._model
    assert counts.whole("everything") == sum(p.numel() for p in model.parameters())
    assert not any(p.requires_grad for p in model.parameters()), "what is loaded to draft learns nothing"
    assert counts.trainable.keys() == {"adapters", "projector", "hybrid"}
    lora = sum(p.numel() for n, p in model.visual_encoder.named_parameters() if ".lora." in n)
    assert counts.trainable["adapters"] == lora > 0
    assert "tower" in counts.all.keys() - counts.trainable.keys()


def test_every_part_and_every_share_stands_on_the_screen() -> None:
    counts = Counts({"tower": 600, "projector": 100, "queries": 100, "LLM": 200}, {"projector": 100, "queries": 50})
    page = about.counted(counts)
    assert "150 of 1,000 parameters" in page
    assert "<b>15.00 %</b> of everything" in page
    assert "<b>25.00 %</b> of the tower (600)" in page
    rows = re.findall(r'<th scope="row">.*?</span>(.*?)</th>.*?>([\d,]+)<.*?>([\d.]+) %.*?<td>([^<]*)</td></tr>', page)
    assert rows == [
        ("Vision Mamba tower", "600", "60.00", "frozen"),
        ("Disease queries and lung borders", "100", "10.00", "50 trained"),
        ("Projector", "100", "10.00", "trained"),
        ("Language model", "200", "20.00", "frozen"),
    ]


def test_results_are_shown_only_for_the_checkpoint_that_they_were_measured_on() -> None:
    results = about.text_of(about.RESULTS)
    assert results is not None
    card = json.loads(results)
    page = about.validated(results, card["checkpoint_sha256"], card["settings_sha256"])
    for source, scores in card["scores"].items():
        assert f'<th scope="row">{source}</th>' in page
        if (score := scores.get("label_macro_f1")) and score["value"] is not None:
            interval = f"[{score['low']:.2f}, {score['high']:.2f}] · {score['n']}"
            assert f"{score['value']:.2f}<small>{interval}</small>" in page
    assert card["command"] in page
    changed = about.validated(results, card["checkpoint_sha256"], "ab" * 32)
    assert "under other settings" in changed
    assert "<table" not in changed
    other = about.validated(results, "ab" * 32, card["settings_sha256"])
    assert "abababababab" in other
    assert "has no results here" in other
    assert "<table" not in other


def measured(**values: float | None) -> dict:
    return {
        name: {"value": value, "low": value, "high": value, "n": 40} if value is not None else {"value": None, "n": 0}
        for name, value in values.items()
    }


def test_what_carries_the_film_into_the_drafts_is_the_first_thing_that_the_results_say() -> None:
    card = json.loads(about.text_of(about.RESULTS) or "")
    sha256, settings = card["checkpoint_sha256"], card["settings_sha256"]
    card["paths"] = {
        "own": measured(labels_kept=1.0, labels_of_other=None, normal_balanced_accuracy=0.93, flips=0.0, nats=0.0),
        "gates_zero": measured(labels_kept=0.31, normal_balanced_accuracy=0.5, flips=0.45, nats=1.25),
        "patches_other": measured(labels_kept=0.96),
        "findings_other": measured(labels_kept=0.05, labels_of_other=0.92),
    }
    page = about.validated(json.dumps(card), sha256, settings)
    first, _, rest = page.partition("</table>")
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', first)
    assert [name for name, _ in rows] == [about.PATHS[name] for name in about.PATHS if name in card["paths"]]
    assert re.findall(r"<td>(.*?)(?:<small>.*?)?</td>", rows[1][1]) == ["0.31", "–", "0.50", "0.45", "3.49"], (
        "1.25 nats: 3.49 times"
    )
    assert "[0.31, 0.31] · 40" in rows[1][1]
    assert "[3.49, 3.49] · 40" in rows[1][1]
    assert "nats" not in first.lower()
    assert '<th scope="row">overall</th>' in rest
    assert "with another film’s patches 96% of the drafts keep their labels" in first
    card["paths"]["patches_other"] = measured(labels_kept=0.4)
    assert "matter little" not in about.validated(json.dumps(card), sha256, settings)
    for none in (None, {}):
        without = about.validated(json.dumps(card | {"paths": none}), sha256, settings)
        assert "What carries the film" not in without
        assert '<th scope="row">overall</th>' in without


def test_the_card_says_when_it_is_of_another_checkpoint() -> None:
    card = f"Checkpoint `{'12' * 6}…`."
    assert about._card_of(card, "12" * 32) == ""
    assert "describes the one that comes with EMRRG" in about._card_of(card, "ab" * 32)


def test_the_notice_of_the_screens_is_the_cores() -> None:
    assert DISCLAIMER.startswith(NOTICE)


# ---------------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server"), DEFAULT_CHECKPOINT)
    try:
        yield running
    finally:
        running.stop()


@pytest.mark.parametrize("width", [1440, 390])
def test_the_screen_in_a_browser(server: Server, width: int) -> None:
    """Intended use at once; counts, results and card of the shipped checkpoint once it is loaded; nothing wider than the screen."""
    with browser_page(width, 900) as (page, wrong, expect):
        page.goto(server.address)
        page.get_by_role("tab", name="About").click()
        expect(page.get_by_role("region", name="Intended use")).to_contain_text("Principle of operation")
        expect(page.get_by_role("img", name="How EMRRG turns films into a draft")).to_be_visible()

        measured = page.locator("#measured")
        expect(measured.locator("tbody tr").first).to_contain_text("Vision Mamba tower")
        expect(measured).to_contain_text("parameters were trained in fine-tuning")
        sha256 = json.loads(about.text_of(about.RESULTS) or "")["checkpoint_sha256"]
        expect(measured).to_contain_text(sha256)
        expect(page.locator("#validation tbody").last).to_contain_text("overall")
        expect(page.locator("#licences tbody")).to_contain_text("kermany")

        for part, words in (("#recipes", "LoRA_p(X)"), ("#card", "What it cannot do")):
            page.locator(f"{part} > button, {part} .label-wrap").first.click()
            expect(page.locator(part)).to_contain_text(words)
        expect(page.locator("#card .rr-say")).to_have_count(0)  # it is the card of this checkpoint
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert wrong == []


def test_a_model_that_cannot_be_loaded_is_told_and_the_rest_stays(tmp_path: Path) -> None:
    server = Server(tmp_path, tmp_path / "nowhere")
    try:
        with browser_page(800, 600) as (page, _, expect):
            page.goto(server.address)
            page.get_by_role("tab", name="About").click()
            expect(page.locator("#measured")).to_contain_text("There is nothing to measure")
            expect(page.locator("#measured")).to_contain_text("checkpoint")
            expect(page.get_by_role("region", name="Intended use")).to_contain_text("Indication")
    finally:
        server.stop()
