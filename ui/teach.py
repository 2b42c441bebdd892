"""Teach, the teacher's screen: cases to read, the learner's words before the draft's."""

from concurrent.futures import Future
from typing import TYPE_CHECKING

import gradio as gr

if TYPE_CHECKING:
    from emrrg_core import Reporter


def screen(demo: gr.Blocks, reporter: "Future[Reporter]") -> None:
    """Put the screen into `demo`, which is open."""
    gr.HTML("", elem_id="teach")
