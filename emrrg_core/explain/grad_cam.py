"""Grad-CAM of a finding and the regions cut out of it, as AM-MRG's memory takes them (docs/method.md 8.1; Selvaraju et al. 2017, 1610.02391).

    map = ReLU(Σ over channels of weight · token)    weight = mean over the patches of the gradient of the label's logit

It is here to be compared (train/regions.py) with the closed form that drafts use, `finding_maps`: that one is what the logit is made of, patch by
patch, and adds up to it. This one is a first order, and its weights are means over the film: a patch on which the logit does not depend is shown
where its token looks like those on which it does.

b films · l tower tokens · g patches along a side
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from emrrg_core.model.emrrg import Emrrg

CELLS = 14  # along a side of the film: AM-MRG cuts films of 224 pixels into cells of 16
SURE = 0.75  # a cell whose mean is above is a region
MOST = 6  # regions of one map


def grad_cam(model: Emrrg, images: Tensor, labels: Tensor) -> Tensor:
    """Where each film speaks for its label, (b, g, g) float32 from 0 to 1, the highest 1; all 0 where no patch speaks for it.

    images: (b, 3, s, s), ImageNet-normalised. labels: (b,) long, an index of LABELS for each film. The layer is the tower's last: its tokens as the
    queries read them. What a label reads of a convolutional stem beside them has no part in the map. Raises ValueError of a model without disease
    queries, and where there is not one label for each film.
    """
    if not model.config.queries.depth:
        raise ValueError("this model reads no finding: it has no disease queries")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels of shape {tuple(labels.shape)} are not one for each of {len(images)} films")
    vision = model.config.vision
    with torch.no_grad():
        found = model.look(images)
    # also inside a caller's inference mode, whose tensors know no gradient
    with torch.inference_mode(False), torch.enable_grad():
        tokens = found.tokens.detach().clone().requires_grad_()
        stem = None if found.stem is None else found.stem.clone()
        logits = model.disease(tokens, vision.class_position, stem)["logits"]
        asked = logits.gather(1, labels.to(logits.device).unsqueeze(1)).sum()
        (gradient,) = torch.autograd.grad(asked, tokens)
    patches, slopes = (model.patches(value.detach()).float() for value in (tokens, gradient))  # (b, g², d) each
    weights = slopes.mean(1, keepdim=True)
    speaks = (weights * patches).sum(-1).clamp_min(0)  # (b, g²)
    highest = speaks.amax(1, keepdim=True)
    return torch.where(highest > 0, speaks / highest, speaks).unflatten(1, (vision.grid, vision.grid))


def regions(heat: Tensor | np.ndarray) -> list[tuple[int, int]]:
    """The cells (row, column) of CELLS × CELLS whose mean is above SURE, the strongest first, at most MOST.

    heat: one map (g, g) from 0 to 1. Of another grid than CELLS it is first drawn on the film's 224 pixels, as AM-MRG does. Of cells that are equal
    the upper left comes first.
    """
    cells = torch.as_tensor(heat, dtype=torch.float32)
    if cells.shape != (CELLS, CELLS):
        drawn = F.interpolate(cells[None, None], (16 * CELLS, 16 * CELLS), mode="bilinear", align_corners=False)
        cells = F.avg_pool2d(drawn, 16)[0, 0]
    order = cells.flatten().argsort(descending=True, stable=True)[:MOST]
    return [divmod(int(i), CELLS) for i in order if cells.flatten()[i] > SURE]
