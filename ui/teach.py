"""Teach, the teacher's screen: a learner reads a case and writes first; then come the draft, the reference and what lies between.

Neither the draft nor the reference leaves the server before the learner's answer is committed: the store says whether it is, not
the page. A tab's films and draft live in `gr.State` and go with the tab; answers are kept by emrrg_core's Classes, under a
random id that the browser remembers (localStorage), so that a reload, a restart or tomorrow's lesson loses nothing.
"""

import base64
import binascii
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from ui import draft_panels, teach_html, viewer
from ui.messages import say
from ui.session_state import core

if TYPE_CHECKING:
    from emrrg_core import Draft, Film, Reporter
    from emrrg_core.explain.occlusion import Rescored
    from emrrg_core.teaching.cases import Case, Cases
    from emrrg_core.teaching.classroom import Classes, Learner
    from emrrg_core.text.compare import Comparison

SHIPPED = Path(__file__).resolve().parent.parent / "cases"
KEPT = 4 * 3600  # seconds that an open but untouched tab keeps its films
CELLS = 112  # of the grid that is painted on, along a side, as in teach.js
MOST_DRAFTS = 32  # of cases, kept in memory: the same case is drafted once for a whole class
LIFETIMES = {"1 day": 1, "7 days": 7, "30 days": 30, "90 days": 90}
SCRIPT = (Path(__file__).parent / "teach.js").read_text(encoding="utf-8")

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


@dataclass(eq=False)
class Room:
    """What one tab of the Teach room holds on the server."""

    learner: "Learner | None" = None
    case: "Case | None" = None
    films: "tuple[Film, ...]" = ()
    draft: "Draft | None" = None  # of the case: there only once the learner has committed an answer
    read: "Rescored | None" = None  # the draft under the untouched films
    key: str = ""  # of the class that the teacher has open


