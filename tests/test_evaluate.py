"""The judge: a perfect draft scores 1, a blind one chance, and every documented score is there for every source."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from emrrg_core.adapters import ablate
from emrrg_core.annotations import clean_report
from emrrg_core.checkpoint import read_config, save
from emrrg_core.data import Study, normalise, read_studies
from emrrg_core.decode import Token, Writing
from emrrg_core.evidence import lay_over
from emrrg_core.findings import LABELS
from emrrg_core.model import Emrrg
from emrrg_core.report import compose
from emrrg_core.simulate import LABEL_OF, Sign
from tests import radeval_stand_in, tiny
from tests.phantom import Phantom, make_phantom
from tests.rounding import additions, rounding
from train import results
from train.evaluate import (
    Clock,
    Judge,
    _looks,
    _maps,
    _simulated_scores,
    baseline_name,
    baselines,
    by_radeval,
    cleaning_of,
    deletion,
    in_a_box,
    load_film,
    main,
    map_of,
    patch_cover,
    sentences_of,
    simulated,
    summarise_texts,
    text_columns,
)

TEXT_SCORES = {"label_micro_f1", "label_macro_f1", "normal_balanced_accuracy", "distinct", "bleu4", "rouge_l"}
SCORES = TEXT_SCORES | {"own_image_preferred", "own_image_preferred_all", "blank_drop", "noise_drop", "mask_share_over_chance",
                        "pointing", "deletion_drop"}  # fmt: skip
RADEVAL = ("chexbert_f1", "chexbert_f1_five", "radgraph_f1", "ratescore")
GRID = 4


# ---------------------------------------------------------------------------------------------------------------- whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Eight films to judge, of two sources, with both classes and both views, and six to learn from."""
    folder = tmp_path_factory.mktemp("films")
    kinds = (None, "nodule", None, "effusion", None, "opacity", None, "nodule")
    rows = []
    for i, lesion in enumerate(kinds):
        phantom = make_phantom(i, height=144, width=128, lesion=lesion)
        more = {"split": "val", "source": ("ours", "theirs")[i // 4], "view": ("AP", "PA")[i % 4 // 2]}
        if i in (0, 1):
            more |= {"findings": phantom.findings, "impression": phantom.impression}
        rows.append((phantom, more))
    for i in range(6):
        rows.append((make_phantom(20 + i, height=128, width=128, lesion=(None, "nodule")[i % 2]), {"split": "train"}))
    tiny.film_set(folder, rows)
    return folder


def card(capsys, *arguments: object) -> dict:
    capsys.readouterr()
    assert main([*map(str, arguments), "--json", "--threads", "1"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_score_is_there_for_every_source_and_baseline_and_a_seed_repeats_it(checkpoint, folder, capsys):
    asked = ("--checkpoint", checkpoint, "--films", folder / "films.jsonl", "--deletions", 2)
    asked += ("--radeval", "nowhere", "--beside", checkpoint)
    found = card(capsys, *asked)
    assert found["scores"].keys() == {"ours", "theirs", "overall", "simulated"}
    for source in ("ours", "theirs", "overall"):
        assert found["scores"][source].keys() >= SCORES
        films = 8 if source == "overall" else 4
        for name in TEXT_SCORES - {"bleu4", "rouge_l"}:
            assert found["scores"][source][name]["n"] == films, name
        assert found["scores"][source]["own_image_preferred_all"]["n"] == films
        assert found["scores"][source]["own_image_preferred"]["n"] == films
    assert found["scores"]["simulated"].keys() >= {"found", "side", "pointing", "distinct", "found_nodule"}
    assert found["scores"]["simulated"]["found"]["n"] == 4 * len(Sign)
    assert found["scores"]["overall"]["pointing"]["n"] == 4  # films with boxes
    assert [found["scores"][s]["bleu4"]["n"] for s in ("ours", "theirs", "overall")] == [2, 0, 2]
    assert found["scores"]["theirs"]["bleu4"]["value"] is None
    assert found["baselines"].keys() >= {"constant", "label_blind", "nearest"}
    for name in RADEVAL:
        assert found["scores"]["theirs"][name]["n"] == 0
        for rows in (found["scores"], *found["baselines"].values()):
            assert (rows["ours"][name]["value"], rows["ours"][name]["n"]) == (None, 2)
            assert "cannot be run" in rows["ours"][name]["reason"]
    for rows in (found["scores"], *found["baselines"].values()):
        assert rows.keys() >= {"ours", "theirs", "overall"}
        for row in rows.values():
            for name, score in row.items():
                assert score.keys() >= {"value", "low", "high", "n"}, name
                if score["low"] is not None:
                    assert score["low"] <= score["value"] + 1e-9 or score["n"] < 4, name
    for rows in found["baselines"].values():
        assert all(row.keys() >= TEXT_SCORES for row in rows.values())
    assert found["seconds_of"].keys() >= {
        "films",
        "drafts",
        "own film",
        "pairs",
        "blank and noise",
        "deletion",
        "simulated",
        "baselines",
        "RadEval",
    }
    assert sum(found["seconds_of"].values()) <= found["seconds"]
    assert "60 tokens" in found["truncation"]
    beside = found["baselines"].pop(checkpoint.name)["overall"]  # the same model as its own baseline
    assert all(found["scores"]["overall"][name] == score for name, score in beside.items())
    constant = found["baselines"]["constant"]["overall"]
    assert constant["distinct"]["value"] == 1 / 8
    assert constant["normal_balanced_accuracy"]["value"] == 0.5
    again = card(capsys, *asked[:-2])
    for name in ("scores", "baselines", "checkpoint_sha256", "settings_sha256", "seed"):
        assert again[name] == found[name], name
    tables = results.tables(found)
    lines = tables.splitlines()
    for name, score in (("ours", "label_micro_f1"), ("overall", "blank_drop"), ("theirs", "distinct")):
        cell = results.cell(found["scores"][name][score])
        assert any(line.startswith(f"| {name} |") and f"| {cell} |" in line for line in lines), (name, score)
    assert results.cell(found["scores"]["simulated"]["found_nodule"]) in tables
    assert found["command"] in tables
    assert "| ours |" + " not computed |" * len(RADEVAL) in tables
    assert (
        "Not computed: CheXbert micro-F1, 14 labels, CheXbert micro-F1, 5 labels, RadGraph F1, partial, RaTEScore: the interpreter"
        in tables
    )


def test_what_radeval_says_stands_where_true_reports_are_and_on_the_page(
    checkpoint, folder, capsys, tmp_path, monkeypatch
):
    radeval_stand_in.make(tmp_path, monkeypatch)
    asked = ("--checkpoint", checkpoint, "--films", folder / "films.jsonl", "--deletions", 0, "--neighbours", 0)
    found = card(capsys, *asked, "--limit", 4)
    assert found["radeval"]["version"] == "2.2.1"
    for rows in (found["scores"], *found["baselines"].values()):
        for name in RADEVAL:
            assert [rows[s][name]["n"] for s in ("ours", "theirs", "overall")] == [1, 0, 1]
            assert rows["theirs"][name]["value"] is None
        assert rows["overall"]["ratescore"]["value"] in (0.1, 0.9)
        assert rows["overall"]["radgraph_f1"]["value"] in (0, 1)
    page = results.tables(found)
    assert "| RaTEScore |" in page
    assert "Not computed:" not in page


def test_radeval_is_asked_once_and_each_text_has_its_own_scores(tmp_path, monkeypatch):
    radeval_stand_in.make(tmp_path, monkeypatch)
    studies = [
        study(0, {}),
        study(1, {}, findings="A large\nheart.", impression="No effusion."),
        study(2, {}, impression="Clear."),
    ]
    true = ["", compose("A large heart.", "No effusion."), compose("", "Clear.")]
    found = by_radeval({"": true, "wrong": [true[2], true[2], true[1]]}, studies, sys.executable)
    assert [list(found[name].values["radgraph_f1"]) for name in ("", "wrong")] == [[1, 1], [0, 0]]
    assert found["wrong"].values["chexbert_f1"].shape == (2, 3, 4)


def test_fewer_films_without_reports_have_scores_but_no_baselines(checkpoint, folder, tmp_path, capsys):
    rows = [json.loads(line) for line in (folder / "films.jsonl").read_text().splitlines()[:8]]
    for row in rows:
        row |= {"split": "anything", "files": [f"{folder}/{row['files'][0]}"], "lung_mask": None, "boxes": None}
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = ("--checkpoint", checkpoint, "--films", tmp_path / "set.jsonl", "--split", "anything", "--limit", 3)
    found = card(capsys, *asked)
    assert "baselines" not in found
    assert "simulated" not in found["scores"]
    assert found["scores"]["overall"]["label_micro_f1"]["n"] <= 3
    for name in ("pointing", "mask_share_over_chance"):
        assert (found["scores"]["overall"][name]["value"], found["scores"]["overall"][name]["n"]) == (None, 0)
    # report texts alone are enough for what needs no training film
    found = card(capsys, *asked, "--reports", folder / "reports.jsonl", "--cleaning", "mimic_cxr")
    assert found["baselines"].keys() == {"constant", "label_blind"}
    assert "mimic_cxr" in found["cleaning"]
    assert "100 tokens" in found["truncation"]


def test_without_json_a_line_a_score_is_printed(checkpoint, folder, capsys):
    assert (
        main(["--checkpoint", f"{checkpoint}", "--films", f"{folder}/films.jsonl", "--limit", "2", "--deletions", "0"])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:2] == ["overall", "label_micro_f1"] for line in lines)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--split": "nowhere"}, "no films of the split 'nowhere'"),
        ({"--checkpoint": "nowhere"}, "no checkpoint"),
        ({"--films": "nowhere.jsonl"}, "cannot be read"),
        ({"--reports": "nowhere.jsonl"}, "cannot be read"),
    ],
)
def test_what_cannot_be_judged_ends_with_a_sentence_and_2(checkpoint, folder, capsys, change, said):
    options = {"--checkpoint": str(checkpoint), "--films": f"{folder}/films.jsonl"} | change
    assert main([part for pair in options.items() for part in pair]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("emrrg: ")
    assert said in told.err


# ---------------------------------------------------------------------------------------------------------------- texts


def study(number: int, known: dict, **more) -> Study:
    plain = {
        "id": str(number),
        "source": "ours",
        "split": "val",
        "patient": str(number),
        "files": (),
        "labels": known,
        "view": None,
        "findings": "",
        "impression": "",
    }
    return Study(**plain | more)


NORMAL = compose("The heart is of normal size. The lungs are clear.", "No acute disease.")
NODULE = compose("There is a nodule in the right upper lung. The heart is of normal size.", "Right nodule.")
EFFUSION = compose("There is a small left pleural effusion.", "Left effusion.")


def scores(tokenizer, texts: list[str], studies: list[Study], cleaning: str = "iu_xray") -> dict:
    return summarise_texts(text_columns(texts, studies), studies, np.arange(len(studies)), tokenizer, cleaning)


STUDIES = [
    study(0, {"No Finding": 1}, view="AP"),
    study(1, {"Lung Lesion": 1, "No Finding": 0}, view="AP"),
    study(2, {"No Finding": 1}, view="PA"),
    study(3, {"Pleural Effusion": 1, "Lung Lesion": 0}, view="AP"),
    study(4, {"Edema": 0}, view="PA"),
]


def test_texts_that_say_what_is_known_score_one(tokenizer):
    found = scores(tokenizer, [NORMAL, NODULE, NORMAL, EFFUSION, NODULE], STUDIES)
    for name in ("label_micro_f1", "label_macro_f1", "normal_balanced_accuracy", "normal_balanced_accuracy_AP"):
        assert found[name]["value"] == 1, name
    assert found["normal_balanced_accuracy"]["n"] == 4  # whether the last is normal is not known
    assert found["normal_balanced_accuracy_AP"]["n"] == 3
    assert "normal_balanced_accuracy_PA" not in found  # one class only
    assert found["distinct"]["value"] == 3 / 5


def test_texts_that_are_wrong_are_counted_by_the_labels_that_are_known(tokenizer):
    found = scores(tokenizer, [NODULE, NORMAL, NORMAL, NODULE, EFFUSION], STUDIES)
    # known: 4 positives, of which one is stated (film 2), and negatives of which two are stated (No Finding 1, Lesion 3)
    hit, extra, missed = 1, 2, 3
    assert found["label_micro_f1"]["value"] == pytest.approx(2 * hit / (2 * hit + extra + missed))
    assert found["called_abnormal_of_normal"]["value"] == 0.5
    assert found["called_abnormal_of_abnormal"]["value"] == 0.5
    assert found["normal_balanced_accuracy"]["value"] == 0.5


def test_a_draft_that_is_the_report_scores_one_whatever_its_headings(tokenizer):
    true = [{"findings": "There is a nodule in the right upper lung. The heart is of normal size.", "impression": "Right nodule."},
            {"findings": "", "impression": "No acute disease of the chest is seen."}]  # fmt: skip
    studies = [study(i, {}, **sections) for i, sections in enumerate(true)] + [study(2, {})]
    texts = [compose(**sections) for sections in true]
    found = scores(tokenizer, [*texts, NORMAL], studies)
    for name in ("bleu4", "rouge_l"):
        assert found[name]["value"] == pytest.approx(1)
        assert found[name]["n"] == 2  # the third film has no report
    other = scores(tokenizer, [EFFUSION, NODULE, NORMAL], studies)
    assert other["bleu4"]["value"] < 0.3
    assert other["rouge_l"]["value"] < 0.5


def test_references_are_cut_only_where_the_name_says_so(tokenizer):
    long = "There is a nodule in the right upper lung. " * 12
    studies = [study(i, {}, findings=long, impression="Nodule.") for i in range(2)]
    found = scores(tokenizer, [compose(long, "Nodule.")] * 2, studies)
    assert found["rouge_l"]["value"] == pytest.approx(1)
    assert 0 < found["rouge_l_truncated"]["value"] < 0.9


@pytest.mark.parametrize(("cleaning", "tokens"), [("iu_xray", 60), ("mimic_cxr", 100), ("chexpert_plus", 100)])
def test_each_published_set_truncates_references_as_the_released_code_did(tokenizer, cleaning, tokens):
    words = [f"{'abcdefgh'[i % 8]}{i}" for i in range(120)]
    studies = [study(i, {}, findings=" ".join(words), impression="") for i in range(2)]
    reference = clean_report(" ".join(words), cleaning)
    kept = tokenizer.decode(tokenizer(reference, add_special_tokens=False).input_ids[:tokens])
    assert reference.startswith(kept)
    assert scores(tokenizer, [kept] * 2, studies, cleaning)["rouge_l"]["value"] < 0.9
    # a draft that is the cut reference has all of it, but for the full stop that cleaning sets
    found = scores(tokenizer, [compose(kept, "")] * 2, studies, cleaning)
    length = len(kept.split())
    assert found["rouge_l_truncated"]["value"] == pytest.approx(1, abs=1.5 / length)
    assert scores(tokenizer, [compose(reference, "")] * 2, studies, cleaning)["rouge_l_truncated"]["value"] < 0.9


def test_a_colon_is_cleaned_by_the_rule_of_its_set_and_as_written_nothing_is_cleaned_or_cut(tokenizer):
    studies = [study(i, {}, findings="Lungs: Clear", impression="") for i in range(2)]
    both = [compose("lungs clear", "")] * 2
    assert scores(tokenizer, both, studies, "iu_xray")["rouge_l"]["value"] == pytest.approx(1)
    mimic = scores(tokenizer, both, studies, "mimic_cxr")
    assert mimic["rouge_l"]["value"] < 1  # there the colon is a word
    written = scores(tokenizer, both, studies, "none")
    assert written["rouge_l"]["value"] < 0.5
    assert scores(tokenizer, [compose("Lungs: Clear", "")] * 2, studies, "none")["rouge_l"]["value"] == pytest.approx(1)
    assert "rouge_l_truncated" not in written


def test_the_cleaning_follows_the_set_that_all_films_come_from():
    def of(*sources: str) -> str:
        return cleaning_of([study(i, {}, source=source) for i, source in enumerate(sources)])

    assert [of("mimic_cxr", "mimic_cxr"), of("chexpert_plus"), of("iu_xray")] == [
        "mimic_cxr",
        "chexpert_plus",
        "iu_xray",
    ]
    assert [of("ours", "ours"), of("mimic_cxr", "ours")] == ["iu_xray", "iu_xray"]


def test_texts_that_speak_of_an_earlier_film_are_counted(tokenizer):
    found = scores(
        tokenizer, ["Findings: The heart is stable.", NORMAL, "Findings: No interval change.", NODULE], STUDIES[:4]
    )
    assert found["prior_words"]["value"] == 0.5
    assert found["prior_words"]["n"] == 4


def test_marks_of_deidentification_are_found(tokenizer):
    found = scores(tokenizer, ["Findings: XXXX is seen.", "Findings: The ___ is normal.", NORMAL, NORMAL], STUDIES[:4])
    assert found["marks"]["value"] == 0.5


# ----------------------------------------------------------------------------------------------------------------- maps


def writing(text: str, attention: dict[str, np.ndarray], gate: float = 0.5) -> Writing:
    """A finished draft, a token a word; the words of a sentence that holds a key look as its value says, others nowhere."""
    tokens = []
    for sentence in text.replace("\n", " \n").split(". "):
        look = next((map_ for key, map_ in attention.items() if key in sentence), None)
        for word in f"{sentence}. ".removesuffix(". " if sentence.endswith(".") else "").split(" "):
            seen = np.zeros((1, GRID * GRID), np.float32) if look is None else look[None].astype(np.float32)
            tokens.append(Token(5, f"{word} ", -0.1, (gate,), seen))
    return Writing(tuple(tokens), True, -1.0)


def at(*patches: int) -> np.ndarray:
    weights = np.zeros(GRID * GRID)
    weights[list(patches)] = 1 / len(patches)
    return weights


@pytest.fixture(scope="module")
def ill(tmp_path_factory) -> tuple[Phantom, Study]:
    """A film with a nodule, its box and its lungs, as a study."""
    folder = tmp_path_factory.mktemp("ill")
    phantom = make_phantom(5, height=160, width=128, lesion="nodule", side="right")
    (one,) = read_studies(tiny.film_set(folder, [(phantom, {"split": "val"})]))
    return phantom, one


def patch_of(phantom: Phantom) -> int:
    """The patch that holds the middle of the lesion."""
    x, y, w, h = phantom.box
    height, width = phantom.pixels.shape
    return int((y + h / 2) * GRID / height) * GRID + int((x + w / 2) * GRID / width)


@pytest.mark.parametrize("shape", [(224, 224), (160, 96), (301, 417), (1000, 700), (50, 61)])
def test_a_patch_covers_the_pixels_that_its_map_is_laid_over(shape):
    rng = np.random.default_rng(0)
    mask = cv2.GaussianBlur(rng.random(shape), (0, 0), 9) > 0.5
    cover = patch_cover(mask, GRID)
    assert cover.shape == (GRID * GRID,)
    expected = [(lay_over(at(p), GRID, *shape) * mask).sum() for p in range(GRID * GRID)]
    np.testing.assert_allclose(cover, expected, atol=0.02)


def test_a_map_is_that_of_the_sentences_asked_for():
    draft = writing("Findings: A nodule is seen. The lungs are clear.", {"nodule": at(3), "clear": at(7, 8)})
    first, second = sentences_of(draft)
    assert (first.text, second.text) == ("A nodule is seen.", "The lungs are clear.")
    np.testing.assert_allclose(map_of(draft, [second]), at(7, 8), atol=1e-6)
    whole = map_of(draft, [first, second])
    assert whole.sum() == pytest.approx(1)
    assert whole[3] == pytest.approx(0.5, abs=0.1)
    assert map_of(draft, []) is None
    assert map_of(writing("Findings: A nodule.", {"nodule": at(1)}, gate=0.0), [first]) is None  # it did not look


def test_a_map_points_where_it_peaks(ill):
    phantom, one = ill
    weights = at(patch_of(phantom))
    inside = 0
    # a box hardly smaller than a patch holds the middle of the patch only sometimes: one as large as the patch always does
    height, width = phantom.pixels.shape
    row, column = divmod(patch_of(phantom), GRID)
    box = (column * width / GRID, row * height / GRID, width / GRID, height / GRID)
    wide = replace(one, boxes=(("Lung Lesion", box),))
    for patch in range(GRID * GRID):
        inside += in_a_box(0.6 * at(patch) + 0.4 / GRID**2, wide, GRID)
    assert inside == 1
    assert in_a_box(weights, wide, GRID)
    assert in_a_box(weights, replace(one, boxes=((("Edema"), (0.0, 0.0, 1.0, 1.0)), *wide.boxes)), GRID)


def judged(one: Study, draft: Writing, deletions: int = 0) -> dict[str, float]:
    made = _maps(None, [one], [np.zeros((3, 64, 64))], [draft], np.random.default_rng(0), GRID, deletions, Clock())
    return {name: float(values[0]) for name, values in made.items()}


def test_attention_on_the_lesion_points_and_attention_elsewhere_or_a_normal_draft_does_not(ill):
    phantom, one = ill
    x, y, w, h = phantom.box
    wide = replace(one, boxes=(("Lung Lesion", (x - 32.0, y - 40.0, w + 64.0, h + 80.0)),))
    text = "Findings: There is a nodule in the right lung. The heart is of normal size."
    here, away = patch_of(phantom), GRID * GRID - 1
    assert judged(wide, writing(text, {"nodule": at(here), "heart": at(away)}))["pointing"] == 1
    assert judged(wide, writing(text, {"nodule": at(away), "heart": at(here)}))["pointing"] == 0
    assert judged(wide, writing("Findings: The lungs are clear.", {"lungs": at(here)}))["pointing"] == 0
    assert np.isnan(judged(replace(one, boxes=()), writing(text, {"nodule": at(here)}))["pointing"])


def test_a_map_that_is_spread_evenly_has_its_chance_of_the_lungs(ill):
    phantom, one = ill
    text = "Findings: The lungs are clear. The heart is of normal size."
    even = np.full(GRID * GRID, 1 / GRID**2)
    assert judged(one, writing(text, {"lungs": even, "heart": at(0)}))["mask_share_over_chance"] == pytest.approx(1)
    cover = patch_cover(phantom.lungs, GRID)
    best = judged(one, writing(text, {"lungs": at(int(cover.argmax())), "heart": at(0)}))["mask_share_over_chance"]
    assert best == pytest.approx(cover.max() / cover.mean())
    assert best > 1.5
    # only sentences about the lungs are asked
    other = judged(one, writing("Findings: The heart is of normal size.", {"heart": even}))["mask_share_over_chance"]
    assert np.isnan(other)


class Reader:
    """Stands in for a trained model where the truth must be planted: a draft is as probable as the film's `patch` is bright."""

    def __init__(self, patch: int = 0) -> None:
        self.patch = patch

    def see(self, films) -> torch.Tensor:
        """(n, 1, 1)"""
        side = films[0].shape[1] // GRID
        row, column = divmod(self.patch, GRID)
        cut = slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side)
        return torch.tensor([[[float(film[0][cut].mean())]] for film in films])

    def score(self, visual, drafts) -> list[np.ndarray]:
        return [np.full(len(d.tokens), float(v)) for v, d in zip(visual.flatten(), drafts, strict=True)]


def test_hiding_the_place_that_matters_costs_more_than_hiding_others():
    film = np.zeros((3, 64, 64), np.float32)
    film[:, 16:32, 32:48] = 5  # patch 6
    draft = writing("Findings: There is a nodule.", {"nodule": at(6)})
    (sentence,) = sentences_of(draft)
    (right,) = deletion(Reader(6), [(film, draft, sentence, at(6))], np.random.default_rng(0))
    (wrong,) = deletion(Reader(6), [(film, draft, sentence, at(9))], np.random.default_rng(0))
    assert right > 0
    assert wrong <= 0
    # nats of the sentence: five tokens or so, each of which loses what is bright in the patch; its surroundings fill it, and they are dark
    lost = 5 * len(draft.tokens[slice(*sentence.tokens)])
    assert right == pytest.approx(lost, rel=0.01)


def test_films_that_are_blanked_together_lose_what_they_lose_alone(build, monkeypatch):
    """Real model, more drafts than one batch takes, drafts of different length."""
    monkeypatch.setattr("train.evaluate.prefers_bfloat16", lambda: False)  # its few digits would hide a small mistake
    model = build()
    judge = Judge(model, 5)
    rng = np.random.default_rng(3)
    told = []
    for i in range(14):
        draft = writing(f"Findings: {'Normal heart. ' * (i % 4)}There is a nodule.", {"nodule": at(i)})
        sentence = next(s for s in sentences_of(draft) if "nodule" in s.text)
        told.append((rng.normal(size=(3, 64, 64)).astype(np.float32), draft, sentence, at(i) + 0.01 * rng.random(16)))
    together = deletion(judge, told, np.random.default_rng(0))
    one_by_one = np.random.default_rng(0)
    alone = [deletion(judge, [one], one_by_one)[0] for one in told]
    nats = max(len(draft.tokens) for _, draft, *_ in told) * math.log(len(model.tokenizer))  # of a text by chance
    np.testing.assert_allclose(together, alone, atol=2 * rounding(nats, additions(model)))  # of two readings
    assert np.std(together) > 0.2


# ----------------------------------------------------------------------------------------------------------- own image


class Matching(Reader):
    """A draft is the more probable the nearer the film's brightness is to the number that the draft was written from."""

    def score(self, visual, drafts) -> list[np.ndarray]:
        return [np.full(2, -((float(v) - d.log_prob) ** 2)) for v, d in zip(visual.flatten(), drafts, strict=True)]


def test_pairs_are_of_one_source_and_those_of_different_classes_apart():
    known = [{"No Finding": 1}, {"Edema": 1}, {"No Finding": 1}, {}, {"Edema": 1}, {"Edema": 1}, {"No Finding": 1}]
    sources = ["a", "a", "a", "a", "b", "b", "alone"]
    studies = [study(i, k, source=s) for i, (k, s) in enumerate(zip(known, sources, strict=True))]
    brightness = np.arange(7) / 10
    visual = torch.tensor(brightness).view(-1, 1, 1)
    token = Token(5, "x", -1.0, (0.5,), np.zeros((1, 16), np.float32))
    drafts = [Writing((token, token), True, float(value)) for value in brightness]
    made = _looks(Matching(), studies, visual, drafts, np.random.default_rng(0), 64, Clock())
    assert made["own_image_preferred_all"][:6].tolist() == [1] * 6
    assert np.isnan(made["own_image_preferred_all"][6])  # no other film of its source
    # a film of unknown class and those of a source with one class have no opposite
    assert np.isfinite(made["own_image_preferred"]).tolist() == [True] * 3 + [False] * 4
    assert np.nanmin(made["own_image_preferred"]) == 1
    assert made["own_image_gain"][0] == pytest.approx(
        2 * 0.1**2
    )  # nats of the whole draft, against the one opposite film
    grey = float(normalise(np.full((4, 4), 118.0))[0, 0, 0])
    np.testing.assert_allclose(made["blank_drop"], (grey - brightness) ** 2, rtol=1e-4)  # nats a token
    blind = [replace_log_prob(d, 0.3) for d in drafts]  # the same words whatever the film: half of the pairs by chance
    swapped = _looks(Matching(), studies, visual, blind, np.random.default_rng(0), 64, Clock())
    assert 0 < np.nanmean(swapped["own_image_preferred_all"]) < 1


def replace_log_prob(draft: Writing, value: float) -> Writing:
    return Writing(draft.tokens, draft.finished, value)


# ------------------------------------------------------------------------------------------------------------ simulated


@pytest.fixture(scope="module")
def drawn_on(tmp_path_factory):
    """Two normal films, one abnormal and one without a mask: what is drawn on them."""
    folder = tmp_path_factory.mktemp("normal")
    rows = [(make_phantom(i, height=128, width=128, lesion=None), {"split": "val"}) for i in (1, 2)]
    rows += [(make_phantom(3, height=128, width=128, lesion="nodule"), {"split": "val"})]
    rows += [(make_phantom(4, height=128, width=128, lesion=None), {"split": "val", "lung_mask": None})]
    studies = read_studies(tiny.film_set(folder, rows))
    films = [normalise(np.round(cv2.resize(p.pixels, (64, 64)) * 255)) for p, _ in rows]
    return studies, films, simulated(studies, films, 64, 0)


def test_every_finding_is_drawn_on_every_normal_film_that_has_lungs(drawn_on):
    studies, films, made = drawn_on
    assert [d.sign for *_, d in made] == [*Sign, *Sign]
    assert [s.id for s, _, _ in made] == [studies[0].id] * 4 + [studies[1].id] * 4
    for one, film, drawn in made:
        assert (one.source, one.labels[LABEL_OF[drawn.sign]], one.abnormal) == ("simulated", 1, True)
        assert (film.shape, film.dtype) == ((3, 64, 64), np.float32)
        assert not np.array_equal(film, films[int(one.id)])
    again = simulated(studies, films, 64, 0)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(made, again, strict=True))
    assert not all(np.array_equal(a[1], b[1]) for a, b in zip(made, simulated(studies, films, 64, 1), strict=True))


