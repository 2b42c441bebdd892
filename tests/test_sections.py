"""Two models over one base: each section has its own LoRA and projector, the Findings come first, and the Impression is written from them."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from emrrg_core import DecodeConfig, EmrrgError, Film, Reporter, read_film
from emrrg_core.__main__ import main
from emrrg_core.config import (
    HybridConfig,
    LanguageLoraConfig,
    ModelConfig,
    Projector,
    PromptConfig,
    PromptTokens,
    Section,
    Sections,
    VisionConfig,
)
from emrrg_core.data.studies import FilmCache, Study, eight_bits
from emrrg_core.errors import CheckpointError, ConfigError
from emrrg_core.films.film import model_input
from emrrg_core.films.views import stitch
from emrrg_core.model import checkpoint as checkpoints
from emrrg_core.model.convert import save_tower
from emrrg_core.model.decoding import Beam, Search, Vocabulary
from emrrg_core.model.emrrg import IGNORED, Emrrg, FilmTokens
from emrrg_core.model.engine import Engine
from emrrg_core.model.generation import Task, stream, write
from emrrg_core.model.hybrid_decoder import AttentionTrace
from emrrg_core.model.inference import Look
from emrrg_core.model.vision_mamba import VisionMamba
from emrrg_core.model.writing import Writing
from emrrg_core.report.told import told
from tests import tiny
from tests.conftest import READING, TINY, surely
from tests.phantom import make_phantom
from tests.test_engine import together
from tests.test_proposals import assert_same, ids
from train import finetune, parameters
from train.finetune import Lessons, leave, of_section, tokens_of
from train.loop import Run, apart, groups, load_trained

SHORT = DecodeConfig(max_new_tokens=12)
FINDINGS, IMPRESSION = Section.FINDINGS, Section.IMPRESSION
SEPARATE = replace(
    TINY,
    sections=Sections.SEPARATE,
    projector=Projector.MLP,
    language_lora=LanguageLoraConfig(rank=2),
    prompt=replace(TINY.prompt, before="Human: <Img>", after="</Img> The {section}. \nAssistant:"),
)
PLAIN = replace(SEPARATE, hybrid=HybridConfig(every_n=0))  # as Med-CXRGen: the film stands in the prompt alone
READS = replace(
    SEPARATE, queries=READING.queries, prompt=replace(SEPARATE.prompt, before="{section}", tokens=PromptTokens.NONE)
)
KINDS = pytest.mark.parametrize("config", [PLAIN, SEPARATE, READS], ids=["plain", "hybrid", "reads"])


@pytest.fixture
def made(make_llm, tokenizer, open_gates) -> Callable[..., Emrrg]:
    """A model whose sections differ in all that may differ: `made(PLAIN, ending=3.0)`."""

    def make(config: ModelConfig, seed: int = 0, ending: float = 3.0) -> Emrrg:
        torch.manual_seed(seed)
        model = open_gates(Emrrg(config, make_llm(seed).requires_grad_(True), tokenizer), seed + 1)
        model = model.eval().requires_grad_(False)
        model.llm.lm_head.weight[tokenizer.eos_token_id] *= ending
        return surely(model) if config.queries.depth else model

    return make


def alone(model: Emrrg, section: Section, make_llm) -> Emrrg:
    """A model that has a section's LoRA, projector and prompt, and nothing of the other's."""
    words = {part: getattr(model.config.prompt, part).replace("{section}", section) for part in ("before", "after")}
    config = replace(model.config, sections=Sections.JOINT, prompt=replace(model.config.prompt, **words))
    one = Emrrg(config, make_llm(), model.tokenizer).eval().requires_grad_(False)
    state = model.state_dict()
    for name, value in one.state_dict().items():
        theirs = name.replace(".default.", f".{section}.")
        if section is IMPRESSION:
            theirs = re.sub(r"^(llama_proj|layer_norm)\b", r"\1_impression", theirs)
        value.copy_(state[theirs])
    return one


def greedy(model: Emrrg, film: FilmTokens, written: Sequence[int], most: int) -> tuple[list[int], bool]:
    """What a joint model writes after these tokens, everything computed anew for each, and whether it came to its end."""
    found = list(written)
    for _ in range(most):
        prompt, text = model.prompt(film)
        embeds = torch.cat([prompt, model.embed(torch.tensor([found], dtype=torch.long))], 1)
        text = torch.cat([text, torch.ones(1, len(found), dtype=torch.bool)], 1)
        logits = model.llm(inputs_embeds=embeds, visual=model.precompute_keys_values(film).at(text)).logits[0, -1]
        best = int(logits.argmax())
        if best == model.tokenizer.eos_token_id:
            return found[len(written) :], True
        found.append(best)
    return found[len(written) :], False


def films_of(model: Emrrg, count: int = 3) -> list[FilmTokens]:
    """What is seen of films that are far apart."""
    size = model.config.vision.image_size
    generator = torch.Generator().manual_seed(5)
    images = [torch.randn(1, 1, 3, size, size, generator=generator) * (1 + i / 2) for i in range(count)]
    return [model.encode(image) for image in images]


# -------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"language_lora": LanguageLoraConfig()}, r"a LoRA of its own .*set language_lora\.rank"),
        ({"prompt": PromptConfig(tokens=PromptTokens.NONE)}, "no section would see the film: set prompt.tokens"),
    ],
)
def test_settings_that_cannot_have_separate_sections_say_what_to_set(changes, said):
    with pytest.raises(ConfigError, match=said):
        replace(PLAIN, **changes)


def test_a_projector_of_two_matrices_is_two_matrices_and_a_gelu(made):
    model, tokens = made(PLAIN), torch.randn(1, 17, 16)
    first, second = model.llama_proj[0], model.llama_proj[2]
    expected = torch.nn.functional.gelu(tokens @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(model.llama_proj(tokens), expected)
    assert {name.split(".")[0] for name in model.own_state() if "proj" in name and "llm" not in name} == {
        "visual_encoder",
        "llama_proj",
        "llama_proj_impression",
    }


def test_each_section_has_its_own_question(made):
    model = made(PLAIN)
    film = films_of(model)[0]
    texts = [model.tokenizer.decode(model._prompts[section][1]) for section in Section]
    assert texts == [f"</Img> The {section}. \nAssistant:" for section in ("findings", "impression")]
    assert not torch.equal(model.prompt(film, FINDINGS)[0][:, -3:], model.prompt(film, IMPRESSION)[0][:, 1:4])


# ------------------------------------------------------------------------------------------------------ one base, two LoRAs


def test_switching_changes_the_lora_and_nothing_else(made):
    model = made(PLAIN)
    layers = [layer for layer in model.llm.modules() if isinstance(layer, LoraLayer)]
    assert all(set(layer.lora_A) == {"findings", "impression"} for layer in layers)
    base = {name: value for name, value in model.llm.named_parameters() if ".lora_" not in name}
    before = {name: (value.data_ptr(), value.clone()) for name, value in base.items()}
    ids_, out = torch.tensor([[5, 9, 200, 8]]), []
    model.llm.requires_grad_(False)
    layers[0].lora_A["impression"].weight.requires_grad_(True)
    for section in (FINDINGS, IMPRESSION, FINDINGS, IMPRESSION):
        model.use(section)
        assert {name for layer in layers for name in layer.active_adapters} == {section.value}
        assert [n for n, p in model.llm.named_parameters() if p.requires_grad] == [
            "model.layers.0.self_attn.q_proj.lora_A.impression.weight"
        ]
        with torch.no_grad():
            out.append(model.llm(input_ids=ids_, visual=model.precompute_keys_values(films_of(model)[0])).logits)
    assert torch.equal(out[0], out[2])
    assert torch.equal(out[1], out[3])
    assert not torch.allclose(out[0], out[1], atol=1e-2)
    after = {name: value for name, value in model.llm.named_parameters() if ".lora_" not in name}
    assert after.keys() == base.keys()
    for name, (place, value) in before.items():
        assert after[name].data_ptr() == place, name
        assert torch.equal(after[name], value), name


def test_switching_works_while_a_draft_is_written(made):
    """In torch's inference mode, with everything frozen."""
    model = made(PLAIN)
    with torch.inference_mode():
        model.use(IMPRESSION)
    assert not any(p.requires_grad for p in model.parameters())


