"""Annotation files of the public sets: the cleaning rules to the letter, what is refused, the way to our own films.jsonl."""

import gzip
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from emrrg_core.data.public_datasets import clean_report, main, read_annotation, read_labels, sections
from emrrg_core.data.studies import read_studies
from emrrg_core.errors import DataError

ROOT = Path(__file__).resolve().parent.parent
IU, MIMIC, CHEXPERT = "iu_xray", "mimic_cxr", "chexpert_plus"


# ------------------------------------------------------------------------------------------------------ cleaning rules

# expected texts worked out by hand from docs/method.md 6; the sentences are ours
RULES = [
    ("The heart is large. No effusion.", "the heart is large . no effusion .", "the heart is large . no effusion ."),
    # the list numbers go; a colon is deleted in IU and a word of its own in MIMIC; hyphens and digits stay; 5.5 becomes 55
    ('1. Heart: 5.5 cm.. 2. "Non-tender" ribs/spine. 3. Dry?', "heart 55 cm . non-tender ribsspine . dry .",
     "heart : 55 cm . non-tender ribsspine . dry ."),
    # " 2. " without a full stop before it ends the sentence too; "6. " is no list number
    ("Clear lungs 2. Dry pleura 6. Thin", "clear lungs . dry pleura 6 . thin .", "clear lungs . dry pleura 6 . thin ."),
    # "1. " goes wherever it stands: a published quirk
    ("Wedge at T11. Stable L1. Done.", "wedge at t1stable ldone .", "wedge at t1stable ldone ."),
    # the range ":" to "[" of the IU rule takes < = > @ too, and leaves the blanks beside them
    ("Size > 3 [mm] @ base; left*", "size  3 mm  base left .", "size > 3 mm @ base left ."),
    ("A & B (old) {x} 5% + 2^3 a!b don't\\", "a  b old x 5  23 ab dont .", "a  b old x 5  23 ab dont ."),
    # only MIMIC joins lines, blanks and underscores; what is deleted after the strip leaves its blank behind
    ("____ was seen  by\n___.", " was seen  by\n .", " was seen by  ."),
    # an empty sentence stays
    ("Clear. . Dry.", "clear .  . dry .", "clear .  . dry ."),
    ("Clear.... Dry.", "clear . dry .", "clear . dry ."),
]  # fmt: skip


@pytest.mark.parametrize(("report", "iu", "mimic"), RULES)
def test_the_two_cleaning_rules_do_what_the_method_says(report, iu, mimic):
    assert clean_report(report, IU) == iu
    assert clean_report(report, MIMIC) == mimic
    assert clean_report(report, CHEXPERT) == mimic


@pytest.mark.parametrize(
    ("blanks", "left"), [(64, 1), (65, 2)]
)  # 64 → 32 → 16 → 8 → 4 → 2 → 1, 65 → 33 → 17 → 9 → 5 → 3 → 2
def test_runs_are_collapsed_as_often_as_published_and_no_more(blanks, left):
    assert clean_report("a" + " " * blanks + "b", MIMIC) == "a" + " " * left + "b ."


def test_a_raw_report_is_cut_at_its_headings_and_nowhere_else():
    report = (
        " EXAMINATION: CHEST\n\n FINDINGS: The heart is large.\n LINES AND TUBES: None.\nMild: yes.\n\n"
        "IMPRESSION:\n Large heart.\nRECOMMENDATION: None.\n"
    )
    assert sections(report) == ("The heart is large.\n LINES AND TUBES: None.\nMild: yes.", "Large heart.")
    assert sections(" The heart is large. Impression: none.\n") == ("The heart is large. Impression: none.", "")
    assert sections("IMPRESSION: Large heart.") == ("", "Large heart.")


# ----------------------------------------------------------------------------------------------------------- the lists

