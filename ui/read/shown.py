"""What the Read screen shows of a tab's state, part by part: names of components and their values (ui.updates)."""

from typing import Any

from ui import draft_panels, editor, exports, messages, viewer
from ui.session_state import SessionState, core
from ui.updates import Change, Shown

FILMS = ("figures", "study", "notice", "worklist", "outlines")
REPORT = ("report", "reading", "near", "words", "flagged", "table", "menu", "kept_id", "earlier", "looked", "outlines")
EVIDENCE = ("layers", "evidence")
BUTTONS = ("write", "stop", "drop", "new_study", "close_study")


def films_of(state: SessionState, said: list[str] | None = None) -> Shown:
    """FILMS. said: what went wrong, a sentence each."""
    return {
        "figures": viewer.figures(state.shown, prior=state.priors),
        "study": messages.study(state),
        "notice": messages.films(state, said or []),
        "worklist": messages.worklist(state),
        "outlines": outlines_of(state),
    }


def report_of(state: SessionState) -> Shown:
    """REPORT: everything that follows from the report and its draft."""
    texts = state.texts
    marks = core().flags(*texts, has_prior=state.has_prior) if any(texts) else []
    rows = core().findings_table(*texts) if any(texts) else ()
    read = state.draft.read if state.draft else None
    differs = core().disagreements(state.near, read) if state.near and read else []
    return {
        "report": editor.html_of(
            state.report,
            state.draft,
            state.cautions,
            kept=messages.kept(state),
            offers=state.offers,
            templates=state.templates,
        ),
        "reading": findings_of(state),
        "near": draft_panels.near_html(state.near, differs),
        "words": draft_panels.words_html(state.draft, state.picked, flags_of_draft(state)),
        "flagged": draft_panels.flag_html(marks, *texts),
        "table": draft_panels.findings_table_html(rows, *texts),
        "menu": exports.menu(state),
        "kept_id": state.session.id if state.session else "",
        "earlier": earlier_text(state),
        "looked": draft_panels.looking_html(state.looked) if state.looked else "",
        "outlines": outlines_of(state),
    }


def findings_of(state: SessionState) -> str:
    """The findings that were read, and what the reader says of them."""
    ready = bool(state.films) and not state.missing and not (state.report and state.report.signed)
    return draft_panels.findings_html(state.draft, state.found, state.says, ready=ready)


def outlines_of(state: SessionState) -> str:
    """The contours of the findings over the films that are here, and what the reader measured on them."""
    return viewer.outlines(state.draft, state.places, state.films, state.marks, state.says)


def no_report() -> Shown:
    """REPORT where there is none. It does without the core, which may still be loading."""
    return {
        **no_draft(),
        "flagged": draft_panels.flag_html((), "", ""),
        "table": draft_panels.findings_table_html((), "", ""),
        "menu": exports.menu(SessionState()),
        "kept_id": "",
        "earlier": earlier_text(SessionState()),
        "looked": "",
        "outlines": "",
    }


def no_draft() -> Shown:
    """The report and what stands beside it, before the first sentence."""
    return {
        "report": editor.html_of(None, None),
        "reading": draft_panels.findings_html(None),
        "near": "",
        "words": draft_panels.words_html(None),
    }


def no_map() -> Shown:
    """EVIDENCE where no sentence is chosen."""
    return dict.fromkeys(EVIDENCE, "")


def buttons_of(*, idle: bool) -> Shown:
    """BUTTONS. idle: no draft is under way."""
    return {
        "write": Change(interactive=idle),
        "stop": Change(interactive=not idle),
        "drop": Change(value=None, interactive=idle),
        "new_study": Change(interactive=idle),  # stop first: a draft's last words must not reach the next study
        "close_study": Change(interactive=idle),
    }


def earlier_text(state: SessionState) -> Change:
    """What the reader had written before the report was drafted anew; hidden where there is nothing."""
    return Change(value=state.earlier, visible=True if state.earlier else "hidden")


def flags_of_draft(state: SessionState) -> Any:
    """The contradictions in the draft as the model wrote it, and its words about an earlier film."""
    if state.draft is None:
        return ()
    return core().flags(state.draft.findings, state.draft.impression, has_prior=state.has_prior)
