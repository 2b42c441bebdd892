"""Scores of drafts against references: words (BLEU, ROUGE-L, METEOR, CIDEr), labels, and what RadEval adds.

    text_scores      references and drafts → bleu1…bleu4, rouge_l, meteor, cider
    label_counts     known labels and stated ones → right and wrong cells of every study
    label_scores     those counts → precision, recall and F1, micro and macro, of 14 and of 5 labels
    rate             references and drafts → CheXbert, RadGraph F1 and RaTEScore, where RadEval and its weights are here
    bootstrap        any statistic of studies → its value and 95 % interval

Every score is {"value", "low", "high", "n"}: n studies, the interval by resampling studies. What is not defined or could not
be computed has the value None, in the second case with the "reason"; it is never 0.

BLEU, ROUGE-L and CIDEr are our own few lines, because an interval needs the parts of every study; they equal pycocoevalcap's
to 1e-6 (tests/test_metrics.py, against golden numbers and against the package where it is installed). METEOR is the Java
program that comes with pycocoevalcap (`pip install -r requirements-eval.txt`).
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emrrg_core.text.labeler import LABELS, Status

Score = dict[str, Any]

TOKENISATION = (
    "words are what white space separates, line ends read as spaces, nothing lower-cased and no PTB tokenizer (as R2GenGPT and EMRRG score: "
    "clean the texts before); METEOR normalises on its own (-norm)"
)
FIVE_LABELS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")  # CheXpert's competition

# ---------------------------------------------------------------------------------------------------------- intervals


def bootstrap(
    values: np.ndarray, statistic: Callable[[np.ndarray], float] = np.mean, seed: int = 0, draws: int = 500
) -> Score:
    """`statistic(values)` and its percentile bootstrap 95 % interval over the rows of `values`, (n, …): one row a study.

    A statistic says NaN where it is not defined: the value is then None, and such a draw is left out of the interval.
    """
    return _bootstrap(values, lambda rows: [statistic(rows)], 1, seed, draws)[0]


def _bootstrap(
    values: np.ndarray, statistics: Callable[[np.ndarray], Sequence[float]], count: int, seed: int, draws: int
) -> list[Score]:
    """As `bootstrap`, for `count` statistics that come from the same draws."""
    n = len(values)
    if not n:
        return [_not_computed("there is no study", 0) for _ in range(count)]
    rng = np.random.default_rng(seed)
    drawn = np.array([statistics(values[rng.integers(n, size=n)]) for _ in range(draws)], float).reshape(draws, count)
    scores = []
    for value, column in zip(statistics(values), drawn.T, strict=True):
        defined = column[np.isfinite(column)]
        low, high = np.percentile(defined, [2.5, 97.5]) if len(defined) and math.isfinite(value) else (None, None)
        scores.append(
            {
                "value": float(value) if math.isfinite(value) else None,
                "low": None if low is None else float(low),
                "high": None if high is None else float(high),
                "n": n,
            }
        )
    return scores


def _not_computed(reason: str, n: int) -> Score:
    return {"value": None, "low": None, "high": None, "n": n, "reason": reason}


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan


# -------------------------------------------------------------------------------------------------------------- words


def text_scores(
    references: Sequence[str], drafts: Sequence[str], *, seed: int = 0, draws: int = 500, meteor: bool = True
) -> dict[str, Any]:
    """BLEU-1…4, ROUGE-L, METEOR and CIDEr of drafts against one reference each, and the "tokenisation" they rest on.

    BLEU (Papineni et al. 2002) and METEOR (Denkowski and Lavie 2014) are scores of the corpus, ROUGE-L (Lin 2004, beta 1.2)
    and CIDEr (Vedantam et al. 2015, the D variant without stemming, ×10) means over studies; CIDEr weighs words by these references, so that it
    depends on who else is scored.

    meteor: False leaves METEOR out, whose Java program takes many seconds. Raises ValueError for lists of different length and for an empty
    reference.
    """
    if len(references) != len(drafts):
        raise ValueError(f"{len(references)} references and {len(drafts)} drafts")
    truth, said = ([" ".join(text.splitlines()) for text in texts] for texts in (references, drafts))
    if empty := [i for i, text in enumerate(truth) if not text.strip()]:
        raise ValueError(f"{len(empty)} references are empty, the first is number {empty[0]}")
    n = len(truth)
    counts = np.array([_bleu_counts(*pair) for pair in zip(truth, said, strict=True)], float).reshape(n, 10)
    scores = dict(
        zip(("bleu1", "bleu2", "bleu3", "bleu4"), _bootstrap(counts, bleu_of_counts, 4, seed, draws), strict=True)
    )
    scores["rouge_l"] = bootstrap(
        np.array([_rouge_l(*pair) for pair in zip(truth, said, strict=True)]), np.mean, seed, draws
    )
    if meteor:
        scores["meteor"] = _meteor_score(truth, said, seed, draws)
    scores["cider"] = (
        bootstrap(_cider(truth, said), np.mean, seed, draws)
        if n != 1
        else _not_computed("CIDEr weighs words by how many references hold them: one study is not enough", 1)
    )
    return {**scores, "tokenisation": TOKENISATION}


def _grams(text: str) -> Counter[tuple[str, ...]]:
    words = text.split()
    return Counter(tuple(words[i : i + k]) for k in range(1, 5) for i in range(len(words) - k + 1))


def _bleu_counts(reference: str, draft: str) -> list[int]:
    """Words of the draft and of the reference, n-grams of the draft for n = 1…4, and those of them that are in the reference."""
    length, grams, wanted = len(draft.split()), _grams(draft), _grams(reference)
    right = [0] * 4
    for gram, count in grams.items():
        right[len(gram) - 1] += min(count, wanted[gram])
    return [length, len(reference.split()), *(max(0, length - k) for k in range(4)), *right]


def bleu_of_counts(counts: np.ndarray) -> list[float]:
    """BLEU-1…4 of rows of counts (n, 10), pooled as a corpus; the two small numbers are those of pycocoevalcap."""
    tiny, small = 1e-15, 1e-9
    total = counts.sum(0)
    length, wanted, guessed, right = total[0], total[1], total[2:6], total[6:10]
    precision = np.cumprod((right + tiny) / (guessed + small)) ** (1 / np.arange(1, 5))
    ratio = (length + tiny) / (wanted + small)
    return [float(p) for p in precision * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)]


def _rouge_l(reference: str, draft: str, beta: float = 1.2) -> float:
    wanted, said = (
        reference.split(" "),
        draft.split(" "),
    )  # single spaces, as the package: a double one holds an empty word
    row = [0] * (len(said) + 1)  # longest common subsequence so far, by words of the draft
    for word in wanted:
        before = 0
        for i, other in enumerate(said, 1):
            before, row[i] = row[i], before + 1 if word == other else max(row[i], row[i - 1])
    precision, recall = row[-1] / len(said), row[-1] / len(wanted)
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision) if row[-1] else 0.0


def _cider(references: Sequence[str], drafts: Sequence[str], sigma: float = 6.0) -> np.ndarray:
    """CIDEr of every draft, (n,)."""
    truth, said = [_grams(text) for text in references], [_grams(text) for text in drafts]
    held = Counter(gram for grams in truth for gram in grams)
    everything = math.log(len(truth)) if truth else 0.0

    def weighed(grams: Counter[tuple[str, ...]]) -> tuple[list[dict[tuple[str, ...], float]], list[float], int]:
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(4)]
        for gram, count in grams.items():
            vectors[len(gram) - 1][gram] = count * (everything - math.log(max(1, held[gram])))
        norms = [math.sqrt(sum(weight**2 for weight in vector.values())) for vector in vectors]
        return vectors, norms, sum(count for gram, count in grams.items() if len(gram) == 2)

    scores = []
    for wanted, own in zip(truth, said, strict=True):
        vectors, norms, length = weighed(own)
        others, other_norms, other_length = weighed(wanted)
        score = 0.0
        for vector, other, norm, other_norm in zip(vectors, others, norms, other_norms, strict=True):
            if norm and other_norm:
                common = sum(min(w, other[g]) * other[g] for g, w in vector.items() if g in other)
                score += common / (norm * other_norm)
        # the length is that of the bigrams, as in the package
        scores.append(10 * score / 4 * math.exp(-((length - other_length) ** 2) / (2 * sigma**2)))
    return np.array(scores)


def _meteor_score(references: Sequence[str], drafts: Sequence[str], seed: int, draws: int) -> Score:
    if shutil.which("java") is None:
        return _not_computed("METEOR needs Java, which is not on the path", len(drafts))
    if importlib.util.find_spec("pycocoevalcap") is None:
        return _not_computed("METEOR needs pycocoevalcap: pip install -r requirements-eval.txt", len(drafts))
    try:
        statistics = _meteor_statistics(references, drafts)
    except (OSError, ValueError) as error:
        return _not_computed(f"METEOR's Java program failed: {error}", len(drafts))
    return bootstrap(statistics, meteor_of_statistics, seed, draws)


def _meteor_statistics(references: Sequence[str], drafts: Sequence[str]) -> np.ndarray:
    """What METEOR 1.5 counts in every study, (n, 23), from one run of pycocoevalcap's jar under its own settings."""
    from pycocoevalcap.meteor import meteor

    folder = os.path.dirname(os.path.abspath(meteor.__file__))
    command = ["java", "-Xmx2G", "-jar", meteor.METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    lines = [
        f"SCORE ||| {reference.replace('|||', '')} ||| {draft.replace('|||', '').replace('  ', ' ')}\n"
        for reference, draft in zip(references, drafts, strict=True)
    ]
    done = subprocess.run(command, cwd=folder, input="".join(lines).encode(), capture_output=True, check=False)
    rows = [[float(number) for number in line.split()] for line in done.stdout.decode().splitlines()]
    if len(rows) != len(lines) or any(len(row) != 23 for row in rows):
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(said[-1] if said else f"{len(rows)} answers to {len(lines)} studies")
    return np.array(rows, float).reshape(len(rows), 23)


def meteor_of_statistics(statistics: np.ndarray) -> float:
    """METEOR of rows of statistics (n, 23), pooled as a corpus: Denkowski and Lavie 2014, the English parameters."""
    alpha, beta, gamma, delta = 0.85, 0.2, 0.6, 0.75
    length, wanted, function, function_wanted = statistics[:, :4].sum(0)
    chunks, matched, matched_wanted = statistics[:, 20:].T
    # a study that agrees in one whole piece has nothing out of order: the jar counts no piece for it
    whole = (chunks == 1) & (matched == statistics[:, 0]) & (matched_wanted == statistics[:, 1])
    disorder = _ratio(2 * chunks[~whole].sum(), matched.sum() + matched_wanted.sum())
    # exact, stem, synonym, paraphrase; of each the content words of draft and reference, then their function words
    hits = np.array([1.0, 0.6, 0.8, 0.6]) @ statistics[:, 4:20].sum(0).reshape(4, 4)
    precision = _ratio(delta * hits[0] + (1 - delta) * hits[2], delta * (length - function) + (1 - delta) * function)
    recall = _ratio(
        delta * hits[1] + (1 - delta) * hits[3], delta * (wanted - function_wanted) + (1 - delta) * function_wanted
    )
    if not precision > 0 or not recall > 0:
        return 0.0
    mean = 1 / ((1 - alpha) / precision + alpha / recall)
    return float(mean * (1 - gamma * disorder**beta))


# ------------------------------------------------------------------------------------------------------------- labels


def label_counts(
    truth: Sequence[Mapping[str, int]],
    stated: Sequence[Mapping[str, Status | None]],
    names: Sequence[str] = LABELS,
    *,
    uncertain: str = "positive",
) -> np.ndarray:
    """Right and wrong of every study and label: true and false positives, false and true negatives, (n, labels, 4).

    truth      name → 1 or 0; a name that is missing is unknown and counts nowhere (all four 0)
    stated     `findings.labels` of the drafts; what is not mentioned is not stated
    uncertain  "positive" or "negative": what an uncertain statement counts as

    Any rows of it can be pooled, so that `bootstrap` takes it as it is. Raises ValueError for other policies and lengths.
    """
    if uncertain not in ("positive", "negative"):
        raise ValueError(f"uncertain counts as positive or as negative, not as {uncertain!r}")
    if len(truth) != len(stated):
        raise ValueError(f"{len(truth)} studies and {len(stated)} drafts")
    positive = {Status.POSITIVE, Status.UNCERTAIN} if uncertain == "positive" else {Status.POSITIVE}
    counts = np.zeros((len(truth), len(names), 4), int)
    for row, (known, said) in enumerate(zip(truth, stated, strict=True)):
        for column, name in enumerate(names):
            if known.get(name) is not None:
                is_there, is_said = bool(known[name]), said[name] in positive
                counts[row, column, (0 if is_said else 2) if is_there else (1 if is_said else 3)] = 1
    return counts


def micro_scores(counts: np.ndarray) -> list[float]:
    """Precision, recall and F1 over all cells of `label_counts`; NaN where there is nothing to divide by."""
    hit, extra, missed = counts.sum((0, 1))[:3]
    return [_ratio(hit, hit + extra), _ratio(hit, hit + missed), _ratio(2 * hit, 2 * hit + extra + missed)]


def macro_scores(counts: np.ndarray) -> list[float]:
    """Precision, recall and F1, the mean over labels that have a known positive among these studies; NaN where none has.

    Such a label that is never stated has no precision; it counts as 0 here, so that silence does not pay.
    """
    hit, extra, missed = counts.sum(0)[:, :3].T
    there = hit + missed > 0
    if not there.any():
        return [math.nan] * 3
    hit, extra, missed = hit[there], extra[there], missed[there]
    precision = hit / np.maximum(hit + extra, 1)
    return [float(s.mean()) for s in (precision, hit / (hit + missed), 2 * hit / (2 * hit + extra + missed))]


def label_scores(
    truth: Sequence[Mapping[str, int]],
    stated: Sequence[Mapping[str, Status | None]],
    names: Sequence[str] = LABELS,
    *,
    uncertain: str = "positive",
    seed: int = 0,
    draws: int = 500,
) -> dict[str, Any]:
    """What drafts state against what is known, over `names` and over CheXpert's five; arguments as in `label_counts`.

    {"uncertain": the policy, "all" and "five": {"names", "macro_over": the labels with a known positive,
    "micro_precision", "micro_recall", "micro_f1", "macro_precision", "macro_recall", "macro_f1"}, "labels": {name:
    {"known", "positives", "stated", "precision", "recall", "f1"}}}. A group without any known label has no values.
    """
    counts = label_counts(truth, stated, names, uncertain=uncertain)
    measures = [f"{average}_{kind}" for average in ("micro", "macro") for kind in ("precision", "recall", "f1")]
    result: dict[str, Any] = {"uncertain": uncertain}
    for group, members in (("all", list(names)), ("five", [name for name in names if name in FIVE_LABELS])):
        own = counts[:, [list(names).index(name) for name in members]]
        own_known = own[own.any((1, 2))]  # n counts the studies of which something is known
        scored = _bootstrap(own_known, lambda rows: [*micro_scores(rows), *macro_scores(rows)], 6, seed, draws)
        positives = own[:, :, [0, 2]].sum((0, 2))
        over = [name for name, there in zip(members, positives, strict=True) if there]
        result[group] = {"names": members, "macro_over": over, **dict(zip(measures, scored, strict=True))}
    result["labels"] = {}
    for column, name in enumerate(names):
        hit, extra, missed, _ = (int(count) for count in counts[:, column].sum(0))
        values = [None if math.isnan(value) else value for value in micro_scores(counts[:, [column]])]
        result["labels"][name] = {
            "known": int(counts[:, column].sum()),
            "positives": hit + missed,
            "stated": hit + extra,
            **dict(zip(("precision", "recall", "f1"), values, strict=True)),
        }
    return result


# ------------------------------------------------------------------------------------------------------------ RadEval


@dataclass(frozen=True)
class Rated:
    """What RadEval said of pairs of texts, study by study, so that any of them can be scored.

    values   score → its parts, (n,) or counts as of `label_counts` (n, labels, 4); or the reason why there are none:
             "chexbert_f1", "chexbert_f1_five"   micro-F1 of CheXbert's 14 and 5 labels, uncertain as stated
             "radgraph_f1"                       RadGraph-XL F1, partial, the mean over studies
             "ratescore"                         RaTEScore, the mean over studies
    version  RadEval's; None where it is not installed
    """

    values: Mapping[str, np.ndarray | str]
    version: str | None

    def scores(self, rows: np.ndarray, *, seed: int = 0, draws: int = 500) -> dict[str, Score]:
        """Every score over the studies at `rows` (m,); None with the reason where it was not computed."""
        result = {}
        for name, values in self.values.items():
            if not len(rows):
                result[name] = bootstrap(np.zeros(0))
            elif isinstance(values, str):
                result[name] = _not_computed(values, len(rows))
            else:
                statistic = np.mean if values.ndim == 1 else lambda counts: micro_scores(counts)[2]
                result[name] = bootstrap(values[rows], statistic, seed, draws)
        return result


def rate(references: Sequence[str], drafts: Sequence[str], *, python: str = sys.executable) -> Rated:
    """CheXbert, RadGraph and RaTEScore of drafts against one reference each, through RadEval 2.

    `python` is the interpreter that has `radeval`, whose torchvision need not sit beside our torch; `emrrg_core/text/radeval_worker.py`
    runs there, in one
    process and offline: weights that are not on disk are not fetched, and the score has that as its reason. Texts go in as they are. Raises
    ValueError for lists of different length.
    """
    if len(references) != len(drafts):
        raise ValueError(f"{len(references)} references and {len(drafts)} drafts")
    answer = _ask_raters(python, references, drafts) if references else "there is no study"
    if isinstance(answer, str):
        return Rated(dict.fromkeys(("chexbert_f1", "chexbert_f1_five", "radgraph_f1", "ratescore"), answer), None)
    n, read = len(references), answer["chexbert"]
    values: dict[str, np.ndarray | str] = {}
    for name, labels in (("chexbert_f1", None), ("chexbert_f1_five", FIVE_LABELS)):
        if "reason" in read:
            values[name] = read["reason"]
            continue
        truth, stated = (np.array(read[side], bool) for side in ("references", "drafts"))
        cells = np.stack([truth & stated, ~truth & stated, truth & ~stated, ~truth & ~stated], -1).astype(int)
        values[name] = cells[:, [i for i, label in enumerate(read["names"]) if labels is None or label in labels]]
    for name, rater in (("radgraph_f1", "radgraph"), ("ratescore", "ratescore")):
        values[name] = answer[rater]["reason"] if isinstance(answer[rater], dict) else np.array(answer[rater], float)
    for name, found in values.items():
        if not isinstance(found, str) and len(found) != n:
            values[name] = f"RadEval failed: {len(found)} scores for {n} studies"
    return Rated(values, answer["version"])


def _ask_raters(python: str, references: Sequence[str], drafts: Sequence[str]) -> dict[str, Any] | str:
    """The answer of emrrg_core/text/radeval_worker.py, or why there is none."""
    asked = json.dumps({"references": list(references), "drafts": list(drafts)})
    # -P: beside the script lie modules of ours, which are not meant
    command = [python, "-P", str(Path(__file__).with_name("radeval_worker.py"))]
    try:
        done = subprocess.run(
            command, input=asked, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
    except OSError as error:
        return f"the interpreter for RadEval cannot be run: {error.strerror or type(error).__name__}"
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return f"the interpreter for RadEval ended with {done.returncode}: {said}"
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
