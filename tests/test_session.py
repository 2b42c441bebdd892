"""Sessions: a reader's work survives a restart, is lost by no other tab, is found by its id only, names nobody, and goes when it should."""

import json
import logging
import multiprocessing
import os
import resource
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

from emrrg_core.errors import EmrrgError
from emrrg_core.explain.heat_map import heat_map
from emrrg_core.films.film import read_film
from emrrg_core.model.writing import Token, Writing
from emrrg_core.report.draft import Draft, FilmRecord, sections
from emrrg_core.report.report import Report
from emrrg_core.report.session_store import Session, SessionConflictError, SessionError, SessionGoneError, Sessions

HASH = "ab" * 32


def draft(text: str = "Findings: The heart is normal. No effusion.\nImpression: Normal.", **changes) -> Draft:
    random = np.random.default_rng(len(text))
    tokens = tuple(
        Token(
            i,
            part,
            -0.1,
            (0.3, -0.2),
            random.dirichlet(np.full(17, 0.5), 2)[:, :16].astype(np.float32),
            np.zeros((2, 0)),
        )
        for i, part in enumerate(text[n : n + 5] for n in range(0, len(text), 5))
    )
    findings, impression, found = sections(Writing(tokens, True, -1.0))
    whole = Draft(
        findings=findings,
        impression=impression,
        sentences=found,
        tokens=tokens,
        layers=(0, 5),
        grid=4,
        films=(FilmRecord("Film 1", "PNG", HASH, 40, 30, (0.14, 0.14), "PA", ("read", "scaled")),),
        warnings=(),
        timings={"total": 0.3},
        model={"checkpoint": "small"},
        decoding={"beams": 1, "seed": 7},
        finished=True,
    )
    return replace(whole, **changes)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "sessions"


@pytest.fixture
def store(folder) -> Sessions:
    return Sessions(folder)


