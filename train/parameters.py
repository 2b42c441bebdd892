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

from emrrg_core.config import VISION_PRESETS, ModelConfig
from emrrg_core.errors import ConfigError, EmrrgError
from emrrg_core.model.emrrg import Emrrg
from emrrg_core.model.language_model import find_language_model
from emrrg_core.model.parameter_count import WHOLES, Counts
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
    return {"recipe": ("**as in the recipe**", config), **rows}


def _possible(config: ModelConfig, design: str) -> bool:
    return design != "combined" or bool(config.hybrid.every_n)


def table(config: ModelConfig) -> Iterable[str]:
    """The designs of one model as a Markdown table, and what becomes of the paper's claim, in lines."""
    counted = {name: (title, count(made)) for name, (title, made) in designs(config).items()}
    own = counted["recipe"][1]
    sizes = ", ".join(f"{name} {own.whole(name):,}" for name in ("tower", "full fine-tuning", "tower + LLM"))
    yield f"{sizes} parameters."
    yield ""
    parts = [p for p in PARTS_SHOWN if any(p in counts.trainable for _, counts in counted.values())]
    yield f"| design | learns | {' | '.join(parts)} | {' | '.join(f'% of {name}' for name in WHOLES)} |"
    yield f"|---|{'---:|' * (1 + len(parts) + len(WHOLES))}"
    for title, counts in counted.values():
        numbers = [f"{counts.learned:,}", *(f"{counts.trainable[p]:,}" if p in counts.trainable else "" for p in parts)]
        yield f"| {title} | {' | '.join([*numbers, *(f'{counts.percent(name):.2f}' for name in WHOLES)])} |"
    if "combined" in counted:
        yield ""
        yield verdict(dict(counted.values()), counted["combined"][1])


def verdict(counted: dict[str, Counts], combined: Counts) -> str:
    """The paper's per cent beside ours, in sentences."""
    adapters = combined.trainable["adapters"]
    tuned = adapters + combined.trainable["projector"]
    nearest = min(
        (abs(counts.percent(whole) - CLAIM), f"{counts.percent(whole):.2f} % ({title.strip('*')}, of {whole})")
        for title, counts in counted.items()
        for whole in WHOLES
    )
    return (
        f"The paper says {CLAIM} %. Adapters and projector: {tuned:,} parameters, "
        f"{combined.percent('full fine-tuning', tuned):.2f} % of full fine-tuning. With hybrid layers and the rest: "
        f"{combined.learned:,}, {combined.percent('full fine-tuning'):.2f} % of full fine-tuning, "
        f"{combined.percent('tower + LLM'):.2f} % of tower and language model together. Adapters alone: "
        f"{combined.percent('tower', adapters):.2f} % of the tower. Nearest to {CLAIM}: {nearest[1]}."
    )


PARTS_SHOWN = ("tower", "adapters", "projector", "hybrid", "finding tokens", "LLM LoRA")
INTRODUCTION = f"""\
# What learns

`python train/parameters.py` counts the parameters of every recipe's model and prints this page; `--json` gives the same numbers.

A percentage is of the **tower** without its adapters, of **full fine-tuning** (tower and projector), of **tower + LLM**, or of **everything** in
the model. The projector learns in every design. So do the finding tokens where a recipe has disease queries; the queries themselves stay frozen.
The rows LoRA(LLM), the paper's LoRA(Llama2), to LoRA_p(X) have rank 16 and no hybrid layers. A language model counts with its published size.

The paper claims {CLAIM} % of full fine-tuning and shows no table for it. Our share is below each table.
"""


def report(recipes: dict[str, dict[str, ModelConfig]], pretrained: dict[str, dict[str, Counts]]) -> str:
    """All of it as a Markdown page; recipes that make the same model share a table."""
    shared: dict[ModelConfig, list[str]] = {}
    for recipe, configs in recipes.items():
        for name, config in configs.items():
            shared.setdefault(config, []).append(f"{recipe} ({name})")
    lines = [INTRODUCTION]
    for config, names in shared.items():
        lines += [f"## {', '.join(names)} beside {config.language}", "", *table(config), ""]
    for recipe, sections in pretrained.items():
        lines += [f"## {recipe}", "", "| section | learns | tower | decoder | % of everything |", f"|---|{'---:|' * 4}"]
        for section, counts in sections.items():
            numbers = [counts.learned, *(counts.trainable[part] for part in ("tower", "decoder"))]
            cells = [section, *(f"{number:,}" for number in numbers), f"{counts.percent('everything'):.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
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
