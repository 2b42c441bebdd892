"""The learner on the Teach screen: write, commit, compare, look, paint, join a class, leave."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ui import draft_panels, teach_html, viewer
from ui.messages import say
from ui.session_state import core
from ui.teach import marking
from ui.teach.cases import listed, no_case, persons
from ui.teach.context import Context, TeachState
from ui.teach.drafts import compared_draft, marked
from ui.updates import Change, Shown

if TYPE_CHECKING:
    from emrrg_core import Draft, Film
    from emrrg_core.teaching.cases import Case
    from emrrg_core.teaching.classroom import Answer
    from emrrg_core.text.compare import Comparison

_OVER_FILMS = "#teach-view"  # the films that a map is laid over: those of this screen


# ---------------------------------------------------------------------------------------------------- write and commit


def keep(state: TeachState, id: str, findings: str | None, impression: str | None, context: Context) -> Shown:
    """While the learner writes. id: the case that the words are about, for another one may have been opened since."""
    if findings is None or impression is None:  # the boxes are only being filled; this is called again when they are
        return {}
    written = bool(findings.strip() or impression.strip())
    if not id or not (written or state.learner):
        return {}
    try:
        case, learner = context.cases()[id], context.learner_of(state)
        if not (written or context.store().answer(learner.id, case.id)):
            return {"unsaved": ""}
        context.store().keep(learner.id, case.id, findings, impression)
    except core().EmrrgError as error:
        return {"unsaved": say(f"Not kept: {error}", bad=True)}
    kept = '<p class="rr-hint" role="status">Kept on this server.</p>'
    return {"unsaved": kept, "learner_id": learner.id, **persons(state)}


def keep_marks(state: TeachState, id: str, marked: str | None, context: Context) -> Shown:
    """The learner has marked a place, or taken a mark back. marked: all marks as they stand on the page, of the case `id`."""
    try:
        case = context.cases()[id]
        marks = marking.read(marked or "", len(case.films))
        if marks is None:
            return {}
        learner = context.learner_of(state)
        context.store().keep_marks(learner.id, case.id, marks)
    except core().EmrrgError as error:
        return {"unsaved": say(f"Not kept: {error}", bad=True)}
    kept = '<p class="rr-hint" role="status">Kept on this server.</p>'
    return {"unsaved": kept, "learner_id": learner.id, **persons(state)}


def hand_in(
    state: TeachState, id: str, findings: str | None, impression: str | None, marked: str | None, context: Context
) -> Shown:
    """The learner commits. The answer is kept first of all, whatever the model may do after. marked: the marks as they stand on the page."""
    if state.case is None or state.case.id != id:  # another one was opened in the meantime
        return {"status": say("Choose a case first.", bad=True)}
    try:
        learner = context.learner_of(state)
        marks = marking.read(marked or "", len(state.films))
        context.store().commit(learner.id, state.case.id, findings or "", impression or "", marks)
    except core().EmrrgError as error:
        return {"unsaved": say(str(error), bad=True)}
    ready = context.reporter.done()
    waits = "The model writes its draft…" if ready else "The model is loading; its draft comes after that…"
    return {
        "status": say(f"Your answer is committed. {waits}", busy=True),
        "unsaved": "",
        "learner_id": learner.id,
        **{name: Change(interactive=False) for name in ("findings", "impression", "commit")},
        "choice": listed(state, context.cases(), state.case.id, context),
        **persons(state),
    }


# ------------------------------------------------------------------------------------------------------------- compare


def reveal(state: TeachState, context: Context) -> Iterator[Shown]:
    """Draft and reference, if the store says that this learner has committed an answer to this case."""
    case, learner, films = state.case, state.learner, state.films
    if case is None or learner is None:
        yield {}
        return
    try:
        answer = context.store().answer(learner.id, case.id)
        if answer is None or answer.committed is None:
            yield {}
            return
        mine = core().compare((answer.findings, answer.impression), (case.findings, case.impression), case.labels)
        try:
            draft = context.drafts.of(case, films)
        except core().EmrrgError as error:  # the reference can be shown all the same
            yield {**revealed(state, case, answer, mine, None), "status": say(str(error), bad=True)}
            return
        if state.case is case:  # no other one was opened meanwhile
            yield revealed(state, case, answer, mine, draft)
    except core().EmrrgError as error:
        yield {"status": say(str(error), bad=True)}
    except Exception:  # a bug: it shows as one on the server's console, but the learner must not wait for ever
        yield {"status": say("The comparison failed; the server’s console says more.", bad=True)}
        raise


def revealed(state: TeachState, case: "Case", answer: "Answer", mine: "Comparison", draft: "Draft | None") -> Shown:
    """The learner's report, the draft and the reference side by side, the marks, and the brush."""
    state.draft = draft
    shown: Shown = {
        "status": say("Here are your report, the draft and the reference.", notes=draft.warnings if draft else ()),
        "compared": teach_html.beside(case, mine, compared_draft(case, draft)),
        "writing": Change(visible=False),
        "looking": Change(visible=draft is not None),
        "seen": Change(visible=draft is not None),
        **_located(case, state.films, answer, draft),
    }
    if draft is not None:
        other = core().retouched(state.films[0].pixels, np.ones((1, 1), bool), core().Fill.CHEST)
        shown["reading"] = draft_panels.read_html(draft)
        shown["words"] = draft_panels.words_html(draft)
        shown["moved"] = teach_html.moved(draft, None)
        shown["brush"] = teach_html.brush(state.films, viewer.picture(other))
    return shown