def on_disk(folder: Path) -> bytes:
    """Every byte of every file."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def grow_old(folder: Path, days: float) -> None:
    """As if the last change of every session had been so long ago."""
    with closing(sqlite3.connect(folder / "sessions.sqlite")) as db:
        db.execute("UPDATE sessions SET changed = changed - ?", (days * 86400,))
        db.commit()


def damaged(folder: Path) -> list[Path]:
    return sorted(folder.glob("sessions.damaged-*.sqlite"))


# ------------------------------------------------------------------------------------------------------------- keeping


def test_a_session_outlives_the_server_with_its_maps(folder):
    made = draft()
    first = Sessions(folder).begin(made, settings={"window": [0.5, 0.25], "invert": True})
    report = first.report.accept(0).edit(1, "A small effusion, café.").delete(2).undo()
    saved = Sessions(folder).save(replace(first, report=report, settings={"invert": False}))
    back = Sessions(folder).load(first.id)
    assert (back.id, back.version, back.films, back.settings) == (first.id, 2, (HASH,), {"invert": False})
    assert back.report == report == saved.report
    assert back.draft is not None
    assert back.draft.to_dict() == made.to_dict()
    last = made.sentences[2].tokens
    theirs = heat_map(made, 0, last)
    np.testing.assert_allclose(heat_map(back.draft, 0, last), theirs, rtol=0, atol=1e-3 * theirs.max())
    assert (back.created, back.changed, back.warning) == (saved.created, saved.changed, None)
    assert first.created < saved.changed <= datetime.now(UTC)


def test_a_session_may_begin_without_a_draft_and_get_one_later(store):
    empty = store.begin(films=[HASH])
    assert (empty.report, empty.draft, empty.films) == (Report(), None, (HASH,))
    made = draft()
    store.save(replace(store.load(empty.id), draft=made, report=Report.of(made)))
    back = store.load(empty.id)
    assert back.draft.to_dict() == made.to_dict()
    other = draft("Findings: Clear.")
    store.save(replace(back, draft=other, report=Report.of(other)))
    assert store.load(empty.id).draft.to_dict() == other.to_dict()
    store.save(replace(store.load(empty.id), draft=None))
    assert store.load(empty.id).draft is None


def test_saving_a_report_leaves_the_draft_as_it_is(store):
    session = store.begin(draft())
    for _ in range(3):
        session = store.save(
            replace(session, report=session.report.retype("impression", f"Version {session.version}."))
        )
    back = store.load(session.id)
    assert (back.version, back.report.impression) == (4, "Version 3.")
    assert back.draft.to_dict() == draft().to_dict()


def test_the_store_lies_in_the_home_of_emrrg_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.setenv("EMRRG_HOME", str(tmp_path / "home"))
    Sessions().begin()
    assert (tmp_path / "home" / "sessions" / "sessions.sqlite").is_file()


def test_only_the_same_film_fits_a_session_after_a_restart(store):
    session = store.begin(films=[HASH, "cd" * 32])
    assert session.film("cd" * 32) == 1
    with pytest.raises(SessionError, match="not a film of this report"):
        session.film("ef" * 32)


@pytest.mark.parametrize("column", ["draft", "numbers"])
def test_a_draft_that_cannot_be_read_does_not_take_the_report_with_it(folder, store, column):
    session = store.begin(draft())
    with closing(sqlite3.connect(folder / "sessions.sqlite")) as db:
        db.execute(f"UPDATE drafts SET {column} = substr({column}, 1, 40)")
        db.commit()
    back = store.load(session.id)
    assert (back.report, back.draft) == (session.report, None)
    assert "cannot be shown" in back.warning
    saved = store.save(replace(back, report=back.report.accept(0)))
    assert store.load(session.id).report == saved.report


def test_a_report_that_cannot_be_read_says_so(folder, store):
    session = store.begin(draft())
    for spoilt in ("{", "{}"):
        with closing(sqlite3.connect(folder / "sessions.sqlite")) as db:
            db.execute("UPDATE sessions SET report = ?", (spoilt,))
            db.commit()
        with pytest.raises(EmrrgError, match="cannot be read"):
            store.load(session.id)


# ---------------------------------------------------------------------------------------------------- nobody else's eyes


def test_ids_are_long_random_and_each_its_own(store):
    ids = {store.begin().id for _ in range(20)}
    assert len(ids) == 20
    assert min(map(len, ids)) >= 43  # 256 bits


def test_another_id_opens_nothing(store):
    session = store.begin(draft())
    for id in ("", "x", session.id[:-1], session.id + "A", session.id.swapcase(), "%", "' OR 1=1 --", "\ud800"):
        with pytest.raises(SessionGoneError, match="not kept here"):
            store.load(id)


def test_the_id_is_found_neither_on_the_disk_nor_in_a_log_or_traceback(folder, store, caplog):
    with caplog.at_level(logging.DEBUG):
        session = store.save(store.begin(draft()))
        with pytest.raises(SessionConflictError) as caught:
            store.save(replace(session, version=1, report=session.report.accept(0)))
        store.close(session.id)
    assert session.id.encode() not in on_disk(folder)
    assert session.id not in caplog.text + repr(session) + str(caught.value)


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_only_the_owner_can_read_the_files(folder, umask):
    old = os.umask(umask)
    try:
        store = Sessions(folder)
        with closing(sqlite3.connect(folder / "sessions.sqlite")) as held:  # so that the log stays
            held.execute("SELECT count(*) FROM sessions").fetchone()
            store.begin(draft())
            modes = {path.name: path.stat().st_mode & 0o777 for path in folder.glob("sessions.*")}
    finally:
        os.umask(old)
    assert modes == {"sessions.sqlite": 0o600, "sessions.sqlite-wal": 0o600, "sessions.sqlite-shm": 0o600}
    assert folder.stat().st_mode & 0o077 == 0


def test_a_file_that_others_could_read_is_closed_to_them(folder, store):
    (folder / "sessions.sqlite").chmod(0o644)
    Sessions(folder)
    assert (folder / "sessions.sqlite").stat().st_mode & 0o777 == 0o600


def write_dicom(path: Path, patient: str) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ComputedRadiographyImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    header.PatientName, header.PatientID, header.AccessionNumber = f"{patient}^Ann", f"{patient}-17", f"{patient}-18"
    header.Modality, header.BodyPartExamined, header.ViewPosition = "CR", "CHEST", "PA"
    header.StudyDescription = f"Chest of {patient}"
    header.Rows, header.Columns, header.SamplesPerPixel, header.PhotometricInterpretation = 300, 260, 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, 0
    ramp = np.add.outer(np.arange(300) * 7, np.arange(260) * 5)
    header.PixelData = (ramp % 4096).astype(np.uint16).tobytes()
    header.save_as(path, enforce_file_format=True)


def test_nothing_that_names_the_patient_reaches_the_disk(folder, store, tmp_path):
    """The name stands in the header, in the file's path, and a careless program has called the film by its file."""
    patient = "Quillfeather"
    path = tmp_path / f"{patient}.dcm"
    write_dicom(path, patient)
    assert path.read_bytes().count(patient.encode()) == 4
    film = read_film(path, name=path.stem)
    height, width = film.pixels.shape
    record = FilmRecord(film.name, film.format, film.sha256, height, width, film.spacing, film.view, tuple(film.steps))
    assert record.name == patient
    made = draft(films=(record,), warnings=(f"{patient} is a lateral view; Quillfeathers are birds.",))
    session = store.begin(made)
    store.save(replace(session, draft=replace(made, finished=False), report=session.report.accept(0)))
    back = store.load(session.id)
    assert back.film(film.sha256) == 0
    assert (back.draft.films[0].name, back.draft.warnings[0].split()[:2]) == ("Film 1", ["Film", "1"])
    # nothing is compressed: what is kept stands in the file as it is
    bytes_ = on_disk(folder).replace(b"Quillfeathers are birds", b"")
    assert back.report.findings.encode() in bytes_
    assert patient.encode() not in bytes_
    assert patient.encode("utf-16-le") not in bytes_
    assert film.sha256.encode() in bytes_


