"""The cases that a site remembers: report texts and what was read in their films, kept on this machine and compared with a new film.

    folder/cases.sqlite      one row a case: its texts, its vectors, when it was added; readable by its owner only
    folder/vectors-N.npy     the vectors of state N as one flat matrix, made anew from the rows when these have changed

<folder> is $EMRRG_HOME/memory unless given. Kept are the report as it is, a vector of its findings and the case's id, a hash of film and text; no
pixels, no name of a file, no word of a header. A report may name its patient: take names out before it is remembered.

A case is near a film by its findings: what was read in the film, against what the report states and denies, or what was read in the case's film where
it has no report. What is removed is overwritten, and is not taken in again.
"""

import hashlib
import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emrrg_core.errors import EmrrgError
from emrrg_core.memory.index import index_of, normalised
from emrrg_core.model.finding_tokens import NAMES, SHOWN, Finding, Presence
from emrrg_core.model.language_model import cache_home
from emrrg_core.report.database import Database
from emrrg_core.text.labeler import LABELS, NO_FINDING, Status, read_findings, report_text

_TABLES = """
CREATE TABLE cases (
    id TEXT PRIMARY KEY,
    findings TEXT NOT NULL,    -- the report's sections
    impression TEXT NOT NULL,
    stated TEXT NOT NULL,      -- JSON: labels that the case shows
    vector BLOB NOT NULL,      -- float32, (WIDTH,)
    film INTEGER NOT NULL,     -- whether its film was seen
    added REAL NOT NULL        -- seconds since 1970, UTC
) STRICT;
CREATE TABLE removed (id TEXT PRIMARY KEY) STRICT;
CREATE TABLE state (number INTEGER NOT NULL) STRICT;
INSERT INTO state VALUES (0);
"""
_SIDES = ("right", "left")
WIDTH = len(NAMES) * (1 + len(_SIDES))  # of a vector by findings


class MemoryStoreError(EmrrgError):
    """The memory cannot be read or written now."""


@dataclass(frozen=True)
class Case:
    """One that is remembered. stated: CheXpert's labels that it shows. similarity: cosine with what was asked for, None in a list."""

    id: str
    findings: str
    impression: str
    stated: tuple[str, ...]
    added: float
    film: bool  # whether its film was seen
    similarity: float | None = None

    def text(self) -> str:
        """The report in one line."""
        return " ".join(report_text(self.findings, self.impression).split())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


# -------------------------------------------------------------------------------------------------------------- vectors


def vector_of_film(read: Sequence[Finding]) -> np.ndarray:
    """What was read in a film as a vector (WIDTH,): of every finding its probability against its threshold, and its sides, where it is present."""
    found = np.zeros((len(NAMES), 1 + len(_SIDES)), np.float32)
    for finding in read:
        row = found[list(NAMES).index(finding.name)]
        p, threshold = finding.probability, finding.threshold
        row[0] = (
            (p - threshold) / max(1 - threshold, 1e-6) if p >= threshold else (p - threshold) / max(threshold, 1e-6)
        )
        if finding.presence is Presence.PRESENT:
            row[1:] = [finding.side in (side, "bilateral") for side in _SIDES]
    return found.ravel()


def vector_of_report(text: str) -> np.ndarray:
    """What a report states and denies as such a vector: 1 stated (0.5 where it hedges), -1 denied or not spoken of in a report that is normal."""
    found = np.zeros((len(NAMES), 1 + len(_SIDES)), np.float32)
    by_label = {label: i for i, label in enumerate(NAMES.values())}
    mentions = read_findings(text)
    for mention in mentions:
        label = "Lung Opacity" if mention.label == "Pneumonia" else mention.label
        if (i := by_label.get(label)) is None:
            continue
        value = {Status.POSITIVE: 1.0, Status.UNCERTAIN: 0.5, Status.NEGATIVE: -1.0}[mention.status]
        found[i, 0] = value if found[i, 0] == 0 else max(found[i, 0], value)
        if mention.status is not Status.NEGATIVE:
            found[i, 1:] = np.maximum(found[i, 1:], [mention.side in (side, "bilateral") for side in _SIDES])
    shown = (found[1:, 0] > 0).any()  # row 0: whether anything is
    found[0, 0] = 1.0 if shown else -1.0
    if not shown:
        found[1:, 0] = -1.0
    return found.ravel()


def stated_in(text: str) -> tuple[str, ...]:
    """CheXpert's labels that a report states or suspects."""
    said = {mention.label for mention in read_findings(text) if mention.status is not Status.NEGATIVE}
    return tuple(label for label in LABELS if label in said and label != NO_FINDING)


def id_of(film: str | None, text: str) -> str:
    """Of a case: a hash of its film's pixels (SHA-256, None without) and its text."""
    return hashlib.sha256(f"{film or ''}\0{text}".encode()).hexdigest()[:16]


def disagreements(near: Sequence[Case], read: Sequence[Finding]) -> list[str]:
    """Where most of the nearest cases state what was not read in the film, or none states what was, a sentence each."""
    found = []
    for finding in read:
        if finding.label == NO_FINDING:
            continue
        count = sum(finding.label in case.stated for case in near)
        if finding.presence is Presence.PRESENT and near and not count:
            found.append(
                f"Read in this film, and stated by none of the {len(near)} nearest cases: {SHOWN.get(finding.name, finding.name)}."
            )
        elif finding.presence is not Presence.PRESENT and 2 * count > len(near):
            found.append(
                f"Stated by {count} of the {len(near)} nearest cases, and not read in this film: {SHOWN.get(finding.name, finding.name)}."
            )
    return found


