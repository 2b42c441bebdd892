"""Draft: what the model wrote about a study, sentence by sentence, with what stood behind each, and where it came from. It is never changed."""

import dataclasses
import io
import zipfile
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from emrrg_core.errors import EmrrgError
from emrrg_core.model.finding_tokens import NAMES, Earlier, Finding, Presence
from emrrg_core.model.writing import Token, Writing
from emrrg_core.text.changes import Change
from emrrg_core.text.labeler import LABELS, NO_FINDING, read_findings
from emrrg_core.text.labeler import sentences as sentence_spans
from emrrg_core.text.sections import compose as compose
from emrrg_core.text.sections import split as split

SCHEMA = "emrrg.draft/2"
KEPT_SCHEMA = "emrrg.kept-draft/3"  # a draft as `Draft.dump` keeps it
KEPT_JOINED = "emrrg.kept-draft/2"  # as it was kept before: attention on patches and on findings in one array
SECTIONS = ("findings", "impression")
NOT_REVIEWED = "DRAFT, NOT REVIEWED"
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
    overridden: tuple[str, ...] = ()  # rules that refused it, and that the reader overrode (docs/refusals.md)
    read: bool = True  # False: shown, and not given to the model
    place: tuple[float, float, float, float] | None = (
        None  # where it lies on the canvas of stitched films: emrrg_core.films.views
    )
    source_sha256: str | None = (
        None  # of the pixels as read, where the reader cropped or turned it since: no place in it is one in its file
    )


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
    findings: tuple[str, ...] = ()  # names of the read findings that it speaks of, of finding_tokens.NAMES


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
    # what was read of every finding that is assessed, in the order of finding_tokens.NAMES; None: a checkpoint that reads none
    read: tuple[Finding, ...] | None = None
    ratio: float | None = None  # cardiothoracic ratio, by the lung borders that the tower sees
    prior: tuple[FilmRecord, ...] = ()  # earlier films that it was compared with

    @property
    def not_assessed(self) -> tuple[str, ...]:
        """CheXpert's labels that this checkpoint has not learned well enough to state or deny."""
        read = {finding.label for finding in self.read or ()}
        return tuple(label for label in LABELS if label not in read and label not in (NO_FINDING, "Pneumonia"))

    def finding(self, name: str) -> Finding | None:
        """What was read of one finding; None where it is not assessed."""
        return next((finding for finding in self.read or () if finding.name == name), None)

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
                    "findings": [
                        {"name": f.name, "probability": f.probability, "threshold": f.threshold}
                        for f in map(self.finding, sentence.findings)
                        if f is not None
                    ],
                    "map": paths[0] if paths else None,
                    "maps": paths or [],
                }
            )
        return {
            "schema": SCHEMA,
            "notice": DISCLAIMER,
            "films": [dataclasses.asdict(film) for film in self.films],
            "prior": [dataclasses.asdict(film) for film in self.prior],
            "findings": self.findings,
            "impression": self.impression,
            "sentences": rows,
            "tokens": [
                {"text": t.text, "log_prob": t.log_prob, "gates": list(t.gates), "forced": t.forced}
                for t in self.tokens
            ],
            "finished": self.finished,
            "closed": list(self.closed),
            "read": None if self.read is None else [self._read_row(finding) for finding in self.read],
            "not_assessed": list(self.not_assessed),
            "cardiothoracic_ratio": self.ratio,
            "warnings": list(self.warnings),
            "timings": self.timings,
            "model": self.model,
            "decoding": self.decoding,
            "seed": self.decoding["seed"],
        }

    def _read_row(self, finding: Finding) -> dict[str, Any]:
        maps = [np.round(m.astype(float), 5).reshape(self.grid, self.grid).tolist() for m in finding.maps]
        return {**_without_maps(finding), "label": finding.label, "maps": maps}

    def dump(self) -> tuple[dict[str, Any], bytes]:
        """The whole draft for keeping: values for JSON, and the numbers behind the tokens as an npz file. `Draft.load` reads them back.

        Everything comes back exactly but attention and maps, kept as float16: within 0.05 % of each weight above 6e-5, and 3e-8 below.
        """
        record = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "tokens"}
        record |= {name: [dataclasses.asdict(row) for row in record[name]] for name in ("films", "sentences", "prior")}
        record["read"] = None if self.read is None else [_without_maps(finding) for finding in self.read]
        tokens = [
            {n: v for n, v in vars(t).items() if n not in ("attention", "on_findings", "gates", "log_prob")}
            for t in self.tokens
        ]
        numbers = io.BytesIO()
        np.savez(  # attention does not compress
            numbers,
            attention=np.array([t.attention for t in self.tokens], np.float16),  # (tokens, layers, patches)
            on_findings=np.array([t.on_findings for t in self.tokens], np.float16),  # (tokens, layers, findings)
            maps=np.array([f.maps for f in self.read or ()], np.float16),  # (findings, films, patches)
            gates=np.array([t.gates for t in self.tokens], np.float64),  # (tokens, layers)
            log_probs=np.array([t.log_prob for t in self.tokens], np.float64),
        )
        return {"schema": KEPT_SCHEMA, **record, "tokens": tokens}, numbers.getvalue()

    @classmethod
    def load(cls, record: Any, numbers: bytes) -> Self:
        """A draft from what `dump` gave. Raises EmrrgError where that is damaged or of another version."""
        try:
            if record["schema"] not in (KEPT_SCHEMA, KEPT_JOINED):
                raise ValueError(f"its form is {record['schema']}, not {KEPT_SCHEMA}")
            with np.load(io.BytesIO(numbers), allow_pickle=False) as arrays:
                attention = arrays["attention"].astype(np.float32)
                if record["schema"] == KEPT_JOINED:
                    attention, on_findings = np.split(attention, [record["grid"] ** 2], axis=-1)
                else:
                    on_findings = arrays["on_findings"].astype(np.float32)
                gates = map(tuple, arrays["gates"].tolist())
                behind = zip(arrays["log_probs"].tolist(), gates, attention, on_findings, strict=True)
                maps = arrays["maps"].astype(np.float32)
                tokens = tuple(
                    Token(**row, log_prob=log_prob, gates=mine, attention=patches, on_findings=told)
                    for row, (log_prob, mine, patches, told) in zip(record["tokens"], behind, strict=True)
                )
            values = {name: _frozen(value) for name, value in record.items() if name != "schema"}
            films, prior = (
                tuple(FilmRecord(**_frozen_row(row)) for row in rows)
                for rows in (record["films"], record.get("prior", ()))
            )
            found = tuple(Sentence(**_frozen_row(row)) for row in record["sentences"])
            read = None
            if record["read"] is not None:
                read = tuple(_finding(row, mine) for row, mine in zip(record["read"], maps, strict=True))
            return cls(**values | {"tokens": tokens, "films": films, "sentences": found, "read": read, "prior": prior})
        except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise EmrrgError(f"The kept draft cannot be read ({error}): draft the report anew.") from error


