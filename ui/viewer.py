"""The film viewer: films as pictures inside the page, and heat maps as layers over them.

Nothing here is written to the disk. A picture of each film travels inside the page as data, 8 bits and at most
LONGEST_FILM pixels long; `ui/viewer.js`, which makes window, zoom and the rest, fetches the film itself from
`ui.pixel_endpoint` once that shows more. A map is a style sheet of its own, so that choosing another sentence sends a few
kilobytes and not the films again; the browser blends it, so that the opacity slider answers at once.
"""

import base64
import html
import io
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ui.draft_panels import COLOURS
from ui.pixel_endpoint import address
from ui.session_state import core
from ui.window_level import PRESETS, windows

if TYPE_CHECKING:
    from emrrg_core import Draft, Film, Finding
    from emrrg_core.explain.marks import Mark

LONGEST_FILM = 1600  # pixels on the longer side of the picture inside the page
_LAID = 112  # pixels along each side, on which a map of a stitched film is laid before its contour is drawn
LONGEST_MAP = 448  # a map has 14 × 14 patches; its layer is stretched over the film
VIEWS = {"PA": "PA", "AP": "AP", "LATERAL": "lateral"}
EXAMPLES = {  # name: words on its button
    "normal": "a normal film (drawn)",
    "opacity": "one that it drafts well (drawn)",
    "real": "a real one, and hard",
}
TOOLS = (  # a drag's meaning: name, sign, words
    ("window", "W/L", "Drag windows: sideways contrast, up and down brightness"),
    ("zoom", "⤢", "Drag zooms; space and drag moves the film"),
    ("ruler", "↔", "Measure a length"),
    ("ratio", "CTR", "Cardiothoracic ratio: drag over the heart, then over the chest"),
    ("arrow", "↗", "Draw an arrow"),
)
# In the page's head, once: the viewer finds its films by itself, however often Gradio renders them anew.
HEAD = "".join(
    f"<script>{(Path(__file__).parent / name).read_text(encoding='utf-8')}</script>"
    for name in ("viewer.js", "overlay.js")
)


def figures(films: "Sequence[Film]", *, prior: AbstractSet[int] = frozenset()) -> str:
    """HTML of the films, each with its view, size, spacing and the steps applied; without films, what to do.

    prior: the places, counted from 0, of films that the reader marked as prior; they stand last and are labelled.
    """
    if not films:
        offered = "".join(
            f'<button type="button" data-action="example" data-name="{name}"{" id=example" if name == "real" else ""}>{words}</button>'
            for name, words in EXAMPLES.items()
        )
        return (
            '<div class="rr-empty"><p><b>No film yet.</b></p><p>Drop the films of a study anywhere on this page: DICOM, PNG, JPEG or TIFF, '
            f'a folder, a CD or a zip.</p><p class="rr-foot">Or try: {offered}</p></div>'
        )
    shared = min(_ratio(film) for film in films)  # side by side, all stages are as tall as the tallest film needs
    shown = "".join(_figure(number, film, prior=number in prior) for number, film in enumerate(films))
    return (
        f'<section class="rr-viewer" aria-label="Film viewer" data-linked="{int(bool(prior))}">{_tools(films)}'
        f'<div class="rr-films rr-count-{len(films)}" style="--shared:{shared:.5f}">{shown}</div>'
        '<p class="rr-said" role="status"></p></section>'
    )


def _ratio(film: "Film") -> float:
    """Width to height as the patient was, where pixels are not square."""
    height, width = film.pixels.shape
    row, column = film.spacing or (1.0, 1.0)
    return width * column / (height * row)


