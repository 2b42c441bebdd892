"""The model's draft of each case, and what a learner painted on the films."""

import base64
import binascii
import threading
from collections import OrderedDict
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any

import numpy as np

from ui.session_state import core

if TYPE_CHECKING:
    from emrrg_core import Draft, Film, Reporter
    from emrrg_core.teaching.cases import Case
    from emrrg_core.text.compare import Comparison

CELLS = 112  # of the grid that is painted on, along a side, as in teach.js
MOST_DRAFTS = 32  # of cases, kept in memory: the same case is drafted once for a whole class


class Drafts:
    """The model's draft of each case, written when first asked for and then kept in memory, for all who answer that case."""

    def __init__(self, reporter: "Future[Reporter]") -> None:
        self._reporter, self._lock = reporter, threading.Lock()
        self._kept: OrderedDict[tuple[str, ...], Draft] = OrderedDict()
        self._films: dict[str, tuple[str, ...]] = {}  # of a case that was drafted: the hashes of its films

    def of(self, case: "Case", films: "tuple[Film, ...]") -> "Draft":
        """Waits for the model, and for another learner's draft. Raises EmrrgError."""
        wait([self._reporter])
        key = tuple(film.sha256 for film in films)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._reporter.result().draft(films)
            self._kept.move_to_end(key)
            while len(self._kept) > MOST_DRAFTS:
                self._kept.popitem(last=False)
            self._films[case.id] = key
            return self._kept[key]

    def known(self, case: "Case") -> "Draft | None":
        """The draft of a case where there is one already."""
        return self._kept.get(self._films.get(case.id, ()))


def marked(data: Any, films: int) -> "tuple[str, list[np.ndarray]]":
    """What the browser painted: what takes its place, and a grid (CELLS, CELLS) bool for each film. Raises EmrrgError for anything else."""
    try:
        fill, masks = data["fill"], [base64.b64decode(mask, validate=True) for mask in data["masks"]]
        if len(masks) == films and all(len(mask) == CELLS * CELLS // 8 for mask in masks):
            core().Fill(fill)
            grids = [np.unpackbits(np.frombuffer(mask, np.uint8)).reshape(CELLS, CELLS).astype(bool) for mask in masks]
            return fill, grids
    except (KeyError, TypeError, ValueError, binascii.Error):
        pass
    raise core().EmrrgError("What was painted did not arrive whole. Paint again, or load the page again.")


def compared_draft(case: "Case", draft: "Draft | None") -> "Comparison | None":
    """The draft beside the case's reference; None where there is no draft."""
    if draft is None:
        return None
    found: Comparison = core().compare(
        (draft.findings, draft.impression), (case.findings, case.impression), case.labels
    )
    return found
