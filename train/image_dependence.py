"""Calibrates *Is it looking?*: measures how much drafts depend on their film, beside texts that were written for another film.

    python -m train.image_dependence --checkpoint assets/checkpoints/small --films FILMS.jsonl --split val [--limit N] [--json]

Every film of the split is drafted. Then the draft is scored under its own film, under the three stand-ins of `emrrg_core.explain.faithfulness`, and
under another film of the split. As on the screen, a stand-in replaces the film for the hybrid layers, not in the prompt. A draft under another film
plays a text that does not belong to its film; what it loses is counted from that other film to the stand-ins. The best threshold on the mean of the
three separates the two kinds best (Youden's J: share of drafts above it less share of foreign texts above it). Rounded, it is
`emrrg_core.explain.faithfulness.BARELY`. J stays below 1 because the texts of normal films fit most films.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, Python looks beside the script only

import numpy as np
import torch

from emrrg_core.config import PromptTokens
from emrrg_core.data.studies import Study, read_studies
from emrrg_core.errors import DataError, EmrrgError
from emrrg_core.explain.faithfulness import BARELY, stand_ins
from emrrg_core.model import checkpoint
from emrrg_core.model.emrrg import Emrrg, FilmTokens
from train.evaluate import Judge, load_films

KINDS = ("blank", "noise", "swapped")
QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)


def moves(model: Emrrg, studies: Sequence[Study], *, batch: int = 32, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Nats a token lost under each of KINDS, of drafts from their own film and from another one: (drafts, 3) each.

    Every draft meets stand-ins of its own seed, as on the screen with seed `seed` + its number. Raises DataError for fewer than two films.
    """
    if len(studies) < 2:
        raise DataError("At least two films are needed: each draft is read under another film too.")
    judge, size = Judge(model, batch), model.config.vision.image_size
    rng = np.random.default_rng(seed)
    films = judge.see(load_films(studies, size))
    drafts = judge.write(films)
    another = [int(rng.choice([j for j in range(len(studies)) if j != i])) for i in range(len(studies))]

    def nats(seen: FilmTokens, rows: Sequence[int]) -> np.ndarray:
        scores = judge.score(seen, [drafts[i] for i in rows])
        chosen = [np.array([not token.forced for token in drafts[i].tokens]) for i in rows]
        return np.array([row[: len(mine)][mine].mean() for row, mine in zip(scores, chosen, strict=True)])

    worded = [i for i, draft in enumerate(drafts) if not all(token.forced for token in draft.tokens)]

    def unlike(fakes: FilmTokens, rows: Sequence[int], prompts: Sequence[int]) -> np.ndarray:
        """Under each of KINDS, (rows, 3). fakes: three for each of `rows`; prompts: whose film stands in the prompt."""
        kinds = [fakes.select(range(k, len(fakes), len(KINDS))) for k in range(len(KINDS))]
        return np.stack([nats(kind.exchanged(films.select(prompts), prompt=True), rows) for kind in kinds], 1)

    empty = model.config.prompt.tokens is PromptTokens.NONE  # then stand-ins are the same whose film it is said to be
    moved, alien = [], []
    for start in range(0, len(worded), batch):  # stand-ins of few drafts at once: they need not all lie in memory
        rows = worded[start : start + batch]
        others = [another[i] for i in rows]
        fakes = judge.see([film for i in rows for film in stand_ins(size, np.random.default_rng(seed + i))])
        own = unlike(fakes, rows, rows)
        moved.append(nats(films.select(rows), rows)[:, None] - own)
        alien.append(nats(films.select(others), rows)[:, None] - (own if empty else unlike(fakes, rows, others)))
        print(f"{start + len(rows)} of {len(worded)} drafts", file=sys.stderr, flush=True)
    return np.concatenate(moved), np.concatenate(alien)


def separation(own: np.ndarray, strange: np.ndarray) -> float:
    """Probability that a draft of its own film moves further than a text of another (area under the ROC curve)."""
    difference = own[:, None] - strange[None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def calibrate(own: np.ndarray, strange: np.ndarray) -> dict[str, Any]:
    """What is printed, of two arrays (drafts, 3) from `moves`."""
    columns = {kind: (own[:, k], strange[:, k]) for k, kind in enumerate(KINDS)}
    columns |= {"mean": (own.mean(1), strange.mean(1)), "least": (own.min(1), strange.min(1))}
    columns |= {"most": (own.max(1), strange.max(1))}
    moved, alien = columns["mean"]
    cuts = np.unique(np.concatenate([moved, alien]))
    best = float(cuts[np.argmax([(moved >= cut).mean() - (alien >= cut).mean() for cut in cuts])])

    def rates(cut: float) -> dict[str, float]:
        flagged, caught = float((moved < cut).mean()), float((alien < cut).mean())
        return {"threshold": cut, "drafts_flagged": flagged, "strange_texts_flagged": caught}

    return {
        "n": len(own),
        "quantiles": {
            name: {
                kind: dict(zip(map(str, QUANTILES), np.quantile(values, QUANTILES).tolist(), strict=True))
                for kind, values in zip(("drafts", "strange_texts"), pair, strict=True)
            }
            for name, pair in columns.items()
        },
        "separation": {name: separation(*pair) for name, pair in columns.items()},
        "best": rates(best),
        "in_use": rates(BARELY),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--films", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--limit", type=int, default=0, help="at most this many films, the same share of every source")
    parser.add_argument("--batch", type=int, default=32)
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
        found = calibrate(*moves(model, studies, batch=args.batch, seed=args.seed))
    except EmrrgError as error:
        print(f"emrrg: {error}", file=sys.stderr)
        return 2
    card = {
        "schema": "emrrg.looking/1",
        "checkpoint_sha256": checkpoint.fingerprint(args.checkpoint),
        "settings_sha256": checkpoint.settings_fingerprint(args.checkpoint),
        "films": args.films.name,
        "split": args.split,
        "command": "python -m train.image_dependence " + " ".join(argv if argv is not None else sys.argv[1:]),
        **found,
    }
    if args.json:
        print(json.dumps(card, indent=2))
        return 0
    print(f"{found['n']} drafts; nats a token lost:")
    for name, kinds in found["quantiles"].items():
        for kind, row in kinds.items():
            print(f"  {name:8s} {kind:14s}", *(f"{q}: {value:6.3f}" for q, value in row.items()))
        print(f"  {name:8s} separation     {found['separation'][name]:.3f}")
    for name in ("best", "in_use"):
        row = found[name]
        flagged = (
            f"flags {row['drafts_flagged']:.3f} of drafts, {row['strange_texts_flagged']:.3f} of other films' texts"
        )
        print(f"{name:8s} threshold {row['threshold']:.3f} {flagged}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
