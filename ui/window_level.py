"""Window and level of the viewer: what the sliders and presets do to a film's grey scale.

A film arrives here with its own window already applied (`Film.steps` says which), so its values lie between 0 and 1
and have no unit such as Hounsfield's. Window and level are therefore shares of that scale: width 1 at level 0.5 is the
film as read, and nothing that the film's own window cut off can be brought back. `ui/viewer.js` does the same sums.
"""

from dataclasses import dataclass

import numpy as np

SAMPLE = 1_000_000  # pixels that percentiles are taken from


@dataclass(frozen=True)
class Window:
    """Values from level - width / 2 to level + width / 2 are spread over black to white."""

    level: float
    width: float


AS_READ = Window(0.5, 1.0)


@dataclass(frozen=True)
class Preset:
    """percentiles: of this film's own tones, what becomes black and what becomes white; None for the film as read."""

    name: str
    percentiles: tuple[float, float] | None
    words: str


# Radiographs have no absolute scale, so a preset goes by shares of the film's own tones. The shares were set by eye.
PRESETS = (
    Preset("As read", None, "the film as its file asks for it: nothing added, nothing cut."),
    Preset(
        "High contrast",
        (5, 95),
        "the middle nine tenths of the film's tones fill the grey scale; the darkest and the brightest are cut.",
    ),
    Preset(
        "Lungs",
        (1, 60),
        "the darker three fifths fill the grey scale: vessels, nodules and a pleural line stand out; what is denser goes white.",
    ),
    Preset(
        "Mediastinum",
        (35, 99.5),
        "the brighter two thirds fill the grey scale: heart, hila and what lies behind them; the lungs go black.",
    ),
    Preset(
        "Bone",
        (50, 99.9),
        "the brighter half fills the grey scale: spine, clavicles and shoulders; lungs and soft tissue go dark.",
    ),
)


def windows(pixels: np.ndarray) -> tuple[Window, ...]:
    """What each of PRESETS is on this film: pixels (height, width) in [0, 1].

    Values of exactly 0 and 1 are left out of the percentiles: padding, collimator edges and burnt-in letters.
    """
    stride = max(1, int((pixels.size / SAMPLE) ** 0.5))
    sample = pixels[::stride, ::stride]
    tones = sample[(sample > 0) & (sample < 1)]
    return tuple(_spread(tones, preset.percentiles) for preset in PRESETS)


def _spread(tones: np.ndarray, percentiles: tuple[float, float] | None) -> Window:
    if percentiles is None or not tones.size:
        return AS_READ
    low, high = (float(edge) for edge in np.percentile(tones, percentiles))
    return Window((low + high) / 2, max(high - low, 0.01))  # the sliders' narrowest


def windowed(pixels: np.ndarray, window: Window, *, inverted: bool = False) -> np.ndarray:
    """PixelEndpoint (any shape) in [0, 1] -> uint8 as the screen shows them; LINEAR_EXACT of DICOM PS3.3 C.11.2.1.3.2."""
    shown = np.clip((pixels - window.level) / window.width + 0.5, 0, 1)
    return np.rint((1 - shown if inverted else shown) * 255).astype(np.uint8)
