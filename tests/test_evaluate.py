"""The judge: a perfect draft scores 1, a blind one chance, and every documented score is there for every source."""

import json
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from emrrg_core.config import Gate
from emrrg_core.data.public_datasets import clean_report
from emrrg_core.data.studies import Study, normalise, read_studies
from emrrg_core.explain.heat_map import lay_over
from emrrg_core.films.synthetic_findings import LABEL_OF, Sign
from emrrg_core.model.checkpoint import read_config, save
from emrrg_core.model.emrrg import Emrrg, FilmTokens
from emrrg_core.model.finding_tokens import ABNORMAL, NAMES, Finding, Presence
from emrrg_core.model.hybrid_decoder import AttentionTrace
from emrrg_core.model.partial_lora import ablate
from emrrg_core.model.writing import Token, Writing
from emrrg_core.report.draft import Draft, compose
from emrrg_core.text.labeler import LABELS
from tests import radeval_stand_in, tiny
from tests.phantom import Phantom, make_phantom
from tests.rounding import additions, rounding
from train import results
from train.evaluate import (
    Judge,
    baseline_name,
    baselines,
    by_radeval,
    cleaning_of,
    load_film,
    main,
    summarise_texts,
    text_columns,
)
from train.maps import (
    Read,
    Told,
    boxes_of,
    columns,
    correlations,
    covered,
    deletion,
    draft_of,
    map_of,
    named_cells,
    patch_cover,
    peaks_inside,
    simulated,
    simulated_scores,
)
from train.paths import donors, paths, shut, spread, stated
from train.probabilities import (
    against_radiologists,
    areas,
    calibration_error,
    calibration_score,
    effusions,
    findings_table,
    pooled,
    reliability,
    tabulate,
)
from train.targets import Truth, truth_of

pytestmark = pytest.mark.slow


TEXT_SCORES = {"label_micro_f1", "label_macro_f1", "normal_balanced_accuracy", "bleu4", "rouge_l"}
SCORES = TEXT_SCORES | {"as_read", "ended", "gate", "blank_drop", "noise_drop", "map_correlation", "mask_share_over_chance", "pointing", "zones",
                        "deletion_drop", "calibration_error", "denied_wrongly"}  # fmt: skip
OF_A_PATH = {"labels_kept", "labels_of_other", "normal_balanced_accuracy", "flips", "nats"}
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


def test_every_score_is_there_for_every_source_and_baseline_and_a_seed_repeats_it(
    reading_checkpoint, folder, capsys, monkeypatch
):
    monkeypatch.setattr(results, "FEW", 0)
    asked = ("--checkpoint", reading_checkpoint, "--films", folder / "films.jsonl", "--deletions", 2, "--paths", 6)
    asked += ("--radeval", "nowhere", "--beside", reading_checkpoint)
    found = card(capsys, *asked)
    assert found["scores"].keys() == {"ours", "theirs", "overall", "simulated"}
    for source in ("ours", "theirs", "overall"):
        assert found["scores"][source].keys() >= SCORES
        films = 8 if source == "overall" else 4
        for name in (TEXT_SCORES | {"as_read", "calibration_error"}) - {"bleu4", "rouge_l"}:
            assert found["scores"][source][name]["n"] == films, name
    assert found["scores"]["overall"]["blank_drop"]["n"] == found["scores"]["overall"]["noise_drop"]["n"] == 6
    assert found["scores"]["simulated"].keys() >= {"found", "side", "pointing", "found_nodule", "false_alarms_nodule"}
    assert found["scores"]["simulated"]["found"]["n"] == 4 * len(Sign)
    assert found["scores"]["simulated"]["false_alarms"]["n"] == 4
    assert found["scores"]["overall"]["pointing"]["n"] == found["scores"]["overall"]["pointing_evidence"]["n"] == 4
    assert [found["scores"][s]["bleu4"]["n"] for s in ("ours", "theirs", "overall")] == [2, 0, 2]
    assert found["scores"]["theirs"]["bleu4"]["value"] is None
    changed = {"gates_zero", "hybrid_other", "prompt_other", "patches_other", "findings_other", "findings_withheld"}
    assert found["paths"].keys() == {"own", *changed}
    for name, row in found["paths"].items():
        assert row.keys() == OF_A_PATH
        assert {score["n"] for score in row.values()} == {6}, name
    for name in ("own", "prompt_other"):  # the prompt of this model holds no film
        kept = {score: found["paths"][name][score]["value"] for score in ("labels_kept", "flips", "nats")}
        assert kept == {"labels_kept": 1, "flips": 0, "nats": 0}
    assert len({found["paths"][name]["nats"]["value"] for name in found["paths"]}) == 6
    assert found["findings"].keys() == NAMES.keys()
    assert not found["findings"]["fracture"]["assessed"]
    assert found["findings"]["nodule"]["threshold"] == 0.5
    assert found["findings"]["nodule"]["negative_predictive_value"].keys() >= {"value", "n"}
    assert found["areas"].keys() == {ABNORMAL}  # of these films only one label each is known
    assert sum(row["n"] for row in found["reliability"]) == found["scores"]["overall"]["calibration_error"]["pairs"]
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
                if score["low"] is not None and name != "calibration_error":  # which is larger on drawn films
                    assert score["low"] <= score["value"] + 1e-9 or score["n"] < 4, name
    for rows in found["baselines"].values():
        assert all(row.keys() >= TEXT_SCORES for row in rows.values())
    sections = {"films", "drafts", "paths", "blank and noise", "maps", "deletion", "simulated", "baselines", "RadEval"}
    assert found["seconds_of"].keys() >= sections
    assert sum(found["seconds_of"].values()) <= found["seconds"]
    assert "60 tokens" in found["truncation"]
    beside = found["baselines"].pop(reading_checkpoint.name)["overall"]  # the same model as its own baseline
    assert all(found["scores"]["overall"][name] == score for name, score in beside.items())
    constant = found["baselines"]["constant"]["overall"]
    assert constant["normal_balanced_accuracy"]["value"] == 0.5
    again = card(capsys, *asked[:-2])
    for name in ("paths", "scores", "findings", "baselines", "checkpoint_sha256", "settings_sha256", "seed"):
        assert again[name] == found[name], name
    tables = results.tables(found)
    lines = tables.splitlines()
    for name, score in (("ours", "label_micro_f1"), ("theirs", "calibration_error")):
        value = found["scores"][name][score]
        told = results.cell(value, value["n"]).rstrip(")")
        assert any(line.startswith(f"| {name} |") and f"| {told}" in line for line in lines), (name, score)
    assert any(line.endswith(f": {results.cell(found['scores']['overall']['blank_drop'])}") for line in lines)
    drawn = found["scores"]["simulated"]["found_nodule"]
    assert results.cell(drawn, drawn["n"]).rstrip(")") in tables
    assert tables.startswith(results.in_words(found["paths"]))
    assert found["command"] in tables
    assert "RaTEScore. The reason: the interpreter" in tables
    assert "not computed" not in tables


