"""Reporter: films in, draft out. The one door for the screen, the command line and batch work."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from emrrg_core import checkpoint as checkpoints
from emrrg_core.config import MOST_FILMS, DecodeConfig
from emrrg_core.decode import Writing
from emrrg_core.decode import stream as write_stream
from emrrg_core.errors import EmrrgError, FilmError
from emrrg_core.films import Film, model_input, read_film
from emrrg_core.language import LanguageModel
from emrrg_core.model import Emrrg
from emrrg_core.report import Draft, FilmRecord, sections

DEFAULT_CHECKPOINT = Path(__file__).resolve().parent.parent / "assets" / "checkpoints" / "small"


class Reporter:
    """Drafts reports with one loaded checkpoint. Keeps nothing of a film or a draft; may be shared by many readers."""

    def __init__(self, model: Emrrg, *, names: dict[str, str], cautions: Sequence[str] = ()) -> None:
        self._model, self.names, self._cautions = model, names, tuple(cautions)

    @classmethod
    def load(
        cls,
        checkpoint: Path | str | None = None,
        *,
        language_model: str | Path | None = None,
        device: str = "cpu",
        download: bool = True,
    ) -> Self:
        """Load a checkpoint (default: the one that comes with EMRRG) and its language model.

        Raises CheckpointError or LanguageModelError with what to do.
        """
        directory = Path(checkpoint or DEFAULT_CHECKPOINT)
        model, language = checkpoints.load(directory, language_model=language_model, device=device, download=download)
        names = {
            "checkpoint": directory.absolute().name,
            "checkpoint_sha256": checkpoints.fingerprint(directory),
            "language_model": language.name,
            "language_model_sha256": language.sha256,
        }
        return cls(model, names=names, cautions=tuple(_cautions(checkpoints.read_config(directory), language)))

    def read(self, path: Path | str, *, name: str | None = None) -> Film:
        """Read a film. Raises FilmError with the reason, in words for a radiologist, when it is not one."""
        return read_film(path, name=name)

    def draft(self, films: Sequence[Film], decoding: DecodeConfig | None = None) -> Draft:
        """Findings and Impression for one to four films of one study. Raises FilmError for none or more than four."""
        draft: Draft | None = None
        for draft in self.stream(films, decoding):  # noqa: B007 — the last one is wanted
            pass
        if draft is None:
            raise EmrrgError("No draft was written.")
        return draft

    def stream(self, films: Sequence[Film], decoding: DecodeConfig | None = None) -> Iterator[Draft]:
        """As `draft`, but yields the draft so far after every token; the last one is whole and carries timings and warnings."""
        decoding = decoding or DecodeConfig()
        if decoding.contrast is None:  # the draft records what was done, not that it was left open
            decoding = replace(decoding, contrast=self._model.config.contrast)
        if not films:
            raise FilmError("Choose a chest film first.")
        if len(films) > MOST_FILMS:
            raise FilmError(
                f"A study may have at most {MOST_FILMS} films here; {len(films)} were given. Leave some out."
            )
        records = tuple(_record(film) for film in films)
        begun = time.perf_counter()
        size = self._model.config.vision.image_size
        images = torch.from_numpy(np.stack([model_input(film, size) for film in films])).unsqueeze(0)
        with torch.inference_mode():
            visual = self._model.encode(images.to(self._model.llama_proj.weight.device))
        seen = time.perf_counter()
        writing: Writing | None = None
        for (writing,) in write_stream(self._model, visual, decoding):
            yield self._draft(writing, records, decoding, partial=True)
        if writing is not None:
            now = time.perf_counter()
            timings = {"encode": seen - begun, "write": now - seen, "total": now - begun}
            yield self._draft(writing, records, decoding, partial=False, timings=timings)

    def _draft(
        self,
        writing: Writing,
        films: tuple[FilmRecord, ...],
        decoding: DecodeConfig,
        *,
        partial: bool,
        timings: dict[str, float] | None = None,
    ) -> Draft:
        findings, impression, sentences = sections(writing, partial=partial)
        return Draft(
            findings=findings,
            impression=impression,
            sentences=sentences,
            tokens=writing.tokens,
            layers=tuple(self._model.hybrid.indices()),
            grid=self._model.config.vision.grid,
            films=films,
            warnings=() if partial else (*self._cautions, *_warnings(writing, findings, impression, films, decoding)),
            timings=timings or {},
            model=self.names,
            decoding=decoding.to_dict(),
            finished=writing.finished,
            closed=writing.closed,
        )


def _cautions(config: dict[str, Any], language: LanguageModel) -> Iterator[str]:
    """What every draft of this reporter must say: here, that the weights were trained beside another language model."""
    trained = config.get("language_model", {})
    if trained.get("sha256") not in (None, language.sha256):
        yield (
            f"This checkpoint was trained beside other weights ({trained.get('name', 'unnamed')}, {trained['sha256'][:12]}…) than the "
            f"language model in use ({language.name}, {language.sha256[:12]}…); its drafts may be worse than measured."
        )


def _record(film: Film) -> FilmRecord:
    height, width = film.pixels.shape
    return FilmRecord(film.name, film.format, film.sha256, height, width, film.spacing, film.view, tuple(film.steps))


def _warnings(
    writing: Writing, findings: str, impression: str, films: tuple[FilmRecord, ...], decoding: DecodeConfig
) -> Iterator[str]:
    if not writing.finished:
        yield f"The draft did not end by itself and was cut after {decoding.max_new_tokens} tokens."
    if writing.closed:
        names = " and ".join(section.capitalize() for section in writing.closed)
        yield f"The model began to repeat itself: {names} ended before the repeated sentence."
    if not findings:
        yield "The draft has no Findings."
    if not impression:
        yield "The draft has no Impression."
    if writing.tokens and not any(any(token.gates) for token in writing.tokens):
        yield "Every gate stayed shut: this draft did not look at the film through the hybrid layers, and has no heat maps."
    if len(films) > 1:
        yield "The views were averaged before writing, so one map serves all films of this study."
    for film in films:
        if film.view == "LATERAL":
            yield f"{film.name} is a lateral view; this checkpoint was trained on frontal films."
