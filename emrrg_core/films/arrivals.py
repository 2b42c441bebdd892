"""Whatever a reader drops, sorted into studies: films, folders, zip files, the files of a disc with its DICOMDIR.

    arrived = sort(paths, names=names)
    arrived.studies[0].films[0].film        the newest study of the first patient, in hanging order
    arrived.left_out                        what is no film, and why

    paths -> files (folders walked, zips unpacked) -> headers -> studies, patients, dates -> films, read one by one

Files are sorted by what their headers say, never by their names: a DICOMDIR only tells which files are missing. Patients'
ids, names and dates are compared here and are not in the result; files are called by their place, "File 3".

A zip is hostile until it is read. Its members are never written under their own names, its sizes are counted while it is
unpacked, not believed, and only what begins like a film is unpacked at all.
"""

import os
import re
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, time
from pathlib import Path
from typing import NamedTuple

import pydicom
from pydicom.multival import MultiValue

from emrrg_core.errors import FilmError
from emrrg_core.films.film import (
    MAX_BYTES,
    OVERRIDABLE,
    Film,
    header_of,
    header_value,
    is_directory,
    kind_of,
    kind_of_head,
    quiet_decoders,
    read_film,
    refuse_kind,
)
from emrrg_core.films.views import in_order

MOST_UNPACKED = 1_000_000_000  # bytes, of one zip
MOST_FILES = 2_000  # in one zip or folder
MOST_INDEX = 16_000_000  # bytes, of the list of members at a zip's end
BOMB_RATIO, BOMB_BYTES = 200, 10_000_000  # no film above this size is packed this small
MOST_PIXELS = 400_000_000  # of all films of one drop together: 1.6 GB
_CHUNK = 1_000_000
_HEAD, _START = 132, 2000  # bytes that tell what a film is, and what else a file is

Progress = Callable[[int, int], None]  # films read, of how many


@dataclass(frozen=True, eq=False)
class Arrival:
    """One film, or a file that a reader who knows better may have read as one.

    film     None where a rule refused it
    source   the file: where it lies, or its bytes where it came in a zip
    error    of a rule that may be overridden: read the source again, with anyway=[error.rule]
    """

    name: str  # "File 3", its place in the drop
    film: Film | None
    source: Path | bytes
    error: FilmError | None = None


@dataclass(frozen=True, eq=False)
class Study:
    """Films that were taken together, in hanging order: PA, AP, those of no known view, lateral. There may be more than four.

    patient      the patient's number in this drop, from 0; a study without a Patient ID has one to itself
    earlier      numbers of the studies of the same patient that were surely taken before this one, the newest first
    days_before  how many days before the same patient's newest study; None for that one, and where a date is missing
    """

    films: tuple[Arrival, ...]
    patient: int
    earlier: tuple[int, ...] = ()
    days_before: int | None = None


@dataclass(frozen=True)
class LeftOut:
    """A file that is no film. reason: one or more sentences about it; rule: as in docs/refusals.md."""

    name: str
    reason: str
    rule: str


@dataclass(frozen=True, eq=False)
class Arrived:
    """studies: patients in the order in which they were dropped, the newest study of each first. left_out: as dropped."""

    studies: tuple[Study, ...]
    left_out: tuple[LeftOut, ...]


