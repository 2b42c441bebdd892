"""The panels beside a draft: what was read in the film, what the draft states, what contradicts itself, and whether the film mattered.

Every function here takes what emrrg_core gives and returns HTML, escaped, for a `gr.HTML`; none knows Gradio or torch, and none
keeps anything. What is told by a colour is told in words or by a line as well. Looks: draft_panels.css.

    near_html             remembered cases → a list that opens
    findings_html         Draft → the findings of Read, each with its contour's switch and what the reader says of it
    read_html             Draft → every assessed finding with its probability, to be selected (in the browser: PICK_FINDING)
    findings_table_html   findings_table → the 14 labels, what is stated first
    flag_html, tags_html  flags → a list with reasons; the marks behind one sentence
    words_html            Draft → sentences and words to be selected (in the browser: PICK; on the server: `picked`)
    about_html            the probabilities of the findings that a sentence speaks of
    tokens_html           the probabilities of the words of a selection, piece by piece
    gates_html            how far each gate was open for a selection
    why_html              Why → the highlighted place beside random ones
    looking_html          DependenceTest → blank film, noise, another chest
"""

import html
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from emrrg_core.explain.likelihood import factor, likelihood

if TYPE_CHECKING:
    from emrrg_core import Draft, Finding, Sentence
    from emrrg_core.explain.faithfulness import DependenceTest, Why
    from emrrg_core.memory.cases import Case
    from emrrg_core.text.consistency import Flag, Row

# class, name, least probability: of a finding where the sentence states it, of its absence where it denies it
BANDS = (
    ("rr-sure", "probable", "80\N{NO-BREAK SPACE}% and more", 0.8),
    ("rr-less", "less probable", "50 to 80\N{NO-BREAK SPACE}%", 0.5),
    ("rr-unsure", "doubtful", "below 50\N{NO-BREAK SPACE}%", 0.0),
)
UNKNOWN = ("rr-unknown", "not assessed")  # of a sentence about what no one reads
_SECTIONS = ("findings", "impression")

# For js_on_load of the gr.HTML that shows words_html: `.select(fn)` then gets a gr.SelectData whose index is what `picked` takes.
PICK = """
const all = () => [...element.querySelectorAll('.rr-pick')];

function stop(item) {  // the one item that Tab reaches; arrows move among the others
    for (const other of all()) other.tabIndex = other === item ? 0 : -1;
}

function move(event) {
    const items = all(), here = items.indexOf(event.target);
    if (here < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const heads = items.filter((item) => item.matches('.rr-head'));
    const mine = heads.findLastIndex((head) => items.indexOf(head) <= here);
    const next = {
        ArrowRight: items[here + 1], ArrowLeft: items[here - 1],
        ArrowDown: heads[mine + 1], ArrowUp: items[here] === heads[mine] ? heads[mine - 1] : heads[mine],
        Home: items[0], End: items[items.length - 1],
    };
    if (!(event.key in next)) return;
    event.preventDefault();  // the page must not scroll away under the reader
    if (next[event.key]) { stop(next[event.key]); next[event.key].focus(); }
}

function pick(event) {
    const item = event.target.closest('.rr-pick');
    if (!item || !element.contains(item)) return;
    stop(item);
    for (const other of all()) other.setAttribute('aria-pressed', other === item);
    const {sentence, word} = item.dataset;
    trigger('select', {index: [Number(sentence), word ? Number(word) : null], value: null, selected: true});
}

element.addEventListener('keydown', move);
element.addEventListener('click', pick);
"""

# For the gr.HTML that shows read_html: the gr.SelectData's index is the name of a finding.
PICK_FINDING = """
element.addEventListener('click', (event) => {
    const item = event.target.closest('.rr-find');
    if (!item || !element.contains(item)) return;
    for (const other of element.querySelectorAll('.rr-find')) other.setAttribute('aria-pressed', other === item);
    trigger('select', {index: item.dataset.finding, value: null, selected: true});
});
"""


# -------------------------------------------------------------------------------------------------- what was read of the film

_PRESENCE = {  # of emrrg_core's Finding: sign, words, class
    "present": ("+", "stated", "rr-positive"),
    "open": ("?", "left open", "rr-uncertain"),
    "absent": ("\N{MINUS SIGN}", "ruled out", "rr-negative"),
}
_SIZES = {"effusion": {"mild": "small", "moderate": "moderate", "severe": "large"}}  # severity in the words of a report
_NOT_READ = {  # CheXpert's label: in plain words, where the label is none
    "Enlarged Cardiomediastinum": "enlarged mediastinum",
    "Cardiomegaly": "enlarged heart",
    "Lung Opacity": "airspace opacity",
    "Lung Lesion": "nodules and masses",
    "Pleural Other": "other pleural findings",
    "Fracture": "fractures",
    "Support Devices": "devices (tubes, lines, pacemakers)",
}
_ENLARGED = 0.5  # cardiothoracic ratio, on a PA film


def read_html(draft: "Draft | None", chosen: str | None = None) -> str:
    """What the tower read in the film before a word was written: every assessed finding with its probability, and what is not assessed.

    chosen: the name of the finding whose map is shown.
    """
    if draft is None:
        return _empty("No draft yet: what was read in the film appears here, each finding with its probability.")
    if draft.read is None:
        return _empty("This checkpoint reads no findings: its drafts come without probabilities.")
    rows = "".join(_read_row(finding, pressed=finding.name == chosen) for finding in draft.read)
    counts = ", ".join(
        f"{sum(f.presence.value == value for f in draft.read)} {words}" for value, (_, words, _) in _PRESENCE.items()
    )
    heads = "".join(
        f'<th role="columnheader" scope="col">{name}</th>' for name in ("Finding", "Probability", "Read as", "Where")
    )
    return (
        '<div class="rr-was-read"><table role="table" class="rr-table rr-states rr-readings"><caption>What was read in the film '
        f"<small>{counts}. What is left open is neither stated nor denied. Select a finding to see its map.</small></caption>"
        f'<thead role="rowgroup"><tr role="row">{heads}</tr></thead><tbody role="rowgroup">{rows}</tbody></table>'
        f"{_ratio(draft)}{_not_assessed(draft)}"
        '<p class="rr-hint">Measured on films kept apart from teaching: of those with 80\N{NO-BREAK SPACE}%, about 80 in 100 had the finding. '
        "Elsewhere it may be otherwise.</p>"
        "</div>"
    )