def test_both_loras_and_both_projectors_learn_and_the_base_does_not(make_llm, tokenizer):
    model = Emrrg(PLAIN, make_llm().requires_grad_(True), tokenizer)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == model.learns
    for section in ("findings", "impression"):
        assert sum(f".lora_A.{section}." in name for name in learning) == 4 * 2
    assert {"llama_proj.0.weight", "llama_proj_impression.2.bias", "layer_norm_impression.weight"} <= learning
    assert all(".lora_" in name for name in learning if name.startswith("llm."))


def test_separate_loras_are_never_folded_into_the_weights_that_they_share(made):
    model = made(PLAIN)
    weights = {name: value.clone() for name, value in model.llm.named_parameters()}
    model.merge_lora()
    assert not any(layer.merged for layer in model.llm.modules() if isinstance(layer, LoraLayer))
    assert all(torch.equal(value, weights[name]) for name, value in model.llm.named_parameters())


def test_a_checkpoint_holds_both_and_comes_back_as_it_was(made, tmp_path, language_folder, make_llm):
    model = made(replace(PLAIN, language=str(language_folder)), seed=2, ending=1.0)
    checkpoints.save(model, tmp_path / "kept", language={}, training={})
    again, _ = checkpoints.load(tmp_path / "kept")
    film = films_of(model)[0]
    for name, value in again.own_state().items():
        torch.testing.assert_close(value, model.own_state()[name], rtol=1e-3, atol=1e-3)
    assert write(again, films_of(again)[0], SHORT)[0].text
    assert again.config == model.config
    assert len(film) == 1


