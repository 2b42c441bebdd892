"""Gradio without its stub files: a faster import."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_stubs() -> Iterator[None]:
    """While Gradio is imported inside, it leaves the type stubs of its components alone.

    At every import Gradio parses the source of each component twice and writes a .pyi beside it, for editors: a third of
    the time until the page answers, and two starts at once may write the same file. It has no switch for that, but it
    passes over components of which inspect.getfile knows no file.
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
