"""Cases for teaching: a folder of TOML files, each naming the films of one study and the report that answers are held against.

    cases/case-01.toml       docs/teaching.md has every key
    cases/case-01.png        its films lie in the same folder, or below it

Boxes say where a finding of the case is: `[[boxes]]` with finding, film, and x, y, w, h or a mask.

A case is read strictly: an unknown key is a spelling mistake until proved otherwise. A case that cannot be used never hides the others.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from emrrg_core.config import MOST_FILMS
from emrrg_core.errors import EmrrgError
from emrrg_core.films.film import Film, read_film
from emrrg_core.teaching.locate import MARKABLE, Box
from emrrg_core.text.labeler import LABELS, NOT_MENTIONED, Status

QUESTION = "What do you see? Write Findings and Impression."
_REQUIRED = ("title", "films", "source", "licence", "reference")
_KEYS = (*_REQUIRED, "question", "points", "labels", "boxes", "tags", "difficulty")
DIFFICULTIES = ("easy", "moderate", "hard")
_PLACE = ("x", "y", "w", "h")
AS_READ = "emrrg:film"  # the text of a PNG that authoring.py wrote: its 16 bits are the film as read, and are not stretched again
_STATUSES: dict[str, Status | None] = {**{status.value: status for status in Status}, NOT_MENTIONED: None}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class CaseError(EmrrgError):
    """A case that cannot be used: which file, and what to mend in it."""


@dataclass(frozen=True)
class CaseBox:
    """Where a finding of a case is, as the file says it: in shares of the film, or in its pixels where a number is above 1; or a mask."""

    finding: str
    film: int  # from 0
    place: tuple[float, float, float, float] | None  # x, y, width, height
    mask: Path | None

    def on(self, film: Film | None) -> Box:
        """In shares. film: needed for pixels and masks. Raises CaseError for one that does not fit its film."""
        if self.place and max(self.place) <= 1:
            return Box(self.finding, self.film, *self.place)
        if film is None:
            raise ValueError("pixels and masks need their film")
        height, width = film.pixels.shape
        if self.mask:
            return _masked(self, height, width)
        assert self.place
        x, y, w, h = self.place
        if x + w > width or y + h > height:
            raise CaseError(f"A box of {self.finding} ends outside film {self.film + 1}. Mend its numbers under boxes.")
        return Box(self.finding, self.film, x / width, y / height, w / width, h / height)


def _masked(box: CaseBox, height: int, width: int) -> Box:
    assert box.mask
    try:
        with Image.open(box.mask) as picture:
            mask = np.asarray(picture.convert("I")) > 0
    except (OSError, ValueError) as error:
        raise CaseError(f"The mask of {box.finding} cannot be read. Save it as a grey PNG again.") from error
    if mask.shape != (height, width) or not mask.any():
        raise CaseError(
            f"The mask of {box.finding} is empty, or not {width} × {height} pixels as film {box.film + 1} is."
        )
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    top, left, bottom, right = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    x, y, w, h = left / width, top / height, (right - left) / width, (bottom - top) / height
    return Box(box.finding, box.film, float(x), float(y), float(w), float(h), mask=mask)


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
    boxes: tuple[CaseBox, ...] | None = (
        None  # None: nobody has said where the findings are; (): there is none to be found
    )
    tags: tuple[str, ...] = ()
    difficulty: str = ""  # of DIFFICULTIES; "" where it is not stated

    def places(self, films: Sequence[Film] | None = None) -> tuple[Box, ...] | None:
        """Where its findings are, in shares of the films; None where the case does not say it. films: read where they are needed and not given.

        Raises CaseError for a box that does not fit its film.
        """
        if self.boxes is None:
            return None
        if films is None and any(box.mask or not box.place or max(box.place) > 1 for box in self.boxes):
            films = self.read()
        return tuple(box.on(films[box.film] if films else None) for box in self.boxes)

    def read(self) -> tuple[Film, ...]:
        """Its films, called "Film 1", "Film 2". Raises CaseError, which tells a film by its place: its name may tell the answer."""
        films = []
        for number, path in enumerate(self.films, 1):
            try:
                films.append(_as_written(path, read_film(path, name=f"Film {number}")))
            except EmrrgError as error:
                raise CaseError(f"Film {number} of this case cannot be shown. {error}") from error
        return tuple(films)


def _as_written(path: Path, film: Film) -> Film:
    """A film that `authoring.write_case` wrote is as it was read: neither stretched nor without its view and spacing."""
    if film.format != "PNG":
        return film
    with Image.open(path) as picture:
        if picture.mode != "I;16" or picture.info.get(AS_READ) != "1":
            return film
        values, told = np.asarray(picture), picture.info
    spacing = tuple(float(part) for part in told.get("emrrg:spacing", "").split())
    return replace(
        film,
        pixels=(values / np.float32(65535)).astype(np.float32),
        steps=(
            *(step for step in film.steps if not step.startswith("deeper")),
            "16-bit values as read when the case was made",
        ),
        view=told.get("emrrg:view") or None,
        spacing=(spacing[0], spacing[1]) if len(spacing) == 2 else None,
    )


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
        boxes=_boxes(path.parent, data["boxes"], len(data["films"])) if "boxes" in data else None,
        tags=tuple(dict.fromkeys(_texts(data.get("tags", []), "tags"))),
        difficulty=_difficulty(data),
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


def _difficulty(data: Mapping[str, Any]) -> str:
    value = data.get("difficulty", "")
    if value not in ("", *DIFFICULTIES):
        raise _UnfitError(f"difficulty is {_listed(DIFFICULTIES)}, not {value!r}.")
    return str(value)


def _boxes(folder: Path, value: Any, films: int) -> tuple[CaseBox, ...]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise _UnfitError("boxes are tables: write [[boxes]], and under it finding, film, x, y, w and h.")
    return tuple(_box(folder, each, films) for each in value)


def _box(folder: Path, value: Mapping[str, Any], films: int) -> CaseBox:
    _known(value, ("finding", "film", *_PLACE, "mask"), " under [[boxes]]")
    finding, film = value.get("finding"), value.get("film", 1)
    if finding not in MARKABLE:
        raise _UnfitError(f"a box has a finding: one of {_listed(MARKABLE)}.")
    if type(film) is not int or not 1 <= film <= films:
        raise _UnfitError(f"a box of {finding} is on a film that the case does not have. Films are counted from 1.")
    if "mask" in value:
        if value.keys() & set(_PLACE):
            raise _UnfitError(f"a box of {finding} has numbers and a mask. Leave one of the two.")
        return CaseBox(finding, film - 1, None, _inside(folder, _text(value, "mask"), f"the mask of {finding}"))
    numbers = [value.get(key) for key in _PLACE]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n < 1e6 for n in numbers):
        raise _UnfitError(f"a box of {finding} needs x, y, w and h: shares of the film, from 0 to 1, or its pixels.")
    x, y, w, h = (float(n) for n in numbers if n is not None)
    if not (w and h) or (max(x, y, w, h) <= 1 and max(x + w, y + h) > 1 + 1e-6):
        raise _UnfitError(f"a box of {finding} is empty or ends outside its film. Mend its numbers.")
    return CaseBox(finding, film - 1, (x, y, w, h), None)


def _inside(folder: Path, name: str, what: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise _UnfitError(f"{what} lies outside the folder of cases. Put it beside the case.")
    if not path.is_file():
        raise _UnfitError(f"{what} is not in the folder. Put it there, or mend its name.")
    return path


def _films(folder: Path, value: Any) -> tuple[Path, ...]:
    names = _texts(value, "films")
    if not 1 <= len(names) <= MOST_FILMS:
        raise _UnfitError(f"a case has one to {MOST_FILMS} films, and this one has {len(names)}.")
    return tuple(_inside(folder, name, f"film {number}") for number, name in enumerate(names, 1))


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
