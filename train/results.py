"""Tables for people from the card that train.evaluate --json wrote, and from the results of train.ablation.

python -m train.results docs/results/small.json --compare docs/results/compare.json --prior docs/results/prior.json \\
    --ablation docs/results/ablation > docs/results.md
python -m train.results docs/results/small.json --into MODEL_CARD.md --brief-into README.md   # a summary, between their two marks
python -m train.results docs/results/small.json --reliability docs/reliability.svg   # how often what is given a probability is there
"""

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emrrg_core.errors import ConfigError
from emrrg_core.model.partial_lora import DESIGNS
from emrrg_core.text.changes import Change
from train import ablation, compare

MARKS = ("<!-- results -->", "<!-- /results -->")
FEW = 20  # films of a source, before it has a row on the page
BLIND = 0.55  # balanced accuracy up to which drafts cannot tell normal from abnormal
FOLLOWS = 0.9  # share of drafts from which they are said to follow what was exchanged
_PATHS = {  # change -> what it is
    "own": "nothing",
    "gates_zero": "all gates shut",
    "hybrid_other": "hybrid layers: another film",
    "prompt_other": "prompt: another film",
    "patches_other": "patches: another film",
    "findings_other": "finding tokens: another film",
    "findings_withheld": "finding tokens removed",
    "disease_other": "disease tokens: another film",
    "memory_other": "memory: asked by another film",
    "memory_off": "memory: off",
    "prior_other": "prior film: another study's",
    "prior_withheld": "prior film: none",
}
_OF_A_PATH = {
    "labels_kept": "labels kept",
    "labels_of_other": "labels of the other film",
    "normal_balanced_accuracy": "normal/abnormal",
    "nats": "nats a token lost",
}
_COLUMNS = {  # score -> heading
    "normal_balanced_accuracy": "normal/abnormal",
    "called_abnormal_of_normal": "normal called abnormal",
    "called_abnormal_of_abnormal": "abnormal called abnormal",
    "label_micro_f1": "micro-F1",
    "label_macro_f1": "macro-F1",
    "calibration_error": "calibration error",
}
_CARD_COLUMNS = ("normal_balanced_accuracy", "called_abnormal_of_normal", "label_micro_f1", "label_macro_f1", "calibration_error")  # fmt: skip
_BRIEF_COLUMNS = ("normal_balanced_accuracy", "label_micro_f1", "label_macro_f1", "calibration_error")
_RADEVAL = {
    "chexbert_f1": "CheXbert micro-F1, 14 labels",
    "chexbert_f1_five": "CheXbert micro-F1, 5 labels",
    "radgraph_f1": "RadGraph F1, partial",
    "ratescore": "RaTEScore",
}
_FINDINGS = {
    "area": "area under the curve",
    "stated_of_positive": "stated if present",
    "stated_of_negative": "stated if absent",
    "denied_wrongly": "denied if present",
    "negative_predictive_value": "denials right",
}
_CARD_FINDINGS = ("area", "stated_of_positive", "stated_of_negative", "denied_wrongly")
_LIST = {  # of all films together, as a list
    "Maps": {
        "pointing": "Map of the sentence that states a finding peaks in a radiologist's box",
        "pointing_stated": "The same, of drafts that state the finding",
        "pointing_evidence": "The finding's own map peaks in a box",
        "pointing_chance": "Boxes' share of the film",
        "mask_share_over_chance": "Maps of lung sentences inside the lungs, times chance",
        "zones": "Lung zones read as two radiologists do",
        "zones_named": "Zones named by the draft in which both saw something",
        "map_correlation": "Maps of different findings in a draft correlate",
        "map_correlation_stated": "The same, of two stated findings",
        "map_correlation_denied": "The same, of two denied findings",
        "deletion_drop": "Nats that hiding the top tenth of a map costs the sentence more than hiding other places",
        "deletion_log_odds": "Log odds that it costs the finding more",
        "deletion_falls": "The finding then falls below its threshold",
    },
    "Drafts": {
        "ended": "Drafts that end",
        "as_read": "Drafts that state exactly what was read",
        "prior_words": "Drafts with a word about an earlier film",
        "blank_drop": "Nats a token lost with a grey film",
        "noise_drop": "Nats a token lost with noise",
        "gate": "Mean gate",
        "bleu4": "BLEU-4 against the film's own report",
        "rouge_l": "ROUGE-L",
        "cider": "CIDEr",
    },
}
_DRAWN = {
    "found": "stated",
    "side": "side right, if named",
    "pointing": "map peaks on it",
    "false_alarms": "stated before drawing",
}
_SIGNS = ("nodule", "opacity", "effusion", "heart")
_EFFUSIONS = {
    "area": "area under the curve",
    "stated_of_effusion": "stated if present",
    "stated_of_normal": "stated on normal films",
}
_RADIOLOGISTS = {
    "normal_balanced_accuracy": "normal/abnormal",
    "normal_area": "its area",
    "opacity_balanced_accuracy": "opacity",
    "opacity_area": "its area",
}
_BASELINES = {
    "label_micro_f1": "micro-F1",
    "label_macro_f1": "macro-F1",
    "normal_balanced_accuracy": "normal/abnormal",
    "bleu4": "BLEU-4",
}


