"""The app: python app.py [--port N] [--checkpoint DIR]. Starts the screen on this machine, then loads the model."""

import argparse
import gc
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if __name__ == "__main__":
    # From here until the model is loaded, millions of objects come to stay: looking for garbage among them again and
    # again would take a sixth of the whole start.
    gc.disable()

from ui.gradio_internals import delete_session, without_stubs

with without_stubs():
    import gradio as gr
from starlette.middleware import Middleware

from emrrg_core.model.threads import wait_quietly
from ui import about, api, keys, read, teach, theme, viewer
from ui.pixel_endpoint import PixelEndpoint
from ui.uploads import Nameless

if TYPE_CHECKING:
    from emrrg_core import Reporter

_SHEETS = ("style.css", "viewer.css", "draft_panels.css", "teach.css", "about.css")
STYLES = [Path(__file__).parent / "ui" / name for name in _SHEETS]
MOST_BYTES = 500_000_000  # of one upload; a larger file is no single film
_HEADER = (
    '<header class="rr-bar"><h1>EMRRG</h1>'
    f'<p class="rr-notice" role="note">{read.NOTICE}</p>'
    '<button type="button" data-keys="open" title="Keys and gestures (?)" aria-label="Keys and gestures">?</button>'
    '<button type="button" data-theme aria-pressed="true" title="Dark or light" aria-label="Dark theme">◐</button></header>'
)


def build_demo(
    reporter: "Reporter | Future[Reporter]",
    *,
    cases: Path | None = None,
    memory: str | None = "off",
    author: bool | None = None,
) -> gr.Blocks:
    """The whole app around one reporter, which all readers share; a future may still be loading it. cases: the folder for Teach. memory: the
    folder of remembered cases, "off" for none, None for the user's own. author: whether cases may be made in the page; None: unless this is a Space.
    """
    soon: Future[Reporter] = Future()
    if isinstance(reporter, Future):
        soon = reporter
    else:
        soon.set_result(reporter)
    with gr.Blocks(title="EMRRG", analytics_enabled=False, delete_cache=(600, 600), fill_width=True) as demo:
        api.endpoints(demo, soon)  # first: an event of a screen that has the same name takes another
        gr.HTML(_HEADER + keys.dialog(), elem_id="bar")  # the list of keys is the whole app's
        with gr.Tabs(elem_id="screens") as screens:
            with gr.Tab("Read", id="read"):
                reading = read.screen(demo, soon, example_film, memory)
            with gr.Tab("Teach", id="teach"):
                desk = teach.screen(demo, soon, cases, author=author)
            with gr.Tab("About", id="about"):
                about.screen(demo, soon)

        if desk.allowed:
            desk.offered(reading.report.make, [reading.state], lambda state: (state.films, *state.texts), screens)

        def closed(request: gr.Request) -> None:
            """A tab was closed or reloaded."""
            delete_session(demo, request.session_hash)

        demo.unload(closed)
    return demo


def launch(demo: gr.Blocks, *, port: int | None = None) -> str:
    """Start the server in the background and return its address; only this machine reaches it, on a Space all do."""
    _, address, _ = demo.queue(api_open=False).launch(
        server_name="0.0.0.0" if "SPACE_ID" in os.environ else "127.0.0.1",
        server_port=port,
        share=False,
        show_error=False,
        quiet=True,
        prevent_thread_lock=True,
        enable_monitoring=False,
        run_history=False,
        ssr_mode=False,  # a Node server in front would take uploads past `Nameless`
        num_workers=0,  # and so would workers of its own for files
        footer_links=[],
        max_file_size=MOST_BYTES,
        theme=gr.themes.Default(
            primary_hue="teal",
            font=["system-ui", "sans-serif"],  # nothing is fetched from another host
            font_mono=["ui-monospace", "monospace"],
        ).set(  # contrast of at least 4.5 : 1, which the theme's own colours miss (tests/test_access.py)
            body_text_color_subdued="*neutral_600",
            body_text_color_subdued_dark="*neutral_400",
            input_placeholder_color="*neutral_600",
            input_placeholder_color_dark="*neutral_400",
            color_accent="*primary_700",  # of tabs in the dark: draft_panels.css
            button_primary_background_fill="*primary_700",
            button_primary_background_fill_dark="*primary_700",
            button_primary_background_fill_hover="*primary_800",
            button_primary_background_fill_hover_dark="*primary_800",
        ),
        css_paths=STYLES,
        head=theme.HEAD + keys.HEAD + viewer.HEAD,
        app_kwargs={
            "middleware": [Middleware(Nameless), Middleware(api.Once), Middleware(PixelEndpoint)],
            "docs_url": None,
            "redoc_url": None,
            "openapi_url": None,
        },
    )
    return address.rstrip("/")


