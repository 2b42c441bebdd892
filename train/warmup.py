"""Teaches the tower to see before it speaks: findings from the films' own labels, lungs from masks, places from simulated findings.

    python -m train.warmup --stage lungs --recipe train/recipes/small.toml --films FILMS.jsonl --out runs/lungs
    python -m train.warmup --stage stem --start runs/lungs --recipe train/recipes/small.toml --films FILMS.jsonl --out runs/stem
    python -m train.warmup --stage tower --start runs/stem --recipe train/recipes/small.toml --films FILMS.jsonl --out runs/tower

The first two stages train the convolutional stem by itself, which is quick: the first until it sees the lungs of films that have no mask, the
second with findings simulated inside them. The third trains the whole tower. What is unknown of a film is left out of the loss.
"""

import argparse
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from emrrg_core.config import VISION_PRESETS, VisionConfig
from emrrg_core.data import (
    NO_FINDING,
    SIGHTS,
    FilmCache,
    Study,
    augment,
    development,
    lung_mask,
    normalise,
    read_studies,
)
from emrrg_core.errors import CheckpointError
from emrrg_core.findings import LABELS
from emrrg_core.language import prefers_bfloat16
from emrrg_core.signs import SignReader, Signs
from emrrg_core.simulate import LABEL_OF, Drawn, Sign, draw, split_lungs
from emrrg_core.vision import VisionMamba
from train.loop import Part, Run, train

APPEARANCE = 12  # numbers that say how a film looks
_CHANNEL = {Sign.NODULE: 2, Sign.OPACITY: 3, Sign.EFFUSION: 4}  # of PLACES
_SIGHT_OF = {
    2: ("Lung Lesion",),
    3: SIGHTS,
    4: ("Pleural Effusion",),
}  # labels that say a channel's sign is somewhere in the film
_MOST = 6  # patches that a sign of unknown place is expected to cover at least


class Reader(nn.Module):
    """The tower, and readers of its tokens and of its stem's (which keeps the stem's own tokens meaningful)."""

    def __init__(self, tower: VisionMamba, *, stem_only: bool) -> None:
        super().__init__()
        self.tower, self.stem_only = tower, stem_only
        self.signs = SignReader(tower.config.d_model, APPEARANCE)
        self.stem_signs = SignReader(tower.config.d_model, APPEARANCE)
        if stem_only:
            self.requires_grad_(False)
            tower.patch_embed.requires_grad_(True)
            self.stem_signs.labels.requires_grad_(True)
            self.stem_signs.places.requires_grad_(True)

    def forward(self, images: Tensor) -> list[Signs]:
        """(b, 3, s, s) -> what the stem says, and, unless only the stem is trained, what the tower says last."""
        if self.stem_only:
            return [self.stem_signs(self.tower.patch_embed(images))]
        kept: list[Tensor] = []
        hook = self.tower.patch_embed.register_forward_hook(lambda module, args, patches: kept.append(patches))
        tokens = self.tower(images)
        hook.remove()
        return [self.stem_signs(kept[0]), self.signs(without_class(self.tower, tokens))]


def load_reader_tower(folder: Path, config: VisionConfig) -> VisionMamba:
    """The tower alone, of a folder that this program wrote. Raises CheckpointError when the weights are of another tower."""
    tower = VisionMamba(config)
    state = load_file(folder / "reader.safetensors")
    try:
        tower.load_state_dict({n.removeprefix("tower."): v for n, v in state.items() if n.startswith("tower.")})
    except RuntimeError as error:
        raise CheckpointError(f"{folder}/reader.safetensors holds another tower than the recipe's: {error}") from error
    return tower


def add_nothing_yet(tower: VisionMamba) -> None:
    """Silence every layer, so that a tower on a trained stem begins as that stem. Any of them learns to speak at the first step."""
    for layer in tower.layers:
        nn.init.zeros_(layer.mixer.out_proj.weight)
        nn.init.zeros_(layer.mlp.w3.weight)


def without_class(tower: VisionMamba, tokens: Tensor) -> Tensor:
    """(b, l, d) -> (b, g², d): the patches in raster order."""
    middle = tower.config.class_position
    return torch.cat([tokens[:, :middle], tokens[:, middle + 1 :]], dim=1)


