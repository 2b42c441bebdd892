"""Read, the clinician's screen: films in, a draft streams out, the reader makes a report of it, sentence by sentence.

What a tab holds is on its `SessionState`, in a `gr.State` on the server; it goes with the tab. Report and draft are kept on the disk
under a random id, which the browser remembers for that tab alone (sessionStorage), so that a reload or a restart of the
server loses nothing.
"""

import html
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import gradio as gr

from ui import draft_panels, editor, exports, messages, viewer
from ui.messages import say
from ui.session_state import SessionState, core

if TYPE_CHECKING:
    from emrrg_core import Draft, Reporter, Sessions

NOTICE = "Research and teaching only, not a medical device."
NO_FILM = "Choose a chest film first: drop one on the left, or try the example."
SHOWN = 0.15  # seconds between two pictures of a draft under way: each costs about as much as a token
KEPT = 4 * 3600  # seconds that an open but untouched tab keeps its films
SCRIPT = (Path(__file__).parent / "read.js").read_text(encoding="utf-8")

_RECALL = "() => sessionStorage.getItem('emrrg-session') || ''"  # of this tab alone, and gone with it
_REMEMBER = """(id) => {
    if (id) sessionStorage.setItem('emrrg-session', id);
    else sessionStorage.removeItem('emrrg-session');
}"""
_SHOW_FILMS = (
    """() => { if (window.innerWidth < 768) document.getElementById('films').scrollIntoView({behavior: 'smooth'}); }"""
)
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


