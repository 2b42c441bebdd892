"""Teaches EMRRG to write what a film shows: trains adapters, projector and hybrid layers beside a frozen language model (docs/method.md 3–5).

    python -m train.finetune --recipe train/recipes/small.toml --films FILMS.jsonl FILMS_MORE.jsonl --radiologists RADIOLOGISTS.jsonl \\
        --teacher runs/teacher --start runs/tower --out runs/finetune

There are two kinds of recipe.

With disease queries ([model] queries) the tower comes from train.tower. First its findings are calibrated. Then, at every step, the findings that it
reads in a film become finding tokens for the hybrid layers and a report in words (train/report_templates.py), which the model learns to write. For
a share of the films the findings are made up, so that the model learns to follow the finding tokens rather than what usually goes together.

Without queries, as in the published method, the model learns the film's own report, or a text of REPORTS.jsonl that agrees with its labels.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from emrrg_core.config import DecodeConfig, ModelConfig, Sections, Settings, Views
from emrrg_core.data.studies import (
    FilmCache,
    Matcher,
    ReportText,
    Study,
    augment,
    development,
    normalise,
    read_reports,
    read_studies,
)
from emrrg_core.errors import CheckpointError, ConfigError, DataError
from emrrg_core.model import checkpoint
from emrrg_core.model.associative_memory import Patterns
from emrrg_core.model.convert import load_tower
from emrrg_core.model.disease_queries import Seen
from emrrg_core.model.emrrg import IGNORED, Emrrg
from emrrg_core.model.finding_tokens import NAMES, Finding, Presence, select_findings
from emrrg_core.model.generation import write
from emrrg_core.model.language_model import LanguageModel, load_language_model, prefers_bfloat16
from emrrg_core.model.other_towers import TransformersTower, load_published
from emrrg_core.model.parameter_count import part_of
from emrrg_core.model.partial_lora import DESIGNS, ablate
from emrrg_core.report.draft import Sentence, compose, split
from emrrg_core.reporter import differences
from emrrg_core.text.labeler import LABELS, is_abnormal, sentences
from emrrg_core.text.metrics import text_scores
from emrrg_core.text.sections import IMPRESSION
from train import calibrate, tower
from train.kept_features import KeptFeatures
from train.loop import Numbers, Part, Run, apart, load_trained, precision, train
from train.measures import balanced_accuracy
from train.report_templates import made_up, tell
from train.targets import Example, Truth, near_copies, read_radiologists, truth_of
from train.teacher import Readings, weights_of

TELLING = 2.5  # weight of a token in a sentence that tells films apart: the first of a section, and every abnormal one
_LANGUAGE = ("llm.", "hybrid.", "llama_proj", "layer_norm")  # what `--language` takes from an earlier checkpoint
Taught = Literal["both", "findings", "impression"]


@dataclass(frozen=True, kw_only=True)
class Lessons(Settings):
    """What a recipe's [finetune] says beside the loop's settings."""

    views: int = 1  # films of a study at most
    simulate: float = 0.0  # share of normal films on which a finding is drawn (with disease queries)
    mirror: float = 0.0  # see train.tower
    places: float = 1.0
    distil: float = 0.3
    made_up: float = 0.5  # share of films whose findings are made up (with disease queries)
    readings: float = 0.0  # weight of what the tower is to see, as train.tower taught it, in the loss
    deciding: float = 1.0  # see `tokens_of`
    focus: float = 0.0  # weight of `attention_cost`
    # whose words count: Findings up to the Impression's heading; the Impression after all of the Findings has been read. Where sections are separate,
    # only that section's LoRA and projector learn: what the sections share learns from both
    section: Taught = "both"
    tower: bool = True  # the tower's adapters learn too; False: it is as `--begin` has left it
    projector: bool = True  # the same of the projector
    lora: bool = True  # the same of the language model's LoRA
    # 0: a film is shown otherwise at every step. n: in n ways, the first as it is; what the frozen tower sees of each is kept on disk, for later
    # epochs and runs (train/kept_features.py)
    ways: int = 0
    recompute: bool = False  # the language model's layers again in the backward pass: less memory, more time
    heads: bool = False  # only what is read learns, on the tower as it is, and no word (with disease queries)
    gate_bias: float | None = None  # a gate that starts open on average; its size is the warm-up's to learn

    def __post_init__(self) -> None:
        if self.ways < 0:
            raise ConfigError(f"ways must be 0 or more, not {self.ways}.")


# ------------------------------------------------------------------------------------------------------------- starting


def load_start(model: Emrrg, folder: Path) -> None:
    """Put a tower below the fresh adapters: with its readers where train.tower wrote it, else alone; of another kind than Mamba, as transformers
    saves it; of a checkpoint with its adapters, readers and calibration.

    Raises CheckpointError when any key is missing or unexpected, or when the model needs readers and the folder has none.
    """
    path = folder / "eye.safetensors"
    parts = ["visual_encoder", *(("disease", "lungs") if model.config.queries.depth else ())]
    if _is_checkpoint(folder):
        path, parts = folder / "model.safetensors", [*parts, *(("calibration",) if model.config.queries.depth else ())]
    if not path.is_file():
        if model.config.queries.depth:
            raise CheckpointError(
                f"{folder} has no eye.safetensors, and this recipe has disease queries: see train.tower."
            )
        if isinstance(model.visual_encoder, TransformersTower):
            load_published(model.visual_encoder, folder)
        else:
            _load(model.visual_encoder, load_tower(folder).state_dict(), str(folder))
        return
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read as weights: {error}") from error
    for part in parts:
        mine = {n.removeprefix(f"{part}."): v for n, v in state.items() if n.startswith(f"{part}.")}
        _load(getattr(model, part), mine, str(path))


def _is_checkpoint(folder: Path) -> bool:
    """Whether it is one of ours: transformers' folders have a config.json too."""
    path = folder / "config.json"
    return path.is_file() and "schema" in json.loads(path.read_text(encoding="utf-8"))


