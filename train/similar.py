"""Whether remembered reports that are found for a film have its findings: writes the table of docs/memory.md.

    python -m train.similar --films FILMS.jsonl [FILMS_MORE.jsonl] --reports REPORTS.jsonl --docs docs/memory.md

Films of --split ask; the reports of the split `train` are the memory. Precision at 5: of the five nearest reports, the share that states the label
that the film has. Beside it the share of all reports, which is chance. By the label reader; "No Finding": the report states none.

A second table asks the films of the split among each other, films of the same patient left out: found by their findings, as the memory does, and by
the mean of the tower's tokens, which nothing was taught to tell findings apart in. Its precision counts films that are known to have the label; what
is unknown of a film counts as not.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from emrrg_core.data.studies import FilmCache, Study, normalise, read_reports, read_studies
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


def vectors_of(model: Emrrg, films: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What is read in films (s, s) in [0, 255], as vectors of the memory, and the mean of the tower's tokens of each, less the mean of all films."""
    rows, means = [], []
    with torch.inference_mode():
        for i in range(0, len(films), BATCH):
            images = torch.from_numpy(normalise(np.stack(films[i : i + BATCH]))).unsqueeze(1)
            seen = model.see(images)
            rows += [vector_of_film(read) for read in select_findings(seen, model.calibration)]
            means.append(model.patches(seen.tokens).float().mean(1).numpy())
    features = np.concatenate(means)
    return np.stack(rows), normalised(features - features.mean(0))


def among_films(ways: Mapping[str, np.ndarray], studies: Sequence[Study]) -> str:
    """Precision at NEAR of films among each other. ways: name of a kind of vector -> (films, k), of length 1."""
    rng = np.random.default_rng(0)
    patients = np.array([study.patient for study in studies])
    other = patients[:, None] != patients[None]
    near = {name: np.argsort(-np.where(other, rows @ rows.T, -np.inf), axis=1)[:, :NEAR] for name, rows in ways.items()}
    lines = [f"| label | {' | '.join(ways)} | of all films |", "|---" * (2 + len(ways)) + "|"]
    for label in LABELS:
        has = np.array([study.labels.get(label) == 1 for study in studies])
        if has.sum() < FEWEST:
            continue
        cells = []
        for found in near.values():
            share = has[found].mean(1)[has]
            low, high = np.quantile(rng.choice(share, (DRAWS, len(share))).mean(1), [0.025, 0.975])
            cells.append(f"{share.mean():.2f} ({low:.2f}–{high:.2f})")
        lines.append(f"| {label}, {has.sum()} | {' | '.join(cells)} | {has.mean():.2f} |")
    return "\n".join(lines)


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
    vectors, features = vectors_of(model, [cache[study] for study in studies])
    _, near = Flat(memory).search(vectors, NEAR)
    ways = {"by findings": normalised(vectors), "by the tower’s features": features}
    made = table(near, [set(stated_in(text)) for text in texts], [study.labels for study in studies])
    return (
        f"{made}\n\nPrecision at {NEAR}: {len(studies)} films of the split {args.split}, {len(texts)} reports, checkpoint "
        f"`{checkpoints.fingerprint(args.checkpoint)[:12]}…`. Brackets: 95 % interval over films (bootstrap).\n\n"
        f"Films among each other, of other patients:\n\n{among_films(ways, studies)}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