# of a finding's contour on the film, and of its row: told apart by people who see few colours, bright on black
COLOURS = {
    "opacity": "#ffb000", "consolidation": "#ffe066", "nodule": "#ff6ec7", "edema": "#c49bff", "atelectasis": "#9be15d", "effusion": "#4dc3ff",
    "pneumothorax": "#00e5c0", "pleura": "#8fb8ff", "heart": "#ff7b6b", "mediastinum": "#ffa8d5", "fracture": "#dddddd",
}  # fmt: skip
SAYS = {  # what a reader may say of a finding: value of the list, its words
    "": "as read",
    "present": "there",
    "right": "there, right",
    "left": "there, left",
    "bilateral": "there, both",
    "absent": "not there",
    "silent": "say nothing",
}


def findings_html(
    draft: "Draft | None", chosen: str | None = None, says: Mapping[str, str] | None = None, *, ready: bool = True
) -> str:
    """What was read in the film, to work with: stated findings first, the others folded away. Empty without a draft.

    chosen: the finding whose map is shown. says: what the reader says of findings, of SAYS. ready: whether the films are there to write anew.
    """
    if draft is None:
        return ""
    if draft.read is None:
        return _empty("This checkpoint reads no findings: its drafts come without probabilities.")
    said = dict(says or {})
    whole = next((finding for finding in draft.read if finding.name == "abnormal"), None)
    rows = [finding for finding in draft.read if finding.name != "abnormal"]
    first = [f for f in rows if f.presence.value == "present" or said.get(f.name)]
    rest = [f for f in rows if f not in first]

    def listed(some: "list[Finding]") -> str:
        drawn = "".join(_find_row(f, f.name == chosen, said.get(f.name, ""), ready) for f in some)
        return f'<ul class="rr-finds-list">{drawn}</ul>'

    head = f"any abnormality {percent(whole.probability)}" if whole else ""
    none = "" if first else '<p class="rr-none">No finding is stated.</p>'
    counted = ", ".join(
        f"{sum(f.presence.value == state for f in rest)} {words}"
        for state, words in (("open", "left open"), ("absent", "ruled out"))
        if any(f.presence.value == state for f in rest)
    )
    folded = f'<details class="rr-finds-rest"><summary>{counted}</summary>{listed(rest)}</details>' if rest else ""
    return (
        f'<section class="rr-finds" aria-label="Findings read in the film"><h2>Findings read <small>{head}</small></h2>'
        f"{listed(first) if first else none}{folded}{_ratio(draft)}{_not_assessed_folded(draft)}</section>"
    )


def _find_row(finding: "Finding", pressed: bool, says: str, ready: bool) -> str:
    share, least, name = finding.probability, finding.threshold, html.escape(name_of(finding))
    _, words, kind = _PRESENCE[finding.presence.value]
    where = html.escape(where_of(finding))
    eye = (
        f'<button type="button" class="rr-eye" data-eye="{finding.name}" aria-pressed="false" title="Contour on the film" '
        f'aria-label="Contour of {name} on the film"></button>'
    )
    choices = "".join(
        f'<option value="{value}"{" selected" if value == says else ""}>{words}</option>'
        for value, words in SAYS.items()
        if value not in ("right", "left", "bilateral") or finding.name in _SIDED
    )
    changed = (
        f'<select data-says="{finding.name}" aria-label="What you say of {name}" title="Change what the report says of it"'
        f"{'' if ready else ' disabled'}>{choices}</select>"
    )
    about = f"{words}; stated from {percent(least)}"
    return (
        f'<li class="{kind}" data-presence="{finding.presence.value}" style="--finding:{COLOURS.get(finding.name, "#ffffff")}">{eye}'
        f'<button type="button" class="rr-find" data-finding="{finding.name}" aria-pressed="{str(pressed).lower()}">{name}'
        f"{f' <small>{where}</small>' if where else ''}</button>"
        f'<span class="rr-likely" data-probability="{share!r}" title="{about}"><span class="rr-meter" aria-hidden="true">'
        f'<i style="width:{100 * share:.1f}%"></i><b style="left:{100 * least:.1f}%"></b></span>{percent(share)}'
        f'<span class="rr-hidden">, {about}</span></span>{changed}</li>'
    )


_SIDED = ("opacity", "consolidation", "nodule", "atelectasis", "effusion")


def near_html(near: "Sequence[Case]", differs: Sequence[str] = ()) -> str:
    """The remembered cases whose findings are most like those of the film; differs: where they and the film disagree, a sentence each."""
    if not near:
        return ""
    rows = "".join(
        f"<li><b>{html.escape(', '.join(case.stated) or 'No finding stated')}</b> · {case.similarity:.2f} alike · {case.id}<br>"
        f"{html.escape(case.text() or 'A film without a report.')}</li>"
        for case in near
    )
    said = "".join(f'<p class="rr-differs">{html.escape(words)}</p>' for words in differs)
    return (
        f'<details class="rr-near"><summary>Remembered cases like this film ({len(near)})</summary>{said}<ol>{rows}</ol>'
        '<p class="rr-hint">Earlier cases of this site, found by their findings. Other patients: they prove nothing about this film.</p></details>'
    )


