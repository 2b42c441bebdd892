"""What people read of the shipped checkpoint's scores is what its card says, to the letter."""

import json
from pathlib import Path

import pytest

from emrrg_core.errors import ConfigError
from train.ablation import COMPARED, best, read_results
from train.results import MARKS, cell, insert, main, page, summary

ROOT = Path(__file__).resolve().parent.parent
CARD = json.loads((ROOT / "docs/results/small.json").read_text())


ABLATION = ROOT / "docs/results/ablation"


def test_the_page_of_results_is_what_the_command_prints(capsys):
    main([str(ROOT / "docs/results/small.json"), "--ablation", str(ABLATION)])
    printed = capsys.readouterr().out
    assert printed == (ROOT / "docs/results.md").read_text()
    assert printed.startswith(page(CARD) + "\n\n## The ablation")


def test_every_row_of_the_ablation_was_run_and_the_best_four_three_times():
    results = read_results(ABLATION)
    first = [row for row, seed in results if seed == 0]
    assert sorted(first) == sorted(COMPARED)
    for row in best(results, COMPARED, 0):
        assert {seed for name, seed in results if name == row} == {0, 1, 2}


@pytest.mark.parametrize("name", ["README.md", "MODEL_CARD.md"])
def test_readme_and_model_card_say_what_the_card_says(name):
    text = (ROOT / name).read_text()
    assert insert(text, summary(CARD)) == text


def test_a_summary_replaces_the_one_before_and_nothing_else(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(f"# A page\n{MARKS[0]}\nold\n{MARKS[1]}\nthe rest\n")
    for _ in range(2):
        main([str(ROOT / "docs/results/small.json"), "--into", str(path)])
        assert path.read_text() == f"# A page\n{MARKS[0]}\n{summary(CARD)}\n{MARKS[1]}\nthe rest\n"


@pytest.mark.parametrize("text", ["", MARKS[0], MARKS[1], MARKS[1] + MARKS[0]])
def test_a_page_without_both_marks_is_refused(text):
    with pytest.raises(ConfigError, match="two marks"):
        insert(text, "new")


def test_what_was_not_scored_is_never_a_number():
    assert cell(None) == cell({"value": None, "n": 0}) == "–"
    assert cell({"value": None, "n": 3, "reason": "no weights"}) == "not computed"
    assert cell({"value": 0.125, "low": 0.0, "high": 0.25, "n": 8}) == "0.12 [0.00, 0.25] (n 8)"
