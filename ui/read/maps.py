"""Asking on the Read screen: where the model looked, what it read there, and why it wrote a sentence."""

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ui import draft_panels, exports, messages, viewer
from ui.messages import say
from ui.read.context import Context
from ui.read.progress import followed
from ui.read.shown import findings_of, flags_of_draft, no_map
from ui.session_state import SessionState, core
from ui.updates import Shown

if TYPE_CHECKING:
    from emrrg_core import Draft
    from emrrg_core.report.report import Line

_OVER_FILMS = "#read"  # the films that a map is laid over: those of this screen


def look_at_line(state: SessionState, data: Mapping[str, Any], context: Context) -> Shown:
    """A sentence of the report was chosen: show the map of the drafted sentence that it came from. data: {"line": its number}."""
    if state.report is None or state.busy:
        return {}
    line = next((line for line in state.report.lines if line.id == data.get("line")), None)
    if line is None or line.drafted is None or state.draft is None:
        state.picked = state.found = None
        shown = {**no_map(), "menu": exports.menu(state), "reading": findings_of(state)}
        return shown | ({"evidence": _at(f"<p>{_no_map_of(line)}</p>", line=line.id)} if line is not None else {})
    picked = draft_panels.picked(state.draft, [line.drafted, None])
    return looked_at(state, state.draft, picked) if picked else {}


def _no_map_of(line: "Line") -> str:
    return (
        "Written from what you said: it has no map of its own."
        if line.by_model
        else "Your own words: they have no map."
    )


def look_at_words(state: SessionState, data: Mapping[str, Any], context: Context) -> Shown:
    """A sentence or a word of the draft was chosen. data: {"index": [sentence, word or null]}."""
    picked = draft_panels.picked(state.draft, data.get("index")) if state.draft and not state.busy else None
    return looked_at(state, state.draft, picked) if state.draft and picked else {}


def looked_at(state: SessionState, draft: "Draft", picked: draft_panels.Selection) -> Shown:
    """The map of a selection over every film, and its gates and probabilities."""
    state.picked, state.found = picked, None
    maps = [core().heat_map(draft, place, picked.what(draft)) for place in state.places]
    return {
        "state": state,
        "layers": viewer.layers(maps, core().overlay, within=_OVER_FILMS),
        "evidence": evidence(state, draft, picked, maps),
        "reading": findings_of(state),
        "words": draft_panels.words_html(draft, picked, flags_of_draft(state)),
        "menu": exports.menu(state),
    }


def look_at_finding(state: SessionState, data: Mapping[str, Any], context: Context) -> Shown:
    """A finding was chosen: its own map, which is what its logit is made of. data: {"index": its name}."""
    draft = state.draft
    finding = draft.finding(str(data.get("index"))) if draft and not state.busy else None
    if draft is None or finding is None:
        return {}
    state.picked, state.found = None, finding.name
    maps = viewer.maps_of(draft, finding, state.places)
    about = draft_panels.finding_caption(finding, shown=bool(maps))
    return {
        "state": state,
        "layers": viewer.layers(maps, core().overlay, within=_OVER_FILMS),
        "evidence": _at(about, finding=finding.name),
        "reading": findings_of(state),
        "words": draft_panels.words_html(draft, None, flags_of_draft(state)),
        "menu": exports.menu(state),
    }


def why_this(state: SessionState, context: Context) -> Iterator[Shown]:
    """*Why this sentence?*, of the chosen one."""
    draft, picked, reporter = state.draft, state.picked, context.reporter
    if draft is None or picked is None:
        yield {}
        return
    sentence = draft.sentences[picked.sentence].text
    maps = [core().heat_map(draft, place, picked.what(draft)) for place in state.places]
    films = state.films

    def told(why: str) -> Shown:
        return {"evidence": evidence(state, draft, picked, maps, why)}

    def chosen() -> bool:
        """Whether it is still the chosen one, of the study that is open."""
        return state.draft is draft and state.picked is not None and state.picked.sentence == picked.sentence

    yield told(say("Waiting for the model…", busy=True))
    try:
        for done, every, found in followed(
            lambda progress: (reporter.result().why(films, draft, picked.sentence, progress=progress),)
        ):
            if not chosen():
                return
            if found is None:
                yield told(say(f"Hiding places of the film: reading {done} of {every}…", busy=True))
            else:
                yield told(draft_panels.why_html(found[0], sentence))
    except core().EmrrgError as error:
        if chosen():
            yield told(say(str(error), bad=True))


def evidence(
    state: SessionState, draft: "Draft", picked: draft_panels.Selection, maps: Sequence[Any], why: str = ""
) -> str:
    """What stands behind a selection, for its own sentence and no other: read.js lays it there. why: *Why this sentence?* so far."""
    tokens = draft_panels.tokens_html(draft, picked.first, picked.last)
    gates = draft_panels.gates_html(draft, picked.first, picked.last)
    line = next(
        (each for each in (state.report.lines if state.report else ()) if each.drafted == picked.sentence), None
    )
    other = line is not None and line.choice.value == "edited"
    return _at(
        f"{_caption(draft, picked, maps, edited=other)}{why or _ask(state)}"
        f"<details><summary>Words</summary>{tokens}</details><details><summary>Gates</summary>{gates}</details>",
        line=line.id if line else None,
        sentence=picked.sentence,
    )


def _at(inside: str, *, line: int | None = None, sentence: int | None = None, finding: str = "") -> str:
    """Evidence with the place where it belongs."""
    places = {"line": line, "sentence": sentence, "finding": finding or None}
    given = "".join(f' data-{name}="{value}"' for name, value in places.items() if value is not None)
    return f'<div class="rr-evidence"{given}>{inside}</div>'


def _ask(state: SessionState) -> str:
    """*Why this sentence?*, or why that cannot be asked now."""
    if state.missing:
        return '<p class="rr-hint">Why this sentence? Drop the films again to ask: they are not stored.</p>'
    ask = messages.button("why", "Why this sentence?", 'data-event="ask"')
    return f'<p class="rr-foot">{ask}</p>'


def _caption(draft: "Draft", picked: draft_panels.Selection, maps: Sequence[Any], *, edited: bool) -> str:
    """edited: the reader put other words in the place of the drafted ones, which alone have a map."""
    said = f"“{html.escape(picked.text)}”: " if picked.word is not None else ""
    if edited and picked.word is None:
        said = f"The drafted words, “{html.escape(picked.text)}”: "
    if not maps:
        said += "Drop the films again to see where the model looked: they are not stored."
    elif all(heat is None for heat in maps):
        said += html.escape(core().no_map(draft, picked.what(draft)))
    else:
        said += "Bright: where the model looked while writing, or what it had read there. It does not prove why it wrote this."
    return f'<p role="status">{said}</p>'
