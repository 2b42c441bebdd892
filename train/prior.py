"""Teaches a checkpoint to read a prior film (emrrg_core.model.prior_film), and measures it. Nothing that the checkpoint has learned is changed.

    python -m train.prior --checkpoint assets/checkpoints/small --films FILMS.jsonl --out runs/prior
    python -m train.prior --checkpoint assets/checkpoints/small --films FILMS.jsonl --out runs/prior --score --json

No film set here says how a finding has changed, so pairs of known change are drawn: a normal film and a second one of the same patient, or the same
film taken otherwise where there is no second; a finding is drawn on both, of the same shape at the same place, or on one of them. It is new, larger,
smaller (each width by a third to four fifths), unchanged (within 3 %), or resolved. Training pairs are of training patients, thresholds are set on
development patients, scores are of `val`. Two films of one patient without a drawing are pairs too: there nothing is to be called changed.

First the reader of changes is fitted to what the frozen tower sees of the pairs. Then the tokens of the prior film, and the keys and values through
which the hybrid layers see them, learn from findings and changes that are made up, told by train/report_templates.py. --out keeps each part, so a run
that was stopped goes on; `prior.safetensors` is put beside the checkpoint's weights.

Scores (--score), of drawn pairs of `val`, with bootstrap 95 % intervals over pairs:
    told            share of pairs in which the draft says how the drawn finding has changed
    right           of these, share that say the true change; by change too
    read            share of pairs in which the drawn finding was read in the film that has it
    follows         share of drafts that tell exactly the changes of their tokens
    paths           the same drafts under another pair's prior film, without any, and with all gates shut: share that tell the same changes
    real            see `real_pairs`; of `val` and development films
    still           of two films of one patient, share of drafts that call anything new, larger, smaller or resolved, for films that both are
                    labelled normal; `unpaired` the words of change in drafts without a prior film
"""

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emrrg_core.config import DecodeConfig
from emrrg_core.data.studies import FilmCache, Study, augment, development, normalise, read_studies
from emrrg_core.errors import DataError
from emrrg_core.films.synthetic_findings import Sign, draw
from emrrg_core.model import checkpoint, prior_film
from emrrg_core.model.disease_queries import Seen
from emrrg_core.model.emrrg import IGNORED, Emrrg, FilmTokens
from emrrg_core.model.finding_tokens import NAMES, Finding, Presence, select_findings
from emrrg_core.model.generation import write
from emrrg_core.model.language_model import prefers_bfloat16
from emrrg_core.model.prior_film import CHANGES, COMPARED, ChangeReader, PriorFilm, numbers
from emrrg_core.model.proposals import Phrasebook
from emrrg_core.report.draft import compose
from emrrg_core.text.changes import Change, changes
from emrrg_core.text.labeler import LABELS, prior_words
from emrrg_core.text.metrics import bootstrap
from train.finetune import pad, tokens_of
from train.loop import Numbers, Part, Run, load_trained, train
from train.paths import shut
from train.report_templates import made_up, tell, with_prior
from train.targets import lungs_of
from train.tower import see_films

SIGNS = (Sign.OPACITY, Sign.NODULE, Sign.EFFUSION)  # in the order of COMPARED
GROWTH = (4 / 3, 1.8)  # of a finding that is larger: its width over what it was
STILL = 0.03  # of one that is unchanged, at most
RIGHT = 0.95  # of the changes that are told, at least, on development pairs, which the fitting is stopped by too: of others it is less
CHANGING = 4.0  # weight of a token that says, or decides, how a finding has changed
_CHANGING = re.compile(
    r"(?:, (?:new|larger|smaller|unchanged|resolved)[^.,]*|(?<=[a-z])[.,]|The[^.]*of the prior film has resolved)"
)
RUN = Run(
    steps=280,
    batch=8,
    learning_rates={"prior.tables": 2e-3, "prior.layers": 8e-4},
    warmup=10,
    weight_decay=0.02,
    save_every=60,
)


@dataclass(frozen=True)
class Pair:
    """A film and its prior film, (s, s) float32 in [0, 255] each, and how `name` has changed; None: nothing was drawn."""

    now: np.ndarray
    before: np.ndarray
    name: str | None
    change: Change | None