def _figure(number: int, film: "Film", *, prior: bool) -> str:
    width = film.pixels.shape[1]
    name, view = html.escape(film.name), view_of(film)
    steps = "".join(f"<li>{html.escape(step)}</li>" for step in film.steps) or "<li>none</li>"
    spread = html.escape(json.dumps([(round(each.level, 4), round(each.width, 4)) for each in windows(film.pixels)]))
    kind = "prior film · " if prior and "prior" not in film.name.lower() else ""
    badge = name if not prior or "prior" in name.lower() else f"{name} · prior"
    corners = "" if film.format == "DICOM" or prior else _corners(film)
    scale = f' data-mm="{film.spacing[0]!r} {film.spacing[1]!r}"' if film.spacing else ""
    return (
        f'<figure class="rr-film film-{number}{" rr-prior" if prior else ""}" data-film="{html.escape(film.sha256)}" '
        f'data-full="{address(film)}" data-width="{width}" data-height="{film.pixels.shape[0]}" data-view="{film.view or ""}"{scale}{corners} '
        f'data-windows="{spread}">'
        f'<div class="rr-stage" style="--ratio:{_ratio(film):.5f}" tabindex="0" role="application" '
        f'aria-roledescription="film viewer" aria-label="{badge}. Press question mark for the keys.">'
        f'<img class="rr-fit" src="{picture(film.pixels)}" alt="{name}: chest film, {kind}{describe(film)}" draggable="false">'
        '<canvas hidden aria-hidden="true"></canvas><div class="rr-map rr-fit" aria-hidden="true"></div>'
        '<svg class="rr-over" aria-hidden="true"></svg>'
        f'<span class="rr-badge" aria-hidden="true">{badge}</span></div>'
        f'<figcaption><span class="rr-line"><b>{name}</b> · {kind}{view} · <span class="rr-now">as read</span></span>'
        + _button("about", "i", "What was done to the film", label=f"About {name}", expanded=False)
        + f'<div class="rr-inspect" hidden>{html.escape(size_of(film))}<br>Steps:<ol class="rr-steps">{steps}</ol></div></figcaption></figure>'
    )


_SUGGESTED: OrderedDict[str, str] = OrderedDict()  # by digest: to look for corners takes a moment


def _corners(film: "Film") -> str:
    """Where the film seems to lie in a photo of one, for the crop to begin with."""
    if film.straightened:
        return ""
    if film.sha256 not in _SUGGESTED:
        found = core().suggested_corners(film)
        told = " ".join(f"{value:.4f}" for point in found for value in point) if found else ""
        _SUGGESTED[film.sha256] = f' data-corners="{told}"' if told else ""
        while len(_SUGGESTED) > 64:
            _SUGGESTED.popitem(last=False)
    return _SUGGESTED[film.sha256]


def _tools(films: "Sequence[Film]") -> str:
    """The controls; `ui/viewer.js` gives them life and state."""
    rows = []
    presets = "".join(
        _button("preset", preset.name, f"{preset.words} ({number + 1})", pressed=not number, value=number)
        for number, preset in enumerate(PRESETS)
    )
    tools = "".join(
        _button("tool", sign, words, label=words, value=name, pressed=name == "window") for name, sign, words in TOOLS
    )
    rows.append(
        f'<div class="rr-row" role="group" aria-label="Window presets"><span class="rr-target"></span>{presets}</div>'
        f'<div class="rr-row" role="group" aria-label="Tools">{tools}'
        + _button("invert", "◐", "Black for white (I)", label="Invert", pressed=False)
        + '</div><div class="rr-row" role="group" aria-label="Zoom and display">'
        + _button("out", "−", "Zoom out (−)", label="Zoom out")
        + '<output class="rr-percent" aria-label="Zoom">Fit</output>'
        + _button("in", "+", "Zoom in (+)", label="Zoom in")
        + _button("fit", "Fit", "The whole film (0)")
        + _button("actual", "1:1", "One film pixel on one screen pixel (O)", label="One to one")
        + _button("reset", "Reset", "All films as read, whole, not inverted (R)")
        + '</div><div class="rr-row rr-maptools" role="group" aria-label="Heat map">'
        + _button("map", "Map", "Heat map and contours on or off (M)", label="Heat map", pressed=True)
        + _slider("opacity", "Opacity", "Opacity of map and contours", 0, 100, 50)
        + '<span class="rr-legend" role="img" aria-label="Colours: dark for looked at little, bright for looked at most">'
        "<span>little</span><i></i><span>most</span></span></div>"
        '<span class="rr-gap"></span><div class="rr-row">'
        + _button("window", "Levels", "Contrast and brightness in numbers", expanded=False)
        + _button("screen", "Full", "Full screen (F)", label="Full screen", pressed=False)
        + _button("keys", "?", "Keys and gestures (?)", label="Keys and gestures")
        + "</div>"
    )
    rows.append(
        '<div class="rr-window" hidden><div class="rr-row">'
        + _slider("width", "Window", "Width of the window, per cent of the film's grey scale", 1, 100, 100)
        + _slider("level", "Level", "Middle of the window; higher is darker", 0, 100, 50)
        + f'</div><p class="rr-words" data-words="{html.escape(json.dumps([f"{p.name}: {p.words}" for p in PRESETS]))}">'
        + "</p></div>"
    )
    if len(films) > 1:
        each = "".join(
            _button("show", html.escape(film.name), pressed=False, value=number) for number, film in enumerate(films)
        )
        rows.append(
            f'<div class="rr-row" role="group" aria-label="Films shown">{each}'
            + _button("show", "Side by side", pressed=True, value="all")
            + _button("link", "Link zoom", "Zoom and move all films together (L)", pressed=False)
            + "</div>"
        )
    first, *rest = rows
    return f'<div class="rr-tools"><div class="rr-row rr-toolbar">{first}</div>{"".join(rest)}</div>'


