"""Tables for people from the card that train.evaluate --json wrote, and from the results of train.ablation.

python -m train.results docs/results/small.json --ablation docs/results/ablation > docs/results.md
python -m train.results docs/results/small.json --into MODEL_CARD.md --brief-into README.md   # a summary, between their two marks
python -m train.results docs/results/small.json --reliability docs/reliability.svg   # how often what is given a probability is there
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emrrg_core.errors import ConfigError
from train import ablation

MARKS = ("<!-- results -->", "<!-- /results -->")
FEW = 20  # films of a source, before it has a row on the page
BLIND = 0.55  # balanced accuracy up to which drafts cannot tell normal from abnormal
FOLLOWS = 0.9  # share of drafts from which they are said to follow what was exchanged
_PATHS = {  # change -> what it is
    "own": "nothing",
    "gates_zero": "every gate shut",
    "hybrid_other": "hybrid layers see another film",
    "prompt_other": "another film in the prompt",
    "patches_other": "patches of another film, own findings",
    "findings_other": "findings of another film, own patches",
    "findings_withheld": "findings withheld, own patches",
}
_OF_A_PATH = {
    "labels_kept": "drafts that keep their labels",
    "labels_of_other": "that take the other film's",
    "normal_balanced_accuracy": "normal/abnormal, balanced accuracy",
    "flips": "normal/abnormal flips",
    "nats": "nats a token lost",
}
_COLUMNS = {  # score -> heading
    "normal_balanced_accuracy": "normal/abnormal, balanced accuracy",
    "called_abnormal_of_normal": "normal films called abnormal",
    "called_abnormal_of_abnormal": "abnormal films called abnormal",
    "label_micro_f1": "label micro-F1",
    "label_macro_f1": "label macro-F1",
    "denied_wrongly": "findings that are there, denied",
    "calibration_error": "calibration error",
}
_TEXTS = {
    "ended": "drafts that end",
    "as_read": "drafts that state what was read, no more and no less",
    "marks": "with a de-identification mark",
    "prior_words": "with a word about an earlier film",
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
    "bleu4_truncated": "BLEU-4, truncated references",
    "rouge_l_truncated": "ROUGE-L, truncated references",
}
_RADEVAL = {
    "chexbert_f1": "CheXbert micro-F1, 14 labels",
    "chexbert_f1_five": "CheXbert micro-F1, 5 labels",
    "radgraph_f1": "RadGraph F1, partial",
    "ratescore": "RaTEScore",
}
_FINDINGS = {
    "area": "area under the curve",
    "calibration_error": "calibration error",
    "stated_of_positive": "stated, of films with it",
    "stated_of_negative": "stated, of films without it",
    "denied_wrongly": "denied, of films with it",
    "negative_predictive_value": "right, of denials",
}
_POINTS = {
    "pointing": "peak in a box",
    "pointing_stated": "of drafts that state the finding",
    "pointing_evidence": "peak of what the finding's logit is made of",
    "pointing_chance": "boxes' share of the film",
    "mask_share_over_chance": "map in the lungs, times chance",
    "zones": "zones read as two radiologists do",
    "zones_named": "zones named, in which both saw something",
    "zones_present": "zones in which both saw something",
}
_LOOKS = {
    "map_correlation": "correlation of maps of different findings",
    "map_correlation_stated": "both stated",
    "map_correlation_denied": "both denied",
    "deletion_drop": "hiding the map's top tenth, nats more than other places of its shape",
    "deletion_log_odds": "and the finding's log odds fall by, more than with other places",
    "deletion_falls": "then the finding falls below its threshold",
    "deletion_falls_elsewhere": "with another place hidden",
    "blank_drop": "grey film, nats a token",
    "noise_drop": "noise, nats a token",
    "gate": "mean gate",
}
_DRAWN = {
    "found": "stated",
    "side": "side right, where one is named",
    "pointing": "map peaks on it",
    "false_alarms": "stated of the same films, undrawn",
}
_SIGNS = ("nodule", "opacity", "effusion", "heart")
_EFFUSIONS = {
    "area": "area under the curve",
    "stated_of_effusion": "stated, of films with an effusion",
    "stated_of_normal": "stated, of normal films",
}
_RADIOLOGISTS = {
    "normal_balanced_accuracy": "normal/abnormal, balanced accuracy",
    "normal_balanced_accuracy_given": "against the given labels",
    "normal_area": "normal/abnormal, area",
    "normal_area_given": "against the given labels",
    "opacity_balanced_accuracy": "opacity, balanced accuracy",
    "opacity_balanced_accuracy_given": "against the given labels",
    "opacity_area": "opacity, area",
    "opacity_area_given": "against the given labels",
}


def cell(score: Mapping[str, Any] | None, usual: int | None = None) -> str:
    """value (low–high; n); a dash where there is nothing to score, "not computed" where it could not be. usual: an n that need not be said."""
    if not score or score.get("value") is None:
        return "not computed" if score and score["n"] and score.get("reason") else "–"
    about = [] if score.get("low") is None else [f"{score['low']:.2f}–{score['high']:.2f}"]
    about += [] if score["n"] == usual else [f"n {score['n']}"]
    return f"{score['value']:.2f}" + (f" ({'; '.join(about)})" if about else "")


def table(first: str, rows: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """A Markdown table: one row a name, one column a score, and how many films most of them are of. Rows without any score are left out."""
    lines = [f"| {first} | n | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 2) + "|"]
    for name, row in rows.items():
        counts = Counter(s["n"] for c in columns if (s := row.get(c)) and s["n"])
        usual = counts.most_common(1)[0][0] if counts else None
        cells = [cell(row.get(score), usual) for score in columns]
        if set(cells) != {"–"}:
            lines.append(f"| {name} | {usual} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def path_table(card: Mapping[str, Any]) -> str:
    """Which path carries a draft, in words and as a table; "" of a card without it."""
    rows = card.get("paths")
    if not rows:
        return ""
    known = {_PATHS[name]: row for name, row in rows.items()}
    return f"{in_words(rows)}\n\n{table('changed', known, _OF_A_PATH)}"


def in_words(paths: Mapping[str, Mapping[str, Any]]) -> str:
    """What the table of paths says, by its numbers."""

    def of(change: str, score: str) -> float:
        value = paths[change][score]["value"]
        return float("nan") if value is None else value

    shut = of("gates_zero", "normal_balanced_accuracy")
    taken, kept = of("hybrid_other", "labels_of_other"), of("prompt_other", "labels_kept")
    blind = "cannot tell" if shut <= BLIND else "still tell"
    chance = of("own", "labels_of_other")  # where both films' drafts state the same, anyone's labels are the other's
    same = f" ({chance:.2f} state the same anyway)" if chance >= 0.005 else ""
    said = [
        f"With every gate shut the drafts {blind} normal from abnormal (balanced accuracy {shut:.2f}, "
        f"{of('own', 'normal_balanced_accuracy'):.2f} with the gates open).",
        f"With another film in the hybrid layers {taken:.2f} of the drafts take that film's labels{same}; with another film in the prompt {kept:.2f} "
        "keep their own.",
    ]
    if "patches_other" in paths:
        patches, findings = of("patches_other", "labels_of_other"), of("findings_other", "labels_of_other")
        own = of("patches_other", "labels_kept")
        said.append(
            f"With only the finding tokens of another film {findings:.2f} take its labels, with only its patches {patches:.2f} "
            f"({own:.2f} keep their own): "
            + (
                "beside the finding tokens the patches matter little for what a draft says."
                if own >= FOLLOWS
                else "both count for what a draft says."
                if own > 1 - FOLLOWS
                else "the patches decide what a draft says."
            )
        )
    return " ".join(said)


def finding_table(card: Mapping[str, Any]) -> str:
    """Of every finding that is assessed its threshold and how well it is read, stated and denied, and which are not assessed; "" without any."""
    rows = card.get("findings", {})
    told = {name: row for name, row in rows.items() if row["assessed"]}
    if not told:
        return ""
    lines = [f"| finding | films with it | threshold | denied below | {' | '.join(_FINDINGS.values())} |"]
    lines.append("|---" * (4 + len(_FINDINGS)) + "|")
    for name, row in told.items():
        limits = f"{row['threshold']:.2f}, {row['threshold_alone']:.2f} alone" if name != "abnormal" else f"{row['threshold']:.2f}"  # fmt: skip
        denied = f"{row['denied_below']:.2f}" if row["denied_below"] else "never"
        cells = " | ".join(cell(row[score], row["positive"]) for score in _FINDINGS)
        lines.append(f"| {name} | {row['positive']} | {limits} | {denied} | {cells} |")
    silent = [name for name, row in rows.items() if not row["assessed"]]
    parts = ["\n".join(lines)]
    if silent:
        parts.append(f"Not assessed, so neither stated nor denied: {', '.join(silent)}.")
    return "\n\n".join(parts)


def tables(card: Mapping[str, Any]) -> str:
    """Everything on the card that fits a page, as Markdown."""
    scores = {name: row for name, row in card["scores"].items() if name != "simulated"}
    parts = [
        path_table(card),
        table(
            "source",
            {name: row for name, row in scores.items() if name == "overall" or row["label_micro_f1"]["n"] >= FEW},
            _COLUMNS,
        ),
        finding_table(card),
    ]
    if card.get("reliability"):
        parts.append("![How often a finding is there, by its probability](reliability.svg)")
    if read := card.get("radiologists"):
        parts.append(
            "Against the radiologists of the RSNA challenge, on the films that they read:\n\n"
            + table("view", read, _RADIOLOGISTS)
        )
    if found := card.get("effusions"):
        parts.append("Effusions:\n\n" + table("source", found, _EFFUSIONS))
    parts += [
        table("source", {"overall": scores["overall"]}, columns) for columns in (_POINTS, _LOOKS, _TEXTS)
    ]  # by source: docs/results/
    # cards of before RadEval have none of these
    if told := {name: row for name, row in scores.items() if row.get("ratescore", {}).get("n")}:
        parts.append(table("source", told, _RADEVAL))
        reasons = {heading: next(iter(told.values()))[score].get("reason") for score, heading in _RADEVAL.items()}
        for reason in dict.fromkeys(filter(None, reasons.values())):
            parts.append(f"Not computed: {', '.join(h for h, r in reasons.items() if r == reason)}: {reason}.")
    if made := card["scores"].get("simulated"):
        rows = {sign: {name: made.get(f"{name}_{sign}") for name in _DRAWN} for sign in _SIGNS}
        rows["all"] = {name: made.get(name) for name in _DRAWN}
        parts.append(table("simulated finding", rows, _DRAWN))
    if others := card.get("baselines"):
        compared = {"label_micro_f1": "label micro-F1", "label_macro_f1": "label macro-F1", "normal_balanced_accuracy": "balanced accuracy",
                    "bleu4": "BLEU-4", "rouge_l": "ROUGE-L"}  # fmt: skip
        for source in [name for name in scores if name == "overall"]:
            rows = {"this checkpoint": scores[source]} | {name: own[source] for name, own in others.items()}
            parts.append(f"{source}:\n\n" + table("report from", rows, compared))
    spent = ", ".join(f"{section} {seconds:.0f}" for section, seconds in card.get("seconds_of", {}).items())
    parts.append(
        f"Checkpoint `{card['checkpoint_sha256'][:12]}…`, {card['precision']}, {card['decoding']}, "
        f"{card['seconds']:.0f} s{f' ({spent})' if spent else ''}:\n\n    {card['command']}"
    )
    return "\n\n".join(filter(None, parts))


def page(card: Mapping[str, Any]) -> str:
    """The tables under a heading that says what they are: docs/results.md."""
    name = Path(card["command"].split("--checkpoint ")[1].split()[0]).name
    beside = sorted(card.get("baselines", {}).keys() - {"constant", "label_blind", "nearest"})
    others = f"; {', '.join(beside)}: the drafts of other checkpoints" if beside else ""
    more = card.get("more")
    further = f" Films of {', '.join(more)} are rows of their own, not part of `overall`." if more else ""
    return f"""\