def _load(module: torch.nn.Module, state: dict[str, Tensor], where: str) -> None:
    found = module.load_state_dict(state, strict=False)
    missing = [name for name in found.missing_keys if ".lora." not in name]
    if missing or found.unexpected_keys:
        raise CheckpointError(f"{where}: missing {missing[:3]}, unexpected {found.unexpected_keys[:3]}")


def load_language(model: Emrrg, weights: Path) -> None:
    """Begin with the report language that an earlier checkpoint learned: hybrid layers, projector and the language model's LoRA.

    Raises CheckpointError where one of them is missing or of another shape.
    """
    state = {name: value for name, value in weights_of(weights).items() if name.startswith(_LANGUAGE)}
    own = {name: value for name, value in model.own_state().items() if name.startswith(_LANGUAGE)}
    if different := sorted({(n, v.shape) for n, v in own.items()} ^ {(n, v.shape) for n, v in state.items()}):
        raise CheckpointError(f"{weights} was trained with another language model or recipe: {different[0][0]} differs")
    model.load_state_dict(state, strict=False)


# --------------------------------------------------------------------------------------------------------------- texts


def tokens_of(
    model: Emrrg, findings: Sequence[str], impression: Sequence[str], deciding: float = 1.0
) -> tuple[list[int], list[float]]:
    """Token ids of a report with its end symbol, and how much each counts.

    deciding: factor on the tokens at which it is decided what is said next: the first of every sentence and of the Impression's heading, and the end.
    """
    text = compose(" ".join(findings), " ".join(impression))
    encoded = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    telling, starts = np.zeros(len(text) + 1, dtype=bool), [max(text.find(IMPRESSION.rstrip()), 0)]
    for (start, _), section in zip(split(text).values(), (findings, impression), strict=True):
        for place, sentence in enumerate(section):
            end = start + len(sentence)
            starts.append(start - 1)  # the space before it is the first token's
            telling[start:end] = place == 0 or is_abnormal(sentence)
            start = end + 1
    weights = [TELLING if telling[i:j].any() else 1.0 for i, j in encoded["offset_mapping"]]
    weights = [
        weight * deciding if any(i <= start < j for start in starts) else weight
        for weight, (i, j) in zip(weights, encoded["offset_mapping"], strict=True)
    ]
    return [*encoded["input_ids"], model.tokenizer.eos_token_id], [*weights, deciding]


