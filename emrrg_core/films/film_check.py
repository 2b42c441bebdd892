"""What a film looks like to the tower: a frontal chest film, a lateral one, one upside down, turned or mirrored, or no chest film.

A linear softmax over the tower's patch tokens, fitted to one checkpoint by `python -m train.film_check` and kept beside its weights. It knows
chests from what it was shown as no chest; what lies further from every chest film than they from each other is no chest film either.
Error rates are in docs/refusals.md.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from emrrg_core.errors import CheckpointError

SCHEMA = "emrrg.looks/1"
FILE = "looks.safetensors"
KINDS = ("frontal", "lateral", "upside down", "sideways", "mirrored", "other")
GRID = 2  # patches are pooled in GRID × GRID parts of the film: a mirrored heart has the same mean over the whole


@dataclass(frozen=True)
class FilmCheck:
    """What a film looks like. Chances are the detector's own, not how often it is right: for that see docs/refusals.md."""

    chances: dict[str, float]  # of each of KINDS; together 1
    kind: str  # the one of KINDS that it is taken for
    chest: bool  # False: the rule "looks" refuses it

    @property
    def verdict(self) -> str:
        """In a few words, for the screen."""
        return _VERDICTS[self.kind]

    def warning(self, name: str) -> str | None:
        """What a reader should know and do, as a sentence about the film of that name; None for a frontal film."""
        words = _WARNINGS.get(self.kind)
        return words and f"{name} {words}"


_VERDICTS = {
    "frontal": "a frontal chest film",
    "lateral": "a lateral chest film",
    "upside down": "a chest film that is upside down",
    "sideways": "a chest film that is turned by 90°",
    "mirrored": "a chest film that may be mirrored, left for right",
    "other": "no chest film",
}
_WARNINGS = {
    "lateral": "looks like a lateral view; this checkpoint was trained on frontal films.",
    "upside down": "looks upside down: turn it, export it again and draft anew. Sides and heights in this draft are not to be trusted.",
    "sideways": "looks turned by 90°: turn it, export it again and draft anew. Sides and heights in this draft are not to be trusted.",
    "mirrored": (
        "may be mirrored, left for right: compare its side marker. A heart that truly lies on the right (dextrocardia) looks the same, so "
        "do not flip it for this alone; if it is mirrored, export it again as it was taken."
    ),
    "other": "does not look like a chest film: what this draft says of a chest is not to be trusted.",
}


class Detector:
    """The fitted detector of one checkpoint. Tensors by name, float32, of k features:

    shift, scale (k)                       what standardises features
    weight (kinds, k), bias (kinds)        the softmax over KINDS
    basis (r, k), spread (r), rest ()      directions in which chest films differ most, how far, and how far in every other direction
    limits (kinds + 1)                     the chance above which a film is taken for a kind (none for frontal); last, the distance from the
                                           chest films beyond which it is taken for none
    """

    def __init__(self, tensors: dict[str, Tensor], *, weights: str, sha256: str = "") -> None:
        self.tensors, self.weights, self.sha256 = tensors, weights, sha256

    def __call__(self, tokens: Tensor) -> list[FilmCheck]:
        """What each film looks like, from the tower's tokens of the patches, in raster order: (films, g², d)."""
        found = features(tokens.float().cpu())
        chances, distances = self.chances(found).tolist(), self.distances(found).tolist()
        return [self._judged(row, distance) for row, distance in zip(chances, distances, strict=True)]

    def chances(self, found: Tensor) -> Tensor:
        """Of KINDS: features (films, k) -> (films, kinds), rows sum to 1."""
        return torch.softmax(self._standard(found) @ self.tensors["weight"].T + self.tensors["bias"], dim=1)

    def distances(self, found: Tensor) -> Tensor:
        """From the middle of the chest films, in their own spread (Mahalanobis): features (films, k) -> (films,), about 1 for these."""
        standard, t = self._standard(found), self.tensors
        along = standard @ t["basis"].T
        others = (standard.square().sum(1) - along.square().sum(1)).clamp(min=0)
        total = (along / t["spread"]).square().sum(1) + others / t["rest"] ** 2
        return (total / standard.shape[1]).sqrt()

    def _standard(self, found: Tensor) -> Tensor:
        return (found - self.tensors["shift"]) / self.tensors["scale"]

    def _judged(self, chances: list[float], distance: float) -> FilmCheck:
        limits = dict(zip(KINDS, self.tensors["limits"].tolist(), strict=False))
        found = dict(zip(KINDS, chances, strict=True))
        over = [kind for kind in KINDS[1:] if found[kind] > limits[kind]]
        kind = max(over, key=found.__getitem__, default="frontal")
        if "other" in over or distance > float(self.tensors["limits"][-1]):
            kind = "other"
        return FilmCheck(found, kind, chest=kind != "other")

    def save(self, path: Path | str) -> None:
        """Write it; for use it belongs into the folder of the checkpoint that it was fitted to, under the name FILE."""
        notes = {"schema": SCHEMA, "kinds": json.dumps(KINDS), "weights_sha256": self.weights}
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, path, metadata=notes)
        Path(path).chmod(0o644)  # safetensors writes for its owner's eyes only

    @classmethod
    def load(cls, directory: Path | str) -> Self | None:
        """That of a checkpoint's folder; None where it has none. Raises CheckpointError where it is damaged or of another version."""
        path = Path(directory) / FILE
        if not path.is_file():
            return None
        problem = f"{path} is damaged or of another version. Fit it again with train.film_check, or remove it."
        try:
            with safe_open(path, framework="pt") as file:
                notes = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 — not a dict
            with path.open("rb") as opened:
                sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(problem) from error
        if notes.get("schema") != SCHEMA or notes.get("kinds") != json.dumps(KINDS):
            raise CheckpointError(problem)
        return cls(tensors, weights=notes.get("weights_sha256", ""), sha256=sha256)


def features(tokens: Tensor) -> Tensor:
    """What the detector knows of a film: patch tokens (films, g², d) -> (films, (GRID² + 1) · d), the means of its parts and the maxima."""
    grid = round(tokens.shape[1] ** 0.5)
    plane = tokens.transpose(1, 2).unflatten(2, (grid, grid))
    means = torch.nn.functional.adaptive_avg_pool2d(plane, GRID).flatten(1)
    return torch.cat([means, tokens.amax(1)], dim=1)
