"""Trains the rows of the paper's ablation (docs/method.md 3.4, 7.2) with a small budget on our films, and prints them beside the paper's numbers.

    python -m train.ablation --recipe train/recipes/ablation.toml --films FILMS.jsonl --reports REPORTS.jsonl --start runs/tower --out runs/ablation
    python -m train.ablation --report runs/ablation > docs/ablation.md

train/finetune.py trains every row with `--design`: the same steps, seed and films, but another set of adapters. A twelfth row, "projector only",
shows whether adapters help at all. The four rows with the lowest nll are trained with more seeds. Rows whose result is in the folder are not
trained again, and an interrupted row is resumed. Use one folder for one recipe, film set and tower.

    out/settings.json   the settings that all runs share
    out/x-0/            one run, by row and seed: the files of train/loop.py, and the checkpoint
    out/x-0.json        its result

Rows are scored on development films of the recipe's sources, never on `val`. Training films have no report of their own, so each gets a report
text that agrees with its labels (data.Matcher), the same for every row:
    nll                  negative log-likelihood of the film's report, in nats a token
    looks                how much higher it is under another film of the same source and the other kind (normal, abnormal)
    auc                  area under the curve for normal against abnormal, mean over sources. A film's score is the log-probability of first
                         sentences of abnormal reports less that of normal ones. The sentences come from training films and are the same for all
                         films of a source, so they say nothing about the film, and no threshold is needed.
    balanced_accuracy    whether drafts state an abnormality, against the labels
    bleu1…4, rouge_l, cider   of drafts against the film's report, both cleaned as in the paper (docs/method.md 6)
"""

import argparse
import csv
import hashlib
import itertools
import json
import os
import re
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emrrg_core.config import DecodeConfig, ModelConfig, Settings
from emrrg_core.data.public_datasets import clean_report
from emrrg_core.data.studies import FilmCache, Matcher, Study, development, normalise, read_reports, read_studies
from emrrg_core.errors import ConfigError, DataError, EmrrgError
from emrrg_core.model import checkpoint
from emrrg_core.model.emrrg import IGNORED, Emrrg, FilmTokens
from emrrg_core.model.generation import write
from emrrg_core.model.language_model import prefers_bfloat16
from emrrg_core.model.partial_lora import DESIGNS, ROWS
from emrrg_core.report.draft import compose, split
from emrrg_core.text.labeler import is_abnormal, sentences
from emrrg_core.text.metrics import Score, bootstrap, text_scores
from train import finetune
from train.loop import Run, apart
from train.measures import area_under_curve, balanced_accuracy
from train.parameters import count

SCHEMA = "emrrg.ablation/1"
NAMED = "nll"  # the score that picks the best: it is of every token of every film, and so moves least by chance
BEST = 4
COMPARED = (*ROWS, "projector")
METRICS = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "meteor", "cider")
PAPER = {  # the paper's Table 6, IU X-ray, as docs/method.md 7.2 has it
    "llm": (0.479, 0.320, 0.233, 0.177, 0.386, 0.212, 0.489),
    "embedding": (0.463, 0.302, 0.218, 0.167, 0.379, 0.207, 0.530),
    "x_proj": (0.457, 0.301, 0.226, 0.162, 0.383, 0.205, 0.473),
    "dt_proj": (0.458, 0.300, 0.212, 0.161, 0.378, 0.203, 0.485),
    "in_proj": (0.444, 0.288, 0.205, 0.152, 0.368, 0.194, 0.431),
    "out_proj": (0.456, 0.297, 0.211, 0.156, 0.374, 0.199, 0.451),
    "z": (0.466, 0.302, 0.213, 0.163, 0.381, 0.204, 0.467),
    "dt": (0.458, 0.299, 0.221, 0.157, 0.387, 0.197, 0.484),
    "b": (0.462, 0.307, 0.208, 0.165, 0.384, 0.201, 0.472),
    "c": (0.473, 0.303, 0.217, 0.154, 0.379, 0.209, 0.466),
    "x": (0.485, 0.311, 0.223, 0.169, 0.388, 0.216, 0.474),
}
TITLES = {
    "nll": "nats a token",
    "looks": "lost under another film",
    "auc": "AUC",
    "balanced_accuracy": "balanced accuracy of drafts",
    "bleu1": "BLEU-1",
    "bleu2": "BLEU-2",
    "bleu3": "BLEU-3",
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "cider": "CIDEr",
}

