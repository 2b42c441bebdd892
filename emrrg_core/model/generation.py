"""Writing drafts token by token. `stream` and `write` are all that others need.

Three parts, as whisper has them: `inference` runs the language model and keeps its cache, `decoding` chooses the next token (greedy or beam search,
filters, closed sections), and here the two meet: the films of a batch are written side by side, and a film that has ended leaves.
"""

from collections.abc import Iterator

import torch

from emrrg_core.config import DecodeConfig
from emrrg_core.model.decoding import Search, Vocabulary, candidates_of, scores_of
from emrrg_core.model.emrrg import Emrrg, FilmTokens
from emrrg_core.model.inference import Inference, Reading
from emrrg_core.model.writing import Writing


@torch.inference_mode()
def stream(model: Emrrg, film: FilmTokens, config: DecodeConfig) -> Iterator[list[Writing]]:
    """Write about b films at once. Yields, after every step, the best text so far of each film; the last yield is the result.

    film: from `Emrrg.encode`. With beams, a text may change between yields. Each film's text is what it would be alone.
    A text may also go back by a sentence that it has already; the tokens that were written in vain count towards the limit.
    """
    if model.training:
        raise RuntimeError("the model is in training mode; call eval() before drafting")
    vocabulary = Vocabulary.of(model.tokenizer)
    searches = [Search(config, vocabulary) for _ in range(len(film))]
    inference = Inference(model, film)
    reading = inference.read_prompt()
    for step in range(1, config.max_new_tokens + 1):
        last = step == config.max_new_tokens
        _step(searches, inference, reading, config, last=last)
        yield [search.writing() for search in searches]
        if all(search.over for search in searches):
            return
        reading = inference.read([b.steps[-1].token.id for s in searches if not s.over for b in s.beams])


def _step(searches: list[Search], inference: Inference, reading: Reading, config: DecodeConfig, *, last: bool) -> None:
    """One token more for every film that is still being written. Their rows lie in the order of the films."""
    active = [search for search in searches if not search.over]
    beams = [beam for search in active for beam in search.beams]
    log_probs, ranked = scores_of(reading.logits, beams, config.repetition_penalty)
    grown, first = [], 0
    for search, candidates in zip(active, candidates_of(ranked, active), strict=True):
        width = len(search.beams)
        grown += search.grow(candidates, reading, log_probs, first, last=last)
        first += width
    if grown:
        inference.rearrange([entry.row for entry in grown])
        for row, entry in enumerate(grown):
            if entry.taken_back:
                inference.take_back(row, len(entry.beam.steps))


def write(model: Emrrg, film: FilmTokens, config: DecodeConfig) -> list[Writing]:
    """The finished texts of b films at once."""
    result: list[Writing] = []
    for result in stream(model, film, config):  # noqa: B007 — the last one is wanted
        pass
    return result
