"""The language model at work on a draft: what is cached, what is read next, and what every position looked at.

b films (studies) · rows = films × beams · n positions · g² patches · s finding tokens
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from emrrg_core.config import Section
from emrrg_core.model.emrrg import FINDINGS, PATCHES, Emrrg, FilmTokens
from emrrg_core.model.hybrid_decoder import AttentionTrace, Visual


@dataclass(frozen=True)
class Look:
    """Gates and attention of one token, as a `writing.Token` keeps them."""

    gates: np.ndarray  # (layers,)
    attention: np.ndarray  # (layers, g²)
    on_findings: np.ndarray  # (layers, s)


@dataclass(frozen=True)
class Reading:
    """What the model makes of the last positions of every row, and what it looked at there. Rows that read fewer tokens than others have theirs
    at the front; what follows means nothing."""

    logits: Tensor  # (rows, n, vocabulary) float32
    gates: np.ndarray  # (rows, n, layers) float32
    attention: np.ndarray  # (rows, n, layers, g²) float32
    on_findings: np.ndarray  # (rows, n, layers, s) float32

    def look(self, row: int, position: int) -> Look:
        return Look(self.gates[row, position], self.attention[row, position], self.on_findings[row, position])


class Inference:
    """Texts under way about b films, a row each. A call reads a block of tokens a row, of any length.

    The films' keys and values are computed once and ride along with every call, so each token looks at its film. section: whose projector and LoRA
    are used where sections are separate.
    """

    def __init__(self, model: Emrrg, film: FilmTokens, section: Section = Section.FINDINGS) -> None:
        self.model, self._section = model, section
        self.films = list(range(len(film)))  # the film of each row
        self._seen = model.precompute_keys_values(film, section)
        self._call = self._seen
        self._cache = DynamicCache(config=model.llm.config)
        self._prompt, self._is_text = model.prompt(film, section)
        self._held: Tensor | None = (
            None  # (rows, cached positions) bool: False where a row has nothing there; None: all have
        )

    def read_prompt(self, blocks: Sequence[Sequence[int]], skip: Sequence[int] = ()) -> Reading:
        """Once, before `read`: the prompt and a block after it. The reading begins at the prompt's last position, or after the first `skip` tokens of
        each row's block, which stand already."""
        return self._forward(blocks, prompt=True, skip=skip)

    def read(self, blocks: Sequence[Sequence[int]]) -> Reading:
        """At least one token a row."""
        return self._forward(blocks, prompt=False)

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
            self._call = self._seen.select(self._films_index())

    def join(self, other: "Inference") -> None:
        """Go on with another's rows too, after one's own. Both must have read their prompts, which are of one length."""
        own, theirs = self._cache.get_seq_length(), other._cache.get_seq_length()
        length = max(own, theirs)
        parts = ((self, length - own), (other, length - theirs))
        if self._held is not None or other._held is not None or own != theirs:
            self._held = torch.cat([F.pad(inference._all_held(), (more, 0)) for inference, more in parts])
        caches: tuple[Any, Any] = (self._cache, other._cache)
        for mine, layer in zip(*(cache.layers for cache in caches), strict=True):
            both = ((mine, length - own), (layer, length - theirs))
            # room for what the shorter has not read is at the front: the last positions are those that are read next
            mine.keys = torch.cat([F.pad(cached.keys, (0, 0, more, 0)) for cached, more in both])
            mine.values = torch.cat([F.pad(cached.values, (0, 0, more, 0)) for cached, more in both])
        # rows of films that have ended go with this
        self._seen = Visual.join([inference._seen.select(inference._films_index()) for inference, _ in parts])
        self.films = list(range(len(self.films) + len(other.films)))
        self._call = self._seen

    def _films_index(self) -> Tensor:
        return torch.tensor(self.films, device=self._prompt.device)

    def _all_held(self) -> Tensor:
        if self._held is not None:
            return self._held
        shape = len(self.films), self._cache.get_seq_length()
        return torch.ones(shape, dtype=torch.bool, device=self._prompt.device)

    def keep(self, tokens: Sequence[int]) -> None:
        """Go on with each row as if it had read only so many tokens after its prompt."""
        prompt = self._prompt.shape[1]
        if self._held is None and len(set(tokens)) == 1:
            self._crop(prompt + tokens[0])
            return
        held = self._all_held()
        held = held & (held.cumsum(1) <= prompt + torch.tensor(tokens, device=held.device).unsqueeze(1))
        used = int(held.any(0).nonzero().max()) + 1
        self._crop(used)
        held = held[:, :used]
        self._held = None if bool(held.all()) else held

    def _crop(self, length: int) -> None:
        self._cache.crop(length - self._cache.get_seq_length())

    def _forward(self, blocks: Sequence[Sequence[int]], *, prompt: bool, skip: Sequence[int] = ()) -> Reading:
        self.model.use(self._section)
        llm, trace, positions = self.model.llm, list[AttentionTrace](), None
        lengths = torch.tensor([len(block) for block in blocks], device=self._prompt.device)
        longest = int(lengths.max())
        padded = [[*block, *[0] * (longest - len(block))] for block in blocks]
        ids = torch.tensor(padded, dtype=torch.long, device=self._prompt.device)
        real = torch.arange(longest, device=ids.device) < lengths.unsqueeze(1)  # (rows, longest)
        embeds, is_text = self.model.embed(ids) if longest else self._prompt[:, :0], real
        if prompt:
            embeds, is_text = torch.cat([self._prompt, embeds], 1), torch.cat([self._is_text, real], 1)
        new = is_text if not prompt else torch.cat([torch.ones_like(self._is_text), real], 1)
        if self._held is not None or not bool(real.all()):
            past = self._all_held()
            self._held = torch.cat([past, new], 1)
            positions = (past.sum(1, keepdim=True) + new.cumsum(1) - 1).clamp_min(0)
        all_text = bool(is_text.all())
        hidden = llm.get_decoder()(
            inputs_embeds=embeds,
            attention_mask=self._held,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            visual=self._call.at(None if all_text else is_text, trace=trace),
        ).last_hidden_state

        def asked(values: Tensor) -> Tensor:
            return _last(values, longest + prompt, skip)

        hidden = asked(hidden)
        logits = llm.get_output_embeddings()(hidden.flatten(0, 1)).float().unflatten(0, hidden.shape[:2])
        return Reading(logits, *self._looked(trace, asked, *logits.shape[:2]))

    def _looked(
        self, trace: list[AttentionTrace], asked: Callable[[Tensor], Tensor], rows: int, n: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gates and attention at the n positions that are asked about, the class token left out."""
        vision, told = self.model.config.vision, self._seen.sizes.get(FINDINGS, 0)
        if not trace:  # the hybrid decoder is off: nothing was looked at
            shapes = (rows, n, 0), (rows, n, 0, vision.patches), (rows, n, 0, told)
            return tuple(np.zeros(shape, np.float32) for shape in shapes)  # type: ignore[return-value]
        gates = torch.stack([asked(layer.gate) for layer in trace], 2)
        attention = self.model.patches(torch.stack([asked(layer.attention[PATCHES]) for layer in trace], 2), -1)
        on_findings = attention[..., :0]
        if told:
            on_findings = torch.stack([asked(layer.attention[FINDINGS]) for layer in trace], 2)
        return tuple(part.float().cpu().numpy() for part in (gates, attention, on_findings))  # type: ignore[return-value]


def _last(values: Tensor, length: int, skip: Sequence[int]) -> Tensor:
    """Of (rows, l, …) the last `length` positions, without the first `skip` of each row; what a row then lacks at its end means nothing."""
    last = values[:, -length:]
    if not any(skip):
        return last
    first = torch.tensor(skip, device=values.device).unsqueeze(1)
    places = (first + torch.arange(length - min(skip), device=values.device)).clamp_max(length - 1)
    return last[torch.arange(len(last), device=values.device).unsqueeze(1), places]
