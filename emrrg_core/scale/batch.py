"""Batch: a folder of films in, a file of drafts out, one line of JSON for each study.

    find_studies   folder → studies, each a name and its films
    run            studies → lines appended to a file; what is there already is not done again
    merge          the files of several processes → one

A run may be stopped at any moment and started again, by another number of processes too: every line is written whole or cut off and
written anew, and a study is known by its name and its content. docs/batch.md describes the lines.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tqdm import tqdm

from emrrg_core.config import DecodeConfig, StudyConfig, Views
from emrrg_core.errors import ConfigError, DataError, EmrrgError
from emrrg_core.text.labeler import read_report, report_text

if TYPE_CHECKING:
    from emrrg_core.reporter import Reporter  # torch takes seconds, and a folder that will not do is told at once

SCHEMA = "emrrg.batch/1"
_BEGIN = f'{{"schema": "{SCHEMA}"'.encode()
_ENDINGS = {".dcm", ".dicom", ".dic", ".ima", ".png", ".jpg", ".jpeg", ".tif", ".tiff"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """Films that belong together. name: the path of the film, or of their folder, from the folder that was searched."""

    name: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Tally:
    """What a run did. known: studies that were in the file already, of which known_failed had failed."""

    drafted: int = 0
    failed: int = 0
    known: int = 0
    known_failed: int = 0


# -------------------------------------------------------------------------------------------------------------- studies


def find_studies(folder: Path, *, recursive: bool = False, per_folder: bool = False) -> list[Study]:
    """The studies of a folder, in the order of their names: one for each film, or for each folder of films in it.

    A film is what has a film's ending, or is DICOM by its content under any other name; hidden files and DICOMDIRs are none. `recursive` looks into
    folders within folders. Raises DataError where there is no such folder or nothing in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: name the one that holds the films.")
    try:
        paths = sorted(_visible(folder, recursive or per_folder))
    except OSError as error:
        raise DataError(f"{folder} cannot be searched ({error.strerror or error}).") from error
    films = [path for path in paths if _could_be_film(path)]
    if per_folder:
        if not recursive:
            films = [path for path in films if path.parent.parent == folder]
        homes = sorted({path.parent for path in films} - {folder})
        found = [Study(_name(home, folder), tuple(p for p in films if p.parent == home)) for home in homes]
    else:
        found = [Study(_name(path, folder), (path,)) for path in films]
    if not found:
        deeper = "" if recursive else " To look into the folders within it, add --recursive."
        raise DataError(f"{folder} holds no {'folder of films' if per_folder else 'film'}.{deeper}")
    return found


def _visible(folder: Path, recursive: bool) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if recursive and not path.is_symlink():  # a link could lead in a circle
                yield from _visible(path, recursive)
        elif path.is_file():
            yield path


def _could_be_film(path: Path) -> bool:
    if path.suffix.lower() in _ENDINGS:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM" and path.name.upper() != "DICOMDIR"
    except OSError:
        return False


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _content(study: Study) -> str:
    """SHA-256 over the SHA-256 of each film's bytes, in order."""
    digest = hashlib.sha256()
    for path in study.files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------------------------ run


def run(
    studies: Sequence[Study],
    out: Path,
    load: "Callable[[], Reporter]",
    *,
    decoding: DecodeConfig | None = None,
    views: Views | str | None = None,
    laterals: bool | None = None,
    tokens: bool = False,
    label: bool = False,
    hashed: bool = False,
    anyway: Collection[str] = (),
    rank: int = 0,
    processes: int = 1,
) -> Tally:
    """Drafts the studies, and appends a line for each to `out`; of several processes each takes its share and has a file beside `out`.

    load              gives the Reporter; called once, and not at all where nothing is left to do
    views, laterals   as `Reporter.study` takes them; None: as the checkpoint's settings say
    tokens            keep the trace of tokens      label   add the 14 labels of the draft
    hashed            write hashes for names        rank    of this process, from 0
    anyway            rules to override, for every film (`Reporter.read`)

    What a study cannot be drafted for goes into its line as "error". The last of the processes to end merges their files, where it sees them all.
    Raises DataError where `out` holds something else, ConfigError where its drafts were made otherwise, EmrrgError where it cannot be written.
    """
    mine = studies[rank::processes]
    target = out if processes == 1 else out.with_name(f"{out.name}.{rank}-of-{processes}")
    ended = _ended(out, rank, processes)
    with _file(target) as file:
        ended.unlink(missing_ok=True)
        rows = {(row["study"], row["content"]): row for row in _rows(out)}
        known_rows = list(rows.values())
        drafter = _Drafter(load, decoding or DecodeConfig(), views, laterals, known_rows, tokens, label, anyway)
        drafted = failed = known = known_failed = 0
        for study in tqdm(mine, unit="study", disable=True if rank else None):  # None: only where someone watches
            name = _pseudonym(study.name) if hashed else study.name
            try:
                content, unread = _content(study), None
            except OSError as error:
                content, unread = None, error
            if (row := rows.get((name, content))) is not None:
                known, known_failed = known + 1, known_failed + (row["error"] is not None)
                continue
            files = [_pseudonym(p.name) if hashed else p.name for p in study.files]
            head: Row = {"schema": SCHEMA, "study": name, "files": files, "content": content, "error": None}
            if unread:
                head["error"] = f"A film of this study could not be opened ({unread.strerror or unread})."
                row = head
            else:
                row = drafter.row(study, head)
            _append(file, row)
            drafted, failed = drafted + (row["error"] is None), failed + (row["error"] is not None)
    if processes == 1:
        if _parts(out):
            merge(out)
    else:
        ended.touch()
        if all(_ended(out, other, processes).exists() for other in range(processes)):
            merge(out)
    return Tally(drafted, failed, known, known_failed)


