"""The editor: the report sentence by sentence, what the reader may do with each, and the sign-off.

`html_of` draws a report, `apply` does what its buttons ask for (read.js sends it). A report is never changed: every action
gives a new one.
"""

import html
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ui.draft_panels import about_html, band
from ui.session_state import core

if TYPE_CHECKING:
    from emrrg_core import Draft, Report
    from emrrg_core.report.cautions import Caution
    from emrrg_core.report.links import Offer
    from emrrg_core.report.report import Difference, Line

SECTIONS = ("findings", "impression")
_CHOICES = {  # what is said of a sentence, and its mark
    "unreviewed": ("not reviewed", "?"),
    "accepted": ("accepted", "✓"),
    "edited": ("edited", "✎"),
    "deleted": ("deleted", "✕"),
    "added": ("yours", "+"),
}


def apply(report: "Report", action: Mapping[str, Any]) -> "Report":
    """The report after an action of the reader's: {"action": …, "line": …, "text": …, "section": …, "after": …, "confirmed": […]}.

    Raises EmrrgError with the reason, for an action that makes no sense too: a browser may send anything.
    """
    do, line, text = action.get("action"), action.get("line", ""), action.get("text", "")
    try:
        match do:
            case "accept" | "delete" | "restore":
                return getattr(report, do)(int(line))
            case "accept-rest":
                return report.accept_all([int(number) for number in action["lines"]])
            case "decide":
                return report.decide(str(action["key"]))
            case "field":
                return report.with_field(str(action["name"]), str(text))
            case "edit":
                return report.edit(int(line), str(text))
            case "add":
                after = action.get("after")
                return report.add(str(action["section"]), str(text), None if after is None else int(after))
            case "retype":
                return report.retype(str(action["section"]), str(text))
            case "undo" | "redo" | "unsign":
                return getattr(report, do)()
    except (KeyError, TypeError, ValueError) as error:
        raise core().EmrrgError("That could not be done: load the page again.") from error
    raise core().EmrrgError("That could not be done: load the page again.")


def told(report: "Report", action: Mapping[str, Any]) -> str:
    """What was done, for the line that a screen reader reads out."""
    done = {
        "accept": "Accepted.",
        "edit": "Edited.",
        "delete": "Deleted; it can be restored.",
        "restore": "Restored.",
        "add": "Added.",
        "retype": "The section was taken over.",
        "accept-rest": "Accepted.",
        "decide": "Kept, with its warning seen.",
        "field": "Noted.",
        "template": "The template is in.",
        "undo": "Undone.",
        "redo": "Done again.",
        "sign": "Signed off.",
        "unsign": "The signature was taken back.",
    }
    left = len(report.unreviewed)
    many = (
        "Every sentence is reviewed."
        if not left
        else f"{left} {'sentence' if left == 1 else 'sentences'} not reviewed."
    )
    return done.get(str(action.get("action")), "") + (f" {many}" if report.signed is None else "")


