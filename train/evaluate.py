"""Scores a checkpoint on a split: what its drafts say, what it reads, which path carries the drafts, and whether its maps mean something.

    python -m train.evaluate --checkpoint assets/checkpoints/small --films FILMS.jsonl FILMS_MORE.jsonl --radiologists RADIOLOGISTS.jsonl \\
        --split val --json

Every score has `value`, `low`, `high` (bootstrap 95 % over films) and `n`, for each source and `overall`. A score that cannot be computed has the
value null. A film counts in a score only where its truth is known. `overall` covers the first file of films; further files only add sources.
Beside `scores` the card holds:
    paths            what a draft loses when a part of the input is removed or replaced by another film's (train/paths.py); on --paths films
    findings         for each finding its thresholds, and how well it is read, stated and denied, over all films
    areas            area under the curve of each assessed finding, by source
    effusions        effusions by source, for sources that have films with and without one
    reliability      how often a finding is there, by its probability in ten bins
    radiologists     drafts and readings against RSNA's radiologists, and against the labels of the same films (--radiologists)

Scores of the drafts, and of each baseline's reports:
    label_micro_f1, label_macro_f1   the labels that the text states (emrrg_core.text.labeler; uncertain counts as stated), against the known ones
    normal_balanced_accuracy         whether the text states an abnormality, against the labels; `…_AP`, `…_PA`: within a view
    called_abnormal_of_normal, called_abnormal_of_abnormal
    ended, marks                     share of texts that the model ended itself; that hold a de-identification mark (XXXX, ___)
    prior_words                      share of texts that mention an earlier film (emrrg_core.text.labeler); none was given
    bleu4, rouge_l, cider            against the film's own report, where it has one; `…_truncated`: with references cut as the released code
                                     cuts them (--cleaning)
    chexbert_f1, chexbert_f1_five    likewise, by RadEval 2, where it and its weights are on disk (--radeval; docs/training.md), of the texts as
    radgraph_f1, ratescore           written: micro-F1 of CheXbert's 14 and of 5 labels, RadGraph-XL F1 (partial), RaTEScore; else a `reason`
Scores of what is read:
    as_read                          share of drafts that state and deny exactly what was read, on the same side
    calibration_error                expected calibration error of all probabilities, in ten bins, where labels are known
    denied_wrongly                   share of the findings that films have which their drafts deny
Does the draft depend on the film?
    blank_drop, noise_drop           nats a token that the draft loses under a grey film, and under noise; on --paths films
    gate                             mean |gate| of a token
Do the maps mean something (train/maps.py)?
    map_correlation                  between sentences of the Findings about different findings, mean over a draft's pairs; `…_stated`, `…_denied`:
                                     both sentences state, or both deny
    mask_share_over_chance           for sentences about the lungs: share of the map inside the lung mask, over the mask's share of the film
    pointing                         the map of the first sentence that states a finding peaks in a box of it; a draft that does not state the
                                     finding misses. `pointing_stated`: only drafts that state it. `pointing_evidence`: the map of the
                                     finding's logit, stated or not. `pointing_chance`: the boxes' share of the film. By finding too, with
                                     `named_…`
    zones                            share of the lungs' zones on which two radiologists agree (Brixia) that are read as they do. `zones_named`: of
                                     the zones that the draft names, share in which both saw something. `zones_present`: share of all zones in
                                     which both saw something
    deletion_drop                    nats that the first abnormal sentence loses when the top tenth of its map is hidden from the hybrid layers and
                                     filled from its surroundings, less the mean loss with other places of the same shape hidden
                                     `deletion_log_odds`: likewise for the log odds of its finding
                                     `deletion_falls`: the finding then falls below its threshold; `…_elsewhere`: with another place hidden
The source `simulated` holds real normal films of this split with a finding drawn on them (emrrg_core.films.synthetic_findings): `found` is the share
of drafts that state it, `side` the share of right sides among drafts that name one, `pointing` is over drafts that state it, and `false_alarms` is
the share of the same films without the drawing whose drafts state such a finding.
Where the checkpoint has a phrases.json, its drafts are guessed, as in the app (`guessed`).
The card ends with the `seconds` of the whole run, and `seconds_of` each section.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, Python looks beside the script only

import numpy as np
import torch

from emrrg_core.config import DecodeConfig
from emrrg_core.data.public_datasets import DATASETS, clean_report
from emrrg_core.data.studies import Matcher, ReportText, Study, normalise, read_reports, read_studies
from emrrg_core.errors import ConfigError, EmrrgError
from emrrg_core.explain.faithfulness import gate_strength
from emrrg_core.films.film import model_input, read_film
from emrrg_core.model import checkpoint
from emrrg_core.model.emrrg import IGNORED, Emrrg, FilmTokens
from emrrg_core.model.finding_tokens import finding_maps
from emrrg_core.model.generation import write
from emrrg_core.model.language_model import prefers_bfloat16
from emrrg_core.model.proposals import Phrasebook, Proposer
from emrrg_core.model.writing import Writing
from emrrg_core.report.draft import Draft, compose, split
from emrrg_core.reporter import differences
from emrrg_core.text.labeler import is_abnormal, labels, prior_words
from emrrg_core.text.metrics import Rated, Score, bootstrap, label_counts, macro_scores, micro_scores, rate, text_scores
from train.finetune import own_report, pad
from train.maps import Read, columns, deletion, drafts_of, simulated, simulated_scores, to_test
from train.measures import balanced_accuracy
from train.paths import paths, spread
from train.probabilities import (
    Table,
    against_radiologists,
    areas,
    effusions,
    findings_table,
    known,
    pooled,
    ratio,
    reliability,
    tabulate,
)
from train.targets import Truth, read_radiologists, truth_of

AS_WRITTEN = "none"  # the cleaning that leaves texts as they are
# tokens that the released code leaves of a reference (docs/method.md 5.4)
_TRUNCATED = {"iu_xray": 60, "mimic_cxr": 100, "chexpert_plus": 100}
PATHS = 120  # films that are drafted again with a part of what is seen exchanged


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


def _in_float(film: FilmTokens) -> FilmTokens:
    told = None if film.finding_tokens is None else film.finding_tokens.float()
    return replace(film, patches=film.patches.float(), in_prompt=film.in_prompt.float(), finding_tokens=told)


class Judge:
    """A model with what evaluation asks of it, in batches. With bfloat16 where that pays (`precision` says which).

    Drafts are written in batches four times as large: a step costs much the same for few films as for many, and films that have ended leave. With
    a proposer they are guessed (emrrg_core.model.generation): the same but for rounding, which in bfloat16 can tip a choice between near equals.
    """

    def __init__(self, model: Emrrg, batch: int = 32, proposer: Proposer | None = None) -> None:
        self.model, self.batch, self.proposer = model, batch, proposer
        self.precision = "bfloat16" if prefers_bfloat16() else "float32"
        if prefers_bfloat16():
            model.llm.bfloat16()

    def see(self, films: Sequence[np.ndarray]) -> FilmTokens:
        """Films (3, s, s) as the language model may see them."""
        return self.read(films).film

    def read(self, films: Sequence[np.ndarray]) -> Read:
        """As `see`, with what was read of each film."""
        tokens, maps, regions = [], [], []
        for some in _batches(films, self.batch):
            with _fast():
                seen = self.model.see(torch.from_numpy(np.stack(some)).unsqueeze(1))
                film = self.model.project(seen)
                tokens.append(_in_float(film))
                if self.model.config.queries.depth:
                    maps.append(finding_maps(seen))
                    regions.append(seen.regions().float().sigmoid().numpy())
        film = FilmTokens.join(tokens)
        film = replace(film, in_prompt=film.patches)  # the same numbers, not kept twice
        return Read(film, np.concatenate(maps or [np.zeros(0)]), np.concatenate(regions or [np.zeros(0)]))

    def features(self, studies: Sequence[Study]) -> torch.Tensor:
        """The mean visual token of each study's first film (n, h), without keeping the films or their tokens."""
        size = self.model.config.vision.image_size
        rows = []
        for some in _batches(studies, self.batch):
            with _fast():  # the tower alone
                tokens = self.model.visual_encoder(torch.from_numpy(np.stack(load_films(some, size))))
                rows.append(self.model.layer_norm(self.model.llama_proj(tokens)).float().mean(1))
        return torch.cat(rows)

    def mean(self, film: FilmTokens) -> torch.Tensor:
        """The mean of each film's own visual tokens (n, h), without the finding tokens."""
        return film.patches.mean(1)

    def write(self, film: FilmTokens, seed: int = 0, *, progress: str = "") -> list[Writing]:
        """Greedy drafts."""
        drafts: list[Writing] = []
        for some in _batches(range(len(film)), 4 * self.batch):
            with _fast():
                drafts += write(self.model, film.select(some), DecodeConfig(seed=seed), self.proposer)
            if progress:
                print(f"{progress}: {len(drafts)} of {len(film)}", file=sys.stderr, flush=True)
        return drafts

    def score(self, film: FilmTokens, drafts: Sequence[Writing | Draft]) -> list[np.ndarray]:
        """Log-probability of every token of a draft, its end included where it ended, under the film beside it."""
        eos = self.model.tokenizer.eos_token_id
        ids = [[*(t.id for t in d.tokens), *([eos] if d.finished else [])] for d in drafts]
        order = np.argsort([len(row) for row in ids], kind="stable")  # like lengths together: less padding
        scores: list[np.ndarray] = [np.zeros(0)] * len(ids)
        for i in range(0, len(ids), self.batch):
            rows = order[i : i + self.batch]
            with _fast():
                found = self.model.log_probs(
                    film.select(rows.tolist()), pad([ids[r] for r in rows], IGNORED, torch.long)
                )
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
    return np.flatnonzero([own_report(s) for s in studies])