IU_ROW = {"id": "CXR7_IM-0001", "report": "Clear lungs.", "image_path": ["CXR7/0.png", "CXR7/1.png"], "split": "train"}
MIMIC_ROW = {
    "id": "0a-1",
    "study_id": 50000001,
    "subject_id": 10000001,
    "report": "Clear: lungs.",
    "image_path": ["p10/p10000001/s50000001/0a-1.jpg"],
}
CHEXPERT_ROW = {
    "id": "one",
    "report": "Clear.",
    "image_path": ["train/patient00007/study3/view2_lateral.jpg"],
}
ROWS = {IU: IU_ROW, MIMIC: MIMIC_ROW, CHEXPERT: CHEXPERT_ROW}


def second(dataset: str) -> dict:
    """Another patient's study."""
    return json.loads(json.dumps(ROWS[dataset]).replace("CXR7", "CXR8").replace("00001", "00002").replace("00007", "00008").replace(
        "0a-1", "0b-1").replace('"one"', '"two"'))  # fmt: skip


@pytest.fixture
def write(tmp_path) -> Callable[..., Path]:
    """An annotation.json with its films, which are empty files: reading an annotation decodes nothing."""

    def written(films: bool = True, **lists: object) -> Path:
        for rows in lists.values():
            for row in rows if films and isinstance(rows, list) else []:
                for name in row.get("image_path", []) if isinstance(row, dict) else []:
                    file = tmp_path / "images" / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.touch()
        path = tmp_path / "annotation.json"
        path.write_text(json.dumps(lists))
        return path

    return written


@pytest.fixture
def images(tmp_path) -> Path:
    return tmp_path / "images"


def test_iu_studies_have_two_films_a_patient_and_a_cleaned_report(write, images):
    path = write(train=[IU_ROW], val=[], test=[second(IU) | {"split": "test"}])
    first, other = read_annotation(path, images, IU)
    assert (first.id, first.source, first.split, first.patient) == ("CXR7_IM-0001", IU, "train", "CXR7")
    assert first.files == (images / "CXR7/0.png", images / "CXR7/1.png")
    assert (first.findings, first.impression, first.labels, first.view) == ("clear lungs .", "", {}, None)
    assert [s.id for s in read_annotation(path, images, IU, "test")] == [other.id]
    assert read_annotation(path, images, IU, "val") == []


def test_mimic_patients_come_from_the_path_or_the_field(write, images):
    flat = {"id": "x", "subject_id": "10000009", "study_id": "1", "report": "Dry.", "image_path": ["x.jpg"]}
    first, other = read_annotation(write(train=[MIMIC_ROW, flat]), images, MIMIC)
    assert (first.patient, other.patient) == ("10000001", "10000009")
    assert first.findings == "clear : lungs ."


def test_chexpert_plus_films_are_found_as_png_and_lateral_ones_are_known(write, images):
    path = write(train=[CHEXPERT_ROW])
    named = images / CHEXPERT_ROW["image_path"][0]
    named.rename(named.with_suffix(".png"))
    (one,) = read_annotation(path, images, CHEXPERT)
    assert one.files == (named.with_suffix(".png"),)
    assert (one.patient, one.view) == ("patient00007", "LATERAL")


def test_raw_text_is_a_choice(write, images):
    text = "FINDINGS: The Heart is 5.5 cm.\nIMPRESSION: Large."
    (one,) = read_annotation(write(train=[MIMIC_ROW | {"report": text}]), images, MIMIC, clean=False)
    assert (one.findings, one.impression) == ("The Heart is 5.5 cm.", "Large.")


