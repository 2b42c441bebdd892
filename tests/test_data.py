"""Film sets and report texts: what is refused, what stays unknown, and which report may stand beside which film."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from emrrg_core.data.studies import (
    FilmCache,
    Matcher,
    ReportText,
    Study,
    abnormal_first,
    augment,
    clean_sentences,
    development,
    lung_mask,
    normalise,
    read_reports,
    read_studies,
)
from emrrg_core.errors import DataError
from emrrg_core.films.film import model_input, read_film
from emrrg_core.text.labeler import Status, is_abnormal, labels, read_findings
from tests.phantom import make_phantom

ROW = {"id": "one", "source": "ours", "split": "train", "files": ["one.png"], "labels": {"Pleural Effusion": 1}}
SIZE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two phantoms on disk."""
    folder = tmp_path_factory.mktemp("films")
    make_phantom(1, height=128, width=144, lesion="effusion").save_png(folder / "one.png")
    make_phantom(2, height=150, width=128, lesion=None).save_dicom(folder / "two.dcm")
    return folder


@pytest.fixture
def write(folder) -> Callable[..., Path]:
    """A films.jsonl beside the phantoms, of rows or of raw lines."""

    def written(*rows: dict | str) -> Path:
        path = folder / "films.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return written


def study(**values: int) -> Study:
    """A study with these labels, underscores for spaces."""
    known = {name.replace("_", " "): value for name, value in values.items()}
    return Study(
        id=str(known),
        source="ours",
        split="train",
        patient="somebody",
        files=(),
        labels=known,
        view=None,
        findings="",
        impression="",
    )


def report(findings: str, impression: str) -> ReportText:
    """A report as `read_reports` would keep it."""
    text = f"{findings} {impression}"
    found = {name: int(s in (Status.POSITIVE, Status.UNCERTAIN)) for name, s in labels(text).items()}
    return ReportText(text, findings, impression, found, is_abnormal(text))


# ---------------------------------------------------------------------------------------------------------- studies