def test_films_of_further_files_are_rows_of_their_own_and_not_part_of_the_whole(reading_checkpoint, folder, tmp_path, capsys):  # fmt: skip
    rows = [(make_phantom(40 + i, height=128, width=128, lesion=(None, "effusion")[i % 2]), {"split": "val", "source": "more", "id": f"more/{i}"})
            for i in range(4)]  # fmt: skip
    further = tiny.film_set(tmp_path, rows)
    (tmp_path / "read.jsonl").write_text(
        json.dumps({"id": "1", "rsna": {"class": "Lung Opacity", "boxes": [[0, 0, 20, 20]]}})
        + "\n"
        + json.dumps({"id": "2", "rsna": {"class": "Normal", "boxes": []}})
    )
    asked = ("--checkpoint", reading_checkpoint, "--deletions", 0, "--paths", 2, "--neighbours", 0)
    both = card(capsys, *asked, "--films", folder / "films.jsonl", further, "--radiologists", tmp_path / "read.jsonl")
    alone = card(capsys, *asked, "--films", folder / "films.jsonl")
    assert both["scores"]["more"]["label_micro_f1"]["n"] == 4
    assert both["scores"]["overall"]["label_micro_f1"] == alone["scores"]["overall"]["label_micro_f1"]
    ours, theirs = (card["scores"]["overall"]["calibration_error"] for card in (both, alone))
    assert ours["n"] == theirs["n"]
    assert ours["value"] == pytest.approx(theirs["value"], abs=rounding(1, 10_000))  # read in batches of another size
    assert both["paths"] == alone["paths"]
    assert (both["films"], both["more"], alone["more"]) == ("films.jsonl", ["films.jsonl"], [])
    assert both["effusions"]["more"]["stated_of_effusion"]["n"] == 2
    assert both["radiologists"]["all"]["normal_balanced_accuracy"]["n"] == 2
    assert alone["radiologists"] == {}
    # a radiologist's box is one more film with a box
    counts = [found["scores"]["overall"]["pointing_opacity"]["n"] for found in (both, alone)]
    assert counts[0] == counts[1] + 1


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


# ---------------------------------------------------------------------------------------------------------------- paths


def test_a_subset_has_the_same_share_of_every_kind_and_is_spread_over_it():
    known = [{"No Finding": 1}, {"Edema": 1}]
    studies = [study(i, known[i % 2], source="ab"[i % 10 < 2]) for i in range(100)]
    chosen = spread(studies, range(50, 100), 10)
    assert len(set(chosen)) == 10
    assert min(chosen) >= 50
    kinds = [(studies[i].source, studies[i].abnormal) for i in chosen]
    assert [kinds.count((s, a)) for s, a in (("a", False), ("a", True), ("b", False), ("b", True))] == [4, 4, 1, 1]
    assert list(spread(studies, range(3), 10)) == [0, 1, 2]
    assert not len(spread(studies, [], 10))


def test_a_donor_is_of_the_other_kind_and_of_the_same_source_where_that_has_both():
    known = [{"No Finding": 1}, {"Edema": 1}, {"No Finding": 1}, {}, {"No Finding": 1}]
    studies = [study(i, k, source=s) for i, (k, s) in enumerate(zip(known, "aabab", strict=True))]
    for seed in range(5):
        assert donors(studies, range(5), range(5), np.random.default_rng(seed))[[0, 2, 4]].tolist() == [1, 1, 1]
    assert donors(studies, [1], range(5), np.random.default_rng(0)) == [0]
    assert donors(studies, [3], range(5), np.random.default_rng(0)) == [-1]
    assert donors(studies, [0], [0, 2], np.random.default_rng(0)) == [-1]