class _Drafter:
    """Makes the lines; fetches the reporter when the first is needed."""

    def __init__(
        self,
        load: "Callable[[], Reporter]",
        decoding: DecodeConfig,
        views: Views | str | None,
        laterals: bool | None,
        rows: list[Row],
        tokens: bool,
        label: bool,
        anyway: Collection[str],
    ) -> None:
        self._load, self._decoding, self._views, self._laterals, self._rows = load, decoding, views, laterals, rows
        self._tokens, self._label, self._anyway = tokens, label, anyway
        self._ready: tuple[Reporter, StudyConfig] | None = None

    def row(self, study: Study, head: Row) -> Row:
        reporter, settings = self._ready = self._ready or self._checked(self._load())
        try:
            films = [reporter.read(p, name=f"Film {n}", anyway=self._anyway) for n, p in enumerate(study.files, 1)]
            draft = reporter.draft(films, self._decoding, settings)
        except EmrrgError as error:
            return head | {"error": " ".join(str(error).split())}
        except (
            Exception
        ) as error:  # one bad film never stops the run; its words may name a path, so only its kind is kept
            return head | {
                "error": f"This study could not be drafted, for a reason nobody foresaw ({type(error).__name__})."
            }
        written = draft.to_dict()
        del written["schema"]
        if not self._tokens:
            del written["tokens"]
        if self._label:
            written["labels"] = read_report(report_text(draft.findings, draft.impression))["labels"]
        return head | {"settings": settings.to_dict()} | written

    def _checked(self, reporter: "Reporter") -> "tuple[Reporter, StudyConfig]":
        """Drafts of two models, or written in two ways, do not go into one file. Returns the reporter, and how it puts films together."""
        settings = reporter.study(self._views, self._laterals)
        asked = reporter.names, self._decoding.beams, settings.to_dict()
        for row in self._rows:
            # a line of an earlier version does not tell its settings
            if row["error"] is None and asked != (
                row["model"],
                row["decoding"]["beams"],
                row.get("settings", settings.to_dict()),
            ):
                raise ConfigError(
                    "The drafts in this file were written by another model, or with other --beams, --views or --laterals: name another file."
                )
        return reporter, settings


def _pseudonym(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------------------- files


def merge(out: Path) -> Tally:
    """Gathers the files that several processes left beside `out` into it, ordered by study, each line once; then removes them.

    To be called when they have ended. Raises DataError where there is nothing to gather, or something else in those files.
    """
    parts = _parts(out)
    if not parts and not out.exists():
        raise DataError(f"There is no {out.name}, nor a part of it, in {out.absolute().parent}.")
    rows = {(row["study"], row["content"]): row for row in _rows(out)}
    aside = out.with_name(f".{out.name}.part-{os.getpid()}")
    try:
        with aside.open("wb") as file:
            for _, row in sorted(rows.items(), key=lambda item: (item[0][0], item[0][1] or "")):
                _append(file, row)
        os.replace(aside, out)
        for path in (*parts, *out.parent.glob(f"{_escaped(out.name)}.*-of-*.ended")):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(out, error) from error
    finally:
        aside.unlink(missing_ok=True)
    failed = sum(row["error"] is not None for row in rows.values())
    return Tally(known=len(rows), known_failed=failed)


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _parts(out: Path) -> list[Path]:
    """Files of single processes, of any number of them."""
    shape = re.compile(re.escape(out.name) + r"\.\d+-of-\d+")
    return sorted(path for path in out.parent.glob(f"{_escaped(out.name)}.*") if shape.fullmatch(path.name))


def _ended(out: Path, rank: int, processes: int) -> Path:
    """An empty file that says that a process has done its share."""
    return out.with_name(f"{out.name}.{rank}-of-{processes}.ended")


def _rows(out: Path) -> Iterator[Row]:
    """The whole lines of `out` and of its parts. A last line that is cut, or being written, is left out."""
    for path in [path for path in (out, *_parts(out)) if path.exists()]:
        try:
            lines = path.read_bytes().split(b"\n")[:-1]
        except OSError as error:
            raise DataError(f"{path.name} cannot be read ({error.strerror or error}).") from error
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if row["schema"] != SCHEMA:
                    raise ValueError
                _ = row["study"], row["content"], row["error"], row["error"] or (row["model"], row["decoding"]["beams"])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path.name}, line {number}, is no draft of a batch: name another file.") from error
            yield row


def _file(path: Path) -> BinaryIO:
    """Opened to append, after a last line that was cut is taken off. What is no file of drafts is left as it is."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            held = path.read_bytes()
            if held and not held.startswith(_BEGIN) and not _BEGIN.startswith(held):
                raise DataError(f"{path.name} exists and is no file of drafts: name another.")
            if not held.endswith(b"\n"):
                os.truncate(path, held.rfind(b"\n") + 1)
        return path.open("ab", buffering=0)
    except OSError as error:
        raise _unwritable(path, error) from error


def _append(file: BinaryIO, row: Row) -> None:
    """In one write: what is stopped in between leaves at most one cut line, the last."""
    try:
        file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
    except OSError as error:
        raise _unwritable(Path(file.name), error) from error


def _unwritable(path: Path, error: OSError) -> EmrrgError:
    return EmrrgError(f"{path.name} cannot be written ({error.strerror or error}): name another file, or make room.")
