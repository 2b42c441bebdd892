"""What the tower alone says about a film: labels, where in the film, and how the film looks, each a number that can be checked.

b films · g patches along a side · d tower width

The warm-up trains these readers together with the tower. The language model then receives what they say as evidence tokens of its prompt, beside
the visual tokens: a report is mostly normal sentences, and without them the prior of the language wins over the image.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emrrg_core.config import VisionConfig
from emrrg_core.findings import LABELS
from emrrg_core.vision import ConvolutionalStem

PLACES = ("right lung", "left lung", "nodule", "opacity", "effusion")  # what every patch is read for
REGIONS = 3 * 2 * 3  # signs by lung and third


def width_of(appearance: int) -> int:
    """Length of a film's vector of signs."""
    return len(LABELS) + REGIONS + appearance


@dataclass(frozen=True)
class Signs:
    """Logits. labels: (b, 14), CheXpert's in the order of LABELS. places: (b, g², 5), in the order of PLACES. appearance: (b, k).

    places_mirrored: as places, read in the mirrored film, the patches put back where they belong and the lungs called by their right names; or None.
    """

    labels: Tensor
    places: Tensor
    appearance: Tensor
    places_mirrored: Tensor | None = None

    def vector(self) -> Tensor:
        """Everything as probabilities, (b, 14 + 18 + k): labels, regions, appearance."""
        return torch.cat([self.labels, self.regions().flatten(1), self.appearance], dim=1).sigmoid()

    def sides(self) -> Tensor:
        """As `regions`, for telling one lung from the other: the mean over the film and its mirror image, where that was read."""
        if self.places_mirrored is None:
            return self.regions()
        return (self.regions() + replace(self, places=self.places_mirrored).regions()) / 2

    def regions(self) -> Tensor:
        """The places by lung and third, (b, 3, 2, 3): (nodule, opacity, effusion), patient's (right, left) lung, (upper, mid, lower) third.

        Each is the strongest patch's logit. A patch belongs to the lung that it more likely shows; a lung reaches from the first to the last
        row in which the reader sees it.
        """
        b, patches, _ = self.places.shape
        grid = round(patches**0.5)
        places = self.places.float()
        lungs = places[..., :2].detach().sigmoid().view(b, grid, grid, 2)
        nearer = places[..., :2].detach().argmax(-1).view(b, grid, grid)
        rows = torch.arange(grid, device=places.device)
        seen = lungs.amax(2) > 0.5  # (b, rows, 2)
        first = torch.where(seen, rows[:, None], grid).amin(1).clamp(max=grid - 1)  # (b, 2)
        last = torch.where(seen, rows[:, None], -1).amax(1)
        first, last = torch.where(last >= 0, first, 0), torch.where(last >= 0, last, grid - 1)
        third = (
            ((rows[:, None] - first[:, None]) * 3)
            .div(last[:, None] - first[:, None] + 1, rounding_mode="floor")
            .clamp(0, 2)
        )
        found = []
        for side in range(2):
            for zone in range(3):
                inside = (nearer == side) & (third[:, :, side] == zone).unsqueeze(2)  # (b, rows, columns)
                logits = places[..., 2:].masked_fill(~inside.view(b, patches, 1), -20.0)
                found.append(logits.amax(1))  # (b, 3)
        return torch.stack(found, dim=2).view(b, 3, 2, 3)


class SignReader(nn.Module):
    """Linear readers of patch tokens.

    labels reads their mean and maximum, (2d,) -> 14; places every patch, d -> 5. appearance, d -> k, is not trained: its rows are set from
    the principal components of the mean token over training films, so that 0 is the median film.
    """

    def __init__(self, width: int, appearance: int) -> None:
        super().__init__()
        self.labels = nn.Linear(2 * width, len(LABELS))
        self.places = nn.Linear(width, len(PLACES))
        nn.init.constant_(self.places.bias, -2.0)
        self.appearance = nn.Linear(width, appearance).requires_grad_(False)

    def forward(self, patches: Tensor) -> Signs:
        """patches: (b, g², d), in raster order, without the class token."""
        mean = patches.mean(1)
        both = torch.cat([mean, patches.amax(1)], dim=-1)
        return Signs(self.labels(both), self.places(patches), self.appearance(mean))


class SecondReader(nn.Module):
    """Convolutional stems of their own and a linear reader of the 14 labels. They have seen no simulated finding.

    A tower that learns to find what was drawn on normal films reads real disease worse (docs/experiments.md 11, 18), so the two tasks have a
    reader each. Its stems have first learned, without any label, what makes a film itself, and then the labels (train/reader.py); then they are
    frozen. members: how many stems; their logits are averaged.

    It reads a film three times, as it is, mirrored, and without its border, and takes the mean. A label that changes with the way a film is
    held is not in the lungs (test-time augmentation; what it changes: docs/experiments.md 20).
    """

    TOKENS = 2  # of a stem: mean and maximum of its patches
    BORDER = 10 / 224  # share of the film that the third reading leaves out on every side

    def __init__(self, config: VisionConfig, members: int = 1) -> None:
        super().__init__()
        self.stems = nn.ModuleList(ConvolutionalStem(config) for _ in range(members))
        self.labels = nn.Linear(2 * members * config.d_model, len(LABELS))
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, s, s) -> (n, members · TOKENS, d), the mean of the three readings; `read` is linear, so that is the mean of their logits."""
        size = images.shape[-1]
        edge = round(self.BORDER * size)
        inside = F.interpolate(images[..., edge : size - edge, edge : size - edge], size=(size, size), mode="bilinear")
        readings = []
        for film in (images, images.flip(-1), inside):
            patches = [stem(film) for stem in self.stems]
            readings.append(torch.stack([seen for p in patches for seen in (p.mean(1), p.amax(1))], dim=1))
        return torch.stack(readings).mean(0)

    def read(self, tokens: Tensor) -> Tensor:
        """(n, members · TOKENS, d) -> logits of the labels, (n, 14)."""
        logits: Tensor = self.labels(tokens.flatten(1))
        return logits


__all__ = ["PLACES", "REGIONS", "SecondReader", "SignReader", "Signs", "width_of"]
