"""Opening the Teach screen, and a case on it."""

from typing import TYPE_CHECKING

from ui import teach_html, viewer
from ui.messages import say
from ui.session_state import core
from ui.teach import marking
from ui.teach.context import Context, TeachState
from ui.updates import Change, Shown

if TYPE_CHECKING:
    from emrrg_core.teaching.cases import Case, Cases

CASE = (  # the names of everything that shows a case
    *("case_id", "head", "status", "compared", "figures", "layers", "writing", "findings", "impression", "unsaved"),
    *("looking", "reading", "words", "caption", "seen", "brush", "moved", "marking", "located"),
)


def on_load(state: TeachState, id: str, last: str, context: Context) -> Shown:
    """The page was loaded: show the cases at once. id: of the learner, empty where the browser remembers none."""
    found = context.cases()
    waiting = id and not context.reporter.done()
    chips = chips_of(found)
    return {
        "tags": Change(choices=chips, value=[], visible=bool(chips)),
        "choice": listed(TeachState(), found, None, context),
        "faults": teach_html.problems(found),
        "figures": teach_html.nothing(found),
        "status": say("Your answers are fetched; the model is loading…", busy=True) if waiting else "",
    }


def resume(state: TeachState, id: str, last: str, context: Context) -> Shown:
    """Who is it, and which case was open? last: the case's id."""
    if not id:
        return {"status": ""}
    found = context.cases()
    try:
        state.learner = context.store().learner(id)
    except core().ClassGoneError as error:
        return {"status": say(str(error)), "learner_id": ""}
    except core().EmrrgError as error:
        return {"status": say(str(error), bad=True)}
    known = last in {case.id for case in found.cases}
    opened = show_case(state, found, last, context) if known else {"status": ""}
    chosen = listed(state, found, last if known else None, context)
    return {"choice": chosen, "learner_id": id, **persons(state), **opened}


def choose(state: TeachState, id: str | None, context: Context) -> Shown:
    """A case was chosen in the list."""
    found = context.cases()
    return show_case(state, found, id, context) if id else no_case(found)


def show_case(state: TeachState, found: "Cases", id: str, context: Context) -> Shown:
    """Open a case. Of one that is committed, `learner.reveal` shows the rest."""
    state.case, state.films, state.draft, state.read = None, (), None, None
    try:
        case = found[id]
        films = case.read()
        kept = context.store().answer(state.learner.id, id) if state.learner else None
    except core().EmrrgError as error:
        return {**cleared(), "status": say(str(error), bad=True)}
    state.case, state.films = case, films
    done = kept is not None and kept.committed is not None
    coming = "Your answer is committed. The model’s draft is on its way…"
    return {
        **cleared(),
        "case_id": id,
        "head": teach_html.head(case),
        "figures": viewer.figures(films),
        "marking": "" if done else marking.to_set(films, kept.marks if kept else ()),
        "writing": Change(visible=not done),
        "findings": Change(value=kept.findings if kept else "", interactive=not done),
        "impression": Change(value=kept.impression if kept else "", interactive=not done),
        "commit": Change(interactive=not done),
        "status": say(coming, busy=True) if done else "",
    }


def no_case(found: "Cases") -> Shown:
    """No case is open: say what to do."""
    return {**cleared(), "figures": teach_html.nothing(found)}


def cleared() -> Shown:
    """CASE, all empty. The case's id too, or the empty boxes would be kept as the last case's answer."""
    return {**dict.fromkeys(CASE, ""), **{name: Change(visible=False) for name in ("writing", "looking", "seen")}}


def listed(state: TeachState, found: "Cases", chosen: str | None, context: Context) -> Change:
    """The list of cases that have the words and tags asked for. Those that the learner has committed have a tick."""
    done: frozenset[str] = context.store().committed(state.learner.id) if state.learner else frozenset()
    rows = [(f"{case.title} ✓" if case.id in done else case.title, case.id) for case in found.cases]
    wanted = {case.id for case in found.cases if _asked_for(case, state)}
    shown = [row for row in rows if row[1] in wanted]
    return Change(choices=shown, value=chosen if chosen in wanted else None)


def narrow(state: TeachState, words: str | None, tags: "list[str] | None", context: Context) -> Shown:
    """The learner searches the list. The case that is open stays open."""
    state.words, state.tags = words or "", tuple(tags or ())
    found = context.cases()
    rows = listed(state, found, state.case.id if state.case else None, context)
    some = f"{len(rows['choices'])} of {len(found.cases)} cases"
    told = f'<p class="rr-hint" role="status">{some}</p>' if state.words.strip() or state.tags else ""
    return {"choice": rows, "matches": told}


def chips_of(found: "Cases") -> list[str]:
    """Tags and difficulties that the cases have, to choose by."""
    tags = {tag: None for case in found.cases for tag in sorted(case.tags)}
    levels = [level for level in ("easy", "moderate", "hard") if any(case.difficulty == level for case in found.cases)]
    return [*sorted(tags), *levels]


def _asked_for(case: "Case", state: TeachState) -> bool:
    """By what is seen before the answer: nothing of the reference is searched."""
    seen = " ".join((case.title, case.question, *case.tags, case.difficulty)).casefold()
    marks = {*case.tags, case.difficulty}
    return all(word in seen for word in state.words.casefold().split()) and set(state.tags) <= marks


def persons(state: TeachState) -> Shown:
    """Who answers, and the button to leave this computer."""
    return {"whom": teach_html.who(state.learner), "leave": Change(visible=state.learner is not None)}
