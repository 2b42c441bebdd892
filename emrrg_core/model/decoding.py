"""How the next token of a text is chosen: greedy or beam search, filters of the scores, and sections that are closed.

k beams · width, beams so far: 1 before the first token, then k

A section never says a sentence twice: a small language model may say it for ever. When a sentence ends that its section has already, the text goes
back to the end of the sentence before it, as if nothing had followed, and the section is closed: after Findings the heading of the Impression is
written for the model, and an Impression ends the text. What the model said again is gone; that it did is kept (`Writing.closed`).
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, RepetitionPenaltyLogitsProcessor

from emrrg_core.config import DecodeConfig
from emrrg_core.model.inference import Look
from emrrg_core.model.writing import Token, Writing
from emrrg_core.text.sections import FINDINGS, IMPRESSION, first_repeat


@dataclass(frozen=True, eq=False)
class Step:
    """A token in a beam, and the beam's score with it."""

    token: Token
    score: float


@dataclass(frozen=True, eq=False)
class Beam:
    """A text in the search."""

    score: float = 0.0  # log-probability as searched
    steps: tuple[Step, ...] = ()
    forced: tuple[int, ...] = ()  # tokens that must come next: a section is being closed
    closed: tuple[str, ...] = ()  # sections that were closed

    @property
    def text(self) -> str:
        return "".join(step.token.text for step in self.steps)

    @property
    def ids(self) -> tuple[int, ...]:
        """Of its tokens and of those that must come."""
        return (*(step.token.id for step in self.steps), *self.forced)

    def is_under_way(self, others: Iterable["Beam"]) -> bool:
        """Whether one of the others closes (or has closed) the same section after the same words."""
        mine, length = self.ids, len(self.steps)
        return any(len(ids := other.ids) > length and ids[: len(mine)] == mine[: len(ids)] for other in others)


# ------------------------------------------------------------------------------------------------------------- scores


def scores_of(logits: Tensor, beams: Sequence[Beam], penalty: float) -> tuple[Tensor, Tensor]:
    """Logits (rows, vocabulary) to log-probabilities under the model itself, and as they are searched by: both (rows, vocabulary).

    A repetition penalty other than 1 makes tokens that were written less likely (Keskar et al. 2019). A token that must come has the model's own
    log-probability, and no other token any.
    """
    log_probs = logits.log_softmax(-1)
    ranked = log_probs
    written = [[step.token.id for step in beam.steps] for beam in beams]
    if penalty != 1 and (longest := max(map(len, written))):
        # the penalty counts a token once, however often it stands there
        padded = [ids + ids[-1:] * (longest - len(ids)) for ids in written]
        history = torch.tensor(padded, device=logits.device)
        ranked = RepetitionPenaltyLogitsProcessor(penalty)(history, logits.clone()).log_softmax(-1)
    if any(beam.forced for beam in beams):
        ranked = ranked.clone()
        for row, beam in enumerate(beams):
            if beam.forced:
                ranked[row] = -math.inf
                ranked[row, beam.forced[0]] = log_probs[row, beam.forced[0]]
    return log_probs, ranked


Candidate = tuple[float, int, int]  # score of a beam with one token more, number of the beam, token


