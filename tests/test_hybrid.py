"""The hybrid decoder is docs/method.md 4: exact at the start, never blind, the film in sight at every step, the right arithmetic."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import DynamicCache, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from emrrg_core.config import Gate, HybridConfig
from emrrg_core.model.hybrid_decoder import MANY, AttentionTrace, HybridDecoder, TokenGroup, Visual
from tests.rounding import assert_alike

GATES = list(Gate)
WARM = [gate for gate in GATES if gate.has_warmup]
SCALAR = [gate for gate in GATES if gate is not Gate.CHANNEL_WISE_DYNAMIC_SIGMOID]
WIDTH, LENGTH, SEEN = 32, 7, 5


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ids(b: int, length: int = LENGTH, seed: int = 2) -> torch.Tensor:
    return torch.randint(3, 250, (b, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def pair(make_llm):
    """A language model and a hybrid decoder beside it: `pair(gate, opened=True)`."""

    def make(
        gate: Gate = Gate.WHOLE_DYNAMIC_TANH_WARMUP, *, opened: bool = False, every_n: int = 2, **changes
    ) -> tuple[LlamaForCausalLM, HybridDecoder]:
        llm = make_llm(**changes)
        torch.manual_seed(4)
        hybrid = HybridDecoder(llm, HybridConfig(gate=gate, every_n=every_n)).requires_grad_(False)
        if opened:
            for name, parameter in hybrid.named_parameters():
                if "warm_up_gate" in name:
                    parameter.fill_(0.8)
                elif "gate_proj" in name:
                    parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(9))
        return llm, hybrid.eval()

    return make


def see(hybrid: HybridDecoder, llm: LlamaForCausalLM, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> Visual:
    """The film of these visual tokens."""
    return hybrid.precompute_keys_values(llm, TokenGroup("patches", tokens, mask))


def steps(llm: LlamaForCausalLM, tokens: torch.Tensor, **call) -> list[torch.Tensor]:
    """Logits of a prefill of three tokens, then of one token at a time."""
    cache, logits = DynamicCache(config=llm.config), []
    for start, stop in [(0, 3), *((i, i + 1) for i in range(3, tokens.shape[1]))]:
        logits.append(llm(tokens[:, start:stop], past_key_values=cache, use_cache=True, **call).logits)
    return logits


# ------------------------------------------------------------------------------------------------ exact at the start


@pytest.mark.parametrize("gate", SCALAR)
def test_a_fresh_scalar_gate_gives_exactly_the_plain_language_model(pair, make_llm, gate):
    """With the warm-up gate at zero, or a gate that starts at zero where there is no warm-up: prefill and every step."""
    plain = make_llm()
    llm, hybrid = pair(gate)
    visual = see(hybrid, llm, noise(2, SEEN, WIDTH))
    expected, got = steps(plain, ids(2)), steps(llm, ids(2), visual=visual)
    assert len(got) == LENGTH - 2
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("padded", [False, True])
def test_many_sequences_are_continued_as_the_plain_language_model_would_but_for_rounding(pair, make_llm, padded):
    """Grouped self-attention, with and without positions that are held out; heads share keys, so a wrong order of heads would show."""
    count = MANY + 1
    plain = make_llm()
    assert plain.config.num_attention_heads > plain.config.num_key_value_heads > 1
    llm, hybrid = pair(Gate.WHOLE_DYNAMIC_TANH_WARMUP)
    visual = see(hybrid, llm, noise(count, SEEN, WIDTH))
    held = torch.ones(count, LENGTH, dtype=torch.long)
    held[::2, 1] = 0 if padded else 1
    logits = []
    for model, call in ((plain, {}), (llm, {"visual": visual})):
        cache = DynamicCache(config=model.config)
        for start, stop in ((0, 3), (3, 4), (4, 5)):
            mask = held[:, :stop] if padded else None
            out = model(ids(count)[:, start:stop], attention_mask=mask, past_key_values=cache, use_cache=True, **call)
        logits.append(out.logits)
    assert_alike(*logits[::-1], llm)


@pytest.mark.parametrize("gate", WARM)
def test_a_shut_warm_up_gate_keeps_whatever_its_other_weights_say_out(pair, make_llm, gate):
    llm, hybrid = pair(gate, opened=True)
    for _, layer in hybrid.items():
        layer.warm_up_gate.zero_()
    assert torch.equal(llm(ids(2), visual=see(hybrid, llm, noise(2, SEEN, WIDTH))).logits, make_llm()(ids(2)).logits)


def test_a_fresh_channel_wise_gate_starts_nearly_shut(pair):
    llm, hybrid = pair(Gate.CHANNEL_WISE_DYNAMIC_SIGMOID)
    trace: list[AttentionTrace] = []
    llm(ids(2), visual=see(hybrid, llm, noise(2, SEEN, WIDTH)).at(trace=trace))
    assert all(0 < float(layer.gate.max()) < 0.06 for layer in trace)


def test_the_language_models_keys_are_unchanged(pair, make_llm):
    plain = make_llm()
    llm, hybrid = pair(opened=True)
    assert list(llm.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(llm.state_dict().values(), plain.state_dict().values(), strict=True))
    assert not any(name.startswith("llm") for name in hybrid.state_dict())


def test_no_bias_appears_in_the_language_models_projections(pair):
    """E15: another family's layer class once brought random q, k and v biases."""
    llm, _ = pair()
    assert [name for name, _ in llm.named_parameters() if "proj.bias" in name] == []


