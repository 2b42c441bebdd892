"""One SQLite transaction, as sessions and classes use it."""

import contextlib
import sqlite3
from collections.abc import Iterator


@contextlib.contextmanager
def transaction(db: sqlite3.Connection, begin: str = "BEGIN") -> Iterator[sqlite3.Connection]:
    """What is done inside is kept whole, or not at all. begin: "BEGIN", or "BEGIN IMMEDIATE" to write. Raises sqlite3.Error."""
    db.execute(begin)
    try:
        yield db
    except BaseException:
        if db.in_transaction:  # SQLite has rolled back already when the disk was full
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")
