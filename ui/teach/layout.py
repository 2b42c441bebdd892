"""The components of the Teach screen."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ui import draft_panels, teach_html
from ui.teach.context import TeachState
from ui.teach.teacher import LIFETIMES

KEPT = 4 * 3600  # seconds that an open but untouched tab keeps its films
SCRIPT = (Path(__file__).parent.parent / "teach.js").read_text(encoding="utf-8")


@dataclass(frozen=True, eq=False)
class Parts:
    """Every component that an event reads or changes. View functions call them by these names."""

    state: gr.State
    # beside the case: the list, who answers, joining a class
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


def build() -> Parts:
    """Lay out the screen in the Blocks that are open."""
    every_tab_its_own = gr.State(TeachState(), time_to_live=KEPT)
    with gr.Row(elem_id="teach"):
        with gr.Column(scale=3, min_width=260, elem_id="teach-side"):
            side = _side()
            teachers = _for_teachers()
        with gr.Column(scale=12, min_width=320, elem_id="teach-main"):
            class_view = _class_view()
            case = _case()
            seen = _seen()
    return Parts(
        state=every_tab_its_own,
        **side,
        **teachers,
        **class_view,
        **case,
        **seen,
        learner_id=gr.Textbox(visible="hidden", elem_id="teach-id"),
        case_id=gr.Textbox(visible="hidden", elem_id="teach-case-id"),
    )


def _side() -> dict[str, Any]:
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
    return {"choice": choice, "whom": whom, "code": code, "name": name, "join": join, "joined": joined, "leave": leave}


def _for_teachers() -> dict[str, Any]:
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
        "compared": gr.HTML("", elem_id="teach-compared"),
    }
    with gr.Row(elem_id="teach-bench"):
        with gr.Column(scale=6, min_width=320, elem_id="teach-view"):
            found["figures"] = gr.HTML("", elem_id="teach-films")
            found["layers"] = gr.HTML("", elem_id="teach-layers")
        with gr.Column(scale=5, min_width=320, visible=False) as found["writing"]:
            box: dict[str, Any] = {"max_length": 10_000}
            found["findings"] = gr.Textbox(label="Findings", lines=9, max_lines=18, elem_id="teach-findings", **box)
            found["impression"] = gr.Textbox(
                label="Impression", lines=3, max_lines=10, elem_id="teach-impression", **box
            )
            found["commit"] = gr.Button("Commit and compare", variant="primary", elem_id="teach-commit")
            gr.HTML(
                '<p class="rr-hint">Once committed, your report cannot be changed any more. Do not write anybody’s name.</p>'
            )
            found["unsaved"] = gr.HTML("", elem_id="teach-saved")
        with gr.Column(scale=5, min_width=320, visible=False) as found["looking"]:
            gr.HTML("<h3>Where the model looked</h3>")
            found["reading"] = gr.HTML("", elem_id="teach-read", js_on_load=draft_panels.PICK_FINDING)
            found["words"] = gr.HTML("", elem_id="teach-words", js_on_load=draft_panels.PICK)
            found["caption"] = gr.HTML("", elem_id="teach-caption")
    return found


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