def test_what_a_text_states_is_its_labels_and_that_it_is_abnormal():
    assert stated(NORMAL) == frozenset()
    assert stated(NODULE) == {"Lung Lesion", ABNORMAL}
    unnamed = compose("The chest looks abnormal, but no single finding can be named.", "Abnormal chest.")
    assert stated(unnamed) == {ABNORMAL}
    assert stated(compose("There may be a right nodule.", "No effusion.")) == {"Lung Lesion", ABNORMAL}


def interrupted(model: Emrrg, ask):
    """What is answered with the gates shut, of a run that is then broken off."""
    answer = None
    try:
        with shut(model):
            answer = ask()
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        return answer


@pytest.mark.parametrize("gate", list(Gate))
def test_with_the_gates_shut_the_film_changes_nothing_and_afterwards_all_is_as_before(
    build, open_gates, images, gate, monkeypatch
):
    model = open_gates(build(hybrid={"gate": gate}, queries=True))
    before = {name: value.clone() for name, value in model.hybrid.state_dict().items()}
    film, ids = model.encode(images), torch.tensor([[5, 6, 7]] * 3)

    def read(seen: FilmTokens) -> tuple[torch.Tensor, list[AttentionTrace]]:
        trace: list[AttentionTrace] = []
        with torch.inference_mode():
            return model.log_probs(seen, ids, trace=trace), trace

    open_now, _ = read(film)
    closed, trace = interrupted(model, lambda: read(film))
    assert all(not layer.gate.any() for layer in trace)
    assert trace
    plain = model.precompute_keys_values
    nothing = torch.zeros(3, sum(plain(film).sizes.values()), dtype=torch.bool)
    monkeypatch.setattr(model, "precompute_keys_values", lambda *seen: replace(plain(*seen), mask=nothing))
    torch.testing.assert_close(closed, read(film)[0])
    assert (closed - open_now).abs().max() > 1e-3
    assert all(torch.equal(before[name], value) for name, value in model.hybrid.state_dict().items())


class Plain:
    """Stands in for a judge: writes what the finding token says, sure of it, whatever patch and prompt say."""

    def __init__(self) -> None:
        self.model = SimpleNamespace(
            hybrid=SimpleNamespace(items=list),
            prior=None,
            prompt=lambda film: (film.in_prompt, None),
        )

    def write(self, film: FilmTokens, seed: int, *, progress: str = "") -> list[Writing]:
        said = (film.finding_tokens[:, 0, 0] * film.assessed[:, 0] > 0).tolist()
        return [writing(NODULE if nodule else NORMAL, {}) for nodule in said]

    def score(self, film: FilmTokens, drafts: Sequence[Writing]) -> list[np.ndarray]:
        agrees = [d.text == mine.text for d, mine in zip(drafts, self.write(film, 0), strict=True)]
        return [np.full(len(d.tokens), -0.5 if same else -2.0) for d, same in zip(drafts, agrees, strict=True)]


def tokens_of_films(nodules: Sequence[bool]) -> FilmTokens:
    patches = torch.arange(len(nodules)).float().view(-1, 1, 1)
    told = torch.tensor([1.0 if nodule else -1.0 for nodule in nodules]).view(-1, 1, 1)
    return FilmTokens(patches, patches, told, torch.ones(len(nodules), 1, dtype=torch.bool))


def test_the_table_tells_the_finding_token_from_patches_and_prompt():
    ill = [True, False] * 4
    studies = [study(i, {"Lung Lesion": 1} if there else {"No Finding": 1}) for i, there in enumerate(ill)]
    judge, film = Plain(), tokens_of_films(ill)
    found = paths(judge, studies, film, judge.write(film, 0), range(8), 6, 0)
    values = {name: {score: row[score]["value"] for score in OF_A_PATH} for name, row in found.items()}
    own = {"labels_kept": 1, "labels_of_other": 0, "normal_balanced_accuracy": 1, "flips": 0, "nats": 0}
    other = {"labels_kept": 0, "labels_of_other": 1, "normal_balanced_accuracy": 0, "flips": 1, "nats": 1.5}
    for name in ("own", "prompt_other", "patches_other", "gates_zero"):  # these gates have nothing to shut
        assert values[name] == own, name
    for name in ("hybrid_other", "findings_other"):
        assert values[name] == other, name
    # without findings every draft is the normal one
    withheld = values["findings_withheld"]
    assert (withheld["normal_balanced_accuracy"], withheld["labels_kept"], withheld["nats"]) == (0.5, 0.5, 0.75)
    assert found["own"]["nats"]["n"] == 6


def test_where_all_films_are_of_one_kind_there_is_no_table():
    studies = [study(i, {"No Finding": 1}) for i in range(3)] + [study(3, {})]
    judge, film = Plain(), tokens_of_films([False] * 4)
    assert paths(judge, studies, film, judge.write(film, 0), range(4), 4, 0) == {}


# -------------------------------------------------------------------------------------------------------- probabilities


