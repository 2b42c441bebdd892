"""How the next token of a text is chosen: greedy or beam search, filters of the scores, and sections that are closed.

k beams · width, beams so far: 1 before the first token, then k

A section never says a sentence twice: a small language model may say it for ever. When a sentence ends that its section has already, the text goes
back to the end of the sentence before it, as if nothing had followed, and the section is closed: after Findings the heading of the Impression is
written for the model, and an Impression ends the text. What the model said again is gone; that it did is kept (`Writing.closed`).

Where sections are written apart, the search for the Findings ends with the heading of the Impression, and that for the Impression goes on from there.
"""

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, RepetitionPenaltyLogitsProcessor

from emrrg_core.config import DecodeConfig, Section
from emrrg_core.model.inference import Look
from emrrg_core.model.writing import Token, Writing
from emrrg_core.text.sections import FINDINGS, IMPRESSION, SECTIONS, compose, first_repeat, has_impression


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

    def rest_of_heading(self, beam: Beam) -> tuple[int, ...]:
        """What a text lacks of the heading of the Impression."""
        if has_impression(beam.text):
            return ()
        ids = tuple(step.token.id for step in beam.steps)
        begun = next(n for n in range(len(self.heading), -1, -1) if ids[len(ids) - n :] == self.heading[:n])
        return self.heading[begun:]

    def given(self, findings: str) -> Beam:
        """A text whose Findings a reader has written, up to the heading of the Impression. Nothing is known of how its tokens were chosen."""
        text, nothing = compose(findings, "") + IMPRESSION.rstrip(), np.zeros((0, 0), np.float32)
        steps: list[Step] = []
        for token in self.tokenizer(text, add_special_tokens=False).input_ids:
            made = Token(token, self.added_text(steps, token), 0.0, (), nothing, nothing, forced=True)
            steps.append(Step(made, 0.0))
        return Beam(steps=tuple(steps))


@dataclass(eq=False)
class Search:
    """The search for one film: its living beams and what has ended. Greedy search is that of one beam."""

    config: DecodeConfig
    vocabulary: Vocabulary
    beams: list[Beam] = field(default_factory=lambda: [Beam()])
    ended: list[tuple[float, Beam]] = field(default_factory=list)  # (rank, text)
    taken: int = 0  # steps, those in vain too
    over: bool = False
    section: Section | None = None  # that is being written; None: both
    given_up: bool = False
    _findings_ended: bool = True  # by themselves, where the Impression is being written after them

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
            beam, at_end = self.beams[parent], token == self.vocabulary.eos
            if at_end and rank >= k:
                continue
            was_forced = bool(beam.forced)
            if not at_end:
                beam = self._with(beam, token, score, float(log_probs[parent, token]), looks[parent])
            ends = at_end or (self.section is Section.FINDINGS and has_impression(beam.text))
            if ends and rank >= k:
                continue
            within = SECTIONS if self.section is None else (self.section,)
            closed = None if was_forced else close(beam, self.vocabulary, over=ends or last, within=within)
            if closed:
                known = [*self.beams, *(replace(text, forced=(self.vocabulary.eos,)) for _, text in self.ended)]
                double = closed.is_under_way([*known, *(entry.beam for entry in grown)])
                (doubles if double else grown).append(Grown(closed, parent, True))
            elif ends:
                beam = replace(beam, score=score)
                self.ended.append((score / (len(beam.steps) + at_end) ** self.config.length_penalty, beam))
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
        beam, ended = self._best()
        finished = ended and self._findings_ended and self.section is not Section.FINDINGS
        return Writing(tuple(step.token for step in beam.steps), finished, beam.score, beam.closed)

    def _best(self) -> tuple[Beam, bool]:
        """The best text, and whether it has ended by itself."""
        if self.ended and (self.over or not self.beams):
            return max(self.ended, key=lambda entry: entry[0])[1], True
        penalty = self.config.length_penalty
        return max(self.beams, key=lambda beam: beam.score / max(len(beam.steps), 1) ** penalty), False

    def go_on(self) -> None:
        """From the best Findings to the Impression, with a limit of its own. Its heading is written for the model where they ended without."""
        beam, self._findings_ended = self._best()
        self.beams, self.ended = [replace(beam, forced=self.vocabulary.rest_of_heading(beam))], []
        self.taken, self.over, self.section = 0, False, Section.IMPRESSION


_MAY_END = re.compile(r"[.!?:\n]")  # a sentence, or the heading before one


def close(beam: Beam, vocabulary: Vocabulary, *, over: bool, within: Collection[str] = SECTIONS) -> Beam | None:
    """The text taken back to before its first repeated sentence, and what must follow there; None where it repeats none.

    over: the text is whole. A text that has no heading over its Findings gets none over an Impression: it ends. within: sections that may repeat.
    """
    if not over and not _MAY_END.search("".join(step.token.text for step in beam.steps[-2:])):
        return None
    repeat = first_repeat(beam.text, over=over, within=within)
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