# Results of `{name}` on the validation split

Printed by `python -m train.results` from the card that `train.evaluate --json` wrote (docs/results/); what each score is stands in
`train/evaluate.py`. Simulated findings are drawings on real normal films, not pathology. Baselines: the most frequent training report for every film
(constant); a random training report (label_blind); a label-matched report of the nearest training film by tower feature (nearest){others}.{further}

{tables(card)}"""


def large_sources(card: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The sources with at least 50 films whose normal and abnormal ones are told apart."""
    told = {name: row["normal_balanced_accuracy"] for name, row in card["scores"].items() if name != "simulated"}
    return {name: card["scores"][name] for name, s in told.items() if s["value"] is not None and s["n"] >= 50}


def summary(card: Mapping[str, Any]) -> str:
    """Which path carries a draft, the larger sources, the findings, then drawings and maps in words."""
    scores, large = card["scores"], large_sources(card)
    whole = scores["overall"]
    drawn = {name: cell(scores.get("simulated", {}).get(name)) for name in _DRAWN}
    maps = {name: cell(whole.get(name)) for name in (*_POINTS, *_LOOKS)}
    parts = [
        path_table(card),
        f"All {whole['label_micro_f1']['n']} films of the validation split, once, greedy, checkpoint `{card['checkpoint_sha256'][:12]}…`; "
        "bootstrap 95 % intervals over films. The other sources, the baselines and the maps: [docs/results.md](docs/results.md).",
        table("source", large, _COLUMNS),
        finding_table(card),
        f"Maps of sentences about different findings of a draft correlate at {maps['map_correlation']}. The map of the sentence that states a "
        f"finding peaks in a radiologist's box in {maps['pointing']} of films with one, what the finding's logit is made of in "
        f"{maps['pointing_evidence']}; the boxes are {maps['pointing_chance']} of the film. The map of sentences about the lungs lies in the lungs "
        f"{maps['mask_share_over_chance']} times as much as chance. Hiding the top tenth of the first abnormal sentence's map (filled from its "
        f"surroundings) costs it {maps['deletion_drop']} nats more than hiding other places of the same shape; the log odds of its finding fall by "
        f"{maps['deletion_log_odds']} more.",
        f"Simulated findings on real normal films: stated in {drawn['found']}, side right in {drawn['side']} of the drafts that name one, the map "
        f"peaks on the finding in {drawn['pointing']}; of the same films, undrawn, such a finding is stated in {drawn['false_alarms']}.",
        f"    {card['command']}",
    ]
    return "\n\n".join(filter(None, parts))


