"""train/parameters.py counts what the built model trains and of what that is a share; docs/parameters.md is what it prints."""

import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from emrrg_core.config import DecodeConfig, Gate, LowRankConfig, ModelConfig, PromptTokens
from emrrg_core.model.emrrg import Emrrg
from emrrg_core.model.language_model import PRESETS
from emrrg_core.model.partial_lora import DESIGNS, ablate
from tests.conftest import TINY
from train import parameters
from train.loop import Run, groups

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "parameters.md"
PUBLISHED = ("iu_xray", "mimic_cxr", "chexpert_plus")


def recipe(name: str) -> dict:
    return tomllib.loads((parameters.RECIPES / f"{name}.toml").read_text())


def counted(variant: str, design: str) -> parameters.Counts:
    return parameters.count(ablate(parameters.variants(recipe("iu_xray"))[variant], design))


# -------------------------------------------------------------------------------------------------------- what is counted


@pytest.mark.parametrize("design", DESIGNS)
def test_the_counts_are_those_of_a_model_that_was_really_built(design, make_llm, tokenizer, language_folder):
    """With weights, without torch's meta device."""
    config = ablate(replace(TINY, language=str(language_folder)), design, LowRankConfig(rank=2))
    model = Emrrg(config, make_llm(), tokenizer)
    counts = parameters.count(config)
    assert counts.learned == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counts.whole("everything") == sum(p.numel() for p in model.parameters())
    assert counts.all["LLM"] == sum(p.numel() for n, p in model.llm.named_parameters() if "lora" not in n)
    assert counts.whole("full fine-tuning") == counts.all["tower"] + counts.all["projector"]
    assert counts.percent("full fine-tuning") == 100 * counts.learned / counts.whole("full fine-tuning")


def test_what_learns_is_told_apart_by_part():
    counts = counted("base", "combined")
    assert counts.trainable == {"adapters": 294_912 + 442_368, "projector": 3_158_016, "hybrid": 134_266_888}
    assert counted("base", "llm").trainable == {"projector": 3_158_016, "LLM LoRA": 8_388_608}
    assert counted("base", "full").trainable == {"tower": 84_262_656, "projector": 3_158_016}


@pytest.mark.parametrize(
    ("variant", "tower", "full"), [("base", 84_262_656, 87_420_672), ("large", 296_010_720, 300_217_312)]
)
def test_towers_and_full_fine_tuning_have_their_published_sizes(variant, tower, full):
    """docs/method.md 1.1, 1.9."""
    counts = counted(variant, "full")
    assert (counts.whole("tower"), counts.whole("full fine-tuning"), counts.learned) == (tower, full, full)


@pytest.mark.parametrize(
    ("name", "total"), [("smollm2-135m", PRESETS["smollm2-135m"].wheel.parameters), ("llama2-7b", 6_738_415_616)]
)
def test_language_models_have_their_published_sizes(name, total):
    assert parameters.count(ablate(ModelConfig(language=name), "projector")).all["LLM"] == total


def test_every_language_model_that_has_a_name_can_be_counted():
    assert parameters.LANGUAGE.keys() == PRESETS.keys()


def test_pretraining_counts_encoder_and_decoder_as_published():
    """docs/method.md 2.1: 80.04 and 282.46 million, and 19.4 and 21.5 million, with the fixed positions and the mask, which do not learn."""
    counts = parameters.pretraining(recipe("pretrain"))
    for name, width, tower, decoder in (("base", 768, 80.04, 19.4), ("large", 1024, 282.46, 21.5)):
        learned, fixed, mask = counts[name].trainable, 144, 128 * 128
        assert round((learned["tower"] + fixed * width) / 1e6, 2) == tower
        assert round((learned["decoder"] + fixed * 512 + mask) / 1e6, 1) == decoder
        assert counts[name].percent("everything") == 100


# ---------------------------------------------------------------------------------------------------------- what is said


def test_the_page_of_the_docs_is_what_the_command_prints(capsys):
    assert parameters.main([]) == 0
    printed = capsys.readouterr().out
    stale = "run `python train/parameters.py > docs/parameters.md`"
    assert printed == PAGE.read_text(encoding="utf-8"), stale


