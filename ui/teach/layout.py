"""The components of the Teach screen."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ui import draft_panels, teach_html
from ui.teach.author import ANSWERABLE
from ui.teach.context import TeachState
from ui.teach.teacher import LIFETIMES

KEPT = 4 * 3600  # seconds that an open but untouched tab keeps its films
SCRIPT = (Path(__file__).parent.parent / "teach.js").read_text(encoding="utf-8")
MARKS = (Path(__file__).parent / "marks.js").read_text(encoding="utf-8")
LEVELS = [("not stated", ""), ("easy", "easy"), ("moderate", "moderate"), ("hard", "hard")]


@dataclass(frozen=True, eq=False)
class Parts:
    """Every component that an event reads or changes. View functions call them by these names."""

    state: gr.State
    # beside the case: the list, who answers, joining a class
    search: gr.Textbox
    tags: gr.CheckboxGroup
    matches: gr.HTML
    choice: gr.Radio
    whom: gr.HTML
    code: gr.Textbox
    name: gr.Textbox
    join: gr.Button
    joined: gr.HTML
    leave: gr.Button
    # for teachers
    faults: gr.HTML
    title: gr.Textbox
    lifetime: gr.Dropdown
    begin: gr.Button
    begun: gr.HTML
    key: gr.Textbox
    open_class: gr.Button
    opening: gr.HTML
    make: gr.Button
    made: gr.HTML
    # a case that is being made
    author: gr.Column
    new_films: gr.File
    new_notice: gr.HTML
    new_marking: gr.HTML
    new_boxes: gr.Textbox
    new_none: gr.Checkbox
    new_title: gr.Textbox
    new_question: gr.Textbox
    new_findings: gr.Textbox
    new_impression: gr.Textbox
    new_tags: gr.Textbox
    new_level: gr.Dropdown
    new_points: gr.Textbox
    new_source: gr.Textbox
    new_licence: gr.Textbox
    new_checked: gr.Checkbox
    save: gr.Button
    cancel: gr.Button
    # the class, as its teacher sees it
    class_view: gr.Column
    facts: gr.HTML
    shown: gr.Dropdown
    again: gr.Button
    export: gr.Button
    close: gr.Button
    every: gr.HTML
    end: gr.Button
    download: gr.Textbox
    # the case
    head: gr.HTML
    status: gr.HTML
    compared: gr.HTML
    figures: gr.HTML
    layers: gr.HTML
    marking: gr.HTML
    marked: gr.Textbox
    located: gr.HTML
    writing: gr.Column
    findings: gr.Textbox
    impression: gr.Textbox
    commit: gr.Button
    unsaved: gr.HTML
    looking: gr.Column
    reading: gr.HTML
    words: gr.HTML
    caption: gr.HTML
    seen: gr.Column
    brush: gr.HTML
    moved: gr.HTML
    learner_id: gr.Textbox
    case_id: gr.Textbox


def build(*, author: bool = True) -> Parts:
    """Lay out the screen in the Blocks that are open. author: whether there is a button to make a case."""
    every_tab_its_own = gr.State(TeachState(), time_to_live=KEPT)
    with gr.Row(elem_id="teach"):
        with gr.Column(scale=3, min_width=260, elem_id="teach-side"):
            side = _side()
            teachers = _for_teachers(author)
        with gr.Column(scale=12, min_width=320, elem_id="teach-main"):
            made = gr.HTML("", elem_id="teach-made")  # in sight, however far the form is scrolled
            class_view = _class_view()
            form = _author()
            case = _case()
            seen = _seen()
    return Parts(
        state=every_tab_its_own,
        **side,
        **teachers,
        **class_view,
        made=made,
        **form,
        **case,
        **seen,
        learner_id=gr.Textbox(visible="hidden", elem_id="teach-id"),
        case_id=gr.Textbox(visible="hidden", elem_id="teach-case-id"),
    )


def _side() -> dict[str, Any]:
    search = gr.Textbox(
        show_label=False, placeholder="Search cases", max_length=80, elem_id="teach-search", container=False
    )
    tags = gr.CheckboxGroup([], label="Tags", show_label=False, container=False, visible=False, elem_id="teach-tags")
    matches = gr.HTML("", elem_id="teach-matches")
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
    found = {"search": search, "tags": tags, "matches": matches, "choice": choice, "whom": whom, "leave": leave}
    return {**found, "code": code, "name": name, "join": join, "joined": joined}


def _for_teachers(author: bool) -> dict[str, Any]:
    with gr.Accordion("For teachers", open=False, elem_id="teach-teacher"):
        return {
            "faults": gr.HTML("", elem_id="teach-faults"),
            "title": gr.Textbox(
                label="Name of the class", info="Learners see it.", max_length=80, elem_id="teach-title"
            ),
            "lifetime": gr.Dropdown(
                list(LIFETIMES), value="7 days", label="Keep answers for", elem_id="teach-lifetime"
            ),
            "begin": gr.Button("Begin a class", size="sm", elem_id="teach-begin"),
            "begun": gr.HTML("", elem_id="teach-begun"),
            "key": gr.Textbox(label="Your key", type="password", max_length=60, elem_id="teach-key"),
            "open_class": gr.Button("Open the class", size="sm", elem_id="teach-open"),
            "opening": gr.HTML("", elem_id="teach-opening"),
            "make": gr.Button("Make a case", size="sm", visible=author, elem_id="teach-make"),
        }


def _author() -> dict[str, Any]:
    with gr.Column(visible=False, elem_id="teach-author") as author:
        gr.HTML(f"<h3>Make a case</h3><p class='rr-hint'>{ANSWERABLE}</p>")
        with gr.Row():
            with gr.Column(scale=6, min_width=300):
                films = gr.File(label="Films, one to four", file_count="multiple", height=84, elem_id="teach-new-films")
                notice = gr.HTML("", elem_id="teach-new-notice")
                drawn = gr.HTML("", elem_id="teach-new-marking", js_on_load=MARKS)
                none = gr.Checkbox(False, label="There is nothing to be found", elem_id="teach-new-none")
            with gr.Column(scale=5, min_width=300):
                found = _words()
                checked = gr.Checkbox(
                    False,
                    label="I have looked at every film: nothing on it tells who the patient is",
                    elem_id="teach-new-checked",
                )
                with gr.Row():
                    save = gr.Button("Save the case", variant="primary", size="sm", min_width=120, elem_id="teach-save")
                    cancel = gr.Button("Cancel", size="sm", min_width=80, elem_id="teach-cancel")
    return {
        **{"author": author, "new_films": films, "new_notice": notice, "new_marking": drawn, "new_none": none, **found},
        **{"new_checked": checked, "save": save, "cancel": cancel},
        "new_boxes": gr.Textbox(visible="hidden", elem_id="teach-new-boxes"),
    }


def _words() -> dict[str, Any]:
    lists = "Learners see title, question and tags before they answer: nothing there should give the finding away."
    return {
        "new_title": gr.Textbox(label="Title", info=lists, max_length=80, elem_id="teach-new-title"),
        "new_question": gr.Textbox(
            label="Question",
            placeholder="What do you see? Write Findings and Impression.",
            max_length=400,
            elem_id="teach-new-question",
        ),
        "new_findings": gr.Textbox(
            label="Reference: Findings", lines=4, max_length=10_000, elem_id="teach-new-findings"
        ),
        "new_impression": gr.Textbox(
            label="Reference: Impression", lines=2, max_length=10_000, elem_id="teach-new-impression"
        ),
        "new_tags": gr.Textbox(
            label="Tags", placeholder="night shift, trauma", max_length=200, elem_id="teach-new-tags"
        ),
        "new_level": gr.Dropdown(LEVELS, value="", label="Difficulty", elem_id="teach-new-level"),
        "new_points": gr.Textbox(
            label="Points to take away", info="One a line.", lines=2, max_length=2_000, elem_id="teach-new-points"
        ),
        "new_source": gr.Textbox(
            label="Source", placeholder="Where the film is from", max_length=200, elem_id="teach-new-source"
        ),
        "new_licence": gr.Textbox(
            label="Licence", placeholder="CC-BY-4.0", max_length=100, elem_id="teach-new-licence"
        ),
    }


def _class_view() -> dict[str, Any]:
    with gr.Column(visible=False, elem_id="teach-class") as class_view:
        facts = gr.HTML("", elem_id="teach-facts")
        with gr.Row():
            found = {
                "shown": gr.Dropdown([], label="Case", scale=3, min_width=160, elem_id="teach-shown"),
                "again": gr.Button("Refresh", size="sm", scale=1, min_width=90, elem_id="teach-refresh"),
                "export": gr.Button("Export all (CSV)", size="sm", scale=1, min_width=130, elem_id="teach-export"),
                "close": gr.Button("Close this view", size="sm", scale=1, min_width=130, elem_id="teach-close"),
            }
        every = gr.HTML("", elem_id="teach-answers")
        with gr.Accordion("End the class", open=False, elem_id="teach-end"):
            gr.HTML('<p class="rr-hint">This deletes the class with every answer, at once and for good.</p>')
            end = gr.Button("Delete the class and all answers", variant="stop", size="sm", elem_id="teach-end-now")
        download = gr.Textbox(visible="hidden", elem_id="teach-download")
    return {"class_view": class_view, "facts": facts, **found, "every": every, "end": end, "download": download}


def _case() -> dict[str, Any]:
    found: dict[str, Any] = {
        "head": gr.HTML("", elem_id="teach-head"),
        "status": gr.HTML("", elem_id="teach-status"),
    }
    with gr.Row(elem_id="teach-bench"):
        with gr.Column(scale=5, min_width=320, elem_id="teach-view"):  # stays in sight while texts are compared
            found["marking"] = gr.HTML("", elem_id="teach-marking", js_on_load=MARKS)
            found["figures"] = gr.HTML("", elem_id="teach-films")
            found["layers"] = gr.HTML("", elem_id="teach-layers")
        with gr.Column(scale=7, min_width=320, elem_id="teach-texts"):
            found |= _texts()
    found["marked"] = gr.Textbox(visible="hidden", elem_id="teach-marked")
    return found


def _texts() -> dict[str, Any]:
    with gr.Column(visible=False, elem_id="teach-writing") as writing:
        box: dict[str, Any] = {"max_length": 10_000}
        findings = gr.Textbox(label="Findings", lines=9, max_lines=18, elem_id="teach-findings", **box)
        impression = gr.Textbox(label="Impression", lines=3, max_lines=10, elem_id="teach-impression", **box)
        commit = gr.Button("Commit and compare", variant="primary", elem_id="teach-commit")
        gr.HTML(
            '<p class="rr-hint">Once committed, report and marks cannot be changed any more. Do not write anybody’s name.</p>'
        )
        unsaved = gr.HTML("", elem_id="teach-saved")
    located = gr.HTML("", elem_id="teach-located")
    compared = gr.HTML("", elem_id="teach-compared")
    with gr.Column(visible=False, elem_id="teach-looking") as looking:
        gr.HTML("<h3>Where the model looked</h3>")
        reading = gr.HTML("", elem_id="teach-read", js_on_load=draft_panels.PICK_FINDING)
        words = gr.HTML("", elem_id="teach-words", js_on_load=draft_panels.PICK)
        caption = gr.HTML("", elem_id="teach-caption")
    return {
        **{"writing": writing, "findings": findings, "impression": impression, "commit": commit, "unsaved": unsaved},
        **{"compared": compared, "located": located},
        **{"looking": looking, "reading": reading, "words": words, "caption": caption},
    }


def _seen() -> dict[str, Any]:
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
    return {"seen": seen, "brush": brush, "moved": moved}
