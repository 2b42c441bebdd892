"""The second reader: a stem that first learns, without labels, what makes a film itself, and then what ails it.

    python -m train.reader --stage contrast --recipe train/recipes/small.toml --films FILMS.jsonl --out runs/contrast
    python -m train.reader --stage labels --start runs/contrast --seed 1 --recipe train/recipes/small.toml --films FILMS.jsonl --out runs/reader1
    python -m train.reader --stage labels --start runs/contrast --fold 2/5 --recipe train/recipes/small.toml --films FILMS.jsonl --out runs/fold2

`contrast` is SimCLR (Chen et al. 2020, arXiv 2002.05709): two crops of a film, mirrored, exposed and blurred anew, are to find each other among
those of all other films of the step. Every film teaches, whether anything is known of it or not. `labels` goes on from there with the 14 labels and
the projection (AP or PA), on films that are changed as little as another technician would. Nothing is drawn on them. With `--fold` it learns
without one part of the training patients and is judged on them (cross-validation); the development patients are left out of both.

A source with normal and abnormal films in both projections is drawn so that the four are equally frequent: at some hospitals the projection tells
who is ill. On a GPU the films and all that is done to them stay there.
"""

import argparse
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from emrrg_core.config import VISION_PRESETS, Settings, VisionConfig
from emrrg_core.data import NO_FINDING, FilmCache, Study, development, normalise, read_studies
from emrrg_core.errors import CheckpointError, ConfigError
from emrrg_core.findings import LABELS
from emrrg_core.language import prefers_bfloat16
from emrrg_core.vision import ConvolutionalStem
from train.loop import Part, apart, train
from train.warmup import told_apart

FEWEST = 20  # films of each kind in each projection, before a source is drawn by both
_PROJECTIONS = {"AP": 1.0, "AP Supine": 1.0, "PA": 0.0}


@dataclass(frozen=True, kw_only=True)
class Lessons(Settings):
    """What a recipe's section says beside the loop's settings."""

    size: int = 224  # pixels along a side of what the stem is shown
    temperature: float = 0.15  # of the contrast
    children: tuple[str, ...] = ()  # sources whose projection is not learned: it would only tell the age


