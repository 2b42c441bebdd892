"""Writing drafts. `stream` and `write` are all that others need.

Three parts, as whisper has them: `inference` runs the language model and keeps its cache, `decoding` chooses the next token (greedy or beam search,
filters, closed sections), and here the two meet: the films of a batch are written side by side, and a film that has ended leaves.

Search need not go token by token. What a draft will say can be guessed (`proposals`): the guess is read in one pass, and each of its tokens
stands as long as it is the one that the model itself would have written there; from the first that is not, the model goes on by itself. So a guess
changes how long a draft takes, and nothing else (speculative decoding: Stern et al. 2018, Leviathan et al. 2023). Each beam has a guess of its own;
all of them stand as long as the beams that live on are those that were guessed.

Where sections are separate, a film's Findings are written to their end first. Then its Impression is: the language model reads the film and the
Findings anew, with the Impression's LoRA and projector where it has them, and goes on from there. A batch goes on when all its Findings have ended.
"""

from collections.abc import Callable, Collection, Iterator, Sequence

import torch

from emrrg_core.config import DecodeConfig, Section, Sections
from emrrg_core.errors import ConfigError
from emrrg_core.model.decoding import Search, Vocabulary, candidates_of, scores_of
from emrrg_core.model.emrrg import Emrrg, FilmTokens
from emrrg_core.model.finding_tokens import Finding
from emrrg_core.model.inference import Inference, Reading
from emrrg_core.model.proposals import Proposer
from emrrg_core.model.writing import Writing
from emrrg_core.text.sections import split

# what was read in a film, and the Findings that were written of it -> what the Impression is to be about
Retell = Callable[[Sequence[Finding], str], Sequence[Finding]]
POSITIONS = 512  # read at once at most, over all films: each costs a row of the vocabulary
DISTRUST = 4  # tokens that are guessed at least, after a guess that failed


def stream(model: Emrrg, film: FilmTokens, config: DecodeConfig, proposer: Proposer | None = None) -> Iterator[list[Writing]]:  # fmt: skip
    """Write about b films at once. Yields, after every pass, the best text so far of each film; the last yield is the result.

    film: from `Emrrg.encode`. With beams, a text may change between yields. Each film's text is what it would be alone.
    A text may also go back by a sentence that it has already; the tokens that were written in vain count towards the limit.
    proposer: guesses what is written next; without one, a pass is a token.
    """
    if model.training:
        raise RuntimeError("the model is in training mode; call eval() before drafting")
    task = Task(model, film, config, proposer)
    while not task.over:
        task.step()
        yield [search.writing() for search in task.searches]


def write(model: Emrrg, film: FilmTokens, config: DecodeConfig, proposer: Proposer | None = None) -> list[Writing]:
    """The finished texts of b films at once."""
    result: list[Writing] = []
    for result in stream(model, film, config, proposer):  # noqa: B007 — the last one is wanted
        pass
    return result


def sections_of(model: Emrrg, config: DecodeConfig) -> Sections:
    """How the sections of a draft are written. Raises ConfigError where a checkpoint cannot write them so."""
    own = model.config.sections
    wanted = config.sections or own
    if own is Sections.SEPARATE and wanted is Sections.JOINT:
        raise ConfigError(
            "This checkpoint has a model of its own for each section, so it cannot write both in one go: choose separate."
        )
    told = model.config.queries.depth > 0 and model.config.queries.told
    if own is Sections.JOINT and wanted is Sections.SEPARATE and not told:
        raise ConfigError(
            "This checkpoint reads no findings, so it cannot write the Impression anew from them: choose joint."
        )
    return wanted


