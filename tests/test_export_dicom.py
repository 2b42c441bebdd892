"""DICOM exports: files that other systems take, that refer to the film they were made from, and that name nobody wrongly."""

import ast
import json
import logging
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from importlib import resources
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_validator.spec_reader.edition_reader import EditionReader
from dicom_validator.validator.dicom_info import DicomInfo
from dicom_validator.validator.error_handler import NullValidationResultHandler, ValidationResultFormatter
from dicom_validator.validator.iod_validator import IODValidator
from highdicom.sr import ContentSequence
from pydicom.data import get_testdata_file
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import BasicTextSRStorage, EncapsulatedPDFStorage, SecondaryCaptureImageStorage

from emrrg_core.errors import FilmError
from emrrg_core.export.dicom import device_uid
from emrrg_core.export.dicom_capture import to_dicom_capture
from emrrg_core.export.dicom_pdf import to_dicom_pdf
from emrrg_core.export.dicom_sr import Reader, to_dicom_sr
from emrrg_core.films.film import read_film
from emrrg_core.report.draft import NOT_REVIEWED, Draft, FilmRecord, Sentence
from emrrg_core.report.report import Report
from tests.phantom import make_phantom

AT = datetime(2026, 11, 22, 9, 30, 5, tzinfo=timezone(timedelta(hours=1)))
READER = Reader("Roe^Jana", "Clinic")
PDF = b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF"
SENTENCES = (
    ("There is a nodule, 2 × 3 cm, in the left upper zone.", "findings"),
    ("No effusion.", "findings"),
    ("Nodule on the left.", "impression"),
)
MODEL = {
    "checkpoint": "tiny",
    "checkpoint_sha256": "ab" * 32,
    "settings_sha256": "ef" * 32,
    "language_model": "tiny-llama",
    "language_model_sha256": "cd" * 32,
}
DOCUMENTS = ("sr", "signed sr", "full sr", "pdf", "capture")
WHO = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")
STUDY = ("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName")


def drafted(*paths: Path) -> Draft:
    """A draft of these films."""
    records = []
    for number, path in enumerate(paths, 1):
        film = read_film(path, name=f"Film {number}")
        size = film.pixels.shape
        records.append(FilmRecord(film.name, film.format, film.sha256, *size, film.spacing, film.view, film.steps))
    sentences = tuple(Sentence(text, section, 0, len(text), (0, 1), 0.5, ()) for text, section in SENTENCES)
    return Draft("", "", sentences, (), (), 14, tuple(records), (), {}, MODEL, {"seed": 0}, True)


def signed(draft: Draft) -> Report:
    return Report.of(draft).accept(0).edit(1, "No pleural effusion.").sign([2])


def full(report: Report) -> Report:
    """With all that may stand before the Findings."""
    words = {"technique": "PA & lateral\nviews <é 张>.", "comparison": "None.", "indication": "Cough."}
    for name, text in words.items():
        report = report.with_field(name, text)
    return report


def read(data: bytes) -> Dataset:
    return pydicom.dcmread(BytesIO(data))


def real_film() -> Path:
    pytest.importorskip("data_store", reason="pydicom-data carries the real films")
    return Path(get_testdata_file("RG1_UNCR.dcm", download=False))


def all_of(draft: Draft, films: list[Path]) -> dict[str, bytes]:
    height, width = draft.films[0].height // 4, draft.films[0].width // 4
    picture = np.arange(height * width * 3, dtype=np.uint32).astype(np.uint8).reshape(height, width, 3)
    report = Report.of(draft)
    return {
        "sr": to_dicom_sr(report, draft, films, at=AT),
        "signed sr": to_dicom_sr(signed(draft), draft, films, at=AT, reader=READER),
        "full sr": to_dicom_sr(full(signed(draft).unsign()).sign(), draft, films, at=AT, reader=READER),
        "pdf": to_dicom_pdf(PDF, report, draft, films, at=AT),
        "capture": to_dicom_capture(picture, draft, films, film=0, sentence=0, at=AT),
    }


