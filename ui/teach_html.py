"""What the Teach screen draws, as HTML for a `gr.HTML`. Data is escaped; what a colour tells is told by a sign and a word too.

beside         a learner's report, the draft and the reference in three columns, sentence by sentence
answers        a class: reference, draft and every learner's answer side by side
labels, scores tables under the columns
brush          the films to paint on (in the browser: teach.js)
moved          how likely each sentence of the draft is, before and after
"""

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from emrrg_core.explain.likelihood import likelihood
from ui import viewer

if TYPE_CHECKING:
    from emrrg_core import Draft, Film
    from emrrg_core.explain.occlusion import Rescored
    from emrrg_core.teaching.cases import Case, Cases
    from emrrg_core.teaching.classroom import Answer, Class, Learner
    from emrrg_core.text.compare import Comparison, Match

_KINDS = {  # of a Match: class, sign, what it says of a report's sentence, what it says of the reference's
    "same": ("rr-same", "✓", "as the reference", "said"),
    "partly": ("rr-partly", "≈", "partly as the reference", "partly"),
    "opposite": ("rr-opposite", "✕", "contradicts the reference", "contradicted"),
    "alone": ("rr-alone", "+", "not in the reference", "not said"),
}
_VERDICTS = {"agrees": "✓", "differs": "✕", "left out": "–", "not in the reference": "+"}
_SCORES = {"bleu1": "BLEU-1", "bleu2": "BLEU-2", "bleu3": "BLEU-3", "bleu4": "BLEU-4", "rouge_l": "ROUGE-L"}
FILLS = (("blank", "Blank it"), ("side", "Swap with the other side"), ("chest", "Swap with another chest"))
STILL = 0.1  # nats: a smaller change is no change to speak of, as in emrrg_core's Why


def _text(text: str) -> str:
    return html.escape(text)


# ---------------------------------------------------------------------------------------------------------- the screen


def head(case: "Case") -> str:
    """The case's title and question."""
    return f'<div class="rr-case"><h2>{_text(case.title)}</h2><p>{_text(case.question)}</p></div>'


def nothing(cases: "Cases") -> str:
    """Where no case is open."""
    if cases.cases:
        words = (
            "<p><b>Choose a case.</b></p><p>Read its film and write your own report first. Once you commit it, it cannot be changed any more, "
            "and the model’s draft and the reference appear beside it.</p>"
        )
    else:
        words = (
            "<p><b>There are no cases yet.</b></p><p>Put a case into the folder of cases (docs/teaching.md says how), or start the app "
            "with --cases and another folder. Then load this page again.</p>"
        )
    return f'<div class="rr-empty">{words}</div>'


def problems(cases: "Cases") -> str:
    """What is wrong in the folder of cases, for the teacher."""
    if not cases.problems:
        return ""
    listed = "".join(f"<li>{_text(line)}</li>" for line in cases.problems)
    return f'<div class="rr-say rr-bad" role="status">These cases are left out:<ul>{listed}</ul></div>'


def who(learner: "Learner | None") -> str:
    """Who answers, and where the answers are kept."""
    if learner is None or learner.code is None:
        return (
            '<p class="rr-hint">You practise alone. What you write is kept on this server for seven days, under a random number that only '
            "this browser knows.</p>"
        )
    title = f" “{_text(learner.title)}”" if learner.title else ""
    return (
        f'<p class="rr-who" role="status">You are <b>{_text(learner.name)}</b> in class <b>{_text(learner.code)}</b>{title}. '
        "Your teacher sees the answers that you commit.</p>"
    )


# ---------------------------------------------------------------------------------------------------------- comparison


def beside(case: "Case", mine: "Comparison", drafted: "Comparison | None") -> str:
    """Three columns, the two tables, the points to learn and where the case is from. drafted: None where the model wrote nothing."""
    columns = [
        _column("Your report", "against the reference", _sentences(mine.sentences, mine.reference)),
        _column(
            "The draft",
            "by the model, not reviewed",
            _sentences(drafted.sentences, drafted.reference)
            if drafted
            else '<p class="rr-none">There is no draft.</p>',
        ),
        _column("The reference", _source(case), _reference(mine, drafted)),
    ]
    points = "".join(f"<li>{_text(point)}</li>" for point in case.points)
    return (
        f'{differences(mine, drafted)}<div class="rr-three">{"".join(columns)}</div>{_key()}'
        + (f'<section class="rr-points"><h3>Points to take away</h3><ul>{points}</ul></section>' if points else "")
        + f'<div class="rr-tables">{labels(mine, drafted)}{scores(mine, drafted)}</div>'
    )


