"""Fits the probabilities of findings and the thresholds from which they are stated or denied, on development films, never on `val`.

    python -m train.calibrate --checkpoint runs/finetune/checkpoint --films FILMS.jsonl FILMS_MORE.jsonl --radiologists RADIOLOGISTS.jsonl \\
        --out runs/small

train.finetune does this whenever it saves. Run it alone after a stage that has changed the tower. It prints what it found for each label.
"""

import argparse
import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from emrrg_core.config import ModelConfig
from emrrg_core.data.studies import FilmCache, Study, development, read_studies
from emrrg_core.errors import ConfigError
from emrrg_core.films.synthetic_findings import LABEL_OF, draw
from emrrg_core.model import checkpoint
from emrrg_core.model.disease_queries import Seen
from emrrg_core.model.emrrg import Emrrg
from emrrg_core.model.finding_tokens import NAMES, NEVER, Calibration, ratios_of
from emrrg_core.text.labeler import LABELS, NO_FINDING
from train.measures import area_under_curve, balanced_accuracy
from train.targets import OPACITIES, Truth, lungs_of, read_radiologists, truth_of
from train.tower import see_films

FEWEST = 5  # development films that have a finding, before it is assessed by them
LEAST = 3  # and before a curve is fitted to them
MANY = 10  # and before it need not be told almost perfectly
LEAST_AREA, CLEAR_AREA = 0.7, 0.9  # how well it must be told from films that do not have it, of MANY films and of fewer
DRAWN_AREA = (
    0.8  # how well, where too few real films have it, drawn ones must be told from the same films without a drawing
)
ALARMS = 0.006  # share of normal films in which a finding may be read that is not there
WRONG = 0.05  # share of any source's normal films in which a finding may be read at all, but for those that the film as a whole is called by
ENOUGH = 15  # films of a kind, before a source sets a limit
RIGHT = 0.9  # of what is denied, at least, on development films
MISSED = 0.15  # of films that have a finding, at most, in which it is denied
AS_GOOD = 0.01  # difference of scores that does not choose between thresholds
DRAWN = 120  # normal films, at most, on which findings are drawn
_LOWEST, _HIGHEST = 0.02, 0.995


def see_all(model: Emrrg, studies: Sequence[Study], cache: FilmCache) -> Seen:
    """What the tower sees of the first film of every study, as of `see_films`."""
    return _see(model, [cache[s] for s in studies])


def _see(model: Emrrg, films: Sequence[np.ndarray]) -> Seen:
    model.eval()
    return see_films(lambda images: model.see(images.unsqueeze(1)), films, model.device)