@pytest.fixture(scope="module")
def real() -> dict[str, bytes]:
    """Every export of a draft of a real film."""
    return all_of(drafted(real_film()), [real_film()])


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> dict[str, bytes]:
    """Every export of a draft of a picture without any header."""
    path = tmp_path_factory.mktemp("picture") / "film.png"
    make_phantom(3, height=256, width=224).save_png(path)
    return all_of(drafted(path), [path])


@pytest.fixture(params=["real", "bare"])
def exports(request) -> dict[str, bytes]:
    return request.getfixturevalue(request.param)


@pytest.fixture
def film(tmp_path):
    """Saves a phantom's DICOM file, its header changed: None takes an element away."""

    def save(name: str = "film.dcm", seed: int = 3, **elements: object) -> Path:
        path = tmp_path / name
        make_phantom(seed, height=160, width=128).save_dicom(path)
        header = pydicom.dcmread(path)
        for keyword, value in elements.items():
            if value is None:
                delattr(header, keyword)
            else:
                setattr(header, keyword, value)
        header.save_as(path)
        return path

    return save


# --- the standard -----------------------------------------------------------------------------------------------------


def errors_by_dciodvfy(data: bytes, folder: Path) -> list[str]:
    """What Clunie's validator, which knows conditions, value sets and content trees, holds against a file."""
    path = folder / "export.dcm"
    path.write_bytes(data)
    done = subprocess.run([Path(sys.executable).parent / "dciodvfy", path], capture_output=True, text=True)
    said = (done.stdout + done.stderr).splitlines()
    assert {"BasicTextSR", "EncapsulatedPDF", "SCImage"} & set(said), said  # it knew the kind of file
    return [line for line in said if not line.startswith("Warning") and line not in KINDS]


KINDS = ("BasicTextSR", "EncapsulatedPDF", "SCImage")


@pytest.fixture(scope="module")
def tables() -> DicomInfo:
    """dicom-validator's tables: its own where it has once fetched the standard, else the same attributes from highdicom's
    copy of the standard, without conditions and value sets (which dciodvfy checks)."""
    reader = EditionReader()
    if fetched := sorted(path.name for path in reader.path.glob("2*") if reader.json_files_exist(path.name)):
        return reader.load_dicom_info(fetched[-1])
    folder = resources.files("highdicom") / "_standard"
    kinds, modules, attributes = (
        json.loads((folder / f"{name}.json").read_text())
        for name in ("sop_class_iod_map", "iod_module_map", "module_attribute_map")
    )
    kinds = {uid: kinds[uid] for uid in (BasicTextSRStorage, EncapsulatedPDFStorage, SecondaryCaptureImageStorage)}
    found: dict[str, dict] = {}
    for module in {part["key"] for name in kinds.values() for part in modules[name]}:
        found[module] = {}
        for row in attributes[module]:
            where, reached = found[module], True
            for keyword in row["path"]:
                reached = reached and key(keyword) in where
                if reached:
                    where = where[key(keyword)].setdefault("items", {})
            if reached and key(row["keyword"]):
                # which parts of a content item there are hangs on its value type, a condition that this copy does not have
                level = "3" if module == "sr-document-content" and row["keyword"] != "ValueType" else row["type"]
                where[key(row["keyword"])] = {"name": row["keyword"], "type": level}
    items = found["sr-document-content"][key("ContentSequence")]  # items within items, to any depth
    items["items"][key("ContentSequence")] = items
    iods = {
        uid: {
            "title": name,
            "modules": {part["key"]: {"ref": part["key"], "use": part["usage"]} for part in modules[name]},
            "group_macros": {},
        }
        for uid, name in kinds.items()
    }
    return DicomInfo({}, iods, found)


def key(keyword: str) -> str:
    tag = tag_for_keyword(keyword)
    return "" if tag is None else f"({Tag(tag).group:04X},{Tag(tag).element:04X})"


def errors_by_dicom_validator(data: bytes, tables: DicomInfo) -> list[str]:
    result = IODValidator(read(data), tables, error_handler=NullValidationResultHandler()).validate()
    words = ValidationResultFormatter(tables.dictionary)
    rows = [(module, tag, error) for module, tags in result.module_errors.items() for tag, error in tags.items()]
    assert len(rows) == result.errors
    return [f"{module}: {tag}{words.error_message(error)}" for module, tag, error in rows]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_export_satisfies_dciodvfy(exports, document, tmp_path):
    assert errors_by_dciodvfy(exports[document], tmp_path) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_export_satisfies_dicom_validator(exports, document, tables):
    assert errors_by_dicom_validator(exports[document], tables) == []


