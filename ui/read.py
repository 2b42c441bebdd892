"""Read, the clinician's screen: films in, a draft streams out, every sentence can be asked where the model looked.

A session's films and draft live in `gr.State` on the server and go with the session; none of them is written to the
disk.
"""

import html
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from ui import viewer

if TYPE_CHECKING:
    from emrrg_core import Draft, Film, Reporter

NOTICE = "Research and teaching only, not a medical device."
NO_FILM = "Choose a chest film first: drop one on the left, or try the example."
MOST_FILMS = 4
KEPT = 4 * 3600  # seconds that an open but untouched tab keeps its films
BANDS = (("sure (80 % and more)", 0.8), ("less sure (50 to 80 %)", 0.5), ("unsure (below 50 %)", 0.0))
COLOURS = dict(zip((name for name, _ in BANDS), ("#a7d8c2", "#f3dc8e", "#f2b5a7"), strict=True))

_SHOW_OPACITY = "(value) => { document.documentElement.style.setProperty('--map-opacity', value); }"
_SHOW_FILMS = (
    """() => { if (window.innerWidth < 768) document.getElementById('films').scrollIntoView({behavior: 'smooth'}); }"""
)
_SAVE = """(parcel) => {
    if (!parcel) return;
    const file = JSON.parse(parcel), link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([file.body], {type: file.type}));
    link.download = file.name;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}"""


class Wish:
    """The reader's wish that a draft under way end, shared by the draft and the Stop button; also what a closed tab wishes."""

    def __init__(self) -> None:
        self.stop = False

    def end(self) -> None:
        self.stop = True


def core() -> Any:
    """emrrg_core, imported when first needed, so that the page answers at once.

    Its films and errors come quickly. What drafts brings torch and transformers, seconds of work that the loading thread
    does; who needs it waits for the reporter first, so that no two threads import them in different orders.
    """
    import emrrg_core

    return emrrg_core


