"""Judges a checkpoint on a split: what its drafts say, and whether they come from the film.

    python -m train.evaluate --checkpoint assets/checkpoints/small --films FILMS.jsonl --split val --json

Per source and overall, each with n and a bootstrap 95 % interval over films:
    distinct             share of different texts among the drafts
    ended                share of drafts that the model ended itself
    marks                share of drafts with a de-identification mark (XXXX, ___)
    called_abnormal      share of drafts that state an abnormality, among films labelled normal and among those labelled abnormal
    normal_balanced_accuracy   of the drafts' normal/abnormal against the labels
    own_image_preferred_all    share of pairs in which a draft is more probable under its own film than under another of the same source
    own_image_preferred        the same, over pairs of which one film is labelled normal and the other abnormal
    gate                 mean |gate| per generated token, over hybrid layers
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emrrg_core import checkpoint
from emrrg_core.config import DecodeConfig
from emrrg_core.data import Study, read_studies
from emrrg_core.decode import Writing, write
from emrrg_core.errors import EmrrgError
from emrrg_core.films import model_input, read_film
from emrrg_core.findings import is_abnormal
from emrrg_core.model import IGNORED, Emrrg
from train.finetune import pad
from train.warmup import balanced_accuracy


def interval(values: np.ndarray, statistic: Callable[[np.ndarray], float] = np.mean, seed: int = 0) -> dict[str, Any]:
    """Value, bootstrap 95 % interval over the rows of `values`, and n. NaN statistics of a resample are left out."""
    if not len(values):
        return {"value": None, "low": None, "high": None, "n": 0}
    rng = np.random.default_rng(seed)
    drawn = [statistic(values[rng.integers(len(values), size=len(values))]) for _ in range(500)]
    drawn = [d for d in drawn if np.isfinite(d)]
    low, high = np.percentile(drawn, [2.5, 97.5]) if drawn else (None, None)
    value = statistic(values)
    return {
        "value": float(value) if np.isfinite(value) else None,
        "low": None if low is None else float(low),
        "high": None if high is None else float(high),
        "n": len(values),
    }


@torch.inference_mode()
def see(model: Emrrg, studies: Sequence[Study], batch: int) -> torch.Tensor:
    """Visual tokens of the first film of every study, (n, l, h)."""
    seen = []
    for i in range(0, len(studies), batch):
        size = model.config.vision.image_size
        films = np.stack([model_input(read_film(s.files[0]), size) for s in studies[i : i + batch]])
        seen.append(model.encode(torch.from_numpy(films).unsqueeze(1)))
    return torch.cat(seen)


@torch.inference_mode()
def score(model: Emrrg, visual: torch.Tensor, drafts: Sequence[Writing], batch: int) -> np.ndarray:
    """Log-probability of every draft, its end included where it ended, under the film beside it."""
    eos = model.tokenizer.eos_token_id
    ids = [[*(t.id for t in d.tokens), *([eos] if d.finished else [])] for d in drafts]
    scores = [
        model.log_probs(visual[i : i + batch], pad(ids[i : i + batch], IGNORED, torch.long)).sum(1)
        for i in range(0, len(ids), batch)
    ]
    return torch.cat(scores).numpy()


def evaluate(model: Emrrg, studies: Sequence[Study], *, batch: int = 16, seed: int = 0) -> dict[str, Any]:
    """All scores, per source and overall."""
    begun = time.perf_counter()
    visual = see(model, studies, batch)
    drafts: list[Writing] = []
    for i in range(0, len(studies), batch):
        drafts += write(model, visual[i : i + batch], DecodeConfig(seed=seed))
        print(f"{len(drafts)} of {len(studies)} drafted, {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    own = score(model, visual, drafts, batch)
    rng = np.random.default_rng(seed)
    truth = np.array([np.nan if s.abnormal is None else float(s.abnormal) for s in studies])
    sources = np.array([s.source for s in studies])
    any_other, opposite = np.full(len(studies), -1), np.full(len(studies), -1)
    for i in range(len(studies)):
        near = np.flatnonzero((sources == sources[i]) & (np.arange(len(studies)) != i))
        against = near[truth[near] == 1 - truth[i]]
        any_other[i] = rng.choice(near) if len(near) else -1
        opposite[i] = rng.choice(against) if len(against) else -1

    def preferred(other: np.ndarray) -> np.ndarray:
        result = np.full(len(studies), np.nan)
        rows = np.flatnonzero(other >= 0)
        if len(rows):
            under = score(model, visual[other[rows]], [drafts[i] for i in rows], batch)
            result[rows] = own[rows] > under
        return result

    columns = {"own_image_preferred_all": preferred(any_other), "own_image_preferred": preferred(opposite)}
    called = np.array([is_abnormal(d.text.replace("\n", " ")) for d in drafts])
    texts = np.array([d.text for d in drafts])
    result: dict[str, Any] = {}
    for source in [*sorted(set(sources)), "overall"]:
        mine = np.arange(len(studies)) if source == "overall" else np.flatnonzero(sources == source)
        known = mine[np.isfinite(truth[mine])]

        def accuracy(rows: np.ndarray) -> float:
            labels = truth[rows] == 1
            return balanced_accuracy(labels, called[rows]) if labels.any() and not labels.all() else float("nan")

        result[source] = {
            "distinct": {"value": len(set(texts[mine])) / len(mine), "n": len(mine)},
            "ended": interval(np.array([drafts[i].finished for i in mine], float)),
            "marks": interval(np.array(["XXXX" in texts[i] or "___" in texts[i] for i in mine], float)),
            "called_abnormal": {
                "of_normal": interval(called[known[truth[known] == 0]].astype(float)),
                "of_abnormal": interval(called[known[truth[known] == 1]].astype(float)),
            },
            "normal_balanced_accuracy": interval(known, accuracy),
            "gate": interval(
                np.array([np.abs([t.gates for t in drafts[i].tokens]).mean() for i in mine if drafts[i].tokens])
            ),
            **{name: interval(column[mine][np.isfinite(column[mine])]) for name, column in columns.items()},
        }
    result["seconds"] = time.perf_counter() - begun
    return result


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--films", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--limit", type=int, default=0, help="at most this many films, the same share of every source")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        studies = read_studies(args.films, args.split)
        if args.limit and args.limit < len(studies):
            studies = studies[:: -(-len(studies) // args.limit)]
        model, _ = checkpoint.load(args.checkpoint)
        scores = evaluate(model, studies, batch=args.batch, seed=args.seed)
    except EmrrgError as error:
        print(f"emrrg: {error}", file=sys.stderr)
        return 2
    card = {
        "checkpoint_sha256": checkpoint.fingerprint(args.checkpoint),
        "films": args.films.name,
        "split": args.split,
        "limit": args.limit,
        "seed": args.seed,
        "decoding": "greedy",
        "command": "python -m train.evaluate " + " ".join(argv if argv is not None else sys.argv[1:]),
        "scores": scores,
    }
    if args.json:
        print(json.dumps(card, indent=2))
    else:
        for source, row in scores.items():
            print(source, json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
