"""Teaches the tower's stem to recognise a film, without any label: the first stage (SimCLR, Chen et al. 2020, arXiv 2002.05709).

    python -m train.contrast --recipe train/recipes/small.toml --films FILMS.jsonl FILMS_MORE.jsonl --out runs/contrast

Two crops of a film are mirrored, exposed and blurred differently. The stem learns to find the second among the crops of all other films of the
step. Films without labels teach too. train.tower goes on from out/reader.safetensors. On a GPU the films stay in its memory. The shipped stem was
trained on a GPU (docs/experiments.md 24).
"""

import argparse
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from emrrg_core.config import Settings, Stem, VisionConfig
from emrrg_core.data.studies import FilmCache, Study, development, normalise, read_studies
from emrrg_core.errors import ConfigError
from emrrg_core.model.vision_mamba import ConvolutionalStem
from train.loop import Part, apart, train


@dataclass(frozen=True, kw_only=True)
class Lessons(Settings):
    """What a recipe's [contrast] says beside the loop's settings."""

    size: int = 224  # pixels along a side of what the stem is shown
    temperature: float = 0.15


class Member(nn.Module):
    """A stem, and the head whose answers are contrasted; train.tower needs the stem alone. Raises ConfigError for a tower with another stem."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        if config.stem is not Stem.CONVOLUTION:
            raise ConfigError(
                f"train.contrast trains a convolutional stem, and this recipe's tower has a {config.stem} one"
            )
        self.stem = ConvolutionalStem(config)
        for module in self.stem.modules():
            if type(module) is nn.GroupNorm:
                module.__class__ = _OwnPrecision
        width = 2 * config.d_model
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128))

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, s, s) -> what is contrasted (n, 128), from the mean and the maximum of a film's patches."""
        patches = self.stem(images)
        contrasted: Tensor = self.head(torch.cat([patches.mean(1), patches.amax(1)], dim=1))
        return contrasted


class _OwnPrecision(nn.GroupNorm):
    """Autocast would normalise in float32 on a GPU, which takes longer than the convolutions. The sums inside are float32 all the same."""

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type == "cpu":
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
            return F.group_norm(input, self.num_groups, weight, bias, self.eps)


# ------------------------------------------------------------------------------------------------------ what is shown


def _uniform(films: Tensor, low: float, high: float) -> Tensor:
    """A number for every film, (n, 1, 1)."""
    return torch.empty(len(films), 1, 1, device=films.device).uniform_(low, high)


def warp(films: Tensor, turn: Tensor, width: Tensor, height: Tensor, x: Tensor, y: Tensor, size: int) -> Tensor:
    """Films (n, s, s) turned by radians, with a window of that share of the width (below 0: mirrored) and height, its middle at (x, y) in [-1, 1];
    each number (n, 1, 1). Returns (n, size, size), black where the window leaves the film."""
    cos, sin = turn.cos(), turn.sin()
    rows = [torch.cat([cos * width, -sin * width, x], dim=2), torch.cat([sin * height, cos * height, y], dim=2)]
    grid = F.affine_grid(torch.cat(rows, dim=1), [len(films), 1, size, size], align_corners=False)
    return F.grid_sample(films[:, None], grid, align_corners=False)[:, 0]


def images_of(films: Tensor) -> Tensor:
    """(n, s, s) in [0, 255] to (n, 3, s, s), as `data.normalise` does."""
    zero, one = (torch.from_numpy(normalise(np.full((1, 1), grey)))[:, 0, 0].to(films.device) for grey in (0.0, 255.0))
    return films[:, None] / 255 * (one - zero)[:, None, None] + zero[:, None, None]


