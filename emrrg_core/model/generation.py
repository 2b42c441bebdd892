"""Writing drafts. `stream` and `write` are all that others need.

Three parts, as whisper has them: `inference` runs the language model and keeps its cache, `decoding` chooses the next token (greedy or beam search,
filters, closed sections), and here the two meet: the films of a batch are written side by side, and a film that has ended leaves.

Greedy search need not go token by token. What a draft will say can be guessed (`proposals`): the guess is read in one pass, and each of its tokens
stands as long as it is the one that the model itself would have written there; from the first that is not, the model goes on by itself. So a guess
changes how long a draft takes, and nothing else (speculative decoding: Stern et al. 2018, Leviathan et al. 2023).
"""

from collections.abc import Collection, Iterator, Sequence

import torch

from emrrg_core.config import DecodeConfig
from emrrg_core.model.decoding import Search, Vocabulary, candidates_of, scores_of
from emrrg_core.model.emrrg import Emrrg, FilmTokens
from emrrg_core.model.inference import Inference, Reading
from emrrg_core.model.proposals import Proposer
from emrrg_core.model.writing import Writing

POSITIONS = 512  # read at once at most, over all films: each costs a row of the vocabulary
DISTRUST = 4  # tokens that are guessed at least, after a guess that failed


def stream(model: Emrrg, film: FilmTokens, config: DecodeConfig, proposer: Proposer | None = None) -> Iterator[list[Writing]]:  # fmt: skip
    """Write about b films at once. Yields, after every pass, the best text so far of each film; the last yield is the result.

    film: from `Emrrg.encode`. With beams, a text may change between yields. Each film's text is what it would be alone.
    A text may also go back by a sentence that it has already; the tokens that were written in vain count towards the limit.
    proposer: guesses what is written next; without one, and with beams, a pass is a token.
    """
    if model.training:
        raise RuntimeError("the model is in training mode; call eval() before drafting")
    task = Task(model, film, config, None if config.beams > 1 else proposer)
    while not task.over:
        task.step()
        yield [search.writing() for search in task.searches]


def write(model: Emrrg, film: FilmTokens, config: DecodeConfig, proposer: Proposer | None = None) -> list[Writing]:
    """The finished texts of b films at once."""
    result: list[Writing] = []
    for result in stream(model, film, config, proposer):  # noqa: B007 — the last one is wanted
        pass
    return result


class Task:
    """The drafts of a batch under way."""

    @torch.inference_mode()
    def __init__(self, model: Emrrg, film: FilmTokens, config: DecodeConfig, proposer: Proposer | None) -> None:
        vocabulary = Vocabulary.of(model.tokenizer)
        self.searches = [Search(config, vocabulary) for _ in range(len(film))]
        self._config, self._proposer = config, proposer
        self._findings = film.findings or ((),) * len(film)
        self._most = [POSITIONS] * len(film)  # tokens that may be guessed of each film
        self._inference = Inference(model, film)
        self._begun = False

    @torch.inference_mode()
    def join(self, other: "Task") -> None:
        """Go on with another's films too. Both must be greedy, under way, and of the same settings; films that have ended are left out of both."""
        for task in (self, other):
            alive = [i for i, search in enumerate(task.searches) if not search.over]
            task.searches = [task.searches[i] for i in alive]
            task._findings = tuple(task._findings[i] for i in alive)
            task._most = [task._most[i] for i in alive]
        self._inference.join(other._inference)
        self.searches += other.searches
        self._findings += other._findings
        self._most += other._most

    @torch.inference_mode()
    def drop(self, searches: Collection[Search]) -> None:
        """Write no further for these."""
        rows: list[int] = []
        first = 0
        for search in self.searches:
            if search.over:
                continue
            if search not in searches:
                rows += range(first, first + len(search.beams))
            first += len(search.beams)
        for search in searches:
            search.over = True
        if rows:
            self._inference.rearrange(rows)

    @property
    def over(self) -> bool:
        return all(search.over for search in self.searches)

    @torch.inference_mode()
    def step(self) -> None:
        """One pass. Rows lie in the order of the films that are still being written, a film's beams together."""
        active = [i for i, search in enumerate(self.searches) if not search.over]
        guesses = [self._guess(i, len(active)) for i in active]
        if self._begun:
            written = [[b.steps[-1].token.id] for i in active for b in self.searches[i].beams]
            rows = [ids + guess for ids, guess in zip(written, guesses, strict=True)] if self._proposer else written
            reading = self._inference.read(rows)
        else:
            reading = self._inference.read_prompt(guesses)
        self._begun = True
        self._take(active, guesses, reading) if self._config.beams == 1 else self._take_beams(active, reading)

    def _guess(self, film: int, films: int) -> list[int]:
        search = self.searches[film]
        if self._proposer is None or len(search.beams) > 1:
            return []
        (beam,) = search.beams
        room = (
            min(POSITIONS // films, self._config.max_new_tokens - search.taken) - 1
        )  # a token is read and chosen besides
        most = max(min(self._most[film], room), 0)
        if beam.forced:
            return list(beam.forced[:most])
        return self._proposer.propose(self._findings[film], [s.token.id for s in beam.steps], beam.text)[:most]

    def _take(self, active: Sequence[int], guesses: Sequence[Sequence[int]], reading: Reading) -> None:
        """Greedy: every token of a guess that the model would have written itself, and the one after these."""
        log_probs = reading.logits.log_softmax(-1)  # (rows, n, vocabulary)
        best, tokens = (part.tolist() for part in log_probs.max(-1))
        alive, kept = [], []
        for row, (film, guess) in enumerate(zip(active, guesses, strict=True)):
            search = self.searches[film]
            for i in range(len(guess) + 1):
                (beam,) = search.beams
                candidates = [(beam.score + best[row][i], 0, tokens[row][i])]
                if beam.forced or self._config.repetition_penalty != 1:
                    _, ranked = scores_of(reading.logits[row, i : i + 1], [beam], self._config.repetition_penalty)
                    (candidates,) = candidates_of(ranked, [search])
                grown = search.grow(candidates, log_probs[row, i : i + 1], [reading.look(row, i)])
                if not grown or grown[0].taken_back or i == len(guess) or grown[0].beam.steps[-1].token.id != guess[i]:
                    break
            self._most[film] = POSITIONS if i == len(guess) else max(DISTRUST, 2 * i)
            if not search.over:
                alive.append(row)
                kept.append(len(search.beams[0].steps) - 1)  # the last token is read in the next pass
        self._go_on(alive, kept)

    def _take_beams(self, active: Sequence[int], reading: Reading) -> None:
        """Beams: the k best continuations of every film."""
        searches = [self.searches[film] for film in active]
        beams = [beam for search in searches for beam in search.beams]
        log_probs, ranked = scores_of(reading.logits[:, 0], beams, self._config.repetition_penalty)
        alive, kept, first = [], [], 0
        for search, candidates in zip(searches, candidates_of(ranked, searches), strict=True):
            rows = range(first, first + len(search.beams))
            first = rows.stop
            looks = [reading.look(row, 0) for row in rows]
            for grown in search.grow(candidates, log_probs[rows.start : rows.stop], looks):
                alive.append(rows[grown.parent])
                kept.append(len(grown.beam.steps) - 1)
        self._go_on(alive, kept)

    def _go_on(self, rows: Sequence[int], kept: Sequence[int]) -> None:
        if rows:
            self._inference.rearrange(rows)
            self._inference.keep(kept)
