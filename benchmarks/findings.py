"""How well the reader of report text agrees with human codes of real reports.

    python benchmarks/findings.py --reports reports.jsonl [--split train other] [--json] [--errors LABEL]

A row of the file: `findings`, `impression`, `split`, `negbio` (14 gold labels, "0" or "1"), `mesh` (the indexers'
codes: a heading with its site and side, "Opacity/lung/base/left"). Rows without codes are left out.

Gold → ours. The NegBio columns and the MeSH codes are the same human indexing: each column is one heading. Where our
label is wider than the column, the other headings that mean it are joined to it:

    Atelectasis, Consolidation, Edema, Pneumonia   by their names
    Effusion                  → Pleural Effusion
    Pneumothorax              + Hydropneumothorax
    Cardiomegaly              + Cardiac Shadow/enlarged or borderline (the code where a report says "silhouette")
    Mass | Nodule             → Lung Lesion, + Opacity/round and Density/round (the code for "nodular opacity")
    Pleural_Thickening        → Pleural Other, + scars, calcifications and nodules of the pleura
    Infiltration              → Lung Opacity, + Opacity and Density of the lung, Airspace Disease, interstitial codes
    Fractures, Bone           → Fracture (no NegBio column)
    Catheters, Tube, Implanted or Medical Device, Stents, Spinal Fusion → Support Devices (no NegBio column)
    normal                    → not is_abnormal(text); rows that the indexers left open ("No Indexing") do not count

Doubt. The indexers code what a report gives as borderline, as probable or as one of two named alternatives ("A versus
B", "A or B"), and leave out what "may" or "could" be: so does `findings.present`, which is what is scored here.
`doubt_is_negative` and `doubt_is_positive` score the three-valued `findings.labels` instead, with every uncertain label
taken one way. Enlarged Cardiomediastinum has no faithful heading and is not scored. `columns_alone` is the first score
against the NegBio columns with nothing joined, without Lung Opacity, which has no column of its own.

The headline is over the labels with a NegBio column; the labels coded by MeSH alone are printed below it.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from emrrg_core.text.labeler import Status, is_abnormal, labels, present, read_findings, report_text

ENOUGH = 20  # positives a label needs to enter the macro average

Row = dict[str, Any]


def _negbio(*columns: str) -> Callable[[Row], bool]:
    return lambda row: any(row["negbio"][column] == "1" for column in columns)


def _mesh(*codes: str) -> Callable[[Row], bool]:
    """Whether a code starts with the heading and, where given, holds all its qualifiers in any order."""

    def coded(row: Row) -> bool:
        for code in row["mesh"]:
            heading, *qualifiers = code.strip().split("/")
            for wanted in codes:
                want, *needed = wanted.split("/")
                if heading == want and set(needed) <= set(qualifiers):
                    return True
        return False

    return coded


def _either(*tests: Callable[[Row], bool]) -> Callable[[Row], bool]:
    return lambda row: any(test(row) for test in tests)


GOLD: dict[str, Callable[[Row], bool]] = {
    "Cardiomegaly": _either(_negbio("Cardiomegaly"), _mesh("Cardiac Shadow/enlarged", "Cardiac Shadow/borderline")),
    "Lung Opacity": _either(
        _negbio("Infiltration"),
        _mesh("Opacity/lung", "Opacity/retrocardiac", "Density/lung", "Airspace Disease", "Infiltrate"),
        _mesh("Markings/lung/interstitial", "Lung/interstitial", "Lung Diseases, Interstitial"),
    ),
    "Lung Lesion": _either(_negbio("Mass", "Nodule"), _mesh("Opacity/round", "Density/round")),
    "Edema": _negbio("Edema"),
    "Consolidation": _negbio("Consolidation"),
    "Pneumonia": _negbio("Pneumonia"),
    "Atelectasis": _negbio("Atelectasis"),
    "Pneumothorax": _either(_negbio("Pneumothorax"), _mesh("Hydropneumothorax")),
    "Pleural Effusion": _negbio("Effusion"),
    "Pleural Other": _either(
        _negbio("Pleural_Thickening"), _mesh("Cicatrix/pleura", "Calcinosis/pleura", "Nodule/pleura", "Pleura")
    ),
}
COLUMNS_ALONE: dict[str, Callable[[Row], bool]] = {
    "Cardiomegaly": _negbio("Cardiomegaly"),
    "Lung Lesion": _negbio("Mass", "Nodule"),
    "Pneumothorax": _negbio("Pneumothorax"),
    "Pleural Other": _negbio("Pleural_Thickening"),
    **{label: GOLD[label] for label in ("Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pleural Effusion")},
}
GOLD_BY_CODE_ALONE: dict[str, Callable[[Row], bool]] = {
    "Fracture": _mesh("Fractures, Bone"),
    "Support Devices": _mesh(
        "Catheters, Indwelling",
        "Tube, Inserted",
        "Implanted Medical Device",
        "Medical Device",
        "Stents",
        "Spinal Fusion",
    ),
}


def text_of(row: Row) -> str:
    return report_text(row["findings"], row["impression"])


def scores(gold: Sequence[bool], ours: Sequence[bool]) -> dict[str, float]:
    """Precision, recall and F1 of the positive class."""
    hit = sum(g and o for g, o in zip(gold, ours, strict=True))
    precision, recall = hit / max(sum(ours), 1), hit / max(sum(gold), 1)
    return {
        "positives": sum(gold), "hits": hit, "called": sum(ours), "precision": precision, "recall": recall,
        "f1": 2 * hit / max(sum(gold) + sum(ours), 1),
    }  # fmt: skip


def averages(table: dict[str, dict[str, float]]) -> dict[str, float]:
    """Micro-F1 over all labels, macro-F1 over those with enough positives."""
    hits, total = sum(s["hits"] for s in table.values()), sum(s["positives"] + s["called"] for s in table.values())
    common = [s["f1"] for s in table.values() if s["positives"] >= ENOUGH]
    return {
        "micro_f1": 2 * hits / max(total, 1),
        "macro_f1": sum(common) / max(len(common), 1),
        "micro_over": len(table),
        "macro_over": len(common),
    }


SIDES = ("left", "right", "bilateral")
SIDED = {"Pleural Effusion": "Pleural Effusion", "Atelectasis": "Pulmonary Atelectasis", "Lung Opacity": "Opacity"}


def sides(rows: Sequence[Row]) -> dict[str, int]:
    """Of the findings that the codes and the reader both give a side, the codes just one: how often they agree."""
    right = total = 0
    for row in rows:
        said = read_findings(text_of(row))
        for label, heading in SIDED.items():
            gold = {
                part for code in row["mesh"] if code.startswith(heading) for part in code.split("/") if part in SIDES
            }
            ours = {m.side for m in said if m.label == label and m.status is not Status.NEGATIVE} - {None}
            if len(gold) == 1 and ours:
                total += 1
                right += ours == gold
    return {"right": right, "of": total}


def measure(rows: Sequence[Row]) -> dict[str, Any]:
    texts = [text_of(row) for row in rows]
    began = time.perf_counter()
    read = [set(present(text)) for text in texts]
    seconds = time.perf_counter() - began

    def table(golds: dict[str, Callable[[Row], bool]], read: Sequence[set[str]] = read) -> dict[str, dict[str, float]]:
        return {
            label: scores([gold(row) for row in rows], [label in found for found in read])
            for label, gold in golds.items()
        }

    def stated(*statuses: Status) -> dict[str, float]:
        return averages(table(GOLD, [{label for label, said in row.items() if said in statuses} for row in every]))

    every = [labels(text) for text in texts]

    headline = table(GOLD)
    decided = [(row, text) for row, text in zip(rows, texts, strict=True) if row["mesh"] != ["No Indexing"]]
    return {
        "reports": len(rows),
        **averages(headline),
        "columns_alone": averages(table(COLUMNS_ALONE)),
        "doubt_is_negative": stated(Status.POSITIVE),
        "doubt_is_positive": stated(Status.POSITIVE, Status.UNCERTAIN),
        "labels": {**headline, **table(GOLD_BY_CODE_ALONE)},
        "abnormal": scores(
            [not _mesh("normal")(row) for row, _ in decided], [is_abnormal(text) for _, text in decided]
        ),
        "sides": sides(rows),
        "seconds": seconds,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }


def _errors(rows: Sequence[Row], label: str) -> None:
    """Print where gold and reader part (on your own screen only: report text is patient data)."""
    for row in rows:
        text = text_of(row)
        if label == "abnormal":
            gold, ours = not _mesh("normal")(row), is_abnormal(text)
        else:
            gold = {**GOLD, **GOLD_BY_CODE_ALONE}[label](row)
            ours = label in present(text)
        if gold != ours:
            said = [(text[m.start : m.end], m.status.value, m.cue) for m in read_findings(text) if m.label == label]
            print("MISSED" if gold else "EXTRA ", row["id"], said, row["mesh"], "|", " ".join(text.split()), "\n")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Agreement of the reader of report text with human codes.")
    parser.add_argument("--reports", type=Path, required=True, help="JSONL file of coded reports")
    parser.add_argument("--split", nargs="+", default=["train"])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--errors", metavar="LABEL", help="print the disagreements on one label, or on 'abnormal'")
    args = parser.parse_args(argv)
    rows = [json.loads(line) for line in args.reports.read_text("utf-8").splitlines() if line.strip()]
    rows = [row for row in rows if row["split"] in args.split and row["negbio"] and row["mesh"]]
    if not rows:
        print(f"no coded report of split {' '.join(args.split)} in {args.reports.name}", file=sys.stderr)
        return 2
    if args.errors:
        _errors(rows, args.errors)
        return 0
    result = measure(rows)
    if args.json:
        print(json.dumps(result))
        return 0
    print(f"{result['reports']} reports, {result['seconds']:.1f} s, {result['machine']}")
    for name, score in [*result["labels"].items(), ("abnormal", result["abnormal"])]:
        print(
            f"{name:18} {score['positives']:5d} positive  precision {score['precision']:.3f}"
            f"  recall {score['recall']:.3f}  F1 {score['f1']:.3f}"
        )
    print(f"sides: {result['sides']['right']} of {result['sides']['of']} as coded")
    for name, average in (
        ("all joined codes", result),
        ("NegBio columns alone", result["columns_alone"]),
        ("all joined codes, every doubt negative", result["doubt_is_negative"]),
        ("all joined codes, every doubt positive", result["doubt_is_positive"]),
    ):
        print(
            f"{name}: micro-F1 {average['micro_f1']:.3f} over {average['micro_over']} labels;"
            f" macro-F1 {average['macro_f1']:.3f} over the {average['macro_over']} with at least {ENOUGH} positives"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
