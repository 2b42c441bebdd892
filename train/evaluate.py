"""Judges a checkpoint on a split: what its drafts say, whether they come from the film, and whether its maps mean something.

    python -m train.evaluate --checkpoint assets/checkpoints/small --films FILMS.jsonl --reports REPORTS.jsonl --split val --json

Every score has `value`, `low`, `high` (bootstrap 95 % over films) and `n`, per source and overall; a score that cannot be computed has value
null. Films count in a score only where its truth is known.

Of the drafts, and of every baseline's reports:
    label_micro_f1, label_macro_f1   of what the text states (emrrg_core.findings, uncertain counts as stated) against the known labels
    normal_balanced_accuracy         the text states an abnormality or not, against the labels; `…_AP`, `…_PA` within a view
    called_abnormal_of_normal, called_abnormal_of_abnormal
    as_read                          the draft states what the tower read, no other finding and no other side (checkpoints with facts)
    distinct, ended, marks           share of different texts; that the model ended itself; with a de-identification mark (XXXX, ___)
    prior_words                      share of texts that speak of an earlier film (emrrg_core.findings), though none was given
    bleu4, rouge_l, cider            against the film's true report, where there is one; `…_truncated` as the released code truncates it
                                     (--cleaning)
    chexbert_f1, chexbert_f1_five    likewise by RadEval 2 where it and its weights are on disk (--radeval; docs/training.md), of the texts as
    radgraph_f1, ratescore           written: micro-F1 of CheXbert's 14 and of 5 labels, RadGraph-XL F1 (partial), RaTEScore; else the `reason`
Does it look?
    own_image_preferred_all          share of pairs: the draft is more probable under its own film than under another of its source
    own_image_preferred              the same over pairs of which one is labelled normal and the other abnormal; `own_image_gain`: nats
    blank_drop, noise_drop           nats a token that the draft loses under a grey film, and under noise
    gate                             mean |gate| a token
Does the map mean something?
    mask_share_over_chance           of sentences about the lungs: share of the map inside the lung mask, over the mask's share of the film
    pointing                         the map of the sentences that state a finding peaks in a lesion's box; a draft that states none misses
    deletion_drop                    nats that the first abnormal sentence loses when the top tenth of its map is hidden, filled from its
                                     surroundings, less the mean loss over other places of the same shape
The source `simulated` is real normal films of this split with a finding drawn on them (emrrg_core.simulate): there `found` is the share of
drafts that state it, `side` the share of right sides among drafts that name one, and `pointing` is over drafts that state it.
Beside the scores stand the `seconds` of the whole run and, by section, `seconds_of` it.
"""

import argparse
import contextlib
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, Python looks beside the script only

import cv2
import numpy as np
import torch

from emrrg_core import checkpoint
from emrrg_core.annotations import DATASETS, clean_report
from emrrg_core.config import DecodeConfig
from emrrg_core.data import Matcher, ReportText, Study, lung_mask, normalise, read_reports, read_studies
from emrrg_core.decode import Writing, write
from emrrg_core.errors import ConfigError, EmrrgError
from emrrg_core.evidence import highlighted, lay_over, masked, patch_weights, places
from emrrg_core.films import model_input, read_film
from emrrg_core.findings import NO_FINDING, Status, is_abnormal, labels, prior_words, read_findings
from emrrg_core.language import prefers_bfloat16
from emrrg_core.metrics import Rated, Score, bootstrap, label_counts, macro_scores, micro_scores, rate, text_scores
from emrrg_core.model import IGNORED, Emrrg
from emrrg_core.report import Sentence, compose, sections, split
from emrrg_core.simulate import LABEL_OF, Drawn, Sign, draw
from emrrg_core.stated import Fact, differences
from train.finetune import pad
from train.warmup import balanced_accuracy