def test_the_calibration_error_is_the_mean_distance_of_the_bins():
    p, y = np.array([0.05, 0.15, 0.95, 0.95, 0.5, np.nan]), np.array([0, 1, 1, 0, np.nan, 1.0])
    assert calibration_error(p, y) == pytest.approx((0.05 + 0.85 + 2 * 0.45) / 4)
    assert calibration_error(np.array([0.25] * 4), np.array([0, 0, 0, 1.0])) == pytest.approx(0)
    assert math.isnan(calibration_error(np.array([np.nan]), np.array([1.0])))
    bins = reliability(p, y)
    assert [(row["low"], row["n"]) for row in bins if row["n"]] == [(0.0, 1), (0.1, 1), (0.9, 2)]
    assert (bins[9]["mean_probability"], bins[9]["frequency"]) == (pytest.approx(0.95), 0.5)
    assert bins[5]["frequency"] is None
    assert reliability(np.array([1.0]), np.array([1.0]))[9]["n"] == 1
    score = calibration_score(np.stack([p, p], 1), np.stack([y, np.full(6, np.nan)], 1))
    assert (score["n"], score["pairs"], score["value"]) == (4, 4, pytest.approx(0.45))


def read_as(**probabilities: float) -> tuple[Finding, ...]:
    return tuple(
        Finding(name, Presence.PRESENT if p >= 0.5 else Presence.ABSENT, p, 0.5) for name, p in probabilities.items()
    )


CLEAR = compose("The lungs are clear. No pleural effusion.", "No acute disease.")


def test_what_is_denied_of_what_is_there_and_how_many_denials_are_right(reading):
    studies = [study(0, {"Pleural Effusion": 1, "Pneumonia": 1}), study(1, {"Pleural Effusion": 0, "No Finding": 1}),
               study(2, {"Pleural Effusion": 1, "Lung Opacity": 1}), study(3, {})]  # fmt: skip
    both = compose("There is an opacity in the right lung.", "Right opacity.")
    table = tabulate(studies, [CLEAR, CLEAR, both, CLEAR], [read_as(effusion=0.2)] * 4)
    found = findings_table(reading, table)
    effusion, opacity = found["effusion"], found["opacity"]
    assert (effusion["denied_wrongly"]["value"], effusion["denied_wrongly"]["n"]) == (0.5, 2)  # silence denies nothing
    right = effusion["negative_predictive_value"]
    assert (right["value"], right["n"]) == (0.5, 2)  # of the last film it is not known
    # a pneumonia is seen as an opacity, though that label does not say so
    assert (opacity["denied_wrongly"]["value"], opacity["denied_wrongly"]["n"]) == (0.5, 2)
    assert opacity["stated_of_positive"]["value"] == 0.5
    assert pooled(table)["denied_wrongly"]["value"] == 0.5
    assert pooled(table)["denied_wrongly"]["n"] == 2  # films
    assert (effusion["calibration_error"]["pairs"], effusion["positive"]) == (3, 2)
    assert effusion["calibration_error"]["value"] == pytest.approx(2 / 3 - 0.2)
    assert found["fracture"]["assessed"] is False
    assert found["fracture"]["threshold"] is None


def test_areas_are_of_each_source_that_has_both_kinds():
    known = [{"Lung Lesion": 1}, {"Lung Lesion": 0}, {"Lung Lesion": 0}, {"Lung Lesion": 1}]
    studies = [study(i, k, source=s) for i, (k, s) in enumerate(zip(known, "aaab", strict=True))]
    table = tabulate(studies, [NORMAL] * 4, [read_as(nodule=p) for p in (0.5, 0.2, 0.7, 0.1)])
    found = areas(studies, table)
    assert found.keys() == {"nodule"}
    assert found["nodule"].keys() == {"a"}
    assert (found["nodule"]["a"]["value"], found["nodule"]["a"]["n"]) == (0.5, 3)


def test_effusions_are_counted_among_films_that_have_one_and_among_normal_films():
    known = [
        {"Pleural Effusion": 1, "No Finding": 0},
        {"Pleural Effusion": 1},
        {"No Finding": 1, "Pleural Effusion": 0},
        {"Edema": 1},
    ]
    studies = [study(i, k) for i, k in enumerate(known)]
    table = tabulate(studies, [EFFUSION, NORMAL, NORMAL, EFFUSION], [read_as(effusion=p) for p in (0.9, 0.2, 0.3, 0.9)])
    found = effusions(studies, table)["ours"]
    assert {name: (score["value"], score["n"]) for name, score in found.items()} == {
        "stated_of_effusion": (0.5, 2),
        "stated_of_normal": (0, 1),
        "area": (0.5, 3),
    }


def test_radiologists_and_given_labels_judge_the_same_films_apart_by_view():
    studies = [
        study(i, {"No Finding": int(i < 2), "Lung Opacity": int(i >= 2)}, view="AP" if i % 2 else "PA")
        for i in range(5)
    ]
    classes = ("Normal", "Lung Opacity", "Normal", "No Lung Opacity / Not Normal", None)
    truths = {s.id: Truth({}, rsna=c) for s, c in zip(studies, classes, strict=True)}
    texts = [NORMAL, compose("There is an opacity.", "Opacity."), NORMAL, NODULE, NORMAL]
    read = [read_as(abnormal=p, opacity=q) for p, q in ((0.1, 0.1), (0.9, 0.8), (0.2, 0.1), (0.8, 0.3), (0.1, 0.1))]
    found = against_radiologists(studies, truths, tabulate(studies, texts, read))
    whole = {name: score["value"] for name, score in found["all"].items()}
    assert found["all"]["normal_area"]["n"] == 4  # the last film was not read
    assert (whole["normal_balanced_accuracy"], whole["normal_area"], whole["opacity_balanced_accuracy"]) == (1, 1, 1)
    assert whole["normal_balanced_accuracy_given"] == 0.5
    assert found["AP"]["normal_balanced_accuracy"]["value"] is None  # one kind only
    assert found["PA"]["normal_area"]["n"] == 2


