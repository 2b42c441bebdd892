"""The pages of results are what the commands print from the committed cards, and every part of a card is printed."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from emrrg_core.errors import ConfigError
from emrrg_core.model.checkpoint import fingerprint, settings_fingerprint
from train.ablation import COMPARED, METRICS, PAPER, best, read_results
from train.results import (
    MARKS,
    ablation_page,
    brief,
    cell,
    finding_table,
    in_words,
    insert,
    main,
    page,
    prior_page,
    reliability,
    summary,
    table,
    tables,
    ways_page,
)

ROOT = Path(__file__).resolve().parent.parent
CARD = json.loads((ROOT / "docs/results/small.json").read_text())


ABLATION = ROOT / "docs/results/ablation"


def test_the_page_of_results_is_what_the_command_prints(capsys):
    compare, prior = (ROOT / "docs/results" / name for name in ("compare.json", "prior.json"))
    more = ["--compare", str(compare), "--prior", str(prior), "--ablation", str(ABLATION)]
    main([str(ROOT / "docs/results/small.json"), *more])
    printed = capsys.readouterr().out
    assert printed == (ROOT / "docs/results.md").read_text()
    pages = page(CARD), ways_page(json.loads(compare.read_text())), prior_page(json.loads(prior.read_text()))
    assert printed == "\n\n".join([*pages, ablation_page(read_results(ABLATION))]) + "\n"


def test_the_card_of_the_prior_film_is_of_the_checkpoint_that_comes_with_the_project():
    card = json.loads((ROOT / "docs/results/prior.json").read_text())
    assert card["checkpoint"] == fingerprint(ROOT / "assets/checkpoints/small")


def test_the_card_is_of_the_checkpoint_that_comes_with_the_project():
    shipped = ROOT / "assets/checkpoints/small"
    assert CARD["checkpoint_sha256"] == fingerprint(shipped)
    assert CARD["settings_sha256"] == settings_fingerprint(shipped)


def test_every_row_of_the_ablation_was_run_and_the_best_four_three_times():
    results = read_results(ABLATION)
    first = [row for row, seed in results if seed == 0]
    assert sorted(first) == sorted(COMPARED)
    for row in best(results, COMPARED, 0):
        assert {seed for name, seed in results if name == row} == {0, 1, 2}


def test_the_reliability_diagram_is_drawn_from_the_card():
    if "reliability" in CARD:  # cards of before had no calibrated probabilities
        assert (ROOT / "docs/reliability.svg").read_text() == reliability(CARD)


@pytest.mark.parametrize(("name", "words"), [("README.md", brief), ("MODEL_CARD.md", summary)])
def test_readme_and_model_card_are_up_to_date(name, words):
    text = (ROOT / name).read_text()
    assert insert(text, words(CARD)) == text


def test_a_summary_replaces_the_one_before_and_nothing_else(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(f"# A page\n{MARKS[0]}\nold\n{MARKS[1]}\nthe rest\n")
    for option, words in (("--into", summary), ("--brief-into", brief)) * 2:
        main([str(ROOT / "docs/results/small.json"), option, str(path)])
        assert path.read_text() == f"# A page\n{MARKS[0]}\n{words(CARD)}\n{MARKS[1]}\nthe rest\n"


@pytest.mark.parametrize("text", ["", MARKS[0], MARKS[1], MARKS[1] + MARKS[0]])
def test_a_page_without_both_marks_is_refused(text):
    with pytest.raises(ConfigError, match="two marks"):
        insert(text, "new")


def test_what_was_not_scored_is_never_a_number():
    assert cell(None) == cell({"value": None, "n": 0}) == "–"
    assert cell({"value": None, "n": 3, "reason": "no weights"}) == "not computed"
    assert cell({"value": 0.125, "low": 0.0, "high": 0.25, "n": 8}) == "0.12 (0.00–0.25; n\u202f8)"
    assert cell({"value": 0.125, "low": 0.0, "high": 0.25, "n": 8}, 8) == "0.12 (0.00–0.25)"


# ------------------------------------------------------------------------------------------------------- a card of our own


def score(value: float | None, n: int = 60) -> dict:
    return {"value": value, "low": value, "high": value, "n": n}


def change(kept: float, other: float, accuracy: float = 0.9) -> dict:
    return {"labels_kept": score(kept), "labels_of_other": score(other), "normal_balanced_accuracy": score(accuracy),
            "flips": score(1 - kept), "nats": score(0.5)}  # fmt: skip


PATHS = {"own": change(1, 0.1), "gates_zero": change(0.4, 0.4, 0.5), "hybrid_other": change(0.05, 0.97), "prompt_other": change(1, 0.1),
         "patches_other": change(0.98, 0.12), "findings_other": change(0.06, 0.96), "findings_withheld": change(0.3, 0.3, 0.6)}  # fmt: skip
_NOTHING = score(None, 0)


def finding(assessed: bool, value: float | None) -> dict:
    names = (
        "area",
        "calibration_error",
        "negative_predictive_value",
        "denied_wrongly",
        "stated_of_positive",
        "stated_of_negative",
    )
    names_of_limits = ("threshold", "threshold_alone", "denied_below")
    limits = dict(zip(names_of_limits, (0.4, 0.8, 0.0) if assessed else (None,) * 3, strict=True))
    return {"label": "x", "assessed": assessed, "positive": 7, **limits, **{name: score(value) for name in names}}


OURS = {
    "checkpoint_sha256": "0123456789abcdef",
    "command": "python -m train.evaluate --checkpoint runs/small --films FILMS.jsonl MORE.jsonl",
    "precision": "float32",
    "decoding": "greedy",
    "seconds": 7.0,
    "more": ["MORE.jsonl"],
    "paths": PATHS,
    "scores": {
        "ours": {"normal_balanced_accuracy": score(0.81), "label_micro_f1": score(0.82), "pointing": _NOTHING},
        "few": {"normal_balanced_accuracy": score(0.7, 9), "label_micro_f1": score(0.6, 9), "pointing": score(0.33, 3)},
        "overall": {"normal_balanced_accuracy": score(0.83), "label_micro_f1": score(0.84), "map_correlation": score(0.37), "pointing": score(0.74),
                    "calibration_error": score(0.043)},
        "simulated": {"found": score(0.61), "false_alarms": score(0.02), "false_alarms_nodule": score(0.01)},
    },
    "findings": {"abnormal": finding(True, 0.93), "nodule": finding(True, 0.88), "fracture": finding(False, None)},
    "areas": {"nodule": {"ours": score(0.87)}, "effusion": {"more": score(0.76)}},
    "effusions": {"more": {"area": score(0.76), "stated_of_effusion": score(0.52), "stated_of_normal": score(0.04)}},
    "radiologists": {"AP": {"normal_balanced_accuracy": score(0.79, 18), "opacity_area": score(0.71, 18)}},
    "reliability": [
        {"low": k / 10, "high": k / 10 + 0.1, "n": n, "mean_probability": p, "frequency": often}
        for k, n, p, often in ((0, 0, None, None), (1, 5, 0.15, 0.2), (8, 5, 0.84, 0.8))
    ],
}  # fmt: skip


def test_all_pages_begin_with_what_carries_a_draft():
    said = in_words(PATHS)
    assert all(text.startswith(said) for text in (tables(OURS), summary(OURS), brief(OURS)))
    assert "| all gates shut | 0.40 | 0.40 | 0.50 | 0.50 |" in tables(OURS)
    assert page(OURS).count(said) == 1
    assert "MORE.jsonl are rows of their own" in page(OURS)


def test_the_words_about_the_paths_follow_from_their_numbers():
    numbers = re.findall(r"[\d.]+ %|\d\.\d\d", in_words(PATHS))
    assert numbers == ["0.50", "0.90", "97 %", "10 %", "100 %", "96 %", "12 %", "98 %"]
    assert "cannot tell" in in_words(PATHS)
    assert "still tell" in in_words(PATHS | {"gates_zero": change(0.9, 0.1, 0.8)})
    assert "matter little" in in_words(PATHS)
    assert "both count" in in_words(PATHS | {"patches_other": change(0.6, 0.4)})
    assert "the patches decide" in in_words(PATHS | {"patches_other": change(0.05, 0.9)})
    # of a model without finding tokens
    assert "finding tokens" not in in_words(
        {name: PATHS[name] for name in ("own", "gates_zero", "hybrid_other", "prompt_other")}
    )


def test_every_part_of_a_card_is_on_the_page():
    text = tables(OURS)
    for said in (
        "a radiologist's box: 0.74 (0.74–0.74; n\u202f60)",
        "| nodule | 7 | 0.40, 0.80 alone | never | 0.88 (0.88–0.88; n\u202f60) |",
        "| abnormal | 7 | 0.40 | never |",
        "Not assessed, so neither stated nor denied: fracture.",
        "| AP | 18 | 0.79 (0.79–0.79) | – |",
        "| more | 60 | 0.76 (0.76–0.76) | 0.52 (0.52–0.52) | 0.04 (0.04–0.04) |",
        "| nodule | – | – | – | 0.01 (0.01–0.01) |",
        "![How often a finding is there, by its probability](reliability.svg)",
        OURS["command"],
    ):
        assert said in text, said
    assert "| few |" not in text + summary(OURS)  # too few films
    assert "| fracture |" not in finding_table(OURS)
    assert "| nodule | 7 | 0.88 | 0.88 | 0.88 | 0.88 |" in summary(OURS)
    assert "(ours 0.81)" in brief(OURS)


def test_the_agreement_of_the_ablation_follows_from_its_results():
    """Rows in exactly the paper's order of BLEU-4, and the reverse."""
    results = read_results(ABLATION)
    order = sorted(PAPER, key=lambda row: PAPER[row][METRICS.index("bleu4")])

    def made(sign: int) -> str:
        changed = {}
        for (row, seed), result in results.items():
            if seed == 0 and row in PAPER:
                nats = 3 - sign * 0.1 * order.index(row)
                scores = result["scores"] | {"nll": score(nats), "bleu4": score(0.1 + sign * 0.01 * order.index(row))}
                films = {"nll": [nats] * len(result["films"]["nll"])}
                changed[row, seed] = result | {"scores": scores, "films": films}
        return ablation_page(changed)

    assert "+1.00 by our nats a token, +1.00 by our BLEU-4" in made(1)
    assert "-1.00 by our nats a token, -1.00 by our BLEU-4" in made(-1)
    assert "55 of 55 pairs" in made(1)
    assert "55 of these" in made(1)
    assert " 0 of these" in made(-1)
    assert "projector" not in made(1).partition("\n- ")[2]


