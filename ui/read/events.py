"""What the buttons of the Read screen do: open the page, add films, act on films and sentences, close the study, export."""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import suppress
from pathlib import Path
from typing import Any

from ui import editor, exports, messages, viewer
from ui.messages import say
from ui.read.context import Context
from ui.read.shown import films_of, findings_of, no_map, no_report, report_of
from ui.session_state import SessionState, as_read, core
from ui.updates import Shown

LOADING = "The model is loading…"
NO_EXAMPLE = "The example film is not installed. Install it with: pip install pydicom-data"


# ------------------------------------------------------------------------------------------------------ opening the page


def on_load(state: SessionState, id: str, known: str, context: Context) -> Shown:
    """The page was loaded. Films wait until the kept report is open, or they would be taken for another study's."""
    state.busy = bool(id)
    return {"status": say("Your report is being opened; the model is loading…" if id else LOADING, busy=True)}


def resume(state: SessionState, id: str, known: str, context: Context) -> Shown:
    """Once the model is there: open the report that this tab had. id: of its session, empty where it had none. known: JSON, the key of the study
    that was open, and this browser's studies."""
    wait([context.reporter])
    key, rows = _remembered(known)
    if state.session is None and state.report is None and not state.held:
        state.clear(key)
        state.know(rows)
    state.templates = tuple(each.name for each in context.macros().templates)
    macros = {"macros": messages.macros(context.macros(), None)}
    trouble = ""
    try:
        if id and state.session is None:
            state.open(context.store().load(id))
            state.recall(context.memory())
    except core().SessionGoneError as error:
        trouble, id = str(error), ""
        state.others = tuple(each for each in state.others if each.key != state.key)
    except core().EmrrgError as error:
        trouble = str(error)
    finally:
        state.busy = False
    bring_examples(state, context)
    if state.session and state.session.warning:
        trouble = state.session.warning
    status = _ready(trouble, "Your report is as you left it." if state.session else "Ready.", context)
    if state.session is None:
        return {"state": state, "status": status, "kept_id": id, **macros, **films_of(state), **_empty_report(state)}
    return {"state": state, "status": status, **macros, **films_of(state), **report_of(state)}


def bring_examples(state: SessionState, context: Context) -> None:
    """The example films that a kept report is of: the browser has no files of them."""
    for name in viewer.EXAMPLES if state.missing else ():
        if path := context.example(name):
            state.take(
                [path],
                first=None,
                again={"films": [state.draft.films[n].sha256 for n in state.missing] if state.draft else []},
            )


def _remembered(known: str) -> tuple[str, Any]:
    """Key and rows of what the browser remembers; a browser may send anything."""
    try:
        given = json.loads(known or "{}")
        return str(given["key"]), given["studies"]
    except (KeyError, TypeError, ValueError):
        return "", []


def _empty_report(state: SessionState) -> Shown:
    """The report where there is none, with the templates that it may begin with."""
    return {"report": editor.html_of(None, None, templates=state.templates)}


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


def add_films(state: SessionState, uploads: Sequence[str] | None, again: str, context: Context) -> Shown:
    """Read the files that were dropped, delete them from the disk, keep the films in memory, sorted into studies.

    again: JSON of what the browser kept of the open study, where it brings its films back after a reload; else empty.
    """
    paths = [Path(upload) for upload in uploads or ()]
    try:
        kept = json.loads(again) if again else None
        trouble = state.take(paths, first=1, again=kept if isinstance(kept, dict) else None)
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
            # the folder is named after the content: an equal film of another reader may lie there
            with suppress(OSError):
                path.parent.rmdir()
    return _films_added(state, trouble)


def add_example(state: SessionState, name: str, context: Context) -> Shown:
    """Add an example film. name: of viewer.EXAMPLES."""
    path = context.example(name)
    shown = _films_added(state, state.take([path], first=None) if path else [NO_EXAMPLE])
    return {name: value for name, value in shown.items() if name != "drop"}


def _films_added(state: SessionState, trouble: list[str]) -> Shown:
    return {
        "state": state,
        "drop": None,
        **films_of(state, trouble),
        "menu": exports.menu(state),
        "reading": findings_of(state),
    }


# --------------------------------------------------------------------------------------------------- the reader's actions