# ------------------------------------------------------------------------------------------------------ never blind


@pytest.mark.parametrize("gate", GATES)
def test_another_image_gives_other_logits_at_prefill_and_at_every_step(pair, gate):
    """S1 and E13: the released decoder never saw the image after prefill, or at all."""
    llm, hybrid = pair(gate, opened=True)
    one, other = (steps(llm, ids(1), visual=see(hybrid, llm, noise(1, SEEN, WIDTH, seed=seed))) for seed in (1, 2))
    assert [bool((a - b).abs().max() > 1e-3) for a, b in zip(one, other, strict=True)] == [True] * (LENGTH - 2)


def test_another_image_after_prefill_is_seen_too(pair):
    """The film must reach the steps themselves, not only what the prefill left in the cache."""
    llm, hybrid = pair(opened=True)
    one, other = (see(hybrid, llm, noise(1, SEEN, WIDTH, seed=seed)) for seed in (1, 2))
    logits = []
    for film in (one, other):
        cache = DynamicCache(config=llm.config)
        llm(ids(1), past_key_values=cache, use_cache=True, visual=one)
        logits.append(llm(ids(1, 1, seed=8), past_key_values=cache, use_cache=True, visual=film).logits)
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_running_without_an_image_raises_also_after_a_call_that_had_one(pair):
    """S4: what was seen must not stay on a module."""
    llm, hybrid = pair(opened=True)
    with pytest.raises(RuntimeError, match="without an image"):
        llm(ids(1))
    llm(ids(1), visual=see(hybrid, llm, noise(1, SEEN, WIDTH)))
    with pytest.raises(RuntimeError, match="without an image"):
        llm(ids(1))


def test_two_films_in_turn_do_not_see_each_other(pair):
    llm, hybrid = pair(opened=True)
    one, other = (see(hybrid, llm, noise(1, SEEN, WIDTH, seed=seed)) for seed in (1, 2))
    alone = llm(ids(1), visual=one).logits
    llm(ids(1), visual=other)
    assert torch.equal(llm(ids(1), visual=one).logits, alone)


def test_a_wrong_number_of_films_raises(pair):
    llm, hybrid = pair(opened=True)
    with pytest.raises(RuntimeError, match="3 sequences look at 2 films"):
        llm(ids(3), visual=see(hybrid, llm, noise(2, SEEN, WIDTH)))


def test_keys_and_values_are_computed_once_whatever_is_read_after(pair):
    llm, hybrid = pair(opened=True)
    calls = []
    for i, layer in hybrid.items():
        layer.kv_proj.register_forward_hook(lambda *_, i=i: calls.append(i))
    steps(llm, ids(1), visual=see(hybrid, llm, noise(1, SEEN, WIDTH)))
    assert calls == hybrid.indices()