def sort(
    paths: Sequence[Path],
    *,
    names: Sequence[str] | None = None,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> Arrived:
    """Films among files, folders and zips, as studies.

    names     relative names as the browser gave them ("study1/IM0001"), to tell folders apart and to follow a DICOMDIR; they
              are never shown or kept
    scratch   where zips are unpacked while they are sorted; None: the system's folder for temporary files
    progress  called with 0 first, then after each film

    Whatever is wrong with a file is in the result. Raises ValueError for names that do not fit the paths.
    """
    if names is not None and len(names) != len(paths):
        raise ValueError(f"{len(paths)} paths have {len(names)} names")
    with tempfile.TemporaryDirectory(prefix="emrrg-", dir=scratch, ignore_cleanup_errors=True) as folder:
        drop = _Drop(Path(folder))
        drop.take(paths, names)
        drop.tell_missing()
        lone = len(drop.candidates) == 1 and not drop.left_out
        groups = _patients(_studies(_films_of(drop, lone)))
        return _read(groups, drop, progress)


def in_words(left_out: Sequence[LeftOut]) -> list[str]:
    """What was left out and why, one sentence or more for each reason: a disc may hold hundreds of slices."""
    reasons: dict[str, list[str]] = {}
    for one in left_out:
        reasons.setdefault(one.reason, []).append(one.name)
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason}"
        for reason, names in reasons.items()
    ]


# --- what was dropped ----------------------------------------------------------------------------------------------------


class _File(NamedTuple):
    """number: its place among all files. whole: the drop itself, or a zip or folder. where: its relative name there."""

    number: int
    name: str
    path: Path
    whole: int
    where: str
    packed: bool = False  # unpacked from a zip: gone once it is sorted

    @property
    def folder(self) -> str:
        return self.where.rpartition("/")[0]


class _Told(NamedTuple):
    """What a DICOM header tells of a film."""

    uid: str  # of its study, empty where it has none
    who: "_Who"
    when: "_When"
    refused: FilmError | None  # for what it holds, where that is plainly no radiograph
    slices: bool


class _Candidate(NamedTuple):
    """A file that is DICOM or a picture. told: None for a picture."""

    file: _File
    told: _Told | None