def act(state: SessionState, id: str, action: Mapping[str, Any], context: Context) -> Shown:
    """A button on a film or in the report was pressed. action: what read.js sends; id: of the session that the tab remembers."""
    if state.busy:
        return {"status": say("Wait until the draft is done, or stop it.", bad=True)}
    match action.get("action"):
        case "use" | "use_other" | "remove" | "mark" | "straighten":
            return act_on_film(state, action, context)
        case "example":
            return add_example(state, str(action.get("name")), context)
        case "marks":
            return keep_marks(state, action, context)
        case "switch" | "next-study" | "new-study":
            return switch(state, action, context)
        case "macros":
            return take_macros(state, action, context)
        case "close":
            return close_study(state, context)
        case "leave-open":
            return films_of(state)
    return act_on_report(state, id, action, context)


def act_on_film(state: SessionState, action: Mapping[str, Any], context: Context) -> Shown:
    """Use a refused film all the same, remove a film, crop and straighten it, or mark it as prior."""
    number = action.get("number", -1)
    number = number if isinstance(number, int) else -1
    if action["action"] == "straighten":
        try:
            found = [state.straighten(number, action)]
        except core().EmrrgError as error:
            found = [str(error)]
    else:
        found = [getattr(state, action["action"])(number)]
    if state.report:  # whether there is a prior film belongs to what is kept
        found.append(state.keep(context.store()))
    films = films_of(state, [words for words in found if words])
    report = report_of(state) if state.report else {**no_report(), **_empty_report(state)}
    return {"state": state, **report, **films, **no_map()}


def keep_marks(state: SessionState, action: Mapping[str, Any], context: Context) -> Shown:
    """The reader measured or pointed at something on a film."""
    try:
        state.mark_film(str(action.get("film")), action.get("marks"))
    except core().EmrrgError as error:
        return {"status": say(str(error), bad=True)}
    trouble = state.keep(context.store()) if state.report else None
    return {"state": state, **({"notice": messages.films(state, [trouble])} if trouble else {})}


def switch(state: SessionState, action: Mapping[str, Any], context: Context) -> Shown:
    """Open another study of this browser, the next one, or a new one. The open one stays as it is, and can be opened again."""
    wait([context.reporter])
    key = str(action.get("key", ""))
    try:
        if action.get("action") == "new-study":
            state.park()
        else:
            key = key or state.next_key()
            if not key:
                return {"status": say("There is no other study that waits.")}
            state.switch(key, context.store())
            state.recall(context.memory())
    except core().EmrrgError as error:
        gone = isinstance(error, core().SessionGoneError)
        if gone:
            state.others = tuple(each for each in state.others if each.key != key)
        return {"state": state, "status": say(str(error), bad=True), "worklist": messages.worklist(state)}
    told = "Ready." if state.report is None else "The report is as you left it."
    return {
        "state": state,
        "status": say(told),
        **films_of(state),
        **report_of(state),
        **no_map(),
        "packing": "",
        "download": "",
    }


def act_on_report(state: SessionState, id: str, action: Mapping[str, Any], context: Context) -> Shown:
    """Change the report as the reader asks (editor.apply), and keep it."""
    wait([context.reporter])
    try:
        if id and state.report is None:  # the tab was left alone for so long that its state was cleared
            state.open(context.store().load(id))
            state.recall(context.memory())
        state.offers, before = (), state.report or core().Report()
        match action.get("action"):
            case "keep":
                with state.lock:
                    state.session = None
                told = "Kept as a new session."
            case "summarise":
                told = summarise(state, context)
            case "says":
                told = rewrite(state, action, context)
            case "template":
                told = begin_with(state, action, context)
            case "dismiss":
                told = ""
            case "sign":
                with state.lock:
                    given = action.get("confirmed")
                    confirmed = (
                        [number for number in given if isinstance(number, int)] if isinstance(given, list) else []
                    )
                    state.report = before.sign(confirmed, state.cautions)
                told = editor.told(state.report, action)
            case _:
                with state.lock:
                    state.report = editor.apply(before, action)
                told = editor.told(state.report, action)
                if action.get("action") in ("delete", "edit", "restore"):
                    state.offers = tuple(core().offers(before, state.report))
        trouble = state.keep(context.store())
    except core().EmrrgError as error:
        return {"status": say(str(error), bad=True), **report_of(state)}
    notice = messages.films(state, [trouble] if trouble else [])
    return {
        "state": state,
        **report_of(state),
        "notice": notice,
        "status": say(told),
        "study": messages.study(state),
        "worklist": messages.worklist(state),
    }


