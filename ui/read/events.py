"""What the buttons of the Read screen do: open the page, add films, act on films and sentences, close the study, export."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import suppress
from pathlib import Path
from typing import Any

from ui import editor, exports, messages
from ui.messages import say
from ui.read.context import Context
from ui.read.shown import films_of, no_map, no_report, report_of
from ui.session_state import SessionState, core
from ui.updates import Shown

LOADING = "The model is loading…"
NO_EXAMPLE = "The example film is not installed. Install it with: pip install pydicom-data"


# ------------------------------------------------------------------------------------------------------ opening the page


def on_load(state: SessionState, id: str, context: Context) -> Shown:
    """The page was loaded. Films wait until the kept report is open, or they would be taken for another study's."""
    state.busy = bool(id)
    return {"status": say("Your report is being opened; the model is loading…" if id else LOADING, busy=True)}


def resume(state: SessionState, id: str, context: Context) -> Shown:
    """Once the model is there: open the report that this tab had. id: of its session, empty where it had none."""
    wait([context.reporter])
    trouble = ""
    try:
        if id and state.session is None:
            state.open(context.store().load(id))
            state.recall(context.memory())
    except core().SessionGoneError as error:
        trouble, id = str(error), ""
    except core().EmrrgError as error:
        trouble = str(error)
    finally:
        state.busy = False
    if state.session and state.session.warning:
        trouble = state.session.warning
    status = _ready(trouble, "Your report is as you left it." if state.session else "Ready.", context)
    if state.session is None:
        return {"status": status, "kept_id": id}
    return {"state": state, "status": status, **films_of(state), **report_of(state)}


def _ready(trouble: str, told: str, context: Context) -> str:
    """What to say once the model is there, or cannot be loaded."""
    try:
        context.reporter.result()
    except core().EmrrgError as error:
        return say(f"{trouble} {error}".strip(), bad=True)
    except Exception:
        return say("The model could not be loaded; the server's console says more.", bad=True)
    return say(trouble, bad=True) if trouble else say(told)


# ----------------------------------------------------------------------------------------------------------------- films


def add_films(state: SessionState, uploads: Sequence[str] | None, context: Context) -> Shown:
    """Read the files that were dropped, delete them from the disk, keep the films in memory."""
    paths = [Path(upload) for upload in uploads or ()]
    try:
        trouble = state.take(paths, first=1)
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
            # the folder is named after the content: an equal film of another reader may lie there
            with suppress(OSError):
                path.parent.rmdir()
    return _films_added(state, trouble)


def add_example(state: SessionState, context: Context) -> Shown:
    """Add the example film."""
    path = context.example()
    return _films_added(state, state.take([path], first=None) if path else [NO_EXAMPLE])


def _films_added(state: SessionState, trouble: list[str]) -> Shown:
    return {"state": state, "drop": None, **films_of(state, trouble), "menu": exports.menu(state)}


# --------------------------------------------------------------------------------------------------- the reader's actions


def act(state: SessionState, id: str, action: Mapping[str, Any], context: Context) -> Shown:
    """A button on a film or in the report was pressed. action: what read.js sends; id: of the session that the tab remembers."""
    if state.busy:
        return {"status": say("Wait until the draft is done, or stop it.", bad=True)}
    match action.get("action"):
        case "use" | "remove" | "mark":
            return act_on_film(state, action, context)
        case "close":
            return close_study(state, context)
        case "leave-open":
            return films_of(state)
    return act_on_report(state, id, action, context)


def act_on_film(state: SessionState, action: Mapping[str, Any], context: Context) -> Shown:
    """Use a refused film all the same, remove a film, or mark it as prior."""
    number = action.get("number", -1)
    found = [getattr(state, action["action"])(number if isinstance(number, int) else -1)]
    if state.report:  # whether there is a prior film belongs to what is kept
        found.append(state.keep(context.store()))
    films = films_of(state, [words for words in found if words])
    return {"state": state, **films, **(report_of(state) if state.report else {}), **no_map()}


def act_on_report(state: SessionState, id: str, action: Mapping[str, Any], context: Context) -> Shown:
    """Change the report as the reader asks (editor.apply), and keep it."""
    wait([context.reporter])
    try:
        if id and state.report is None:  # the tab was left alone for so long that its state was cleared
            state.open(context.store().load(id))
            state.recall(context.memory())
        if action.get("action") == "keep":
            with state.lock:
                state.session = None
            told = "Kept as a new session."
        elif action.get("action") == "summarise":
            told = summarise(state, context)
        else:
            with state.lock:
                state.report = editor.apply(state.report or core().Report(), action)
            told = editor.told(state.report, action)
        trouble = state.keep(context.store())
    except core().EmrrgError as error:
        return {"status": say(str(error), bad=True), **report_of(state)}
    notice = messages.films(state, [trouble] if trouble else [])
    return {"state": state, **report_of(state), "notice": notice, "status": say(told)}


def summarise(state: SessionState, context: Context) -> str:
    """Write the Impression anew from the Findings as they stand. Returns what was done, for the reader. Raises EmrrgError where it cannot be."""
    draft, report = state.draft, state.report
    if draft is None or report is None or state.missing:
        raise core().EmrrgError("Drop the films of this report again first: they are not stored.")
    found = context.reporter.result().impression(state.films, draft, report.findings)
    with state.lock:
        if state.report is not report:
            raise core().EmrrgError("The report was changed meanwhile: ask again.")
        state.report = report.summarise(found.text)
    told = (
        "The Impression was written from these Findings: review it."
        if state.report is not report
        else "The Impression says so already."
    )
    if found.unknown:
        told += f" It says nothing reliable of what this model does not know: {', '.join(found.unknown)}."
    return told


def ask_to_close(state: SessionState, context: Context) -> Shown:
    """New study: the report of this one would be deleted, so ask the reader first."""
    if state.busy:
        return {}
    if not state.has_words:
        return close_study(state, context)
    return {"notice": messages.to_close(state.report is not None and state.report.signed is not None)}


def close_study(state: SessionState, context: Context) -> Shown:
    """Delete the study, from the disk too."""
    try:
        if state.session:
            state.close(context.store())
        state.clear()
    except core().EmrrgError as error:
        return {"notice": messages.films(state, [f"The report could not be deleted. {error}"])}
    ready = context.reporter.done()
    return {
        **films_of(state),
        **no_report(),
        **no_map(),
        "packing": "",
        "download": "",
        "status": say("Ready." if ready else LOADING, busy=not ready),
    }


# ---------------------------------------------------------------------------------------------------------------- export


def export(
    state: SessionState, reader: str | None, organization: str | None, data: Mapping[str, Any], context: Context
) -> Iterator[Shown]:
    """Make the file that was asked for and hand it to the browser. data: {"kind": its name}."""
    kind = str(data.get("kind"))
    label = next((each.label for each in exports.KINDS if each.name == kind), "The file")
    yield {"download": "", "packing": say(f"{label} is being made…", busy=True)}
    try:
        wait([context.reporter])
        made = exports.make(kind, state, reader=exports.reader_of(reader, organization))
    except core().EmrrgError as error:
        yield {"download": "", "packing": say(str(error), bad=True)}
    except Exception:
        words = f"{label} could not be made; the server's console says more."
        yield {"download": "", "packing": say(words, bad=True)}
        raise
    else:
        yield {"download": made, "packing": say(f"{label} is saved.")}
