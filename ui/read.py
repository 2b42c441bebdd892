"""Read, the clinician's screen: films in, a draft streams out, the reader makes a report of it, sentence by sentence.

What a tab holds is on its `Desk`, in a `gr.State` on the server; it goes with the tab. Report and draft are kept on the disk
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

from ui import editor, exports, notices, panels, viewer
from ui.desk import Desk, core
from ui.notices import say

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
_SAVE = """(parcel) => {
    if (!parcel) return '';
    const file = JSON.parse(parcel), link = document.createElement('a');
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
    tab = gr.State(Desk(), time_to_live=KEPT, delete_callback=Desk.leave)  # every tab gets one of its own

    with gr.Row(elem_id="room"):
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
                reading = gr.HTML(panels.read_html(None), elem_id="was-read", js_on_load=panels.PICK_FINDING)
            with gr.Accordion("The model’s draft: sentences and words", open=True, elem_id="beside"):
                words = gr.HTML(panels.words_html(None), elem_id="words", js_on_load=panels.PICK)
                chosen = gr.HTML("", elem_id="chosen")
                why = gr.HTML("", elem_id="why")
            with gr.Accordion("What the report states", open=True, elem_id="states"):
                flagged = gr.HTML(panels.flag_html((), "", ""), elem_id="flags")
                table = gr.HTML(panels.findings_table_html((), "", ""), elem_id="table")
            with gr.Accordion("Export", open=True, elem_id="export"):
                menu = gr.HTML(exports.menu(Desk()), elem_id="menu")
                packing = gr.HTML("", elem_id="packing")
                with gr.Accordion("Name of the reader, for a signed DICOM structured report", open=False):
                    with gr.Row():
                        name = gr.Textbox(
                            label="Name, as DICOM writes it", placeholder="Family^Given", elem_id="reader"
                        )
                        place = gr.Textbox(label="Organization", elem_id="organization")
                    gr.HTML('<p class="rr-hint">Goes into that file alone and is not kept.</p>')
            gr.HTML(notices.keys(), elem_id="keys")
            parcel = gr.Textbox(visible="hidden", elem_id="parcel")
            kept_id = gr.Textbox(visible="hidden", elem_id="session")

    film_parts = [figures, chips, notice]
    report_parts = [report, reading, words, flagged, table, menu, kept_id, earlier, looked]
    evidence = [layers, caption, chosen, why]
    buttons = [write, stop, drop, try_example, new_study]

    @cache
    def store() -> "Sessions":
        return core().Sessions()

    # -- what is shown ---------------------------------------------------------------------------------------------------

    def films_of(desk: Desk, said: list[str] | None = None) -> dict[Any, Any]:
        return {
            figures: viewer.figures(desk.shown),
            chips: notices.chips(desk),
            notice: notices.films(desk, said or []),
        }

    def report_of(desk: Desk) -> dict[Any, Any]:
        """Everything that follows from the report and its draft."""
        drafted: Any = ()
        if desk.draft:
            drafted = core().flags(desk.draft.findings, desk.draft.impression, has_prior=desk.has_prior)
        texts = desk.texts
        marks = core().flags(*texts, has_prior=desk.has_prior) if any(texts) else []
        rows = core().findings_table(*texts) if any(texts) else ()
        return {
            report: editor.html_of(desk.report, desk.draft, marks, kept=notices.kept(desk)),
            reading: panels.read_html(desk.draft, desk.found),
            words: panels.words_html(desk.draft, desk.picked, drafted),
            flagged: panels.flag_html(marks, *texts),
            table: panels.findings_table_html(rows, *texts),
            menu: exports.menu(desk),
            kept_id: desk.session.id if desk.session else "",
            earlier: gr.Textbox(value=desk.earlier, visible=True if desk.earlier else "hidden"),
            looked: panels.looking_html(desk.looked) if desk.looked else "",
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

    def hello(desk: Desk, id: str) -> Any:
        """At once: films wait until the kept report is open, or they would be taken for another study's."""
        desk.busy = bool(id)
        return say("Your report is being opened; the model is loading…" if id else "The model is loading…", busy=True)

    def resume(desk: Desk, id: str) -> Any:
        """Once the model is there: open the report that this tab had."""
        wait([reporter])
        told, trouble = "", ""
        try:
            if id and desk.session is None:
                desk.open(store().load(id))
        except core().SessionGoneError as error:
            trouble, id = str(error), ""
        except core().EmrrgError as error:
            trouble = str(error)
        finally:
            desk.busy = False
        if desk.session:
            told = "Your report is as you left it."
        if desk.session and desk.session.warning:
            trouble = desk.session.warning
        try:
            reporter.result()
            ready = say(trouble, bad=True) if trouble else say(told or "Ready.")
        except core().EmrrgError as error:
            ready = say(f"{trouble} {error}".strip(), bad=True)
        except Exception:
            ready = say("The model could not be loaded; the server's console says more.", bad=True)
        if desk.session is None:
            return {status: ready, kept_id: id}
        return {tab: desk, status: ready, **films_of(desk), **report_of(desk)}

    # -- films -----------------------------------------------------------------------------------------------------------

    def add(desk: Desk, uploads: "list[str] | None") -> Any:
        """Read what was dropped, delete it from the disk, keep the films in memory."""
        paths = [Path(upload) for upload in uploads or ()]
        try:
            trouble = desk.take(paths, first=1)
        finally:
            for path in paths:
                path.unlink(missing_ok=True)
                with suppress(
                    OSError
                ):  # the folder is named after the content: an equal film of another reader may lie there
                    path.parent.rmdir()
        return {tab: desk, drop: None, **films_of(desk, trouble), menu: exports.menu(desk)}

    def add_example(desk: Desk) -> Any:
        path = example()
        missing = ["The example film is not installed. Install it with: pip install pydicom-data"]
        trouble = desk.take([path], first=None) if path else missing
        return {tab: desk, drop: None, **films_of(desk, trouble), menu: exports.menu(desk)}

    # -- drafting --------------------------------------------------------------------------------------------------------

    def begin(desk: Desk) -> Any:
        """At once, though another reader's draft may be under way: empty the room for the new draft and say so."""
        with desk.lock:
            if reason := _not_now(desk):
                return {status: say(reason, bad=True)}
            desk.busy, desk.wanted, desk.stop, desk.waiting = True, True, False, ()
        first = "Waiting for the model…" if reporter.done() else "The model is loading; the draft starts after that…"
        return {
            tab: desk,
            **films_of(desk),
            status: say(first, busy=True),
            looked: "",
            report: editor.html_of(None, None),
            reading: panels.read_html(None),
            words: panels.words_html(None),
            **buttons_of(idle=False),
            **without_map(),
        }

    def draft_report(desk: Desk, width: float) -> Iterator[Any]:
        """What the reader wrote or edited is never thrown away: it moves to "Your earlier text", the newest above."""
        if not desk.wanted:  # it could not begin
            yield {status: gr.skip()}
            return
        desk.wanted = False
        latest, begun, shown = None, False, 0.0
        try:
            while not (desk.stop or reporter.done()):
                wait([reporter], timeout=0.2)
            if desk.stop or not desk.check(reporter.result()):  # the report that was there is there still
                why_not = say("Not drafted: a film was refused, see the note above it.", bad=True)
                yield {status: notices.stopped(None) if desk.stop else why_not, **settle(desk, None, begun)}
                return
            with desk.lock:  # from here on the former report is over
                begun = True
                desk.earlier = "\n\n".join(text for text in (own_words(desk), desk.earlier) if text)
                desk.draft = desk.looked = desk.picked = desk.found = None
                desk.report = core().Report()
                desk.keep(store())
            yield {
                earlier: gr.Textbox(value=desk.earlier, visible=True if desk.earlier else "hidden"),
                kept_id: desk.session.id if desk.session else "",
            }
            for latest in reporter.result().stream(desk.films, core().DecodeConfig(beams=int(width))):
                if desk.stop:
                    break
                if time.monotonic() - shown < SHOWN:
                    continue
                shown = time.monotonic()
                yield {
                    report: editor.writing(latest),
                    status: say(f"Drafting… {len(latest.tokens)} tokens", busy=True),
                }
        except core().EmrrgError as error:
            yield {status: say(str(error), bad=True), **settle(desk, latest, begun)}
        except Exception:  # a bug: it shows as one on the server's console, but the screen must not stay locked
            yield {
                status: say("The draft failed; the server's console says more.", bad=True),
                **settle(desk, latest, begun),
            }
            raise
        else:
            ending = notices.stopped(latest) if desk.stop else notices.finished(latest)
            yield {status: ending, **settle(desk, latest, begun)}

    def settle(desk: Desk, latest: "Draft | None", begun: bool) -> dict[Any, Any]:
        """No draft is under way any more: what there is becomes the report, unread, and is kept. begun: else the former one stays."""
        trouble = None
        with desk.lock:
            desk.busy = False
            if begun:
                desk.draft = latest
                desk.report = core().Report.of(latest) if latest else core().Report()
                if not desk.left:  # a page that was loaded again meanwhile has opened the session already
                    trouble = desk.keep(store())
        return {tab: desk, **report_of(desk), **films_of(desk, [trouble] if trouble else None), **buttons_of(idle=True)}

    def is_it_looking(desk: Desk) -> Iterator[Any]:
        """Read the draft again under what is not its film."""
        draft = desk.draft
        if draft is None or desk.stop or desk.looked or not draft.tokens or desk.missing:
            yield {looked: gr.skip()}
            return
        try:
            for done, every, found in followed(
                lambda progress: reporter.result().looking(desk.films, draft, progress=progress)
            ):
                if found is None:
                    yield {looked: say(f"Does the text depend on its film? Reading {done} of {every}…", busy=True)}
                elif desk.draft is draft:
                    with desk.lock:
                        desk.looked = found
                        trouble = desk.keep(store())
                    yield {
                        looked: panels.looking_html(found),
                        kept_id: desk.session.id if desk.session else "",
                        notice: notices.films(desk, [trouble]) if trouble else gr.skip(),
                    }
                else:
                    yield {looked: ""}
        except core().EmrrgError as error:
            yield {looked: say(f"Whether the text depends on its film could not be measured. {error}", bad=True)}

    # -- asking ----------------------------------------------------------------------------------------------------------

    def look_at_line(desk: Desk, event: gr.EventData) -> Any:
        """A sentence of the report was chosen: the map of the drafted sentence that it came from."""
        if desk.report is None or desk.busy:
            return {caption: gr.skip()}
        line = next((line for line in desk.report.lines if line.id == event._data.get("line")), None)
        if line is None or line.drafted is None or desk.draft is None:
            desk.picked = desk.found = None
            words_there = (
                "" if line is None else notices.told_of("You wrote this sentence: the model has no map of it.")
            )
            return {**without_map(), caption: words_there, words: gr.skip(), menu: exports.menu(desk)}
        picked = panels.picked(desk.draft, [line.drafted, None])
        return looked_at(desk, picked) if picked else {caption: gr.skip()}

    def look_at_words(desk: Desk, event: gr.SelectData) -> Any:
        """A sentence or a word of the draft was chosen."""
        picked = panels.picked(desk.draft, event.index) if desk.draft and not desk.busy else None
        return looked_at(desk, picked) if picked else {caption: gr.skip()}

    def looked_at(desk: Desk, picked: panels.Selection) -> Any:
        """Its map over every film, its gates and probabilities beside them."""
        draft = desk.draft
        assert draft is not None
        desk.picked, desk.found = picked, None
        first, last = picked.first, picked.last
        maps = [core().heat_map(draft, place, picked.what(draft)) for place in desk.places]
        drafted = core().flags(draft.findings, draft.impression, has_prior=desk.has_prior)
        return {
            tab: desk,
            layers: viewer.layers(maps, core().overlay, within="#room"),
            caption: _caption(draft, picked, maps),
            reading: panels.read_html(draft),
            words: panels.words_html(draft, picked, drafted),
            chosen: panels.tokens_html(draft, first, last) + panels.gates_html(draft, first, last) + _ask(desk),
            why: "",
            menu: exports.menu(desk),
        }

    def look_at_finding(desk: Desk, event: gr.SelectData) -> Any:
        """A finding that was read was chosen: its own map, what its logit is made of, over every film."""
        draft = desk.draft
        finding = draft.finding(str(event.index)) if draft and not desk.busy else None
        if draft is None or finding is None:
            return {caption: gr.skip()}
        desk.picked, desk.found = None, finding.name
        maps = viewer.maps_of(draft, finding, desk.places)
        drafted = core().flags(draft.findings, draft.impression, has_prior=desk.has_prior)
        return {
            tab: desk,
            layers: viewer.layers(maps, core().overlay, within="#room"),
            caption: panels.finding_caption(finding, shown=bool(maps)),
            reading: panels.read_html(draft, finding.name),
            words: panels.words_html(draft, None, drafted),
            chosen: "",
            why: "",
            menu: exports.menu(desk),
        }

    def why_this(desk: Desk) -> Iterator[Any]:
        """*Why this sentence?*, of the chosen one."""
        draft, picked = desk.draft, desk.picked
        if draft is None or picked is None:
            yield {why: gr.skip()}
            return
        sentence = draft.sentences[picked.sentence].text
        yield {why: say("Waiting for the model…", busy=True)}
        try:
            for done, every, found in followed(
                lambda progress: (reporter.result().why(desk.films, draft, picked.sentence, progress=progress),)
            ):
                if desk.picked is None or desk.picked.sentence != picked.sentence:
                    return  # another one is chosen by now
                if found is None:
                    yield {why: say(f"Hiding places of the film: reading {done} of {every}…", busy=True)}
                else:
                    yield {why: panels.why_html(found[0], sentence)}
        except core().EmrrgError as error:
            yield {why: say(str(error), bad=True)}

    # -- the reader's deeds ----------------------------------------------------------------------------------------------

    def act(desk: Desk, id: str, event: gr.EventData) -> Any:
        """A button of the room that the browser cannot do alone."""
        deed = dict(event._data)
        if desk.busy:
            return {status: say("Wait until the draft is done, or stop it.", bad=True)}
        do, number = deed.get("deed"), deed.get("number", -1)
        if do in ("use", "remove", "mark"):
            found = [getattr(desk, do)(number if isinstance(number, int) else -1)]
            if desk.report:  # whether there is a prior film belongs to what is kept
                found.append(desk.keep(store()))
            films = films_of(desk, [words_said for words_said in found if words_said])
            return {tab: desk, **films, **(report_of(desk) if desk.report else {}), **without_map()}
        if do == "close":
            return close(desk)
        if do == "leave-open":
            return films_of(desk)
        wait([reporter])
        try:
            if id and desk.report is None:  # the tab was left alone for so long that its desk was cleared
                desk.open(store().load(id))
            if do == "keep":
                with desk.lock:
                    desk.session = None
                words_said = "Kept as a new session."
            else:
                with desk.lock:
                    desk.report = editor.apply(desk.report or core().Report(), deed)
                words_said = editor.told(desk.report, deed)
            trouble = desk.keep(store())
        except core().EmrrgError as error:
            return {status: say(str(error), bad=True), **report_of(desk)}
        note = {notice: notices.films(desk, [trouble] if trouble else [])}
        return {tab: desk, **report_of(desk), **note, status: say(words_said)}

    def ask_to_close(desk: Desk) -> Any:
        """New study: what is kept of this one would be deleted, so the reader is asked first."""
        if desk.busy:
            return {notice: gr.skip()}
        if not desk.has_words:
            return close(desk)
        return {notice: notices.to_close(desk.report is not None and desk.report.signed is not None)}

    def close(desk: Desk) -> Any:
        try:
            if desk.session:
                desk.close(store())
            desk.clear()
        except core().EmrrgError as error:
            return {notice: notices.films(desk, [f"The report could not be deleted. {error}"])}
        ready = reporter.done()
        return {
            **films_of(desk),
            **blank(),
            **without_map(),
            packing: "",
            parcel: "",
            status: say("Ready." if ready else "The model is loading…", busy=not ready),
        }

    def blank() -> dict[Any, Any]:
        """What follows from there being no report, said without the core, which may still be loading."""
        return {
            report: editor.html_of(None, None),
            reading: panels.read_html(None),
            words: panels.words_html(None),
            flagged: panels.flag_html((), "", ""),
            table: panels.findings_table_html((), "", ""),
            menu: exports.menu(Desk()),
            kept_id: "",
            earlier: gr.Textbox(value="", visible="hidden"),
            looked: "",
        }

    def export(desk: Desk, reader: str | None, organization: str | None, event: gr.EventData) -> Iterator[Any]:
        kind = str(event._data.get("kind"))
        label = next((each.label for each in exports.KINDS if each.name == kind), "The file")
        yield {parcel: "", packing: say(f"{label} is being made…", busy=True)}
        try:
            wait([reporter])
            made = exports.make(kind, desk, reader=exports.reader_of(reader, organization))
        except core().EmrrgError as error:
            yield {parcel: "", packing: say(str(error), bad=True)}
        except Exception:
            yield {parcel: "", packing: say(f"{label} could not be made; the server's console says more.", bad=True)}
            raise
        else:
            yield {parcel: made, packing: say(f"{label} is saved.")}

    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    # the model works for one reader at a time
    model: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", **hidden}
    recall = f"(tab, id) => [tab, ({_RECALL})()]"
    demo.load(hello, [tab, kept_id], status, js=recall, **hidden).then(
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
    stop.click(Desk.halt, tab, None, **hidden)
    closing = [*film_parts, *report_parts, *evidence, packing, parcel, status]
    new_study.click(ask_to_close, tab, closing, **hidden)
    # one at a time and in their order, none left out: an edit must never overtake another
    report.act(act, [tab, kept_id], [tab, *closing], trigger_mode="multiple", concurrency_limit=1, **hidden)
    looking_at = [tab, *evidence, reading, words, menu]
    report.look(look_at_line, tab, looking_at, trigger_mode="always_last", **hidden)
    for choice, look in ((words, look_at_words), (reading, look_at_finding)):
        choice.select(look, tab, looking_at, trigger_mode="always_last", **hidden).then(None, js=_SHOW_FILMS)
    report.ask(why_this, tab, why, **model)
    report.save(export, [tab, name, place], [parcel, packing], **hidden).then(None, parcel, parcel, js=_SAVE)


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


def own_words(desk: Desk) -> str:
    """The report on the desk where a reader had a hand in it, else nothing."""
    drafted = (desk.draft.findings.strip(), desk.draft.impression.strip()) if desk.draft else ("", "")
    here = tuple(text.strip() for text in desk.texts)
    if here == drafted:
        return ""
    return "\n".join(f"{name}: {text}" for name, text in zip(("Findings", "Impression"), here, strict=True) if text)


def _not_now(desk: Desk) -> str:
    """Why no draft can begin; empty where it can."""
    if desk.busy:
        return "Wait: a draft is under way, or your report is still being opened."
    if desk.report is not None and desk.report.signed is not None:
        return "This report is signed. Take the signature back, or begin a new study."
    if desk.draft is not None and desk.missing:
        names = " and ".join(desk.draft.films[number].name for number in desk.missing)
        return f"Films are not stored: drop {names} again to draft anew."
    if not desk.films:
        return "Every film here is marked as prior: drop the one to be read." if desk.held else NO_FILM
    return ""


def _ask(desk: Desk) -> str:
    """*Why this sentence?*, or why that cannot be asked now."""
    if desk.missing:
        return '<p class="rr-hint">Why this sentence? Drop the films again to ask: they are not stored.</p>'
    ask = notices.button("why", "Why this sentence?", 'data-event="ask"')
    return f'<p class="rr-foot">{ask}</p>'


def _caption(draft: "Draft", picked: panels.Selection, maps: Sequence[Any]) -> str:
    about = panels.about_html(draft, draft.sentences[picked.sentence])
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
