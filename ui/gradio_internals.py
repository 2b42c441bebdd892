"""Everything that relies on the insides of Gradio, in one file. Checked with Gradio 6.31.0, the version that requirements.txt pins.

Nothing else in the app may touch what Gradio does not document (tests/test_architecture.py). After an update of Gradio, check
each of these again, then change CHECKED_WITH.

    what                          checked with  why it is needed
    without_stubs                 6.31.0        writing type stubs is a third of the time until the page answers; there is no switch
    event_data                    6.31.0        the whole data of an event: the public attributes give one key at a time
    delete_session                6.31.0        films must go when a tab is closed; Gradio would keep them for another hour
    forget_call                   6.31.0        Gradio keeps the last values of every endpoint for as long as a session lasts
    add_endpoint                  6.31.0        gr.api reads names and types from the function itself, which a wrapper hides; and it
                                                would download a file that is given as a link, and keep it under the link's name
    upload_folder                 6.31.0        uploads are deleted once they are read, so we must know where they lie
    is_upload, is_deep_link,      6.31.0        the addresses of Gradio's own routes, which our middlewares watch
    served_file

The style sheets rely on two more things, which they say where they do (style.css, teach.css): Gradio puts its container in
front of every selector and cuts selectors at commas.
"""

import inspect
import re
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # Gradio itself is imported inside `without_stubs`, after this module
    import gradio as gr
    from starlette.types import Scope

CHECKED_WITH = "6.31.0"


@contextmanager
def without_stubs() -> Iterator[None]:
    """Import Gradio inside this: it then leaves the type stubs of its components alone, and the import is faster.

    At every import Gradio parses the source of each component twice and writes a .pyi beside it, for editors. Two starts at
    once may even write the same file. Gradio passes over a component whose file inspect.getfile does not know.
    """
    getfile = inspect.getfile

    def no_file_of_gradio(object: Any) -> str:
        if inspect.isclass(object) and object.__module__.startswith("gradio."):
            raise OSError("no stub is wanted")
        return getfile(object)

    inspect.getfile = no_file_of_gradio
    try:
        yield
    finally:
        inspect.getfile = getfile


def event_data(event: "gr.EventData") -> dict[str, Any]:
    """What the browser sent with an event. A browser may send anything: what is no object is read as empty."""
    return dict(event._data) if isinstance(event._data, dict) else {}


# ------------------------------------------------------------------------------------------------------------- sessions


def delete_session(demo: "gr.Blocks", session: str | None) -> None:
    """A tab was closed or loaded again: delete all that the server holds of it, at once."""
    if session:
        demo.state_holder.delete_state(session)
        forget_call(demo, session)


def forget_call(demo: "gr.Blocks", session: str | None) -> None:
    """Delete the last values of a session's endpoints. No endpoint needs them again."""
    if session:
        demo.state_holder.session_data.pop(session, None)
        demo.state_holder.time_last_used.pop(session, None)


# ------------------------------------------------------------------------------------------------------------ endpoints


def add_endpoint(demo: "gr.Blocks", work: Callable[..., Any], call: Callable[..., Any], **queue: Any) -> None:
    """Add an endpoint that calls `call(request, *values)` and is described as `work(*values)`: its name, parameters, types, docstring."""
    import gradio as gr
    from gradio.events import api

    signature = inspect.signature(work)
    request = inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=gr.Request)
    call.__signature__ = signature.replace(parameters=[request, *signature.parameters.values()])  # type: ignore[attr-defined]
    call.__annotations__ = {"request": gr.Request, **typing.get_type_hints(work)}
    call.__doc__ = work.__doc__
    made = api(call, api_name=work.__name__, **queue)
    for block in demo.fns[made["id"]].inputs:
        block.async_move_resource_to_block_cache = _only_uploads(block.async_move_resource_to_block_cache)  # type: ignore


def _only_uploads(take: Callable[..., Any]) -> Callable[..., Any]:
    import gradio as gr

    async def taken(path: Any) -> Any:
        if re.match(r"\w+://", str(path)):
            raise gr.Error("Nothing is fetched from links here: give the file itself.", print_exception=False)
        return await take(path)

    return taken


# ----------------------------------------------------------------------------------------------------- files and routes


def upload_folder() -> Path:
    """The folder where Gradio stores uploads."""
    from gradio.utils import get_upload_folder

    return Path(get_upload_folder())


def is_upload(scope: "Scope") -> bool:
    """Whether a request brings files to Gradio."""
    return scope["type"] == "http" and scope["method"] == "POST" and _path(scope).endswith("/upload")


def is_deep_link(scope: "Scope") -> bool:
    """Whether a request asks Gradio to write a whole session to the disk."""
    return scope["type"] == "http" and _path(scope).endswith("/deep_link")


def served_file(scope: "Scope") -> Path | None:
    """The file that a request asks Gradio for; None for any other request."""
    _, found, name = scope.get("path", "").partition("/file=")
    wanted = found and scope["type"] == "http" and scope["method"] == "GET"
    return Path(name).resolve() if wanted else None


def _path(scope: "Scope") -> str:
    return str(scope.get("path", "")).rstrip("/")