def screen(demo: gr.Blocks, reporter: "Future[Reporter]", example: Callable[[], Path | None]) -> None:
    """Put the screen into `demo`, which is open.

    reporter may still be loading; example gives the path of a film to try, or None where there is none.
    """
    tab = gr.State(
        SessionState(), time_to_live=KEPT, delete_callback=SessionState.leave
    )  # every tab gets one of its own

    with gr.Row(elem_id="read"):
        with gr.Column(scale=6, min_width=320):
            drop = gr.File(
                label="Films of one study, one to four files",
                file_count="multiple",
                height=84,
                elem_id="drop",
            )
            with gr.Row():
                try_example = gr.Button("Try the example film", size="sm", min_width=120, elem_id="example")
                new_study = gr.Button("New study", size="sm", min_width=120, elem_id="new")
            notice = gr.HTML("", elem_id="notice")
            chips = gr.HTML("", elem_id="chips")
            with gr.Column(elem_id="viewer"):  # stays in sight while the draft is read
                figures = gr.HTML(viewer.figures(()), elem_id="films")
                layers = gr.HTML("", elem_id="layers")
                caption = gr.HTML("", elem_id="caption")
        with gr.Column(scale=5, min_width=320):
            with gr.Row():
                write = gr.Button("Draft report", variant="primary", scale=3, elem_id="write")
                stop = gr.Button("Stop", variant="stop", interactive=False, scale=1, min_width=80, elem_id="stop")
            with gr.Accordion("Options", open=False):
                beams = gr.Slider(
                    1,
                    4,
                    1,
                    step=1,
                    label="Beams",
                    info="1 is quickest; more weigh several wordings against each other.",
                )
            status = gr.HTML(say("The model is loading…", busy=True), elem_id="status")
            looked = gr.HTML("", elem_id="looked")
            report = gr.HTML(editor.html_of(None, None), elem_id="report", js_on_load=SCRIPT)
            earlier = gr.Textbox(
                label="Your earlier text",
                info="What you had written or edited before the report was drafted anew.",
                lines=4,
                max_lines=10,
                interactive=False,
                buttons=["copy"],
                visible="hidden",
                elem_id="earlier",
            )
            with gr.Accordion("What was read in the film", open=True, elem_id="reading"):
                reading = gr.HTML(
                    draft_panels.read_html(None), elem_id="was-read", js_on_load=draft_panels.PICK_FINDING
                )
            with gr.Accordion("The model’s draft: sentences and words", open=True, elem_id="beside"):
                words = gr.HTML(draft_panels.words_html(None), elem_id="words", js_on_load=draft_panels.PICK)
                chosen = gr.HTML("", elem_id="chosen")
                why = gr.HTML("", elem_id="why")
            with gr.Accordion("What the report states", open=True, elem_id="states"):
                flagged = gr.HTML(draft_panels.flag_html((), "", ""), elem_id="flags")
                table = gr.HTML(draft_panels.findings_table_html((), "", ""), elem_id="table")
            with gr.Accordion("Export", open=True, elem_id="export"):
                menu = gr.HTML(exports.menu(SessionState()), elem_id="menu")
                packing = gr.HTML("", elem_id="packing")
                with gr.Accordion("Name of the reader, for a signed DICOM structured report", open=False):
                    with gr.Row():
                        name = gr.Textbox(
                            label="Name, as DICOM writes it", placeholder="Family^Given", elem_id="reader"
                        )
                        place = gr.Textbox(label="Organization", elem_id="organization")
                    gr.HTML('<p class="rr-hint">Goes into that file alone and is not kept.</p>')
            gr.HTML(messages.keys(), elem_id="keys")
            download = gr.Textbox(visible="hidden", elem_id="download")
            kept_id = gr.Textbox(visible="hidden", elem_id="session")

    film_parts = [figures, chips, notice]
    report_parts = [report, reading, words, flagged, table, menu, kept_id, earlier, looked]
    evidence = [layers, caption, chosen, why]
    buttons = [write, stop, drop, try_example, new_study]

    @cache
    def store() -> "Sessions":
        return core().Sessions()

    # -- what is shown ---------------------------------------------------------------------------------------------------

    def films_of(state: SessionState, said: list[str] | None = None) -> dict[Any, Any]:
        return {
            figures: viewer.figures(state.shown),
            chips: messages.chips(state),
            notice: messages.films(state, said or []),
        }

    def report_of(state: SessionState) -> dict[Any, Any]:
        """Everything that follows from the report and its draft."""
        drafted: Any = ()
        if state.draft:
            drafted = core().flags(state.draft.findings, state.draft.impression, has_prior=state.has_prior)
        texts = state.texts
        marks = core().flags(*texts, has_prior=state.has_prior) if any(texts) else []
        rows = core().findings_table(*texts) if any(texts) else ()
        return {
            report: editor.html_of(state.report, state.draft, marks, kept=messages.kept(state)),
            reading: draft_panels.read_html(state.draft, state.found),
            words: draft_panels.words_html(state.draft, state.picked, drafted),
            flagged: draft_panels.flag_html(marks, *texts),
            table: draft_panels.findings_table_html(rows, *texts),
            menu: exports.menu(state),
            kept_id: state.session.id if state.session else "",
            earlier: gr.Textbox(value=state.earlier, visible=True if state.earlier else "hidden"),
            looked: draft_panels.looking_html(state.looked) if state.looked else "",
        }

    def without_map() -> dict[Any, Any]:
        return {layers: "", caption: "", chosen: "", why: ""}

    def buttons_of(*, idle: bool) -> dict[Any, Any]:
        return {
            write: gr.Button(interactive=idle),
            stop: gr.Button(interactive=not idle),
            drop: gr.File(value=None, interactive=idle),
            try_example: gr.Button(interactive=idle),
            new_study: gr.Button(interactive=idle),  # stop first: a draft's last words must not reach the next study
        }

    # -- opening the page ------------------------------------------------------------------------------------------------

    def on_load(state: SessionState, id: str) -> Any:
        """At once: films wait until the kept report is open, or they would be taken for another study's."""
        state.busy = bool(id)
        return say("Your report is being opened; the model is loading…" if id else "The model is loading…", busy=True)

    def resume(state: SessionState, id: str) -> Any:
        """Once the model is there: open the report that this tab had."""
        wait([reporter])
        told, trouble = "", ""
        try:
            if id and state.session is None:
                state.open(store().load(id))
        except core().SessionGoneError as error:
            trouble, id = str(error), ""
        except core().EmrrgError as error:
            trouble = str(error)
        finally:
            state.busy = False
        if state.session:
            told = "Your report is as you left it."
        if state.session and state.session.warning:
            trouble = state.session.warning
        try:
            reporter.result()
            ready = say(trouble, bad=True) if trouble else say(told or "Ready.")
        except core().EmrrgError as error:
            ready = say(f"{trouble} {error}".strip(), bad=True)
        except Exception:
            ready = say("The model could not be loaded; the server's console says more.", bad=True)
        if state.session is None:
            return {status: ready, kept_id: id}
        return {tab: state, status: ready, **films_of(state), **report_of(state)}

    # -- films -----------------------------------------------------------------------------------------------------------

    def add(state: SessionState, uploads: "list[str] | None") -> Any:
        """Read what was dropped, delete it from the disk, keep the films in memory."""
        paths = [Path(upload) for upload in uploads or ()]
        try:
            trouble = state.take(paths, first=1)
        finally:
            for path in paths:
                path.unlink(missing_ok=True)
                with suppress(
                    OSError
                ):  # the folder is named after the content: an equal film of another reader may lie there
                    path.parent.rmdir()
        return {tab: state, drop: None, **films_of(state, trouble), menu: exports.menu(state)}

    def add_example(state: SessionState) -> Any:
        path = example()
        missing = ["The example film is not installed. Install it with: pip install pydicom-data"]
        trouble = state.take([path], first=None) if path else missing
        return {tab: state, drop: None, **films_of(state, trouble), menu: exports.menu(state)}

    # -- drafting --------------------------------------------------------------------------------------------------------

    def begin(state: SessionState) -> Any:
        """At once, though another reader's draft may be under way: empty the room for the new draft and say so."""
        with state.lock:
            if reason := _not_now(state):
                return {status: say(reason, bad=True)}
            state.busy, state.wanted, state.stop, state.waiting = True, True, False, ()
        first = "Waiting for the model…" if reporter.done() else "The model is loading; the draft starts after that…"
        return {
            tab: state,
            **films_of(state),
            status: say(first, busy=True),
            looked: "",
            report: editor.html_of(None, None),
            reading: draft_panels.read_html(None),
            words: draft_panels.words_html(None),
            **buttons_of(idle=False),
            **without_map(),
        }

    def draft_report(state: SessionState, width: float) -> Iterator[Any]:
        """What the reader wrote or edited is never thrown away: it moves to "Your earlier text", the newest above."""
        if not state.wanted:  # it could not begin
            yield {status: gr.skip()}
            return
        state.wanted = False
        latest, begun, shown = None, False, 0.0
        try:
            while not (state.stop or reporter.done()):
                wait([reporter], timeout=0.2)
            if state.stop or not state.check(reporter.result()):  # the report that was there is there still
                why_not = say("Not drafted: a film was refused, see the note above it.", bad=True)
                yield {status: messages.stopped(None) if state.stop else why_not, **settle(state, None, begun)}
                return
            with state.lock:  # from here on the former report is over
                begun = True
                state.earlier = "\n\n".join(text for text in (own_words(state), state.earlier) if text)
                state.draft = state.looked = state.picked = state.found = None
                state.report = core().Report()
                state.keep(store())
            yield {
                earlier: gr.Textbox(value=state.earlier, visible=True if state.earlier else "hidden"),
                kept_id: state.session.id if state.session else "",
            }
            for latest in reporter.result().stream(state.films, core().DecodeConfig(beams=int(width))):
                if state.stop:
                    break
                if time.monotonic() - shown < SHOWN:
                    continue
                shown = time.monotonic()
                yield {
                    report: editor.writing(latest),
                    status: say(f"Drafting… {len(latest.tokens)} tokens", busy=True),
                }
        except core().EmrrgError as error:
            yield {status: say(str(error), bad=True), **settle(state, latest, begun)}
        except Exception:  # a bug: it shows as one on the server's console, but the screen must not stay locked
            yield {
                status: say("The draft failed; the server's console says more.", bad=True),
                **settle(state, latest, begun),
            }
            raise
        else:
            ending = messages.stopped(latest) if state.stop else messages.finished(latest)
            yield {status: ending, **settle(state, latest, begun)}

    def settle(state: SessionState, latest: "Draft | None", begun: bool) -> dict[Any, Any]:
        """No draft is under way any more: what there is becomes the report, unread, and is kept. begun: else the former one stays."""
        trouble = None
        with state.lock:
            state.busy = False
            if begun:
                state.draft = latest
                state.report = core().Report.of(latest) if latest else core().Report()
                if not state.left:  # a page that was loaded again meanwhile has opened the session already
                    trouble = state.keep(store())
        return {
            tab: state,
            **report_of(state),
            **films_of(state, [trouble] if trouble else None),
            **buttons_of(idle=True),
        }

    def is_it_looking(state: SessionState) -> Iterator[Any]:
        """Read the draft again under what is not its film."""
        draft = state.draft
        if draft is None or state.stop or state.looked or not draft.tokens or state.missing:
            yield {looked: gr.skip()}
            return
        try:
            for done, every, found in followed(
                lambda progress: reporter.result().looking(state.films, draft, progress=progress)
            ):
                if found is None:
                    yield {looked: say(f"Does the text depend on its film? Reading {done} of {every}…", busy=True)}
                elif state.draft is draft:
                    with state.lock:
                        state.looked = found
                        trouble = state.keep(store())
                    yield {
                        looked: draft_panels.looking_html(found),
                        kept_id: state.session.id if state.session else "",
                        notice: messages.films(state, [trouble]) if trouble else gr.skip(),
                    }
                else:
                    yield {looked: ""}
        except core().EmrrgError as error:
            yield {looked: say(f"Whether the text depends on its film could not be measured. {error}", bad=True)}

    # -- asking ----------------------------------------------------------------------------------------------------------

    def look_at_line(state: SessionState, event: gr.EventData) -> Any:
        """A sentence of the report was chosen: the map of the drafted sentence that it came from."""
        if state.report is None or state.busy:
            return {caption: gr.skip()}
        line = next((line for line in state.report.lines if line.id == event._data.get("line")), None)
        if line is None or line.drafted is None or state.draft is None:
            state.picked = state.found = None
            words_there = (
                "" if line is None else messages.told_of("You wrote this sentence: the model has no map of it.")
            )
            return {**without_map(), caption: words_there, words: gr.skip(), menu: exports.menu(state)}
        picked = draft_panels.picked(state.draft, [line.drafted, None])
        return looked_at(state, picked) if picked else {caption: gr.skip()}

    def look_at_words(state: SessionState, event: gr.SelectData) -> Any:
        """A sentence or a word of the draft was chosen."""
        picked = draft_panels.picked(state.draft, event.index) if state.draft and not state.busy else None
        return looked_at(state, picked) if picked else {caption: gr.skip()}

    def looked_at(state: SessionState, picked: draft_panels.Selection) -> Any:
        """Its map over every film, its gates and probabilities beside them."""
        draft = state.draft
        assert draft is not None
        state.picked, state.found = picked, None
        first, last = picked.first, picked.last
        maps = [core().heat_map(draft, place, picked.what(draft)) for place in state.places]
        drafted = core().flags(draft.findings, draft.impression, has_prior=state.has_prior)
        return {
            tab: state,
            layers: viewer.layers(maps, core().overlay, within="#read"),
            caption: _caption(draft, picked, maps),
            reading: draft_panels.read_html(draft),
            words: draft_panels.words_html(draft, picked, drafted),
            chosen: draft_panels.tokens_html(draft, first, last)
            + draft_panels.gates_html(draft, first, last)
            + _ask(state),
            why: "",
            menu: exports.menu(state),
        }

    def look_at_finding(state: SessionState, event: gr.SelectData) -> Any:
        """A finding that was read was chosen: its own map, what its logit is made of, over every film."""
        draft = state.draft
        finding = draft.finding(str(event.index)) if draft and not state.busy else None
        if draft is None or finding is None:
            return {caption: gr.skip()}
        state.picked, state.found = None, finding.name
        maps = viewer.maps_of(draft, finding, state.places)
        drafted = core().flags(draft.findings, draft.impression, has_prior=state.has_prior)
        return {
            tab: state,
            layers: viewer.layers(maps, core().overlay, within="#read"),
            caption: draft_panels.finding_caption(finding, shown=bool(maps)),
            reading: draft_panels.read_html(draft, finding.name),
            words: draft_panels.words_html(draft, None, drafted),
            chosen: "",
            why: "",
            menu: exports.menu(state),
        }

    def why_this(state: SessionState) -> Iterator[Any]:
        """*Why this sentence?*, of the chosen one."""
        draft, picked = state.draft, state.picked
        if draft is None or picked is None:
            yield {why: gr.skip()}
            return
        sentence = draft.sentences[picked.sentence].text
        yield {why: say("Waiting for the model…", busy=True)}
        try:
            for done, every, found in followed(
                lambda progress: (reporter.result().why(state.films, draft, picked.sentence, progress=progress),)
            ):
                if state.picked is None or state.picked.sentence != picked.sentence:
                    return  # another one is chosen by now
                if found is None:
                    yield {why: say(f"Hiding places of the film: reading {done} of {every}…", busy=True)}
                else:
                    yield {why: draft_panels.why_html(found[0], sentence)}
        except core().EmrrgError as error:
            yield {why: say(str(error), bad=True)}

    # -- the reader's actions ----------------------------------------------------------------------------------------------

    def act(state: SessionState, id: str, event: gr.EventData) -> Any:
        """A button of the room that the browser cannot do alone."""
        action = dict(event._data)
        if state.busy:
            return {status: say("Wait until the draft is done, or stop it.", bad=True)}
        do, number = action.get("action"), action.get("number", -1)
        if do in ("use", "remove", "mark"):
            found = [getattr(state, do)(number if isinstance(number, int) else -1)]
            if state.report:  # whether there is a prior film belongs to what is kept
                found.append(state.keep(store()))
            films = films_of(state, [words_said for words_said in found if words_said])
            return {tab: state, **films, **(report_of(state) if state.report else {}), **without_map()}
        if do == "close":
            return close(state)
        if do == "leave-open":
            return films_of(state)
        wait([reporter])
        try:
            if id and state.report is None:  # the tab was left alone for so long that its state was cleared
                state.open(store().load(id))
            if do == "keep":
                with state.lock:
                    state.session = None
                words_said = "Kept as a new session."
            else:
                with state.lock:
                    state.report = editor.apply(state.report or core().Report(), action)
                words_said = editor.told(state.report, action)
            trouble = state.keep(store())
        except core().EmrrgError as error:
            return {status: say(str(error), bad=True), **report_of(state)}
        note = {notice: messages.films(state, [trouble] if trouble else [])}
        return {tab: state, **report_of(state), **note, status: say(words_said)}

    def ask_to_close(state: SessionState) -> Any:
        """New study: what is kept of this one would be deleted, so the reader is asked first."""
        if state.busy:
            return {notice: gr.skip()}
        if not state.has_words:
            return close(state)
        return {notice: messages.to_close(state.report is not None and state.report.signed is not None)}

    def close(state: SessionState) -> Any:
        try:
            if state.session:
                state.close(store())
            state.clear()
        except core().EmrrgError as error:
            return {notice: messages.films(state, [f"The report could not be deleted. {error}"])}
        ready = reporter.done()
        return {
            **films_of(state),
            **blank(),
            **without_map(),
            packing: "",
            download: "",
            status: say("Ready." if ready else "The model is loading…", busy=not ready),
        }

    def blank() -> dict[Any, Any]:
        """What follows from there being no report, said without the core, which may still be loading."""
        return {
            report: editor.html_of(None, None),
            reading: draft_panels.read_html(None),
            words: draft_panels.words_html(None),
            flagged: draft_panels.flag_html((), "", ""),
            table: draft_panels.findings_table_html((), "", ""),
            menu: exports.menu(SessionState()),
            kept_id: "",
            earlier: gr.Textbox(value="", visible="hidden"),
            looked: "",
        }

    def export(state: SessionState, reader: str | None, organization: str | None, event: gr.EventData) -> Iterator[Any]:
        kind = str(event._data.get("kind"))
        label = next((each.label for each in exports.KINDS if each.name == kind), "The file")
        yield {download: "", packing: say(f"{label} is being made…", busy=True)}
        try:
            wait([reporter])
            made = exports.make(kind, state, reader=exports.reader_of(reader, organization))
        except core().EmrrgError as error:
            yield {download: "", packing: say(str(error), bad=True)}
        except Exception:
            yield {download: "", packing: say(f"{label} could not be made; the server's console says more.", bad=True)}
            raise
        else:
            yield {download: made, packing: say(f"{label} is saved.")}

    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    # the model works for one reader at a time
    model: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", **hidden}
    recall = f"(tab, id) => [tab, ({_RECALL})()]"
    demo.load(on_load, [tab, kept_id], status, js=recall, **hidden).then(
        resume, [tab, kept_id], [tab, status, *film_parts, *report_parts], js=recall, **hidden
    ).then(None, kept_id, js=_REMEMBER)  # also where nothing changed: a report that is gone is forgotten
    kept_id.change(None, kept_id, js=_REMEMBER)
    adding: dict[str, Any] = {
        "outputs": [tab, drop, *film_parts, menu],
        "show_progress_on": figures,
        "api_visibility": "private",
    }
    drop.upload(add, [tab, drop], **adding)
    try_example.click(add_example, tab, **adding)
    write.click(
        begin,
        tab,
        [tab, *film_parts, status, looked, report, reading, words, *buttons, *evidence],
        **hidden,
    ).then(
        draft_report,
        [tab, beams],
        [tab, status, *film_parts, *report_parts, *buttons],
        **model,
    ).then(is_it_looking, tab, [looked, kept_id, notice], **model)
    stop.click(SessionState.halt, tab, None, **hidden)
    closing = [*film_parts, *report_parts, *evidence, packing, download, status]
    new_study.click(ask_to_close, tab, closing, **hidden)
    # one at a time and in their order, none left out: an edit must never overtake another
    report.act(act, [tab, kept_id], [tab, *closing], trigger_mode="multiple", concurrency_limit=1, **hidden)
    looking_at = [tab, *evidence, reading, words, menu]
    report.look(look_at_line, tab, looking_at, trigger_mode="always_last", **hidden)
    for choice, look in ((words, look_at_words), (reading, look_at_finding)):
        choice.select(look, tab, looking_at, trigger_mode="always_last", **hidden).then(None, js=_SHOW_FILMS)
    report.ask(why_this, tab, why, **model)
    report.save(export, [tab, name, place], [download, packing], **hidden).then(None, download, download, js=_SAVE)


