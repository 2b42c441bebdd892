"""Scores of drafts. Every sentence here is of our own making; the golden numbers are pycocoevalcap's."""

import json
import math
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from emrrg_core.text import metrics
from emrrg_core.text.labeler import LABELS, labels
from emrrg_core.text.metrics import (
    bootstrap,
    label_counts,
    label_scores,
    macro_scores,
    meteor_of_statistics,
    micro_scores,
    rate,
    text_scores,
)
from tests import radeval_stand_in

GOLDEN = json.loads((Path(__file__).parent / "golden" / "metrics_pycocoevalcap.json").read_text("utf-8"))
OURS = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider")  # METEOR is Java's
has_meteor = pytest.mark.skipif(
    not (shutil.which("java") and find_spec("pycocoevalcap")), reason="no Java or no pycocoevalcap"
)


@pytest.fixture
def without_java(monkeypatch):
    monkeypatch.setenv("PATH", "")


# -------------------------------------------------------------------------------------------------------------- words


def test_bleu_rouge_and_cider_are_those_of_pycocoevalcap(without_java):
    scores = text_scores(GOLDEN["references"], GOLDEN["drafts"], draws=2)
    assert {name: scores[name]["value"] for name in OURS} == pytest.approx(
        {name: GOLDEN["corpus"][name] for name in OURS}, abs=1e-6
    )


def test_rouge_and_cider_of_each_study_are_those_of_pycocoevalcap():
    pairs = zip(GOLDEN["references"], GOLDEN["drafts"], strict=True)
    assert [metrics._rouge_l(*pair) for pair in pairs] == pytest.approx(GOLDEN["studies"]["rouge_l"], abs=1e-6)
    assert metrics._cider(GOLDEN["references"], GOLDEN["drafts"]) == pytest.approx(GOLDEN["studies"]["cider"], abs=1e-6)


def test_meteor_follows_from_what_its_program_counts():
    """Per study and pooled, without Java: so an interval needs no further run of it."""
    counted = np.array(GOLDEN["meteor_statistics"])
    assert meteor_of_statistics(counted) == pytest.approx(GOLDEN["corpus"]["meteor"], abs=1e-6)
    each = [meteor_of_statistics(row[None]) for row in counted]
    assert each == pytest.approx(GOLDEN["studies"]["meteor"], abs=1e-6)


@has_meteor
def test_meteor_runs_where_java_and_the_package_are():
    meteor = text_scores(GOLDEN["references"], GOLDEN["drafts"], draws=50)["meteor"]
    assert meteor["value"] == pytest.approx(GOLDEN["corpus"]["meteor"], abs=1e-6)
    assert meteor["low"] < meteor["value"] < meteor["high"]
    assert "reason" not in meteor


def test_the_package_itself_agrees_on_random_words(without_java):
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    rng = np.random.default_rng(7)
    words = np.array(["lung", "heart", "clear", "effusion", "left", "is", "the", "."])
    texts = [" ".join(rng.choice(words, size=rng.integers(1, 30))) for _ in range(80)]
    references, drafts = texts[:40], texts[40:]
    truth, said = ({i: [text] for i, text in enumerate(part)} for part in (references, drafts))
    expected = dict(zip(OURS, Bleu(4).compute_score(truth, said, verbose=0)[0], strict=False))
    expected |= {
        "rouge_l": Rouge().compute_score(truth, said)[0],
        "cider": Cider().compute_score(truth, said)[0],
    }
    scores = text_scores(references, drafts, draws=2)
    assert {name: scores[name]["value"] for name in OURS} == pytest.approx(expected, abs=1e-6)


def test_without_java_meteor_is_not_computed_and_says_so(without_java):
    meteor = text_scores(["a b c"] * 2, ["a b c"] * 2, draws=2)["meteor"]
    assert meteor == {
        "value": None, "low": None, "high": None, "n": 2, "reason": "METEOR needs Java, which is not on the path"
    }  # fmt: skip


