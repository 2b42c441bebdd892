"""Measures which path carries a draft: drafts films again with a part of the input removed, or replaced by another film's.

    own                 nothing is changed
    gates_zero          every gate is shut: the hybrid layers add nothing
    hybrid_other        the hybrid layers see another film: its patches and its findings
    prompt_other        the prompt holds another film. If the prompt holds no film, nothing changes, and the draft is not written again
    patches_other       the hybrid layers see another film's patches and the film's own findings
    findings_other      the hybrid layers see another film's findings and the film's own patches
    findings_withheld   the hybrid layers see the patches only
    disease_other       the hybrid layers see another film's disease tokens, of a model that sees these (AM-MRG)
    memory_other        the associative memory answers another film's disease tokens
    memory_off          the associative memory answers nothing
    prior_other         the hybrid layers see what was read in another study's prior film (train/prior.py)
    prior_withheld      no prior film was given

The other film is abnormal for a normal film, and normal for an abnormal one; it comes from the same source where that has both kinds.
Scores of each change:
    labels_kept               share of drafts that state the same labels as the film's own draft (an abnormality without a label counts as a label)
    labels_of_other           share of drafts that state the same labels as the other film's own draft
    normal_balanced_accuracy  normal or abnormal, as the new drafts say, against the film's own labels
    flips                     share of drafts that change from abnormal to normal or back
    nats                      how much less likely the film's own draft becomes, in nats a token
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from emrrg_core.config import Gate
from emrrg_core.data.studies import Study
from emrrg_core.model.emrrg import Emrrg, FilmTokens
from emrrg_core.model.finding_tokens import ABNORMAL
from emrrg_core.model.writing import Writing
from emrrg_core.text.labeler import NO_FINDING, Status, is_abnormal, labels
from emrrg_core.text.metrics import Score, bootstrap
from train.measures import balanced_accuracy

if TYPE_CHECKING:
    from train.evaluate import Judge


@contextlib.contextmanager
def shut(model: Emrrg) -> Iterator[None]:
    """Every gate of the hybrid layers, those of a prior film too, is exactly 0 inside, and afterwards what it was."""
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def put(parameter: torch.Tensor, value: float) -> None:
        kept.append((parameter, parameter.detach().clone()))
        parameter.fill_(value)

    with torch.no_grad():
        for _, layer in [*model.hybrid.items(), *(model.prior.items() if model.prior is not None else ())]:
            if layer.gate.has_warmup:
                put(layer.warm_up_gate, 0.0)
                continue
            put(layer.gate_proj.weight, 0.0)
            put(layer.gate_proj.bias, -1e4 if layer.gate is Gate.CHANNEL_WISE_DYNAMIC_SIGMOID else 0.0)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in kept:
                parameter.copy_(value)


def spread(studies: Sequence[Study], rows: Sequence[int], count: int) -> np.ndarray:
    """At most `count` of these rows, the same share of every source's normal and abnormal films, evenly spaced in each: ascending."""
    order = sorted(rows, key=lambda i: (studies[i].source, str(studies[i].abnormal), i))
    chosen = np.linspace(0, len(order) - 1, min(len(order), count)).round().astype(int)
    return np.array(sorted(order[i] for i in chosen), int)


def donors(
    studies: Sequence[Study], chosen: Sequence[int], pool: Sequence[int], rng: np.random.Generator
) -> np.ndarray:
    """For each chosen film another of the other kind, of its own source where there is one; -1 where there is none, or its kind is not known."""
    found = np.full(len(chosen), -1)
    for k, i in enumerate(chosen):
        mine = studies[i]
        if mine.abnormal is None:
            continue
        others = [j for j in pool if studies[j].abnormal is (not mine.abnormal)]
        others = [j for j in others if studies[j].source == mine.source] or others
        if others:
            found[k] = rng.choice(others)
    return found


def stated(text: str) -> frozenset[str]:
    """The labels that a text states, certainly or not, and ABNORMAL where it states anything abnormal."""
    said = {label for label, status in labels(text).items() if status in (Status.POSITIVE, Status.UNCERTAIN)}
    return frozenset(said - {NO_FINDING} | ({ABNORMAL} if is_abnormal(text) else set()))


def changes(own: FilmTokens, other: FilmTokens) -> dict[str, FilmTokens]:
    """What the language model sees after each change, of a model without finding tokens none about them. `gates_zero` changes the model itself."""
    result = {
        "own": own,
        "gates_zero": own,
        "hybrid_other": own.exchanged(other, patches=True, findings=True, disease=True, memory=True, prior=True),
        "prompt_other": own.exchanged(other, prompt=True),
    }
    if own.finding_tokens is not None:
        result |= {
            "patches_other": own.exchanged(other, patches=True),
            "findings_other": own.exchanged(other, findings=True),
            "findings_withheld": own.without_findings(),
        }
    if own.disease is not None:
        result["disease_other"] = own.exchanged(other, disease=True)
    if own.remembered is not None:
        result |= {"memory_other": own.exchanged(other, memory=True), "memory_off": own.without_memory()}
    if own.prior_tokens is not None:
        result |= {"prior_other": own.exchanged(other, prior=True), "prior_withheld": own.without_prior()}
    return result


def paths(
    judge: "Judge",
    studies: Sequence[Study],
    film: FilmTokens,
    drafts: Sequence[Writing],
    rows: Sequence[int],
    count: int,
    seed: int,
) -> dict[str, dict[str, Score]]:
    """The table: change -> score, over at most `count` films of `rows` whose kind is known; empty where the films are all of one kind.

    film, drafts: of all studies.
    """
    known = [i for i in rows if studies[i].abnormal is not None]
    chosen = spread(studies, known, count)
    others = donors(studies, chosen.tolist(), known, np.random.default_rng(seed))
    chosen, others = chosen[others >= 0], others[others >= 0]
    if not len(chosen):
        return {}
    mine = [drafts[i] for i in chosen]
    lengths = np.array([max(len(d.tokens), 1) for d in mine])
    own_said, other_said = ([stated(drafts[i].text) for i in part] for part in (chosen, others))
    own_called = np.array([ABNORMAL in said for said in own_said])
    truth = np.array([bool(studies[i].abnormal) for i in chosen])
    made = changes(film.select(chosen.tolist()), film.select(others.tolist()))
    before = np.zeros(0)
    result = {}
    for name, changed in made.items():
        same = name == "own" or (name == "prompt_other" and _same_prompt(judge.model, made["own"], changed))
        with shut(judge.model) if name == "gates_zero" else contextlib.nullcontext():
            texts = [d.text for d in (mine if same else judge.write(changed, seed, progress=name))]
            nats = before if same and len(before) else np.array([s.sum() for s in judge.score(changed, mine)])
        before = nats if name == "own" else before
        said = [stated(text) for text in texts]
        called = np.array([ABNORMAL in these for these in said])
        result[name] = {
            "labels_kept": bootstrap(np.array([a == b for a, b in zip(said, own_said, strict=True)], float)),
            "labels_of_other": bootstrap(np.array([a == b for a, b in zip(said, other_said, strict=True)], float)),
            "normal_balanced_accuracy": bootstrap(
                np.stack([truth, called], 1), lambda rows: balanced_accuracy(*rows.T)
            ),
            "flips": bootstrap((called != own_called).astype(float)),
            "nats": bootstrap((before - nats) / lengths),
        }
    return result


def _same_prompt(model: Emrrg, a: FilmTokens, b: FilmTokens) -> bool:
    with torch.inference_mode():
        return torch.equal(model.prompt(a)[0], model.prompt(b)[0])