Result = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Trial(Settings):
    """What a recipe's [ablation] says: how the rows are scored."""

    films: int = 96  # development films at most
    drafts: int = 48  # of which a draft is written
    tokens: int = 50  # of a draft at most
    texts: int = 2  # first sentences of each kind, normal and abnormal, that a film is asked about

    def __post_init__(self) -> None:
        if min(self.films, self.drafts) < 2 or min(self.tokens, self.texts) < 1:
            raise ConfigError("[ablation] needs at least 2 films, 2 drafts, 1 token and 1 text.")


@dataclass(frozen=True)
class Sample:
    """What every row is asked about: n development films of known kind, and the reports that they are judged by."""

    studies: list[Study]
    told: list[tuple[str, str]]  # findings and impression of each film
    other: np.ndarray  # (n,) another film of its source, of the other kind; -1 where there is none
    asked: dict[str, tuple[list[str], list[str]]]  # source -> first sentences, normal and abnormal


def sample(studies: Sequence[Study], matcher: Matcher, run: Run, trial: Trial) -> Sample:
    """The same for every row and seed. Raises DataError when no development film of the recipe's sources can be told."""
    rng = np.random.default_rng(run.seed)

    def told(study: Study) -> tuple[str, str] | None:
        if finetune.own_report(study):
            return study.findings, study.impression
        texts = matcher.texts(study)
        return texts[rng.integers(len(texts))] if texts else None

    learn, develop = development([s for s in studies if s.split == "train"])
    known = [s for s in develop if s.abnormal is not None]
    pairs = [(s, text) for s in finetune.some(known, trial.films, run) if (text := told(s))]
    if not pairs:
        raise DataError(
            f"No development film of {sorted(run.sources)} is labelled normal or abnormal and has a report text: name other sources."
        )
    films = [s for s, _ in pairs]
    other = np.full(len(films), -1)
    for i, study in enumerate(films):
        against = [j for j, s in enumerate(films) if s.source == study.source and s.abnormal is not study.abnormal]
        other[i] = rng.choice(against) if against else -1
    asked = {}
    for source in sorted({s.source for s in films}):
        kinds = []
        for kind in (False, True):
            mine = [s for s in learn if s.source == source and s.abnormal is kind]
            texts = (told(mine[i]) for i in rng.permutation(len(mine)))
            kinds.append([_first(*text) for text in itertools.islice(filter(None, texts), trial.texts)])
        if all(len(texts) == trial.texts for texts in kinds):
            asked[source] = (kinds[0], kinds[1])
    return Sample(films, [text for _, text in pairs], other, asked)


def _first(findings: str, impression: str) -> str:
    """How a report begins: with what is abnormal, where anything is (data.abnormal_first)."""
    if not findings:
        return compose("", impression)
    return compose(findings[slice(*sentences(findings)[0])], "")


# ------------------------------------------------------------------------------------------------------------ scoring


