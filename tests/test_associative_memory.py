"""AM-MRG's associative memory: what is stored comes back, only training films and reports are stored, and what it changes can be measured."""

import json
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from emrrg_core.config import DecodeConfig, MemoryConfig, ModelConfig, QueryConfig, VisionConfig
from emrrg_core.data.studies import development, read_studies
from emrrg_core.errors import CheckpointError, ConfigError
from emrrg_core.model import checkpoint as checkpoints
from emrrg_core.model.associative_memory import AssociativeMemory, HopfieldMemory, Patterns, retrieve
from emrrg_core.model.emrrg import DISEASE, MEMORY, Emrrg
from emrrg_core.model.generation import write
from emrrg_core.text.labeler import LABELS
from tests import tiny
from tests.conftest import surely
from tests.phantom import make_phantom
from train import finetune, patterns
from train.paths import changes

RECIPES = Path(__file__).parents[1] / "train" / "recipes"
SMALL = MemoryConfig(visual=9, report=5, report_width=12, heads=2, head_width=7, dropout=0.0)


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------- the Hopfield network


def test_a_stored_pattern_comes_back_exactly_at_a_high_beta_and_their_mean_at_none():
    stored = 24**0.5 * torch.nn.functional.normalize(some(40, 24))  # of one length, as LayerNorm makes them
    damaged = stored + 0.3 * some(40, 24, seed=1)
    torch.testing.assert_close(retrieve(damaged, stored, beta=100.0), stored, rtol=0, atol=1e-5)
    assert (retrieve(damaged, stored, beta=0.05) - stored).abs().max() > 0.1, "a low beta mixes patterns"
    torch.testing.assert_close(retrieve(damaged, stored, beta=0.0), stored.mean(0).expand_as(stored))


def test_each_step_brings_a_state_nearer_to_what_it_resembles():
    stored = 24**0.5 * torch.nn.functional.normalize(some(12, 24))
    damaged = stored + 0.8 * some(12, 24, seed=1)
    off = [(retrieve(damaged, stored, 0.7, steps) - stored).norm() for steps in (0, 1, 2)]
    assert off[2] < off[1] < off[0]


