"""What is dropped is sorted into studies by what headers say; patients are never mixed; a hostile zip does no harm; no name gets out."""

import io
import logging
import os
import random
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from emrrg_core.films import arrivals
from emrrg_core.films.arrivals import Arrived, in_words, sort
from emrrg_core.films.film import read_film
from tests.test_films import EIGHT_BITS, header, saved

Make = Callable[..., Path]


@pytest.fixture
def dicom(tmp_path) -> Make:
    """Saves a small film of the given header; each has other pixels."""
    made = iter(range(100))

    def build(**elements: Any) -> Path:
        number = next(made)
        known = {"StudyInstanceUID": "1.2.3", "ViewPosition": "PA", **elements}
        known = {keyword: value for keyword, value in known.items() if value is not None or keyword == "PatientID"}
        path = tmp_path / f"Doe_Jane_{number}"
        return saved(header(np.roll(EIGHT_BITS, number, axis=1) + np.uint8(number), **known), path)

    return build


@pytest.fixture
def picture(tmp_path) -> Make:
    made = iter(range(100))

    def build(where: str = "") -> Path:
        number = next(made)
        path = tmp_path / (where or f"picture{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(EIGHT_BITS, 3 * number, axis=0)).save(path, "PNG")
        return path

    return build


@pytest.fixture
def packed(tmp_path) -> Make:
    """A zip of (name, path or bytes)."""

    def build(*members: tuple[str | zipfile.ZipInfo, Path | bytes], **options: Any) -> Path:
        path = tmp_path / f"{random.random()}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as target:
            for name, content in members:
                target.writestr(name, content if isinstance(content, bytes) else content.read_bytes())
        return path

    return build


def real(name: str) -> Path:
    return Path(str(get_testdata_file(name, download=False)))


def names(arrived: Arrived) -> list[list[str]]:
    return [[one.name for one in study.films] for study in arrived.studies]


def rules(arrived: Arrived) -> dict[str, str]:
    return {one.name: one.rule for one in arrived.left_out}


# --- studies -------------------------------------------------------------------------------------------------------------


def test_films_of_one_study_hang_pa_ap_unknown_lateral(dicom):
    views = ("LATERAL", None, "AP", "PA")
    arrived = sort([dicom(ViewPosition=view) for view in views])
    assert names(arrived) == [["File 4", "File 3", "File 2", "File 1"]]
    assert [one.film.view for one in arrived.studies[0].films if one.film] == ["PA", "AP", None, "LATERAL"]
    assert arrived.left_out == ()


def test_a_film_is_what_read_film_makes_of_its_file(dicom):
    path = dicom()
    (arrival,) = sort([path]).studies[0].films
    alone = read_film(path, name="File 1")
    assert arrival.film is not None
    assert arrival.film.sha256 == alone.sha256
    assert arrival.film.steps == alone.steps
    assert arrival.film.name == "File 1"
    assert arrival.source == path


def test_more_than_four_films_are_kept(dicom):
    assert len(sort([dicom() for _ in range(6)]).studies[0].films) == 6


def test_studies_of_one_patient_are_newest_first_and_the_older_ones_are_priors(dicom):
    dates = ("20200101", "20230101", "20221231", None)
    arrived = sort([dicom(StudyInstanceUID=f"1.{n}", StudyDate=day) for n, day in enumerate(dates, 1)])
    assert names(arrived) == [["File 2"], ["File 3"], ["File 1"], ["File 4"]]
    assert [study.earlier for study in arrived.studies] == [(1, 2), (2,), (), ()]
    assert [study.days_before for study in arrived.studies] == [None, 1, 1096, None]
    assert {study.patient for study in arrived.studies} == {0}


def test_on_one_day_only_the_time_tells_which_study_was_earlier(dicom):
    times = ("081500", "0931", None)
    arrived = sort([dicom(StudyInstanceUID=f"1.{n}", StudyDate="20230101", StudyTime=t) for n, t in enumerate(times)])
    found = {study.films[0].name: study for study in arrived.studies}
    place = {study.films[0].name: n for n, study in enumerate(arrived.studies)}
    assert found["File 2"].earlier == (place["File 1"],)
    assert found["File 3"].earlier == ()
    assert all(place["File 3"] not in study.earlier for study in arrived.studies)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"PatientID": "1"}, {"PatientID": "2"}),
        ({"PatientID": None}, {"PatientID": None}),
        ({"PatientID": "anonymous"}, {"PatientID": "anonymous"}),
        ({"PatientID": "000"}, {"PatientID": "000"}),
        ({"IssuerOfPatientID": "A"}, {"IssuerOfPatientID": "B"}),
        ({"IssuerOfPatientID": "A"}, {}),
        ({"PatientBirthDate": "19500101"}, {"PatientBirthDate": "19500102"}),
        ({"PatientSex": "F"}, {"PatientSex": "M"}),
        ({"PatientName": "Doe^Jane"}, {"PatientName": "Roe^Richard"}),
    ],
)
def test_nothing_that_speaks_against_it_is_taken_for_one_patient(dicom, one, other):
    arrived = sort(
        [
            dicom(StudyInstanceUID="1.1", StudyDate="20200101", **one),
            dicom(StudyInstanceUID="1.2", StudyDate="20210101", **other),
        ]
    )
    assert [study.patient for study in arrived.studies] == [0, 1]
    assert [study.earlier for study in arrived.studies] == [(), ()]
    assert [study.days_before for study in arrived.studies] == [None, None]