@torch.inference_mode()
def judge(model: Emrrg, sample: Sample, cache: FilmCache, trial: Trial) -> tuple[dict[str, Score], np.ndarray]:
    """All scores of a trained row, and its nll of each film, (n,)."""
    device = model.device
    if prefers_bfloat16(device):
        model.llm.bfloat16()
    with torch.autocast(device.type, torch.bfloat16, enabled=prefers_bfloat16(device)):
        grey = np.stack([cache[s] for s in sample.studies])
        films = (torch.from_numpy(normalise(grey[i : i + 16])).unsqueeze(1) for i in range(0, len(grey), 16))
        seen = FilmTokens.join([model.encode(batch.to(device)) for batch in films])
        told = [compose(*text) for text in sample.told]
        own = log_probs(model, seen, told)
        at = np.flatnonzero(sample.other >= 0)
        lost = own[at] - log_probs(model, seen.select(sample.other[at].tolist()), [told[i] for i in at])
        sources = np.array([s.source for s in sample.studies])
        abnormal = np.array([bool(s.abnormal) for s in sample.studies])
        rows: list[np.ndarray] = []
        for number, (source, kinds) in enumerate(sample.asked.items()):
            mine = np.flatnonzero(sources == source)
            normal, ill = (
                np.mean(
                    [log_probs(model, seen.select(mine.tolist()), [text] * len(mine), end=False) for text in texts],
                    axis=0,
                )
                for texts in kinds
            )
            rows += [np.stack([np.full(len(mine), number), abnormal[mine], ill - normal], axis=1)]
        chosen = np.unique(np.linspace(0, len(told) - 1, min(trial.drafts, len(told))).round().astype(int))
        decoding = DecodeConfig(max_new_tokens=trial.tokens)
        drafts = [w.text for w in write(model, seen.select(chosen.tolist()), decoding)]
    readings = np.concatenate([*rows, np.zeros((0, 3))])
    scores = {"nll": bootstrap(-own), "looks": bootstrap(lost), "auc": bootstrap(readings, _areas)}
    for number, source in enumerate(sample.asked):
        scores[f"auc_{source}"] = bootstrap(readings[readings[:, 0] == number], _areas)
    called = np.array([is_abnormal(text) for text in drafts], bool)
    scores["balanced_accuracy"] = bootstrap(
        np.stack([abnormal[chosen], called], axis=1), lambda rows: balanced_accuracy(*rows.T)
    )
    references = [clean_report(" ".join(sample.told[i]), "iu_xray") for i in chosen]
    plain = [" ".join(text[slice(*span)] for span in split(text).values()) for text in drafts]
    words = text_scores(references, [clean_report(text, "iu_xray") for text in plain], meteor=False)
    return scores | {name: words[name] for name in METRICS if name in words}, -own


def log_probs(model: Emrrg, seen: FilmTokens, texts: Sequence[str], *, end: bool = True, batch: int = 16) -> np.ndarray:
    """Mean log-probability of a token of each text under the film beside it: (n,) of n films. end: that it ends there counts too."""
    last = [model.tokenizer.eos_token_id] if end else []
    ids = [[*model.tokenizer(text, add_special_tokens=False).input_ids, *last] for text in texts]
    order = np.argsort([len(row) for row in ids], kind="stable")  # like lengths together: less padding
    found = np.zeros(len(ids))
    for i in range(0, len(ids), batch):
        rows = order[i : i + batch]
        padded = finetune.pad([ids[r] for r in rows], IGNORED, torch.long)
        logs = model.log_probs(seen.select(rows.tolist()), padded.to(seen.patches.device)).sum(1)
        found[rows] = logs.cpu().numpy() / [len(ids[r]) for r in rows]
    return found


def _areas(rows: np.ndarray) -> float:
    """Rows of source, kind and reading to the mean over sources of the area under the curve; NaN where a source has one kind only."""
    sources = [rows[rows[:, 0] == number, 1:] for number in np.unique(rows[:, 0])]
    areas = [area_under_curve(mine[:, 0] > 0, mine[:, 1]) for mine in sources]
    return float(np.mean(areas)) if areas else float("nan")


# --------------------------------------------------------------------------------------------------------------- runs


def with_seed(recipe: str, seed: int) -> str:
    """A recipe's text with another seed in [finetune], and nothing else changed. Raises ConfigError where that cannot be done."""
    wanted = tomllib.loads(recipe)
    wanted["finetune"]["seed"] = seed
    changed = re.sub(r"^seed\s*=\s*\d+", f"seed = {seed}", recipe, flags=re.MULTILINE)
    if tomllib.loads(changed) != wanted:
        raise ConfigError("The recipe's [finetune] must have a line `seed = N` of its own, the only one of the file.")
    return changed


