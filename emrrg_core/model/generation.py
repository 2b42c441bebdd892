"""Writing a draft token by token: prefill, cached greedy or beam search, and the trace of what every token looked at.

b films (studies) · k beams · rows = films × beams · v visual tokens · s finding tokens

The visual keys and values are computed once per draft and ride along with every call, so each generated token looks at the film.

A section never says a sentence twice: a small language model may say it for ever. When a sentence ends that its section has already, the text goes
back to the end of the sentence before it, as if nothing had followed, and the section is closed: after Findings the heading of the Impression is
written for the model, and an Impression ends the text. What the model said again is gone; that it did is kept (`Writing.closed`).
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from emrrg_core.config import DecodeConfig
from emrrg_core.model.emrrg import Emrrg, FilmTokens
from emrrg_core.model.hybrid_decoder import AttentionTrace
from emrrg_core.model.writing import Token, Writing
from emrrg_core.text.sections import FINDINGS, IMPRESSION, first_repeat


@dataclass(frozen=True, eq=False)
class _Step:
    """A generated token in a beam."""

    id: int
    text: str  # what it adds to the text
    log_prob: float
    gates: np.ndarray  # (layers,)
    attention: np.ndarray  # (layers, patches + s)
    forced: bool
    score: float  # of the beam, up to and with this token


@dataclass(frozen=True, eq=False)
class _Beam:
    """A text in the search."""

    score: float = 0.0  # log-probability as searched
    steps: tuple[_Step, ...] = ()
    forced: tuple[int, ...] = ()  # tokens that must come next: a section is being closed
    closed: tuple[str, ...] = ()  # sections that were closed

    @property
    def text(self) -> str:
        return "".join(step.text for step in self.steps)

    @property
    def ids(self) -> tuple[int, ...]:
        """Of its tokens and of those that must come."""
        return (*(step.id for step in self.steps), *self.forced)

    def is_under_way(self, others: Iterable["_Beam"]) -> bool:
        """Whether one of the others closes (or has closed) the same section after the same words."""
        mine, length = self.ids, len(self.steps)
        return any(len(ids := other.ids) > length and ids[: len(mine)] == mine[: len(ids)] for other in others)


@dataclass
class _Film:
    """The search for one film: its living beams and what has ended."""

    beams: list[_Beam] = field(default_factory=lambda: [_Beam()])
    ended: list[tuple[float, _Beam]] = field(default_factory=list)  # (rank, text)

    def best(self, penalty: float, *, over: bool) -> tuple[_Beam, bool]:
        """The best text and whether it is finished; while the search runs, the best that is alive."""
        if self.ended and (over or not self.beams):
            return max(self.ended, key=lambda entry: entry[0])[1], True
        return max(self.beams, key=lambda beam: beam.score / max(len(beam.steps), 1) ** penalty), False


@torch.inference_mode()
def stream(model: Emrrg, film: FilmTokens, config: DecodeConfig) -> Iterator[list[Writing]]:
    """Write about b films at once. Yields, after every step, the best text so far of each film; the last yield is the result.

    film: from `Emrrg.encode`. With beams, a text may change between yields. Each film's text is what it would be alone.
    A text may also go back by a sentence that it has already; the tokens that were written in vain count towards the limit.
    """
    if model.training:
        raise RuntimeError("the model is in training mode; call eval() before drafting")
    llm, eos = model.llm, model.tokenizer.eos_token_id
    k, b = config.beams, len(film)
    films = [_Film() for _ in range(b)]
    active = list(range(b))  # films still being written; their rows lie in this order, k each after the first step
    cache = DynamicCache(config=llm.config)
    trace: list[AttentionTrace] = []
    seen = model.precompute_keys_values(film)
    embeds, is_text = model.prompt(film)
    call = seen.at(is_text, trace=trace)
    width = 1  # beams per film so far
    prompt, heading = embeds.shape[1], _heading(model)
    held: Tensor | None = None  # (rows, cached positions) bool: False where a row was taken back; None until one is
    for step_number in range(1, config.max_new_tokens + 1):
        if held is not None:
            held = torch.cat([held, held.new_ones(held.shape[0], 1)], 1)
        hidden = llm.get_decoder()(
            inputs_embeds=embeds,
            attention_mask=held,
            position_ids=None if held is None else held.sum(1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
            visual=call,
        ).last_hidden_state[:, -1]
        logits = llm.get_output_embeddings()(hidden).float()  # (rows, vocabulary)
        gates, attention = _last(trace, model, logits.shape[0])  # (rows, layers), (rows, layers, patches + s)
        log_probs = F.log_softmax(logits, -1)
        ranked = log_probs if config.repetition_penalty == 1 else _penalised(logits, films, active, config)
        ranked = _forced(ranked, log_probs, [beam for f in active for beam in films[f].beams])
        totals = torch.tensor([[beam.score for beam in films[f].beams] for f in active], device=logits.device)
        candidates = (totals[..., None] + ranked.view(len(active), width, -1)).flatten(1)  # (films, width · vocabulary)
        top, flat = candidates.topk(min(2 * k, candidates.shape[1]), dim=1)
        origin, ids = flat // logits.shape[-1], flat % logits.shape[-1]

        last_step = step_number == config.max_new_tokens
        rows: list[int] = []  # where the living beams come from
        back: list[tuple[int, int]] = []  # (place among them, tokens left) of those that were taken back
        still = []
        for n, f in enumerate(active):
            search, parents = films[f], films[f].beams
            grown: list[tuple[_Beam, int, bool]] = []  # beam, row, taken back
            doubles: list[tuple[_Beam, int, bool]] = []
            for rank, (score, parent, token) in enumerate(
                zip(top[n].tolist(), origin[n].tolist(), ids[n].tolist(), strict=True)
            ):
                if score == -math.inf:
                    break
                row, beam, ends = n * width + parent, parents[parent], token == eos
                if ends and rank >= k:
                    continue
                was_forced = bool(beam.forced)
                if not ends:
                    text = _added_text(model, beam.steps, token)
                    step = _Step(
                        token, text, float(log_probs[row, token]), gates[row], attention[row], was_forced, score
                    )
                    beam = replace(beam, score=score, steps=(*beam.steps, step), forced=beam.forced[1:])
                closed = None if was_forced else _close(beam, heading, eos, over=ends or last_step)
                if closed:
                    ended = [replace(text, forced=(eos,)) for _, text in search.ended]
                    double = closed.is_under_way([*parents, *ended, *(entry[0] for entry in grown)])
                    (doubles if double else grown).append((closed, row, True))
                elif ends:
                    beam = replace(beam, score=score)
                    search.ended.append((score / (len(beam.steps) + 1) ** config.length_penalty, beam))
                else:
                    grown.append((beam, row, False))
                if len(grown) == k or k == 1:
                    break
            if not grown and not search.ended:
                grown = doubles[:1]
            if len(search.ended) < k and grown:
                dead = replace(grown[0][0], score=-math.inf)  # where fewer than k are left, the others are never chosen
                grown += [(dead, grown[0][1], False)] * (k - len(grown))
                still.append(f)
                back += [(len(rows) + i, len(beam.steps)) for i, (beam, _, taken) in enumerate(grown) if taken]
                rows += [row for _, row, _ in grown]
            search.beams = [beam for beam, _, _ in grown]
        stop = not still or last_step
        yield [_writing(film, config, over=stop or f not in still) for f, film in enumerate(films)]
        if stop:
            return
        # only living films keep their rows
        film_numbers = [f for f in still for _ in range(k)]
        index = torch.tensor(rows, device=logits.device)
        if rows != list(range(len(gates))):  # greedy rows stay until a film is done
            cache.batch_select_indices(index)
        if held is not None:
            held = held[index]
        elif back:
            held = torch.ones(len(rows), cache.get_seq_length(), dtype=torch.bool, device=logits.device)
        if held is not None:
            for row, length in back:  # the last token that is left is read again: what it predicted was not kept
                held[row, held[row].cumsum(0) >= prompt + length] = False
        films_of_rows = torch.tensor(film_numbers, device=logits.device)
        trace = []
        call = seen.select(films_of_rows).at(trace=trace) if still != active or width != k else call.at(trace=trace)
        active, width = still, k
        last = torch.tensor([[beam.steps[-1].id] for f in active for beam in films[f].beams], device=logits.device)
        embeds = model.embed(last)


def write(model: Emrrg, film: FilmTokens, config: DecodeConfig) -> list[Writing]:
    """The finished texts of b films at once."""
    result: list[Writing] = []
    for result in stream(model, film, config):  # noqa: B007 — the last one is wanted
        pass
    return result


def _last(trace: list[AttentionTrace], model: Emrrg, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Gates (rows, layers) and attention over patches and finding tokens (rows, layers, patches + s) at the last position of a call."""
    if not trace:  # the hybrid decoder is off: nothing was looked at
        seen = model.config.vision.patches + len(model.finding_positions)
        return np.zeros((rows, 0), np.float32), np.zeros((rows, 0, seen), np.float32)
    middle = model.config.vision.class_position
    gates = torch.stack([layer.gate[:, -1] for layer in trace], 1)
    attention = torch.stack([layer.attention[:, -1] for layer in trace], 1)
    rest = torch.cat([attention[..., :middle], attention[..., middle + 1 :]], -1)
    return gates.float().cpu().numpy(), rest.float().cpu().numpy()


