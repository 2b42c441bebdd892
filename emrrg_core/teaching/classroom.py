"""Classes: the answers of learners to cases, kept on this machine's disk until the class ends or its time runs out.

    <folder>/classes.sqlite    one SQLite file, readable by its owner only; <folder> is $EMRRG_HOME/sessions unless given

Three secrets, each random, none of which opens what another opens:

    code    six letters and digits to read out in a room: whoever has it may join the class, and sees nobody's answers
    key     of the teacher, 144 bits: shows and deletes all answers of the class; the file holds its SHA-256 only
    id      of a learner, 256 bits, kept by the learner's browser: opens their own answers; the file holds its SHA-256 only

Nobody is asked for a name: learners choose a pseudonym. What a learner types is kept as typed. One who practises without a class has
an id like any other, and goes a week after the last word.
"""

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import secrets
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from emrrg_core.config import MOST_FILMS
from emrrg_core.errors import EmrrgError
from emrrg_core.report.database import Database
from emrrg_core.teaching.cases import Case, Cases
from emrrg_core.teaching.locate import (
    Box,
    Mark,
    ModelPlace,
    Verdict,
    in_words,
    locate,
    marks_of,
    model_agrees,
    plain_marks,
)
from emrrg_core.text.compare import Comparison, Kind, compare
from emrrg_core.text.labeler import LABELS, NOT_MENTIONED, labels, report_text

ALPHABET = "23456789BCDFGHJKMNPQRSTVWXZ"  # nothing that is read as another sign, and no vowels: no words
CODE_LENGTH = 6
LONGEST_NAME, LONGEST_TEXT, LONGEST_TITLE = 30, 10_000, 80  # characters
MOST_LEARNERS = 300  # of a class
LIFETIME = timedelta(days=7)  # of a class, and of one who practises alone, since the last word
LONGEST_LIFETIME = timedelta(days=90)
_FORM = 2  # of the tables; user_version in SQLite's words
_TABLES = """
CREATE TABLE IF NOT EXISTS classes (
    code TEXT PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,  -- SHA-256 of the teacher's
    title TEXT NOT NULL,
    created REAL NOT NULL,     -- seconds since 1970, UTC
    expires REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS learners (
    key TEXT PRIMARY KEY,      -- SHA-256 of the id
    code TEXT REFERENCES classes ON DELETE CASCADE,
    name TEXT NOT NULL,
    folded TEXT NOT NULL,      -- the name as others may not take it
    changed REAL NOT NULL,
    UNIQUE (code, folded)
) STRICT;
CREATE TABLE IF NOT EXISTS answers (
    learner TEXT NOT NULL REFERENCES learners ON DELETE CASCADE,
    "case" TEXT NOT NULL,      -- Case.id
    findings TEXT NOT NULL,
    impression TEXT NOT NULL,
    changed REAL NOT NULL,
    committed REAL,
    marks TEXT NOT NULL DEFAULT '[]',  -- JSON: locate.plain_marks
    PRIMARY KEY (learner, "case")
) STRICT;
"""
_MARKS = "ALTER TABLE answers ADD COLUMN marks TEXT NOT NULL DEFAULT '[]'"  # from form 1
_ANSWER = 'name, "case", findings, impression, answers.changed, committed, marks'


class ClassError(EmrrgError):
    """Something that a learner or a teacher asked for and cannot have; the text says what to do."""


class ClassGoneError(ClassError):
    """A class or a learner that ended, expired or never was."""


@dataclass(frozen=True)
class Class:
    """What a teacher has opened."""

    code: str  # as it is read out: "K7M-4QD"
    title: str
    created: datetime  # UTC
    expires: datetime
    learners: int


@dataclass(frozen=True)
class Learner:
    """Somebody who answers cases."""

    id: str = field(repr=False)  # opens their answers: never to be logged, or shown to anyone else
    name: str  # a pseudonym; "" for one who practises alone
    code: str | None  # of the class
    title: str  # of the class


@dataclass(frozen=True)
class Answer:
    """What a learner wrote about a case. It changes until it is committed."""

    name: str  # the learner's pseudonym
    case: str  # Case.id
    findings: str
    impression: str
    changed: datetime  # UTC
    committed: datetime | None  # None: still being written
    marks: tuple[Mark, ...] = ()  # where the learner has marked findings