@pytest.mark.parametrize(
    "differs", [{"PatientID": "2"}, {"PatientSex": "M"}, {"PatientID": None}, {"PatientName": "Roe^Richard"}]
)
def test_two_patients_are_not_mixed_though_their_study_uid_is_the_same(dicom, differs):
    arrived = sort([dicom(PatientSex="F"), dicom(**differs)])
    assert names(arrived) == [["File 1"], ["File 2"]]
    assert [study.patient for study in arrived.studies] == [0, 1]


def test_patients_come_in_the_order_in_which_they_were_dropped(dicom):
    known = [("2", "20200101"), ("1", "20190101"), ("2", "20210101"), ("1", "20220101")]
    paths = [dicom(StudyInstanceUID=f"1.{n}", PatientID=who, StudyDate=day) for n, (who, day) in enumerate(known)]
    arrived = sort(paths)
    assert names(arrived) == [["File 3"], ["File 1"], ["File 4"], ["File 2"]]
    assert [study.patient for study in arrived.studies] == [0, 0, 1, 1]
    assert [study.earlier for study in arrived.studies] == [(1,), (), (3,), ()]


def test_pictures_are_one_study_but_for_those_in_other_folders(picture, dicom):
    paths = [picture(), picture(), picture(), dicom()]
    assert names(sort(paths)) == [["File 1", "File 2", "File 3"], ["File 4"]]
    apart = sort(paths, names=["a/1.png", "b\\1.png", "a/2.png", "a/IM1"])
    assert names(apart) == [["File 1", "File 3"], ["File 2"], ["File 4"]]
    assert [study.patient for study in apart.studies] == [0, 1, 2]


def test_films_without_a_study_uid_are_one_study_only_in_one_folder_and_of_one_patient(dicom):
    paths = [dicom(StudyInstanceUID=None, PatientID=who) for who in ("1", "1", "2", "1")]
    arrived = sort(paths, names=["a/1", "a/2", "a/3", "b/1"])
    assert names(arrived) == [["File 1", "File 2"], ["File 4"], ["File 3"]]


def test_the_same_image_twice_in_a_study_is_taken_once(dicom, tmp_path):
    path = dicom()
    again = Path(shutil.copy(path, tmp_path / "again"))
    arrived = sort([path, again])
    assert names(arrived) == [["File 1"]]
    assert arrived.left_out[0].reason == "This is the same image as file 1."


def test_a_real_film_and_a_real_slice():
    arrived = sort([real("CT_small.dcm"), real("RG1_UNCR.dcm")])
    assert names(arrived) == [["File 2"]]
    assert rules(arrived) == {"File 1": "modality"}
    assert "a CT image" in arrived.left_out[0].reason


def test_a_lone_slice_can_be_overridden_still():
    (arrival,) = sort([real("CT_small.dcm")]).studies[0].films
    assert arrival.film is None
    assert arrival.error is not None
    assert arrival.error.rule == "modality"
    assert read_film(arrival.source, anyway=[arrival.error.rule]).overridden == ("modality",)