# ------------------------------------------------------------------------------------------------ the right arithmetic


def reference(llm: LlamaForCausalLM, hybrid: HybridDecoder, index: int, h: torch.Tensor, v: torch.Tensor):
    """docs/method.md 4.2 for one layer, head by head and position by position: h (l, width), v (seen, width) -> (l, width)."""
    block, new = llm.model.layers[index], hybrid.layers[str(index)]
    attention, k = block.self_attn, llm.config.head_dim
    n, nv = block.input_layernorm(h), block.input_layernorm(v)  # the same norm for text and visual tokens
    cos, sin = llm.model.rotary_emb(h[None], torch.arange(h.shape[0])[None])
    kv_row = new.kv_proj.weight, new.kv_proj.bias
    groups = new.heads // new.kv_heads
    a, ctx = [], []
    for head in range(new.heads):
        shared = head // groups
        own, theirs = slice(head * k, head * k + k), slice(shared * k, shared * k + k)
        q, key = n @ attention.q_proj.weight[own].T, n @ attention.k_proj.weight[theirs].T
        q, key = (t[0, 0] for t in apply_rotary_pos_emb(q[None, None], key[None, None], cos, sin))
        value = n @ attention.v_proj.weight[theirs].T
        scores = (q @ key.T / k**0.5).masked_fill(torch.ones(len(h), len(h)).triu(1).bool(), -torch.inf)
        a.append(scores.softmax(-1) @ value)
        first = shared * 2 * k  # K and V interleaved per head: K of this head, then V of this head (S2)
        key_x = nv @ kv_row[0][first : first + k].T + kv_row[1][first : first + k]
        value_x = nv @ kv_row[0][first + k : first + 2 * k].T + kv_row[1][first + k : first + 2 * k]
        ctx.append((q @ key_x.T / k**0.5).softmax(-1) @ value_x)  # the layer's own query, after its rotation
    if new.gate is Gate.CHANNEL_WISE_DYNAMIC_SIGMOID:
        gates = [torch.sigmoid(new.gate_proj(x)) for x in a]
        mixed = torch.cat([(1 - g) * x + g * c for g, x, c in zip(gates, a, ctx, strict=True)], -1)
    else:
        a, ctx = torch.cat(a, -1), torch.cat(ctx, -1)
        g = a @ new.gate_proj.weight[0] + new.gate_proj.bias
        g = torch.tanh(g) if "tanh" in new.gate.value else g
        g = g * torch.tanh(new.warm_up_gate) if new.gate.has_warmup else g
        mixed = a + g[:, None] * ctx
    out = h + mixed @ attention.o_proj.weight.T  # the gate sits before o_proj
    return out + block.mlp(block.post_attention_layernorm(out))


@pytest.mark.parametrize("gate", GATES)
def test_a_hybrid_layer_computes_the_published_formula(pair, gate):
    llm, hybrid = pair(gate, opened=True, every_n=1, num_hidden_layers=1)
    for _, layer in hybrid.items():
        layer.kv_proj.bias.normal_()
    text, seen = noise(2, LENGTH, WIDTH), noise(2, SEEN, WIDTH, seed=6)
    got = llm.model(inputs_embeds=text, visual=see(hybrid, llm, seen)).last_hidden_state
    expected = torch.stack([llm.model.norm(reference(llm, hybrid, 0, h, v)) for h, v in zip(text, seen, strict=True)])
    assert_alike(got, expected, llm, hybrid)


def test_keys_start_as_copies_of_the_layers_own_head_by_head(pair):
    llm, hybrid = pair()
    k = llm.config.head_dim
    for i, layer in hybrid.items():
        attention = llm.model.layers[i].self_attn
        for head in range(layer.kv_heads):
            rows, at = slice(head * k, head * k + k), head * 2 * k
            assert torch.equal(layer.kv_proj.weight[at : at + k], attention.k_proj.weight[rows])
            assert torch.equal(layer.kv_proj.weight[at + k : at + 2 * k], attention.v_proj.weight[rows])
        assert not layer.kv_proj.bias.any()


