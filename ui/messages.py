"""The messages of the Read screen: what is going on, what went wrong, and what the reader can do about it."""

import html
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ui.session_state import SessionState, core

if TYPE_CHECKING:
    from emrrg_core import Draft
    from emrrg_core.report.macros import Macros


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
        use += button("use_other", asked.other, f'data-number="{number}"') if asked.other else ""
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
    """Close the study: what is kept would be deleted."""
    state = "" if signed else " It is not signed off."
    return (
        f'<div class="rr-say rr-bad" role="alert">This deletes the report from the server and its films from this browser.{state} Export it first '
        f"if it is to be kept. {button('close', 'Delete it')} {button('leave-open', 'Go on with it')}</div>"
    )


_VIEW = {"PA": "PA", "AP": "AP", "LATERAL": "lateral"}


def title(state: SessionState) -> str:
    """A study in a few words, without a name: "PA, lateral · 2 films"."""
    films: Sequence[Any] = [held.film for held in state.held if not held.prior]
    if not (state.held or state.draft is None):
        films = state.draft.films
    if not films:
        return "no film"
    views = ", ".join(dict.fromkeys(_VIEW[film.view] for film in films if film.view in _VIEW))
    many = f"{len(films)} films" if len(films) > 1 else "1 film"
    prior = " + prior" if any(held.prior for held in state.held) else ""
    return f"{views} · {many}{prior}" if views else f"{many}{prior}"


def study(state: SessionState | None) -> str:
    """The study's line: its films, what may be done with each, and the key under which the browser keeps them. None: the page is not yet its own."""
    if state is None:
        return '<div class="rr-study"></div>'
    rows = []
    for number, held in enumerate(state.held):
        name, given = html.escape(held.film.name), f'data-number="{number}"'
        tools = ""
        if state.draft is None:
            label = "It is of this study" if held.prior else "Mark as prior"
            tools += button("mark", label, f'{given} aria-label="{name}: {label}"', id=f"mark-{number + 1}")
            tools += button("straighten", "Crop", f'{given} aria-label="Crop and straighten {name}"')
        if state.draft is None or held.prior:
            tools += button(
                "remove", "✕", f'{given} aria-label="Remove {name}" title="Remove"', id=f"remove-{number + 1}"
            )
        about = ' <small title="The draft may say what has changed since">earlier</small>' if held.prior else ""
        rows.append(f"<li><b>{name}</b>{about} {tools}</li>")
    chips = f'<ul class="rr-chips" aria-label="Films">{"".join(rows)}</ul>' if rows else ""
    arrived, kept = html.escape(json.dumps(state.arrived)), html.escape(json.dumps(state.kept_films))
    add = button("add-film", "+ Film", 'title="Films or a zip; a folder can be dropped on the page"')
    return (
        f'<div class="rr-study" data-study="{state.key}" data-missing="{len(state.missing)}" data-arrived="{arrived}" '
        f'data-kept="{kept}">'
        f'<span class="rr-title">{html.escape(title(state))}</span>{chips}'
        f"{add}</div>"
    )


_STATES = {"new": "new", "drafted": "drafted", "signed": "signed"}


def worklist(state: SessionState | None) -> str:
    """This browser's studies: the one that is open and those that wait. None: the page is not yet its own."""
    if state is None:
        return '<nav class="rr-worklist rr-few"></nav>'
    rows, known = [], []
    for each in state.listed():
        here = each.key == state.key
        known.append({"key": each.key, "id": each.id, "label": each.label, "state": each.state})
        rows.append(
            f'<li{" data-here" if here else ""}><button type="button" data-action="switch" data-key="{each.key}"'
            f'{" aria-current=true" if here else ""}><b>{html.escape(each.label)}</b> <small class="rr-{each.state}">{_STATES[each.state]}</small>'
            "</button></li>"
        )
    few = " rr-few" if len(rows) < 2 else ""
    return (
        f'<nav class="rr-worklist{few}" aria-label="Studies of this browser" data-studies="{html.escape(json.dumps(known))}">'
        f"<h2>Studies</h2><ol>{''.join(rows)}</ol>{button('next-study', 'Next (S)') if len(rows) > 1 else ''}</nav>"
    )


def button(do: str, label: str, given: str = "", *, id: str = "") -> str:
    """A button that read.js acts on."""
    named = f'id="{id}" ' if id else ""
    return f'<button type="button" {named}data-action="{do}" {given}>{html.escape(label)}</button>'


def phone_bar() -> str:
    """On a telephone: what is done most, at hand."""
    return f'<div class="rr-phonebar">{button("phone-draft", "Draft")}{button("phone-accept", "Accept")}{button("phone-next", "Next")}</div>'


def macros(shared: "Macros | None", own: "Macros | None") -> str:
    """The macros for the browser to expand: the server's, and own, those that this browser has, where they have just been read."""

    def rows(given: "Macros | None") -> dict[str, Any]:
        if given is None:
            return {"macros": [], "templates": []}
        return {
            "macros": [{"word": each.word, "text": each.text, "section": each.section} for each in given.macros],
            "templates": [{"name": each.name, **each.parts} for each in given.templates],
        }

    told = rows(shared) | {"own": None if own is None else rows(own) | {"toml": own.to_toml()}}
    return (
        f'<details class="rr-macros" data-macros="{html.escape(json.dumps(told))}"><summary>Macros and templates</summary>'
        f"{button('macros-import', 'Import…')} {button('macros-export', 'Save as a file')}"
        '<input type="file" hidden accept=".toml,.html,.htm" data-macros-file aria-label="A file of macros, or an MRRT template">'
        '<p class="rr-hint">A word that you type, and a blank: its text. TOML, or RSNA report templates (MRRT). Kept in this browser.</p></details>'
    )


def kept(state: SessionState) -> str:
    """Where the report is kept, and until when."""
    if state.session is None:
        return ""
    return (
        f"Saved on this server at {state.session.changed:%H:%M} UTC, under a random id that this browser knows; "
        "deleted when you close the study, or seven days after the last change."
    )


def finished(draft: "Draft | None") -> str:
    """A draft has come to its end."""
    if draft is None:
        return say("The model wrote nothing.", bad=True)
    seconds = draft.timings.get("total", 0.0)
    words = f"Draft done in {seconds:.1f} s."
    at_their_sentences = core().differences(draft.read, draft.sentences) if draft.read else []
    return say(words, notes=[each for each in draft.warnings if each not in at_their_sentences])


def stopped(draft: "Draft | None") -> str:
    """The reader has stopped a draft."""
    there = draft is not None and (draft.findings or draft.impression)
    return say("Stopped. What was written so far is kept." if there else "Stopped before the first word.")


def _described(draft: "Draft", number: int) -> str:
    film = draft.films[number]
    view = f"{film.view}, " if film.view else ""
    return f"{film.name} ({view}{film.format}, {film.width} × {film.height} pixels)"