def test_without_the_package_meteor_says_how_to_get_it(monkeypatch, tmp_path):
    (tmp_path / "java").write_text("#!/bin/sh\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    meteor = text_scores(["a b"] * 2, ["a b"] * 2, draws=2)["meteor"]
    assert meteor["value"] is None
    assert "requirements-eval.txt" in meteor["reason"]


def test_a_java_that_fails_gives_its_reason_and_no_number(monkeypatch, tmp_path):
    pytest.importorskip("pycocoevalcap")
    (tmp_path / "java").write_text("#!/bin/sh\necho no memory >&2\nexit 1\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    meteor = text_scores(["a b"] * 2, ["a b"] * 2, draws=2)["meteor"]
    assert meteor["value"] is None
    assert meteor["reason"].endswith("no memory")


def test_the_result_says_how_words_were_cut(without_java):
    scores = text_scores(["No effusion .", "a"], ["no effusion .", "a"], draws=2)
    assert "no PTB tokenizer" in scores["tokenisation"]
    assert scores["bleu1"]["value"] == pytest.approx(3 / 4), "letters count as they are"


def test_a_line_end_in_a_draft_is_a_space(without_java):
    one, two = (text_scores(["a b c d", "e"], [draft, "f"], draws=2) for draft in ("a b\nc d", "a b c d"))
    assert one == two


def test_one_study_has_no_cider_and_none_has_no_score(without_java):
    one = text_scores(["a b c d"], ["a b c d"], draws=2)
    assert one["bleu4"]["value"] == pytest.approx(1)
    assert one["cider"]["value"] is None
    assert "one study" in one["cider"]["reason"]
    none = text_scores([], [])
    assert {score["value"] for name, score in none.items() if name != "tokenisation"} == {None}


@pytest.mark.parametrize(("references", "drafts"), [(["a"], []), (["a", " "], ["a", "b"])])
def test_texts_that_do_not_pair_up_are_refused(references, drafts):
    with pytest.raises(ValueError, match="references"):
        text_scores(references, drafts)


# ---------------------------------------------------------------------------------------------------------- intervals


def test_a_bootstrap_interval_of_a_mean_is_the_one_of_the_textbook():
    values = np.random.default_rng(3).normal(10, 2, 400)
    score = bootstrap(values, draws=2000)
    error = 1.96 * values.std() / math.sqrt(len(values))
    assert score["value"] == values.mean()
    assert (score["low"], score["high"]) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.03)
    assert score["n"] == 400


def test_a_bootstrap_is_the_same_for_the_same_seed_and_another_for_another():
    values = np.arange(30.0)
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1) != bootstrap(values, seed=2)


def test_rows_stay_together_in_a_bootstrap():
    values = np.column_stack([np.arange(20.0), np.arange(20.0)])
    assert bootstrap(values, lambda rows: np.abs(rows[:, 0] - rows[:, 1]).max())["high"] == 0


def test_what_is_not_defined_is_none():
    assert bootstrap(np.array([]))["value"] is None
    undefined = bootstrap(np.ones(5), lambda rows: math.nan)
    assert (undefined["value"], undefined["low"], undefined["high"], undefined["n"]) == (None, None, None, 5)


def test_draws_without_a_statistic_are_left_out_of_the_interval():
    values = np.array([1.0] * 9 + [math.nan])  # a third of the draws hold no NaN
    score = bootstrap(values[:], lambda rows: math.nan if np.isnan(rows).all() else np.nanmean(rows))
    assert (score["value"], score["low"], score["high"]) == (1, 1, 1)


# ------------------------------------------------------------------------------------------------------------- labels

TRUTH = [
    {"Cardiomegaly": 1, "Edema": 0, "Fracture": 0},
    {"Cardiomegaly": 1, "Edema": 1},
    {"Cardiomegaly": 0, "Edema": 0, "Fracture": 0},
    {"Edema": 1},
]
STATED = [
    labels(text)
    for text in (
        "The heart is enlarged. No edema.",
        "Possible edema. The heart is normal.",
        "Possible cardiomegaly.",
        "Cardiomegaly. Rib fracture.",  # neither is known of this study
    )
]


