"""One card of several ways to write a report, on the same films: what their drafts say, how much of each learned, how long a draft takes.

    python -m train.compare --films FILMS.jsonl --reports REPORTS.jsonl --json \\
        "EMRRG=assets/checkpoints/small" "projector alone=runs/projector/checkpoint" "AM-MRG=runs/am_mrg/checkpoint" \\
        > docs/results/compare.json

The first model's tower also finds the nearest training film, whose report is one of the baselines that need no training; another says the same of
every film (train/evaluate.py). Films are spread evenly over sources, normal and abnormal. Every model drafts greedily, without guesses, in batches;
where a checkpoint sees finding tokens, they are those that it reads. `times` is what a draft of one film alone costs, from pixels to the end of the
text, over the first model's, turn by turn: the median over a few films. --add goes on with an earlier card of the same films; name its first model
first. Models that are in it already are timed anew, and not asked again.

`paths` of a model with disease tokens: what its drafts lose without its memory, with another film's memory, or disease tokens (train/paths.py).
Intervals are bootstrap 95 % over films. `train.results --compare` makes the table.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emrrg_core.config import DecodeConfig
from emrrg_core.data.studies import Study, read_reports, read_studies
from emrrg_core.errors import ConfigError, DataError
from emrrg_core.model import checkpoint
from emrrg_core.model.emrrg import Emrrg
from emrrg_core.model.generation import write
from emrrg_core.model.language_model import prefers_bfloat16
from emrrg_core.model.parameter_count import count
from train.evaluate import Judge, _fast, baselines, cleaning_of, load_films, summarise_texts, text_columns
from train.paths import paths, spread

SCHEMA = "emrrg.compare/1"
COLUMNS = {
    "normal_balanced_accuracy": "normal/abnormal",
    "label_micro_f1": "micro-F1",
    "label_macro_f1": "macro-F1",
    "prior_words": "words of a prior",
}
UNTRAINED = {"nearest": "report of the nearest film", "constant": "the same report always"}
TIMED = 5  # films
_PATHS = ("own", "gates_zero", "disease_other", "memory_other", "memory_off")


def times_of(model: Emrrg, first: Emrrg, studies: Sequence[Study]) -> float:
    """What a draft of one film alone costs, without guesses, over what it costs the first model: turn by turn, the median over some films."""
    if model is first:
        return 1.0
    ratios = []
    for study in studies[:TIMED]:
        mine, theirs = (_seconds(one, load_films([study], one.config.vision.image_size)[0]) for one in (model, first))
        ratios.append(mine / theirs)
    return float(np.median(ratios))


def _seconds(model: Emrrg, film: np.ndarray) -> float:
    """From a film (3, s, s) to the end of its draft."""
    begun = time.perf_counter()
    with _fast():
        write(model, model.encode(torch.from_numpy(film)[None, None]), DecodeConfig())
    return time.perf_counter() - begun


def drafts_of(model: Emrrg, name: str, studies: Sequence[Study], redrafts: int, seed: int) -> dict[str, Any]:
    """A model's texts, and what is told of it beside them."""
    judge = Judge(model)
    films = load_films(studies, model.config.vision.image_size)
    film = judge.see(films)
    drafts = judge.write(film, seed, progress=name)
    found: dict[str, Any] = {"texts": [d.text for d in drafts]}
    if film.disease is not None:
        rows = paths(judge, studies, film, drafts, range(len(studies)), redrafts, seed)
        found["paths"] = {change: rows[change] for change in _PATHS if change in rows}
    return found


def compare(
    models: Mapping[str, Path], studies: Sequence[Study], args: argparse.Namespace, language_model: str | None
) -> dict[str, Any]:
    """The card. Raises ConfigError where `args.add` is the card of other films."""
    card: dict[str, Any] = {"schema": SCHEMA, "split": args.split, "films": len(studies), "seed": args.seed}
    rows: dict[str, dict[str, Any]] = {}
    if args.add:
        earlier = json.loads(args.add.read_text(encoding="utf-8"))
        rows = earlier.pop("rows")
        if earlier != card:
            raise ConfigError(f"{args.add} is the card of other films than these: {earlier}, not {card}.")
    first: Emrrg | None = None
    for name, folder in models.items():
        model, _ = checkpoint.load(folder, language_model=language_model)
        if prefers_bfloat16():
            model.llm.bfloat16()
        first = first or model
        if name not in rows:
            row = drafts_of(model, name, studies, args.paths, args.seed)
            row |= {"trainable": count(model, model.learns).learned, "checkpoint": checkpoint.fingerprint(folder)}
            rows[name] = _scored(row, studies, model)
            if len(rows) == 1:
                rows |= _untrained(model, studies, args)
        rows[name]["times"] = times_of(model, first, studies)
    return card | {"rows": rows}