def brief(card: Mapping[str, Any]) -> str:
    """Which path carries a draft, and the larger sources, without intervals."""

    def plain(rows: Mapping[str, Mapping[str, Any]], first: str, columns: Mapping[str, str]) -> str:
        lines = [f"| {first} | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|"]
        for name, row in rows.items():
            values = [(row.get(score) or {}).get("value") for score in columns]
            lines.append(f"| {name} | {' | '.join('–' if v is None else f'{v:.2f}' for v in values)} |")
        return "\n".join(lines)

    paths, large = card.get("paths", {}), large_sources(card)
    parts = [
        f"{in_words(paths)}\n\n" + plain({_PATHS[name]: row for name, row in paths.items()}, "changed", _OF_A_PATH)
        if paths
        else "",
        f"The whole validation split, checkpoint `{card['checkpoint_sha256'][:12]}…`:",
        plain(large, "source", _COLUMNS),
    ]
    return "\n\n".join(filter(None, parts))


def reliability(card: Mapping[str, Any]) -> str:
    """The reliability diagram as SVG: of every bin of probabilities how often the finding was there; discs by the number of films and findings."""
    side, left, top = 300, 60, 30
    total = max(sum(row["n"] for row in card["reliability"]), 1)
    score = card["scores"]["overall"]["calibration_error"]
    marks = []
    for k in range(6):
        share = k / 5
        x, y = left + share * side, top + (1 - share) * side
        marks += [
            f'<path d="M{x:.0f} {top}V{top + side}M{left} {y:.0f}H{left + side}" stroke="#ddd"/>',
            f'<text x="{x:.0f}" y="{top + side + 18}" text-anchor="middle">{share:.1f}</text>',
            f'<text x="{left - 8}" y="{y + 4:.0f}" text-anchor="end">{share:.1f}</text>',
        ]
    for row in card["reliability"]:
        if row["n"]:
            x, y = left + row["mean_probability"] * side, top + (1 - row["frequency"]) * side
            radius = 3 + 17 * (row["n"] / total) ** 0.5
            told = f"probability {row['low']:.1f} to {row['high']:.1f}: {row['frequency']:.2f} of {row['n']}"
            marks.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="#1f6f8b" fill-opacity="0.6"><title>{told}</title></circle>'
                f'<text x="{x + radius + 3:.1f}" y="{y + 4:.1f}" font-size="10">{row["n"]}</text>'
            )
    title = f"Calibration error {score['value']:.3f} ({total} probabilities)" if score["value"] is not None else ""
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 420 390" width="420" height="390" font-family="sans-serif" font-size="12" role="img">
<title>How often a finding is there, by its probability</title>
<rect width="420" height="390" fill="#fff"/>
<text x="{left}" y="18">{title}</text>
{chr(10).join(marks)}
<path d="M{left} {top + side}L{left + side} {top}" stroke="#888" stroke-dasharray="4 4"/>
<text x="{left + side / 2:.0f}" y="{top + side + 42}" text-anchor="middle">probability that is given</text>
<text transform="translate(18 {top + side / 2:.0f}) rotate(-90)" text-anchor="middle">share that have it</text>
</svg>
"""


def insert(text: str, between: str) -> str:
    """A page with the words between its two marks replaced. Raises ConfigError for one that has not both."""
    head, first, rest = text.partition(MARKS[0])
    _, last, tail = rest.partition(MARKS[1])
    if not (first and last):
        raise ConfigError(f"The page needs the two marks {MARKS[0]} and {MARKS[1]}, between which the summary goes.")
    return f"{head}{first}\n{between}\n{last}{tail}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("card", type=Path)
    parser.add_argument(
        "--ablation", type=Path, help="folder of train.ablation, whose page then follows that of the card"
    )
    parser.add_argument("--reliability", type=Path, help="where to draw the reliability diagram, as SVG")
    parser.add_argument("--into", type=Path, nargs="+", default=[], help="pages to put the summary into")
    parser.add_argument(
        "--brief-into", type=Path, nargs="+", default=[], help="pages to put the summary's two first tables into"
    )
    args = parser.parse_args(argv)
    card = json.loads(args.card.read_text())
    if args.reliability:
        args.reliability.write_text(reliability(card))
    elif not (args.into or args.brief_into):
        print(page(card))
        if args.ablation:
            print(f"\n{re.sub('^#', '##', ablation.page(ablation.read_results(args.ablation)), flags=re.MULTILINE)}")
    for paths, words in ((args.into, summary), (args.brief_into, brief)):
        for path in paths:
            path.write_text(insert(path.read_text(), words(card)))


if __name__ == "__main__":
    main()
