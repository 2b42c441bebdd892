"""Long work of the model, followed step by step."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any


def followed(work: Callable[[Callable[[int, int], None]], Any]) -> Iterator[tuple[int, int, Any]]:
    """(done, of, None) while `work` goes on, and (of, of, its result) once it is done. What it raises is raised here."""
    steps: SimpleQueue[tuple[int, int] | None] = SimpleQueue()
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(work(lambda done, every: steps.put((done, every))))
        except BaseException as error:
            result.set_exception(error)
        steps.put(None)

    threading.Thread(target=run, name="read-again", daemon=True).start()
    every = 0
    while (step := steps.get()) is not None:
        done, every = step
        yield done, every, None
    yield every, every, result.result()
