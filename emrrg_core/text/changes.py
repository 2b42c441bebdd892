"""How findings have changed since a prior film, as a report's sentences say it."""

import re
from enum import StrEnum

from emrrg_core.text.labeler import NO_FINDING, read_findings, sentences


class Change(StrEnum):
    """How a finding differs from what the prior film shows of it."""

    NEW = "new"
    LARGER = "larger"
    SMALLER = "smaller"
    UNCHANGED = "unchanged"
    RESOLVED = "resolved"


_WORDS = {  # the first that is found decides
    Change.RESOLVED: r"resolved|no longer|cleared|disappeared",
    Change.UNCHANGED: r"unchanged|stable|(?:no|without) (?:significant )?(?:interval )?change",
    Change.LARGER: r"larger than (?:on|before)|has increased|increased (?:since|from)|worsen\w*|has grown",
    Change.SMALLER: r"smaller than (?:on|before)|has decreased|decreased (?:since|from)|improv\w*",
    Change.NEW: r"new|newly",
}
_PATTERNS = {change: re.compile(rf"\b(?:{words})\b", re.IGNORECASE) for change, words in _WORDS.items()}


# as our drafts say it: what is added to the sentence of a finding, in the Findings and in the Impression
_ADDED = {
    Change.NEW: (", new since the prior film", ", new"),
    Change.LARGER: (", larger than on the prior film", ", larger than before"),
    Change.SMALLER: (", smaller than on the prior film", ", smaller than before"),
    Change.UNCHANGED: (", unchanged from the prior film", ", unchanged"),
}
_GONE = {  # what has resolved, by the finding's name
    "opacity": ("airspace opacity", "opacity"),
    "nodule": ("nodule or mass", "nodule or mass"),
    "effusion": ("pleural effusion", "pleural effusion"),
}


def with_change(sentence: str, change: Change, section: str) -> str:
    """The sentence of a finding that is there, and how it has changed, before what it may represent. section: "findings" or "impression"."""
    stem, comma, rest = sentence.removesuffix(".").partition(",")
    return f"{stem}{_ADDED[change][section == 'impression']}{comma}{rest}."


def resolved(name: str, side: str, section: str) -> str:
    """The sentence of a finding that only the prior film shows. name: "opacity", "nodule" or "effusion". side: where it was, "" where that is not
    known."""
    noun = _GONE[name][section == "impression"]
    if section == "findings":
        where = "" if side == "bilateral" else f"{side} "
        return f"The {where}{noun} of the prior film has resolved.".replace("  ", " ")
    lung = " lung" if side in ("right", "left") and name != "effusion" else ""
    where = "" if (name, side) == ("effusion", "bilateral") else f"{side}{lung}"
    told = f"{where} {noun}".strip()
    return f"{told[0].upper()}{told[1:]}, resolved."


def changes(text: str) -> list[tuple[str, Change]]:
    """CheXpert's label of every finding of whose change `text` speaks, and the change, in order. Labels are those of the label reader; a sentence
    with more than one finding gives each of them the same change."""
    found: list[tuple[str, Change]] = []
    for start, end in sentences(text):
        sentence = text[start:end]
        change = next((change for change, pattern in _PATTERNS.items() if pattern.search(sentence)), None)
        if change is not None:
            labels = [m.label for m in read_findings(sentence) if m.label != NO_FINDING]
            found += [(label, change) for label in dict.fromkeys(labels)]
    return found
