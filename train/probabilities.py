"""Scores what is read of each finding, and what drafts deny, against the labels.

n films · f findings, in the order of finding_tokens.NAMES
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emrrg_core.data.studies import SIGHTS, Study
from emrrg_core.model.emrrg import Emrrg
from emrrg_core.model.finding_tokens import ABNORMAL, NAMES, Finding
from emrrg_core.text.labeler import LABELS, Status, is_abnormal, labels
from emrrg_core.text.metrics import Score, bootstrap
from train.measures import area_under_curve, balanced_accuracy
from train.targets import Truth

BINS = 10  # of a probability, of equal width
# an opacity may be called by any of its names
CALLED = {name: set(SIGHTS) if name == "opacity" else {label} for name, label in NAMES.items()}


def known(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def ratio(part: np.ndarray, whole: np.ndarray) -> Score:
    """Sum of `part` (n,) over that of `whole` (n,), both counts; films whose whole is 0 do not count."""
    rows = np.stack([part, whole], 1)[whole > 0]
    return bootstrap(rows, lambda some: some[:, 0].sum() / some[:, 1].sum())


def area(truth: np.ndarray, score: np.ndarray) -> Score:
    """Area under the curve, of films whose truth (n,) 0 or 1 and score (n,) are both known; value None where these are of one kind."""
    rows = np.stack([truth, score], 1)
    rows = rows[np.isfinite(rows).all(1)]
    return bootstrap(rows, lambda some: area_under_curve(some[:, 0] == 1, some[:, 1]))


def accuracy(truth: np.ndarray, called: np.ndarray) -> Score:
    """Balanced accuracy, of films whose truth (n,) 0 or 1 is known; called (n,) bool."""
    rows = np.stack([truth, called.astype(float)], 1)[np.isfinite(truth)]
    return bootstrap(rows, lambda some: balanced_accuracy(*(some == 1).T))


@dataclass(frozen=True)
class Table:
    """Everything by film and finding, (n, f), NaN where it is not known or not assessed.

    truth: 1 or 0 by the finding's label; a film labelled pneumonia or consolidation shows an opacity too. probability: as read. said: 1 the draft
    states it, -1 it denies it, 0 it says nothing of it.
    """

    truth: np.ndarray
    probability: np.ndarray
    said: np.ndarray

    def select(self, rows: np.ndarray) -> "Table":
        return Table(self.truth[rows], self.probability[rows], self.said[rows])


def tabulate(studies: Sequence[Study], texts: Sequence[str], read: Sequence[Sequence[Finding]]) -> Table:
    """read: of every film; () of a model that reads nothing."""
    n, f = len(studies), len(NAMES)
    truth, probability = np.full((n, f), np.nan), np.full((n, f), np.nan)
    said = np.zeros((n, f))
    for i, (study, text) in enumerate(zip(studies, texts, strict=True)):
        status = labels(text)
        for k, (name, label) in enumerate(NAMES.items()):
            value = study.abnormal if name == ABNORMAL else study.labels.get(label)
            if name != ABNORMAL and any(study.labels.get(other) == 1 for other in CALLED[name]):
                value = 1
            truth[i, k] = np.nan if value is None else float(value)
            if name == ABNORMAL:
                said[i, k] = 1 if is_abnormal(text) else -1
            elif any(status[other] in (Status.POSITIVE, Status.UNCERTAIN) for other in CALLED[name]):
                said[i, k] = 1
            elif status[label] is Status.NEGATIVE:
                said[i, k] = -1
        for finding in read[i] if read else ():
            probability[i, list(NAMES).index(finding.name)] = finding.probability
    return Table(truth, probability, said)


# ------------------------------------------------------------------------------------------------------- calibration


def calibration_error(probability: np.ndarray, truth: np.ndarray) -> float:
    """Expected calibration error: over BINS bins of equal width, |mean probability - frequency|, weighted by their films. NaN of none."""
    bins = reliability(probability, truth)
    n = sum(row["n"] for row in bins)
    if not n:
        return float("nan")
    return sum(row["n"] * abs(row["mean_probability"] - row["frequency"]) for row in bins if row["n"]) / n


def reliability(probability: np.ndarray, truth: np.ndarray) -> list[dict[str, Any]]:
    """Every bin: low, high, n, and of its films the mean probability and how many have it (None of none). Arrays of any shape, NaN: not known."""
    there = np.isfinite(probability) & np.isfinite(truth)
    p, y = probability[there], truth[there]
    at = np.minimum((p * BINS).astype(int), BINS - 1)
    return [
        {
            "low": k / BINS,
            "high": (k + 1) / BINS,
            "n": int((at == k).sum()),
            "mean_probability": float(p[at == k].mean()) if (at == k).any() else None,
            "frequency": float(y[at == k].mean()) if (at == k).any() else None,
        }
        for k in range(BINS)
    ]


def calibration_score(probability: np.ndarray, truth: np.ndarray) -> Score:
    """`calibration_error` of (n, f), its interval over films, and how many `pairs` of film and finding there are."""
    there = np.isfinite(probability) & np.isfinite(truth)
    rows = np.stack([probability, truth], -1)[there.any(1)]
    score = bootstrap(rows, lambda some: calibration_error(some[..., 0], some[..., 1]))
    return score | {"pairs": int(there.sum())}


# ---------------------------------------------------------------------------------------------------------- findings


def pooled(table: Table) -> dict[str, Score]:
    """Over all findings: calibration_error, and of the findings that films show the share that their drafts deny (denied_wrongly)."""
    each = slice(1, None)  # not the film as a whole
    there = table.truth[:, each] == 1
    wrong = there & (table.said[:, each] < 0)
    return {
        "calibration_error": calibration_score(table.probability, table.truth),
        "denied_wrongly": ratio(wrong.sum(1), there.sum(1)),
    }


def findings_table(model: Emrrg, table: Table) -> dict[str, dict[str, Any]]:
    """One row a finding: assessed, its thresholds, and how well it is read, stated and denied."""
    rows: dict[str, dict[str, Any]] = {}
    assessing = bool(model.config.queries.depth)
    for k, (name, label) in enumerate(NAMES.items()):
        p, truth, said = (column[:, k] for column in (table.probability, table.truth, table.said))
        assessed = assessing and model.calibration.assessed(name)
        limits = model.calibration.thresholds[LABELS.index(label)].tolist() if assessed else [None] * 3
        has, lacks = truth == 1, truth == 0
        denied = said < 0
        rows[name] = {
            "label": label,
            "assessed": assessed,
            **dict(zip(("threshold", "threshold_alone", "denied_below"), limits, strict=True)),
            "positive": int(has.sum()),
            "area": area(truth, p),
            "calibration_error": calibration_score(p[:, None], truth[:, None]),
            "negative_predictive_value": bootstrap(lacks[denied & (has | lacks)].astype(float)),
            "denied_wrongly": bootstrap(denied[has].astype(float)),
            "stated_of_positive": bootstrap((said[has] > 0).astype(float)),
            "stated_of_negative": bootstrap((said[lacks] > 0).astype(float)),
        }
    return rows


def areas(studies: Sequence[Study], table: Table) -> dict[str, dict[str, Score]]:
    """Of every assessed finding, by the sources that have films with it and films without it."""
    result: dict[str, dict[str, Score]] = {}
    source = np.array([s.source for s in studies])
    for k, name in enumerate(NAMES):
        for one in sorted(set(source)):
            mine = source == one
            score = area(table.truth[mine, k], table.probability[mine, k])
            if score["value"] is not None:
                result.setdefault(name, {})[one] = score
    return result


def effusions(studies: Sequence[Study], table: Table) -> dict[str, dict[str, Score]]:
    """By source that has both: of films with an effusion and of normal films, how many drafts state one; and the area, of films known either way."""
    k = list(NAMES).index("effusion")
    source = np.array([s.source for s in studies])
    normal = np.array([s.abnormal is False for s in studies])
    has, said = table.truth[:, k] == 1, (table.said[:, k] > 0).astype(float)
    return {
        one: {
            "stated_of_effusion": bootstrap(said[mine & has]),
            "stated_of_normal": bootstrap(said[mine & normal]),
            "area": area(table.truth[mine, k], table.probability[mine, k]),
        }
        for one in sorted(set(source))
        for mine in [source == one]
        if (mine & has).any() and (mine & normal).any()
    }


def against_radiologists(
    studies: Sequence[Study], truths: Mapping[str, Truth], table: Table
) -> dict[str, dict[str, Score]]:
    """Films that RSNA's radiologists read, all and by view: normal or not, and opacity or not, of drafts (balanced accuracy) and of what was read
    (area). The same against the labels that came with these films: `…_given`."""
    rsna = np.array([truths[s.id].rsna if s.id in truths else None for s in studies], object)
    view = np.array([s.view for s in studies], object)
    result: dict[str, dict[str, Score]] = {}
    for name, rows in {"all": rsna != None, **{v: (rsna != None) & (view == v) for v in ("AP", "PA")}}.items():  # noqa: E711
        if not rows.any():
            continue
        result[name] = {}
        for kind, finding, said in (("normal", ABNORMAL, rsna != "Normal"), ("opacity", "opacity", rsna == "Lung Opacity")):  # fmt: skip
            k = list(NAMES).index(finding)
            for suffix, truth in (("", said.astype(float)), ("_given", table.truth[:, k])):
                result[name] |= {
                    f"{kind}_balanced_accuracy{suffix}": accuracy(truth[rows], table.said[rows, k] > 0),
                    f"{kind}_area{suffix}": area(truth[rows], table.probability[rows, k]),
                }
    return result