# --------------------------------------------------------------------------------------------------------------- drafting


@KINDS
@pytest.mark.parametrize("seed", range(2))
def test_each_section_is_what_a_model_with_that_sections_lora_alone_writes(made, make_llm, config, seed):
    model = made(config, seed=seed)
    eos = model.tokenizer.eos_token_id
    findings, impression = (alone(model, section, lambda: make_llm(seed)) for section in Section)
    for one in (findings, impression):
        one.llm.lm_head.weight[eos] = model.llm.lm_head.weight[eos]
    for film in films_of(model):
        (draft,) = write(model, film, SHORT)
        first, ended = greedy(findings, film, [], SHORT.max_new_tokens)
        # it is written for the model where its Findings end without, and counts towards the limit
        heading = [token.id for token in draft.tokens if token.forced]
        second, over = greedy(impression, film.of(IMPRESSION), first + heading, SHORT.max_new_tokens - len(heading))
        assert ids(draft) == first + heading + second
        assert all(token.forced for token in draft.tokens[len(first) : len(first + heading)])
        assert draft.finished == (ended and over)
        assert draft.text.count("\nImpression:") == 1


@KINDS
@pytest.mark.parametrize("beams", [1, 2])
def test_tokens_are_scored_under_their_own_section_whether_written_or_read_again(made, config, beams):
    """Log-probabilities, gates and attention of a draft, with all of its text known."""
    model = made(config)
    for film in films_of(model):
        (draft,) = write(model, film, replace(SHORT, beams=beams))
        trace: list[AttentionTrace] = []
        scores = model.log_probs(film, torch.tensor([ids(draft)]), trace=trace)[0]
        chosen = [n for n, token in enumerate(draft.tokens) if not token.forced]
        expected = torch.tensor([draft.tokens[n].log_prob for n in chosen])
        torch.testing.assert_close(scores[chosen], expected, rtol=0, atol=1e-4)
        assert len(trace) == len(model.hybrid.indices())
        for layer, look in enumerate(trace):
            for n in chosen:
                assert draft.tokens[n].gates[layer] == pytest.approx(float(look.gate[0, n]), abs=1e-4)
                seen = model.patches(look.attention["patches"][0, n : n + 1], -1)[0]
                np.testing.assert_allclose(draft.tokens[n].attention[layer], seen, atol=1e-4)


def test_a_text_is_divided_where_the_heading_of_the_impression_ends(made):
    model = made(PLAIN)
    for text, first in (
        ("Findings: The lungs are clear.\nImpression: Nodule.", "Findings: The lungs are clear.\nImpression:"),
        ("Impression: Nodule.", "Impression:"),
        ("Findings: My Impression is good.", "Findings: My Impression is good."),
    ):
        found = model.tokenizer(text, add_special_tokens=False).input_ids
        assert model.tokenizer.decode(found[: model.findings_length(found)]) == first
    assert model.findings_length([]) == 0


def test_reading_from_a_token_on_changes_nothing_of_the_scores(made):
    model = made(SEPARATE)
    found = [
        model.tokenizer(text, add_special_tokens=False).input_ids
        for text in ("The lungs are clear.\nImpression: Nodule.", "Clear.")
    ]
    longest = max(map(len, found))
    rows = torch.tensor([row + [IGNORED] * (longest - len(row)) for row in found])
    film = FilmTokens.join(films_of(model)[:2])
    whole = model.log_probs(film, rows)
    torch.testing.assert_close(model.log_probs(film, rows, first=4)[:, 4:], whole[:, 4:], rtol=1e-4, atol=1e-4)
    assert not whole[1, len(found[1]) :].any()
    for i, row in enumerate(found):
        mine = model.log_probs(film.select([i]), torch.tensor([row]))
        torch.testing.assert_close(whole[i, : len(row)], mine[0], rtol=1e-4, atol=1e-4)


@KINDS
@pytest.mark.parametrize("beams", [1, 3])
def test_films_that_are_written_together_get_the_drafts_that_they_get_alone(made, config, beams):
    model, config = made(config, seed=1), replace(SHORT, beams=beams)
    films = films_of(model, 4)
    each = [write(model, film, config)[0] for film in films]
    assert len({draft.text for draft in each}) > 1
    assert_same(write(model, FilmTokens.join(films), config), each)


def test_a_stream_tells_the_findings_then_the_impression_and_no_word_twice(made):
    model = made(PLAIN, ending=0.0)
    texts = [drafts[0] for drafts in stream(model, films_of(model)[0], SHORT)]
    assert len(texts) == 2 * SHORT.max_new_tokens  # the limit is each section's own
    for before, after in pairwise(texts):
        assert ids(after)[: len(ids(before))] == ids(before)
    assert not any(text.finished for text in texts)