def of_section(model: Emrrg, ids: list[int], weights: list[float], section: Taught) -> tuple[list[int], list[float]]:
    """What `tokens_of` gave, for lessons of one section: the Findings with the Impression's heading, or all, of which the Impression counts."""
    if section == "both":
        return ids, weights
    length = model.findings_length(ids)
    if section == "findings":
        return ids[:length], weights[:length]
    return ids, [*[0.0] * length, *weights[length:]]


def pad(rows: Sequence[Sequence[float]], value: float, dtype: torch.dtype) -> Tensor:
    """Rows of different lengths to one tensor, filled up on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=dtype)


def own_report(study: Study) -> bool:
    return bool(study.findings or study.impression)


def has_section(study: Study, section: Taught) -> bool:
    """Whether a report of the study's own has a section; one that is matched to it has both."""
    own = {"both": "any", "findings": study.findings, "impression": study.impression}
    return not own_report(study) or bool(own[section].strip())


class Texts:
    """The report of each film for a recipe without queries: its own, else a matching report text."""

    def __init__(self, reports: Sequence[ReportText]) -> None:
        self._matcher = Matcher(reports)

    def has(self, study: Study) -> bool:
        """Whether enough is known of a study."""
        return own_report(study) or (study.abnormal is not None and bool(self._matcher.texts(study)))

    def tell(self, study: Study, rng: np.random.Generator) -> tuple[list[str], list[str]]:
        """The sentences of Findings and Impression."""
        if own_report(study):
            return _spoken(study.findings), _spoken(study.impression)
        texts = self._matcher.texts(study)
        findings, impression = texts[int(rng.integers(len(texts)))]
        return _spoken(findings), _spoken(impression)


def _spoken(section: str) -> list[str]:
    text = " ".join(section.split())
    return [text[i:j] for i, j in sentences(text)]


def stack(studies: Sequence[Sequence[np.ndarray]]) -> tuple[Tensor, Tensor]:
    """Films (s, s) in [0, 255] of every study, as `Emrrg.see` takes them: (b, w, 3, s, s) and (b, w) bool."""
    most = max(map(len, studies))
    views = torch.tensor([[i < len(films) for i in range(most)] for films in studies])
    grey = np.zeros((len(studies), most, *studies[0][0].shape), np.float32)
    for i, films in enumerate(studies):
        grey[i, : len(films)] = np.stack(films)
    return torch.from_numpy(normalise(grey)), views


# --------------------------------------------------------------------------------------------------------------- lessons


class Ways:
    """In which of its ways a film is shown, where a recipe keeps what the tower sees of them (`ways`)."""

    def __init__(self, count: int) -> None:
        self._count = count

    def draw(self, name: str, rng: np.random.Generator) -> tuple[np.random.Generator, bool]:
        """The generator that draws a film, and whether it is shown as it is: always the first of its ways. name: the film's, the same in every run.

        With no ways, `rng` goes on and no film is shown as it is.
        """
        if not self._count:
            return rng, False
        way = int(rng.integers(self._count))
        return np.random.default_rng([way, *hashlib.sha256(name.encode()).digest()[:8]]), way == 0


def leave(model: Emrrg, lessons: Lessons) -> None:
    """Freeze what these lessons leave as it is, but for the tower."""
    for name, parameter in model.named_parameters():
        if not _learns(name, model.config, lessons):
            parameter.requires_grad_(False)


def _learns(name: str, config: ModelConfig, lessons: Lessons) -> bool:
    part = part_of(name)
    if (part == "projector" and not lessons.projector) or (part == "LLM LoRA" and not lessons.lora):
        return False
    if config.sections is Sections.JOINT or lessons.section == "both":
        return True
    impression = ".impression." in name or name.split(".")[0].endswith("_impression")
    return part in ("projector", "LLM LoRA") and impression == (lessons.section == "impression")


