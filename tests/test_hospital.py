"""A round trip with an archive: films come in by network, what was drafted goes back into their study, once, and names nobody in a log.

The slow tests run a real archive (Orthanc) on free ports of this machine.
"""

import contextlib
import json
import logging
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
import requests
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import (
    BasicTextSRStorage,
    ComprehensiveSRStorage,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity

from emrrg_core.__main__ import main
from emrrg_core.errors import ConfigError, EmrrgError, FilmError
from emrrg_core.export import clean
from emrrg_core.hospital import log
from emrrg_core.hospital.archive import Outcome, run
from emrrg_core.hospital.destination import Archive, Entity, destination
from emrrg_core.hospital.listen import VERIFICATION, Listener
from emrrg_core.hospital.outbox import ArchiveError, LinkError, Outbox
from emrrg_core.hospital.study import draft_study, read_study, short_hash, stored_uids
from emrrg_core.report.draft import NOT_REVIEWED
from emrrg_core.reporter import Reporter
from tests.phantom import make_phantom

ROOT = Path(__file__).resolve().parent.parent
AT = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
CLASSES = {
    "sr": BasicTextSRStorage,
    "pdf": EncapsulatedPDFStorage,
    "capture": SecondaryCaptureImageStorage,
}  # and coded findings, where a draft names any: the tiny model's words do not
ALL = len(CLASSES)
MODALITIES = {"sr": "SR", "pdf": "DOC", "capture": "OT"}


@pytest.fixture(scope="module")
def reporter(reading_checkpoint) -> Reporter:
    return Reporter.load(reading_checkpoint, download=False)


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.dcm"
    make_phantom(1, height=180, width=160).save_dicom(path)
    return path


def changed(film: Path, folder: Path, **values: object) -> Path:
    """A copy under a SOP Instance UID of its own, with other values of some elements."""
    made = pydicom.dcmread(film)
    for keyword, value in {"SOPInstanceUID": generate_uid(), **values}.items():
        setattr(made, keyword, value)
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    path = folder / f"{made.SOPInstanceUID}.dcm"
    made.save_as(path, enforce_file_format=True)
    return path


def other_film(film: Path, folder: Path, seed: int = 2, **values: object) -> Path:
    """Another film of the same study."""
    make_phantom(seed, height=180, width=160).save_dicom(folder / "other")
    head = pydicom.dcmread(film)
    study = {"StudyInstanceUID": head.StudyInstanceUID, "PatientID": head.PatientID, "PatientName": head.PatientName}
    return changed(folder / "other", folder, **study | {"InstanceNumber": seed} | values)


def until(done: Callable[[], object], step: Callable[[], object] = lambda: None, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it never came to pass"
        step()
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


# ------------------------------------------------------------------------------------------------------ what is stored


def test_what_is_stored_is_in_the_films_study_and_says_that_nobody_has_reviewed_it(reporter, film):
    study = read_study([film], reporter)
    made = {kind: pydicom.dcmread(BytesIO(data)) for kind, data in draft_study(study, reporter, AT).items()}
    source = pydicom.dcmread(film)
    draft = reporter.draft(study.films)
    for kind, one in made.items():
        assert (one.SOPClassUID, one.Modality) == (CLASSES[kind], MODALITIES[kind])
        assert (one.StudyInstanceUID, one.PatientID) == (source.StudyInstanceUID, source.PatientID)
        assert one.file_meta.MediaStorageSOPInstanceUID == one.SOPInstanceUID
    assert_content(made, draft.sentences[0].text)
    assert len({one.SeriesInstanceUID for one in made.values()} | {source.SeriesInstanceUID}) == 1 + ALL


def uids_of(key: str) -> dict[str, str]:
    """Of what is stored for a draft that names no finding."""
    return {kind: uid for kind, uid in stored_uids(key).items() if kind in CLASSES}


@pytest.mark.slow
def test_findings_that_a_draft_names_are_stored_coded_too(film):
    shipped = Reporter.load()
    made = {
        kind: pydicom.dcmread(BytesIO(data))
        for kind, data in draft_study(read_study([film], shipped), shipped, AT).items()
    }
    assert set(made) == {*CLASSES, "findings"}
    assert made["findings"].SOPClassUID == ComprehensiveSRStorage
    assert (made["findings"].VerificationFlag, made["findings"].PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    assert made["findings"].StudyInstanceUID == pydicom.dcmread(film).StudyInstanceUID


def assert_content(made: dict[str, Dataset], sentence: str) -> None:
    """Text of the findings, the PDF and the picture, marked as unreviewed, as read back from wherever they were."""
    assert f"[{NOT_REVIEWED}] {clean(sentence)}" in [item.get("TextValue") for item in items(made["sr"])]
    assert (made["sr"].VerificationFlag, made["sr"].PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    assert made["pdf"].EncapsulatedDocument.startswith(b"%PDF-")
    assert made["pdf"].VerificationFlag == "UNVERIFIED"
    assert NOT_REVIEWED in made["pdf"].DocumentTitle
    picture = made["capture"].pixel_array
    assert picture.shape[2] == 3
    assert np.ptp(picture.astype(int), axis=2).max() > 20, "no map is laid over the film"
    assert "not a medical device" in made["capture"].DerivationDescription


def items(node: Dataset) -> Iterator[Dataset]:
    """A node of a structured report and all below it."""
    yield node
    for item in node.get("ContentSequence", ()):
        yield from items(item)


def test_the_same_films_under_the_same_checkpoint_are_the_same_objects_and_any_other_are_others(
    reporter, film, tmp_path
):
    study = read_study([film], reporter)
    key = study.key(reporter.names)
    uids = uids_of(key)
    for at in (AT, AT + timedelta(days=1)):
        made = draft_study(read_study([film], reporter), reporter, at)
        assert {kind: pydicom.dcmread(BytesIO(data)).SOPInstanceUID for kind, data in made.items()} == uids
    assert len(set(uids.values())) == ALL
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in uids.values())
    two = read_study([film, other_film(film, tmp_path)], reporter)
    others = [
        two.key(reporter.names),
        study.key(reporter.names | {"checkpoint_sha256": "ab" * 32}),
        read_study([changed(film, tmp_path)], reporter).key(reporter.names),
        read_study([changed(film, tmp_path, StudyInstanceUID=generate_uid())], reporter).key(reporter.names),
    ]
    assert len({key, *others}) == 5
    assert read_study([*two.files[::-1]], reporter).key(reporter.names) == two.key(reporter.names)
    assert study.key(reporter.names | {"checkpoint": "renamed"}) == key


def test_of_a_study_the_chest_films_are_taken_and_the_rest_is_left_out_with_a_reason(reporter, film, tmp_path):
    presentation = other_film(film, tmp_path, SOPClassUID=DigitalXRayImageStorageForPresentation, Modality="DX")
    (tmp_path / "text").write_text("no film")
    paths = [
        film,
        presentation,
        changed(film, tmp_path),
        other_film(film, tmp_path, 3, SOPClassUID=DigitalXRayImageStorageForProcessing, Modality="DX"),
        other_film(film, tmp_path, 4, BodyPartExamined="KNEE"),
        other_film(film, tmp_path, 5, SOPClassUID=SecondaryCaptureImageStorage, Modality="OT"),
        tmp_path / "text",
    ]
    study = read_study(paths, reporter)
    # of two copies of a film that which comes first by its UID
    assert {pydicom.dcmread(p).InstanceNumber for p in study.files} == {1, 2}
    assert study.files[1] == presentation
    assert [film.name for film in study.films] == ["Film 1", "Film 2"]
    said = "\n".join(study.left_out)
    for reason in ("twice", "Raw detector values", "a KNEE", "no CR or DX film", "cannot be read"):
        assert reason in said
    assert len(study.left_out) == 5
    assert "Phantom" not in said


def test_a_study_without_a_chest_film_or_with_too_many_is_refused(reporter, film, tmp_path):
    with pytest.raises(FilmError, match="a KNEE"):
        read_study([changed(film, tmp_path, BodyPartExamined="KNEE")], reporter)
    with pytest.raises(FilmError, match="No chest film"):
        read_study([], reporter)
    with pytest.raises(FilmError, match="5 chest films in one study"):
        read_study([other_film(film, tmp_path, seed) for seed in range(2, 7)], reporter)


# -------------------------------------------------------------------------------------------------------------- outbox


def test_results_wait_in_a_private_folder_until_they_are_stored_also_after_a_restart(tmp_path):
    first = Outbox(tmp_path / "out", "there")
    first.put("ab" * 32, {"sr": b"report", "pdf": b"pages"})
    files = list((tmp_path / "out").rglob("*"))
    assert [stat.S_IMODE(path.stat().st_mode) for path in files if path.is_dir()] == [0o700] * 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in files if path.is_file()} == {0o600}
    with pytest.raises(EmrrgError, match="--outbox"):
        Outbox(tmp_path / "out", "there")
    first.close()
    second = Outbox(tmp_path / "out", "there")
    assert second.waiting() == ["ab" * 32]
    assert not Outbox(tmp_path / "out", "elsewhere").waiting(), "nothing goes to another archive"
    stored: list[list[bytes]] = []
    assert second.deliver(lambda files: stored.append(list(files)) or []) == 1
    assert stored == [[b"pages", b"report"]]
    assert second.deliver(lambda files: stored.append(list(files)) or []) == 0
    second.close()
    third = Outbox(tmp_path / "out", "there")
    assert (third.waiting(), third.sent("ab" * 32), third.sent("cd" * 32)) == ([], True, False)
    assert {path.name for path in third.folder.rglob("*") if path.is_file()} == {"sent", "lock"}
    third.close()


def test_the_next_try_comes_later_each_time_and_soon_again_after_a_success(tmp_path):
    outbox = Outbox(tmp_path, "there", first=100, longest=1000)
    outbox.put("ab" * 32, {"sr": b"report"})

    def lost(files):
        raise LinkError("The link is lost.")

    waits = []
    for _ in range(6):
        with pytest.raises(LinkError):
            outbox.deliver(lost)
        assert not outbox.due()
        waits.append(round(outbox._next - time.monotonic()))
    assert waits == [100, 200, 400, 800, 1000, 1000]
    assert outbox.deliver(lambda files: []) == 1
    assert outbox.due()
    outbox.close()


def test_a_study_that_the_archive_refuses_does_not_hold_up_the_next_and_a_lost_link_does(tmp_path):
    outbox = Outbox(tmp_path, "there")
    for number in range(3):
        outbox.put(f"{number}" * 64, {"sr": str(number).encode()})
    tried: list[bytes] = []

    def store(files, error=ArchiveError):
        tried.append(files[0])
        if files[0] == b"0":
            raise error("No.")
        return []

    with pytest.raises(ArchiveError, match="No"):
        outbox.deliver(store)
    assert (tried, outbox.waiting()) == ([b"0", b"1", b"2"], ["0" * 64])
    outbox.put("3" * 64, {"sr": b"3"})
    with pytest.raises(LinkError):
        outbox.deliver(lambda files: store(files, LinkError))
    assert (tried[3:], len(outbox.waiting())) == ([b"0"], 2)
    outbox.close()


# -------------------------------------------------------------------------------------------------------------- listen


class Peer:
    """An archive that takes C-STORE, on a free port of this machine."""

    def __init__(self, port: int = 0, classes: tuple[str, ...] = tuple(CLASSES.values()), status: int = 0) -> None:
        self.got: list[Dataset] = []
        self.entity = ApplicationEntity(ae_title="PEER")
        for sop_class in classes:
            self.entity.add_supported_context(sop_class)
        self._server = self.entity.start_server(
            ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._take, [status])]
        )
        self.port = self._server.socket.getsockname()[1]

    def _take(self, event, status: int) -> int:
        made = event.dataset
        made.file_meta = event.file_meta
        self.got.append(made)
        return status

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()


