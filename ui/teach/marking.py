"""Marks on films, as HTML: a learner's to be set, then beside the case's boxes and the model's contours; a class's over each other.

films       films to mark on (in the browser: marks.js), or with all that is known of the places
located     a learner's marks, box by box and mark by mark, in words
tallies     of a class: how many stated and located each finding, and how every learner did
"""

import html
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ui import viewer
from ui.session_state import core

if TYPE_CHECKING:
    import numpy as np

    from emrrg_core import Film
    from emrrg_core.teaching.cases import Case
    from emrrg_core.teaching.classroom import Answer
    from emrrg_core.teaching.locate import Box, Located, Mark, ModelPlace
    from emrrg_core.text.compare import Comparison

VERDICTS = {  # of a mark: class, sign, words
    "hit": ("rr-same", "✓", "hit"),
    "again": ("rr-same", "✓", "hit before"),
    "other name": ("rr-partly", "≈", "right place, other finding"),
    "false": ("rr-opposite", "✕", "nothing of it there"),
    "": ("rr-alone", "•", "not compared"),
}
RULE = (
    "A mark hits where its middle lies in a box (or on a mask) of the same finding; a rectangle more than four times as large as the box points at "
    "nothing. The model’s contour holds half of its own map of the finding; that is where it looked, not a measured border."
)


def read(told: str, films: int) -> "tuple[Mark, ...] | None":
    """The marks that marks.js holds; None where it holds none, for it is not there. Raises EmrrgError for anything else."""
    if not told:
        return None
    try:
        values = json.loads(told)
    except ValueError:
        values = None
    found: tuple[Mark, ...] = core().marks_of(values, films)
    return found


# ------------------------------------------------------------------------------------------------------------- films


def to_set(films: "Sequence[Film]", marks: "Sequence[Mark]" = (), *, boxes: bool = False) -> str:
    """Films on which marks are set. boxes: rectangles only, for a case that is being made."""
    choices = "".join(f"<option>{html.escape(name)}</option>" for name in core().MARKABLE)
    hint = (
        "Drag over each finding, from one corner to the other. Keys: arrows, Enter at two corners, Backspace."
        if boxes
        else "Press on the middle of a finding, or drag over it. Keys: arrows, Enter; Shift+Enter begins a rectangle; Backspace."
    )
    tools = (
        '<div class="rr-strokes"><label>Finding <select data-set="finding"><option value="">choose…</option>'
        f'{choices}</select></label><button type="button" data-do="undo" disabled>Undo</button>'
        '<button type="button" data-do="clear" disabled>Clear</button></div>'
        f'<p class="rr-hint">{hint}</p>'
    )
    plates = [_plate(number, film, '<span class="rr-spots"></span>', marked=True) for number, film in enumerate(films)]
    below = '<ol class="rr-marklist" aria-label="Marks"></ol><p class="rr-hint rr-marks-said" role="status"></p>'
    values = html.escape(json.dumps(core().plain_marks(marks)))
    return _section(
        f'data-need="{"box" if boxes else "mark"}" data-marks="{values}"',
        "" if boxes else _modes("look", "Mark findings"),
        f"{tools}{_papers(plates)}{below}",
        "mark" if boxes else "look",
    )


def to_compare(
    films: "Sequence[Film]",
    marks: "Sequence[Mark]",
    boxes: "Sequence[Box] | None",
    places: "Sequence[ModelPlace]",
    found: "Located | None",
) -> str:
    """Films with a learner's marks, the boxes of the case, and the model's contours of what is marked, boxed or stated."""
    wanted = {mark.finding for mark in marks} | {box.finding for box in boxes or ()}
    shown = [place for place in places if place.finding in wanted or place.stated]
    verdicts = [verdict.value for verdict in found.verdicts] if found else [""] * len(marks)
    plates = []
    for number, film in enumerate(films):
        own = "".join(
            _spot(mark, str(n), verdict, f"{n}: {mark.finding}, {VERDICTS[verdict][2]}")
            for n, (mark, verdict) in enumerate(zip(marks, verdicts, strict=True), 1)
            if mark.film == number
        )
        plates.append(_plate(number, film, f"{_contours(shown, number)}{_truths(boxes or (), number)}{own}"))
    key = _key(marks=bool(marks), boxes=bool(boxes), model=bool(shown))
    mode = "mark" if marks or boxes else "look"
    return _section('data-locked="1"', _modes(mode, "Marks"), f"{_papers(plates)}{key}", mode)