_LUNGS = re.compile(
    r"\b(?:lungs?|pulmonary|airspace|opacit\w+|pneumonia|consolidation|nodules?|atelectasis|effusions?|pneumothora\w+)\b",
    re.I,
)
AS_WRITTEN = "none"  # the cleaning that leaves texts as they are
# tokens that the released code leaves of a reference (METHOD §5.4)
_TRUNCATED = {"iu_xray": 60, "mimic_cxr": 100, "chexpert_plus": 100}
ELSEWHERE = 8  # places of the same shape, for the test of a map
BLANKED = 300  # films at most, evenly spaced, whose drafts are read under a grey film and under noise


@contextlib.contextmanager
def _fast() -> Iterator[None]:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=prefers_bfloat16()):
        yield


class Clock:
    """Seconds of every section of a run: `with clock("drafts"): …`. A section may be entered again."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, section: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[section] = self.seconds.get(section, 0.0) + time.perf_counter() - begun


class Judge:
    """A model with what evaluation asks of it, in batches. With bfloat16 where that pays (`precision` says which).

    Drafts are written in batches four times as large: a step costs much the same for few films as for many, and films that have ended leave.
    """

    def __init__(self, model: Emrrg, batch: int = 32) -> None:
        self.model, self.batch = model, batch
        self.precision = "bfloat16" if prefers_bfloat16() else "float32"
        if prefers_bfloat16():
            model.llm.to(torch.bfloat16)

    def see(self, films: Sequence[np.ndarray]) -> torch.Tensor:
        """Films (3, s, s) to visual tokens (n, v, h)."""
        return self.read(films)[0]

    def read(self, films: Sequence[np.ndarray]) -> tuple[torch.Tensor, list[tuple[Fact, ...]] | None]:
        """As `see`, and what is read in each film, which its draft is to state; None for a model without facts."""
        rows, facts = [], []
        for some in _batches(films, self.batch):
            with _fast():
                tokens = self.model.see(torch.from_numpy(np.stack(some)).unsqueeze(1))
                rows.append(self.model.project(tokens).float())
                facts += self.model.read_facts(tokens) or []
        return torch.cat(rows), facts or None

    def features(self, studies: Sequence[Study]) -> torch.Tensor:
        """The mean visual token of each study's first film (n, h), without keeping the films or their tokens."""
        size = self.model.config.vision.image_size
        rows = []
        for some in _batches(studies, self.batch):
            with _fast():  # the tower alone: what a second reader sees, which takes longer, is no part of it
                tokens = self.model.visual_encoder(torch.from_numpy(np.stack(load_films(some, size))))
                rows.append(self.mean(self.model.layer_norm(self.model.llama_proj(tokens)).float()))
        return torch.cat(rows)

    def mean(self, visual: torch.Tensor) -> torch.Tensor:
        """Visual tokens (n, v, h) to their mean (n, h), without the evidence tokens."""
        return visual[:, : self.model.config.vision.tokens].mean(1)

    def write(self, visual: torch.Tensor, seed: int = 0, *, progress: str = "") -> list[Writing]:
        """Greedy drafts."""
        drafts: list[Writing] = []
        for some in visual.split(4 * self.batch):
            with _fast():
                drafts += write(self.model, some, DecodeConfig(seed=seed))
            if progress:
                print(f"{progress}: {len(drafts)} of {len(visual)}", file=sys.stderr, flush=True)
        return drafts

    def score(self, visual: torch.Tensor, drafts: Sequence[Writing]) -> list[np.ndarray]:
        """Log-probability of every token of a draft, its end included where it ended, under the film beside it."""
        eos = self.model.tokenizer.eos_token_id
        ids = [[*(t.id for t in d.tokens), *([eos] if d.finished else [])] for d in drafts]
        order = np.argsort([len(row) for row in ids], kind="stable")  # like lengths together: less padding
        scores: list[np.ndarray] = [np.zeros(0)] * len(ids)
        for i in range(0, len(ids), self.batch):
            rows = order[i : i + self.batch]
            with _fast():
                found = self.model.log_probs(visual[rows], pad([ids[r] for r in rows], IGNORED, torch.long))
            for r, values in zip(rows, found.numpy(), strict=True):
                scores[r] = values[: len(ids[r])]
        return scores


