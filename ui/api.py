"""Endpoints for programs: named, typed, each the same work as the screen's. docs/api.md shows them all from gradio_client.

A call brings all that it needs, and the server keeps nothing of it: uploads are deleted once they are read, a file that was made
once it was fetched, and what Gradio remembers of a call as soon as the work is done. A draft that is to be asked more of carries
behind its JSON what the answers need, under the key "kept".
"""

import base64
import io
import json
import re
import secrets
import typing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import gradio as gr
from PIL import Image
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui import about, draft_panels, exports
from ui.gradio_internals import add_endpoint, forget_call, served_file, upload_folder
from ui.session_state import MOST_FILMS, READERS, Held, SessionState, core

if TYPE_CHECKING:
    from emrrg_core import Draft, Film, Reporter

# Screens and programs wait in one line; the reporter writes the drafts of those who have their turn side by side.
IN_LINE: dict[str, Any] = {"concurrency_limit": READERS, "concurrency_id": "model"}
MOST_TOKENS = 512  # of a draft that a program may ask for: others wait

Rule = Literal["modality", "body-part", "colour", "looks"]  # docs/refusals.md
Format = Literal["text", "pdf", "docx", "json", "fhir-r5", "fhir-r4", "sr", "findings-sr", "dicom-pdf", "capture"]
_MADE = re.compile(r"made-[0-9a-f]{32}")


class Endpoints:
    """The work behind each endpoint; the names are those of docs/api.md. reporter may still be loading: who needs it waits."""

    def __init__(self, reporter: "Future[Reporter]") -> None:
        self._reporter = reporter

    def draft(
        self,
        films: list[gr.FileData],
        beams: int = 1,
        max_new_tokens: int = 160,
        length_penalty: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        anyway: list[Rule] | None = None,
        views: Literal["average", "stitch"] | None = None,
        laterals: bool | None = None,
        prior: list[gr.FileData] | None = None,
        sections: Literal["joint", "separate"] | None = None,
    ) -> dict[str, Any]:
        """Draft a report on the one to four films of one study. views, laterals, sections: None where the checkpoint's settings say. prior:
        films of an earlier study, with which it is compared."""
        asked = {
            "beams": beams,
            "max_new_tokens": max_new_tokens,
            "length_penalty": length_penalty,
            "repetition_penalty": repetition_penalty,
            "seed": seed,
            "sections": sections,
        }
        decoding = core().DecodeConfig.from_dict(asked)
        if decoding.max_new_tokens > MOST_TOKENS:
            raise core().ConfigError(f"max_new_tokens may be at most {MOST_TOKENS} here, not {max_new_tokens}.")
        read = [held.film for held in _films(films, anyway or ())]
        before = [held.film for held in _films(prior or [], anyway or ())]
        model = self._reporter.result()
        study = model.study(views, laterals)
        for number, film in enumerate(read):
            with _called(number + 1):
                read[number] = model.check(film, anyway=anyway or ())
        before = [model.check(film, anyway=anyway or ()) for film in before]
        made = model.draft(read, decoding, study, prior=before)
        return made.to_dict() | {"kept": _kept(made)}

    def why(self, films: list[gr.FileData], draft: dict[str, Any], sentence: int) -> dict[str, Any] | None:
        """What a sentence of the draft loses when the place its map highlights is masked, beside random places; None where it has no map."""
        asked = _draft_of(draft)
        _sentence_of(asked, sentence)
        found = self._reporter.result().why([held.film for held in _films(films)], asked, sentence)
        return found.to_dict() if found else None

    def looking(self, films: list[gr.FileData], draft: dict[str, Any]) -> dict[str, Any]:
        """Whether the draft depends on its films: what it loses under a blank, a noise and another film."""
        found = self._reporter.result().looking([held.film for held in _films(films)], _draft_of(draft))
        return found.to_dict()

    def impression(self, films: list[gr.FileData], draft: dict[str, Any], findings: str) -> dict[str, Any]:
        """The Impression that the model writes when the findings are those of a text, and the labels of the text that it does not know."""
        asked, text = _draft_of(draft), _text(findings, "findings")
        found = self._reporter.result().impression([held.film for held in _films(films)], asked, text)
        return {"schema": "emrrg.impression/1", "impression": found.text, "unknown": list(found.unknown)}

    def heat_map(self, film: gr.FileData, draft: dict[str, Any], sentence: int, opacity: float = 0.5) -> gr.FileData:
        """The film with the map of one sentence of the draft laid over it, on the film's own pixels: a PNG file."""
        asked = _draft_of(draft)
        said = _sentence_of(asked, sentence)
        if not (isinstance(opacity, int | float) and 0 <= opacity <= 1):
            raise core().ConfigError(f"opacity must be from 0 to 1, not {opacity!r}.")
        (held,) = _films([film])
        number = _number(asked, held.film)
        heat = core().heat_map(asked, number, said)
        if heat is None:
            raise core().EmrrgError(f"Sentence {sentence}: {core().no_map(asked, said, number)}")
        out = io.BytesIO()
        Image.fromarray(core().overlay(held.film.pixels, heat, float(opacity))).save(out, "PNG")
        return _file("emrrg-map.png", out.getvalue())

    def label(self, text: str) -> dict[str, Any]:
        """CheXpert's 14 labels as a report's text states them, and where."""
        return core().read_report(_text(text, "text"))

    def check(self, findings: str, impression: str = "", has_prior: bool = False) -> dict[str, Any]:
        """Where a report contradicts itself, and where it speaks of an earlier film, unless there was one (has_prior)."""
        both = _text(findings, "findings"), _text(impression, "impression")
        found = {
            "labels": core().findings_table(*both),
            "contradictions": core().contradictions(*both),
            "flags": core().flags(*both, has_prior=bool(has_prior)),
        }
        plain = {name: [asdict(row) for row in rows] for name, rows in found.items()}
        return {"schema": "emrrg.check/1", **json.loads(json.dumps(plain))}

    def export(
        self,
        format: Format,
        draft: dict[str, Any] | None = None,
        report: dict[str, Any] | None = None,
        films: list[gr.FileData] | None = None,
        sentence: int | None = None,
        reader: str = "",
        organization: str = "",
    ) -> gr.FileData:
        """A draft, or the report that a reader made of it (emrrg.report/1), as a file."""
        state = SessionState()
        if draft is not None:
            state.draft = _draft_of(draft)
            state.report = core().Report.of(state.draft)
        if report is not None:
            state.report = core().Report.from_dict(report)
            known = len(state.draft.sentences) if state.draft else 0
            if state.draft and any(
                line.drafted is not None and not 0 <= line.drafted < known for line in state.report.lines
            ):
                raise core().EmrrgError("This report was made of another draft: give the two that belong together.")
        if format not in typing.get_args(Format):
            raise core().ConfigError(
                f"There is no format {format!r}: choose one of {', '.join(typing.get_args(Format))}."
            )
        if state.draft is not None:
            state.held = tuple(_films(films or []))
            for held in state.held:
                _number(state.draft, held.film)
            if sentence is not None:
                _sentence_of(state.draft, sentence)
                state.picked = draft_panels.picked(state.draft, [sentence, None])
        signer = exports.reader_of(_text(reader, "reader"), _text(organization, "organization"))
        download = json.loads(exports.make(format, state, reader=signer))
        return _file(download["name"], base64.b64decode(download["body"]))

    def about(self) -> dict[str, Any]:
        """What runs here: version, checkpoint and language model with their hashes, and what it may be used for."""
        return {
            "schema": "emrrg.about/1",
            "version": core().version(),
            "model": self._reporter.result().names,
            "notice": core().DISCLAIMER,
            **about.facts(),
        }


