"""Writing token by token: the cache changes nothing, beams are right, films do not mix, every token keeps its evidence."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from emrrg_core.config import DecodeConfig
from emrrg_core.model.emrrg import FilmTokens
from emrrg_core.model.finding_tokens import NAMES
from emrrg_core.model.generation import stream, write
from emrrg_core.model.hybrid_decoder import AttentionTrace
from emrrg_core.model.writing import Token
from emrrg_core.text.labeler import sentences
from emrrg_core.text.sections import split
from tests.conftest import surely
from tests.rounding import additions, rounding

SHORT = DecodeConfig(max_new_tokens=12)


@pytest.fixture
def model(build, open_gates, tokenizer):
    """A tiny model with open gates that likes to end its texts after a few tokens: `model(seed)`."""

    def make(seed: int = 0, ending: float = 3.0, **changes):
        made = open_gates(build(seed=seed, **changes), seed=seed + 1).requires_grad_(False)
        made.llm.lm_head.weight[tokenizer.eos_token_id] *= ending
        return made

    return make


@pytest.fixture
def endless(model):
    """A model that never ends a text."""
    made = model()
    made.llm.lm_head.weight[made.tokenizer.eos_token_id] = 0.0
    return made


def ids(writing) -> list[int]:
    return [token.id for token in writing.tokens]


def next_log_probs(model, visual: FilmTokens, written: list[int]) -> torch.Tensor:
    """Log-probabilities of the next token of one film by recomputing everything: (vocabulary,)."""
    prompt, text = model.prompt(visual)
    embeds = torch.cat([prompt, model.embed(torch.tensor([written], dtype=torch.long))], dim=1)
    text = torch.cat([text, torch.ones(1, len(written), dtype=torch.bool)], dim=1)
    return (
        model.llm(inputs_embeds=embeds, visual=model.precompute_keys_values(visual).at(text))
        .logits[0, -1]
        .log_softmax(-1)
    )


# ------------------------------------------------------------------------------------------------------------ greedy


@pytest.mark.parametrize("seed", range(3))
def test_greedy_is_the_argmax_of_an_independent_loop(model, images, seed):
    tiny = model(seed)
    visual, eos = tiny.encode(images[:1]), tiny.tokenizer.eos_token_id
    written: list[int] = []
    total, finished = 0.0, False
    while len(written) < SHORT.max_new_tokens and not finished:
        log_probs = next_log_probs(tiny, visual, written)
        best = int(log_probs.argmax())
        total += float(log_probs[best])
        finished = best == eos
        written += [] if finished else [best]
    (got,) = write(tiny, visual, SHORT)
    assert ids(got) == written
    assert got.finished == finished
    assert got.log_prob == pytest.approx(total, abs=1e-3)


def test_some_tiny_texts_end_by_themselves_and_some_do_not(model, endless, images):
    """The other tests need both kinds."""
    config = replace(SHORT, max_new_tokens=40)
    ended = [write(model(seed), model(seed).encode(images[:1]), config)[0].finished for seed in range(3)]
    assert any(ended)
    assert not write(endless, endless.encode(images[:1]), config)[0].finished


@pytest.mark.parametrize("queries", [False, True])
@pytest.mark.parametrize("beams", [1, 3])
def test_cached_decoding_equals_full_recomputation(model, images, beams, queries):
    """Log-probabilities, gates and attention of the written text under teacher forcing."""
    tiny = model(ending=0.0, queries=queries)
    visual = tiny.encode(images[:1])
    (writing,) = write(tiny, visual, replace(SHORT, beams=beams))
    trace: list[AttentionTrace] = []
    expected = tiny.log_probs(visual, torch.tensor([ids(writing)]), trace=trace)[0]
    assert len(writing.tokens) == SHORT.max_new_tokens
    got = torch.tensor([token.log_prob for token in writing.tokens])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    middle = tiny.config.vision.class_position
    seen = [i for i in range(trace[0].attention["patches"].shape[-1]) if i != middle]
    for layer, look in enumerate(trace):
        for t, token in enumerate(writing.tokens):
            assert token.gates[layer] == pytest.approx(float(look.gate[0, t]), abs=1e-4)
            np.testing.assert_allclose(token.attention[layer], look.attention["patches"][0, t, seen], atol=1e-4)
            if queries:
                np.testing.assert_allclose(token.on_findings[layer], look.attention["findings"][0, t], atol=1e-4)


def test_the_end_symbol_stops_the_text_and_is_not_part_of_it(model, images):
    tiny = model(ending=50.0)
    found = [write(tiny, tiny.encode(images[i : i + 1]), replace(SHORT, max_new_tokens=60))[0] for i in range(3)]
    assert all(writing.finished for writing in found)
    assert all(tiny.tokenizer.eos_token_id not in ids(writing) for writing in found)
    assert not any("</s>" in writing.text for writing in found)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_text_cut_at_the_limit_is_not_finished(endless, images, beams):
    (writing,) = write(endless, endless.encode(images[:1]), DecodeConfig(max_new_tokens=5, beams=beams))
    assert not writing.finished
    assert len(writing.tokens) == 5
    assert writing.log_prob == pytest.approx(sum(token.log_prob for token in writing.tokens), abs=1e-3)


def test_a_model_that_ends_at_once_writes_nothing(model, images):
    tiny = model()
    eos = tiny.tokenizer.eos_token_id
    hidden: list[torch.Tensor] = []
    hook = tiny.llm.model.norm.register_forward_hook(lambda *args: hidden.append(args[-1][0, -1]))
    write(tiny, tiny.encode(images[:1]), DecodeConfig(max_new_tokens=1))
    hook.remove()
    tiny.llm.lm_head.weight[eos] = hidden[0].clone() * 10
    (writing,) = write(tiny, tiny.encode(images[:1]), SHORT)
    assert (writing.tokens, writing.text, writing.finished) == ((), "", True)


def test_every_step_yields_the_text_so_far(endless, images):
    texts = [writing.tokens for (writing,) in stream(endless, endless.encode(images[:1]), SHORT)]
    assert [len(tokens) for tokens in texts] == list(range(1, 13))
    assert all([t.id for t in tokens] == [t.id for t in texts[-1][: len(tokens)]] for tokens in texts)


def test_the_same_film_gives_the_same_text(tiny, images):
    one, two = (write(tiny, tiny.encode(images[:1]), SHORT)[0] for _ in range(2))
    assert [t.log_prob for t in one.tokens] == [t.log_prob for t in two.tokens]


def test_a_model_in_training_mode_does_not_draft(tiny, images):
    tiny.train()
    with pytest.raises(RuntimeError, match="training mode"):
        write(tiny, tiny.encode(images[:1]), SHORT)


# ------------------------------------------------------------------------------------------------------------- beams


@pytest.mark.parametrize("seed", range(6))
def test_beam_search_is_an_independent_search_over_whole_texts(model, images, seed):
    """A plain beam search that recomputes everything from the start for every candidate."""
    tiny, k, limit = model(seed, ending=5.0), 3, 6
    visual, eos = tiny.encode(images[:1]), tiny.tokenizer.eos_token_id
    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    for _ in range(limit):
        grown = [
            (score + float(log_prob), [*written, token])
            for score, written in beams
            for token, log_prob in enumerate(next_log_probs(tiny, visual, written))
        ]
        grown.sort(key=lambda text: -text[0])
        ended += [text for text in grown[:k] if text[1][-1] == eos]
        beams = [text for text in grown[: 2 * k] if text[1][-1] != eos][:k]
        if len(ended) >= k:
            break
    best = max(ended or beams, key=lambda text: text[0] / len(text[1]))
    (got,) = write(tiny, visual, DecodeConfig(beams=k, max_new_tokens=limit))
    assert ids(got) == [token for token in best[1] if token != eos]
    assert got.finished == bool(ended)
    assert got.log_prob == pytest.approx(best[0], abs=1e-3)


def test_beam_search_finds_texts_at_least_as_probable_as_greedys(model, images):
    """Not a law for a single text (a beam may lose greedy's path early), so one in ten may be worse, and most are better."""
    gains = []
    for seed in range(16):
        tiny = model(seed)
        visual = tiny.encode(images)
        config = DecodeConfig(max_new_tokens=25, length_penalty=0.0)
        pairs = zip(write(tiny, visual, config), write(tiny, visual, replace(config, beams=4)), strict=True)
        gains += [wide.log_prob - greedy.log_prob for greedy, wide in pairs if greedy.finished == wide.finished]
    assert len(gains) >= 30
    assert sum(gain < -1e-4 for gain in gains) <= len(gains) / 10
    assert sum(gain > 1e-4 for gain in gains) > len(gains) / 2


def test_a_length_penalty_above_1_favours_longer_texts(model, images):
    lengths = {0.0: 0, 3.0: 0}
    for seed in range(6):
        tiny = model(seed)
        for penalty in lengths:
            config = DecodeConfig(beams=4, max_new_tokens=40, length_penalty=penalty)
            lengths[penalty] += sum(len(w.tokens) for w in write(tiny, tiny.encode(images), config))
    assert lengths[3.0] > lengths[0.0]


@pytest.mark.parametrize("queries", [False, True])
@pytest.mark.parametrize("beams", [1, 3])
def test_films_written_together_get_the_texts_they_get_alone(model, images, beams, queries):
    config = DecodeConfig(max_new_tokens=30, beams=beams)
    for seed in range(3):
        tiny = model(seed, queries=queries)
        visual = tiny.encode(images)
        together = write(tiny, visual, config)
        alone = [write(tiny, visual.select([i]), config)[0] for i in range(len(images))]
        assert [ids(w) for w in together] == [ids(w) for w in alone]
        for ours, own in zip(together, alone, strict=True):
            assert ours.finished == own.finished
            assert ours.log_prob == pytest.approx(own.log_prob, abs=1e-3)
            for a, b in zip(ours.tokens, own.tokens, strict=True):
                assert a.log_prob == pytest.approx(b.log_prob, abs=1e-4)
                np.testing.assert_allclose(a.attention, b.attention, atol=1e-4)
                np.testing.assert_allclose(a.on_findings, b.on_findings, atol=1e-4)


def test_films_of_one_batch_end_at_their_own_steps(model, images):
    """The batch test means little unless films really end apart."""
    lengths = {len(w.tokens) for seed in range(3) for w in write(model(seed), model(seed).encode(images), SHORT)}
    assert len(lengths) > 1


def test_a_text_that_ends_beyond_the_first_k_candidates_has_not_ended(endless, images):
    """Of two beams, "b" would end as the third candidate: were it taken, two had ended, and "a" would win before "ac" can end."""
    a, b, c, eos = 65, 66, 67, endless.tokenizer.eos_token_id
    steps = iter([[{a: 0.5, b: 0.45}], [{eos: 0.5, c: 0.45}, {eos: 0.4}], [{eos: 0.99}] * 2])

    def script(_module, _inputs, logits):
        probabilities = torch.zeros_like(logits)
        for row, wanted in enumerate(next(steps)):
            probabilities[row] = (1 - sum(wanted.values())) / (logits.shape[1] - len(wanted))
            for token, probability in wanted.items():
                probabilities[row, token] = probability
        return probabilities.log()

    endless.llm.lm_head.register_forward_hook(script)
    (got,) = write(endless, endless.encode(images[:1]), replace(SHORT, beams=2))
    assert (ids(got), got.finished) == ([a, c], True)


# ------------------------------------------------------------------------------------------------- repeated sentences


class Loop:
    """Makes a model say " c. d! c. d! ..." without end: every token makes the one after it likelier by `pull`."""

    def __init__(self, model, pull: float = 30.0, start: str = "Findings:") -> None:
        self.model, self.pull = model, pull
        said = model.tokenizer.encode(f"{start} c. d! c", add_special_tokens=False)
        self.first, self.next = said[:1], dict(pairwise(said))  # first: one for every film
        assert list(pairwise(said)) == [(token, self.next[token]) for token in said[:-1]]  # each has one successor
        self.next |= dict(pairwise(model.tokenizer.encode("\nImpression:", add_special_tokens=False)))
        self.read: list[list[int]] = []  # by row; more than one token is the prompt
        model.llm.get_input_embeddings().register_forward_hook(
            lambda _m, args, _o: setattr(self, "read", args[0].tolist())
        )
        model.llm.lm_head.register_forward_hook(self._pulled)

    def _pulled(self, _module, _inputs, logits):
        logits = logits.clone()
        for row, before in enumerate(self.read):
            following = self.first[row % len(self.first)] if len(before) > 1 else self.next.get(before[0])
            if following is not None:
                logits[row, following] += self.pull
        return logits

    def reads(self, visual: FilmTokens, written: list[int]) -> tuple[torch.Tensor, list[AttentionTrace]]:
        """What the same looping model expects after each token of a text that it reads at once: (tokens + 1, vocabulary) log-probabilities."""
        prompt, is_text = self.model.prompt(visual)
        embeds = torch.cat([prompt, self.model.embed(torch.tensor([written]))], dim=1)
        is_text = torch.cat([is_text, torch.ones(1, len(written), dtype=torch.bool)], dim=1)
        trace: list[AttentionTrace] = []
        seen = self.model.precompute_keys_values(visual).at(is_text, trace=trace)
        hidden = self.model.llm.get_decoder()(inputs_embeds=embeds, visual=seen).last_hidden_state[0]
        self.read = [[0, 0], *([token] for token in written)]
        at = prompt.shape[1] - 1
        trace = [layer.at(slice(at, None)) for layer in trace]
        return self.model.llm.lm_head(hidden[at:]).log_softmax(-1), trace


LONG = DecodeConfig(max_new_tokens=60)


def said_twice(text: str) -> list[str]:
    """Sentences that stand twice in a section."""
    bodies = [text[slice(*span)] for span in split(text).values()]
    return [
        s
        for body in bodies
        for s, times in Counter(body[slice(*span)] for span in sentences(body)).items()
        if times > 1
    ]


def assert_is_what_is_read_at_once(loop: Loop, visual: FilmTokens, writing) -> None:
    """Log-probability, gates and attention of every token are those of a model that is given the text as it stands."""
    expected, trace = loop.reads(visual, ids(writing))
    middle = loop.model.config.vision.class_position
    seen = [i for i in range(trace[0].attention["patches"].shape[-1]) if i != middle]
    most = rounding(1, additions(loop.model))
    for t, token in enumerate(writing.tokens):
        assert token.log_prob == pytest.approx(float(expected[t, token.id]), rel=most, abs=most)
        for layer, look in enumerate(trace):
            assert token.gates[layer] == pytest.approx(float(look.gate[0, t]), abs=most)
            np.testing.assert_allclose(token.attention[layer], look.attention["patches"][0, t, seen], atol=most)
            if "findings" in look.attention:
                np.testing.assert_allclose(token.on_findings[layer], look.attention["findings"][0, t], atol=most)


@pytest.mark.parametrize("queries", [False, True])
def test_a_looping_model_goes_on_to_the_impression_and_ends(model, images, queries):
    tiny = model(queries=queries)
    tiny.llm.lm_head.weight[tiny.tokenizer.eos_token_id] = 0.0
    loop, visual = Loop(tiny), tiny.encode(images[:1])
    (got,) = write(tiny, visual, LONG)
    assert got.text == "Findings: c. d!\nImpression: c. d!"
    assert (got.finished, got.closed) == (True, ("findings", "impression"))
    assert "".join(token.text for token in got.tokens if token.forced) == "\nImpression:"
    assert_is_what_is_read_at_once(loop, visual, got)
    # the forced heading and the forced end count as the model sees them
    end = float(loop.reads(visual, ids(got))[0][-1, tiny.tokenizer.eos_token_id])
    assert got.log_prob == pytest.approx(sum(token.log_prob for token in got.tokens) + end, abs=1e-3)


def test_the_heading_is_forced_in_the_tokens_of_a_report_read_at_once(endless, images, tokenizer):
    Loop(endless)
    (got,) = write(endless, endless.encode(images[:1]), LONG)
    assert ids(got) == tokenizer.encode(got.text, add_special_tokens=False)


def test_what_follows_a_sentence_taken_back_is_as_if_it_had_never_been_written(endless, images):
    """After the heading the model is let go: it writes what it writes when it is given the text without the sentence."""
    loop, visual = Loop(endless), endless.encode(images[:1])
    for (writing,) in stream(endless, visual, replace(LONG, max_new_tokens=30)):
        if writing.closed:
            loop.pull = 0.0
    heading = max(i for i, token in enumerate(writing.tokens) if token.forced)
    assert (writing.closed, len(writing.tokens) - heading > 10) == (("findings",), True)
    expected, _ = loop.reads(visual, ids(writing))
    assert ids(writing)[heading + 1 :] == expected[heading + 1 : -1].argmax(-1).tolist()
    loop.pull = 30.0
    before = replace(writing, tokens=writing.tokens[: heading - 3])
    assert_is_what_is_read_at_once(loop, visual, before)
    after = [float(expected[t, token.id]) for t, token in enumerate(writing.tokens)][heading + 1 :]
    most = rounding(1, additions(endless))
    np.testing.assert_allclose([t.log_prob for t in writing.tokens[heading + 1 :]], after, rtol=most, atol=most)


@pytest.mark.parametrize("queries", [False, True])
@pytest.mark.parametrize("beams", [1, 2])
def test_films_that_are_taken_back_at_different_steps_get_the_texts_they_get_alone(
    model, images, tokenizer, beams, queries
):
    tiny = model(queries=queries)
    tiny.llm.lm_head.weight[tokenizer.eos_token_id] = 0.0
    loop, visual, config = Loop(tiny), tiny.encode(images), replace(LONG, beams=beams)
    starts = loop.first = [*loop.first, *tokenizer.encode(" d:", add_special_tokens=False)]
    together = write(tiny, visual, config)
    for i, ours in enumerate(together):
        loop.first = [starts[i]]
        (own,) = write(tiny, visual.select([i]), config)
        assert (ids(ours), ours.finished, ours.closed) == (ids(own), own.finished, own.closed)
        assert ours.log_prob == pytest.approx(own.log_prob, abs=1e-3)
        assert_is_what_is_read_at_once(loop, visual.select([i]), ours)
        assert not said_twice(ours.text)
    assert any(ours.closed for ours in together)  # it means little unless some were
    if beams == 1:
        assert [w.text for w in together] == ["Findings: c. d!\nImpression: c. d!", " d! c.", ": c. d!"]


@pytest.mark.parametrize("pull", [7.0, 30.0])
def test_beams_never_say_a_sentence_twice(endless, images, pull):
    loop, visual = Loop(endless, pull), endless.encode(images[:1])
    for beams in (2, 3, 4):
        (got,) = write(endless, visual, replace(LONG, beams=beams))
        assert not said_twice(got.text)
        assert_is_what_is_read_at_once(loop, visual, got)


def test_a_sentence_taken_back_leaves_the_stream(endless, images):
    Loop(endless)
    texts = [writing.text for (writing,) in stream(endless, endless.encode(images[:1]), LONG)]
    assert "Findings: c. d! c" in texts  # until it is complete, nobody knows
    assert texts[texts.index("Findings: c. d! c") + 1] == "Findings: c. d!"
    assert not any(said_twice(text) for text in texts)


@pytest.mark.parametrize("limit", range(5, 25))
def test_a_text_cut_at_any_limit_says_nothing_twice(endless, images, limit):
    Loop(endless)
    (got,) = write(endless, endless.encode(images[:1]), DecodeConfig(max_new_tokens=limit))
    assert not said_twice(got.text)
    assert len(got.tokens) <= limit
    assert got.finished == (got.closed == ("findings", "impression") and limit >= 20)


def test_a_text_without_headings_ends_where_it_repeats_itself(endless, images):
    """Models that write no sections are given no heading."""
    Loop(endless, start=" t?")
    (got,) = write(endless, endless.encode(images[:1]), LONG)
    assert (got.text, got.finished, got.closed) == (" t? c. d!", True, ("findings",))


# ------------------------------------------------------------------------------------------------------- repetition


def test_the_repetition_penalty_makes_written_tokens_less_likely(endless, images):
    visual = endless.encode(images[:1])
    config = DecodeConfig(max_new_tokens=30)
    (free,) = write(endless, visual, config)
    (penalised,) = write(endless, visual, replace(config, repetition_penalty=5.0))
    assert len(set(ids(penalised))) > len(set(ids(free)))


def test_the_repetition_penalty_is_the_usual_one(endless, images):
    """Keskar et al. 2019: a written token's logit is divided by the penalty where positive, multiplied where negative."""
    visual, penalty = endless.encode(images[:1]), 2.0
    written: list[int] = []
    for _ in range(10):
        prompt, text = endless.prompt(visual)
        embeds = torch.cat([prompt, endless.embed(torch.tensor([written], dtype=torch.long))], dim=1)
        text = torch.cat([text, torch.ones(1, len(written), dtype=torch.bool)], dim=1)
        logits = endless.llm(inputs_embeds=embeds, visual=endless.precompute_keys_values(visual).at(text)).logits[0, -1]
        for token in set(written):
            logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
        written.append(int(logits.argmax()))
    (got,) = write(endless, visual, DecodeConfig(max_new_tokens=10, repetition_penalty=penalty))
    assert ids(got) == written


def test_recorded_log_probs_are_the_models_own_also_under_a_penalty(endless, images):
    visual = endless.encode(images[:1])
    (writing,) = write(endless, visual, replace(SHORT, repetition_penalty=3.0))
    expected = endless.log_probs(visual, torch.tensor([ids(writing)]))[0]
    torch.testing.assert_close(torch.tensor([t.log_prob for t in writing.tokens]), expected, rtol=0, atol=1e-4)


# --------------------------------------------------------------------------------------------------------- the film


def test_another_image_changes_the_probability_of_every_generated_token(endless, images):
    """S1, E13: under another film the same text is written with other probabilities, from the first token to the last."""
    visual = endless.encode(images)
    (writing,) = write(endless, visual.select([0]), SHORT)
    own = torch.tensor([token.log_prob for token in writing.tokens])
    other = endless.log_probs(visual.select([1]), torch.tensor([ids(writing)]))[0]
    assert ((own - other).abs() > 1e-3).all()


def test_another_films_findings_change_the_probability_of_every_generated_token(model, images):
    tiny = surely(model(ending=0.0, queries=True))
    film = tiny.encode(images)
    assert film.findings[0] != film.findings[1]
    own, other = film.select([0]), film.select([1])
    (writing,) = write(tiny, own, SHORT)
    assert len(writing.tokens) == SHORT.max_new_tokens
    before = torch.tensor([token.log_prob for token in writing.tokens])
    after = tiny.log_probs(own.exchanged(other, findings=True), torch.tensor([ids(writing)]))[0]
    assert ((before - after).abs() > 1e-3).all()


@pytest.mark.parametrize("beams", [1, 3])
def test_keys_and_values_of_the_film_are_computed_once_a_draft(endless, images, beams):
    visual, calls = endless.encode(images), []
    for i, layer in endless.hybrid.items():
        layer.kv_proj.register_forward_hook(lambda *_, i=i: calls.append(i))
    write(endless, visual, replace(SHORT, beams=beams))
    assert calls == endless.hybrid.indices()


def test_every_token_keeps_its_gates_and_its_attention_over_the_patches(endless, images):
    (writing,) = write(endless, endless.encode(images[:1]), SHORT)
    for token in writing.tokens:
        assert len(token.gates) == 2
        assert any(token.gates)
        assert token.attention.shape == (2, 16)
        assert token.attention.dtype == np.float32
        assert (token.attention >= 0).all()
        assert (token.attention.sum(-1) < 1).all()  # the rest is the class token's
        assert token.attention.std() > 1e-3
        assert token.log_prob <= 0


def test_every_token_keeps_its_attention_over_the_finding_tokens_and_none_on_what_is_not_assessed(model, images):
    tiny = surely(model(ending=0.0, queries=True))
    (writing,) = write(tiny, tiny.encode(images[:1]), SHORT)
    fracture = list(NAMES).index("fracture")
    for token in writing.tokens:
        assert token.attention.shape == (2, 16)
        assert token.on_findings.shape == (2, len(NAMES))
        assert (token.on_findings[:, fracture] == 0).all()
        assert (np.delete(token.on_findings, fracture, axis=1) > 0).all()
        assert (token.attention.sum(-1) + token.on_findings.sum(-1) < 1).all()


@pytest.mark.parametrize(("queries", "told"), [(False, 0), (True, len(NAMES))])
def test_a_model_without_hybrid_layers_drafts_without_evidence(build, images, queries, told):
    """every_n = 0 turns the hybrid decoder off: the ablation must still write."""
    plain = build(hybrid={"every_n": 0}, queries=queries)
    for writing in write(plain, plain.encode(images[:2]), SHORT):
        assert writing.tokens
        assert {token.gates for token in writing.tokens} == {()}
        assert {token.attention.shape for token in writing.tokens} == {(0, 16)}
        assert {token.on_findings.shape for token in writing.tokens} == {(0, told)}


# ------------------------------------------------------------------------------------------------------------ letters


def texts(model, wanted: list[int], images) -> list[str]:
    """The token texts of a model that is made to write exactly these tokens: each step's hidden state picks the next."""
    step = iter(wanted)
    hook = model.llm.lm_head.register_forward_hook(
        lambda _m, _i, logits: torch.full_like(logits, -10.0).index_fill(1, torch.tensor([next(step)]), 10.0)
    )
    (writing,) = write(model, model.encode(images[:1]), DecodeConfig(max_new_tokens=len(wanted)))
    hook.remove()
    assert ids(writing) == wanted
    return [token.text for token in writing.tokens]


@pytest.mark.parametrize(
    "text", ["The heart is normal.", " café, 37 °C", "– 心臓 normal 🫁!", "Findings: a\nImpression: b"]
)
def test_the_texts_of_the_tokens_joined_are_the_text(endless, images, tokenizer, text):
    wanted = tokenizer.encode(text, add_special_tokens=False)
    assert "".join(texts(endless, wanted, images)) == text


def test_bytes_of_an_unfinished_character_wait_for_the_token_that_ends_it(endless, images, tokenizer):
    wanted = tokenizer.encode("a心b", add_special_tokens=False)
    assert texts(endless, wanted, images) == ["a", "", "", "心", "b"]
    assert texts(endless, wanted[:3], images) == ["a", "", ""]


def test_bytes_that_are_no_character_do_not_stop_the_text(endless, images, tokenizer):
    heart = tokenizer.encode("心", add_special_tokens=False)
    letter = tokenizer.encode("b", add_special_tokens=False)
    got = texts(endless, [heart[0], *letter, heart[0], heart[1], *letter, *heart], images)
    assert "".join(got).replace("\N{REPLACEMENT CHARACTER}", "") == "bb心"


def test_special_tokens_leave_no_text(endless, images, tokenizer):
    wanted = [*tokenizer.encode("a", add_special_tokens=False), tokenizer.bos_token_id]
    assert texts(endless, wanted, images) == ["a", ""]


def test_a_token_is_a_plain_record():
    token = Token(5, "a", -0.5, (0.1,), np.zeros((1, 4), np.float32), np.zeros((1, 0), np.float32))
    with pytest.raises(AttributeError):
        token.text = "b"