def trial_of(recipe: Mapping[str, Any]) -> tuple[Run, Trial]:
    """What a recipe says of training and of scoring. Raises ConfigError for a recipe that does not suit the ablation."""
    if missing := {"finetune", "model", "ablation"} - recipe.keys():
        raise ConfigError(
            f"The recipe of an ablation has the sections finetune, model, ablation: {sorted(missing)} missing."
        )
    run = apart(finetune.Lessons, recipe["finetune"])[1]
    if ModelConfig.from_dict(recipe["model"]).queries.depth:
        raise ConfigError(
            "The ablation runs without disease queries, because finding tokens would bypass the adapters: remove queries from [model]."
        )
    return run, Trial.from_dict(recipe["ablation"])


def settle(out: Path, settings: Mapping[str, Any]) -> None:
    """Make `out` the folder of these settings. Raises ConfigError when it is that of others, naming what differs."""
    path = out / "settings.json"
    if path.exists():
        there = json.loads(path.read_text())
        if other := sorted(k for k in {*there, *settings} if there.get(k) != settings.get(k)):
            raise ConfigError(
                f"{out} holds results made with other settings ({', '.join(other)}); name another folder or delete it."
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    _write(path, settings)


def digest(files: Iterable[Path]) -> str:
    """SHA-256 of some files' bytes, hexadecimal. Raises DataError for one that cannot be read."""
    whole = hashlib.sha256()
    for path in files:
        try:
            whole.update(path.read_bytes())
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    return whole.hexdigest()


def run_row(
    row: str, seed: int, recipe: str, options: Mapping[str, Any], out: Path, score: Callable[[Emrrg], Any]
) -> None:
    """Train a row, unless its result is there, and score it. options: what else train/finetune.py is told."""
    path, folder = out / f"{row}-{seed}.json", out / f"{row}-{seed}"
    if path.exists():
        return
    print(f"{DESIGNS[row]}, seed {seed}", flush=True)
    folder.mkdir(exist_ok=True)
    (folder / "recipe.toml").write_text(with_seed(recipe, seed))
    told = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    finetune.main(["--recipe", f"{folder}/recipe.toml", "--design", row, "--out", f"{folder}", *told])
    model, language = checkpoint.load(folder / "checkpoint", language_model=options["language-model"])
    counted = count(replace(model.config, language=str(options["language-model"] or model.config.language)))
    begun = time.perf_counter()
    scores, nll = score(model)
    seconds = {"training": _seconds(folder / "log.csv"), "scoring": time.perf_counter() - begun}
    _write(
        path,
        {
            "schema": SCHEMA,
            "row": row,
            "seed": seed,
            "settings": json.loads((out / "settings.json").read_text()),
            "language_sha256": language.sha256,
            "trainable": counted.learned,
            "seconds": seconds,
            "scores": scores,
            "films": {"nll": np.round(nll, 6).tolist()},
        },
    )


def _seconds(log: Path) -> float:
    """Of the steps that a log has; its clock begins anew where a run was resumed."""
    with log.open(newline="") as file:
        at = [0.0, *(float(row["seconds"]) for row in csv.DictReader(file))]
    return sum(now - before if now >= before else now for before, now in itertools.pairwise(at))


def _write(path: Path, content: Mapping[str, Any]) -> None:
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    os.replace(beside, path)


def best(results: Mapping[tuple[str, int], Result], rows: Sequence[str], seed: int) -> list[str]:
    """The paper's rows among these that have the lowest nll, best first, at most BEST."""
    return sorted((r for r in rows if r in ROWS), key=lambda r: results[r, seed]["scores"][NAMED]["value"])[:BEST]


def read_results(out: Path) -> dict[tuple[str, int], Result]:
    """The results of a folder by row and seed. Raises DataError when there is none, ConfigError when their settings differ."""
    found = [json.loads(path.read_text()) for path in sorted(out.glob("*-*.json"))]
    if not found:
        raise DataError(f"{out} has no results of an ablation: make them with --recipe, --films, --start and --out.")
    shared = ("schema", "settings", "language_sha256")
    if other := [f"{r['row']}-{r['seed']}" for r in found if any(r[name] != found[0][name] for name in shared)]:
        first = f"{found[0]['row']}-{found[0]['seed']}"
        raise ConfigError(
            f"{out} mixes results made with other settings: {', '.join(other)} and {first} cannot be compared."
        )
    return {(r["row"], r["seed"]): r for r in found}


# --------------------------------------------------------------------------------------------------------------- page


def ranks(values: Sequence[float]) -> np.ndarray:
    """(n,): 1 for the highest; equal ones share the mean of their ranks."""
    row = np.array(values, float)
    return (row[None] > row[:, None]).sum(1) + ((row[None] == row[:, None]).sum(1) + 1) / 2


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's; None where it is not defined."""
    a, b = ranks(one), ranks(other)
    return float(np.corrcoef(a, b)[0, 1]) if len(a) > 1 and a.std() and b.std() else None


def page(results: Mapping[tuple[str, int], Result]) -> str:
    """All of it as Markdown."""
    settings = next(iter(results.values()))["settings"]
    seed = settings["recipe"]["finetune"]["seed"]
    first = {row: results[row, seed] for row in COMPARED if (row, seed) in results}
    parts = [_introduction(settings, first), _rows(first), _differences(first), _seeds(results)]
    if len(rows := [row for row in first if row in ROWS]) > 1:
        parts += [_against_the_paper({row: first[row] for row in rows}), _verdicts(first, results)]
    return "\n\n".join(part for part in parts if part)


def _introduction(settings: Mapping[str, Any], first: Mapping[str, Result]) -> str:
    learn, trial = settings["recipe"]["finetune"], Trial.from_dict(settings["recipe"]["ablation"])
    one = next(iter(first.values()))["scores"]
    sources = ", ".join(sorted(learn["sources"]))
    hours = sum(sum(result["seconds"].values()) for result in first.values()) / 3600
    return f"""\
# The ablation, beside the paper's

Printed by `python -m train.ablation --report FOLDER` from the results that the same program made; what each score is stands in
`train/ablation.py`. Every row: {learn["steps"]} steps of {learn["batch"]} films, seed {learn["seed"]}, rank 16, no hybrid layers, no disease queries,
{settings["language_model"]} frozen (but for LoRA(LLM)). Scored: {one["nll"]["n"]} development films of {sources},
{one["bleu4"]["n"]} drafts of at most {trial.tokens} tokens.
The {len(first)} rows took {hours:.1f} hours. In brackets 95 % bootstrap intervals over films: they know nothing of seeds. All scores
and\nintervals, by source too: docs/results/ablation.

The paper's numbers are of IU X-ray, its true reports, Llama-2-7B and full training. Ours are against reports that agree with a film's labels and are
not its own, so that BLEU and its like are low for every row, and only their order can be compared."""


def _rows(first: Mapping[str, Result]) -> str:
    ours = ("nll", "looks", "auc", "balanced_accuracy", "bleu1", "bleu4", "rouge_l", "cider")
    shown = [METRICS.index(name) for name in ("bleu1", "bleu4", "rouge_l", "meteor", "cider")]
    titles = ["row", "trained", "s a run", *(TITLES[s] for s in ours), *(f"paper {TITLES[METRICS[i]]}" for i in shown)]
    lines = [
        [
            DESIGNS[row],
            f"{result['trainable']:,}",
            f"{result['seconds']['training']:.0f}",
            *(_cell(result["scores"].get(score), interval=score in ("nll", "auc")) for score in ours),
            *(f"{PAPER[row][i]:.3f}" if row in PAPER else "–" for i in shown),
        ]
        for row, result in first.items()
    ]
    return _table(titles, lines)


def difference(one: Result, other: Result) -> Score:
    """How many nats a token one row loses less than another, the same films in both."""
    return bootstrap(np.array(other["films"]["nll"]) - np.array(one["films"]["nll"]))


def _clear(score: Score) -> bool:
    """Whether a difference's interval leaves 0 out."""
    return score["low"] > 0 or score["high"] < 0


def _differences(first: Mapping[str, Result]) -> str:
    against = [row for row in ("x", "projector") if row in first]
    if not against:
        return ""
    lines = [
        [DESIGNS[row], *("" if row == a else _cell(difference(result, first[a])) for a in against)]
        for row, result in first.items()
    ]
    return "Nats a token that a row saves, film by film, against\n\n" + _table(
        ["row", *(DESIGNS[a] for a in against)], lines
    )


def _seeds(results: Mapping[tuple[str, int], Result]) -> str:
    scores = ("nll", "looks", "auc", "balanced_accuracy", "bleu4", "rouge_l")
    lines = []
    for row in COMPARED:
        mine = [result for (name, _), result in results.items() if name == row]
        if len(mine) > 1:
            values = [[r["scores"][s]["value"] for r in mine if r["scores"][s]["value"] is not None] for s in scores]
            cells = [f"{np.mean(v):.3f} ({min(v):.3f} to {max(v):.3f})" if v else "–" for v in values]
            lines.append([DESIGNS[row], str(len(mine)), *cells])
    if not lines:
        return ""
    titles = ["row", "seeds", *(TITLES[s] for s in scores)]
    return f"The best of the paper's rows by {TITLES[NAMED]}, over seeds: mean (lowest to highest)\n\n" + _table(
        titles, lines
    )


def _values(rows: Mapping[str, Result], score: str) -> list[float] | None:
    """One score of every row, higher better; None where a row has none. Rounded as the page shows it: BLEU-4 of 1e-10 makes no order."""
    found = [result["scores"].get(score, {}).get("value") for result in rows.values()]
    if any(value is None for value in found):
        return None
    return [round(-value if score == "nll" else value, 3) for value in found]


def _against_the_paper(rows: Mapping[str, Result]) -> str:
    lines = []
    for score in ("nll", "looks", "auc", "balanced_accuracy", "bleu1", "bleu4", "rouge_l", "cider"):
        values = _values(rows, score)
        made = [values and rank_correlation(values, [PAPER[row][i] for row in rows]) for i in range(len(METRICS))]
        lines.append([TITLES[score], *("–" if value is None else f"{value:+.2f}" for value in made)])
    names, ends = list(rows), []
    for i, metric in enumerate(METRICS):
        theirs, ours, named = [PAPER[row][i] for row in rows], _values(rows, metric), _values(rows, NAMED)
        ends.append(
            [TITLES[metric]]
            + [
                _named(names, values, pick) if values else "not computed"
                for pick in (max, min)
                for values in (theirs, ours, named)
            ]
        )
    by = TITLES[NAMED]
    return (
        "## What agrees and what does not\n\n"
        f"Rank correlation (Spearman) of our order of {len(rows)} rows with the paper's; of eleven rows, chance alone"
        " exceeds 0.62 in either direction once in twenty times:\n\n"
        + _table(["ours", *(f"paper {TITLES[m]}" for m in METRICS)], lines)
        + "\n\nWho comes first and last:\n\n"
        + _table(["", "first: paper", "ours", f"ours by {by}", "last: paper", "ours", f"ours by {by}"], ends)
    )


def _named(rows: Sequence[str], values: Sequence[float], pick: Callable[[Sequence[float]], float]) -> str:
    at = [row for row, value in zip(rows, values, strict=True) if value == pick(values)]
    return DESIGNS[at[0]] if len(at) == 1 else f"{len(at)} rows alike"


def _verdicts(first: Mapping[str, Result], results: Mapping[tuple[str, int], Result]) -> str:
    rows = [row for row in first if row in ROWS]
    told = [(a, b, d) for a, b in itertools.combinations(rows, 2) if _clear(d := difference(first[a], first[b]))]
    bleu4, pairs = METRICS.index("bleu4"), len(rows) * (len(rows) - 1) // 2
    agree = sum((d["value"] > 0) == (PAPER[a][bleu4] > PAPER[b][bleu4]) for a, b, d in told)
    lines = [
        f"Of {pairs} pairs of rows our films tell {len(told)} apart by {TITLES[NAMED]} (the interval of the paired difference leaves 0 out); "
        f"{agree} of these stand in the order of the paper's BLEU-4."
    ]
    if "projector" in first:
        gains = {row: difference(first[row], first["projector"]) for row in rows}
        better, worse = ([r for r in rows if _clear(gains[r]) and sign * gains[r]["value"] > 0] for sign in (1, -1))
        lines.append(
            f"Better than projector only: {_names(better)}. Worse: {_names(worse)}. The others are not told apart from it."
        )
    values = [first[row]["scores"][NAMED]["value"] for row in rows]
    spread = [
        max(v) - min(v)
        for row in rows
        if len(v := [r["scores"][NAMED]["value"] for (name, _), r in results.items() if name == row]) > 1
    ]
    if spread:
        rest = sorted(values)[1:]
        lines.append(
            f"The rows span {max(values) - min(values):.3f} nats a token, those behind the first {max(rest) - min(rest):.3f}; one row moves by up to "
            f"{max(spread):.3f} from seed to seed. What is smaller than that is no order."
        )
    return "\n".join(f"- {line}" for line in lines)


def _names(rows: Sequence[str]) -> str:
    return ", ".join(DESIGNS[row] for row in rows) or "none"


def _cell(score: Score | None, *, interval: bool = True) -> str:
    if not score or score["value"] is None:
        return "–"
    return f"{score['value']:.3f}" + (f" ({score['low']:.3f}–{score['high']:.3f})" if interval else "")


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--report", type=Path, metavar="FOLDER", help="print the page of a folder's results, and do nothing else"
    )
    for name in ("--recipe", "--films", "--reports", "--start", "--out"):
        parser.add_argument(name, type=Path)
    parser.add_argument(
        "--rows", nargs="+", default=[*COMPARED], metavar="ROW", help=f"of {', '.join(COMPARED)}; default: all"
    )
    parser.add_argument("--seeds", type=int, default=3, help=f"of the best {BEST} of these rows; 1 runs every row once")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--language-model", default=None)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    try:
        if args.report:
            print(page(read_results(args.report)))
            return 0
        if missing := [n for n in ("recipe", "films", "reports", "start", "out") if getattr(args, n) is None]:
            parser.error(f"--{missing[0]} is needed")
        run_all(args)
    except (EmrrgError, OSError, tomllib.TOMLDecodeError) as error:
        print(f"emrrg: {error}", file=sys.stderr)
        return 2
    return 0