def _located(case: "Case", films: "tuple[Film, ...]", answer: "Answer", draft: "Draft | None") -> Shown:
    """The learner's marks, the boxes of the case and the model's contours over each other, and what that comes to."""
    trouble = ""
    try:
        boxes = case.places(films)
    except core().EmrrgError as error:
        boxes, trouble = None, say(str(error), bad=True)
    places = core().model_places(draft) if draft else None
    found = core().locate(answer.marks, boxes) if boxes is not None else None
    return {
        "marking": marking.to_compare(films, answer.marks, boxes, places or (), found),
        "located": trouble + marking.located(answer.marks, boxes, places, found),
    }


# ------------------------------------------------------------------------------------------------------ look and paint


def look(state: TeachState, data: Mapping[str, Any], context: Context) -> Shown:
    """A sentence or word of the draft was chosen: its map over the films. data: {"index": [sentence, word or null]}."""
    draft = state.draft
    selection = draft_panels.picked(draft, data.get("index")) if draft else None
    if draft is None or selection is None:
        return {}
    what = selection.what(draft)
    maps = [core().heat_map(draft, film, what) for film in range(len(draft.films))]
    bright = "The brighter a place, the more the model looked there. It does not prove why."
    told = core().no_map(draft, what) if maps[0] is None else bright
    return {
        "reading": draft_panels.read_html(draft),
        "words": draft_panels.words_html(draft, selection),
        "layers": viewer.layers(maps, core().overlay, within=_OVER_FILMS),
        "caption": say(f"“{selection.text}”: {told}"),
    }


def look_at_finding(state: TeachState, data: Mapping[str, Any], context: Context) -> Shown:
    """A finding that was read was chosen: its own map over the films. data: {"index": its name}."""
    draft = state.draft
    finding = draft.finding(str(data.get("index"))) if draft else None
    if draft is None or finding is None:
        return {}
    maps = viewer.maps_of(draft, finding, range(len(draft.films)))
    return {
        "reading": draft_panels.read_html(draft, finding.name),
        "words": draft_panels.words_html(draft),
        "layers": viewer.layers(maps, core().overlay, within=_OVER_FILMS),
        "caption": f'<div class="rr-say rr-calm">{draft_panels.finding_caption(finding, shown=True)}</div>',
    }


def paint(state: TeachState, data: Mapping[str, Any], context: Context) -> Iterator[Shown]:
    """The learner has painted: the model reads the draft again under what is left of the films. data: see `marked`."""
    draft, films = state.draft, state.films
    if draft is None:
        return
    yield {"moved": teach_html.moved(draft, state.read, busy=True)}  # the last numbers stay until the next are there
    try:
        fill, masks = marked(data, len(films))
        changed = [
            core().retouched(film.pixels, mask, core().Fill(fill)) for film, mask in zip(films, masks, strict=True)
        ]
        state.read = found = context.reporter.result().rescore(films, draft, changed, earlier=state.read)
    except core().EmrrgError as error:
        yield {"moved": say(str(error), bad=True)}
        return
    if state.draft is draft:
        yield {"moved": teach_html.moved(draft, found)}


# ------------------------------------------------------------------------------------------------------ join and leave


def enrol(state: TeachState, code: str, pseudonym: str, context: Context) -> Shown:
    """Join a class by its code."""
    try:
        learner = context.store().join(code, pseudonym)
    except core().EmrrgError as error:
        return {"joined": say(str(error), bad=True)}
    state.learner = learner
    found = context.cases()
    return {
        **dict.fromkeys(("joined", "code", "name"), ""),
        "learner_id": learner.id,
        "choice": listed(state, found, None, context),
        **persons(state),
        **no_case(found),
    }


def leave_computer(state: TeachState, context: Context) -> Shown:
    """Forget the learner on this computer. What was handed in to a class stays there."""
    trouble = ""
    if state.learner:
        try:
            context.store().leave(state.learner.id)
        except core().EmrrgError as error:
            trouble = say(str(error), bad=True)
    state.learner = state.case = state.draft = state.read = None
    state.films = ()
    found = context.cases()
    return {
        "learner_id": "",
        "choice": listed(state, found, None, context),
        **persons(state),
        **no_case(found),
        "status": trouble,
    }