class Task:
    """The drafts of a batch under way."""

    @torch.inference_mode()
    def __init__(
        self,
        model: Emrrg,
        film: FilmTokens,
        config: DecodeConfig,
        proposer: Proposer | None,
        *,
        retell: Retell | None = None,
        after: Sequence[str] | None = None,
    ) -> None:
        """retell: where sections are written apart, what the Impression is to be about; None: what was read. after: Findings that stand already, of
        each film; then only the Impressions are written.

        Raises ConfigError as `sections_of`.
        """
        vocabulary, section = Vocabulary.of(model.tokenizer), None
        if after is None:
            section = Section.FINDINGS if sections_of(model, config) is Sections.SEPARATE else None
            self.searches = [Search(config, vocabulary, section=section) for _ in range(len(film))]
        else:
            section = Section.IMPRESSION
            self.searches = [Search(config, vocabulary, [vocabulary.given(text)], section=section) for text in after]
        self._model, self._film, self._retell = model, film, retell
        self._config, self._proposer = config, proposer
        self._findings = film.findings or ((),) * len(film)
        self._begin(film, section or Section.FINDINGS)

    def _begin(self, film: FilmTokens, section: Section) -> None:
        self._inference = Inference(self._model, film, section)
        self._begun = False
        most = POSITIONS if self._config.beams == 1 else DISTRUST  # k beams guessed in vain cost k times as much
        self._most = [most] * len(self.searches)  # tokens that may be guessed of each film

    @property
    def joinable(self) -> bool:
        """Whether another's films may join: all are at the same section, for the language model is one section's at a time."""
        return self._config.beams == 1 and all(search.section is None for search in self.searches)

    @torch.inference_mode()
    def join(self, other: "Task") -> None:
        """Go on with another's films too. Both must be joinable, under way, and of the same settings; films that have ended are left out of both."""
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
            search.over = search.given_up = True
        if rows:
            self._inference.rearrange(rows)

    @property
    def over(self) -> bool:
        return all(search.over for search in self.searches)

    @torch.inference_mode()
    def step(self) -> None:
        """One pass. Rows lie in the order of the films that are still being written, a film's beams together."""
        active = [i for i, search in enumerate(self.searches) if not search.over]
        beams = [beam for i in active for beam in self.searches[i].beams]
        guesses = [guess for i in active for guess in self._guess(i, len(beams))]
        if self._begun:
            rows = [[beam.steps[-1].token.id, *guess] for beam, guess in zip(beams, guesses, strict=True)]
            reading = self._inference.read(rows)
        else:
            texts = [[step.token.id for step in beam.steps] for beam in beams]  # where Findings stand already
            blocks = [[*text, *guess] for text, guess in zip(texts, guesses, strict=True)]
            reading = self._inference.read_prompt(blocks, [len(text) for text in texts])
        self._begun = True
        self._take(active, guesses, reading) if self._config.beams == 1 else self._take_beams(active, guesses, reading)
        if self.over:
            self._go_on_to_impressions()

    def _go_on_to_impressions(self) -> None:
        """Once all Findings have ended, where sections are written apart."""
        waiting = [i for i, s in enumerate(self.searches) if s.section is Section.FINDINGS and not s.given_up]
        if not waiting:
            return
        told = [self._findings[i] for i in waiting]
        for i in waiting:
            self.searches[i].go_on()
        film = self._film.select(waiting)
        if self._retell is not None:
            texts = [self.searches[i].writing().text for i in waiting]
            bodies = [text[slice(*split(text)["findings"])] for text in texts]
            told = [tuple(self._retell(read, body)) for read, body in zip(told, bodies, strict=True)]
            film = self._model.retold(film, told)
            of = dict(zip(waiting, told, strict=True))
            self._findings = tuple(of.get(i, read) for i, read in enumerate(self._findings))
        self._begin(film, Section.IMPRESSION)

    def _guess(self, film: int, rows: int) -> list[list[int]]:
        """A guess for each beam of a film, all of one length: beams go on together. rows: that are read, of all films."""
        search = self.searches[film]
        if self._proposer is None or (self._config.beams > 1 and not self._begun):  # one text becomes several
            return [[] for _ in search.beams]
        # a token is read and chosen besides
        room = min(POSITIONS // rows, self._config.max_new_tokens - search.taken) - 1
        guesses = []
        for beam in search.beams:
            ids = [step.token.id for step in beam.steps]
            guesses.append(list(beam.forced) or self._proposer.propose(self._findings[film], ids, beam.text))
        length = max(min(self._most[film], room, *map(len, guesses)), 0)
        return [guess[:length] for guess in guesses]

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

    def _take_beams(self, active: Sequence[int], guesses: Sequence[Sequence[int]], reading: Reading) -> None:
        """Beams: the k best continuations of every film, token after token as long as each that lives on was guessed where it stands."""
        alive, kept, first = [], [], 0
        for film in active:
            search = self.searches[film]
            rows = list(range(first, first + len(search.beams)))  # where each beam was read
            first += len(rows)
            ahead = len(guesses[rows[0]])
            for i in range(ahead + 1):
                log_probs, ranked = scores_of(reading.logits[rows, i], search.beams, self._config.repetition_penalty)
                (candidates,) = candidates_of(ranked, [search])
                grown = search.grow(candidates, log_probs, [reading.look(row, i) for row in rows])
                rows = [rows[entry.parent] for entry in grown]
                if not grown or i == ahead:
                    break
                tokens = [None if entry.taken_back else entry.beam.steps[-1].token.id for entry in grown]
                if tokens != [guesses[row][i] for row in rows]:
                    break
            self._most[film] = max(DISTRUST, 2 * i)
            alive += rows
            kept += [len(entry.beam.steps) - 1 for entry in grown]
        self._go_on(alive, kept)

    def _go_on(self, rows: Sequence[int], kept: Sequence[int]) -> None:
        if rows:
            self._inference.rearrange(rows)
            self._inference.keep(kept)