def send(port: int, *paths: Path, title: str = "SENDER", called: str = "EMRRG") -> list[int | None]:
    """C-STORE of films, and the status of each; None where its kind is not taken. Empty where the association is refused."""
    entity = ApplicationEntity(ae_title=title)
    made = [pydicom.dcmread(path) for path in paths]
    entity.add_requested_context(VERIFICATION)
    for sop_class in {one.SOPClassUID for one in made}:
        entity.add_requested_context(sop_class, [ExplicitVRLittleEndian])
    link = entity.associate("127.0.0.1", port, ae_title=called)
    if not link.is_established:
        return []
    assert link.send_c_echo().Status == 0
    taken = {context.abstract_syntax for context in link.accepted_contexts}
    statuses = [link.send_c_store(one).Status if one.SOPClassUID in taken else None for one in made]
    link.release()
    return statuses


@pytest.fixture
def listening(reporter, tmp_path) -> Iterator[Callable[..., Listener]]:
    """A listener on a free port, with an outbox that a second call finds again; stopped at the end."""
    running: list[tuple[Listener, Outbox]] = []

    def make(to: Archive | Entity, **settings) -> Listener:
        stop()
        outbox = Outbox(tmp_path / "outbox", to.address, first=0.05, longest=0.2)
        listener = Listener(reporter, to, outbox, port=0, quiet=0.1, **settings)
        running.append((listener, outbox))
        listener.start()
        return listener

    def stop() -> None:
        while running:
            listener, outbox = running.pop()
            listener.stop()
            outbox.close()

    yield make
    stop()


