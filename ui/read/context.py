"""What the view functions of the Read screen share: the model, the example film, and where reports are kept."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ui.session_state import core

if TYPE_CHECKING:
    from emrrg_core import Reporter, Sessions
    from emrrg_core.memory.cases import Memory
    from emrrg_core.report.macros import Macros


@dataclass(frozen=True)
class Context:
    """reporter may still be loading; example: by its name the path of a film to try, None where there is none; store, memory, macros: opened when
    first needed; memory gives None where cases are not to be remembered."""

    reporter: "Future[Reporter]"
    example: Callable[[str], Path | None]
    store: "Callable[[], Sessions]"
    memory: "Callable[[], Memory | None]" = lambda: None
    macros: "Callable[[], Macros]" = lambda: core().Macros()