def of_class(
    films: "Sequence[Film]",
    said: "Sequence[Answer]",
    boxes: "Sequence[Box] | None",
    places: "Sequence[ModelPlace]",
) -> str:
    """Films with every learner's marks over each other; each bears its learner's number, and tells the pseudonym."""
    boxed = {box.finding for box in boxes or ()} | {mark.finding for answer in said for mark in answer.marks}
    shown = [place for place in places if place.finding in boxed]
    plates = []
    for number, film in enumerate(films):
        spots = []
        for n, answer in enumerate(said, 1):
            found = core().locate(answer.marks, boxes) if boxes is not None else None
            verdicts = [each.value for each in found.verdicts] if found else [""] * len(answer.marks)
            spots += [
                _spot(mark, str(n), verdict, f"{answer.name}: {mark.finding}, {VERDICTS[verdict][2]}")
                for mark, verdict in zip(answer.marks, verdicts, strict=True)
                if mark.film == number
            ]
        plates.append(_plate(number, film, f"{_contours(shown, number)}{_truths(boxes or (), number)}{''.join(spots)}"))
    key = _key(marks=any(answer.marks for answer in said), boxes=bool(boxes), model=bool(shown), numbered=True)
    return _section('data-locked="1"', "", f"{_papers(plates)}{key}", "mark")


def _section(data: str, modes: str, body: str, mode: str) -> str:
    begun = f'<section class="rr-marking" aria-label="Marks on the films" data-mode="{mode}" {data}>'
    return f'{begun}{modes}<div class="rr-marker">{body}</div></section>'


def _modes(mode: str, marks: str) -> str:
    buttons = "".join(
        f'<button type="button" data-do="mode" data-value="{value}" aria-pressed="{str(value == mode).lower()}">{words}</button>'
        for value, words in (("look", "Film"), ("mark", f'{marks}<span class="rr-count"></span>'))
    )
    return f'<div class="rr-modes rr-strokes" role="group" aria-label="What is shown">{buttons}</div>'


def _papers(plates: Sequence[str]) -> str:
    return f'<div class="rr-papers rr-count-{len(plates)}">{"".join(plates)}</div>'


def _plate(number: int, film: "Film", over: str, *, marked: bool = False) -> str:
    height, width = film.pixels.shape
    row, column = film.spacing or (1.0, 1.0)
    name = html.escape(film.name)
    plate = (
        f'<div class="rr-plate" tabindex="0" role="application" aria-label="{name}: mark findings. Arrow keys move the cross, Enter marks, '
        'Backspace takes back."></div><i class="rr-cross" aria-hidden="true" hidden></i>'
        if marked
        else ""
    )
    return (
        f'<figure class="rr-paint" data-film="{number}"><div class="rr-paper" style="--ratio:{width * column / (height * row):.5f}">'
        f'<img src="{viewer.picture(film.pixels)}" alt="{name}" draggable="false">{over}{plate}</div>'
        f"<figcaption>{name}</figcaption></figure>"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3f}%"


def _spot(mark: "Mark", number: str, verdict: str, told: str) -> str:
    kind, sign, _ = VERDICTS[verdict]
    size = f";width:{_percent(mark.width)};height:{_percent(mark.height)}" if mark.width or mark.height else ""
    return (
        f'<i class="rr-spot {kind}{" rr-rect" if size else ""}" style="left:{_percent(mark.x)};top:{_percent(mark.y)}{size}" '
        f'title="{html.escape(told)}" role="img" aria-label="{html.escape(told)}"><b>{number}{sign}</b></i>'
    )