@dataclass(frozen=True)
class Example:
    """One film to learn from, after augmentation, and what is known of it."""

    film: np.ndarray  # (s, s) float32 in [0, 255]
    labels: dict[str, int]
    lungs: np.ndarray | None  # (2, s, s), patient's right and left
    drawn: np.ndarray | None  # where the simulated finding lies, (s, s)
    signs: dict[
        int, np.ndarray | None
    ]  # channel of PLACES -> where it lies, (s, s); None: somewhere; a channel that is missing is unknown


def example(
    film: np.ndarray,
    study: Study,
    mask: np.ndarray | None,
    simulate: float,
    rng: np.random.Generator,
    *,
    true_mask: bool,
    mirror: float = 0.0,
) -> tuple[Example, Drawn | None]:
    """A study's film (s, s) as an example; a normal one with lungs (s, s) gets a simulated finding with probability `simulate`.

    mirror: the probability that left and right are exchanged, for labels that no side belongs to; which lung is which is then unknown.
    """
    labels, drawn, nothing = dict(study.labels), None, np.zeros(film.shape, np.float32)
    lungs = None
    if mask is not None:
        try:
            lungs = np.stack(split_lungs(mask)).astype(np.float32)
        except ValueError:
            mask = None
    grey = film.astype(np.float32)
    if mask is not None and study.abnormal is False and rng.random() < simulate:
        signs = list(Sign)
        try:
            grey, drawn = draw(film, mask, signs[rng.integers(len(signs))], rng)
        except ValueError:
            drawn = None  # a mask that shows too little
    if drawn:
        # some drawings can hardly be seen: they must not teach that a film that looks normal is not
        labels = {name: value for name, value in labels.items() if name not in (*SIGHTS, NO_FINDING)} | {
            LABEL_OF[drawn.sign]: 1
        }
    planes = [*(lungs if lungs is not None else []), *([drawn.mask] if drawn else [])]
    grey, planes = augment(grey, rng, planes)
    if mirror and rng.random() < mirror:
        grey, planes, true_mask = grey[:, ::-1], [plane[:, ::-1] for plane in planes], False
    where: dict[int, np.ndarray | None] = {}
    if drawn:
        where = dict.fromkeys(_SIGHT_OF, nothing)
        if drawn.sign in _CHANNEL:
            where[_CHANNEL[drawn.sign]] = planes[-1]
    else:
        for channel, names in _SIGHT_OF.items():
            if labels.get(NO_FINDING) == 1 or all(labels.get(name) == 0 for name in names):
                where[channel] = nothing
            elif any(labels.get(name) == 1 for name in names):
                where[channel] = None
    known_lungs = np.stack(planes[:2]) if lungs is not None and true_mask else None
    return Example(grey, labels, known_lungs, planes[-1] if drawn else None, where), drawn


def loss(
    signs: Signs, examples: Sequence[Example], share: Callable[[float], float] = lambda weight: 1.0
) -> tuple[Tensor, dict[str, float]]:
    """Labels, lungs and places, each averaged over what is known. share: of a part of a step (`Part.share`), by the weight that is known."""
    device = signs.labels.device
    targets = torch.tensor([[float(e.labels.get(name, 0)) for name in LABELS] for e in examples], device=device)
    known = torch.tensor([[float(name in e.labels) for name in LABELS] for e in examples], device=device)
    each = F.binary_cross_entropy_with_logits(signs.labels.float(), targets, reduction="none")
    # normal against abnormal is known for every film and counts most
    weight = known * torch.tensor([4.0 if name == NO_FINDING else 1.0 for name in LABELS], device=device)
    # and what was drawn is the only positive example that some labels have
    weight = weight + 3 * targets * known * torch.tensor(
        [[float(e.drawn is not None)] for e in examples], device=device
    )
    normal = each[:, LABELS.index(NO_FINDING)]
    of_labels = (each * weight).sum() / weight.sum().clamp_min(1)  # of no film is anything known: 0
    total = of_labels * share(weight.sum().item())
    numbers = {"normal": normal.mean().item(), "labels": of_labels.item()}
    grid = round(signs.places.shape[1] ** 0.5)
    places = signs.places.float()
    with_lungs = [i for i, e in enumerate(examples) if e.lungs is not None]
    numbers["lungs"], lungs_share = float("nan"), share(len(with_lungs))
    if with_lungs:
        target = (
            torch.stack([_patches(examples[i].lungs, grid) for i in with_lungs]).transpose(1, 2).to(device)
        )  # (n, g², 2)
        of_lungs = F.binary_cross_entropy_with_logits(places[with_lungs][..., :2], target)
        total, numbers["lungs"] = total + of_lungs * lungs_share, of_lungs.item()
    # a sign that lies in a known place is rare: it counts as much as all that are absent
    of_places: dict[str, list[Tensor]] = {"absent": [], "somewhere": [], "drawn": []}
    for i, e in enumerate(examples):
        for channel, mask in e.signs.items():
            logits = places[i, :, channel]
            if mask is None:
                of_places["somewhere"].append(0.5 * F.softplus(-logits.topk(_MOST).values.mean()))
                continue
            target = _patches(mask[None], grid)[0].to(device)
            target = torch.maximum(target, (target >= 0.9 * target.max().clamp_min(0.05)).float())
            each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
            if target.any():
                of_places["drawn"].append((each * target).sum() / target.sum() + (each * (1 - target)).mean())
            else:
                of_places["absent"].append(each.mean() + 0.3 * F.softplus(logits.max()))
    for name, found in of_places.items():
        numbers[name], group_share = float("nan"), share(len(found))
        if found:
            mean = torch.stack(found).mean()
            total, numbers[name] = total + 2.0 * mean * group_share, mean.item()
    return total, numbers


