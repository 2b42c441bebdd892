"""Writing drafts with guesses, token by token, and `generate` of the plain language model, in one run: python benchmarks/decode.py [--json]

guessed    as the app drafts: the phrasebook guesses, the model reads the guess in one pass and keeps what it would have written itself
plain      the same model, greedy, a token a pass
beams N    with --beams N, that many, guessed; `plain beams N` without guesses
generate   transformers' `generate` of the base language model, which sees no film: as many tokens after a prompt as long, greedy and with N beams

--films FILMS.jsonl takes films of a split (val); without it chests are drawn. The films are seen beforehand and cost no time here. Each repeat writes
every draft once in every way, one way after the other, after a warm-up; a speed is all tokens over the median of the repeats.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from emrrg_core.config import DecodeConfig
from emrrg_core.explain.faithfulness import drawn_chest
from emrrg_core.films.film import model_input
from emrrg_core.model.checkpoint import load
from emrrg_core.model.emrrg import Emrrg, FilmTokens
from emrrg_core.model.generation import stream
from emrrg_core.model.proposals import Phrasebook
from emrrg_core.model.writing import Writing
from emrrg_core.reporter import DEFAULT_CHECKPOINT


def films_of(model: Emrrg, args: argparse.Namespace) -> list[FilmTokens]:
    """What the language model sees of each film."""
    size = model.config.vision.image_size
    rng = np.random.default_rng(0)
    if args.films:
        from emrrg_core.data.studies import read_studies
        from train.evaluate import load_films

        studies = [s for s in read_studies(args.films) if s.split == args.split]
        pictures = load_films([studies[i] for i in rng.permutation(len(studies))[: args.count]], size)
    else:
        pictures = [model_input(drawn_chest(size, rng), size) for _ in range(args.count)]
    with torch.inference_mode():
        return [model.encode(torch.from_numpy(np.asarray(p)).reshape(1, 1, *np.asarray(p).shape)) for p in pictures]


def drafts(model: Emrrg, films: Sequence[FilmTokens], beams: int, book: Phrasebook | None) -> tuple[list[Writing], int]:
    """Each film's draft, one after the other, and the passes that they took."""
    found, passes = [], 0
    for film in films:
        steps = [writing for (writing,) in stream(model, film, DecodeConfig(beams=beams), book)]
        passes += len(steps)
        found.append(steps[-1])
    return found, passes


def same(one: Sequence[Writing], other: Sequence[Writing]) -> int:
    """How many of the drafts have the same tokens."""
    return sum([t.id for t in a.tokens] == [t.id for t in b.tokens] for a, b in zip(one, other, strict=True))


def generate(model: Emrrg, films: Sequence[FilmTokens], lengths: Sequence[int], beams: int = 1) -> None:
    for film, length in zip(films, lengths, strict=True):
        prompt, _ = model.prompt(film)
        model.llm.generate(
            inputs_embeds=prompt,
            attention_mask=torch.ones(prompt.shape[:2], dtype=torch.long),
            min_new_tokens=length,
            max_new_tokens=length,
            do_sample=False,
            num_beams=beams,
            pad_token_id=model.tokenizer.eos_token_id,
        )


def base(args: argparse.Namespace, dtype: torch.dtype) -> Emrrg:
    """The same weights, with the language model's own attention."""
    model, _ = load(args.checkpoint)
    model.llm.to(dtype)
    model.llm.set_attn_implementation("sdpa")
    return model