def test_a_film_of_another_part_keeps_its_error_beside_the_films_of_its_study(dicom):
    arrived = sort([dicom(BodyPartExamined="KNEE"), dicom()])
    assert names(arrived) == [["File 2", "File 1"]]  # PA before what is not known
    kept = {one.name: one for one in arrived.studies[0].films}
    assert kept["File 1"].film is None
    assert kept["File 1"].error is not None
    assert kept["File 1"].error.overridable
    assert kept["File 2"].error is None


def test_what_is_no_film_is_left_out_with_its_reason(dicom, tmp_path):
    (tmp_path / "readme").write_text("How to use this disc\n")
    (tmp_path / "autorun").write_bytes(b"MZ\x90\0" + bytes(500))
    (tmp_path / "page").write_text("<!DOCTYPE html><title>Doe</title>")
    (tmp_path / "report").write_bytes(b"%PDF-1.7\n")
    (tmp_path / "nothing").write_bytes(b"")
    (tmp_path / "cut").write_bytes(dicom().read_bytes()[:-200])
    report = header(EIGHT_BITS, Modality="SR", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(report, keyword)
    saved(report, tmp_path / "sr")
    files = ["readme", "autorun", "page", "report", "nothing", "cut", "sr", "missing"]
    arrived = sort([tmp_path / name for name in files])
    assert arrived.studies == ()
    told = {one.name: one for one in arrived.left_out}
    assert list(told) == [f"File {n}" for n in range(1, 9)]
    words = ["a text file", "a program", "a web page", "a PDF", "empty", "damaged", "a structured report", "not found"]
    for one, word in zip(arrived.left_out, words, strict=True):
        assert word in one.reason
        assert one.rule


def test_many_files_left_out_for_one_reason_are_told_once(tmp_path):
    for n in range(5):
        (tmp_path / f"{n}").write_text("words")
    words = in_words(sort([tmp_path / f"{n}" for n in range(5)]).left_out)
    assert words == ["File 1 and 4 more: This is a text file, not a film."]


def test_progress_counts_the_films(dicom, tmp_path):
    (tmp_path / "text").write_text("words")
    calls: list[tuple[int, int]] = []
    sort([dicom(), tmp_path / "text", dicom()], progress=lambda *call: calls.append(call))
    assert calls == [(0, 2), (1, 2), (2, 2)]


def test_too_many_pixels_at_once_are_left_out_the_newest_first(dicom, monkeypatch):
    monkeypatch.setattr(arrivals, "MOST_PIXELS", EIGHT_BITS.size)
    days = ("20200101", "20230101", "20220101")
    arrived = sort([dicom(StudyInstanceUID=f"1.{n}", StudyDate=day) for n, day in enumerate(days, 1)])
    assert names(arrived) == [["File 2"], ["File 3"]]
    assert arrived.studies[0].earlier == (1,)
    assert rules(arrived) == {"File 1": "too-many"}


# --- folders and discs ---------------------------------------------------------------------------------------------------


def test_a_folder_is_walked_without_hidden_files_and_links(dicom, tmp_path):
    folder = tmp_path / "in"
    (folder / "b").mkdir(parents=True)
    shutil.copy(dicom(), folder / "b" / "film")
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "a").symlink_to(dicom())
    arrived = sort([folder])
    assert names(arrived) == [["File 2 of the folder"]]
    assert rules(arrived) == {"File 1 of the folder": "not-a-file"}


DISC = ("77654033", "98892001", "98892003")


def disc() -> Path:
    return Path(real("77654033/CR1/6154")).parents[2]


def disc_files() -> list[str]:
    return sorted(p.relative_to(disc()).as_posix() for name in DISC for p in (disc() / name).rglob("*") if p.is_file())


def test_a_disc_is_read_by_its_headers_and_its_dicomdir_is_told_apart():
    files = ["DICOMDIR", *disc_files()]
    arrived = sort([disc() / name for name in files], names=[f"cd/{name}" for name in files])
    films = {one.name for study in arrived.studies for one in study.films}
    crs = {f"File {files.index(name) + 1}" for name in files if "/CR" in name}
    assert crs
    told = rules(arrived)
    assert told["File 1"] == "no-image"
    assert "missing" not in told.values()
    assert crs <= films | {name for name, rule in told.items() if rule in ("too-small", "blank")}
    assert set(told.values()) <= {"no-image", "modality", "multi-frame", "too-small", "blank"}