# ---------------------------------------------------------------------------------------------------------------- store


class Memory(Database):
    """The store. May be shared by threads; any number of processes may have one on the same folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = (folder or cache_home() / "memory").absolute()
        super().__init__(self.folder / "cases.sqlite")

    def purge(self) -> None:
        """Nothing expires here."""
        self._purged = time.monotonic()

    def add(self, cases: Sequence[tuple[str | None, str, str, Sequence[Finding] | None]]) -> int:
        """Remember cases: (film's SHA-256 or None, Findings, Impression, what was read in the film). Returns how many were new.

        What is there already, and what was removed, is left out. Raises MemoryStoreError.
        """
        rows = []
        for film, findings, impression, read in cases:
            text = report_text(findings, impression)
            vector = vector_of_report(text) if text.strip() else vector_of_film(read or ())
            stated = (
                stated_in(text)
                if text.strip()
                else tuple(f.label for f in read or () if f.presence is Presence.PRESENT and f.label != NO_FINDING)
            )
            rows.append(
                (
                    id_of(film, text),
                    findings,
                    impression,
                    json.dumps(stated),
                    vector.tobytes(),
                    film is not None,
                    time.time(),
                )
            )
        with self._writing() as db:
            before = db.total_changes
            db.executemany(
                "INSERT OR IGNORE INTO cases SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 WHERE ?1 NOT IN (SELECT id FROM removed)",
                rows,
            )
            new = db.total_changes - before
            if new:
                db.execute("UPDATE state SET number = number + 1")
        return new

    def remove(self, id: str) -> bool:
        """Forget a case, for good. False where there is none of that id."""
        with self._writing() as db:
            known = db.execute("DELETE FROM cases WHERE id = ?", (id,)).rowcount > 0
            if known:
                db.execute("INSERT OR IGNORE INTO removed VALUES (?)", (id,))
                db.execute("UPDATE state SET number = number + 1")
        if known:
            self._forget_matrices(keep=None)
        return known

    def __len__(self) -> int:
        if not self._path.exists():  # to look is not to begin one
            return 0
        with self._database() as db:
            return int(db.execute("SELECT count(*) FROM cases").fetchone()[0])

    def cases(self) -> Iterator[Case]:
        """All, the newest first."""
        if not len(self):
            return
        with self._database() as db:
            rows = db.execute(
                "SELECT id, findings, impression, stated, added, film FROM cases ORDER BY added DESC, id"
            ).fetchall()
        for id, findings, impression, stated, added, film in rows:
            yield Case(id, findings, impression, tuple(json.loads(stated)), added, bool(film))

    def nearest(self, read: Sequence[Finding], k: int = 5) -> list[Case]:
        """The k cases whose findings are most like those that were read in a film, best first."""
        if not len(self):
            return []
        ids, matrix = self._matrix()
        scores, numbers = index_of(matrix).search(vector_of_film(read)[None], min(k, len(ids)))
        near = {ids[n]: float(score) for n, score in zip(numbers[0], scores[0], strict=True) if n >= 0}
        with self._database() as db:
            marks = ",".join("?" * len(near))
            rows = db.execute(
                f"SELECT id, findings, impression, stated, added, film FROM cases WHERE id IN ({marks})", list(near)
            ).fetchall()
        found = [Case(r[0], r[1], r[2], tuple(json.loads(r[3])), r[4], bool(r[5]), near[r[0]]) for r in rows]
        return sorted(found, key=lambda case: -(case.similarity or 0.0))

    def _matrix(self) -> tuple[list[str], np.ndarray]:
        """Ids and vectors of length 1 in the same order, (n, WIDTH): the flat file of this state, made where it is missing."""
        with self._database() as db:
            number = int(db.execute("SELECT number FROM state").fetchone()[0])
            ids = [row[0] for row in db.execute("SELECT id FROM cases ORDER BY id")]
            path = self.folder / f"vectors-{number}.npy"
            if not path.exists():
                rows = [np.frombuffer(row[0], np.float32) for row in db.execute("SELECT vector FROM cases ORDER BY id")]
                matrix = normalised(np.stack(rows)) if rows else np.zeros((0, WIDTH), np.float32)
                with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False) as file:
                    np.save(file, matrix)
                os.replace(file.name, path)
                self._forget_matrices(keep=path)
        return ids, np.load(path, mmap_mode="r")

    def _forget_matrices(self, keep: Path | None) -> None:
        for path in self.folder.glob("vectors-*.npy"):
            if path != keep:
                path.unlink(missing_ok=True)

    def _create(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".new", delete=False) as file:
            pass  # readable by its owner only
        with closing(sqlite3.connect(file.name)) as db:
            db.executescript(_TABLES)
        try:
            os.link(file.name, self._path)  # another process may have made one meanwhile: that one stays
        except FileExistsError:
            pass
        finally:
            os.unlink(file.name)

    def _explained(self, error: OSError | sqlite3.Error) -> EmrrgError:
        return MemoryStoreError(
            f"The memory in {self.folder} cannot be used ({error}): make room, see that you may write there, or name another folder."
        )
