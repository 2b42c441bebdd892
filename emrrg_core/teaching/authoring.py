"""Making a case: its films and its words, written to a folder of cases so that it is there whole or not at all.

    <folder>/<id>.toml            last of all: from then on the case is listed
    <folder>/<id>/film-1.png      16 bits: the film as read, with its view and spacing; nothing else of a header, and no name of a file

What is burned into the pixels stays there: whoever makes a case answers for it (films.burned_in_text.burned_in_warning finds some of it).
"""

import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from emrrg_core.config import MOST_FILMS
from emrrg_core.errors import EmrrgError
from emrrg_core.films.film import Film
from emrrg_core.teaching.cases import AS_READ, DIFFICULTIES, QUESTION, CaseError, read_case
from emrrg_core.teaching.locate import Mark

SOURCE = "Made in EMRRG"
LICENCE = "Not stated: for use on this server only"
_LONGEST_ID = 40


class AuthoringError(EmrrgError):
    """A case that cannot be written; the text says what to do."""


def own_folder() -> Path:
    """Where a user's own cases are kept: $EMRRG_HOME/cases, $XDG_DATA_HOME/emrrg/cases or ~/.local/share/emrrg/cases."""
    if home := os.environ.get("EMRRG_HOME"):
        return Path(home).expanduser().absolute() / "cases"
    data = os.environ.get("XDG_DATA_HOME")
    # the XDG Base Directory specification says that a relative path is to be ignored
    base = Path(data) if data and Path(data).is_absolute() else Path.home() / ".local" / "share"
    return base / "emrrg" / "cases"


def write_case(
    folder: Path | str,
    *,
    title: str,
    films: Sequence[Film],
    findings: str,
    impression: str,
    question: str = "",
    boxes: Sequence[Mark] | None = None,
    tags: Sequence[str] = (),
    difficulty: str = "",
    points: Sequence[str] = (),
    source: str = "",
    licence: str = "",
    taken: Collection[str] = (),
) -> str:
    """Write a case, and return its Case.id, made of the title. The folder is made where it is missing; nothing in it is overwritten.

    boxes: where the findings are, in shares of the films; None where that is not said, () where there is none to be found. taken: ids that the
    case may not have. Raises AuthoringError for a case that lacks something, and for a folder that cannot be written to.
    """
    folder = Path(folder)
    if not title.strip():
        raise AuthoringError(
            "Give the case a title. It is shown before the answer: it should not give the finding away."
        )
    if not 1 <= len(films) <= MOST_FILMS:
        raise AuthoringError(
            f"A case has one to {MOST_FILMS} films, and this one has {len(films)}. Drop its films first."
        )
    if not (findings.strip() or impression.strip()):
        raise AuthoringError("Write the reference report: Findings, Impression or both.")
    if any(not (box.width and box.height) for box in boxes or ()):
        raise AuthoringError("A point is no box. Drag over each finding, from one corner to the other.")
    if difficulty not in ("", *DIFFICULTIES):
        raise AuthoringError(f"The difficulty is {', '.join(DIFFICULTIES)}, or not stated.")
    words: dict[str, Any] = {
        "title": _line(title),
        "question": question.strip() or QUESTION,
        "source": _line(source) or SOURCE,
        "licence": _line(licence) or LICENCE,
        "tags": list(dict.fromkeys(filter(None, map(_line, tags)))),
        "difficulty": difficulty,
        "points": list(filter(None, map(_line, points))),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as aside:
            return _written(folder, Path(aside), words, films, (findings, impression), boxes, taken)
    except OSError as error:
        raise AuthoringError(
            f"The case was not written: its folder cannot be written to ({error.strerror or error}). Make room or give this user the right "
            "to write there, or start the app with --cases and another folder."
        ) from error


def _written(
    folder: Path,
    aside: Path,
    words: Mapping[str, Any],
    films: Sequence[Film],
    reference: tuple[str, str],
    boxes: Sequence[Mark] | None,
    taken: Collection[str],
) -> str:
    id = _claimed(folder, words["title"], taken)
    home, pictures, case = folder / id, aside / id, aside / f"{id}.toml"
    try:
        pictures.mkdir()
        for number, film in enumerate(films, 1):
            _save(film, pictures / f"film-{number}.png")
        names = [f"{id}/film-{number}.png" for number in range(1, len(films) + 1)]
        case.write_text(_toml(words, names, reference, boxes), encoding="utf-8")
        try:
            read_case(case).read()
        except CaseError as error:
            raise AuthoringError(f"The case was not written. {str(error).removeprefix(f'{id}.toml: ')}") from error
        pictures.rename(home)  # in the place of the empty folder that is ours
        os.link(case, folder / f"{id}.toml")  # unlike a rename, it never takes the place of a file
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise
    return id


def _claimed(folder: Path, title: str, taken: Collection[str]) -> str:
    """An id that is free, and now ours: its folder is made."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    stem = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:_LONGEST_ID].strip("-") or "case"
    for number in range(1, 10_000):
        id = stem if number == 1 else f"{stem}-{number}"
        if id in taken or (folder / f"{id}.toml").exists():
            continue
        try:
            (folder / id).mkdir()
        except FileExistsError:
            continue
        return id
    raise AuthoringError("There are too many cases of this title. Choose another one.")


def _save(film: Film, path: Path) -> None:
    told = PngInfo()
    told.add_text(AS_READ, "1")
    if film.view:
        told.add_text("emrrg:view", film.view)
    if film.spacing:
        told.add_text("emrrg:spacing", " ".join(map(repr, map(float, film.spacing))))
    values = np.rint(np.clip(film.pixels, 0, 1) * 65535).astype(np.uint16)
    Image.fromarray(values).save(path, "PNG", pnginfo=told)


# ---------------------------------------------------------------------------------------------------------------- TOML


def _toml(
    words: Mapping[str, Any], films: Sequence[str], reference: tuple[str, str], boxes: Sequence[Mark] | None
) -> str:
    lines = [f"{key} = {_value(words[key])}" for key in ("title", "question")]
    lines.append(f"films = {_value(list(films))}")
    lines += [
        f"{key} = {_value(words[key])}" for key in ("source", "licence", "tags", "difficulty", "points") if words[key]
    ]
    if boxes is not None and not boxes:
        lines.append("boxes = []")
    findings, impression = (text.strip() for text in reference)
    lines += ["", "[reference]", f"findings = {_value(findings)}", f"impression = {_value(impression)}"]
    for box in boxes or ():
        lines += ["", "[[boxes]]", f"finding = {_value(box.finding)}", f"film = {box.film + 1}"]
        lines += [
            f"{key} = {value:.5f}" for key, value in zip("xywh", (box.x, box.y, box.width, box.height), strict=True)
        ]
    return "\n".join([*lines, ""])


def _value(value: str | list[str]) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return f'"{"".join(map(_escaped, value))}"'


def _escaped(character: str) -> str:
    """As a basic string of TOML 1.0 has it."""
    if character in '"\\':
        return f"\\{character}"
    if character == "\n":
        return "\\n"
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x20 or code == 0x7F else "\ufffd" if 0xD800 <= code < 0xE000 else character


def _line(text: str) -> str:
    return " ".join(text.split())