def run_all(args: argparse.Namespace) -> None:
    """Every row that is asked for, then the best of them with more seeds."""
    if unknown := [row for row in args.rows if row not in COMPARED]:
        raise ConfigError(f"The ablation has no row called {unknown[0]!r}; choose from {', '.join(COMPARED)}.")
    text = args.recipe.read_text()
    recipe = tomllib.loads(text)
    run, trial = trial_of(recipe)
    with_seed(text, run.seed)
    files = {"films": [args.films], "reports": [args.reports], "start": sorted(args.start.glob("*.safetensors"))}
    language = args.language_model or recipe["model"]["language"]
    settle(
        args.out,
        {"recipe": recipe, "language_model": language} | {name: digest(paths) for name, paths in files.items()},
    )
    torch.set_num_threads(args.threads)
    studies = read_studies(args.films)
    asked = sample(studies, Matcher(read_reports(args.reports, "train")), run, trial)
    cache = FilmCache(studies, args.cache, ModelConfig.from_dict(recipe["model"]).vision.image_size)
    names = ("films", "reports", "start", "cache", "threads")
    options = {name: getattr(args, name) for name in names} | {"language-model": args.language_model}

    def score(model: Emrrg) -> tuple[dict[str, Score], np.ndarray]:
        return judge(model, asked, cache, trial)

    for row in args.rows:
        run_row(row, run.seed, text, options, args.out, score)
    for more in range(1, args.seeds):
        for row in best(read_results(args.out), args.rows, run.seed):
            run_row(row, run.seed + more, text, options, args.out, score)


if __name__ == "__main__":
    sys.exit(main())
