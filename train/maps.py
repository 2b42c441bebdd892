"""Tests the map of a sentence: do maps of different findings differ, do they lie on the finding, and does hiding the place change the sentence?

n films · g patches along a side
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

import cv2
import numpy as np

from emrrg_core.data.studies import SIGHTS, Study, lung_mask, normalise
from emrrg_core.errors import DataError
from emrrg_core.explain.faithfulness import highlighted, masked, places
from emrrg_core.explain.heat_map import patch_weights
from emrrg_core.films.film import read_film
from emrrg_core.films.synthetic_findings import LABEL_OF, Drawn, Sign, draw
from emrrg_core.model.disease_queries import SIDES, ZONES
from emrrg_core.model.emrrg import FilmTokens
from emrrg_core.model.finding_tokens import NAMES, Finding, Presence
from emrrg_core.model.writing import Writing
from emrrg_core.report.draft import Draft, Sentence, sections
from emrrg_core.text.labeler import LABELS, NO_FINDING, Mention, Status, is_abnormal, read_findings
from emrrg_core.text.metrics import Score, bootstrap
from train.probabilities import CALLED, known
from train.targets import OPACITY_BOXES, Truth

if TYPE_CHECKING:
    from train.evaluate import Judge

ELSEWHERE = 8  # places of the same shape, for the test of a map
_LUNGS = re.compile(
    r"\b(?:lungs?|pulmonary|airspace|opacit\w+|pneumonia|consolidation|nodules?|atelectasis|effusions?|pneumothora\w+)\b",
    re.I,
)
_ZONE_WORDS = {
    "upper": re.compile(r"\b(?:upper|apex|apices|apical)\b", re.I),
    "mid": re.compile(r"\bmid(?:dle)?\b", re.I),
    "lower": re.compile(r"\b(?:lower|bases?|basal|basilar)\b", re.I),
}
# findings that have a place, and what a box of one is called
BOXED = {
    "opacity": set(OPACITY_BOXES),
    "nodule": {"Lung Lesion", "Nodule", "Mass"},
    "effusion": {"Pleural Effusion", "Effusion"},
    "atelectasis": {"Atelectasis"},
}
Box = tuple[float, float, float, float]  # x, y, width, height, as shares of the film


@dataclass(frozen=True)
class Read:
    """Films as the language model sees them, and what was read of them: maps (n, 14, 2, g²) as `finding_maps`; regions (n, 14, 2, 3), probabilities.

    Both are empty of a model that reads nothing.
    """

    film: FilmTokens
    maps: np.ndarray
    regions: np.ndarray


def draft_of(writing: Writing, grid: int, read: tuple[Finding, ...] | None = None) -> Draft:
    """A finished writing as a draft, with what its maps need and nothing of where it came from."""
    findings, impression, sentences = sections(writing)
    return Draft(
        findings=findings,
        impression=impression,
        sentences=sentences,
        tokens=writing.tokens,
        layers=(),
        grid=grid,
        films=(),
        warnings=(),
        timings={},
        model={},
        decoding={},
        finished=writing.finished,
        closed=writing.closed,
        read=read,
    )


def drafts_of(writings: Sequence[Writing], film: FilmTokens, grid: int) -> list[Draft]:
    """film: that they were written of."""
    read = film.findings or [None] * len(writings)
    return [draft_of(writing, grid, mine) for writing, mine in zip(writings, read, strict=True)]


def map_of(draft: Draft, chosen: Iterable[Sentence]) -> np.ndarray | None:
    """The map of some sentences on the patches (g²,), sum 1; None when there is none."""
    weights = sum((patch_weights(draft, s) for s in chosen), np.zeros(draft.grid**2))
    return weights / weights.sum() if weights.sum() > 0 else None


def telling(draft: Draft, labels: Iterable[str]) -> list[tuple[Sentence, list[Mention]]]:
    """The sentences that state one of these labels, certainly or not, and where they do."""
    names = set(labels)
    found = [(s, [m for m in read_findings(s.text) if m.label in names and m.status is not Status.NEGATIVE]) for s in draft.sentences]  # fmt: skip
    return [(s, mentions) for s, mentions in found if mentions]


# --------------------------------------------------------------------------------------------------- other findings


def correlations(draft: Draft) -> list[tuple[float, str]]:
    """Of every two sentences of the Findings about different findings: how their maps correlate, and whether both are "stated", both "denied" or
    "mixed"."""
    spoken = []
    for sentence in draft.sentences:
        if sentence.section == "findings" and sentence.findings:
            weights = patch_weights(draft, sentence)
            if weights.std() > 0:
                spoken.append((sentence, weights, "stated" if is_abnormal(sentence.text) else "denied"))
    found = []
    for (a, mine, kind), (b, other, other_kind) in combinations(spoken, 2):
        if not set(a.findings) & set(b.findings):
            found.append((float(np.corrcoef(mine, other)[0, 1]), kind if kind == other_kind else "mixed"))
    return found


# ------------------------------------------------------------------------------------------------------------ places


def patch_cover(mask: np.ndarray, grid: int) -> np.ndarray:
    """The share of every patch that a mask (height, width) covers, (g²,), by the same geometry as the maps."""
    side = grid * 16
    return cv2.resize(
        cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA),
        (grid, grid),
        interpolation=cv2.INTER_AREA,
    ).ravel()


def boxes_of(study: Study, truth: Truth) -> dict[str, tuple[Box, ...]]:
    """The boxes of every finding that has any: of opacities those of radiologists too."""
    found = {"opacity": truth.boxes} if truth.boxes else {}
    others = {name: [box for label, box in study.boxes if label in BOXED[name]] for name in BOXED if name != "opacity"}
    if any(others.values()):
        height, width = read_film(study.files[0]).pixels.shape
        for name, mine in others.items():
            if mine:
                found[name] = tuple((x / width, y / height, w / width, h / height) for x, y, w, h in mine)
    return found


def peaks_inside(weights: np.ndarray, boxes: Sequence[Box]) -> bool:
    """Whether the middle of the highest patch of (g²,) lies in one of the boxes; of patches equally high, their mean."""
    grid = round(len(weights) ** 0.5)
    rows, columns = np.divmod(np.flatnonzero(weights >= weights.max() * (1 - 1e-6)), grid)
    y, x = (rows.mean() + 0.5) / grid, (columns.mean() + 0.5) / grid
    return any(left <= x <= left + w and top <= y <= top + h for left, top, w, h in boxes)


def covered(boxes: Sequence[Box]) -> float:
    """The share of the film's area that lies in boxes."""
    at = (np.arange(500) + 0.5) / 500
    inside = np.zeros((500, 500), bool)
    for x, y, w, h in boxes:
        inside |= ((at >= y) & (at <= y + h))[:, None] & ((at >= x) & (at <= x + w))
    return float(inside.mean())