def name_of(finding: "Finding") -> str:
    """A finding in plain words, without its place."""
    return str(replace(finding, side="", zone=""))


def where_of(finding: "Finding") -> str:
    """Side, zone and severity in plain words; empty where none is named."""
    place = str(finding)[len(name_of(finding)) :].removeprefix(", ")
    size = _SIZES.get(finding.name, {}).get(finding.severity, finding.severity)
    may_be = "may be pneumonia" if finding.pneumonia else ""
    return ", ".join(part for part in (place, size, may_be, since(finding)) if part)


def since(finding: "Finding") -> str:
    """How a finding has changed since the prior film, and how sure that is; empty where it is not told."""
    if finding.earlier is None or finding.change is None:
        return ""
    word = finding.change.value
    than = " than on the prior film" if word in ("larger", "smaller") else " since the prior film"
    return f"{word}{than} ({percent(finding.earlier.sure)} sure)"


def _read_row(finding: "Finding", *, pressed: bool) -> str:
    sign, words, kind = _PRESENCE[finding.presence.value]
    share, least = finding.probability, finding.threshold
    where = html.escape(where_of(finding)) or '<span aria-label="none">–</span>'
    return (
        f'<tr role="row" class="{kind}" data-presence="{finding.presence.value}"><th role="rowheader" scope="row">'
        f'<button type="button" class="rr-find" data-finding="{finding.name}" aria-pressed="{str(pressed).lower()}">'
        f"{html.escape(name_of(finding))}</button></th>"
        f'<td role="cell" class="rr-likely" data-probability="{share!r}"><span class="rr-meter" aria-hidden="true">'
        f'<i style="width:{100 * share:.1f}%"></i><b style="left:{100 * least:.1f}%"></b></span>{_likely(finding)}</td>'
        f'<td role="cell" class="rr-state"><span aria-hidden="true">{sign}</span> {words}</td>'
        f'<td role="cell" class="rr-by">{where}</td></tr>'
    )


def _likely(finding: "Finding") -> str:
    return f"{percent(finding.probability)}, stated from {percent(finding.threshold)}"


def _ratio(draft: "Draft") -> str:
    """The cardiothoracic ratio, with a warning where the film makes the heart look larger than it is."""
    if draft.ratio is None:
        return '<p class="rr-ratio"><b>Cardiothoracic ratio:</b> not measured, because two lungs were not seen.</p>'
    said = (
        f"<b>Cardiothoracic ratio:</b> {draft.ratio:.2f} <small>(enlarged above {_ENLARGED:.2f} on a PA film)</small>"
    )
    views = [film.view or "" for film in draft.films]
    if any(view.startswith("AP") for view in views):
        said += '<span class="rr-tag">AP film: overestimates the heart</span>'
    elif not any(views):
        said += " The view is not known: on an AP film this overestimates the heart."
    return f'<p class="rr-ratio">{said}</p>'


def _not_assessed(draft: "Draft") -> str:
    names = ", ".join(_NOT_READ.get(label, label.lower()) for label in draft.not_assessed)
    said = (
        f"{names}. A draft that does not name them has not looked for them." if names else "nothing of the 14 labels."
    )
    return f'<p class="rr-not-assessed"><b>Not assessed:</b> {html.escape(said)}</p>'


def _not_assessed_folded(draft: "Draft") -> str:
    """The same in one line that opens: what a reader misses most, first."""
    labels = draft.not_assessed
    if not labels:
        return ""
    names = [_NOT_READ.get(label, label.lower()).partition(" (")[0] for label in reversed(labels)]
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    short = html.escape(", ".join(names[:2]) + more)
    return f'<details class="rr-finds-rest"><summary>Not assessed: {short}</summary>{_not_assessed(draft)}</details>'


def finding_caption(finding: "Finding", *, shown: bool) -> str:
    """What the map of a finding means. shown: whether there is a film to lay it over."""
    where = where_of(finding)
    said = f"<b>{html.escape(name_of(finding))}{f', {html.escape(where)}' if where else ''}</b> · "
    said += f"{_likely(finding)}: "
    if not shown:
        said += "drop the films again to see where: they are not stored."
    elif finding.presence.value == "present":
        said += "stated. The brighter a place, the more it speaks for the finding in the sum that its probability is made of."
    else:
        state = "ruled out" if finding.presence.value == "absent" else "left open, neither stated nor denied"
        said += f"{state}. The brighter a place, the more it counted while the finding was looked for."
    return f'<p role="status">{said}</p>'


@dataclass(frozen=True)
class Said:
    """What a sentence says of one finding: that it is there, or that it is not."""

    finding: "Finding"
    stated: bool
    named: bool = True  # False: the sentence names no finding, and is shown with what was read of the film as a whole

    @property
    def likely(self) -> float:
        """How probable it is that this is so, 0 to 1."""
        return self.finding.probability if self.stated else 1 - self.finding.probability

    @property
    def departs(self) -> str:
        """Where the sentence says what was not read: "left open, yet denied"; empty where it says what was read."""
        presence = self.finding.presence.value
        if not self.named or presence == ("present" if self.stated else "absent"):
            return ""
        read = {"present": "read as present"}.get(presence, _PRESENCE[presence][1])
        return f" ({read}, yet {'stated' if self.stated else 'denied'})"