def _flat(text: str) -> str:
    return " ".join(text.split())


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
        return balanced_accuracy(truth[chosen] == 1, called[chosen])

    counts = columns["counts"][rows]
    result = {
        "label_micro_f1": bootstrap(counts, lambda c: micro_scores(c)[2]),
        "label_macro_f1": bootstrap(counts, lambda c: macro_scores(c)[2]),
        "normal_balanced_accuracy": bootstrap(known, accuracy),
        "called_abnormal_of_normal": bootstrap(called[known[truth[known] == 0]].astype(float)),
        "called_abnormal_of_abnormal": bootstrap(called[known[truth[known] == 1]].astype(float)),
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


# --------------------------------------------------------------------------------------------------------- baselines


def baselines(
    judge: Judge,
    studies: Sequence[Study],
    film: FilmTokens,
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
        near = _centred(judge.mean(film)) @ _centred(judge.features(pool)).T
        nearest = [matcher.texts(pool[i]) for i in near.argmax(1).tolist()]
        texts["nearest"] = [compose(*found[rng.integers(len(found))]) for found in nearest]
    return texts


def _centred(features: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(features - features.mean(0), dim=1)


# -------------------------------------------------------------------------------------------------------- everything


@dataclass(frozen=True)
class Drafted:
    """Films and their drafts, which every score is made of. first: the films that `overall` is of."""

    studies: list[Study]
    first: range
    films: list[np.ndarray]
    read: Read
    writings: list[Writing]
    drafts: list[Draft]

    @property
    def groups(self) -> dict[str, np.ndarray]:
        """Numbers of the films of every source, and `overall`."""
        sources = np.array([s.source for s in self.studies])
        own = {source: np.flatnonzero(sources == source) for source in sorted(set(sources))}
        return own | {"overall": np.array(self.first)}


def evaluate(
    model: Emrrg,
    studies: Sequence[Study],
    *,
    more: Sequence[Study] = (),
    truths: Mapping[str, Truth] | None = None,
    learn: Sequence[Study] = (),
    reports: Sequence[ReportText] = (),
    batch: int = 32,
    seed: int = 0,
    redrafts: int = PATHS,
    deletions: int = 60,
    neighbours: int = 1000,
    beside: Mapping[str, Emrrg] | None = None,
    cleaning: str | None = None,
    radeval: str = sys.executable,
    proposer: Proposer | None = None,
) -> dict[str, Any]:
    """All scores, per source and overall, and those of the baselines where `reports` of the training split are given.

    more: films that are scored by source, but not in `overall`. truths: of every film by its id; None: by its own labels and boxes. redrafts:
    films for `paths`. learn: training films, for the nearest of them. beside: other models by name, whose drafts are judged by their texts alone.
    cleaning: as for `summarise_texts`; None: `cleaning_of` these studies. radeval: the interpreter that has RadEval.
    proposer: guesses the drafts of `model`.
    """
    begun, clock = time.perf_counter(), Clock()
    cleaning = cleaning or cleaning_of(studies)
    judge = Judge(model, batch, proposer)
    rng = np.random.default_rng(seed)
    result: dict[str, Any] = {
        "precision": judge.precision,
        "guessed": proposer is not None,
        **_said_of_cleaning(cleaning),
    }
    drafted = _draft(judge, studies, more, seed, clock)
    truths = truths or {s.id: truth_of(s, None) for s in drafted.studies}
    with clock("paths"):
        result["paths"] = paths(judge, drafted.studies, drafted.read.film, drafted.writings, drafted.first, redrafts, seed)  # fmt: skip
    found = _by_film(judge, drafted, truths, rng, redrafts, deletions, clock)
    with clock("simulated"):
        of_drawn = _simulated(judge, drafted, seed)
    # the texts to judge: this checkpoint's drafts, and by its name each baseline's
    said = {"": [w.text for w in drafted.writings]}
    if reports:
        with clock("baselines"):
            said |= baselines(judge, drafted.studies, drafted.read.film, learn, reports, neighbours=neighbours, seed=seed)  # fmt: skip
    for name, other in (beside or {}).items():
        with clock(f"beside: {name}"):
            said[name] = _drafts_beside(judge, other, name, drafted, seed)
    with clock("RadEval"):
        rated = by_radeval(said, drafted.studies, radeval)
    result["radeval"] = {
        "version": rated[""].version,
        "texts": "references and drafts as written, without headings and line ends; references whole",
    }
    with clock("scores of texts"):
        tables = {
            name: _text_scores(texts, drafted, model.tokenizer, cleaning, rated[name]) for name, texts in said.items()
        }
    result["scores"] = tables.pop("")
    with clock("scores of findings"):
        table = tabulate(drafted.studies, said[""], drafted.read.film.findings)
        for group, rows in drafted.groups.items():
            result["scores"][group] |= {name: _scored(values[rows]) for name, values in found.items()}
            result["scores"][group] |= pooled(table.select(rows))
        result |= _finding_scores(model, drafted, truths, table)
    if of_drawn:
        result["scores"]["simulated"] = of_drawn
    if tables:
        result["baselines"] = tables
    result["seconds"], result["seconds_of"] = time.perf_counter() - begun, clock.seconds
    return result


def _draft(judge: Judge, studies: Sequence[Study], more: Sequence[Study], seed: int, clock: Clock) -> Drafted:
    every = [*studies, *more]
    with clock("films"):
        films = load_films(every, judge.model.config.vision.image_size)
        read = judge.read(films)
    with clock("drafts"):
        writings = judge.write(read.film, seed, progress="drafts")
        drafts = drafts_of(writings, read.film, judge.model.config.vision.grid)
    return Drafted(every, range(len(studies)), films, read, writings, drafts)


def _by_film(
    judge: Judge,
    drafted: Drafted,
    truths: Mapping[str, Truth],
    rng: np.random.Generator,
    redrafts: int,
    deletions: int,
    clock: Clock,
) -> dict[str, np.ndarray]:
    """A number a film (n,), NaN where there is none; or a part and its whole (n, 2)."""
    studies, drafts, film = drafted.studies, drafted.drafts, drafted.read.film
    size = judge.model.config.vision.image_size
    agreed = [np.nan if d.read is None else float(not differences(d.read, d.sentences)) for d in drafts]
    found = {
        "gate": np.array([gate_strength(d.tokens) if d.tokens and d.tokens[0].gates else np.nan for d in drafts]),
        "ended": np.array([float(d.finished) for d in drafts]),
        "as_read": np.array(agreed),
    }
    with clock("blank and noise"):
        found |= _without(judge, film, drafts, spread(studies, drafted.first, redrafts), rng, size)
    with clock("maps"):
        found |= columns(studies, drafts, drafted.read, truths)
    with clock("deletion"):
        told = to_test(drafted.films, drafts, film, drafted.first, deletions, rng)
        tested = np.full((len(studies), 4), np.nan)
        tested[list(told)] = deletion(judge, list(told.values()), rng)
        names = ("deletion_drop", "deletion_log_odds", "deletion_falls", "deletion_falls_elsewhere")
        found |= dict(zip(names, tested.T, strict=True))
    return found


def _simulated(judge: Judge, drafted: Drafted, seed: int) -> dict[str, Score] | None:
    """Scores of drawn findings; None where there is no normal film to draw on."""
    vision = judge.model.config.vision
    made = simulated(drafted.studies, drafted.films, vision.image_size, seed)
    draft_by_id = {s.id: draft for s, draft in zip(drafted.studies, drafted.drafts, strict=True)}
    undrawn = {s.id: draft_by_id[s.id] for s, _, _ in made}
    return simulated_scores(judge, made, undrawn, vision.grid, seed) if made else None


def _drafts_beside(judge: Judge, other: Emrrg, name: str, drafted: Drafted, seed: int) -> list[str]:
    """What another model writes of the same films."""
    size, another = other.config.vision.image_size, Judge(other, judge.batch)
    same = size == judge.model.config.vision.image_size
    film = another.see(drafted.films if same else load_films(drafted.studies, size))
    return [w.text for w in another.write(film, seed, progress=name)]


def _text_scores(
    texts: Sequence[str], drafted: Drafted, tokenizer: Any, cleaning: str, rated: Rated
) -> dict[str, dict[str, Score]]:
    """The scores of one set of texts, by source and overall."""
    these = text_columns(texts, drafted.studies)
    return {
        group: summarise_texts(these, drafted.studies, rows, tokenizer, cleaning, rated)
        for group, rows in drafted.groups.items()
    }


def _finding_scores(model: Emrrg, drafted: Drafted, truths: Mapping[str, Truth], table: Table) -> dict[str, Any]:
    """What is read of every finding, for the card."""
    return {
        "findings": findings_table(model, table),
        "areas": areas(drafted.studies, table),
        "effusions": effusions(drafted.studies, table),
        "reliability": reliability(table.probability[drafted.first], table.truth[drafted.first]),
        "radiologists": against_radiologists(drafted.studies, truths, table),
    }


def _scored(values: np.ndarray) -> Score:
    """The mean of (n,), or the sum of the first column over that of the second of (n, 2)."""
    return ratio(*values.T) if values.ndim == 2 else bootstrap(known(values))


def _said_of_cleaning(cleaning: str) -> dict[str, str]:
    """What a card says of how texts were made comparable."""
    if cleaning == AS_WRITTEN:
        return {"cleaning": "none: references and drafts as written", "truncation": "none"}
    return {
        "cleaning": f"the released rule for {cleaning} (docs/method.md 6), references and drafts alike",
        "truncation": f"none; scores named …_truncated: references cut after {_TRUNCATED[cleaning]} tokens, as the released code does",
    }


def _without(
    judge: Judge, film: FilmTokens, drafts: Sequence[Draft], rows: np.ndarray, rng: np.random.Generator, size: int
) -> dict[str, np.ndarray]:
    """Nats a token that the drafts at `rows` lose under a grey film and under noise, (n,) each; NaN for the others."""
    mine = [drafts[i] for i in rows]
    lengths = np.array([max(len(d.tokens), 1) for d in mine])
    own = np.array([s.sum() for s in judge.score(film.select(rows.tolist()), mine)])
    result = {}
    for name, grey in (("blank_drop", np.full((size, size), 118.0)), ("noise_drop", rng.uniform(0, 255, (size, size)))):
        seen = judge.see([normalise(grey)]).select([0] * len(rows))
        result[name] = np.full(len(drafts), np.nan)
        result[name][rows] = (own - np.array([s.sum() for s in judge.score(seen, mine)])) / lengths
    return result


def baseline_name(folder: Path) -> str:
    """A checkpoint's name in the tables: its folder's, or the one above where train.finetune called it `checkpoint`."""
    folder = folder.absolute()
    return folder.parent.name if folder.name == "checkpoint" else folder.name


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        asked = _read(args)
        if not asked["studies"]:
            print(f"emrrg: {args.films[0].name} has no films of the split {args.split!r}.", file=sys.stderr)
            return 2
        names = _baseline_names(args.beside)
        model, _ = checkpoint.load(args.checkpoint)
        result = evaluate(
            model,
            **asked,
            batch=args.batch,
            seed=args.seed,
            redrafts=args.paths,
            deletions=args.deletions,
            neighbours=args.neighbours,
            beside={name: checkpoint.load(path)[0] for name, path in zip(names, args.beside, strict=True)},
            cleaning=args.cleaning,
            radeval=args.radeval,
            proposer=Phrasebook.load(args.checkpoint, model.tokenizer),
        )
    except EmrrgError as error:
        print(f"emrrg: {error}", file=sys.stderr)
        return 2
    card = {
        "schema": "emrrg.evaluation/1",
        "checkpoint_sha256": checkpoint.fingerprint(args.checkpoint),
        "settings_sha256": checkpoint.settings_fingerprint(args.checkpoint),
        "films": args.films[0].name,
        "more": [path.name for path in args.films[1:]],
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
        _show(card)
    return 0


def _read(args: argparse.Namespace) -> dict[str, Any]:
    """The films, what is known of them and the report texts, as `evaluate` takes them; no `studies` where the split has none."""
    sets = [read_studies(path) for path in args.films]
    judged = [[s for s in some if s.split == args.split] for some in sets]
    if not judged[0]:
        return {"studies": []}
    if args.limit:
        judged = [some[:: max(1, -(-len(some) // args.limit))] for some in judged]
    studies, more = judged[0], [s for some in judged[1:] for s in some]
    read = read_radiologists(args.radiologists)
    path = args.reports or args.films[0].with_name("reports.jsonl")
    return {
        "studies": studies,
        "more": more,
        "truths": {s.id: truth_of(s, read.get(s.id)) for s in [*studies, *more]},
        "learn": [s for s in sets[0] if s.split == "train" != args.split],
        "reports": read_reports(path, "train") if args.reports or path.is_file() else [],
    }


def _baseline_names(folders: Sequence[Path]) -> list[str]:
    """Raises ConfigError where two would be called the same."""
    names = [baseline_name(path) for path in folders]
    if taken := [n for i, n in enumerate(names) if n in (*names[:i], "constant", "label_blind", "nearest")]:
        raise ConfigError(
            f"More than one baseline would be called {taken[0]}: give --beside folders names of their own."
        )
    return names


def _show(card: Mapping[str, Any]) -> None:
    """Every score that has a value, a line each."""
    rows = {**{f"paths, {name}": row for name, row in card["paths"].items()}, **card["scores"]}
    for source, row in rows.items():
        for name, score in row.items():
            if score["value"] is not None:
                print(f"{source:18s} {name:32s} {score['value']:8.3f}  [{score['low']}, {score['high']}]  n {score['n']}")  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument(
        "--films", type=Path, nargs="+", required=True, help="one or more files; `overall` covers the first"
    )
    parser.add_argument("--radiologists", type=Path, help="radiologists' readings of some of the films")
    parser.add_argument("--split", default="val")
    parser.add_argument(
        "--reports",
        type=Path,
        help="report texts for the baselines; default: reports.jsonl beside the first films, if it exists",
    )
    parser.add_argument("--limit", type=int, default=0, help="at most this many films, the same share of every source")
    parser.add_argument("--paths", type=int, default=PATHS, help="how many films are drafted again for `paths`")
    parser.add_argument(
        "--deletions", type=int, default=60, help="how many drafts are tested by hiding the top of a map"
    )
    parser.add_argument(
        "--neighbours", type=int, default=1000, help="how many training films are searched for the nearest one"
    )
    parser.add_argument(
        "--beside",
        type=Path,
        action="append",
        default=[],
        help="another checkpoint, scored as a baseline under its folder's name, such as projector-only tuning "
        "(train.finetune --design projector); may be given more than once",
    )
    parser.add_argument(
        "--cleaning",
        choices=[*DATASETS, AS_WRITTEN],
        help="clean references and drafts, and truncate references, as the released code does for this data set: 60 tokens for iu_xray, 100 for "
        "the others; none leaves texts as they are. Default: the data set that all films come from, else iu_xray",
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
    return parser


if __name__ == "__main__":
    sys.exit(main())