def html_of(
    report: "Report | None",
    draft: "Draft | None",
    cautions: "Sequence[Caution]" = (),
    *,
    kept: str = "",
    offers: "Sequence[Offer]" = (),
    templates: Sequence[str] = (),
) -> str:
    """The report with its tools. cautions: what has to be decided, at its sentence. offers: what a change suggests in the other section.

    kept: what is said of where it is kept. templates: names of those that an empty report may begin with.
    """
    empty = report is None or not report.lines
    closed = report is not None and report.signed is not None
    differences = {row.line: row for row in report.diff(draft)} if report and draft else {}
    parts = []
    for section in SECTIONS:
        lines = [line for line in report.lines if line.section == section] if report else []
        rows = "".join(
            _row(
                line,
                draft,
                differences.get(line.id),
                [each for each in cautions if each.line == line.id],
                [each for each in offers if each.line == line.id],
                core().linked(report, line.id) if report and line.choice.value != "deleted" else (),
                closed,
            )
            for line in lines
        )
        text = getattr(report, section) if report else ""
        again = bool(section == "impression" and draft and draft.read and report and report.findings)
        parts.append(
            f'<section class="rr-part" data-section="{section}" aria-label="{section.capitalize()}" data-text="{html.escape(text)}">'
            f"{_heading(section, closed, again)}"
            + (f'<ol class="rr-items">{rows}</ol>' if rows else f'<p class="rr-none">{_nothing(section, empty)}</p>')
            + ("".join(_offer(each) for each in offers if each.line is None) if section == "impression" else "")
            + ("" if closed else _foot(section, lines))
            + "</section>"
        )
    whole = "" if closed else _of_the_whole([each for each in cautions if each.line is None])
    return (
        f'<div class="rr-report" data-signed="{str(closed).lower()}">{_state(report)}{_fields(report, closed)}{whole}'
        f"{_templates(templates) if empty else ''}{''.join(parts)}{_bar(report, cautions, closed)}"
        f'<p class="rr-kept">{html.escape(kept)}</p>{_sign(report, cautions) if report and not closed else ""}</div>'
    )


def writing(draft: "Draft") -> str:
    """The draft while it is written: words only, nothing to press."""
    parts = []
    for section in SECTIONS:
        rows = "".join(
            f'<li class="rr-item {band(draft, s)[0]}"><div class="rr-item-text">{html.escape(s.text)}</div></li>'
            for s in draft.sentences
            if s.section == section
        )
        parts.append(
            f'<section class="rr-part"><h2>{section.capitalize()}</h2><ol class="rr-items">{rows}</ol></section>'
        )
    return f'<div class="rr-report rr-writing-now" aria-busy="true">{"".join(parts)}</div>'


def _nothing(section: str, empty: bool) -> str:
    if empty and section == "findings":
        return "The draft appears here, sentence by sentence. You may also write your own."
    return "Nothing here yet." if empty else f"No {section.capitalize()}."


def _heading(section: str, closed: bool, again: bool) -> str:
    macros = f'<select data-macro="{section}" aria-label="Add a macro to the {section.capitalize()}"><option value="">macro</option></select>'
    anew = (
        _button("summarise", "Impression from these findings", 'title="Write the Impression anew from the Findings"')
        if again
        else ""
    )
    return f'<div class="rr-part-head"><h2>{section.capitalize()}</h2>{"" if closed else anew + macros}</div>'


FIELDS = ("indication", "comparison", "technique")


def _fields(report: "Report | None", closed: bool) -> str:
    """Indication, comparison, technique: one line each, written in place."""
    if report is None:
        return ""
    rows = []
    for name in FIELDS:
        words = getattr(report.fields, name)
        said = html.escape(words) if words else '<span class="rr-none">–</span>'
        if not closed:
            said = (
                f'<button type="button" class="rr-field" data-action="field" data-name="{name}" data-text="{html.escape(words)}" '
                f'aria-label="{name.capitalize()}: {html.escape(words) or "empty"}. Edit">{said}</button>'
            )
        rows.append(f'<div data-field="{name}"><dt>{name.capitalize()}</dt><dd>{said}</dd></div>')
    return f'<dl class="rr-fields">{"".join(rows)}</dl>'


def _templates(names: Sequence[str]) -> str:
    if not names:
        return ""
    buttons = "".join(_button("template", html.escape(name), f'data-name="{html.escape(name)}"') for name in names)
    return f'<p class="rr-foot rr-templates"><span class="rr-hint">Begin with</span>{buttons}</p>'


def _state(report: "Report | None") -> str:
    if report is None or not report.lines:
        return ""
    if report.signed is not None:
        at = datetime.fromisoformat(report.signed)
        return f'<p class="rr-stand rr-final"><b>Signed off</b> {at:%d %B %Y, %H:%M} UTC. It cannot be changed while it is signed.</p>'
    if report.unreviewed:
        return '<p class="rr-stand rr-draft"><b>DRAFT, NOT REVIEWED</b></p>'
    return '<p class="rr-stand"><b>Preliminary, not signed off.</b> Every sentence is reviewed.</p>'