def _truths(boxes: "Sequence[Box]", film: int) -> str:
    drawn = []
    for box in boxes:
        if box.film == film:
            place = f"left:{_percent(box.x)};top:{_percent(box.y)};width:{_percent(box.width)};height:{_percent(box.height)}"
            name = html.escape(box.finding)
            mask = f'<img src="{_masked(box.mask)}" alt="">' if box.mask is not None else ""
            kind = f"rr-truth{' rr-masked' if mask else ''}{' rr-far' if box.x > 0.6 else ''}"
            drawn.append(f'<i class="{kind}" style="{place}" title="{name}, by the case"><b>{name}</b></i>')
            drawn.append(f'<span class="rr-mask" aria-hidden="true">{mask}</span>' if mask else "")
    return "".join(drawn)


def _masked(mask: "np.ndarray") -> str:
    return viewer.picture(mask.astype(float))


def _contours(places: "Sequence[ModelPlace]", film: int) -> str:
    paths = []
    for place in places:
        if place.film == film:
            lines = " ".join(
                "M" + " ".join(f"{1000 * x:.1f} {1000 * y:.1f}" for x, y in ring.tolist()) + "Z" for ring in place.rings
            )
            words = f"The model’s map of {place.finding}{'' if place.stated else ', which it does not state'}"
            kind = "rr-stated" if place.stated else "rr-unstated"
            paths.append(f'<path class="{kind}" d="{lines}"><title>{html.escape(words)}</title></path>')
    if not paths:
        return ""
    return (
        '<svg class="rr-contours" viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="Contours of the model’s maps">'
        f"{''.join(paths)}</svg>"
    )


def _key(*, marks: bool, boxes: bool, model: bool, numbered: bool = False) -> str:
    rows = [
        (marks, "rr-key-mark", "marks, by the learner’s number" if numbered else "your marks, by number"),
        (boxes, "rr-key-box", "where the case says it is"),
        (model, "rr-key-model", "half of the model’s map; dashed where it does not state the finding"),
    ]
    listed = "".join(
        f'<li><i class="{kind}" aria-hidden="true"></i>{words}</li>' for there, kind, words in rows if there
    )
    return f'<ul class="rr-kinds rr-key-marks" aria-label="Signs on the films">{listed}</ul>' if listed else ""


# ------------------------------------------------------------------------------------------------------------- words


def located(
    marks: "Sequence[Mark]",
    boxes: "Sequence[Box] | None",
    places: "Sequence[ModelPlace] | None",
    found: "Located | None",
) -> str:
    """A learner's marks against the boxes of the case and the model's maps. Empty where nothing was marked and nothing is known."""
    if not marks and not boxes:
        return ""
    if found is None:
        head = "This case does not say where its findings are: marks are held against the model’s maps only."
    elif not boxes:
        head = f"There is nothing to be found on this film: {_count(found.false, 'false mark')}."
    else:
        other = found.boxes.count("other name")
        named = f"{other} under another name · " if other else ""
        head = f"<b>{found.hits} of {_count(len(boxes), 'finding')} located</b> · {named}{found.missed} missed · {_count(found.false, 'false mark')}"
    verdicts = [each.value for each in found.verdicts] if found else [""] * len(marks)
    rows = [_marked(n, mark, verdict, places) for n, (mark, verdict) in enumerate(zip(marks, verdicts, strict=True), 1)]
    missed = [box for box, state in zip(boxes or (), found.boxes if found else (), strict=bool(found)) if state is None]
    rows += [
        f'<li class="rr-alone"><span class="rr-sign" aria-hidden="true">–</span> {html.escape(box.finding)} '
        f"<small>not marked; dashed on film {box.film + 1}</small></li>"
        for box in missed
    ]
    return (
        f'<section class="rr-located" aria-label="Where you marked"><h3>Where it is</h3><p class="rr-located-sum">{head}</p>'
        f'<ol class="rr-said-list">{"".join(rows)}</ol><details class="rr-hint"><summary>How marks are compared</summary>{RULE}</details></section>'
    )