def differences(mine: "Comparison", drafted: "Comparison | None") -> str:
    """In what the findings differ from the reference's: the learner's, and the draft's."""
    told = [("You", mine), *([("The draft", drafted)] if drafted else [])]
    rows = []
    for name, found in told:
        listed = "".join(f'<li data-aspect="{each.aspect}">{_text(str(each))}</li>' for each in found.differences)
        none = "<li>states the findings of the reference, in their places</li>".replace(
            "states", "state" if name == "You" else "states"
        )
        rows.append(f"<dt>{name}</dt><dd><ul>{listed or none}</ul></dd>")
    return f'<section class="rr-differ" aria-label="Findings that differ"><h3>Findings</h3><dl>{"".join(rows)}</dl></section>'


def _source(case: "Case") -> str:
    return f"{case.source} · {case.licence}"


def _column(title: str, about: str, body: str, *, more: str = "") -> str:
    return f'<section class="rr-column-of" aria-label="{_text(title)}"><h3>{_text(title)} <small>{_text(about)}</small></h3>{body}{more}</section>'


def _sentences(own: "Sequence[Match]", other: "Sequence[Match]") -> str:
    """A report's sentences, each with what it is to the reference."""
    if not own:
        return '<p class="rr-none">No words.</p>'
    rows = []
    for match in own:
        kind, sign, said, _ = _KINDS[match.kind.value]
        there = ""
        if match.partner is not None and match.kind.value in ("partly", "opposite"):
            there = f" <q>{_text(other[match.partner].text)}</q>"
        if match.differences:
            there += f" · {_text('; '.join(map(str, match.differences)))}"
        rows.append(
            (match.section, f'<li class="{kind}">{_sign(sign)}{_text(match.text)} <small>{said}{there}</small></li>')
        )
    return _sections(rows)


def _reference(mine: "Comparison", drafted: "Comparison | None") -> str:
    """The reference's sentences, each with what the two reports make of it."""
    rows = []
    for number, match in enumerate(mine.reference):
        told = [("You", match), *([("Draft", drafted.reference[number])] if drafted else [])]
        marks = "".join(_mark(name, each) for name, each in told)
        rows.append((match.section, f'<li>{_text(match.text)} <span class="rr-marks">{marks}</span></li>'))
    return _sections(rows)


def _mark(name: str, match: "Match") -> str:
    kind, sign, _, said = _KINDS[match.kind.value]
    sign = "–" if match.partner is None else sign
    return f'<span class="rr-mark {kind}">{name}: {_sign(sign)}{said}</span>'


def _sign(sign: str) -> str:
    return f'<span class="rr-sign" aria-hidden="true">{sign}</span> '


def _sections(rows: "list[tuple[str, str]]") -> str:
    parts = []
    for section in ("findings", "impression"):
        if own := "".join(row for where, row in rows if where == section):
            parts.append(f'<h4>{section.capitalize()}</h4><ol class="rr-said-list">{own}</ol>')
    return "".join(parts)


def _key() -> str:
    listed = "".join(f'<li class="{kind}">{_sign(sign)}{said}</li>' for kind, sign, said, _ in _KINDS.values())
    return (
        f'<ul class="rr-kinds" aria-label="Signs">{listed}</ul><p class="rr-hint">Findings are compared over the whole report, 14 of them, '
        "with side, place, number and size; other sentences by their words. A machine marked them: talk about the marks, do not grade by them.</p>"
    )