def candidates_of(ranked: Tensor, searches: Sequence["Search"]) -> list[list[Candidate]]:
    """The 2 k best continuations of each search, best first. ranked: (rows, vocabulary), of all beams of the searches in their order."""
    vocabulary, k = ranked.shape[-1], searches[0].config.beams
    totals = torch.tensor([[beam.score for beam in search.beams] for search in searches], device=ranked.device)
    scores = (totals[..., None] + ranked.view(*totals.shape, -1)).flatten(1)  # (searches, width · vocabulary)
    top, flat = scores.topk(min(2 * k, scores.shape[1]), dim=1)
    columns = top.tolist(), (flat // vocabulary).tolist(), (flat % vocabulary).tolist()
    return [list(zip(*mine, strict=True)) for mine in zip(*columns, strict=True)]


# ---------------------------------------------------------------------------------------------------------- one search


@dataclass(frozen=True)
class Grown:
    """A beam that lives on, the number of the one that it comes from, and whether it was taken back."""

    beam: Beam
    parent: int
    taken_back: bool


@dataclass(frozen=True)
class Vocabulary:
    """What decoding must know of the tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    eos: int
    heading: tuple[int, ...]  # of the Impression, as the model has learned to write it after a sentence

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Vocabulary":
        before, both, alone = (
            tuple(tokenizer(text, add_special_tokens=False).input_ids)
            for text in ("a.", "a." + IMPRESSION.rstrip(), IMPRESSION.rstrip())
        )
        return cls(tokenizer, tokenizer.eos_token_id, both[len(before) :] if both[: len(before)] == before else alone)

    def added_text(self, steps: Sequence[Step], token: int) -> str:
        """The characters that a token adds to those before it. Bytes of an unfinished character wait for the token that ends it."""
        ids = [*(step.token.id for step in steps), token]
        whole = str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        if whole.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        return whole[sum(len(step.token.text) for step in steps) :]


@dataclass(eq=False)
class Search:
    """The search for one film: its living beams and what has ended. Greedy search is that of one beam."""

    config: DecodeConfig
    vocabulary: Vocabulary
    beams: list[Beam] = field(default_factory=lambda: [Beam()])
    ended: list[tuple[float, Beam]] = field(default_factory=list)  # (rank, text)
    taken: int = 0  # steps, those in vain too
    over: bool = False

    def grow(self, candidates: Iterable[Candidate], log_probs: Tensor, looks: Sequence[Look]) -> list[Grown]:
        """Take the next step. candidates: best first. log_probs (width, vocabulary), under the model itself, and looks: of the beams in their order.

        Returns the k beams that live on, none when the search is over.
        """
        k = self.config.beams
        self.taken += 1
        last = self.taken == self.config.max_new_tokens
        grown: list[Grown] = []
        doubles: list[Grown] = []
        for rank, (score, parent, token) in enumerate(candidates):
            if score == -math.inf:
                break
            beam, ends = self.beams[parent], token == self.vocabulary.eos
            if ends and rank >= k:
                continue
            was_forced = bool(beam.forced)
            if not ends:
                beam = self._with(beam, token, score, float(log_probs[parent, token]), looks[parent])
            closed = None if was_forced else close(beam, self.vocabulary, over=ends or last)
            if closed:
                known = [*self.beams, *(replace(text, forced=(self.vocabulary.eos,)) for _, text in self.ended)]
                double = closed.is_under_way([*known, *(entry.beam for entry in grown)])
                (doubles if double else grown).append(Grown(closed, parent, True))
            elif ends:
                beam = replace(beam, score=score)
                self.ended.append((score / (len(beam.steps) + 1) ** self.config.length_penalty, beam))
            else:
                grown.append(Grown(beam, parent, False))
            if len(grown) == k or k == 1:
                break
        if not grown and not self.ended:
            grown = doubles[:1]
        if len(self.ended) < k and grown:  # where fewer than k are left, the others are never chosen
            dead = replace(grown[0].beam, score=-math.inf)
            grown += [Grown(dead, grown[0].parent, False)] * (k - len(grown))
            self.over = last
        else:
            self.over = True
        self.beams = [entry.beam for entry in grown]
        return [] if self.over else grown

    def _with(self, beam: Beam, token: int, score: float, log_prob: float, look: Look) -> Beam:
        text = self.vocabulary.added_text(beam.steps, token)
        gates = tuple(look.gates.tolist())
        made = Token(token, text, log_prob, gates, look.attention, look.on_findings, bool(beam.forced))
        return replace(beam, score=score, steps=(*beam.steps, Step(made, score)), forced=beam.forced[1:])

    def writing(self) -> Writing:
        """The best text; while the search runs, the best that is alive."""
        if self.ended and (self.over or not self.beams):
            beam, finished = max(self.ended, key=lambda entry: entry[0])[1], True
        else:
            penalty = self.config.length_penalty
            beam = max(self.beams, key=lambda beam: beam.score / max(len(beam.steps), 1) ** penalty)
            finished = False
        return Writing(tuple(step.token for step in beam.steps), finished, beam.score, beam.closed)


_MAY_END = re.compile(r"[.!?:\n]")  # a sentence, or the heading before one


def close(beam: Beam, vocabulary: Vocabulary, *, over: bool) -> Beam | None:
    """The text taken back to before its first repeated sentence, and what must follow there; None where it repeats none.

    over: the text is whole. A text that has no heading over its Findings gets none over an Impression: it ends.
    """
    if not over and not _MAY_END.search("".join(step.token.text for step in beam.steps[-2:])):
        return None
    repeat = first_repeat(beam.text, over=over)
    if repeat is None:
        return None
    length, end = 0, 0
    for step in beam.steps:
        if end >= repeat.end or end + len(step.token.text) > repeat.start:
            break
        length, end = length + 1, end + len(step.token.text)
    if not length:
        return None  # a single token holds it all
    goes_on = repeat.section == "findings" and beam.text.lstrip().startswith(FINDINGS.strip())
    return Beam(
        score=beam.steps[length - 1].score,
        steps=beam.steps[:length],
        forced=vocabulary.heading if goes_on else (vocabulary.eos,),
        closed=(*beam.closed, repeat.section),
    )