def screen(demo: gr.Blocks, reporter: "Future[Reporter]", cases: Path | None = None) -> None:
    """Put the screen into `demo`, which is open. reporter may still be loading; cases: the folder, by default the one that comes with EMRRG."""
    folder = cases or SHIPPED
    drafts = Drafts(reporter)
    joining = threading.Lock()  # two boxes that are typed into at once must not make two learners

    @cache
    def store() -> "Classes":
        wait([reporter])  # whose thread imports torch, which the folder's place is found with
        kept = core().Classes()
        kept.keep_purging()
        return kept

    tab = gr.State(Room(), time_to_live=KEPT)  # every tab gets one of its own
    with gr.Row(elem_id="teach"):
        with gr.Column(scale=3, min_width=260, elem_id="teach-side"):
            choice = gr.Radio([], label="Cases", elem_id="teach-cases")
            whom = gr.HTML(teach_html.who(None), elem_id="teach-who")
            with gr.Accordion("Join a class", open=False, elem_id="teach-join"):
                code = gr.Textbox(label="Class code", max_length=20, placeholder="K7M-4QD", elem_id="teach-code")
                name = gr.Textbox(
                    label="Pseudonym",
                    info="A word that is not your name and tells nobody who you are; your teacher sees it beside your answers.",
                    max_length=30,
                    elem_id="teach-name",
                )
                join = gr.Button("Join", size="sm", elem_id="teach-join-now")
                joined = gr.HTML("", elem_id="teach-joined")
            leave = gr.Button("Forget me on this computer", size="sm", visible=False, elem_id="teach-leave")
            with gr.Accordion("For teachers", open=False, elem_id="teach-teacher"):
                faults = gr.HTML("", elem_id="teach-faults")
                title = gr.Textbox(
                    label="Name of the class", info="Learners see it.", max_length=80, elem_id="teach-title"
                )
                lifetime = gr.Dropdown(
                    list(LIFETIMES), value="7 days", label="Keep answers for", elem_id="teach-lifetime"
                )
                begin = gr.Button("Begin a class", size="sm", elem_id="teach-begin")
                begun = gr.HTML("", elem_id="teach-begun")
                key = gr.Textbox(label="Your key", type="password", max_length=60, elem_id="teach-key")
                open_class = gr.Button("Open the class", size="sm", elem_id="teach-open")
                opening = gr.HTML("", elem_id="teach-opening")
        with gr.Column(scale=12, min_width=320, elem_id="teach-main"):
            with gr.Column(visible=False, elem_id="teach-class") as desk:
                facts = gr.HTML("", elem_id="teach-facts")
                with gr.Row():
                    shown = gr.Dropdown([], label="Case", scale=3, min_width=160, elem_id="teach-shown")
                    again = gr.Button("Refresh", size="sm", scale=1, min_width=90, elem_id="teach-refresh")
                    export = gr.Button("Export all (CSV)", size="sm", scale=1, min_width=130, elem_id="teach-export")
                    close = gr.Button("Close this view", size="sm", scale=1, min_width=130, elem_id="teach-close")
                every = gr.HTML("", elem_id="teach-answers")
                with gr.Accordion("End the class", open=False, elem_id="teach-end"):
                    gr.HTML('<p class="rr-hint">This deletes the class with every answer, at once and for good.</p>')
                    end = gr.Button(
                        "Delete the class and all answers", variant="stop", size="sm", elem_id="teach-end-now"
                    )
                download = gr.Textbox(visible="hidden", elem_id="teach-download")
            head = gr.HTML("", elem_id="teach-head")
            status = gr.HTML("", elem_id="teach-status")
            compared = gr.HTML("", elem_id="teach-compared")
            with gr.Row(elem_id="teach-bench"):
                with gr.Column(scale=6, min_width=320, elem_id="teach-view"):
                    figures = gr.HTML("", elem_id="teach-films")
                    layers = gr.HTML("", elem_id="teach-layers")
                with gr.Column(scale=5, min_width=320, visible=False) as writing:
                    findings = gr.Textbox(
                        label="Findings", lines=9, max_lines=18, max_length=10_000, elem_id="teach-findings"
                    )
                    impression = gr.Textbox(
                        label="Impression", lines=3, max_lines=10, max_length=10_000, elem_id="teach-impression"
                    )
                    commit = gr.Button("Commit and compare", variant="primary", elem_id="teach-commit")
                    gr.HTML(
                        '<p class="rr-hint">Once committed, your report cannot be changed any more. Do not write anybody’s name.</p>'
                    )
                    unsaved = gr.HTML("", elem_id="teach-saved")
                with gr.Column(scale=5, min_width=320, visible=False) as looking:
                    gr.HTML("<h3>Where the model looked</h3>")
                    reading = gr.HTML("", elem_id="teach-read", js_on_load=draft_panels.PICK_FINDING)
                    words = gr.HTML("", elem_id="teach-words", js_on_load=draft_panels.PICK)
                    caption = gr.HTML("", elem_id="teach-caption")
            with gr.Column(visible=False, elem_id="teach-seen") as seen:
                gr.HTML(
                    "<h3>What does the model see?</h3><p class='rr-hint'>Paint over a part of the film and watch how likely each "
                    "sentence of the draft still is.</p>"
                )
                with gr.Row():
                    with gr.Column(scale=6, min_width=320):
                        brush = gr.HTML("", elem_id="teach-brush", js_on_load=SCRIPT)
                    with gr.Column(scale=5, min_width=320):
                        moved = gr.HTML("", elem_id="teach-moved")
    learner_id = gr.Textbox(visible="hidden", elem_id="teach-id")
    case_id = gr.Textbox(visible="hidden", elem_id="teach-case-id")

    parts = [head, status, compared, figures, layers, writing, findings, impression, unsaved, looking, reading, words]
    parts += [caption, seen, brush, moved]

    # -- the cases -------------------------------------------------------------------------------------------------------

    def enter(_: Any, id: str, __: str) -> Any:
        """The page was loaded: the cases, at once."""
        found = core().read_cases(folder)
        return {
            choice: listed(Room(), found, None),
            faults: teach_html.problems(found),
            figures: teach_html.nothing(found),
            status: say("Your answers are fetched; the model is loading…", busy=True)
            if id and not reporter.done()
            else "",
        }

    def resume(room: Room, id: str, last: str) -> Any:
        """Who is it, and what was open?"""
        if not id:
            return {status: ""}
        found = core().read_cases(folder)
        try:
            room.learner = store().learner(id)
        except core().ClassGoneError as error:
            return {status: say(str(error)), learner_id: ""}
        except core().EmrrgError as error:
            return {status: say(str(error), bad=True)}
        known = last in {case.id for case in found.cases}
        opened = show_case(room, found, last) if known else {status: ""}
        return {choice: listed(room, found, last if known else None), learner_id: id, **persons(room), **opened}

    def listed(room: Room, found: "Cases", chosen: str | None) -> Any:
        done: frozenset[str] = store().committed(room.learner.id) if room.learner else frozenset()
        rows = [(f"{case.title} ✓" if case.id in done else case.title, case.id) for case in found.cases]
        return gr.Radio(choices=rows, value=chosen)

    def persons(room: Room) -> dict[Any, Any]:
        return {whom: teach_html.who(room.learner), leave: gr.Button(visible=room.learner is not None)}

    def cleared() -> dict[Any, Any]:
        """No case is open."""
        return {
            case_id: "",  # or the empty boxes would be kept as the last case's answer
            head: "",
            status: "",
            compared: "",
            figures: "",
            layers: "",
            unsaved: "",
            writing: gr.Column(visible=False),
            findings: "",
            impression: "",
            looking: gr.Column(visible=False),
            reading: "",
            words: "",
            caption: "",
            seen: gr.Column(visible=False),
            brush: "",
            moved: "",
        }

    def show_case(room: Room, found: "Cases", id: str) -> dict[Any, Any]:
        """Open a case; of one that is committed, `reveal` shows the rest."""
        room.case, room.films, room.draft, room.read = None, (), None, None
        try:
            case = found[id]
            films = case.read()
            kept = store().answer(room.learner.id, id) if room.learner else None
        except core().EmrrgError as error:
            return {**cleared(), status: say(str(error), bad=True)}
        room.case, room.films = case, films
        done = kept is not None and kept.committed is not None
        return {
            **cleared(),
            case_id: id,
            head: teach_html.head(case),
            figures: viewer.figures(films),
            writing: gr.Column(visible=not done),
            findings: gr.Textbox(value=kept.findings if kept else "", interactive=not done),
            impression: gr.Textbox(value=kept.impression if kept else "", interactive=not done),
            commit: gr.Button(interactive=not done),
            status: say("Your answer is committed. The model’s draft is on its way…", busy=True) if done else "",
        }

    def choose(room: Room, id: str | None) -> Any:
        found = core().read_cases(folder)
        return show_case(room, found, id) if id else {**cleared(), figures: teach_html.nothing(found)}

    # -- the learner -----------------------------------------------------------------------------------------------------

    def of(room: Room) -> "Learner":
        """The learner of this tab; from the first word on, one who practises alone is a learner too."""
        with joining:
            if room.learner is None:
                room.learner = store().alone()
            return room.learner

    def keep(room: Room, id: str, found: str | None, concluded: str | None) -> Any:
        """While the learner writes. id: the case that the words are about, for another one may have been opened since."""
        if found is None or concluded is None:  # the boxes are only being filled; this is called again when they are
            return {unsaved: gr.skip()}
        written = bool(found.strip() or concluded.strip())
        if not id or not (written or room.learner):
            return {unsaved: gr.skip()}
        try:
            case, learner = core().read_cases(folder)[id], of(room)
            if not (written or store().answer(learner.id, case.id)):
                return {unsaved: ""}
            store().keep(learner.id, case.id, found, concluded)
        except core().EmrrgError as error:
            return {unsaved: say(f"Not kept: {error}", bad=True)}
        return {
            unsaved: '<p class="rr-hint" role="status">Kept on this server.</p>',
            learner_id: learner.id,
            **persons(room),
        }

    def hand_in(room: Room, id: str, found: str | None, concluded: str | None) -> Any:
        """The learner commits: kept first of all, whatever the model may do after."""
        found, concluded = found or "", concluded or ""
        if room.case is None or room.case.id != id:  # another one was opened in the meantime
            return {status: say("Choose a case first.", bad=True)}
        try:
            learner = of(room)
            store().commit(learner.id, room.case.id, found, concluded)
        except core().EmrrgError as error:
            return {unsaved: say(str(error), bad=True)}
        waits = (
            "The model writes its draft…" if reporter.done() else "The model is loading; its draft comes after that…"
        )
        return {
            status: say(f"Your answer is committed. {waits}", busy=True),
            unsaved: "",
            learner_id: learner.id,
            findings: gr.Textbox(interactive=False),
            impression: gr.Textbox(interactive=False),
            commit: gr.Button(interactive=False),
            choice: listed(room, core().read_cases(folder), room.case.id),
            **persons(room),
        }

    def reveal(room: Room) -> Iterator[Any]:
        """Draft and reference, if the store says that this learner has committed an answer to this case."""
        case, learner, films = room.case, room.learner, room.films
        if case is None or learner is None:
            yield {status: gr.skip()}
            return
        try:
            answer = store().answer(learner.id, case.id)
            if answer is None or answer.committed is None:
                yield {status: gr.skip()}
                return
            mine = core().compare((answer.findings, answer.impression), (case.findings, case.impression), case.labels)
            try:
                draft = drafts.of(case, films)
            except core().EmrrgError as error:  # the reference can be shown all the same
                yield {**revealed(room, case, mine, None), status: say(str(error), bad=True)}
                return
            if room.case is case:  # no other one was opened meanwhile
                yield revealed(room, case, mine, draft)
        except core().EmrrgError as error:
            yield {status: say(str(error), bad=True)}
        except Exception:  # a bug: it shows as one on the server's console, but the learner must not wait for ever
            yield {status: say("The comparison failed; the server’s console says more.", bad=True)}
            raise

    def revealed(room: Room, case: "Case", mine: "Comparison", draft: "Draft | None") -> dict[Any, Any]:
        room.draft = draft
        theirs = compared_draft(case, draft)
        told: dict[Any, Any] = {}
        if draft is not None:
            told = {
                reading: draft_panels.read_html(draft),
                words: draft_panels.words_html(draft),
                moved: teach_html.moved(draft, None),
            }
            pixels = core().retouched(room.films[0].pixels, np.ones((1, 1), bool), core().Fill.CHEST)
            told[brush] = teach_html.brush(room.films, viewer.picture(pixels))
        return {
            status: say("Here are your report, the draft and the reference.", notes=draft.warnings if draft else ()),
            compared: teach_html.beside(case, mine, theirs),
            writing: gr.Column(visible=False),
            looking: gr.Column(visible=draft is not None),
            seen: gr.Column(visible=draft is not None),
            **told,
        }

    def compared_draft(case: "Case", draft: "Draft | None") -> "Comparison | None":
        if draft is None:
            return None
        found: Comparison = core().compare(
            (draft.findings, draft.impression), (case.findings, case.impression), case.labels
        )
        return found

    def look(room: Room, event: gr.SelectData) -> Any:
        """A sentence or word of the draft was selected: its map over the films."""
        selection = room.draft and draft_panels.picked(room.draft, event.index)
        if not (room.draft and selection):
            return {caption: gr.skip()}
        what = selection.what(room.draft)
        maps = [core().heat_map(room.draft, film, what) for film in range(len(room.draft.films))]
        blind = maps[0] is None
        told = (
            core().no_map(room.draft, what)
            if blind
            else "The brighter a place, the more the model looked there. It does not prove why."
        )
        return {
            reading: draft_panels.read_html(room.draft),
            words: draft_panels.words_html(room.draft, selection),
            layers: viewer.layers(maps, core().overlay, within="#teach-view"),
            caption: say(f"“{selection.text}”: {told}"),
        }

    def look_at_finding(room: Room, event: gr.SelectData) -> Any:
        """A finding that was read was selected: its own map over the films."""
        draft = room.draft
        finding = draft.finding(str(event.index)) if draft else None
        if draft is None or finding is None:
            return {caption: gr.skip()}
        maps = viewer.maps_of(draft, finding, range(len(draft.films)))
        return {
            reading: draft_panels.read_html(draft, finding.name),
            words: draft_panels.words_html(draft),
            layers: viewer.layers(maps, core().overlay, within="#teach-view"),
            caption: f'<div class="rr-say rr-calm">{draft_panels.finding_caption(finding, shown=True)}</div>',
        }

    def paint(room: Room, event: gr.EventData) -> Iterator[Any]:
        """The learner has painted: the draft is read again under what is left of the films."""
        draft, films = room.draft, room.films
        if draft is None:
            return
        yield {moved: teach_html.moved(draft, room.read, busy=True)}  # the last numbers stay until the next are there
        try:
            fill, masks = marked(event._data, len(films))
            changed = [
                core().retouched(film.pixels, mask, core().Fill(fill)) for film, mask in zip(films, masks, strict=True)
            ]
            room.read = found = reporter.result().rescore(films, draft, changed, earlier=room.read)
        except core().EmrrgError as error:
            yield {moved: say(str(error), bad=True)}
            return
        if room.draft is draft:
            yield {moved: teach_html.moved(draft, found)}

    def enrol(room: Room, typed: str, pseudonym: str) -> Any:
        try:
            learner = store().join(typed, pseudonym)
        except core().EmrrgError as error:
            return {joined: say(str(error), bad=True)}
        room.learner = learner
        found = core().read_cases(folder)
        return {
            joined: "",
            code: "",
            name: "",
            learner_id: learner.id,
            choice: listed(room, found, None),
            **persons(room),
            **cleared(),
            figures: teach_html.nothing(found),
        }

    def forget(room: Room) -> Any:
        """The learner leaves this computer. What was handed in to a class stays there."""
        trouble = ""
        if room.learner:
            try:
                store().leave(room.learner.id)
            except core().EmrrgError as error:
                trouble = say(str(error), bad=True)
        room.learner = room.case = room.draft = room.read = None
        room.films = ()
        found = core().read_cases(folder)
        return {
            learner_id: "",
            choice: listed(room, found, None),
            **persons(room),
            **cleared(),
            figures: teach_html.nothing(found),
            status: trouble,
        }

    # -- the teacher -----------------------------------------------------------------------------------------------------

    def begin_class(name: str, days: str) -> Any:
        try:
            made, secret = store().begin(name, lifetime=timedelta(days=LIFETIMES[days]))
        except core().EmrrgError as error:
            return {begun: say(str(error), bad=True)}
        return {begun: teach_html.begun(made, secret), key: secret, title: ""}

    def unlock(room: Room, secret: str) -> Any:
        try:
            store().open(secret)
        except core().EmrrgError as error:
            return {opening: say(str(error), bad=True)}
        room.key = secret
        found = core().read_cases(folder)
        ids = [case.id for case in found.cases]
        wanted = room.case.id if room.case and room.case.id in ids else next(iter(ids), None)
        rows = [(case.title, case.id) for case in found.cases]
        return {
            desk: gr.Column(visible=True),
            opening: "",
            begun: "",
            key: "",
            shown: gr.Dropdown(choices=rows, value=wanted),
        }

    def survey(room: Room, id: str | None) -> Iterator[Any]:
        """All answers to a case side by side, at once; the draft joins them when it is written."""
        if not room.key:
            yield {facts: gr.skip()}
            return
        try:
            case = core().read_cases(folder)[id or ""]
            said = store().answers(room.key, case.id)
            facts_now = teach_html.opened(store().open(room.key), store().writing(room.key, case.id), len(said))
            reference = (case.findings, case.impression)
            found = [core().compare((a.findings, a.impression), reference, case.labels) for a in said]
            known = drafts.known(case)
            yield {facts: facts_now, every: teach_html.answers(case, said, found, compared_draft(case, known))}
            if known is None:
                drafted = compared_draft(case, drafts.of(case, case.read()))
                if room.key:
                    yield {every: teach_html.answers(case, said, found, drafted)}
        except core().ClassGoneError as error:
            room.key = ""
            yield {desk: gr.Column(visible=False), opening: say(str(error), bad=True)}
        except core().EmrrgError as error:
            yield {facts: say(str(error), bad=True)}

    def pack(room: Room) -> Any:
        try:
            found = core().read_cases(folder)
            texts = {}
            for case in found.cases:
                if draft := drafts.known(case):
                    texts[case.id] = (draft.findings, draft.impression)
            body = core().answers_csv(store().answers(room.key), found, texts)
            name = f"emrrg-class-{store().open(room.key).code}.csv"
        except core().EmrrgError as error:
            return {download: "", facts: say(str(error), bad=True)}
        return {download: json.dumps({"name": name, "body": body})}

    def shut(room: Room) -> Any:
        room.key = ""
        return {desk: gr.Column(visible=False), every: "", facts: "", opening: "", key: ""}

    def end_class(room: Room) -> Any:
        try:
            store().end(room.key)
        except core().EmrrgError as error:
            return {facts: say(str(error), bad=True)}
        return {**shut(room), opening: say("The class has ended, and its answers are deleted.")}

    # -- what leads to what ----------------------------------------------------------------------------------------------

    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    opened = [choice, case_id, commit, learner_id, whom, leave, *parts]
    many: dict[str, Any] = {"concurrency_limit": 8, **hidden}  # one who waits for a draft keeps nobody else waiting
    who_and_where = [tab, learner_id, case_id]
    demo.load(enter, who_and_where, [choice, faults, figures, status], js=_RECALL, **many).then(
        resume, who_and_where, opened, js=_RECALL, **many
    ).then(reveal, tab, parts, **many)
    choice.input(choose, [tab, choice], opened, **many).then(reveal, tab, parts, **many)
    learner_id.change(None, learner_id, js=_REMEMBER)
    case_id.change(None, case_id, js=_REMEMBER_CASE)
    gr.on(
        [findings.change, impression.change],  # input would miss what is pasted or dictated
        keep,
        [tab, case_id, findings, impression],
        [unsaved, learner_id, whom, leave],
        trigger_mode="always_last",
        **hidden,
    )
    commit.click(hand_in, [tab, case_id, findings, impression], opened, **many).then(reveal, tab, parts, **many).then(
        None, js=_SHOW
    )
    for picks, show in ((words, look), (reading, look_at_finding)):
        picks.select(show, tab, [reading, words, layers, caption], trigger_mode="always_last", **hidden).then(
            None, js=_SHOW_FILMS
        )
    brush.paint(paint, tab, moved, trigger_mode="always_last", **hidden)
    gr.on([join.click, code.submit, name.submit], enrol, [tab, code, name], [joined, code, name, *opened], **hidden)
    leave.click(forget, tab, opened, **hidden)
    begin.click(begin_class, [title, lifetime], [begun, key, title], **hidden)
    view = [desk, facts, every, opening, begun, key, shown]
    gr.on([open_class.click, key.submit], unlock, [tab, key], view, **hidden).then(survey, [tab, shown], view, **many)
    gr.on([shown.input, again.click], survey, [tab, shown], view, **many)
    export.click(pack, tab, [download, facts], **hidden).then(None, download, download, js=_SAVE)
    close.click(shut, tab, view, **hidden)
    end.click(end_class, tab, view, **hidden)