# ----------------------------------------------------------------------------------------------------------------- maps


def writing(text: str, attention: dict[str, np.ndarray], gate: float = 0.5) -> Writing:
    """A finished draft, a token a word; the words of a sentence that holds a key look as its value says, others nowhere."""
    tokens = []
    for sentence in text.replace("\n", " \n").split(". "):
        look = next((map_ for key, map_ in attention.items() if key in sentence), None)
        for word in f"{sentence}. ".removesuffix(". " if sentence.endswith(".") else "").split(" "):
            seen = (
                np.zeros((1, GRID * GRID + len(NAMES)), np.float32) if look is None else look[None].astype(np.float32)
            )
            tokens.append(Token(5, f"{word} ", -0.1, (gate,), seen[:, : GRID * GRID], seen[:, GRID * GRID :]))
    return Writing(tuple(tokens), True, -1.0)


def drafted(text: str, attention: dict[str, np.ndarray], gate: float = 0.5, read: tuple[Finding, ...] | None = None) -> Draft:  # fmt: skip
    return draft_of(writing(text, attention, gate), GRID, read)


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
    draft = drafted("Findings: A nodule is seen. The lungs are clear.", {"nodule": at(3), "clear": at(7, 8)})
    first, second = draft.sentences
    assert (first.text, second.text) == ("A nodule is seen.", "The lungs are clear.")
    np.testing.assert_allclose(map_of(draft, [second]), at(7, 8), atol=1e-6)
    whole = map_of(draft, [first, second])
    assert whole.sum() == pytest.approx(1)
    assert whole[3] == pytest.approx(0.5, abs=0.1)
    assert map_of(draft, []) is None
    assert map_of(drafted("Findings: A nodule.", {"nodule": at(1)}, gate=0.0), [first]) is None  # it did not look


def test_a_map_points_where_its_middle_lies_in_a_box():
    box = (0.25, 0.5, 0.25, 0.25)  # exactly one patch
    inside = [peaks_inside(0.6 * at(patch) + 0.4 / GRID**2, [box]) for patch in range(GRID * GRID)]
    assert np.flatnonzero(inside).tolist() == [9]
    assert peaks_inside(at(9), [(0.9, 0.9, 0.05, 0.05), box])
    assert not peaks_inside(at(8, 10, 0), [box])  # equally high patches: their middle
    assert covered([box, box]) == pytest.approx(1 / 16, abs=0.01)
    assert covered([(0, 0, 0.5, 1), (0.25, 0, 0.5, 1)]) == pytest.approx(0.75, abs=0.01)


def test_boxes_are_of_their_findings_and_radiologists_add_theirs(ill):
    phantom, one = ill
    found = boxes_of(one, truth_of(one, None))
    x, y, w, h = phantom.box
    assert found == {"nodule": ((x / 128, y / 160, w / 128, h / 160),)}
    read = {"rsna": {"class": "Lung Opacity", "boxes": [[64, 0, 64, 80]]}}
    more = replace(
        one, boxes=(*one.boxes, ("Pneumonia", (0.0, 80.0, 64.0, 80.0)), ("Cardiomegaly", (0.0, 0.0, 9.0, 9.0)))
    )
    found = boxes_of(more, truth_of(more, read))
    assert found["opacity"] == ((0, 0.5, 0.5, 0.5), (0.5, 0, 0.5, 0.5))
    assert found.keys() == {"opacity", "nodule"}


def judged(one: Study, draft: Draft, read: Read | None = None, truth: Truth | None = None) -> dict[str, np.ndarray]:
    nothing = Read(tokens_of_films([True]), np.zeros(0), np.zeros(0))
    made = columns([one], [draft], read or nothing, {one.id: truth or truth_of(one, None)})
    return {name: values[0] for name, values in made.items()}


def test_attention_on_the_lesion_points_and_attention_elsewhere_or_a_draft_without_it_does_not(ill):
    phantom, one = ill
    height, width = phantom.pixels.shape
    row, column = divmod(patch_of(phantom), GRID)
    wide = replace(one, boxes=(("Mass", (column * width / GRID, row * height / GRID, width / GRID, height / GRID)),))
    text = "Findings: There is a nodule in the right lung. The heart is of normal size."
    here, away = patch_of(phantom), GRID * GRID - 1
    right = judged(wide, drafted(text, {"nodule": at(here), "heart": at(away)}))
    assert {right[name] for name in ("pointing", "pointing_stated", "named_nodule", "pointing_nodule")} == {1}
    assert right["pointing_chance"] == pytest.approx(1 / 16, abs=0.01)
    assert np.isnan(right["pointing_evidence"])
    wrong = judged(wide, drafted(text, {"nodule": at(away), "heart": at(here)}))
    assert (wrong["pointing"], wrong["pointing_stated"]) == (0, 0)
    other = drafted("Findings: There is an opacity in the right lung.", {"opacity": at(here)})
    for silent in (drafted("Findings: The lungs are clear.", {"lungs": at(here)}), other):
        found = judged(wide, silent)
        assert (found["pointing"], found["named_nodule"]) == (0, 0)
        assert np.isnan(found["pointing_stated"])
    assert np.isnan(judged(replace(one, boxes=()), drafted(text, {"nodule": at(here)}))["pointing"])
    maps = np.zeros((1, len(LABELS), 2, GRID * GRID))
    maps[0, LABELS.index("Lung Lesion"), 1, here] = 1
    read = Read(tokens_of_films([True]), maps, np.zeros((1, len(LABELS), 2, 3)))
    assert judged(wide, other, read)["pointing_evidence"] == 1  # stated or not