def example_film(name: str = "real") -> Path | None:
    """A film to try. real: RG1, a chest film (DICOM, MONOCHROME1) that pydicom-data carries; None when that is not installed. Others: drawn ones."""
    if name != "real":
        path = Path(__file__).parent / "assets" / "examples" / f"{name}.jpg"
        return path if name in viewer.EXAMPLES and path.is_file() else None
    from pydicom.data import get_testdata_file

    found = get_testdata_file("RG1_UNCR.dcm", download=False)
    return Path(str(found)) if found else None


def load_behind(soon: "Future[Reporter]", checkpoint: Path | None, cluster: str | None = None) -> None:
    """Load the model into `soon`, or find the replicas that have it, in a thread of its own, so that the page answers first."""

    def load() -> None:
        begun = time.perf_counter()
        try:
            from emrrg_core import EmrrgError, Reporter

            try:
                if cluster is None:
                    soon.set_result(Reporter.load(checkpoint, share_cores=True))
                else:
                    from emrrg_core.scale import serve

                    soon.set_result(serve.connect(cluster))
                print(f"The model is loaded ({time.perf_counter() - begun:.1f} s).", flush=True)
            except EmrrgError as error:
                soon.set_exception(error)
                print(f"emrrg: {error}", file=sys.stderr, flush=True)
        except Exception as error:  # a broken installation or a bug: it shows as one
            soon.set_exception(error)
            raise
        finally:
            gc.freeze()  # what is there now stays: a draft must not pause for half a second while it is searched
            gc.enable()

    threading.Thread(target=load, name="load", daemon=True).start()


def purge_behind(soon: "Future[Reporter]") -> None:
    """Once the model is loaded, delete expired reports every hour, in a thread of its own: on an idle server too."""

    def purge() -> None:
        wait([soon])
        from emrrg_core import EmrrgError, Sessions

        try:
            store = Sessions()
        except EmrrgError as error:  # the screen says so too, when a report is to be kept
            print(f"emrrg: {error}", file=sys.stderr, flush=True)
            return
        if store.notice:
            print(f"emrrg: {store.notice}", file=sys.stderr, flush=True)
        store.keep_purging()

    threading.Thread(target=purge, name="purge", daemon=True).start()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="app.py", description=__doc__)
    parser.add_argument("--port", type=int, help="default: GRADIO_SERVER_PORT, or the first free one from 7860")
    parser.add_argument(
        "--checkpoint", type=Path, help="folder of a checkpoint; default: the one that comes with EMRRG"
    )
    parser.add_argument(
        "--cases",
        type=Path,
        default=os.environ.get("EMRRG_CASES") or None,
        help="folder of teaching cases (docs/teaching.md); default: EMRRG_CASES, or the drawn ones that come with EMRRG",
    )
    parser.add_argument(
        "--memory",
        metavar="DIR",
        help="folder of remembered cases (docs/memory.md), which every reader sees; off: none; default: the user's own",
    )
    parser.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="draft with the replicas of a Ray cluster (docs/scaling.md); auto: the one on this machine",
    )
    parser.add_argument("--author", action="store_true", help="let readers make teaching cases on a Space too")
    args = parser.parse_args(argv)
    wait_quietly()
    signal.signal(signal.SIGTERM, _leave)
    # Uploads rest, until they are read, in a folder that only this user may open and that goes with the server.
    folder = tempfile.mkdtemp(prefix="emrrg-", dir=os.environ.get("GRADIO_TEMP_DIR"))
    os.environ["GRADIO_TEMP_DIR"] = folder
    demo = None
    try:
        soon: Future[Reporter] = Future()
        demo = build_demo(soon, cases=args.cases, memory=args.memory, author=args.author or None)
        try:
            address = launch(demo, port=args.port)
        except OSError:  # Gradio's own words for it name its parameters
            where = f"Port {args.port} is" if args.port else "The ports from 7860 on are"
            print(f"emrrg: {where} in use. Stop what runs there, or choose another with --port.", file=sys.stderr)
            return 2
        print(f"EMRRG is at {address} (the model is loading; stop with Ctrl+C)", flush=True)
        load_behind(soon, args.checkpoint, args.cluster)
        purge_behind(soon)
        threading.Event().wait()
    except KeyboardInterrupt:
        return 0
    finally:
        if demo is not None:
            demo.close(verbose=False)
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _leave(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # Python's own way out tears threads that still draft out of torch, which then aborts the process