@pytest.mark.parametrize(
    ("document", "keyword"),
    [("sr", "CompletionFlag"), ("pdf", "BurnedInAnnotation"), ("capture", "ConversionType"), ("sr", "PatientID")],
)
def test_the_validators_notice_a_missing_element(bare, document, keyword, tables, tmp_path):
    broken = read(bare[document])
    delattr(broken, keyword)
    buffer = BytesIO()
    broken.save_as(buffer)
    assert errors_by_dciodvfy(buffer.getvalue(), tmp_path)
    assert errors_by_dicom_validator(buffer.getvalue(), tables)


def test_the_exports_of_a_film_fit_into_its_study(real, tmp_path):
    """dcentvfy compares patient, study, series and equipment over all files of a study."""
    paths = [tmp_path / name.replace(" ", "-") for name in real]
    for path, data in zip(paths, real.values(), strict=True):
        path.write_bytes(data)
    compare = [Path(sys.executable).parent / "dcentvfy", real_film(), *paths]
    done = subprocess.run(compare, capture_output=True, text=True, check=True)
    # the standard itself has the accession number in two places; nothing else differs
    left = [line for line in (done.stdout + done.stderr).splitlines() if "<AccessionNumber> IE" not in line]
    assert left == []


def test_every_export_is_explicit_little_endian_for_research_and_says_what_made_it(exports):
    for data in exports.values():
        made = read(data)
        assert data[128:132] == b"DICM"
        assert made.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
        assert made.ContentQualification == "RESEARCH"
        assert made.Manufacturer == "EMRRG"
        assert made.DeviceSerialNumber == "ab" * 32
        assert made.SoftwareVersions[1] == "tiny"


# --- whose it is ------------------------------------------------------------------------------------------------------


def test_patient_and_study_are_the_films_own(real):
    source = pydicom.dcmread(real_film(), stop_before_pixels=True)
    for data in real.values():
        made = read(data)
        assert [made[keyword].value for keyword in (*WHO, *STUDY)] == [source[k].value for k in (*WHO, *STUDY)]
        assert made.StudyDescription == "THORAX"
        assert "FrameOfReferenceUID" not in made


def test_a_picture_has_no_patient_and_none_is_invented(bare):
    made = [read(data) for data in bare.values()]
    for file in made:
        assert [file[keyword].value or "" for keyword in (*WHO, *STUDY[1:])] == [""] * 9
        text = str(file)
        assert "Evidence Sequence" not in text
        assert "Source Image Sequence" not in text
        assert "Source Instance Sequence" not in text
        assert "Value Type                          CS: 'IMAGE'" not in text
    assert len({file.StudyInstanceUID for file in made}) == 1
    assert len({file.SeriesInstanceUID for file in made}) == len(made)
    assert len({file.SOPInstanceUID for file in made}) == len(made)
    uids = [uid for file in made for uid in (file.StudyInstanceUID, file.SeriesInstanceUID, file.SOPInstanceUID)]
    assert all(uid.is_valid and uid.startswith("2.25.") for uid in uids)


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 100", "Müller^Jürgen"),
        ("ISO_IR 144", "Люкceмбypг^Роза"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["ISO 2022 IR 13", "ISO 2022 IR 87"], "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        ("ISO_IR 192", "Ⅎ^Zoë"),
    ],
)
def test_names_in_any_script_arrive_in_unicode(film, charset, name):
    path = film()
    header = pydicom.dcmread(path)
    header.SpecificCharacterSet = charset
    header.PatientName, header.ReferringPhysicianName, header.OtherPatientNames = name, name, [name, "Doe^A"]
    first = name.split("^")[0]
    item, institution = Dataset(), Dataset()
    institution.CodeValue, institution.CodingSchemeDesignator, institution.CodeMeaning = "1", "99X", first
    item.PersonIdentificationCodeSequence, item.InstitutionName = [institution], first
    item.SpecificCharacterSet = charset
    header.ReferringPhysicianIdentificationSequence = [item]
    header.save_as(path)
    assert "ISO_IR 192" in str(charset) or name.encode() not in path.read_bytes()

    draft = drafted(path)
    for data in (
        to_dicom_sr(Report.of(draft), draft, [path], at=AT),
        to_dicom_pdf(PDF, Report.of(draft), draft, [path], at=AT),
    ):
        made = read(data)
        assert made.SpecificCharacterSet == "ISO_IR 192"
        assert name.encode() in data
        assert (str(made.PatientName), str(made.ReferringPhysicianName)) == (name, name)
        assert [str(other) for other in made.OtherPatientNames] == [name, "Doe^A"]
        person = made.ReferringPhysicianIdentificationSequence[0]
        assert "SpecificCharacterSet" not in person
        assert person.InstitutionName == person.PersonIdentificationCodeSequence[0].CodeMeaning == first