def cropped(films: Tensor, size: int) -> Tensor:
    """A quarter of the film to all of it, mirrored or not, exposed otherwise, blurred, noisy. (n, s, s) in [0, 255] -> (n, size, size)."""
    share, longer = _uniform(films, 0.25, 1.0).sqrt(), _uniform(films, -0.2, 0.2).exp()
    width, height = (share * longer).clamp(max=1), (share / longer).clamp(max=1)
    x, y = _uniform(films, -1, 1) * (1 - width), _uniform(films, -1, 1) * (1 - height)
    mirrored = torch.where(_uniform(films, 0, 1) < 0.5, -1.0, 1.0)
    seen = warp(films, _uniform(films, -0.2, 0.2), width * mirrored, height, x, y, size)
    seen = 255 * (seen / 255).clamp(0, 1) ** _uniform(films, -0.6, 0.6).exp() * _uniform(films, 0.6, 1.4)
    seen = seen + _uniform(films, -50, 50)
    blur = _uniform(films, -1, 1).clamp(min=0)
    seen = seen * (1 - blur) + F.avg_pool2d(seen[:, None], 5, 1, 2)[:, 0] * blur
    return (seen + torch.randn_like(seen) * _uniform(films, 0, 8)).clamp(0, 255)


class Draw:
    """Which films a step shows: every source its share, and each film at most once a step, since a film must not be its own opposite."""

    def __init__(self, studies: Sequence[Study], shares: dict[str, float], seed: int) -> None:
        """Raises ConfigError where no film is of these sources."""
        self._seed = seed
        pools = [(share, np.array([i for i, s in enumerate(studies) if s.source == source], int)) for source, share in shares.items()]  # fmt: skip
        self._pools = [(share, films) for share, films in pools if len(films)]
        if not self._pools:
            raise ConfigError(f"there is no training film of {sorted(shares)}: name the recipe's sources")

    def step(self, step: int, size: int) -> np.ndarray:
        """Numbers of `size` films. Only a source with fewer films than its share of the step shows one twice."""
        rng = np.random.default_rng([self._seed, step])
        shares = np.array([share for share, _ in self._pools])
        counts = rng.multinomial(size, shares / shares.sum())
        chosen = [rng.choice(films, n, replace=n > len(films)) for (_, films), n in zip(self._pools, counts, strict=True)]  # fmt: skip
        return rng.permutation(np.concatenate(chosen))


# ------------------------------------------------------------------------------------------------- what is learned of it


def contrast(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """The normalised temperature-scaled cross-entropy (NT-Xent) of two views of n films, (n, k) each: the mean over all 2n."""
    with torch.autocast(first.device.type, enabled=False):
        both = F.normalize(torch.cat([first, second]).float(), dim=1)
        alike = both @ both.T / temperature
        alike = alike.masked_fill(torch.eye(len(both), dtype=torch.bool, device=both.device), -1e4)
        return F.cross_entropy(alike, torch.arange(len(both), device=both.device).roll(len(first)))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--films", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--workers", type=int, default=0, help="processes that decode the films on the first run")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    recipe = tomllib.loads(args.recipe.read_text())
    if missing := {"contrast", "model"} - recipe.keys():
        raise ConfigError(f"{args.recipe} has no section {sorted(missing)}; it has {sorted(recipe)}.")
    lessons, run = apart(Lessons, recipe["contrast"])
    vision = VisionConfig.from_dict(recipe["model"].get("vision", {}))
    studies = [study for path in args.films for study in read_studies(path)]
    cache = FilmCache(studies, args.cache, vision.image_size, workers=args.workers)
    learn, _ = development([s for s in studies if s.split == "train"])
    learn = [s for s in learn if s.source in run.sources]
    draw = Draw(learn, run.sources, run.seed)
    torch.manual_seed(run.seed)
    member = Member(vision)
    films = torch.from_numpy(np.stack([cache[s] for s in learn])).to("cuda" if torch.cuda.is_available() else "cpu")

    def loss_of(part: Part) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.tensor(part.of(draw.step(part.step, run.batch).tolist()))
        shown = films[chosen.to(films.device)].to(part.device).float()
        seen: Tensor = member(images_of(torch.cat([cropped(shown, lessons.size), cropped(shown, lessons.size)])))
        one, other = seen.chunk(2)
        return contrast(one, other, lessons.temperature) * part.share(len(shown)), {}

    def after(step: int) -> None:
        save_file({name: value.cpu() for name, value in member.state_dict().items()}, args.out / "reader.safetensors")

    train(member, run, loss_of, args.out, after=after)


if __name__ == "__main__":
    main()
