"""Teaches the tower to read findings, where they lie, and the borders of the lungs (stage 1 of AM-MRG, docs/method.md 8.1, on a pretrained stem).

    python -m train.tower --recipe train/recipes/small.toml --films FILMS.jsonl FILMS_MORE.jsonl --radiologists RADIOLOGISTS.jsonl \\
        --teacher runs/teacher --start runs/teacher --out runs/tower

--start is a folder with a stem: of train.contrast, or of train.teacher, whose stem has learned labels too; then the heads start from these.
For a tower of another kind ([model.vision] tower) it is a folder with that tower's weights as transformers saves them.
--teacher is a folder of train.teacher. Its readings are targets where a label is unknown, so that new findings do not displace old ones. Every step
mixes the sources, and within a source the findings. What is unknown of a film is left out of the loss.
"""

import argparse
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from emrrg_core.config import QueryConfig, Settings, VisionConfig
from emrrg_core.data.studies import FilmCache, Study, development, lung_mask, normalise, read_studies
from emrrg_core.errors import CheckpointError, ConfigError
from emrrg_core.films.synthetic_findings import LABEL_OF
from emrrg_core.model.disease_queries import WHOLE, DiseaseQueries, LungBorders, Seen
from emrrg_core.model.language_model import prefers_bfloat16
from emrrg_core.model.other_towers import build_tower, load_published
from emrrg_core.model.vision_mamba import VisionMamba
from emrrg_core.text.labeler import LABELS, NO_FINDING
from train.loop import Part, apart, train
from train.measures import area_under_curve, told_apart
from train.targets import OPACITIES, TAUGHT, Example, Truth, example, lungs_of, near_copies, read_radiologists, truth_of
from train.teacher import Readings

_FEWEST = 5  # films with a finding, before a source is drawn by it
_COMMON = (NO_FINDING, *OPACITIES)


@dataclass(frozen=True, kw_only=True)
class Lessons(Settings):
    """What a recipe's [tower] says beside the loop's settings."""

    simulate: float = 0.0  # share of normal films on which a finding is drawn
    mirror: float = 0.0  # share of films that are shown mirrored
    places: float = 1.0  # weight of where findings lie
    distil: float = 0.3  # weight of what the teacher read
    # sources whose lung masks leave the heart out, as its borders need; other masks only say where findings may be drawn
    outlines: tuple[str, ...] = ()


class Eye(nn.Module):
    """The tower and its readers: what `Emrrg.see` uses of a model, by the same names."""

    def __init__(self, vision: VisionConfig, queries: QueryConfig) -> None:
        super().__init__()
        self.visual_encoder = build_tower(vision)
        self.disease = DiseaseQueries(vision.d_model, queries)
        self.lungs = LungBorders(vision)

    def forward(self, images: Tensor) -> Seen:
        """(b, 3, s, s) -> what is seen."""
        tokens, fine = self.visual_encoder.with_fine(images)
        middle, grid = self.visual_encoder.config.class_position, self.visual_encoder.config.grid
        patches = torch.cat([tokens[:, :middle], tokens[:, middle + 1 :]], dim=1)
        lungs = self.lungs(patches.transpose(1, 2).unflatten(2, (grid, grid)), fine)
        return Seen(tokens=tokens, lungs=lungs, **self.disease(tokens, middle, fine.patches if fine else None))


def add_nothing_yet(tower: VisionMamba) -> None:
    """Silence every layer, so that a tower on a trained stem begins as that stem. Any of them learns to speak at the first step."""
    for block in tower.blocks():
        nn.init.zeros_(block.mixer.out_proj.weight)
        nn.init.zeros_(block.mlp.w3.weight)


def begin(eye: Eye, folder: Path) -> None:
    """What the tower starts from: a stem below layers that are silent at first; of a tower of another kind, its published weights.

    Raises CheckpointError where the folder does not hold it.
    """
    if isinstance(eye.visual_encoder, VisionMamba):
        load_stem(eye, folder)
        add_nothing_yet(eye.visual_encoder)
    else:
        load_published(eye.visual_encoder, folder)