def said_of(draft: "Draft", sentence: "Sentence") -> list[Said]:
    """The assessed findings that a sentence speaks of; where it speaks of none, the film as a whole.

    Empty where all that it speaks of is not assessed, and for a checkpoint that reads nothing.
    """
    mentions, abnormal = _mentions(sentence.text)
    if not mentions and (whole := draft.finding("abnormal")):
        return [Said(whole, abnormal, named=abnormal)]
    found = []
    for finding in filter(None, map(draft.finding, sentence.findings)):
        labels = {finding.label, "Pneumonia"} if finding.name == "opacity" else {finding.label}
        positive = any(label in labels and status != "negative" for label, status in mentions)
        # what is read of the film as a whole is that it is abnormal; the label says that it is normal
        found.append(Said(finding, positive != (finding.name == "abnormal")))
    return found


@lru_cache(maxsize=512)
def _mentions(text: str) -> tuple[tuple[tuple[str, str], ...], bool]:
    """Label and status of every mention in a sentence, and whether it states anything abnormal."""
    from ui import lazy

    read = lazy.read_report(text)
    return tuple((mention["label"], mention["status"]) for mention in read["mentions"]), lazy.is_abnormal(text)


def band(draft: "Draft", sentence: "Sentence") -> tuple[str, str]:
    """Class and name of a sentence's colour: by the least probable of what it says."""
    found = said_of(draft, sentence)
    return _band(min(each.likely for each in found)) if found else UNKNOWN


def about_html(draft: "Draft", sentence: "Sentence") -> str:
    """The findings that a sentence speaks of: "pleural effusion 83 %, stated from 61 %", and where it departs from what was read.

    Empty for a checkpoint that reads nothing.
    """
    if draft.read is None:
        return ""
    found = [
        f"{html.escape(name_of(each.finding))} {_likely(each.finding)}{each.departs}"
        + (f", {html.escape(changed)}" if (changed := since(each.finding)) else "")
        for each in said_of(draft, sentence)
    ]
    mentioned = dict.fromkeys(label for label, _ in _mentions(sentence.text)[0])
    found += [f"{html.escape(_NOT_READ.get(label, label.lower()))}: not assessed" for label in mentioned
              if label in draft.not_assessed]  # fmt: skip
    return "; ".join(found) or "not assessed"


# -------------------------------------------------------------------------------------------------------- what it states

_STATES = {  # in the order of the table: sign, class
    "positive": ("+", "rr-positive"),
    "uncertain": ("?", "rr-uncertain"),
    "negative": ("\N{MINUS SIGN}", "rr-negative"),
    "not mentioned": ("·", "rr-silent"),
}


def findings_table_html(rows: "Sequence[Row]", findings: str, impression: str) -> str:
    """The 14 labels as the report states them: positive first, then uncertain, negative, not mentioned.

    rows: what emrrg_core.findings_table gives for these two texts.
    """
    if not (findings.strip() or impression.strip()):
        return _empty("No report yet: what it states of each of the 14 labels is listed here.")
    texts = {"findings": findings, "impression": impression}
    states = list(_STATES)
    body = []
    for row in sorted(rows, key=lambda row: states.index(_state(row))):
        sign, kind = _STATES[_state(row)]
        said = "".join(
            f'<li><span class="rr-where">{place.section.capitalize()}</span> {_quote(texts[place.section][place.start : place.end])}</li>'
            for place in row.places
        )
        body.append(
            f'<tr role="row" class="{kind}"><th role="rowheader" scope="row">{html.escape(row.label)}</th>'
            f'<td role="cell" class="rr-state"><span aria-hidden="true">{sign}</span> {_state(row)}</td>'
            f'<td role="cell" class="rr-by">{f"<ul>{said}</ul>" if said else _unsaid(row)}</td></tr>'
        )
    counts = ", ".join(f"{sum(_state(row) == state for row in rows)} {state}" for state in states)
    heads = "".join(
        f'<th role="columnheader" scope="col">{name}</th>' for name in ("Label", "Stated as", "By the sentence")
    )
    return (  # the roles are said because a narrow screen lays the rows out as grids, and some readers then see no table
        '<table role="table" class="rr-table rr-states"><caption>What the report states of CheXpert’s 14 labels '
        f'<small>{counts}</small></caption><thead role="rowgroup"><tr role="row">{heads}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(body)}</tbody></table>'
    )


def _state(row: "Row") -> str:
    return row.status.value if row.status else "not mentioned"


def _unsaid(row: "Row") -> str:
    """A cell without a sentence: nothing is said, or it follows from there being nothing else."""
    return "follows from the other labels" if row.status else '<span aria-label="none">–</span>'


# ----------------------------------------------------------------------------------------------------------------- flags

_KINDS = {  # of emrrg_core.Flag: a short name, and what it is
    "negation": ("contradiction", "Contradiction: stated and denied"),
    "side": ("side", "Contradiction: left and right"),
    "normal": ("contradiction", "Contradiction: normal beside a finding"),
    "prior": ("earlier film", "Words about an earlier film"),
    "only in the Impression": ("only here", "In the Impression, and not in the Findings"),
}
_FLAG = '<span aria-hidden="true">⚑</span>'