BAD = [
    (IU, {"id": ""}, "without an id"),
    (IU, {"report": " \n"}, "without a report"),
    (IU, {"report": None}, "without a report"),
    (IU, {"report": "1. ..."}, "nothing is left"),
    (IU, {"split": "val"}, r"not their split, the first is CXR7_IM-0001 in train \(val\)"),
    (IU, {"image_path": ["CXR7/0.png"]}, "without their 2 films"),
    (IU, {"image_path": "CXR7/0.png"}, "without a list of films"),
    (MIMIC, {"image_path": []}, "without a list of films"),
    (MIMIC, {"image_path": ["../p10/p10000001/s50000001/0a-1.jpg"]}, "outside the image folder"),
    (MIMIC, {"image_path": ["/p10/p10000001/s50000001/0a-1.jpg"]}, "outside the image folder"),
    (MIMIC, {"subject_id": 10000002}, r"name no patient, or more than one.*10000001, 10000002"),
    (MIMIC, {"study_id": 50000002}, "name no study, or more than one"),
    (CHEXPERT, {"image_path": ["train/view1.jpg"]}, "name no patient"),
]


@pytest.mark.parametrize(("dataset", "change", "words"), BAD)
def test_a_study_that_cannot_be_used_is_refused_by_name(write, images, dataset, change, words):
    path = write(films=False, train=[ROWS[dataset] | change])
    with pytest.raises(DataError, match=words) as refusal:
        read_annotation(path, images, dataset)
    assert (str(ROWS[dataset]["id"]) if change.get("id") != "" else "number 0 in train") in str(refusal.value)


def test_all_problems_are_counted_whichever_split_is_asked_for(write, images):
    fine, gone = second(IU), second(IU) | {"id": "CXR9_IM-1", "image_path": ["CXR9/0.png", "CXR9/1.png"]}
    path = write(train=[fine], val=[{"id": "a"}, IU_ROW | {"report": ""}, 7], test=[fine])
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"more": [gone | {"split": "more"}, gone | {"split": "more"}]})
    )
    with pytest.raises(DataError) as refusal:
        read_annotation(path, images, IU, "train")
    said = str(refusal.value)
    assert "annotation.json: 6 of 7 studies cannot be used" in said
    assert "1 without a report, the first is a in val" in said
    assert "1 that are no object, the first is number 2 in val (int)" in said
    assert "2 with films that are not there, the first is CXR9_IM-1 in more (CXR9/0.png)" in said
    assert "2 whose list is not their split, the first is CXR7_IM-0001 in val (train)" in said


def test_an_id_that_comes_twice_is_refused(write, images):
    with pytest.raises(
        DataError, match="1 of 2 studies cannot be used: 1 whose id is taken, the first is 0a-1 in train"
    ):
        read_annotation(write(train=[MIMIC_ROW, MIMIC_ROW]), images, MIMIC)


def test_a_patient_in_two_splits_is_refused_and_for_chexpert_plus_warned_of(write, images):
    twin = {"id": "0c", "report": "Dry.", "image_path": ["p10/p10000001/s50000003/0c.jpg"]}
    path = write(train=[MIMIC_ROW, second(MIMIC)], test=[twin])
    with pytest.raises(DataError, match="1 patients are in more than one split, the first is 10000001"):
        read_annotation(path, images, MIMIC)
    again = CHEXPERT_ROW | {"id": "again", "image_path": ["train/patient00007/study4/view1_frontal.jpg"]}
    path = write(train=[CHEXPERT_ROW], val=[again])
    with pytest.warns(UserWarning, match="1 patients are in more than one split, the first is patient00007"):
        assert len(read_annotation(path, images, CHEXPERT)) == 2
    assert len(read_annotation(write(train=[CHEXPERT_ROW, again]), images, CHEXPERT)) == 2  # one patient, one split


@pytest.mark.parametrize("text", ["[]", "{}", '{"train": {}}', "{", b"\xff"])
def test_a_file_that_is_no_annotation_is_refused(tmp_path, text):
    path = tmp_path / "annotation.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match="annotation"):
        read_annotation(path, tmp_path, IU)


def test_an_unknown_set_split_or_file_is_refused(write, images, tmp_path):
    path = write(train=[IU_ROW])
    with pytest.raises(DataError, match="'nih'"):
        read_annotation(path, images, "nih")
    with pytest.raises(DataError, match="no split 'test', only train"):
        read_annotation(path, images, IU, "test")
    with pytest.raises(DataError, match="cannot be read"):
        read_annotation(tmp_path / "nowhere.json", images, IU)