class _Drop:
    """Collects files of all kinds: candidates for films, what was left out, indexes of discs."""

    def __init__(self, scratch: Path) -> None:
        self.candidates: list[_Candidate] = []
        self.left_out: list[tuple[int, LeftOut]] = []
        self._scratch = scratch
        self._count = 0
        self._left = MOST_UNPACKED
        self._present: dict[int, set[str]] = {}  # per whole, in small letters, whatever the file is
        self._discs: list[tuple[_File, list[str]]] = []
        self._named: set[int] = set()  # wholes whose relative names are known

    def take(self, paths: Sequence[Path], names: Sequence[str] | None) -> None:
        if names is not None:
            self._named.add(0)
        zips = sum(path.is_file() and _is_zip(path) for path in paths)
        folders = sum(path.is_dir() for path in paths)
        zip_number = folder_number = 0
        for place, path in enumerate(paths, 1):
            name, number = f"File {place}", self._next()
            where = _plain(names[place - 1]) if names is not None else path.name
            if path.is_dir():
                folder_number += 1
                called = "the folder" if folders == 1 else f"folder {folder_number}"
                self._folder(path, whole=place, called=called)
            elif names is not None and _hidden(where) and "/" in where:
                continue
            elif path.is_file() and _is_zip(path):
                zip_number += 1
                called = "the zip" if zips == 1 else f"zip {zip_number}"
                self._zip(_File(number, name, path, place, where), called)
            else:
                self._file(_File(number, name, path, 0, where))

    def leave(self, file: _File, reason: str, rule: str) -> None:
        self.left_out.append((file.number, LeftOut(file.name, reason, rule)))

    def tell_missing(self) -> None:
        """Of each DICOMDIR, which files it lists that did not come with it; pictures beside its films are its viewer's."""
        for file, listed in self._discs:
            reason = "This is the index of a disc (DICOMDIR), not a film"
            if not any(one.told and one.file.whole == file.whole for one in self.candidates):
                reason += ": drop the whole disc, or its folder"
            self.leave(file, f"{reason}.", "no-image")
            if file.whole not in self._named:
                continue
            base, present = f"{file.folder}/".lower() if file.folder else "", self._present[file.whole]
            if any("/" in name for name in present):
                missing = sum(base + name not in present for name in listed)
            else:  # picked from a disc's folders one by one
                missing = sum(name.rpartition("/")[2] not in present for name in listed)
            if missing:
                counted = (
                    "1 file that the DICOMDIR lists is"
                    if missing == 1
                    else f"{missing} files that the DICOMDIR lists are"
                )
                self.leave(
                    file, f"{counted} missing. If films are among them, drop the whole disc, or its folder.", "missing"
                )
            if missing < len(listed):
                self._leave_pictures(file.whole, base)

    def _leave_pictures(self, whole: int, base: str) -> None:
        kept = []
        for one in self.candidates:
            if one.told is None and one.file.whole == whole and one.file.where.lower().startswith(base):
                self.leave(
                    one.file,
                    "This picture lies on a disc whose films are DICOM files; most often it belongs to the disc's viewer. "
                    "If it is a film, drop it alone.",
                    "disc-picture",
                )
            else:
                kept.append(one)
        self.candidates = kept

    def _seen(self, file: _File) -> None:
        """Discs add a version to names (ISO 9660), which a DICOMDIR leaves out."""
        self._present.setdefault(file.whole, set()).add(re.sub(r"\.?;\d+$", "", file.where.lower()))

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _file(self, file: _File) -> None:
        """A single file: by its first bytes, then by its header."""
        self._seen(file)
        try:
            kind = kind_of(file.path)
        except FilmError as error:
            self.leave(file, *_no_film(error, _start(file.path)))
            return
        if kind != "DICOM":
            self.candidates.append(_Candidate(file, None))
            return
        with quiet_decoders():
            try:
                header = header_of(file.path)
            except FilmError as error:
                self.leave(file, str(error), error.rule or "")
                return
            if is_directory(header):
                self._discs.append((file, _listed(header)))
            else:
                self.candidates.append(_Candidate(file, _told(header)))

    def _folder(self, folder: Path, *, whole: int, called: str) -> None:
        self._named.add(whole)
        first = _File(self._count, called[0].upper() + called[1:], folder, whole, "")
        count = 0
        for path in _walk(folder):
            where = path.relative_to(folder).as_posix()
            if _hidden(where):
                continue
            count += 1
            if count > MOST_FILES:
                self.leave(
                    first, f"This folder has more than {MOST_FILES:,} files; the others were not looked at.", "too-many"
                )
                break
            name = f"File {count} of {called}"
            file = _File(self._next(), name, path, whole, where)
            if path.is_symlink() or not path.is_file():
                self.leave(file, "This is a link or a device, not a file.", "not-a-file")
            elif _is_zip(path):
                self._zip(file._replace(whole=-file.number), name[0].lower() + name[1:])
            else:
                self._file(file)
        if not count:
            self.leave(first, "This folder is empty.", "empty")

    # -- zips --------------------------------------------------------------------------------------------------------------

    def _zip(self, file: _File, called: str) -> None:
        """All of a zip's films, or none: a zip that turns out to be too large or cut short is left out as a whole."""
        kept = list(self.candidates), list(self.left_out), list(self._discs)
        self._named.add(file.whole)
        try:
            with zipfile.ZipFile(file.path) if _index_fits(file.path) else _refuse_files() as packed:
                self._members(packed, file, called)
            return
        except _RefusedError as refused:
            problem = str(refused), refused.rule
        except Exception:  # damaged in as many ways as a file may be: BadZipFile, OSError, UnicodeDecodeError, ...
            problem = "This zip file is damaged or cut short: copy it again.", "undecodable"
        for one in self.candidates[len(kept[0]) :]:
            one.file.path.unlink(missing_ok=True)
        self.candidates, self.left_out, self._discs = kept
        self.leave(file, *problem)

    def _members(self, packed: zipfile.ZipFile, file: _File, called: str) -> None:
        members = [one for one in packed.infolist() if not (one.is_dir() or _hidden(_plain(one.orig_filename)))]
        if len(members) > MOST_FILES:
            _refuse_files()
        if not members:
            raise _RefusedError("This zip file is empty.", "empty")
        if "[Content_Types].xml" in {one.filename for one in members}:
            raise _RefusedError("This is an office document, not a film.", "unsupported-format")
        if all(one.flag_bits & 1 for one in members):
            raise _RefusedError("This zip file is encrypted: unpack it first, then drop its files.", "encrypted")
        size = file.path.stat().st_size
        for count, member in enumerate(members, 1):
            inner = _File(
                self._next(),
                f"File {count} of {called}",
                self._scratch / os.urandom(16).hex(),
                file.whole,
                _plain(member.orig_filename),
                packed=True,
            )
            try:
                _refuse_member(member)
                self._seen(inner)
                self._unpack(packed, member, inner.path, size)
            except _RefusedError as refused:
                if refused.whole:
                    raise
                self.leave(inner, str(refused), refused.rule)
                inner.path.unlink(missing_ok=True)
                continue
            except FilmError as error:
                self.leave(inner, str(error), error.rule or "")
                continue
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
                self.leave(inner, "This member of the zip is damaged: copy the zip again.", "undecodable")
                inner.path.unlink(missing_ok=True)
                continue
            self._file(inner)

    def _unpack(self, packed: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, size: int) -> None:
        """Write a member that begins like a film to `path`. Raises FilmError, before anything is written, for what is no film.

        size: of the zip file, which no member's packed form exceeds, whatever its header says.
        """
        dense = max(1, min(member.compress_size, size))
        with packed.open(member) as source:
            chunk = source.read(_START)
            if chunk[:4] == b"PK\x03\x04" and chunk[128:132] != b"DICM":
                inner = "This is a zip file within a zip file: unpack it and drop it alone."
                raise _RefusedError(inner, "unsupported-format")
            if not chunk:
                raise FilmError("This file is empty: copy or export the film again.", rule="empty")
            try:
                kind_of_head(chunk[:_HEAD])
            except FilmError as error:
                reason, rule = _no_film(error, chunk)
                raise FilmError(reason, rule=rule) from error
            count = 0
            with path.open("xb") as target:
                while chunk:
                    count += len(chunk)
                    self._left -= len(chunk)  # of what is refused later, too: unpacking takes time
                    self._refuse_unpacked(count, dense)
                    target.write(chunk)
                    chunk = source.read(_CHUNK)

    def _refuse_unpacked(self, count: int, dense: int) -> None:
        if self._left < 0:
            limit = f"more than {MOST_UNPACKED // 1_000_000_000} GB"
            raise _RefusedError(
                f"Unpacked, this would be {limit}: unpack it and drop one study.", "too-large", whole=True
            )
        if count > MAX_BYTES:
            limit = f"larger than {MAX_BYTES // 1_000_000} MB"
            raise _RefusedError(f"This file is {limit}, which no single film is.", "too-large")
        if count > BOMB_BYTES and count > BOMB_RATIO * dense:
            raise _RefusedError("It is packed far smaller than any film can be: it was not taken.", "too-large")