@pytest.mark.parametrize(
    ("uncertain", "precision", "recall", "f1"),
    [("positive", 2 / 3, 2 / 4, 4 / 7), ("negative", 1 / 1, 1 / 4, 2 / 5)],
)
def test_label_scores_count_known_cells_and_follow_the_policy_for_doubt(uncertain, precision, recall, f1):
    scores = label_scores(TRUTH, STATED, uncertain=uncertain, draws=20)
    assert scores["uncertain"] == uncertain
    micro = [scores["all"][f"micro_{kind}"]["value"] for kind in ("precision", "recall", "f1")]
    assert micro == pytest.approx([precision, recall, f1])
    assert scores["labels"]["Cardiomegaly"]["known"] == 3
    assert scores["all"]["micro_f1"]["n"] == 4


def test_macro_is_over_labels_with_a_known_positive_and_silence_does_not_pay():
    scores = label_scores(TRUTH, STATED, uncertain="negative", draws=20)
    assert scores["all"]["macro_over"] == ["Cardiomegaly", "Edema"]
    assert scores["all"]["macro_f1"]["value"] == pytest.approx((2 / 3 + 0) / 2)
    assert scores["all"]["macro_precision"]["value"] == pytest.approx((1 + 0) / 2)
    assert scores["labels"]["Edema"]["precision"] is None, "nothing was stated, so there is no precision"
    assert scores["labels"]["Edema"]["f1"] == 0, "two were missed"
    assert scores["labels"]["Fracture"]["f1"] is None, "none to find and none stated"


def test_the_five_are_scored_apart():
    scores = label_scores([{"Fracture": 1, "Edema": 1}], [labels("Fracture. No edema.")], draws=5)
    assert set(scores["five"]["names"]) == {
        "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"
    }  # fmt: skip
    assert scores["five"]["micro_f1"]["value"] == 0
    assert scores["all"]["micro_f1"]["value"] == pytest.approx(2 / 3)


def test_a_group_of_which_nothing_is_known_has_no_score():
    scores = label_scores([{"Fracture": 1}], [labels("Fracture.")], draws=5)
    assert scores["five"]["micro_f1"]["value"] is None
    assert scores["five"]["micro_f1"]["n"] == 0
    assert scores["five"]["macro_over"] == []


def test_counts_of_studies_pool_to_the_scores_of_the_whole():
    counts = label_counts(TRUTH, STATED, uncertain="positive")
    assert counts.shape == (4, len(LABELS), 4)
    assert counts.sum() == sum(map(len, TRUTH)), "one count for every known cell"
    scores = label_scores(TRUTH, STATED, draws=5)
    assert micro_scores(counts)[2] == scores["all"]["micro_f1"]["value"]
    assert macro_scores(counts)[2] == scores["all"]["macro_f1"]["value"]
    assert bootstrap(counts, lambda rows: micro_scores(rows)[2])["n"] == 4


def test_other_policies_and_lengths_are_refused():
    with pytest.raises(ValueError, match="uncertain"):
        label_counts(TRUTH, STATED, uncertain="ignore")
    with pytest.raises(ValueError, match="4 studies and 1 drafts"):
        label_counts(TRUTH, STATED[:1])


# ------------------------------------------------------------------------------------------------------------ RadEval

RATED = {"chexbert_f1", "chexbert_f1_five", "radgraph_f1", "ratescore"}
EACH = np.arange(3)
REFERENCES = ["large heart", "clear", "effusion"]
DRAFTS = ["large heart", "effusion", ""]


@pytest.fixture
def radeval(monkeypatch, tmp_path) -> radeval_stand_in.StandIn:
    """A package with the calls of radeval 2.2.1, and its caches, all weights in them."""
    return radeval_stand_in.make(tmp_path, monkeypatch)


def test_what_radeval_says_of_each_study_becomes_scores_with_intervals(radeval):
    rated = rate(REFERENCES, DRAFTS)
    assert rated.version == "2.2.1"
    scores = rated.scores(EACH, draws=200)
    assert scores.keys() == RATED
    assert all(score["n"] == 3 and "reason" not in score for score in scores.values())
    # the stand-in reads Cardiomegaly, one of the five, from "large" and Fracture, which is not, from "effusion"
    assert scores["chexbert_f1"]["value"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))
    assert scores["chexbert_f1_five"]["value"] == 1
    assert scores["radgraph_f1"]["value"] == pytest.approx((1 + 0 + 0) / 3)
    assert scores["ratescore"]["value"] == pytest.approx((0.9 + 0.1 + 0.1) / 3)
    assert scores["ratescore"]["low"] == pytest.approx(0.1)
    assert scores["ratescore"]["high"] > scores["ratescore"]["value"]