# -------------------------------------------------------------------------------------------------------------- labels

HEADER = "subject_id,study_id,Edema,Fracture,No Finding,Pneumonia\n"


@pytest.fixture
def mimic_labels(tmp_path) -> Callable[[str], Path]:
    def written(rows: str) -> Path:
        path = tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz"
        path.write_bytes(gzip.compress((HEADER + rows).encode()))
        return path

    return written


def test_uncertain_and_blank_labels_are_unknown(mimic_labels):
    assert read_labels(mimic_labels("10000001,50000001,1.0,0.0,,-1.0\n"), MIMIC) == {
        "50000001": {"Edema": 1, "Fracture": 0}
    }


def test_labels_are_joined_by_study(write, images, mimic_labels, tmp_path):
    path = write(train=[MIMIC_ROW, second(MIMIC)])
    first, other = read_annotation(path, images, MIMIC, labels=mimic_labels("10000001,50000001,1.0,0.0,,-1.0\n"))
    assert (first.labels, other.labels) == ({"Edema": 1, "Fracture": 0}, {})
    fixed = tmp_path / "findings_fixed.json"
    row = {
        "path_to_image": "train/patient00007/study3/view1_frontal.jpg",
        "Edema": None,
        "Fracture": -1.0,
        "Pneumonia": 0.0,
    }
    fixed.write_text(
        json.dumps(row)
        + "\n"
        + json.dumps(row | {"path_to_image": "valid/patient1/study1/x.jpg", "Edema": float("nan")})
    )
    (one,) = read_annotation(write(train=[CHEXPERT_ROW]), images, CHEXPERT, labels=fixed)
    assert one.labels == {"Pneumonia": 0}


def test_a_table_of_another_set_is_refused(write, images, mimic_labels):
    path = write(train=[MIMIC_ROW])
    with pytest.raises(DataError, match=r"none of its studies has a label in mimic-cxr-2.0.0-chexpert.csv.gz"):
        read_annotation(path, images, MIMIC, labels=mimic_labels("10000009,50000009,1.0,,,\n"))
    with pytest.raises(DataError, match="row 1: it does not say whose study it is"):
        read_labels(mimic_labels("10000009,50000009,1.0,,,\n"), CHEXPERT)
    with pytest.raises(DataError, match="iu_xray"):
        read_labels(mimic_labels(""), IU)


@pytest.mark.parametrize("value", ["2", "yes", "0.5"])
def test_a_label_of_another_kind_is_refused(mimic_labels, value):
    with pytest.raises(DataError, match="row 2, study 50000002"):
        read_labels(mimic_labels(f"10000001,50000001,1.0,,,\n10000002,50000002,{value},,,\n"), MIMIC)


def test_a_table_that_cannot_be_read_is_refused(mimic_labels, tmp_path):
    torn = mimic_labels("10000001,50000001,1.0,,,\n" * 500)
    torn.write_bytes(torn.read_bytes()[:-20])
    (tmp_path / "odd.csv").write_text("a,b\n1,2\n")
    (tmp_path / "list.json").write_text("[1]\n")
    for path, words in [(torn, "cannot be read"), (tmp_path / "odd.csv", "none of the 14 labels"), (tmp_path / "no.csv", "cannot be read"),
                        (tmp_path / "list.json", "row 1: a row is an object")]:  # fmt: skip
        with pytest.raises(DataError, match=words):
            read_labels(path, MIMIC)


# ------------------------------------------------------------------------------------------------------------- command