def _marked(number: int, mark: "Mark", verdict: str, places: "Sequence[ModelPlace] | None") -> str:
    kind, sign, words = VERDICTS[verdict]
    agrees = core().model_agrees(mark, places) if places is not None else None
    own = {
        True: "within the model’s contour of it",
        False: "outside the model’s contour of it",
        None: "the model has no map of it" if places is not None else "",
    }[agrees]
    said = " · ".join(filter(None, (words, own)))
    return (
        f'<li class="{kind}" data-verdict="{verdict}"><span class="rr-sign" aria-hidden="true">{sign}</span> {number} '
        f"{html.escape(mark.finding)} <small>{said}</small></li>"
    )


def tallies(
    case: "Case",
    said: "Sequence[Answer]",
    compared: "Sequence[Comparison]",
    boxes: "Sequence[Box] | None",
    places: "Sequence[ModelPlace] | None",
) -> str:
    """Two tables of a class: finding by finding, and learner by learner."""
    if not said:
        return ""
    found = [core().locate(answer.marks, boxes) if boxes is not None else None for answer in said]
    return f'<div class="rr-tallies">{_by_finding(said, compared, boxes, found)}{_by_learner(said, compared, found, places)}</div>'


def _by_finding(
    said: "Sequence[Answer]",
    compared: "Sequence[Comparison]",
    boxes: "Sequence[Box] | None",
    found: "Sequence[Located | None]",
) -> str:
    rows: dict[str, list[int]] = {}  # label → stated by, known
    for comparison in compared:
        for row in comparison.labels:
            if row.label in core().MARKABLE:
                mine = rows.setdefault(row.label, [0, 0])
                mine[0] += _states(row.said)
                mine[1] |= _states(row.known)
    boxed = {box.finding for box in boxes or ()}
    names = [name for name in core().MARKABLE if name in boxed or any(rows.get(name, ()))]
    total = len(said)
    drawn = []
    for name in names:
        stated, known = rows.get(name, [0, 0])
        where = "–"
        if name in boxed:
            own = [n for n, box in enumerate(boxes or ()) if box.finding == name]
            right = sum(each is not None and all(each.boxes[n] == "hit" for n in own) for each in found)
            where = f"{right} of {total}"
        drawn.append(
            f'<tr><th scope="row">{html.escape(name)}</th><td>{"yes" if known or name in boxed else "no"}</td>'
            f'<td class="rr-number">{stated} of {total}</td><td class="rr-number">{where}</td></tr>'
        )
    return (
        '<table class="rr-table rr-tally-findings"><caption>Findings</caption><thead><tr><th scope="col">Finding</th>'
        '<th scope="col">In the reference</th><th scope="col">Stated by</th><th scope="col">Located by</th></tr></thead>'
        f"<tbody>{''.join(drawn)}</tbody></table>"
    )


def _states(status: object) -> int:
    return int(getattr(status, "value", "") in ("positive", "uncertain"))


def _by_learner(
    said: "Sequence[Answer]",
    compared: "Sequence[Comparison]",
    found: "Sequence[Located | None]",
    places: "Sequence[ModelPlace] | None",
) -> str:
    drawn = []
    for number, (answer, comparison, where) in enumerate(zip(said, compared, found, strict=True), 1):
        hits = f"{where.hits} of {len(where.boxes)}" if where else "–"
        false = str(where.false) if where else "–"
        agrees = "–"
        if places is not None and answer.marks:
            agrees = f"{sum(core().model_agrees(m, places) is True for m in answer.marks)} of {len(answer.marks)}"
        drawn.append(
            f'<tr><td class="rr-number">{number}</td><th scope="row">{html.escape(answer.name)}</th>'
            f'<td class="rr-number">{comparison.agreed} of {len(comparison.labels)}</td><td class="rr-number">{hits}</td>'
            f'<td class="rr-number">{false}</td><td class="rr-number">{agrees}</td></tr>'
        )
    heads = "".join(
        f'<th scope="col">{name}</th>'
        for name in ("No.", "Learner", "Labels agree", "Located", "False marks", "In the model’s map")
    )
    return (
        '<table class="rr-table rr-tally-learners"><caption>Learners</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(drawn)}</tbody></table>"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