def test_a_film_of_another_patient_never_lends_its_name(film):
    mine, other = film(), film("other.dcm", seed=4, PatientName="Mallory^Eve")
    draft = drafted(mine)
    for wrong in (other, other.read_bytes(), b"no film", None):
        with pytest.raises(FilmError, match="not the DICOM film that was drafted") as caught:
            to_dicom_sr(Report.of(draft), draft, [wrong], at=AT)
        assert "Mallory" not in str(caught.value)
    with pytest.raises(ValueError, match="1 films, not 2"):
        to_dicom_sr(Report.of(draft), draft, [mine, other], at=AT)


def test_films_of_two_patients_are_refused(film):
    films = [film(), film("other.dcm", seed=4, PatientID="4712")]
    draft = drafted(*films)
    with pytest.raises(FilmError, match="different patients") as caught:
        to_dicom_sr(Report.of(draft), draft, films, at=AT)
    assert "4712" not in str(caught.value)


def test_a_films_content_serves_as_well_as_its_path(film):
    path = film()
    draft = drafted(path)
    report = Report.of(draft)
    assert to_dicom_sr(report, draft, [path], at=AT) == to_dicom_sr(report, draft, [path.read_bytes()], at=AT)


def test_a_film_without_identifiers_gives_a_study_of_its_own_and_no_reference(film):
    path = film(StudyInstanceUID=None, SeriesInstanceUID=None)
    draft = drafted(path)
    made = read(to_dicom_sr(Report.of(draft), draft, [path], at=AT))
    assert made.StudyInstanceUID.startswith("2.25.")
    assert made.PatientID == "PHANTOM"
    assert "CurrentRequestedProcedureEvidenceSequence" not in made


def test_headers_that_break_the_rules_are_copied_without_a_word(film, caplog):
    """Warnings quote what they warn about; every warning fails a test here."""
    path = film()
    header = pydicom.dcmread(path)
    with pydicom.config.disable_value_validation():
        header.PatientBirthDate, header.AccessionNumber, header.PatientName = "Mallory 1940", "A" * 30, "Mallory^" * 9
        header.save_as(path)
    draft = drafted(path)
    with caplog.at_level(logging.DEBUG):
        for data in all_of(draft, [path]).values():
            with pydicom.config.disable_value_validation():
                assert read(data).PatientBirthDate == "Mallory 1940"
    assert "Mallory" not in caplog.text


# --- when it was made -------------------------------------------------------------------------------------------------


def test_times_are_in_the_zone_of_the_films(real, bare, film):
    def when(data: bytes) -> tuple[str, str, str | None]:
        made = read(data)
        return made.ContentDate, made.ContentTime, made.get("TimezoneOffsetFromUTC")

    assert when(real["sr"]) == ("20261122", "043005", "-0400")  # the film's header says -0400
    assert when(bare["sr"]) == ("20261122", "093005", "+0100")
    # where the film does not say its zone, ours must not be taken for that of the copied Study Time
    path = film(StudyDate="20261122", StudyTime="080000")
    draft = drafted(path)
    pdf = to_dicom_pdf(PDF, Report.of(draft), draft, [path], at=AT)
    assert when(pdf) == ("20261122", "093005", None)
    assert read(pdf).AcquisitionDateTime == "20261122093005+0100"
    with pytest.raises(ValueError, match="time zone"):
        to_dicom_sr(Report.of(draft), draft, [path], at=AT.replace(tzinfo=None))