def test_a_film_is_told_by_a_hash_and_by_nothing_else(store):
    with pytest.raises(ValueError, match="SHA-256"):
        store.begin(films=["Quillfeather.dcm"])


# --------------------------------------------------------------------------------------------------------- two tabs


def test_saving_over_a_newer_state_keeps_both(store):
    here = store.begin(draft())
    there = store.load(here.id)
    there = store.save(replace(there, report=there.report.accept(0)))
    mine = replace(here, report=here.report.edit(0, "The heart is large."))
    with pytest.raises(SessionConflictError, match=r"another tab .* Nothing is lost") as caught:
        store.save(mine)
    assert caught.value.theirs.report == there.report
    assert caught.value.mine.report == mine.report
    assert caught.value.mine.id != here.id
    for kept in (caught.value.mine, caught.value.theirs):
        again = store.load(kept.id)
        assert (again.report, again.version) == (kept.report, kept.version)
        assert again.draft.to_dict() == draft().to_dict()
        assert store.save(replace(kept, settings={"opacity": 1})).version == kept.version + 1  # either goes on


def test_the_same_state_sent_twice_is_no_conflict(store):
    session = store.begin(draft())
    changed = replace(session, report=session.report.accept(0))
    assert store.save(changed).version == 2
    assert store.save(changed).version == 2


def test_what_was_closed_elsewhere_does_not_come_back_by_itself(store):
    session = store.begin(draft())
    store.close(session.id)
    with pytest.raises(SessionGoneError):
        store.save(session)
    with pytest.raises(SessionGoneError):
        store.load(session.id)
    again = store.begin(session.draft, session.report, films=session.films)  # the reader wants to keep it after all
    assert store.load(again.id).report == session.report


