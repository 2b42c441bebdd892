"""Which event of the Teach screen calls which view function, and which components it may change."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from ui.handlers import Handlers
from ui.teach import author, cases, learner, teacher
from ui.teach.context import Context, TeachState
from ui.teach.layout import Parts
from ui.updates import Shown

if TYPE_CHECKING:
    from emrrg_core import Film

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
_MARKED = """(...given) => {
    given[given.length - 1] = document.querySelector('%s .rr-marking:not([data-locked])')?.dataset.now || '';
    return given;
}"""  # the marks as they stand when the event is sent: one that waited its turn must not bring older ones
_SHOW_CASE = """() => {
    if (window.innerWidth < 768) document.getElementById('teach-head').scrollIntoView({behavior: 'smooth', block: 'start'});
}"""
_SHOW_FORM = "() => document.querySelector('#teach-author')?.scrollIntoView({behavior: 'smooth', block: 'start'})"
_FILM = (
    "document.querySelector('#teach-marking [data-do=mode][data-value=look]')?.click()"  # the map lies over the film
)
_SHOW_FILMS = f"() => {{ {_FILM}; }}"
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


def connect(demo: gr.Blocks, parts: Parts, context: Context) -> Handlers:
    """Connect every event of the screen."""
    handlers = Handlers(parts, context)
    _opening(demo, parts, handlers)
    _writing(parts, handlers)
    _comparing(parts, handlers)
    _joining(parts, handlers)
    _teaching(parts, handlers)
    _authoring(parts, handlers)
    return handlers


def _opening(demo: gr.Blocks, parts: Parts, handlers: Handlers) -> None:
    of, case, opened = handlers.of, handlers.components(*_CASE), handlers.components(*_OPENED)
    first = handlers.components("choice", "tags", "faults", "figures", "status")
    known = [parts.state, parts.learner_id, parts.case_id]
    reveal = of(learner.reveal)
    demo.load(of(cases.on_load), known, first, js=_RECALL, **_MANY).then(
        of(cases.resume), known, opened, js=_RECALL, **_MANY
    ).then(reveal, parts.state, case, **_MANY)
    parts.choice.input(of(cases.choose), [parts.state, parts.choice], opened, **_MANY).then(
        reveal, parts.state, case, **_MANY
    ).then(None, js=_SHOW_CASE)
    newest: dict[str, Any] = {"trigger_mode": "always_last", **_HIDDEN}
    asked = [parts.state, parts.search, parts.tags]
    listed = handlers.components("choice", "matches")
    gr.on([parts.search.change, parts.tags.input], of(cases.narrow), asked, listed, **newest)
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
    parts.marking.mark(
        handlers.of(learner.keep_marks),
        [parts.state, parts.case_id, parts.marked],
        handlers.components("unsaved", "learner_id", "whom", "leave"),
        js=_MARKED % "#teach-marking",
        trigger_mode="always_last",
        **_HIDDEN,
    )
    parts.commit.click(
        handlers.of(learner.hand_in),
        [*written, parts.marked],
        handlers.components(*_OPENED),
        js=_MARKED % "#teach-marking",
        **_MANY,
    ).then(handlers.of(learner.reveal), parts.state, handlers.components(*_CASE), **_MANY).then(None, js=_SHOW)


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


def _authoring(parts: Parts, handlers: Handlers) -> None:
    of, form = handlers.of, handlers.components(*author.FORM)
    parts.make.click(of(author.begin), parts.state, form, **_HIDDEN).then(None, js=_SHOW_FORM)
    parts.cancel.click(of(author.cancel), parts.state, form, **_HIDDEN)
    parts.new_films.upload(of(author.take), [parts.state, parts.new_films], form, **_HIDDEN)
    words = ("title", "question", "findings", "impression", "tags", "points", "source", "licence", "level", "none")
    said = [getattr(parts, f"new_{name}") for name in (*words, "checked", "boxes")]
    parts.save.click(of(author.save), [parts.state, *said], form, js=_MARKED % "#teach-new-marking", **_HIDDEN)


@dataclass(frozen=True)
class Desk:
    """Where another screen hands over a report that a case is to be made of. allowed: whether cases may be made on this server."""

    parts: Parts
    handlers: Handlers
    allowed: bool

    def offered(
        self,
        trigger: Callable[..., Any],
        inputs: Sequence[Any],
        report_of: "Callable[..., tuple[Sequence[Film], str, str]]",
        tabs: gr.Tabs | None = None,
    ) -> None:
        """On an event of another screen, open the form filled in, and the tab of Teach.

        trigger: the event, as `button.click`; inputs: the components whose values report_of takes; it gives films, Findings and Impression.
        """

        def handed_over(state: TeachState, *given: Any) -> Shown:
            *values, context = given
            return author.offer(state, *report_of(*values), context)

        form = self.handlers.components(*author.FORM)
        done = trigger(self.handlers.of(handed_over), [self.parts.state, *inputs], form, **_HIDDEN)
        if tabs is not None:
            done = done.then(lambda: gr.Tabs(selected="teach"), None, tabs, **_HIDDEN)
        done.then(None, js=_SHOW_FORM)
