"""Tables for people from the card that train.evaluate --json wrote, and from the results of train.ablation.

python -m train.results docs/results/small.json --ablation docs/results/ablation > docs/results.md
python -m train.results docs/results/small.json --into README.md MODEL_CARD.md   # a summary, between their two marks
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emrrg_core.errors import ConfigError
from train import ablation

MARKS = ("<!-- results -->", "<!-- /results -->")
_COLUMNS = {  # score -> heading
    "normal_balanced_accuracy": "normal/abnormal, balanced accuracy",
    "called_abnormal_of_normal": "normal films called abnormal",
    "called_abnormal_of_abnormal": "abnormal films called abnormal",
    "label_micro_f1": "label micro-F1",
    "label_macro_f1": "label macro-F1",
    "own_image_preferred_all": "own film preferred, all pairs",
    "own_image_preferred": "own film preferred, labels differ",
}
_TEXTS = {
    "distinct": "distinct drafts",
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
_LOOKS = {
    "blank_drop": "grey film, nats a token",
    "noise_drop": "noise, nats a token",
    "gate": "mean gate",
    "mask_share_over_chance": "map in the lungs, times chance",
    "pointing": "peak in a lesion's box",
    "deletion_drop": "hiding the map's top tenth, nats more than other places of its shape",
}
_SIGNS = ("nodule", "opacity", "effusion", "heart")


def cell(score: Mapping[str, Any] | None) -> str:
    """value [low, high] (n); a dash where there is nothing to score, "not computed" where it could not be."""
    if not score or score.get("value") is None:
        return "not computed" if score and score["n"] and score.get("reason") else "–"
    spread = "" if score.get("low") is None else f" [{score['low']:.2f}, {score['high']:.2f}]"
    return f"{score['value']:.2f}{spread} (n {score['n']})"


def table(first: str, rows: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """A Markdown table: one row a name, one column a score."""
    lines = [f"| {first} | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(cell(row.get(score)) for score in columns) + " |" for name, row in rows.items()
    ]
    return "\n".join(lines)


def tables(card: Mapping[str, Any]) -> str:
    """Everything on the card that fits a page, as Markdown."""
    scores = {name: row for name, row in card["scores"].items() if name != "simulated"}
    parts = [table("source", scores, columns) for columns in (_COLUMNS, _TEXTS, _LOOKS)]
    # cards of before RadEval have none of these
    if told := {name: row for name, row in scores.items() if row.get("ratescore", {}).get("n")}:
        parts.append(table("source", told, _RADEVAL))
        reasons = {heading: next(iter(told.values()))[score].get("reason") for score, heading in _RADEVAL.items()}
        for reason in dict.fromkeys(filter(None, reasons.values())):
            parts.append(f"Not computed: {', '.join(h for h, r in reasons.items() if r == reason)}: {reason}.")
    if made := card["scores"].get("simulated"):
        rows = {sign: {name: made.get(f"{name}_{sign}") for name in ("found", "side", "pointing")} for sign in _SIGNS}
        rows["all"] = {name: made.get(name) for name in ("found", "side", "pointing")}
        parts.append(
            table(
                "simulated finding",
                rows,
                {"found": "stated", "side": "side right, where one is named", "pointing": "map peaks on it"},
            )
        )
    if others := card.get("baselines"):
        compared = {"label_micro_f1": "label micro-F1", "label_macro_f1": "label macro-F1", "normal_balanced_accuracy": "balanced accuracy",
                    "distinct": "distinct", "bleu4": "BLEU-4", "rouge_l": "ROUGE-L"}  # fmt: skip
        for source in [name for name, row in scores.items() if row["normal_balanced_accuracy"]["n"] >= 50]:
            rows = {"this checkpoint": scores[source]} | {name: own[source] for name, own in others.items()}
            parts.append(f"{source}:\n\n" + table("report from", rows, compared))
    spent = ", ".join(f"{section} {seconds:.0f}" for section, seconds in card.get("seconds_of", {}).items())
    parts.append(
        f"Checkpoint `{card['checkpoint_sha256'][:12]}…`, {card['precision']}, {card['decoding']}, "
        f"{card['seconds']:.0f} s{f' ({spent})' if spent else ''}:\n\n    {card['command']}"
    )
    return "\n\n".join(parts)


def page(card: Mapping[str, Any]) -> str:
    """The tables under a heading that says what they are: docs/results.md."""
    name = Path(card["command"].split("--checkpoint ")[1].split()[0]).name
    beside = sorted(card.get("baselines", {}).keys() - {"constant", "label_blind", "nearest"})
    others = f"; {', '.join(beside)}: the drafts of other checkpoints" if beside else ""
    return f"""\
# Results of `{name}` on the validation split

Printed by `python -m train.results` from the card that `train.evaluate --json` wrote (docs/results/); what each score is stands in
`train/evaluate.py`. Simulated findings are drawings on real normal films, not pathology. Baselines: the most frequent training report for every film
(constant); a random training report (label_blind); a label-matched report of the nearest training film by tower feature (nearest){others}.

{tables(card)}"""


def summary(card: Mapping[str, Any]) -> str:
    """The larger sources and all of it in one table, then drawings and maps in words."""
    scores = card["scores"]
    large = {
        name: row
        for name, row in scores.items()
        if name != "simulated" and (both := row["normal_balanced_accuracy"])["value"] is not None and both["n"] >= 50
    }
    columns = {name: heading for name, heading in _COLUMNS.items() if name != "label_macro_f1"} | {
        "distinct": _TEXTS["distinct"]
    }
    whole = scores["overall"]
    stated, side, peak = (cell(scores.get("simulated", {}).get(name)) for name in ("found", "side", "pointing"))
    lungs, hidden = (cell(whole[name]) for name in ("mask_share_over_chance", "deletion_drop"))
    return f"""\
All {whole["distinct"]["n"]} films of the validation split, once, greedy, checkpoint `{card["checkpoint_sha256"][:12]}…`; bootstrap 95 % \
intervals over films. The other sources, the baselines and the maps: [docs/results.md](docs/results.md).

{table("source", large, columns)}

Simulated findings on real normal films: stated in {stated}, side right in {side} of the drafts that name one, the map peaks on the finding in \
{peak}. The map of sentences about the lungs lies in the lungs {lungs} times as much as chance. Hiding the top tenth of the first abnormal \
sentence's map (filled from its surroundings) costs it {hidden} nats more than hiding other places of the same shape.

    {card["command"]}"""


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
    parser.add_argument("--into", type=Path, nargs="+", help="pages to put the summary into")
    args = parser.parse_args(argv)
    card = json.loads(args.card.read_text())
    if not args.into:
        print(page(card))
        if args.ablation:
            print(f"\n{re.sub('^#', '##', ablation.page(ablation.read_results(args.ablation)), flags=re.MULTILINE)}")
    for path in args.into or []:
        path.write_text(insert(path.read_text(), summary(card)))


if __name__ == "__main__":
    main()