# ------------------------------------------------------------------------------------------------------- what must go

SECRET = "A finding called Wintergreen."


@pytest.fixture(params=["alone", "beside another connection"])
def beside(request, folder, store) -> Iterator[None]:
    """Another process that has the file open keeps the write-ahead log alive."""
    if request.param == "alone":
        yield
        return
    with closing(sqlite3.connect(folder / "sessions.sqlite")) as held:
        held.execute("SELECT count(*) FROM sessions").fetchone()
        yield


@pytest.mark.usefixtures("beside")
def test_a_closed_session_is_gone_from_the_disk_at_once(folder, store):
    other = store.begin(draft())
    session = store.begin(draft())
    for turn in range(15):  # longer than a page of the file
        session = store.save(replace(session, report=session.report.add("findings", f"{SECRET} {turn}")))
    assert b"Wintergreen" in on_disk(folder)
    store.close(session.id)
    assert b"Wintergreen" not in on_disk(folder)
    assert store.load(other.id).report == other.report
    store.close(session.id)  # twice is no error


@pytest.mark.usefixtures("beside")
def test_an_expired_session_opens_no_more_and_is_purged_on_opening(folder, store):
    session = store.begin(report=Report().add("findings", SECRET))
    grow_old(folder, 7.01)
    with pytest.raises(SessionGoneError):
        store.load(session.id)
    with pytest.raises(SessionGoneError):
        store.save(session)
    Sessions(folder)
    assert b"Wintergreen" not in on_disk(folder)


def test_every_save_begins_the_seven_days_anew(folder, store):
    session = store.begin(report=Report().add("findings", SECRET))
    grow_old(folder, 6.9)
    session = store.save(store.load(session.id))
    grow_old(folder, 6.9)
    assert Sessions(folder).load(session.id).report == session.report


def test_a_lifetime_can_be_chosen(folder):
    store = Sessions(folder, lifetime=timedelta(hours=1))
    session = store.begin()
    grow_old(folder, 0.03)
    assert store.load(session.id).version == 1
    grow_old(folder, 0.03)
    assert store.purge() == 1


def test_a_server_that_runs_on_purges_with_the_next_save_of_the_hour(folder, store):
    store.begin(report=Report().add("findings", SECRET))
    grow_old(folder, 8)
    store.begin()
    assert b"Wintergreen" in on_disk(folder)
    store._purged -= 3601
    store.begin()
    assert b"Wintergreen" not in on_disk(folder)


def test_an_idle_server_purges_too(folder, store):
    store.begin(report=Report().add("findings", SECRET))
    grow_old(folder, 8)
    over = store.keep_purging(timedelta(milliseconds=5))
    try:
        give_up = time.monotonic() + 60
        while b"Wintergreen" in on_disk(folder) and time.monotonic() < give_up:
            time.sleep(0.02)
    finally:
        over.set()
    assert b"Wintergreen" not in on_disk(folder)


# ------------------------------------------------------------------------------------------------ many at the same time


def work(folder: Path, number: int) -> list[tuple[str, str]]:
    """One reader's afternoon: sessions begun, saved again and again, some closed. What must be found: (id, findings)."""
    store, kept = Sessions(folder), []
    for turn in range(4):
        session = store.begin(draft(f"Findings: Reader {number}, study {turn}."))
        for _ in range(3):
            session = store.save(replace(session, report=session.report.add("findings", f"Line {session.version}.")))
        if turn % 2:
            store.close(session.id)
        else:
            kept.append((session.id, session.report.findings))
    return kept


def race(folder: Path, id: str, number: int) -> tuple[bool, str]:
    """Loads version 1 and saves its own words: whether it came first, and the id under which they are kept."""
    session = replace(Sessions(folder).load(id), version=1)
    try:
        return True, Sessions(folder).save(replace(session, report=Report().add("findings", f"Words {number}."))).id
    except SessionConflictError as conflict:
        return False, conflict.mine.id


