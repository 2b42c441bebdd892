"""Sessions: a reader's work on one study, kept on this machine's disk until it is closed or expires.

    <folder>/sessions.sqlite       one SQLite file, readable by its owner only; <folder> is $EMRRG_HOME/sessions unless given
    <folder>/sessions.damaged-*    a file that could not be read any more: set aside, never deleted

A session is found by its id and by nothing else: 256 random bits, of which the file holds the SHA-256 only, so that neither a
listing nor a copy of the file opens one. Kept are the report, the draft with the numbers behind its tokens, the hashes of
the films' pixels and the screen's settings; no pixels, no name of a file, no word of a header. What a reader types is kept as typed.

Nothing is held open between two calls, so threads, processes and a server that starts anew may share the file. It must lie
on a local disk: SQLite's write-ahead log does not work over a network.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import secrets
import sqlite3
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import filelock

from emrrg_core.errors import EmrrgError
from emrrg_core.model.language_model import cache_home
from emrrg_core.report.database import BUSY, Database
from emrrg_core.report.draft import Draft
from emrrg_core.report.report import Report

log = logging.getLogger(__name__)

LIFETIME = timedelta(days=7)  # since the last change
_FORM = 1  # of the tables; user_version in SQLite's words
# the draft lies in a table of its own: SQLite writes a row anew when a part of it changes, and the numbers are half a megabyte
_TABLES = """
CREATE TABLE sessions (
    key TEXT PRIMARY KEY,      -- SHA-256 of the id
    version INTEGER NOT NULL,  -- counts the saves
    created REAL NOT NULL,     -- seconds since 1970, UTC
    changed REAL NOT NULL,
    films TEXT NOT NULL,       -- JSON, as the next two
    settings TEXT NOT NULL,
    report TEXT NOT NULL       -- Report.to_dict
) STRICT;
CREATE TABLE drafts (
    key TEXT PRIMARY KEY REFERENCES sessions ON DELETE CASCADE,
    draft TEXT NOT NULL,       -- Draft.dump: JSON
    numbers BLOB NOT NULL      -- and the npz file
) STRICT;
"""
_HASH = re.compile(r"[0-9a-f]{64}")


class SessionError(EmrrgError):
    """A session that cannot be read or kept now. What is in memory is as it was."""


class SessionGoneError(SessionError):
    """A session that was closed, expired or never was. `Sessions.begin` keeps its work under a new id, if the reader wants that."""


class SessionConflictError(SessionError):
    """A session that was changed elsewhere meanwhile. Both states are kept: `theirs` under its id, `mine` under a new one."""

    def __init__(self, mine: "Session", theirs: "Session") -> None:
        super().__init__(
            "This report was changed in another tab or window after it was loaded here. Nothing is lost: the other one stays as it "
            "is, and this one goes on as a copy of its own. Compare the two and close the one that is not needed."
        )
        self.mine, self.theirs = mine, theirs


@dataclass(frozen=True, eq=False)
class Session:
    """A reader's work on one study. Change it with dataclasses.replace and hand it to `Sessions.save`."""

    id: str = field(repr=False)  # opens the session: never to be logged, or shown to anyone else
    version: int
    report: Report
    draft: Draft | None
    films: tuple[str, ...]  # SHA-256 of the pixels, as FilmRecord.sha256
    settings: Mapping[str, Any]  # the screen's; plain values for JSON
    created: datetime  # UTC
    changed: datetime
    warning: str | None = None  # what could not be read back of it
    kept: Draft | None = field(
        default=None, repr=False
    )  # the draft as the store has it; only another one is written again

    def film(self, sha256: str) -> int:
        """The number of a film that is dropped again after a restart, told by its pixels. Raises SessionError for another film."""
        if sha256 not in self.films:
            raise SessionError(
                "This is not a film of this report: drop the file that it was drafted from, or begin a new study with this one."
            )
        return self.films.index(sha256)