class Classes(Database):
    """The store. May be shared by threads; any number of processes may have one on the same folder."""

    def __init__(self, folder: Path | None = None) -> None:
        """Opens the store, makes it where it is missing, and deletes what has expired. folder: by default that of the reading sessions.

        Raises ClassError where the folder cannot be written to, or the file cannot be read.
        """
        if folder is None:
            # it brings torch with it, which takes seconds: a folder that is named does without
            from emrrg_core.model.language_model import cache_home

            folder = cache_home() / "sessions"
        self.folder = folder.expanduser().absolute()
        super().__init__(self.folder / "classes.sqlite")
        self.purge()

    # what a teacher does

    def begin(self, title: str = "", *, lifetime: timedelta = LIFETIME) -> tuple[Class, str]:
        """A new class and the teacher's key to it, which is told once and kept nowhere. Raises ClassError for a time of 0 or beyond 90 days."""
        title = _line(title)
        if len(title) > LONGEST_TITLE:
            raise ClassError(f"The name of the class is too long: at most {LONGEST_TITLE} characters.")
        if not timedelta(0) < lifetime <= LONGEST_LIFETIME:
            raise ClassError(f"A class is kept for at most {LONGEST_LIFETIME.days} days.")
        key, now = secrets.token_urlsafe(18), time.time()
        row = {"key": _hash(key), "title": title, "created": now, "expires": now + lifetime.total_seconds()}
        with self._writing() as db:
            while True:
                code = "".join(secrets.choice(ALPHABET) for _ in range(CODE_LENGTH))
                if not db.execute("SELECT 1 FROM classes WHERE code = ?", (code,)).fetchone():
                    break
            db.execute("INSERT INTO classes VALUES (:code, :key, :title, :created, :expires)", {**row, "code": code})
        return self.open(key), key

    def open(self, key: str) -> Class:
        """The class of a teacher's key. Raises ClassGoneError for an unknown key, and for a class that ended or expired."""
        with self._database() as db:
            return self._class(db, key)

    def answers(self, key: str, case: str | None = None) -> tuple[Answer, ...]:
        """All answers of a class that were committed, of one case or of all, in the order of their commitment. Raises ClassGoneError."""
        with self._database() as db:
            code = _bare(self._class(db, key).code)
            rows = db.execute(
                f"SELECT {_ANSWER} FROM answers "
                "JOIN learners ON learners.key = learner WHERE code = ? AND committed IS NOT NULL ORDER BY committed",
                (code,),
            ).fetchall()
        return tuple(_answer(row) for row in rows if case is None or row[1] == case)

    def writing(self, key: str, case: str) -> int:
        """How many learners of a class have begun an answer to a case and not committed it; what they wrote is theirs. Raises ClassGoneError."""
        with self._database() as db:
            code = _bare(self._class(db, key).code)
            found: int = db.execute(
                "SELECT count(*) FROM answers JOIN learners ON learners.key = learner "
                'WHERE code = ? AND "case" = ? AND committed IS NULL',
                (code, case),
            ).fetchone()[0]
        return found

    def end(self, key: str) -> None:
        """Delete a class with its learners and all they wrote, at once. One that is gone already is no error."""
        with self._writing() as db:
            db.execute("DELETE FROM classes WHERE key = ?", (_hash(key),))

    # what a learner does

    def join(self, code: str, name: str) -> Learner:
        """Into a class by its code (case, spaces and hyphens do not count), under a pseudonym.

        Raises ClassGoneError for an unknown or expired code; ClassError for a pseudonym that is empty, too long or taken, and for a full class.
        """
        name, code = _line(name), _bare(code)
        if not name:
            raise ClassError("Choose a pseudonym: a word that is not your name and tells nobody who you are.")
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise ClassError(f"Choose a pseudonym of at most {LONGEST_NAME} characters, letters and digits.")
        id = secrets.token_urlsafe(32)
        with self._writing() as db:
            found = db.execute(
                "SELECT title FROM classes WHERE code = ? AND expires > ?", (code, time.time())
            ).fetchone()
            if found is None:
                raise ClassGoneError(
                    "There is no class with this code (any more). Look at the code again, or ask your teacher."
                )
            taken = {row[0] for row in db.execute("SELECT folded FROM learners WHERE code = ?", (code,))}
            if name.casefold() in taken:
                raise ClassError("This pseudonym is taken in your class. Choose another one.")
            if len(taken) >= MOST_LEARNERS:
                raise ClassError(
                    f"This class is full: it has {MOST_LEARNERS} learners. Ask your teacher for another one."
                )
            self._insert(db, id, code, name)
        return Learner(id, name, _shown(code), found[0])

    def alone(self) -> Learner:
        """One who practises without a class."""
        id = secrets.token_urlsafe(32)
        with self._writing() as db:
            self._insert(db, id, None, "")
        return Learner(id, "", None, "")

    def learner(self, id: str) -> Learner:
        """The learner of an id. Raises ClassGoneError for an unknown one, and for one whose class ended or expired."""
        with self._database() as db:
            return self._learner(db, id)

    def leave(self, id: str) -> None:
        """Delete one who practises alone, at once. What was written in a class stays with the class."""
        with self._writing() as db:
            db.execute("DELETE FROM learners WHERE key = ? AND code IS NULL", (_hash(id),))

    def answer(self, id: str, case: str) -> Answer | None:
        """What a learner wrote about a case so far; None: nothing. Raises ClassGoneError."""
        with self._database() as db:
            self._learner(db, id)
            return self._answer(db, id, case)

    def committed(self, id: str) -> frozenset[str]:
        """The cases that a learner has answered, by Case.id. Raises ClassGoneError."""
        with self._database() as db:
            self._learner(db, id)
            rows = db.execute('SELECT "case" FROM answers WHERE learner = ? AND committed IS NOT NULL', (_hash(id),))
            return frozenset(row[0] for row in rows)

    def keep(self, id: str, case: str, findings: str, impression: str) -> Answer:
        """Keep what a learner has written so far. A committed answer stays as it is and is given back. Raises ClassError for too long a text."""
        return self._write(id, case, findings, impression, None, commit=False)

    def keep_marks(self, id: str, case: str, marks: Sequence[Mark]) -> Answer:
        """Keep what a learner has marked so far, beside the words. A committed answer stays as it is and is given back."""
        return self._write(id, case, None, None, marks, commit=False)

    def commit(self, id: str, case: str, findings: str, impression: str, marks: Sequence[Mark] | None = None) -> Answer:
        """Keep an answer for good: from now on it does not change. One that was committed earlier stays as it was and is given back.

        marks: None for those that were kept. Raises ClassError for an answer without words or of too many; ClassGoneError for a learner who is
        not known any more.
        """
        if not (findings.strip() or impression.strip()):
            raise ClassError("Write your own report first: it is compared with the draft and the reference afterwards.")
        return self._write(id, case, findings, impression, marks, commit=True)

    def purge(self) -> None:
        """Delete what has expired. Done by itself on opening, and hourly while answers are kept."""
        self._purged = time.monotonic()
        with self._database("BEGIN IMMEDIATE") as db:
            db.execute("DELETE FROM classes WHERE expires <= ?", (time.time(),))
            db.execute(
                "DELETE FROM learners WHERE code IS NULL AND changed <= ?", (time.time() - LIFETIME.total_seconds(),)
            )

    def keep_purging(self, every: timedelta = timedelta(hours=1)) -> threading.Event:
        """Purge until the event that is given back is set, so that an idle server keeps nothing beyond its time either."""
        over = threading.Event()

        def work() -> None:
            while not over.wait(every.total_seconds()):
                with contextlib.suppress(ClassError):  # the next save says what is wrong with the disk
                    self.purge()

        threading.Thread(target=work, name="emrrg-purge-classes", daemon=True).start()
        return over

    # the file

    def _class(self, db: sqlite3.Connection, key: str) -> Class:
        found = db.execute(
            "SELECT code, title, created, expires FROM classes WHERE key = ? AND expires > ?", (_hash(key), time.time())
        ).fetchone()
        if found is None:
            raise ClassGoneError(
                "No class opens with this key: look at it again. A class goes when it is ended or its time is over."
            )
        code, title, created, expires = found
        learners = db.execute("SELECT count(*) FROM learners WHERE code = ?", (code,)).fetchone()[0]
        return Class(_shown(code), title, _time(created), _time(expires), learners)

    def _learner(self, db: sqlite3.Connection, id: str) -> Learner:
        found = db.execute(
            "SELECT name, learners.code, title FROM learners LEFT JOIN classes ON classes.code = learners.code "
            "WHERE learners.key = ? AND CASE WHEN learners.code IS NULL THEN changed > ? ELSE expires > ? END",
            (_hash(id), time.time() - LIFETIME.total_seconds(), time.time()),
        ).fetchone()
        if found is None:
            raise ClassGoneError("Your answers are not kept here any more: the class has ended, or its time is over.")
        name, code, title = found
        return Learner(id, name, code and _shown(code), title or "")

    def _insert(self, db: sqlite3.Connection, id: str, code: str | None, name: str) -> None:
        db.execute("INSERT INTO learners VALUES (?, ?, ?, ?, ?)", (_hash(id), code, name, name.casefold(), time.time()))

    def _answer(self, db: sqlite3.Connection, id: str, case: str) -> Answer | None:
        row = db.execute(
            f'SELECT {_ANSWER} FROM answers JOIN learners ON learners.key = learner WHERE learner = ? AND "case" = ?',
            (_hash(id), case),
        ).fetchone()
        return row and _answer(row)

    def _write(
        self,
        id: str,
        case: str,
        findings: str | None,
        impression: str | None,
        marks: Sequence[Mark] | None,
        *,
        commit: bool,
    ) -> Answer:
        """None: as it is kept."""
        if max(len(findings or ""), len(impression or "")) > LONGEST_TEXT:
            raise ClassError(
                f"This text is too long: Findings and Impression have at most {LONGEST_TEXT} characters each."
            )
        set_marks = None if marks is None else json.dumps(plain_marks(marks))
        with self._writing() as db:
            self._learner(db, id)
            before = self._answer(db, id, case)
            if before is None or before.committed is None:
                now = time.time()
                db.execute(
                    'INSERT INTO answers (learner, "case", findings, impression, changed, committed, marks) '
                    "VALUES (:key, :case, ifnull(:findings, ''), ifnull(:impression, ''), :now, :done, ifnull(:marks, '[]')) "
                    "ON CONFLICT DO UPDATE SET findings = ifnull(:findings, findings), impression = ifnull(:impression, impression), "
                    "changed = :now, committed = :done, marks = ifnull(:marks, marks)",
                    {
                        **{"key": _hash(id), "case": case, "findings": findings, "impression": impression},
                        **{"now": now, "done": now if commit else None, "marks": set_marks},
                    },
                )
                db.execute("UPDATE learners SET changed = ? WHERE key = ?", (now, _hash(id)))
            after = self._answer(db, id, case)
        assert after is not None
        return after

    def _explained(self, error: OSError | sqlite3.Error) -> ClassError:
        if isinstance(error, OSError):
            return ClassError(f"Not kept: {self.folder} cannot be written to ({error.strerror or error}).")
        if isinstance(error, sqlite3.OperationalError):
            return ClassError(f"Not kept: the store of answers cannot be used now ({error}). Try again.")
        return ClassError(
            f"Not kept: {self._path} is damaged ({error}). Whoever runs the server may move it away; a new one is then begun."
        )

    def _create(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # where another thread was quicker its file is not touched: closing it here would drop SQLite's locks on it
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL, 0o600))

    def _prepare(self, db: sqlite3.Connection) -> None:
        form = db.execute("PRAGMA user_version").fetchone()[0]
        if form > _FORM:
            raise ClassError(
                f"{self._path} was made by a newer EMRRG: start that one, or set EMRRG_HOME to another folder."
            )
        if form == 1:
            db.execute(_MARKS)
            db.execute(f"PRAGMA user_version = {_FORM}")
        elif form < _FORM:
            for statement in _TABLES.split(";\n")[:-1]:
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {_FORM}")


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.strip().encode(errors="surrogatepass")).hexdigest()  # any text may come from outside