@pytest.mark.parametrize("dataset", [IU, MIMIC, CHEXPERT])
@pytest.mark.parametrize("raw", [False, True])
def test_what_the_command_writes_reads_back_as_the_same_studies(write, images, tmp_path, capsys, dataset, raw):
    path, out = (
        write(train=[ROWS[dataset]], val=[second(dataset) | {"split": "val", "report": "Größe: 3. Dry."}]),
        tmp_path / "ours" / "films.jsonl",
    )
    options = ["--images", str(images), "--dataset", dataset, "--out", str(out), *(["--raw"] if raw else [])]
    assert main([str(path), *options]) == 0
    back, studies = read_studies(out), read_annotation(path, images, dataset, clean=not raw)
    assert [(s.id, s.findings, s.impression, s.labels, s.view, s.patient, s.split, s.source) for s in back] == [
        (s.id, s.findings, s.impression, s.labels, s.view, s.patient, s.split, s.source) for s in studies
    ]
    assert [[f.resolve() for f in s.files] for s in back] == [[f.resolve() for f in s.files] for s in studies]
    assert len(back) == 2
    assert not any(
        Path(name).is_absolute() for line in out.read_text().splitlines() for name in json.loads(line)["files"]
    )
    assert "2 studies (train 1, val 1)" in capsys.readouterr().out
    assert [p.name for p in out.parent.iterdir()] == ["films.jsonl"]


def test_the_command_takes_labels_and_refuses_in_one_line(write, images, tmp_path, capsys, mimic_labels):
    out = tmp_path / "films.jsonl"
    options = ["--images", str(images), "--dataset", MIMIC, "--out", str(out)]
    labels = mimic_labels("10000001,50000001,1.0,0.0,,-1.0\n")
    assert main([str(write(train=[MIMIC_ROW])), *options, "--labels", str(labels)]) == 0
    assert read_studies(out)[0].labels == {"Edema": 1, "Fracture": 0}
    assert "labels of 1 studies" in capsys.readouterr().out
    before = out.read_bytes()
    assert main([str(write(train=[MIMIC_ROW | {"report": ""}])), *options]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n"), out.read_bytes()) == ("", 1, before)
    assert "0a-1 in train" in said.err
    (tmp_path / "taken").touch()
    assert main([str(write(train=[MIMIC_ROW])), *options[:-1], str(tmp_path / "taken" / "films.jsonl")]) == 2
    assert "cannot be written" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------- docs

DOCS = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
BLOCKS = {block[2 : block.index(":")]: block for block in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)}
COMMANDS = [
    shlex.split(line)[3:]
    for line in re.findall(r"^python -m emrrg_core\.data\.public_datasets .*$", DOCS, re.MULTILINE)
]
REPORT = "FINDINGS: The lungs are clear.\nIMPRESSION: Normal chest."

OPEN_I = """<eCitation><uId id="CXR{n}"/><AbstractText Label="FINDINGS">The lungs are clear.</AbstractText>
<AbstractText Label="IMPRESSION">Normal chest.</AbstractText><parentImage id="CXR{n}_a"/>{more}</eCitation>"""


def public_iu_xray(root: Path) -> None:
    for n, more in [(1, '<parentImage id="CXR1_b"/>'), (2, "")]:  # the second has one film: left out
        put(root / f"NLMCXR_reports/ecgen-radiology/{n}.xml", OPEN_I.format(n=n, more=more))
    put(root / "NLMCXR_png/CXR1_a.png")
    put(root / "NLMCXR_png/CXR1_b.png")


def public_mimic_cxr(root: Path) -> None:
    place = "p10/p10000001/s50000001"
    rows = "dicom_id,study_id,subject_id,split\n0a,50000001,10000001,validate\n0b,50000002,10000001,validate\n"
    put(root / "mimic-cxr-2.0.0-split.csv.gz", gzip.compress(rows.encode()))
    put(root / "mimic-cxr-2.0.0-chexpert.csv.gz", gzip.compress(f"{HEADER}10000001,50000001,0.0,,,\n".encode()))
    put(root / f"mimic-cxr-reports/files/{place}.txt", REPORT)
    put(root / "mimic-cxr-reports/files/p10/p10000001/s50000002.txt", "IMPRESSION: Normal chest.")
    put(root / f"files/{place}/0a.jpg")


