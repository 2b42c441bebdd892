"""The whole model is docs/method.md 5: views averaged, the published prompt, the right parameters trained, all of them alive."""

from dataclasses import replace

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import DynamicCache

from emrrg_core.config import Gate, PromptTokens
from emrrg_core.model.emrrg import IGNORED, FilmTokens
from emrrg_core.model.hybrid_decoder import AttentionTrace
from tests.conftest import surely
from tests.rounding import assert_alike


def reports(rows: list[list[int]]) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [IGNORED] * (longest - len(row)) for row in rows])


# ------------------------------------------------------------------------------------------------------------- views


def test_views_are_averaged_so_their_order_does_not_matter(tiny):
    views = torch.randn(1, 3, 3, 64, 64)
    assert_alike(tiny.encode(views).patches, tiny.encode(views[:, [2, 0, 1]]).patches, tiny)


def test_views_are_averaged_before_they_are_projected(tiny):
    views = torch.randn(1, 2, 3, 64, 64)
    mean = tiny.visual_encoder(views[0]).mean(0, keepdim=True)
    assert_alike(tiny.encode(views).patches, tiny.layer_norm(tiny.llama_proj(mean)), tiny)


def test_one_view_twice_counts_as_once(tiny, images):
    assert_alike(tiny.encode(images.repeat(1, 2, 1, 1, 1)).patches, tiny.encode(images).patches, tiny)


def test_a_view_that_is_not_there_is_not_counted(tiny):
    views = torch.randn(2, 2, 3, 64, 64)
    views[0, 1] = torch.nan
    there = torch.tensor([[True, False], [True, True]])
    got = tiny.encode(views, there).patches
    assert_alike(got[:1], tiny.encode(views[:1, :1]).patches, tiny)
    assert_alike(got[1:], tiny.encode(views[1:]).patches, tiny)


def test_a_study_without_a_view_raises(tiny):
    with pytest.raises(ValueError, match="at least one view"):
        tiny.encode(torch.randn(2, 1, 3, 64, 64), torch.tensor([[True], [False]]))


# ------------------------------------------------------------------------------------------------------------ prompt


def film_of(visual: torch.Tensor) -> FilmTokens:
    return FilmTokens(visual, visual)


@pytest.mark.parametrize(
    ("tokens", "between"), [(PromptTokens.ALL, 17), (PromptTokens.POOLED, 5), (PromptTokens.NONE, 0)]
)
def test_the_prompt_is_bos_before_visual_after(build, tokenizer, tokens, between):
    model = build(prompt={"tokens": tokens})
    visual = torch.randn(2, 17, 32)
    embeds, text = model.prompt(film_of(visual))
    before = [tokenizer.bos_token_id, *tokenizer.encode(model.config.prompt.before, add_special_tokens=False)]
    after = tokenizer.encode(model.config.prompt.after, add_special_tokens=False)
    assert embeds.shape == (2, len(before) + between + len(after), 32)
    assert torch.equal(embeds[0, : len(before)], model.embed(torch.tensor(before)))
    assert torch.equal(embeds[1, len(before) + between :], model.embed(torch.tensor(after)))
    assert text.tolist() == [[True] * len(before) + [False] * between + [True] * len(after)] * 2


def test_all_visual_tokens_stand_in_the_prompt_as_they_are(build):
    model = build(prompt={"tokens": PromptTokens.ALL})
    visual = torch.randn(1, 17, 32)
    embeds, text = model.prompt(film_of(visual))
    assert torch.equal(embeds[~text], visual[0])


def test_pooled_tokens_are_the_class_token_and_the_means_of_blocks_of_patches(build):
    model = build(prompt={"tokens": PromptTokens.POOLED})
    visual = torch.randn(1, 17, 32)
    embeds, text = model.prompt(film_of(visual))
    patches = torch.cat([visual[0, :8], visual[0, 9:]]).view(4, 4, 32)  # the class token sits at 8
    blocks = [patches[r : r + 2, c : c + 2].mean((0, 1)) for r in (0, 2) for c in (0, 2)]
    torch.testing.assert_close(embeds[~text], torch.stack([visual[0, 8], *blocks]))