def test_what_a_dicomdir_lists_and_did_not_come_is_counted():
    files = ["DICOMDIR", *disc_files()]
    kept = [name for name in files if name not in files[5:8]]
    arrived = sort([disc() / name for name in kept], names=[name.upper() for name in kept])
    assert [one.reason for one in arrived.left_out if one.rule == "missing"] == [
        "3 files that the DICOMDIR lists are missing. If films are among them, drop the whole disc, or its folder."
    ]


def test_a_dicomdir_says_nothing_of_missing_files_where_no_names_came():
    assert "missing" not in rules(sort([disc() / "DICOMDIR", disc() / disc_files()[0]])).values()


def test_a_lone_dicomdir_asks_for_its_disc():
    (left,) = sort([disc() / "DICOMDIR"]).left_out
    assert left.reason.endswith("drop the whole disc, or its folder.")


@pytest.mark.parametrize(
    "name", ["DICOMDIR-bigEnd", "DICOMDIR-empty.dcm", "DICOMDIR-implicit", "DICOMDIR-nooffset", "DICOMDIR-nopatient"]
)
def test_odd_dicomdirs_are_no_films(name):
    assert sort([disc() / name], names=[name]).left_out[0].rule == "no-image"


def test_pictures_of_a_discs_viewer_are_no_films(picture):
    files = ["DICOMDIR", *disc_files()]
    logo = picture()
    arrived = sort([*(disc() / name for name in files), logo], names=[*files, "viewer/logo.png"])
    assert rules(arrived)[f"File {len(files) + 1}"] == "disc-picture"


# --- zips ----------------------------------------------------------------------------------------------------------------


def test_a_zip_is_sorted_like_its_files(packed, dicom, picture):
    first, second, third = dicom(ViewPosition="LATERAL"), dicom(), picture()
    path = packed(
        ("x/1", first),
        ("__MACOSX/x/._1", b"junk"),
        ("x/.DS_Store", b"junk"),
        ("x/", b""),
        ("y/2", second),
        ("p.png", third),
    )
    arrived = sort([path])
    assert names(arrived) == [["File 2 of the zip", "File 1 of the zip"], ["File 3 of the zip"]]
    assert arrived.left_out == ()
    assert arrived.studies[0].films[0].source == second.read_bytes()
    assert [one.film.sha256 for one in arrived.studies[0].films if one.film] == [
        read_film(second).sha256,
        read_film(first).sha256,
    ]


def test_two_zips_are_told_apart(packed, dicom):
    arrived = sort([packed(("a", dicom())), packed(("a", dicom()))])
    assert names(arrived) == [["File 1 of zip 1", "File 1 of zip 2"]]


