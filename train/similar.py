"""Whether remembered reports that are found for a film have its findings: writes the table of docs/memory.md.

    python -m train.similar --films FILMS.jsonl [FILMS_MORE.jsonl] --reports REPORTS.jsonl --docs docs/memory.md

Films of --split ask; the reports of the split `train` are the memory. Precision at 5: of the five nearest reports, the share that states the label
that the film has. Beside it the share of all reports, which is chance. By the label reader; "No Finding": the report states none.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from emrrg_core.data.studies import FilmCache, normalise, read_reports, read_studies
from emrrg_core.errors import DataError
from emrrg_core.memory.cases import stated_in, vector_of_film, vector_of_report
from emrrg_core.memory.index import Flat, normalised
from emrrg_core.model import checkpoint as checkpoints
from emrrg_core.model.emrrg import Emrrg
from emrrg_core.model.finding_tokens import select_findings
from emrrg_core.reporter import DEFAULT_CHECKPOINT
from emrrg_core.text.labeler import LABELS, NO_FINDING, report_text
from train.confidence import publish

NEAR, FEWEST, BATCH, DRAWS = 5, 8, 32, 1000


def vectors_of(model: Emrrg, films: Sequence[np.ndarray]) -> np.ndarray:
    """What is read in films (s, s) in [0, 255], as vectors of the memory."""
    rows = []
    with torch.inference_mode():
        for i in range(0, len(films), BATCH):
            images = torch.from_numpy(normalise(np.stack(films[i : i + BATCH]))).unsqueeze(1)
            rows += [vector_of_film(read) for read in select_findings(model.see(images), model.calibration)]
    return np.stack(rows)


def table(near: np.ndarray, stated: Sequence[set[str]], films: Sequence[dict[str, int]]) -> str:
    """near: (films, NEAR), numbers of reports. stated: labels of each report. films: labels of each film, as far as known."""
    rng = np.random.default_rng(0)
    lines = ["| label | of films with it | of films without it | of all reports |", "|---|---|---|---|"]
    for label in LABELS:
        has = np.array([not row if label == NO_FINDING else label in row for row in stated])
        share = has[near].mean(1)  # of every film
        with_it, without = (share[[labels.get(label) == value for labels in films]] for value in (1, 0))
        if len(with_it) < FEWEST:
            continue
        drawn = rng.choice(with_it, (DRAWS, len(with_it))).mean(1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        other = f"{without.mean():.2f} of {len(without)}" if len(without) else "–"
        lines.append(
            f"| {label} | {with_it.mean():.2f} ({low:.2f}–{high:.2f}) of {len(with_it)} | {other} | {has.mean():.2f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=Path, nargs="+", required=True)
    parser.add_argument("--reports", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, default=DEFAULT_CHECKPOINT)
    parser.add_argument("--split", default="val")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--docs", type=Path, help="the page whose table is written; else it is printed")
    args = parser.parse_args(argv)
    return publish(lambda: measure(args), args.docs, "similar")


def measure(args: argparse.Namespace) -> str:
    model, _ = checkpoints.load(args.checkpoint)
    studies = [study for path in args.films for study in read_studies(path, args.split)]
    reports = read_reports(args.reports, "train")
    if not studies or not reports:
        raise DataError(f"There are no films of the split {args.split!r}, or no reports of the split 'train'.")
    cache = FilmCache(studies, args.cache, model.config.vision.image_size)
    texts = [report_text(report.findings, report.impression) for report in reports]
    memory = normalised(np.stack([vector_of_report(text) for text in texts]))
    _, near = Flat(memory).search(vectors_of(model, [cache[study] for study in studies]), NEAR)
    made = table(near, [set(stated_in(text)) for text in texts], [study.labels for study in studies])
    return (
        f"{made}\n\nPrecision at {NEAR}: {len(studies)} films of the split {args.split}, {len(texts)} reports, checkpoint "
        f"`{checkpoints.fingerprint(args.checkpoint)[:12]}…`. Brackets: 95 % interval over films (bootstrap)."
    )


if __name__ == "__main__":
    raise SystemExit(main())
