"""Guesses at what a draft says next, for drafting a whole sentence, or a whole draft, in one pass (emrrg_core.model.generation).

Reports are formulaic. The `Phrasebook` holds the sentences that a checkpoint has been seen to write about each finding, by side, zone and severity;
with what was read in a film it guesses the draft. A guess costs time where it is wrong, and never changes what is written.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from transformers import PreTrainedTokenizerBase

from emrrg_core.errors import CheckpointError
from emrrg_core.model.finding_tokens import ABNORMAL, NAMES, SIDES, Finding, Presence
from emrrg_core.text.changes import Change, resolved, with_change
from emrrg_core.text.labeler import read_findings, sentences
from emrrg_core.text.sections import FINDINGS, IMPRESSION, split

FILE, SCHEMA = "phrases.json", "emrrg.phrases/1"
WORDINGS = 3  # of a key that are kept, the most frequent
BOTH = SIDES[3]
_GONE = "resolved"


class Proposer(Protocol):
    """Guesses the next tokens of a draft."""

    def propose(self, findings: Sequence[Finding], ids: Sequence[int], text: str) -> list[int]:
        """The tokens that may follow; none where there is no guess. findings: read in the film. ids, text: of what is written so far."""
        ...


def keys(findings: Sequence[Finding]) -> dict[str, list[str]]:
    """What each part of a draft speaks of, in its order, by section: every present finding a sentence, with its change since the prior film behind a
    bar, every one that has resolved, and at last what is denied, or the film as a whole."""
    there = [f for f in findings if f.presence is Presence.PRESENT and f.name != ABNORMAL]
    absent = "+".join(f.name for f in findings if f.presence is Presence.ABSENT and f.name != ABNORMAL)
    whole = next((f.presence.value for f in findings if f.name == ABNORMAL), "")
    stated = ["/".join((f.name, f.side, f.zone, f.severity, "pneumonia"[: 9 * f.pneumonia])) for f in there]
    stated = [f"{key}|{f.change}" if f.change else key for key, f in zip(stated, there, strict=True)]
    gone = [f"{_GONE}/{f.name}/{f.earlier.side}" for f in findings if f.change is Change.RESOLVED and f.earlier]
    alone = "" if there else whole
    return {
        "findings": [*stated, *gone, f"without {absent}/{alone}"],
        "impression": [*stated, *gone] or [f"whole/{alone}"],
    }


@dataclass(frozen=True)
class Phrasebook:
    """wordings: "section: key" of `keys` -> the texts that were written there, the most frequent first."""

    wordings: dict[str, tuple[str, ...]]
    tokenizer: PreTrainedTokenizerBase

    def propose(self, findings: Sequence[Finding], ids: Sequence[int], text: str) -> list[int]:
        """As `Proposer`: to the end of the draft, or as far as the book knows what may stand there."""
        guess, ends = self._rest(findings, text)
        if not guess and not ends:
            return []
        whole = self.tokenizer(text + guess, add_special_tokens=False).input_ids
        if whole[: len(ids)] != list(ids):  # the model cut its words otherwise
            return []
        return whole[len(ids) :] + ([self.tokenizer.eos_token_id] if ends else [])

    def _rest(self, findings: Sequence[Finding], text: str) -> tuple[str, bool]:
        """What may be missing of the draft, and whether that is all. By the number of sentences that a section has, so that one which goes otherwise
        does not end the guessing."""
        if FINDINGS.startswith(text) and text != FINDINGS:
            more, ends = self._rest(findings, FINDINGS)
            return FINDINGS[len(text) :] + more, ends
        if not text.startswith(FINDINGS):
            return "", False
        body, heading, concluded = text[len(FINDINGS) :].partition(IMPRESSION)
        if heading:
            return self._body("impression", findings, concluded)
        if "\n" in body:
            begun = body[body.index("\n") :]
            if not IMPRESSION.startswith(begun):
                return "", False
            more, ends = self._body("impression", findings, "")
            return IMPRESSION[len(begun) :] + more, ends
        return self._after(*self._body("findings", findings, body), findings)

    def _after(self, guess: str, known: bool, findings: Sequence[Finding]) -> tuple[str, bool]:
        """Findings that are guessed, and the Impression after them where they are known to their end."""
        if not known:
            return guess, False
        more, ends = self._body("impression", findings, "")
        return guess + IMPRESSION + more, ends

    def _body(self, section: str, findings: Sequence[Finding], body: str) -> tuple[str, bool]:
        """What may be missing of a section's body, and whether that is all of it."""
        ends = _ends(body)
        begun = body[ends[-1] if ends else 0 :].lstrip(" ")  # of the sentence under way
        mine = keys(findings)[section]
        done = min(len(ends), len(mine) - 1)  # what is denied is told in several sentences
        guess, empty = "", not body or body.endswith(" ")
        for key in mine[done:]:
            skip, ends = len(ends) - done, ends[:done]
            wordings = [_after_sentences(wording, skip) for wording in self._known(section, key)]
            if begun:
                found = next((w for w in wordings if w.startswith(begun)), None) or self._any(section, begun)
                if found is None:
                    return "", False
                guess, begun = found[len(begun) :], ""
            elif not wordings:
                return guess, False
            elif wordings[0]:
                guess += wordings[0] if empty else f" {wordings[0]}"
            empty = False
        return guess, True

    def _known(self, section: str, key: str) -> list[str]:
        """The wordings of a key, then those of the same finding at other places, moved to its own. How a finding has changed is added in the words
        that drafts are taught."""
        if key.startswith(f"{_GONE}/"):
            _, name, side = key.split("/")
            return [resolved(name, side, section)]
        key, _, change = key.partition("|")
        if change:
            return [with_change(wording, Change(change), section) for wording in self._known(section, key)]
        found = list(self.wordings.get(f"{section}: {key}", ()))
        name, *place = key.split("/")
        if len(place) == 4:
            for other in self._alike(section, name):
                _, *there = other.split("/")
                if (
                    there[2:] == place[2:]
                    and bool(there[1]) == bool(place[1])
                    and (there[0] == BOTH) == (place[0] == BOTH)
                ):
                    moved = (_moved(wording, there, place) for wording in self.wordings[f"{section}: {other}"])
                    found += [wording for wording in moved if wording and wording not in found]
        return found

    def _alike(self, section: str, name: str) -> Iterable[str]:
        start = f"{section}: {name}/"
        return (key[len(section) + 2 :] for key in self.wordings if key.startswith(start))

    def _any(self, section: str, begun: str) -> str | None:
        """A sentence of a section that begins so."""
        known = (w for key, found in self.wordings.items() if key.startswith(section) for w in found)
        return next((w[: _first(w)] for w in known if len(begun) > 3 and w.startswith(begun)), None)

    # -- how it is made ---------------------------------------------------------------------------------------------------

    @classmethod
    def learn(cls, drafts: Iterable[tuple[Sequence[Finding], str]], tokenizer: PreTrainedTokenizerBase) -> Self:
        """From drafts as a checkpoint writes them, each with the findings that it was told. A section that does not state all of them, a sentence
        each, teaches nothing."""
        counts: dict[str, Counter[str]] = {}
        for findings, text in drafts:
            for section, mine in keys(findings).items():
                body = text[slice(*split(text)[section])]
                said = [body[slice(*span)] for span in sentences(body)]
                stated = len(mine) - (section == "findings")
                if len(said) < stated or (section == "impression" and len(said) != stated):
                    continue
                parts = said[:stated] + ([" ".join(said[stated:])] if section == "findings" else [])
                if not all(_states(part, key.split("/")[0]) for key, part in zip(mine[:stated], parts, strict=False)):
                    continue
                for key, part in zip(mine, parts, strict=True):
                    counts.setdefault(f"{section}: {key}", Counter())[part] += 1
        return cls(
            {key: tuple(w for w, _ in found.most_common(WORDINGS)) for key, found in sorted(counts.items())}, tokenizer
        )

    def save(self, directory: Path) -> None:
        """Beside a checkpoint's weights."""
        table = {"schema": SCHEMA, "wordings": self.wordings}
        (directory / FILE).write_text(json.dumps(table, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path, tokenizer: PreTrainedTokenizerBase) -> Self | None:
        """That of a checkpoint; None where it has none: drafts are then written token by token. Raises CheckpointError where it is damaged."""
        path = directory / FILE
        if not path.is_file():
            return None
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            if table["schema"] != SCHEMA:
                raise ValueError(f"it is {table['schema']}, not {SCHEMA}")
            wordings = {str(key): tuple(map(str, texts)) for key, texts in table["wordings"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}): make it again with train.phrases, or remove it."
            ) from error
        return cls(wordings, tokenizer)


def _states(sentence: str, name: str) -> bool:
    """Whether a sentence is about a finding, a name of NAMES; true of a whole film's."""
    return name not in NAMES or name == ABNORMAL or NAMES[name] in {m.label for m in read_findings(sentence)}


def _moved(wording: str, there: Sequence[str], here: Sequence[str]) -> str | None:
    """A wording of a finding at one place, at another: side and zone of keys. None where it does not name its place."""
    old, new = (
        " ".join(word for word in ("" if side == BOTH else side, zone) if word) for side, zone, *_ in (there, here)
    )
    if old == new:
        return wording
    for before, after in ((old, new), (old.capitalize(), new.capitalize())):
        if before and f"{before} " in wording:
            return wording.replace(f"{before} ", f"{after} ")
    return None


def _ends(text: str) -> list[int]:
    """Where the sentences of a text end; not of one that is under way."""
    return [end for _, end in sentences(text) if text[end - 1] in ".!?"]


def _after_sentences(text: str, count: int) -> str:
    """A text without its first sentences."""
    ends = [0, *_ends(text)]
    return text[ends[min(count, len(ends) - 1)] :].lstrip(" ")


def _first(text: str) -> int:
    """Where the first sentence of a text ends."""
    return next(iter(_ends(text)), len(text))