def test_the_same_input_gives_the_same_file_and_another_one_another_instance(film):
    path = film()
    draft = drafted(path)
    report = Report.of(draft)
    once, again, edited = (to_dicom_sr(r, draft, [path], at=AT) for r in (report, report, report.accept(0)))
    assert once == again
    first, second = read(once), read(edited)
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SeriesInstanceUID != second.SeriesInstanceUID
    assert first.StudyInstanceUID == second.StudyInstanceUID == pydicom.dcmread(path).StudyInstanceUID


# --- the structured report --------------------------------------------------------------------------------------------


def tree(made: Dataset) -> dict[str, list[Dataset]]:
    """Heading -> its content items, read by highdicom, which checks each against its value type."""
    root = Dataset()
    for keyword in ("ValueType", "ConceptNameCodeSequence", "ContinuityOfContent", "ContentSequence"):
        root[keyword] = made[keyword]
    (content,) = ContentSequence.from_sequence([root], is_root=True)
    return {
        item.name.meaning: list(item.ContentSequence)
        for item in content.ContentSequence
        if item.relationship_type.value == "CONTAINS"
    }


def observers(made: Dataset) -> dict[str, str]:
    rows = [item for item in made.ContentSequence if item.RelationshipType == "HAS OBS CONTEXT"]
    return {
        item.ConceptNameCodeSequence[0].CodeMeaning: str(item.get("TextValue") or item.get("PersonName") or "")
        for item in rows
    }


def test_every_sentence_is_a_text_item_and_marked_until_somebody_said_yes_to_it(film):
    path = film()
    draft = drafted(path)
    report = Report.of(draft).accept(0).delete(1).add("findings", "Old rib fracture <&> é.")
    made = read(to_dicom_sr(report, draft, [path], at=AT))
    said = {heading: [item.TextValue for item in items] for heading, items in tree(made).items()}
    assert said["Findings"] == ["Old rib fracture <&> é.", SENTENCES[0][0]]
    assert said["Impressions"] == [f"[{NOT_REVIEWED}] {SENTENCES[2][0]}"]
    assert said["Summary"][0] == NOT_REVIEWED
    assert "not a medical device" in said["Summary"][1]
    assert made.ContentTemplateSequence[0].TemplateIdentifier == "2000"
    assert (made.CompletionFlag, made.PreliminaryFlag, made.VerificationFlag) == (
        "PARTIAL",
        "PRELIMINARY",
        "UNVERIFIED",
    )
    assert made.CompletionFlagDescription == "Not signed; 1 of 3 sentences not reviewed"
    assert observers(made) == {
        "Observer Type": "",
        "Device Observer UID": "",
        "Device Observer Name": "EMRRG",
        "Device Observer Manufacturer": "EMRRG",
        "Device Observer Model Name": "tiny",
    }


def test_indication_comparison_and_technique_are_sections_of_their_own_under_the_standards_headings(film):
    """PS3.16, CID 7001, in the order of a report: the template leaves the order of its sections free."""
    path = film()
    draft = drafted(path)
    made = read(to_dicom_sr(full(Report.of(draft)), draft, [path], at=AT))
    found = tree(made)
    assert list(found) == [
        "Summary",
        "Indications for Procedure",
        "Prior Procedure Descriptions",
        "Current Procedure Descriptions",
        "Findings",
        "Impressions",
    ]
    said = {heading: [item.TextValue for item in items] for heading, items in found.items()}
    assert said["Indications for Procedure"] == ["Cough."]
    assert said["Prior Procedure Descriptions"] == ["None."]
    assert said["Current Procedure Descriptions"] == ["PA & lateral views <é 张>."]
    headings = [item.ConceptNameCodeSequence[0] for item in made.ContentSequence if item.ValueType == "CONTAINER"]
    codes = [(code.CodeValue, code.CodingSchemeDesignator) for code in headings]
    assert codes[1:4] == [("18785-6", "LN"), ("55114-3", "LN"), ("55111-9", "LN")]
    one = read(to_dicom_sr(Report.of(draft).with_field("technique", "PA."), draft, [path], at=AT))
    assert list(tree(one)) == ["Summary", "Current Procedure Descriptions", "Findings", "Impressions"]