def labels(mine: "Comparison", drafted: "Comparison | None") -> str:
    """What the three say of each label that one of them mentions."""
    own, others = ({row.label: row for row in found.labels} if found else {} for found in (mine, drafted))
    names = list(own) + [name for name in others if name not in own]
    rows = []
    for name in names:
        known = (own.get(name) or others[name]).known
        cells = "".join(_cell(found.get(name), known) for found in ((own, others) if drafted else (own,)))
        rows.append(f'<tr><th scope="row">{_text(name)}</th><td>{_state(known)}</td>{cells}</tr>')
    agreed = f"you agree on {mine.agreed} of {len(mine.labels)}"
    agreed += f", the draft on {drafted.agreed} of {len(drafted.labels)}" if drafted else ""
    heads = "".join(
        f'<th scope="col">{name}</th>' for name in ("Label", "Reference", "You", *(("Draft",) if drafted else ()))
    )
    return (
        f'<table class="rr-table rr-labels"><caption>Labels <small>of those that one of the two mentions, {agreed}</small></caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _cell(row: "object", known: "object") -> str:
    said = getattr(row, "said", None)
    # a row that only the other report has: neither this one nor the reference mentions the label
    verdict = getattr(row, "verdict", "agrees")
    sign = _sign(_VERDICTS[verdict]) if row is not None else ""
    return f'<td class="rr-verdict-{verdict.split()[0]}">{sign}{_state(said)}</td>'


def _state(status: "object") -> str:
    return _text(getattr(status, "value", "not mentioned"))


def scores(mine: "Comparison", drafted: "Comparison | None") -> str:
    """The NLG scores of both reports against the reference, and why one of them is not there."""
    found = [mine] if drafted is None else [mine, drafted]
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("Score", "You", "Draft")[: 1 + len(found)])
    rows = "".join(
        f'<tr><th scope="row">{name}</th>'
        + "".join(f'<td class="rr-number">{each.scores[key]["value"]:.2f}</td>' for each in found)
        + "</tr>"
        for key, name in _SCORES.items()
    )
    return (
        '<table class="rr-table rr-scores"><caption>Scores of the words <small>0 to 1, against the reference</small></caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
        '<p class="rr-hint">They count shared words, not truth: a right report in other words scores low, and a wrong side costs little. '
        "CIDEr needs many reports, METEOR needs Java: neither is shown for one report.</p>"
    )


# --------------------------------------------------------------------------------------------------------- the teacher


def opened(classroom: "Class", writing: int, answered: int) -> str:
    """A class, as its teacher sees it."""
    return (
        f'<div class="rr-class"><h2>{_text(classroom.title or "Your class")}</h2>'
        f'<p>Code for your learners: <strong class="rr-code">{_text(classroom.code)}</strong></p>'
        f"<p>{_count(classroom.learners, 'learner')} · {_count(answered, 'answer')} to this case, {writing} still being written · "
        f"kept until {classroom.expires:%d %B %Y, %H:%M} UTC, then deleted</p></div>"
    )


def begun(classroom: "Class", key: str) -> str:
    """A class that was just begun: the code for the learners, the key for the teacher alone."""
    return (
        '<div class="rr-say rr-calm" role="status"><p>The class has begun. Its code, for your learners: '
        f'<strong class="rr-code">{_text(classroom.code)}</strong></p><p>Your key, for you alone: <code class="rr-key">{_text(key)}</code></p>'
        "<p>Copy the key now and keep it: it is shown only once and kept nowhere. Without it nobody can see or delete the answers; "
        f"they are deleted on {classroom.expires:%d %B %Y}.</p></div>"
    )


def answers(case: "Case", said: "Sequence[Answer]", found: "Sequence[Comparison]", drafted: "Comparison | None") -> str:
    """Reference, draft and every learner's answer to a case, side by side."""
    reference = found[0].reference if found else drafted.reference if drafted else ()
    plain = _sections([(match.section, f"<li>{_text(match.text)}</li>") for match in reference]) or (
        f"<p>{_text(case.findings)}</p><p>{_text(case.impression)}</p>"
    )
    columns = [_column("The reference", _source(case), plain)]
    if drafted:
        columns.append(
            _column("The draft", "by the model", _sentences(drafted.sentences, drafted.reference), more=_sum(drafted))
        )
    for answer, one in zip(said, found, strict=True):
        when = f"{answer.committed:%d %b, %H:%M} UTC" if answer.committed else ""
        columns.append(_column(answer.name, when, _sentences(one.sentences, one.reference), more=_sum(one)))
    none = "" if said else '<p class="rr-none">No answer has been committed to this case yet.</p>'
    return f'{none}<div class="rr-many" tabindex="0" role="region" aria-label="Answers side by side">{"".join(columns)}</div>{_key()}'


