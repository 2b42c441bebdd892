"""The draft on the Read screen: the click, the words as they come, the end, and whether the text depends on its film."""

import time
from collections.abc import Iterator
from concurrent.futures import wait
from typing import TYPE_CHECKING

from ui import draft_panels, editor, messages
from ui.messages import say
from ui.read.context import Context
from ui.read.progress import followed
from ui.read.shown import buttons_of, earlier_text, films_of, no_draft, no_map, report_of
from ui.session_state import SessionState, core
from ui.updates import Shown

if TYPE_CHECKING:
    from emrrg_core import Draft

NO_FILM = "Choose a chest film first: drop one anywhere on this page, or try an example."
SHOWN = 0.15  # seconds between two pictures of a draft under way: each costs about as much as a token


def begin(state: SessionState, context: Context) -> Shown:
    """The reader asked for a draft. Answer at once, though another reader's draft may be under way: clear the screen for it."""
    with state.lock:
        if reason := not_now(state):
            return {"status": say(reason, bad=True)}
        state.busy, state.wanted, state.stop, state.waiting = True, True, False, ()
        state.picked = state.found = None  # what is still asked of the former draft is not shown beside the new one
    ready = context.reporter.done()
    first = "Waiting for the model…" if ready else "The model is loading; the draft starts after that…"
    return {
        "state": state,
        **films_of(state),
        "status": say(first, busy=True),
        "looked": "",
        "outlines": "",
        **no_draft(),
        **buttons_of(idle=False),
        **no_map(),
    }


def not_now(state: SessionState) -> str:
    """Why no draft can begin; empty where it can."""
    if state.busy:
        return "Wait: a draft is under way, or your report is still being opened."
    if state.report is not None and state.report.signed is not None:
        return "This report is signed. Take the signature back, or begin a new study."
    if state.draft is not None and state.missing:
        names = " and ".join(state.draft.films[number].name for number in state.missing)
        return f"Films are not stored: drop {names} again to draft anew."
    if not state.films:
        return "Every film here is marked as prior: drop the one to be read." if state.held else NO_FILM
    return ""


def draft_report(
    state: SessionState, beams: float, views: str, laterals: bool, compare: bool, sections: str, context: Context
) -> Iterator[Shown]:
    """Draft, and show the words as they come. What the reader wrote or edited is never thrown away: it moves to "Your earlier text".

    views, sections: empty, and laterals: False, where the checkpoint's settings say. compare: with the prior films.
    """
    if not state.wanted:  # it could not begin
        yield {}
        return
    state.wanted = False
    latest, begun, shown = None, False, 0.0
    try:
        while not (state.stop or context.reporter.done()):
            wait([context.reporter], timeout=0.2)
        if state.stop or not state.check(context.reporter.result()):  # the report that was there is there still
            refused = say("Not drafted: a film was refused, see the note above it.", bad=True)
            ending = messages.stopped(None) if state.stop else refused
            yield {"status": ending, **finish(state, None, begun, context)}
            return
        begun = True
        yield put_earlier_text_away(state, context)
        decoding = core().DecodeConfig.from_dict({"beams": int(beams), "sections": sections or None})
        reporter = context.reporter.result()
        study = reporter.study(views or None, laterals or None)
        prior = state.earlier_films if compare else []
        for latest in reporter.stream(state.films, decoding, study, prior=prior, stopped=lambda: state.stop):
            if state.stop:
                break
            if time.monotonic() - shown < SHOWN:
                continue
            shown = time.monotonic()
            status = say("Drafting…", busy=True)
            yield {"report": editor.writing(latest), "status": status}
    except core().EmrrgError as error:
        yield {"status": say(str(error), bad=True), **finish(state, latest, begun, context)}
    except Exception:  # a bug: it shows as one on the server's console, but the screen must not stay locked
        status = say("The draft failed; the server's console says more.", bad=True)
        yield {"status": status, **finish(state, latest, begun, context)}
        raise
    else:
        ending = messages.stopped(latest) if state.stop else messages.finished(latest)
        yield {"status": ending, **finish(state, latest, begun, context)}


def put_earlier_text_away(state: SessionState, context: Context) -> Shown:
    """From here on the former report is over. The reader's own words go to "Your earlier text", the newest above."""
    with state.lock:
        state.earlier = "\n\n".join(text for text in (own_words(state), state.earlier) if text)
        state.draft = state.looked = state.picked = state.found = None
        state.report = core().Report()
        state.keep(context.store())
    return {"earlier": earlier_text(state), "kept_id": state.session.id if state.session else ""}


def own_words(state: SessionState) -> str:
    """The report where a reader had a hand in it, else nothing."""
    drafted = (state.draft.findings.strip(), state.draft.impression.strip()) if state.draft else ("", "")
    here = tuple(text.strip() for text in state.texts)
    if here == drafted:
        return ""
    return "\n".join(f"{name}: {text}" for name, text in zip(("Findings", "Impression"), here, strict=True) if text)


def finish(state: SessionState, latest: "Draft | None", begun: bool, context: Context) -> Shown:
    """The draft is over: what there is becomes the report, unread, and is kept. begun: False where the former report stays."""
    trouble = None
    with state.lock:
        state.busy = False
        if begun:
            state.draft = latest
            try:
                state.recall(context.memory())
            except core().EmrrgError as error:  # the draft is there all the same
                trouble = str(error)
            state.report = core().Report.of(latest) if latest else core().Report()
            if not state.left:  # a page that was loaded again meanwhile has opened the session already
                trouble = state.keep(context.store()) or trouble
    said = [trouble] if trouble else None
    return {"state": state, **report_of(state), **films_of(state, said), **buttons_of(idle=True)}


def measure_dependence(state: SessionState, context: Context) -> Iterator[Shown]:
    """*Is it looking?*: read the draft again without its film, and show whether the text depends on the film."""
    draft = state.draft
    if draft is None or state.stop or state.looked or not draft.tokens or state.missing:
        yield {}
        return
    reporter = context.reporter
    try:
        for done, every, found in followed(
            lambda progress: reporter.result().looking(state.films, draft, progress=progress)
        ):
            if found is None:
                words = f"Does the text depend on its film? Reading {done} of {every}…"
                yield {"looked": say(words, busy=True)}
            elif state.draft is draft:
                with state.lock:
                    state.looked = found
                    trouble = state.keep(context.store())
                yield {
                    **({} if found.looks else {"status": say(found.verdict, bad=True)}),
                    "looked": draft_panels.looking_html(found),
                    "kept_id": state.session.id if state.session else "",
                    **({"notice": messages.films(state, [trouble])} if trouble else {}),
                }
            else:  # another study is open by now
                yield {"looked": ""}
    except core().EmrrgError as error:
        yield {"looked": say(f"Whether the text depends on its film could not be measured. {error}", bad=True)}
