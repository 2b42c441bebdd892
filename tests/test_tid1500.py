"""The findings as a Measurement Report: what the report says, coded, with contours at the right pixels of the right file."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib import resources
from io import BytesIO
from pathlib import Path

import cv2
import highdicom
import numpy as np
import pydicom
import pytest
from dicom_validator.spec_reader.edition_reader import EditionReader
from dicom_validator.validator.dicom_info import DicomInfo
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ComprehensiveSRStorage

from emrrg_core.errors import EmrrgError, FilmError
from emrrg_core.export import fhir
from emrrg_core.export.dicom_sr import to_dicom_sr
from emrrg_core.export.dicom_tid1500 import CODES, OWN, to_dicom_measurements
from emrrg_core.films.film import read_film
from emrrg_core.model.finding_tokens import Finding, Presence
from emrrg_core.report.draft import NOT_REVIEWED, Draft, Sentence
from emrrg_core.report.report import Report
from emrrg_core.text.labeler import LABELS
from tests import test_export_dicom as other
from tests.phantom import make_phantom
from tests.test_export_dicom import AT, READER, drafted, errors_by_dicom_validator, key, read, real_film

SENTENCES = (
    ("There is a nodule in the left upper zone.", "findings"),
    ("Possible right lower opacity.", "findings"),
    ("No effusion.", "findings"),
    ("No pneumothorax on the right.", "findings"),
    ("The heart is enlarged.", "impression"),
)
GRID = 14
PLACE = (10.5 / GRID, 4.5 / GRID)  # x, y of the nodule's map
FILE = ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate")


def spot(x: float, y: float) -> np.ndarray:
    """A map (g²,) around a place given as shares of the film."""
    at = (np.arange(GRID) + 0.5) / GRID
    map = np.exp(-((at[None] - x) ** 2 + (at[:, None] - y) ** 2) / (2 * 0.08**2)).ravel()
    return (map / map.sum()).astype(np.float32)


def with_findings(draft: Draft, *maps: np.ndarray) -> Draft:
    """The draft with sentences and what was read of its findings. maps: of the nodule, one a film."""
    maps = maps or (spot(*PLACE),) * len(draft.films)
    sentences = tuple(Sentence(text, section, 0, len(text), (0, 1), 0.5, ()) for text, section in SENTENCES)
    found = (
        Finding("nodule", Presence.PRESENT, 0.83, 0.5, "left", "upper", maps=maps),
        Finding("opacity", Presence.PRESENT, 0.61, 0.5, "right", maps=maps),
        Finding("effusion", Presence.ABSENT, 0.031, 0.5, maps=maps),
        Finding("pneumothorax", Presence.ABSENT, 0.01, 0.5, maps=maps),
        Finding("heart", Presence.OPEN, 0.4, 0.5, maps=maps),
    )
    return replace(draft, sentences=sentences, read=found, ratio=0.5274)


@pytest.fixture
def film(tmp_path):
    def save(name: str = "film.dcm", seed: int = 3, **elements: object) -> Path:
        path = tmp_path / name
        make_phantom(seed, height=160, width=128).save_dicom(path)
        header = pydicom.dcmread(path)
        for keyword, value in elements.items():
            setattr(header, keyword, value)
        header.save_as(path)
        return path

    return save


def measured(draft: Draft, films: list[Path], report: Report | None = None, **options: object) -> bytes:
    return to_dicom_measurements(report or Report.of(draft), draft, films, at=AT, **options)


def groups(data: bytes) -> dict[str, list]:
    """Code meaning of the finding -> its measurement groups, as highdicom reads them."""
    report = highdicom.sr.srread(BytesIO(data)).content
    found: dict[str, list] = {}
    for group in (*report.get_planar_roi_measurement_groups(), *report.get_image_measurement_groups()):
        found.setdefault(group.finding_type.meaning if group.finding_type else "", []).append(group)
    return found


def presence(group) -> str:
    ((name, value),) = [(e.name, e.value) for e in group.get_qualitative_evaluations()]
    assert (name.value, name.scheme_designator) == ("705057003", "SCT")
    return value.meaning


def comments(group) -> list[str]:
    return [str(item.TextValue) for item in group[0].ContentSequence if item.name.value == "121106"]


def contour(group) -> np.ndarray | None:
    return group.roi.value if hasattr(group, "roi") else None


# --- the standard -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables() -> DicomInfo:
    """As in test_export_dicom, of a Comprehensive SR."""
    reader = EditionReader()
    if fetched := sorted(path.name for path in reader.path.glob("2*") if reader.json_files_exist(path.name)):
        return reader.load_dicom_info(fetched[-1])
    folder = resources.files("highdicom") / "_standard"
    kinds, modules, attributes = (
        json.loads((folder / f"{name}.json").read_text())
        for name in ("sop_class_iod_map", "iod_module_map", "module_attribute_map")
    )
    name, found = kinds[ComprehensiveSRStorage], {}
    for module in {part["key"] for part in modules[name]}:
        found[module] = {}
        for row in attributes[module]:
            where, reached = found[module], True
            for keyword in row["path"]:
                reached = reached and key(keyword) in where
                if reached:
                    where = where[key(keyword)].setdefault("items", {})
            if reached and key(row["keyword"]):
                level = "3" if module == "sr-document-content" and row["keyword"] != "ValueType" else row["type"]
                where[key(row["keyword"])] = {"name": row["keyword"], "type": level}
    items = found["sr-document-content"][key("ContentSequence")]
    items["items"][key("ContentSequence")] = items
    parts = {part["key"]: {"ref": part["key"], "use": part["usage"]} for part in modules[name]}
    return DicomInfo({}, {ComprehensiveSRStorage: {"title": name, "modules": parts, "group_macros": {}}}, found)


@pytest.fixture(params=["real", "signed", "picture"])
def document(request, tmp_path) -> bytes:
    if request.param == "picture":
        path = tmp_path / "film.png"
        make_phantom(3, height=256, width=224).save_png(path)
    else:
        path = real_film()
    draft = with_findings(drafted(path))
    if request.param == "signed":
        return measured(draft, [path], Report.of(draft).sign(range(len(SENTENCES))), reader=READER)
    return measured(draft, [path])


def test_the_document_satisfies_dciodvfy(document, tmp_path):
    path = tmp_path / "export.dcm"
    path.write_bytes(document)
    assert errors(path) == []


def errors(path: Path) -> list[str]:
    done = subprocess.run([Path(sys.executable).parent / "dciodvfy", path], capture_output=True, text=True)
    said = (done.stdout + done.stderr).splitlines()
    assert "ComprehensiveSR" in said, said  # it knew the kind of file
    return [line for line in said if not line.startswith("Warning") and line != "ComprehensiveSR"]


def test_the_document_satisfies_dicom_validator(document, tables):
    assert errors_by_dicom_validator(document, tables) == []


def test_the_validators_notice_what_is_broken(film, tables, tmp_path):
    path = film()
    made = read(measured(with_findings(drafted(path)), [path]))
    del made.CompletionFlag
    measurements = next(x for x in made.ContentSequence if x.ConceptNameCodeSequence[0].CodeValue == "126010")
    (region,) = [
        item for item in measurements.ContentSequence[1].ContentSequence if item.ValueType == "SCOORD"
    ]  # of the nodule
    del region.GraphicType
    made.save_as(tmp_path / "broken.dcm")
    said = errors(tmp_path / "broken.dcm")
    assert any("GraphicType" in line for line in said)
    assert any("CompletionFlag" in line for line in said)
    assert errors_by_dicom_validator((tmp_path / "broken.dcm").read_bytes(), tables)


def test_patient_study_and_evidence_are_the_films_own(film):
    path = film()
    draft = with_findings(drafted(path))
    made, source = read(measured(draft, [path])), pydicom.dcmread(path)
    assert [made[k].value for k in FILE] == [source[k].value for k in FILE]
    assert made.SOPClassUID == ComprehensiveSRStorage
    (study,) = made.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    assert [image.ReferencedSOPInstanceUID for image in series.ReferencedSOPSequence] == [source.SOPInstanceUID]
    stranger = film("other.dcm", seed=4, PatientName="Mallory^Eve")
    with pytest.raises(FilmError, match="not the DICOM film that was drafted") as caught:
        measured(draft, [stranger])
    assert "Mallory" not in str(caught.value)


def test_the_same_input_gives_the_same_file(film):
    path = film()
    draft = with_findings(drafted(path))
    assert measured(draft, [path]) == measured(draft, [path.read_bytes()])


def test_flags_and_observers_are_those_of_the_other_structured_report(film):
    path = film()
    draft = with_findings(drafted(path))
    for report, reader in ((Report.of(draft).accept(0), None), (Report.of(draft).sign(range(5)), READER)):
        both = [write(report, draft, [path], at=AT, reader=reader) for write in (to_dicom_measurements, to_dicom_sr)]
        mine, text = map(read, both)
        for keyword in ("CompletionFlag", "CompletionFlagDescription", "PreliminaryFlag", "VerificationFlag"):
            assert mine[keyword].value == text[keyword].value
        assert mine.get("VerifyingObserverSequence") == text.get("VerifyingObserverSequence")
        assert other.observers(mine) == other.observers(text)
        assert (b"Roe^Jana" in both[0]) == bool(reader)
        assert (NOT_REVIEWED.encode() in both[0]) == (report.signed is None)
        assert b"not a medical device" in both[0]


def test_codes_of_dicom_mean_there_what_they_mean_here():
    """Against pydicom's copy of the standard's context groups, but for those that these do not hold."""
    assert set(CODES) == set(LABELS)
    outside = {"8186001", "46621007", "95436008", "125605004", "233604007"}  # SNOMED CT, in no context group
    known = {"SCT": codes.SCT, "DCM": codes.DCM, "NCIt": codes.NCIt}
    for finding, site in CODES.values():
        for value, scheme, meaning in filter(None, (finding, site)):
            assert len(value) <= 16
            assert len(meaning) <= 64
            if scheme != OWN and value not in outside:
                name = "".join(word[0].upper() + word[1:] for word in meaning.split())
                assert getattr(known[scheme], name) == Code(value, scheme, meaning)


def test_codes_agree_with_those_of_the_fhir_export():
    for label, (_, value, _) in fhir.FINDING_CODES.items():
        assert CODES[label][0][0] == value


# --- what the report says ---------------------------------------------------------------------------------------------


def test_every_finding_of_the_report_comes_back_with_its_evaluation_side_and_probability(film):
    path = film()
    data = measured(with_findings(drafted(path)), [path])
    found = groups(data)
    assert {name: [presence(g) for g in mine] for name, mine in found.items() if name} == {
        "Lesion": ["Present"],
        "Opacity": ["Undetermined"],
        "Pleural effusion": ["Absent"],
        "Pneumothorax": ["Absent"],
        "Cardiomegaly": ["Present"],
    }
    certainty = {"Lesion": 83, "Opacity": 61, "Pleural effusion": 3.1, "Pneumothorax": 1, "Cardiomegaly": 40}
    sides = {"Lesion": "Left", "Opacity": "Right", "Pneumothorax": "Right"}
    for name, value in certainty.items():
        (group,) = found[name]
        (number,) = group.get_measurements()
        assert (number.name.value, number.value, number.unit.value) == ("111012", value, "%")
        assert "99EMRRG" in str(number)
        (site,) = group.finding_sites
        assert (site.laterality.meaning if site.laterality else None) == sides.get(name)
    (ratio,) = found[""][0].get_measurements()
    assert (ratio.name.meaning, ratio.value) == ("Cardiothoracic ratio", 0.527)
    assert b"checkpoint tiny" in data


def test_sentences_stand_with_their_finding_and_are_marked_until_somebody_said_yes(film):
    path = film()
    draft = with_findings(drafted(path))
    found = groups(measured(draft, [path], Report.of(draft).accept(2)))
    assert comments(found["Pleural effusion"][0]) == ["No effusion."]
    assert comments(found["Lesion"][0])[0] == f"[{NOT_REVIEWED}] {SENTENCES[0][0]}"
    assert "no measured border" in comments(found["Lesion"][0])[1]


def test_the_report_as_edited_counts_not_the_draft(film):
    path = film()
    draft = with_findings(drafted(path))
    report = Report.of(draft).delete(0).edit(2, "Small left effusion.").add("findings", "Rib fracture.")
    found = groups(measured(draft, [path], report))
    assert "Lesion" not in found
    assert (presence(found["Pleural effusion"][0]), contour(found["Pleural effusion"][0])) == ("Present", None)
    (fracture,) = found["Fracture of bone"]
    assert fracture.get_measurements() == []  # the draft assessed none


def test_a_denial_without_a_side_denies_both(film):
    path = film()
    draft = with_findings(drafted(path))
    report = Report.of(draft).add("impression", "No pneumothorax.")
    (site,) = groups(measured(draft, [path], report))["Pneumothorax"][0].finding_sites
    assert site.laterality is None


def test_a_normal_report_denies_an_abnormality(film):
    path = film()
    draft = replace(with_findings(drafted(path)), ratio=None)
    (group,) = groups(measured(draft, [path], Report().add("findings", "Normal chest.")))["Abnormality"]
    assert presence(group) == "Absent"
    for more in ("Small effusion.", "Hiatal hernia."):  # one of the labels, and none
        report = Report().add("findings", "Normal heart. No pneumothorax.").add("impression", more)
        assert "Abnormality" not in groups(measured(draft, [path], report))


def test_a_report_that_says_nothing_with_a_code_is_refused_with_advice(film):
    path = film()
    draft = replace(with_findings(drafted(path)), ratio=None)
    with pytest.raises(EmrrgError, match="export it as a DICOM structured report of its sentences"):
        measured(draft, [path], Report().add("findings", "Hello."))


# --- contours ---------------------------------------------------------------------------------------------------------


def inside(ring: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    """(rows, columns) bool: pixels of the file within a ring, by OpenCV, whose pixel centres are whole numbers."""
    mask = np.zeros((header.Rows, header.Columns), np.uint8)
    cv2.fillPoly(mask, [np.round(ring - 0.5).astype(np.int32)], 1)
    return mask.astype(bool)


@pytest.mark.parametrize("of", ["real", "long pixels", "wide pixels"])
def test_a_bright_spot_in_the_file_is_within_the_contour_that_the_film_gives(of, film, tmp_path):
    """All the way: stored pixel → film → squashed to patches → map → contour → the same stored pixel."""
    spacing = {"long pixels": [0.3, 0.15], "wide pixels": [0.15, 0.3]}
    plain = real_film() if of == "real" else film(PixelSpacing=spacing[of], ImagerPixelSpacing=spacing[of])
    header = pydicom.dcmread(plain)
    stored, (rows, columns) = header.pixel_array.copy(), (header.Rows, header.Columns)
    row, column = round(0.25 * rows), round(0.7 * columns)
    size = min(rows, columns) // 20
    stored[row - size : row + size, column - size : column + size] ^= 0x3F0 & ((1 << header.BitsStored) - 1)
    header.PixelData = stored.tobytes()
    if header.file_meta.TransferSyntaxUID.is_compressed:
        header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    changed = tmp_path / "changed.dcm"
    header.save_as(changed)
    one, two = read_film(plain).pixels, read_film(changed).pixels
    assert (one.shape != (rows, columns)) == (of != "real")  # made square
    weights = cv2.resize(np.abs(two - one), (GRID, GRID), interpolation=cv2.INTER_AREA)
    draft = with_findings(drafted(changed), (weights / weights.sum()).ravel())

    (group,) = groups(measured(draft, [changed]))["Lesion"]
    ring = contour(group)
    assert np.array_equal(ring[0], ring[-1])  # closed
    assert (ring >= 0).all()
    assert (ring <= (columns, rows)).all()
    assert inside(ring, header)[row, column]
    assert ring[:-1].mean(axis=0) == pytest.approx((column, row), abs=0.05 * max(rows, columns))
    (image,) = [item for item in group.roi.ContentSequence if item.ValueType == "IMAGE"]
    assert image.referenced_sop_instance_uid == header.SOPInstanceUID


def test_half_of_the_map_lies_within_the_contour_in_the_files_pixels(film):
    path = film()
    header = pydicom.dcmread(path)
    (group,) = groups(measured(with_findings(drafted(path)), [path]))["Lesion"]
    map = cv2.resize(spot(*PLACE).reshape(GRID, GRID), (header.Columns, header.Rows), interpolation=cv2.INTER_NEAREST)
    assert map[inside(contour(group), header)].sum() / map.sum() == pytest.approx(0.5, abs=0.05)


def test_two_regions_are_two_groups_under_one_tracking_uid(film):
    path = film()
    map = spot(0.25, 0.5) + spot(0.75, 0.5)
    mine = groups(measured(with_findings(drafted(path), map / 2), [path]))["Lesion"]
    assert len(mine) == 2
    assert len({group.tracking_uid for group in mine}) == 1
    assert {group.tracking_identifier for group in mine} == {f"Lesion, region {n} of 2, Film 1" for n in (1, 2)}


def test_each_film_has_its_own_contour_and_none_that_was_not_read(film):
    first, second = film(), film("b.dcm", seed=4)
    draft = with_findings(drafted(first, second), spot(0.3, 0.3), spot(0.7, 0.6))
    rings = [contour(group) for group in groups(measured(draft, [first, second]))["Lesion"]]
    assert [ring[:-1].mean(axis=0) / (128, 160) for ring in rings] == [
        pytest.approx((0.3, 0.3), abs=0.02),
        pytest.approx((0.7, 0.6), abs=0.02),
    ]
    shown = replace(draft, films=(draft.films[0], replace(draft.films[1], read=False)))
    assert len(groups(measured(shown, [first, second]))["Lesion"]) == 1


def test_a_stitched_film_has_the_part_of_the_map_that_lies_on_it(film):
    first, second = film(), film("b.dcm", seed=4)
    draft = drafted(first, second)
    halves = ((0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0))  # left and right half of the canvas
    films = tuple(replace(record, place=place) for record, place in zip(draft.films, halves, strict=True))
    map = spot(0.75, 0.4)
    draft = with_findings(replace(draft, films=films), map, map)
    (group,) = groups(measured(draft, [first, second]))["Lesion"]
    (image,) = [item for item in group.roi.ContentSequence if item.ValueType == "IMAGE"]
    assert image.referenced_sop_instance_uid == pydicom.dcmread(second).SOPInstanceUID
    assert contour(group)[:-1].mean(axis=0) / (128, 160) == pytest.approx((0.5, 0.4), abs=0.02)


@pytest.mark.parametrize(
    ("why", "finding", "report"),
    [
        ("not read as present", {"presence": Presence.OPEN}, None),
        ("on the other side", {"side": "right"}, None),
        ("on no side", {"side": ""}, None),
        ("denied", {}, "No nodule."),
        ("without a map", {"maps": ()}, None),
        ("an even map", {"maps": (np.full(GRID**2, 1 / GRID**2, np.float32),)}, None),
    ],
)
def test_no_contour_rather_than_a_wrong_one(why, finding, report, film):
    path = film()
    draft = with_findings(drafted(path))
    draft = replace(draft, read=(replace(draft.read[0], **finding),))
    (group,) = groups(measured(draft, [path], Report.of(draft).edit(0, report) if report else None))["Lesion"]
    assert contour(group) is None, why


def test_a_film_of_another_geometry_than_its_file_has_no_contour(film):
    path = film()
    draft = with_findings(drafted(path))
    record = draft.films[0]
    turned = replace(draft, films=(replace(record, height=record.width, width=record.height),))
    (group,) = groups(measured(turned, [path]))["Lesion"]
    assert contour(group) is None


def test_a_picture_has_findings_and_refers_to_no_image(tmp_path):
    path = tmp_path / "film.png"
    make_phantom(3, height=256, width=224).save_png(path)
    data = measured(with_findings(drafted(path)), [path])
    found = groups(data)
    assert {"Lesion", "Opacity", "Pleural effusion"} < set(found)
    assert all(contour(group) is None for mine in found.values() for group in mine)
    assert "Evidence Sequence" not in str(read(data))
    assert "'IMAGE'" not in str(read(data))