def endpoints(demo: gr.Blocks, reporter: "Future[Reporter]") -> None:
    """Add the endpoints to `demo`, which is open. reporter may still be loading: a call that needs the model waits for it."""
    work = Endpoints(reporter)
    alone: tuple[Callable[..., Any], ...] = (work.draft, work.impression, work.why, work.looking)
    beside: tuple[Callable[..., Any], ...] = (work.heat_map, work.label, work.check, work.export, work.about)
    for one in alone:
        _add(demo, one, **IN_LINE)
    for one in beside:
        _add(demo, one)


def _add(demo: gr.Blocks, work: Callable[..., Any], **queue: Any) -> None:
    """One endpoint, with what all of them share: errors in words, and nothing left behind."""

    def call(request: gr.Request, *values: Any) -> Any:
        try:
            return work(*values)
        except core().EmrrgError as error:
            raise gr.Error(_advice(error), print_exception=False) from None
        except Exception as error:  # a bug: it shows as one on the server's console
            raise gr.Error("The call failed; the server's console says more.") from error
        finally:
            _delete(values)
            forget_call(demo, request.session_hash)

    add_endpoint(demo, work, call, **queue)


def _advice(error: Exception) -> str:
    """The words of the screen; where it has a button to read a film all the same, what a program gives instead."""
    if getattr(error, "overridable", False):
        return f'{error} If you know better, call again with anyway=["{error.rule}"].'  # type: ignore[attr-defined]
    return str(error)


