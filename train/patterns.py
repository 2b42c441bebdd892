"""Builds what AM-MRG's associative memory holds (emrrg_core.model.associative_memory; docs/method.md 8.2), once, from the training split alone.

    python -m train.patterns --checkpoint assets/checkpoints/small --films FILMS.jsonl --reports REPORTS.jsonl --out runs/patterns.safetensors

Visual patterns: of every label, some training films that have it (--each, drawn with a fixed seed); in each film the cells in which the label speaks
most (emrrg_core.explain.grad_cam.regions: above 0.75 of the strongest, six at most), by the closed form of its logit, or by Grad-CAM with
--grad-cam; of each cell the token that the trained tower makes of it. AM-MRG cuts the cell out and shows it to the tower alone; ours has seen it in
its film. Report patterns: a training report, read by the frozen language model, is the mean of its last hidden states; drawn without regard to
labels, so each comes in proportion (--texts). AM-MRG takes Bio_ClinicalBERT.

Development films, which thresholds are set on, are left out, and so is every film or report of another split. The same inputs give the same file.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from emrrg_core.data.studies import FilmCache, ReportText, Study, development, normalise, read_reports, read_studies
from emrrg_core.errors import DataError
from emrrg_core.explain.grad_cam import CELLS, grad_cam, regions
from emrrg_core.model import checkpoint
from emrrg_core.model.associative_memory import Patterns
from emrrg_core.model.emrrg import Emrrg
from emrrg_core.model.hybrid_decoder import Visual
from emrrg_core.text.labeler import LABELS, NO_FINDING


def chosen(studies: Sequence[Study], each: int, seed: int = 0) -> list[tuple[Study, str]]:
    """Of every label, at most `each` films that have it."""
    found = []
    for number, label in enumerate(LABELS):
        mine = [s for s in studies if s.labels.get(label) == 1 and label != NO_FINDING]
        order = np.random.default_rng([seed, number]).permutation(len(mine))[:each]
        found += [(mine[i], label) for i in sorted(order)]
    return found


def of_regions(
    model: Emrrg, pairs: Sequence[tuple[Study, str]], cache: FilmCache, *, by_gradient: bool, batch: int = 16
) -> tuple[Tensor, list[str], list[str]]:
    """The tokens of all regions (n, d) float32, with the study and the label of each."""
    rows, films, labels = [], [], []
    for i in range(0, len(pairs), batch):
        some = pairs[i : i + batch]
        images = torch.from_numpy(normalise(np.stack([cache[study] for study, _ in some])))
        which = torch.tensor([LABELS.index(label) for _, label in some])
        with torch.no_grad():
            seen = model.see(images.unsqueeze(1))
            patches = model.patches(seen.tokens).float()
        grid = model.config.vision.grid
        if by_gradient:
            maps = grad_cam(model, images, which)
        else:
            speaks = seen.attribution[torch.arange(len(some)), which].clamp_min(0).unflatten(1, (grid, grid))
            maps = speaks / speaks.amax((1, 2), keepdim=True).clamp_min(1e-9)
        for study, label, heat, tokens in zip(*zip(*some, strict=True), maps, patches, strict=True):
            for row, column in regions(heat):
                rows.append(tokens[(row * grid // CELLS) * grid + column * grid // CELLS])
                films.append(study.id)
                labels.append(label)
    if not rows:
        raise DataError("No training film has a label that speaks for itself anywhere: there is nothing to remember.")
    return torch.stack(rows), films, labels


@torch.no_grad()
def of_reports(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model: Emrrg, texts: Sequence[ReportText], batch: int = 16
) -> Tensor:
    """The mean of the last hidden states of each report, (m, h) float32. model: whose hybrid layers are told to see nothing."""
    rows = []
    for i in range(0, len(texts), batch):
        ids = [tokenizer(f"{t.findings} {t.impression}").input_ids[:256] for t in texts[i : i + batch]]
        longest = max(map(len, ids))
        held = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
        blind = Visual(model.hybrid, {}, {})
        hidden = llm.get_decoder()(input_ids=padded, attention_mask=held, visual=blind).last_hidden_state.float()
        rows.append((hidden * held[..., None]).sum(1) / held.sum(1, keepdim=True))
    return torch.cat(rows)


def build(
    model: Emrrg, films: Sequence[Study], texts: Sequence[ReportText], cache: FilmCache, *, each: int, by_gradient: bool
) -> Patterns:
    """films, texts: those that may be remembered. The language model's LoRA must not be in use."""
    visual, studies, labels = of_regions(model, chosen(films, each), cache, by_gradient=by_gradient)
    report = of_reports(model.llm, model.tokenizer, model, texts)
    return Patterns(visual, report, tuple(studies), tuple(t.id for t in texts), tuple(labels))


def may_be_remembered(films: Sequence[Path], reports: Path, texts: int) -> tuple[list[Study], list[ReportText]]:
    """Training films without the development ones, and `texts` training reports drawn with a fixed seed."""
    learn, _ = development([s for path in films for s in read_studies(path, "train")])
    known = read_reports(reports, "train")
    order = np.random.default_rng(0).permutation(len(known))[:texts]
    return learn, [known[i] for i in sorted(order)]


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    model, _ = checkpoint.load(args.checkpoint, language_model=args.language_model)
    if not model.config.queries.depth:
        raise DataError(f"{args.checkpoint} reads no findings: nothing tells which regions to remember.")
    model.without_lora()
    studies = [s for path in args.films for s in read_studies(path)]
    learn, texts = may_be_remembered(args.films, args.reports, args.texts)
    cache = FilmCache(studies, args.cache, model.config.vision.image_size)
    found = build(model, learn, texts, cache, each=args.each, by_gradient=args.grad_cam)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    found.save(args.out)
    counts = ", ".join(f"{label} {found.labels.count(label)}" for label in LABELS if label in found.labels)
    print(f"{args.out}: memory.visual = {len(found.visual)} ({counts}), memory.report = {len(found.report)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="whose tower and queries find the regions")
    parser.add_argument("--films", type=Path, nargs="+", required=True)
    parser.add_argument("--reports", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a .safetensors file")
    parser.add_argument("--each", type=int, default=40, help="films of a label; default: 40")
    parser.add_argument("--texts", type=int, default=600, help="reports; default: 600")
    parser.add_argument("--grad-cam", action="store_true", help="find the regions by Grad-CAM")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--language-model", default=None)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


if __name__ == "__main__":
    main()
