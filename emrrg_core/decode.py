"""Writing a draft token by token: prefill, cached greedy or beam search, and the trace of what every token looked at.

b films (studies) · k beams · rows = films × beams · v visual tokens

The visual keys and values are computed once per draft and ride along with every call, so each generated token looks at the film.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from emrrg_core.config import DecodeConfig
from emrrg_core.errors import ConfigError
from emrrg_core.hybrid import Look
from emrrg_core.model import Emrrg


@dataclass(frozen=True, eq=False)
class Token:
    """One written token and what stood behind it."""

    id: int
    text: str  # its characters; the texts of all tokens joined are the draft
    log_prob: float  # natural logarithm, under the model itself (before any penalty)
    gates: tuple[float, ...]  # per hybrid layer: mean over heads
    # (hybrid layers, patches) float32: weights on the patches in raster order; the rest of 1 is the class token's
    attention: np.ndarray


@dataclass(frozen=True, eq=False)
class Writing:
    """A text so far (or to its end) and its tokens, the end symbol left out."""

    tokens: tuple[Token, ...]
    finished: bool  # the model ended it, not the limit
    log_prob: (
        float  # of the whole text as it was searched: after penalty and contrast, the end symbol included once finished
    )

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)


@dataclass(frozen=True, eq=False)
class _Step:
    """A generated token in a beam."""

    id: int
    text: str  # what it adds to the text
    log_prob: float
    gates: np.ndarray  # (layers,)
    attention: np.ndarray  # (layers, patches)


@dataclass
class _Film:
    """The search for one film: its living beams, best first, and what has ended."""

    beams: list[tuple[float, list[_Step]]] = field(default_factory=lambda: [(0.0, [])])  # (log-probability, steps)
    ended: list[tuple[float, float, list[_Step]]] = field(default_factory=list)  # (rank, log-probability, steps)

    def best(self, penalty: float, *, over: bool) -> tuple[list[_Step], bool, float]:
        """Steps, finished and log-probability of the best text; while the search runs, the best that is alive."""
        if self.ended and (over or not self.beams):
            _, log_prob, steps = max(self.ended, key=lambda entry: entry[0])
            return steps, True, log_prob
        log_prob, steps = max(self.beams, key=lambda beam: beam[0] / max(len(beam[1]), 1) ** penalty)
        return steps, False, log_prob


@torch.inference_mode()
def stream(model: Emrrg, visual: Tensor, config: DecodeConfig) -> Iterator[list[Writing]]:
    """Write about b films at once. Yields, after every step, the best text so far of each film; the last yield is the result.

    visual: (b, v, h) from `Emrrg.encode`. With beams, a text may change between yields. Each film's text is what it would be alone.
    With contrast, every film has a twin row that reads the same words under the average film. Raises ConfigError for a contrast that the
    checkpoint has no average film for.
    """
    if model.training:
        raise RuntimeError("the model is in training mode; call eval() before drafting")
    contrast = model.config.contrast if config.contrast is None else config.contrast
    if contrast and not model.config.contrast:
        raise ConfigError("This checkpoint has no average film to write against: leave contrast at 0.")
    llm, eos = model.llm, model.tokenizer.eos_token_id
    k, b = config.beams, visual.shape[0]
    films = [_Film() for _ in range(b)]
    active = list(range(b))  # films still being written; their rows lie in this order, k each after the first step
    cache = DynamicCache(config=llm.config)
    looks: list[Look] = []
    if contrast:
        average = model.average_film.unsqueeze(0)
        seen = model.look_at(torch.cat([visual, average]))  # the average film is number b
        embeds, is_text = model.prompt(torch.cat([visual, average.expand(b, -1, -1)]))
        twins = torch.tensor([*range(b), *[b] * b], device=visual.device)
        call = seen.select(twins).at(is_text, looks=looks)
    else:
        seen = model.look_at(visual)
        embeds, is_text = model.prompt(visual)
        call = seen.at(is_text, looks=looks)
    width = 1  # beams per film so far
    for step_number in range(1, config.max_new_tokens + 1):
        hidden = llm.get_decoder()(
            inputs_embeds=embeds, past_key_values=cache, use_cache=True, visual=call
        ).last_hidden_state[:, -1]
        logits = llm.get_output_embeddings()(hidden).float()  # (rows and their twins, vocabulary)
        gates, attention = _last(looks, model, logits.shape[0])  # (rows, layers), (rows, layers, patches); twins after
        own_rows = len(active) * width
        logits, twin_logits = logits[:own_rows], logits[own_rows:]
        log_probs = F.log_softmax(logits, -1)
        ranked = log_probs if config.repetition_penalty == 1 else _penalised(logits, films, active, config)
        if contrast:
            ranked = _contrasted(ranked, F.log_softmax(twin_logits, -1), contrast)
        totals = torch.tensor([[score for score, _ in films[f].beams] for f in active], device=logits.device)
        candidates = (totals[..., None] + ranked.view(len(active), width, -1)).flatten(1)  # (films, width · vocabulary)
        top, flat = candidates.topk(min(2 * k, candidates.shape[1]), dim=1)
        origin, ids = flat // logits.shape[-1], flat % logits.shape[-1]

        rows, still = [], []
        for n, f in enumerate(active):
            film, grown = films[f], []
            parents = film.beams
            for rank, (score, parent, token) in enumerate(
                zip(top[n].tolist(), origin[n].tolist(), ids[n].tolist(), strict=True)
            ):
                row = n * width + parent
                steps = parents[parent][1]
                if token == eos:
                    if rank < k:
                        film.ended.append((score / (len(steps) + 1) ** config.length_penalty, score, steps))
                    if k == 1 and rank == 0:
                        break
                    continue
                text = _added_text(model, steps, token)
                step = _Step(token, text, float(log_probs[row, token]), gates[row], attention[row])
                grown.append((score, [*steps, step], row))
                if len(grown) == k:
                    break
            film.beams = [(score, steps) for score, steps, _ in grown]
            if len(film.ended) < k and film.beams:
                still.append(f)
                rows += [row for _, _, row in grown]
        stop = not still or step_number == config.max_new_tokens
        yield [_writing(film, config, over=stop or f not in still) for f, film in enumerate(films)]
        if stop:
            return
        # only living films keep their rows; a film that has fewer than k beams cannot occur past the first step (2k candidates)
        film_numbers = [f for f in still for _ in range(k)]
        if contrast:
            rows = [*rows, *(row + own_rows for row in rows)]
            film_numbers = [*film_numbers, *[b] * len(film_numbers)]
        index = torch.tensor(rows, device=logits.device)
        cache.batch_select_indices(index)
        films_of_rows = torch.tensor(film_numbers, device=logits.device)
        looks = []
        call = seen.select(films_of_rows).at(looks=looks) if still != active or width != k else call.at(looks=looks)
        active, width = still, k
        last = torch.tensor([[steps[-1].id] for f in active for _, steps in films[f].beams], device=logits.device)
        embeds = model.embed(last.repeat(2, 1) if contrast else last)


def write(model: Emrrg, visual: Tensor, config: DecodeConfig) -> list[Writing]:
    """The finished texts of b films at once: visual (b, v, h)."""
    result: list[Writing] = []
    for result in stream(model, visual, config):  # noqa: B007 — the last one is wanted
        pass
    return result


def _last(looks: list[Look], model: Emrrg, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Gates (rows, layers) and attention over patches (rows, layers, patches) at the last position of a call."""
    if not looks:  # the hybrid decoder is off: nothing was looked at
        return np.zeros((rows, 0), np.float32), np.zeros((rows, 0, model.config.vision.patches), np.float32)
    middle = model.config.vision.class_position
    gates = torch.stack([look.gate[:, -1] for look in looks], 1)
    attention = torch.stack([look.attention[:, -1] for look in looks], 1)
    patches = torch.cat([attention[..., :middle], attention[..., middle + 1 :]], -1)
    return gates.float().cpu().numpy(), patches.float().cpu().numpy()