def named_cells(draft: Draft) -> np.ndarray:
    """Where a draft places an opacity, (2, 3) bool by side, the right first, and zone, the upper first; a side without a zone is all of it."""
    cells = np.zeros((2, 3), bool)
    for sentence, mentions in telling(draft, SIGHTS):
        zones = np.array([bool(_ZONE_WORDS[zone].search(sentence.text)) for zone in ZONES])
        for side in {m.side for m in mentions if m.side}:
            sides = [0, 1] if side == "bilateral" else [SIDES.index(side)]
            cells[sides] |= zones if zones.any() else True
    return cells


_SCORES = ("map_correlation", "map_correlation_stated", "map_correlation_denied", "mask_share_over_chance", "pointing", "pointing_stated",
           "pointing_evidence", "pointing_chance")  # fmt: skip
_ZONES = ("zones", "zones_named", "zones_present")


def columns(
    studies: Sequence[Study], drafts: Sequence[Draft], read: Read, truths: Mapping[str, Truth]
) -> dict[str, np.ndarray]:
    """One number a film (n,), NaN where there is nothing to say; or a part and its whole (n, 2), for sums over films."""
    n = len(studies)
    opacity = LABELS.index(NAMES["opacity"])
    result = {name: np.full(n, np.nan) for name in _SCORES} | {name: np.zeros((n, 2)) for name in _ZONES}

    def note(name: str, i: int, value: float) -> None:
        result.setdefault(name, np.full(n, np.nan))[i] = value

    for i, (study, draft) in enumerate(zip(studies, drafts, strict=True)):
        pairs = correlations(draft)
        for suffix, kinds in (("", ("stated", "denied", "mixed")), ("_stated", ("stated",)), ("_denied", ("denied",))):
            if alike := [r for r, kind in pairs if kind in kinds]:
                note(f"map_correlation{suffix}", i, float(np.mean(alike)))
        if study.lung_mask and (mine := map_of(draft, [s for s in draft.sentences if _LUNGS.search(s.text)])) is not None:  # fmt: skip
            mask = cv2.imread(str(study.lung_mask), cv2.IMREAD_GRAYSCALE)
            if mask is None:
                raise DataError(f"study {study.id}: its lung mask cannot be read.")
            cover = patch_cover(np.greater(mask, 0), draft.grid)
            note("mask_share_over_chance", i, float(mine @ cover / cover.mean()))
        boxes = boxes_of(study, truths[study.id])
        each: dict[str, list[float]] = {}
        for name, places_of in boxes.items():
            stating = telling(draft, CALLED[name])
            weights = map_of(draft, [stating[0][0]]) if stating else None  # what a reader sees of it first
            hit = float(weights is not None and peaks_inside(weights, places_of))
            values = {"pointing": hit, "pointing_chance": covered(places_of)}
            note(f"named_{name}", i, float(bool(stating)))
            if stating:
                values["pointing_stated"] = hit
            if len(read.maps):
                made = read.maps[i, LABELS.index(NAMES[name]), 1]
                values["pointing_evidence"] = float(peaks_inside(made, places_of))
            for key, value in values.items():
                each.setdefault(key, []).append(value)
                note(f"{key}_{name}", i, value)
        for key, found in each.items():
            note(key, i, float(np.mean(found)))
        truth = truths[study.id]
        if truth.zones is not None and truth.agree is not None:
            there, agree, named = truth.zones > 0, truth.agree, named_cells(draft)
            result["zones_named"][i] = (named & there & agree).sum(), (named & agree).sum()
            result["zones_present"][i] = (there & agree).sum(), agree.sum()
            if len(read.regions):
                right = (read.regions[i, opacity] >= 0.5) == there
                result["zones"][i] = (right & agree).sum(), agree.sum()
    return result