class Drafts(Reader):
    """Writes what it was given."""

    def __init__(self, drafts: list[Writing]) -> None:
        super().__init__()
        self.drafts = drafts

    def write(self, visual, seed: int, *, progress: str = "") -> list[Writing]:
        return self.drafts


NOUN = {Sign.NODULE: "nodule", Sign.OPACITY: "opacity", Sign.EFFUSION: "pleural effusion", Sign.HEART: "cardiomegaly"}


def told(drawn, *, side: str | None, patch: int) -> Writing:
    where = f"There is a {side} {NOUN[drawn.sign]}" if side else f"There is {NOUN[drawn.sign]}"
    return writing(f"Findings: {where}. The bones are intact.", {"There": at(patch), "bones": at(0)})


def test_whoever_sees_what_was_drawn_finds_it_says_its_side_and_points_at_it(drawn_on):
    _, _, made = drawn_on
    best = [int(patch_cover(d.mask, GRID).argmax()) for *_, d in made]
    drafts = [told(d, side=d.side and d.side.value, patch=p) for (*_, d), p in zip(made, best, strict=True)]
    found = _simulated_scores(Drafts(drafts), made, GRID, 0)
    assert {name: found[name]["value"] for name in ("found", "side", "pointing")} == dict.fromkeys(
        ("found", "side", "pointing"), 1
    )
    assert found["side"]["n"] == 6  # the heart has none
    assert found["found_effusion"]["n"] == 2