def test_keys_of_a_family_with_biases_are_copied_with_their_biases(make_llm):
    llm = make_llm(attention_bias=True)
    for block in llm.model.layers:
        block.self_attn.k_proj.bias.normal_()
        block.self_attn.v_proj.bias.normal_()
    hybrid = HybridDecoder(llm, HybridConfig(every_n=2))
    for i, layer in hybrid.items():
        n = noise(1, SEEN, WIDTH)
        attention = llm.model.layers[i].self_attn
        keys, values = layer.keys_values(n)
        assert_alike(keys.transpose(1, 2).flatten(2), attention.k_proj(n), attention.k_proj)
        assert_alike(values.transpose(1, 2).flatten(2), attention.v_proj(n), attention.v_proj)


@pytest.mark.parametrize(("every_n", "expected"), [(0, []), (1, [0, 1, 2, 3]), (2, [0, 2]), (3, [0, 3]), (8, [0])])
def test_layers_0_n_2n_look_at_the_film(pair, every_n, expected):
    llm, hybrid = pair(opened=True, every_n=every_n)
    trace: list[AttentionTrace] = []
    llm(ids(1), visual=see(hybrid, llm, noise(1, SEEN, WIDTH)).at(trace=trace))
    assert hybrid.indices() == expected
    assert [layer.layer for layer in trace] == expected


@pytest.mark.parametrize("gate", GATES)
def test_what_was_looked_at_is_a_distribution_over_the_visual_tokens(pair, gate):
    llm, hybrid = pair(gate, opened=True)
    trace: list[AttentionTrace] = []
    llm(ids(2), visual=see(hybrid, llm, noise(2, SEEN, WIDTH)).at(trace=trace))
    for layer in trace:
        assert layer.gate.shape == (2, LENGTH)
        assert layer.gate.abs().max() > 0
        torch.testing.assert_close(layer.attention["patches"].sum(-1), torch.ones(2, LENGTH))
        assert layer.attention["patches"].std() > 1e-3


# --------------------------------------------------------------------------------------- batches, padding and beams


def attention_of_layer(llm: LlamaForCausalLM, index: int, run) -> torch.Tensor:
    """What reaches o_proj of one layer."""
    caught: list[torch.Tensor] = []
    hook = llm.model.layers[index].self_attn.o_proj.register_forward_pre_hook(lambda _, x: caught.append(x[0]))
    run()
    hook.remove()
    return caught[0]


def test_visual_positions_and_padding_are_left_as_the_plain_model_has_them(pair, make_llm):
    llm, hybrid = pair(opened=True)
    plain, tokens = make_llm(), ids(2)
    text = torch.ones(2, LENGTH, dtype=torch.bool)
    text[:, 2:4] = False  # the visual tokens in the prompt
    text[1, 5:] = False  # padding
    visual = see(hybrid, llm, noise(2, SEEN, WIDTH)).at(text)
    mixed = attention_of_layer(llm, 0, lambda: llm(tokens, visual=visual))
    alone = attention_of_layer(plain, 0, lambda: plain(tokens))
    assert torch.equal(mixed[~text], alone[~text])
    assert ((mixed - alone).abs().amax(-1) > 1e-4).equal(text)


def test_a_gate_counts_as_shut_where_no_text_stands(pair):
    llm, hybrid = pair(opened=True)
    text = torch.ones(1, LENGTH, dtype=torch.bool)
    text[:, 2:4] = False
    trace: list[AttentionTrace] = []
    llm(ids(1), visual=see(hybrid, llm, noise(1, SEEN, WIDTH)).at(text, trace=trace))
    for layer in trace:
        assert not layer.gate[~text].any()
        assert layer.gate[text].all()


def test_a_sample_that_may_see_nothing_is_left_as_the_plain_model_has_it(pair, make_llm):
    llm, hybrid = pair(opened=True)
    mask = torch.ones(2, SEEN, dtype=torch.bool)
    mask[1] = False
    logits = llm(ids(2), visual=see(hybrid, llm, noise(2, SEEN, WIDTH), mask)).logits
    plain = make_llm()(ids(2)).logits
    assert torch.equal(logits[1], plain[1])
    assert (logits[0] - plain[0]).abs().max() > 1e-3


