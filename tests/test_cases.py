"""Teaching without a screen: cases are read strictly, answers are kept and kept apart, reports compared, films retouched and read again."""

import csv
import io
import re
import sqlite3
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from emrrg_core import DecodeConfig, EmrrgError, Film, FilmError, Reporter
from emrrg_core.explain.occlusion import Fill, retouched
from emrrg_core.teaching.cases import QUESTION, CaseError, read_case, read_cases
from emrrg_core.teaching.classroom import (
    ALPHABET,
    COLUMNS,
    LONGEST_TEXT,
    MOST_LEARNERS,
    Answer,
    ClassError,
    Classes,
    ClassGoneError,
    answers_csv,
    harmless,
)
from emrrg_core.teaching.locate import Mark, ModelPlace
from emrrg_core.text.compare import Kind, compare
from emrrg_core.text.labeler import LABELS, Status
from tests.phantom import make_phantom
from tests.rounding import additions, rounding

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "cases"

# --- cases ------------------------------------------------------------------------------------------------------------

WHOLE = """
title = "A case"
films = ["a.png"]
source = "drawn"
licence = "CC0-1.0"

[reference]
findings = "The lungs are clear."
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    make_phantom(1, height=140, width=130).save_png(tmp_path / "a.png")
    return tmp_path


def written(folder: Path, text: str, name: str = "one.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_case_has_its_films_its_reference_and_what_is_left_out_is_empty(folder):
    case = read_case(written(folder, WHOLE))
    assert (case.id, case.title, case.question) == ("one", "A case", QUESTION)
    assert (case.findings, case.impression, case.points, case.labels) == ("The lungs are clear.", "", (), None)
    (film,) = case.read()
    assert film.name == "Film 1"
    assert film.pixels.shape == (140, 130)


def test_the_labels_of_a_case_are_those_of_chexpert_with_their_status(folder):
    text = WHOLE + '\n[labels]\n"Edema" = "uncertain"\n"Pneumothorax" = "not mentioned"\n"Fracture" = "negative"\n'
    assert read_case(written(folder, text)).labels == {
        "Edema": Status.UNCERTAIN,
        "Pneumothorax": None,
        "Fracture": Status.NEGATIVE,
    }


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (WHOLE.replace("licence", "license"), "there is no key license. The keys are"),
        (WHOLE.replace("findings", "finding"), "there is no key finding under [reference]"),
        (WHOLE.replace('source = "drawn"\n', ""), "source is missing"),
        (WHOLE.replace('"a.png"', '"b.png"'), "film 1 is not in the folder"),
        (WHOLE.replace('"a.png"', '"../a.png"'), "film 1 lies outside the folder"),
        (WHOLE.replace('["a.png"]', '"a.png"'), "films is a list of texts"),
        (WHOLE.replace('["a.png"]', "[]"), "one to 4 films"),
        (WHOLE.replace('["a.png"]', '["a.png", "a.png", "a.png", "a.png", "a.png"]'), "one to 4 films"),
        (WHOLE.replace("The lungs are clear.", " "), "the reference report has no words"),
        (WHOLE.replace('"A case"', "7"), "title is a text"),
        (WHOLE.replace("[reference]", "[[reference]]"), "reference is a table"),
        (WHOLE.replace('title = "A case"', 'title = "A case'), "is not TOML"),
        (WHOLE + '[labels]\n"Effusion" = "positive"\n', "there is no label Effusion. The labels are No Finding"),
        (WHOLE + '[labels]\n"Edema" = "yes"\n', "Edema is positive, negative, uncertain, not mentioned, not 'yes'"),
        (WHOLE + '[labels]\n"Edema" = []\n', "Edema is positive"),
    ],
)
def test_a_case_with_a_mistake_is_refused_and_the_file_and_the_remedy_named(folder, wrong, told):
    with pytest.raises(CaseError) as refused:
        read_case(written(folder, wrong))
    assert str(refused.value).startswith("one.toml")
    assert told in str(refused.value)


def test_a_file_that_is_not_utf_8_or_not_named_plainly_is_refused(folder):
    (folder / "latin.toml").write_bytes(WHOLE.replace("A case", "Ein Fünfer").encode("latin-1"))
    with pytest.raises(CaseError, match=r"latin\.toml is not in UTF-8"):
        read_case(folder / "latin.toml")
    with pytest.raises(CaseError, match="Rename the file"):
        read_case(written(folder, WHOLE, "a case.toml"))
    with pytest.raises(CaseError, match=r"none\.toml cannot be opened"):
        read_case(folder / "none.toml")


def test_one_bad_case_hides_no_good_one_and_is_told(folder):
    written(folder, WHOLE, "b.toml")
    written(folder, WHOLE.replace("title", "titel"), "a.toml")
    found = read_cases(folder)
    assert [case.id for case in found.cases] == ["b"]
    assert len(found.problems) == 1
    assert found.problems[0].startswith("a.toml")
    assert found["b"].title == "A case"
    with pytest.raises(CaseError, match="Choose another one"):
        found["a"]
    assert "There is no folder of cases" in read_cases(folder / "nowhere").problems[0]


def test_a_film_that_cannot_be_read_is_told_by_its_place_and_never_by_its_name(folder):
    (folder / "effusion_DOE.png").write_bytes(b"no picture")
    case = read_case(written(folder, WHOLE.replace('"a.png"', '"a.png", "effusion_DOE.png"')))
    with pytest.raises(CaseError, match="Film 2 of this case cannot be shown") as refused:
        case.read()
    assert "DOE" not in str(refused.value)


def test_the_shipped_cases_are_the_phantoms_that_they_say_they_are():
    found = read_cases(SHIPPED)
    assert found.problems == ()
    assert len(found.cases) >= 4
    for case in found.cases:
        seed = int(re.search(r"seed (\d+): a phantom, not a patient", case.source)[1])
        side = "right" if "right" in case.impression.lower() else "left"
        lesion = next((name for name in ("nodule", "opacity", "effusion") if name in case.impression.lower()), None)
        drawn = make_phantom(seed, lesion=lesion, side=side)
        (film,) = case.read()
        assert np.abs(film.pixels - drawn.pixels).max() <= 0.5 / 255 + 1e-6
        assert case.findings.split() == drawn.findings.split()
        assert case.impression == drawn.impression
        assert case.points


# --- a report beside the reference ------------------------------------------------------------------------------------

REFERENCE = (
    "The heart is normal in size. There is a small left pleural effusion. No pneumothorax. The bones are intact.",
    "Left pleural effusion.",
)


def kinds(findings: str, impression: str = "", reference: tuple[str, str] = REFERENCE) -> list[Kind]:
    return [match.kind for match in compare((findings, impression), reference).sentences]


@pytest.mark.parametrize(
    ("sentence", "kind"),
    [
        ("No pneumothorax.", Kind.SAME),
        ("no  pneumothorax", Kind.SAME),
        ("Pneumothorax is not seen.", Kind.SAME),  # other words, the same statement
        ("A left-sided pleural effusion.", Kind.SAME),
        ("There is no pleural effusion.", Kind.OPPOSITE),
        ("There is a right pleural effusion.", Kind.OPPOSITE),
        ("Possible left pleural effusion.", Kind.PARTLY),
        ("No pneumothorax or consolidation.", Kind.PARTLY),
        ("A nodule in the left upper zone.", Kind.ALONE),
        ("Please compare with older films.", Kind.ALONE),
    ],
)
def test_a_sentence_is_held_against_what_the_reference_states(sentence, kind):
    assert kinds(sentence) == [kind]


def test_a_contradiction_is_not_hidden_behind_another_sentence_that_agrees():
    assert kinds(
        "The lungs are clear.", reference=("A nodule in the left lung. The lungs are otherwise clear.", "")
    ) == [Kind.OPPOSITE]


EFFUSIONS = "There is a right pleural effusion. There is a left pleural effusion."


@pytest.mark.parametrize(
    ("report", "reference", "kind", "differences"),
    [
        # the same, wherever it stands
        ("No pleural effusion or pneumothorax.", "No pleural effusion. No pneumothorax.", Kind.SAME, []),
        ("No pleural effusion. No pneumothorax.", "No pleural effusion or pneumothorax.", Kind.SAME, []),
        ("Bilateral pleural effusions.", EFFUSIONS, Kind.SAME, []),
        (EFFUSIONS, "Bilateral pleural effusions.", Kind.SAME, []),
        ("Opacity in the left upper zone. Opacity in the left lower zone.", "Opacities in the left upper and lower zones.", Kind.SAME, []),
        ("Opacity at the left base.", "Opacity in the left lower lobe.", Kind.SAME, []),
        ("Left pleural effusion. Effusion.", "Left pleural effusion.", Kind.SAME, []),
        ("Three nodules on the left.", "Multiple nodules in the left lung.", Kind.SAME, []),
        ("A 10 mm nodule on the left.", "A 1.1 cm nodule in the left lung.", Kind.SAME, []),
        # the same label, and not the same
        (
            "A nodule in both mid lungs.",
            "Multiple rounded masses.",
            Kind.PARTLY,
            [
                "side: both sides (the reference names none)", "place: mid zone (the reference names none)",
                "number: one, not several", "kind: nodule, not mass",
            ],
        ),
        (
            "There is a right pleural effusion. Effusion.",
            "The left costophrenic angle is blunted by a pleural effusion. Left pleural effusion.",
            Kind.OPPOSITE,
            ["side: right, not left"],
        ),
        ("A nodule in the right lung.", "A nodule in the left lung.", Kind.OPPOSITE, ["side: right, not left"]),
        ("A nodule.", "A nodule in the left lung.", Kind.PARTLY, ["side: not said (the reference: left)"]),
        ("Opacity in the left upper zone.", "Opacity in the left lower zone.", Kind.PARTLY, ["place: upper zone, not lower zone"]),
        ("A nodule on the left.", "Two nodules on the left.", Kind.PARTLY, ["number: one, not 2"]),
        ("A 5 mm nodule on the left.", "A 12 mm nodule in the left lung.", Kind.PARTLY, ["size: 5 mm, not 12 mm"]),
        ("Small left effusion.", "Large left effusion.", Kind.PARTLY, ["size: small, not large"]),
        ("Possible left effusion.", "Left effusion.", Kind.PARTLY, ["certainty: uncertain, not positive"]),
        ("A pacemaker is in place.", "An endotracheal tube is in place.", Kind.ALONE, ["Support Devices: added", "Support Devices: missed"]),
        # only one of them
        ("Left effusion.", EFFUSIONS, Kind.SAME, ["Pleural Effusion: missed (right)"]),
        ("Fracture of a rib.", "No pneumothorax.", Kind.ALONE, ["Fracture: added"]),
        ("No pneumothorax.", "Fracture of a left rib.", Kind.ALONE, ["Fracture: missed (left)"]),
        ("No pneumothorax.", "There is a left pneumothorax.", Kind.OPPOSITE, ["Pneumothorax: denied, and the reference states it"]),
        ("Left pneumothorax.", "No pneumothorax.", Kind.OPPOSITE, ["Pneumothorax: stated, and the reference denies it"]),
    ],
)  # fmt: skip
def test_findings_are_compared_over_the_whole_section_and_differences_named(
    report: str, reference: str, kind: Kind, differences: list[str]
) -> None:
    found = compare((report, ""), (reference, ""))
    assert {match.kind for match in found.sentences} == {kind}
    assert [str(each).removeprefix(f"{each.label}, ") for each in found.differences] == differences
    turned = compare((reference, ""), (report, "")).differences
    assert len(turned) == len(found.differences), "the other way round it is as much"


def test_a_sentence_that_leaves_out_the_size_has_that_of_the_others_and_names_every_sentence_like_it() -> None:
    found = compare(
        ("Small left pleural effusion. No pneumothorax.", "Left effusion."),
        ("Large left pleural effusion.", "Effusion on the left."),
    )
    first, second, third = found.sentences
    for each in (first, third, *found.reference):
        assert each.kind is Kind.PARTLY
        assert [str(each) for each in each.differences] == ["Pleural Effusion, size: small, not large"]
    assert second.kind is Kind.ALONE
    assert (third.partner, third.partners) == (1, (0, 1))


def test_words_alone_make_no_match_between_statements_of_different_things():
    assert kinds("There is no pleural effusion.", reference=("There is no pneumothorax.", "")) == [Kind.ALONE]


def test_the_reference_says_which_of_its_sentences_were_missed():
    found = compare(("No pneumothorax.", ""), REFERENCE)
    assert [match.kind for match in found.reference] == [Kind.ALONE, Kind.ALONE, Kind.SAME, Kind.ALONE, Kind.ALONE]
    assert found.reference[2].partner == 0
    assert found.sentences[0].partner == 2
    assert [match.section for match in found.reference] == ["findings"] * 4 + ["impression"]
    assert " ".join(match.text for match in found.reference) == " ".join(REFERENCE)


def test_the_report_that_is_the_reference_agrees_with_it_in_all():
    found = compare(REFERENCE, REFERENCE)
    assert {match.kind for match in (*found.sentences, *found.reference)} == {Kind.SAME}
    assert found.agreed == len(found.labels) > 2
    assert found.scores["bleu4"]["value"] == pytest.approx(1)
    assert found.scores["rouge_l"]["value"] == pytest.approx(1)
    assert found.scores["cider"]["value"] is None, "not defined for one study, and so not 0"


def test_labels_are_the_teachers_where_stated_and_else_those_of_the_reference():
    found = compare(("No pneumothorax. Edema.", ""), REFERENCE, {"Pneumothorax": Status.POSITIVE})
    rows = {row.label: row for row in found.labels}
    assert (rows["Pneumothorax"].known, rows["Pneumothorax"].verdict) == (Status.POSITIVE, "differs")
    assert rows["Edema"].verdict == "not in the reference"
    assert rows["Pleural Effusion"].verdict == "left out"
    assert list(rows) == [label for label in LABELS if label in rows]
    assert all(row.known or row.said for row in found.labels)


def test_scores_are_of_words_and_not_of_their_case_or_punctuation():
    assert compare(("no pneumothorax", ""), ("No pneumothorax.", "")).scores["bleu1"]["value"] == pytest.approx(1)


def test_a_report_without_a_word_the_reader_knows_is_compared_all_the_same():
    found = compare(("?", ""), ("Short.", ""))
    assert [match.kind for match in found.sentences] == [Kind.ALONE]
    assert found.scores["rouge_l"]["value"] == 0


# --- classes ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path) -> Classes:
    return Classes(tmp_path / "kept")


def file_of(store: Classes) -> Path:
    return store.folder / "classes.sqlite"


def expire(store: Classes) -> None:
    with closing(sqlite3.connect(file_of(store))) as db:
        db.execute("UPDATE classes SET expires = expires - 100 * 86400")
        db.execute("UPDATE learners SET changed = changed - 100 * 86400")
        db.commit()


def test_a_code_is_short_and_readable_and_a_key_is_long_and_neither_opens_what_the_other_opens(store):
    made, key = store.begin("Year 4")
    assert re.fullmatch(f"[{ALPHABET}]{{3}}-[{ALPHABET}]{{3}}", made.code)
    assert len(key) >= 24
    assert not set("01IOAEU") & set(made.code)
    for wrong in (made.code, made.code.replace("-", ""), key[:-1], "", key.swapcase()):
        with pytest.raises(ClassGoneError):
            store.open(wrong)
    with pytest.raises(ClassGoneError):
        store.join(key, "Blue fox")
    again, other = store.begin("Year 4")
    assert again.code != made.code
    assert other != key


def test_the_file_is_its_owners_and_holds_no_secret(store):
    made, key = store.begin()
    ann = store.join(made.code, "Blue fox")
    store.commit(ann.id, "one", "Clear lungs.", "")
    assert stat.S_IMODE(file_of(store).stat().st_mode) == 0o600
    content = file_of(store).read_bytes()
    assert key.encode() not in content
    assert ann.id.encode() not in content
    assert b"Clear lungs." in content
    assert key not in repr(made)
    assert ann.id not in repr(ann)


def test_a_code_is_read_however_it_was_typed(store):
    made, key = store.begin()
    store.join(f" {made.code.lower().replace('-', ' ')}\n", "a")
    store.join(made.code.replace("-", "_"), "b")
    assert store.open(f"  {key}\n").learners == 2


def test_what_is_written_is_kept_until_it_is_committed_and_never_changes_after(store):
    made, key = store.begin("Year 4")
    ann = store.join(made.code, "Blue  fox")
    assert (ann.name, ann.code, ann.title) == ("Blue fox", made.code, "Year 4")
    assert store.answer(ann.id, "one") is None
    store.keep(ann.id, "one", "The lungs", "")
    store.keep(ann.id, "one", "The lungs are clear.", "")
    assert store.answers(key) == ()
    assert store.writing(key, "one") == 1
    done = store.commit(ann.id, "one", "The lungs are clear.", "Normal.")
    assert done.committed
    for again in (store.keep(ann.id, "one", "x", "y"), store.commit(ann.id, "one", "x", "y")):
        assert again == done
    assert Classes(store.folder).answer(ann.id, "one") == done, "a restart loses nothing"
    assert store.committed(ann.id) == {"one"}
    assert store.answers(key) == store.answers(key, "one") == (done,)
    assert store.answers(key, "two") == ()
    assert store.writing(key, "one") == 0
    assert Classes(store.folder).learner(ann.id) == ann


def test_marks_are_kept_beside_the_words_and_never_change_after_the_commit(store):
    ann = store.alone()
    marks = (Mark("Edema", 0, 0.25, 0.5), Mark("Fracture", 1, 0.1, 0.2, 0.3, 0.4))
    assert store.keep_marks(ann.id, "one", marks[:1]).findings == ""
    assert store.keep(ann.id, "one", "Edema.", "").marks == marks[:1]
    assert store.keep_marks(ann.id, "one", marks).findings == "Edema."
    assert store.committed(ann.id) == set()
    assert store.commit(ann.id, "one", "Edema.", "").marks == marks, "those that were kept"
    assert store.keep_marks(ann.id, "one", ()).marks == marks
    assert store.commit(ann.id, "two", "Edema.", "", marks[1:]).marks == marks[1:]
    assert Classes(store.folder).answer(ann.id, "one").marks == marks


def test_a_store_of_the_version_before_marks_is_taken_over_with_all_its_answers(store):
    ann = store.alone()
    store.commit(ann.id, "one", "Clear lungs.", "")
    with closing(sqlite3.connect(file_of(store))) as db:
        db.execute("ALTER TABLE answers DROP COLUMN marks")
        db.execute("PRAGMA user_version = 1")
        db.commit()
    old = Classes(store.folder)
    assert (old.answer(ann.id, "one").findings, old.answer(ann.id, "one").marks) == ("Clear lungs.", ())
    assert old.keep_marks(ann.id, "two", [Mark("Edema", 0, 0.25, 0.5)]).marks
    with closing(sqlite3.connect(file_of(store))) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,)


def test_an_answer_needs_words_and_not_too_many(store):
    ann = store.alone()
    with pytest.raises(ClassError, match="Write your own report first"):
        store.commit(ann.id, "one", " ", "\n")
    with pytest.raises(ClassError, match="too long"):
        store.keep(ann.id, "one", "x" * (LONGEST_TEXT + 1), "")
    assert store.answer(ann.id, "one") is None


def test_pseudonyms_are_told_apart_by_letters_only_within_a_class(store):
    (one, _), (two, _) = store.begin(), store.begin()
    store.join(one.code, "Blue fox")
    store.join(two.code, "Blue fox")
    for taken in ("blue FOX", " Blue   fox "):
        with pytest.raises(ClassError, match="taken"):
            store.join(one.code, taken)
    for wrong in ("", " \n", "x" * 31, "a\x00b", "a\u202eb"):
        with pytest.raises(ClassError, match="pseudonym"):
            store.join(one.code, wrong)


def test_two_classes_and_one_who_practises_alone_never_see_each_other(store):
    (one, key), (two, other) = store.begin(), store.begin()
    ann, bob, lone = store.join(one.code, "a"), store.join(two.code, "b"), store.alone()
    for learner in (ann, bob, lone):
        store.commit(learner.id, "one", f"By {learner.name or 'me'}.", "")
    assert [a.findings for a in store.answers(key)] == ["By a."]
    assert [a.findings for a in store.answers(other)] == ["By b."]
    store.end(key)
    for gone in (lambda: store.open(key), lambda: store.answers(key), lambda: store.learner(ann.id)):
        with pytest.raises(ClassGoneError):
            gone()
    assert store.answers(other)
    assert store.answer(lone.id, "one")
    assert b"By a." not in file_of(store).read_bytes(), "deleted, and not only forgotten"
    store.leave(bob.id)
    assert store.answers(other), "what was handed in stays with the class"
    store.leave(lone.id)
    with pytest.raises(ClassGoneError):
        store.answer(lone.id, "one")


def test_what_has_expired_opens_no_more_and_is_deleted(store):
    made, key = store.begin(lifetime=timedelta(days=90))
    ann, lone = store.join(made.code, "a"), store.alone()
    store.commit(ann.id, "one", "Secret words.", "")
    expire(store)
    for gone in (
        lambda: store.open(key),
        lambda: store.join(made.code, "b"),
        lambda: store.commit(ann.id, "two", "x", ""),
        lambda: store.learner(lone.id),
    ):
        with pytest.raises(ClassGoneError):
            gone()
    Classes(store.folder)
    with closing(sqlite3.connect(file_of(store))) as db:
        for table in ("classes", "learners", "answers"):
            assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    assert b"Secret words." not in file_of(store).read_bytes()


@pytest.mark.parametrize("days", [0, -1, 91])
def test_a_class_is_kept_for_at_most_ninety_days(store, days):
    with pytest.raises(ClassError, match="90 days"):
        store.begin(lifetime=timedelta(days=days))


def test_a_class_has_room_for_so_many(store, monkeypatch):
    monkeypatch.setattr("emrrg_core.teaching.classroom.MOST_LEARNERS", 2)
    assert MOST_LEARNERS > 2
    made, _ = store.begin()
    store.join(made.code, "a")
    store.join(made.code, "b")
    with pytest.raises(ClassError, match="full"):
        store.join(made.code, "c")


def test_a_whole_class_may_write_at_once(store):
    made, key = store.begin()

    def work(number: int) -> None:
        learner = store.join(made.code, f"Learner {number}")
        store.keep(learner.id, "one", "The", "")
        store.commit(learner.id, "one", f"By {number}.", "")

    with ThreadPoolExecutor(8) as many:
        list(many.map(work, range(16)))
    assert {a.findings for a in store.answers(key)} == {f"By {n}." for n in range(16)}


def test_a_store_that_cannot_be_used_is_told_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ClassError, match="cannot be written to"):
        Classes(tmp_path / "file")
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / "classes.sqlite").write_bytes(b"no database at all, but long enough to be looked at " * 50)
    with pytest.raises(ClassError, match="damaged"):
        Classes(folder)
    store = Classes(tmp_path / "newer")
    with closing(sqlite3.connect(file_of(store))) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(ClassError, match="newer EMRRG"):
        store.begin()


# --- CSV --------------------------------------------------------------------------------------------------------------

WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def read_back(text: str) -> list[dict[str, str]]:
    assert text.startswith("\ufeff")
    return list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline="")))


def test_every_answer_is_a_row_beside_reference_and_draft(folder):
    written(folder, WHOLE, "a.toml")
    cases = read_cases(folder)
    said = [
        Answer("Blue fox", "a", 'The "lungs", are\nclear.', "Normal.", WHEN, WHEN),
        Answer("Red fox", "gone", "Nodule.", "", WHEN, WHEN),
        Answer("Owl", "a", "Left pleural effusion.", "", WHEN, WHEN),
    ]
    rows = read_back(answers_csv(said, cases, {"a": ("A draft.", "Its impression.")}))
    assert list(rows[0]) == list(COLUMNS)
    assert [(r["row"], r["case"], r["pseudonym"]) for r in rows] == [
        ("reference", "a", ""),
        ("draft", "a", ""),
        ("learner", "a", "Blue fox"),
        ("learner", "a", "Owl"),
        ("learner", "gone", "Red fox"),
    ]
    assert rows[2]["findings"] == 'The "lungs", are\nclear.'
    assert rows[2]["committed"] == "2026-01-02T03:04:05+00:00"
    assert rows[3]["Pleural Effusion"] == "positive"
    assert rows[3]["labels_agreed"] < rows[3]["labels_compared"]
    assert 0 <= float(rows[3]["bleu1"]) <= 1
    assert rows[4]["bleu1"] == "", "nothing to compare with"
    assert answers_csv([], cases).count("\n") == 1


def test_the_columns_of_marks_stand_behind_all_others_and_count_against_the_boxes(folder):
    written(folder, WHOLE + '[[boxes]]\nfinding = "Edema"\nx = 0.2\ny = 0.2\nw = 0.1\nh = 0.1\n', "a.toml")
    written(folder, WHOLE, "b.toml")
    marks = (Mark("Edema", 0, 0.25, 0.25), Mark("Fracture", 0, 0.25, 0.25), Mark("Edema", 0, 0.9, 0.9))
    said = [Answer("Owl", case, "Edema.", "", WHEN, WHEN, marks) for case in ("a", "b")]
    upper = np.array([(0.0, 0.0), (1.0, 0.0), (1.0, 0.5), (0.0, 0.5)])
    rows = read_back(answers_csv(said, read_cases(folder), None, {"a": [ModelPlace("Edema", 0, True, (upper,))]}))
    assert list(rows[0])[-8:] == ["Support Devices", *COLUMNS[-7:]]
    reference, mine, _, other = rows
    assert [reference[name] for name in COLUMNS[-7:]] == [""] * 7
    assert mine["marks"] == "Edema, film 1 at 25 %, 25 %; Fracture, film 1 at 25 %, 25 %; Edema, film 1 at 90 %, 90 %"
    assert [mine[name] for name in COLUMNS[-6:]] == ["1", "1", "0", "1", "1", "1"]
    assert other["marks"]
    assert [other[name] for name in COLUMNS[-6:]] == [""] * 6, "nobody has said where it is"


EVIL = [
    "+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "＝1",
    "  =1",
    '"=1',
    "a;=1",
    "a\n=1",
    "a,\t=1",
    '=HYPERLINK("http://x")',
]


@pytest.mark.parametrize("evil", EVIL)
def test_no_text_of_a_learner_is_a_formula_wherever_a_spreadsheet_cuts(evil, folder):
    written(folder, WHOLE, "a.toml")
    text = answers_csv([Answer(evil, "a", evil, evil, WHEN, WHEN)], read_cases(folder))
    row = read_back(text)[-1]
    for column in ("pseudonym", "findings", "impression"):
        for cell in re.split(r"[\t\r\n,;|]", row[column]):
            assert not re.match(r"[\s\"']*[=+\-@＝＋－＠]", cell) or cell.startswith("'")
        assert row[column].replace("'", "") == evil.replace("'", "")


def test_plain_words_stay_as_they_are():
    for text in ("The lungs are clear.", "2 cm - 3 cm", "left-sided", "1 + 1 = 2", "a@b"):
        assert harmless(text) == text


# --- what does the model see? -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reporter(checkpoint) -> Reporter:
    return Reporter.load(checkpoint, download=False)


@pytest.fixture(scope="module")
def films(tmp_path_factory, reporter) -> list[Film]:
    folder = tmp_path_factory.mktemp("films")
    make_phantom(1, height=140, width=190).save_png(folder / "one.png")
    make_phantom(2, height=200, width=150).save_png(folder / "two.png")
    return [reporter.read(folder / f"{name}.png", name=name) for name in ("one", "two")]


@pytest.fixture(scope="module")
def draft(reporter, films):
    """The words of an untrained model, cut by hand into three sentences whose tokens are known."""
    made = reporter.draft(films, DecodeConfig(max_new_tokens=12))
    cuts = [(0, 2), (2, 7), (7, len(made.tokens))]
    return replace(made, sentences=tuple(replace(made.sentences[0], tokens=cut) for cut in cuts))


def pixels(films: list[Film]) -> list[np.ndarray]:
    return [film.pixels for film in films]


def but_for_rounding(reporter: Reporter, nats: Sequence[float]) -> float:
    """How far these may move when films are read in other batches or the text is read to another end."""
    return rounding(max(map(abs, nats)), additions(reporter._model))


def test_an_untouched_film_changes_nothing_at_all(reporter, films, draft):
    found = reporter.rescore(films, draft, [film.pixels.copy() for film in films])
    assert found.change == (0.0, 0.0, 0.0)
    assert all(nats < 0 for nats in found.before)
    twin = reporter._read(reporter._encode([reporter._images(films)] * 2, draft), draft, None)
    most = but_for_rounding(reporter, twin.flatten())
    assert twin[0] == pytest.approx(twin[1], abs=most), (
        "nor would it, but for rounding, if the same film was read twice"
    )


def test_every_sentence_is_read_in_its_own_place(reporter, films, draft):
    changed = [retouched(film.pixels, np.ones((1, 1), bool), Fill.BLANK) for film in films]
    found = reporter.rescore(films, draft, changed)
    assert found.tokens == tuple(last - first for first, last in (s.tokens for s in draft.sentences))
    most = but_for_rounding(reporter, found.before)
    for number in range(3):
        assert found.before[number] == pytest.approx(reporter.why(films, draft, number, regions=8).log_prob, abs=most)
    turned = replace(draft, sentences=draft.sentences[::-1])
    assert reporter.rescore(films, turned, changed).change == found.change[::-1]
    assert len({round(change, 9) for change in found.change}) == 3
    for (before, after), a, b, n in zip(found.likely, found.before, found.after, found.tokens, strict=True):
        assert (before, after) == pytest.approx((np.exp(a / n), np.exp(b / n)))


def test_the_earlier_reading_of_the_films_may_be_used_again(reporter, films, draft):
    first = reporter.rescore(films, draft, pixels(films))
    changed = [retouched(films[0].pixels, np.ones((1, 1), bool), Fill.SIDE), films[1].pixels]
    done: list[tuple[int, int]] = []
    again = reporter.rescore(films, draft, changed, earlier=first, progress=lambda *at: done.append(at))
    assert done[-1] == (1, 1), "one reading instead of two"
    most = but_for_rounding(reporter, (*again.before, *again.after))
    assert again.change == pytest.approx(reporter.rescore(films, draft, changed).change, abs=2 * most)  # two readings
    assert min(map(abs, again.change)) > 10 * most, "so that other films, or the readings exchanged, would show"
    assert reporter.rescore(films, draft, pixels(films), earlier=first).change == (0.0, 0.0, 0.0)


def test_other_films_another_draft_or_too_few_changed_ones_are_refused(reporter, films, draft):
    with pytest.raises(FilmError):
        reporter.rescore(films[:1], draft, pixels(films[:1]))
    with pytest.raises(EmrrgError, match="another checkpoint"):
        reporter.rescore(films, replace(draft, model={}), pixels(films))
    with pytest.raises(ValueError, match="1 changed films for 2"):
        reporter.rescore(films, draft, pixels(films[:1]))


@pytest.mark.parametrize("fill", list(Fill))
def test_only_what_is_marked_is_filled(fill):
    film = make_phantom(3, height=150, width=130).pixels
    region = np.zeros((5, 13), bool)
    assert np.array_equal(retouched(film, region, fill), film)
    region[2, 3] = True
    made = retouched(film, region, fill)
    inside = np.zeros(film.shape, bool)
    inside[60:90, 30:40] = True
    assert np.array_equal(made[~inside], film[~inside])
    assert not np.array_equal(made[inside], film[inside])
    assert made.dtype == np.float32
    assert made.min() >= 0
    assert made.max() <= 1


def test_blank_is_the_films_mean_and_the_side_is_the_other_one():
    film = make_phantom(3, height=150, width=130).pixels
    everywhere = np.ones((2, 2), bool)
    assert np.ptp(retouched(film, everywhere, Fill.BLANK)) == 0
    assert retouched(film, everywhere, Fill.BLANK)[0, 0] == pytest.approx(film.mean(), abs=1e-6)
    assert np.array_equal(retouched(film, everywhere, Fill.SIDE), film[:, ::-1])
    chest = retouched(film, everywhere, Fill.CHEST)
    assert np.array_equal(chest, retouched(1 - film, everywhere, Fill.CHEST)), "no part of the film is left"
    with pytest.raises(ValueError, match="grid"):
        retouched(film, np.ones(4, bool), Fill.BLANK)