def screen(demo: gr.Blocks, reporter: "Future[Reporter]", example: Callable[[], Path | None]) -> None:
    """Put the screen into `demo`, which is open.

    reporter may still be loading; example gives the path of a film to try, or None where there is none.
    """
    films = gr.State((), time_to_live=KEPT)  # tuple of Film; once there is a draft, it grows no more
    draft = gr.State(None, time_to_live=KEPT)  # Draft or None
    wish = gr.State(Wish(), time_to_live=KEPT, delete_callback=Wish.end)  # a new one for every draft

    with gr.Row(elem_id="room"):
        with gr.Column(scale=6, min_width=320):
            drop = gr.File(
                label="Films of one study, one to four files",
                file_count="multiple",
                height=84,
                elem_id="drop",
            )
            with gr.Row():
                try_example = gr.Button("Try the example film", size="sm", min_width=120, elem_id="example")
                new_study = gr.Button("New study", size="sm", min_width=120, elem_id="new")
            notice = gr.HTML("", elem_id="notice")
            with gr.Row(visible=False, elem_id="removers") as removing:
                removers = [
                    gr.Button(f"Remove Film {number}", size="sm", min_width=100, elem_id=f"remove-{number}")
                    for number in range(1, MOST_FILMS + 1)
                ]
            with gr.Column(elem_id="viewer"):  # stays in sight while the draft is read
                figures = gr.HTML(viewer.figures(()), elem_id="films")
                layers = gr.HTML("", elem_id="layers")
                opacity = gr.Slider(0, 1, 0.5, step=0.05, label="Heat map opacity", elem_id="opacity", visible="hidden")
                caption = gr.HTML("", elem_id="caption")
        with gr.Column(scale=5, min_width=320):
            with gr.Row():
                write = gr.Button("Draft report", variant="primary", scale=3, elem_id="write")
                stop = gr.Button("Stop", variant="stop", interactive=False, scale=1, min_width=80, elem_id="stop")
            with gr.Accordion("Options", open=False):
                beams = gr.Slider(
                    1,
                    4,
                    1,
                    step=1,
                    label="Beams",
                    info="1 is quickest; more weigh several wordings against each other.",
                )
            status = gr.HTML(_say("The model is loading…", busy=True), elem_id="status")
            findings = gr.Textbox(
                label="Findings",
                lines=5,
                max_lines=14,
                elem_id="findings",
                placeholder="The draft appears here and can be edited.",
            )
            impression = gr.Textbox(label="Impression", lines=3, max_lines=10, elem_id="impression")
            earlier = gr.Textbox(
                label="Your earlier text",
                info="What you had written or edited before the report was drafted anew.",
                lines=4,
                max_lines=10,
                interactive=False,
                buttons=["copy"],
                visible="hidden",
                elem_id="earlier",
            )
            with gr.Row():
                save_text = gr.Button("Download text", size="sm", min_width=120, elem_id="save-text")
                save_json = gr.Button("Download JSON", size="sm", min_width=120, elem_id="save-json")
            sentences = gr.HighlightedText(
                label="The draft's sentences, coloured by confidence: select one to see where the model looked",
                color_map=COLOURS,
                show_legend=True,
                show_inline_category=False,
                interactive=False,
                visible="hidden",
                elem_id="sentences",
            )
            gates = gr.Plot(label="Gates of the selected sentence", show_label=False, visible=False, elem_id="gates")
            parcel = gr.Textbox(visible="hidden", elem_id="parcel")

    evidence = [layers, caption, opacity, gates]

    def ready() -> Any:
        try:
            reporter.result()
        except core().EmrrgError as error:
            return _say(str(error), bad=True)
        except Exception:
            return _say("The model could not be loaded; the server's console says more.", bad=True)
        return _say("Ready.")

    def add(uploads: "list[str] | None", held: Any, written: Any) -> Any:
        """Read what was dropped, delete it from the disk, keep the films in memory."""
        paths = [Path(upload) for upload in uploads or ()]
        try:
            held, words = receive(paths, held, drafted=written is not None, first=1)
        finally:
            for path in paths:
                path.unlink(missing_ok=True)
                with suppress(
                    OSError
                ):  # the folder is named after the content: an equal film of another reader may lie there
                    path.parent.rmdir()
        return {drop: None, notice: _warn(words), **_show(held, fixed=written is not None)}

    def add_example(held: Any, written: Any) -> Any:
        path = example()
        if path is None:
            return {notice: _warn(["The example film is not installed. Install it with: pip install pydicom-data"])}
        held, words = receive([path], held, drafted=written is not None, first=None)
        return {notice: _warn(words), **_show(held, fixed=written is not None)}

    def remove(number: int, held: Any, written: Any) -> Any:
        """Take one film out of a study that has no draft yet; those behind it move up."""
        if written is None:
            kept = [film for place, film in enumerate(held, start=1) if place != number]
            held = tuple(replace(film, name=f"Film {place}") for place, film in enumerate(kept, start=1))
        return {notice: "", **_show(held, fixed=written is not None)}

    def _show(held: Any, *, fixed: bool) -> dict[Any, Any]:
        return {films: held, figures: viewer.figures(held), **_removers(held, fixed=fixed)}

    def _removers(held: Any, *, fixed: bool) -> dict[Any, Any]:
        """A button for each film, unless they are fixed: a draft speaks of them."""
        shown = {button: gr.Button(visible=number < len(held)) for number, button in enumerate(removers)}
        return {removing: gr.Row(visible=bool(held) and not fixed), **shown}

    def reset() -> Any:
        return {
            draft: None,
            notice: "",
            earlier: gr.Textbox(value="", visible="hidden"),
            **_show((), fixed=False),
            findings: gr.Textbox(value="", interactive=True),
            impression: gr.Textbox(value="", interactive=True),
            parcel: "",
            status: _say("Ready." if reporter.done() else "The model is loading…", busy=not reporter.done()),
            sentences: gr.HighlightedText(value=None, visible="hidden"),
            **_buttons(idle=True),
            **_without_map(),
        }

    def _without_map() -> dict[Any, Any]:
        return {
            layers: "",
            caption: "",
            opacity: gr.Slider(visible="hidden"),
            gates: gr.Plot(value=None, visible=False),
        }

    def _buttons(*, idle: bool) -> dict[Any, Any]:
        return {
            write: gr.Button(interactive=idle),
            stop: gr.Button(interactive=not idle),
            drop: gr.File(value=None, interactive=idle),
            try_example: gr.Button(interactive=idle),
            new_study: gr.Button(interactive=idle),  # stop first: a draft's last words must not reach the next study
        }

    def begin(held: Any, written: Any, found: str, concluded: str, before: str) -> Any:
        """At once, though another reader's draft may be under way: empty the room for the new draft and say so.

        What the reader wrote or edited is never thrown away: it moves to "Your earlier text", the newest above.
        """
        if not held:
            return {status: _say(NO_FILM, bad=True)}
        kept = "\n\n".join(text for text in (own_words(written, found, concluded), before) if text)
        first = "Waiting for the model…" if reporter.done() else "The model is loading; the draft starts after that…"
        return {
            draft: None,
            wish: Wish(),
            notice: "",
            earlier: gr.Textbox(value=kept, visible=True if kept else "hidden"),
            **_removers(held, fixed=True),
            status: _say(first, busy=True),
            findings: gr.Textbox(value="", interactive=False),
            impression: gr.Textbox(value="", interactive=False),
            sentences: gr.HighlightedText(value=None, visible="hidden"),
            **_buttons(idle=False),
            **_without_map(),
        }

    def draft_report(held: Any, wish: Wish, width: float) -> Iterator[Any]:
        if not held:
            yield {status: _say(NO_FILM, bad=True)}
            return
        latest = None
        try:
            while not (wish.stop or reporter.done()):
                wait([reporter], timeout=0.2)
            for latest in () if wish.stop else reporter.result().stream(held, core().DecodeConfig(beams=int(width))):
                if wish.stop:
                    break
                said = _say(f"Drafting… {len(latest.tokens)} tokens", busy=True)
                yield {draft: latest, findings: latest.findings, impression: latest.impression, status: said}
        except core().EmrrgError as error:
            yield {status: _say(str(error), bad=True), **_open(latest, held)}
        except Exception:  # a bug: it shows as one on the server's console, but the screen must not stay locked
            yield {status: _say("The draft failed; the server's console says more.", bad=True), **_open(latest, held)}
            raise
        else:
            yield {status: _stopped(latest) if wish.stop else _finished(latest), **_open(latest, held)}

    def _open(latest: Any, held: Any) -> dict[Any, Any]:
        """No draft is under way any more: what there is may be edited and asked."""
        texts = {} if latest is None else {"findings": latest.findings, "impression": latest.impression}
        return {
            draft: latest,
            findings: gr.Textbox(value=texts.get("findings", ""), interactive=True),
            impression: gr.Textbox(value=texts.get("impression", ""), interactive=True),
            **_sentences(latest),
            **_removers(held, fixed=latest is not None),
            **_buttons(idle=True),
        }

    def _sentences(latest: Any) -> dict[Any, Any]:
        if latest is None or not latest.sentences:
            return {}
        return {sentences: gr.HighlightedText(value=[(text, band) for text, band, _ in marked(latest)], visible=True)}

    def look(latest: Any, event: gr.SelectData) -> Any:
        """A sentence was selected: its map over every film of the draft, its gates beside them."""
        rows = marked(latest) if latest is not None else []
        number = rows[event.index][2] if event.index < len(rows) else None
        if number is None:  # a heading or the space between two sentences
            return {caption: gr.skip()}
        sentence = latest.sentences[number]
        maps = [core().heat_map(latest, film, sentence.tokens) for film in range(len(latest.films))]
        return {
            sentences: [(text, band) for text, band, _ in marked(latest, number)],
            layers: viewer.layers(maps, core().overlay),
            caption: _caption(sentence, blind=maps[0] is None),
            opacity: gr.Slider(visible=True),
            gates: gr.Plot(value=core().gate_figure(latest, number), visible=True),
        }

    def as_text(found: str, concluded: str) -> Any:
        if not (found.strip() or concluded.strip()):
            raise gr.Error(
                "There is no report yet: press Draft report, or write one.",
                title="Nothing to download",
                print_exception=False,
            )
        wait([reporter])
        return pack("emrrg-report.txt", "text/plain;charset=utf-8", core().as_text(found, concluded))

    def as_json(latest: Any, found: str, concluded: str) -> Any:
        if latest is None:
            raise gr.Error(
                "There is no draft yet: press Draft report first.", title="Nothing to download", print_exception=False
            )
        whole = latest.to_dict() | {"edited": {"findings": found, "impression": concluded}}
        return pack("emrrg-report.json", "application/json", json.dumps(whole, ensure_ascii=False, indent=1))

    hidden: dict[str, Any] = {"api_visibility": "private"}
    demo.load(ready, None, status, show_progress="hidden", **hidden)
    study = [films, figures, notice, removing, *removers]
    adding = {"outputs": [drop, *study], "show_progress_on": figures, **hidden}
    drop.upload(add, [drop, films, draft], **adding)
    try_example.click(add_example, [films, draft], **adding)
    for number, button in enumerate(removers, start=1):
        button.click(partial(remove, number), [films, draft], study, show_progress="hidden", **hidden)
    locked = [findings, impression, sentences, write, stop, drop, try_example, new_study, removing, *removers]
    write.click(
        begin,
        [films, draft, findings, impression, earlier],
        [draft, wish, notice, status, earlier, *locked, *evidence],
        show_progress="hidden",
        **hidden,
    ).then(
        draft_report,
        [films, wish, beams],
        [draft, status, *locked],
        show_progress="hidden",
        concurrency_limit=1,
        **hidden,
    )
    stop.click(Wish.end, wish, None, show_progress="hidden", **hidden)
    new_study.click(
        reset,
        None,
        [films, draft, notice, figures, earlier, parcel, status, *locked, *evidence],
        show_progress="hidden",
        **hidden,
    )
    sentences.select(look, draft, [sentences, *evidence], show_progress="hidden", **hidden).then(None, js=_SHOW_FILMS)
    opacity.change(None, opacity, js=_SHOW_OPACITY)
    for button, fn, inputs in (
        (save_text, as_text, [findings, impression]),
        (save_json, as_json, [draft, findings, impression]),
    ):
        button.click(fn, inputs, parcel, show_progress="hidden", **hidden).success(None, parcel, js=_SAVE)