@pytest.fixture
def logged(caplog) -> Callable[[], str]:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.INFO, logger=log.name)
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


def films_in(folder: Path) -> list[Path]:
    """Every DICOM file in a folder that another process may be emptying: os.walk passes over what has just gone."""
    return [Path(home) / name for home, _, names in os.walk(folder) for name in names if name.endswith(".dcm")]


def names_nobody(text: str, *films: Path) -> None:
    """None of the identifiers of these films is in the text."""
    for film in films:
        head = pydicom.dcmread(film)
        for word in [
            "PatientName",
            "PatientID",
            "StudyInstanceUID",
            "SeriesInstanceUID",
            "SOPInstanceUID",
            "AccessionNumber",
        ]:
            value = str(head.get(word) or "")
            assert not value or value not in text, f"{word} is in it"
    assert "Traceback" not in text


def test_a_film_that_is_sent_here_comes_back_as_its_results_once(listening, reporter, film, tmp_path, logged):
    with Peer() as peer:
        listener = listening(Entity("127.0.0.1", peer.port, "PEER", "EMRRG"))
        assert send(listener.port, film) == [0]
        assert films_in(tmp_path), "a film that was acknowledged is on the disk"
        until(lambda: len(peer.got) == ALL, listener.step)
        made = {kind: next(one for one in peer.got if one.SOPClassUID == uid) for kind, uid in CLASSES.items()}
        study = read_study([film], reporter)
        assert {kind: one.SOPInstanceUID for kind, one in made.items()} == uids_of(study.key(reporter.names))
        assert_content(made, reporter.draft(study.films).sentences[0].text)
        assert not films_in(tmp_path), "films and results are deleted once they are stored"
        assert send(listener.port, film) == [0]  # the same film again
        until(lambda: not films_in(tmp_path), listener.step)
        listener = listening(Entity("127.0.0.1", peer.port, "PEER", "EMRRG"))
        assert send(listener.port, film) == [0]  # and after a restart
        until(lambda: not films_in(tmp_path), listener.step)
        assert len(peer.got) == ALL
    said = logged()
    assert f"Study 1 ({short_hash(study.uid)}): drafted." in said
    assert "its results are there already" in said
    names_nobody(said, film)


