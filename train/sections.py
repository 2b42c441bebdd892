"""The Impression in one go with the Findings, or written anew from them: what it does to drafts of the shipped checkpoint.

    python -m train.sections --films FILMS.jsonl [--count 120]

Of some validation films, spread evenly over sources, normal and abnormal: the share of drafts whose Impression states the labels of its Findings and
no others, balanced accuracy of normal against abnormal by the Impression alone, and what a draft costs, over one written in one go.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from emrrg_core.config import DecodeConfig, Sections
from emrrg_core.data.studies import read_studies
from emrrg_core.films.film import read_film
from emrrg_core.reporter import Reporter
from emrrg_core.text.labeler import is_abnormal
from train.measures import balanced_accuracy
from train.paths import spread, stated


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=Path, nargs="+", required=True)
    parser.add_argument("--checkpoint", type=Path, help="default: the one that comes with EMRRG")
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    held = [s for path in args.films for s in read_studies(path, "val") if s.abnormal is not None]
    studies = [held[i] for i in spread(held, range(len(held)), args.count)]
    reporter, rows = Reporter.load(args.checkpoint), {way: list[tuple[bool, bool, float]]() for way in Sections}
    for study in studies:
        film = read_film(study.files[0])
        for way, found in rows.items():
            draft = reporter.draft([film], DecodeConfig(sections=way))
            same = stated(draft.findings) == stated(draft.impression)
            found.append((same, is_abnormal(draft.impression), draft.timings["total"]))
    truth = np.array([bool(study.abnormal) for study in studies])
    usual = np.array([seconds for *_, seconds in rows[Sections.JOINT]])
    print("| sections | same labels | normal/abnormal by the Impression | a draft |\n|---|---|---|---|")
    for way, found in rows.items():
        alike, called, seconds = (np.array(column) for column in zip(*found, strict=True))
        cost = float(np.median(seconds / usual))
        print(f"| {way} | {alike.sum()} of {len(alike)} | {balanced_accuracy(truth, called):.2f} | {cost:.1f} × |")


if __name__ == "__main__":
    main()
