"""From view functions to what Gradio calls.

A view function takes the state of a tab, the values of an event and a context, and returns which component shows what, by name
(ui.updates). It may also yield that, step by step. It knows nothing of Gradio, so tests can call it.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from ui.gradio_internals import event_data
from ui.updates import Change, Shown

View = Callable[..., Any]


class Handlers:
    """Handlers for the view functions of one screen. parts: has each component as an attribute; context: each view's last argument."""

    def __init__(self, parts: Any, context: Any) -> None:
        self._parts, self._context = parts, context
        self._made: dict[View, Callable[..., Any]] = {}

    def of(self, view: View, *, data: bool = False) -> Callable[..., Any]:
        """The handler of a view. data: the view is also given what the browser sent with the event, before the context.

        One view has one handler: Gradio limits how many calls of one function run at once, wherever it is connected.
        """
        if view not in self._made:
            made = self._steps(view, data) if inspect.isgeneratorfunction(view) else self._once(view, data)
            made.__name__ = view.__name__  # seen in Gradio's messages
            self._made[view] = made
        return self._made[view]

    def components(self, *names: str) -> list[Any]:
        """The components of these names, for inputs and outputs."""
        return [getattr(self._parts, name) for name in names]

    def _once(self, view: View, data: bool) -> Callable[..., Any]:
        def plain(*values: Any) -> Any:
            return self._shown(view(*values, self._context))

        def with_data(event: gr.EventData, *values: Any) -> Any:
            return self._shown(view(*values, event_data(event), self._context))

        return with_data if data else plain

    def _steps(self, view: View, data: bool) -> Callable[..., Any]:
        def plain(*values: Any) -> Iterator[Any]:
            for shown in view(*values, self._context):
                yield self._shown(shown)

        def with_data(event: gr.EventData, *values: Any) -> Iterator[Any]:
            for shown in view(*values, event_data(event), self._context):
                yield self._shown(shown)

        return with_data if data else plain

    def _shown(self, shown: Shown) -> Any:
        if not shown:
            return gr.skip()
        found = ((getattr(self._parts, name), value) for name, value in shown.items())
        return {part: type(part)(**value) if isinstance(value, Change) else value for part, value in found}