def test_any_studies_can_be_scored_apart(radeval):
    rated = rate(REFERENCES, DRAFTS)
    first, last, none = (rated.scores(np.array(rows, int), draws=5) for rows in ([0], [1, 2], []))
    assert (first["radgraph_f1"]["value"], last["radgraph_f1"]["value"]) == (1, 0)
    assert (last["chexbert_f1"]["n"], last["chexbert_f1"]["value"]) == (2, 0)
    assert last["chexbert_f1_five"]["value"] is None, "none is known or stated, so there is nothing to divide by"
    assert {score["reason"] for score in none.values()} == {"there is no study"}


def test_weights_that_are_not_on_disk_are_named_and_the_others_go_on(radeval):
    radeval.file("chexbert.pth").unlink()
    scores = rate(REFERENCES, DRAFTS).scores(EACH, draws=5)
    for name in ("chexbert_f1", "chexbert_f1_five"):
        assert scores[name]["value"] is None
        assert "StanfordAIMI/RRG_scorers chexbert.pth" in scores[name]["reason"]
        assert "docs/training.md" in scores[name]["reason"]
        assert str(radeval.folder) not in scores[name]["reason"], "a card names no folder of the machine"
    assert scores["ratescore"]["value"] is not None
    for found in radeval.folder.rglob("config.json"):
        found.unlink()
    reason = rate(REFERENCES, DRAFTS).values["ratescore"]
    assert "RaTE-NER-Deberta" in reason
    assert "BioLORD" in reason


def test_radgraph_is_found_packed_or_unpacked(radeval):
    archive = radeval.file("radgraph-xl.tar.gz")
    archive.unlink()
    assert "radgraph-xl.tar.gz" in rate(REFERENCES, DRAFTS).values["radgraph_f1"]
    unpacked = radeval.folder / "cache" / "radgraph" / "0.1.18" / "radgraph-xl"
    unpacked.mkdir()
    (unpacked / "weights.th").touch()
    assert list(rate(REFERENCES, DRAFTS).values["radgraph_f1"]) == [1, 0, 0]


def test_one_that_fails_or_leaves_a_study_out_has_its_reason_and_no_number(radeval):
    values = rate([*REFERENCES[:2], "unreadable"], DRAFTS).values
    assert values["radgraph_f1"] == "RadEval failed: ValueError: no such words"
    assert values["ratescore"] == "RadEval failed: 2 scores for 3 studies"
    assert len(values["chexbert_f1"]) == 3


def test_an_older_radeval_is_told_apart(radeval):
    radeval.version("0.1.5")
    rated = rate(REFERENCES, DRAFTS)
    assert rated.version == "0.1.5"
    assert all("too old" in reason for reason in rated.values.values())


@pytest.mark.skipif(find_spec("radeval") is not None, reason="RadEval is installed")
def test_without_radeval_its_scores_are_not_computed_and_say_what_to_do():
    rated = rate(["no effusion ."], ["no effusion ."])
    assert rated.version is None
    for score in rated.scores(np.array([0])).values():
        assert score == {"value": None, "low": None, "high": None, "n": 1,
                         "reason": "RadEval is not installed; docs/training.md says how to get it"}  # fmt: skip


def test_an_interpreter_that_cannot_be_run_or_dies_is_a_reason_too(tmp_path):
    values = rate(["a"], ["a"], python=str(tmp_path / "python")).values
    assert values.keys() == RATED
    assert set(values.values()) == {"the interpreter for RadEval cannot be run: No such file or directory"}
    (tmp_path / "python").write_text("#!/bin/sh\necho out of memory >&2\nexit 3\n")
    (tmp_path / "python").chmod(0o755)
    values = rate(["a"], ["a"], python=str(tmp_path / "python")).values
    assert set(values.values()) == {"the interpreter for RadEval ended with 3: out of memory"}


def test_texts_for_radeval_must_pair_up_and_none_need_no_interpreter():
    with pytest.raises(ValueError, match="2 references and 1 drafts"):
        rate(["a", "b"], ["a"])
    assert set(rate([], [], python="nowhere").values.values()) == {"there is no study"}