def test_attention_on_a_finding_token_points_where_the_finding_lies(ill):
    phantom, one = ill
    here = patch_of(phantom)
    row, column = divmod(here, GRID)
    height, width = phantom.pixels.shape
    wide = replace(
        one, boxes=(("Lung Lesion", (column * width / GRID, row * height / GRID, width / GRID, height / GRID)),)
    )
    on_token = np.zeros(GRID * GRID + len(NAMES))
    on_token[GRID * GRID + list(NAMES).index("nodule")] = 1
    for patch, hit in ((here, 1), (0, 0)):
        finding = Finding("nodule", Presence.PRESENT, 0.9, 0.5, maps=(at(patch),))
        draft = drafted("Findings: There is a nodule.", {"nodule": on_token}, read=(finding,))
        assert judged(wide, draft)["pointing"] == hit


def test_maps_of_different_findings_correlate_as_they_are_alike():
    text = "Findings: There is a nodule in the lung. No pleural effusion. The heart is normal in size. The heart is not enlarged."
    looked = {"nodule": at(1, 2), "effusion": at(9, 10), "normal": at(9, 10), "enlarged": at(5)}
    found = correlations(drafted(text, looked))
    # of six pairs five are about different findings
    assert sorted((round(r, 6), kind) for r, kind in found if kind == "denied") == [
        (round(np.corrcoef(at(9, 10), at(5))[0, 1], 6), "denied"),
        (1, "denied"),
    ]
    assert [kind for _, kind in found].count("mixed") == 3
    assert len(found) == 5
    one = study(0, {})
    made = judged(one, drafted(text, looked), truth=Truth({}))
    assert made["map_correlation"] == pytest.approx(np.mean([r for r, _ in found]))
    assert made["map_correlation_denied"] > made["map_correlation"]
    assert np.isnan(made["map_correlation_stated"])
    assert correlations(drafted("Findings: There is a nodule.\nImpression: No effusion.", {"nodule": at(1)})) == []


def test_a_map_that_is_spread_evenly_has_its_chance_of_the_lungs(ill):
    phantom, one = ill
    text = "Findings: The lungs are clear. The heart is of normal size."
    even = np.full(GRID * GRID, 1 / GRID**2)
    assert judged(one, drafted(text, {"lungs": even, "heart": at(0)}))["mask_share_over_chance"] == pytest.approx(1)
    cover = patch_cover(phantom.lungs, GRID)
    best = judged(one, drafted(text, {"lungs": at(int(cover.argmax())), "heart": at(0)}))["mask_share_over_chance"]
    assert best == pytest.approx(cover.max() / cover.mean())
    assert best > 1.5
    # only sentences about the lungs are asked
    other = judged(one, drafted("Findings: The heart is of normal size.", {"heart": even}))["mask_share_over_chance"]
    assert np.isnan(other)


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ("There is an airspace opacity in the right lower lung.", [[0, 0, 1], [0, 0, 0]]),
        ("There are airspace opacities in both mid and lower lungs.", [[0, 1, 1], [0, 1, 1]]),
        ("There are patchy opacities in both lungs.", [[1, 1, 1], [1, 1, 1]]),
        ("Left upper lung opacity, which may represent pneumonia.", [[0, 0, 0], [1, 0, 0]]),
        ("There is an airspace opacity.", [[0, 0, 0], [0, 0, 0]]),
        ("There is a nodule in the left upper lung. No opacity in the right lower lung.", [[0, 0, 0], [0, 0, 0]]),
    ],
)
def test_the_zones_that_a_draft_names_are_those_of_its_opacities(text, cells):
    assert named_cells(drafted(f"Findings: {text}", {})).astype(int).tolist() == cells


def test_zones_are_counted_where_both_radiologists_agree(ill):
    _, one = ill
    truth = Truth(
        {}, zones=np.array([[0, 1.5, 3], [0, 0.5, 0]]), agree=np.array([[True, True, True], [True, False, True]])
    )
    regions = np.zeros((1, len(LABELS), 2, 3))
    regions[0, LABELS.index("Lung Opacity")] = [[0.2, 0.9, 0.4], [0.8, 0.9, 0.1]]
    read = Read(tokens_of_films([True]), np.zeros((1, len(LABELS), 2, GRID * GRID)), regions)
    draft = drafted("Findings: There are airspace opacities in both mid lungs. Opacity in the left lower lung.", {})
    found = judged(replace(one, boxes=()), draft, read, truth)
    assert found["zones"].tolist() == [3, 5]  # right mid, right upper and left lower as both say
    assert found["zones_present"].tolist() == [2, 5]
    assert found["zones_named"].tolist() == [1, 2]  # of left mid they do not agree


class Reader:
    """Stands in for a trained model where the truth must be planted: a draft is as probable as the film's `patch` is bright, and so is a nodule."""

    def __init__(self, patch: int = 0) -> None:
        self.patch = patch

    def see(self, films: Sequence[np.ndarray]) -> FilmTokens:
        """One visual token a film, (n, 1, 1)."""
        side = films[0].shape[1] // GRID
        row, column = divmod(self.patch, GRID)
        cut = slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side)
        bright = [float(film[0][cut].mean()) for film in films]
        visual = torch.tensor(bright).view(-1, 1, 1)
        return FilmTokens(visual, visual, findings=tuple(read_as(nodule=min(b / 5, 1.0)) for b in bright))

    def score(self, film: FilmTokens, drafts: Sequence[Draft]) -> list[np.ndarray]:
        return [np.full(len(d.tokens), float(v)) for v, d in zip(film.patches.flatten(), drafts, strict=True)]