class _RefusedError(Exception):
    """A zip or a member of one that is not unpacked. whole: what was found means the whole zip."""

    def __init__(self, message: str, rule: str, *, whole: bool = False) -> None:
        super().__init__(message)
        self.rule, self.whole = rule, whole


def _refuse_files() -> zipfile.ZipFile:
    raise _RefusedError(
        f"This zip file holds more than {MOST_FILES:,} files: unpack it and drop one study.", "too-many", whole=True
    )


def _is_zip(path: Path) -> bool:
    """By content: an archive's first member, or its end where it is empty. A DICOM preamble may look like either."""
    head = _start(path)
    return head[:4] in (b"PK\x03\x04", b"PK\x05\x06") and head[128:132] != b"DICM"


def _index_fits(path: Path) -> bool:
    """Whether a zip's list of members is short enough to be read at all: its length stands in the end record (APPNOTE 4.3.16)."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2**16 - 22))
        tail = file.read()
    bare = len(tail) - 22  # where it lies without a comment
    place = bare if bare >= 0 and tail[bare:].startswith(b"PK\x05\x06") else tail.rfind(b"PK\x05\x06")
    length = int.from_bytes(tail[place + 12 : place + 16], "little") if place >= 0 else 0  # no end: refused for that
    wide = tail[max(0, place - 76) : max(0, place - 20)]
    if wide.startswith(b"PK\x06\x06"):  # a Zip64 file (4.3.14), whose own record goes before the other
        length = int.from_bytes(wide[40:48], "little")
    return length <= MOST_INDEX


def _refuse_member(member: zipfile.ZipInfo) -> None:
    name, mode = member.orig_filename, member.external_attr >> 16
    parts = re.split(r"[/\\]", name)
    if "\0" in name or ".." in parts or not parts[0] or re.match("[A-Za-z]:", name):
        raise _RefusedError("Its name in the zip points out of the zip: pack the films again.", "unsafe-name")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise _RefusedError("This is a link or a device, not a file.", "not-a-file")
    if member.flag_bits & 1:
        raise _RefusedError(
            "This member of the zip is encrypted: unpack the zip first, then drop its files.", "encrypted"
        )
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _RefusedError(
            "It is packed in an unusual way: unpack the zip first, then drop its files.", "unsupported-format"
        )


# --- names, which only sort ----------------------------------------------------------------------------------------------


def _plain(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


def _hidden(where: str) -> bool:
    """What computers put beside files of their own accord."""
    parts = where.split("/")
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in parts) or parts[
        -1
    ].lower() in ("thumbs.db", "desktop.ini")


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(root) / name for name in sorted(files))


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_START)
    except OSError:
        return b""


_PROGRAMS = (b"MZ", b"\x7fELF", b"\xfe\xed\xfa", b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"\xca\xfe\xba\xbe", b"#!")


def _no_film(error: FilmError, start: bytes) -> tuple[str, str]:
    """The reason in words and the rule, for a file that is of no kind a film can be. start: its first bytes."""
    rule = error.rule or ""
    if rule == "unsupported-format":
        if start.startswith(_PROGRAMS):
            return "This is a program, as discs bring one to show their films; it was not run.", rule
        if re.match(rb"\s*(<!doctype html|<html)", start, re.IGNORECASE):
            return "This is a web page, not a film.", rule
        if not re.search(rb"[\x00-\x08\x0e-\x1f]", start) and not start.startswith((b"%PDF", b"GIF8", b"BM")):
            return "This is a text file, not a film.", rule
    return str(error), rule


# --- headers -------------------------------------------------------------------------------------------------------------


def _listed(directory: pydicom.Dataset) -> list[str]:
    """The files that a DICOMDIR lists (PS3.3 F.3.2.2), relative, in small letters; each once."""
    found: dict[str, None] = {}
    records = header_value(directory, "DirectoryRecordSequence")
    for record in records if isinstance(records, pydicom.Sequence) else []:
        file = header_value(record, "ReferencedFileID")
        if not file or header_value(record, "RecordInUseFlag") == 0:
            continue
        parts = [str(part).strip() for part in (file if isinstance(file, MultiValue) else [file])]
        found["/".join(part for part in parts if part).lower()] = None
    return list(found)


# of slices and of what is no projection: a header that says so is hardly ever wrong, and a disc holds hundreds of them
_SLICES = {"CT", "MR", "PT", "NM", "US", "IVUS", "OCT", "OPT", "SM", "SEG", "BMD", "RTDOSE"}


def _told(header: pydicom.Dataset) -> _Told:
    """Within `quiet_decoders`."""
    refused = None
    try:
        refuse_kind(header)
    except FilmError as error:
        refused = error
    slices = str(header_value(header, "Modality") or "").strip().upper() in _SLICES
    uid = str(header_value(header, "StudyInstanceUID") or "").strip()
    return _Told(uid, _who(header), _when(header), refused, slices)


@dataclass(frozen=True)
class _Who:
    """Whose film it is, as its header says. In memory only."""

    id: str
    issuer: str
    born: str
    sex: str
    words: frozenset[str]  # of the name

    @property
    def known(self) -> bool:
        """Whether the id can tell patients apart: those who remove ids often put one word in place of all of them."""
        plain = re.sub(r"[\W_]", "", self.id)
        return bool(plain.strip("0X")) and plain not in _NO_IDS

    def contradicts(self, other: "_Who") -> bool:
        """Whether the two cannot be one patient, though ids may be the same: two hospitals count alike."""
        pairs = ((self.issuer, other.issuer), (self.born, other.born), (self.sex, other.sex))
        if self.id != other.id or any(mine and theirs and mine != theirs for mine, theirs in pairs):
            return True
        return bool(self.words and other.words and self.words.isdisjoint(other.words))


_NO_IDS = {
    "ANON", "ANONYM", "ANONYMOUS", "ANONYMIZED", "ANONYMISED", "DEIDENTIFIED", "DEID", "DELETED", "HIDDEN", "ID", "NA",
    "NIL", "NOID", "NONE", "NOTAVAILABLE", "NULL", "PATIENT", "PATIENTID", "REMOVED", "TEST", "UNDEFINED", "UNKNOWN",
}  # fmt: skip


def _who(header: pydicom.Dataset) -> _Who:
    def text(keyword: str) -> str:
        return str(header_value(header, keyword) or "").strip().upper()

    sex = text("PatientSex")
    return _Who(
        text("PatientID"),
        text("IssuerOfPatientID"),
        re.sub(r"\D", "", text("PatientBirthDate")),
        sex if sex in ("F", "M") else "",
        frozenset(re.findall(r"[^\W\d_]+", text("PatientName"))),
    )


class _When(NamedTuple):
    day: date | None = None
    at: time | None = None

    def before(self, other: "_When") -> bool:
        """Whether it was surely earlier."""
        if self.day is None or other.day is None:
            return False
        if self.day != other.day:
            return self.day < other.day
        return self.at is not None and other.at is not None and self.at < other.at


def _when(header: pydicom.Dataset) -> _When:
    """Study Date and Study Time (PS3.5 6.2: DA and TM, the old forms with points and colons too)."""
    day, at = (str(header_value(header, keyword) or "").strip() for keyword in ("StudyDate", "StudyTime"))
    if not (match := re.fullmatch(r"(\d{4})([.-]?)(\d\d)\2(\d\d)", day)):
        return _When()
    try:
        taken = date(int(match[1]), int(match[3]), int(match[4]))
    except ValueError:
        return _When()
    if not (clock := re.match(r"(\d\d):?([0-5]\d)?:?([0-5]\d)?", at)):
        return _When(taken)
    hour, minute, second = (int(part or 0) for part in clock.groups())
    return _When(taken, time(hour, minute, second) if hour < 24 else None)


# --- studies and patients ------------------------------------------------------------------------------------------------

_Key = tuple[str | int, ...]


@dataclass(frozen=True)
class _Member:
    """A file that is to be read as a film. key: of its study, among all whose patients agree; who: None for a picture."""

    file: _File
    key: _Key
    who: _Who | None
    when: _When


def _films_of(drop: _Drop, lone: bool) -> list[_Member]:
    """Candidates that may be read as films; the others are left out. lone: the only file: what may be overridden is offered."""
    found = []
    for file, told in drop.candidates:
        if told is None:
            found.append(_Member(file, ("pictures", file.whole, file.folder), None, _When()))
        elif told.refused and not (told.refused.overridable and (lone or not told.slices)):
            drop.leave(file, str(told.refused), told.refused.rule or "")
        else:
            key: _Key = ("study", told.uid) if told.uid else ("loose", file.whole, file.folder)
            found.append(_Member(file, key, told.who, told.when))
    return found


def _studies(members: Sequence[_Member]) -> list[list[_Member]]:
    """Those of one study together, in the order in which they came. Whoever's films they are must agree."""
    studies: dict[_Key, list[list[_Member]]] = {}
    order = []
    for member in members:
        for study in studies.get(member.key, []):
            if all(member.who is None or one.who is None or not member.who.contradicts(one.who) for one in study):
                study.append(member)
                break
        else:
            study = [member]
            studies.setdefault(member.key, []).append(study)
            order.append(study)
    return order


