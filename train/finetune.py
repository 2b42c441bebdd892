"""EMRRG: adapters, projector and hybrid layers learn to write what the warmed-up tower sees, beside a frozen language model (METHOD §3–§5).

    python -m train.finetune --recipe train/recipes/small.toml --films FILMS.jsonl --reports REPORTS.jsonl --start runs/tower --out runs/finetune

A film with its own report learns that. One that has labels only is told as a report, anew at every step (train/telling.py); normal films may get
simulated findings, whose place is known. Three losses, by the recipe: the report's words, the tower's readings (which keep what the warm-up
taught), and where sentences look.
"""

import argparse
import functools
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from emrrg_core import checkpoint
from emrrg_core.adapters import DESIGNS, ablate
from emrrg_core.config import DecodeConfig, ModelConfig, Settings
from emrrg_core.convert import load_tower
from emrrg_core.data import (
    FilmCache,
    Matcher,
    ReportText,
    Study,
    augment,
    development,
    lung_mask,
    normalise,
    read_reports,
    read_studies,
)
from emrrg_core.decode import write
from emrrg_core.errors import CheckpointError, ConfigError, DataError
from emrrg_core.findings import LABELS, is_abnormal, sentences
from emrrg_core.hybrid import Look
from emrrg_core.language import load_language_model, prefers_bfloat16
from emrrg_core.metrics import text_scores
from emrrg_core.model import IGNORED, Emrrg
from emrrg_core.report import compose, split
from emrrg_core.signs import Signs
from emrrg_core.simulate import Drawn
from emrrg_core.stated import Fact, codes
from emrrg_core.stated import facts as read_facts
from train import limits, warmup
from train.appearance import SEEN, evenly, fit_appearance
from train.loop import Part, Run, apart, load_trained, train
from train.telling import Reading, Statement, Teller, noted_sides
from train.warmup import BalancedSampler, balanced_accuracy, example, seen_lungs

TELLING = 2.5  # weight of a token in a sentence that tells films apart: the first of a section, and every abnormal one


def load_start(model: Emrrg, folder: Path) -> warmup.Reader | None:
    """Put a tower below the fresh adapters: with its readers, which are returned as trained, where train.warmup wrote it; else alone.

    Raises CheckpointError when any key is missing or unexpected, or when the model needs readers and the folder has none.
    """
    path = folder / "reader.safetensors"
    if not path.is_file():
        if model.config.signs.tokens:
            raise CheckpointError(
                f"{folder} has no reader.safetensors, and this recipe's evidence tokens need readers: see train.warmup."
            )
        _load(model.visual_encoder, load_tower(folder).state_dict(), str(folder))
        return None
    state = load_file(path)
    _load(model.visual_encoder, _below(state, "tower."), str(path))
    if not model.config.signs.tokens:
        return None
    _load(model.signs, _below(state, "signs."), str(path))
    reader = warmup.Reader(warmup.VisionMamba(model.config.vision), stem_only=False)
    reader.load_state_dict(state)
    return reader


def _load(module: torch.nn.Module, state: dict[str, Tensor], where: str) -> None:
    found = module.load_state_dict(state, strict=False)
    missing = [name for name in found.missing_keys if ".lora." not in name]
    if missing or found.unexpected_keys:
        raise CheckpointError(f"{where}: missing {missing[:3]}, unexpected {found.unexpected_keys[:3]}")


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def tokens_of(
    model: Emrrg, findings: Sequence[Statement], impression: Sequence[Statement]
) -> tuple[list[int], list[float], list[int]]:
    """Token ids of a report with its end symbol, how much each counts, and which statement it belongs to (-1: none).

    Statements are numbered through, findings first.
    """
    texts = [" ".join(s.text for s in section) for section in (findings, impression)]
    text = compose(*texts)
    encoded = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    telling, owner = np.zeros(len(text) + 1, dtype=bool), np.full(len(text) + 1, -1)
    number = 0
    for (start, _), section in zip(split(text).values(), (findings, impression), strict=True):
        for place, statement in enumerate(section):
            end = start + len(statement.text)
            owner[start:end] = number
            telling[start:end] = place == 0 or is_abnormal(statement.text)
            number, start = number + 1, end + 1
    weights = [TELLING if telling[i:j].any() else 1.0 for i, j in encoded["offset_mapping"]]
    owners = [int(owner[max(i, j - 1)]) for i, j in encoded["offset_mapping"]]
    return [*encoded["input_ids"], model.tokenizer.eos_token_id], [*weights, 1.0], [*owners, -1]


