"""Read, the clinician's screen: films in, a draft streams out, the reader makes a report of it, sentence by sentence.

    layout     the components                          wiring    which event calls what
    events     films, buttons, export                  drafting  the draft, from the click to the last word
    maps       where the model looked, and why         shown     what follows from the state of a tab

A tab's `SessionState` lives in a `gr.State` on the server and goes with the tab. Report and draft are kept on the disk under a
random id, which the browser remembers for that tab alone (sessionStorage). So a reload or a restart of the server loses nothing.
"""

from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr

from ui.read import layout, wiring
from ui.read.context import Context
from ui.read.layout import Parts
from ui.session_state import core

if TYPE_CHECKING:
    from emrrg_core import Reporter, Sessions
    from emrrg_core.memory.cases import Memory
    from emrrg_core.report.macros import Macros

NOTICE = "Research and teaching only, not a medical device."


def screen(
    demo: gr.Blocks, reporter: "Future[Reporter]", example: Callable[[str], Path | None], memory: str | None = None
) -> Parts:
    """Put the screen into `demo`, which is open, and return its components.

    reporter may still be loading; example gives the path of a film to try by its name, or None where there is none. memory: the folder of
    remembered cases, "off" for none; None: the user's own.
    """

    @cache
    def store() -> "Sessions":
        return core().Sessions()

    @cache
    def cases() -> "Memory | None":
        return None if memory == "off" else core().Memory(Path(memory) if memory else None)

    @cache
    def macros() -> "Macros":
        own = core().macros_path()
        return core().builtin_macros().merged(core().Macros.read(own)) if own.is_file() else core().builtin_macros()

    parts = layout.build()
    wiring.connect(demo, parts, Context(reporter, example, store, cases, macros))
    return parts