def test_a_masked_visual_token_is_not_seen(pair):
    llm, hybrid = pair(opened=True)
    seen = noise(1, SEEN, WIDTH)
    mask = torch.tensor([[True, True, True, False, False]])
    fewer = llm(ids(1), visual=see(hybrid, llm, seen[:, :3])).logits
    trace: list[AttentionTrace] = []
    masked = llm(ids(1), visual=see(hybrid, llm, seen, mask).at(trace=trace)).logits
    assert_alike(masked, fewer, llm, hybrid)
    assert not any(layer.attention["patches"][..., 3:].any() for layer in trace)


def test_padding_in_a_batch_does_not_change_a_samples_logits(pair):
    llm, hybrid = pair(opened=True)
    tokens, seen = ids(2), noise(2, SEEN, WIDTH)
    real = torch.ones(2, LENGTH, dtype=torch.bool)
    real[0, 4:] = False
    batch = llm(tokens, attention_mask=real.long(), visual=see(hybrid, llm, seen).at(real)).logits
    alone = llm(tokens[:1, :4], visual=see(hybrid, llm, seen[:1])).logits
    assert_alike(batch[:1, :4], alone, llm, hybrid)


def test_repeated_films_serve_the_beams_of_each_sample(pair):
    llm, hybrid = pair(opened=True)
    seen, tokens = noise(2, SEEN, WIDTH), ids(6)
    beams = llm(tokens, visual=see(hybrid, llm, seen).repeat(3)).logits
    each = llm(tokens, visual=see(hybrid, llm, seen.repeat_interleave(3, 0))).logits
    assert_alike(beams, each, llm, hybrid)


def test_selected_films_come_in_the_order_asked_for_with_their_masks(pair):
    llm, hybrid = pair(opened=True)
    mask = torch.tensor([[True] * SEEN, [True, False, True, True, False], [False] * SEEN])
    visual = see(hybrid, llm, noise(3, SEEN, WIDTH), mask)
    rows = torch.tensor([2, 0, 0, 1])
    chosen = visual.select(rows)
    assert isinstance(chosen, Visual)
    assert torch.equal(chosen.mask, mask[rows])
    for i, (keys, values) in visual.keys_values.items():
        assert torch.equal(chosen.keys_values[i][0], keys[rows])
        assert torch.equal(chosen.keys_values[i][1], values[rows])


# ------------------------------------------------------------------------------------------------ beside other parts


def test_peft_may_wrap_the_language_model_and_the_film_is_still_seen(pair, make_llm):
    """E17: layers once went missing behind peft's nesting, with a printed warning."""
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    llm, hybrid = pair(opened=True)
    seen = noise(1, SEEN, WIDTH)
    expected = llm(ids(1), visual=see(hybrid, llm, seen)).logits
    inject_adapter_in_model(config, llm)
    llm.eval()
    assert torch.equal(llm(ids(1), visual=see(hybrid, llm, seen)).logits, expected)  # lora_B starts at zero
    other = llm(ids(1), visual=see(hybrid, llm, noise(1, SEEN, WIDTH, seed=5))).logits
    assert (other - expected).abs().max() > 1e-3


def test_hybrid_layers_take_the_language_models_dtype(make_llm):
    llm = make_llm().to(torch.bfloat16)
    hybrid = HybridDecoder(llm, HybridConfig(every_n=2, warmup_start=0.5))
    assert {p.dtype for p in hybrid.parameters()} == {torch.bfloat16}
    visual = see(hybrid, llm, noise(1, SEEN, WIDTH).to(torch.bfloat16))
    logits = llm(ids(1), visual=visual).logits
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


def test_text_and_films_of_one_call_do_not_touch_the_film_of_the_draft(pair):
    llm, hybrid = pair(opened=True)
    visual = see(hybrid, llm, noise(1, SEEN, WIDTH))
    before = replace(visual)
    trace: list[AttentionTrace] = []
    call = visual.at(torch.ones(1, LENGTH, dtype=torch.bool), trace=trace)
    llm(ids(1), visual=call)
    assert (visual.text, visual.trace) == (before.text, before.trace) == (None, None)
    assert len(trace) == 2