def test_a_film_that_comes_late_is_drafted_with_the_first_while_that_is_still_here(listening, reporter, film, tmp_path):
    late = other_film(film, tmp_path)
    with Peer() as peer:
        listener = listening(Entity("127.0.0.1", peer.port, "PEER", "EMRRG"))
        send(listener.port, film)
        draft = listener._draft

        def drafting(home: Path) -> None:
            draft(home)
            if len(list(home.glob("*.dcm"))) == 1:  # the second comes while the first is being drafted
                send(listener.port, late)

        listener._draft = drafting
        until(lambda: len(peer.got) == 2 * ALL, listener.step)
        both = uids_of(read_study([film, late], reporter).key(reporter.names))
        assert {one.SOPInstanceUID for one in peer.got[ALL:]} == set(both.values())
        until(lambda: not films_in(tmp_path / "outbox"), listener.step)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # pynetdicom leaves a refused socket to the collector
def test_a_lost_link_keeps_results_over_a_restart_and_they_arrive_once(listening, film, tmp_path, logged):
    port = free_port()
    to = Entity("127.0.0.1", port, "PEER", "EMRRG")
    listener = listening(to)
    assert send(listener.port, film) == [0]
    until(lambda: "1 studies wait" in logged(), listener.step)
    assert len(films_in(tmp_path / "outbox")) == 1 + ALL, "the film and its results"
    listener = listening(to)
    listener.step()
    assert len(films_in(tmp_path / "outbox")) == 1 + ALL
    with Peer(port) as peer:
        until(lambda: not films_in(tmp_path / "outbox"), listener.step)
        assert len(peer.got) == len({one.SOPInstanceUID for one in peer.got}) == ALL
    names_nobody(logged(), film)