class Member(nn.Module):
    """A stem and what it is taught by. pooled: the mean and the maximum of its patches, as `signs.SecondReader` reads them."""

    def __init__(self, config: VisionConfig, stage: str) -> None:
        super().__init__()
        self.stem = ConvolutionalStem(config)
        for module in self.stem.modules():
            if type(module) is nn.GroupNorm:
                module.__class__ = _OwnPrecision
        width = 2 * config.d_model
        if stage == "contrast":
            self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128))
        else:
            self.labels = nn.Linear(width, len(LABELS))
            self.projection = nn.Linear(width, 1)

    def pooled(self, images: Tensor) -> Tensor:
        """(n, 3, s, s) -> (n, 2d)."""
        patches = self.stem(images)
        return torch.cat([patches.mean(1), patches.amax(1)], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, s, s) -> what is contrasted (n, 128), or logits of the 14 labels and of AP (n, 15)."""
        seen = self.pooled(images)
        if hasattr(self, "head"):
            contrasted: Tensor = self.head(seen)
            return contrasted
        return torch.cat([self.labels(seen), self.projection(seen)], dim=1)


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
    """For the contrast: a quarter of the film to all of it, mirrored or not, exposed otherwise, blurred, noisy. (n, s, s) -> (n, size, size)."""
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


def retaken(films: Tensor, size: int) -> Tensor:
    """For the labels: as another technician might have taken them (as `data.augment`). (n, s, s) -> (n, size, size)."""
    share, stretch = _uniform(films, -0.14, 0.14).exp(), _uniform(films, 0.92, 1.08)
    x, y = _uniform(films, -0.12, 0.12), _uniform(films, -0.12, 0.12)
    seen = warp(films, _uniform(films, -0.14, 0.14), share / stretch, share, x, y, size)
    seen = 255 * (seen / 255).clamp(0, 1) ** _uniform(films, 0.75, 1.3) * _uniform(films, 0.85, 1.15)
    seen = seen + _uniform(films, -18, 18)
    return (seen + torch.randn_like(seen) * _uniform(films, 0, 5)).clamp(0, 255)


# ------------------------------------------------------------------------------------------------- what is learned of it


def contrast(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """The normalised temperature-scaled cross-entropy (NT-Xent) of two views of n films, (n, k) each: the mean over all 2n."""
    with torch.autocast(first.device.type, enabled=False):
        both = F.normalize(torch.cat([first, second]).float(), dim=1)
        alike = both @ both.T / temperature
        alike = alike.masked_fill(torch.eye(len(both), dtype=torch.bool, device=both.device), -1e4)
        return F.cross_entropy(alike, torch.arange(len(both), device=both.device).roll(len(first)))


def targets_of(studies: Sequence[Study], children: Sequence[str]) -> np.ndarray:
    """(n, 15) float32: the labels and AP, 1 or 0, -1 where it is not known."""
    rows = []
    for study in studies:
        view = -1.0 if study.source in children else _PROJECTIONS.get(study.view or "", -1.0)
        rows.append([*(float(study.labels.get(label, -1)) for label in LABELS), view])
    return np.array(rows, np.float32)


def label_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """Cross-entropy over what is known, normal against abnormal four times, and the weight of it all. logits, targets: (n, 15)."""
    known = (targets >= 0).float()
    known[:, LABELS.index(NO_FINDING)] *= 4
    each = F.binary_cross_entropy_with_logits(logits.float(), targets.clamp(min=0), reduction="none")
    weight = known.sum()
    return (each * known).sum() / weight.clamp(min=1), weight.item()


class Draw:
    """Which films a step shows: every source its share; see the head of this file."""

    def __init__(self, studies: Sequence[Study], shares: dict[str, float], seed: int, *, by_kind: bool) -> None:
        self._seed = seed
        self._pools: list[tuple[float, list[np.ndarray]]] = []
        for source, share in shares.items():
            mine = np.array([i for i, s in enumerate(studies) if s.source == source], int)
            kinds = [mine]
            if by_kind:
                told = mine[[studies[i].abnormal is not None for i in mine]]
                mine = told if len(told) else mine
                ill = np.array([bool(studies[i].abnormal) for i in mine], bool)
                front = np.array([_PROJECTIONS.get(studies[i].view or "", -1.0) for i in mine])
                kinds = [mine[ill & (front == view)] for view in (0, 1)] + [
                    mine[~ill & (front == view)] for view in (0, 1)
                ]
                if min(map(len, kinds)) < FEWEST:
                    kinds = [mine[ill], mine[~ill]]
            if kinds := [kind for kind in kinds if len(kind)]:
                self._pools.append((share, kinds))
        if not self._pools:
            raise ConfigError(f"there is no training film of {sorted(shares)}: name the recipe's sources")

    def step(self, step: int, size: int) -> np.ndarray:
        """Numbers of `size` films. None comes twice from the same kind where there are enough: a film must not be its own opposite."""
        rng = np.random.default_rng([self._seed, step])
        shares = np.array([share for share, _ in self._pools])
        chosen = []
        for (_, kinds), many in zip(self._pools, rng.multinomial(size, shares / shares.sum()), strict=True):
            of_kind = rng.multinomial(many, np.full(len(kinds), 1 / len(kinds)))
            chosen += [rng.choice(kind, n, replace=n > len(kind)) for kind, n in zip(kinds, of_kind, strict=True)]
        return rng.permutation(np.concatenate(chosen))


@torch.inference_mode()
def check(member: Member, studies: Sequence[Study], films: np.ndarray) -> dict[str, tuple[float, float]]:
    """Normal against abnormal as one reading of the member has it, see `warmup.told_apart`."""
    member.eval()
    device = member.projection.weight.device
    rows = []
    for i in range(0, len(films), 32):
        with torch.autocast(device.type, torch.bfloat16, enabled=prefers_bfloat16(device)):
            images = images_of(torch.from_numpy(films[i : i + 32]).to(device).float())
            rows.append(member(images)[:, LABELS.index(NO_FINDING)].float().cpu())
    return told_apart(studies, -torch.cat(rows).numpy())


def weights_of(folder: Path) -> dict[str, Tensor]:
    """What this program left in a folder. Raises CheckpointError where it left nothing."""
    path = folder / "reader.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no reader.safetensors: name the --out folder of a run of train.reader.")
    return load_file(path)


def fold_of(text: str) -> tuple[int, int]:
    """ "2/5" as (1, 5). Raises ArgumentTypeError for what is no part of a whole."""
    part, _, whole = text.partition("/")
    if part.isdecimal() and whole.isdecimal() and 1 <= int(part) <= int(whole) and int(whole) > 1:
        return int(part) - 1, int(whole)
    raise argparse.ArgumentTypeError(f"{text!r}: write which part of how many is held out, 2/5 for example")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("contrast", "labels"), required=True)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--films", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="folder of the contrast")
    parser.add_argument("--seed", type=int, help="another seed than the recipe's, for another member")
    parser.add_argument(
        "--fold", type=fold_of, help="which part of the patients is held out, for cross-validation: 2/5"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--workers", type=int, default=0, help="processes that decode films, the first time")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    recipe = tomllib.loads(args.recipe.read_text())
    if args.stage not in recipe:
        raise ConfigError(f"{args.recipe} has no section [{args.stage}]; it has {sorted(recipe)}.")
    lessons, run = apart(Lessons, recipe[args.stage])
    run = run if args.seed is None else replace(run, seed=args.seed)
    studies = read_studies(args.films)
    cache = FilmCache(studies, args.cache, workers=args.workers)
    learn, develop = development([s for s in studies if s.split == "train"])
    if args.fold:
        learn, develop = development(learn, every=args.fold[1], first=args.fold[0])
    learn = [s for s in learn if s.source in run.sources]
    draw = Draw(learn, run.sources, run.seed, by_kind=args.stage == "labels")
    torch.manual_seed(run.seed)
    member = Member(VISION_PRESETS[recipe["vision"]], args.stage)
    if args.start:
        before = weights_of(args.start)
        try:
            member.stem.load_state_dict(
                {n.removeprefix("stem."): v for n, v in before.items() if n.startswith("stem.")}
            )
        except RuntimeError as error:
            raise CheckpointError(
                f"{args.start}/reader.safetensors holds another stem than the recipe's: {error}"
            ) from error
    films = torch.from_numpy(np.stack([cache[s] for s in learn])).to("cuda" if torch.cuda.is_available() else "cpu")
    held = np.stack([cache[s] for s in develop]) if develop else None
    targets = torch.from_numpy(targets_of(learn, lessons.children))

    def loss_of(part: Part) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.from_numpy(part.of(draw.step(part.step, run.batch)))
        shown = films[chosen.to(films.device)].to(part.device).float()
        if args.stage == "contrast":
            seen = member(images_of(torch.cat([cropped(shown, lessons.size), cropped(shown, lessons.size)])))
            total = contrast(*seen.chunk(2), lessons.temperature)
            return total * part.share(len(shown)), {}
        total, weight = label_loss(member(images_of(retaken(shown, lessons.size))), targets[chosen].to(part.device))
        return total * part.share(weight), {}

    def after(step: int) -> None:
        if args.stage == "labels" and held is not None:
            print(f"step {step}: held-out training films", check(member, develop, held), flush=True)
        save_file({name: value.cpu() for name, value in member.state_dict().items()}, args.out / "reader.safetensors")

    train(member, run, loss_of, args.out, after=after)


if __name__ == "__main__":
    main()
