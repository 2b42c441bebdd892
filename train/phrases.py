"""The phrasebook of a checkpoint, by which drafts are guessed and so written in fewer passes (emrrg_core.model.proposals).

    python -m train.phrases --checkpoint assets/checkpoints/small [--random N] [--films FILMS.jsonl [--count N]]

The checkpoint drafts about drawn chests (`drawn_chest`), told findings that nobody read in them: every finding alone on every side, in every zone
and of every severity, every choice of what is denied, and N random choices of several findings. What it writes is kept beside its weights as
phrases.json. No film and no report is needed. With --films it also drafts about training films, as they are read, so that the wording it prefers for
real films is guessed first. What is kept are its own sentences, of which none names a film. About six minutes on two cores.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import combinations, product
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, Python looks beside the script only

from emrrg_core.config import DecodeConfig
from emrrg_core.data.studies import read_studies
from emrrg_core.explain.faithfulness import drawn_chest
from emrrg_core.films.film import model_input
from emrrg_core.model.checkpoint import load
from emrrg_core.model.emrrg import Emrrg
from emrrg_core.model.finding_tokens import ABNORMAL, NAMES, PLACED_BY, SEVERITIES, SIDES, ZONES, Finding, Presence
from emrrg_core.model.generation import write
from emrrg_core.model.proposals import Phrasebook
from emrrg_core.text.labeler import LABELS
from train.evaluate import load_films
from train.report_templates import SIZES, made_up

BATCH = 8


def alone(name: str, others: Sequence[str], deniable: Sequence[str]) -> Iterator[tuple[Finding, ...]]:
    """One finding present, in every form that has words of its own, the others absent where they may be denied."""
    sides = [(side, zone) for side in SIDES for zone in (ZONES if side and name != "effusion" else ("",))]
    for side, zone in sides if name in PLACED_BY else [("", "")]:
        for severity, pneumonia in product(SEVERITIES if name in SIZES else ("",), (False, True)):
            if pneumonia and name != "opacity":
                continue
            mine = [Finding(ABNORMAL, Presence.PRESENT, 0.9, 0.5)]
            for other in others:
                if other == name:
                    mine.append(Finding(name, Presence.PRESENT, 0.9, 0.5, side, zone, severity, pneumonia))
                else:
                    presence = Presence.ABSENT if other in deniable else Presence.OPEN
                    mine.append(Finding(other, presence, 0.1, 0.5))
            yield tuple(mine)


def nothing(others: Sequence[str], deniable: Sequence[str]) -> Iterator[tuple[Finding, ...]]:
    """No finding present: every choice of what is denied, in a film that is normal, abnormal or open as a whole."""
    choices = [set(some) for n in range(len(deniable) + 1) for some in combinations(deniable, n)]
    for absent, whole in product(choices, Presence):
        mine = [Finding(ABNORMAL, whole, 0.5, 0.5)]
        mine += [Finding(n, Presence.ABSENT if n in absent else Presence.OPEN, 0.1, 0.5) for n in others]
        yield tuple(mine)


def told(model: Emrrg, count: int, rng: np.random.Generator) -> list[tuple[Finding, ...]]:
    """All findings that are drafted."""
    thresholds = model.calibration.thresholds
    assessed = [name for name in NAMES if model.calibration.assessed(name)]
    deniable = [n for n in assessed if n != ABNORMAL and float(thresholds[LABELS.index(NAMES[n]), 2]) > 0]
    others = [name for name in assessed if name != ABNORMAL]
    single = [mine for name in others for mine in alone(name, others, deniable)]
    several = [made_up(assessed, rng, deniable) for _ in range(count)]
    return [*single, *nothing(others, deniable), *several]


def learn(
    model: Emrrg, count: int, films: Sequence[np.ndarray] = (), earlier: Phrasebook | None = None, seed: int = 0
) -> Phrasebook:
    """The book of a model. films: (3, s, s) each, drafted about as they are read. earlier: a book that saves time, and teaches nothing."""
    rng = np.random.default_rng(seed)
    size, imagined = model.config.vision.image_size, told(model, count, rng)

    def batches() -> Iterator[tuple[Sequence[np.ndarray], Sequence[tuple[Finding, ...]] | None]]:
        for start in range(0, len(imagined), BATCH):
            some = imagined[start : start + BATCH]
            yield [model_input(drawn_chest(size, rng), size) for _ in some], some
        for start in range(0, len(films), BATCH):
            yield films[start : start + BATCH], None

    drafts: list[tuple[Sequence[Finding], str]] = []
    book = earlier
    for number, (pictures, findings) in enumerate(batches()):
        with torch.inference_mode():
            film = model.project(model.see(torch.from_numpy(np.stack(pictures)).unsqueeze(1)), findings)
            texts = [w.text for w in write(model, film, DecodeConfig(), book)]
        drafts += list(zip(film.findings, texts, strict=True))
        if number % 32 == 31:
            book = earlier or Phrasebook.learn(drafts, model.tokenizer)  # what is known so far guesses the next ones
            print(f"{len(drafts)} of {len(imagined) + len(films)} drafts: {texts[-1]!r}", flush=True)
    return Phrasebook.learn(drafts, model.tokenizer)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--random", type=int, default=600, help="random choices of several findings (default 600)")
    parser.add_argument(
        "--films", type=Path, help="films to draft about as well; only those of the training split are taken"
    )
    parser.add_argument("--count", type=int, default=600, help="how many of them at most (default 600)")
    parser.add_argument("--language-model")
    args = parser.parse_args(argv)
    model, _ = load(args.checkpoint, language_model=args.language_model)
    model.merge_lora()
    films: list[np.ndarray] = []
    if args.films:
        studies = [study for study in read_studies(args.films) if study.split == "train"]
        chosen = np.random.default_rng(0).permutation(len(studies))[: args.count]
        films = load_films([studies[i] for i in chosen], model.config.vision.image_size)
    book = learn(model, args.random, films, Phrasebook.load(args.checkpoint, model.tokenizer))
    book.save(args.checkpoint)
    print(f"{len(book.wordings)} keys, {sum(map(len, book.wordings.values()))} wordings")


if __name__ == "__main__":
    main()
