"""The components of the Read screen."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ui import draft_panels, editor, exports, messages, viewer
from ui.messages import say
from ui.session_state import SessionState

KEPT = 4 * 3600  # seconds that an open but untouched tab keeps its films
SCRIPT = (Path(__file__).parent.parent / "read.js").read_text(encoding="utf-8")


@dataclass(frozen=True, eq=False)
class Parts:
    """Every component that an event reads or changes. View functions call them by these names."""

    state: gr.State
    # films
    drop: gr.File
    try_example: gr.Button
    new_study: gr.Button
    notice: gr.HTML
    chips: gr.HTML
    figures: gr.HTML
    layers: gr.HTML
    caption: gr.HTML
    # draft and report
    write: gr.Button
    stop: gr.Button
    beams: gr.Slider
    views: gr.Radio
    laterals: gr.Checkbox
    compare: gr.Checkbox
    sections: gr.Radio
    status: gr.HTML
    looked: gr.HTML
    report: gr.HTML
    earlier: gr.Textbox
    # what stands beside it
    reading: gr.HTML
    near: gr.HTML
    words: gr.HTML
    chosen: gr.HTML
    why: gr.HTML
    flagged: gr.HTML
    table: gr.HTML
    # export
    menu: gr.HTML
    packing: gr.HTML
    name: gr.Textbox
    place: gr.Textbox
    download: gr.Textbox
    kept_id: gr.Textbox


def build() -> Parts:
    """Lay out the screen in the Blocks that are open."""
    every_tab_its_own = gr.State(SessionState(), time_to_live=KEPT, delete_callback=SessionState.leave)
    with gr.Row(elem_id="read"):
        with gr.Column(scale=6, min_width=320):
            films = _films()
        with gr.Column(scale=5, min_width=320):
            report, beside, export = _report(), _beside(), _export()
            gr.HTML(messages.keys(), elem_id="keys")
            download = gr.Textbox(visible="hidden", elem_id="download")
            kept_id = gr.Textbox(visible="hidden", elem_id="session")
    return Parts(state=every_tab_its_own, **films, **report, **beside, **export, download=download, kept_id=kept_id)


def _films() -> dict[str, Any]:
    drop = gr.File(label="Films of one study, one to four files", file_count="multiple", height=84, elem_id="drop")
    with gr.Row():
        try_example = gr.Button("Try the example film", size="sm", min_width=120, elem_id="example")
        new_study = gr.Button("New study", size="sm", min_width=120, elem_id="new")
    found = {
        "drop": drop,
        "try_example": try_example,
        "new_study": new_study,
        "notice": gr.HTML("", elem_id="notice"),
        "chips": gr.HTML("", elem_id="chips"),
    }
    with gr.Column(elem_id="viewer"):  # stays in sight while the draft is read
        found["figures"] = gr.HTML(viewer.figures(()), elem_id="films")
        found["layers"] = gr.HTML("", elem_id="layers")
        found["caption"] = gr.HTML("", elem_id="caption")
    return found


def _report() -> dict[str, Any]:
    with gr.Row():
        write = gr.Button("Draft report", variant="primary", scale=3, elem_id="write")
        stop = gr.Button("Stop", variant="stop", interactive=False, scale=1, min_width=80, elem_id="stop")
    with gr.Accordion("Options", open=False):
        more = "1 is quickest; more weigh several wordings against each other."
        beams = gr.Slider(1, 4, 1, step=1, label="Beams", info=more)
        one = "Averaged: each film by itself. Side by side: all as one picture. As trained: what the model has learned."
        # the model may still be loading: what its settings say is not known here
        ways = [("As trained", ""), ("Averaged", "average"), ("Side by side", "stitch")]
        views = gr.Radio(ways, value="", label="Several films", info=one)
        why = "Unless the model has learned them, they are shown and not read."
        laterals = gr.Checkbox(False, label="Read lateral films too", info=why)
        parts = "One after the other: the Impression is written anew, from the Findings as they stand."
        choices = [("As taught", ""), ("In one go", "joint"), ("One after the other", "separate")]
        sections = gr.Radio(choices, value="", label="Findings and Impression", info=parts)
        since = "What has changed since may then be said, finding by finding. Off: the prior film is shown only."
        compare = gr.Checkbox(True, label="Compare with the prior film", info=since)
    return {
        "write": write,
        "stop": stop,
        "beams": beams,
        "views": views,
        "laterals": laterals,
        "compare": compare,
        "sections": sections,
        "status": gr.HTML(say("The model is loading…", busy=True), elem_id="status"),
        "looked": gr.HTML("", elem_id="looked"),
        "report": gr.HTML(editor.html_of(None, None), elem_id="report", js_on_load=SCRIPT),
        "earlier": gr.Textbox(
            label="Your earlier text",
            info="What you had written or edited before the report was drafted anew.",
            lines=4,
            max_lines=10,
            interactive=False,
            buttons=["copy"],
            visible="hidden",
            elem_id="earlier",
        ),
    }


def _beside() -> dict[str, Any]:
    with gr.Accordion("What was read in the film", open=True, elem_id="reading"):
        pick = draft_panels.PICK_FINDING
        reading = gr.HTML(draft_panels.read_html(None), elem_id="was-read", js_on_load=pick)
        near = gr.HTML("", elem_id="near")
    with gr.Accordion("The model’s draft: sentences and words", open=True, elem_id="beside"):
        words = gr.HTML(draft_panels.words_html(None), elem_id="words", js_on_load=draft_panels.PICK)
        chosen = gr.HTML("", elem_id="chosen")
        why = gr.HTML("", elem_id="why")
    with gr.Accordion("What the report states", open=True, elem_id="states"):
        flagged = gr.HTML(draft_panels.flag_html((), "", ""), elem_id="flags")
        table = gr.HTML(draft_panels.findings_table_html((), "", ""), elem_id="table")
    return {
        "reading": reading,
        "near": near,
        "words": words,
        "chosen": chosen,
        "why": why,
        "flagged": flagged,
        "table": table,
    }


def _export() -> dict[str, Any]:
    with gr.Accordion("Export", open=True, elem_id="export"):
        menu = gr.HTML(exports.menu(SessionState()), elem_id="menu")
        packing = gr.HTML("", elem_id="packing")
        with gr.Accordion("Name of the reader, for a signed DICOM structured report", open=False):
            with gr.Row():
                name = gr.Textbox(label="Name, as DICOM writes it", placeholder="Family^Given", elem_id="reader")
                place = gr.Textbox(label="Organization", elem_id="organization")
            gr.HTML('<p class="rr-hint">Goes into that file alone and is not kept.</p>')
    return {"menu": menu, "packing": packing, "name": name, "place": place}