def test_a_film_that_was_acknowledged_and_not_drafted_is_drafted_after_a_restart(listening, film, tmp_path):
    with Peer() as peer:
        to = Entity("127.0.0.1", peer.port, "PEER", "EMRRG")
        assert send(listening(to).port, film) == [0]
        listener = listening(to)
        until(lambda: len(peer.got) == ALL, listener.step)


def test_other_kinds_than_cr_and_dx_are_refused_and_the_log_says_why(listening, film, tmp_path, logged):
    ct = changed(film, tmp_path, SOPClassUID=CTImageStorage, Modality="CT")
    listener = listening(Entity("127.0.0.1", free_port(), "PEER", "EMRRG"))
    assert send(listener.port, ct, film) == [None, 0]
    until(lambda: "Refused: CT Image Storage. Only CR and DX films are taken" in logged())
    assert len(films_in(tmp_path / "outbox")) == 1
    names_nobody(logged(), film, ct)


def test_a_film_of_another_part_is_taken_and_not_drafted_and_deleted(listening, film, tmp_path, logged):
    knee = changed(film, tmp_path, BodyPartExamined="KNEE")
    with Peer() as peer:
        listener = listening(Entity("127.0.0.1", peer.port, "PEER", "EMRRG"))
        assert send(listener.port, knee) == [0]
        until(lambda: not films_in(tmp_path / "outbox"), listener.step)
        assert peer.got == []
    assert "no draft. No chest film that can be read: The header says that this film shows a KNEE" in logged()
    names_nobody(logged(), knee)


def test_a_film_without_uids_is_refused(listening, film, tmp_path, logged):
    nameless = changed(film, tmp_path, StudyInstanceUID="")
    listener = listening(Entity("127.0.0.1", free_port(), "PEER", "EMRRG"))
    assert send(listener.port, nameless) == [0xC000]
    assert "has no UIDs" in logged()


def test_only_titles_that_are_allowed_may_call_and_ours_must_be_called(listening, film, logged):
    listener = listening(Entity("127.0.0.1", free_port(), "PEER", "EMRRG"), allowed=["XRAY1", "XRAY2"])
    assert send(listener.port, film, title="XRAY2") == [0]
    assert send(listener.port, film, title="STRANGER") == []
    assert send(listener.port, film, title="XRAY1", called="OTHER") == []
    until(lambda: logged().count("An association was refused") == 2)
    assert "STRANGER" not in logged()


def test_what_an_archive_does_not_take_is_said_and_not_tried_for_ever(listening, film, tmp_path, logged):
    with Peer(classes=(BasicTextSRStorage,)) as peer:
        listener = listening(Entity("127.0.0.1", peer.port, "PEER", "EMRRG"))
        send(listener.port, film)
        until(lambda: peer.got and not films_in(tmp_path / "outbox"), listener.step)
        assert [one.SOPClassUID for one in peer.got] == [BasicTextSRStorage]
    assert "does not take our Encapsulated PDF Storage" in logged()
    with Peer(status=0xA700) as full:
        to = Entity("127.0.0.1", full.port, "PEER", "EMRRG")
        with pytest.raises(LinkError, match="no room"):
            to.store([film_bytes(peer.got[0])])
    with Peer(status=0x0111) as known:  # it has this very object
        assert Entity("127.0.0.1", known.port, "PEER", "EMRRG").store([film_bytes(peer.got[0])]) == []


