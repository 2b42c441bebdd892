"""Gives a checkpoint the average film of its training films, so that drafts can be written against it (contrastive decoding).

python -m train.average --checkpoint runs/finetune/checkpoint --films FILMS.jsonl --contrast 1.0 --count 200 --out runs/small
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from emrrg_core import checkpoint
from emrrg_core.data import FilmCache, development, normalise, read_studies
from train.appearance import evenly


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--films", type=Path, required=True)
    parser.add_argument("--contrast", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=256, help="films, drawn evenly from the sources trained on")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    args = parser.parse_args(argv)
    config = checkpoint.read_config(args.checkpoint)
    model, _ = checkpoint.load(args.checkpoint)
    studies = read_studies(args.films)
    cache = FilmCache(studies, args.cache)
    sources = config["training"]["recipe"]["finetune"]["sources"]
    learn, _ = development(
        [s for s in studies if s.split == "train" and s.source in sources and s.abnormal is not None]
    )
    chosen = evenly(learn, sources, args.count)
    total = torch.zeros(1)
    with torch.inference_mode():
        for i in range(0, len(chosen), 16):
            films = torch.from_numpy(normalise(np.stack([cache[s] for s in chosen[i : i + 16]])))
            total = total + model.encode(films.unsqueeze(1)).sum(0)
    model.config = replace(config["model"], contrast=args.contrast)
    model.register_buffer("average_film", total / len(chosen))
    training = {**config["training"], "average_of": len(chosen)}
    checkpoint.save(model, args.out, language=config["language_model"], training=training)
    print(f"{args.out}: written against the mean of {len(chosen)} films with contrast {args.contrast}")


if __name__ == "__main__":
    main()