def test_the_shipped_prompt_holds_no_film(reading, images):
    """All that a draft says of the film comes through the gates."""
    film = reading.encode(images)
    embeds, text = reading.prompt(film)
    assert text.all()
    assert torch.equal(embeds[0], embeds[1])


def test_a_prompt_may_end_with_the_image(build):
    """No text after the image is an empty row of tokens, not an error."""
    model = build(prompt={"after": ""})
    _, text = model.prompt(film_of(torch.randn(1, 17, 32)))
    assert text[0, -5:].tolist() == [False] * 5


def test_pooled_prompts_leave_all_tokens_to_cross_attention(tiny, images):
    trace: list[AttentionTrace] = []
    tiny.log_probs(tiny.encode(images), reports([[5, 6]] * 3), trace=trace)
    assert [layer.attention["patches"].shape for layer in trace] == [(3, 2, 17)] * 2


# -------------------------------------------------------------------------------------------------- log-probabilities


def test_log_probs_are_those_of_an_independent_pass_over_the_whole_text(tiny, images):
    """Prompt and report in one plain forward call, one sample at a time, no mask, no padding."""
    rows = [[5, 9, 200, 2], [17, 2], [40, 41, 42, 2]]
    visual = tiny.encode(images)
    got = tiny.log_probs(visual, reports(rows))
    for i, row in enumerate(rows):
        prompt, text = tiny.prompt(visual.select([i]))
        embeds = torch.cat([prompt, tiny.embed(torch.tensor([row]))], dim=1)
        is_text = torch.cat([text, torch.ones(1, len(row), dtype=torch.bool)], dim=1)
        film = tiny.precompute_keys_values(visual.select([i])).at(is_text)
        log_probs = tiny.llm(inputs_embeds=embeds, visual=film).logits[0].log_softmax(-1)
        expected = torch.stack([log_probs[prompt.shape[1] - 1 + t, token] for t, token in enumerate(row)])
        torch.testing.assert_close(got[i, : len(row)], expected, rtol=1e-4, atol=1e-4)
        assert not got[i, len(row) :].any()


def test_padding_in_a_batch_does_not_change_a_samples_log_probs(tiny, images):
    rows = [[5, 9, 200, 8, 7, 2], [17, 2], [40, 41, 42, 2]]
    visual = tiny.encode(images)
    together = tiny.log_probs(visual, reports(rows))
    for i, row in enumerate(rows):
        alone = tiny.log_probs(visual.select([i]), reports([row]))
        torch.testing.assert_close(together[i : i + 1, : len(row)], alone, rtol=1e-4, atol=1e-4)


def test_a_later_token_does_not_change_the_log_probs_of_earlier_ones(tiny, images):
    visual = tiny.encode(images[:1])
    one, other = (tiny.log_probs(visual, reports([[5, 9, 11, last]])) for last in (7, 200))
    torch.testing.assert_close(one[:, :3], other[:, :3], rtol=1e-5, atol=1e-5)
    assert not torch.equal(one[:, 3], other[:, 3])


def test_the_loss_is_the_weighted_mean_over_report_tokens(tiny, images):
    rows = reports([[5, 9, 200, 2], [17, 2], [40, 41, 2]])
    film = tiny.encode(images)
    scores = tiny.log_probs(film, rows)
    torch.testing.assert_close(tiny(film, rows).total, -scores.sum() / 9)
    weights = torch.rand(3, 4)
    inside = weights * (rows != IGNORED)
    found = tiny(film, rows, weights)
    torch.testing.assert_close(found.total, -(scores * inside).sum() / inside.sum())
    torch.testing.assert_close(found.nll, -scores.sum() / 9)


@pytest.mark.parametrize("gate", list(Gate))
def test_another_image_changes_the_log_prob_of_every_report_token(build, open_gates, images, gate):
    model = open_gates(build(hybrid={"gate": gate}))
    rows = reports([[5, 9, 200, 8, 2]])
    one, other = (model.log_probs(model.encode(images[i : i + 1]), rows) for i in (0, 1))
    assert ((one - other).abs() > 1e-4).all()


