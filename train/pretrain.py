"""Stage 1: teaches the tower to predict the next cluster of patches, from films alone (docs/method.md 2.1), and converts it for the next stage (2.2).

    python -m train.pretrain --recipe train/recipes/pretrain.toml --films FILMS.jsonl --out runs/pretrain

`--section` names a section of the recipe: `pretrain` is for a laptop, `base` and `large` are the published settings. Labels and reports are not
used. Writes tower.safetensors and config.json, from which the next stages start. See docs/pretraining.md.
"""

import argparse
import functools
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from emrrg_core.config import Settings
from emrrg_core.data.studies import FilmCache, development, normalise, read_studies
from emrrg_core.errors import ConfigError, DataError
from emrrg_core.model.convert import save_tower
from emrrg_core.model.pretraining import ClusterPredictor, PretrainingConfig, to_tower
from train.loop import Part, Run, train

HELD_OUT = 256  # films at most on which the loss is measured, from patients that nothing is learned from


@dataclass(frozen=True, kw_only=True)
class ViewConfig(Settings):
    """How a film is shown in this stage: a part of it, at random (docs/method.md 2.1)."""

    film_size: int = 224  # pixels, square: what parts are cut from
    smallest: float = 0.2  # of the film's area
    mirror: bool = True  # every second time; no word of side is learned here

    def __post_init__(self) -> None:
        if not 0 < self.smallest <= 1:
            raise ConfigError(f"smallest must be a share above 0 and up to 1, not {self.smallest}.")


def view(film: np.ndarray, size: int, config: ViewConfig, rng: np.random.Generator) -> np.ndarray:
    """A random part of a film (s, s) in [0, 255], at most a third longer than wide or wider than long, as (size, size) float32."""
    whole = film.shape[0]
    for _ in range(10):
        area = whole * whole * rng.uniform(config.smallest, 1)
        ratio = math.exp(rng.uniform(-math.log(4 / 3), math.log(4 / 3)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if width <= whole and height <= whole:
            break
    else:
        width = height = whole
    left, top = rng.integers(whole - width + 1), rng.integers(whole - height + 1)
    part = film[top : top + height, left : left + width]
    return resized(part[:, ::-1] if config.mirror and rng.random() < 0.5 else part, size)


def resized(part: np.ndarray, size: int) -> np.ndarray:
    """(h, w) in [0, 255] to (size, size) float32."""
    how = cv2.INTER_AREA if part.shape[0] > size else cv2.INTER_CUBIC
    return np.clip(cv2.resize(np.ascontiguousarray(part, np.float32), (size, size), interpolation=how), 0, 255)


class Order:
    """Numbers of the films of each step: all films once, in another order each epoch, then the next epoch."""

    def __init__(self, films: int, batch: int, seed: int) -> None:
        self._films, self._batch, self._seed = films, batch, seed
        self._epoch = functools.lru_cache(2)(lambda n: np.random.default_rng([seed, n]).permutation(films))

    def __call__(self, step: int) -> list[int]:
        places = range(step * self._batch, (step + 1) * self._batch)
        return [int(self._epoch(place // self._films)[place % self._films]) for place in places]


def settings(section: dict[str, Any], films: int) -> tuple[Run, PretrainingConfig, ViewConfig]:
    """A section of a recipe, for a set of so many films: `epochs` and `warmup_epochs` become the loop's steps. Raises ConfigError."""
    rest = dict(section)
    model, seen = PretrainingConfig.from_dict(rest.pop("model", {})), ViewConfig.from_dict(rest.pop("view", {}))
    for name, steps in (("epochs", "steps"), ("warmup_epochs", "warmup")):
        if name in rest:
            if steps in rest:
                raise ConfigError(f"Give {name} or {steps}, not both.")
            rest[steps] = max(round(rest.pop(name) * films / rest["batch"]), 1)
    return Run.from_dict(rest), model, seen


@torch.inference_mode()
def held_out_loss(model: ClusterPredictor, films: Sequence[np.ndarray]) -> tuple[float, float]:
    """The loss on whole films, and what predicting each patch's mean would lose."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    lost = mean = 0.0
    for i in range(0, len(films), 16):
        seen = np.stack([resized(film, model.config.image_size) for film in films[i : i + 16]])
        images = torch.from_numpy(normalise(seen)).to(device)
        lost += model.loss(model(images), images).item() * len(images)
        mean += model.targets(images).square().mean().item() * len(images)
    model.train(training)
    return lost / len(films), mean / len(films)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--section", default="pretrain")
    parser.add_argument("--films", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--workers", type=int, default=0, help="processes that decode the films on the first run")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    recipe = tomllib.loads(args.recipe.read_text())
    if args.section not in recipe:
        raise ConfigError(f"{args.recipe} has no section [{args.section}]; it has {sorted(recipe)}.")

    studies = read_studies(args.films)
    learn, develop = development([s for s in studies if s.split == "train"])
    films = [(study, i) for study in learn for i in range(len(study.files))]
    run, config, seen = settings(recipe[args.section], len(films))
    if len(films) < run.batch:
        raise DataError(f"{args.films} has {len(films)} films to learn from, fewer than a batch of {run.batch}.")
    # of all studies: one cache for all stages
    cache = FilmCache(studies, args.cache, seen.film_size, workers=args.workers)
    held = [cache[study] for study in develop[:: math.ceil(len(develop) / HELD_OUT)]]
    order = Order(len(films), run.batch, run.seed)
    torch.manual_seed(run.seed)
    model = ClusterPredictor(config)
    print(
        f"{len(films)} films to learn from, {len(held)} held out; {run.steps} steps of {run.batch}; "
        f"{sum(p.numel() for p in model.parameters()):,} parameters",
        flush=True,
    )

    def show(step: int, place: int, number: int) -> np.ndarray:
        study, which = films[number]
        return view(cache.views(study)[which], config.image_size, seen, np.random.default_rng([run.seed, step, place]))

    def loss_of(part: Part) -> tuple[Tensor, dict[str, float]]:
        shown = [show(part.step, place, number) for place, number in part.of(list(enumerate(order(part.step))))]
        images = torch.from_numpy(normalise(np.stack(shown))).to(part.device)
        return model.loss(model(images), images) / part.count, {}

    def after(step: int) -> dict[str, float]:
        notes = {"stage": "pretrained", "recipe": recipe[args.section], "step": step}
        state = {name: value.cpu() for name, value in model.state_dict().items()}
        save_tower(args.out, to_tower(state, config.vision, seed=run.seed), config.vision, notes)
        loss, mean = held_out_loss(model, held)
        print(f"step {step}: held-out loss {loss:.4f}; predicting each patch's mean would lose {mean:.4f}", flush=True)
        return {"held_out": loss, "held_out_mean": mean}

    train(model, run, loss_of, args.out, after=after)


if __name__ == "__main__":
    main()
