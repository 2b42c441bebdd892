"""How a report is put to the language model: two sections under their headings, and no sentence twice in one of them."""

import re
from collections.abc import Collection
from dataclasses import dataclass

from emrrg_core.text.labeler import sentences

FINDINGS, IMPRESSION = "Findings: ", "\nImpression: "
SECTIONS = ("findings", "impression")
_NUMBER = re.compile(r"^\(?\d{1,2}[.)](?:\s+|$)")  # of a list
_HEADING = re.compile(r"(?:^|\s)Impression:\s*")


def compose(findings: str, impression: str) -> str:
    """The text that the language model learns to write; an empty section is left out. `split` takes it apart again."""
    parts = [FINDINGS + findings.strip()] if findings.strip() else []
    parts += [IMPRESSION + impression.strip()] if impression.strip() else []
    return "".join(parts).strip()


def split(text: str, *, partial: bool = False) -> dict[str, tuple[int, int]]:
    """Spans of the two sections' bodies in a text as `compose` makes it: {"findings": (start, end), "impression": (start, end)}.

    Text without any heading is findings. partial: the text is still being written, so an unfinished heading at its end is left out.
    """
    end = _unbroken(text) if partial else len(text)
    body = text[:end]
    first = re.match(r"\s*Findings:\s*", body)
    second = _HEADING.search(body)
    findings = (first.end() if first else 0, second.start() if second else end)
    impression = (second.end(), end) if second else (end, end)
    return {"findings": _trim(text, *findings), "impression": _trim(text, *impression)}


def has_impression(text: str) -> bool:
    """Whether the heading of the Impression stands in a text."""
    return _HEADING.search(text) is not None


def _unbroken(text: str) -> int:
    """Where a text that is still being written ends without an unfinished heading: its last word may become one."""
    if word := re.search(r"\S+$", text):
        may_be = [IMPRESSION.strip()] if text[: word.start()].strip() else [FINDINGS.strip(), IMPRESSION.strip()]
        if any(heading.startswith(word.group()) for heading in may_be if heading != word.group()):
            return word.start()
    return len(text)


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, max(start, end)


@dataclass(frozen=True)
class Repeat:
    """A sentence that its section has already."""

    section: str  # "findings" or "impression"
    end: int  # of the sentence before it: where the text would end had it not been written
    start: int  # its own first character


def first_repeat(text: str, *, over: bool, within: Collection[str] = SECTIONS) -> Repeat | None:
    """The first sentence that says again what its section has said, word for word; case, spaces, punctuation and list numbers do not count.

    over: the text is whole. Otherwise its last sentence counts only if it ends there whatever may follow. within: sections that are looked at.
    """
    spans = split(text)
    for section, (begin, end) in spans.items():
        if section not in within:
            continue
        body = text[begin:end]
        closed = over or (section == "findings" and spans["impression"][0] < spans["impression"][1])
        # a word in lower case would go on with a sentence that can go on: "a nodule of 2 cm. in"
        found = sentences(body) if closed else sentences(f"{body} a")[:-1]
        known: set[tuple[str, ...]] = set()
        for number, (start, stop) in enumerate(found):
            words = tuple(re.findall(r"\w+", _NUMBER.sub("", body[start:stop]).casefold()))
            if words and words in known:
                return Repeat(section, begin + found[number - 1][1], begin + start)
            known.add(words)
    return None