def receive(
    paths: list[Path], held: "tuple[Film, ...]", *, drafted: bool, first: int | None
) -> "tuple[tuple[Film, ...], list[str]]":
    """Read files into films beside those held: the films, and a sentence for every file that is not among them.

    Good files are kept though others are refused. Files are called by their place in the drop, "File 2", never by
    their names. first: the number of the first file; None where there is only one, which needs no number.
    """
    if len(held) + len(paths) > MOST_FILMS:
        have = f"{len(held)} here and {len(paths)} more were" if held else f"{len(paths)} were"
        return held, [
            f"A study may have at most {MOST_FILMS} films; {have} given. Leave some out and drop the others again."
        ]
    words = []
    for number, path in enumerate(paths):
        file = f"File {number + first}" if first is not None else "The example"
        try:
            film = core().read_film(path, name=f"Film {len(held) + 1}")
        except core().EmrrgError as error:
            words.append(f"{file} was not taken. {error}")
            continue
        if drafted:
            words.append(
                f"{file} was not taken, because this study has a draft already. Press New study first, so that no two "
                "patients are mixed."
            )
        elif (same := next((other for other in held if other.sha256 == film.sha256), None)) is not None:
            words.append(f"{file} was not taken, because it is the same image as {same.name}.")
        else:
            held = (*held, film)
    return held, words