def test_closed_gates_leave_a_plain_language_model_that_reads_the_prompt(build, make_llm, images):
    model, plain = build(), make_llm()
    prompt, _ = model.prompt(model.encode(images))
    got = model.llm(inputs_embeds=prompt, visual=model.precompute_keys_values(model.encode(images))).logits
    assert torch.equal(got, plain(inputs_embeds=prompt).logits)


def test_decode_steps_equal_the_plain_language_model_with_closed_gates(build, make_llm, images):
    model, plain = build(), make_llm()
    visual = model.encode(images[:1])
    prompt, _ = model.prompt(visual)
    film = model.precompute_keys_values(visual)
    caches = DynamicCache(config=model.llm.config), DynamicCache(config=plain.config)
    for embeds in (prompt, *model.embed(torch.tensor([5, 6, 7])).view(3, 1, 1, -1)):
        ours = model.llm(inputs_embeds=embeds, past_key_values=caches[0], visual=film).logits
        assert torch.equal(ours, plain(inputs_embeds=embeds, past_key_values=caches[1]).logits)


# ---------------------------------------------------------------------------------------------------------- training


def trainable(model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def log_probs_of(model, film: FilmTokens) -> torch.Tensor:
    return model.log_probs(film, reports([[5, 9, 200, 8, 2]] * len(film)))


def test_with_closed_gates_and_no_film_in_the_prompt_no_film_and_no_finding_changes_a_logit(build, images):
    model = surely(build(queries=True))
    film = model.encode(images)
    assert film.findings[0] != film.findings[1]
    scores = log_probs_of(model, film)
    assert torch.equal(scores[0], scores[1])
    assert torch.equal(scores[0], scores[2])


def test_another_films_findings_or_patches_change_the_log_prob_of_every_report_token(reading, images):
    film = reading.encode(images)
    own, other = film.select([0]), film.select([1])
    before = log_probs_of(reading, own)
    for part in ("findings", "patches"):
        after = log_probs_of(reading, own.exchanged(other, **{part: True}))
        assert ((before - after).abs() > 1e-4).all(), part


def test_another_film_in_a_prompt_without_film_changes_nothing(reading, tiny, images):
    for model, changes in ((reading, False), (tiny, True)):
        film = model.encode(images)
        own, other = film.select([0]), film.select([1])
        same = torch.equal(log_probs_of(model, own), log_probs_of(model, own.exchanged(other, prompt=True)))
        assert same != changes


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_before_anything_is_learned_the_patches_as_a_group_weigh_beside_the_finding_tokens_as_the_settings_say(
    reading, images, weight
):
    """Keys that are all alike leave nothing but that weight, however many patches there are."""
    reading.config = replace(reading.config, queries=replace(reading.config.queries, patches=weight))
    reading.calibration.thresholds[:] = 0.5  # every finding is assessed
    for _, layer in reading.hybrid.items():
        layer.kv_proj.weight.zero_()
    trace: list[AttentionTrace] = []
    reading.log_probs(reading.encode(images), reports([[5, 9, 2]] * 3), trace=trace)
    for layer in trace:
        on_patches = layer.attention["patches"].sum(-1)
        torch.testing.assert_close(on_patches, torch.full((3, 3), weight / (1 + weight)))


def test_all_of_another_film_is_that_film(reading, images):
    film = reading.encode(images)
    own, other = film.select([0]), film.select([1])
    whole = own.exchanged(other, prompt=True, patches=True, findings=True)
    assert whole.findings == other.findings
    assert torch.equal(log_probs_of(reading, whole), log_probs_of(reading, other))
    assert torch.equal(log_probs_of(reading, own.exchanged(other)), log_probs_of(reading, own))


def test_films_are_selected_and_joined_with_all_that_is_seen_of_them(reading, images):
    film = reading.encode(images)
    again = FilmTokens.join([film.select([2]), film.select([0, 1])])
    assert len(again) == 3
    assert again.findings == tuple(film.findings[i] for i in (2, 0, 1))
    for name in ("patches", "in_prompt", "finding_tokens", "assessed"):
        assert torch.equal(getattr(again, name), getattr(film, name)[[2, 0, 1]]), name


@pytest.mark.parametrize("stem", [False, True])
def test_every_film_goes_through_the_tower_once(build, images, stem):
    model, seen = build(queries=True, stem=stem), []
    model.visual_encoder.layers[0].register_forward_hook(lambda _m, args, _o: seen.append(len(args[0])))
    model.encode(images)
    assert seen == [3]
    model.encode(images.transpose(0, 1), torch.tensor([[True, False, True]]))
    assert seen == [3, 2]


def test_training_without_findings_for_a_share_of_the_films_hides_all_finding_tokens_of_these(build, images):
    model = surely(build(queries=True))
    model.config = replace(model.config, queries=replace(model.config.queries, dropout=0.5))
    seen = model.see(images.repeat(20, 1, 1, 1, 1)[:40])
    assert model.project(seen).assessed[:, :-1].all()  # drafting hides none; the last, a fracture, is not assessed
    model.train()
    torch.manual_seed(0)
    shown = model.project(seen).assessed[:, :-1]
    assert torch.equal(shown.any(1), shown.all(1))
    assert 5 < shown.any(1).sum() < 35


@pytest.mark.parametrize("lora", [0, 2])
def test_exactly_what_the_method_trains_is_trainable(build, lora):
    """E4, E5, E16, E20: adapters, projector, its norm, hybrid layers and the language model's LoRA; nothing else."""
    model = build(lora=lora)
    names = [name for name, _ in model.named_parameters()]
    adapters = {n for n in names if n.startswith("visual_encoder.") and ".mixer.in_proj.lora." in n}
    projector = {f"{part}.{leaf}" for part in ("llama_proj", "layer_norm") for leaf in ("weight", "bias")}
    hybrid = {
        f"hybrid.layers.{i}.{leaf}"
        for i in (0, 2)
        for leaf in ("kv_proj.weight", "kv_proj.bias", "gate_proj.weight", "gate_proj.bias", "warm_up_gate")
    }
    language = {n for n in names if n.startswith("llm.") and ".lora_" in n}
    assert len(adapters) == 2 * 2 * 2
    assert len(language) == (4 * 2 * 2 if lora else 0)
    assert trainable(model) == adapters | projector | hybrid | language
    tokens = {f"finding_tokens.tables.{part}.weight" for part in range(5)}
    # what is read was taught before, by train.tower
    assert trainable(build(lora=lora, queries=True)) == adapters | projector | hybrid | language | tokens


@pytest.mark.parametrize("gate", list(Gate))
@pytest.mark.parametrize("lora", [0, 2])
def test_every_trainable_parameter_learns(build, open_gates, images, gate, lora):
    model = open_gates(build(hybrid={"gate": gate}, lora=lora)).train()
    model(model.encode(images), reports([[5, 9, 200, 2], [17, 2], [40, 41, 42, 2]])).total.backward()
    dead = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert dead == []
    assert [n for n, p in model.named_parameters() if not p.requires_grad and p.grad is not None] == []


def test_closed_gates_still_learn_to_open(build, images):
    """With every gate at its start the warm-up gate itself must get a gradient, or it would stay shut for ever."""
    model = build().train()
    model(model.encode(images), reports([[5, 9, 200, 2]] * 3)).total.backward()
    for _, layer in model.hybrid.items():
        assert layer.warm_up_gate.grad.abs() > 0


def test_a_step_of_training_lowers_the_loss(build, open_gates, images):
    model = open_gates(build())
    rows = reports([[5, 9, 200, 2], [17, 2], [40, 41, 42, 2]])
    before = model(model.encode(images), rows).total
    before.backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p -= 1e-3 * p.grad
    assert model(model.encode(images), rows).total < before


def test_own_state_holds_everything_of_ours_and_nothing_of_the_frozen_language_model(build):
    model = build(lora=2)
    own = model.own_state()
    assert trainable(model) <= own.keys()
    assert {n for n in own if n.startswith("llm.")} == {n for n in trainable(model) if n.startswith("llm.")}
    assert {n for n, _ in model.named_parameters() if not n.startswith("llm.")} <= own.keys()


def test_tokens_that_are_only_read_change_nothing_of_the_others(tiny, images):
    film, rows = tiny.encode(images), reports([[5, 9, 200, 2], [17, 2], [40, 41, 2]])
    whole, rest = tiny.log_probs(film, rows), tiny.log_probs(film, rows, first=2)
    assert not rest[:, :2].any()
    torch.testing.assert_close(rest[:, 2:], whole[:, 2:])


def test_lora_that_is_folded_in_writes_as_before(build, images):
    model = build(lora=2).requires_grad_(False)
    for name, value in model.llm.named_parameters():
        if "lora_B" in name:
            value.normal_(0, 0.1, generator=torch.Generator().manual_seed(3))
    film, rows = model.encode(images), reports([[5, 9, 200, 2]] * 3)
    before = model.log_probs(film, rows)
    layers = [m for m in model.llm.modules() if isinstance(m, LoraLayer)]
    plain = [layer.get_base_layer().weight.clone() for layer in layers]
    model.merge_lora()
    model.merge_lora()  # once is enough
    assert all(not torch.equal(w, layer.get_base_layer().weight) for w, layer in zip(plain, layers, strict=True))
    torch.testing.assert_close(model.log_probs(film, rows), before, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------- what a step of training costs


def test_the_vocabulary_is_asked_about_report_tokens_only(tiny, images):
    """Neither of the prompt nor of padding, which are most positions, nor of tokens that are only read."""
    rows = [[5, 6, 7], [8], [9, 10]]
    asked: list[int] = []
    head = tiny.llm.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, given, logits: asked.append(logits.flatten(0, -2).shape[0]))
    film = tiny.encode(images)
    tiny(film, reports(rows))
    tiny.log_probs(film, reports(rows), first=1)
    handle.remove()
    assert asked == [6, 3]


@pytest.mark.parametrize("focus", [0.0, 1.0])
def test_layers_that_are_computed_again_for_the_backward_pass_learn_the_same(build, open_gates, images, focus):
    """What hybrid layers note of a look is no output of a layer's, and must learn all the same (focus)."""
    found = []
    for recompute in (False, True):
        model = open_gates(build(queries=True, lora=2))
        if recompute:
            model.llm.activation_checkpointing_enable({"use_reentrant": False})
        calls: list[int] = []
        for layer in model.llm.get_decoder().layers:
            layer.mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        model.train()
        torch.manual_seed(0)
        model.visual_encoder.eval()
        loss = model(model.encode(images), reports([[5, 6, 7], [8], [9, 10]]), focus=focus)
        loss.total.backward()
        layers = len(model.llm.get_decoder().layers)
        assert len(calls) == layers * (2 if recompute else 1)
        found.append((loss, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (plain, gradients), (again, others) = found
    for name in ("total", "nll", "gate", "on_findings", *(("attention_cost",) if focus else ())):
        torch.testing.assert_close(getattr(again, name), getattr(plain, name), rtol=0, atol=0)
    assert any(name.startswith("hybrid.") for name in gradients)
    assert any("lora_A" in name for name in gradients)
    assert others.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-5, atol=1e-7)


def test_a_layer_that_is_computed_again_notes_its_look_once(build, open_gates, images):
    model = open_gates(build(queries=True))
    model.llm.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    film, trace = model.encode(images), []
    visual = model.precompute_keys_values(film).at(trace=trace)
    states = model.llm.get_decoder()(inputs_embeds=model.prompt(film)[0], visual=visual, use_cache=False)
    states.last_hidden_state.square().sum().backward()
    assert [layer.layer for layer in trace] == model.hybrid.indices()
