"""A file that several threads and processes keep something in: what sessions and classes have in common."""

import contextlib
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from emrrg_core.errors import EmrrgError

BUSY = 30.0  # seconds to wait for another thread or process; each holds the file for milliseconds
PURGE_EVERY = 3600.0  # seconds


class Database(ABC):
    """An SQLite file of our own. May be shared by threads; any number of processes may have one on the same path.

    What is deleted is overwritten in the file (secure_delete). Every transaction has a connection of its own.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._purged = path, 0.0

    @abstractmethod
    def purge(self) -> object:
        """Delete what has expired; sets `_purged`."""

    @abstractmethod
    def _create(self) -> None:
        """Make the file, which is not there."""

    @abstractmethod
    def _explained(self, error: OSError | sqlite3.Error) -> EmrrgError:
        """What happened and what to do, for who asked."""

    def _prepare(self, db: sqlite3.Connection) -> None:  # noqa: B027 — most need nothing
        """Called first in every transaction."""

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        if time.monotonic() - self._purged > PURGE_EVERY:
            self.purge()
        with self._database("BEGIN IMMEDIATE") as db:
            yield db

    @contextlib.contextmanager
    def _database(self, begin: str = "BEGIN") -> Iterator[sqlite3.Connection]:
        """One transaction: kept whole, or not at all. Raises what `_explained` gives."""
        try:
            if not self._path.exists():
                self._create()
            with contextlib.closing(self._connect(self._path)) as db, _transaction(db, begin):
                self._prepare(db)
                yield db
        except (OSError, sqlite3.Error) as error:
            raise self._explained(error) from error

    def _connect(self, path: Path) -> sqlite3.Connection:
        # mode=rw: a file that is missing is not made here, with the mode that the process happens to give to files
        db = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=BUSY, isolation_level=None)
        db.execute("PRAGMA secure_delete = ON")
        db.execute("PRAGMA foreign_keys = ON")
        return db


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection, begin: str) -> Iterator[None]:
    db.execute(begin)
    try:
        yield
    except BaseException:
        if db.in_transaction:  # SQLite has rolled back already when the disk was full
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")