def load_stem(eye: Eye, folder: Path) -> None:
    """The stem that train.contrast or train.teacher left in a folder; of the latter also what its labels were read by, where heads read the stem.

    Raises CheckpointError when it is none or does not fit.
    """
    path, tower = folder / "reader.safetensors", eye.visual_encoder
    assert isinstance(tower, VisionMamba)  # `begin` asks
    try:
        state = load_file(path)
        mine = {name.removeprefix("stem."): value for name, value in state.items() if name.startswith("stem.")}
        tower.patch_embed.load_state_dict(mine)
        if "labels.weight" in state and hasattr(eye.disease, "stem_mean"):
            width, rows = eye.disease.stem_mean.shape[1], [LABELS.index(name) for name in WHOLE]
            with torch.no_grad():
                eye.disease.stem_mean.copy_(state["labels.weight"][rows, :width])
                eye.disease.stem_max.copy_(state["labels.weight"][rows, width:])
                eye.disease.bias[rows] += state["labels.bias"][rows]
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path} holds no stem for this tower: {error}") from error


# ------------------------------------------------------------------------------------------------------- what is shown


class Sampler:
    """Which films a step shows: every source its share; inside a source normal and abnormal films equally often, and of the abnormal ones half by
    a finding that is drawn first, so that rare findings come as often as common ones."""

    def __init__(self, studies: Sequence[Study], shares: Mapping[str, float], seed: int) -> None:
        self._seed = seed
        self._pools: list[tuple[float, list[list[Study]], list[list[Study]]]] = []
        for source, share in shares.items():
            mine = [s for s in studies if s.source == source]
            mine = [s for s in mine if s.abnormal is not None] or mine
            classes = [c for c in ([s for s in mine if not s.abnormal], [s for s in mine if s.abnormal]) if c]
            by_finding = [[s for s in mine if s.labels.get(name) == 1] for name in LABELS if name != NO_FINDING]
            if classes:
                self._pools.append((share, classes, [films for films in by_finding if len(films) >= _FEWEST]))
        if not self._pools:
            raise ConfigError(f"there is no training film of {sorted(shares)}: name the recipe's sources")

    def step(self, step: int, size: int) -> tuple[list[Study], np.random.Generator]:
        """The films of a step, and the generator that goes on from there."""
        rng = np.random.default_rng([self._seed, step])
        shares = np.array([share for share, *_ in self._pools])
        chosen = []
        for pool in rng.choice(len(self._pools), size=size, p=shares / shares.sum()):
            _, classes, findings = self._pools[pool]
            films = classes[rng.integers(len(classes))]
            if films is classes[-1] and findings and rng.random() < 0.5:
                films = findings[rng.integers(len(findings))]
            chosen.append(films[rng.integers(len(films))])
        return chosen, rng


# ------------------------------------------------------------------------------------------------------ what is learned


def loss_of_seen(
    seen: Seen,
    examples: Sequence[Example],
    lessons: Lessons,
    share: Callable[[float], float] = lambda weight: 1.0,
) -> tuple[Tensor, dict[str, float]]:
    """Labels, places, zones, lungs and the teacher's readings, each averaged over what is known. share: see `Part.share`."""
    terms, numbers = _label_terms(seen.logits.float(), examples, lessons, share)
    for more, found in (
        _place_terms(_losses_of_places(seen, examples), lessons, share),
        _lung_terms(seen.lungs.float(), examples, round(seen.evidence.shape[-1] ** 0.5), share),
    ):
        terms, numbers = terms + more, numbers | found
    return sum(terms[1:], start=terms[0]), numbers