def bases(studies: Sequence[Study]) -> list[tuple[Study, Study]]:
    """A normal film and another of the same patient, where there is one, else itself. Patients with two films come first, each in both orders."""
    by_patient: dict[str, list[Study]] = {}
    for study in studies:
        if study.abnormal is False:
            by_patient.setdefault(study.patient, []).append(study)
    two = [(a, b) for films in by_patient.values() for a in films[:4] for b in films[:4] if a is not b]
    one = [(films[0], films[0]) for films in by_patient.values() if len(films) == 1]
    return two + one


def drawn_pair(films: Sequence[np.ndarray], lungs: Sequence[np.ndarray], seed: Sequence[int]) -> Pair:
    """films: now and before, without a finding. lungs: their masks. Raises ValueError where a mask shows too little."""
    rng = np.random.default_rng(list(seed))
    which, change = int(rng.integers(len(SIGNS))), CHANGES[int(rng.integers(len(CHANGES)))]
    growth = float(rng.uniform(*GROWTH)) if change in (Change.LARGER, Change.SMALLER) else 1 + float(rng.uniform(-STILL, STILL))  # fmt: skip
    sizes = [growth**0.5, growth**-0.5] if change is not Change.SMALLER else [growth**-0.5, growth**0.5]
    shown = [change is not Change.RESOLVED, change is not Change.NEW]
    place = int(rng.integers(1 << 31))  # of one generator for both films: the same finding at the same place
    made = []
    for film, mask, size, there in zip(films, lungs, sizes, shown, strict=True):
        grey = film.astype(np.float32)
        if there:
            grey, _ = draw(film, mask, SIGNS[which], np.random.default_rng(place), size)
        made.append(augment(grey, rng)[0])
    return Pair(made[0], made[1], COMPARED[which], change)


