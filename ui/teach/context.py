"""What a tab of the Teach screen holds, and what its view functions share."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ui.session_state import core
from ui.teach.drafts import Drafts

if TYPE_CHECKING:
    from emrrg_core import Draft, Film, Reporter
    from emrrg_core.explain.occlusion import Rescored
    from emrrg_core.teaching.cases import Case, Cases
    from emrrg_core.teaching.classroom import Classes, Learner


@dataclass(eq=False)
class TeachState:
    """What one tab holds on the server."""

    learner: "Learner | None" = None
    case: "Case | None" = None
    films: "tuple[Film, ...]" = ()
    draft: "Draft | None" = None  # of the case: there only once the learner has committed an answer
    read: "Rescored | None" = None  # the draft under the untouched films
    key: str = ""  # of the class that the teacher has open
    words: str = ""  # that the listed cases hold
    tags: tuple[str, ...] = ()  # that the listed cases have
    making: "tuple[Film, ...]" = ()  # the films of a case that is being made


@dataclass(frozen=True)
class Context:
    """reporter may still be loading; folder: of the cases; store: opened when first needed, once the model is loaded.

    own: gives a second folder, whose cases are listed too, and where new ones are written; None: new ones go to `folder`. author: cases may be
    made here.
    """

    reporter: "Future[Reporter]"
    folder: Path
    drafts: Drafts
    store: "Callable[[], Classes]"
    own: Callable[[], Path] | None = None
    author: bool = False
    _joining: threading.Lock = field(default_factory=threading.Lock)

    def cases(self) -> "Cases":
        """The cases in the folders, read anew. Of two with one id the first counts."""
        found: Cases = core().read_cases(self.folder)
        if self.own is None or not self.own().is_dir():
            return found
        more: Cases = core().read_cases(self.own())
        ids = {case.id for case in found.cases}
        new = tuple(case for case in more.cases if case.id not in ids)
        return replace(found, cases=(*found.cases, *new), problems=(*found.problems, *more.problems))

    @property
    def written_to(self) -> Path:
        """The folder in which a new case is written."""
        return self.own() if self.own else self.folder

    def learner_of(self, state: TeachState) -> "Learner":
        """The learner of this tab. From the first word on, one who practises alone is a learner too."""
        with self._joining:  # two boxes that are typed into at once must not make two learners
            if state.learner is None:
                state.learner = self.store().alone()
            return state.learner
