"""What a view function gives back: the names of components, each with its new value. Gradio is not needed here.

    {"status": "<p>…</p>", "write": Change(interactive=False)}

A plain value is the component's new value; a `Change` changes other properties too. A component that is not named stays as it
is. ui.handlers turns the names into Gradio's components.
"""

from typing import Any

Shown = dict[str, Any]


class Change(dict[str, Any]):
    """New properties of a component, by their names: value, visible, interactive, choices."""