def flag_html(flags: "Sequence[Flag]", findings: str, impression: str) -> str:
    """What to look at twice, each with the sentences in which it stands, the words marked, and the reason.

    flags: what emrrg_core.flags gives for these two texts.
    """
    texts = {"findings": findings, "impression": impression}
    if not any(text.strip() for text in texts.values()):
        return _empty("No report yet: contradictions and words about an earlier film are listed here.")
    groups: dict[Any, list[Flag]] = {}
    for (
        flag
    ) in flags:  # a contradiction with both its sentences; words about an earlier film by the sentence they stand in
        prior = flag.kind.value == "prior"
        one = [span for span, _ in _by_sentence([flag], texts)] if prior else [flag.message]
        groups.setdefault((flag.kind.value, *one), []).append(flag)
    if not groups:
        return _empty("No contradiction was found, and no words about an earlier film that was not given.")
    items = []
    for (kind, *_), group in groups.items():
        places = "".join(
            f'<li><span class="rr-where">{section.capitalize()}</span> {_quote(texts[section], (start, end), marks)}</li>'
            for (section, start, end), marks in _by_sentence(group, texts)
        )
        reasons = " ".join(dict.fromkeys(flag.message for flag in group))
        items.append(
            f'<li><p class="rr-kind">{_FLAG} {_KINDS[kind][1]}</p><ul>{places}</ul>'
            f'<p class="rr-reason">{html.escape(reasons)}</p></li>'
        )
    many = f"{len(groups)} things" if len(groups) > 1 else "One thing"
    return (
        f'<div class="rr-flags" role="group" aria-label="To look at twice"><p><b>{many} to look at twice</b></p>'
        f"<ol>{''.join(items)}</ol></div>"
    )


def tags_html(flags: "Iterable[Flag]", section: str, start: int, end: int) -> str:
    """The flags that touch characters start to end of a section as small marks, for the end of a sentence; "" for none."""
    told: dict[str, list[str]] = {}
    for flag in _touching(flags, section, start, end):
        told.setdefault(_KINDS[flag.kind.value][0], []).append(flag.message)
    return "".join(
        f'<span class="rr-tag" title="{html.escape(" ".join(messages))}">{_FLAG} {name}</span>'
        for name, messages in told.items()
    )


def _touching(flags: "Iterable[Flag]", section: str, start: int, end: int) -> "list[Flag]":
    return [flag for flag in flags if flag.section == section and flag.start < end and start < flag.end]


def _by_sentence(
    flags: "Sequence[Flag]", texts: dict[str, str]
) -> list[tuple[tuple[str, int, int], list[tuple[int, int]]]]:
    """The sentences (section, start, end) in which flags stand, each with the places marked in it, in reading order."""
    from ui import lazy

    found = []
    for section in _SECTIONS:
        for start, end in lazy.sentences(texts[section]):
            if mine := _touching(flags, section, start, end):
                found.append(((section, start, end), [(flag.start, flag.end) for flag in mine]))
    return found


def _quote(text: str, span: tuple[int, int] | None = None, marks: Iterable[tuple[int, int]] = ()) -> str:
    """text[start:end] in quotation marks, the places in `marks` (of the whole text) marked."""
    here, end = span or (0, len(text))
    pieces = []
    for first, last in sorted(marks):
        first, last = max(first, here), min(last, end)
        if first < last:
            pieces += [html.escape(text[here:first]), f"<mark>{html.escape(text[first:last])}</mark>"]
            here = last
    return f'<span class="rr-quote">“{"".join(pieces)}{html.escape(text[here:end])}”</span>'


# ------------------------------------------------------------------------------------------------------ words and tokens


@dataclass(frozen=True)
class Word:
    """A word of a sentence: characters start to end of its section's text, and draft.tokens[first:last], which wrote it."""

    text: str
    start: int
    end: int
    first: int
    last: int


def words(draft: "Draft", sentence: "Sentence") -> list[Word]:
    """The words of a sentence, cut at blanks, in order.

    A token that reaches into two words belongs to both. One that writes no letter of any (a blank, or part of a character
    that takes several) belongs to the word that follows; so every token of the sentence is some word's.
    """
    first, last = sentence.tokens
    ends, place = [], 0
    for token in draft.tokens[first:last]:
        place += len(token.text)
        ends.append(place)
    begin = "".join(token.text for token in draft.tokens[first:last]).index(sentence.text)
    found, done = [], first
    for match in re.finditer(r"\S+", sentence.text):
        a, b = (begin + edge for edge in match.span())
        start = min(done, first + next(n for n, end in enumerate(ends) if end > a))
        done = first + next(n for n, end in enumerate(ends) if end >= b) + 1
        found.append(Word(match[0], sentence.start + match.start(), sentence.start + match.end(), start, done))
    return found


def confidence(draft: "Draft", first: int, last: int) -> float:
    """The geometric mean of the probabilities of draft.tokens[first:last], 0 to 1, as a sentence's is."""
    return math.exp(sum(token.log_prob for token in draft.tokens[first:last]) / (last - first))


@dataclass(frozen=True)
class Selection:
    """What a reader selected: a sentence of the draft by its number, or one of its words; draft.tokens[first:last] wrote it."""

    sentence: int
    word: int | None  # its number in `words`; None: the whole sentence
    first: int
    last: int
    text: str

    def what(self, draft: "Draft") -> "Sentence | tuple[int, int]":
        """What a map is asked of: the sentence, or the word's tokens."""
        return draft.sentences[self.sentence] if self.word is None else (self.first, self.last)


def picked(draft: "Draft", index: Any) -> Selection | None:
    """The selection that a browser names, [sentence, word or null] (PICK); None where the draft has no such place."""
    match index:
        case [int(number), word] if 0 <= number < len(draft.sentences):
            sentence = draft.sentences[number]
        case _:
            return None
    if word is None:
        return Selection(number, None, *sentence.tokens, sentence.text)
    found = words(draft, sentence)
    if not (isinstance(word, int) and 0 <= word < len(found)):
        return None
    return Selection(number, word, found[word].first, found[word].last, found[word].text)


