"""The editor: the report sentence by sentence, what the reader may do with each, and the sign-off.

`html_of` draws a report, `apply` does what its buttons ask for (read.js sends it). A report is never changed: every action
gives a new one.
"""

import html
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ui.draft_panels import about_html, band, tags_html
from ui.session_state import core

if TYPE_CHECKING:
    from emrrg_core import Draft, Report
    from emrrg_core.report.report import Difference, Line
    from emrrg_core.text.consistency import Flag

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
            case "edit":
                return report.edit(int(line), str(text))
            case "add":
                after = action.get("after")
                return report.add(str(action["section"]), str(text), None if after is None else int(after))
            case "retype":
                return report.retype(str(action["section"]), str(text))
            case "sign":
                return report.sign([int(number) for number in action.get("confirmed", ())])
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


def places(report: "Report") -> dict[int, tuple[int, int]]:
    """Where each line that is not deleted stands in the text of its section: first character, one past the last."""
    found, ends = {}, dict.fromkeys(SECTIONS, 0)
    texts = {"findings": report.findings, "impression": report.impression}
    for line in report.lines:
        if line.choice.value != "deleted":
            start = texts[line.section].index(line.text, ends[line.section])
            ends[line.section] = start + len(line.text)
            found[line.id] = start, ends[line.section]
    return found


