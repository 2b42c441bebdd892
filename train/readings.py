"""What a checkpoint reads in the development films, before a word is written: on these films designs are chosen, never on `val`.

    python -m train.readings --checkpoint assets/checkpoints/small --films FILMS.jsonl [--places film|both] [--json]

normal    normal against abnormal, per source and, where a source has several, per projection: `area` under the curve of No Finding and `best`
          balanced accuracy of any limit on it; `told`, balanced accuracy as the facts have it (emrrg_core.stated) with the checkpoint's limits,
          and its two shares, `alarms` of normal films and `found` of abnormal ones
labels    the area of every label that enough films have, and have not
sides     of abnormal films, per source: where their first fact that lies somewhere is told to lie. A reading that leans shows here: no disease
          of many patients prefers a lung by much
notes     the same of films with a note that names a side for that finding: "note, told"
drawn     a finding drawn on normal films (emrrg_core.simulate): of `films`, those where it is `told`, on its side (`correct`), in `both`
          lungs, on the other side (`wrong`). What fills the lung counts as an opacity by whichever name. Lungs are the film's mask or, as most
          have none, as the tower sees them

--places says what tells one lung from the other: the film alone, or the film and its mirror image (signs.mirrored); else as the checkpoint has it.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emrrg_core import checkpoint
from emrrg_core.data import NO_FINDING, FilmCache, Study, development, lung_mask, read_studies
from emrrg_core.errors import ConfigError, DataError, EmrrgError
from emrrg_core.findings import LABELS
from emrrg_core.model import Emrrg
from emrrg_core.signs import Signs
from emrrg_core.simulate import Sign, draw
from emrrg_core.stated import CHANNEL_OF, CHANNELS, SIDES, Fact, facts
from train.appearance import read_all
from train.telling import noted_sides
from train.warmup import area_under_curve, balanced_accuracy, groups, lungs_of, told_apart

FEWEST = 15  # films that have a label, and that have it not, before anything is told of it
_PLACED = tuple(sign for sign in Sign if sign is not Sign.HEART)


def normal(signs: Signs, told: Sequence[Sequence[Fact]], studies: Sequence[Study]) -> dict[str, dict[str, float]]:
    """Normal against abnormal in the groups that have FEWEST of both; see the head of this file."""
    apart = told_apart(studies, -signs.labels[:, LABELS.index(NO_FINDING)].numpy())
    found = {}
    for name, (area, best) in apart.items():
        mine = groups(studies)[name]
        truth, called = np.array([bool(studies[i].abnormal) for i in mine]), np.array([bool(told[i]) for i in mine])
        if min(truth.sum(), (~truth).sum()) < FEWEST:
            continue
        found[name] = {
            "normal": int((~truth).sum()),
            "abnormal": int(truth.sum()),
            "area": area,
            "best": best,
            "told": round(balanced_accuracy(truth, called), 3),
            "alarms": round(float(called[~truth].mean()), 3),
            "found": round(float(called[truth].mean()), 3),
        }
    return found


def labels(signs: Signs, studies: Sequence[Study]) -> dict[str, dict[str, float]]:
    """The area of each label that at least FEWEST films have and as many have not."""
    found = {}
    for column, label in enumerate(LABELS):
        known = [i for i, s in enumerate(studies) if label in s.labels]
        truth = np.array([studies[i].labels[label] == 1 for i in known], bool)
        if min(truth.sum(), (~truth).sum()) >= FEWEST:
            area = area_under_curve(truth, signs.labels[known, column].numpy())
            found[label] = {"films": len(known), "have it": int(truth.sum()), "area": round(area, 3)}
    return found


def sides(told: Sequence[Sequence[Fact]], studies: Sequence[Study]) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """Where the first fact with a place of every abnormal film is told to lie: how often per source, and beside what a note says of it."""
    counts: dict[str, Counter[str]] = {}
    notes: Counter[str] = Counter()
    for study, mine in zip(studies, told, strict=True):
        lying = [fact for fact in mine if fact.name in CHANNEL_OF]
        if not study.abnormal or not lying:
            continue
        side = lying[0].side or "no side"
        counts.setdefault(study.source, Counter())[side] += 1
        if noted := noted_sides(study.note).get(lying[0].name):
            notes[f"{noted}, {side}"] += 1
    order = (*SIDES[1:], "no side")
    return {source: {side: row[side] for side in order} for source, row in sorted(counts.items())}, dict(
        sorted(notes.items())
    )


def drawn(
    model: Emrrg, studies: Sequence[Study], films: Sequence[np.ndarray], signs: Signs, *, count: int, seed: int
) -> dict[str, dict[str, int]]:
    """What is told of findings drawn on up to `count` of the normal films; signs: what is read in the films as they are."""
    rng = np.random.default_rng(seed)
    well = [i for i, s in enumerate(studies) if s.abnormal is False]
    made, what = [], []
    for i in (well[k] for k in rng.permutation(len(well))[:count]):
        size = films[i].shape[0]
        lungs = lungs_of(signs.places[i].sigmoid().numpy(), size)
        if studies[i].lung_mask:
            lungs = lung_mask(studies[i], size)
        for k, sign in enumerate(_PLACED if lungs is not None else ()):
            try:
                film, finding = draw(films[i], lungs, sign, np.random.default_rng([seed, i, k]))
            except ValueError:  # no two lungs to draw in
                continue
            made.append(np.round(film))
            what.append(finding)
    read = facts(read_all(model, made), model.limits, model.config.signs.facts) if made else []
    found = {sign.value: dict.fromkeys(("films", "told", "correct", "both", "wrong", "no side"), 0) for sign in _PLACED}
    for finding, mine in zip(what, read, strict=True):
        row = found[finding.sign.value]
        row["films"] += 1
        lying = [fact for fact in mine if CHANNEL_OF.get(fact.name) == CHANNELS[finding.sign.value]]
        if lying:
            row["told"] += 1
            row[{finding.side: "correct", SIDES[3]: "both", "": "no side"}.get(lying[0].side, "wrong")] += 1
    return found


def readings(
    model: Emrrg, studies: Sequence[Study], cache: FilmCache, *, count: int = 110, seed: int = 0
) -> dict[str, Any]:
    """Everything, see the head of this file. count: normal films to draw on. Raises DataError where nothing is known of any film."""
    known = [s for s in studies if s.abnormal is not None or s.labels]
    if not known:
        raise DataError("nothing is known of any of these films: rows need `labels`.")
    films = [cache[s] for s in known]
    signs = read_all(model, films)
    told = facts(signs, model.limits, model.config.signs.facts)
    where, notes = sides(told, known)
    return {
        "films": len(known),
        "normal": normal(signs, told, known),
        "labels": labels(signs, known),
        "sides": where,
        "notes": notes,
        "drawn": drawn(model, known, films, signs, count=count, seed=seed),
    }


def tables(found: dict[str, Any]) -> str:
    """As Markdown."""
    lines = [f"{found['films']} films of development patients"]
    for title in ("normal", "labels", "sides", "drawn"):
        rows = found[title]
        if rows:
            heads = list(next(iter(rows.values())))
            lines += ["", f"| {title} | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
            lines += [f"| {name} | {' | '.join(str(row[head]) for head in heads)} |" for name, row in rows.items()]
    if found["notes"]:
        lines += ["", "note, told: " + "; ".join(f"{pair} {n}" for pair, n in found["notes"].items())]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--films", type=Path, required=True)
    parser.add_argument("--places", choices=("film", "both"), help="default: as the checkpoint has it")
    parser.add_argument("--drawn", type=int, default=110, help="normal films to draw on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        model, _ = checkpoint.load(args.checkpoint)
        config = model.config.signs
        if not config.facts:
            raise ConfigError(
                f"{args.checkpoint} has no facts (signs.facts in its recipe), so nothing is read before a draft."
            )
        model.config = replace(
            model.config, signs=replace(config, mirrored=args.places == "both" if args.places else config.mirrored)
        )
        studies = read_studies(args.films)
        _, develop = development([s for s in studies if s.split == "train"])
        found = readings(model, develop, FilmCache(studies, args.cache), count=args.drawn, seed=args.seed)
    except EmrrgError as error:
        print(f"emrrg: {error}", file=sys.stderr)
        return 2
    named = {"checkpoint_sha256": checkpoint.fingerprint(args.checkpoint), "mirrored": model.config.signs.mirrored}
    print(json.dumps(named | found, indent=1) if args.json else tables(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
