"""From logits to probabilities, and from which probability on a finding is told: fitted on development films, never on `val`.

    python -m train.calibrate --checkpoint runs/finetune/checkpoint --films FILMS.jsonl FILMS_MORE.jsonl --radiologists RADIOLOGISTS.jsonl \
        --out runs/small

train.finetune does it whenever it saves; by itself it is the last step of a checkpoint whose tower has moved. It prints what it found.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from emrrg_core import checkpoint
from emrrg_core.config import ModelConfig
from emrrg_core.data import NO_FINDING, FilmCache, Study, development, normalise, read_studies
from emrrg_core.disease_queries import Seen
from emrrg_core.errors import ConfigError
from emrrg_core.finding_tokens import NAMES, NEVER, Calibration, ratios_of
from emrrg_core.findings import LABELS
from emrrg_core.language import prefers_bfloat16
from emrrg_core.model import Emrrg
from train.measures import area_under_curve, balanced_accuracy
from train.targets import Truth, read_radiologists, truth_of

FEWEST = 5  # development films that have a finding, before it is assessed at all
LEAST_AREA = 0.7  # and how well it must be told from films that do not have it
ALARMS = 0.01  # share of a source's normal films in which a finding may be read that is not there
ENOUGH = 15  # films of a kind, before a source sets a limit
RIGHT = 0.95  # of what is denied, at least, on development films
MISSED = 0.15  # of films that have a finding, at most, in which it is denied
_EVERYWHERE = (
    "Lung Opacity",
    "Pneumonia",
)  # told of the film as a whole; NIH's and radiologists' readings of it differ by film
_LOWEST, _HIGHEST = 0.02, 0.995


@torch.inference_mode()
def see_all(model: Emrrg, studies: Sequence[Study], cache: FilmCache, batch: int = 32) -> Seen:
    """What the tower sees of the first film of every study, float32 on the CPU; tokens and disease tokens are left empty."""
    model.eval()
    device = model.llama_proj.weight.device
    rows = []
    for i in range(0, len(studies), batch):
        films = torch.from_numpy(normalise(np.stack([cache[s] for s in studies[i : i + batch]]))).unsqueeze(1)
        with torch.autocast(device.type, torch.bfloat16, enabled=prefers_bfloat16(device)):
            rows.append(model.see(films.to(device)))
    names = ("logits", "evidence", "share", "lungs", *(() if rows[0].stem is None else ("stem",)))
    whole = {name: torch.cat([getattr(row, name).float().cpu() for row in rows]) for name in names}
    empty = torch.zeros(len(studies), 0)
    return Seen(tokens=empty, disease=empty, bias=rows[0].bias.cpu(), **whole)


def fit(calibration: Calibration, seen: Seen, studies: Sequence[Study], truths: Mapping[str, Truth]) -> dict[str, dict]:
    """Set the calibration by what was seen of these films; returns what was found, by label."""
    ratios = ratios_of(seen)
    ratio = np.array([(r if r is not None else 0.5) - 0.5 for r in ratios])
    logits = seen.logits.numpy().astype(float)
    normal = np.array([s.abnormal is False for s in studies])
    source = np.array([s.source for s in studies])
    curve, thresholds, found = calibration.curve.clone(), calibration.thresholds.clone(), {}
    for i, label in enumerate(LABELS):
        known = np.array([label in truths[s.id].labels for s in studies])
        target = np.array([truths[s.id].labels.get(label, 0.0) for s in studies])
        true = target >= 0.5
        has, lacks = known & true, known & ~true
        row: dict = {"positive": int(has.sum()), "negative": int(lacks.sum()), "assessed": False}
        thresholds[i] = torch.tensor([NEVER, NEVER, 0.0])
        found[label] = row
        if min(has.sum(), lacks.sum()) < FEWEST:
            continue
        with_ratio = label == "Cardiomegaly"
        curve[i] = torch.tensor(logistic(logits[known, i], ratio[known] if with_ratio else None, target[known]))
        p = _probability(curve[i], logits[:, i], ratio)
        score = 1 - p if label == NO_FINDING else p
        told = ~true if label == NO_FINDING else true
        row["area"] = area = area_under_curve(told[known], score[known])
        alone = [np.quantile(score[normal & (source == s)], 1 - ALARMS) for s in set(source) if (normal & (source == s)).sum() >= ENOUGH]  # fmt: skip
        if label == NO_FINDING:
            first = second = _best(score[known], _balanced(score, told, known, source))
        elif area < LEAST_AREA:
            continue
        else:
            first = _best(score[known], _f1(score[known], true[known]))
            second = max([first, *(float(a) for a in alone)])
        denied = _denial(score[known], told[known], first)
        clipped = [min(max(x, _LOWEST), _HIGHEST) for x in (first, second)]
        thresholds[i] = torch.tensor([*clipped, denied])
        row |= {
            "assessed": True,
            "threshold": clipped[0],
            "threshold_alone": clipped[1],
            "denied_below": denied,
            "negative_predictive_value": float((~told[known & (score < denied)]).mean()) if denied else None,
            "denied_of_positive": float((score[known & told] < denied).mean()),
        }
    calibration.curve.copy_(curve)
    calibration.thresholds.copy_(thresholds)
    return found


def _probability(curve: Tensor, logits: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    scale, weight, offset = curve.double().tolist()
    return 1 / (1 + np.exp(-(scale * logits + weight * ratio + offset)))


def logistic(logits: np.ndarray, ratio: np.ndarray | None, target: np.ndarray) -> list[float]:
    """Scale, weight of the ratio and offset of a logistic curve (Platt 1999), drawn a little towards scale 1 and weight 0."""
    x, y = torch.from_numpy(logits), torch.from_numpy(target.astype(float))
    r = torch.zeros_like(x) if ratio is None else torch.from_numpy(ratio)
    w = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=100, line_search_fn="strong_wolfe")
    start = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(w[0] * x + w[1] * r + w[2], y)
        value = value + (torch.tensor([1.0, 0.01, 0.0]) * (w - start) ** 2).sum() / len(x)
        value.backward()
        return value

    optimizer.step(loss)
    scale, weight, offset = w.tolist()
    return [max(scale, 0.05), weight if ratio is not None else 0.0, offset]


def _balanced(score: np.ndarray, abnormal: np.ndarray, known: np.ndarray, source: np.ndarray) -> Callable[[float], float]:  # fmt: skip
    """Balanced accuracy, the mean over sources that have enough normal and abnormal films."""
    kinds = [known & (source == s) for s in sorted(set(source))]
    kinds = [k for k in kinds if min((abnormal & k).sum(), (~abnormal & k).sum()) >= ENOUGH] or [known]
    return lambda limit: float(np.mean([balanced_accuracy(abnormal[k], score[k] >= limit) for k in kinds]))


def _f1(p: np.ndarray, true: np.ndarray) -> Callable[[float], float]:
    return lambda limit: float(2 * (true & (p >= limit)).sum() / ((p >= limit).sum() + true.sum()))


def _best(values: np.ndarray, score: Callable[[float], float]) -> float:
    """The limit with the highest score; of limits between the same two values the middle one."""
    found = np.unique(values)
    between = np.concatenate([found[:1], (found[:-1] + found[1:]) / 2])
    return float(between[int(np.argmax([score(limit) for limit in between]))])


def _denial(score: np.ndarray, told: np.ndarray, first: float) -> float:
    """The highest probability below which a finding may be denied: at least RIGHT of these films do not have it, and at most MISSED of those that
    have it lie there. 0 where there is none."""
    best = 0.0
    for limit in np.unique(np.quantile(score, np.linspace(0.02, 1, 99))):
        below = score < limit
        if limit > first or below.sum() < ENOUGH:
            continue
        if (~told[below]).mean() >= RIGHT and (score[told] < limit).mean() <= MISSED:
            best = float(limit)
    return best


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--films", type=Path, nargs="+", required=True)
    parser.add_argument("--radiologists", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    config = checkpoint.read_config(args.checkpoint)
    settings: ModelConfig = config["model"]
    if not settings.queries.depth:
        raise ConfigError(f"{args.checkpoint} has no disease queries, so there is nothing to calibrate.")
    model, _ = checkpoint.load(args.checkpoint)
    studies = [study for path in args.films for study in read_studies(path)]
    cache = FilmCache(studies, args.cache, settings.vision.image_size)
    _, develop = development([s for s in studies if s.split == "train"])
    read = read_radiologists(args.radiologists)
    truths = {s.id: truth_of(s, read.get(s.id)) for s in develop}
    found = fit(model.calibration, see_all(model, develop, cache), develop, truths)
    checkpoint.save(model, args.out, language=config["language_model"], training={**config["training"], "calibration": found})  # fmt: skip
    told = {label: name for name, label in NAMES.items()}
    for label, row in found.items():
        print(f"{told.get(label, '-'):14} {label:28} {json.dumps(row)}")


if __name__ == "__main__":
    main()