def token_of(model: Emrrg, text: str) -> list[int]:
    return model.tokenizer(text, add_special_tokens=False).input_ids


def fed(search: Search, tokens: Sequence[int]) -> None:
    """A greedy search that is given its tokens."""
    nothing = np.zeros((0, 0), np.float32)
    for token in tokens:
        assert not search.over
        logs = torch.zeros(1, 400)
        search.grow([(search.beams[0].score - 1, 0, token)], logs, [Look(np.zeros(0), nothing, nothing)])


@pytest.mark.parametrize(
    ("written", "whole", "ended"),
    [
        ("Findings: Clear.\nImpression:", "Findings: Clear.\nImpression:", True),
        ("Findings: Clear.</s>", "Findings: Clear.\nImpression:", True),
        ("Findings: Clear.\nImpression:<cut>", "Findings: Clear.\nImpression:", False),
        ("Findings: Clear. So", "Findings: Clear. So\nImpression:", False),
        ("</s>", "\nImpression:", True),
    ],
)
def test_findings_end_with_the_heading_which_is_written_where_it_is_not_there(made, written, whole, ended):
    model = made(PLAIN)
    tokens, eos = token_of(model, re.sub("<.*", "", written)), model.tokenizer.eos_token_id
    tokens = [*tokens, eos] if written.endswith("</s>") else tokens[:-2] if written.endswith("<cut>") else tokens
    config = DecodeConfig(max_new_tokens=len(tokens) if not ended else 100)
    search = Search(config, Vocabulary.of(model.tokenizer), section=FINDINGS)
    fed(search, tokens)
    assert search.over
    assert not search.writing().finished
    search.go_on()
    missing = model.tokenizer.decode([*search.beams[0].forced])
    assert search.writing().text + missing == whole
    search.config = DecodeConfig(max_new_tokens=100)
    fed(search, [*search.beams[0].forced, *token_of(model, " Nodule."), eos])
    assert search.over
    assert search.writing().text == whole + " Nodule."
    assert search.writing().finished == ended


def test_neither_section_says_a_sentence_twice_and_the_impression_takes_nothing_of_the_findings_back(made):
    model = made(PLAIN)
    vocabulary = Vocabulary.of(model.tokenizer)
    search = Search(DecodeConfig(max_new_tokens=100), vocabulary, section=FINDINGS)
    fed(search, token_of(model, "Findings: Clear. Clear."))
    assert search.beams[0].closed == ("findings",)
    fed(search, search.beams[0].forced)
    assert search.writing().text == "Findings: Clear.\nImpression:"
    twice = Search(
        DecodeConfig(max_new_tokens=100), vocabulary, [vocabulary.given("Clear. Clear. Clear.")], section=IMPRESSION
    )
    fed(twice, token_of(model, " No acute disease. No acute disease."))
    assert twice.writing().text == "Findings: Clear. Clear. Clear.\nImpression: No acute disease."
    assert twice.beams[0].closed == ("impression",)
    assert twice.beams[0].forced == (vocabulary.eos,)


@pytest.mark.parametrize("beams", [1, 2])
def test_an_impression_after_given_findings_reads_them_and_rewrites_nothing(made, make_llm, beams):
    model = made(PLAIN)
    film = films_of(model)[0]
    task = Task(model, film, replace(SHORT, beams=beams), None, after=["The lungs are clear. Effusion"])
    while not task.over:
        task.step()
    writing = task.searches[0].writing()
    given = token_of(model, "Findings: The lungs are clear. Effusion\nImpression:")
    assert ids(writing)[: len(given)] == given
    assert [t.forced for t in writing.tokens] == [n < len(given) for n in range(len(writing.tokens))]
    if beams == 1:
        one = alone(model, IMPRESSION, make_llm)
        one.llm.lm_head.weight.copy_(model.llm.lm_head.weight)
        expected, _ = greedy(one, film.of(IMPRESSION), given, SHORT.max_new_tokens)
        assert ids(writing)[len(given) :] == expected


# ------------------------------------------------------------------------------------------------------------ the engine


def test_readers_side_by_side_get_the_drafts_that_they_get_alone_and_no_pass_mixes_sections(made):
    model = made(SEPARATE, ending=1.0)
    films = films_of(model, 3)
    each = [write(model, film, SHORT)[0] for film in films]
    engine, rows = Engine(model), []
    model.llm.model.layers[0].register_forward_pre_hook(
        lambda _m, args, kwargs: rows.append((args[0] if args else kwargs["hidden_states"]).shape[0]), with_kwargs=True
    )

    def last(film: FilmTokens) -> Writing:
        *_, whole = engine.stream(lambda: film, SHORT)
        return whole

    found = together(*(lambda film=film: last(film) for film in films))
    assert_same(found, each)
    assert set(rows) == {1}