def see_drawn(model: Emrrg, seen: Seen, studies: Sequence[Study], cache: FilmCache) -> dict[str, Seen]:
    """What the tower sees of normal films with a finding drawn on them, and under "" of the same films without, by label.

    seen: of all these films; the lungs in which is drawn are those that the tower sees.
    """
    normal = [i for i, s in enumerate(studies) if s.abnormal is False]
    normal = normal[:: max(1, len(normal) // DRAWN)][:DRAWN]
    lungs = seen.patch_lungs().numpy()
    films: dict[str, list[np.ndarray]] = {"": [], **{label: [] for label in LABEL_OF.values()}}
    for i in normal:
        mask = lungs_of(lungs[i], cache.size)
        if mask is None:
            continue
        rng, film = np.random.default_rng(i), cache[studies[i]]
        films[""].append(film.astype(np.float32))
        for sign, label in LABEL_OF.items():
            with contextlib.suppress(ValueError):  # a mask that shows too little
                films[label].append(draw(film, mask, sign, rng)[0])
    return {label: _see(model, some) for label, some in films.items() if some}


def fit(
    calibration: Calibration,
    seen: Seen,
    studies: Sequence[Study],
    truths: Mapping[str, Truth],
    drawn: Mapping[str, Seen] | None = None,
) -> dict[str, dict]:
    """Set the calibration by what was seen of these films; returns what was found, by label.

    drawn: of `see_drawn`. A finding that too few real films have is assessed where drawn ones are told well; then it is stated only above what
    all but ALARMS of the normal films reach, and never denied.
    """
    ratios = ratios_of(seen)
    ratio = np.array([(r if r is not None else 0.5) - 0.5 for r in ratios])
    logits = seen.logits.numpy().astype(float)
    normal = np.array([s.abnormal is False for s in studies])
    source = np.array([s.source for s in studies])
    curve, thresholds, found = calibration.curve.clone(), calibration.thresholds.clone(), {}
    whole = np.ones(len(studies), bool)  # called abnormal; known once the first label, No Finding, is done
    for i, label in enumerate(LABELS):
        known = np.array([label in truths[s.id].labels for s in studies])
        target = np.array([truths[s.id].labels.get(label, 0.0) for s in studies])
        true = target >= 0.5
        has, lacks = known & true, known & ~true
        row: dict = {"positive": int(has.sum()), "negative": int(lacks.sum()), "assessed": False}
        thresholds[i] = torch.tensor([NEVER, NEVER, 0.0])
        found[label] = row
        if min(has.sum(), lacks.sum()) < LEAST:
            continue
        with_ratio = label == "Cardiomegaly"
        curve[i] = torch.tensor(logistic(logits[known, i], ratio[known] if with_ratio else None, target[known]))
        p = _probability(curve[i], logits[:, i], ratio)
        score, told = (1 - p, ~true) if label == NO_FINDING else (p, true)
        row["area"] = area = area_under_curve(told[known], score[known])
        alone = float(np.quantile(score[normal], 1 - ALARMS)) if normal.sum() >= ENOUGH else NEVER
        row["drawn_area"] = by_drawn = _drawn_area(drawn or {}, label, i, curve[i])
        fewer = min(has.sum(), lacks.sum())
        enough = fewer >= FEWEST and area >= (LEAST_AREA if fewer >= MANY else CLEAR_AREA)
        denied = 0.0
        if label == NO_FINDING:
            first = second = _best(score[known], _balanced(score, told, known, source))
            denied = _denial(score[known], told[known], first)
            whole = score >= first
        elif enough:
            # of films that are called abnormal: in the others the second threshold holds
            called = np.where(whole, score, 0.0)[known]
            first = _best(called[called > 0], _f1(called, true[known])) if called.any() else NEVER
            if label not in OPACITIES:
                first = max(
                    [first, *(float(np.quantile(score[n], 1 - WRONG)) for n in _normal_by_source(normal, source))]
                )
            second = max(first, alone)
            denied = _denial(score[known], told[known], first)
        elif by_drawn is not None and by_drawn >= DRAWN_AREA and alone < NEVER:
            first = second = alone
        else:
            continue
        clipped = [min(max(x, _LOWEST), _HIGHEST) for x in (first, second)]
        thresholds[i] = torch.tensor([*clipped, denied])
        row |= {
            "assessed": True,
            "by": "real films" if enough or label == NO_FINDING else "drawn findings",
            "threshold": clipped[0],
            "threshold_alone": clipped[1],
            "denied_below": denied,
            "negative_predictive_value": float((~told[known & (score < denied)]).mean()) if denied else None,
            "denied_of_positive": float((score[known & told] < denied).mean()),
        }
        if by_drawn is not None and drawn:
            row["drawn_stated"] = float((_of_drawn(drawn[label], i, curve[i]) >= clipped[1]).mean())
    calibration.curve.copy_(curve)
    calibration.thresholds.copy_(thresholds)
    return found


def _of_drawn(seen: Seen, i: int, curve: Tensor) -> np.ndarray:
    ratio = np.array([(r if r is not None else 0.5) - 0.5 for r in ratios_of(seen)])
    return _probability(curve, seen.logits[:, i].numpy().astype(float), ratio)


def _drawn_area(drawn: Mapping[str, Seen], label: str, i: int, curve: Tensor) -> float | None:
    """How well drawn findings are told from the same films without one; None for a label that is not drawn."""
    if label not in drawn or "" not in drawn:
        return None
    there, without = _of_drawn(drawn[label], i, curve), _of_drawn(drawn[""], i, curve)
    truth = np.r_[np.ones(len(there), bool), np.zeros(len(without), bool)]
    return area_under_curve(truth, np.r_[there, without])


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
    """Balanced accuracy, the mean over sources that have enough normal and abnormal films, and in which they can be told apart."""
    kinds = [known & (source == s) for s in sorted(set(source))]
    kinds = [k for k in kinds if min((abnormal & k).sum(), (~abnormal & k).sum()) >= ENOUGH]
    kinds = [k for k in kinds if area_under_curve(abnormal[k], score[k]) >= LEAST_AREA] or [known]
    return lambda limit: float(np.mean([balanced_accuracy(abnormal[k], score[k] >= limit) for k in kinds]))


def _normal_by_source(normal: np.ndarray, source: np.ndarray) -> list[np.ndarray]:
    """The normal films of every source that has enough of them, (n,) bool each."""
    kinds = [normal & (source == s) for s in sorted(set(source[normal]))]
    return [kind for kind in kinds if kind.sum() >= ENOUGH]


def _f1(p: np.ndarray, true: np.ndarray) -> Callable[[float], float]:
    return lambda limit: float(2 * (true & (p >= limit)).sum() / ((p >= limit).sum() + true.sum()))


def _best(values: np.ndarray, score: Callable[[float], float]) -> float:
    """The limit with the highest score: the median of those within AS_GOOD of the highest, for the highest alone follows a film or two."""
    found = np.unique(values)
    between = np.concatenate([found[:1], (found[:-1] + found[1:]) / 2])
    scores = np.array([score(limit) for limit in between])
    return float(np.median(between[scores >= scores.max() - AS_GOOD]))


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
    seen = see_all(model, develop, cache)
    found = fit(model.calibration, seen, develop, truths, see_drawn(model, seen, develop, cache))
    checkpoint.save(model, args.out, language=config["language_model"], training={**config["training"], "calibration": found})  # fmt: skip
    told = {label: name for name, label in NAMES.items()}
    for label, row in found.items():
        print(f"{told.get(label, '-'):14} {label:28} {json.dumps(row)}")


if __name__ == "__main__":
    main()
