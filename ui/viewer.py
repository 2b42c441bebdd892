"""The film viewer: films as pictures inside the page, and heat maps as layers over them.

Nothing here is written to the disk: pictures travel inside the page as data. A map is a style sheet of its own, so that
choosing another sentence sends a few kilobytes and not the films again; the browser blends it, so that the opacity
slider answers at once.
"""

import base64
import html
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from emrrg_core import Film

LONGEST_FILM = 1600  # pixels on the longer side, for the browser
LONGEST_MAP = 448  # a map has 14 × 14 patches; its layer is stretched over the film
VIEWS = {"PA": "PA", "AP": "AP", "LATERAL": "lateral"}


def figures(films: "Sequence[Film]") -> str:
    """HTML of the films, each with its view, size, spacing and the steps applied; without films, what to do."""
    if not films:
        return (
            '<div class="rr-empty"><p><b>No film yet.</b></p><p>Drop one to four films of one study above: DICOM, PNG, '
            "JPEG or TIFF, 8 or 16 bit. Or try the example, a real chest film.</p></div>"
        )
    return (
        f'<div class="rr-films rr-count-{len(films)}">{"".join(_figure(n, film) for n, film in enumerate(films))}</div>'
    )


def _figure(number: int, film: "Film") -> str:
    height, width = film.pixels.shape
    row, column = film.spacing or (1.0, 1.0)
    ratio = width * column / (height * row)  # as the patient was, where pixels are not square
    name, about = html.escape(film.name), html.escape(describe(film))
    steps = html.escape(" → ".join(film.steps) or "none")
    return (
        f'<figure class="rr-film film-{number}">'
        f'<div class="rr-stage" style="--ratio:{ratio:.5f}">'
        f'<img src="{picture(film.pixels)}" alt="{name}: chest film, {about}">'
        f'<div class="rr-map" aria-hidden="true"></div></div>'
        f'<figcaption><b>{name}</b> · {about}<br><span class="rr-steps">Steps: {steps}</span></figcaption></figure>'
    )


def describe(film: "Film") -> str:
    """View, size and spacing in words."""
    height, width = film.pixels.shape
    view = f"{VIEWS.get(film.view, film.view)} view" if film.view else "view not stated"
    spacing = f"{film.spacing[0]:.3g} × {film.spacing[1]:.3g} mm per pixel" if film.spacing else "spacing not known"
    return f"{view} · {width} × {height} pixels · {spacing}"


def layers(maps: Sequence[np.ndarray | None], overlay: Callable[..., np.ndarray]) -> str:
    """A style sheet that lays maps[n] (height, width; None for no map) over film n. overlay: emrrg_core's."""
    rules = [
        f".film-{number} .rr-map{{background-image:url({layer(heat, overlay)})}}"
        for number, heat in enumerate(maps)
        if heat is not None
    ]
    return f"<style>{''.join(rules)}</style>" if rules else ""


def picture(pixels: np.ndarray) -> str:
    """A film (height, width) in [0, 1] as a picture in a data address, its longer side at most LONGEST_FILM."""
    grey = Image.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    small = grey.resize(_fit(grey.size, LONGEST_FILM), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return _address(small, "JPEG", quality=92)


def layer(heat: np.ndarray, overlay: Callable[..., np.ndarray]) -> str:
    """A map (height, width) as a see-through picture: over a film it gives what `overlay` gives at the same opacity.

    What overlay does to black and to white tells colour and transparency: out = (1 - alpha) · film + alpha · colour.
    """
    whole = Image.fromarray(np.ascontiguousarray(heat, dtype=np.float32))
    small = np.asarray(whole.resize(_fit(whole.size, LONGEST_MAP), Image.Resampling.BOX)).clip(0)
    black, white = (overlay(np.full(small.shape, tone), small, 1.0).astype(float) for tone in (0.0, 1.0))
    alpha = 1 - (white - black).mean(axis=2, keepdims=True) / 255
    colour = np.divide(black, alpha, out=np.zeros_like(black), where=alpha > 0)
    rgba = np.concatenate([colour, alpha * 255], axis=2)
    return _address(Image.fromarray(np.rint(rgba.clip(0, 255)).astype(np.uint8)), "PNG", compress_level=3)


def _fit(size: tuple[int, int], longest: int) -> tuple[int, int]:
    scale = min(1.0, longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _address(image: Image.Image, kind: str, **options: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