def _button(
    do: str,
    text: str,
    title: str = "",
    *,
    label: str = "",
    value: int | str | None = None,
    pressed: bool | None = None,
    expanded: bool | None = None,
) -> str:
    more = "" if value is None else f' data-value="{value}"'
    more += "" if pressed is None else f' aria-pressed="{str(pressed).lower()}"'
    more += "" if expanded is None else f' aria-expanded="{str(expanded).lower()}"'
    more += f' title="{html.escape(title)}"' if title else ""
    more += f' aria-label="{html.escape(label)}"' if label else ""
    return f'<button type="button" data-do="{do}"{more}>{text}</button>'


def _slider(name: str, text: str, title: str, least: int, most: int, value: int) -> str:
    return (
        f'<label class="rr-slider" title="{html.escape(title)}"><span>{text}</span>'
        f'<input type="range" data-set="{name}" min="{least}" max="{most}" step="0.5" value="{value}">'
        f"<output>{value} %</output></label>"
    )


def describe(film: "Film") -> str:
    """View, size and spacing in words."""
    return f"{view_of(film)} · {size_of(film)}"


def view_of(film: "Film") -> str:
    """ "PA view", or that it is not stated."""
    return f"{VIEWS.get(film.view, film.view)} view" if film.view else "view not stated"


def size_of(film: "Film") -> str:
    """Size and spacing in words."""
    height, width = film.pixels.shape
    spacing = f"{film.spacing[0]:.3g} × {film.spacing[1]:.3g} mm per pixel" if film.spacing else "spacing not known"
    return f"{width} × {height} pixels · {spacing}"


def layers(maps: Sequence[np.ndarray | None], overlay: Callable[..., np.ndarray], *, within: str = "") -> str:
    """A style sheet that lays maps[n] (height, width; None for no map) over film n. overlay: emrrg_core's.

    within: a selector of the part of the page that it is for, where films stand in more than one.
    """
    rules = [
        f"{within} .film-{number} .rr-map{{background-image:url({layer(heat, overlay)})}}"
        for number, heat in enumerate(maps)
        if heat is not None
    ]
    if not rules:
        return ""
    rules.append(f"{within} .rr-viewer{{--map-tools:flex;--map-colours:{_legend(overlay)}}}")
    return f"<style>{''.join(rules)}</style>"


def maps_of(draft: "Draft", finding: "Finding", places: Sequence[int]) -> list[np.ndarray]:
    """What was read of one finding on films of a draft, by their numbers: its own map over each, (height, width), sum 1."""
    films = [draft.films[place] for place in places]
    return [
        core().lay_over(finding.maps[place], draft.grid, film.height, film.width, film.place)
        for place, film in zip(places, films, strict=True)
    ]