# ------------------------------------------------------------------------------------------------------- what a call brings


def _films(files: Any, anyway: Sequence[str] | None = None) -> list[Held]:
    """The films under neutral names. anyway: rules to override; None where the films were drafted from, and so let in already."""
    if not isinstance(files, list):
        raise core().FilmError("Give the films as a list of files.")
    if len(files) > MOST_FILMS:
        raise core().FilmError(
            f"A study may have at most {MOST_FILMS} films here; {len(files)} were given. Leave some out."
        )
    rules = typing.get_args(Rule)
    if anyway is not None and (not isinstance(anyway, list | tuple) or set(anyway) - set(rules)):
        raise core().ConfigError(f"anyway is a list of rules, of {', '.join(rules)}; {anyway!r} was given.")
    found: list[Held] = []
    for number, path in enumerate([_path(file) for file in files], 1):
        with _called(number):
            film = core().read_film(path, name=f"Film {number}", anyway=rules if anyway is None else anyway)
        found.append(Held(film, path.read_bytes() if film.format == "DICOM" else None))
    return found


@contextmanager
def _called(number: int) -> Iterator[None]:
    """A refusal says which film it means: by its place, never by its name."""
    try:
        yield
    except core().FilmError as error:
        raise core().FilmError(f"Film {number}: {error}", rule=error.rule, overridable=error.overridable) from error


def _path(file: Any) -> Path:
    """Where an uploaded file lies. Raises FilmError for a path of the server's that no upload has."""
    folder = upload_folder().resolve()
    if isinstance(file, dict) and isinstance(file.get("path"), str):
        path = Path(file["path"]).resolve()
        if folder in path.parents:
            return path
    raise core().FilmError("Give each film as an uploaded file: handle_file(PATH) of gradio_client does that.")


def _kept(draft: "Draft") -> str:
    """The whole draft, tokens and attention among it, as one text."""
    record, numbers = draft.dump()
    return json.dumps([record, base64.b64encode(numbers).decode()])


def _draft_of(given: Any) -> "Draft":
    kept = given.get("kept") if isinstance(given, dict) else None
    if not isinstance(kept, str):
        raise core().EmrrgError("Give the draft as /draft returned it, with what stands under “kept”.")
    try:
        record, numbers = json.loads(kept)
        behind = base64.b64decode(numbers, validate=True)
    except (ValueError, TypeError) as error:
        raise core().EmrrgError("What stands under “kept” of this draft is damaged: draft again.") from error
    return core().Draft.load(record, behind)


def _sentence_of(draft: "Draft", sentence: Any) -> Any:
    if type(sentence) is not int or not 0 <= sentence < len(draft.sentences):
        raise core().EmrrgError(
            f"The draft has {len(draft.sentences)} sentences, counted from 0: there is no sentence {sentence!r}."
        )
    return draft.sentences[sentence]


def _number(draft: "Draft", film: "Film") -> int:
    """Which of the draft's films this is, by its pixels."""
    for number, record in enumerate(draft.films):
        if record.sha256 == film.sha256 and (record.height, record.width) == film.pixels.shape:
            return number
    raise core().FilmError("These are not the films that this draft was written about: choose those, or draft again.")


def _text(given: Any, name: str) -> str:
    if not isinstance(given, str):
        raise core().ConfigError(f"{name} must be text, not {type(given).__name__}.")
    return given


# ---------------------------------------------------------------------------------------------------- what is left: nothing


def _file(name: str, content: bytes) -> Any:
    """A file for the caller alone: nobody can guess where it lies, and `Once` deletes it."""
    folder = upload_folder() / f"made-{secrets.token_hex(16)}"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    return gr.FileData(path=str(folder / name), orig_name=name)


def _given(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        yield from value if isinstance(value, list) else [value]


def _delete(values: Sequence[Any]) -> None:
    """The uploads of a call, each with the folder that Gradio made for it."""
    for file in _given(values):
        with suppress(OSError, core().FilmError):
            path = _path(file)
            path.unlink()
            path.parent.rmdir()


class Once:
    """ASGI middleware: a file that an endpoint made is deleted once it was sent. One that nobody fetches goes with Gradio's cache."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = served_file(scope)
        if path is None:
            await self.app(scope, receive, send)
            return
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        await self.app(scope, receive, watched)
        if status == 200 and _MADE.fullmatch(path.parent.name) and path.parent.parent == upload_folder().resolve():
            with suppress(OSError):
                path.unlink()
                path.parent.rmdir()