def test_the_other_side_no_side_nothing_and_another_place_are_told_apart(drawn_on):
    _, _, made = drawn_on
    other = {"left": "right", "right": "left"}
    far = [int(patch_cover(d.mask, GRID).argmin()) for *_, d in made]
    wrong = [told(d, side=d.side and other[d.side.value], patch=p) for (*_, d), p in zip(made, far, strict=True)]
    found = _simulated_scores(Drafts(wrong), made, GRID, 0)
    assert (found["found"]["value"], found["side"]["value"], found["pointing"]["value"]) == (1, 0, 0)
    silent = [told(d, side=None, patch=p) for (*_, d), p in zip(made, far, strict=True)]
    assert _simulated_scores(Drafts(silent), made, GRID, 0)["side"] == {
        "value": None,
        "low": None,
        "high": None,
        "n": 0,
    } | {"reason": "there is no study"}
    normal = [writing("Findings: No nodule, opacity or effusion. The heart is normal.", {"nodule": at(1)})] * len(made)
    found = _simulated_scores(Drafts(normal), made, GRID, 0)
    assert (found["found"]["value"], found["pointing"]["n"]) == (0, 0)
    assert found["distinct"]["value"] == 1 / len(made)


# ------------------------------------------------------------------------------------------------------------ baselines