def _batches(rows: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (rows[i : i + size] for i in range(0, len(rows), size))


def load_film(study: Study, size: int) -> np.ndarray:
    """The first film of a study as the tower takes it, (3, size, size)."""
    return model_input(read_film(study.files[0]), size)


def load_films(studies: Sequence[Study], size: int) -> list[np.ndarray]:
    """`load_film` of each, on as many cores as torch uses."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(load_film, studies, [size] * len(studies)))


# ------------------------------------------------------------------------------------------------------------- texts


def text_columns(texts: Sequence[str], studies: Sequence[Study]) -> dict[str, Any]:
    """What is judged of a report text alone, study by study; `summarise` makes scores of it for any subset."""
    flat = [text.replace("\n", " ") for text in texts]
    return {
        "texts": np.array(flat, object),
        "counts": label_counts([s.labels for s in studies], [labels(text) for text in flat]),
        "abnormal": np.array([is_abnormal(text) for text in flat]),
        "prior": np.array([bool(prior_words(text)) for text in flat], float),
    }


def by_radeval(said: Mapping[str, Sequence[str]], studies: Sequence[Study], python: str) -> dict[str, Rated]:
    """RadEval on the texts of every name in `said`, of the studies that have a report, in order; one run, for its models load slowly."""
    told = reported(studies)
    wanted = [_flat(f"{studies[i].findings} {studies[i].impression}") for i in told]
    drafts = [_flat(_plain(texts[i])) for texts in said.values() for i in told]
    whole = rate(wanted * len(said), drafts, python=python)
    own = {name: slice(k * len(told), (k + 1) * len(told)) for k, name in enumerate(said)}
    return {
        name: Rated({score: v if isinstance(v, str) else v[rows] for score, v in whole.values.items()}, whole.version)
        for name, rows in own.items()
    }


def reported(studies: Sequence[Study]) -> np.ndarray:
    """The studies that have a true report, ascending."""
    return np.flatnonzero([bool(s.findings or s.impression) for s in studies])


def _flat(text: str) -> str:
    return " ".join(text.split())


def first_of_its_kind(texts: Sequence[str]) -> np.ndarray:
    """1.0 for every text that none before it equals, (n,): their mean is the share of distinct texts."""
    seen: set[str] = set()
    return np.array([float(not (text in seen or seen.add(text))) for text in texts])


def summarise_texts(
    columns: dict[str, Any],
    studies: Sequence[Study],
    rows: np.ndarray,
    tokenizer: Any,
    cleaning: str = "iu_xray",
    rated: Rated | None = None,
) -> dict[str, Score]:
    """Scores of the texts at `rows`. cleaning: a name of `annotations.DATASETS`, or AS_WRITTEN, which truncates nothing either.

    rated: of `by_radeval`, for its scores.
    """
    texts, called = columns["texts"], columns["abnormal"]
    truth = np.array([np.nan if s.abnormal is None else float(s.abnormal) for s in studies])
    known = rows[np.isfinite(truth[rows])]

    def accuracy(chosen: np.ndarray) -> float:
        true = truth[chosen] == 1
        return balanced_accuracy(true, called[chosen]) if true.any() and not true.all() else float("nan")

    counts = columns["counts"][rows]
    result = {
        "label_micro_f1": bootstrap(counts, lambda c: micro_scores(c)[2]),
        "label_macro_f1": bootstrap(counts, lambda c: macro_scores(c)[2]),
        "normal_balanced_accuracy": bootstrap(known, accuracy),
        "called_abnormal_of_normal": bootstrap(called[known[truth[known] == 0]].astype(float)),
        "called_abnormal_of_abnormal": bootstrap(called[known[truth[known] == 1]].astype(float)),
        "distinct": bootstrap(first_of_its_kind(texts[rows])),
        "marks": bootstrap(np.array(["XXXX" in t or "___" in t for t in texts[rows]], float)),
        "prior_words": bootstrap(columns["prior"][rows]),
    }
    for view in ("AP", "PA"):
        within = np.array([i for i in known if studies[i].view == view], int)
        if len(set(truth[within])) == 2:
            result[f"normal_balanced_accuracy_{view}"] = bootstrap(within, accuracy)
    told = reported(studies)
    with_report = told[np.isin(told, rows)]
    whole = [_clean(f"{studies[i].findings} {studies[i].impression}", cleaning) for i in with_report]
    drafts = [_clean(_plain(texts[i]), cleaning) for i in with_report]
    references = {"": whole}
    if limit := _TRUNCATED.get(cleaning):
        ids = [tokenizer(text, add_special_tokens=False).input_ids[:limit] for text in whole]
        references["_truncated"] = [tokenizer.decode(row) for row in ids]
    for suffix, wanted in references.items():
        scores = text_scores(wanted, drafts, meteor=False) if wanted else {}
        for name in ("bleu4", "rouge_l", "cider"):
            result[name + suffix] = scores.get(name, {"value": None, "low": None, "high": None, "n": 0})
    if rated:
        result |= rated.scores(np.searchsorted(told, with_report))
    return result


def _clean(text: str, cleaning: str) -> str:
    return text.strip() if cleaning == AS_WRITTEN else clean_report(text, cleaning)


def cleaning_of(studies: Sequence[Study]) -> str:
    """The published set that all of these come from, by their source; IU X-ray's rule for any others."""
    sources = {s.source for s in studies}
    return sources.pop() if len(sources) == 1 and sources <= DATASETS.keys() else "iu_xray"


def _plain(text: str) -> str:
    """A draft without its headings."""
    return " ".join(text[slice(*span)] for span in split(text).values())


# -------------------------------------------------------------------------------------------------------------- maps


def sentences_of(writing: Writing) -> tuple[Sentence, ...]:
    """The sentences of a finished draft with their tokens."""
    return sections(writing, partial=False)[2]


def map_of(writing: Writing, chosen: Sequence[Sentence]) -> np.ndarray | None:
    """Evidence of some sentences on the patches (g²,), sum 1; None when there is none."""
    weights = sum((patch_weights(writing.tokens[slice(*s.tokens)]) for s in chosen), np.zeros(1))
    return weights / weights.sum() if weights.size > 1 and weights.sum() > 0 else None


def patch_cover(mask: np.ndarray, grid: int) -> np.ndarray:
    """The share of every patch that a mask (height, width) covers, (g²,), by the same geometry as the maps."""
    side = grid * 16
    return cv2.resize(
        cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA),
        (grid, grid),
        interpolation=cv2.INTER_AREA,
    ).ravel()