def own_words(draft: "Draft | None", found: str, concluded: str) -> str:
    """The report on the screen where a reader had a hand in it, else nothing. draft: what the model wrote, None for nothing."""
    drafted = ("", "") if draft is None else (draft.findings.strip(), draft.impression.strip())
    here = (found.strip(), concluded.strip())
    if here == drafted:
        return ""
    return "\n".join(f"{name}: {text}" for name, text in zip(("Findings", "Impression"), here, strict=True) if text)


def marked(draft: "Draft", selected: int | None = None) -> list[tuple[str, str | None, int | None]]:
    """The draft in pieces: text, confidence band, number of the sentence; headings and gaps have neither of the two."""
    pieces: list[tuple[str, str | None, int | None]] = []
    section = None
    for number, sentence in enumerate(draft.sentences):
        if sentence.section != section:
            section = sentence.section
            pieces.append((("\n" if pieces else "") + f"{section.capitalize()}: ", None, None))
        band = next(name for name, least in BANDS if sentence.confidence >= least)
        pieces += [
            (("▸\N{NO-BREAK SPACE}" if number == selected else "") + sentence.text, band, number),
            (" ", None, None),
        ]
    return pieces


def pack(name: str, kind: str, body: str) -> str:
    """A file for the browser to save; it never exists on the server's disk."""
    return json.dumps({"name": name, "type": kind, "body": body})


def _finished(draft: "Draft | None") -> str:
    if draft is None:
        return _say("The model wrote nothing.", bad=True)
    seconds = draft.timings.get("total", 0.0)
    text = (
        f"Draft done in {seconds:.1f} s. Read it and correct it; select a sentence below to see where the model looked."
    )
    return _say(text, notes=draft.warnings)


def _stopped(draft: "Draft | None") -> str:
    kept = draft is not None and (draft.findings or draft.impression)
    return _say("Stopped. What was written so far is kept." if kept else "Stopped before the first word.")


def _caption(sentence: Any, *, blind: bool) -> str:
    words = f"<b>“{html.escape(sentence.text)}”</b> · confidence {sentence.confidence:.0%}. "
    words += (
        "No map: every gate was shut while this sentence was written, so the model did not look at the film here."
        if blind
        else "The brighter a place, the more the model looked there while writing. It does not prove why it wrote this."
    )
    return f'<p role="status">{words}</p>'


def _say(text: str, *, busy: bool = False, bad: bool = False, notes: "tuple[str, ...]" = ()) -> str:
    kind = "rr-bad" if bad else "rr-busy" if busy else "rr-calm"
    listed = f"<ul>{''.join(f'<li>{html.escape(note)}</li>' for note in notes)}</ul>" if notes else ""
    role = "alert" if bad else "status"
    return f'<div class="rr-say {kind}" role="{role}" aria-live="polite">{html.escape(text)}{listed}</div>'


def _warn(words: list[str]) -> str:
    return (
        f'<div class="rr-say rr-bad" role="alert">{"".join(f"<p>{html.escape(line)}</p>" for line in words)}</div>'
        if words
        else ""
    )