def outlines(
    draft: "Draft | None",
    places: Sequence[int],
    films: "Sequence[Film]",
    marks: "Mapping[str, Sequence[Mark]]",
    says: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """For overlay.js: the contours of every finding over each film of the draft that is here, and the reader's marks, by the films' digests.

    Shown at first: those that were read as present, unless the reader says that they are not there. says: of draft_panels.SAYS.
    """
    paths: dict[str, dict[str, str]] = {}
    names = [finding for finding in draft.read if finding.name != "abnormal"] if draft and draft.read else []
    for film, place in zip(films, places, strict=False):
        laid = draft.films[place].place if draft else None
        paths[film.sha256] = {f.name: _path(np.asarray(f.maps[place], np.float64).tobytes(), laid) for f in names}
    drawn = {digest: [mark.to_dict() for mark in each] for digest, each in marks.items()}
    if not (paths or drawn):
        return ""
    given = {
        "films": paths,
        "colours": COLOURS,
        "on": [f.name for f in names if f.presence.value == "present" and says.get(f.name) not in ("absent", "silent")],
        "marks": drawn,
    }
    return f'<div class="rr-outlines" data-outlines="{html.escape(json.dumps(given))}"></div>'


@lru_cache(maxsize=512)
def _path(weights: bytes, laid: tuple[float, float, float, float] | None) -> str:
    """The contour that holds half of a finding's map (g²,), as an SVG path in 0..1000. laid: where the film lies on a canvas of stitched films."""
    values = np.frombuffer(weights)
    side = round(values.size**0.5)
    over = core().lay_over(values, side, _LAID, _LAID, laid) if laid else values.reshape(side, side)
    return str(core().svg_path(core().isolines(over)))


def picture(pixels: np.ndarray) -> str:
    """A film (height, width) in [0, 1] as a picture in a data address, its longer side at most LONGEST_FILM."""
    grey = Image.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    small = grey.resize(_fit(grey.size, LONGEST_FILM), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return _address(small, "JPEG", quality=92)


def layer(heat: np.ndarray, overlay: Callable[..., np.ndarray]) -> str:
    """A map (height, width) as a see-through picture: over a film it gives what `overlay` gives at the same opacity."""
    whole = Image.fromarray(np.ascontiguousarray(heat, dtype=np.float32))
    small = np.asarray(whole.resize(_fit(whole.size, LONGEST_MAP), Image.Resampling.BOX)).clip(0)
    return _address(Image.fromarray(_colours(small, overlay)), "PNG", compress_level=3)


def _colours(heat: np.ndarray, overlay: Callable[..., np.ndarray]) -> np.ndarray:
    """(height, width) -> (height, width, 4) uint8, red, green, blue, alpha.

    What overlay does to black and to white tells colour and transparency: out = (1 - alpha) · film + alpha · colour.
    """
    black, white = (overlay(np.full(heat.shape, tone), heat, 1.0).astype(float) for tone in (0.0, 1.0))
    alpha = 1 - (white - black).mean(axis=2, keepdims=True) / 255
    colour = np.divide(black, alpha, out=np.zeros_like(black), where=alpha > 0)
    rgba = np.concatenate([colour, alpha * 255], axis=2)
    return np.rint(rgba.clip(0, 255)).astype(np.uint8)


def _legend(overlay: Callable[..., np.ndarray]) -> str:
    """The map's colours from nothing to most, as a gradient."""
    ramp = _colours(np.linspace(0, 1, 9, dtype=np.float32)[None], overlay)[0]
    return f"linear-gradient(90deg,{','.join(f'rgb({r} {g} {b}/{a / 255:.3f})' for r, g, b, a in ramp)})"


def _fit(size: tuple[int, int], longest: int) -> tuple[int, int]:
    scale = min(1.0, longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _address(image: Image.Image, kind: str, **options: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