class Sessions(Database):
    """The store. May be shared by threads; any number of processes may have one on the same folder."""

    def __init__(self, folder: Path | None = None, *, lifetime: timedelta = LIFETIME) -> None:
        """Opens the store, makes it where it is missing, sets a damaged one aside (see `notice`) and purges what has expired.

        Raises SessionError where the folder cannot be written to, or the file is of a newer version.
        """
        self.folder = (folder or cache_home() / "sessions").expanduser().absolute()
        self.notice: str | None = None  # a sentence for whoever runs the server, if a file had to be set aside
        super().__init__(self.folder / "sessions.sqlite")
        self._lifetime = lifetime.total_seconds()
        try:
            if self._path.exists():
                self._path.chmod(0o600)
                with self._lock():
                    self._set_aside_if_damaged()
        except (OSError, sqlite3.Error) as error:
            raise self._explained(error) from error
        self.purge()

    # what a reader does

    def begin(
        self,
        draft: Draft | None = None,
        report: Report | None = None,
        *,
        films: Sequence[str] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Session:
        """A new session under a new id. report: by default the draft, unread; films: by default the draft's. Raises SessionError."""
        now = datetime.now(UTC)
        if films is None:
            films = [film.sha256 for film in draft.films] if draft else []
        report = report or (Report.of(draft) if draft else Report())
        session = Session(_new_id(), 1, report, draft, tuple(films), dict(settings or {}), now, now, kept=draft)
        rows = _rows(session)
        with self._writing() as db:
            _write(db, rows)
        return session

    def load(self, id: str) -> Session:
        """The session of that id, with its draft and maps. Raises SessionGoneError for an unknown, closed or expired one."""
        with self._database() as db:
            return self._read(db, id)

    def save(self, session: Session) -> Session:
        """Keep a changed session; go on with what is given back. Its seven days begin anew.

        Raises SessionConflictError, which holds both states, when it was saved elsewhere meanwhile; SessionGoneError when it was
        closed elsewhere or has expired; SessionError when the disk is full or cannot be written to. The argument is never changed.
        """
        saved = replace(session, version=session.version + 1, changed=datetime.now(UTC), kept=session.draft)
        same_draft = session.draft is session.kept  # it need not be written with every click
        rows = _rows(saved, draft=not same_draft)
        with self._writing() as db:
            theirs = self._read(db, session.id, whole=False)
            if theirs.version == session.version:
                if not (same_draft or session.draft):
                    db.execute("DELETE FROM drafts WHERE key = ?", (_key(session.id),))
                _write(db, rows)
                return saved
            theirs = self._read(db, session.id)
            same = (theirs.report, theirs.films, theirs.settings) == (session.report, session.films, session.settings)
            if same and same_draft:  # sent twice: there is nothing to lose
                return theirs
            copy = replace(saved, id=_new_id(), version=1)
            _write(db, _rows(copy))
        raise SessionConflictError(copy, theirs)

    def close(self, id: str) -> None:
        """Delete a session at once; its place in the file is overwritten with zeros. One that is gone already is no error."""
        with self._writing() as db:
            db.execute("DELETE FROM sessions WHERE key = ?", (_key(id),))
        self._clear_log()

    def purge(self) -> int:
        """Delete what has expired, as `close` does; the number of sessions. Done by itself on opening, and hourly while sessions are saved."""
        self._purged = time.monotonic()
        with self._database("BEGIN IMMEDIATE") as db:
            gone = db.execute("DELETE FROM sessions WHERE changed <= ?", (self._oldest(),)).rowcount
        if gone:
            self._clear_log()
        return gone

    def keep_purging(self, every: timedelta = timedelta(hours=1)) -> threading.Event:
        """Purge until the event that is given back is set, so that an idle server keeps nothing beyond its time either."""
        over = threading.Event()

        def work() -> None:
            while not over.wait(every.total_seconds()):
                try:
                    self.purge()
                except SessionError as error:
                    log.warning("expired sessions were not deleted: %s", error)

        threading.Thread(target=work, name="emrrg-purge", daemon=True).start()
        return over

    # the file

    def _oldest(self) -> float:
        return time.time() - self._lifetime

    def _read(self, db: sqlite3.Connection, id: str, *, whole: bool = True) -> Session:
        """whole=False leaves the draft out."""
        found = db.execute(
            "SELECT version, created, changed, films, settings, report FROM sessions WHERE key = ? AND changed > ?",
            (_key(id), self._oldest()),
        ).fetchone()
        if found is None:
            raise SessionGoneError(
                "This report is not kept here any more: it was closed, or its time ran out. Begin a new study."
            )
        version, created, changed, films, settings, report = found
        drafted = (
            db.execute("SELECT draft, numbers FROM drafts WHERE key = ?", (_key(id),)).fetchone() if whole else None
        )
        draft, warning = None, None
        if drafted is not None:
            try:
                draft = Draft.load(json.loads(drafted[0]), drafted[1])
            except (EmrrgError, ValueError) as error:
                warning = f"The report is as you left it, but the draft behind it, with its maps, cannot be shown any more. {error}"
        try:
            return Session(
                id=id,
                version=version,
                report=Report.from_dict(json.loads(report)),
                draft=draft,
                films=tuple(json.loads(films)),
                settings=json.loads(settings),
                created=datetime.fromtimestamp(created, UTC),
                changed=datetime.fromtimestamp(changed, UTC),
                warning=warning,
                kept=draft,
            )
        except ValueError as error:
            raise SessionError(f"This session is kept, but cannot be read ({error}).") from error

    def _lock(self) -> filelock.FileLock:
        """For making the file and setting it aside; reading and writing it is SQLite's to order."""
        return filelock.FileLock(self.folder / ".sessions.lock", timeout=BUSY)

    def _create(self) -> None:
        """Builds the file beside its place and renames it: it is whole, and its owner's only, or it is not there.

        It isn't opened by us in place: closing a file drops all of the process's locks on it, those of SQLite in other threads too.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._lock():
            if self._path.exists():
                return
            self._move_away()  # a log without its file would be played into the new one
            handle, name = tempfile.mkstemp(prefix=".sessions.partial-", dir=self.folder)  # mode 0600
            os.close(handle)
            try:
                with contextlib.closing(self._connect(Path(name))) as db:
                    db.execute("PRAGMA journal_mode = WAL")
                    db.executescript(_TABLES)
                    db.execute(f"PRAGMA user_version = {_FORM}")
                Path(name).rename(self._path)
            finally:
                Path(name).unlink(missing_ok=True)

    def _clear_log(self) -> None:
        """What was deleted may still stand in the write-ahead log: put the log into the file and empty it."""
        try:
            with contextlib.closing(self._connect(self._path)) as db:
                busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        except (OSError, sqlite3.Error) as error:
            raise self._explained(error) from error
        if busy:
            log.warning("deleted sessions stand in the write-ahead log until the store is free for a moment")

    def _set_aside_if_damaged(self) -> None:
        """Call it under the lock: another process may have done it already."""
        if not self._path.exists():
            return
        try:
            with contextlib.closing(self._connect(self._path)) as db:
                form = db.execute("PRAGMA user_version").fetchone()[0]
                if form > _FORM:
                    raise SessionError(
                        f"{self._path} was made by a newer EMRRG: start that one, or set EMRRG_HOME to another folder."
                    )
                # a file of ours has its form from the first moment: one without is empty, or has lost its beginning
                if form == _FORM and db.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok":
                    return
        except sqlite3.DatabaseError as error:
            if _code(error) not in _DAMAGED:
                raise
        self._move_away()

    def _move_away(self) -> None:
        """Sets the file and its log aside, whatever there is of them."""
        stem = f"sessions.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}.sqlite"
        ends = [end for end in ("-shm", "-wal", "") if self._path.with_name(self._path.name + end).exists()]
        for end in ends:
            self._path.with_name(self._path.name + end).rename(self.folder / (stem + end))
        if ends:
            self.notice = (
                f"The store of sessions was damaged. It was set aside as {self.folder / stem} and a new one was begun. It may still "
                "hold reports: delete it when nothing of it is needed."
            )
            log.warning("%s", self.notice)

    def _explained(self, error: Exception) -> EmrrgError:
        """What happened to the file, in words for the person on whose screen the edits are."""
        kept = "Your edits are still on this page, but not kept on the disk"
        code = _code(error)
        if isinstance(error, OSError) and not isinstance(error, filelock.Timeout):
            return SessionError(f"{kept}: {self.folder} cannot be written to ({error.strerror or error}).")
        if code in _DAMAGED:
            try:
                with self._lock():
                    self._set_aside_if_damaged()
            except (OSError, sqlite3.Error) as worse:
                return SessionError(f"{kept}: {self._path} is damaged ({error}) and cannot be set aside ({worse}).")
            return SessionError(
                f"{kept}. {self.notice or 'The store of sessions was damaged.'} Keep them under a new session."
            )
        if code == sqlite3.SQLITE_FULL:
            return SessionError(f"{kept}: the disk of {self.folder} is full. Make room, and save again.")
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or isinstance(error, filelock.Timeout):
            return SessionError(f"{kept}: the store has been busy for {BUSY:.0f} seconds. Save again.")
        return SessionError(f"{kept}: {self._path} cannot be used ({error}).")


_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _code(error: Exception) -> int:
    """SQLite's primary result code; -1 for an error that is not SQLite's."""
    return error.sqlite_errorcode & 0xFF if hasattr(error, "sqlite_errorcode") else -1


def _new_id() -> str:
    return secrets.token_urlsafe(32)


def _key(id: str) -> str:
    return hashlib.sha256(id.encode(errors="surrogatepass")).hexdigest()  # any text may come from outside


def _write(db: sqlite3.Connection, rows: dict[str, dict[str, Any]]) -> None:
    """Each row in its table, in place of the one with its key."""
    for table, row in rows.items():
        changes = ", ".join(f"{name} = excluded.{name}" for name in row)
        db.execute(
            f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(f':{name}' for name in row)}) "
            f"ON CONFLICT (key) DO UPDATE SET {changes}",
            row,
        )


def _rows(session: Session, *, draft: bool = True) -> dict[str, dict[str, Any]]:
    """What is written of a session, by table; draft=False leaves the draft out.

    Raises ValueError where a film is not told by its hash: it might be told by a name.
    """
    if strange := [film for film in session.films if not _HASH.fullmatch(film)]:
        raise ValueError(f"{len(strange)} of the films' hashes are no SHA-256 in hexadecimal")
    key = _key(session.id)
    rows: dict[str, dict[str, Any]] = {
        "sessions": {
            "key": key,
            "version": session.version,
            "created": session.created.timestamp(),
            "changed": session.changed.timestamp(),
            "films": json.dumps(session.films),
            "settings": json.dumps(dict(session.settings), allow_nan=False),
            "report": json.dumps(session.report.to_dict()),
        }
    }
    if draft and session.draft:
        record, numbers = _nameless(session.draft).dump()
        rows["drafts"] = {"key": key, "draft": json.dumps(record), "numbers": numbers}
    return rows


def _nameless(draft: Draft) -> Draft:
    """The draft with its films called by their numbers: a program may have named them after files, and files after patients."""
    warnings, films = draft.warnings, []
    for number, film in enumerate(draft.films, 1):
        films.append(dataclasses.replace(film, name=f"Film {number}"))
        name = re.compile(rf"(?<!\w){re.escape(film.name)}(?!\w)")
        warnings = tuple(name.sub(f"Film {number}", warning) for warning in warnings)
    return dataclasses.replace(draft, films=tuple(films), warnings=warnings)