def html_of(report: "Report | None", draft: "Draft | None", flags: "Sequence[Flag]" = (), *, kept: str = "") -> str:
    """The report with its tools. kept: what is said of where it is kept."""
    empty = report is None or not report.lines
    closed = report is not None and report.signed is not None
    differences = {row.line: row for row in report.diff(draft)} if report and draft else {}
    where = places(report) if report else {}
    parts = []
    for section in SECTIONS:
        lines = [line for line in report.lines if line.section == section] if report else []
        rows = "".join(_row(line, draft, differences.get(line.id), flags, where.get(line.id), closed) for line in lines)
        text = getattr(report, section) if report else ""
        parts.append(
            f'<section class="rr-part" data-section="{section}" aria-label="{section.capitalize()}" data-text="{html.escape(text)}">'
            f"<h2>{section.capitalize()}</h2>"
            + (f'<ol class="rr-items">{rows}</ol>' if rows else f'<p class="rr-none">{_nothing(section, empty)}</p>')
            + ("" if closed else _foot(section, lines, bool(draft and draft.read and report and report.findings)))
            + "</section>"
        )
    return (
        f'<div class="rr-report" data-signed="{str(closed).lower()}">{_state(report)}{"".join(parts)}{_bar(report, closed)}'
        f'<p class="rr-kept">{html.escape(kept)}</p>{_sign(report) if report and not closed else ""}</div>'
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
        return "The draft appears here, sentence by sentence, to be accepted, edited or deleted. You may also write your own."
    return "Nothing here yet." if empty else f"No {section.capitalize()}."


def _state(report: "Report | None") -> str:
    if report is None or not report.lines:
        return ""
    if report.signed is not None:
        at = datetime.fromisoformat(report.signed)
        return f'<p class="rr-stand rr-final"><b>Signed off</b> {at:%d %B %Y, %H:%M} UTC. It cannot be changed while it is signed.</p>'
    left, all_ = len(report.unreviewed), sum(line.choice.value != "deleted" for line in report.lines)
    if left:
        return (
            f'<p class="rr-stand rr-draft"><b>DRAFT, NOT REVIEWED</b> {left} of {all_} '
            f"{'sentence' if all_ == 1 else 'sentences'} {'is' if left == 1 else 'are'} not reviewed yet.</p>"
        )
    return '<p class="rr-stand"><b>Preliminary, not signed off.</b> Every sentence is reviewed.</p>'


def _row(
    line: "Line",
    draft: "Draft | None",
    difference: "Difference | None",
    flags: "Sequence[Flag]",
    place: tuple[int, int] | None,
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
        kind, about_it = "", "written from the Findings, without a map"
    about = f' data-drafted="{line.drafted}"' if drafted else ""
    words = html.escape(line.text)
    said = f"<del>{words}</del>" if choice == "deleted" else words
    tags = tags_html(flags, line.section, *place) if place else ""
    changed = difference is not None and choice == "edited"
    measured = f'<span class="rr-measure">{about_it}</span>' if about_it else ""
    return (
        f'<li class="rr-item rr-{choice} {kind}" data-line="{line.id}"{about} data-text="{words}">'
        f'<div class="rr-item-text" role="button" tabindex="0" data-action="look" data-line="{line.id}">{said}</div>'
        + (
            f'<div class="rr-change" aria-label="Against the draft">{_pieces(difference)}</div>'
            if changed and difference
            else ""
        )
        + f'<div class="rr-item-tools"><span class="rr-choice"><span aria-hidden="true">{mark}</span> {name}</span>{measured}{tags}'
        + ("" if closed else _tools(line, choice))
        + "</div></li>"
    )


def _tools(line: "Line", choice: str) -> str:
    given = f'data-line="{line.id}"'
    if choice == "deleted":
        return _button("restore", "Restore", given)
    accept = _button("accept", "Accept", given, "rr-first") if choice == "unreviewed" else ""
    rest = _button("edit", "Edit", given) + _button("delete", "Delete", given)
    place = f'data-section="{line.section}" data-after="{line.id}" aria-label="Add a sentence below" title="Add a sentence below"'
    below = _button("add", "Add", place)
    return f"{accept}{rest}{below}"


def _foot(section: str, lines: "Sequence[Line]", summed: bool) -> str:
    name = section.capitalize()
    after = f' data-after="{lines[-1].id}"' if lines else ""
    add = _button("add", "Add a sentence", f'data-section="{section}"{after} aria-label="Add a sentence to the {name}"')
    whole = _button("retype", "Edit as text", f'data-section="{section}" aria-label="Edit the {name} as text"')
    again = _button("summarise", "Impression from these findings") if section == "impression" and summed else ""
    return f'<p class="rr-foot">{add}{whole}{again}</p>'


def _bar(report: "Report | None", closed: bool) -> str:
    if report is None or not (report.lines or report.edits):
        return ""
    if closed:
        return f'<p class="rr-bar-of-report">{_button("unsign", "Take the signature back")}{_button("to-export", "Export…")}</p>'
    undo = _button("undo", "Undo", "" if report.past else "disabled")
    redo = _button("redo", "Redo", "" if report.future else "disabled")
    changes = '<button type="button" data-action="changes" aria-pressed="false">Show changes</button>'
    sign = _button("ask-sign", "Sign off…", "" if report.findings or report.impression else "disabled", "rr-main")
    return f'<p class="rr-bar-of-report">{undo}{redo}{changes}{sign}{_button("to-export", "Export…")}</p>'


def _button(do: str, label: str, given: str = "", kind: str = "") -> str:
    return f'<button type="button" class="{kind}" data-action="{do}" {given}>{label}</button>'


def _pieces(difference: "Difference") -> str:
    tags = {"removed": "del", "added": "ins", "same": "span"}
    return "".join(f"<{tags[p.kind]}>{html.escape(p.text)}</{tags[p.kind]}>" for p in difference.pieces)


def _sign(report: "Report") -> str:
    """The sign-off: a yes for every sentence that nobody has reviewed."""
    asked = "".join(
        f'<li><label><input type="checkbox" value="{line.id}"> <span>{html.escape(line.text)}</span></label></li>'
        for line in report.unreviewed
    )
    words = (
        f"<p>Nobody has reviewed these sentences yet. Confirm each one that is right; go back to edit or delete the others.</p><ol>{asked}</ol>"
        if asked
        else "<p>Every sentence is reviewed.</p>"
    )
    return (
        '<dialog class="rr-dialog" data-dialog="sign" aria-label="Sign off the report"><h3>Sign off</h3>'
        f"{words}<p>A signed report is final and cannot be changed until the signature is taken back. It is still research and teaching only.</p>"
        f'<p class="rr-ends"><button type="button" class="rr-main" data-action="sign" {"disabled" if asked else ""}>Sign off</button>'
        '<button type="button" data-action="shut">Go back</button></p></dialog>'
    )