class Drafts:
    """The model's draft of each case, written when first asked for and then kept in memory, for all who answer that case."""

    def __init__(self, reporter: "Future[Reporter]") -> None:
        self._reporter, self._lock = reporter, threading.Lock()
        self._kept: OrderedDict[tuple[str, ...], Draft] = OrderedDict()
        self._films: dict[str, tuple[str, ...]] = {}  # of a case that was drafted: the hashes of its films

    def of(self, case: "Case", films: "tuple[Film, ...]") -> "Draft":
        """Waits for the model, and for another learner's draft. Raises EmrrgError."""
        wait([self._reporter])
        key = tuple(film.sha256 for film in films)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._reporter.result().draft(films)
            self._kept.move_to_end(key)
            while len(self._kept) > MOST_DRAFTS:
                self._kept.popitem(last=False)
            self._films[case.id] = key
            return self._kept[key]

    def known(self, case: "Case") -> "Draft | None":
        """The draft of a case where there is one already."""
        return self._kept.get(self._films.get(case.id, ()))


def marked(data: Any, films: int) -> "tuple[str, list[np.ndarray]]":
    """What the browser painted: what takes its place, and a grid (CELLS, CELLS) bool for each film. Raises EmrrgError for anything else."""
    try:
        fill, masks = data["fill"], [base64.b64decode(mask, validate=True) for mask in data["masks"]]
        if len(masks) == films and all(len(mask) == CELLS * CELLS // 8 for mask in masks):
            core().Fill(fill)
            grids = [np.unpackbits(np.frombuffer(mask, np.uint8)).reshape(CELLS, CELLS).astype(bool) for mask in masks]
            return fill, grids
    except (KeyError, TypeError, ValueError, binascii.Error):
        pass
    raise core().EmrrgError("What was painted did not arrive whole. Paint again, or load the page again.")