@pytest.mark.parametrize("passes", [3, SHORT.max_new_tokens + 2])
def test_a_draft_stops_in_either_section(made, passes):
    model = made(PLAIN, ending=0.0)
    engine, film, shown = Engine(model), films_of(model)[0], []
    for text in engine.stream(lambda: film, SHORT, stopped=lambda: len(shown) >= passes):
        shown.append(text)
    engine.run(lambda: None)
    assert passes <= len(shown) <= passes + 1
    assert not engine._under_way


# -------------------------------------------------------------------------------------------------------------- the door


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("films")
    make_phantom(1, height=140, width=190).save_png(made / "one.png")
    make_phantom(2, height=200, width=150).save_png(made / "two.png")
    return made


@pytest.fixture(scope="module")
def films(folder) -> list[Film]:
    return [read_film(folder / name, name=name) for name in ("one.png", "two.png")]


@pytest.fixture(scope="module")
def separate(tmp_path_factory, make_llm, tokenizer, open_gates, language_folder) -> Path:
    """A checkpoint of separate sections that reads no findings, and looks through gates."""
    torch.manual_seed(5)
    model = open_gates(Emrrg(replace(SEPARATE, language=str(language_folder)), make_llm(seed=2), tokenizer))
    folder = tmp_path_factory.mktemp("checkpoints") / "separate"
    return checkpoints.save(model, folder, language={"name": "tiny-llama"}, training={})


def test_a_draft_of_separate_sections_streams_whole_and_its_tests_read_it_again(separate, films):
    reporter = Reporter.load(separate, download=False)
    drafts = list(reporter.stream(films, SHORT))
    draft = drafts[-1]
    assert draft.decoding["sections"] == "separate"
    assert draft.findings
    assert draft.impression
    assert len(draft.tokens) > SHORT.max_new_tokens
    begun = next(n for n, one in enumerate(drafts) if one.impression)
    assert {one.findings for one in drafts[begun:]} == {draft.findings}
    assert {sentence.section for sentence in draft.sentences} == {"findings", "impression"}
    assert reporter.looking(films, draft).tokens > 0
    for number in range(len(draft.sentences)):
        why = reporter.why(films, draft, number)
        assert why is None or np.isfinite(why.drop)
    span = slice(*draft.sentences[-1].tokens)
    rescored = reporter.rescore(films, draft, [film.pixels for film in films])
    mine = sum(token.log_prob for token in draft.tokens[span] if not token.forced)
    assert rescored.before[-1] == pytest.approx(mine, abs=1e-3)


def test_whether_a_draft_depends_on_its_film_is_asked_of_the_prompt_where_nothing_else_sees_it(made, films):
    reporter = Reporter(made(PLAIN), names={})
    draft = reporter.draft(films, SHORT)
    found = reporter.looking(films, draft)
    assert found.gate == 0
    assert all(abs(lost) > 1e-3 for lost in (found.blank, found.noise, found.swapped))


