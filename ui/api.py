"""Endpoints for programs: named, typed, each the same work as the screen's."""

from concurrent.futures import Future
from typing import TYPE_CHECKING

import gradio as gr

if TYPE_CHECKING:
    from emrrg_core import Reporter


def endpoints(demo: gr.Blocks, reporter: "Future[Reporter]") -> None:
    """Add the endpoints to `demo`, which is open."""
