"""What learns, and what share of what that is: measured on the built model, for every recipe and every design of the ablation
(docs/method.md 3.4, 3.6).

    python train/parameters.py > docs/parameters.md
    python train/parameters.py --json train/recipes/small.toml

Nothing is downloaded or computed: models are built on torch's meta device, where weights have a shape and no values. A language model counts with
its published sizes.
"""

import argparse
import functools
import json
import sys
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, Python looks beside the script only

import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from emrrg_core.config import VISION_PRESETS, ModelConfig, Tower
from emrrg_core.errors import ConfigError, EmrrgError
from emrrg_core.model.emrrg import Emrrg
from emrrg_core.model.language_model import find_language_model
from emrrg_core.model.parameter_count import Counts
from emrrg_core.model.parameter_count import count as count_parameters
from emrrg_core.model.partial_lora import DESIGNS, ablate
from emrrg_core.model.pretraining import ClusterPredictor, PretrainingConfig

RECIPES = Path(__file__).resolve().parent / "recipes"
CLAIM = 2.3  # per cent, "compared to full fine-tuning": the paper's abstract
LANGUAGE: dict[str, dict[str, Any]] = {  # published sizes of the presets of emrrg_core.model.language_model
    "smollm2-135m": {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "llama2-7b": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "tie_word_embeddings": False,
    },
}
LANGUAGE["vicuna-7b"] = LANGUAGE["llama2-7b"]  # Llama 2, taught to converse


def variants(recipe: dict[str, Any]) -> dict[str, ModelConfig]:
    """The models of a recipe: its [model], under the name of its tower ("own" for one of no preset's size), and that with the changes of each of
    its [variants].

    Raises ConfigError for a recipe without model and for settings that make no sense.
    """
    if "model" not in recipe:
        raise ConfigError("A recipe says what is built in its section [model], which is missing.")
    own = ModelConfig.from_dict(recipe["model"])
    changed = {
        name: ModelConfig.from_dict({**recipe["model"], **change})
        for name, change in recipe.get("variants", {}).items()
    }
    return {next((name for name, preset in VISION_PRESETS.items() if preset == own.vision), "own"): own, **changed}


@functools.cache
def count(config: ModelConfig) -> Counts:
    """Build a model without values and count. Raises LanguageModelError when its language model is neither known nor here."""
    if config.language in LANGUAGE:
        language = LlamaConfig(**LANGUAGE[config.language])
    else:
        language = AutoConfig.from_pretrained(find_language_model(config.language, download=False))
    # a tokenizer has no parameters: the smallest will do
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"?": 0}, unk_token="?")))
    with torch.device("meta"):
        model = Emrrg(config, AutoModelForCausalLM.from_config(language), tokenizer)
    return count_parameters(model)


def _part_of_pretraining(name: str) -> str:
    return "tower" if name.startswith(("patch_embed.", "layers.")) else "decoder"


def pretraining(recipe: dict[str, Any]) -> dict[str, Counts]:
    """Counts of each section of a recipe that pretrains a tower (train/pretrain.py)."""
    counted = {}
    for section, settings in recipe.items():
        if isinstance(settings, dict) and "taps" in settings.get("model", ()):
            with torch.device("meta"):
                model = ClusterPredictor(PretrainingConfig.from_dict(settings["model"]))
            counted[section] = count_parameters(model, part=_part_of_pretraining)
    return counted


def designs(config: ModelConfig) -> dict[str, tuple[str, ModelConfig]]:
    """What is counted of a model: the recipe as it stands, then every design, by name, with a title."""
    rows = {name: (title, ablate(config, name)) for name, title in DESIGNS.items() if _possible(config, name)}
    return {"recipe": ("as in the recipe", config), **rows}


def _possible(config: ModelConfig, design: str) -> bool:
    """The combined design needs hybrid layers; adapters, its own and those of most rows, a Mamba."""
    if config.vision.tower is not Tower.MAMBA and design not in ("llm", "projector", "full"):
        return False
    return design != "combined" or bool(config.hybrid.every_n)


Counted = dict[str, tuple[str, Counts]]  # design -> its title and its counts


def counted(config: ModelConfig) -> Counted:
    """The recipe as it stands and every design of one model."""
    return {name: (title, count(made)) for name, (title, made) in designs(config).items()}


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table: words in the first column, numbers in the others; and an empty line."""
    lines = [f"| {' | '.join(cells)} |" for cells in (titles, *rows)]
    return [lines[0], f"|---|{'---:|' * (len(titles) - 1)}", *lines[1:], ""]


def _recipes(models: dict[str, Counted]) -> list[str]:
    """What each recipe's model has and trains, part by part."""
    own = {name: designs["recipe"][1] for name, designs in models.items()}
    parts = [part for part in PARTS_SHOWN if any(part in counts.trainable for counts in own.values())]
    rows = [
        [name, f"{counts.all['tower']:,}", f"{counts.all['LLM']:,}"]
        + [f"{counts.trainable[part]:,}" if part in counts.trainable else "" for part in parts]
        + [f"{counts.learned:,}"]
        for name, counts in own.items()
    ]
    return _table(["recipe (tower)", "tower", "language model", *parts, "learns"], rows)