def words_html(draft: "Draft | None", selected: Selection | None = None, flags: "Sequence[Flag]" = ()) -> str:
    """The draft as sentences and words that can be selected, each sentence with the probability of what it says, with a legend.

    flags: of the draft's own texts. One item is reached by Tab, the others by arrows (PICK); a sentence is selected by the
    number before it, a word by itself.
    """
    if draft is None or not draft.sentences:
        return _empty(
            "No draft yet: its sentences appear here, each with the probability of the finding that it speaks of."
        )
    legend = "".join(f'<li class="{kind}">{name} <small>{least}</small></li>' for kind, name, least, _ in BANDS)
    parts = []
    for section in _SECTIONS:
        rows = [
            _sentence(draft, number, selected, flags)
            for number, sentence in enumerate(draft.sentences)
            if sentence.section == section
        ]
        if rows:
            name = section.capitalize()
            parts.append(
                f'<div role="group" aria-label="{name}"><p class="rr-section" aria-hidden="true">{name}</p>{"".join(rows)}</div>'
            )
    return (
        '<div class="rr-words"><p class="rr-hint">Select a number for its sentence, or a word, to see where the model looked.</p>'
        f'<div role="toolbar" aria-label="The draft: sentences and words to select">{"".join(parts)}</div>'
        f'<ul class="rr-bands" aria-label="Colours: {_LEGEND}">{legend}</ul><p class="rr-hint">Colours: {_LEGEND}.</p></div>'
    )


_LEGEND = "how probable what a sentence says is, measured on films kept apart"


def _sentence(draft: "Draft", number: int, selected: Selection | None, flags: "Sequence[Flag]") -> str:
    sentence = draft.sentences[number]
    at = (selected.sentence, selected.word) if selected else None

    def item(word: int | None, first: int, last: int, classes: str, label: str, text: str) -> str:
        here = (number, word)
        return (
            f'<button type="button" class="rr-pick {classes}" data-sentence="{number}" data-word="{"" if word is None else word}" '
            f'data-first="{first}" data-last="{last}" aria-pressed="{str(here == at).lower()}" '
            f'tabindex="{0 if here == (at or (0, None)) else -1}" {label}>{text}</button>'
        )

    kind, name = band(draft, sentence)
    about = about_html(draft, sentence)
    label = f'aria-label="{number + 1}, {name}{f" ({about})" if about else ""}: {html.escape(sentence.text)}"'
    pieces = [item(None, *sentence.tokens, f"rr-head {kind}", label, f"{number + 1} <small>{name}</small>")]
    pieces.append('<span class="rr-told"><span class="rr-line">')
    place = sentence.start
    for place_in, word in enumerate(words(draft, sentence)):
        prior = any(f.kind.value == "prior" for f in _touching(flags, sentence.section, word.start, word.end))
        kind = "rr-word rr-flagged" if prior else "rr-word"
        gap = sentence.text[place - sentence.start : word.start - sentence.start]
        pieces += [gap, item(place_in, word.first, word.last, kind, "", html.escape(word.text))]
        place = word.end
    tags = tags_html(flags, sentence.section, sentence.start, sentence.end)
    below = f'<small class="rr-about-it">{about}</small>' if about else ""
    return f'<div class="rr-sentence" role="group" aria-label="Sentence {number + 1}">{"".join(pieces)}</span>{tags}{below}</span></div>'


def tokens_html(draft: "Draft", first: int, last: int) -> str:
    """The word inspector: how likely the words draft.tokens[first:last] were to the model, piece by piece; forced ones, which it did not
    choose, say so."""
    columns = []
    for token in draft.tokens[first:last]:
        share = math.exp(token.log_prob)
        kind, _ = _band(share)
        text = html.escape(_visible(token.text))
        told = "forced" if token.forced else percent(share)
        columns.append(
            f'<li class="{"rr-forced" if token.forced else kind}" data-probability="{share!r}">'
            f'<span class="rr-column" aria-hidden="true"><i style="height:{0 if token.forced else 100 * share:.1f}%"></i></span>'
            f"<code>{text}</code><small>{told}</small></li>"
        )
    forced = any(token.forced for token in draft.tokens[first:last])
    note = " A forced piece was set, not chosen by the model." if forced else ""
    return (
        f'<figure class="rr-chart rr-tokens"><figcaption>Word confidence {percent(confidence(draft, first, last))}: how likely each piece was, '
        "given the film and the words before it. It is about the wording, not the finding."
        f"{note}</figcaption><ol>{''.join(columns)}</ol></figure>"
    )


