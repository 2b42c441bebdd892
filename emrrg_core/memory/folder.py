"""A folder of films and reports, or a file of JSON lines, as cases to remember.

    NAME.dcm (or .png, .jpg, .tif, …) with NAME.txt beside it     a film with its report
    NAME.txt alone                                                a report
    *.jsonl                                                       a row a case: `findings`, `impression` or `report`, and `files` where it has films

A report's sections are told by the headings FINDINGS and IMPRESSION, at the beginning of a line or in capitals; a text without headings is findings.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emrrg_core.errors import DataError

FILMS = {".dcm", ".dicom", ".dic", ".ima", ".png", ".jpg", ".jpeg", ".tif", ".tiff"}
_HEADING = re.compile(
    r"^[ \t]*(findings|impression|conclusion)[ \t]*:?[ \t]*$|^[ \t]*(findings|impression|conclusion)[ \t]*:"
    r"|(?-i:\b(FINDINGS|IMPRESSION|CONCLUSION)[ \t]*:)",
    re.I | re.M,
)


@dataclass(frozen=True)
class Given:
    """A case as it lies in a folder. name: for messages on the reader's own screen only."""

    name: str
    films: tuple[Path, ...]
    findings: str
    impression: str


def sections_of(text: str) -> tuple[str, str]:
    """Findings and Impression of a report's text; what stands before the first heading is left out, unless there is no heading."""
    marks = list(_HEADING.finditer(text))
    if not marks:
        return text.strip(), ""
    parts: dict[str, list[str]] = {"findings": [], "impression": []}
    for mark, end in zip(marks, [*(m.start() for m in marks[1:]), len(text)], strict=True):
        name = next(filter(None, mark.groups())).lower()
        parts["impression" if name != "findings" else "findings"].append(text[mark.end() : end].strip())
    return "\n".join(parts["findings"]), "\n".join(parts["impression"])


def read_folder(path: Path) -> Iterator[Given]:
    """The cases of a folder, in the order of their names, or of a .jsonl file. Raises DataError with what is wrong, naming the file and line."""
    if path.is_file() and path.suffix == ".jsonl":
        yield from _rows(path)
        return
    if not path.is_dir():
        raise DataError(f"{path} is neither a folder nor a .jsonl file: name the one that holds films and reports.")
    found = False
    films: dict[Path, Path] = {}
    for file in sorted(path.rglob("*")):
        if file.suffix.lower() in FILMS and not file.name.startswith("."):
            films.setdefault(file.with_suffix(""), file)
    for file in sorted(path.rglob("*")):
        if file.name.startswith(".") or not file.is_file():
            continue
        if file.suffix == ".jsonl":
            found = True
            yield from _rows(file)
        elif file.suffix.lower() == ".txt":
            found = True
            film = films.get(file.with_suffix(""))
            yield Given(file.name, (film,) if film else (), *sections_of(_text(file)))
    if not found:
        raise DataError(
            f"{path} holds no report: a film NAME.dcm is remembered with NAME.txt beside it, a report alone as NAME.txt or in a .jsonl."
        )


def _rows(path: Path) -> Iterator[Given]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row: dict[str, Any] = json.loads(line)
            findings, impression = str(row.get("findings") or ""), str(row.get("impression") or "")
            if not (findings or impression):
                findings, impression = sections_of(str(row["report"]))
            films = tuple(path.parent / str(film) for film in row.get("files") or ())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise DataError(
                f"{path.name}, line {number}: a case is an object with findings, impression or report ({error})."
            ) from error
        yield Given(str(row.get("id", f"line {number}")), films, findings, impression)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path.name} cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from error