def _sum(found: "Comparison") -> str:
    missed = sum(match.partner is None for match in found.reference)
    return (
        f'<p class="rr-sum">Labels: {found.agreed} of {len(found.labels)} agree · {_count(missed, "sentence")} of the reference not said · '
        f"BLEU-1 {found.scores['bleu1']['value']:.2f} · ROUGE-L {found.scores['rouge_l']['value']:.2f}</p>"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# ------------------------------------------------------------------------------------------- what does the model see?


def brush(films: "Sequence[Film]", other: str) -> str:
    """The films to paint on, and the tools. other: the picture that stands for another chest, as an address.

    teach.js does the painting; what is marked goes to the server as a grid, and the film that is read is made there.
    """
    stages = []
    for number, film in enumerate(films):
        height, width = film.pixels.shape
        row, column = film.spacing or (1.0, 1.0)
        ratio, grey = width * column / (height * row), round(float(film.pixels.mean()) * 255)
        stages.append(
            f'<figure class="rr-paint" data-film="{number}" data-grey="{grey}"><div class="rr-paper" style="--ratio:{ratio:.5f}">'
            f'<img src="{viewer.picture(film.pixels)}" alt="{_text(film.name)}, to paint on" draggable="false">'
            f'<canvas tabindex="0" role="application" aria-label="{_text(film.name)}: paint on the film. Arrow keys move the brush, '
            'Space paints, Backspace takes back."></canvas><i class="rr-ring" aria-hidden="true"></i></div>'
            f"<figcaption>{_text(film.name)}</figcaption></figure>"
        )
    fills = "".join(
        f'<label><input type="radio" name="rr-fill" value="{value}"{" checked" if not n else ""}> {label}</label>'
        for n, (value, label) in enumerate(FILLS)
    )
    return (
        f'<div class="rr-brush"><img class="rr-other" src="{other}" alt="" hidden>'
        f'<fieldset class="rr-fills"><legend>What is painted over:</legend>{fills}</fieldset>'
        '<div class="rr-strokes"><label>Brush <input type="range" data-set="size" min="3" max="30" value="12" aria-label="Size of the brush"></label>'
        '<button type="button" data-do="erase" aria-pressed="false">Erase</button>'
        '<button type="button" data-do="back" disabled>Undo</button>'
        '<button type="button" data-do="clear" disabled>Clear</button></div>'
        f'<div class="rr-papers rr-count-{len(films)}">{"".join(stages)}</div></div>'
    )


def moved(draft: "Draft", found: "Rescored | None", *, busy: bool = False) -> str:
    """Every sentence of the draft, in its order, with how likely a word piece of it is: before, and under the painted film."""
    rows = []
    for number, sentence in enumerate(draft.sentences):
        bars = ""
        if found:
            (before, after), nats = found.likely[number], found.change[number]
            bars = (
                f'<span class="rr-bars" aria-hidden="true"><i class="rr-before" style="width:{100 * before:.1f}%"></i>'
                f'<i class="rr-after" style="width:{100 * after:.1f}%"></i></span>'
                f'<span class="rr-figures">{_share(before)} → {_share(after)} <b>{_turn(nats)}</b></span>'
            )
        nats = found.change[number] if found else 0.0
        turn = "rr-fell" if nats <= -STILL else "rr-rose" if nats >= STILL else "rr-still"
        rows.append(f'<li class="{turn}" data-change="{nats!r}"><span>{_text(sentence.text)}</span>{bars}</li>')
    hint = (
        "How likely a piece of a word is, on average over the sentence, under the film and under what you made of it; then what that does to the "
        "whole sentence. The model does not write anew: the draft’s words are read again."
        if found
        else "Paint on the film: each sentence then shows how likely it still is. One that does not move did not rest on what you painted over."
    )
    state = ' aria-busy="true"' if busy else ""
    said = "The model reads the film again…" if busy else hint
    return f'<div class="rr-moved"{state}><p class="{"rr-say rr-busy" if busy else "rr-hint"}" role="status">{said}</p><ol>{"".join(rows)}</ol></div>'


def _share(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def _turn(nats: float) -> str:
    if abs(nats) < STILL:
        return "as before"
    return f"{'▼' if nats < 0 else '▲'} {likelihood(-nats, '×')}"