def test_a_report_without_a_sentence_is_still_a_document(film, tmp_path):
    path = film()
    draft = drafted(path)
    data = to_dicom_sr(Report(), draft, [path], at=AT)
    assert list(tree(read(data))) == ["Summary"]
    assert errors_by_dciodvfy(data, tmp_path) == []


def test_only_a_named_reader_who_signed_verifies(film):
    path = film()
    draft = drafted(path)
    report = signed(draft)
    alone, named, early = (
        read(to_dicom_sr(r, draft, [path], at=AT, reader=reader))
        for r, reader in ((report, None), (report, READER), (Report.of(draft), READER))
    )
    flags = [(made.CompletionFlag, made.PreliminaryFlag, made.VerificationFlag) for made in (alone, named, early)]
    assert flags == [
        ("COMPLETE", "FINAL", "UNVERIFIED"),
        ("COMPLETE", "FINAL", "VERIFIED"),
        ("PARTIAL", "PRELIMINARY", "UNVERIFIED"),
    ]
    (observer,) = named.VerifyingObserverSequence
    assert (str(observer.VerifyingObserverName), observer.VerifyingOrganization) == ("Roe^Jana", "Clinic")
    when = datetime.strptime(observer.VerificationDateTime, "%Y%m%d%H%M%S%z")
    assert when == datetime.fromisoformat(report.signed).replace(microsecond=0)
    assert observers(named)["Person Observer Name"] == "Roe^Jana"
    for made in (alone, early):
        assert "VerifyingObserverSequence" not in made
        assert "Roe" not in str(made)
    assert NOT_REVIEWED not in str(named)
    assert f"Signed off {report.signed} by Jana Roe." in tree(named)["Summary"][0].TextValue
    for name, organization in (("", "Clinic"), ("Roe^Jana", " "), ("^", "Clinic"), ("Roe\\Doe", "Clinic")):
        with pytest.raises(ValueError, match="needs a name"):
            Reader(name, organization)


def test_sentences_point_to_the_images_and_the_evidence_lists_them(film):
    now, lateral, prior = film(), film("b.dcm", seed=4), film("c.dcm", seed=5, StudyInstanceUID="1.2.3.4")
    first = pydicom.dcmread(now)
    second = pydicom.dcmread(lateral)
    second.StudyInstanceUID = first.StudyInstanceUID
    second.save_as(lateral)
    draft = drafted(now, lateral, prior)
    made = read(to_dicom_sr(Report.of(draft), draft, [now, lateral, prior], at=AT))
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in (now, lateral, prior)]
    for item in (*tree(made)["Findings"], *tree(made)["Impressions"]):
        assert [image.referenced_sop_instance_uid for image in item.ContentSequence] == uids
        assert {image.relationship_type.value for image in item.ContentSequence} == {"INFERRED FROM"}

    def listed(sequence: list[Dataset]) -> list[tuple[str, str, str]]:
        return [
            (study.StudyInstanceUID, series.SeriesInstanceUID, image.ReferencedSOPInstanceUID)
            for study in sequence
            for series in study.ReferencedSeriesSequence
            for image in series.ReferencedSOPSequence
        ]

    assert listed(made.CurrentRequestedProcedureEvidenceSequence) == [
        (first.StudyInstanceUID, first.SeriesInstanceUID, uids[0]),
        (first.StudyInstanceUID, second.SeriesInstanceUID, uids[1]),
    ]
    (elsewhere,) = listed(made.PertinentOtherEvidenceSequence)
    assert (elsewhere[0], elsewhere[2]) == ("1.2.3.4", uids[2])


# --- the PDF ----------------------------------------------------------------------------------------------------------