def _label_terms(
    logits: Tensor, examples: Sequence[Example], lessons: Lessons, share: Callable[[float], float]
) -> tuple[list[Tensor], dict[str, float]]:
    """Known labels, and what the teacher read. logits: (b, f)."""
    device = logits.device
    targets = torch.tensor([[e.labels.get(name, 0.0) for name in LABELS] for e in examples], device=device)
    known = torch.tensor([[float(name in e.labels) for name in LABELS] for e in examples], device=device)
    weight = known * torch.tensor([4.0 if name == NO_FINDING else 1.0 for name in LABELS], device=device)
    rare = torch.tensor([0.0 if name in _COMMON else 1.0 for name in LABELS], device=device)
    weight = weight * (1 + 2 * targets * rare)
    each = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    of_labels = (each * weight).sum() / weight.sum().clamp_min(1)
    said = torch.tensor([[e.distilled.get(name, 0.0) for name in LABELS] for e in examples], device=device)
    heard = torch.tensor([[float(name in e.distilled) for name in LABELS] for e in examples], device=device)
    gap = F.binary_cross_entropy_with_logits(logits, said, reduction="none")
    of_teacher = (gap * heard).sum() / heard.sum().clamp_min(1)
    terms = [of_labels * share(weight.sum().item()), lessons.distil * of_teacher * share(heard.sum().item())]
    normal = each[:, LABELS.index(NO_FINDING)].mean()
    return terms, {"labels": of_labels.item(), "normal": normal.item(), "teacher": of_teacher.item()}


def _losses_of_places(seen: Seen, examples: Sequence[Example]) -> dict[str, list[Tensor]]:
    """By kind of knowledge, one loss for each thing that is known of a film:

    absent    a finding is nowhere
    present   a finding lies in a mask
    boxed     an opacity lies somewhere in a radiologist's boxes
    zones     two radiologists agree about zones of the lungs
    taught    the teacher's probability of each patch
    """
    evidence = seen.evidence.float()  # (b, f, g²)
    grid, device = round(evidence.shape[-1] ** 0.5), evidence.device
    losses: dict[str, list[Tensor]] = {"absent": [], "present": [], "boxed": [], "zones": [], "taught": []}
    regions = seen.regions() if any(e.zones is not None for e in examples) else None
    nowhere = torch.tensor([[e.is_nowhere(name) for name in LABELS] for e in examples], device=device)
    if nowhere.any():
        losses["absent"] += list(F.softplus(evidence[nowhere]).mean(-1) + 0.3 * F.softplus(evidence[nowhere].amax(-1)))
    for i, e in enumerate(examples):
        for name, place in e.places.items():
            if place is not None and not e.is_nowhere(name):
                losses["present"].append(_present(evidence[i, LABELS.index(name)], patches_of(place, grid).to(device)))
        if e.boxes is not None and e.boxes.any():
            inside = patches_of(e.boxes, grid).to(device)
            losses["boxed"] += [_boxed(evidence[i, LABELS.index(name)], inside) for name in OPACITIES]
        if e.zones is not None and regions is not None:
            there = torch.from_numpy(e.zones.astype(np.float32)).to(device)
            clear = ~there.isnan()
            if clear.any():
                mine = regions[i, LABELS.index("Lung Opacity")][clear]
                losses["zones"].append(F.binary_cross_entropy_with_logits(mine, there[clear]))
        if e.taught is not None:
            for channel, name in list(enumerate(TAUGHT))[2:]:
                if name not in e.places and name not in e.labels:
                    target = patches_of(e.taught[channel], grid).to(device)  # the teacher's patches may be others
                    losses["taught"].append(_taught(evidence[i, LABELS.index(name)], target))
    return losses


def _present(evidence: Tensor, target: Tensor) -> Tensor:
    """A finding in the patches that a mask covers; both (g²,)."""
    # a finding smaller than a patch is still in one
    target = torch.maximum(target, (target >= 0.9 * target.max().clamp_min(0.05)).float())
    each = F.binary_cross_entropy_with_logits(evidence, target, reduction="none")
    return (each * target).sum() / target.sum() + (each * (1 - target)).mean()