# ------------------------------------------------------------------------------------------------------------ hiding


@dataclass(frozen=True, eq=False)
class Told:
    """A sentence to test: the film as the tower takes it (3, s, s), its draft, the sentence, its map (g²,), and the film's tokens (of one film)."""

    film: np.ndarray
    draft: Draft
    sentence: Sentence
    weights: np.ndarray
    own: FilmTokens


def deletion(judge: "Judge", told: Sequence[Told], rng: np.random.Generator) -> np.ndarray:
    """What each sentence loses when the top tenth of its map is hidden, beside what it loses when other places of the same shape are: (n, 4).

    How many nats more it loses than, on average, with ELSEWHERE other places hidden; how much more the log odds of its finding fall; whether its
    probability falls below the threshold; and in what share of the other places it does. NaN for a sentence of no finding that was read. What is
    hidden is filled from its surroundings, as for *Why this sentence?*, and only what the hybrid layers see is changed.
    """
    rows = []
    size = 12  # so many at once that batches are full, and so few that their films fit into memory
    for some in (told[i : i + size] for i in range(0, len(told), size)):
        films, drafts, counts = [], [], []
        for one in some:
            region = highlighted(one.weights)
            hidden = [region, *places(region, ELSEWHERE, rng)[0]]
            films += [masked(one.film, place) for place in hidden]
            drafts += [one.draft] * len(hidden)
            counts.append(len(hidden))
        own = FilmTokens.join([one.own.select([0] * count) for one, count in zip(some, counts, strict=True)])
        seen = judge.see(films).exchanged(own, prompt=True)
        scores = judge.score(seen, drafts)
        for one, end, count in zip(some, np.cumsum(counts), counts, strict=True):
            mine = range(end - count, end)
            top, *others = (float(scores[k][slice(*one.sentence.tokens)].sum()) for k in mine)
            row = [float(np.mean(others)) - top, np.nan, np.nan, np.nan]  # what the whole film gives cancels out
            spoken = [f for name in one.sentence.findings if (f := one.draft.finding(name)) is not None]
            present = [f for f in spoken if f.presence is Presence.PRESENT]
            if present and seen.findings:
                name, threshold = present[0].name, present[0].threshold
                p = np.array([next(f.probability for f in seen.findings[k] if f.name == name) for k in mine])
                falls, q = p < threshold, p.clip(1e-6, 1 - 1e-6)
                odds = np.log(q / (1 - q))
                row[1:] = odds[1:].mean() - odds[0], float(falls[0]), falls[1:].mean()
            rows.append(row)
    return np.array(rows, float).reshape(len(told), 4)