def _designs(models: dict[str, Counted]) -> list[str]:
    """How many parameters each design trains in each model, and what share of full fine-tuning that is."""
    titles = {name: title for designs in models.values() for name, (title, _) in designs.items() if name != "recipe"}
    rows = []
    for design, title in titles.items():
        found = [designs[design][1] if design in designs else None for designs in models.values()]
        told = [
            f"{counts.learned:,} ({counts.percent('full fine-tuning'):.2f} %)" if counts else "–" for counts in found
        ]
        rows.append([title, *told])
    return _table(["design", *models], rows)


def verdict(designs: Counted) -> tuple[str, ...]:
    """The shares of the paper's design that its per cent may be of."""
    combined = designs["combined"][1]
    adapters = combined.trainable["adapters"]
    tuned = adapters + combined.trainable["projector"]
    return (
        f"{combined.percent('full fine-tuning', tuned):.2f} %",
        f"{combined.percent('full fine-tuning'):.2f} %",
        f"{combined.percent('tower + LLM'):.2f} %",
        f"{combined.percent('tower', adapters):.2f} %",
    )


PARTS_SHOWN = ("tower", "adapters", "projector", "hybrid", "finding tokens", "LLM LoRA")
INTRODUCTION = """\
# What learns

`python train/parameters.py` counts the parameters of every recipe's model and prints this page. `--json` prints every part and every share.

The projector learns in every design. So do the finding tokens where a recipe has disease queries; the queries stay frozen. A language model counts
with its published size.
"""
ABOUT_DESIGNS = """\
Brackets hold the share of full fine-tuning, which trains tower and projector. LoRA(LLM) is the paper's LoRA(Llama2). The rows LoRA(LLM) to
LoRA_p(X) have rank 16 and no hybrid layers.
"""
ABOUT_CLAIM = f"""\
The paper claims {CLAIM} % of full fine-tuning and shows no table for it. For its design, LoRA_p(X) + LoRA(in_proj) + hybrid, we count:
"""


def report(recipes: dict[str, dict[str, ModelConfig]], pretrained: dict[str, dict[str, Counts]]) -> str:
    """All of it as a Markdown page; recipes that make the same model share a column."""
    shared: dict[ModelConfig, list[tuple[str, str]]] = {}
    for recipe, configs in recipes.items():
        for name, config in configs.items():
            shared.setdefault(config, []).append((recipe, name))
    models: dict[str, Counted] = {}
    for config, names in shared.items():
        towers = ", ".join(dict.fromkeys(name for _, name in names))
        models[f"{', '.join(recipe for recipe, _ in names)} ({towers})"] = counted(config)
    lines = [INTRODUCTION]
    if models:
        lines += ["## By recipe", "", *_recipes(models), "## By design", "", ABOUT_DESIGNS, *_designs(models)]
    if told := {name: verdict(designs) for name, designs in models.items() if "combined" in designs}:
        titles = [
            "recipe (tower)",
            "adapters and projector, of full fine-tuning",
            "all that learns, of full fine-tuning",
            "of tower + LLM",
            "adapters, of the tower",
        ]
        lines += [
            "## The paper's claim",
            "",
            ABOUT_CLAIM,
            *_table(titles, [[name, *row] for name, row in told.items()]),
        ]
    for recipe, sections in pretrained.items():
        rows = [
            [section, *(f"{counts.trainable[part]:,}" for part in ("tower", "decoder")), f"{counts.learned:,}"]
            for section, counts in sections.items()
        ]
        lines += [f"## {recipe}", "", *_table(["section", "tower", "decoder", "learns"], rows)]
    return "\n".join(lines).rstrip()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "recipe", type=Path, nargs="*", help="recipes to count; all of train/recipes when none is named"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    try:
        paths = args.recipe or sorted(RECIPES.glob("*.toml"))
        read = {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in paths}
        pretrained = {name: sections for name, recipe in read.items() if (sections := pretraining(recipe))}
        recipes = {name: variants(recipe) for name, recipe in read.items() if name not in pretrained}
        if not args.json:
            print(report(recipes, pretrained))
            return 0
        rows = [
            {"recipe": recipe, "variant": name, "language": config.language, "design": design} | count(made).to_dict()
            for recipe, configs in recipes.items()
            for name, config in configs.items()
            for design, (_, made) in designs(config).items()
        ] + [
            {"recipe": recipe, "variant": section, "language": None, "design": "pretraining"} | counts.to_dict()
            for recipe, sections in pretrained.items()
            for section, counts in sections.items()
        ]
        print(json.dumps(rows, indent=1))
    except (EmrrgError, OSError, tomllib.TOMLDecodeError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
