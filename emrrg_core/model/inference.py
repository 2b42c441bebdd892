"""The language model at work on a draft: what is cached, what is read next, and what every position looked at.

b films (studies) · rows = films × beams · n new tokens · g² patches · s finding tokens
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from emrrg_core.model.emrrg import FINDINGS, PATCHES, Emrrg, FilmTokens
from emrrg_core.model.hybrid_decoder import AttentionTrace


@dataclass(frozen=True)
class Reading:
    """What the model makes of the last token of every row, and what it looked at there."""

    logits: Tensor  # (rows, vocabulary) float32
    gates: np.ndarray  # (rows, layers) float32
    attention: np.ndarray  # (rows, layers, g²) float32
    on_findings: np.ndarray  # (rows, layers, s) float32


class Inference:
    """Texts under way about b films, a row each. Every call reads one more token a row.

    The films' keys and values are computed once and ride along with every call, so each token looks at its film.
    """

    def __init__(self, model: Emrrg, film: FilmTokens) -> None:
        self.model = model
        self.films = list(range(len(film)))  # the film of each row
        self._seen = model.precompute_keys_values(film)
        self._call = self._seen
        self._cache = DynamicCache(config=model.llm.config)
        self._prompt, self._is_text = model.prompt(film)
        self._held: Tensor | None = (
            None  # (rows, cached positions) bool: False where a row was taken back; None until one is
        )

    def read_prompt(self) -> Reading:
        """Once, before `read`."""
        return self._forward(self._prompt, self._is_text)

    def read(self, ids: Sequence[int]) -> Reading:
        """One token a row."""
        last = torch.tensor(ids, device=self._prompt.device).unsqueeze(1)
        return self._forward(self.model.embed(last), None)

    def rearrange(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in that order; a row may be taken more than once."""
        if list(rows) == list(range(len(self.films))):
            return
        index = torch.tensor(rows, device=self._prompt.device)
        films = [self.films[row] for row in rows]
        self._cache.batch_select_indices(index)
        if self._held is not None:
            self._held = self._held[index]
        if films != self.films:
            self.films = films
            self._call = self._seen.select(torch.tensor(films, device=index.device))

    def take_back(self, row: int, tokens: int) -> None:
        """Go on with a row as if it had only its first tokens. The last of these is read again: what it predicted was not kept."""
        if self._held is None:
            shape = len(self.films), self._cache.get_seq_length()
            self._held = torch.ones(shape, dtype=torch.bool, device=self._prompt.device)
        kept = self._held[row].cumsum(0) < self._prompt.shape[1] + tokens
        self._held[row] &= kept

    def _forward(self, embeds: Tensor, is_text: Tensor | None) -> Reading:
        llm, trace, positions = self.model.llm, list[AttentionTrace](), None
        if self._held is not None:
            self._held = torch.cat([self._held, self._held.new_ones(len(self._held), embeds.shape[1])], 1)
            positions = self._held.sum(1, keepdim=True) - 1
        hidden = llm.get_decoder()(
            inputs_embeds=embeds,
            attention_mask=self._held,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            visual=self._call.at(is_text, trace=trace),
        ).last_hidden_state[:, -1]
        logits = llm.get_output_embeddings()(hidden).float()
        return Reading(logits, *self._looked(trace, len(logits)))

    def _looked(self, trace: list[AttentionTrace], rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gates and attention at the last position, the class token left out."""
        vision, told = self.model.config.vision, self._seen.sizes.get(FINDINGS, 0)
        if not trace:  # the hybrid decoder is off: nothing was looked at
            shapes = (rows, 0), (rows, 0, vision.patches), (rows, 0, told)
            return tuple(np.zeros(shape, np.float32) for shape in shapes)  # type: ignore[return-value]
        gates = torch.stack([layer.gate[:, -1] for layer in trace], 1)
        attention = self.model.patches(torch.stack([layer.attention[PATCHES][:, -1] for layer in trace], 1), -1)
        on_findings = attention[..., :0]
        if told:
            on_findings = torch.stack([layer.attention[FINDINGS][:, -1] for layer in trace], 1)
        return tuple(part.float().cpu().numpy() for part in (gates, attention, on_findings))  # type: ignore[return-value]