def _penalised(logits: Tensor, films: list[_Film], active: list[int], config: DecodeConfig) -> Tensor:
    """Log-probabilities after the usual repetition penalty (Keskar et al. 2019): tokens already written become less likely."""
    logits = logits.clone()
    histories = [[step.id for step in beam.steps] for f in active for beam in films[f].beams]
    for row, ids in enumerate(histories):
        index = torch.tensor(sorted(set(ids)), dtype=torch.long, device=logits.device)
        value = logits[row, index]
        logits[row, index] = torch.where(
            value > 0, value / config.repetition_penalty, value * config.repetition_penalty
        )
    return F.log_softmax(logits, -1)


def _heading(model: Emrrg) -> tuple[int, ...]:
    """The tokens of the Impression's heading as the model has learned to write them after a sentence."""
    before, both, alone = (
        tuple(model.tokenizer(text, add_special_tokens=False).input_ids)
        for text in ("a.", "a." + IMPRESSION.rstrip(), IMPRESSION.rstrip())
    )
    return both[len(before) :] if both[: len(before)] == before else alone


_MAY_END = re.compile(r"[.!?:\n]")  # a sentence, or the heading before one


def _close(beam: _Beam, heading: tuple[int, ...], eos: int, *, over: bool) -> _Beam | None:
    """The text taken back to before its first repeated sentence, and what must follow there; None where it repeats none.

    over: the text is whole. A text that has no heading over its Findings gets none over an Impression: it ends.
    """
    if not over and not _MAY_END.search("".join(step.text for step in beam.steps[-2:])):
        return None
    repeat = first_repeat(beam.text, over=over)
    if repeat is None:
        return None
    length, end = 0, 0
    for step in beam.steps:
        if end >= repeat.end or end + len(step.text) > repeat.start:
            break
        length, end = length + 1, end + len(step.text)
    if not length:
        return None  # a single token holds it all
    goes_on = repeat.section == "findings" and beam.text.lstrip().startswith(FINDINGS.strip())
    return _Beam(
        score=beam.steps[length - 1].score,
        steps=beam.steps[:length],
        forced=heading if goes_on else (eos,),
        closed=(*beam.closed, repeat.section),
    )


def _forced(ranked: Tensor, log_probs: Tensor, beams: list[_Beam]) -> Tensor:
    """Scores (rows, vocabulary) that leave a row which must write a certain token no other; it counts with the model's own log-probability."""
    if any(beam.forced for beam in beams):
        ranked = ranked.clone()
        for row, beam in enumerate(beams):
            if beam.forced:
                ranked[row] = -math.inf
                ranked[row, beam.forced[0]] = log_probs[row, beam.forced[0]]
    return ranked


def _writing(film: _Film, config: DecodeConfig, *, over: bool) -> Writing:
    beam, finished = film.best(config.length_penalty, over=over)
    tokens = tuple(
        Token(s.id, s.text, s.log_prob, tuple(float(g) for g in s.gates), s.attention, s.forced) for s in beam.steps
    )
    return Writing(tokens, finished, beam.score, beam.closed)


def _added_text(model: Emrrg, steps: tuple[_Step, ...], token: int) -> str:
    """The characters that a token adds to those before it. Bytes of an unfinished character wait for the token that ends it."""
    ids = [*(step.id for step in steps), token]
    whole = str(model.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    if whole.endswith("\N{REPLACEMENT CHARACTER}"):
        return ""
    return whole[sum(len(step.text) for step in steps) :]