def public_chexpert_plus(root: Path) -> None:
    film = "train/patient00001/study1/view1_frontal.jpg"
    put(root / "df_chexpert_plus_240401.csv", "path_to_image,deid_patient_id,section_findings,section_impression\n"
        f"{film},patient00001,The lungs are clear.,Normal chest.\ntrain/patient2/study1/view1_frontal.jpg,patient2,,Normal.\n")  # fmt: skip
    put(root / "chexbert_labels/findings_fixed.json", json.dumps({"path_to_image": film, "Edema": 0.0}))
    put(root / "PNG/train/patient00001/study1/view1_frontal.png")


PUBLIC = {IU: public_iu_xray, MIMIC: public_mimic_cxr, CHEXPERT: public_chexpert_plus}


def put(path: Path, content: str | bytes = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("dataset", [IU, MIMIC, CHEXPERT])
def test_the_documented_way_from_the_owners_files_works(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PUBLIC[dataset](tmp_path)
    exec(BLOCKS[dataset], {})
    (command,) = [c for c in COMMANDS if "--raw" in c and c[c.index("--dataset") + 1] == dataset]
    assert main(command) == 0
    (one,) = read_studies(f"{dataset}.jsonl")
    assert (one.findings, one.impression) == ("The lungs are clear.", "Normal chest.")
    assert one.labels == ({} if dataset == IU else {"Edema": 0})


def test_the_documented_ways_for_sets_without_reports_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,View Position\n"
    rows = "01_0.png,Mass|Hernia,0,1,PA\n10_0.png,No Finding,0,10,AP\n02_0.png,Effusion,0,2,PA\n"
    put(tmp_path / "Data_Entry_2017_v2020.csv", header + rows)
    put(tmp_path / "test_list.txt", "02_0.png\n")
    kermany = ["train/PNEUMONIA/person1_bacteria_2", "test/NORMAL/IM-0115-0001"]
    for name in ["images/01_0.png", "images/10_0.png", "images/02_0.png", *(f"chest_xray/{k}.jpeg" for k in kermany)]:
        put(tmp_path / name)
    exec(BLOCKS["nih"], {})
    mass, normal, effusion = read_studies("nih.jsonl")
    assert [s.split for s in (mass, normal, effusion)] == ["train", "val", "test"]
    assert [name for name, value in mass.labels.items() if value] == ["Lung Lesion"]
    assert (mass.abnormal, normal.abnormal, effusion.labels["Pleural Effusion"]) == (True, False, 1)
    exec(BLOCKS["kermany"], {})
    well, ill = read_studies("kermany.jsonl")
    assert (well.patient, well.split, well.abnormal) == ("kermany_NORMAL_IM-0115", "test", False)
    assert (ill.patient, ill.split, ill.labels) == (
        "kermany_PNEUMONIA_person1",
        "train",
        {"No Finding": 0, "Pneumonia": 1},
    )


@pytest.mark.parametrize("dataset", [IU, MIMIC, CHEXPERT])
def test_the_documented_command_for_an_annotation_file_works(write, images, tmp_path, monkeypatch, dataset):
    monkeypatch.chdir(tmp_path)
    (command,) = [c for c in COMMANDS if "--raw" not in c and c[c.index("--dataset") + 1] == dataset]
    write(train=[ROWS[dataset]])
    images.rename(tmp_path / command[command.index("--images") + 1])
    put(tmp_path / "findings_fixed.json", json.dumps({"path_to_image": CHEXPERT_ROW["image_path"][0], "Edema": 1}))
    put(tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz", gzip.compress(f"{HEADER}10000001,50000001,1,,,\n".encode()))
    assert main(command) == 0
    assert read_studies(f"{dataset}.jsonl")[0].labels == ({} if dataset == IU else {"Edema": 1})