def test_a_film_that_was_learned_from_is_its_own_nearest(folder, build):
    judge = Judge(build())
    learn = read_studies(folder / "films.jsonl", "train")
    reports = tiny.normal_reports()
    visual = judge.see([load_film(s, 64) for s in learn])
    texts = baselines(judge, learn, visual, learn, reports, neighbours=50, seed=0)
    normal = {compose(r.findings, r.impression) for r in reports}
    assert set(texts["constant"]) < normal
    assert set(texts["label_blind"]) <= normal
    assert set(texts["nearest"]) <= normal
    # abnormal films find no agreeing text among normal ones: the nearest known film is a normal one
    assert len(texts["nearest"]) == len(learn)
    assert set(LABELS) >= {"No Finding"}


def test_features_of_many_studies_are_the_means_of_their_films(folder, build):
    judge = Judge(build(), 4)
    studies = read_studies(folder / "films.jsonl")
    whole = judge.see([load_film(s, 64) for s in studies])
    torch.testing.assert_close(judge.features(studies), judge.mean(whole), atol=1e-5, rtol=1e-5)
    assert judge.features(studies).shape == (len(studies), whole.shape[2])


def test_projector_only_tuning_of_another_size_is_a_baseline_under_its_folders_name(
    checkpoint, folder, make_llm, tokenizer, capsys, tmp_path
):
    config = ablate(read_config(checkpoint)["model"], "projector")
    config = replace(config, vision=replace(config.vision, image_size=96))
    torch.manual_seed(1)
    model = Emrrg(config, make_llm(seed=2), tokenizer)
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"llama_proj", "layer_norm"}
    saved = save(model, tmp_path / "projector_only" / "checkpoint", language={"name": "tiny-llama"}, training={})
    asked = ("--films", folder / "films.jsonl", "--limit", 3, "--deletions", 1, "--neighbours", 0)
    found = card(capsys, "--checkpoint", checkpoint, *asked, "--beside", saved)
    rows = found["baselines"]["projector_only"]
    assert rows.keys() == {"ours", "theirs", "overall"}
    assert rows["overall"].keys() >= TEXT_SCORES | {"prior_words"}
    assert not rows["overall"].keys() & {"own_image_preferred", "blank_drop", "pointing"}
    # judged by itself it says the same, and has no map to judge
    alone = card(capsys, "--checkpoint", saved, *asked)["scores"]["overall"]
    assert all(alone[name] == score for name, score in rows["overall"].items())
    assert alone["gate"]["n"] == alone["mask_share_over_chance"]["n"] == alone["deletion_drop"]["n"] == 0
    found["scores"]["overall"]["normal_balanced_accuracy"]["n"] = 50  # a page compares sources that have films enough
    assert any(line.startswith("| projector_only |") for line in results.tables(found).splitlines())


def test_baselines_are_called_as_their_folders_and_no_two_alike(checkpoint, folder, capsys):
    assert baseline_name(Path("runs/projector/checkpoint")) == "projector"
    assert baseline_name(Path("runs/small/")) == "small"
    twice = ["--checkpoint", f"{checkpoint}", "--films", f"{folder}/films.jsonl", *["--beside", f"{checkpoint}"] * 2]
    assert main(twice) == 2
    assert "more than one baseline" in capsys.readouterr().err.lower()