def pad(rows: Sequence[Sequence[float]], value: float, dtype: torch.dtype) -> Tensor:
    """Rows of different lengths to one tensor, filled up on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=dtype)


def readings(signs: Signs) -> list[Reading]:
    """What the tower reads in every film of a batch."""
    labels = signs.labels.detach().float().sigmoid().cpu().numpy()
    regions = signs.regions().detach().sigmoid().cpu().numpy()
    places = signs.places.detach().float().sigmoid().cpu().numpy()
    codes = (signs.appearance.detach() > 0).cpu().numpy()
    return [
        Reading(dict(zip(LABELS, row.tolist(), strict=True)), regions[i], places[i], codes[i])
        for i, row in enumerate(labels)
    ]


def told_facts(model: Emrrg, signs: Signs | None, known: Sequence[Sequence[Fact] | None]) -> Tensor | None:
    """Codes (b, n, 3) of the facts that each film's report states; where those are not known, of what is read. None for a model without facts."""
    most = model.config.signs.facts
    if not most or signs is None:
        return None
    read = read_facts(signs, model.limits, most)
    return codes([mine if told is None else told for told, mine in zip(known, read, strict=True)], most).to(
        signs.labels.device
    )


def away(looks: Sequence[Look], where: Tensor, class_position: int) -> Tensor:
    """-log of the share of the evidence map that lies where a sentence speaks of, mean over guided tokens; 0 when none is.

    The map is the one a reader sees (emrrg_core.evidence): attention × |gate| over hybrid layers, without the class token.
    where: (b, t, g²) in [0, 1]; a token whose row is all zero is not guided.
    """
    guided = where.amax(-1) > 0
    if not guided.any():
        return where.sum()
    seen = torch.stack([look.gate.abs().unsqueeze(-1) * look.attention for look in looks]).sum(0)
    patches = torch.cat([seen[..., :class_position], seen[..., class_position + 1 :]], dim=-1)[guided]
    share = (patches * where[guided]).sum(-1) / patches.sum(-1).clamp_min(1e-8)
    return -(share + 1e-3).log().mean()


