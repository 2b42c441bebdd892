"""How often true reports are said to contradict themselves, and how many made contradictions are found.

    python benchmarks/consistency.py --reports reports.jsonl [--show] [--json]

A row of the file: `findings` and `impression`. Radiologists seldom contradict themselves, so nearly every true report that is flagged is a
false alarm or a slip; --show prints them, on your own screen only: report text is patient data.

Contradictions are made of the true reports that are not flagged, one at a time:

    denied    a label affirmed in the Findings is denied in a sentence of ours that is added to the Impression
    affirmed  a label denied in the Findings is affirmed in a sentence of ours that is added to the Impression
    normal    an acute label is affirmed in the Findings, and the Impression becomes "No acute cardiopulmonary abnormality."
    side      a label is on one side in both sections, and "left" and "right" are exchanged in the Impression

Found is one with the label in question (for clear lungs, any label that they deny).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from emrrg_core.text.consistency import Contradiction, Kind, contradictions
from emrrg_core.text.labeler import Status, read_findings

DENIALS = {
    "Cardiomegaly": "The heart is of normal size.",
    "Lung Opacity": "The lungs are clear.",
    "Lung Lesion": "No nodule or mass.",
    "Edema": "No pulmonary edema.",
    "Consolidation": "No consolidation.",
    "Atelectasis": "No atelectasis.",
    "Pneumothorax": "There is no pneumothorax.",
    "Pleural Effusion": "There is no pleural effusion.",
    "Fracture": "No fracture is seen.",
}
AFFIRMATIONS = {
    "Cardiomegaly": "The heart is enlarged.",
    "Lung Opacity": "Patchy opacity in the right lower lobe.",
    "Lung Lesion": "There is a nodule in the left upper lobe.",
    "Edema": "Pulmonary edema.",
    "Consolidation": "Consolidation of the right lower lobe.",
    "Pneumothorax": "Left pneumothorax.",
    "Pleural Effusion": "Small left pleural effusion.",
    "Fracture": "Rib fracture on the left.",
}
ACUTE = ("Consolidation", "Edema", "Pneumonia", "Pneumothorax", "Pleural Effusion")
SWAP = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}


def main() -> int:
    parser = argparse.ArgumentParser(description="Counts contradictions in true and in altered reports.")
    parser.add_argument("--reports", type=Path, required=True, metavar="FILE.jsonl")
    parser.add_argument("--show", action="store_true", help="print the true reports that are flagged")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.reports.read_text(encoding="utf-8").splitlines() if line.strip()]
    reports = [(row.get("findings") or "", row.get("impression") or "") for row in rows]
    result = measure(reports, show=arguments.show)
    print(json.dumps(result, indent=2) if arguments.json else in_words(result))
    return 0


def measure(reports: list[tuple[str, str]], *, show: bool = False) -> dict[str, Any]:
    flagged: Counter[str] = Counter()
    made: dict[str, Counter[str]] = {way: Counter() for way in ("denied", "affirmed", "normal", "side")}
    seen: dict[str, Counter[str]] = {way: Counter() for way in made}
    for number, (findings, impression) in enumerate(reports, 1):
        if found := contradictions(findings, impression):
            flagged["reports"] += 1
            flagged.update({c.kind.value for c in found})
            for contradiction in found if show else ():
                print(f"{number}: {contradiction.message}", file=sys.stderr)
            continue
        for way, label, altered in alterations(findings, impression):
            made[way][label] += 1
            seen[way][label] += hit(contradictions(findings, altered), way, label)
    return {
        "reports": len(reports),
        "flagged": dict(flagged),
        "made": {way: {label: [seen[way][label], count] for label, count in made[way].items()} for way in made},
    }


def hit(found: list[Contradiction], way: str, label: str) -> bool:
    wanted = {"normal": Kind.NORMAL, "side": Kind.SIDE}.get(way, Kind.NEGATION)
    return any(c.kind is wanted and (c.label == label or DENIALS.get(label) == "The lungs are clear.") for c in found)


def alterations(findings: str, impression: str) -> list[tuple[str, str, str]]:
    """(way, label, another Impression)."""
    above, below = read_findings(findings), read_findings(impression)
    affirmed = {m.label for m in above if m.status is Status.POSITIVE}
    denied = {m.label for m in above if m.status is Status.NEGATIVE} - {
        m.label for m in above if m.status is not Status.NEGATIVE
    }
    made = [("denied", label, f"{impression}\n{text}") for label, text in DENIALS.items() if label in affirmed]
    made += [("affirmed", label, f"{impression}\n{text}") for label, text in AFFIRMATIONS.items() if label in denied]
    made += [("normal", label, "No acute cardiopulmonary abnormality.") for label in ACUTE if label in affirmed]
    swapped = re.sub(r"\b(?:[Ll]eft|[Rr]ight)\b", lambda m: SWAP[m.group()], impression)
    for label in sorted({m.label for m in below}):
        sides = [
            {m.side for m in part if m.label == label and m.status is not Status.NEGATIVE} for part in (above, below)
        ]
        if sides[0] == sides[1] and sides[0] in ({"left"}, {"right"}):
            made.append(("side", label, swapped))
    return made


def in_words(result: dict[str, Any]) -> str:
    flagged = result["flagged"].get("reports", 0)
    lines = [
        f"{flagged} of {result['reports']} reports flagged ({flagged / max(1, result['reports']):.1%}): {result['flagged']}"
    ]
    for way, labels in result["made"].items():
        seen, count = (sum(pair[i] for pair in labels.values()) for i in (0, 1))
        lines.append(f"{way}: {seen} of {count} found ({seen / max(1, count):.1%})")
        lines += [f"    {label}: {a} of {b}" for label, (a, b) in sorted(labels.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