def to_test(films: Sequence[np.ndarray], drafts: Sequence[Draft], film: FilmTokens, rows: Sequence[int], count: int,
            rng: np.random.Generator) -> dict[int, Told]:  # fmt: skip
    """The first stated sentence of at most `count` drafts of `rows`, by the number of their film."""
    stating = {i: next((s for s in drafts[i].sentences if is_abnormal(s.text)), None) for i in rows}
    candidates = [i for i, sentence in stating.items() if sentence is not None]
    found = {}
    for i in [candidates[j] for j in rng.permutation(len(candidates))[:count]]:
        sentence = stating[i]
        if sentence is not None and (weights := map_of(drafts[i], [sentence])) is not None:
            found[i] = Told(films[i], drafts[i], sentence, weights, film.select([i]))
    return found


# ------------------------------------------------------------------------------------------------------------- drawn


def simulated(
    studies: Sequence[Study], films: Sequence[np.ndarray], size: int, seed: int
) -> list[tuple[Study, np.ndarray, Drawn]]:
    """Every normal film that has a lung mask, with each of the findings drawn on it: study, film (3, size, size), what was drawn."""
    made = []
    for number, study in enumerate(studies):
        if study.abnormal is not False or not study.lung_mask:
            continue
        film = _grey(films[number])
        for k, sign in enumerate(Sign):
            try:
                drawn_film, drawn = draw(film, lung_mask(study, size), sign, np.random.default_rng([seed, number, k]))
            except ValueError:
                continue
            labels = {LABEL_OF[sign]: 1, NO_FINDING: 0}
            made.append((replace(study, source="simulated", labels=labels), normalise(np.round(drawn_film)), drawn))
    return made


def _grey(film: np.ndarray) -> np.ndarray:
    """The inverse of `normalise`: (3, s, s) to (s, s) in [0, 255]."""
    white, black = normalise(np.full((1, 1), 255.0))[0, 0, 0], normalise(np.zeros((1, 1)))[0, 0, 0]
    return np.clip((film[0] - black) / (white - black) * 255, 0, 255)


def _called(sign: Sign) -> set[str]:
    return set(SIGHTS) if sign is Sign.OPACITY else {LABEL_OF[sign]}


def simulated_scores(
    judge: "Judge", made: Sequence[tuple[Study, np.ndarray, Drawn]], undrawn: Mapping[str, Draft], grid: int, seed: int
) -> dict[str, Score]:
    """found, side, pointing, and false_alarms, all and by sign. undrawn: the drafts of the same films before anything was drawn, by study id."""
    film = judge.see([one for _, one, _ in made])
    drafts = drafts_of(judge.write(film, seed, progress="simulated"), film, grid)
    values: dict[str, list[float]] = {name: [] for name in ("found", "side", "pointing")}
    signs = [drawn.sign for _, _, drawn in made]
    for draft, (_, _, drawn) in zip(drafts, made, strict=True):
        naming = telling(draft, _called(drawn.sign))
        named = [m.side for _, mentions in naming for m in mentions if m.side]
        weights = map_of(draft, [s for s, _ in naming])
        cover = patch_cover(drawn.mask, grid)  # a finding that is smaller than a patch lies where it covers most
        hit = weights is not None and cover[weights.argmax()] >= min(0.05, cover.max())
        values["found"].append(float(bool(naming)))
        values["side"].append(float(set(named) == {drawn.side.value}) if named and drawn.side else np.nan)
        values["pointing"].append(np.nan if weights is None else float(hit))
    by_sign = {sign: np.array([s is sign for s in signs]) for sign in Sign}
    scores = {}
    for name, column in values.items():
        scores[name] = bootstrap(known(np.array(column)))
        scores |= {f"{name}_{sign.name.lower()}": bootstrap(known(np.array(column)[rows])) for sign, rows in by_sign.items()}  # fmt: skip
    alarms = {sign: np.array([bool(telling(d, _called(sign))) for d in undrawn.values()], float) for sign in Sign}
    scores["false_alarms"] = bootstrap(np.max(list(alarms.values()), axis=0))
    scores |= {f"false_alarms_{sign.name.lower()}": bootstrap(column) for sign, column in alarms.items()}
    return scores
