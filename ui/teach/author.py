"""Making a case on the Teach screen: its films, its words, where the findings are, and where it is kept."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ui import teach_html
from ui.messages import say
from ui.session_state import MOST_FILMS, core
from ui.teach import marking
from ui.teach.cases import chips_of, listed
from ui.teach.context import Context, TeachState
from ui.updates import Change, Shown

if TYPE_CHECKING:
    from emrrg_core import Film

ANSWERABLE = (
    "Only pixels, view and pixel spacing are kept, nothing of a DICOM header. What is burned into the pixels stays: you answer for it. "
    "Anyone who can open this page sees the case."
)
_WORDS = (
    "new_title",
    "new_question",
    "new_findings",
    "new_impression",
    "new_tags",
    "new_points",
    "new_source",
    "new_licence",
)
FORM = (  # the names of everything that making a case may change
    *("author", "new_films", "new_notice", "new_marking", "new_boxes", "new_none", "new_checked", "new_level", "made"),
    *(*_WORDS, "choice", "search", "tags", "matches", "faults", "status"),
)


def begin(state: TeachState, context: Context) -> Shown:
    """Open the form, empty."""
    if not context.author:
        return {"made": say("Cases cannot be made on this server.", bad=True)}
    state.making = ()
    return {**_emptied(), "author": Change(visible=True)}


def offer(state: TeachState, films: "Sequence[Film]", findings: str, impression: str, context: Context) -> Shown:
    """Open the form, filled in with a report and its films, which another screen holds."""
    if not context.author:
        return {"status": say("Cases cannot be made on this server.", bad=True)}
    state.making = tuple(films[:MOST_FILMS])
    told = {"new_findings": findings, "new_impression": impression, **_films(state, [])}
    return {**_emptied(), **told, "author": Change(visible=True)}


def cancel(state: TeachState, context: Context) -> Shown:
    """Close the form. Nothing of it is kept."""
    state.making = ()
    return {**_emptied(), "author": Change(visible=False)}


def take(state: TeachState, uploads: Sequence[str] | None, context: Context) -> Shown:
    """Read the files that were dropped, delete them from the disk, keep the films in memory."""
    paths, trouble, films = [Path(upload) for upload in uploads or ()], [], []
    try:
        for number, path in enumerate(paths, 1):
            try:
                films.append(core().read_film(path, name=f"Film {number}"))
            except core().EmrrgError as error:
                trouble.append(f"File {number} was not taken. {error}")
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # an equal film of another reader may lie there
                path.parent.rmdir()
    if len(films) > MOST_FILMS:
        trouble.append(f"A case has at most {MOST_FILMS} films: the first {MOST_FILMS} were taken.")
    if films:
        state.making = tuple(films[:MOST_FILMS])
    return {"new_films": None, **_films(state, trouble)}


def save(
    state: TeachState,
    title: str,
    question: str,
    findings: str,
    impression: str,
    tags: str,
    points: str,
    source: str,
    licence: str,
    level: str,
    nothing: bool,
    checked: bool,
    boxes: str,
    context: Context,
) -> Shown:
    """Write the case. nothing: there is nothing to be found; checked: its author has looked at the pixels; boxes: what marks.js holds."""
    if not context.author:
        return {"made": say("Cases cannot be made on this server.", bad=True)}
    if not checked:
        return {"made": say("Look at every film first, and say that nothing on it tells who the patient is.", bad=True)}
    try:
        marks = marking.read(boxes, len(state.making)) or ()
        if marks and nothing:
            raise core().EmrrgError("There are boxes and nothing is to be found: take one of the two away.")
        found = context.cases()
        id = core().write_case(
            context.written_to,
            title=title or "",
            question=question or "",
            films=state.making,
            findings=findings or "",
            impression=impression or "",
            boxes=marks if marks or nothing else None,
            tags=(tags or "").split(","),
            difficulty=level or "",
            points=(points or "").splitlines(),
            source=source or "",
            licence=licence or "",
            taken={case.id for case in found.cases},
        )
    except core().EmrrgError as error:
        return {"made": say(str(error), bad=True)}
    state.making, state.words, state.tags = (), "", ()
    found = context.cases()
    return {
        **_emptied(),
        "author": Change(visible=False),
        "made": say(f"The case “{found[id].title}” is in the list."),
        **{"search": "", "matches": ""},
        "choice": listed(state, found, state.case.id if state.case else None, context),
        "tags": Change(choices=chips_of(found), value=[], visible=bool(chips_of(found))),
        "faults": teach_html.problems(found),
    }


def _emptied() -> Shown:
    empty: Shown = dict.fromkeys((*_WORDS, "new_notice", "new_marking", "new_boxes", "made"), "")
    return {**empty, "new_films": None, "new_none": False, "new_checked": False, "new_level": ""}


def _films(state: TeachState, trouble: Sequence[str]) -> Shown:
    """The films of the form to draw boxes on, and what was found on them that should not be shown to anyone."""
    warned = [words for film in state.making if (words := core().burned_in_warning(film))]
    told = "".join(say(words, bad=True) for words in (*trouble, *warned))
    drawn = marking.to_set(state.making, boxes=True) if state.making else ""
    return {"new_notice": told, "new_marking": drawn, "new_boxes": "", "new_checked": False}