def _without_maps(finding: Finding) -> dict[str, Any]:
    row = {f.name: getattr(finding, f.name) for f in dataclasses.fields(finding) if f.name != "maps"}
    return row | {"earlier": None if finding.earlier is None else dataclasses.asdict(finding.earlier)}


def _finding(row: dict[str, Any], maps: np.ndarray) -> Finding:
    """From what `_without_maps` gave; drafts of before a prior film was read have no word of it."""
    earlier = row.get("earlier")
    if earlier is not None:
        change = earlier["change"]
        earlier = Earlier(**earlier | {"presence": Presence(earlier["presence"]), "change": change and Change(change)})
    return Finding(**row | {"presence": Presence(row["presence"]), "maps": tuple(maps), "earlier": earlier})


def _frozen(value: Any) -> Any:
    """Lists of JSON as the tuples that they were."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _frozen_row(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _frozen(value) for name, value in row.items()}


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
                    findings=findings_of(body[start:stop]),
                )
            )
    findings, impression = (text[slice(*spans[name])] for name in ("findings", "impression"))
    return findings, impression, tuple(found)


def findings_of(sentence: str) -> tuple[str, ...]:
    """The findings that a sentence states or denies, names of finding_tokens.NAMES in their order, by the label reader."""
    said = {mention.label for mention in read_findings(sentence)}
    if "Pneumonia" in said:  # what an opacity may be
        said.add("Lung Opacity")
    return tuple(name for name, label in NAMES.items() if label in said)