def test_a_row_without_any_score_is_left_out():
    rows = {"a": {"x": score(0.5)}, "b": {"x": _NOTHING}, "c": {}}
    made = table("source", rows, {"x": "X"})
    assert made == "| source | n | X |\n|---|---|---|\n| a | 60 | 0.50 (0.50–0.50) |"


def test_the_same_number_of_films_in_all_rows_is_said_once():
    made = table("source", {"a": {"x": score(0.5)}, "b": {"x": score(0.25)}}, {"x": "X"})
    assert made.splitlines()[0] == "| source (n\u202f60) | X |"
    assert made.splitlines()[2:] == ["| a | 0.50 (0.50–0.50) |", "| b | 0.25 (0.25–0.25) |"]


def test_the_reliability_diagram_has_a_disc_a_bin_at_its_height(tmp_path):
    path = tmp_path / "card.json"
    path.write_text(json.dumps(OURS))
    main([str(path), "--reliability", str(tmp_path / "drawn.svg")])
    root = ElementTree.fromstring((tmp_path / "drawn.svg").read_text())
    discs = root.findall("{http://www.w3.org/2000/svg}circle")
    assert [(float(d.get("cx")), float(d.get("cy"))) for d in discs] == [
        (60 + 0.15 * 300, 30 + 0.8 * 300),
        (60 + 0.84 * 300, 30 + 0.2 * 300),
    ]
    assert "Calibration error 0.043 (10 probabilities)" in "".join(root.itertext())
