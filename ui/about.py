"""About: what the model is, what it was measured to do, and what it is not for."""

from concurrent.futures import Future
from typing import TYPE_CHECKING

import gradio as gr

if TYPE_CHECKING:
    from emrrg_core import Reporter


def screen(demo: gr.Blocks, reporter: "Future[Reporter]") -> None:
    """Put the screen into `demo`, which is open."""
    gr.HTML("", elem_id="about")