class WordLessons:
    """The loss of the report's words: shared by both kinds of recipe."""

    def __init__(self, model: Emrrg, deciding: float = 1.0, focus: float = 0.0, section: Taught = "both") -> None:
        self._model, self._focus = model, focus
        self._encoded = functools.lru_cache(maxsize=20_000)(
            lambda f, i: of_section(model, *tokens_of(model, f, i, deciding), section)
        )

    def loss(
        self,
        seen: Seen,
        told: Sequence[tuple[list[str], list[str]]],
        part: Part,
        findings: Sequence[Sequence[Finding]] | None = None,
    ) -> tuple[Tensor, Numbers]:
        """Mean negative log-likelihood of the words, weighted, and numbers for the log."""
        rows = [self._encoded(tuple(f), tuple(i)) for f, i in told]
        ids = pad([row[0] for row in rows], IGNORED, torch.long).to(part.device)
        weights = pad([row[1] for row in rows], 0.0, torch.float32).to(part.device)
        found = self._model(self._model.project(seen, findings), ids, weights, focus=self._focus)
        numbers = {"nll": found.nll, "gate": found.gate}
        if self._model.config.queries.depth:
            numbers["on_findings"] = found.on_findings
        if self._focus:
            numbers["attention_cost"] = found.attention_cost
        return found.total * part.share(weights.sum().item()), numbers


class FindingLessons:
    """For recipes with disease queries: the tower reads findings in a film, and the report is made of these findings."""

    def __init__(
        self, model: Emrrg, words: WordLessons, films: "FilmSet", plan: "Plan", teacher: Readings | None
    ) -> None:
        """Calibrates the model, unless only what is read learns."""
        self._model, self._words, self._films, self._plan = model, words, films, plan
        own = plan.lessons
        copies = near_copies(films.learn, [*films.develop, *films.held], films.cache)
        self.studies = [s for s in films.learn if s.id not in copies]
        self._reading = tower.Lessons(simulate=own.simulate, mirror=own.mirror, places=own.places, distil=own.distil)
        if own.heads:
            model.requires_grad_(False)
            model.disease.requires_grad_(True)
            self._fixed = None
        else:
            found = self._calibrate()
            self._fixed = None if own.tower else found  # nothing that reads learns: it would be found again
        if not own.tower:
            model.visual_encoder.requires_grad_(False)
        self._ways, self._look = Ways(own.ways), KeptFeatures(model, films.kept) if own.ways else None
        self._examples = tower.Films(self.studies, films.cache, films.truths, teacher, self._reading)
        self._sampler = tower.Sampler(self.studies, plan.run.sources, plan.run.seed)
        self._assessed = [name for name in NAMES if model.calibration.assessed(name)]
        denied_below = model.calibration.thresholds[:, 2]
        self._deniable = {name for name in self._assessed if denied_below[LABELS.index(NAMES[name])] > 0}

    def loss(self, part: Part) -> tuple[Tensor, Numbers]:
        own = self._plan.lessons
        chosen, rng = self._sampler.step(part.step, self._plan.run.batch)
        drawn = part.of([(self._example(s, rng), int(rng.integers(1 << 31))) for s in chosen])
        examples = [example for example, _ in drawn]
        images = torch.from_numpy(normalise(np.stack([e.film for e in examples]))).unsqueeze(1)
        with torch.set_grad_enabled(own.tower or own.heads):
            seen = self._model.see(images.to(part.device), look=self._look)
        if own.heads:
            return tower.loss_of_seen(seen, examples, self._reading, part.share)
        findings, told = self._report(seen, [seed for _, seed in drawn])
        loss, numbers = self._words.loss(seen, told, part, findings)
        if own.readings:
            kept, _ = tower.loss_of_seen(seen, examples, self._reading, part.share)
            loss, numbers = loss + own.readings * kept, {**numbers, "readings": kept.detach()}
        return loss, numbers

    def _example(self, study: Study, rng: np.random.Generator) -> Example:
        rng, as_it_is = self._ways.draw(study.id, rng)
        return self._examples.example(study, rng, as_it_is=as_it_is)

    def _report(
        self, seen: Seen, seeds: Sequence[int]
    ) -> tuple[list[Sequence[Finding]], list[tuple[list[str], list[str]]]]:
        """What is reported of each film, read in it or made up, and its sentences."""
        findings: list[Sequence[Finding]] = []
        told = []
        for read, seed in zip(select_findings(seen, self._model.calibration), seeds, strict=True):
            rng = np.random.default_rng(seed)
            invented = rng.random() < self._plan.lessons.made_up
            mine = made_up(self._assessed, rng, self._deniable) if invented else read
            findings.append(mine)
            told.append(tell(mine, rng))
        return findings, told

    @contextlib.contextmanager
    def as_saved(self) -> Iterator[dict[str, Any]]:
        """Calibrated anew inside. Afterwards as before: the steps to come must not depend on where a run was stopped."""
        if self._fixed is not None:
            yield {"calibration": self._fixed}
            return
        before = {name: value.clone() for name, value in self._model.calibration.state_dict().items()}
        yield {"calibration": self._calibrate()}
        self._model.calibration.load_state_dict(before)

    def _calibrate(self) -> dict[str, dict]:
        model, films = self._model, self._films
        seen = calibrate.see_all(model, films.develop, films.cache)
        drawn = calibrate.see_drawn(model, seen, films.develop, films.cache)
        return calibrate.fit(model.calibration, seen, films.develop, films.truths, drawn)