def test_hiding_the_place_that_matters_costs_more_than_hiding_others():
    film = np.zeros((3, 64, 64), np.float32)
    film[:, 16:32, 32:48] = 5  # patch 6
    judge = Reader(6)
    draft = drafted("Findings: There is a nodule.", {"nodule": at(6)}, read=read_as(nodule=1.0))
    (sentence,) = draft.sentences
    right, wrong = (Told(film, draft, sentence, at(patch), judge.see([film])) for patch in (6, 9))
    (mine,) = deletion(judge, [right], np.random.default_rng(0))
    (other,) = deletion(judge, [wrong], np.random.default_rng(0))
    assert mine[0] > 0
    assert other[0] <= 0
    # nats of the sentence: five tokens or so, each of which loses what is bright in the patch; its surroundings fill it, and they are dark
    lost = 5 * len(draft.tokens[slice(*sentence.tokens)])
    assert mine[0] == pytest.approx(lost, rel=0.01)
    # the nodule goes with its place, and with few others
    assert (mine[2], mine[3]) == (1, 0)
    assert other[2] == 0
    assert mine[1] > 1
    assert other[1] <= 0
    silent = Told(film, drafted("Findings: There is a nodule.", {"nodule": at(6)}), sentence, at(6), judge.see([film]))
    assert np.isnan(deletion(judge, [silent], np.random.default_rng(0))[0, 1:]).all()
    assert deletion(judge, [], np.random.default_rng(0)).shape == (0, 4)


@pytest.mark.parametrize("queries", [False, True])
def test_films_that_are_hidden_from_together_lose_what_they_lose_alone(build, open_gates, monkeypatch, queries):
    """Real model, more drafts than one batch takes, drafts of different length."""
    monkeypatch.setattr("train.evaluate.prefers_bfloat16", lambda: False)  # its few digits would hide a small mistake
    model = open_gates(build(queries=queries))
    judge = Judge(model, 5)
    rng = np.random.default_rng(3)
    told = []
    for i in range(14):
        draft = drafted(f"Findings: {'Normal heart. ' * (i % 4)}There is a nodule.", {"nodule": at(i)})
        sentence = next(s for s in draft.sentences if "nodule" in s.text)
        film = rng.normal(size=(3, 64, 64)).astype(np.float32)
        told.append(Told(film, draft, sentence, at(i) + 0.01 * rng.random(16), judge.see([film])))
    together = deletion(judge, told, np.random.default_rng(0))[:, 0]
    one_by_one = np.random.default_rng(0)
    alone = [deletion(judge, [one], one_by_one)[0, 0] for one in told]
    nats = max(len(one.draft.tokens) for one in told) * math.log(len(model.tokenizer))  # of a text by chance
    np.testing.assert_allclose(together, alone, atol=2 * rounding(nats, additions(model)))  # of two readings
    assert np.std(together) > 1e-3


def test_hiding_changes_what_the_hybrid_layers_see_and_not_the_prompt(build, open_gates, monkeypatch):
    monkeypatch.setattr("train.evaluate.prefers_bfloat16", lambda: False)
    model = open_gates(build())  # its prompt holds the film
    judge = Judge(model, 8)
    film = np.random.default_rng(1).normal(size=(3, 64, 64)).astype(np.float32)
    draft = drafted("Findings: There is a nodule.", {"nodule": at(6)})
    told = Told(film, draft, draft.sentences[0], at(6), judge.see([film]))
    assert abs(deletion(judge, [told], np.random.default_rng(0))[0, 0]) > 0
    with shut(model):
        left = deletion(judge, [told], np.random.default_rng(0))[0, 0]
    assert abs(left) <= rounding(100, additions(model))


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

    def write(self, film: FilmTokens, seed: int, *, progress: str = "") -> list[Writing]:
        return self.drafts


CLEAN = {
    "1": drafted("Findings: The lungs are clear.", {}),
    "2": drafted("Findings: There is a nodule. There is no effusion.", {}),
}


NOUN = {Sign.NODULE: "nodule", Sign.OPACITY: "opacity", Sign.EFFUSION: "pleural effusion", Sign.HEART: "cardiomegaly"}


def told(drawn, *, side: str | None, patch: int) -> Writing:
    where = f"There is a {side} {NOUN[drawn.sign]}" if side else f"There is {NOUN[drawn.sign]}"
    return writing(f"Findings: {where}. The bones are intact.", {"There": at(patch), "bones": at(0)})


