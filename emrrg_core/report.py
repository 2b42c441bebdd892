"""Draft: what the model wrote about a study, sentence by sentence, with what stood behind each, and where it came from.

A draft is never changed. What a reader makes of it is another text, kept beside it.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from emrrg_core.decode import Token, Writing
from emrrg_core.findings import sentences as sentence_spans
from emrrg_core.layout import compose as compose
from emrrg_core.layout import split as split

SCHEMA = "emrrg.draft/1"
DISCLAIMER = "Research and teaching only, not a medical device. A draft by a machine, not reviewed by a radiologist."


@dataclass(frozen=True)
class FilmRecord:
    """What a draft remembers of a film: never its pixels, never its header's words about a person."""

    name: str
    format: str
    sha256: str  # of the pixels as read
    height: int
    width: int
    spacing: tuple[float, float] | None  # mm a pixel: row, column
    view: str | None
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Sentence:
    """One sentence of the draft."""

    text: str
    section: str  # "findings" or "impression"
    start: int  # in its section's text
    end: int
    tokens: tuple[int, int]  # draft.tokens[first:last]
    confidence: float  # geometric mean of its tokens' probabilities, 0 to 1
    gates: tuple[float, ...]  # per hybrid layer, mean over its tokens


@dataclass(frozen=True, eq=False)
class Draft:
    """What the model wrote about one to four films."""

    findings: str
    impression: str
    sentences: tuple[Sentence, ...]
    tokens: tuple[Token, ...]
    layers: tuple[int, ...]  # numbers of the hybrid layers, as gates and attention are ordered
    grid: int  # patches along a side
    films: tuple[FilmRecord, ...]
    warnings: tuple[str, ...]
    timings: dict[str, float]  # seconds
    model: dict[str, str]  # names and hashes of checkpoint and language model
    decoding: dict[str, Any]  # settings, the seed among them
    finished: bool  # the text came to its end; False: it was cut at the limit
    closed: tuple[str, ...] = ()  # sections ended for the model because it began to say a sentence again

    def text(self) -> str:
        """As a reader would paste it, with the notice that it is a draft."""
        return as_text(self.findings, self.impression)

    def to_dict(self, maps: dict[int, list[str]] | None = None) -> dict[str, Any]:
        """The documented JSON object (docs/draft.md). maps: paths of heat maps per sentence, one per film."""
        rows = []
        for number, sentence in enumerate(self.sentences):
            paths = (maps or {}).get(number)
            rows.append(
                {
                    "text": sentence.text,
                    "section": sentence.section,
                    "start": sentence.start,
                    "end": sentence.end,
                    "confidence": sentence.confidence,
                    "gates": {str(i): gate for i, gate in zip(self.layers, sentence.gates, strict=True)},
                    "map": paths[0] if paths else None,
                    "maps": paths or [],
                }
            )
        return {
            "schema": SCHEMA,
            "notice": DISCLAIMER,
            "films": [dataclasses.asdict(film) for film in self.films],
            "findings": self.findings,
            "impression": self.impression,
            "sentences": rows,
            "tokens": [
                {"text": t.text, "log_prob": t.log_prob, "gates": list(t.gates), "forced": t.forced}
                for t in self.tokens
            ],
            "finished": self.finished,
            "closed": list(self.closed),
            "warnings": list(self.warnings),
            "timings": self.timings,
            "model": self.model,
            "decoding": self.decoding,
            "seed": self.decoding["seed"],
        }


def as_text(findings: str, impression: str) -> str:
    """The two sections as plain text, with the notice."""
    return f"FINDINGS:\n{findings.strip()}\n\nIMPRESSION:\n{impression.strip()}\n\n{DISCLAIMER}\n"


def sections(writing: Writing, *, partial: bool = False) -> tuple[str, str, tuple[Sentence, ...]]:
    """Findings, impression and their sentences, each with the tokens that wrote it."""
    text = writing.text
    ends = np.cumsum([len(token.text) for token in writing.tokens]) if writing.tokens else np.zeros(0, int)
    spans = split(text, partial=partial)
    found: list[Sentence] = []
    for section, (begin, end) in spans.items():
        body = text[begin:end]
        for start, stop in sentence_spans(body):
            first = int(np.searchsorted(ends, begin + start, side="right"))
            last = int(np.searchsorted(ends, begin + stop, side="left")) + 1
            mine = writing.tokens[first:last]
            found.append(
                Sentence(
                    text=body[start:stop],
                    section=section,
                    start=start,
                    end=stop,
                    tokens=(first, min(last, len(writing.tokens))),
                    confidence=float(np.exp(np.mean([t.log_prob for t in mine]))),
                    gates=tuple(float(g) for g in np.mean([t.gates for t in mine], axis=0)),
                )
            )
    findings, impression = (text[slice(*spans[name])] for name in ("findings", "impression"))
    return findings, impression, tuple(found)