class ReportLessons:
    """For recipes without disease queries, as published: a film teaches its own report, or one that agrees with its labels."""

    def __init__(self, model: Emrrg, words: WordLessons, films: "FilmSet", plan: "Plan", texts: Texts) -> None:
        """Raises DataError where no film has a report."""
        self._model, self._words, self._cache, self._plan, self._texts = model, words, films.cache, plan, texts
        self.studies = [s for s in films.learn if texts.has(s) and has_section(s, plan.lessons.section)]
        if not self.studies:
            raise DataError(
                f"{films.name} has no training film of {sorted(plan.run.sources)} with a report of its own or labels that a report text "
                "matches: name the recipe's sources, or give --reports."
            )
        if not plan.lessons.tower:
            model.visual_encoder.requires_grad_(False)
        ways = plan.lessons.ways
        self._ways, self._look = Ways(ways), KeptFeatures(model, films.kept) if ways else None
        self._sampler = tower.Sampler(self.studies, plan.run.sources, plan.run.seed)

    def loss(self, part: Part) -> tuple[Tensor, Numbers]:
        chosen, rng = self._sampler.step(part.step, self._plan.run.batch)
        drawn = part.of([(self._views(s, rng), self._texts.tell(s, rng)) for s in chosen])
        images, views = stack([films for films, _ in drawn])
        seen = self._model.see(images.to(part.device), views.to(part.device), look=self._look)
        return self._words.loss(seen, [told for _, told in drawn], part)

    def _views(self, study: Study, rng: np.random.Generator) -> list[np.ndarray]:
        shown = []
        for i, film in enumerate(self._cache.views(study)[: self._plan.lessons.views]):
            mine, as_it_is = self._ways.draw(f"{study.id} {i}", rng)
            shown.append(film.astype(np.float32) if as_it_is else augment(film, mine)[0])
        return shown

    def as_saved(self) -> contextlib.AbstractContextManager[dict[str, Any]]:
        """Nothing is calibrated."""
        return contextlib.nullcontext({})


# --------------------------------------------------------------------------------------------------------------- program


@dataclass(frozen=True)
class Plan:
    """A recipe, with what the command line changes of it."""

    recipe: dict[str, Any]
    variant: str | None
    config: ModelConfig
    lessons: Lessons
    run: Run


@dataclass(frozen=True)
class FilmSet:
    """The films of a run. truths: of the films in `learn` and `develop`, by study id."""

    name: str  # of the first file, for messages
    learn: list[Study]  # training films of the recipe's sources
    develop: list[Study]  # training films that are not learned: for thresholds and scores
    held: list[Study]  # films of the other splits
    truths: dict[str, Truth]
    cache: FilmCache
    kept: Path  # folder of what a frozen tower sees, where a recipe keeps it


def read_plan(args: argparse.Namespace) -> Plan:
    recipe = tomllib.loads(args.recipe.read_text())
    lessons, run = apart(Lessons, recipe[args.section])
    variant = recipe["variants"][args.variant] if args.variant else {}
    config = ModelConfig.from_dict(recipe["model"] | variant)
    if args.design:
        config = ablate(config, args.design)
    return Plan(recipe, args.variant, config, lessons, run)


def read_films(args: argparse.Namespace, plan: Plan) -> FilmSet:
    studies = [study for path in args.films for study in read_studies(path)]
    # stitched only where no finding is read: masks and boxes are of a study's first film
    stitched = plan.config.study.views is Views.STITCH and not plan.config.queries.depth
    size, together = plan.config.vision.image_size, plan.lessons.views if stitched else 1
    cache = FilmCache(studies, args.cache, size, workers=args.workers, together=together)
    learn, develop = development([s for s in studies if s.split == "train"])
    learn = [s for s in learn if s.source in plan.run.sources]
    held = [s for s in studies if s.split != "train"]
    read = read_radiologists(args.radiologists)
    truths = {s.id: truth_of(s, read.get(s.id)) for s in [*learn, *develop]}
    return FilmSet(args.films[0].name, learn, develop, held, truths, cache, args.cache)