@pytest.fixture(params=["threads", "processes"])
def at_once(request) -> Iterator[Callable[..., list]]:
    """Calls a function for each of some arguments, all at the same time."""
    if request.param == "threads":
        with ThreadPoolExecutor(6) as pool:
            yield lambda call, arguments: [f.result(120) for f in [pool.submit(call, *a) for a in arguments]]
        return
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs fork: a fresh process would load torch first")
    with multiprocessing.get_context("fork").Pool(4) as pool:
        yield lambda call, arguments: pool.starmap_async(call, arguments, chunksize=1).get(120)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12, where torch has threads
def test_many_readers_begin_with_no_file_and_none_loses_a_word(folder, at_once):
    kept = [row for rows in at_once(work, [(folder, n) for n in range(6)]) for row in rows]
    store = Sessions(folder)
    assert len(kept) == len({id for id, _ in kept}) == 12
    assert [store.load(id).report.findings for id, _ in kept] == [words for _, words in kept]
    with closing(sqlite3.connect(folder / "sessions.sqlite")) as db:
        assert db.execute("SELECT count(*) FROM sessions").fetchone() == (12,)
    assert not damaged(folder)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_of_many_saves_over_one_version_one_wins_and_all_are_kept(folder, at_once):
    store = Sessions(folder)
    id = store.begin(draft()).id
    results = at_once(race, [(folder, id, n) for n in range(6)])
    assert [won for won, _ in results].count(True) == 1
    assert {store.load(found).report.findings for _, found in results} == {f"Words {n}." for n in range(6)}
    assert {found for won, found in results if won} == {id}


# ------------------------------------------------------------------------------------------------------ when it goes wrong


def spoil_head(path: Path) -> None:
    path.write_bytes(b"\x17" * 512 + path.read_bytes()[512:])


def spoil_pages(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:4096] + b"\x17" * (path.stat().st_size - 4096))


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:6000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


SPOIL = pytest.mark.parametrize("spoil", [spoil_head, spoil_pages, cut_off, empty])


@SPOIL
def test_a_damaged_file_is_set_aside_on_opening_and_never_deleted(folder, store, spoil, caplog):
    store.begin(draft())
    assert store.notice is None
    spoil(folder / "sessions.sqlite")
    left = (folder / "sessions.sqlite").read_bytes()
    with caplog.at_level(logging.WARNING):
        again = Sessions(folder)
    (aside,) = damaged(folder)
    assert aside.read_bytes() == left
    assert aside.stat().st_mode & 0o777 == 0o600
    assert str(aside) in again.notice
    assert again.notice in caplog.text
    session = again.begin(draft())
    assert Sessions(folder).load(session.id).report == session.report
    assert damaged(folder) == [aside]


@pytest.mark.parametrize("spoil", [spoil_head, spoil_pages])
def test_damage_while_the_server_runs_is_told_and_the_edits_can_be_kept_anew(folder, store, spoil):
    session = store.begin(draft())
    session = replace(session, report=session.report.accept(0))
    spoil(folder / "sessions.sqlite")
    with pytest.raises(SessionError, match=r"Your edits are still on this page.* set aside") as caught:
        store.save(session)
    assert not isinstance(caught.value, SessionGoneError)
    (aside,) = damaged(folder)
    assert aside.name in str(caught.value)
    again = store.begin(session.draft, session.report)
    assert store.load(again.id).report == session.report


def test_a_log_without_its_file_is_not_played_into_a_new_one(folder, store):
    with closing(sqlite3.connect(folder / "sessions.sqlite")) as held:
        held.execute("SELECT count(*) FROM sessions").fetchone()
        store.begin(draft())
        orphan = (folder / "sessions.sqlite-wal").read_bytes()
    (folder / "sessions.sqlite").unlink()
    (folder / "sessions.sqlite-wal").write_bytes(orphan)
    Sessions(folder).begin()
    (aside,) = folder.glob("sessions.damaged-*.sqlite-wal")
    assert aside.read_bytes() == orphan