def test_the_page_has_the_counts_of_every_recipe_and_every_design():
    recipes = {path.stem: tomllib.loads(path.read_text()) for path in parameters.RECIPES.glob("*.toml")}
    trained = {name: parameters.variants(made) for name, made in recipes.items() if not parameters.pretraining(made)}
    page = parameters.report(trained, {"pretrain": parameters.pretraining(recipes["pretrain"])})
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    for name, variants in trained.items():
        for config in variants.values():
            counts = parameters.count(config)
            assert any(name in row[0] and row[-1] == f"{counts.learned:,}" for row in rows), name
    for design, title in DESIGNS.items():
        (cells,) = [row[1:] for row in rows if row[0] == title]
        for variant in ("base", "large"):
            counts = counted(variant, design)
            assert f"{counts.learned:,} ({counts.percent('full fine-tuning'):.2f} %)" in cells, (design, variant)
    # by hand: 3,895,296 of 87,420,672 and 138,162,184 of 6,822,678,272
    designs = parameters.counted(parameters.variants(recipe("iu_xray"))["base"])
    assert parameters.verdict(designs) == ("4.46 %", "158.04 %", "2.03 %", "0.87 %")


@pytest.mark.parametrize("how", [["train/parameters.py"], ["-m", "train.parameters"]])
def test_it_runs_as_a_script_and_as_a_module(how, tmp_path, language_folder):
    path = tmp_path / "tiny.toml"
    vision, language = "{ image_size = 32, d_model = 16, depth = 1 }", json.dumps(str(language_folder))
    path.write_text(f'[model]\nlanguage = {language}\nvision = {vision}\nprompt = {{ tokens = "all" }}\n')
    done = subprocess.run([sys.executable, *how, "--json", path], cwd=ROOT, capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)
    assert [row["design"] for row in rows] == ["recipe", *DESIGNS]
    for row in rows:
        assert (row["recipe"], row["variant"], row["language"]) == ("tiny", "own", str(language_folder))
        assert sum(row["parts"].values()) == row["trainable"]
        assert row["of"].keys() == {"tower", "full fine-tuning", "tower + LLM", "everything"}
        for share in row["of"].values():
            assert share["percent"] == round(100 * row["trainable"] / share["parameters"], 4)


def test_a_model_without_hybrid_layers_has_no_combined_design(tmp_path, capsys):
    path = tmp_path / "plain.toml"
    path.write_text("[model]\nvision = { depth = 1 }\nhybrid = { every_n = 0 }\n")
    assert parameters.main([str(path)]) == 0
    assert "+ hybrid" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[finetune]\nsteps = 1\n", "[model], which is missing"),
        ("[model]\ncolour = 1\n", "no settings called ['colour']"),
        ("[model]\n[variants.large]\ndepth = 24\n", "no settings called ['depth']"),
        ("vision =\n", "Invalid value"),
        (None, "No such file"),
    ],
)
def test_a_recipe_that_cannot_be_counted_is_refused_in_words(tmp_path, capsys, text, said):
    path = tmp_path / "recipe.toml"
    if text is not None:
        path.write_text(text)
    assert parameters.main([str(path)]) == 2
    assert said in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- the published recipes


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_has_only_settings_that_are_known(name):
    read = recipe(name)
    assert read.keys() == {"finetune", "decode", "model", "variants"}
    run = Run.from_dict(read["finetune"])
    assert run.sources == {name: 1.0}
    assert (run.seed, set(run.learning_rates.values())) == (42, {1e-4})
    assert DecodeConfig.from_dict(read["decode"]).repetition_penalty == 2.0


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_is_the_papers_design_on_both_towers(name):
    made = parameters.variants(recipe(name))
    assert {variant: (c.vision.d_model, c.vision.depth) for variant, c in made.items()} == {
        "base": (768, 12),
        "large": (1024, 24),
    }
    for config in made.values():
        assert config.language == "llama2-7b"
        assert list(config.adapters.low_rank()) == ["x", "in_proj"]
        assert (config.hybrid.every_n, config.hybrid.gate) == (8, Gate.WHOLE_DYNAMIC_TANH_WARMUP)
        assert config.prompt == replace(ModelConfig().prompt, tokens=PromptTokens.ALL)
        assert config.language_lora.rank == 0


@pytest.mark.parametrize("design", DESIGNS)
def test_a_published_recipe_gives_every_part_that_learns_a_rate_whatever_the_design(design, make_llm, tokenizer):
    llm: LlamaForCausalLM = make_llm()
    model = Emrrg(ablate(TINY, design, LowRankConfig(rank=2)), llm, tokenizer)
    learning = [p for p in model.parameters() if p.requires_grad]
    for name in PUBLISHED:
        grouped = [p for g in groups(model, Run.from_dict(recipe(name)["finetune"])) for p in g["params"]]
        assert {id(p) for p in grouped} == {id(p) for p in learning}
        assert len(grouped) == len(learning)