def _boxed(evidence: Tensor, inside: Tensor) -> Tensor:
    """A finding somewhere in boxes, and nowhere else; both (g²,)."""
    strongest = evidence[inside > 0.5] if (inside > 0.5).any() else evidence[inside > 0]
    many = max(1, len(strongest) // 2)  # a box is wider than what it holds
    return F.softplus(-strongest.topk(many).values).mean() + F.softplus(evidence[inside == 0]).mean()


def _taught(evidence: Tensor, target: Tensor) -> Tensor:
    """What the teacher saw of a finding, as a probability of each patch; both (g²,)."""
    each = F.binary_cross_entropy_with_logits(evidence, target, reduction="none")
    return each.mean() + (each * target).sum() / target.sum().clamp_min(1)


def _place_terms(
    losses: dict[str, list[Tensor]], lessons: Lessons, share: Callable[[float], float]
) -> tuple[list[Tensor], dict[str, float]]:
    """The mean of every kind that has any, weighted."""
    weights = {"absent": 2.0 * lessons.places, "present": 2.0 * lessons.places, "taught": lessons.distil}
    terms, numbers = [], {}
    for kind, found in losses.items():
        numbers[kind], part = float("nan"), share(len(found))
        if found:
            mean = torch.stack(found).mean()
            terms.append(weights.get(kind, lessons.places) * mean * part)
            numbers[kind] = mean.item()
    return terms, numbers


def _lung_terms(
    lungs: Tensor, examples: Sequence[Example], grid: int, share: Callable[[float], float]
) -> tuple[list[Tensor], dict[str, float]]:
    """The lungs' borders, by outlines and elsewhere by the teacher. lungs: logits (b, 2, m, m)."""
    terms, number = [], float("nan")
    outlined = [i for i, e in enumerate(examples) if e.lungs is not None]
    part = share(len(outlined))
    if outlined:
        size = lungs.shape[-1]
        target = torch.stack([F.adaptive_avg_pool2d(_tensor(examples[i].lungs), size) for i in outlined])
        of_lungs = F.binary_cross_entropy_with_logits(lungs[outlined], target.to(lungs.device))
        terms.append(2 * of_lungs * part)
        number = of_lungs.item()
    taught = [(i, e.taught) for i, e in enumerate(examples) if e.taught is not None and e.lungs is None]
    part = share(len(taught))
    if taught:
        # coarse, and not sure of the heart, but of every hospital: the borders must not drift where no one drew them
        coarse = F.adaptive_avg_pool2d(lungs[[i for i, _ in taught]].sigmoid(), grid).clamp(1e-4, 1 - 1e-4)
        target = torch.stack([F.adaptive_avg_pool2d(_tensor(plane[:2]), grid) for _, plane in taught]).to(lungs.device)
        terms.append(0.15 * F.binary_cross_entropy(coarse, target) * part)
    return terms, {"lungs": number}


def _tensor(plane: np.ndarray | None) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(plane)).clamp(0, 1)


def patches_of(mask: np.ndarray, grid: int) -> Tensor:
    """A mask (s, s) to the share of every patch that it covers, (g²,)."""
    return F.adaptive_avg_pool2d(_tensor(mask)[None], grid).flatten()


# --------------------------------------------------------------------------------------------------- what is measured


@torch.inference_mode()
def see_films(
    see: Callable[[Tensor], Seen], films: Sequence[np.ndarray], device: torch.device, batch: int = 32
) -> Seen:
    """What is seen of films (s, s) in [0, 255], float32 on the CPU; tokens and disease tokens are left empty. see: takes images (b, 3, s, s)."""
    rows: list[Seen] = []
    for i in range(0, len(films), batch):
        images = torch.from_numpy(normalise(np.stack(films[i : i + batch])))
        with torch.autocast(device.type, torch.bfloat16, enabled=prefers_bfloat16(device)):
            rows.append(see(images.to(device)))
    names = ("logits", "evidence", "share", "lungs", *(() if rows[0].stem is None else ("stem",)))
    whole = {name: torch.cat([getattr(row, name).float().cpu() for row in rows]) for name in names}
    empty = torch.zeros(len(films), 0)
    return Seen(tokens=empty, disease=empty, bias=rows[0].bias.cpu(), **whole)


