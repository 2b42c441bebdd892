"""Asking on the Read screen: where the model looked, what it read there, and why it wrote a sentence."""

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ui import draft_panels, exports, messages, viewer
from ui.messages import say
from ui.read.context import Context
from ui.read.progress import followed
from ui.read.shown import flags_of_draft, no_map
from ui.session_state import SessionState, core
from ui.updates import Shown

if TYPE_CHECKING:
    from emrrg_core import Draft

_OVER_FILMS = "#read"  # the films that a map is laid over: those of this screen


def look_at_line(state: SessionState, data: Mapping[str, Any], context: Context) -> Shown:
    """A sentence of the report was chosen: show the map of the drafted sentence that it came from. data: {"line": its number}."""
    if state.report is None or state.busy:
        return {}
    line = next((line for line in state.report.lines if line.id == data.get("line")), None)
    if line is None or line.drafted is None or state.draft is None:
        state.picked = state.found = None
        own = messages.told_of("You wrote this sentence: the model has no map of it.")
        return {**no_map(), "caption": own if line is not None else "", "menu": exports.menu(state)}
    picked = draft_panels.picked(state.draft, [line.drafted, None])
    return looked_at(state, state.draft, picked) if picked else {}


def look_at_words(state: SessionState, data: Mapping[str, Any], context: Context) -> Shown:
    """A sentence or a word of the draft was chosen. data: {"index": [sentence, word or null]}."""
    picked = draft_panels.picked(state.draft, data.get("index")) if state.draft and not state.busy else None
    return looked_at(state, state.draft, picked) if state.draft and picked else {}


def looked_at(state: SessionState, draft: "Draft", picked: draft_panels.Selection) -> Shown:
    """The map of a selection over every film, and its gates and probabilities."""
    state.picked, state.found = picked, None
    maps = [core().heat_map(draft, place, picked.what(draft)) for place in state.places]
    tokens = draft_panels.tokens_html(draft, picked.first, picked.last)
    gates = draft_panels.gates_html(draft, picked.first, picked.last)
    return {
        "state": state,
        "layers": viewer.layers(maps, core().overlay, within=_OVER_FILMS),
        "caption": _caption(draft, picked, maps),
        "reading": draft_panels.read_html(draft),
        "words": draft_panels.words_html(draft, picked, flags_of_draft(state)),
        "chosen": tokens + gates + _ask(state),
        "why": "",
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
    return {
        "state": state,
        "layers": viewer.layers(maps, core().overlay, within=_OVER_FILMS),
        "caption": draft_panels.finding_caption(finding, shown=bool(maps)),
        "reading": draft_panels.read_html(draft, finding.name),
        "words": draft_panels.words_html(draft, None, flags_of_draft(state)),
        "chosen": "",
        "why": "",
        "menu": exports.menu(state),
    }


def why_this(state: SessionState, context: Context) -> Iterator[Shown]:
    """*Why this sentence?*, of the chosen one."""
    draft, picked, reporter = state.draft, state.picked, context.reporter
    if draft is None or picked is None:
        yield {}
        return
    sentence = draft.sentences[picked.sentence].text
    yield {"why": say("Waiting for the model…", busy=True)}
    try:
        for done, every, found in followed(
            lambda progress: (reporter.result().why(state.films, draft, picked.sentence, progress=progress),)
        ):
            if state.picked is None or state.picked.sentence != picked.sentence:
                return  # another one is chosen by now
            if found is None:
                yield {"why": say(f"Hiding places of the film: reading {done} of {every}…", busy=True)}
            else:
                yield {"why": draft_panels.why_html(found[0], sentence)}
    except core().EmrrgError as error:
        yield {"why": say(str(error), bad=True)}


def _ask(state: SessionState) -> str:
    """*Why this sentence?*, or why that cannot be asked now."""
    if state.missing:
        return '<p class="rr-hint">Why this sentence? Drop the films again to ask: they are not stored.</p>'
    ask = messages.button("why", "Why this sentence?", 'data-event="ask"')
    return f'<p class="rr-foot">{ask}</p>'


def _caption(draft: "Draft", picked: draft_panels.Selection, maps: Sequence[Any]) -> str:
    about = draft_panels.about_html(draft, draft.sentences[picked.sentence])
    said = f"<b>“{html.escape(picked.text)}”</b>{f' · {about}' if about else ''}. "
    if not maps:
        said += "Drop the films again to see where the model looked: they are not stored."
    elif all(heat is None for heat in maps):
        said += html.escape(core().no_map(draft, picked.what(draft)))
    else:
        said += (
            "The brighter a place, the more the model looked there while writing, at the place itself or at a finding that was read there. "
            "It does not prove why it wrote this."
        )
    return f'<p role="status">{said}</p>'