def build_model(args: argparse.Namespace, plan: Plan) -> tuple[Emrrg, LanguageModel]:
    """The recipe's model, with what it begins with: the tower of --start, the report language of --language, an earlier run of --begin."""
    torch.manual_seed(plan.run.seed)
    # the frozen weights may be bfloat16; what learns stays float32, or small updates would be lost
    dtype = torch.bfloat16 if precision() == "bf16" else torch.float32
    language = load_language_model(args.language_model or plan.config.language, dtype=dtype)
    model = Emrrg(plan.config, language.model, language.tokenizer)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    load_start(model, args.start)
    if args.patterns:
        if not hasattr(model, "memory"):
            raise ConfigError("This recipe has no associative memory to put patterns into: set [model] memory.")
        model.memory.hold(Patterns.load(args.patterns))
    if args.language:
        load_language(model, args.language)
    if plan.lessons.gate_bias is not None:
        for _, layer in model.hybrid.items():
            torch.nn.init.constant_(layer.gate_proj.bias, plan.lessons.gate_bias)
    if args.begin and (args.begin / "last.pt").is_file():
        load_trained(model, args.begin / "last.pt")
    elif args.begin:
        checkpoint.restore(model, args.begin)
    if plan.lessons.recompute:
        if plan.config.sections is Sections.SEPARATE and plan.lessons.section == "both":
            raise ConfigError(
                "recompute would compute one section's layers again with the other's LoRA: teach one section at a time, or leave it out."
            )
        # not reentrant: what hybrid layers note of a look is no output of theirs, and learns all the same
        model.llm.activation_checkpointing_enable({"use_reentrant": False})
    return model, language


def make_lessons(args: argparse.Namespace, model: Emrrg, films: FilmSet, plan: Plan) -> FindingLessons | ReportLessons:
    leave(model, plan.lessons)
    words = WordLessons(model, plan.lessons.deciding, plan.lessons.focus, plan.lessons.section)
    if plan.config.queries.depth and plan.config.queries.told:
        return FindingLessons(model, words, films, plan, Readings(args.teacher) if args.teacher else None)
    return ReportLessons(model, words, films, plan, Texts(read_reports(args.reports, "train") if args.reports else []))


class Checkpoints:
    """Saves the model after a step, and scores its drafts of some development films."""

    def __init__(
        self,
        model: Emrrg,
        language: LanguageModel,
        lessons: FindingLessons | ReportLessons,
        films: FilmSet,
        plan: Plan,
        out: Path,
    ) -> None:
        self._model, self._lessons, self._cache, self._plan, self._out = model, lessons, films.cache, plan, out
        self._language = {"name": language.name, "sha256": language.sha256}
        self._films = some([s for s in films.develop if s.source in plan.run.sources], 80, plan.run)

    def save(self, step: int) -> dict[str, float]:
        model, recipe = self._model, self._plan.recipe
        model.eval()
        with self._lessons.as_saved() as notes:
            training = {"recipe": recipe, "variant": self._plan.variant, "step": step, "data": "see MODEL_CARD.md"}
            checkpoint.save(model, self._out / "checkpoint", language=self._language, training=training | notes)
            decoding = DecodeConfig.from_dict(recipe.get("decode", {"max_new_tokens": 100}))
            scores = develop_drafts(model, self._films, self._cache, decoding)
            print(f"step {step}: development drafts {scores}", flush=True)
        return scores


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    plan = read_plan(args)
    films = read_films(args, plan)
    model, language = build_model(args, plan)
    lessons = make_lessons(args, model, films, plan)
    reported = sum(own_report(s) for s in lessons.studies)
    print(f"{len(lessons.studies)} films, {reported} of them with their own report", flush=True)
    print(f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,} trainable parameters", flush=True)
    checkpoints = Checkpoints(model, language, lessons, films, plan, args.out)
    train(model, plan.run, lessons.loss, args.out, after=checkpoints.save)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument(
        "--variant", help="a section [variants.NAME] of the recipe, whose settings replace those of [model]"
    )
    parser.add_argument(
        "--design",
        choices=[*DESIGNS],
        help="train the parameters of a row of the paper's ablation instead of the recipe's",
    )
    parser.add_argument("--section", default="finetune", help="section of the recipe with the training settings")
    parser.add_argument(
        "--begin", type=Path, help="folder of an earlier run of this program whose trained weights to start from"
    )
    parser.add_argument(
        "--language", type=Path, help="weights of an earlier checkpoint whose report language to start from"
    )
    parser.add_argument("--films", type=Path, nargs="+", required=True)
    parser.add_argument("--radiologists", type=Path, help="radiologists' readings of some of the films")
    parser.add_argument(
        "--teacher", type=Path, help="folder of train.teacher: readings for films without labels or lung masks"
    )
    parser.add_argument(
        "--reports", type=Path, help="report texts for films without their own; for recipes without queries"
    )
    parser.add_argument(
        "--start",
        type=Path,
        required=True,
        help="folder with the tower, from train.tower, pretrain, align or convert; of another kind than Mamba, as transformers saves it",
    )
    parser.add_argument("--patterns", type=Path, help="what the associative memory holds, of train.patterns")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--workers", type=int, default=0, help="processes that decode the films on the first run")
    parser.add_argument("--language-model", default=None)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