def _row(
    line: "Line",
    draft: "Draft | None",
    difference: "Difference | None",
    cautions: "Sequence[Caution]",
    offers: "Sequence[Offer]",
    links: Sequence[int],
    closed: bool,
) -> str:
    choice = line.choice.value
    name, mark = _CHOICES[choice]
    drafted = draft.sentences[line.drafted] if draft and line.drafted is not None else None
    by_model = line.by_model and choice != "edited"  # edited words are the reader's, whatever they were before
    kind, about_it = "rr-own-words", ""
    if draft and drafted and by_model:
        kind, about_it = band(draft, drafted)[0], about_html(draft, drafted)
    elif by_model and not drafted:
        kind, about_it = "", "written from what you said, without a map"
    about = f' data-drafted="{line.drafted}"' if drafted else ""
    about += f' data-linked="{" ".join(map(str, links))}"' if links else ""
    words = html.escape(line.text)
    said = f"<del>{words}</del>" if choice == "deleted" else words
    changed = difference is not None and choice == "edited"
    measured = f'<span class="rr-measure">{about_it}</span>' if about_it else ""
    warned = "".join(_caution(each, line, closed) for each in cautions)
    offered = "" if closed else "".join(_offer(each) for each in offers)
    return (
        f'<li class="rr-item rr-{choice} {kind}" data-line="{line.id}"{about} data-text="{words}">'
        f'<div class="rr-item-main"><span class="rr-mark-of" aria-hidden="true">{mark}</span>'
        f'<div class="rr-item-text" role="button" tabindex="0" data-action="look" data-line="{line.id}">{said}</div>'
        f'<div class="rr-item-tools">{"" if closed else _tools(line, choice)}</div></div>'
        + (
            f'<div class="rr-change" aria-label="Against the draft">{_pieces(difference)}</div>'
            if changed and difference
            else ""
        )
        + f'<p class="rr-item-about"><span class="rr-choice">{name}</span>{measured}</p>{warned}{offered}</li>'
    )


def _caution(caution: "Caution", line: "Line | None", closed: bool) -> str:
    """What has to be decided about a sentence: it goes, or it is kept."""
    ends = ""
    if not closed:
        gone = _button("delete", "Delete", f'data-line="{line.id}"') if line else ""
        ends = gone + _button("decide", "Keep", f'data-key="{html.escape(caution.key)}" title="Seen: keep it as it is"')
    return (
        f'<p class="rr-caution" data-key="{html.escape(caution.key)}"><span class="rr-tag">'
        f'<span aria-hidden="true">! </span>{html.escape(caution.message)}</span>{ends}</p>'
    )


def _of_the_whole(cautions: "Sequence[Caution]") -> str:
    return "".join(_caution(each, None, False) for each in cautions)


def _offer(offer: "Offer") -> str:
    """What a change in the other section suggests here."""
    ends = _button(
        "offer",
        "Do so",
        f'data-offer="{offer.action}" data-line="{offer.line if offer.line is not None else ""}" data-text="{html.escape(offer.text)}"',
    )
    return f'<p class="rr-offer"><span>{html.escape(offer.words)}</span>{ends}{_button("dismiss", "Leave it")}</p>'


def _tools(line: "Line", choice: str) -> str:
    given = f'data-line="{line.id}"'
    if choice == "deleted":
        return _button("restore", "Restore", given)
    accept = _button("accept", "Accept", f'{given} title="Accept (A)"', "rr-first") if choice == "unreviewed" else ""
    rest = _button("edit", "Edit", f'{given} title="Edit (E)"') + _button(
        "delete", "Delete", f'{given} title="Delete (X)"'
    )
    place = f'data-section="{line.section}" data-after="{line.id}" aria-label="Add a sentence below" title="Add a sentence below"'
    below = _button("add", "+", place)
    return f"{accept}{rest}{below}"