def measure(args: argparse.Namespace) -> dict[str, Any]:
    model, _ = load(args.checkpoint)
    book = Phrasebook.load(args.checkpoint, model.tokenizer)
    if book is None:
        raise SystemExit(f"{args.checkpoint} has no phrases.json: make it with `python -m train.phrases`.")
    films = films_of(model, args)
    plain, plain_passes = drafts(model, films, 1, None)
    guessed, passes = drafts(model, films, 1, book)
    lengths = [len(draft.tokens) + draft.finished for draft in plain]  # the end symbol is written too
    ways: dict[str, Callable[[], object]] = {
        "guessed": lambda: drafts(model, films, 1, book),
        "plain": lambda: drafts(model, films, 1, None),
    }
    tokens = dict.fromkeys(ways, sum(lengths))
    beams: dict[str, dict[str, float]] = {}
    of_beams: dict[int, list[int]] = {}
    for k in args.beams:
        alone, alone_passes = drafts(model, films, k, None)
        helped, helped_passes = drafts(model, films, k, book)
        of_beams[k] = [len(draft.tokens) + draft.finished for draft in alone]
        beams[str(k)] = {
            "passes": helped_passes,
            "plain_passes": alone_passes,
            "identical_to_plain": same(alone, helped),
        }
        ways[f"beams {k}"] = lambda k=k: drafts(model, films, k, book)  # type: ignore[misc]
        ways[f"plain beams {k}"] = lambda k=k: drafts(model, films, k, None)  # type: ignore[misc]
        tokens |= dict.fromkeys((f"beams {k}", f"plain beams {k}"), sum(of_beams[k]))
    for dtype in (torch.float32, torch.bfloat16):
        other, named = base(args, dtype), str(dtype).removeprefix("torch.")
        ways[f"generate {named}"] = lambda other=other: generate(other, films, lengths)  # type: ignore[misc]
        tokens[f"generate {named}"] = sum(lengths)
        for k, mine in of_beams.items():
            ways[f"generate {named}, beams {k}"] = lambda other=other, mine=mine, k=k: generate(other, films, mine, k)  # type: ignore[misc]
            tokens[f"generate {named}, beams {k}"] = sum(mine)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(args.repeats + 1):
        for name, way in ways.items():
            begun = time.perf_counter()
            with torch.inference_mode():
                way()
            if repeat:
                seconds[name].append(time.perf_counter() - begun)
    speed = {name: tokens[name] / statistics.median(times) for name, times in seconds.items()}
    best = max(speed["generate float32"], speed["generate bfloat16"])
    for number, row in beams.items():
        theirs = max(speed[f"generate {dtype}, beams {number}"] for dtype in ("float32", "bfloat16"))
        row["ratio_over_generate"] = speed[f"beams {number}"] / theirs
        row["ratio_over_plain"] = speed[f"beams {number}"] / speed[f"plain beams {number}"]
    pairs = [
        (a, b) for one, two in zip(plain, guessed, strict=True) for a, b in zip(one.tokens, two.tokens, strict=False)
    ]
    drift = max(abs(a.log_prob - b.log_prob) for a, b in pairs)
    return {
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "precision": str(model.llm.dtype).removeprefix("torch."),
        "drafts": len(films),
        "tokens_a_draft": sum(lengths) / len(lengths),
        "identical_to_plain": same(plain, guessed),
        "largest_difference_of_log_prob": drift,
        "passes_a_draft": passes / len(films),
        "accepted_per_pass": sum(lengths) / passes,
        "plain_passes": plain_passes,
        "tokens_per_second": speed,
        "seconds_a_draft": {name: statistics.median(times) / len(films) for name, times in seconds.items()},
        "ratio_over_generate": speed["guessed"] / best,
        "ratio_over_plain": speed["guessed"] / speed["plain"],
        "beams": beams,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=DEFAULT_CHECKPOINT)
    parser.add_argument("--films", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--count", type=int, default=8, help="films (default 8)")
    parser.add_argument("--beams", type=int, nargs="*", default=[], help="beam searches to measure too, such as 3 5")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    found = measure(args)
    if args.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{found['machine']}; {found['drafts']} drafts of {found['tokens_a_draft']:.0f} tokens, {found['precision']}")
    for name, rate in found["tokens_per_second"].items():
        print(f"{name:26} {rate:7.1f} tokens/s   {found['seconds_a_draft'][name]:6.2f} s a draft")
    print(f"guessed: {found['ratio_over_generate']:.1f} times generate, {found['ratio_over_plain']:.1f} times plain")
    print(
        f"{found['accepted_per_pass']:.1f} tokens a pass; {found['identical_to_plain']} of {found['drafts']} drafts identical"
    )
    for number, row in found["beams"].items():
        print(
            f"{number} beams: {row['ratio_over_generate']:.1f} times generate, {row['ratio_over_plain']:.1f} times plain beams; "
            f"{row['passes']} passes, without guesses {row['plain_passes']}; {row['identical_to_plain']} of {found['drafts']} drafts identical"
        )


if __name__ == "__main__":
    main()