@torch.inference_mode()
def develop_drafts(
    model: Emrrg, studies: Sequence[Study], cache: FilmCache, decoding: DecodeConfig
) -> dict[str, float]:
    """Scores of drafts of development films: balanced accuracy of normal/abnormal per source, how many say an abnormality exactly where one was
    read, and against the films' own reports, where there are any, BLEU-4 and CIDEr (docs/method.md 5.4)."""
    texts, read = [], []
    device = model.device
    for i in range(0, len(studies), 20):
        films = torch.from_numpy(normalise(np.stack([cache[s] for s in studies[i : i + 20]]))).unsqueeze(1)
        with torch.autocast(device.type, torch.bfloat16, enabled=prefers_bfloat16(device)):
            film = model.encode(films.to(device))
            texts += [w.text for w in write(model, film, decoding)]
        read += list(film.findings)
    print(*texts[::15], sep="\n---\n", flush=True)
    found: dict[str, float] = {}
    for source in sorted({s.source for s in studies}):
        mine = [i for i, s in enumerate(studies) if s.source == source and s.abnormal is not None]
        truth = np.array([bool(studies[i].abnormal) for i in mine])
        called = np.array([is_abnormal(texts[i]) for i in mine])
        if truth.any() and not truth.all():
            found[f"accuracy_{source}"] = round(balanced_accuracy(truth, called), 3)
    if read:
        whole = [any(f.presence is Presence.PRESENT for f in mine) for mine in read]
        found["abnormal_as_read"] = float(np.mean([is_abnormal(t) == w for t, w in zip(texts, whole, strict=True)]))
        found["as_read"] = float(np.mean([not differences(r, said(t)) for r, t in zip(read, texts, strict=True)]))
    if pairs := [(s, text) for s, text in zip(studies, texts, strict=True) if own_report(s)]:
        references = [compose(s.findings, s.impression) for s, _ in pairs]
        scored = text_scores(references, [text for _, text in pairs], draws=1, meteor=False)
        found |= {"bleu4": scored["bleu4"]["value"], "cider": scored["cider"]["value"]}
    return found


def said(text: str) -> list[Sentence]:
    """The sentences of a report's text, as `differences` takes them."""
    return [
        Sentence(text[a + i : a + j], section, i, j, (0, 0), 1.0, ())
        for section, (a, b) in split(text).items()
        for i, j in sentences(text[a:b])
    ]


def some(studies: Sequence[Study], count: int, run: Run) -> list[Study]:
    """About `count` studies, from every source its share of the batches; a source that has fewer gives all."""
    rng = np.random.default_rng(run.seed)
    total = sum(share for source, share in run.sources.items() if any(s.source == source for s in studies))
    chosen: list[Study] = []
    for source, share in run.sources.items():
        mine = [s for s in studies if s.source == source]
        chosen += [mine[i] for i in rng.permutation(len(mine))[: round(count * share / total)]]
    return chosen


if __name__ == "__main__":
    main()
