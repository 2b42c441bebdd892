"""EMRRG: adapters, projector and hybrid layers learn to write what the warmed-up tower sees, beside a frozen language model (METHOD §3–§5).

    python -m train.finetune --recipe train/recipes/small.toml --films FILMS.jsonl --reports REPORTS.jsonl \
        --tower runs/warmup/tower.safetensors --out runs/finetune

and then, with --stage refine --start runs/finetune/checkpoint, the second stage, in which wording follows appearance (data.Wording).

Films that have labels but no report are paired, anew at every step, with report texts of the training split whose findings agree.
"""

import argparse
import functools
import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from emrrg_core import checkpoint
from emrrg_core.config import ModelConfig
from emrrg_core.data import (
    FilmCache,
    Matcher,
    Study,
    Wording,
    augment,
    codes,
    development,
    normalise,
    read_reports,
    read_studies,
)
from emrrg_core.errors import CheckpointError
from emrrg_core.findings import is_abnormal, sentences
from emrrg_core.language import load_language_model, prefers_bfloat16
from emrrg_core.model import IGNORED, Emrrg
from emrrg_core.report import compose, split
from emrrg_core.vision import VisionMamba
from train.loop import Run, train
from train.warmup import BalancedSampler

TELLING = 2.5  # weight of a token in a sentence that tells films apart: the first of a section, and every abnormal one


def load_tower(model: Emrrg, path: Path) -> None:
    """Put a tower's weights below the fresh adapters. Raises CheckpointError when any key is missing or unexpected."""
    found = model.visual_encoder.load_state_dict(load_file(path), strict=False)
    missing = [name for name in found.missing_keys if ".lora." not in name]
    if missing or found.unexpected_keys:
        raise CheckpointError(f"{path}: missing {missing[:3]}, unexpected {found.unexpected_keys[:3]}")


def tokens_and_weights(model: Emrrg, findings: str, impression: str) -> tuple[list[int], list[float]]:
    """Token ids of a report with its end symbol, and how much each counts."""
    text = compose(findings, impression)
    encoded = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    telling = np.zeros(len(text) + 1, dtype=bool)
    for start, end in split(text).values():  # not by searching: an impression may repeat a sentence of the findings
        section = text[start:end]
        for number, (i, j) in enumerate(sentences(section)):
            if number == 0 or is_abnormal(section[i:j]):
                telling[start + i : start + j] = True
    weights = [TELLING if telling[i:j].any() else 1.0 for i, j in encoded["offset_mapping"]]
    return [*encoded["input_ids"], model.tokenizer.eos_token_id], [*weights, 1.0]


