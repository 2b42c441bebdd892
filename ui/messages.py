"""The messages of the Read screen: what is going on, what went wrong, and what the reader can do about it."""

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ui.session_state import SessionState

if TYPE_CHECKING:
    from emrrg_core import Draft

_KEYS = (
    ("D", "draft the report"),
    ("J or N", "next sentence"),
    ("K or P", "previous sentence"),
    ("A", "accept the sentence"),
    ("E", "edit it; Enter keeps, Esc cancels"),
    ("X", "delete or restore it"),
    ("Z, Ctrl Z", "undo"),
    ("Y, Shift Z, Ctrl Y", "redo"),
    ("M", "heat map on or off"),
    ("C", "show changes against the draft"),
    ("?", "this list"),
)


def say(text: str, *, busy: bool = False, bad: bool = False, notes: Sequence[str] = ()) -> str:
    """A sentence in a box of its own: at work, gone wrong, or simply so. notes: a list below it."""
    kind = "rr-bad" if bad else "rr-busy" if busy else "rr-calm"
    listed = f"<ul>{''.join(f'<li>{html.escape(note)}</li>' for note in notes)}</ul>" if notes else ""
    role = "alert" if bad else "status"
    return f'<div class="rr-say {kind}" role="{role}" aria-live="polite">{html.escape(text)}{listed}</div>'


def told_of(text: str) -> str:
    """A line below the films."""
    return f'<p role="status">{html.escape(text)}</p>'


def films(state: SessionState, trouble: Sequence[str]) -> str:
    """Above the films: what went wrong, what was refused and may be used all the same, and what has to be dropped again."""
    parts = []
    for line in trouble:
        again = button("keep", "Keep it as a new session") if state.gone else ""
        parts.append(f'<div class="rr-say rr-bad" role="alert">{html.escape(line)} {again}</div>')
    for number, asked in enumerate(state.waiting):
        use = button("use", asked.offer, f'data-number="{number}"') if asked.offer else ""
        parts.append(f'<div class="rr-say rr-bad" role="alert">{html.escape(asked.words)} {use}</div>')
    if state.draft and state.missing:
        names = " and ".join(_described(state.draft, number) for number in state.missing)
        parts.append(
            f'<div class="rr-say rr-calm" role="status">Films are not stored. Drop {html.escape(names)} again to see maps on it, to ask '
            "why, and for exports with pictures or in DICOM; the report is whole without.</div>"
        )
    if lost := [sha256 for sha256 in state.missed if sha256 not in {film.sha256 for film in state.shown}]:
        many = "a prior film" if len(lost) == 1 else f"{len(lost)} prior films"
        parts.append(
            f'<div class="rr-say rr-calm" role="status">This report was compared with {many}, not stored either: drop it again to see it.</div>'
        )
    return "".join(parts)


def to_close(signed: bool) -> str:
    """New study: what is kept would be deleted."""
    state = (
        "Export it first if it is to be kept."
        if signed
        else "It is not signed off. Export it first if it is to be kept."
    )
    return (
        f'<div class="rr-say rr-bad" role="alert">This closes the report and deletes it from the server. {state} '
        f"{button('close', 'Delete it and begin a new study')} {button('leave-open', 'Go on with it')}</div>"
    )


def chips(state: SessionState) -> str:
    """What may be done with each film."""
    rows = []
    for number, held in enumerate(state.held):
        name, given = html.escape(held.film.name), f'data-number="{number}"'
        tools = ""
        if state.draft is None:
            label = "It is of this study" if held.prior else "Mark as prior"
            tools += button("mark", label, f'{given} aria-label="{name}: {label}"', id=f"mark-{number + 1}")
        if state.draft is None or held.prior:
            tools += button("remove", "Remove", f'{given} aria-label="Remove {name}"', id=f"remove-{number + 1}")
        about = " <small>earlier: the draft may say what has changed since</small>" if held.prior else ""
        if tools:
            rows.append(f"<li><b>{name}</b>{about} {tools}</li>")
    return f'<ul class="rr-chips" aria-label="Films">{"".join(rows)}</ul>' if rows else ""


def button(do: str, label: str, given: str = "", *, id: str = "") -> str:
    """A button that read.js acts on."""
    named = f'id="{id}" ' if id else ""
    return f'<button type="button" {named}data-action="{do}" {given}>{html.escape(label)}</button>'


def keys() -> str:
    """The list of keys, and the button that shows it."""
    rows = "".join(f"<dt>{name}</dt><dd>{what}</dd>" for name, what in _KEYS)
    return (
        f'<p class="rr-foot">{button("keys", "Keyboard shortcuts")}</p>'
        '<dialog class="rr-dialog" data-dialog="keys" aria-label="Keyboard shortcuts"><h3>Keyboard shortcuts</h3>'
        f'<dl class="rr-keylist">{rows}</dl><p>They rest while you type.</p>'
        '<p><label><input type="checkbox" id="keys-on" checked> Single keys are on</label></p>'
        f'<p class="rr-ends">{button("shut", "Close")}</p></dialog>'
    )


def kept(state: SessionState) -> str:
    """Where the report is kept, and until when."""
    if state.session is None:
        return ""
    return (
        f"Saved on this server at {state.session.changed:%H:%M} UTC, under a random id that only this tab knows; "
        "deleted when you press New study, or seven days after the last change."
    )


def finished(draft: "Draft | None") -> str:
    """A draft has come to its end."""
    if draft is None:
        return say("The model wrote nothing.", bad=True)
    seconds = draft.timings.get("total", 0.0)
    words = f"Draft done in {seconds:.1f} s. Read each sentence and accept, edit or delete it; select one to see where the model looked."
    return say(words, notes=draft.warnings)


def stopped(draft: "Draft | None") -> str:
    """The reader has stopped a draft."""
    there = draft is not None and (draft.findings or draft.impression)
    return say("Stopped. What was written so far is kept." if there else "Stopped before the first word.")


def _described(draft: "Draft", number: int) -> str:
    film = draft.films[number]
    view = f"{film.view}, " if film.view else ""
    return f"{film.name} ({view}{film.format}, {film.width} × {film.height} pixels)"
