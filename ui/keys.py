"""The keys of the app: one list, shown under ?, that a reader may change. `ui/keys.js` hears them; what each does is said where it is done."""

import html
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Key:
    """action: what viewer.js, overlay.js and read.js know it by. key: as KeyboardEvent.key gives it, lower case. words: what it does."""

    action: str
    key: str
    words: str
    group: str


KEYS = tuple(
    Key(action, key, words, group)
    for group, rows in {
        "Report": (
            ("draft", "d", "draft the report"),
            ("next", "j", "next sentence"),
            ("previous", "k", "previous sentence"),
            ("accept", "a", "accept the sentence"),
            ("edit", "e", "edit it; Enter keeps, Esc cancels"),
            ("delete", "x", "delete or restore it"),
            ("undo", "u", "undo; Ctrl Z too"),
            ("redo", "y", "redo; Ctrl Y too"),
            ("changes", "c", "show changes against the draft"),
            ("next-study", "s", "next study"),
        ),
        "Film": (
            ("window", "w", "drag windows: sideways contrast, up and down brightness"),
            ("zoom", "z", "drag zooms"),
            ("ruler", "t", "measure a length"),
            ("ratio", "b", "cardiothoracic ratio: drag over the heart, then over the chest"),
            ("arrow", "g", "draw an arrow"),
            ("invert", "i", "invert"),
            ("reset", "r", "reset all films"),
            ("screen", "f", "full screen"),
            ("map", "m", "heat map and contours on or off"),
            ("link", "l", "link zoom and position of the films"),
            ("in", "+", "zoom in"),
            ("out", "-", "zoom out"),
            ("fit", "0", "whole film"),
            ("actual", "o", "one film pixel on one screen pixel"),
            ("preset-1", "1", "window: as read"),
            ("preset-2", "2", "window: high contrast"),
            ("preset-3", "3", "window: lungs"),
            ("preset-4", "4", "window: mediastinum"),
            ("preset-5", "5", "window: bone"),
        ),
        "Page": (("keys", "?", "this list"),),
    }.items()
    for action, key, words in rows
)
POINTER = (
    ("Drag", "window, or the tool that is chosen"),
    ("Space + drag, middle button", "move the film"),
    ("Wheel, right button + drag, two fingers", "zoom"),
    ("Double click", "one to one there, and back to the whole film"),
    ("Arrow keys, film selected", "move it; with Shift: window"),
)
# In the page's head, once.
HEAD = (
    f"<script>window.emrrgKeyList = {json.dumps([(each.action, each.key, each.words) for each in KEYS])};</script>"
    f"<script>{(Path(__file__).parent / 'keys.js').read_text(encoding='utf-8')}</script>"
)


def dialog() -> str:
    """The list of keys, which keys.js opens and lets a reader change."""
    groups = []
    for group in dict.fromkeys(each.group for each in KEYS):
        rows = "".join(
            f'<dt><button type="button" class="rr-key-of" data-key-of="{each.action}" '
            f'aria-label="Key for: {html.escape(each.words)}">{each.key.upper()}</button></dt><dd>{html.escape(each.words)}</dd>'
            for each in KEYS
            if each.group == group
        )
        groups.append(f'<div><h4>{group}</h4><dl class="rr-keylist">{rows}</dl></div>')
    pointer = "".join(f"<dt>{keys}</dt><dd>{words}</dd>" for keys, words in POINTER)
    return (
        '<dialog class="rr-dialog rr-wide-dialog" data-dialog="keys" aria-label="Keys and gestures"><h3>Keys and gestures</h3>'
        f'<div class="rr-keygroups">{"".join(groups)}<div><h4>Mouse and fingers</h4><dl class="rr-keylist">{pointer}</dl></div></div>'
        '<p class="rr-hint" data-keys-said role="status">Press a key here to change it. Keys work everywhere, and rest while you type.</p>'
        '<p><label><input type="checkbox" data-keys-on checked> Single keys are on</label></p>'
        '<p class="rr-ends"><button type="button" data-keys="reset">Back to the usual keys</button>'
        '<button type="button" data-keys="shut">Close</button></p></dialog>'
    )
