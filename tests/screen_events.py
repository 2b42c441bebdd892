"""View functions called without a browser: what they show, and whether the event that they are connected to may show it."""

import asyncio
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import gradio as gr


@cache
def outputs_of(layout: Any, wiring: Any) -> dict[str, set[str]]:
    """The names of the components that each event function may change, wherever it is connected. Nothing runs."""
    found: dict[str, set[str]] = {}

    async def build() -> None:  # in an event loop: without one Gradio would make its own, and leave it open
        with gr.Blocks(analytics_enabled=False) as demo:
            parts = layout.build()
            wiring.connect(demo, parts, None)
        names = {part: name for name, part in vars(parts).items()}
        for event in demo.fns.values():
            if event.fn:
                mine = {names[part] for part in event.outputs}
                found[event.name] = found.get(event.name, mine) & mine

    asyncio.run(build())
    return found


class Screen:
    """A screen that is laid out and connected, but not running."""

    def __init__(self, layout: Any, wiring: Any, context: Any) -> None:
        self.context, self.outputs = context, outputs_of(layout, wiring)

    def show(self, view: Callable[..., Any], *values: Any) -> dict[str, Any]:
        """What the view shows in the end."""
        shown: dict[str, Any] = {}
        for step in self.steps(view, *values):
            shown |= step
        return shown

    def steps(self, view: Callable[..., Any], *values: Any) -> list[dict[str, Any]]:
        """What the view shows, step by step. One that the event may not change is an error of Gradio's in the browser."""
        made = view(*values, self.context)
        steps = list(made) if inspect.isgenerator(made) else [made]
        for step in steps:
            assert step.keys() <= self.outputs[view.__name__], "the wiring does not let it change that"
        return steps