def test_a_file_of_a_newer_version_is_left_alone(folder, store):
    with closing(sqlite3.connect(folder / "sessions.sqlite")) as db:
        db.execute("PRAGMA user_version = 2")
    before = (folder / "sessions.sqlite").read_bytes()
    with pytest.raises(SessionError, match="newer EMRRG"):
        Sessions(folder)
    assert (folder / "sessions.sqlite").read_bytes() == before
    assert not damaged(folder)


class Full(Sessions):
    """Two pages more and the disk is full, as SQLite sees it."""

    def _connect(self, path: Path) -> sqlite3.Connection:
        db = super()._connect(path)
        db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0] + 2}")
        return db


class ReadOnly(Sessions):
    """A disk that was mounted read-only."""

    def _connect(self, path: Path) -> sqlite3.Connection:
        return sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)


class Busy(Sessions):
    """Does not wait for others."""

    def _connect(self, path: Path) -> sqlite3.Connection:
        db = super()._connect(path)
        db.execute("PRAGMA busy_timeout = 0")
        return db


def at(kind: type[Sessions], folder: Path) -> Sessions:
    """A store of that kind, opened while all was well."""
    store = Sessions(folder)
    store.__class__ = kind
    return store


@pytest.mark.parametrize(
    ("kind", "words"),
    [(Full, "disk of .* is full. Make room, and save again"), (ReadOnly, "cannot be used .*readonly"), (Busy, "busy")],
)
def test_a_save_that_fails_says_why_and_loses_nothing(folder, store, kind, words):
    session = store.begin(draft())
    long = replace(session, report=session.report.add("findings", "word " * 20_000))
    failing = at(kind, folder)
    with closing(sqlite3.connect(folder / "sessions.sqlite", isolation_level=None)) as other:
        if kind is Busy:
            other.execute("BEGIN IMMEDIATE")
        with pytest.raises(SessionError, match=f"Your edits are still on this page, but not kept on the disk.*{words}"):
            failing.save(long)
    assert store.load(session.id).report == session.report
    assert store.load(session.id).version == 1
    assert store.save(long).version == 2  # once there is room
    assert store.load(session.id).report == long.report


def limited(folder: Path, id: str) -> str:
    """In a process of its own whose files may not grow: the error of a save."""
    store = Sessions(folder)
    session = store.load(id)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = (folder / "sessions.sqlite").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        store.save(replace(session, report=session.report.add("findings", "word " * 50_000)))
    except SessionError as error:
        return str(error)
    return "saved"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_disk_that_takes_no_more_bytes_leaves_the_store_whole(folder, store):
    session = store.begin(draft())
    with multiprocessing.get_context("fork").Pool(1) as pool:
        words = pool.apply_async(limited, (folder, session.id)).get(60)
    assert words.startswith("Your edits are still on this page, but not kept on the disk")
    assert Sessions(folder).load(session.id).report == session.report
    assert not damaged(folder)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_told_at_once(tmp_path, place):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(SessionError, match="cannot be written to"):
        Sessions(tmp_path / place)


def test_settings_must_be_plain_values(store):
    for settings in ({"film": object()}, {"level": float("nan")}):
        with pytest.raises((TypeError, ValueError)):
            store.begin(settings=settings)


def test_a_session_is_the_same_in_json_whatever_was_typed(store):
    odd = 'quote " \\ \x00 null, line\nbreak, 心 \ud800 half a pair'
    session = store.begin(report=Report().add("findings", odd))
    assert store.load(session.id).report.lines[0].text == odd
    assert json.loads(json.dumps(session.report.to_dict()))["findings"] == odd
    assert isinstance(session, Session)