def _see(eye: nn.Module, films: Sequence[np.ndarray]) -> Seen:
    eye.eval()
    return see_films(eye, films, next(eye.parameters()).device)


def check(eye: nn.Module, studies: Sequence[Study], truths: Mapping[str, Truth], cache: FilmCache) -> dict[str, object]:
    """What it tells apart in films that it did not learn: normal from abnormal by source, every finding, radiologists' opacities, boxes."""
    seen = _see(eye, [cache[s] for s in studies])
    score = dict(zip(LABELS, seen.logits.T.numpy(), strict=True))
    found: dict[str, object] = {name: area for name, (area, _) in told_apart(studies, -score[NO_FINDING]).items()}
    for name in LABELS:
        for source in sorted({s.source for s in studies}):
            mine = [i for i, s in enumerate(studies) if s.source == source and name in s.labels]
            truth = np.array([studies[i].labels[name] == 1 for i in mine], bool)
            if name not in _COMMON and truth.sum() >= 3 and (~truth).sum() >= 3:
                found[f"{name}, {source}"] = round(area_under_curve(truth, score[name][mine]), 3)
    read = [i for i, s in enumerate(studies) if truths[s.id].rsna]
    opacity = np.array([truths[studies[i].id].rsna == "Lung Opacity" for i in read], bool)
    if opacity.any() and not opacity.all():
        found["radiologists' opacity"] = round(area_under_curve(opacity, score["Lung Opacity"][read]), 3)
    found["peak in a box"] = _mean(
        [
            hit(seen.attribution[i, LABELS.index("Lung Opacity")].numpy(), truths[s.id].boxes)
            for i, s in enumerate(studies)
            if truths[s.id].boxes
        ]
    )
    return found


def hit(weights: np.ndarray, boxes: Sequence[tuple[float, float, float, float]] | None) -> bool:
    """Whether the middle of the strongest patch of (g²,) lies in one of the boxes (x, y, w, h), shares of the film."""
    grid = round(len(weights) ** 0.5)
    row, column = divmod(int(weights.argmax()), grid)
    x, y = (column + 0.5) / grid, (row + 0.5) / grid
    return any(left <= x <= left + w and top <= y <= top + h for left, top, w, h in boxes or ())


def _mean(values: Sequence[bool]) -> float | None:
    return round(float(np.mean(values)), 3) if values else None


def drawn_check(eye: nn.Module, examples: Sequence[Example]) -> dict[str, float]:
    """Of drawn findings: the area under the curve against the same films without a drawing, of each sign's own label."""
    if not examples:
        return {}
    found = {}
    logits = _see(eye, [e.film for e in examples]).logits.numpy()
    plain = np.array([e.drawn is None for e in examples])
    for name in LABEL_OF.values():
        mine = np.array([e.labels.get(name) == 1 and e.drawn is not None for e in examples])
        score = logits[:, LABELS.index(name)]
        if mine.any() and plain.any():
            found[f"drawn {name}"] = round(area_under_curve(mine[mine | plain], score[mine | plain]), 3)
    return found


# ------------------------------------------------------------------------------------------------------------- program


