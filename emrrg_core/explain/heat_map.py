"""Where the model looked: heat maps on the film's own pixels, and the strength of the gates.

A token's map is its cross-attention times the gate's strength, summed over the hybrid layers, the class token left out. Attention on a finding's
token is carried on to the patches by that finding's own map: what its logit is made of where it is present, where it was looked for otherwise
(emrrg_core.model.disease_queries). The map of a sentence that speaks of findings holds what was looked at of these, and of patches;
`look_on_findings` says how much of the whole look that is, and below ON_FINDINGS the sentence has no map.

Attention is where the model looked, not why it wrote: `emrrg_core.explain.faithfulness` asks that.
"""

from typing import TYPE_CHECKING

import numpy as np

from emrrg_core.films.views import Place
from emrrg_core.model.finding_tokens import ABNORMAL, NAMES
from emrrg_core.report.draft import Draft, Sentence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ON_FINDINGS = 0.1  # of a sentence's look that must be on the findings it speaks of, for it to have a map


def patch_weights(draft: Draft, what: Sentence | tuple[int, int], film: int = 0) -> np.ndarray:
    """Attention × |gate| on the patches of a film, summed over hybrid layers and tokens: (g²,) float64.

    what: a sentence, or draft.tokens[first:last]. Attention on finding tokens is laid over the patches by the findings' own maps of that film: of
    tokens all of it, of a sentence that on the findings that it speaks of. All zero of a sentence that hardly looks at these.
    """
    total, on_findings = _looked(draft, what)
    if isinstance(what, Sentence) and (share := look_on_findings(draft, what)) is not None:
        if share < ON_FINDINGS:
            return np.zeros(draft.grid**2)
        on_findings = on_findings * [name in own_findings(draft, what) for name in NAMES]
    for name, weight in zip(NAMES, on_findings, strict=False):
        if (finding := draft.finding(name)) is not None and finding.maps:
            total = total + weight * finding.maps[film]
    return total


def own_findings(draft: Draft, sentence: Sentence) -> tuple[str, ...]:
    """The findings that a sentence speaks of and that were read; none where it speaks of the film as a whole."""
    return tuple(name for name in sentence.findings if name != ABNORMAL and draft.finding(name) is not None)


def look_on_findings(draft: Draft, sentence: Sentence) -> float | None:
    """How much of a sentence's attention × |gate| is on the tokens of the findings that it speaks of, or on patches: 0 to 1.

    None where it speaks of none that was read, or where every gate was shut.
    """
    on_patches, on_findings = _looked(draft, sentence)
    names, whole = own_findings(draft, sentence), on_patches.sum() + on_findings.sum()
    if not names or not len(on_findings) or not whole > 0:
        return None
    own = on_findings[[name in names for name in NAMES]].sum()
    return float((on_patches.sum() + own) / whole)


def _looked(draft: Draft, what: Sentence | tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Attention × |gate| on patches (g²,) and on finding tokens (s,), summed over hybrid layers and tokens."""
    first, last = what.tokens if isinstance(what, Sentence) else what
    tokens = draft.tokens[first:last]
    if not tokens:
        return np.zeros(draft.grid**2), np.zeros(0)
    gates = np.abs([t.gates for t in tokens])  # (tokens, layers)
    parts = (np.array([t.attention for t in tokens], float), np.array([t.on_findings for t in tokens], float))
    return tuple(np.einsum("tl,tlp->p", gates, part) for part in parts)


def lay_over(weights: np.ndarray, grid: int, height: int, width: int, place: Place | None = None) -> np.ndarray:
    """Weights on the patches (grid², raster order) as a map on the film's own pixels: (height, width) float32, the same sum.

    The tower sees the film squashed to a square, so patch (r, c) is exactly the rectangle of rows [r·height/grid, (r+1)·height/grid) and
    columns [c·width/grid, (c+1)·width/grid); a pixel that two patches share receives its share of both.
    place: of a film on the canvas of a stitched study, whose patches these are; the sum is then what lies on this film.
    """
    if weights.shape != (grid * grid,):
        raise ValueError(f"{weights.shape} weights do not fit a grid of {grid} × {grid} patches")
    top, left, bottom, right = place or (0.0, 0.0, 1.0, 1.0)
    density = (
        weights.reshape(grid, grid) * (grid * (bottom - top) / height) * (grid * (right - left) / width)
    )  # per pixel
    return (_overlap(height, grid, top, bottom) @ density @ _overlap(width, grid, left, right).T).astype(np.float32)


def _overlap(pixels: int, grid: int, first: float, last: float) -> np.ndarray:
    """(pixels, grid): how much of each pixel lies in each patch. first, last: where the film begins and ends, as shares of all patches."""
    edges = (np.linspace(0, 1, grid + 1) - first) / (last - first) * pixels
    start = np.arange(pixels)[:, None]
    return np.clip(np.minimum(start + 1, edges[1:]) - np.maximum(start, edges[:-1]), 0, 1)


def heat_map(draft: Draft, film: int, what: Sentence | tuple[int, int]) -> np.ndarray | None:
    """The map of a sentence, or of draft.tokens[first:last], on a film (its number in draft.films): (height, width) float32, sum 1.

    None where the model did not look: `no_map` says why. Views are averaged before the hybrid layers see their patches (docs/method.md 5.1); the
    findings' maps are each film's own. Of stitched films all maps together have the sum 1 at most: what lay between them is on none.
    """
    weights, record = patch_weights(draft, what, film), draft.films[film]
    if not weights.sum() > 0 or not record.read:
        return None
    return lay_over(weights / weights.sum(), draft.grid, record.height, record.width, record.place)


def no_map(draft: Draft, what: Sentence | tuple[int, int], film: int | None = None) -> str:
    """Why a sentence or a word has no map, or none on a film, in words."""
    if film is not None and not draft.films[film].read:
        return "No map: this film was shown and not read."
    if isinstance(what, Sentence) and (share := look_on_findings(draft, what)) is not None and share < ON_FINDINGS:
        return f"No map: only {share:.0%} of what the model looked at while it wrote this was about this finding."
    return "No map: every gate was shut while this was written, so the model did not look at the film here."


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
