"""Which event of the Teach screen calls which view function, and which components it may change."""

from typing import Any

import gradio as gr

from ui.handlers import Handlers
from ui.teach import cases, learner, teacher
from ui.teach.context import Context
from ui.teach.layout import Parts

_RECALL = "() => [null, localStorage.getItem('emrrg-learner') || '', localStorage.getItem('emrrg-case') || '']"
_REMEMBER = """(id) => {
    if (id) localStorage.setItem('emrrg-learner', id);
    else localStorage.removeItem('emrrg-learner');
}"""
_REMEMBER_CASE = "(id) => { if (id) localStorage.setItem('emrrg-case', id); }"
_SHOW = """() => {
    if (document.querySelector('#teach-compared .rr-three'))
        document.getElementById('teach-head').scrollIntoView({behavior: 'smooth', block: 'start'});
}"""
_SHOW_FILMS = "() => { if (window.innerWidth < 768) document.getElementById('teach-films').scrollIntoView({behavior: 'smooth'}); }"
_SAVE = """(download) => {
    if (!download) return '';
    const file = JSON.parse(download), link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([file.body], {type: 'text/csv;charset=utf-8'}));
    link.download = file.name;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    return '';
}"""
_HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_MANY: dict[str, Any] = {"concurrency_limit": 8, **_HIDDEN}  # one who waits for a draft keeps nobody else waiting
_CASE = tuple(name for name in cases.CASE if name != "case_id")
_OPENED = ("choice", "case_id", "commit", "learner_id", "whom", "leave", *_CASE)
_CLASS = ("class_view", "facts", "every", "opening", "begun", "key", "shown")


def connect(demo: gr.Blocks, parts: Parts, context: Context) -> None:
    """Connect every event of the screen."""
    handlers = Handlers(parts, context)
    _opening(demo, parts, handlers)
    _writing(parts, handlers)
    _comparing(parts, handlers)
    _joining(parts, handlers)
    _teaching(parts, handlers)


def _opening(demo: gr.Blocks, parts: Parts, handlers: Handlers) -> None:
    of, case, opened = handlers.of, handlers.components(*_CASE), handlers.components(*_OPENED)
    first = handlers.components("choice", "faults", "figures", "status")
    known = [parts.state, parts.learner_id, parts.case_id]
    reveal = of(learner.reveal)
    demo.load(of(cases.on_load), known, first, js=_RECALL, **_MANY).then(
        of(cases.resume), known, opened, js=_RECALL, **_MANY
    ).then(reveal, parts.state, case, **_MANY)
    parts.choice.input(of(cases.choose), [parts.state, parts.choice], opened, **_MANY).then(
        reveal, parts.state, case, **_MANY
    )
    parts.learner_id.change(None, parts.learner_id, js=_REMEMBER)
    parts.case_id.change(None, parts.case_id, js=_REMEMBER_CASE)


def _writing(parts: Parts, handlers: Handlers) -> None:
    written = [parts.state, parts.case_id, parts.findings, parts.impression]
    gr.on(
        [parts.findings.change, parts.impression.change],  # input would miss what is pasted or dictated
        handlers.of(learner.keep),
        written,
        handlers.components("unsaved", "learner_id", "whom", "leave"),
        trigger_mode="always_last",
        **_HIDDEN,
    )
    parts.commit.click(handlers.of(learner.hand_in), written, handlers.components(*_OPENED), **_MANY).then(
        handlers.of(learner.reveal), parts.state, handlers.components(*_CASE), **_MANY
    ).then(None, js=_SHOW)


def _comparing(parts: Parts, handlers: Handlers) -> None:
    seen = handlers.components("reading", "words", "layers", "caption")
    newest: dict[str, Any] = {"trigger_mode": "always_last", **_HIDDEN}
    for picks, look in ((parts.words, learner.look), (parts.reading, learner.look_at_finding)):
        picks.select(handlers.of(look, data=True), parts.state, seen, **newest).then(None, js=_SHOW_FILMS)
    parts.brush.paint(handlers.of(learner.paint, data=True), parts.state, parts.moved, **newest)


def _joining(parts: Parts, handlers: Handlers) -> None:
    typed = [parts.state, parts.code, parts.name]
    joined = handlers.components("joined", "code", "name", *_OPENED)
    gr.on(
        [parts.join.click, parts.code.submit, parts.name.submit], handlers.of(learner.enrol), typed, joined, **_HIDDEN
    )
    parts.leave.click(handlers.of(learner.leave_computer), parts.state, handlers.components(*_OPENED), **_HIDDEN)


def _teaching(parts: Parts, handlers: Handlers) -> None:
    of, view = handlers.of, handlers.components(*_CLASS)
    survey, asked = of(teacher.survey), [parts.state, parts.shown]
    begun = handlers.components("begun", "key", "title")
    parts.begin.click(of(teacher.begin_class), [parts.title, parts.lifetime], begun, **_HIDDEN)
    gr.on(
        [parts.open_class.click, parts.key.submit], of(teacher.unlock), [parts.state, parts.key], view, **_HIDDEN
    ).then(survey, asked, view, **_MANY)
    gr.on([parts.shown.input, parts.again.click], survey, asked, view, **_MANY)
    exported = [parts.download, parts.facts]
    parts.export.click(of(teacher.export_class), parts.state, exported, **_HIDDEN).then(
        None, parts.download, parts.download, js=_SAVE
    )
    parts.close.click(of(teacher.close_class), parts.state, view, **_HIDDEN)
    parts.end.click(of(teacher.end_class), parts.state, view, **_HIDDEN)
