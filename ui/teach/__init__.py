"""Teach, the teacher's screen: a learner reads a case and writes first; then come the draft, the reference and what lies between.

    layout    the components                           wiring    which event calls what
    cases     opening the page and a case              learner   write, commit, compare, look, paint, join
    teacher   begin a class, see and export it         drafts    the model's draft of each case, and what was painted
    marking   marks on films                           author    make a case
    context   what a tab holds, and what all share

Neither the draft nor the reference leaves the server before the learner's answer is committed: the store says whether it is, not
the page. A tab's films and draft live in `gr.State` and go with the tab. Answers are kept by emrrg_core's Classes under a random
id, which the browser remembers (localStorage). So a reload, a restart or tomorrow's lesson loses nothing.
"""

import os
from concurrent.futures import Future, wait
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr

from ui.session_state import core
from ui.teach import layout, wiring
from ui.teach.context import Context
from ui.teach.drafts import Drafts

if TYPE_CHECKING:
    from emrrg_core import Reporter
    from emrrg_core.teaching.classroom import Classes

SHIPPED = Path(__file__).resolve().parent.parent.parent / "cases"


def screen(
    demo: gr.Blocks, reporter: "Future[Reporter]", cases: Path | None = None, *, author: bool | None = None
) -> wiring.Desk:
    """Put the screen into `demo`, which is open, and return where other screens hand over what a case is to be made of.

    reporter may still be loading. cases: the folder; by default the one that comes with EMRRG, and the user's own beside it. author: whether cases
    may be made here, by anyone who opens the page; None: unless this is a Space.
    """
    allowed = "SPACE_ID" not in os.environ if author is None else author

    @cache
    def store() -> "Classes":
        wait([reporter])  # whose thread imports torch, which the folder's place is found with
        kept = core().Classes()
        kept.keep_purging()
        return kept

    def own() -> Path:
        folder: Path = core().own_folder()
        return folder

    context = Context(
        reporter,
        cases or SHIPPED,
        Drafts(reporter),
        store,
        own=own if allowed and cases is None else None,
        author=allowed,
    )
    parts = layout.build(author=allowed)
    return wiring.Desk(parts, wiring.connect(demo, parts, context), allowed)
