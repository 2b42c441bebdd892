"""`python -m emrrg_core label`: the reader of report text from outside. Every sentence here is of our own making."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from emrrg_core.__main__ import main
from emrrg_core.text.labeler import LABELS, labels, present

ROOT = Path(__file__).resolve().parent.parent
TEXT = "The heart is enlarged. Possible small effusion on the left.\nNo pneumothorax."


@pytest.fixture
def run(capsys):
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        status = main(["label", *(str(argument) for argument in arguments)])
        return status, *capsys.readouterr()

    return call


def refusal(result: tuple[int, str, str]) -> str:
    status, out, err = result
    assert (status, out) == (2, "")
    assert err.startswith("emrrg: ")
    assert err.count("\n") == 1
    return err


def test_the_program_reads_standard_input_and_prints_one_object():
    done = subprocess.run(
        [sys.executable, "-m", "emrrg_core", "label", "-"],
        cwd=ROOT, input=TEXT.encode(), capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    read = json.loads(done.stdout)
    assert read["schema"] == "emrrg.labels/1"
    assert read["labels"]["Cardiomegaly"] == "positive"


def test_a_file_gives_the_fourteen_labels_and_every_mention_in_its_place(run, tmp_path):
    (tmp_path / "report.txt").write_text(TEXT, "utf-8")
    status, out, err = run(tmp_path / "report.txt")
    assert (status, err) == (0, "")
    read = json.loads(out)
    assert list(read["labels"]) == list(LABELS)
    said = {name: value for name, value in read["labels"].items() if value != "not mentioned"}
    assert said == {
        "No Finding": "negative", "Cardiomegaly": "positive", "Pleural Effusion": "uncertain", "Pneumothorax": "negative"
    }  # fmt: skip
    effusion = next(mention for mention in read["mentions"] if mention["label"] == "Pleural Effusion")
    assert TEXT[effusion["start"] : effusion["end"]] == effusion["text"] == "effusion"
    assert (effusion["status"], effusion["side"], effusion["cue"]) == ("uncertain", "left", "possible")
    sentence = read["sentences"][effusion["sentence"]]
    assert sentence["text"] == TEXT[sentence["start"] : sentence["end"]] == "Possible small effusion on the left."


def test_a_byte_order_mark_is_no_part_of_the_text(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfCardiomegaly.")))
    assert json.loads(run("-")[1])["mentions"][0]["start"] == 0


def test_an_empty_text_mentions_nothing(run, tmp_path):
    (tmp_path / "empty.txt").write_bytes(b"")
    read = json.loads(run(tmp_path / "empty.txt")[1])
    assert set(read["labels"].values()) == {"not mentioned"}
    assert read["mentions"] == read["sentences"] == read["present"] == []


def test_many_reports_give_a_line_each_in_order(run, tmp_path):
    rows = [
        {"id": "b", "findings": "The heart is\u2028enlarged.", "impression": None, "split": "any"},
        {"id": "a", "impression": "No effusion."},
        {"id": "c", "findings": None, "impression": None},
    ]
    (tmp_path / "reports.jsonl").write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", "utf-8"
    )
    status, out, err = run("--reports", tmp_path / "reports.jsonl")
    assert (status, err) == (0, "")
    read = [json.loads(line) for line in out.splitlines()]
    assert [row["id"] for row in read] == ["b", "a", "c"]
    assert [row["labels"]["Cardiomegaly"] for row in read] == ["positive", "not mentioned", "not mentioned"]
    assert [row["labels"]["Pleural Effusion"] for row in read] == ["not mentioned", "negative", "not mentioned"]
    assert {row["schema"] for row in read} == {"emrrg.labels/1"}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "line 2"),
        ("[1]", "line 2: A report has no id"),
        ('{"findings": "Clear."}', "no id"),
        ('{"id": "r7"}', "Report r7 has no text"),
        ('{"id": "r7", "findings": 3}', "Report r7 has no text"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(run, tmp_path, line, why):
    (tmp_path / "rows.jsonl").write_text('{"id": "r1", "findings": "Clear."}\n' + line, "utf-8")
    assert why in refusal(run("--reports", tmp_path / "rows.jsonl"))


def test_what_cannot_be_read_at_all_is_refused_in_one_line(run, tmp_path):
    (tmp_path / "latin.txt").write_bytes("Ödem".encode("latin-1"))
    assert "UTF-8" in refusal(run(tmp_path / "latin.txt"))
    assert "cannot be read" in refusal(run(tmp_path / "none.txt"))
    assert "cannot be read" in refusal(run("--reports", tmp_path))
    assert "required" in refusal(run())
    assert "not allowed with" in refusal(run("a.txt", "--reports", "b.jsonl"))


# ------------------------------------------------------------------------------------------------------------ present


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Basal atelectasis or scarring.", ["Atelectasis"]),
        ("Atelectasis versus pneumonia.", ["Pneumonia", "Atelectasis"]),
        ("Borderline cardiomegaly.", ["Cardiomegaly"]),
        ("Probable effusion.", ["Pleural Effusion"]),
        ("There may be an effusion.", []),
        ("Possible pneumonia.", []),
        ("An effusion is less likely.", []),
        ("No effusion.", ["No Finding"]),
        ("", []),
    ],
)
def test_present_takes_the_doubts_that_indexers_take(text, expected):
    assert list(present(text)) == expected


@pytest.mark.parametrize(
    ("text", "label", "said"),
    [
        ("No effusion is seen, calcified hilum and a nodule at the left base.", "Lung Lesion", "positive"),
        ("A rounded dense opacity at the left apex.", "Lung Lesion", "positive"),
        ("Nodular left basal opacity.", "Lung Lesion", "positive"),
        ("An effusion cannot be confidently excluded.", "Pleural Effusion", "uncertain"),
        ("The nodule is smaller and not definitely seen.", "Lung Lesion", "negative"),
        ("Interstitial markings are coarse.", "Lung Opacity", "positive"),
        ("Normal interstitial markings.", "Lung Opacity", None),
        ("A right suprahilar density.", "Lung Opacity", "positive"),
        ("An opacity overlying the left sixth rib.", "Lung Opacity", None),
        ("Fracture of the catheter. Catheter fracture.", "Support Devices", "positive"),
        ("Cervical spine fusion.", "Support Devices", "positive"),
    ],
)
def test_phrases_mean_what_readers_of_reports_mean(text, label, said):
    assert labels(text)[label] == said
