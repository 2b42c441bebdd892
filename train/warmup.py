"""Teaches the tower to see before it speaks: findings from the films' own labels, unknown ones left out of the loss.

python -m train.warmup --recipe train/recipes/small.toml --films FILMS.jsonl --out runs/warmup
"""

import argparse
import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from emrrg_core.config import VISION_PRESETS
from emrrg_core.data import FilmCache, Study, augment, development, normalise, read_studies
from emrrg_core.findings import LABELS
from emrrg_core.vision import VisionMamba
from train.loop import Run, train


class LabelReader(nn.Module):
    """The tower and a linear reader of its tokens: class token and mean of all, to one logit per CheXpert label."""

    def __init__(self, tower: VisionMamba) -> None:
        super().__init__()
        self.tower = tower
        self.head = nn.Linear(2 * tower.config.d_model, len(LABELS))

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, s, s) -> (b, 14)."""
        tokens = self.tower(images)
        return self.head(torch.cat([tokens[:, self.tower.config.class_position], tokens.mean(1)], dim=-1))


def known_labels(studies: Sequence[Study]) -> tuple[Tensor, Tensor]:
    """Targets and whether they are known, (n, 14) float32 each."""
    targets = torch.tensor([[float(s.labels.get(name, 0)) for name in LABELS] for s in studies])
    known = torch.tensor([[float(name in s.labels) for name in LABELS] for s in studies])
    return targets, known


class BalancedSampler:
    """Draws sources by their share and, inside a source, normal and abnormal films equally often, so that no source gives its label away more
    than it must. A source with one class only is drawn as it is."""

    def __init__(self, studies: Sequence[Study], shares: dict[str, float], seed: int) -> None:
        self.seed = seed
        self._pools: list[tuple[float, list[list[Study]]]] = []
        for source, share in shares.items():
            mine = [s for s in studies if s.source == source and s.abnormal is not None]
            classes = [c for c in ([s for s in mine if not s.abnormal], [s for s in mine if s.abnormal]) if c]
            if classes:
                self._pools.append((share, classes))

    def batch(self, step: int, size: int) -> tuple[list[Study], np.random.Generator]:
        """The films of a step, and the generator that goes on from there."""
        rng = np.random.default_rng([self.seed, step])
        shares = np.array([share for share, _ in self._pools])
        chosen = []
        for pool in rng.choice(len(self._pools), size=size, p=shares / shares.sum()):
            classes = self._pools[pool][1]
            films = classes[rng.integers(len(classes))]
            chosen.append(films[rng.integers(len(films))])
        return chosen, rng


def balanced_accuracy(truth: np.ndarray, called: np.ndarray) -> float:
    """Mean of sensitivity and specificity; both boolean (n,)."""
    return float((called[truth].mean() + (~called[~truth]).mean()) / 2)


@torch.inference_mode()
def check(reader: LabelReader, studies: Sequence[Study], cache: FilmCache) -> dict[str, float]:
    """Balanced accuracy of normal against abnormal per source, at probability one half."""
    reader.eval()
    result = {}
    for source in sorted({s.source for s in studies}):
        mine = [s for s in studies if s.source == source and s.abnormal is not None]
        truth = np.array([bool(s.abnormal) for s in mine])
        if truth.all() or not truth.any():
            continue
        logits = torch.cat(
            [
                reader(torch.from_numpy(normalise(np.stack([cache[s] for s in mine[i : i + 32]]))))
                for i in range(0, len(mine), 32)
            ]
        )
        result[source] = balanced_accuracy(truth, logits[:, LABELS.index("No Finding")].numpy() < 0)
    return result


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--films", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    recipe = tomllib.loads(args.recipe.read_text())
    run = Run.from_dict(recipe["warmup"])
    studies = read_studies(args.films)
    cache = FilmCache(studies, args.cache)
    learn, develop = development([s for s in studies if s.split == "train" and s.source in run.sources])
    sampler = BalancedSampler(learn, run.sources, run.seed)
    torch.manual_seed(run.seed)
    reader = LabelReader(VisionMamba(VISION_PRESETS[recipe["vision"]]))

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        chosen, rng = sampler.batch(step, run.batch)
        images = torch.from_numpy(normalise(np.stack([augment(cache[s], rng) for s in chosen])))
        targets, known = known_labels(chosen)
        losses = F.binary_cross_entropy_with_logits(reader(images).float(), targets, reduction="none")
        # normal against abnormal is known for every film and counts most
        weight = known * torch.tensor([4.0 if name == "No Finding" else 1.0 for name in LABELS])
        loss = (losses * weight).sum() / weight.sum()
        return loss, {"normal_loss": losses[:, LABELS.index("No Finding")].mean().item()}

    def after(step: int) -> None:
        scores = check(reader, develop, cache)
        print(f"step {step}: balanced accuracy on held-out training films", scores, flush=True)
        save_file(reader.tower.state_dict(), args.out / "tower.safetensors")
        save_file(reader.head.state_dict(), args.out / "head.safetensors")

    train(reader, run, loss_of, args.out, after=after)


if __name__ == "__main__":
    main()
