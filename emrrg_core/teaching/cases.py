"""Cases for teaching: a folder of TOML files, each naming the films of one study and the report that answers are held against.

    cases/case-01.toml       docs/teaching.md has every key
    cases/case-01.png        its films lie in the same folder, or below it

A case is read strictly: an unknown key is a spelling mistake until proved otherwise. A case that cannot be used never hides the others.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emrrg_core.config import MOST_FILMS
from emrrg_core.errors import EmrrgError
from emrrg_core.films.film import Film, read_film
from emrrg_core.text.labeler import LABELS, NOT_MENTIONED, Status

QUESTION = "What do you see? Write Findings and Impression."
_REQUIRED = ("title", "films", "source", "licence", "reference")
_KEYS = (*_REQUIRED, "question", "points", "labels")
_STATUSES: dict[str, Status | None] = {**{status.value: status for status in Status}, NOT_MENTIONED: None}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class CaseError(EmrrgError):
    """A case that cannot be used: which file, and what to mend in it."""


@dataclass(frozen=True)
class Case:
    """One case of a folder. The reference, the labels and the points are for after the learner's answer."""

    id: str  # the file's name without .toml
    title: str
    question: str
    films: tuple[Path, ...]  # one to four, of one study
    findings: str  # the reference report; one of the two may be empty
    impression: str
    labels: Mapping[str, Status | None] | None  # as the teacher knows them; None: what the reference states
    points: tuple[str, ...]
    source: str
    licence: str

    def read(self) -> tuple[Film, ...]:
        """Its films, called "Film 1", "Film 2". Raises CaseError, which tells a film by its place: its name may tell the answer."""
        films = []
        for number, path in enumerate(self.films, 1):
            try:
                films.append(read_film(path, name=f"Film {number}"))
            except EmrrgError as error:
                raise CaseError(f"Film {number} of this case cannot be shown. {error}") from error
        return tuple(films)


@dataclass(frozen=True)
class Cases:
    """What a folder holds."""

    cases: tuple[Case, ...]  # in the order of their files' names
    problems: tuple[str, ...]  # a sentence for each file that was left out, and why

    def __getitem__(self, id: str) -> Case:
        """Raises CaseError where there is none of that name (any more)."""
        for case in self.cases:
            if case.id == id:
                return case
        raise CaseError("This case is not among the cases any more. Choose another one.")


def read_cases(folder: Path | str) -> Cases:
    """All cases of a folder. Never raises for a case: what is wrong with one is among the problems."""
    folder = Path(folder)
    if not folder.is_dir():
        return Cases((), (f"There is no folder of cases at {folder}: make one (docs/teaching.md), or name another.",))
    cases, problems = [], []
    for path in sorted(folder.glob("*.toml")):
        try:
            cases.append(read_case(path))
        except CaseError as error:
            problems.append(str(error))
    return Cases(tuple(cases), tuple(problems))


def read_case(path: Path | str) -> Case:
    """One case; its films are looked for, not yet read. Raises CaseError naming the file and what to do."""
    path = Path(path)
    try:
        return _case(path, tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except OSError as error:
        raise CaseError(f"{path.name} cannot be opened ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise CaseError(f"{path.name} is not in UTF-8: save it as UTF-8 text.") from error
    except tomllib.TOMLDecodeError as error:
        raise CaseError(f"{path.name} is not TOML: {error}. Mend that place; texts stand in quotes.") from error
    except _UnfitError as error:
        raise CaseError(f"{path.name}: {error}") from error


class _UnfitError(Exception):
    """What is wrong, and what to do, as a sentence."""


def _case(path: Path, data: Mapping[str, Any]) -> Case:
    if not _NAME.fullmatch(path.stem):
        raise _UnfitError("the name may hold letters, digits, - and _ only, at most 64. Rename the file.")
    _known(data, _KEYS, "")
    if missing := [key for key in _REQUIRED if key not in data]:
        raise _UnfitError(f"{_listed(missing)} {'is' if len(missing) == 1 else 'are'} missing. Write it down.")
    reference = data["reference"]
    if not isinstance(reference, dict):
        raise _UnfitError("reference is a table: write [reference], and under it findings and impression.")
    _known(reference, ("findings", "impression"), " under [reference]")
    findings, impression = (_text(reference, key, empty=True) for key in ("findings", "impression"))
    if not (findings or impression):
        raise _UnfitError("the reference report has no words. Write findings or impression under [reference].")
    return Case(
        id=path.stem,
        title=_text(data, "title"),
        question=_text(data, "question") if "question" in data else QUESTION,
        films=_films(path.parent, data["films"]),
        findings=findings,
        impression=impression,
        labels=_labels(data["labels"]) if "labels" in data else None,
        points=tuple(_texts(data.get("points", []), "points")),
        source=_text(data, "source"),
        licence=_text(data, "licence"),
    )


def _known(table: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    if unknown := sorted(table.keys() - set(keys)):
        raise _UnfitError(f"there is no key {_listed(unknown)}{where}. The keys are {_listed(keys)}.")


def _listed(words: Any) -> str:
    return ", ".join(words)


def _text(table: Mapping[str, Any], key: str, *, empty: bool = False) -> str:
    value = table.get(key, "" if empty else None)
    if not isinstance(value, str):
        raise _UnfitError(f'{key} is a text: write {key} = "…".')
    if not (value.strip() or empty):
        raise _UnfitError(f"{key} is empty. Write it down.")
    return value.strip()


def _texts(value: Any, key: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) and each.strip() for each in value):
        raise _UnfitError(f'{key} is a list of texts: write {key} = ["…", "…"].')
    return [each.strip() for each in value]


def _films(folder: Path, value: Any) -> tuple[Path, ...]:
    names = _texts(value, "films")
    if not 1 <= len(names) <= MOST_FILMS:
        raise _UnfitError(f"a case has one to {MOST_FILMS} films, and this one has {len(names)}.")
    paths = []
    for number, name in enumerate(names, 1):
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise _UnfitError(f"film {number} lies outside the folder of cases. Put it beside the case.")
        if not path.is_file():
            raise _UnfitError(f"film {number} is not in the folder. Put it there, or mend its name under films.")
        paths.append(path)
    return tuple(paths)


def _labels(value: Any) -> dict[str, Status | None]:
    if not isinstance(value, dict):
        raise _UnfitError(
            'labels is a table: write [labels], and under it lines such as "Pleural Effusion" = "positive".'
        )
    if unknown := sorted(value.keys() - set(LABELS)):
        raise _UnfitError(f"there is no label {_listed(unknown)}. The labels are {_listed(LABELS)}.")
    for label, status in value.items():
        if not (isinstance(status, str) and status in _STATUSES):
            raise _UnfitError(f"{label} is {_listed(_STATUSES)}, not {status!r}.")
    return {label: _STATUSES[value[label]] for label in LABELS if label in value}