def drawn_pairs(model: Emrrg, studies: Sequence[Study], cache: FilmCache, count: int, seed: int) -> Iterator[Pair]:
    """About `count` pairs of known change: of patients with two normal films each base several times, then of the others. A base whose lungs the
    tower does not see gives none."""
    pairs = bases(studies)
    if not pairs:
        raise DataError("There are no normal films to draw on.")
    rng = np.random.default_rng(seed)
    two = [pair for pair in pairs if pair[0] is not pair[1]]
    one = [pair for pair in pairs if pair[0] is pair[1]]
    chosen = [two[i] for i in rng.integers(len(two), size=count // 2)] if two else []
    chosen += [one[i] for i in rng.integers(len(one), size=count - len(chosen))] if one else []
    masks: dict[str, np.ndarray | None] = {}
    for number, pair in enumerate(chosen):
        for study in pair:
            if study.id not in masks:
                seen = see_films(lambda images: model.see(images.unsqueeze(1)), [cache[study]], _device(model))
                masks[study.id] = lungs_of(seen.patch_lungs()[0].numpy(), cache.size)
        lungs = [mask for study in pair if (mask := masks[study.id]) is not None]
        if len(lungs) == 2:
            with contextlib.suppress(ValueError):
                yield drawn_pair([cache[study] for study in pair], lungs, [seed, number])


@torch.inference_mode()
def seen_pairs(model: Emrrg, pairs: Sequence[Pair]) -> tuple[Seen, Seen]:
    """What the tower sees of the films and of their prior films."""
    films = [[pair.now for pair in pairs], [pair.before for pair in pairs]]
    now, before = (see_films(lambda images: model.see(images.unsqueeze(1)), some, _device(model)) for some in films)
    return now, before


def _device(model: Emrrg) -> torch.device:
    return next(model.parameters()).device


# ------------------------------------------------------------------------------------------------- the reader of changes


def examples(model: Emrrg, pairs: Iterator[Pair]) -> tuple[Tensor, Tensor]:
    """(n, k) numbers of the drawn finding of every pair, and (n,) which change it is."""
    rows, targets, some = list[Tensor](), list[int](), list[Pair]()

    def take() -> None:
        if some:
            found = numbers(*seen_pairs(model, some), model.calibration)
            rows.extend(found[i, COMPARED.index(str(pair.name))] for i, pair in enumerate(some))
            targets.extend(CHANGES.index(pair.change) for pair in some if pair.change)
            print(f"{len(rows)} pairs seen", file=sys.stderr, flush=True)
            some.clear()

    for pair in pairs:
        some.append(pair)
        if len(some) == 64:
            take()
    take()
    return torch.stack(rows), torch.tensor(targets)


def _standard(reader: ChangeReader, found: Tensor) -> Tensor:
    return (found - reader.mean) / reader.spread


def _fit(member: nn.Module, found: Tensor, target: Tensor, held: Tensor, truth: Tensor, steps: int) -> None:
    """One network of a reader, on standard numbers; of its steps the one that is best on `held` stays."""
    optimizer = torch.optim.AdamW(member.parameters(), lr=3e-3, weight_decay=0.05)
    best, kept = float("inf"), member.state_dict()
    for step in range(steps):
        rows = torch.randint(len(found), (min(512, len(found)),))
        noisy = found[rows] + 0.1 * torch.randn(len(rows), found.shape[1])
        loss = F.cross_entropy(member.train()(noisy), target[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10:
            continue
        with torch.no_grad():
            now = float(F.cross_entropy(member.eval()(held), truth))
        if now < best:
            best, kept = now, {name: value.clone() for name, value in member.state_dict().items()}
    member.load_state_dict(kept)


def fit(reader: ChangeReader, learn: tuple[Tensor, Tensor], develop: tuple[Tensor, Tensor], steps: int = 1500) -> dict[str, float]:  # fmt: skip
    """Fit the reader to examples; of all steps the one that is best on `develop` stays. Sets from which probability a change is told: the lowest
    from which RIGHT of the development changes are right."""
    torch.manual_seed(0)
    found, target = learn
    with torch.no_grad():
        reader.mean.copy_(found.mean(0))
        reader.spread.copy_(found.std(0).clamp_min(1e-3))
    reader.requires_grad_(True)
    for member in reader.members:
        _fit(member, _standard(reader, learn[0]), target, _standard(reader, develop[0]), develop[1], steps)
    reader.eval()
    with torch.no_grad():
        found = reader(develop[0])
    sure, said = found.softmax(-1).max(-1)
    right = (said == develop[1]).float()
    order = sure.argsort(descending=True)
    share = right[order].cumsum(0) / torch.arange(1, len(order) + 1)
    enough = (share >= RIGHT).nonzero()
    least = float(sure[order][int(enough.max())]) if len(enough) else 1.0
    reader.least.fill_(least)
    return {
        "pairs": len(target),
        "nll": float(F.nll_loss(found, develop[1])),
        "right": float(right.mean()),
        "least": least,
        "told": float((sure >= least).float().mean()),
    }


# -------------------------------------------------------------------------------------------------------------- the words


class Lessons:
    """Drafts of made-up findings and changes, on films that stay the same: only what the prior film adds learns."""

    def __init__(self, model: Emrrg, films: Seen, run: Run) -> None:
        """films: what was seen of some training films, with tokens."""
        self._model, self._films, self._run = model, films, run
        self._assessed = [name for name in NAMES if model.calibration.assessed(name)]
        denied = model.calibration.thresholds[:, 2]
        self._deniable = {name for name in self._assessed if denied[LABELS.index(NAMES[name])] > 0}

    def loss(self, part: Part) -> tuple[Tensor, Numbers]:
        rng = np.random.default_rng([self._run.seed, part.step])
        changed = False
        chosen = rng.integers(len(self._films.tokens), size=self._run.batch)
        seen = self._films.select(torch.tensor(part.of(chosen.tolist())))
        read = select_findings(seen, self._model.calibration)
        findings, told = [], []
        for mine in read:
            own = made_up(self._assessed, rng, self._deniable) if rng.random() < 0.85 else mine
            own = with_prior(own, rng)
            while not changed and not any(
                f.change for f in own
            ):  # without any, nothing is seen, and nothing can be learned
                own = with_prior(made_up(self._assessed, rng, self._deniable), rng)
            changed = True
            findings.append(own)
            told.append(tell(own, rng))
        rows = [self._encoded(*text) for text in told]
        ids = pad([row[0] for row in rows], IGNORED, torch.long)
        weights = pad([row[1] for row in rows], 0.0, torch.float32)
        found = self._model(self._model.project(seen, findings), ids, weights)
        return found.total * part.share(weights.sum().item()), {"nll": found.nll}

    def _encoded(self, findings: Sequence[str], impression: Sequence[str]) -> tuple[list[int], list[float]]:
        """Token ids of a report and how much each counts: CHANGING where it is said, or decided, how a finding has changed."""
        ids, weights = tokens_of(self._model, findings, impression, deciding=4.0)
        text = compose(" ".join(findings), " ".join(impression))
        changing = np.zeros(len(text) + 1, bool)
        for found in _CHANGING.finditer(text):
            changing[found.start() : found.end()] = True
        spans = self._model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return ids, [
            w * (CHANGING if changing[i:j].any() else 1.0) for w, (i, j) in zip(weights, [*spans, (0, 0)], strict=True)
        ]


@torch.inference_mode()
def with_tokens(model: Emrrg, films: Sequence[np.ndarray], batch: int = 16) -> Seen:
    """What is seen of films (s, s) in [0, 255], tokens too."""
    rows = []
    for i in range(0, len(films), batch):
        images = torch.from_numpy(normalise(np.stack(films[i : i + batch]))).unsqueeze(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=prefers_bfloat16()):
            rows.append(model.see(images))
    parts = {
        name: torch.cat([value.float() for row in rows if (value := getattr(row, name)) is not None])
        for name in ("tokens", "logits", "evidence", "share", "disease", "lungs", "stem")
        if getattr(rows[0], name) is not None
    }
    return Seen(bias=rows[0].bias, **parts)


# --------------------------------------------------------------------------------------------------------------- scores


@dataclass(frozen=True)
class Drafted:
    """Pairs and their drafts. film: what the language model saw."""

    pairs: list[Pair]
    film: FilmTokens
    texts: list[str]


@torch.inference_mode()
def draft_pairs(model: Emrrg, pairs: Sequence[Pair], book: Phrasebook | None) -> Drafted:
    films = []
    for i in range(0, len(pairs), 32):
        some = pairs[i : i + 32]
        now, before = (with_tokens(model, [getattr(p, which) for p in some]) for which in ("now", "before"))
        films.append(model.project(now, model.compare(now, before)))
    film = FilmTokens.join(films)
    return Drafted(list(pairs), film, write_all(model, film, book))


def write_all(model: Emrrg, film: FilmTokens, book: Phrasebook | None) -> list[str]:
    texts: list[str] = []
    for i in range(0, len(film), 32):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=prefers_bfloat16()):
            rows = range(i, min(i + 32, len(film)))
            texts += [w.text for w in write(model, film.select(rows), DecodeConfig(), book)]
        print(f"{len(texts)} drafts", file=sys.stderr, flush=True)
    return texts


def said_of(text: str, name: str) -> Change | None:
    """How a text says that a finding has changed; None where it does not."""
    return dict(changes(text)).get(NAMES[name])


def follows(findings: Sequence[Finding], text: str) -> bool:
    """Whether a text tells exactly the changes that its tokens say."""
    meant = {finding.label: finding.change for finding in findings if finding.change}
    return meant == {label: change for label, change in changes(text) if label != "Pneumonia"}


def scores(model: Emrrg, drafted: Drafted, book: Phrasebook | None) -> dict[str, Any]:
    """Of drawn pairs."""
    pairs, film, texts = drafted.pairs, drafted.film, drafted.texts
    said = [said_of(text, str(pair.name)) for pair, text in zip(pairs, texts, strict=True)]
    told = np.array([change is not None for change in said])
    right = np.array([change is pair.change for change, pair in zip(said, pairs, strict=True)])
    read = np.array([_read(pair, mine) for pair, mine in zip(pairs, film.findings, strict=True)])
    result: dict[str, Any] = {
        "told": bootstrap(told.astype(float)),
        "right": bootstrap(right[told].astype(float)),
        "read": bootstrap(read.astype(float)),
        "told_of_read": bootstrap(told[read].astype(float)),
        "follows": bootstrap(np.array([follows(f, t) for f, t in zip(film.findings, texts, strict=True)], float)),
    }
    for change in CHANGES:
        mine = np.array([pair.change is change for pair in pairs])
        result[f"told_{change}"] = bootstrap(told[mine].astype(float))
        result[f"right_{change}"] = bootstrap(right[mine & told].astype(float))
    for name in COMPARED:
        mine = np.array([pair.name == name for pair in pairs])
        result[f"told_{name}"] = bootstrap(told[mine].astype(float))
        result[f"right_{name}"] = bootstrap(right[mine & told].astype(float))
    return result | {"paths": paths(model, drafted, book)}


def _read(pair: Pair, findings: Sequence[Finding]) -> bool:
    """Whether the drawn finding was read where it is: in the film, or in the prior film of one that has resolved."""
    finding = next(f for f in findings if f.name == pair.name)
    then = finding.earlier.presence if finding.earlier else None
    return (then if pair.change is Change.RESOLVED else finding.presence) is Presence.PRESENT


def paths(model: Emrrg, drafted: Drafted, book: Phrasebook | None) -> dict[str, Any]:
    """The drafts that tell a change, again with a part of what is seen taken away or exchanged for another pair's: which changes they tell then."""
    rows = [i for i, text in enumerate(drafted.texts) if changes(text)]
    if len(rows) < 2:
        return {}
    film, own = drafted.film.select(rows), [dict(changes(drafted.texts[i])) for i in rows]
    other = [*rows[1:], rows[0]]
    swapped = film.exchanged(drafted.film.select(other), prior=True)
    theirs = [dict(changes(drafted.texts[i])) for i in other]
    result = {}
    for name, changed in (("prior_other", swapped), ("prior_withheld", film.without_prior()), ("gates_zero", film)):
        with shut(model) if name == "gates_zero" else contextlib.nullcontext():
            found = [dict(changes(text)) for text in write_all(model, changed, book)]
        result[name] = {
            "kept": bootstrap(np.array([a == b for a, b in zip(found, own, strict=True)], float)),
            "of_other": bootstrap(np.array([a == b for a, b in zip(found, theirs, strict=True)], float)),
            "none": bootstrap(np.array([not a for a in found], float)),
        }
    return result


def still_pairs(studies: Sequence[Study], cache: FilmCache) -> list[Pair]:
    """Two films of one patient that are both labelled normal, one pair a patient, as they are."""
    two = {a.patient: (a, b) for a, b in bases(studies) if a is not b}
    return [Pair(cache[a].astype(np.float32), cache[b].astype(np.float32), None, None) for a, b in two.values()]


def real_pairs(model: Emrrg, studies: Sequence[Study], cache: FilmCache) -> dict[str, dict[str, int]]:
    """Two films of one patient whose labels of a finding are both known, in both orders: how often the finding is read as new, resolved, or as no
    change of these, by what the labels say. From what is read, not from drafts. The labels are those of the films, many of them text-mined."""
    by_patient: dict[str, list[Study]] = {}
    for study in studies:
        by_patient.setdefault(study.patient, []).append(study)
    pairs = [(a, b) for films in by_patient.values() for a in films[:4] for b in films[:4] if a is not b]
    counts: dict[str, dict[str, int]] = {}
    for i in range(0, len(pairs), 32):
        some = pairs[i : i + 32]
        films = [(cache[a].astype(np.float32), cache[b].astype(np.float32)) for a, b in some]
        now, before = seen_pairs(model, [Pair(*both, None, None) for both in films])
        for (a, b), findings in zip(some, model.compare(now, before), strict=True):
            for finding in findings:
                then, here = b.labels.get(finding.label), a.labels.get(finding.label)
                if finding.name not in COMPARED or then is None or here is None:
                    continue
                labelled = (("absent in both", "new"), ("resolved", "present in both"))[then][here]
                told = finding.change if finding.change in (Change.NEW, Change.RESOLVED) else "neither"
                row = counts.setdefault(labelled, {"pairs": 0, "new": 0, "resolved": 0, "neither": 0})
                row["pairs"] += 1
                row[str(told)] += 1
    return counts


def unpaired(model: Emrrg, studies: Sequence[Study], cache: FilmCache, book: Phrasebook | None) -> dict[str, Any]:
    """Share of drafts without a prior film that have a word of change."""
    texts: list[str] = []
    for i in range(0, len(studies), 64):
        seen = with_tokens(model, [cache[s].astype(np.float32) for s in studies[i : i + 64]])
        texts += write_all(model, model.project(seen), book)
    return dict(bootstrap(np.array([bool(changes(t) or prior_words(t)) for t in texts], float)))


# --------------------------------------------------------------------------------------------------------------- program


def teach(model: Emrrg, learn: Sequence[Study], develop: Sequence[Study], cache: FilmCache, args: argparse.Namespace) -> None:  # fmt: skip
    """Fill `model.prior`, part by part, each kept in args.out."""
    prior = model.prior
    assert prior is not None
    args.out.mkdir(parents=True, exist_ok=True)
    made = []
    for number, (name, studies, count) in enumerate((("learn", learn, args.pairs), ("develop", develop, args.pairs // 5))):  # fmt: skip
        path = args.out / f"{name}.pt"
        if not path.is_file():
            torch.save(examples(model, drawn_pairs(model, studies, cache, count, number)), path)
        made.append(torch.load(path, weights_only=True))
    print(json.dumps({"changes": fit(prior.reader, *made)}), flush=True)
    model.requires_grad_(False)
    prior.tables.requires_grad_(True)
    prior.layers.requires_grad_(True)
    rng = np.random.default_rng(0)
    films = with_tokens(model, [cache[learn[i]].astype(np.float32) for i in rng.permutation(len(learn))[:160]])
    films = replace(films, **{name: getattr(films, name).clone() for name in ("tokens", "logits")})
    run = replace(RUN, steps=args.steps, seed=len(args.begin))
    for earlier in args.begin:
        load_trained(model, earlier / "last.pt")
    train(model, run, Lessons(model, films, run).loss, args.out / "words-more" if args.begin else args.out / "words")
    model.eval()


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    model, language = checkpoint.load(args.checkpoint, language_model=args.language_model)
    if prefers_bfloat16():
        model.llm.bfloat16()
    studies = [s for path in args.films for s in read_studies(path)]
    cache = FilmCache(studies, args.cache, model.config.vision.image_size)
    if not args.score:
        torch.manual_seed(0)
        model.prior = PriorFilm(model.llm.config.hidden_size, model.hybrid, model.config.hybrid)
        model.prior.start(model.hybrid, model.finding_tokens, lambda word: _embedding(model, word))
        learn, develop = development([s for s in studies if s.split == "train"])
        teach(model, learn, develop, cache, args)
        print(model.prior.save(args.checkpoint, weights=checkpoint.fingerprint(args.checkpoint)))
        return
    book = Phrasebook.load(args.checkpoint, language.tokenizer)
    held = [s for s in studies if s.split == "val"]
    drawn = draft_pairs(model, list(drawn_pairs(model, held, cache, args.pairs, 2)), book)
    card: dict[str, Any] = {"schema": "emrrg.prior-card/1", "checkpoint": checkpoint.fingerprint(args.checkpoint)}
    card["prior"] = prior_film.fingerprint(args.checkpoint)
    card |= {"pairs": len(drawn.pairs), "drawn": scores(model, drawn, book)}
    card["still"] = _still(draft_pairs(model, still_pairs(held, cache), book))
    _, develop = development([s for s in studies if s.split == "train"])
    card["real"] = real_pairs(model, [*held, *develop], cache)
    card["unpaired"] = unpaired(model, held, cache, book)
    print(json.dumps(card, indent=1) if args.json else _lines(card))


def _still(drafted: Drafted) -> dict[str, Any]:
    moved = [any(change is not Change.UNCHANGED for _, change in changes(text)) for text in drafted.texts]
    return dict(bootstrap(np.array(moved, float)))


def _lines(card: dict[str, Any]) -> str:
    print(json.dumps(card["real"]), file=sys.stderr)
    rows = {**card["drawn"], "still": card["still"], "unpaired": card["unpaired"]}
    rows |= {f"{n} {k}": v for n, row in rows.pop("paths").items() for k, v in row.items()}
    return "\n".join(f"{name}: {s['value']} ({s['low']}–{s['high']}; n {s['n']})" for name, s in rows.items())


def _embedding(model: Emrrg, word: str) -> Tensor:
    ids = torch.tensor(model.tokenizer(word, add_special_tokens=False).input_ids)
    return model.llm.get_input_embeddings()(ids).detach().float().mean(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="whose prior.safetensors is made, or scored")
    parser.add_argument("--films", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True, help="a folder for what is kept between the parts")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--pairs", type=int, default=2000, help="drawn pairs; a fifth as many are for development")
    parser.add_argument("--steps", type=int, default=RUN.steps, help="of the words")
    parser.add_argument(
        "--begin",
        type=Path,
        nargs="+",
        default=[],
        help="the folder `words` of an earlier run, to go on from its end with other cases",
    )
    parser.add_argument("--score", action="store_true", help="measure on val instead of teaching; --pairs: how many")
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")
    parser.add_argument("--language-model", default=None)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


if __name__ == "__main__":
    main()