def _untrained(model: Emrrg, studies: Sequence[Study], args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    judge = Judge(model)
    film = judge.see(load_films(studies, model.config.vision.image_size))
    learn = [s for path in args.films for s in read_studies(path, "train")]
    reports = read_reports(args.reports, "train")
    texts = baselines(judge, studies, film, learn, reports, neighbours=args.neighbours, seed=args.seed)
    return {title: _scored({"texts": texts[key]}, studies, model) for key, title in UNTRAINED.items() if key in texts}


def _scored(row: dict[str, Any], studies: Sequence[Study], model: Emrrg) -> dict[str, Any]:
    """With scores in place of the texts."""
    columns = text_columns(row.pop("texts"), studies)
    every = np.arange(len(studies))
    return row | {"scores": summarise_texts(columns, studies, every, model.tokenizer, cleaning_of(studies))}


def table(card: Mapping[str, Any]) -> str:
    """In Markdown."""
    heads = ["way", *COLUMNS.values(), "parameters that learned", "a draft"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, row in sorted(card["rows"].items(), key=lambda item: "times" not in item[1]):
        cells = [_cell(row["scores"][score]) for score in COLUMNS]
        learned = f"{row['trainable']:,}" if "trainable" in row else "0"
        times = f"{row['times']:.1f} ×" if "times" in row else "–"
        lines.append(f"| {name} | {' | '.join(cells)} | {learned} | {times} |")
    said = [
        f"{card['films']} films of {card['split']}. Drafts are not guessed here, so each costs more than in the app."
    ]
    for name, row in card["rows"].items():
        if "paths" in row:
            said.append(_paths(name, row["paths"]))
    return "\n".join(lines) + "\n\n" + "\n\n".join(said)


def _paths(name: str, rows: Mapping[str, Any]) -> str:
    titles = {
        "own": "nothing",
        "gates_zero": "all gates shut",
        "disease_other": "disease tokens: another film's",
        "memory_other": "memory: asked by another film",
        "memory_off": "memory: off",
    }
    lines = [f"Which path carries *{name}*:", ""]
    lines += ["| changed | labels kept | labels of the other film | nats a token lost |", "|---|---|---|---|"]
    for change, row in rows.items():
        cells = [f"{row[score]['value']:.2f}" for score in ("labels_kept", "labels_of_other", "nats")]
        lines.append(f"| {titles[change]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(score: Mapping[str, Any]) -> str:
    if score["value"] is None:
        return "–"
    return f"{score['value']:.2f} ({score['low']:.2f}–{score['high']:.2f})"


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    models = dict(_named(text) for text in args.models)
    if not models or not args.films or not args.reports:
        raise ConfigError("Name the films, the report texts, and at least one model as NAME=FOLDER.")
    held = [s for path in args.films for s in read_studies(path, args.split)]
    if not held:
        raise DataError(f"There are no films of the split {args.split!r}.")
    studies = [held[i] for i in spread(held, range(len(held)), args.count)]
    card = compare(models, studies, args, args.language_model)
    print(json.dumps(card, indent=1) if args.json else table(card))
    return 0


def _named(text: str) -> tuple[str, Path]:
    name, found, folder = text.partition("=")
    if not found or not name or not folder:
        raise ConfigError(f"A model is named as NAME=FOLDER, not {text!r}.")
    return name, Path(folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="NAME=FOLDER", help="checkpoints; the first finds nearest films")
    parser.add_argument("--films", type=Path, nargs="+", default=[])
    parser.add_argument("--reports", type=Path, help="report texts of the training split")
    parser.add_argument("--split", default="val")
    parser.add_argument("--count", type=int, default=320, help="films at most")
    parser.add_argument("--paths", type=int, default=80, help="films whose drafts are written again")
    parser.add_argument(
        "--neighbours", type=int, default=600, help="training films among which the nearest is looked for"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--add", type=Path, metavar="CARD", help="go on with this card")
    parser.add_argument("--json", action="store_true", help="print the card instead of the table")
    parser.add_argument("--language-model", default=None)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


if __name__ == "__main__":
    sys.exit(main())