def in_a_box(weights: np.ndarray, study: Study, grid: int) -> bool:
    """Whether the map's highest pixel lies in one of the film's boxes."""
    height, width = read_film(study.files[0]).pixels.shape
    heat = lay_over(weights, grid, height, width)
    rows, columns = np.nonzero(heat >= heat.max() * (1 - 1e-6))
    row, column = rows.mean(), columns.mean()
    return any(x <= column <= x + w and y <= row <= y + h for _, (x, y, w, h) in study.boxes)


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
            known = {LABEL_OF[sign]: 1, NO_FINDING: 0}
            made.append((replace(study, source="simulated", labels=known), normalise(np.round(drawn_film)), drawn))
    return made


def _grey(film: np.ndarray) -> np.ndarray:
    """The inverse of `normalise`: (3, s, s) to (s, s) in [0, 255]."""
    white, black = normalise(np.full((1, 1), 255.0))[0, 0, 0], normalise(np.zeros((1, 1)))[0, 0, 0]
    return np.clip((film[0] - black) / (white - black) * 255, 0, 255)


Told = tuple[np.ndarray, Writing, Sentence, np.ndarray]  # film, its draft, a sentence of that, the sentence's map


def deletion(judge: Judge, told: Sequence[Told], rng: np.random.Generator) -> list[float]:
    """How many nats more each sentence loses when the top tenth of its map is hidden than, on average, when ELSEWHERE other places of the same
    shape are. What is hidden is filled from its surroundings, as for *Why this sentence?* (`evidence.masked`)."""
    dropped = []
    # so many at once that batches are full, and so few that their films fit into memory
    for some in _batches(told, 12):
        films, drafts, counts = [], [], []
        for film, draft, _, weights in some:
            region = highlighted(weights)
            hidden = [region, *places(region, ELSEWHERE, rng)[0]]
            films += [masked(film, place) for place in hidden]
            drafts += [draft] * len(hidden)
            counts.append(len(hidden))
        scores = iter(judge.score(judge.see(films), drafts))
        for (_, _, sentence, _), count in zip(some, counts, strict=True):
            top, *others = (float(next(scores)[slice(*sentence.tokens)].sum()) for _ in range(count))
            dropped.append(float(np.mean(others)) - top)  # what the whole film gives cancels out
    return dropped