def film_bytes(made: Dataset) -> bytes:
    whole = BytesIO()
    pydicom.dcmwrite(whole, made, enforce_file_format=True)
    return whole.getvalue()


# ---------------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    "to", ["ftp://there/x", "there", "there:0/AET", "there:70000/AET", "there:104/", "http://u:p@h/x"]
)
def test_a_destination_that_is_none_is_refused(to):
    with pytest.raises(ConfigError):
        destination(to, "EMRRG")


def test_destinations_are_told_apart():
    assert isinstance(destination("http://127.0.0.1:8042/dicom-web/", "EMRRG"), Archive)
    assert destination("pacs.example:104/PACS", "EMRRG").address == "pacs.example:104/PACS"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["archive", "http://127.0.0.1:1/dicom-web"], "--study"),
        (["archive", "there", "--study", "1.2"], "http://HOST"),
        (["archive", "http://127.0.0.1:1/dicom-web", "--study", "1.2/../3"], "digits and dots"),
        (["archive", "http://127.0.0.1:1/dicom-web", "--date", "today"], "YYYYMMDD"),
        (["archive", "http://127.0.0.1:1/dicom-web", "--date", "20240131"], "cannot be reached"),
        (["listen", "--to", "nowhere"], "HOST:PORT/AET"),
        (["listen"], "--to"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("EMRRG_HOME", str(tmp_path))
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err


# ------------------------------------------------------------------------------------------------------ a real archive

ORTHANC, PLUGIN = Path("/usr/sbin/Orthanc"), Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
needs_orthanc = pytest.mark.skipif(
    not (ORTHANC.exists() and PLUGIN.exists()),
    reason="no archive on this machine: apt-get install orthanc orthanc-dicomweb",
)


class Orthanc:
    """An archive of its own, on free ports of this machine; what it keeps outlives a stop."""

    def __init__(self, folder: Path, rule: str | None = None) -> None:
        self.http, self.dicom, self.listener = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http}/dicom-web"
        self._folder = folder
        folder.mkdir()
        settings = {
            "Name": "test",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": self.http,
            "DicomPort": self.dicom,
            "DicomAet": "ORTHANC",
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAlwaysAllowStore": True,
            "DicomModalities": {"emrrg": ["EMRRG", "127.0.0.1", self.listener]},
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        if rule is not None:
            (folder / "emrrg.lua").write_text(rule)
            settings["LuaScripts"] = [str(folder / "emrrg.lua")]
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        with (self._folder / "log").open("ab") as out:
            self._process = subprocess.Popen([ORTHANC, self._folder / "orthanc.json"], stdout=out, stderr=out)
        until(self._answers)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text()
        try:
            return requests.get(f"http://127.0.0.1:{self.http}/dicom-web/studies", timeout=5).ok
        except requests.ConnectionError:
            return False

    def rest(self, path: str, data: bytes | None = None) -> object:
        address = f"http://127.0.0.1:{self.http}/{path}"
        answer = requests.get(address, timeout=30) if data is None else requests.post(address, data, timeout=60)
        answer.raise_for_status()
        return answer.json()

    def found(self, study: str) -> dict[str, list[str]]:
        """SOP Instance UIDs of a study by their SOP class, by QIDO-RS."""
        rows = requests.get(f"{self.url}/studies/{study}/instances?includefield=SOPClassUID", timeout=30)
        found: dict[str, list[str]] = {}
        for row in rows.json() if rows.status_code == 200 else []:
            found.setdefault(row["00080016"]["Value"][0], []).append(row["00080018"]["Value"][0])
        return found

    def read(self, uid: str) -> Dataset:
        (id,) = self.rest("tools/lookup", uid.encode())
        return pydicom.dcmread(
            BytesIO(requests.get(f"http://127.0.0.1:{self.http}/instances/{id['ID']}/file", timeout=30).content)
        )


@pytest.fixture
def orthanc(tmp_path) -> Iterator[Orthanc]:
    """With a real chest film in it."""
    archive = Orthanc(tmp_path / "orthanc")
    archive.start()
    archive.rest("instances", CHEST.read_bytes())
    yield archive
    archive.stop()


CHEST = Path(get_testdata_file("RG1_UNCR.dcm"))
STUDY = str(pydicom.dcmread(CHEST, stop_before_pixels=True).StudyInstanceUID)


def assert_stored_once(orthanc: Orthanc, reporter: Reporter) -> None:
    """The film and our three results are in its study, and nothing else; they hold what was drafted."""
    found = orthanc.found(STUDY)
    study = read_study([CHEST], reporter)
    uids = uids_of(study.key(reporter.names))
    expected = {CLASSES[kind]: [uid] for kind, uid in uids.items()}
    assert found == expected | {ComputedRadiographyImageStorage: [study.sops[0]]}
    made = {kind: orthanc.read(uid) for kind, uid in uids.items()}
    assert_content(made, reporter.draft(study.films).sentences[0].text)
    assert {str(one.PatientName) for one in made.values()} == {"CompressedSamples^RG1"}


@pytest.mark.slow
@needs_orthanc
def test_a_study_of_an_archive_comes_back_with_report_pdf_and_key_image_in_it_once(
    orthanc, reporter, reading_checkpoint, tmp_path, capsys
):
    arguments = ["--outbox", str(tmp_path / "outbox"), "--checkpoint", str(reading_checkpoint)]
    assert main(["archive", orthanc.url, "--study", STUDY, *arguments]) == 0
    out, err = capsys.readouterr()
    assert out == "1 stored, 0 there already, 0 without a draft, 0 wait.\n"
    assert f"Study 1 ({short_hash(STUDY)}): drafted and stored." in err
    names_nobody(out + err, CHEST)
    assert_stored_once(orthanc, reporter)
    before = orthanc.rest("statistics")
    # again: asked for by its day, without what was noted here
    arguments[1] = str(tmp_path / "other")
    assert main(["archive", orthanc.url, "--date", "20040826", *arguments]) == 0
    assert capsys.readouterr().out == "0 stored, 1 there already, 0 without a draft, 0 wait.\n"
    assert orthanc.rest("statistics") == before
    assert not films_in(tmp_path / "outbox")


@pytest.mark.slow
@needs_orthanc
def test_a_study_that_the_archive_does_not_have_is_told(orthanc, reading_checkpoint, tmp_path, capsys):
    arguments = ["--study", "1.2.3", "--outbox", str(tmp_path / "outbox"), "--checkpoint", str(reading_checkpoint)]
    assert main(["archive", orthanc.url, *arguments]) == 3
    out, err = capsys.readouterr()
    assert "1 without a draft" in out
    assert "No chest film that can be read." in err


@pytest.mark.slow
@needs_orthanc
def test_an_address_that_is_no_archive_is_told(orthanc, tmp_path):
    with pytest.raises(ArchiveError, match="DICOMweb service"):
        Archive(f"http://127.0.0.1:{orthanc.http}/nothing").films("1.2.3", tmp_path)
    with pytest.raises(ArchiveError, match="DICOMweb service"):
        Archive(f"http://127.0.0.1:{orthanc.http}/app/explorer.html").films("1.2.3", tmp_path)


class CutOff(Reporter):
    """Drafts as ever; the archive stops while it does."""

    def draft(self, *films, **settings):
        self.orthanc.stop()
        return super().draft(*films, **settings)


@pytest.mark.slow
@needs_orthanc
def test_results_wait_while_the_archive_is_away_and_arrive_once(
    orthanc, reporter, reading_checkpoint, tmp_path, logged
):
    cut_off = CutOff.load(reading_checkpoint, download=False)
    cut_off.orthanc = orthanc
    archive = Archive(orthanc.url)
    outbox = Outbox(tmp_path / "outbox", archive.address)
    assert run(archive, [STUDY], cut_off, outbox) == {Outcome.WAITS: 1}
    assert len(films_in(tmp_path / "outbox")) == ALL, "results, and no film"
    with pytest.raises(LinkError, match="cannot be reached"):
        run(archive, [STUDY], reporter, outbox)
    outbox.close()
    orthanc.start()
    assert set(orthanc.found(STUDY)) == {ComputedRadiographyImageStorage}
    outbox = Outbox(tmp_path / "outbox", archive.address)
    assert run(archive, [STUDY], reporter, outbox) == {Outcome.KNOWN: 1}
    assert_stored_once(orthanc, reporter)
    assert not films_in(tmp_path / "outbox")
    assert run(archive, [STUDY], reporter, outbox) == {Outcome.KNOWN: 1}
    assert_stored_once(orthanc, reporter)
    outbox.close()
    names_nobody(logged(), CHEST)


@contextlib.contextmanager
def listen(*arguments: object) -> Iterator[list[str]]:
    """`listen` as a process of its own, told to stop as a service is. What it said is in the list afterwards: stdout, stderr."""
    command = [sys.executable, "-m", "emrrg_core", "listen", "--quiet", "0.5", *map(str, arguments)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said: list[str] = []
    try:
        assert process.stdout is not None
        assert "EMRRG listens on 127.0.0.1" in process.stdout.readline()
        yield said
    finally:
        process.send_signal(signal.SIGTERM)
        said += process.communicate(timeout=30)
    assert (process.returncode, said[0]) == (0, "Stopped.\n")


@pytest.mark.slow
@needs_orthanc
def test_films_that_the_archive_is_told_to_send_come_back_by_stow_rs(orthanc, reporter, reading_checkpoint, tmp_path):
    settings = ["--from", "ORTHANC", "--outbox", tmp_path / "outbox", "--checkpoint", reading_checkpoint]
    with listen("--to", orthanc.url, "--port", orthanc.listener, *settings) as said:
        assert orthanc.rest("modalities/emrrg/echo", b"{}") == {}
        (film,) = orthanc.rest("instances")
        orthanc.rest("modalities/emrrg/store", film.encode())
        until(lambda: len(orthanc.found(STUDY)) == 1 + ALL, seconds=60)
        until(lambda: not films_in(tmp_path / "outbox"))
        orthanc.rest("modalities/emrrg/store", film.encode())  # again
        until(lambda: not films_in(tmp_path / "outbox"), seconds=60)
    assert_stored_once(orthanc, reporter)
    names_nobody("".join(said), CHEST)
    assert f"Study 1 ({short_hash(STUDY)}): stored." in said[1]
    assert "results are there already" in said[1]


@pytest.mark.slow
@needs_orthanc
def test_the_documented_rule_sends_new_films_here_and_they_come_back_by_c_store(reporter, reading_checkpoint, tmp_path):
    (rule,) = re.findall(r"^```lua\n(.*?)^```", (ROOT / "docs/hospital.md").read_text(), re.DOTALL | re.MULTILINE)
    orthanc = Orthanc(tmp_path / "orthanc", rule)
    orthanc.start()
    settings = ["--from", "ORTHANC", "--outbox", tmp_path / "outbox", "--checkpoint", reading_checkpoint]
    to = f"127.0.0.1:{orthanc.dicom}/ORTHANC"
    try:
        with listen("--to", to, "--port", orthanc.listener, *settings) as said:
            orthanc.rest("instances", CHEST.read_bytes())
            until(lambda: len(orthanc.found(STUDY)) == 1 + ALL, seconds=60)
            until(lambda: not films_in(tmp_path / "outbox"))
            # what we stored is new to the archive too, and is not sent here
            until(lambda: all(job["State"] == "Success" for job in orthanc.rest("jobs?expand")))
            assert len(orthanc.rest("jobs")) == 1
        assert_stored_once(orthanc, reporter)
        names_nobody("".join(said), CHEST)
        assert said[1].count("Refused") == 1, "Orthanc offers every kind of file each time"
    finally:
        orthanc.stop()


@pytest.mark.slow
@needs_orthanc
def test_a_late_film_is_drafted_with_those_that_the_archive_has(orthanc, reporter, listening, film, tmp_path):
    first = read_study([CHEST], reporter)
    late = other_film(CHEST, tmp_path, SOPInstanceUID=generate_uid())
    listener = listening(Archive(orthanc.url))
    assert send(listener.port, late) == [0]
    until(lambda: len(orthanc.found(STUDY)) == 1 + ALL, listener.step, seconds=60)
    both = uids_of(read_study([CHEST, late], reporter).key(reporter.names))
    assert {uid for uids in orthanc.found(STUDY).values() for uid in uids} == {first.sops[0], *both.values()}