PLAUSIBLE = 0.3  # share of the most probable token's probability that a token needs to be written at all; 0.1 let broken words through


def _contrasted(own: Tensor, average: Tensor, contrast: float) -> Tensor:
    """Log-probabilities (rows, vocabulary) that favour what this film makes likelier than the average film does, among plausible tokens.

    Contrastive decoding (Li et al. 2022, arXiv 2210.15097): (1 + c) · own - c · average, where own is at least PLAUSIBLE of its maximum.
    """
    implausible = own < own.max(-1, keepdim=True).values + math.log(PLAUSIBLE)
    return F.log_softmax(((1 + contrast) * own - contrast * average).masked_fill(implausible, -torch.inf), -1)


def _penalised(logits: Tensor, films: list[_Film], active: list[int], config: DecodeConfig) -> Tensor:
    """Log-probabilities after the usual repetition penalty (Keskar et al. 2019): tokens already written become less likely."""
    logits = logits.clone()
    histories = [[step.id for step in steps] for f in active for _, steps in films[f].beams]
    for row, ids in enumerate(histories):
        index = torch.tensor(sorted(set(ids)), dtype=torch.long, device=logits.device)
        value = logits[row, index]
        logits[row, index] = torch.where(
            value > 0, value / config.repetition_penalty, value * config.repetition_penalty
        )
    return F.log_softmax(logits, -1)


def _writing(film: _Film, config: DecodeConfig, *, over: bool) -> Writing:
    steps, finished, log_prob = film.best(config.length_penalty, over=over)
    tokens = tuple(Token(s.id, s.text, s.log_prob, tuple(float(g) for g in s.gates), s.attention) for s in steps)
    return Writing(tokens, finished, log_prob)


def _added_text(model: Emrrg, steps: list[_Step], token: int) -> str:
    """The characters that a token adds to those before it. Bytes of an unfinished character wait for the token that ends it."""
    ids = [*(step.id for step in steps), token]
    whole = str(model.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    if whole.endswith("\N{REPLACEMENT CHARACTER}"):
        return ""
    return whole[sum(len(step.text) for step in steps) :]
