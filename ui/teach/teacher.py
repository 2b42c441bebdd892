"""The teacher on the Teach screen: begin a class, see all answers, export them, end the class."""

import json
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from ui import teach_html
from ui.messages import say
from ui.session_state import core
from ui.teach import marking
from ui.teach.context import Context, TeachState
from ui.teach.drafts import compared_draft
from ui.updates import Change, Shown

if TYPE_CHECKING:
    from emrrg_core import Draft, Film
    from emrrg_core.teaching.cases import Case
    from emrrg_core.teaching.classroom import Answer
    from emrrg_core.teaching.locate import Box
    from emrrg_core.text.compare import Comparison

LIFETIMES = {"1 day": 1, "7 days": 7, "30 days": 30, "90 days": 90}


def begin_class(title: str, days: str, context: Context) -> Shown:
    """Begin a class. days: one of LIFETIMES."""
    try:
        made, secret = context.store().begin(title, lifetime=timedelta(days=LIFETIMES[days]))
    except core().EmrrgError as error:
        return {"begun": say(str(error), bad=True)}
    return {"begun": teach_html.begun(made, secret), "key": secret, "title": ""}


def unlock(state: TeachState, key: str, context: Context) -> Shown:
    """Open a class with the teacher's key, at the case that is open here or at the first."""
    try:
        context.store().open(key)
    except core().EmrrgError as error:
        return {"opening": say(str(error), bad=True)}
    state.key = key
    found = context.cases()
    ids = [case.id for case in found.cases]
    wanted = state.case.id if state.case and state.case.id in ids else next(iter(ids), None)
    return {
        "class_view": Change(visible=True),
        **dict.fromkeys(("opening", "begun", "key"), ""),
        "shown": Change(choices=[(case.title, case.id) for case in found.cases], value=wanted),
    }


def survey(state: TeachState, id: str | None, context: Context) -> Iterator[Shown]:
    """All answers to a case side by side, at once. The draft joins them when it is written."""
    if not state.key:
        yield {}
        return
    try:
        store = context.store()
        case = context.cases()[id or ""]
        said = store.answers(state.key, case.id)
        facts = teach_html.opened(store.open(state.key), store.writing(state.key, case.id), len(said))
        reference = (case.findings, case.impression)
        found = [core().compare((a.findings, a.impression), reference, case.labels) for a in said]
        known, films = context.drafts.known(case), case.read()
        boxes, trouble = _boxes(case, films)
        yield {"facts": facts + trouble, "every": _every(case, films, said, found, boxes, known)}
        if known is None:
            drafted = context.drafts.of(case, films)
            if state.key:
                yield {"every": _every(case, films, said, found, boxes, drafted)}
    except core().ClassGoneError as error:
        state.key = ""
        yield {"class_view": Change(visible=False), "opening": say(str(error), bad=True)}
    except core().EmrrgError as error:
        yield {"facts": say(str(error), bad=True)}


def _boxes(case: "Case", films: "tuple[Film, ...]") -> "tuple[tuple[Box, ...] | None, str]":
    """Where the case says that its findings are, and what is wrong with that."""
    try:
        return case.places(films), ""
    except core().EmrrgError as error:
        return None, say(str(error), bad=True)


def _every(
    case: "Case",
    films: "tuple[Film, ...]",
    said: "Sequence[Answer]",
    found: "Sequence[Comparison]",
    boxes: "Sequence[Box] | None",
    draft: "Draft | None",
) -> str:
    """The film with all marks and the tallies, then all answers side by side."""
    places = core().model_places(draft) if draft else None
    tables = marking.tallies(case, said, found, boxes, places)
    over = (
        f'<div class="rr-class-marks">{marking.of_class(films, said, boxes, places or ())}{tables}</div>'
        if said
        else ""
    )
    return over + teach_html.answers(case, said, found, compared_draft(case, draft))


def export_class(state: TeachState, context: Context) -> Shown:
    """All answers of the class as a CSV file, for the browser to save."""
    try:
        found = context.cases()
        drafts = {case.id: draft for case in found.cases if (draft := context.drafts.known(case))}
        texts = {id: (draft.findings, draft.impression) for id, draft in drafts.items()}
        places = {id: core().model_places(draft) for id, draft in drafts.items()}
        body = core().answers_csv(context.store().answers(state.key), found, texts, places)
        name = f"emrrg-class-{context.store().open(state.key).code}.csv"
    except core().EmrrgError as error:
        return {"download": "", "facts": say(str(error), bad=True)}
    return {"download": json.dumps({"name": name, "body": body})}


def close_class(state: TeachState, context: Context) -> Shown:
    """Close the teacher's view. The class goes on."""
    state.key = ""
    return {"class_view": Change(visible=False), **dict.fromkeys(("every", "facts", "opening", "key"), "")}


def end_class(state: TeachState, context: Context) -> Shown:
    """Delete the class and every answer."""
    try:
        context.store().end(state.key)
    except core().EmrrgError as error:
        return {"facts": say(str(error), bad=True)}
    return {**close_class(state, context), "opening": say("The class has ended, and its answers are deleted.")}