def _patches(masks: np.ndarray | None, grid: int) -> Tensor:
    """Masks (n, s, s) to the share of every patch that they cover, (n, g²)."""
    assert masks is not None
    return F.adaptive_avg_pool2d(torch.from_numpy(np.ascontiguousarray(masks)).clamp(0, 1), grid).flatten(1)


class BalancedSampler:
    """Draws sources by their share and, inside a source, normal and abnormal films equally often, so that no source gives its label away more
    than it must. A source with one class only, or without labels, is drawn as it is."""

    def __init__(self, studies: Sequence[Study], shares: dict[str, float], seed: int) -> None:
        self.seed = seed
        self._pools: list[tuple[float, list[list[Study]]]] = []
        for source, share in shares.items():
            mine = [s for s in studies if s.source == source]
            mine = [s for s in mine if s.abnormal is not None] or mine
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


def area_under_curve(truth: np.ndarray, score: np.ndarray) -> float:
    """Of the receiver operating characteristic: how often a positive scores above a negative, ties counted half. truth boolean (n,)."""
    _, at, count = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (count.cumsum() - (count - 1) / 2)[at]  # equal scores share the mean of their ranks
    positive = truth.sum()
    return float((ranks[truth].sum() - positive * (positive + 1) / 2) / (positive * (len(truth) - positive)))


def groups(studies: Sequence[Study]) -> dict[str, np.ndarray]:
    """Numbers of the studies known to be normal or abnormal, by source, and within the projections of a source that has several ("nih_talo, AP")."""
    found: dict[str, list[int]] = {}
    for number, study in enumerate(studies):
        if study.abnormal is not None:
            found.setdefault(study.source, []).append(number)
    for source, mine in sorted(found.items()):
        views = sorted({studies[i].view or "" for i in mine} - {""})
        if len(views) > 1:
            found |= {f"{source}, {view}": [i for i in mine if studies[i].view == view] for view in views}
    return {name: np.array(found[name], int) for name in sorted(found)}


def told_apart(studies: Sequence[Study], score: np.ndarray) -> dict[str, tuple[float, float]]:
    """Normal from abnormal by a score (n,) that is higher for abnormal films, in every one of `groups` that has both: the area under the curve,
    and the highest balanced accuracy of any limit."""
    result = {}
    for name, mine in groups(studies).items():
        truth, mine_score = np.array([bool(studies[i].abnormal) for i in mine]), score[mine]
        if truth.any() and not truth.all():
            best = max(balanced_accuracy(truth, mine_score >= limit) for limit in np.unique(mine_score))
            result[name] = (round(area_under_curve(truth, mine_score), 3), round(best, 3))
    return result