_Dated = tuple[_When, list[_Member]]


def _patients(studies: Sequence[list[_Member]]) -> list[list[_Dated]]:
    """Studies by patient, the newest first and those without a date last."""
    patients: list[tuple[list[_Who], list[_Dated]]] = []
    for study in studies:
        who = [one.who for one in study if one.who]
        dated = next((one.when for one in study if one.when.day), _When()), study
        for known, theirs in patients:
            if who and known and _same(who, known):
                theirs.append(dated)
                known.extend(who)
                break
        else:
            patients.append((who, [dated]))
    for _, theirs in patients:
        theirs.sort(key=lambda one: (one[0].day or date.min, one[0].at or time.max), reverse=True)
    return [theirs for _, theirs in patients]


def _same(who: Sequence[_Who], known: Sequence[_Who]) -> bool:
    return all(
        one.known and one.issuer == other.issuer and not one.contradicts(other) for one in who for other in known
    )


# --- films ---------------------------------------------------------------------------------------------------------------


def _read(patients: Sequence[Sequence[_Dated]], drop: _Drop, progress: Progress | None) -> Arrived:
    of = sum(len(study) for studies in patients for _, study in studies)
    done, pixels = 0, 0
    found: list[Study] = []
    number = 0
    for studies in patients:
        kept: list[tuple[_When, tuple[Arrival, ...]]] = []
        for when, study in studies:
            films: list[Arrival] = []
            for member in study:
                if progress:
                    progress(done, of)
                done += 1
                if pixels > MOST_PIXELS:
                    drop.leave(
                        member.file, "These are too many films at once: drop one study after the other.", "too-many"
                    )
                elif arrival := _arrival(member.file, films, drop):
                    films.append(arrival)
                    pixels += arrival.film.pixels.size if arrival.film else 0
            if films:
                order = in_order([one.film.view if one.film else None for one in films])
                kept.append((when, tuple(films[place] for place in order)))
        first, newest = len(found), kept[0][0] if kept else _When()
        for when, arrivals in kept:
            earlier = tuple(first + place for place, (other, _) in enumerate(kept) if other.before(when))
            days = (newest.day - when.day).days if newest.day and when.day and when.before(newest) else None
            found.append(Study(arrivals, number, earlier, days))
        number += bool(kept)
    if progress:
        progress(of, of)
    left_out = sorted(drop.left_out, key=lambda pair: pair[0])
    return Arrived(tuple(found), tuple(one for _, one in left_out))


def _arrival(file: _File, others: Sequence[Arrival], drop: _Drop) -> Arrival | None:
    """One film; None where it was left out."""
    film, refused = None, None
    try:
        film = read_film(file.path, name=file.name)
    except FilmError as error:
        if not (error.overridable and error.rule in OVERRIDABLE):
            drop.leave(file, str(error), error.rule or "")
            return None
        refused = error
    if film and (same := next((one for one in others if one.film and one.film.sha256 == film.sha256), None)):
        drop.leave(file, f"This is the same image as {same.name[0].lower()}{same.name[1:]}.", "same-image")
        return None
    return Arrival(file.name, film, file.path.read_bytes() if file.packed else file.path, refused)