def cell(score: Mapping[str, Any] | None, usual: int | None = None) -> str:
    """value (low–high; n); a dash where there is nothing to score, "not computed" where it could not be. usual: an n that need not be said."""
    if not score or score.get("value") is None:
        return "not computed" if score and score["n"] and score.get("reason") else "–"
    about = [] if score.get("low") is None else [f"{score['low']:.2f}–{score['high']:.2f}"]
    about += [] if score["n"] == usual else [f"n {score['n']}"]
    return f"{score['value']:.2f}" + (f" ({'; '.join(about)})" if about else "")


def plain(score: Mapping[str, Any] | None) -> str:
    """The value alone; a dash where there is none."""
    return "–" if not score or score.get("value") is None else f"{score['value']:.2f}"


def table(first: str, rows: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """A Markdown table: one row a name, one column a score. Rows without any score are left out.

    The number of films that most scores of a row are of is a column, or stands in the head where it is the same in all rows.
    """
    shown = {}
    for name, row in rows.items():
        counts = Counter(s["n"] for c in columns if (s := row.get(c)) and s["n"])
        usual = counts.most_common(1)[0][0] if counts else 0
        cells = [cell(row.get(score), usual) for score in columns]
        if set(cells) != {"–"}:
            shown[name] = (usual, cells)
    numbers = {usual for usual, _ in shown.values()}
    same = len(numbers) == 1 and len(shown) > 1
    heads = [f"{first} (n\u202f{numbers.pop()})"] if same else [first, "n"]
    lines = [f"| {' | '.join([*heads, *columns.values()])} |", "|---" * (len(heads) + len(columns)) + "|"]
    lines += [f"| {' | '.join([name, *(() if same else (str(n),)), *cells])} |" for name, (n, cells) in shown.items()]
    return "\n".join(lines)


def path_table(card: Mapping[str, Any]) -> str:
    """Which path carries a draft, in words and as a table; "" of a card without it."""
    rows = card.get("paths")
    if not rows:
        return ""
    number = rows["own"]["nats"]["n"]
    lines = [f"| changed (n\u202f{number}) | {' | '.join(_OF_A_PATH.values())} |", "|---" * (len(_OF_A_PATH) + 1) + "|"]
    lines += [
        f"| {_PATHS[name]} | {' | '.join(plain(row.get(score)) for score in _OF_A_PATH)} |"
        for name, row in rows.items()
    ]
    return "\n\n".join([in_words(rows), "\n".join(lines)])


def in_words(paths: Mapping[str, Mapping[str, Any]]) -> str:
    """What the table of paths says, by its numbers."""

    def of(change: str, score: str) -> float:
        value = paths[change][score]["value"]
        return float("nan") if value is None else value

    def share(change: str, score: str) -> str:
        return f"{100 * of(change, score):.0f} %"

    shut = of("gates_zero", "normal_balanced_accuracy")
    said = [
        f"With all gates shut, the drafts {'cannot' if shut <= BLIND else 'still'} tell normal from abnormal (balanced accuracy {shut:.2f}; "
        f"{of('own', 'normal_balanced_accuracy'):.2f} with the gates open).",
        f"If the hybrid layers see another film, {share('hybrid_other', 'labels_of_other')} of the drafts state that film's labels.",
    ]
    # where both films' drafts state the same, anyone's labels are the other's
    if of("own", "labels_of_other") >= 0.005:
        said.append(f"{share('own', 'labels_of_other')} would do so anyway, since both films' drafts agree.")
    said.append(
        f"If the prompt comes from another film, {share('prompt_other', 'labels_kept')} of the drafts keep their labels."
    )
    if "patches_other" in paths:
        own = of("patches_other", "labels_kept")
        said.append(
            f"With another film's finding tokens, {share('findings_other', 'labels_of_other')} state its labels; with only its patches, "
            f"{share('patches_other', 'labels_of_other')} ({share('patches_other', 'labels_kept')} keep their own). "
            + (
                "So the patches matter little beside the finding tokens."
                if own >= FOLLOWS
                else "So both count."
                if own > 1 - FOLLOWS
                else "So the patches decide."
            )
        )
    return " ".join(said)


def finding_table(card: Mapping[str, Any], columns: Sequence[str] = tuple(_FINDINGS), *, short: bool = False) -> str:
    """How well every assessed finding is read, stated and denied, and which are not assessed; "" without any. short: no thresholds or intervals."""
    rows = card.get("findings", {})
    told = {name: row for name, row in rows.items() if row["assessed"]}
    if not told:
        return ""
    titles = ["finding", "films with it", *(() if short else ("threshold", "denied below"))]
    titles += [_FINDINGS[score] for score in columns]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, row in told.items():
        threshold = f"{row['threshold']:.2f}" + (f", {row['threshold_alone']:.2f} alone" if name != "abnormal" else "")
        denied = f"{row['denied_below']:.2f}" if row["denied_below"] else "never"
        cells = [name, f"{row['positive']}", *(() if short else (threshold, denied))]
        cells += [plain(row[score]) if short else cell(row[score], row["positive"]) for score in columns]
        lines.append(f"| {' | '.join(cells)} |")
    silent = [name for name, row in rows.items() if not row["assessed"]]
    parts = ["\n".join(lines)]
    if silent:
        parts.append(f"Not assessed, so neither stated nor denied: {', '.join(silent)}.")
    return "\n\n".join(parts)


def listed(scores: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """One line a score, those that were computed."""
    told = {title: cell(scores.get(name)) for name, title in columns.items()}
    return "\n".join(f"- {title}: {said}" for title, said in told.items() if said not in {"–", "not computed"})


def tables(card: Mapping[str, Any]) -> str:
    """Everything on the card that fits a page, as Markdown."""
    scores = {name: row for name, row in card["scores"].items() if name != "simulated"}
    rows = {name: row for name, row in scores.items() if name == "overall" or row["label_micro_f1"]["n"] >= FEW}
    parts = [path_table(card), f"## By source\n\n{table('source', rows, _COLUMNS)}"]
    if findings := finding_table(card):
        parts.append(f"## By finding\n\n{findings}")
    if card.get("reliability"):
        parts.append("![How often a finding is there, by its probability](reliability.svg)")
    if found := card.get("effusions"):
        parts.append("Effusions by source:\n\n" + table("source", found, _EFFUSIONS))
    if read := card.get("radiologists"):
        parts.append(
            "## Against radiologists\n\nOn films that radiologists of the RSNA challenge read:\n\n"
            + table("view", read, _RADIOLOGISTS)
        )
    for title, columns in _LIST.items():  # by source: docs/results/
        if said := listed(scores["overall"], columns):
            parts.append(f"## {title}\n\n{said}")
    # cards of before RadEval have none of these
    if told := {name: row for name, row in scores.items() if row.get("ratescore", {}).get("n")}:
        first = next(iter(told.values()))
        done = {score: heading for score, heading in _RADEVAL.items() if not first[score].get("reason")}
        if done:
            parts.append(table("source", told, done))
        reasons = {heading: first[score].get("reason") for score, heading in _RADEVAL.items()}
        for reason in dict.fromkeys(filter(None, reasons.values())):
            parts.append(f"Not computed: {', '.join(h for h, r in reasons.items() if r == reason)}. The reason: {reason}.")  # fmt: skip
    if made := card["scores"].get("simulated"):
        drawn = {sign: {name: made.get(f"{name}_{sign}") for name in _DRAWN} for sign in _SIGNS}
        drawn["all"] = {name: made.get(name) for name in _DRAWN}
        parts.append(
            "## Drawn findings\n\nThese are drawn on real normal films. They are not pathology.\n\n"
            + table("drawn", drawn, _DRAWN)
        )
    if others := card.get("baselines"):
        compared = {"this checkpoint": scores["overall"]} | {name: own["overall"] for name, own in others.items()}
        beside = sorted(others.keys() - {"constant", "label_blind", "nearest"})
        more = f" {', '.join(beside)}: the drafts of other checkpoints." if beside else ""
        parts.append(
            "## Baselines\n\nconstant: the most frequent training report for every film. label_blind: a random training report. nearest: a "
            f"label-matched report of the nearest training film by tower feature.{more}\n\n"
            + table("report from", compared, _BASELINES)
        )
    parts.append(
        f"Checkpoint `{card['checkpoint_sha256'][:12]}…`, {card['precision']}, {card['decoding']}, "
        f"{card['seconds']:.0f} s:\n\n    {card['command']}"
    )
    return "\n\n".join(filter(None, parts))


def page(card: Mapping[str, Any]) -> str:
    """The tables under a heading that says what they are: docs/results.md."""
    name = Path(card["command"].split("--checkpoint ")[1].split()[0]).name
    more = card.get("more")
    further = f"\nFilms of {', '.join(more)} are rows of their own, not part of `overall`." if more else ""
    return f"""\
# Results of `{name}` on the validation split

`python -m train.results` prints this page from [the card](results/small.json) that `train.evaluate --json` wrote. `train/evaluate.py` defines
each score. "normal/abnormal" is balanced accuracy of what a draft says. Brackets hold bootstrap 95 % intervals over films, and n where it
differs.{further}

{tables(card)}"""


def ways_page(card: Mapping[str, Any]) -> str:
    """Ways to write a report, side by side (train.compare)."""
    return f"""## Ways to write a report

The sister methods and the baselines at one small budget, on the same films (docs/training.md has the commands). But for EMRRG, whose finding tokens
are told in sentences of ours, all learned report texts that agree with a film's labels, in 200 steps of 8 films (Med-CXRGen: 100 of each projector,
60 of each LoRA). EMRRG's tower read the films for both AM-MRG rows; the other towers are that of `train.tower`, without EMRRG's partial LoRA.

{compare.table(card)}"""


def prior_page(card: Mapping[str, Any]) -> str:
    """What is told of change with a prior film (train.prior --score)."""
    drawn = card["drawn"]
    lines = ["| change | told | right, where told |", "|---|---|---|"]
    for change in Change:
        lines.append(f"| {change} | {cell(drawn[f'told_{change}'])} | {cell(drawn[f'right_{change}'])} |")
    lines.append(f"| **all** | {cell(drawn['told'])} | **{cell(drawn['right'])}** |")
    rows = ["| changed | the same changes told | the other pair's | none |", "|---|---|---|---|"]
    titles = {
        "prior_other": "another pair's prior film",
        "prior_withheld": "no prior film",
        "gates_zero": "all gates shut",
    }
    for name, row in drawn["paths"].items():
        rows.append(f"| {titles[name]} | {' | '.join(plain(row[score]) for score in ('kept', 'of_other', 'none'))} |")
    count = next(iter(drawn["paths"].values()))["kept"]["n"] if drawn["paths"] else 0
    real = "\n".join(
        f"| {labelled} | {row['pairs']} | {row['new']} | {row['resolved']} |" for labelled, row in card["real"].items()
    )
    table_ = "\n".join(lines)
    paths = "\n".join(rows)
    return f"""## With a prior film

{card["pairs"]} drawn pairs of validation films, in which it is known how one finding has changed (`train/prior.py`). No film here says how a real one
has. In {plain(drawn["read"])} of the pairs the drawn finding is read at all; of these, {plain(drawn["told_of_read"])} have a change that is told.

{table_}

- Drafts that tell exactly the changes of their tokens: {cell(drawn["follows"])}
- Drafts of two normal films of one patient, with no drawing, that call something new, larger, smaller or resolved: {cell(card["still"])}
- Drafts without a prior film that have a word of change: {cell(card["unpaired"])}

Findings in two films of one patient, by their labels, many of them text-mined, and what is read of them (validation and development films, in both
orders):

| by the labels | comparisons | read as new | read as resolved |
|---|---|---|---|
{real}

The {count} drafts that tell a change, written again:

{paths}"""


def ablation_page(results: Mapping[tuple[str, int], ablation.Result]) -> str:
    """The rows of the ablation beside the paper's, and what agrees. train.ablation --report prints all scores."""
    settings = next(iter(results.values()))["settings"]
    learn = settings["recipe"]["finetune"]
    first = {row: results[row, learn["seed"]] for row in ablation.COMPARED if (row, learn["seed"]) in results}
    one = next(iter(first.values()))["scores"]
    shown = {"nll": "nats a token", "auc": "AUC", "bleu4": "BLEU-4"}
    paper = {title: ablation.METRICS.index(name) for name, title in shown.items() if name in ablation.METRICS}
    titles = ["row", *shown.values(), *(f"paper {title}" for title in paper)]
    lines = [titles, ["---"] * len(titles)]
    for row, result in first.items():
        cells = []
        for name in shown:
            score = result["scores"][name]
            between = f" ({score['low']:.2f}–{score['high']:.2f})" if name == "nll" else ""
            cells.append(f"{score['value']:.2f}{between}")
        theirs = [f"{ablation.PAPER[row][i]:.3f}" if row in ablation.PAPER else "–" for i in paper.values()]
        lines.append([DESIGNS[row], *cells, *theirs])
    told = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"""\
## The ablation beside the paper's

Every row: {learn["steps"]} steps of {learn["batch"]} films, seed {learn["seed"]}, rank 16, no hybrid layers, no disease queries,
{settings["language_model"]} frozen (but for LoRA(LLM)). Scored on {one["nll"]["n"]} development films of {", ".join(sorted(learn["sources"]))},
{one["bleu4"]["n"]} drafts. The paper used IU X-ray with its true reports, Llama-2-7B and full training. Our references only agree with a film's
labels, so BLEU is low in every row and only the order can be compared.

{told}

{_agreement(first, results)}

`python -m train.ablation --report docs/results/ablation` prints all scores, seeds and paired differences."""


def _agreement(first: Mapping[str, ablation.Result], results: Mapping[tuple[str, int], ablation.Result]) -> str:
    """What the ablation's rows show and do not show, as a list."""
    rows = [row for row in first if row in ablation.PAPER]
    at = ablation.METRICS.index("bleu4")
    paper = {row: ablation.PAPER[row][at] for row in rows}
    nats = {row: first[row]["scores"]["nll"]["value"] for row in first}
    ours = {
        "nats a token": [-nats[row] for row in rows],
        "BLEU-4": [round(first[row]["scores"]["bleu4"]["value"], 3) for row in rows],
    }
    orders = {name: ablation.rank_correlation(values, [*paper.values()]) for name, values in ours.items()}
    gaps = {pair: ablation.difference(first[pair[0]], first[pair[1]]) for pair in itertools.combinations(rows, 2)}
    clear = {pair: gap for pair, gap in gaps.items() if gap["low"] > 0 or gap["high"] < 0}
    same = sum((gap["value"] > 0) == (paper[a] > paper[b]) for (a, b), gap in clear.items())
    correlations = ", ".join(f"{value:+.2f} by our {name}" for name, value in orders.items() if value is not None)
    best, worst = (DESIGNS[pick(rows, key=nats.__getitem__)] for pick in (min, max))
    said = [
        f"Lowest nats a token: {best}; highest: {worst}. The paper's highest BLEU-4: {DESIGNS[max(rows, key=paper.__getitem__)]}; lowest: "
        f"{DESIGNS[min(rows, key=paper.__getitem__)]}.",
        f"Rank correlation with the paper's BLEU-4: {correlations}. "
        "Of eleven rows, chance alone exceeds 0.62 in either direction once in twenty times.",
        f"{len(clear)} of {len(gaps)} pairs of rows differ by nats a token (the interval of the paired difference leaves out 0). "
        f"{same} of these are in the order of the paper's BLEU-4.",
    ]
    if "projector" in first:
        gains = [ablation.difference(first[row], first["projector"]) for row in rows]
        said.append(
            f"{sum(gain['low'] > 0 for gain in gains)} of {len(rows)} rows lose fewer nats than projector-only tuning, "
            f"{sum(gain['high'] < 0 for gain in gains)} lose more."
        )
    seeds = [[r["scores"]["nll"]["value"] for (name, _), r in results.items() if name == row] for row in rows]
    if spreads := [max(values) - min(values) for values in seeds if len(values) > 1]:
        behind = sorted(nats[row] for row in rows)[1:]
        said.append(
            f"The rows behind the first span {max(behind) - min(behind):.2f} nats a token. One row moves by up to {max(spreads):.2f} from seed to "
            "seed, so smaller differences are no order."
        )
    return "\n".join(f"- {line}" for line in said)


def large_sources(card: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The sources with at least 50 films whose normal and abnormal ones are told apart."""
    told = {name: row["normal_balanced_accuracy"] for name, row in card["scores"].items() if name != "simulated"}
    return {name: card["scores"][name] for name, s in told.items() if s["value"] is not None and s["n"] >= 50}


def summary(card: Mapping[str, Any]) -> str:
    """Which path carries a draft, the larger sources, the findings, then drawings and maps in words."""
    scores, whole = card["scores"], card["scores"]["overall"]
    drawn = {name: cell(scores.get("simulated", {}).get(name)) for name in _DRAWN}
    maps = {name: cell(whole.get(name)) for name in _LIST["Maps"]}
    parts = [
        in_words(card["paths"]) if card.get("paths") else "",
        f"All {whole['label_micro_f1']['n']} films of the validation split, greedy, checkpoint `{card['checkpoint_sha256'][:12]}…`. "
        "“normal/abnormal” is balanced accuracy. Brackets hold bootstrap 95 % intervals over films.",
        table("source", large_sources(card), {name: _COLUMNS[name] for name in _CARD_COLUMNS}),
        finding_table(card, _CARD_FINDINGS, short=True),
        f"**Maps.** The map of the sentence that states a finding peaks in a radiologist's box in {maps['pointing']} of the films with a box; the "
        f"boxes cover {maps['pointing_chance']} of the film. The finding's own map peaks in a box in {maps['pointing_evidence']}. Maps of lung "
        f"sentences lie in the lungs {maps['mask_share_over_chance']} times chance. Maps of different findings correlate at "
        f"{maps['map_correlation']}. Hiding the top tenth of a map costs its sentence {maps['deletion_drop']} nats more than hiding other places, "
        f"and its finding {maps['deletion_log_odds']} more log odds.",
        f"**Drawn findings** on real normal films: {drawn['found']} are stated, the side is right in {drawn['side']} where one is named, the map "
        f"peaks on the finding in {drawn['pointing']}. Before drawing, {drawn['false_alarms']} of the same films' drafts state such a finding.",
        "[docs/results.md](docs/results.md) has the rest and the command.",
    ]
    return "\n\n".join(filter(None, parts))


def brief(card: Mapping[str, Any]) -> str:
    """Which path carries a draft, and the scores of all films together, in words."""
    whole, large = card["scores"]["overall"], large_sources(card)
    scores = {name: plain(whole.get(name)) for name in _BRIEF_COLUMNS}
    sources = ", ".join(
        f"{name} {plain(row['normal_balanced_accuracy'])}" for name, row in large.items() if name != "overall"
    )
    parts = [
        in_words(card["paths"]) if card.get("paths") else "",
        f"On the {whole['label_micro_f1']['n']} films of the validation split (checkpoint `{card['checkpoint_sha256'][:12]}…`), drafts tell normal "
        f"from abnormal (of the {whole['normal_balanced_accuracy']['n']} known to be one or the other) with a balanced accuracy of "
        f"{scores['normal_balanced_accuracy']}{f' ({sources})' if sources else ''}. Label micro-F1 is {scores['label_micro_f1']}, "
        f"macro-F1 {scores['label_macro_f1']}, calibration error {scores['calibration_error']}.",
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
        "--ablation", type=Path, help="folder of train.ablation, whose rows then follow those of the card"
    )
    parser.add_argument("--compare", type=Path, help="card of train.compare, whose table then follows")
    parser.add_argument("--prior", type=Path, help="card of train.prior --score, whose table then follows")
    parser.add_argument("--reliability", type=Path, help="where to draw the reliability diagram, as SVG")
    parser.add_argument("--into", type=Path, nargs="+", default=[], help="pages to put the summary into")
    parser.add_argument("--brief-into", type=Path, nargs="+", default=[], help="pages to put the shortest summary into")
    args = parser.parse_args(argv)
    card = json.loads(args.card.read_text())
    if args.reliability:
        args.reliability.write_text(reliability(card))
    elif not (args.into or args.brief_into):
        print(page(card))
        if args.compare:
            print(f"\n{ways_page(json.loads(args.compare.read_text()))}")
        if args.prior:
            print(f"\n{prior_page(json.loads(args.prior.read_text()))}")
        if args.ablation:
            print(f"\n{ablation_page(ablation.read_results(args.ablation))}")
    for paths, words in ((args.into, summary), (args.brief_into, brief)):
        for path in paths:
            path.write_text(insert(path.read_text(), words(card)))


if __name__ == "__main__":
    main()