def rewrite(state: SessionState, action: Mapping[str, Any], context: Context) -> str:
    """The reader says otherwise of a finding: the sentences that rest on it are written anew. Returns what was done. Raises EmrrgError where it
    cannot be."""
    draft, report = state.draft, state.report
    if draft is None or report is None or state.missing:
        raise core().EmrrgError("Drop the films of this report again first: they are not stored.")
    name, value = str(action.get("finding")), str(action.get("value", ""))
    finding = draft.finding(name)
    if finding is None:
        raise core().EmrrgError("That finding is not assessed here: write about it in your own words.")
    said = as_read(finding)
    if value:
        said = core().Said(None if value == "silent" else value != "absent", value if value in SIDES else "")
    asked = dict(report.says) | {name: said}
    found = context.reporter.result().rewrite(state.films, draft, asked, report.findings)
    with state.lock:
        if state.report is not report:
            raise core().EmrrgError("The report was changed meanwhile: ask again.")
        state.report = report.rewrite(found)
    if name in found.missed:
        return "The model did not follow: edit the sentences yourself."
    return "The sentences that rest on it were written anew: review them."


SIDES = ("right", "left", "bilateral")
LONGEST = 20_000  # characters of a section of a template


def begin_with(state: SessionState, action: Mapping[str, Any], context: Context) -> str:
    """Begin an empty report with a template: one of the server's by its name, or one of this browser's with its words. Returns what was done."""
    given = action.get("parts")
    if isinstance(given, dict):
        words = {name: str(given.get(name) or "")[:LONGEST] for name in (*editor.FIELDS, *editor.SECTIONS)}
        above = core().Fields(**{name: words.pop(name) for name in editor.FIELDS})
        template = core().Template(str(action.get("name") or "Template"), above, **words)
    else:
        template = next((each for each in context.macros().templates if each.name == action.get("name")), None)
    if template is None or (state.report and state.report.lines):
        raise core().EmrrgError(
            "A template begins an empty report: delete the sentences first, or add its words as macros."
        )
    with state.lock:
        report = state.report or core().Report()
        for name, words in template.parts.items():
            if words:
                report = report.retype(name, words) if name in editor.SECTIONS else report.with_field(name, words)
        state.report = report
    return "The template is in: edit what is not so."


def take_macros(state: SessionState, action: Mapping[str, Any], context: Context) -> Shown:
    """A file of macros or an MRRT template was chosen: the browser keeps it. action: "text": the file, "own": what this browser has, as TOML."""
    text, own = str(action.get("text", "")), str(action.get("own", ""))
    try:
        before = core().Macros.from_toml(own)
        found = core().Macros(templates=(core().from_mrrt(text),)) if _is_page(text) else core().Macros.from_toml(text)
        macros = before.merged(found)
    except core().EmrrgError as error:
        return {"status": say(str(error), bad=True)}
    told = f"{len(found.macros)} macros and {len(found.templates)} templates are kept in this browser."
    return {"macros": messages.macros(context.macros(), macros), "status": say(told)}


def _is_page(text: str) -> bool:
    return text.lstrip("\ufeff \t\r\n")[:1] == "<"


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


def new_study(state: SessionState, context: Context) -> Shown:
    """Put the open study aside, into the worklist, and begin another."""
    return {} if state.busy else switch(state, {"action": "new-study"}, context)


def ask_to_close(state: SessionState, context: Context) -> Shown:
    """Close the study: its report would be deleted, so ask the reader first."""
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
        else:
            state.others = tuple(each for each in state.others if each.key != state.key)
            state.clear()
    except core().EmrrgError as error:
        return {"notice": messages.films(state, [f"The report could not be deleted. {error}"])}
    ready = context.reporter.done()
    return {
        "state": state,
        **films_of(state),
        **no_report(),
        **_empty_report(state),
        **no_map(),
        "packing": "",
        "download": "",
        "status": say("Ready." if ready else LOADING, busy=not ready),
    }


# ---------------------------------------------------------------------------------------------------------------- export


def export(state: SessionState, data: Mapping[str, Any], context: Context) -> Iterator[Shown]:
    """Make the file that was asked for and hand it to the browser. data: {"kind": its name, "reader", "organization": as the browser keeps them}."""
    kind = str(data.get("kind"))
    label = next((each.label for each in exports.KINDS if each.name == kind), "The file")
    yield {"download": "", "packing": say(f"{label} is being made…", busy=True)}
    try:
        wait([context.reporter])
        reader = exports.reader_of(*(str(data.get(name) or "")[:200] for name in ("reader", "organization")))
        made = exports.make(kind, state, reader=reader)
    except core().EmrrgError as error:
        yield {"download": "", "packing": say(str(error), bad=True)}
    except Exception:
        words = f"{label} could not be made; the server's console says more."
        yield {"download": "", "packing": say(words, bad=True)}
        raise
    else:
        yield {"download": made, "packing": say(f"{label} is saved.")}
