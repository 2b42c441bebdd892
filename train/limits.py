"""From which probability on a reading is a fact (emrrg_core.stated): chosen on the development films, never on `val`.

train.finetune does it whenever it saves. The last step of a checkpoint, which is given a second reader (train.reader), and appearance components of
the tower as fine-tuning has left it:

python -m train.limits --checkpoint runs/still/checkpoint --films FILMS.jsonl --second runs/reader0 runs/reader1 --out runs/limited
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from emrrg_core import checkpoint
from emrrg_core.data import NO_FINDING, FilmCache, Study, development, read_studies
from emrrg_core.errors import CheckpointError, ConfigError
from emrrg_core.findings import LABELS
from emrrg_core.model import Emrrg
from emrrg_core.signs import SecondReader, Signs
from emrrg_core.stated import CHANNELS, IN_ANY_FILM, LIMITS
from train.appearance import SEEN, evenly, fit_appearance, read_all
from train.reader import weights_of

ALARMS = 0.01  # share of a source's normal films in which a sign may be read that is not there
FEWEST = 15  # films that have a label, and that have it not, before a limit is chosen for it
NEVER = 1.0  # the limit of a label that no film has: its reader has learned nothing
_LOWEST, _HIGHEST = 0.05, 0.999


def fit(model: Emrrg, studies: Sequence[Study], cache: FilmCache) -> Tensor:
    """The limits (len(LIMITS),) that these films ask for; the model is left in evaluation mode."""
    return choose(read_all(model, [cache[s] for s in studies]), studies)


def choose(signs: Signs, studies: Sequence[Study]) -> Tensor:
    """As `fit`, from the readings of the films.

    No Finding: where the balanced accuracy of normal against abnormal, the mean over sources that have enough of both, is highest. A large heart
    and signs that lie somewhere: what at most ALARMS of the normal films of any source exceed. Other labels: where F1 over the films
    whose label is known is highest. One half where there are fewer than FEWEST films of either kind; NEVER where none has the label.
    """
    limits = dict.fromkeys(LIMITS, 0.5)
    labels = {label: signs.labels[:, i].sigmoid().numpy() for i, label in enumerate(LABELS)}
    anywhere = {
        name: signs.regions()[:, channel].flatten(1).amax(1).sigmoid().numpy() for name, channel in CHANNELS.items()
    }
    sources = np.array([s.source if s.abnormal is False else None for s in studies])
    normal = [sources == s for s in set(sources) - {None} if (sources == s).sum() >= FEWEST]
    for name in (*IN_ANY_FILM, *CHANNELS):
        if normal:
            limits[name] = max(float(np.quantile((labels | anywhere)[name][mine], 1 - ALARMS)) for mine in normal)
    kinds = []
    for source in sorted({s.source for s in studies}):
        mine = [i for i, s in enumerate(studies) if s.source == source and s.abnormal is not None]
        truth = np.array([bool(studies[i].abnormal) for i in mine], bool)
        if min(truth.sum(), (~truth).sum()) >= FEWEST:
            kinds.append((truth, labels[NO_FINDING][mine]))
    if kinds:
        limits[NO_FINDING] = _best(
            np.concatenate([p for _, p in kinds]),
            lambda limit: np.mean([((p[t] < limit).mean() + (p[~t] >= limit).mean()) / 2 for t, p in kinds]),
        )
    for label in LABELS:
        known = [i for i, s in enumerate(studies) if label in s.labels]
        truth = np.array([studies[i].labels[label] == 1 for i in known], bool)
        if not truth.any() and label not in (NO_FINDING, *IN_ANY_FILM):
            limits[label] = NEVER
        elif label not in (NO_FINDING, *IN_ANY_FILM) and min(truth.sum(), (~truth).sum()) >= FEWEST:
            p = labels[label][known]
            limits[label] = _best(
                p, lambda limit, p=p, t=truth: 2 * (t & (p >= limit)).sum() / ((p >= limit).sum() + t.sum())
            )
    found = (limits[name] for name in LIMITS)
    return torch.tensor([NEVER if limit == NEVER else min(max(limit, _LOWEST), _HIGHEST) for limit in found])


def _best(values: np.ndarray, score: Callable[[float], float]) -> float:
    """The limit with the highest score; of limits between the same two values the middle one."""
    found = np.unique(values)
    between = np.concatenate([found[:1], (found[:-1] + found[1:]) / 2])
    return float(between[int(np.argmax([score(limit) for limit in between]))])


def add_second(model: Emrrg, folders: Sequence[Path]) -> None:
    """Give a model the stems and readers of labels of `train.reader`, as a second reader. Raises CheckpointError when they do not fit."""
    model.config = replace(model.config, signs=replace(model.config.signs, second=True, members=len(folders)))
    second = SecondReader(model.config.vision, len(folders))
    states = [weights_of(folder) for folder in folders]
    mine = {
        f"stems.{i}.{name.removeprefix('stem.')}": value
        for i, state in enumerate(states)
        for name, value in state.items()
        if name.startswith("stem.")
    }
    try:
        # the mean of their logits, as one linear layer
        mine["labels.weight"] = torch.cat([state["labels.weight"] for state in states], dim=1) / len(states)
        mine["labels.bias"] = torch.stack([state["labels.bias"] for state in states]).mean(0)
        second.load_state_dict(mine)
    except (RuntimeError, KeyError) as error:
        names = ", ".join(str(folder / "reader.safetensors") for folder in folders)
        raise CheckpointError(f"{names}: not the stem and labels of a second reader ({error})") from error
    model.second = second.eval()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--films", type=Path, required=True)
    parser.add_argument(
        "--second", type=Path, nargs="+", help="folders of train.reader, whose stems are to read the labels"
    )
    parser.add_argument("--mirrored", action="store_true", help="read places in the mirrored film too (signs.mirrored)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    args = parser.parse_args(argv)
    config = checkpoint.read_config(args.checkpoint)
    if not config["model"].signs.facts:
        raise ConfigError(f"{args.checkpoint} has no facts (signs.facts in its recipe), so there is nothing to limit.")
    model, _ = checkpoint.load(args.checkpoint)
    if args.second:
        add_second(model, args.second)
    if args.mirrored:
        model.config = replace(model.config, signs=replace(model.config.signs, mirrored=True))
    studies = read_studies(args.films)
    learn, develop = development([s for s in studies if s.split == "train"])
    sources = config["training"]["recipe"]["finetune"]["sources"]
    cache = FilmCache(studies, args.cache)
    # the tower has moved since they were fitted; the words follow from the bits, whatever these mean
    fit_appearance(model, evenly(learn, sources, SEEN), cache)
    model.limits.copy_(fit(model, [s for s in develop if s.source in sources], cache))
    checkpoint.save(model, args.out, language=config["language_model"], training=config["training"])
    for name, limit in zip(LIMITS, model.limits.tolist(), strict=True):
        print(f"{name:28} {limit:.3f}")


if __name__ == "__main__":
    main()