def pad(rows: Sequence[Sequence[float]], value: float, dtype: torch.dtype) -> Tensor:
    """Rows of different lengths to one tensor, filled up on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=dtype)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--films", type=Path, required=True)
    parser.add_argument("--reports", type=Path, required=True)
    parser.add_argument("--tower", type=Path, required=True, help="tower.safetensors of the warm-up")
    parser.add_argument("--stage", default="finetune", help="section of the recipe: finetune, then refine")
    parser.add_argument("--start", type=Path, help="checkpoint of the stage before this one")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--language-model", default=None)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    recipe = tomllib.loads(args.recipe.read_text())
    run, config = Run.from_dict(recipe[args.stage]), ModelConfig.from_dict(recipe["model"])
    # a report must be this much more probable, a token, under its own film
    margin = float(recipe["margin"]["log_prob"])
    weight_of_margin = float(recipe["margin"]["weight"])

    studies = read_studies(args.films)
    cache = FilmCache(studies, args.cache)
    reports = read_reports(args.reports, "train")
    matcher = Matcher(reports)
    learn, _ = development([s for s in studies if s.split == "train" and s.source in run.sources and matcher.texts(s)])
    sampler = BalancedSampler(learn, run.sources, run.seed)
    print(f"{len(learn)} films, {len(reports)} report texts", flush=True)

    torch.manual_seed(run.seed)
    # the frozen weights may be bfloat16; what learns stays float32, or small updates would be lost
    dtype = torch.bfloat16 if prefers_bfloat16() else torch.float32
    language = load_language_model(args.language_model or config.language, dtype=dtype)
    model = Emrrg(config, language.model, language.tokenizer)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    load_tower(model, args.tower)
    if args.start:
        checkpoint.restore(model, args.start)
    wording, code_of = None, {}
    if "films" in recipe.get(args.stage + "_wording", {}):
        wording = Wording(reports)
        learn = some(learn, recipe[args.stage + "_wording"]["films"], run)
        code_of = dict(zip([s.id for s in learn], codes(features(args.tower, config, learn, cache)), strict=True))
        sampler = BalancedSampler(learn, run.sources, run.seed)

    @functools.cache
    def encoded(pair: tuple[str, str]) -> tuple[list[int], list[float]]:
        return tokens_and_weights(model, *pair)

    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"{trained:,} trainable parameters", flush=True)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        chosen, rng = sampler.batch(step, run.batch)
        pairs = []
        for study in chosen:
            texts = matcher.texts(study)
            pair = texts[rng.integers(len(texts))]
            if wording is not None:
                code = code_of[study.id].tolist()
                positive = frozenset(name for name, value in study.labels.items() if value)
                pair = wording.abnormal(*pair, code, positive) if study.abnormal else wording.normal(code)
            pairs.append(encoded(pair))
        images = torch.from_numpy(normalise(np.stack([augment(cache[s], rng) for s in chosen]))).unsqueeze(1)
        ids = pad([p[0] for p in pairs], IGNORED, torch.long)
        weights = pad([p[1] for p in pairs], 0.0, torch.float32)
        visual = model.encode(images)
        scores = model.log_probs(visual, ids)
        loss = -(scores * weights).sum() / weights.sum()
        numbers = {"nll": -(scores.sum() / (ids != IGNORED).sum()).item(), "preferred": float("nan"), "margin": 0.0}
        warming = [layer.warm_up_gate.tanh().item() for _, layer in model.hybrid.items() if layer.gate.has_warmup]
        numbers["gate"] = float(np.mean(warming)) if warming else float("nan")
        if weight_of_margin and step % 4 == 0:
            # the same reports under films of the other class: the telling sentences must become less probable
            other = _others([bool(s.abnormal) for s in chosen], rng)
            pair = [i for i, j in enumerate(other) if j >= 0][: run.batch // 2]
            if pair:
                taken = visual[[other[i] for i in pair]]
                under_other = model.log_probs(taken, ids[pair])
                share = weights[pair] * (weights[pair] > 1)
                gap = ((scores[pair] - under_other) * share).sum(1) / share.sum(1)
                hinge = torch.relu(margin - gap).mean()
                loss = loss + weight_of_margin * hinge
                numbers |= {"preferred": (gap > 0).float().mean().item(), "margin": hinge.item()}
        return loss, numbers

    def after(step: int) -> None:
        model.eval()
        notes = {"recipe": recipe, "step": step, "data": "see MODEL_CARD.md"}
        checkpoint.save(
            model,
            args.out / "checkpoint",
            language={"name": language.name, "sha256": language.sha256},
            training=notes,
        )
        print(f"step {step}: saved", flush=True)

    train(model, run, loss_of, args.out, after=after)


def some(studies: Sequence[Study], count: int, run: Run) -> list[Study]:
    """About `count` studies, from every source its share of the batches; a source that has fewer gives all."""
    rng, total = np.random.default_rng(run.seed), sum(run.sources.values())
    chosen: list[Study] = []
    for source, share in run.sources.items():
        mine = [s for s in studies if s.source == source]
        chosen += [mine[i] for i in rng.permutation(len(mine))[: round(count * share / total)]]
    return chosen


@torch.inference_mode()
def features(tower: Path, config: ModelConfig, studies: Sequence[Study], cache: FilmCache) -> np.ndarray:
    """Mean token of the warmed-up tower for every film, (n, d)."""
    encoder = VisionMamba(config.vision).eval()
    encoder.load_state_dict(load_file(tower), strict=True)
    rows = []
    for i in range(0, len(studies), 16):
        films = normalise(np.stack([cache[s] for s in studies[i : i + 16]]))
        with torch.autocast("cpu", torch.bfloat16, enabled=prefers_bfloat16()):
            rows.append(encoder(torch.from_numpy(films)).mean(1).float())
    return torch.cat(rows).numpy()


def _others(abnormal: Sequence[bool], rng: np.random.Generator) -> list[int]:
    """For every film of a batch the number of one of the other class, or -1 where there is none."""
    pools = {flag: [i for i, a in enumerate(abnormal) if a is flag] for flag in (True, False)}
    return [int(rng.choice(pools[not a])) if pools[not a] else -1 for a in abnormal]


if __name__ == "__main__":
    main()