def test_the_layer_is_the_published_formula():
    """docs/method.md 8.2, head by head."""
    d = 10
    torch.manual_seed(0)
    layer = HopfieldMemory(d, 12, SMALL).eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    states, stored = some(2, 3, d), some(5, 12, seed=1)
    answers, weights = layer(states, stored)
    parts, shares = [], []
    for head in range(2):
        rows, wide = slice(7 * head, 7 * head + 7), slice(d * head, d * head + d)
        q = 4.0 * (layer.norm_state(states) @ layer.queries.weight[rows].T + layer.queries.bias[rows])
        k = layer.norm_stored(stored) @ layer.keys.weight[rows].T + layer.keys.bias[rows]
        v = layer.norm_answer(stored) @ layer.values.weight[wide].T + layer.values.bias[wide]
        shares.append((q @ k.T).softmax(-1))
        parts.append(shares[-1] @ v)
    expected = torch.cat(parts, -1) @ layer.out.weight.T + layer.out.bias
    torch.testing.assert_close(answers, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(weights, torch.stack(shares).mean(0), rtol=1e-4, atol=1e-5)


def test_the_published_sizes_have_the_published_number_of_parameters():
    layer = HopfieldMemory(768, 768, MemoryConfig(head_width=1024))
    # docs/method.md 8.2, as released: 6144 x 768 twice, 4608 x 768, a bias of 16896, and out 768 x 4608 with a bias; three norms
    assert sum(p.numel() for p in layer.parameters()) == 2 * 6144 * 768 + 2 * 4608 * 768 + 16896 + 768 + 3 * 2 * 768


# ------------------------------------------------------------------------------------------------------------ the model


@pytest.fixture
def remembering(build, open_gates) -> Emrrg:
    """Disease tokens and a memory of random patterns, no finding token."""
    torch.manual_seed(0)
    model = surely(open_gates(build(queries=True, told=False, memory=SMALL)))
    with torch.no_grad():
        model.memory.visual.normal_()
        model.memory.report.normal_()
        for memory in model.memory.memories.values():
            for parameter in memory.parameters():
                parameter.normal_(0, 0.5)
    return model


def test_the_hybrid_layers_see_disease_tokens_and_answers_of_both_memories(remembering, images):
    film = remembering.encode(images)
    assert film.finding_tokens is None
    assert film.disease.shape[1] == len(LABELS)
    assert film.remembered.shape[1] == 2 * len(LABELS)
    visual = remembering.precompute_keys_values(film)
    assert visual.sizes[DISEASE] == len(LABELS)
    assert visual.sizes[MEMORY] == 2 * len(LABELS)


def test_what_the_memory_changes_can_be_taken_away_and_exchanged(remembering, images):
    film = remembering.encode(images)
    ids = torch.tensor([[5, 9, 3, 7]] * len(film))
    own = remembering.log_probs(film, ids)
    made = changes(film, film.select([*range(1, len(film)), 0]))
    assert {"memory_off", "memory_other", "disease_other"} <= made.keys()
    off, other = (remembering.log_probs(made[name], ids) for name in ("memory_off", "memory_other"))
    assert (own - off).abs().max() > 1e-4
    assert (own - other).abs().max() > 1e-4


def test_a_draft_is_written_and_a_checkpoint_keeps_the_patterns(remembering, images, tmp_path, language_folder):
    first = [w.text for w in write(remembering, remembering.encode(images), DecodeConfig(max_new_tokens=6))]
    checkpoints.save(remembering, tmp_path / "c", language={"name": "tiny"}, training={})
    again, _ = checkpoints.load(tmp_path / "c", language_model=language_folder)
    assert again.memory.visual.shape == (9, remembering.config.vision.d_model)
    torch.testing.assert_close(again.memory.report, remembering.memory.report, rtol=1e-3, atol=1e-3)
    assert len(first) == len(images)
    assert all(first), "something is written of each film"


def test_patterns_of_another_size_are_refused_with_the_right_numbers():
    memory = AssociativeMemory(16, SMALL)
    found = Patterns(some(8, 16), some(5, 12), ("a",) * 8, ("r",) * 5, ("Edema",) * 8)
    with pytest.raises(CheckpointError, match=r"memory\.visual = 8"):
        memory.hold(found)
    with pytest.raises(ConfigError, match="asked by disease tokens"):
        ModelConfig(memory=MemoryConfig(visual=4))


def test_damaged_patterns_are_refused(tmp_path):
    found = Patterns(some(2, 16), some(3, 12), ("a", "b"), ("r", "s", "t"), ("Edema", "Edema"))
    found.save(tmp_path / "p.safetensors")
    assert Patterns.load(tmp_path / "p.safetensors").reports == ("r", "s", "t")
    replace(found, films=("a",)).save(tmp_path / "q.safetensors")
    (tmp_path / "r.safetensors").write_bytes((tmp_path / "p.safetensors").read_bytes()[:-9])
    for name in ("q", "r", "none"):
        with pytest.raises(CheckpointError, match=r"train\.patterns"):
            Patterns.load(tmp_path / f"{name}.safetensors")


# --------------------------------------------------------------------------------------------------- what is remembered


@pytest.fixture
def sets(tmp_path) -> Path:
    """Thirty phantoms in three splits, with reports."""
    rows = []
    for i in range(30):
        phantom = make_phantom(i, height=128, width=128, lesion=("opacity", "effusion", None)[i % 3])
        rows.append((phantom, {"split": ("train", "train", "train", "val", "test")[i % 5], "patient": f"p{i}"}))
    return tiny.film_set(tmp_path, rows)


def built(sets: Path, reading_checkpoint: Path, language_folder: Path, out: Path, *more: str) -> Patterns:
    texts = [json.loads(line) for line in (sets.parent / "reports.jsonl").read_text().splitlines()]
    for number, row in enumerate(texts):  # some reports of other splits beside
        row["split"] = ("train", "train", "val", "test")[number % 4]
    (sets.parent / "reports.jsonl").write_text("\n".join(map(json.dumps, texts)))
    sure = sets.parent / "sure"  # a checkpoint in which patches speak for findings
    shutil.copytree(reading_checkpoint, sure, dirs_exist_ok=True)
    weights = load_file(sure / "model.safetensors")
    weights["disease.head.3.bias"] += 8
    save_file(weights, sure / "model.safetensors")
    patterns.main(
        [
            *("--checkpoint", f"{sure}", "--films", f"{sets}", "--reports", f"{sets.parent / 'reports.jsonl'}"),
            *(
                "--out",
                f"{out}",
                "--cache",
                f"{sets.parent / 'cache'}",
                "--language-model",
                f"{language_folder}",
                *more,
            ),
        ]
    )
    return Patterns.load(out)


@pytest.mark.parametrize("way", ["closed form", "--grad-cam"])
def test_nothing_of_another_split_and_no_development_film_is_remembered(
    sets, reading_checkpoint, language_folder, tmp_path, way
):
    found = built(
        sets, reading_checkpoint, language_folder, tmp_path / "p.safetensors", *([way] if way[0] == "-" else [])
    )
    studies = {s.id: s for s in read_studies(sets)}
    learn, develop = development([s for s in studies.values() if s.split == "train"])
    assert develop
    assert set(found.films) <= {s.id for s in learn}
    assert all(studies[name].labels.get(label) == 1 for name, label in zip(found.films, found.labels, strict=True))
    texts = {
        row["id"]: row["split"] for row in map(json.loads, (sets.parent / "reports.jsonl").read_text().splitlines())
    }
    assert {texts[name] for name in found.reports} == {"train"}
    assert {"val", "test"} <= set(texts.values())


def test_the_same_inputs_give_the_same_file(sets, reading_checkpoint, language_folder, tmp_path):
    for name in ("a", "b"):
        torch.manual_seed(hash(name) % 1000)  # it must not matter
        built(sets, reading_checkpoint, language_folder, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


# ------------------------------------------------------------------------------------------------- the published sizes


def test_the_second_stage_with_the_papers_widths_does_a_step_and_a_draft(tokenizer):
    """The tower and the Q-Former have two layers and the language model one: nothing is as wide as published but the parts that are this method's."""
    recipe = tomllib.loads((RECIPES / "am_mrg.toml").read_text())
    config = ModelConfig.from_dict(recipe["model"])
    small = replace(config.memory, visual=20, report=10)
    shallow = replace(
        config, vision=replace(config.vision, depth=2), queries=replace(config.queries, depth=2), memory=small
    )
    torch.manual_seed(0)
    llama = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4
    )
    model = Emrrg(shallow, LlamaForCausalLM(llama), tokenizer)
    assert model.memory.memories["report"].keys.weight.shape == (6144, 768)
    assert model.disease.former.into.out_features == 1408
    model.memory.visual.normal_()
    model.memory.report.normal_()
    film = model.encode(some(1, 1, 3, 224, 224))
    loss = model(film, torch.tensor([[5, 9, 3]])).total
    loss.backward()
    assert model.visual_encoder.patch_embed.proj.weight.grad is not None
    model.eval()
    with torch.inference_mode():
        film = model.encode(some(1, 1, 3, 224, 224))
        assert len(write(model, film, DecodeConfig(max_new_tokens=3))[0].tokens) <= 3


def test_the_small_recipe_trains_with_and_without_its_memory(sets, reading_checkpoint, language_folder, tmp_path):
    found = built(sets, reading_checkpoint, language_folder, tmp_path / "p.safetensors")
    recipe = (RECIPES / "am_mrg_small.toml").read_text()
    config = checkpoints.read_config(reading_checkpoint)["model"]
    model = tomllib.loads(recipe)["model"]
    ours = {
        "vision": config.vision.to_dict(),
        "adapters": config.adapters.to_dict(),
        "queries": config.queries.to_dict() | {"told": False},
        "memory": {"visual": len(found.visual), "report": len(found.report), "report_width": found.report.shape[1]},
        "prompt": config.prompt.to_dict() | {"tokens": "none"},
        "language_lora": model["language_lora"] | {"rank": 2},
        "hybrid": model["hybrid"] | {"every_n": 1},
    }
    text = recipe[: recipe.index("\n[model]\n")].replace("steps = 200", "steps = 2").replace("batch = 8", "batch = 2")
    text = text.replace("kermany = 0.4, nih_talo = 0.4, covidrad = 0.2", "ours = 1.0")
    text += "\n[model]\nlanguage = 'tiny'\n" + "\n".join(f"{n} = {_toml(v)}" for n, v in ours.items())
    text += recipe[recipe.index("\n[variants") :]
    (tmp_path / "r.toml").write_text(text)
    common = [
        "--recipe",
        f"{tmp_path / 'r.toml'}",
        "--films",
        f"{sets}",
        "--reports",
        f"{sets.parent / 'reports.jsonl'}",
    ]
    common += [
        "--start",
        f"{reading_checkpoint}",
        "--language-model",
        f"{language_folder}",
        "--cache",
        f"{tmp_path / 'cache'}",
    ]
    finetune.main([*common, "--out", f"{tmp_path / 'with'}", "--patterns", f"{tmp_path / 'p.safetensors'}"])
    finetune.main([*common, "--out", f"{tmp_path / 'off'}", "--variant", "without"])
    taught, _ = checkpoints.load(tmp_path / "with" / "checkpoint", language_model=language_folder)
    torch.testing.assert_close(taught.memory.visual, found.visual, rtol=1e-2, atol=1e-2)
    bare, _ = checkpoints.load(tmp_path / "off" / "checkpoint", language_model=language_folder)
    assert not bare.memory.memories
    plain = {"memory": {"visual": 0, "report": 0}, "queries": config.queries.to_dict()}
    (tmp_path / "r.toml").write_text(
        f"{text}\n[variants.plain]\n" + "\n".join(f"{n} = {_toml(v)}" for n, v in plain.items())
    )
    with pytest.raises(ConfigError, match="no associative memory"):
        finetune.main(
            [*common, "--out", f"{tmp_path / 'x'}", "--variant", "plain", "--patterns", f"{tmp_path / 'p.safetensors'}"]
        )


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{n} = {_toml(v)}" for n, v in value.items()) + " }"
    return json.dumps(value)


def test_the_first_stage_with_swin_l_and_the_q_former_reads_findings():
    recipe = tomllib.loads((RECIPES / "am_mrg_stage_1.toml").read_text())
    from train.tower import Eye

    vision = replace(VisionConfig.from_dict(recipe["model"]["vision"]), depth=2)
    queries = replace(QueryConfig.from_dict(recipe["model"]["queries"]), depth=2)
    torch.manual_seed(0)
    eye = Eye(vision, queries)
    seen = eye(some(1, 3, 224, 224))
    assert seen.disease.shape == (1, len(LABELS), 1536)
    torch.nn.functional.softplus(seen.logits).sum().backward()
    assert eye.disease.former.queries.grad.abs().sum() > 0