def test_separate_sections_cannot_be_written_in_one_go_nor_a_joint_models_anew_without_findings(
    separate, checkpoint, folder, films, capsys
):
    with pytest.raises(ConfigError, match=r"a model of its own for each section.*choose separate"):
        Reporter.load(separate, download=False).draft(films, replace(SHORT, sections=Sections.JOINT))
    with pytest.raises(ConfigError, match=r"reads no findings.*choose joint"):
        Reporter.load(checkpoint, download=False).draft(films, replace(SHORT, sections=Sections.SEPARATE))
    arguments = ["draft", str(folder / "one.png"), "--memory", "off", "--checkpoint", str(separate)]
    assert main([*arguments, "--sections", "joint"]) == 2
    assert "choose separate" in capsys.readouterr().err
    assert main([*arguments, "--json", "--sections", "separate"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["decoding"]["sections"] == "separate"


def test_an_impression_from_these_findings_reads_the_readers_text_itself(separate, films, monkeypatch):
    reporter = Reporter.load(separate, download=False)
    draft = reporter.draft(films, SHORT)
    asked, usual = [], reporter._engine.stream
    monkeypatch.setattr(reporter._engine, "stream", lambda *a, **k: asked.append(k.get("after")) or usual(*a, **k))
    texts = ["The lungs are clear.", "Nodule, right. Impression: none so far. Effusion on the left."]
    found = []
    for text in texts:
        with suppress(EmrrgError):  # a tiny model may find no words
            summary = reporter.impression(films, draft, text)
            found.append(summary.text)
            assert summary.unknown == ()
            assert text not in summary.text
    assert asked == texts
    assert found
    with pytest.raises(EmrrgError, match="Write the Findings first"):
        reporter.impression(films, draft, " ")


def test_a_joint_model_that_reads_findings_writes_the_impression_anew_from_what_it_wrote(reading_checkpoint, films):
    reporter = Reporter.load(reading_checkpoint, download=False)
    retold, usual = [], reporter._model.retold
    reporter._model.retold = lambda film, findings: retold.append(findings) or usual(film, findings)
    joint = reporter.draft(films, SHORT)
    assert retold == []
    drafts = list(reporter.stream(films, replace(SHORT, sections=Sections.SEPARATE)))
    draft = drafts[-1]
    without_maps = [replace(finding, maps=()) for finding in draft.read]
    said = [replace(finding, maps=()) for finding in retold[0][0]]
    assert said == list(told(without_maps, draft.findings)[0])
    assert len(retold) == 1
    heading = next(n for n, token in enumerate(draft.tokens) if token.forced)
    assert [t.id for t in draft.tokens[:heading]] == [t.id for t in joint.tokens[:heading]]
    assert draft.impression
    assert draft.read == joint.read or len(draft.read) == len(joint.read)  # what was read is the film's all the same
    begun = next(n for n, one in enumerate(drafts) if one.impression)
    assert {one.findings for one in drafts[begun:]} == {draft.findings}
    film = reporter._model.project(reporter._model.see(torch.from_numpy(reporter._images(films))[None]), retold[0])
    written = [t.id for t in draft.tokens]
    start = next(n for n, token in reversed(list(enumerate(draft.tokens))) if token.forced) + 1
    expected, _ = greedy(reporter._model, film, written[:start], len(written) - start)
    assert written[start:] == expected


# --------------------------------------------------------------------------------------------------------------- training


FOUND, SUMMED = ["The heart is of normal size.", "The lungs are clear."], ["No acute disease."]


def test_lessons_of_a_section_count_its_words_alone(made):
    model = made(PLAIN)
    tokens, weights = tokens_of(model, FOUND, SUMMED)
    assert of_section(model, tokens, weights, "both") == (tokens, weights)
    first, counted = of_section(model, tokens, weights, "findings")
    assert model.tokenizer.decode(first) == "Findings: " + " ".join(FOUND) + "\nImpression:"
    assert counted == weights[: len(first)]
    read, counted = of_section(model, tokens, weights, "impression")
    assert read == tokens
    assert counted == [0.0] * len(first) + weights[len(first) :]
    alone, _ = of_section(model, *tokens_of(model, FOUND, []), "findings")
    assert alone[-1] == model.tokenizer.eos_token_id


@pytest.mark.parametrize("section", ["findings", "impression"])
def test_a_lesson_of_one_section_runs_the_language_model_once_and_teaches_that_section_alone(
    make_llm, tokenizer, open_gates, section
):
    torch.manual_seed(0)
    model = open_gates(Emrrg(SEPARATE, make_llm().requires_grad_(True), tokenizer)).train()
    leave(model, Lessons(section=section))
    passes: list[int] = []
    model.llm.model.layers[0].register_forward_pre_hook(lambda *_: passes.append(1))
    rows = [of_section(model, *tokens_of(model, FOUND, SUMMED), section)]
    ids_, weights = torch.tensor([rows[0][0]]), torch.tensor([rows[0][1]])
    found = model(model.encode(torch.randn(1, 1, 3, 64, 64)), ids_, weights)
    found.total.backward()
    assert len(passes) == 1
    learned = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert learned == {name for name, p in model.named_parameters() if p.requires_grad}
    own = {name for name in model.learns if "impression" in name} if section == "impression" else None
    expected = own or {n for n in model.learns if n.startswith(("llama_proj.", "layer_norm.")) or ".findings." in n}
    assert learned == expected
    scores = model.log_probs(model.encode(torch.randn(1, 1, 3, 64, 64)), ids_)
    assert scores.shape == ids_.shape


def test_words_of_both_sections_teach_both_at_once(make_llm, tokenizer, open_gates):
    model = open_gates(Emrrg(SEPARATE, make_llm().requires_grad_(True), tokenizer)).train()
    tokens, weights = tokens_of(model, FOUND, SUMMED)
    loss = model(model.encode(torch.randn(1, 1, 3, 64, 64)), torch.tensor([tokens]), torch.tensor([weights]))
    loss.total.backward()
    dead = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert dead == []
    assert torch.isfinite(loss.gate)


@pytest.mark.parametrize(
    ("lessons", "parts"),
    [
        ({"section": "findings", "lora": False}, {"llama_proj", "layer_norm"}),
        ({"section": "impression", "lora": False}, {"llama_proj_impression", "layer_norm_impression"}),
        ({"section": "findings", "projector": False}, {"findings"}),
        ({"section": "impression", "projector": False}, {"impression"}),
    ],
)
def test_the_first_stage_teaches_a_projector_and_the_second_a_lora(make_llm, tokenizer, lessons, parts):
    model = Emrrg(PLAIN, make_llm().requires_grad_(True), tokenizer)
    leave(model, Lessons(**lessons))
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    assert {n.split(".")[-2] if n.startswith("llm.") else n.split(".")[0] for n in learning} == parts


def test_a_joint_model_learns_all_that_it_has_from_one_section(build):
    model = build(lora=2)
    leave(model, Lessons(section="findings"))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == model.learns


def test_films_of_a_study_are_one_canvas_as_a_draft_would_see_them(tmp_path):
    sizes = ((120, 90), (100, 140), (90, 90))
    for n, (height, width) in enumerate(sizes):
        make_phantom(n, height=max(height, 128), width=max(width, 128)).save_png(tmp_path / f"{n}.png")
    paths = tuple(tmp_path / f"{n}.png" for n in range(3))
    several = Study("several", "ours", "train", "p", paths, {}, None, "", "")
    one = replace(several, id="one", files=paths[:1])
    cache = FilmCache([several, one], tmp_path / "cache", 32, together=2)
    both = [read_film(path) for path in paths[:2]]
    canvas = stitch([film.pixels for film in both], [film.view for film in both]).pixels
    np.testing.assert_array_equal(cache[several], eight_bits(model_input(canvas, 32)))
    assert cache.views(several).shape == (1, 32, 32)
    plain = FilmCache([several, one], tmp_path / "cache", 32)
    np.testing.assert_array_equal(cache[one], plain[one])
    assert plain.views(several).shape == (3, 32, 32)
    assert not np.array_equal(plain[several], cache[several])


# ---------------------------------------------------------------------------------------------------------------- recipes


STAGES = ("align_findings", "align_impression", "findings", "impression")
SMALL_CLIP = {"hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 1, "image_size": 28, "patch_size": 7}


def shrunk(name: str) -> str:
    """A recipe of few steps with a small tower; its stages, projector, LoRA, prompt and stitching are its own."""
    text = (parameters.RECIPES / f"{name}.toml").read_text(encoding="utf-8")
    for line, instead in (
        (r"^steps = .*", "steps = 2"),
        (r"^batch = .*", "batch = 3"),
        (r"^warmup = .*", "warmup = 0"),
        (r"^save_every = .*", "save_every = 2"),
        (r"^sources = .*", "sources = { ours = 1.0 }"),
        (r"^max_new_tokens = .*", "max_new_tokens = 6"),
        (
            r"^vision = \{ tower.*",
            'vision = { tower = "clip", image_size = 28, patch_size = 7, d_model = 32, depth = 3 }',
        ),
        (
            r"^vision = \{ d_model.*",
            "vision = { image_size = 32, patch_size = 4, d_model = 48, depth = 1, d_state = 4 }",
        ),
        (r"pooled_grid = 7", "pooled_grid = 4"),
        (r"rank = (16|128), alpha = \d+", "rank = 2, alpha = 4"),
    ):
        text = re.sub(line, instead, text, flags=re.MULTILINE)
    return text


@pytest.fixture(scope="module")
def film_set(tmp_path_factory) -> Path:
    """24 studies with their own reports, every third of two films; one has no Impression."""
    folder = tmp_path_factory.mktemp("set")
    rows = []
    for i in range(24):
        phantom = make_phantom(i, height=128, width=128, lesion=("opacity", None)[i % 2])
        own = {"findings": phantom.findings, "impression": phantom.impression if i != 5 else ""}
        files = {"files": [f"{i}.png", f"{(i + 1) % 24}.png"]} if i % 3 == 0 else {}
        rows.append((phantom, {"split": "train", "patient": f"p{i}", "labels": {}} | own | files))
    return tiny.film_set(folder, rows)


def chained(recipe: Path, start: Path, film_set: Path, language: Path, out: Path) -> list[dict[str, torch.Tensor]]:
    """All four stages, each begun with the one before: what each checkpoint holds."""
    kept, begin = [], []
    for stage in STAGES:
        named = {"recipe": recipe, "start": start, "films": film_set, "language-model": language, "out": out / stage}
        named |= {"section": stage, "cache": out / "cache"}
        arguments = [part for name, value in named.items() for part in (f"--{name}", str(value))]
        finetune.main([*arguments, *begin])
        begin = ["--begin", str(out / stage / "checkpoint")]
        kept.append(load_file(out / stage / "checkpoint" / "model.safetensors"))
    return kept


@pytest.mark.parametrize("name", ["med_cxrgen_small", "med_cxrgen"])
def test_the_four_stages_of_a_recipe_teach_one_part_each_and_its_checkpoint_drafts(
    tmp_path, film_set, folder, language_folder, name, capsys
):
    recipe, start = tmp_path / "recipe.toml", tmp_path / "tower"
    recipe.write_text(shrunk(name))
    torch.manual_seed(0)
    if name == "med_cxrgen":
        CLIPVisionModel(CLIPVisionConfig(**SMALL_CLIP, num_hidden_layers=3)).save_pretrained(start)
    else:
        tower = VisionConfig(image_size=32, patch_size=4, d_model=48, depth=1, d_state=4)
        save_tower(start, VisionMamba(tower).state_dict(), tower, {})
    kept = chained(recipe, start, film_set, language_folder, tmp_path)
    model, _ = checkpoints.load(tmp_path / "findings" / "checkpoint", language_model=language_folder)
    leave(model.requires_grad_(True), Lessons(section="findings", projector=False))
    own = {name: value.clone() for name, value in model.named_parameters() if value.requires_grad}
    load_trained(model, tmp_path / "findings" / "last.pt")  # what that stage taught, not rounded
    for name, value in own.items():
        torch.testing.assert_close(model.get_parameter(name), value, rtol=1e-3, atol=1e-5)
    with pytest.raises(CheckpointError, match="take the folder `checkpoint`"):
        load_trained(model.requires_grad_(True), tmp_path / "findings" / "last.pt")
    counts = re.findall(r"(\d+) films, (\d+) of them", capsys.readouterr().out)
    assert [int(films) for films, _ in counts] == [
        21,
        20,
        21,
        20,
    ]  # one has no Impression; every tenth patient is kept aside
    parts = ("llama_proj|layer_norm", "llama_proj_impression|layer_norm_impression", "llm.*findings", "llm.*impression")
    for (before, after), part in zip(pairwise(kept), parts[1:], strict=True):
        assert before.keys() == after.keys()
        changed = {key for key in after if not torch.equal(before[key], after[key])}
        assert changed
        assert all(re.match(rf"({part})\.", key) for key in changed), (part, changed)
    reporter = Reporter.load(tmp_path / "impression" / "checkpoint", language_model=language_folder, download=False)
    films = [read_film(folder / name) for name in ("one.png", "two.png")]
    draft = reporter.draft(films, SHORT)
    assert all(film.place is not None for film in draft.films)  # side by side, as it was taught
    assert draft.decoding["sections"] == "separate"
    assert "\nImpression:" in "".join(token.text for token in draft.tokens)
    shutil.rmtree(tmp_path / "cache")


def test_the_recipes_of_med_cxrgen_are_built_at_their_own_sizes_and_every_stage_gives_its_part_a_rate():
    for name, tower, projector in (("med_cxrgen", 290_909_184, 41_975_808), ("med_cxrgen_small", 5_534_064, 963_072)):
        recipe = finetune.tomllib.loads((parameters.RECIPES / f"{name}.toml").read_text())
        assert recipe.keys() == {*STAGES, "decode", "model"}
        config = ModelConfig.from_dict(recipe["model"])
        counts = parameters.count(config)
        assert counts.all["tower"] == tower
        assert counts.trainable["projector"] == projector
        assert counts.trainable.keys() == {"projector", "LLM LoRA"}
        assert DecodeConfig.from_dict(recipe["decode"])
        for stage in STAGES:
            lessons, run = apart(Lessons, recipe[stage])
            assert (lessons.tower, lessons.views, lessons.section) == (False, 4, stage.removeprefix("align_"))
            assert (lessons.projector, lessons.lora) == (stage.startswith("align"), not stage.startswith("align"))
            assert isinstance(run, Run)


def test_every_part_of_a_stage_has_a_rate(make_llm, tokenizer):
    for name in ("med_cxrgen", "med_cxrgen_small"):
        recipe = finetune.tomllib.loads((parameters.RECIPES / f"{name}.toml").read_text())
        for stage in STAGES:
            lessons, run = apart(Lessons, recipe[stage])
            model = Emrrg(PLAIN, make_llm().requires_grad_(True), tokenizer)
            model.visual_encoder.requires_grad_(False)
            leave(model, lessons)
            assert groups(model, run)


def test_what_would_teach_the_wrong_lora_is_refused(tmp_path, film_set, language_folder):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(shrunk("med_cxrgen").replace('section = "findings"\n', ""))
    CLIPVisionModel(CLIPVisionConfig(**SMALL_CLIP, num_hidden_layers=3)).save_pretrained(tmp_path / "tower")
    named = {"recipe": recipe, "start": tmp_path / "tower", "films": film_set, "language-model": language_folder}
    named |= {"section": "findings", "cache": tmp_path / "cache", "out": tmp_path / "out"}
    with pytest.raises(ConfigError, match=r"recompute .* teach one section at a time"):
        finetune.main([part for name, value in named.items() for part in (f"--{name}", str(value))])


def test_a_beam_that_has_part_of_the_heading_lacks_the_rest(made):
    vocabulary = Vocabulary.of(made(PLAIN).tokenizer)
    assert vocabulary.rest_of_heading(Beam()) == vocabulary.heading
    assert vocabulary.rest_of_heading(vocabulary.given("Clear.")) == ()