@dataclass(frozen=True, kw_only=True)
class Lessons(Settings):
    """What a recipe's [finetune] says beside the loop's settings."""

    views: int = 1  # films of a study at most
    simulate: float = 0.0  # share of normal films that get a finding; needs a reader of lungs (train.warmup)
    readings: float = 0.0  # weight of the tower's readings in the loss
    guide: float = 0.0  # weight of where sentences look
    gate_bias: float | None = None  # a gate that starts open on average; its size is the warm-up's to learn


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument(
        "--variant", help="a section [variants.NAME] of the recipe, whose settings replace those of [model]"
    )
    parser.add_argument(
        "--design",
        choices=[*DESIGNS],
        help="train what a row of the paper's ablation trains, not what the recipe says",
    )
    parser.add_argument("--section", default="finetune", help="the section of the recipe that says how to train")
    parser.add_argument(
        "--begin", type=Path, help="folder of an earlier run of this program, to begin with what it has trained"
    )
    parser.add_argument("--films", type=Path, required=True)
    parser.add_argument(
        "--reports", type=Path, help="report texts for films without their own; not needed where all have one"
    )
    parser.add_argument(
        "--start", type=Path, required=True, help="folder with the tower: of warmup, pretrain, align or convert"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--workers", type=int, default=0, help="processes that decode films, the first time")
    parser.add_argument("--language-model", default=None)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    recipe = tomllib.loads(args.recipe.read_text())
    lessons, run = apart(Lessons, recipe[args.section])
    variant = recipe["variants"][args.variant] if args.variant else {}
    config = ModelConfig.from_dict(recipe["model"] | variant)
    if args.design:
        config = ablate(config, args.design)

    studies = read_studies(args.films)
    cache = FilmCache(studies, args.cache, config.vision.image_size, workers=args.workers)
    reports = read_reports(args.reports, "train") if args.reports else []
    texts = Texts(reports, evidence=config.signs.tokens > 0)
    learn, develop = development([s for s in studies if s.split == "train"])
    learn = [s for s in learn if s.source in run.sources and texts.has(s)]
    if not learn:
        raise DataError(
            f"{args.films.name} has no training film of {sorted(run.sources)} with a report of its own or labels that can be told: "
            "name the recipe's sources, or give --reports."
        )
    sampler = BalancedSampler(learn, run.sources, run.seed)
    print(f"{len(learn)} films, {sum(own_report(s) for s in learn)} of them with their own report", flush=True)

    torch.manual_seed(run.seed)
    # the frozen weights may be bfloat16; what learns stays float32, or small updates would be lost
    fast = prefers_bfloat16("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if fast else torch.float32
    language = load_language_model(args.language_model or config.language, dtype=dtype)
    model = Emrrg(config, language.model, language.tokenizer)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    reader = load_start(model, args.start)
    if lessons.gate_bias is not None:
        for _, layer in model.hybrid.items():
            torch.nn.init.constant_(layer.gate_proj.bias, lessons.gate_bias)
    true = {s.id: lung_mask(s, cache.size) for s in learn if s.lung_mask}
    masks = dict(true)
    if reader is not None:
        if lessons.simulate:
            masks = seen_lungs(reader, [s for s in learn if s.abnormal is False], cache) | masks
    elif lessons.simulate or lessons.readings:
        raise ConfigError(
            "simulate and readings need a tower with readers of signs: start from a folder of train.warmup"
        )
    if args.begin:
        load_trained(model, args.begin / "last.pt")
    if reader is not None:  # of the tower as it is now: the words follow from the bits, whatever these mean
        fit_appearance(model, evenly(learn, run.sources, SEEN), cache)
    del reader

    @functools.lru_cache(maxsize=20_000)
    def encoded(findings: tuple[str, ...], impression: tuple[str, ...]) -> tuple[list[int], list[float], list[int]]:
        return tokens_of(model, [Statement(t) for t in findings], [Statement(t) for t in impression])

    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"{trained:,} trainable parameters", flush=True)
    patches = config.vision.patches

    def loss_of(part: Part) -> tuple[Tensor, dict[str, float]]:
        chosen, rng = sampler.batch(part.step, run.batch)
        drawn = []
        for study in chosen:
            first, finding = example(
                cache[study], study, masks.get(study.id), lessons.simulate, rng, true_mask=study.id in true
            )
            more = [augment(film, rng)[0] for film in cache.views(study)[1 : lessons.views]] if finding is None else []
            drawn.append((study, first, finding, more, int(rng.integers(1 << 31))))
        mine = part.of(drawn)
        examples = [first for _, first, _, _, _ in mine]
        images, views = stack([[first.film, *more] for _, first, _, more, _ in mine])
        tokens = model.see(images.to(part.device), views.to(part.device))
        signs = model.read_signs(tokens) if config.signs.tokens else None
        read = readings(signs) if signs else [None] * len(mine)
        rows, where, stated = [], [], []
        for (study, first, finding, _, seed), reading in zip(mine, read, strict=True):
            findings, impression, facts = texts.tell(study, first, finding, reading, config.vision.grid, seed)
            stated.append(facts)
            row = encoded(tuple(s.text for s in findings), tuple(s.text for s in impression))
            statements, nothing = [*findings, *impression], np.zeros(patches, np.float32)
            places = [s.where if s.where is not None else nothing for s in statements]
            rows.append(row)
            where.append(torch.from_numpy(np.stack([places[o] if o >= 0 else nothing for o in row[2]])))
        ids = pad([row[0] for row in rows], IGNORED, torch.long).to(part.device)
        weights = pad([row[1] for row in rows], 0.0, torch.float32).to(part.device)
        looks: list[Look] = []
        scores = model.log_probs(model.project(tokens, told_facts(model, signs, stated)), ids, looks=looks)
        words = -(scores * weights).sum() / weights.sum()
        loss = words * part.share(weights.sum().item())
        gates = [look.gate.detach().abs().mean() for look in looks]
        numbers = {
            "nll": -(scores.sum() / (ids != IGNORED).sum()).item(),
            "gate": torch.stack(gates).mean().item() if gates else float("nan"),
        }
        if lessons.guide and looks:  # a design without hybrid layers looks nowhere
            targets = torch.nn.utils.rnn.pad_sequence(where, batch_first=True).to(part.device)
            off = away(looks, targets, config.vision.class_position)
            loss = loss + lessons.guide * off * part.share((targets.amax(-1) > 0).sum().item())
            numbers["away"] = off.item()
        if signs is not None and lessons.readings:
            of_signs, more = warmup.loss(signs, examples, part.share)
            loss, numbers = loss + lessons.readings * of_signs, numbers | more
        return loss, numbers

    dev = some([s for s in develop if s.source in run.sources and texts.has(s)], 60, run)

    def after(step: int) -> dict[str, float]:
        model.eval()
        if config.signs.facts:
            model.limits.copy_(limits.fit(model, [s for s in develop if s.source in run.sources], cache))
        checkpoint.save(
            model,
            args.out / "checkpoint",
            language={"name": language.name, "sha256": language.sha256},
            training={"recipe": recipe, "variant": args.variant, "step": step, "data": "see MODEL_CARD.md"},
        )
        scores = develop_drafts(
            model, dev, cache, DecodeConfig.from_dict(recipe.get("decode", {"max_new_tokens": 100}))
        )
        print(f"step {step}: development drafts {scores}", flush=True)
        return scores

    train(model, run, loss_of, args.out, after=after)


def own_report(study: Study) -> bool:
    return bool(study.findings or study.impression)


class Texts:
    """The report of each film: its own; else what is known of it, told (with evidence) or matched with a report text whose findings agree."""

    def __init__(self, reports: Sequence[ReportText], *, evidence: bool) -> None:
        self._matcher = Matcher(reports)
        self._teller = Teller(reports) if reports and evidence else None

    def has(self, study: Study) -> bool:
        """Whether enough is known of a study."""
        if own_report(study):
            return True
        if self._teller is None:
            return study.abnormal is not None and bool(self._matcher.texts(study))
        # it is normal, or one of its findings has a name
        return study.abnormal is False or any(
            value for name, value in study.labels.items() if name not in ("No Finding", "Support Devices")
        )

    def tell(
        self,
        study: Study,
        first: warmup.Example,
        finding: Drawn | None,
        reading: Reading | None,
        grid: int,
        seed: int,
    ) -> tuple[list[Statement], list[Statement], list[Fact] | None]:
        """Findings and impression, and the facts that they state where those are known.

        finding: what was simulated on its first film, whose own report is then no longer true.
        """
        mask = None
        if finding is not None and first.drawn is not None:
            mask = F.adaptive_avg_pool2d(torch.from_numpy(first.drawn)[None], grid).flatten().numpy()
            # a finding smaller than a patch is still in one
            mask = np.maximum(mask, (mask >= 0.9 * max(mask.max(), 0.05)).astype(np.float32))
        if own_report(study) and finding is None:
            return _spoken(study.findings), _spoken(study.impression), None
        if self._teller is None or reading is None:
            texts = self._matcher.texts(study)
            findings, impression = texts[seed % len(texts)]
            return _spoken(findings), _spoken(impression), None
        sides = noted_sides(study.note) if study.note and finding is None else None
        facts = self._teller.facts(first.labels, reading, finding, sides)
        return *self._teller.tell(first.labels, reading, finding, mask, sides), facts


def _spoken(section: str) -> list[Statement]:
    """A section of a report, sentence by sentence; where they look is not known."""
    text = " ".join(section.split())
    return [Statement(text[i:j]) for i, j in sentences(text)]


def stack(studies: Sequence[Sequence[np.ndarray]]) -> tuple[Tensor, Tensor]:
    """Films (s, s) in [0, 255] of every study, as `Emrrg.see` takes them: (b, w, 3, s, s) and (b, w) bool."""
    most = max(map(len, studies))
    views = torch.tensor([[i < len(films) for i in range(most)] for films in studies])
    grey = np.zeros((len(studies), most, *studies[0][0].shape), np.float32)
    for i, films in enumerate(studies):
        grey[i, : len(films)] = np.stack(films)
    return torch.from_numpy(normalise(grey)), views


@torch.inference_mode()
def develop_drafts(
    model: Emrrg, studies: Sequence[Study], cache: FilmCache, decoding: DecodeConfig
) -> dict[str, float]:
    """Scores of drafts of development films: share of distinct ones, balanced accuracy of normal/abnormal per source, and against the films'
    own reports, where there are any, BLEU-4 and CIDEr (METHOD §5.4)."""
    texts = []
    device = model.llama_proj.weight.device
    for i in range(0, len(studies), 20):
        films = torch.from_numpy(normalise(np.stack([cache[s] for s in studies[i : i + 20]]))).unsqueeze(1)
        with torch.autocast(device.type, torch.bfloat16, enabled=prefers_bfloat16(device)):
            texts += [w.text for w in write(model, model.encode(films.to(device)), decoding)]
    print(*texts[::15], sep="\n---\n", flush=True)
    found = {"distinct": len(set(texts)) / max(len(texts), 1)}
    for source in sorted({s.source for s in studies}):
        mine = [i for i, s in enumerate(studies) if s.source == source and s.abnormal is not None]
        truth = np.array([bool(studies[i].abnormal) for i in mine])
        called = np.array([is_abnormal(texts[i]) for i in mine])
        if truth.any() and not truth.all():
            found[f"accuracy_{source}"] = round(balanced_accuracy(truth, called), 3)
    if pairs := [(s, text) for s, text in zip(studies, texts, strict=True) if own_report(s)]:
        references = [compose(s.findings, s.impression) for s, _ in pairs]
        scored = text_scores(references, [text for _, text in pairs], draws=1, meteor=False)
        found |= {"bleu4": scored["bleu4"]["value"], "cider": scored["cider"]["value"]}
    return found


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