@torch.inference_mode()
def read_all(reader: Reader, studies: Sequence[Study], cache: FilmCache) -> Iterator[Signs]:
    """What the last reader says of every film, one batch of 32 at a time, in order, on the CPU."""
    reader.eval()
    device = reader.tower.pos_embed.device
    for i in range(0, len(studies), 32):
        films = torch.from_numpy(normalise(np.stack([cache[s] for s in studies[i : i + 32]])))
        with torch.autocast(device.type, torch.bfloat16, enabled=prefers_bfloat16(device)):
            signs = reader(films.to(device))[-1]
        yield Signs(signs.labels.float().cpu(), signs.places.float().cpu(), signs.appearance.float().cpu())


def check(reader: Reader, studies: Sequence[Study], cache: FilmCache) -> dict[str, tuple[float, float]]:
    """Normal against abnormal as the reader has it, see `told_apart`."""
    read = torch.cat([signs.labels for signs in read_all(reader, studies, cache)])
    return told_apart(studies, -read[:, LABELS.index(NO_FINDING)].numpy())


def seen_lungs(reader: Reader, studies: Sequence[Study], cache: FilmCache) -> dict[str, np.ndarray]:
    """Lung masks (s, s) bool as the reader sees them, of the studies where it sees two lungs."""
    rows = [row for signs in read_all(reader, studies, cache) for row in signs.places.sigmoid().numpy()]
    masks = {study.id: lungs_of(row, cache.size) for study, row in zip(studies, rows, strict=True)}
    return {name: mask for name, mask in masks.items() if mask is not None}


def lungs_of(places: np.ndarray, size: int) -> np.ndarray | None:
    """Both lungs (size, size) bool, by the probabilities of the patches (g², 5), in the order of PLACES; None where they do not show two."""
    grid = round(len(places) ** 0.5)
    both = cv2.resize(places[:, :2].max(1).reshape(grid, grid), (size, size), interpolation=cv2.INTER_CUBIC) >= 0.5
    try:
        right, left = split_lungs(both)
    except ValueError:
        return None
    return right | left if both.mean() > 0.08 else None


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("lungs", "stem", "tower"), required=True)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument(
        "--section", help="the section of the recipe that says how to train; default: that of the stage's name"
    )
    parser.add_argument("--films", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="folder of the stage before")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    recipe = tomllib.loads(args.recipe.read_text())
    section = dict(recipe[args.section or args.stage])
    simulate, mirror = float(section.pop("simulate")), float(section.pop("mirror", 0.0))
    run = Run.from_dict(section)
    studies = read_studies(args.films)
    cache = FilmCache(studies, args.cache)
    learn, develop = development([s for s in studies if s.split == "train"])
    learn = [s for s in learn if s.source in run.sources]
    sampler = BalancedSampler(learn, run.sources, run.seed)
    torch.manual_seed(run.seed)
    reader = Reader(VisionMamba(VISION_PRESETS[recipe["vision"]]), stem_only=args.stage != "tower")
    true = {s.id: lung_mask(s, cache.size) for s in learn if s.lung_mask}
    masks = dict(true)
    if args.start:
        reader.load_state_dict(load_file(args.start / "reader.safetensors"))
        reader.stem_only = True
        normal = [s for s in learn if s.abnormal is False]
        masks = seen_lungs(reader, normal, cache) | masks
        reader.stem_only = args.stage != "tower"
        if not reader.stem_only:
            add_nothing_yet(reader.tower)
        print(
            f"lungs known of {len(true)} films, seen in {len(masks) - len(true)} of {len(normal)} normal ones",
            flush=True,
        )

    def loss_of(part: Part) -> tuple[Tensor, dict[str, float]]:
        chosen, rng = sampler.batch(part.step, run.batch)
        learned = [
            example(cache[s], s, masks.get(s.id), simulate, rng, true_mask=s.id in true, mirror=mirror)[0]
            for s in chosen
        ]
        examples = part.of(learned)
        images = torch.from_numpy(normalise(np.stack([e.film for e in examples])))
        *early, last = reader(images.to(part.device))
        total, numbers = loss(last, examples, part.share)
        for signs in early:
            total = total + 0.3 * loss(signs, examples, part.share)[0]
        return total, numbers

    def after(step: int) -> None:
        print(f"step {step}: held-out training films", check(reader, develop, cache), flush=True)
        save_file(reader.state_dict(), args.out / "reader.safetensors")

    train(reader, run, loss_of, args.out, after=after)


if __name__ == "__main__":
    main()
