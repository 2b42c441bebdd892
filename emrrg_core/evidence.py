"""Where the model looked: heat maps on the film's own pixels, and the strength of the gates.

A token's map is its cross-attention times the gate's strength, summed over the hybrid layers, the class token left out. What a map does
not show is whether the film mattered: attention is where the model looked, not why it wrote.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from emrrg_core.decode import Token
from emrrg_core.report import Draft

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def patch_weights(tokens: Sequence[Token]) -> np.ndarray:
    """Attention × |gate| summed over hybrid layers and tokens: (patches,) float64, sum at most tokens × layers."""
    total = np.zeros(tokens[0].attention.shape[1]) if tokens else np.zeros(0)
    for token in tokens:
        total += np.abs(np.asarray(token.gates)) @ token.attention.astype(np.float64)
    return total


def lay_over(weights: np.ndarray, grid: int, height: int, width: int) -> np.ndarray:
    """Weights on the patches (grid², raster order) as a map on the film's own pixels: (height, width) float32, the same sum.

    The tower sees the film squashed to a square, so patch (r, c) is exactly the rectangle of rows [r·height/grid, (r+1)·height/grid) and
    columns [c·width/grid, (c+1)·width/grid); a pixel that two patches share receives its share of both.
    """
    if weights.shape != (grid * grid,):
        raise ValueError(f"{weights.shape} weights do not fit a grid of {grid} × {grid} patches")
    density = weights.reshape(grid, grid) * (grid / height) * (grid / width)  # per pixel
    return (_overlap(height, grid) @ density @ _overlap(width, grid).T).astype(np.float32)


def _overlap(pixels: int, grid: int) -> np.ndarray:
    """(pixels, grid): how much of each pixel lies in each patch."""
    edges = np.linspace(0, pixels, grid + 1)
    start = np.arange(pixels)[:, None]
    return np.clip(np.minimum(start + 1, edges[1:]) - np.maximum(start, edges[:-1]), 0, 1)


def heat_map(draft: Draft, film: int, tokens: tuple[int, int]) -> np.ndarray | None:
    """The map of draft.tokens[first:last] on a film (its number in draft.films): (height, width) float32, sum 1.

    For a sentence pass `sentence.tokens`; for a word its tokens. None when every gate was shut: then the model did not look.
    Views are averaged before the hybrid layers see them (METHOD §5.1), so the films of one study share one attention.
    """
    weights = patch_weights(draft.tokens[slice(*tokens)])
    if not weights.sum() > 0:
        return None
    record = draft.films[film]
    return lay_over(weights / weights.sum(), draft.grid, record.height, record.width)


def overlay(pixels: np.ndarray, heat: np.ndarray | None, opacity: float = 0.5) -> np.ndarray:
    """The film with its map in colour: pixels (height, width) in [0, 1], heat (height, width) -> (height, width, 3) uint8.

    Colour fades in with the map, so what was not looked at stays plain film. opacity 0 shows the film alone.
    """
    import matplotlib

    grey = np.repeat((np.clip(pixels, 0, 1) * 255)[..., None], 3, axis=2)
    if heat is not None and opacity > 0 and heat.max() > 0:
        level = heat / heat.max()
        colour = matplotlib.colormaps["inferno"](0.25 + 0.75 * level)[..., :3] * 255
        alpha = (opacity * level)[..., None]
        grey = (1 - alpha) * grey + alpha * colour
    return np.round(grey).astype(np.uint8)


def gate_figure(draft: Draft, sentence: int | None = None) -> "Figure":
    """Strength of the gates per token and hybrid layer, of one sentence or of the whole draft."""
    from matplotlib.figure import Figure

    first, last = (0, len(draft.tokens)) if sentence is None else draft.sentences[sentence].tokens
    tokens = draft.tokens[first:last]
    figure = Figure(figsize=(max(4.0, min(14.0, 1.5 + 0.28 * len(tokens))), 2.8), layout="constrained")
    axes = figure.subplots()
    axes.set_title("How far each hybrid layer's gate was open", fontsize=10)
    values = np.abs(np.array([t.gates for t in tokens], dtype=float).reshape(len(tokens), len(draft.layers))).T
    if not values.size:  # an empty draft, or a model without hybrid layers
        axes.set_axis_off()
        return figure
    image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    axes.set_yticks(range(len(draft.layers)), [f"layer {i}" for i in draft.layers])
    if len(tokens) <= 60:
        axes.set_xticks(range(len(tokens)), [_label(t.text) for t in tokens], rotation=90, fontsize=8)
    else:
        axes.set_xlabel("token")
    figure.colorbar(image, ax=axes, label="|gate|")
    return figure


def _label(text: str) -> str:
    return text.strip().replace("$", r"\$") or "·"