def _foot(section: str, lines: "Sequence[Line]") -> str:
    name = section.capitalize()
    after = f' data-after="{lines[-1].id}"' if lines else ""
    add = _button("add", "Add a sentence", f'data-section="{section}"{after} aria-label="Add a sentence to the {name}"')
    whole = _button("retype", "Edit as text", f'data-section="{section}" aria-label="Edit the {name} as text"')
    return f'<p class="rr-foot">{add}{whole}</p>'


def _bar(report: "Report | None", cautions: "Sequence[Caution]", closed: bool) -> str:
    if report is None or not (report.lines or report.edits):
        return ""
    copy = _button("copy", "Copy", f'data-text="{html.escape(report.text())}" title="Copy the report"')
    if closed:
        return f'<p class="rr-bar-of-report">{_button("unsign", "Take the signature back")}{copy}{_button("to-export", "Export…")}</p>'
    left, warned = len(report.unreviewed), len(cautions)
    said = f"{left} left" if left else "all reviewed"
    said += f", {warned} to decide" if warned else ""
    rest = _button("accept-rest", "Accept rest", 'title="Once each was seen"') if left > 1 else ""
    undo = _button("undo", "↶", f'aria-label="Undo" title="Undo (U)"{"" if report.past else " disabled"}')
    redo = _button("redo", "↷", f'aria-label="Redo" title="Redo (Y)"{"" if report.future else " disabled"}')
    changes = '<button type="button" data-action="changes" aria-pressed="false">Changes</button>'
    sign = _button("ask-sign", "Sign…", "" if report.findings or report.impression else "disabled", "rr-main")
    return f'<p class="rr-bar-of-report"><span class="rr-left">{said}</span>{rest}{undo}{redo}{changes}{copy}{sign}</p>'


def _button(do: str, label: str, given: str = "", kind: str = "") -> str:
    return f'<button type="button" class="{kind}" data-action="{do}" {given}>{label}</button>'


def _pieces(difference: "Difference") -> str:
    tags = {"removed": "del", "added": "ins", "same": "span"}
    return "".join(f"<{tags[p.kind]}>{html.escape(p.text)}</{tags[p.kind]}>" for p in difference.pieces)


def _sign(report: "Report", cautions: "Sequence[Caution]") -> str:
    """The sign-off: a yes for every sentence that nobody has reviewed, once every warning is decided; and who reads."""
    asked = "".join(
        f'<li><label><input type="checkbox" value="{line.id}"> <span>{html.escape(line.text)}</span></label></li>'
        for line in report.unreviewed
    )
    words = (
        f"<p>Nobody has reviewed these sentences yet. Confirm each one that is right; go back to edit or delete the others.</p><ol>{asked}</ol>"
        if asked
        else "<p>Every sentence is reviewed.</p>"
    )
    if cautions:
        many = "One warning is" if len(cautions) == 1 else f"{len(cautions)} warnings are"
        listed = "".join(f"<li>{html.escape(each.message)}</li>" for each in cautions)
        words = f'<div class="rr-say rr-warn" role="alert">{many} not decided: keep or delete each first.<ul>{listed}</ul></div>'
    stopped = bool(asked or cautions)
    return (
        '<dialog class="rr-dialog" data-dialog="sign" aria-label="Sign off the report"><h3>Sign off</h3>'
        f"{words}<p>A signed report is final and cannot be changed until the signature is taken back. It is still research and teaching only.</p>"
        '<div class="rr-signer"><label>Your name <input type="text" data-signer="name" placeholder="Family^Given" autocomplete="off"></label>'
        '<label>Organization <input type="text" data-signer="organization" autocomplete="off"></label></div>'
        '<p class="rr-hint">Kept in this browser alone, and named in the exports of a signed report.</p>'
        f'<p class="rr-ends"><button type="button" class="rr-main" data-action="sign" data-blocked="{int(bool(cautions))}" '
        f"{'disabled' if stopped else ''}>Sign off</button>"
        '<button type="button" data-action="shut">Go back</button></p></dialog>'
    )
