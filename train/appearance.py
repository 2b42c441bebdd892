"""How films look, as components that pick the wording of a report (data.Wording): fitted to a model's own tower, never trained."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from emrrg_core.data import FilmCache, Study, appearance, normalise
from emrrg_core.language import prefers_bfloat16
from emrrg_core.model import Emrrg
from emrrg_core.signs import Signs

SEEN = 800  # films that the components are fitted to


def evenly(studies: Sequence[Study], sources: Mapping[str, float], count: int) -> list[Study]:
    """About `count` studies, as many normal as abnormal ones of each source that has enough, the same number from every source."""
    rng, chosen = np.random.default_rng(0), []
    for source in sorted(sources):
        for abnormal in (False, True):
            mine = [s for s in studies if s.source == source and s.abnormal is abnormal]
            chosen += [mine[i] for i in rng.permutation(len(mine))[: count // (2 * len(sources))]]
    return chosen


def see_all(model: Emrrg, films: Sequence[np.ndarray], *, alone: bool = False) -> Iterator[Tensor]:
    """What the model sees of films (s, s) in [0, 255], as `Emrrg.see` gives it, one batch of 32 at a time, in order.

    In evaluation mode, without gradients.
    """
    model.eval()
    device = model.llama_proj.weight.device
    for i in range(0, len(films), 32):
        images = torch.from_numpy(normalise(np.stack(films[i : i + 32]))).unsqueeze(1)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=prefers_bfloat16(device)):
            tokens = model.see(images.to(device), alone=alone)
        yield tokens


def read_all(model: Emrrg, films: Sequence[np.ndarray]) -> Signs:
    """What the readers say of films (s, s) in [0, 255], in order, float32 on the CPU. Raises ValueError when the model has none."""
    read = []
    for tokens in see_all(model, films):
        with (
            torch.inference_mode(),
            torch.autocast(tokens.device.type, torch.bfloat16, enabled=prefers_bfloat16(tokens.device)),
        ):
            read.append(model.read_signs(tokens))
    found = {field.name: [getattr(signs, field.name) for signs in read] for field in fields(Signs)}
    return Signs(**{name: None if rows[0] is None else torch.cat(rows).float().cpu() for name, rows in found.items()})


@torch.inference_mode()
def fit_appearance(model: Emrrg, studies: Sequence[Study], cache: FilmCache) -> None:
    """Set the appearance reader from these films' mean patch tokens. The model is left in evaluation mode."""
    films = [cache[s] for s in studies]
    features = torch.cat([model.patches(tokens.float()).mean(1) for tokens in see_all(model, films, alone=True)])
    groups = [(study.source, study.abnormal) for study in studies]
    weight, bias = appearance(features.cpu().numpy(), groups, model.config.signs.appearance)
    model.signs.appearance.weight.copy_(torch.from_numpy(weight))
    model.signs.appearance.bias.copy_(torch.from_numpy(bias))