def test_whoever_sees_what_was_drawn_finds_it_says_its_side_and_points_at_it(drawn_on):
    _, _, made = drawn_on
    best = [int(patch_cover(d.mask, GRID).argmax()) for *_, d in made]
    drafts = [told(d, side=d.side and d.side.value, patch=p) for (*_, d), p in zip(made, best, strict=True)]
    found = simulated_scores(Drafts(drafts), made, CLEAN, GRID, 0)
    assert {name: found[name]["value"] for name in ("found", "side", "pointing")} == dict.fromkeys(
        ("found", "side", "pointing"), 1
    )
    assert found["side"]["n"] == 6  # the heart has none
    assert found["found_effusion"]["n"] == 2
    # of the two films, before anything was drawn on them
    alarms = {sign: found[f"false_alarms_{sign.name.lower()}"]["value"] for sign in Sign}
    assert alarms == {sign: 0.5 if sign is Sign.NODULE else 0 for sign in Sign}
    assert (found["false_alarms"]["value"], found["false_alarms"]["n"]) == (0.5, 2)
    # of the two films, before anything was drawn on them
    alarms = {sign: found[f"false_alarms_{sign.name.lower()}"]["value"] for sign in Sign}
    assert alarms == {sign: 0.5 if sign is Sign.NODULE else 0 for sign in Sign}
    assert (found["false_alarms"]["value"], found["false_alarms"]["n"]) == (0.5, 2)
    # of the two films, before anything was drawn on them
    alarms = {sign: found[f"false_alarms_{sign.name.lower()}"]["value"] for sign in Sign}
    assert alarms == {sign: 0.5 if sign is Sign.NODULE else 0 for sign in Sign}
    assert (found["false_alarms"]["value"], found["false_alarms"]["n"]) == (0.5, 2)


def test_the_other_side_no_side_nothing_and_another_place_are_told_apart(drawn_on):
    _, _, made = drawn_on
    other = {"left": "right", "right": "left"}
    far = [int(patch_cover(d.mask, GRID).argmin()) for *_, d in made]
    wrong = [told(d, side=d.side and other[d.side.value], patch=p) for (*_, d), p in zip(made, far, strict=True)]
    found = simulated_scores(Drafts(wrong), made, CLEAN, GRID, 0)
    assert (found["found"]["value"], found["side"]["value"], found["pointing"]["value"]) == (1, 0, 0)
    silent = [told(d, side=None, patch=p) for (*_, d), p in zip(made, far, strict=True)]
    assert simulated_scores(Drafts(silent), made, CLEAN, GRID, 0)["side"] == {
        "value": None,
        "low": None,
        "high": None,
        "n": 0,
    } | {"reason": "there is no study"}
    normal = [writing("Findings: No nodule, opacity or effusion. The heart is normal.", {"nodule": at(1)})] * len(made)
    found = simulated_scores(Drafts(normal), made, CLEAN, GRID, 0)
    assert (found["found"]["value"], found["pointing"]["n"]) == (0, 0)


# ------------------------------------------------------------------------------------------------------------ baselines


def test_a_film_that_was_learned_from_is_its_own_nearest(folder, build):
    judge = Judge(build())
    learn = read_studies(folder / "films.jsonl", "train")
    reports = tiny.normal_reports()
    film = judge.see([load_film(s, 64) for s in learn])
    texts = baselines(judge, learn, film, learn, reports, neighbours=50, seed=0)
    normal = {compose(r.findings, r.impression) for r in reports}
    assert set(texts["constant"]) < normal
    assert set(texts["label_blind"]) <= normal
    assert set(texts["nearest"]) <= normal
    # abnormal films find no agreeing text among normal ones: the nearest known film is a normal one
    assert len(texts["nearest"]) == len(learn)
    assert set(LABELS) >= {"No Finding"}


def test_guessed_drafts_are_the_same_and_take_fewer_passes(folder, build, monkeypatch):
    monkeypatch.setattr("train.evaluate.prefers_bfloat16", lambda: False)  # its few digits can tip a choice
    model = build(queries=True).requires_grad_(False)
    film = Judge(model).see([load_film(s, 64) for s in read_studies(folder / "films.jsonl")][:4])
    plain = Judge(model).write(film)
    texts = [[token.id for token in writing.tokens] for writing in plain]
    passes: list[int] = []
    model.llm.model.register_forward_hook(lambda *_: passes.append(1))

    class Known:
        def propose(self, findings: Sequence[Finding], ids: Sequence[int], text: str) -> list[int]:
            return next((known[len(ids) :] for known in texts if known[: len(ids)] == list(ids)), [])

    guessed = Judge(model, proposer=Known()).write(film)
    assert [[token.id for token in writing.tokens] for writing in guessed] == texts
    assert len(passes) < max(map(len, texts))


@pytest.mark.parametrize("beside", [False, True])
def test_a_checkpoint_with_a_phrasebook_is_drafted_with_it(checkpoint, folder, capsys, tmp_path, beside):
    copy = shutil.copytree(checkpoint, tmp_path / "with_phrases")
    if beside:
        (copy / "phrases.json").write_text('{"schema": "emrrg.phrases/1", "wordings": {}}')
    asked = ("--films", folder / "films.jsonl", "--limit", 2, "--deletions", 0, "--neighbours", 0, "--paths", 0)
    assert card(capsys, "--checkpoint", copy, *asked)["guessed"] is beside


@pytest.mark.parametrize("queries", [False, True])
def test_features_of_many_studies_are_the_means_of_their_films(folder, build, queries):
    judge = Judge(build(queries=queries), 4)
    studies = read_studies(folder / "films.jsonl")
    whole = judge.see([load_film(s, 64) for s in studies])
    torch.testing.assert_close(judge.features(studies), judge.mean(whole), atol=1e-5, rtol=1e-5)
    assert judge.features(studies).shape == (len(studies), whole.patches.shape[2])


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
    assert not rows["overall"].keys() & {"as_read", "blank_drop", "pointing"}
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
