"""Which event of the Read screen calls which view function, and which components it may change."""

from typing import Any

import gradio as gr

from ui.handlers import Handlers
from ui.read import drafting, events, maps, shown
from ui.read.context import Context
from ui.read.layout import Parts
from ui.session_state import READERS, SessionState

# the session is of this tab alone and gone with it; the list of studies is this browser's
_RECALL = """() => [null, sessionStorage.getItem('emrrg-session') || '',
    JSON.stringify({key: sessionStorage.getItem('emrrg-study') || '', studies: window.emrrgStudies?.() ?? []})]"""
_REMEMBER = """(id) => {
    if (id) sessionStorage.setItem('emrrg-session', id);
    else sessionStorage.removeItem('emrrg-session');
}"""
_SAVE = """(download) => {
    if (!download) return '';
    const file = JSON.parse(download), link = document.createElement('a');
    const bytes = Uint8Array.from(atob(file.body), (letter) => letter.charCodeAt(0));
    link.href = URL.createObjectURL(new Blob([bytes], {type: file.type}));
    link.download = file.name;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    return '';
}"""
_AGAIN = "(state, files) => [state, files, window.emrrgAgain?.() ?? '']"
_HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_MODEL: dict[str, Any] = {"concurrency_limit": READERS, "concurrency_id": "model", **_HIDDEN}
_CLOSING = (*shown.FILMS, *shown.REPORT, *shown.EVIDENCE, "packing", "download", "status", "macros")


def connect(demo: gr.Blocks, parts: Parts, context: Context) -> None:
    """Connect every event of the screen."""
    handlers = Handlers(parts, context)
    _opening(demo, parts, handlers)
    _films(parts, handlers)
    _drafting(parts, handlers)
    _report(parts, handlers)
    _asking(parts, handlers)


def _opening(demo: gr.Blocks, parts: Parts, handlers: Handlers) -> None:
    of, known = handlers.of, [parts.state, parts.kept_id, parts.download]
    everything = handlers.components("state", "status", "macros", *dict.fromkeys((*shown.FILMS, *shown.REPORT)))
    demo.load(of(events.on_load), known, parts.status, js=_RECALL, **_HIDDEN).then(
        of(events.resume), known, everything, js=_RECALL, **_HIDDEN
    ).then(None, parts.kept_id, js=_REMEMBER)  # also where nothing changed: a report that is gone is forgotten
    parts.kept_id.change(None, parts.kept_id, js=_REMEMBER)


def _films(parts: Parts, handlers: Handlers) -> None:
    adding: dict[str, Any] = {
        "outputs": handlers.components("state", "drop", *shown.FILMS, "menu", "reading"),
        "show_progress_on": parts.figures,
        "api_visibility": "private",
    }
    given = [parts.state, parts.drop, parts.download]
    parts.drop.upload(handlers.of(events.add_films), given, js=_AGAIN, **adding)


def _drafting(parts: Parts, handlers: Handlers) -> None:
    of, components = handlers.of, handlers.components
    cleared = ("status", "looked", "report", "reading", "near", "words", *shown.BUTTONS, *shown.EVIDENCE)
    parts.write.click(of(drafting.begin), parts.state, components("state", *shown.FILMS, *cleared), **_HIDDEN).then(
        of(drafting.draft_report),
        [parts.state, parts.beams, parts.views, parts.laterals, parts.compare, parts.sections],
        components("state", "status", *dict.fromkeys((*shown.FILMS, *shown.REPORT)), *shown.BUTTONS),
        **_MODEL,
    ).then(of(drafting.measure_dependence), parts.state, components("looked", "kept_id", "notice", "status"), **_MODEL)
    parts.stop.click(SessionState.halt, parts.state, None, **_HIDDEN)


def _report(parts: Parts, handlers: Handlers) -> None:
    closing = handlers.components(*dict.fromkeys(_CLOSING))
    parts.new_study.click(handlers.of(events.new_study), parts.state, [parts.state, *closing], **_HIDDEN)
    parts.close_study.click(handlers.of(events.ask_to_close), parts.state, [parts.state, *closing], **_HIDDEN)
    # one at a time and in their order, none left out: an edit must never overtake another
    in_order: dict[str, Any] = {"trigger_mode": "multiple", "concurrency_limit": 1, **_HIDDEN}
    act = handlers.of(events.act, data=True)
    parts.report.act(act, [parts.state, parts.kept_id], [parts.state, *closing], **in_order)
    parts.report.save(
        handlers.of(events.export, data=True),
        parts.state,
        [parts.download, parts.packing],
        **_HIDDEN,
    ).then(None, parts.download, parts.download, js=_SAVE)


def _asking(parts: Parts, handlers: Handlers) -> None:
    seen = handlers.components("state", *shown.EVIDENCE, "reading", "words", "menu")
    newest: dict[str, Any] = {"trigger_mode": "always_last", **_HIDDEN}
    parts.report.look(handlers.of(maps.look_at_line, data=True), parts.state, seen, **newest)
    for choice, look in ((parts.words, maps.look_at_words), (parts.reading, maps.look_at_finding)):
        choice.select(handlers.of(look, data=True), parts.state, seen, **newest)
    parts.report.ask(handlers.of(maps.why_this), parts.state, parts.evidence, **_MODEL)