def gates_html(draft: "Draft", first: int, last: int) -> str:
    """How far each gate was open, mean and range over draft.tokens[first:last]; gate n is that of the n-th hybrid layer."""
    tokens = draft.tokens[first:last]
    if not draft.layers or not tokens:
        return _empty("This model has no gates.")
    strengths = [[abs(token.gates[place]) for token in tokens] for place in range(len(draft.layers))]
    widest = max(map(max, strengths))
    if not widest:
        return _empty("Every gate was shut here: the model did not look at the film through them.")
    rows = []
    for number, (layer, values) in enumerate(zip(draft.layers, strengths, strict=True), 1):
        mean = sum(values) / len(values)
        spread = f"{min(values):.3f} to {max(values):.3f}" if len(values) > 1 else "–"
        rows.append(
            f'<tr><th scope="row" title="Layer {layer} of the language model">Gate {number}</th><td class="rr-bar-cell" aria-hidden="true">'
            f'<span class="rr-range" style="left:{100 * min(values) / widest:.1f}%;right:{100 - 100 * max(values) / widest:.1f}%"></span>'
            f'<i style="width:{100 * mean / widest:.1f}%"></i></td>'
            f'<td class="rr-figure" data-gate="{mean!r}">{mean:.3f}</td><td class="rr-figure">{spread}</td></tr>'
        )
    return (
        '<table class="rr-table rr-gates"><caption>How far each gate was open <small>0 adds nothing of the film; '
        f"a full bar is {widest:.3f}</small></caption>"
        '<thead><tr><th scope="col">Gate</th><td aria-hidden="true"></td><th scope="col">Mean</th>'
        '<th scope="col">Range</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _band(share: float) -> tuple[str, str]:
    return next((kind, name) for kind, name, _, least in BANDS if share >= least or not least)


def percent(share: float) -> str:
    """A share in whole percent, as HTML; it says neither "all" nor "nothing" of what is nearly so."""
    sign, whole = ("&gt;", 99) if 0.99 < share < 1 else ("&lt;", 1) if share < 0.01 else ("", round(100 * share))
    return f"{sign}{whole}\N{NO-BREAK SPACE}%"


def _visible(text: str) -> str:
    """A token's text with its blanks to be seen; one without any text is part of a character."""
    return text.replace(" ", "␣").replace("\n", "⏎") or "…"


# ---------------------------------------------------------------------------------------------------------------- charts


# factors at which an axis has ticks, 1 first, the closest together first; then powers of ten
_FACTORS: tuple[list[float], ...] = (
    *([1 + step * number for number in range(6)] for step in (0.01, 0.02, 0.05, 0.1)),
    [1, 1.2, *(size * ten for ten in (1, 10, 100) for size in (1.5, 2, 3, 5, 10))],
    [1, 1.5, *(size * ten for ten in (1, 10, 100) for size in (2, 3, 5, 10))],
    [1, *(size * ten for ten in (1, 10, 100) for size in (2, 5, 10))],
    [1, *(size * ten for ten in (1, 10, 100, 1000) for size in (3, 10))],
)
_APART = 0.14  # of the width of an axis, at least, from tick to tick


@dataclass(frozen=True)
class _Scale:
    """An axis over the width of a picture, linear in nats, with 0 and all of `values` on it; its ticks tell factors (exp of nats)."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]  # nats, label

    @classmethod
    def over(cls, values: Iterable[float]) -> "_Scale":
        ends = [0.0, *values]
        low, high = min(ends), max(ends)
        high = max(high, low + 0.05)
        ticks = next(found for found in _ladders(low, high) if _apart(found) >= _APART * (high - low))
        return cls(low, high, tuple(ticks))

    def x(self, nats: float) -> str:
        """Where a number lies, in percent of the width: 5 to 95, so that marks and words at the ends stay whole."""
        return f"{5 + 90 * (nats - self.low) / (self.high - self.low):.3f}%"

    @property
    def height(self) -> int:
        """Pixels that the axis takes below its line."""
        return 60 if self.low < 0 else 44

    def axis(self, y: int, title: str) -> str:
        ticks = "".join(
            f'<line class="rr-tick" x1="{self.x(at)}" x2="{self.x(at)}" y1="{y}" y2="{y + 5}"/>'
            f'<text x="{self.x(at)}" y="{y + 19}" text-anchor="middle" data-nats="{at!r}">{label}</text>'
            for at, label in self.ticks
        )
        titles = (title, *(("left of ×1: times more likely",) if self.low < 0 else ()))
        return (
            f'<line class="rr-zero" x1="{self.x(0)}" x2="{self.x(0)}" y1="4" y2="{y}"/>'
            f'<line class="rr-axis" x1="{self.x(self.low)}" x2="{self.x(self.high)}" y1="{y}" y2="{y}"/>{ticks}'
            + "".join(
                f'<text class="rr-axis-title" x="50%" y="{y + 38 + 16 * line}" text-anchor="middle">{text}</text>'
                for line, text in enumerate(titles)
            )
        )


def _ladders(low: float, high: float) -> Iterator[list[tuple[float, str]]]:
    """Ever fewer ticks between low and high."""
    for factors in _FACTORS:
        yield _within(low, high, [(math.log(times), f"×{times:g}") for times in factors])
    for power in (size * ten for ten in (1, 10, 100, 1000) for size in (1, 2, 5)):
        step = power * math.log(10)
        yield _within(low, high, [(n * step, _power(n * power)) for n in range(int(max(-low, high) / step) + 1)])


def _apart(ticks: list[tuple[float, str]]) -> float:
    """The least distance from tick to tick."""
    return min((right - left for (left, _), (right, _) in pairwise(ticks)), default=math.inf)


def _within(low: float, high: float, one_way: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Ticks from low to high; one_way: those of 0 and above."""
    both = [*((-at, label) for at, label in reversed(one_way[1:])), *one_way]
    return [(at, label) for at, label in both if low <= at <= high]


def _power(power: int) -> str:
    """A power of ten as a factor: ×1, ×10, ×100, ×1000, ×10⁴."""
    return f"×{10**power}" if power < 4 else f"×10{str(power).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def _picture(height: int, about: str, inside: str) -> str:
    return f'<svg role="img" aria-label="{html.escape(about)}" width="100%" height="{height}">{inside}</svg>'


def _numbers(caption: str, rows: Iterable[tuple[str, float]]) -> str:
    """All the numbers of a chart as a table, folded away."""
    body = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td class="rr-figure">{likelihood(nats, "×")}</td></tr>'
        for name, nats in rows
    )
    return (
        f'<details><summary>Place by place</summary><table class="rr-table"><caption>{caption}</caption>'
        f'<thead><tr><th scope="col">Hidden</th><th scope="col">The sentence is</th></tr></thead><tbody>{body}</tbody></table></details>'
    )