def test_the_pdf_comes_back_as_it_went_in(real, bare):
    for exports in (real, bare):
        made = read(exports["pdf"])
        assert made.EncapsulatedDocumentLength == len(PDF)
        assert bytes(made.EncapsulatedDocument)[: len(PDF)] == PDF
        assert bytes(made.EncapsulatedDocument)[len(PDF) :] in (b"", b"\0")
        assert made.MIMETypeOfEncapsulatedDocument == "application/pdf"
        assert made.DocumentTitle == f"Chest X-ray report ({NOT_REVIEWED})"
        assert made.VerificationFlag == "UNVERIFIED"
    (source,) = read(real["pdf"]).SourceInstanceSequence
    assert source.ReferencedSOPInstanceUID == pydicom.dcmread(real_film(), stop_before_pixels=True).SOPInstanceUID


def test_a_pdf_of_unknown_content_is_taken_to_show_the_patient(film):
    path = film()
    draft = drafted(path)
    report = Report.of(draft)
    said = [
        read(to_dicom_pdf(PDF, report, draft, [path], at=AT, burned_in=known)).BurnedInAnnotation
        for known in (None, True, False)
    ]
    assert said == ["YES", "YES", "NO"]
    with pytest.raises(ValueError, match="no PDF"):
        to_dicom_pdf(b"<html>", report, draft, [path], at=AT)


# --- the heat map -----------------------------------------------------------------------------------------------------


def capture(path: Path, size: tuple[int, int], **options: object) -> Dataset:
    draft = drafted(path)
    picture = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    made = read(to_dicom_capture(picture, draft, [path], film=0, sentence=0, at=AT, **options))
    assert np.array_equal(made.pixel_array, picture)
    return made


def test_the_capture_shows_the_picture_and_says_what_it_is(film):
    path = film()
    made = capture(path, (161, 127))  # an odd number of bytes
    assert list(made.ImageType) == ["DERIVED", "SECONDARY"]
    assert "not a medical device" in made.DerivationDescription
    assert SENTENCES[0][0] in made.DerivationDescription
    (source,) = made.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == pydicom.dcmread(path).SOPInstanceUID
    assert list(made.PatientOrientation) == ["L", "F"]
    assert "BurnedInAnnotation" not in made
    assert capture(path, (161, 127), burned_in=True).BurnedInAnnotation == "YES"
    for wrong in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((8, 8, 4), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            to_dicom_capture(wrong, drafted(path), [path], film=0, sentence=None, at=AT)


def test_a_spacing_is_written_only_where_it_is_true_of_the_picture(film):
    path = film(PixelSpacing=[0.2, 0.2], PixelSpacingCalibrationType="GEOMETRY", PixelSpacingCalibrationDescription="x")
    assert list(capture(path, (160, 128)).PixelSpacing) == [0.2, 0.2]
    half = capture(path, (80, 64))
    assert list(half.PixelSpacing) == [0.4, 0.4]
    assert half.PixelSpacingCalibrationType == "GEOMETRY"
    assert "PixelSpacing" not in capture(path, (160, 148))  # a legend beside the film
    turned = capture(path, (160, 128), turned=True)
    assert "PixelSpacing" not in turned
    assert not turned.PatientOrientation
    # the phantom's own header has the spacing at the detector, which is not the patient's
    assert "PixelSpacing" not in capture(film(), (160, 128))


def test_what_was_lost_by_compression_stays_said(film):
    made = capture(film(LossyImageCompression="01", LossyImageCompressionRatio=10), (160, 128))
    assert (made.LossyImageCompression, made.LossyImageCompressionRatio) == ("01", 10)
    assert "LossyImageCompression" not in capture(film(), (160, 128))


# --- the house --------------------------------------------------------------------------------------------------------


def test_highdicom_is_not_imported_before_a_report_is_exported():
    for path in (Path(__file__).parent.parent / "emrrg_core" / "export").glob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        early = [ast.unparse(node) for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert not [line for line in early if "highdicom" in line], path.name


def test_a_device_is_its_weights_under_their_settings(film):
    draft = drafted(film())
    assert device_uid(draft) == device_uid(drafted(film(seed=4)))
    older = {name: value for name, value in MODEL.items() if name != "settings_sha256"}
    others = [older, MODEL | {"settings_sha256": "01" * 32}, MODEL | {"checkpoint_sha256": "01" * 32}]
    uids = {device_uid(draft), *(device_uid(replace(draft, model=model)) for model in others)}
    assert len(uids) == 4