class Films:
    """The films to learn from, with all that is known of them; makes examples."""

    def __init__(
        self,
        studies: Sequence[Study],
        cache: FilmCache,
        truths: Mapping[str, Truth],
        teacher: Readings | None,
        lessons: Lessons,
    ) -> None:
        self._cache, self._truths, self._teacher, self._lessons = cache, truths, teacher, lessons
        self._outlined = {s.id for s in studies if s.lung_mask and s.source in lessons.outlines}

        @lru_cache(maxsize=20_000)
        def lungs(study: Study) -> np.ndarray | None:
            if study.lung_mask:
                return np.packbits(lung_mask(study, cache.size))
            read = teacher[study] if teacher else None
            mask = lungs_of(1 / (1 + np.exp(-read[1][:, :2])), cache.size) if read and study.abnormal is False else None
            return None if mask is None else np.packbits(mask)

        self._lungs = lambda study: lungs(_Key(study))

    def example(
        self, study: Study, rng: np.random.Generator, simulate: float | None = None, *, as_it_is: bool = False
    ) -> Example:
        """A film as it is learned from. as_it_is: nothing is drawn on it, nor is it turned, exposed otherwise or mirrored."""
        packed, size = self._lungs(study), self._cache.size
        mask = None if packed is None else np.unpackbits(packed, count=size * size).reshape(size, size).astype(bool)
        return example(
            self._cache[study],
            study,
            self._truths[study.id],
            mask,
            rng,
            simulate=0.0 if as_it_is else self._lessons.simulate if simulate is None else simulate,
            mirror=0.0 if as_it_is else self._lessons.mirror,
            augmented=not as_it_is,
            true_mask=study.id in self._outlined,
            teacher=self._teacher[study] if self._teacher else None,
        )


class _Key:
    """A study by its id alone, for a cache."""

    def __init__(self, study: Study) -> None:
        self.study = study

    def __getattr__(self, name: str) -> object:
        return getattr(self.study, name)

    def __hash__(self) -> int:
        return hash(self.study.id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.study.id == other.study.id


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--section", default="tower", help="section of the recipe with the training settings")
    parser.add_argument("--films", type=Path, nargs="+", required=True)
    parser.add_argument("--radiologists", type=Path, help="radiologists' readings of some of the films")
    parser.add_argument("--teacher", type=Path, help="folder of train.teacher: readings for films without labels")
    parser.add_argument(
        "--start",
        type=Path,
        required=True,
        help="folder with a stem, of train.contrast or train.teacher, or with another kind of tower",
    )
    parser.add_argument("--leave-out", nargs="*", default=[], help="sources to keep out of training, as other hospitals to test on")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--workers", type=int, default=0, help="processes that decode the films on the first run")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    recipe = tomllib.loads(args.recipe.read_text())
    lessons, run = apart(Lessons, recipe[args.section])
    vision = VisionConfig.from_dict(recipe["model"]["vision"])
    queries = QueryConfig.from_dict(recipe["model"]["queries"])
    studies = [study for path in args.films for study in read_studies(path)]
    cache = FilmCache(studies, args.cache, vision.image_size, workers=args.workers)
    read = read_radiologists(args.radiologists)
    learn, develop = development([s for s in studies if s.split == "train"])
    copies = near_copies(learn, [*develop, *(s for s in studies if s.split != "train")], cache)
    learn = [s for s in learn if s.source in run.sources and s.id not in copies and s.source not in args.leave_out]
    truths = {s.id: truth_of(s, read.get(s.id)) for s in [*learn, *develop]}
    print(f"{len(learn)} films; {len(copies)} left out as near copies of films that judge", flush=True)
    teacher = Readings(args.teacher) if args.teacher else None
    films = Films([*learn, *develop], cache, truths, teacher, lessons)
    sampler = Sampler(learn, run.sources, run.seed)
    torch.manual_seed(run.seed)
    eye = Eye(vision, queries)
    begin(eye, args.start)
    rng = np.random.default_rng(run.seed)
    normal = [s for s in develop if s.abnormal is False and s.source in run.sources][:160]
    judged = [films.example(s, rng, simulate) for s in normal for simulate in (0.0, 1.0)]

    def loss_of(part: Part) -> tuple[Tensor, dict[str, float]]:
        chosen, rng = sampler.step(part.step, run.batch)
        examples = part.of([films.example(s, rng) for s in chosen])
        images = torch.from_numpy(normalise(np.stack([e.film for e in examples])))
        return loss_of_seen(eye(images.to(part.device)), examples, lessons, part.share)

    def after(step: int) -> None:
        found = check(eye, develop, truths, cache) | drawn_check(eye, judged)
        print(f"step {step}: development films {found}", flush=True)
        save_file(eye.state_dict(), args.out / "eye.safetensors")

    train(eye, run, loss_of, args.out, after=after)


if __name__ == "__main__":
    main()