# --------------------------------------------------------------------------------------------------------- baselines


def baselines(
    judge: Judge,
    studies: Sequence[Study],
    visual: torch.Tensor,
    learn: Sequence[Study],
    reports: Sequence[ReportText],
    *,
    neighbours: int,
    seed: int,
) -> dict[str, list[str]]:
    """A report for every study from methods that need no training, by name; no nearest film where none is known with a report text."""
    rng = np.random.default_rng(seed)
    pairs = [(r.findings, r.impression) for r in reports]
    commonest = max(sorted(set(pairs)), key=pairs.count)
    drawn = [pairs[rng.integers(len(pairs))] for _ in studies]
    matcher = Matcher(reports)
    pool = [s for s in learn if s.abnormal is not None and matcher.texts(s)]
    pool = [pool[i] for i in rng.permutation(len(pool))[:neighbours]]
    texts = {"constant": [compose(*commonest)] * len(studies), "label_blind": [compose(*pair) for pair in drawn]}
    if pool:
        near = _centred(judge.mean(visual)) @ _centred(judge.features(pool)).T
        nearest = [matcher.texts(pool[i]) for i in near.argmax(1).tolist()]
        texts["nearest"] = [compose(*found[rng.integers(len(found))]) for found in nearest]
    return texts


def _centred(features: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(features - features.mean(0), dim=1)


# -------------------------------------------------------------------------------------------------------- everything


def evaluate(
    model: Emrrg,
    studies: Sequence[Study],
    *,
    learn: Sequence[Study] = (),
    reports: Sequence[ReportText] = (),
    batch: int = 32,
    seed: int = 0,
    deletions: int = 60,
    neighbours: int = 1000,
    beside: Mapping[str, Emrrg] | None = None,
    cleaning: str | None = None,
    radeval: str = sys.executable,
) -> dict[str, Any]:
    """All scores, per source and overall, and those of the baselines where `reports` of the training split are given.

    learn: training films, for the nearest of them. beside: other models by name, whose drafts are judged by their texts alone. cleaning: as for
    `summarise_texts`; None: `cleaning_of` these studies. radeval: the interpreter that has RadEval.
    """
    begun, clock = time.perf_counter(), Clock()
    judge = Judge(model, batch)
    size, grid = model.config.vision.image_size, model.config.vision.grid
    rng = np.random.default_rng(seed)
    with clock("films"):
        films = load_films(studies, size)
        visual, facts = judge.read(films)
    with clock("drafts"):
        drafts = judge.write(visual, seed, progress="drafts")
    looks = _looks(judge, studies, visual, drafts, rng, size, clock)
    looks["gate"] = np.array(
        [np.abs([t.gates for t in d.tokens]).mean() if d.tokens and d.tokens[0].gates else np.nan for d in drafts]
    )
    looks["ended"] = np.array([float(d.finished) for d in drafts])
    looks["as_read"] = np.array(
        [float(not differences(mine, d.text)) for mine, d in zip(facts, drafts, strict=True)]
        if facts
        else [np.nan] * len(drafts)
    )
    looks |= _maps(judge, studies, films, drafts, rng, grid, deletions, clock)
    sources = np.array([s.source for s in studies])
    cleaning = cleaning or cleaning_of(studies)
    result: dict[str, Any] = {"precision": judge.precision, **_said_of_cleaning(cleaning)}
    groups = {source: np.flatnonzero(sources == source) for source in sorted(set(sources))} | {
        "overall": np.arange(len(studies))
    }

    # the texts to judge: this checkpoint's drafts, and by its name each baseline's
    said = {"": [d.text for d in drafts]}
    with clock("simulated"):
        made = simulated(studies, films, size, seed)
        made_scores = _simulated_scores(judge, made, grid, seed) if made else None
    if reports:
        with clock("baselines"):
            said |= baselines(judge, studies, visual, learn, reports, neighbours=neighbours, seed=seed)
    for name, other in (beside or {}).items():
        with clock(f"beside: {name}"):
            own_size = other.config.vision.image_size
            judge = Judge(other, batch)
            visual = judge.see(films if own_size == size else load_films(studies, own_size))
            said[name] = [d.text for d in judge.write(visual, seed, progress=name)]
    with clock("RadEval"):
        rated = by_radeval(said, studies, radeval)
    result["radeval"] = {
        "version": rated[""].version,
        "texts": "references and drafts as written, without headings and line ends; references whole",
    }
    with clock("scores of texts"):
        tables = {
            name: {
                group: summarise_texts(these, studies, rows, model.tokenizer, cleaning, rated[name])
                for group, rows in groups.items()
            }
            for name, texts in said.items()
            for these in [text_columns(texts, studies)]
        }
    result["scores"] = tables.pop("")
    for group, rows in groups.items():
        result["scores"][group] |= {score: bootstrap(_known(values[rows])) for score, values in looks.items()}
    if made_scores:
        result["scores"]["simulated"] = made_scores
    if tables:
        result["baselines"] = tables
    result["seconds"], result["seconds_of"] = time.perf_counter() - begun, clock.seconds
    return result


def _said_of_cleaning(cleaning: str) -> dict[str, str]:
    """What a card says of how texts were made comparable."""
    if cleaning == AS_WRITTEN:
        return {"cleaning": "none: references and drafts as written", "truncation": "none"}
    return {
        "cleaning": f"the released rule for {cleaning} (METHOD §6), references and drafts alike",
        "truncation": f"none; scores named …_truncated: references cut after {_TRUNCATED[cleaning]} tokens, as the released code does",
    }


def _known(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _looks(
    judge: Judge,
    studies: Sequence[Study],
    visual: torch.Tensor,
    drafts: Sequence[Writing],
    rng: np.random.Generator,
    size: int,
    clock: Clock,
) -> dict[str, np.ndarray]:
    """Own film against others, a blank and noise: one number a study, NaN where there is no such pair."""
    truth = np.array([np.nan if s.abnormal is None else float(s.abnormal) for s in studies])
    sources = np.array([s.source for s in studies])
    n = len(studies)
    any_other, opposite = np.full(n, -1), np.full(n, -1)
    for i in range(n):
        near = np.flatnonzero((sources == sources[i]) & (np.arange(n) != i))
        against = near[truth[near] == 1 - truth[i]]
        any_other[i] = rng.choice(near) if len(near) else -1
        opposite[i] = rng.choice(against) if len(against) else -1
    with clock("own film"):
        own = np.array([s.sum() for s in judge.score(visual, drafts)])
    lengths = np.array([max(len(d.tokens), 1) for d in drafts])

    def gain(other: np.ndarray) -> np.ndarray:
        result = np.full(n, np.nan)
        rows = np.flatnonzero(other >= 0)
        if len(rows):
            under = [s.sum() for s in judge.score(visual[other[rows]], [drafts[i] for i in rows])]
            result[rows] = own[rows] - under
        return result

    chosen = np.unique(np.linspace(0, n - 1, min(n, BLANKED)).round().astype(int))

    def under(film: np.ndarray) -> np.ndarray:
        result = np.full(n, np.nan)
        found = judge.score(judge.see([film]).expand(len(chosen), -1, -1), [drafts[i] for i in chosen])
        result[chosen] = (own[chosen] - np.array([s.sum() for s in found])) / lengths[chosen]
        return result

    with clock("pairs"):
        gain_all, gain_opposite = gain(any_other), gain(opposite)
    with clock("blank and noise"):
        blank_drop = under(normalise(np.full((size, size), 118.0)))
        noise_drop = under(normalise(rng.uniform(0, 255, (size, size))))
    return {
        "own_image_preferred_all": np.where(np.isfinite(gain_all), gain_all > 0, np.nan),
        "own_image_preferred": np.where(np.isfinite(gain_opposite), gain_opposite > 0, np.nan),
        "own_image_gain": gain_opposite,
        "blank_drop": blank_drop,
        "noise_drop": noise_drop,
    }


def _maps(
    judge: Judge,
    studies: Sequence[Study],
    films: Sequence[np.ndarray],
    drafts: Sequence[Writing],
    rng: np.random.Generator,
    grid: int,
    deletions: int,
    clock: Clock,
) -> dict[str, np.ndarray]:
    """What can be said of the maps: one number a study, NaN where there is nothing to say."""
    n = len(studies)
    share, pointing, dropped = np.full(n, np.nan), np.full(n, np.nan), np.full(n, np.nan)
    abnormal = []
    for i, (study, draft) in enumerate(zip(studies, drafts, strict=True)):
        spoken = sentences_of(draft)
        telling = [s for s in spoken if is_abnormal(s.text)]
        if telling:
            abnormal.append(i)
        if study.lung_mask and (weights := map_of(draft, [s for s in spoken if _LUNGS.search(s.text)])) is not None:
            mask = cv2.imread(str(study.lung_mask), cv2.IMREAD_GRAYSCALE) > 0
            cover = patch_cover(mask, grid)
            share[i] = float(weights @ cover / cover.mean())
        if study.boxes:
            seen = map_of(draft, telling)
            pointing[i] = float(seen is not None and in_a_box(seen, study, grid))
    told: dict[int, Told] = {}
    for i in [abnormal[j] for j in rng.permutation(len(abnormal))[:deletions]]:
        first = next(s for s in sentences_of(drafts[i]) if is_abnormal(s.text))
        if (weights := map_of(drafts[i], [first])) is not None:
            told[i] = films[i], drafts[i], first, weights
    with clock("deletion"):
        dropped[list(told)] = deletion(judge, list(told.values()), rng)
    return {"mask_share_over_chance": share, "pointing": pointing, "deletion_drop": dropped}


def _simulated_scores(
    judge: Judge, made: Sequence[tuple[Study, np.ndarray, Drawn]], grid: int, seed: int
) -> dict[str, Score]:
    drafts = judge.write(judge.see([film for _, film, _ in made]), seed, progress="simulated")
    found, side, pointing, signs = [], [], [], []
    for draft, (_, _, drawn) in zip(drafts, made, strict=True):
        label = LABEL_OF[drawn.sign]
        # an opacity may be called by any of its names
        names = {label, "Consolidation", "Pneumonia"} if drawn.sign is Sign.OPACITY else {label}
        naming = [
            (s, [m for m in read_findings(s.text) if m.label in names and m.status is not Status.NEGATIVE])
            for s in sentences_of(draft)
        ]
        naming = [(s, mentions) for s, mentions in naming if mentions]
        signs.append(drawn.sign)
        found.append(float(bool(naming)))
        named = [m.side for _, mentions in naming for m in mentions if m.side]
        side.append(float(set(named) == {drawn.side.value}) if named and drawn.side else np.nan)
        weights = map_of(draft, [s for s, _ in naming]) if naming else None
        cover = patch_cover(drawn.mask, grid)  # a finding that is smaller than a patch lies where it covers most
        hit = weights is not None and cover[weights.argmax()] >= min(0.05, cover.max())
        pointing.append(np.nan if weights is None else float(hit))
    columns = {"found": np.array(found), "side": np.array(side), "pointing": np.array(pointing)}
    scores = {name: bootstrap(_known(values)) for name, values in columns.items()}
    for sign in Sign:
        rows = np.array([s is sign for s in signs])
        scores |= {f"{name}_{sign.name.lower()}": bootstrap(_known(values[rows])) for name, values in columns.items()}
    scores["distinct"] = bootstrap(first_of_its_kind([d.text for d in drafts]))
    return scores


def baseline_name(folder: Path) -> str:
    """A checkpoint's name in the tables: its folder's, or the one above where train.finetune called it `checkpoint`."""
    folder = folder.absolute()
    return folder.parent.name if folder.name == "checkpoint" else folder.name


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--films", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument(
        "--reports", type=Path, help="report texts for the baselines; default: reports.jsonl beside the films, if there"
    )
    parser.add_argument("--limit", type=int, default=0, help="at most this many films, the same share of every source")
    parser.add_argument("--deletions", type=int, default=60, help="drafts whose map is tested by hiding places")
    parser.add_argument("--neighbours", type=int, default=1000, help="training films among which the nearest is sought")
    parser.add_argument(
        "--beside",
        type=Path,
        action="append",
        default=[],
        help="another checkpoint whose drafts are judged as a baseline under its folder's name, projector-only tuning for instance "
        "(train.finetune --design projector); may be given more than once",
    )
    parser.add_argument(
        "--cleaning",
        choices=[*DATASETS, AS_WRITTEN],
        help="the released code's rule for references and drafts, and how far it truncates references: 60 tokens for iu_xray, 100 for the "
        "others; none leaves texts as they are. Default: the set that all films come from, by their source, else iu_xray",
    )
    parser.add_argument(
        "--radeval",
        default=sys.executable,
        metavar="PYTHON",
        help="the interpreter of an environment with RadEval 2, for CheXbert, RadGraph and RaTEScore (docs/training.md); default: this one",
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        everything = read_studies(args.films)
        studies = [s for s in everything if s.split == args.split]
        if not studies:
            print(f"emrrg: {args.films.name} has no films of the split {args.split!r}.", file=sys.stderr)
            return 2
        if args.limit and args.limit < len(studies):
            studies = studies[:: -(-len(studies) // args.limit)]
        path = args.reports or args.films.with_name("reports.jsonl")
        reports = read_reports(path, "train") if args.reports or path.is_file() else []
        learn = [s for s in everything if s.split == "train" != args.split]
        names = [baseline_name(path) for path in args.beside]
        if taken := [n for i, n in enumerate(names) if n in (*names[:i], "constant", "label_blind", "nearest")]:
            raise ConfigError(
                f"More than one baseline would be called {taken[0]}: give --beside folders names of their own."
            )
        model, _ = checkpoint.load(args.checkpoint)
        result = evaluate(
            model,
            studies,
            learn=learn,
            reports=reports,
            batch=args.batch,
            seed=args.seed,
            deletions=args.deletions,
            neighbours=args.neighbours,
            beside={name: checkpoint.load(path)[0] for name, path in zip(names, args.beside, strict=True)},
            cleaning=args.cleaning,
            radeval=args.radeval,
        )
    except EmrrgError as error:
        print(f"emrrg: {error}", file=sys.stderr)
        return 2
    card = {
        "schema": "emrrg.evaluation/1",
        "checkpoint_sha256": checkpoint.fingerprint(args.checkpoint),
        "settings_sha256": checkpoint.settings_fingerprint(args.checkpoint),
        "films": args.films.name,
        "split": args.split,
        "limit": args.limit,
        "section": "findings and impression",
        "uncertain": "counts as stated",
        "seed": args.seed,
        "decoding": "greedy",
        "intervals": "percentile bootstrap over films, 500 draws",
        "command": "python -m train.evaluate " + " ".join(argv if argv is not None else sys.argv[1:]),
        **result,
    }
    if args.json:
        print(json.dumps(card, indent=2))
    else:
        for source, row in card["scores"].items():
            for name, score in row.items():
                if score["value"] is not None:
                    print(
                        f"{source:18s} {name:32s} {score['value']:8.3f}  [{score['low']}, {score['high']}]  n {score['n']}"
                    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
