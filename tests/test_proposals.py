"""Guesses: whatever is guessed, the draft is the same to the last token, with the same evidence; good guesses save passes."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from emrrg_core.config import DecodeConfig
from emrrg_core.errors import CheckpointError
from emrrg_core.model.emrrg import FilmTokens
from emrrg_core.model.finding_tokens import ABNORMAL, Finding, Presence
from emrrg_core.model.generation import DISTRUST, POSITIONS, stream, write
from emrrg_core.model.proposals import FILE, Phrasebook, keys
from emrrg_core.model.writing import Writing
from tests.test_decode import Loop

SHORT = DecodeConfig(max_new_tokens=24)


class Guess:
    """Guesses what it is given for each text that it is asked about, and keeps how much was asked."""

    def __init__(self, answer) -> None:
        self.answer, self.asked = answer, []

    def propose(self, findings: Sequence[Finding], ids: Sequence[int], text: str) -> list[int]:
        self.asked.append(list(ids))
        return self.answer(list(ids))


@pytest.fixture
def model(build, open_gates, tokenizer):
    """A tiny model with open gates and finding tokens: `model(seed)`."""

    def make(seed: int = 0, ending: float = 3.0, **changes):
        made = open_gates(build(seed=seed, queries=True, **changes), seed=seed + 1).requires_grad_(False)
        made.llm.lm_head.weight[tokenizer.eos_token_id] *= ending
        return made

    return make


def ids(writing: Writing) -> list[int]:
    return [token.id for token in writing.tokens]


def assert_same(guessed: Sequence[Writing], plain: Sequence[Writing]) -> None:
    for one, other in zip(guessed, plain, strict=True):
        assert ids(one) == ids(other)
        assert (one.text, one.finished, one.closed) == (other.text, other.finished, other.closed)
        assert [t.forced for t in one.tokens] == [t.forced for t in other.tokens]
        for a, b in zip(one.tokens, other.tokens, strict=True):
            assert a.log_prob == pytest.approx(b.log_prob, abs=1e-4)
            np.testing.assert_allclose(a.gates, b.gates, atol=1e-4)
            np.testing.assert_allclose(a.attention, b.attention, atol=1e-4)
            np.testing.assert_allclose(a.on_findings, b.on_findings, atol=1e-4)


def passes(model, film: FilmTokens, guess, config: DecodeConfig = SHORT) -> tuple[list[Writing], int]:
    steps = list(stream(model, film, config, guess))
    return steps[-1], len(steps)


@pytest.mark.parametrize("seed", range(3))
def test_a_right_guess_is_read_in_one_pass(model, images, seed):
    tiny = model(seed)
    film = tiny.encode(images[:1])
    plain = write(tiny, film, SHORT)
    known = [*ids(plain[0]), *([tiny.tokenizer.eos_token_id] if plain[0].finished else [])]
    found, count = passes(tiny, film, Guess(lambda written: known[len(written) :]))
    assert_same(found, plain)
    assert count == 1


@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_a_guess_that_goes_wrong_leaves_nothing(model, images, every):
    """Of the guessed tokens every second, third … is another than the model's."""
    tiny = model(ending=0.0)
    film = tiny.encode(images[:1])
    plain = write(tiny, film, SHORT)
    known = ids(plain[0])
    wrong = [token if (i + 1) % every else (token + 1) % 200 for i, token in enumerate(known)]
    found, count = passes(tiny, film, Guess(lambda written: wrong[len(written) :]))
    assert_same(found, plain)
    assert count == -(-len(known) // every)


def test_films_of_a_batch_take_what_is_right_of_their_own_guesses(model, images):
    """Rows then hold texts of unequal length, and films end at unequal passes."""
    for seed in range(3):
        tiny = model(seed)
        film = tiny.encode(images)
        plain = write(tiny, film, SHORT)
        rng = np.random.default_rng(seed)

        def near(written: list[int], plain=plain, rng=rng) -> list[int]:
            """The rest of a text that begins so, wrong from somewhere on."""
            known = next((ids(w) for w in plain if ids(w)[: len(written)] == written), [])
            rest, at = known[len(written) :], int(rng.integers(0, 8))
            return [*rest[:at], *((token + 1) % 200 for token in rest[at:])]

        found, count = passes(tiny, film, Guess(near))
        assert_same(found, plain)
        assert count < max(len(w.tokens) for w in plain)


@pytest.mark.parametrize("limit", [1, 2, 5, 7])
def test_the_limit_holds_within_a_guess(model, images, limit):
    tiny, config = model(ending=0.0), replace(SHORT, max_new_tokens=limit)
    film = tiny.encode(images[:1])
    known = ids(write(tiny, film, SHORT)[0])
    found, count = passes(tiny, film, Guess(lambda written: known[len(written) :]), config)
    assert_same(found, write(tiny, film, config))
    assert (len(found[0].tokens), count) == (limit, 1)


def test_a_penalty_counts_within_a_guess(model, images):
    tiny, config = model(ending=0.0), replace(SHORT, repetition_penalty=3.0)
    film = tiny.encode(images[:1])
    plain = write(tiny, film, config)
    known = ids(plain[0])
    assert known != ids(write(tiny, film, SHORT)[0])
    found, count = passes(tiny, film, Guess(lambda written: known[len(written) :]), config)
    assert_same(found, plain)
    assert count == 1


@pytest.mark.parametrize("right", [True, False])
def test_a_section_is_closed_within_a_guess(model, images, right):
    """The model says a sentence for ever, and the guess goes on with it: both are taken back."""
    tiny, config = model(ending=0.0), DecodeConfig(max_new_tokens=60)
    loop, film = Loop(tiny), tiny.encode(images[:1])
    plain = write(tiny, film, config)
    assert plain[0].closed == ("findings", "impression")
    start = tiny.tokenizer.encode("Findings: c. d! c. d! c. d! c. d!", add_special_tokens=False)

    def more(written: list[int]) -> list[int]:
        return start[len(written) :] if right and written == start[: len(written)] else [17, 18]

    # a guess is read at once: then every token is followed by the one that the loop wants after it
    loop.model.llm.lm_head._forward_hooks.clear()
    loop.model.llm.lm_head.register_forward_hook(lambda _m, _i, logits: _pulled(loop, logits))
    assert_same(passes(tiny, film, Guess(more), config)[0], plain)


def _pulled(loop: Loop, logits):
    """As `Loop._pulled`, of every position that is read: after a prompt, the first row is its last position."""
    (read,) = loop.read
    logits = logits.clone()
    before = [None] * (len(logits) - len(read)) + read if len(read) < len(logits) else read[-len(logits) :]
    for row, token in enumerate(before):
        following = loop.first[0] if token is None else loop.next.get(token)
        if following is not None:
            logits[row, following] += loop.pull
    return logits


def test_after_a_guess_that_failed_fewer_tokens_are_guessed_and_after_a_right_one_more(model, images):
    tiny = model(ending=0.0)
    film = tiny.encode(images[:1])
    plain = ids(write(tiny, film, SHORT)[0])
    read = []
    tiny.llm.get_input_embeddings().register_forward_hook(lambda _m, args, _o: read.append(args[0].shape[1]))
    passes(tiny, film, Guess(lambda written: [(plain[len(written)] + 1) % 200] * 19))
    # the prompt's text, a long guess beside it, then a token and a short guess each time until the limit is near
    after = read[read.index(19) + 1 :]
    assert set(after[: -DISTRUST - 1]) == {1 + DISTRUST}
    assert max(after) == 1 + DISTRUST < 19 < POSITIONS


@pytest.mark.parametrize("beams", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_beams_that_are_guessed_are_those_that_would_be_found(model, images, seed, beams):
    """Every beam's guess is right, wrong from somewhere on, or short, as it comes."""
    tiny, config = model(seed), replace(SHORT, beams=beams, length_penalty=2.0)
    film = tiny.encode(images)
    found = list(stream(tiny, film, config))
    rng = np.random.default_rng(seed)
    texts = {tuple(ids(one)) for writings in found for one in writings}

    def near(written: list[int]) -> list[int]:
        """As some text went on that was the best at some step."""
        known = [text for text in sorted(texts) if list(text[: len(written)]) == written]
        rest = list(known[int(rng.integers(len(known)))][len(written) :]) if known else [7, 8, 9]
        return [token + int(rng.random() < 0.1) for token in rest]

    guess = Guess(near)
    assert_same(write(tiny, film, config, guess), found[-1])
    assert guess.asked


def after(token: int) -> int:
    return (token * 7 + 3) % 200


@pytest.mark.parametrize("beams", [2, 3])
def test_right_guesses_save_beams_passes(model, images, beams):
    """After its first token, each beam's next tokens are all but certain, and other than those of the other beams."""
    tiny, config, read = model(ending=0.0), replace(SHORT, beams=beams), []

    def pulled(_module, _inputs, logits):
        if read[-1].numel() == len(logits):  # not after the prompt
            logits = logits.clone()
            logits[range(len(logits)), [after(token) for token in read[-1].flatten().tolist()]] += 30
        return logits

    tiny.llm.get_input_embeddings().register_forward_hook(lambda _m, args, _o: read.append(args[0]))
    tiny.llm.lm_head.register_forward_hook(pulled)
    film = tiny.encode(images[:1])
    plain = list(stream(tiny, film, config))

    def right(written: list[int]) -> list[int]:
        return [after(written[-1]), after(after(written[-1]))]

    found, count = passes(tiny, film, Guess(right), config)
    assert_same(found, plain[-1])
    assert len(found[0].tokens) == len(plain)
    assert count < len(plain) / 2


# -------------------------------------------------------------------------------------------------------------- phrases


def read(name: str, presence: Presence = Presence.PRESENT, **place) -> Finding:
    return Finding(name, presence, 0.9, 0.5, **place)


ILL = (read(ABNORMAL), read("opacity", side="right", zone="lower"), read("effusion", Presence.ABSENT))
WELL = (read(ABNORMAL, Presence.ABSENT), read("opacity", Presence.ABSENT), read("effusion", Presence.ABSENT))
ILL_TEXT = "Findings: There is an airspace opacity in the right lower lung. No pleural effusion.\nImpression: Right lower lung opacity."
WELL_TEXT = "Findings: The lungs are clear. No pleural effusion.\nImpression: No acute disease."


@pytest.fixture
def book(tokenizer) -> Phrasebook:
    other = ILL_TEXT.replace("There is an airspace opacity", "Airspace opacity is seen")
    return Phrasebook.learn([(ILL, ILL_TEXT), (ILL, ILL_TEXT), (ILL, other), (WELL, WELL_TEXT)], tokenizer)


def guessed(book: Phrasebook, findings: Sequence[Finding], text: str) -> str:
    written = book.tokenizer(text, add_special_tokens=False).input_ids
    return book.tokenizer.decode(book.propose(findings, written, text))


@pytest.mark.parametrize(("findings", "text"), [(ILL, ILL_TEXT), (WELL, WELL_TEXT)])
def test_the_whole_draft_is_guessed_from_what_is_read_and_then_what_is_left_of_it(book, findings, text):
    end = book.tokenizer.eos_token
    assert guessed(book, findings, "") == text + end
    for cut in (10, 30, 60):
        start = text[: text.index(" ", cut)]
        assert start + guessed(book, findings, start) == text + end


def test_a_draft_that_takes_another_wording_is_guessed_on_from_there(book):
    start = "Findings: Airspace opacity"
    rest = " is seen in the right lower lung. No pleural effusion.\nImpression: Right lower lung opacity."
    assert guessed(book, ILL, start) == rest + book.tokenizer.eos_token


def test_the_words_of_a_finding_are_moved_to_another_place(book):
    elsewhere = (ILL[0], read("opacity", side="left", zone="lower"), ILL[2])
    moved = ILL_TEXT.replace("right", "left").replace("Right", "Left")
    assert guessed(book, elsewhere, "") == moved + book.tokenizer.eos_token
    start = "Findings: Airspace opacity is"
    assert guessed(book, elsewhere, start).startswith(" seen in the left lower lung. No pleural effusion.")


def test_a_sentence_that_nobody_expected_does_not_end_the_guessing(book):
    start = "Findings: The film is rotated."
    assert (
        guessed(book, ILL, start)
        == " No pleural effusion.\nImpression: Right lower lung opacity." + book.tokenizer.eos_token
    )
    assert guessed(book, ILL, "Findings: The film is rot") == ""


def test_what_the_book_does_not_know_is_not_guessed(book):
    unknown = (ILL[0], ILL[1], read("heart"), ILL[2])
    assert guessed(book, unknown, "") == "Findings: There is an airspace opacity in the right lower lung."
    assert guessed(book, unknown, ILL_TEXT[: ILL_TEXT.index(" No")]) == ""
    # a sentence that begins as a known one is guessed to its end
    assert guessed(book, unknown, "Findings: It is odd. There is an air").startswith(
        "space opacity in the right lower lung."
    )


def test_what_does_not_state_its_finding_is_not_learned(tokenizer):
    wrong = ILL_TEXT.replace("There is an airspace opacity in the right lower lung", "The heart is enlarged")
    book = Phrasebook.learn([(ILL, wrong)], tokenizer)
    assert [key for key in book.wordings if key.startswith("findings")] == []
    assert book.wordings["impression: opacity/right/lower//"] == ("Right lower lung opacity.",)


def test_keys_tell_apart_what_is_told_in_other_words():
    assert keys(ILL) == {
        "findings": ["opacity/right/lower//", "without effusion/"],
        "impression": ["opacity/right/lower//"],
    }
    assert keys(WELL) == {"findings": ["without opacity+effusion/absent"], "impression": ["whole/absent"]}
    likely = (read("opacity", pneumonia=True),)
    assert keys(likely)["impression"] == ["opacity////pneumonia"]


def test_a_book_is_kept_beside_the_weights(book, tokenizer, tmp_path):
    assert Phrasebook.load(tmp_path, tokenizer) is None
    book.save(tmp_path)
    assert Phrasebook.load(tmp_path, tokenizer) == book


@pytest.mark.parametrize(
    "text", ["{", "[]", json.dumps({"schema": "emrrg.phrases/0", "wordings": {}}), '{"schema": 1}']
)
def test_a_damaged_book_is_refused_with_what_to_do(tokenizer, tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(CheckpointError, match=r"train\.phrases, or remove it"):
        Phrasebook.load(tmp_path, tokenizer)