def test_nothing_stays_where_a_zip_was_unpacked(packed, dicom, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    seen: list[list[str]] = []
    path = packed(("Doe^Jane/film", dicom()), ("../../escaped", dicom()))
    sort([path], scratch=scratch, progress=lambda *_: seen.append([p.name for p in scratch.rglob("*")]))
    assert len(seen[0]) == 2  # a folder, and one film in it
    assert not any("Doe" in name or "film" in name for name in seen[0])
    assert list(scratch.iterdir()) == []
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize(
    "name", ["../film", "a/../../film", "..\\film", "/film", "\\film", "C:\\film", "c:film", "//host/film"]
)
def test_a_member_whose_name_leads_out_of_the_zip_is_left_out(packed, dicom, name):
    arrived = sort([packed((name, dicom()), ("film", dicom()))])
    assert names(arrived) == [["File 2 of the zip"]]
    assert rules(arrived) == {"File 1 of the zip": "unsafe-name"}


def test_a_name_with_a_nul_is_left_out(packed, dicom):
    path = packed(("fi_lm", dicom()))
    path.write_bytes(path.read_bytes().replace(b"fi_lm", b"fi\0lm"))
    assert rules(sort([path])) == {"File 1 of the zip": "unsafe-name"}


def test_a_link_is_left_out(packed, dicom):
    link = zipfile.ZipInfo("link")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    arrived = sort([packed((link, b"/etc/passwd"), ("film", dicom()))])
    assert rules(arrived) == {"File 1 of the zip": "not-a-file"}
    assert names(arrived) == [["File 2 of the zip"]]


def test_a_zip_within_a_zip_is_left_out(packed, dicom):
    arrived = sort([packed(("inner", packed(("film", dicom()))), ("film", dicom()))])
    assert rules(arrived) == {"File 1 of the zip": "unsupported-format"}
    assert "unpack it" in arrived.left_out[0].reason


def test_an_encrypted_zip_asks_to_be_unpacked(packed, dicom):
    path = packed(("film", dicom()))
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    (left,) = sort([path]).left_out
    assert (left.name, left.rule) == ("File 1", "encrypted")
    assert "is encrypted: unpack it first" in left.reason


@pytest.mark.parametrize("share", [0.2, 0.9, 0.999])
def test_a_zip_cut_short_is_refused(packed, dicom, share):
    path = packed(*((f"{n}", dicom()) for n in range(3)))
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    arrived = sort([path])
    assert arrived.studies == ()
    assert rules(arrived) == {"File 1": "undecodable"}


def test_a_damaged_member_is_left_out_alone(packed, dicom):
    noise = np.random.default_rng(0).integers(0, 256, EIGHT_BITS.shape, np.uint8)
    first = saved(header(noise), packed().with_name("noise"))
    path = packed(("a", first), ("b", dicom()))
    data = bytearray(path.read_bytes())
    data[8000:8100] = bytes(100)
    path.write_bytes(data)
    arrived = sort([path])
    assert names(arrived) == [["File 2 of the zip"]]
    assert rules(arrived) == {"File 1 of the zip": "undecodable"}


def bomb(size: int) -> bytes:
    return bytes(128) + b"DICM" + bytes(size)


def test_a_bomb_is_left_out_before_it_is_unpacked(packed, dicom, tmp_path):
    written = []
    open_ = Path.open

    class Spy:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, chunk):
            written.append(len(chunk))
            return self.file.write(chunk)

    path = packed(("bomb", bomb(60_000_000)), ("film", dicom()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Path, "open", lambda p, mode="r", **k: Spy(open_(p, mode, **k)) if mode == "xb" else open_(p, mode, **k)
        )
        arrived = sort([path])
    assert rules(arrived) == {"File 1 of the zip": "too-large"}
    assert names(arrived) == [["File 2 of the zip"]]
    assert sum(written) < 12_000_000


def test_sizes_are_counted_whatever_the_zip_says(packed, dicom, monkeypatch):
    """Three members of 20 kB each under a limit of 50 kB; the directory says that each has 10 bytes."""
    monkeypatch.setattr(arrivals, "MOST_UNPACKED", 50_000)
    assert rules(sort([packed(*((f"{n}", dicom()) for n in range(3)))])) == {"File 1": "too-large"}
    path = packed(("0", dicom()), ("1", dicom()))
    data = bytearray(path.read_bytes())
    place = data.find(b"PK\x01\x02")
    data[place + 24 : place + 28] = struct.pack("<I", 10)
    path.write_bytes(data)
    arrived = sort([path])
    assert set(rules(arrived).values()) <= {"undecodable", "unsupported-format"}
    assert names(arrived) == [["File 2 of the zip"]]


def test_all_zips_of_a_drop_share_one_limit(packed, dicom, monkeypatch):
    monkeypatch.setattr(arrivals, "MOST_UNPACKED", 50_000)
    arrived = sort([packed((f"{n}", dicom())) for n in range(3)])
    assert names(arrived) == [["File 1 of zip 1", "File 1 of zip 2"]]
    assert rules(arrived) == {"File 3": "too-large"}


def test_a_member_above_the_size_of_any_film_is_left_out(packed, dicom, monkeypatch):
    monkeypatch.setattr(arrivals, "MAX_BYTES", 30_000)
    arrived = sort([packed(("a", bomb(40_000)), ("b", dicom()))])
    assert rules(arrived) == {"File 1 of the zip": "too-large"}
    assert names(arrived) == [["File 2 of the zip"]]


def test_a_zip_of_too_many_files_is_refused(packed):
    assert rules(sort([packed(*((f"{n}", b"") for n in range(2001)))])) == {"File 1": "too-many"}


def test_a_zip_with_an_endless_directory_is_refused_unread(packed, dicom, monkeypatch):
    path = packed(("film", dicom()))
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x05\x06")
    data[place + 12 : place + 16] = struct.pack("<I", 500_000_000)
    path.write_bytes(data)
    monkeypatch.setattr(zipfile, "ZipFile", None)  # not even opened
    assert rules(sort([path])) == {"File 1": "too-many"}


def test_a_directory_that_is_endless_in_its_zip64_record_alone_is_refused_unread(packed, dicom, monkeypatch):
    path = packed(("film", dicom()))
    data = path.read_bytes()
    place = data.rindex(b"PK\x05\x06")
    wide = struct.pack("<4sQHHLLQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, 500_000_000, 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, place, 1)
    path.write_bytes(data[:place] + wide + locator + data[place:])
    monkeypatch.setattr(zipfile, "ZipFile", None)
    assert rules(sort([path])) == {"File 1": "too-many"}


def test_bytes_of_refused_members_count_too(packed, dicom, monkeypatch):
    monkeypatch.setattr(arrivals, "MOST_UNPACKED", 90_000)
    monkeypatch.setattr(arrivals, "MAX_BYTES", 30_000)
    assert rules(sort([packed(*((f"{n}", bomb(40_000)) for n in range(4)))])) == {"File 1": "too-large"}


def test_an_office_document_is_no_zip_of_films(packed):
    arrived = sort([packed(("[Content_Types].xml", b"<x/>"), ("word/document.xml", b"<x/>"))])
    assert [one.reason for one in arrived.left_out] == ["This is an office document, not a film."]


def test_an_empty_zip_says_so(packed):
    assert rules(sort([packed()])) == {"File 1": "empty"}


def test_random_damage_to_a_zip_never_raises(packed, dicom, picture):
    data = packed(("a/1", dicom()), ("a/2", dicom()), ("p.png", picture()), ("readme", b"words" * 50)).read_bytes()
    path = packed()
    rng = random.Random(0)
    for _ in range(60):
        broken = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            tail = rng.random() < 0.6  # most often where the directory lies
            broken[rng.randrange(len(data) - 400 if tail else 0, len(data))] = rng.randrange(256)
        path.write_bytes(broken)
        sort([path])


# --- privacy -------------------------------------------------------------------------------------------------------------

HOSTILE = [
    "Doe^Jane\u202egpj.exe" + "x" * 10_000,
    "Doe_Jane_4711/" + "y" * 10_000,
    "\n\x1b[31mDoe_Jane",
    "<script>Doe</script>",
]


def test_no_name_id_or_date_is_anywhere_in_the_result_or_the_log(packed, dicom, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    (tmp_path / "Doe_Jane.txt").write_text("Doe^Jane 4711")
    paths = [
        dicom(StudyDate="20230517", IssuerOfPatientID="Doe Clinic"),
        dicom(StudyDate="20210518", StudyInstanceUID="1.9", BodyPartExamined="KNEE"),
        tmp_path / "Doe_Jane.txt",
        packed(*((name[:60_000], dicom()) for name in HOSTILE), ("../Doe_Jane", dicom())),
    ]
    arrived = sort(paths, names=[*HOSTILE[:3], "Doe_Jane.zip"])
    films = [one for study in arrived.studies for one in study.films]
    assert len(films) >= 3
    shown = repr(arrived.left_out) + "".join(in_words(arrived.left_out)) + caplog.text + "".join(capfd.readouterr())
    for one in films:
        shown += one.name + str(one.error) + (f"{one.film.name}{one.film.steps}" if one.film else "")
    for study in arrived.studies:
        shown += repr((study.patient, study.earlier, study.days_before))
    for word in ("Doe", "Jane", "4711", "2023", "0517", "202e", "\u202e", "script", "xxx", "yyy", "1.9"):
        assert word not in shown


def test_names_must_fit_the_paths(dicom):
    with pytest.raises(ValueError, match="1 paths have 2 names"):
        sort([dicom()], names=["a", "b"])


def test_nothing_dropped_is_nothing_arrived():
    arrived = sort([])
    assert (arrived.studies, arrived.left_out) == ((), ())


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_left_out(dicom):
    path = dicom()
    path.chmod(0)
    assert rules(sort([path])) == {"File 1": "unreadable"}


def test_a_dicom_file_whose_preamble_looks_like_a_zip_is_a_film(dicom):
    path = dicom()
    data = path.read_bytes()
    path.write_bytes(b"PK\x03\x04" + data[4:])
    assert names(sort([path])) == [["File 1"]]


def test_a_zip64_file_is_read_too(packed, dicom):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as made, made.open("film", "w", force_zip64=True) as member:
        member.write(dicom().read_bytes())
    path = packed()
    path.write_bytes(target.getvalue())
    assert names(sort([path])) == [["File 1 of the zip"]]