def _line(text: str) -> str:
    return " ".join(text.split())


def _bare(code: str) -> str:
    return re.sub(r"[\W_]", "", code).upper()


def _shown(code: str) -> str:
    return f"{code[: CODE_LENGTH // 2]}-{code[CODE_LENGTH // 2 :]}"


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _answer(row: tuple[str, str, str, str, float, float | None, str]) -> Answer:
    name, case, findings, impression, changed, committed, marks = row
    done = None if committed is None else _time(committed)
    return Answer(name, case, findings, impression, _time(changed), done, marks_of(json.loads(marks), MOST_FILMS))


# ----------------------------------------------------------------------------------------------------------------- export

_SCORES = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l")
_KINDS = {f"sentences_{kind.value}": kind for kind in Kind}
COLUMNS = (
    *("case", "title", "row", "pseudonym", "committed", "findings", "impression", "labels_agreed", "labels_compared"),
    *(*_KINDS, "reference_sentences_missed", *_SCORES, *LABELS),
    *("marks", "boxes", "boxes_hit", "boxes_missed", "marks_other_name", "marks_false", "marks_in_model_map"),
)
# Where a spreadsheet begins to read a cell: at its beginning, but also behind what separates cells or lines in some country's settings, for it may
# cut the file there; with the signs that begin a formula, their full-width forms too (OWASP, CSV Injection).
_FORMULA = re.compile(r"(^|[\t\r\n,;|])((?:[^\S\t\r\n]|[\"'])*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])")


