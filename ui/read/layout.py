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
    # the study
    worklist: gr.HTML
    study: gr.HTML
    drop: gr.File
    new_study: gr.Button
    close_study: gr.Button
    # films
    notice: gr.HTML
    figures: gr.HTML
    layers: gr.HTML
    outlines: gr.HTML
    # draft and report
    write: gr.Button
    stop: gr.Button
    beams: gr.Slider
    views: gr.Radio
    laterals: gr.Checkbox
    compare: gr.Checkbox
    sections: gr.Radio
    macros: gr.HTML
    status: gr.HTML
    reading: gr.HTML
    report: gr.HTML
    evidence: gr.HTML
    earlier: gr.Textbox
    # what stands behind it
    words: gr.HTML
    looked: gr.HTML
    near: gr.HTML
    flagged: gr.HTML
    table: gr.HTML
    # export
    menu: gr.HTML
    packing: gr.HTML
    download: gr.Textbox
    kept_id: gr.Textbox


def build() -> Parts:
    """Lay out the screen in the Blocks that are open: the study's line above, films at the left, the report at the right."""
    every_tab_its_own = gr.State(SessionState(), time_to_live=KEPT, delete_callback=SessionState.leave)
    with gr.Column(elem_id="read"):
        with gr.Row(elem_id="strip"):
            study = _study()
        with gr.Row(elem_id="room"):
            worklist = gr.HTML(messages.worklist(None), elem_id="worklist")
            with gr.Column(elem_id="viewer", min_width=280):
                films = _films()
            with gr.Column(elem_id="desk", min_width=280), gr.Tabs(elem_id="desk-tabs"):
                with gr.Tab("Report", id="report-tab"):
                    report = _report()
                with gr.Tab("Evidence", id="evidence-tab"):
                    behind = _behind()
                with gr.Tab("Export", id="export-tab"):
                    export = _export()
        gr.HTML(messages.phone_bar(), elem_id="hand")
        download = gr.Textbox(visible="hidden", elem_id="download")
        kept_id = gr.Textbox(visible="hidden", elem_id="session")
    return Parts(
        state=every_tab_its_own,
        worklist=worklist,
        **study,
        **films,
        **report,
        **behind,
        **export,
        download=download,
        kept_id=kept_id,
    )


def _study() -> dict[str, Any]:
    return {
        "study": gr.HTML(messages.study(None), elem_id="study"),
        "drop": gr.File(
            label="Films of a study", file_count="multiple", elem_id="drop"
        ),  # out of sight: read.js fills it
        "new_study": gr.Button("New study", size="sm", min_width=50, elem_id="new"),
        "close_study": gr.Button("Close", size="sm", min_width=50, elem_id="close"),
    }


def _films() -> dict[str, Any]:
    return {
        "notice": gr.HTML("", elem_id="notice"),
        "figures": gr.HTML(viewer.figures(()), elem_id="films"),
        "layers": gr.HTML("", elem_id="layers"),
        "outlines": gr.HTML("", elem_id="outlines"),
    }


def _report() -> dict[str, Any]:
    with gr.Row(elem_id="ask"):
        write = gr.Button("Draft report", variant="primary", scale=3, size="sm", min_width=120, elem_id="write")
        stop = gr.Button("Stop", variant="stop", interactive=False, scale=1, size="sm", min_width=60, elem_id="stop")
    with gr.Accordion("Options", open=False, elem_id="options"):
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
        "reading": gr.HTML(draft_panels.findings_html(None), elem_id="was-read", js_on_load=draft_panels.PICK_FINDING),
        "report": gr.HTML(editor.html_of(None, None), elem_id="report", js_on_load=SCRIPT),
        "evidence": gr.HTML("", elem_id="evidence"),  # out of sight: read.js shows it at its sentence
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
        "macros": gr.HTML(messages.macros(None, None), elem_id="macros-kept"),
    }


def _behind() -> dict[str, Any]:
    return {
        "words": gr.HTML(draft_panels.words_html(None), elem_id="words", js_on_load=draft_panels.PICK),
        "looked": gr.HTML("", elem_id="looked"),
        "near": gr.HTML("", elem_id="near"),
        "flagged": gr.HTML(draft_panels.flag_html((), "", ""), elem_id="flags"),
        "table": gr.HTML(draft_panels.findings_table_html((), "", ""), elem_id="table"),
    }


def _export() -> dict[str, Any]:
    return {
        "menu": gr.HTML(exports.menu(SessionState()), elem_id="menu"),
        "packing": gr.HTML("", elem_id="packing"),
    }