def why_html(why: "Why | None", sentence: str) -> str:
    """*Why this sentence?*: how much less likely it is with the highlighted place hidden, beside random places. None: it has no map."""
    title = f"<p><b>Why this sentence?</b> {_quote(sentence)}</p>"
    if why is None:
        return (
            f'<div class="rr-why rr-say rr-calm">{title}<p>This sentence has no map, so there is no highlighted '
            "place to hide: every gate was shut, or the model looked at other findings while it wrote this.</p></div>"
        )
    scale = _Scale.over([why.drop, why.mean, *why.random])
    mine, mean = scale.x(why.drop), scale.x(why.mean)
    dots = "".join(f'<circle class="rr-random" cx="{scale.x(d)}" cy="82" r="5" data-nats="{d!r}"/>' for d in why.random)
    inside = (
        f"{scale.axis(106, 'times less likely when a place is hidden')}"
        f'<text x="5%" y="16">Highlighted place: <tspan class="rr-strong">{likelihood(why.drop, "×")}</tspan></text>'
        f'<circle class="rr-here" cx="{mine}" cy="34" r="7" data-nats="{why.drop!r}"/>'
        f'<text x="5%" y="64">{len(why.random)} other places, mean: <tspan class="rr-strong">{likelihood(why.mean, "×")}</tspan></text>{dots}'
        f'<line class="rr-mean" x1="{mean}" x2="{mean}" y1="70" y2="94" data-nats="{why.mean!r}"/>'
    )
    about = (
        f"Chart. With the highlighted place hidden, the sentence is {likelihood(why.drop)}; with {len(why.random)} other places hidden, from "
        f"{likelihood(min(why.random))} to {likelihood(max(why.random))}, {likelihood(why.mean)} on average."
    )
    return (
        f'<div class="rr-why">{title}{_verdict(why.verdict, good=why.matters)}<details><summary>The figures</summary>'
        f'<figure class="rr-chart">{_picture(106 + scale.height, about, inside)}</figure>{_finding_before_and_after(why)}{_whole(why)}'
        f"{_numbers('Random places have the shape of the highlighted one', why.bars)}</details></div>"
    )


def _finding_before_and_after(why: "Why") -> str:
    """How probable the sentence's finding is: in the film, with the highlighted place hidden, and with others hidden."""
    told = (
        ("In the film", why.probability),
        ("With the highlighted place hidden", why.hidden),
        ("With another place hidden, on average", why.elsewhere),
    )
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td class="rr-likely" data-probability="{share!r}"><span class="rr-meter" aria-hidden="true">'
        f'<i style="width:{100 * share:.1f}%"></i></span>{percent(share)}</td></tr>'
        for name, share in told
        if share is not None
    )
    if why.finding is None or not rows:
        return ""
    return (
        '<table class="rr-table rr-before-after"><caption>How probable the finding is that it speaks of '
        f"<small>read anew in each changed film</small></caption><tbody>{rows}</tbody></table>"
    )


def _whole(why: "Why") -> str:
    """What the place costs by every way, where that is not what it costs through the hybrid layers."""
    if abs(why.whole - why.drop) < 0.005:
        return ""
    return (
        '<p class="rr-whole">These figures are of what comes through the gates. With the place hidden from the prompt too, the sentence is '
        f"{likelihood(why.whole)}.</p>"
    )


def looking_html(looking: "DependenceTest | None") -> str:
    """*Is it looking?*: how much less likely the draft is without its film, against the threshold. None: not measured yet."""
    if looking is None:
        return _empty("Is it looking? After a draft, it is read again under a blank film, noise and another chest.")
    bars = (*looking.bars, ("Mean of the three", looking.moved))
    scale = _Scale.over([looking.threshold, *(nats for _, nats in bars)])
    pieces = []
    for row, (name, nats) in enumerate(bars):
        y = 20 + 34 * row
        left, right = sorted((0.0, nats))
        kind = "rr-here" if row == len(bars) - 1 else "rr-random"
        width = float(scale.x(right)[:-1]) - float(scale.x(left)[:-1])
        pieces.append(
            f'<text x="5%" y="{y}">{name}: <tspan class="rr-strong">{likelihood(nats, "×")}</tspan></text>'
            f'<rect class="{kind}" x="{scale.x(left)}" width="{width:.3f}%" y="{y + 5}" height="9" data-nats="{nats!r}"/>'
        )
    least, floor = scale.x(looking.threshold), 20 + 34 * len(bars)
    pieces.append(
        f'<line class="rr-threshold" x1="{least}" x2="{least}" y1="{20 + 34 * 3 + 2}" y2="{floor - 6}" data-nats="{looking.threshold!r}"/>'
    )
    inside = f"{scale.axis(floor - 6, 'times less likely without the film')}{''.join(pieces)}"
    told = ", ".join(f"{name.lower()} {likelihood(nats)}" for name, nats in bars)
    least_times = factor(looking.threshold)
    about = f"Chart. How likely each piece of a word is without its film: {told}. Threshold for the mean: {least_times} times less likely."
    return (
        f'<div class="rr-looking">{_verdict(looking.verdict, good=looking.looks)}<details><summary>The figures</summary>'
        f'<figure class="rr-chart">{_picture(floor - 6 + scale.height, about, inside)}<figcaption>How likely each piece of a word is under '
        f"another picture. Dashed line: ×{least_times}, the mean below which a text barely depends on its film.</figcaption></figure>"
        "</details></div>"
    )


def _verdict(text: str, *, good: bool) -> str:
    """A plain sentence; where the answer is no, as a warning that is read out."""
    kind, sign = ("rr-calm", "") if good else ("rr-warn", '<b class="rr-sign">Take care.</b> ')
    return f'<div class="rr-say {kind}" role="status">{sign}{html.escape(text)}</div>'


def _empty(text: str) -> str:
    return f'<p class="rr-none">{html.escape(text)}</p>'
