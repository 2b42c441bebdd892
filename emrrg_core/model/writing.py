"""What a generation leaves behind: the text, token by token, and what stood behind each."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Token:
    """One written token and what stood behind it."""

    id: int
    text: str  # its characters; the texts of all tokens joined are the draft
    log_prob: float  # natural logarithm, under the model itself (before any penalty)
    gates: tuple[float, ...]  # per hybrid layer: mean over heads
    # (hybrid layers, patches) float32, patches in raster order; with on_findings, the class token, and disease and memory tokens where a model has
    # them, the weights sum to 1
    attention: np.ndarray
    on_findings: np.ndarray  # (hybrid layers, s) float32: the same of the finding tokens, in the order of finding_tokens.NAMES; s 0: there are none
    forced: bool = False  # not chosen by the model: the heading of the Impression, after Findings that had to be closed


@dataclass(frozen=True, eq=False)
class Writing:
    """A text so far (or to its end) and its tokens, the end symbol left out."""

    tokens: tuple[Token, ...]
    finished: bool  # it came to its end, not to the limit
    log_prob: float  # of the whole text as it was searched: after penalty, the end symbol included once finished
    closed: tuple[str, ...] = ()  # sections that were ended here because the model began to say a sentence again

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)