def test_studies_come_with_what_is_known_of_them(write, folder):
    other = {
        "id": "two",
        "source": "ours",
        "split": "val",
        "files": ["two.dcm"],
        "labels": {},
        "view": "PA",
        "patient": "p",
    }
    one, two = read_studies(write(ROW, other))
    assert (one.id, one.files, one.labels, one.view) == ("one", (folder / "one.png",), {"Pleural Effusion": 1}, None)
    assert (one.patient, two.patient) == ("one", "p")  # without a patient, each study is its own
    assert (two.view, two.findings, two.impression) == ("PA", "", "")
    assert [s.id for s in read_studies(write(ROW, other), "val")] == ["two"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"files": []}, "no files"),
        ({"files": None}, "study one"),
        ({"labels": None}, "study one"),
        ({"labels": {"Plural Effusion": 1}}, "Plural Effusion"),
        ({"labels": {"Pleural Effusion": "maybe"}}, "maybe"),
        ({"files": ["elsewhere.png"]}, "not there"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_by_name(write, change, words):
    with pytest.raises(DataError, match=words) as refusal:
        read_studies(write(ROW | {"id": "fine"}, ROW | change))
    assert "one" in str(refusal.value)


@pytest.mark.parametrize("field", ["source", "split", "files", "labels"])
def test_a_missing_field_is_named_with_its_line_and_study(write, field):
    row = {name: value for name, value in ROW.items() if name != field}
    with pytest.raises(DataError, match=f"line 2, study one: '{field}'"):
        read_studies(write(ROW | {"id": "fine"}, row))


def test_a_line_that_is_not_json_is_named(write):
    with pytest.raises(DataError, match="line 2"):
        read_studies(write(ROW, "{"))


def test_a_film_set_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        read_studies(tmp_path / "nowhere.jsonl")


def test_a_label_that_is_not_given_is_unknown_and_never_negative(write):
    (one,) = read_studies(write(ROW | {"labels": {"Pleural Effusion": 0, "Edema": None}}))
    assert one.labels == {"Pleural Effusion": 0}
    assert one.abnormal is None  # no effusion does not make the film normal


@pytest.mark.parametrize(
    ("known", "abnormal"),
    [
        ({"No_Finding": 1}, False),
        ({"No_Finding": 0}, True),
        ({"Edema": 1}, True),
        ({"Edema": 0}, None),
        ({"Support_Devices": 1}, None),
        ({}, None),
    ],
)
def test_abnormal_is_known_only_where_a_label_says_so(known, abnormal):
    assert study(**known).abnormal is abnormal


def test_the_development_part_shares_no_patient_with_what_is_learned_from():
    studies = [replace(study(Edema=1), id=str(i), patient=f"patient {i // 2}") for i in range(80)]
    learn, held = development(studies)
    assert not {s.patient for s in learn} & {s.patient for s in held}
    assert len(learn) + len(held) == 80
    assert len(held) == 8
    assert {s.id for s in development(studies[::-1])[1]} == {s.id for s in held}


# ---------------------------------------------------------------------------------------------------------- sentences


def test_sentences_that_one_film_cannot_teach_are_dropped():
    text = (
        "1. There is a small effusion at the left base. The XXXX is intact. Compared with the prior film it is larger. "
        "The nodule is unchanged. 2) Heart size is normal. Recommend CT. The ___ catheter ends in the vein."
    )
    assert clean_sentences(text) == ["There is a small effusion at the left base.", "Heart size is normal."]


def test_a_sentence_is_kept_as_written_but_for_its_ends():
    assert clean_sentences("the lungs\nare   clear ;") == ["The lungs are clear."]
    assert clean_sentences("") == clean_sentences("Normal.") == []  # a single word is no sentence to learn


def test_what_is_abnormal_comes_first_and_the_rest_keeps_its_order():
    said = [
        "The heart is normal in size.",
        "No effusion is seen.",
        "There is a nodule in the left lung.",
        "The lungs are hazy.",
    ]
    ordered = abnormal_first(said)
    assert ordered[0] == "There is a nodule in the left lung."
    assert [s for s in ordered if not is_abnormal(s)] == [s for s in said if not is_abnormal(s)]


def test_a_report_whose_finding_went_with_the_cleaning_is_left_out(tmp_path):
    rows = [
        {
            "id": "lost",
            "split": "train",
            "findings": "Unchanged effusion on the left. The heart is normal in size.",
            "impression": "No pneumothorax is seen.",
        },
        {"id": "empty", "split": "train", "findings": "The heart is normal in size.", "impression": "XXXX."},
        {
            "id": "kept",
            "split": "train",
            "findings": "The heart is normal in size. There is an effusion on the left.",
            "impression": "Left effusion.",
        },
        {"id": "test", "split": "test", "findings": "The lungs are clear.", "impression": "No acute disease."},
    ]
    path = tmp_path / "reports.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    (kept,) = read_reports(path, "train")
    assert (kept.id, kept.abnormal, kept.labels["Pleural Effusion"]) == ("kept", True, 1)
    assert kept.findings == "There is an effusion on the left. The heart is normal in size."


def test_a_report_without_a_section_is_refused_by_name(tmp_path):
    path = tmp_path / "reports.jsonl"
    path.write_text(json.dumps({"id": "half", "split": "train", "findings": "The lungs are clear."}))
    with pytest.raises(DataError, match=r"line 1, report half: 'impression'"):
        read_reports(path, "train")


# ---------------------------------------------------------------------------------------------------------- pairs

REPORTS = [
    report("The lungs are clear. The heart is normal in size.", "No acute disease of the chest."),
    report("There is a pleural effusion on the left. The heart is normal in size. No pneumothorax is seen.", "Left pleural effusion."),
    report("A nodule projects over the right lung. There is no pleural effusion.", "Right lung nodule."),
    report("The heart is enlarged. There is a small pleural effusion.", "Cardiomegaly. Small pleural effusion."),
    report("There is a patchy opacity in the right base. The lungs are otherwise clear.", "Right basal opacity."),
    report("The ribs are fractured on the left.", "Left rib fractures."),
]  # fmt: skip
ABNORMAL = [
    {"Pleural_Effusion": 1},
    {"Lung_Lesion": 1},
    {"Lung_Lesion": 1, "Pleural_Effusion": 1},
    {"Cardiomegaly": 1, "Support_Devices": 1},
    {"Pneumonia": 1},
    {"Fracture": 1, "No_Finding": 0},
]


def test_a_normal_film_never_meets_a_report_that_states_anything_abnormal():
    texts = Matcher(REPORTS).texts(study(No_Finding=1))
    assert texts == [(REPORTS[0].findings, REPORTS[0].impression)]


@pytest.mark.parametrize("known", ABNORMAL)
def test_an_abnormal_film_never_meets_a_normal_report_nor_a_sentence_that_denies_what_it_has(known):
    film = study(**known)
    texts = Matcher(REPORTS).texts(film)
    assert texts
    positive = {name for name, value in film.labels.items() if value and name != "Support Devices"}
    alike = {"Lung Opacity", "Consolidation", "Pneumonia"}
    wanted = positive | alike if positive & alike else positive
    for sections in texts:
        for text in sections:
            mentions = read_findings(text)
            assert is_abnormal(text), text
            assert any(m.label in wanted and m.status is not Status.NEGATIVE for m in mentions), text
            assert not any(m.label in wanted and m.status is Status.NEGATIVE for m in mentions), text


def test_what_else_a_report_states_is_taken_out_of_it():
    texts = Matcher(REPORTS).texts(study(Cardiomegaly=1))
    assert texts == [("The heart is enlarged.", "Cardiomegaly.")]
    opacity = Matcher(REPORTS).texts(study(Pneumonia=1))  # a film cannot tell pneumonia from another opacity
    assert opacity == [("There is a patchy opacity in the right base.", "Right basal opacity.")]


@pytest.mark.parametrize("known", [{}, {"Edema": 0}, {"No_Finding": 0}, {"Support_Devices": 1}, {"Pneumothorax": 1}])
def test_a_film_of_which_too_little_is_known_meets_no_report(known):
    assert Matcher(REPORTS).texts(study(**known)) == []


# ---------------------------------------------------------------------------------------------------------- films


def test_the_cache_holds_what_the_model_would_see(write, tmp_path):
    studies = read_studies(write(ROW, ROW | {"id": "two", "files": ["two.dcm"]}))
    cache = FilmCache(studies, tmp_path, SIZE)
    for one in studies:
        grey = cache[one]
        assert (grey.shape, grey.dtype) == ((SIZE, SIZE), np.uint8)
        direct = model_input(read_film(one.files[0]), SIZE)
        # 8 bits: at most half a grey level away, of 255, in units of ImageNet's smallest deviation
        np.testing.assert_allclose(normalise(grey), direct, atol=0.5 / 255 / 0.224 + 1e-5)


def test_films_are_decoded_once_for_all_runs_and_again_when_a_file_changes(write, folder, tmp_path, monkeypatch):
    path = tmp_path / "films"
    path.mkdir()
    make_phantom(3, height=128, width=128).save_png(path / "one.png")
    one = replace(read_studies(write(ROW))[0], files=(path / "one.png",))
    first = FilmCache([one], tmp_path, SIZE)[one].copy()
    with monkeypatch.context() as patch:
        patch.setattr(FilmCache, "_decode", None)  # whoever decodes again fails
        np.testing.assert_array_equal(FilmCache([one], tmp_path, SIZE)[one], first)
    make_phantom(4, height=130, width=128).save_png(path / "one.png")
    assert not np.array_equal(FilmCache([one], tmp_path, SIZE)[one], first)


def test_a_film_that_cannot_be_read_is_refused_by_its_study(write, folder, tmp_path):
    (folder / "torn.png").write_bytes((folder / "one.png").read_bytes()[:200])
    studies = read_studies(write(ROW | {"id": "study seven", "files": ["torn.png"]}))
    with pytest.raises(DataError, match="study seven"):
        FilmCache(studies, tmp_path, SIZE)


def test_normalise_keeps_leading_dimensions_and_grey_is_the_same_in_all_channels():
    grey = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
    seen = normalise(grey)
    assert (seen.shape, seen.dtype) == ((2, 3, 3, 8, 8), np.float32)
    back = seen * np.array([0.229, 0.224, 0.225])[:, None, None] + np.array([0.485, 0.456, 0.406])[:, None, None]
    np.testing.assert_allclose(back, np.repeat(grey[:, :, None] / 255, 3, axis=2), atol=1e-6)


def test_an_augmented_film_is_another_film_of_the_same_shape_and_never_mirrored():
    grey = np.zeros((SIZE, SIZE), np.uint8)
    cv2.circle(grey, (SIZE // 4, SIZE // 2), 6, 255, -1)  # bright on the image's left
    rng = np.random.default_rng(0)
    made = [augment(grey, rng)[0] for _ in range(50)]
    for film in made:
        assert (film.shape, film.dtype) == ((SIZE, SIZE), np.float32)
        assert film.min() >= 0
        assert film.max() <= 255
        bright = film > 0.6 * film.max()
        assert bright.nonzero()[1].mean() < SIZE / 2
    assert len({film.tobytes() for film in made}) == 50
    again, same = (augment(grey, np.random.default_rng(4))[0] for _ in range(2))
    np.testing.assert_array_equal(again, same)


def test_masks_move_with_their_film_and_keep_their_values():
    grey = np.zeros((SIZE, SIZE), np.uint8)
    cv2.circle(grey, (20, 40), 8, 255, -1)
    disc, half = (grey > 0).astype(np.float32), (grey > 0).astype(np.float32) / 2
    rng = np.random.default_rng(0)
    for _ in range(20):
        film, (whole, weak) = augment(grey, rng, [disc, half])
        assert (whole.shape, whole.dtype) == ((SIZE, SIZE), np.float32)
        assert 0 <= whole.min() <= whole.max() <= 1
        np.testing.assert_allclose(weak, whole / 2, atol=1e-6)
        bright = film > (film.min() + film.max()) / 2
        assert (bright & (whole > 0.5)).sum() > 0.85 * (bright | (whole > 0.5)).sum()
    film, planes = augment(grey, np.random.default_rng(1))
    assert planes == []
    np.testing.assert_array_equal(film, augment(grey, np.random.default_rng(1), [disc])[0])


# ---------------------------------------------------------------------------------------------------------- masks, boxes


def test_boxes_and_a_lung_mask_come_with_their_study(write, folder):
    cv2.imwrite(str(folder / "lungs.png"), np.full((128, 144), 255, np.uint8))
    boxes = [{"label": "Lung Opacity", "xywh": [1, 2, 30.5, 4]}]
    (one,) = read_studies(write(ROW | {"lung_mask": "lungs.png", "boxes": boxes}))
    assert one.lung_mask == folder / "lungs.png"
    assert one.boxes == (("Lung Opacity", (1.0, 2.0, 30.5, 4.0)),)
    (bare,) = read_studies(write(ROW | {"lung_mask": None, "boxes": None}))
    assert (bare.lung_mask, bare.boxes) == (None, ())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lung_mask": "nowhere.png"}, "masks that are not there"),
        ({"boxes": [{"label": "Edema", "xywh": [1, 2, 0, 4]}]}, r"study one: a box of 0\.0 × 4\.0 pixels"),
        ({"boxes": [{"label": "Edema", "xywh": [1, 2, 3]}]}, "study one"),
        ({"boxes": [{"xywh": [1, 2, 3, 4]}]}, "study one: 'label'"),
    ],
)
def test_masks_and_boxes_that_cannot_be_used_are_refused(write, change, words):
    with pytest.raises(DataError, match=words):
        read_studies(write(ROW | change))


def test_a_lung_mask_is_seen_as_the_tower_sees_its_film(write, folder):
    mask = np.zeros((128, 144), np.uint8)
    mask[32:96, 36:72] = 255  # the second quarter of the columns, the middle half of the rows
    cv2.imwrite(str(folder / "lungs.png"), mask)
    (one,) = read_studies(write(ROW | {"lung_mask": "lungs.png"}))
    seen = lung_mask(one, SIZE)
    assert (seen.shape, seen.dtype) == ((SIZE, SIZE), np.bool_)
    expected = np.zeros((SIZE, SIZE), bool)
    expected[SIZE // 4 : SIZE * 3 // 4, SIZE // 4 : SIZE // 2] = True
    np.testing.assert_array_equal(seen, expected)
    (folder / "lungs.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="study one: its lung mask cannot be read"):
        lung_mask(one, SIZE)


def test_rows_that_are_no_objects_and_files_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "films.jsonl"
    path.write_text("[1, 2]\n")
    with pytest.raises(DataError, match="line 1"):
        read_studies(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        read_studies(path)