def followed(work: Callable[[Callable[[int, int], None]], Any]) -> Iterator[tuple[int, int, Any]]:
    """(done, of, None) while `work` goes on, and (of, of, its result) once it is done. What it raises is raised here."""
    steps: SimpleQueue[tuple[int, int] | None] = SimpleQueue()
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(work(lambda done, every: steps.put((done, every))))
        except BaseException as error:
            result.set_exception(error)
        steps.put(None)

    threading.Thread(target=run, name="read-again", daemon=True).start()
    every = 0
    while (step := steps.get()) is not None:
        done, every = step
        yield done, every, None
    yield every, every, result.result()


def own_words(state: SessionState) -> str:
    """The report at hand where a reader had a hand in it, else nothing."""
    drafted = (state.draft.findings.strip(), state.draft.impression.strip()) if state.draft else ("", "")
    here = tuple(text.strip() for text in state.texts)
    if here == drafted:
        return ""
    return "\n".join(f"{name}: {text}" for name, text in zip(("Findings", "Impression"), here, strict=True) if text)


def _not_now(state: SessionState) -> str:
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


def _ask(state: SessionState) -> str:
    """*Why this sentence?*, or why that cannot be asked now."""
    if state.missing:
        return '<p class="rr-hint">Why this sentence? Drop the films again to ask: they are not stored.</p>'
    ask = messages.button("why", "Why this sentence?", 'data-event="ask"')
    return f'<p class="rr-foot">{ask}</p>'


def _caption(draft: "Draft", picked: draft_panels.Selection, maps: Sequence[Any]) -> str:
    about = draft_panels.about_html(draft, draft.sentences[picked.sentence])
    said = f"<b>“{html.escape(picked.text)}”</b>{f' · {about}' if about else ''}. "
    if not maps:
        said += "Drop the films again to see where the model looked: they are not stored."
    elif all(heat is None for heat in maps):
        said += html.escape(core().no_map(draft, picked.what(draft)))
    else:
        said += (
            "The brighter a place, the more the model looked there while writing, at the place itself or at a finding that was read there. "
            "It does not prove why it wrote this."
        )
    return f'<p role="status">{said}</p>'