def answers_csv(
    answers: Sequence[Answer],
    cases: Cases,
    drafts: Mapping[str, tuple[str, str]] | None = None,
    places: Mapping[str, Sequence[ModelPlace]] | None = None,
) -> str:
    """Answers as CSV (RFC 4180) with COLUMNS, a row an answer, case by case, each behind its reference and its draft where that is given.

    drafts: (findings, impression) by Case.id; places: the model's own maps by Case.id (locate.model_places). Every text is made harmless for
    spreadsheets: an apostrophe stands before what one could take for a formula. Begins with a byte-order mark, by which spreadsheets know UTF-8. An
    answer to a case that is not in `cases` has no comparison; one to a case without boxes has marks and no verdict on them.
    """
    known = {case.id: case for case in cases.cases}
    out = io.StringIO()
    out.write("\ufeff")
    writer = csv.DictWriter(out, COLUMNS, restval="", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    asked = {a.case: None for a in answers}
    for id in [*(case for case in known if case in asked), *(case for case in asked if case not in known)]:
        case, rows = known.get(id), []
        boxes = _places(case)
        none: tuple[Mark, ...] = ()
        if case:
            rows.append(("reference", "", "", case.findings, case.impression, none))
            if drafts and id in drafts:
                rows.append(("draft", "", "", *drafts[id], none))
        for a in answers:
            if a.case == id:
                when = a.committed.isoformat(timespec="seconds") if a.committed else ""
                rows.append(("learner", a.name, when, a.findings, a.impression, a.marks))
        for kind, name, when, findings, impression, marks in rows:
            row = {"case": id, "title": case.title if case else "", "row": kind, "pseudonym": name, "committed": when}
            row |= {"findings": findings, "impression": impression}
            row |= {k: v.value if v else NOT_MENTIONED for k, v in labels(report_text(findings, impression)).items()}
            if case and kind != "reference":
                row |= _measured(compare((findings, impression), (case.findings, case.impression), case.labels))
            if kind == "learner":
                row |= _marked(marks, boxes, (places or {}).get(id))
            writer.writerow({column: harmless(str(value)) for column, value in row.items()})
    return out.getvalue()


def _measured(found: Comparison) -> dict[str, str]:
    kinds = Counter(match.kind for match in found.sentences)
    missed = sum(match.kind is Kind.ALONE for match in found.reference)
    return {
        "labels_agreed": str(found.agreed),
        "labels_compared": str(len(found.labels)),
        **{column: str(kinds[kind]) for column, kind in _KINDS.items()},
        "reference_sentences_missed": str(missed),
        **{name: f"{found.scores[name]['value']:.4f}" for name in _SCORES},
    }


def _places(case: Case | None) -> Sequence[Box] | None:
    """Where a case's findings are; None where nobody has said it, or its films cannot be read now."""
    with contextlib.suppress(EmrrgError):
        return case.places() if case else None
    return None


def _marked(marks: Sequence[Mark], boxes: Sequence[Box] | None, places: Sequence[ModelPlace] | None) -> dict[str, str]:
    row = {"marks": in_words(marks)}
    if boxes is not None:
        found = locate(marks, boxes)
        row |= {"boxes": str(len(boxes)), "boxes_hit": str(found.hits), "boxes_missed": str(found.missed)}
        row |= {"marks_other_name": str(found.verdicts.count(Verdict.OTHER_NAME)), "marks_false": str(found.false)}
    if places is not None:
        row["marks_in_model_map"] = str(sum(model_agrees(mark, places) is True for mark in marks))
    return row


def harmless(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return _FORMULA.sub(r"\1'\2", text)
