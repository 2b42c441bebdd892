"""What films that do not show a finding do to the draft of one that does (docs/experiments.md 32).

    python -m train.several_films --films FILMS.jsonl [--each 40]

Abnormal and normal films of the split `val` are drafted alone, and with one and three normal films of other patients of the same source, averaged and
stitched. Prints how many drafts of abnormal films are abnormal, and of normal films normal, by the label reader.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emrrg_core.config import StudyConfig, Views
from emrrg_core.data.studies import read_studies
from emrrg_core.films.film import read_film
from emrrg_core.reporter import Reporter
from emrrg_core.text.labeler import is_abnormal

SOURCES = ("nih_talo", "kermany", "covidrad")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, help="default: the one that comes with EMRRG")
    parser.add_argument("--each", type=int, default=40, help="abnormal films, and as many normal ones")
    args = parser.parse_args(argv)
    reporter, rng = Reporter.load(args.checkpoint), np.random.default_rng(1)
    studies = [s for s in read_studies(args.films, "val") if s.source in SOURCES and s.abnormal is not None]
    kinds = [[s for s in studies if s.abnormal is value] for value in (True, False)]
    chosen = [some[i] for some in kinds for i in rng.choice(len(some), args.each, replace=False)]
    right: dict[tuple[str, int, bool], list[bool]] = {}
    for study in chosen:
        normal = [s for s in kinds[1] if s.source == study.source and s.patient != study.patient]
        more = [normal[i] for i in rng.choice(len(normal), 3, replace=False)]
        films = [read_film(s.files[0], name=f"Film {n}") for n, s in enumerate([study, *more], 1)]
        for views, count in (("average", 1), ("average", 2), ("average", 4), ("stitch", 2), ("stitch", 4)):
            draft = reporter.draft(films[:count], None, StudyConfig(views=Views(views)))
            abnormal = is_abnormal(f"{draft.findings} {draft.impression}")
            right.setdefault((views, count, bool(study.abnormal)), []).append(abnormal is study.abnormal)
    for (views, count, abnormal), rows in sorted(right.items()):
        kind = "abnormal, sensitivity" if abnormal else "normal, specificity"
        print(f"{views:8} {count} films  {kind:22} {np.mean(rows):.2f} of {len(rows)}")


if __name__ == "__main__":
    main()
