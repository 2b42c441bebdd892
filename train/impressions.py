"""Whether *Impression from these findings* says what the Findings say.

    python -m train.impressions --reports REPORTS.jsonl [--split val] [--limit 90]

Findings of real reports are given to the checkpoint beside a drawn chest. The labels of the Impression that it writes are compared with those of the
Findings, over the labels that it knows; and so are those of the report's own Impression. Two texts agree where they state the same labels. All by
the label reader, pneumonia counted as an opacity. "Findings normal": reports whose Findings state none of these labels.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emrrg_core.data.studies import read_reports
from emrrg_core.errors import DataError
from emrrg_core.explain.faithfulness import drawn_chest
from emrrg_core.films.film import Film, pixel_digest
from emrrg_core.reporter import Reporter
from emrrg_core.text.labeler import NO_FINDING, Status, read_findings
from train.confidence import publish, rate


def stated(text: str, known: set[str]) -> set[str]:
    """The labels that a text states or suspects, of those known."""
    said = {mention.label for mention in read_findings(text) if mention.status is not Status.NEGATIVE}
    return {"Lung Opacity" if label == "Pneumonia" else label for label in said} & known


def table(rows: Sequence[tuple[set[str], set[str], set[str]]]) -> str:
    """rows: labels of Findings, of the Impression written from them, and of the report's own Impression."""
    lines = ["| Labels | written from the Findings | the report's own |", "|---|---|---|"]
    n, normal = len(rows), [row for row in rows if not row[0]]
    counts = {
        "the same labels": [sum(row[0] == row[k] for row in rows) for k in (1, 2)],
        "a label more": [sum(bool(row[k] - row[0]) for row in rows) for k in (1, 2)],
        "a label less": [sum(bool(row[0] - row[k]) for row in rows) for k in (1, 2)],
    }
    lines += [f"| {name} | {rate(own, n)} | {rate(theirs, n)} |" for name, (own, theirs) in counts.items()]
    clean = [sum(not row[k] for row in normal) for k in (1, 2)]
    lines.append(f"| Findings normal: none stated | {rate(clean[0], len(normal))} | {rate(clean[1], len(normal))} |")
    return "\n".join(lines)


def measure(args: argparse.Namespace) -> str:
    reporter = Reporter.load(args.checkpoint)
    pixels = drawn_chest(512, np.random.default_rng(0)).astype(np.float32)
    film = Film("Film 1", pixels, None, None, (), pixel_digest(pixels), "PNG")
    draft = reporter.draft([film])
    known = {finding.label for finding in draft.read or ()} - {NO_FINDING}
    reports = [r for r in read_reports(args.reports, args.split) if r.findings and r.impression][: args.limit]
    if not known or not reports:
        raise DataError(f"The checkpoint reads no findings, or there are no reports of the split {args.split!r}.")
    rows = []
    for report in reports:
        written = reporter.impression([film], draft, report.findings).text
        rows.append((stated(report.findings, known), stated(written, known), stated(report.impression, known)))
    return f"{table(rows)}\n\n{len(rows)} reports of the split {args.split}, over {', '.join(sorted(known))}."


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, help="default: the one that comes with EMRRG")
    parser.add_argument("--split", default="val")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--docs", type=Path, help="the page whose table is written; else it is printed only")
    args = parser.parse_args(argv)
    return publish(lambda: measure(args), args.docs, "impressions")


if __name__ == "__main__":
    raise SystemExit(main())
