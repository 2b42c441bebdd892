"""Many readers, one model: drafts are written side by side, and whatever else needs the model takes its turn between two passes.

One thread does all the computing. A draft that is asked for first sees its film, by arrival; then it joins those that are being written, and each
pass of the language model goes on with all of them. A draft that ends or is given up leaves after the pass; one given up before its first pass
is neither seen nor written. Rows of a batch do not see each other: each attends to its own film and its own text (tests/test_engine.py).
"""

import atexit
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import torch

from emrrg_core.config import DecodeConfig
from emrrg_core.model.decoding import Search
from emrrg_core.model.emrrg import Emrrg, FilmTokens
from emrrg_core.model.generation import Retell, Task
from emrrg_core.model.proposals import Proposer
from emrrg_core.model.writing import Writing

STOPPED = 0.1  # seconds between two looks whether a reader who waits has stopped
IDLE = 30.0  # seconds without work after which the thread ends; to begin one costs torch its own threads

T = TypeVar("T")


@dataclass(eq=False)
class _Request:
    """Work that waits for its turn. answers: what it gave so far, an exception where it failed, and None at its end."""

    begin: Callable[[], Any]
    answers: "SimpleQueue[Any]" = field(default_factory=SimpleQueue)
    stopped: Callable[[], bool] = lambda: False
    left: bool = False  # nobody asks for answers any more

    @property
    def given_up(self) -> bool:
        return self.left or self.stopped()


@dataclass(eq=False)
class _Drafting(_Request):
    """A draft. begin gives what the language model may see of its film."""

    config: DecodeConfig = field(default_factory=DecodeConfig)
    proposer: Proposer | None = None
    retell: Retell | None = None
    after: str | None = None
    search: Search | None = None


_engines: "weakref.WeakSet[Engine]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for engine in list(_engines):
        engine.close()


class Engine:
    """The only one that computes with a model. May be asked from any number of threads."""

    def __init__(self, model: Emrrg, before: Callable[[], object] = lambda: None) -> None:
        """before: called in the computing thread before every piece of work."""
        self._model, self._before = model, before
        self._changed = threading.Condition()
        self._waiting: deque[_Request] = deque()
        self._under_way: list[tuple[Task, list[_Drafting]]] = []  # of one setting each
        self._thread: threading.Thread | None = None
        self._leaving = False
        _engines.add(self)

    def close(self, timeout: float = 10.0) -> None:
        """The thread ends after the pass that it is at. Called when the program ends: a thread that is cut off inside torch would abort it."""
        with self._changed:
            self._leaving, thread = True, self._thread
            self._changed.notify_all()
        if thread is not None:
            thread.join(timeout)

    def stream(
        self,
        begin: Callable[[], FilmTokens],
        config: DecodeConfig,
        proposer: Proposer | None = None,
        stopped: Callable[[], bool] = lambda: False,
        *,
        retell: Retell | None = None,
        after: str | None = None,
    ) -> Iterator[Writing]:
        """Write about one study: the text so far after every pass. begin gives what is seen of it; it is called in the computing thread. retell,
        after: as for `Task`.

        A caller that stops asking gives the draft up, and so does one whose `stopped` says yes, at any time and from any thread: the texts then end.
        What begin raises is raised here.
        """
        request = _Drafting(begin, stopped=stopped, config=config, proposer=proposer, retell=retell, after=after)
        self._submit(request)
        try:
            while not request.stopped():
                try:
                    answer = request.answers.get(timeout=STOPPED)
                except Empty:
                    continue
                if answer is None:
                    return
                if isinstance(answer, BaseException):
                    raise answer
                yield answer
        finally:
            request.left = True

    def run(self, work: Callable[[], T]) -> T:
        """Do a piece of work in its turn, and wait for what it gives."""
        request = _Request(work)
        self._submit(request)
        (answer,) = request.answers.get()
        if isinstance(answer, BaseException):
            raise answer
        result: T = answer
        return result

    def _submit(self, request: _Request) -> None:
        with self._changed:
            if self._leaving:
                raise RuntimeError("the program is ending: nothing more is computed")
            self._waiting.append(request)
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="emrrg-engine", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        """Until nothing is left to do for a while: one request that waits, then one pass of every draft under way."""
        while True:
            with self._changed:
                if self._leaving or (
                    not self._waiting
                    and not self._under_way
                    and not self._changed.wait_for(lambda: self._waiting or self._leaving, IDLE)
                ):
                    self._thread = None
                    return
                request = self._waiting.popleft() if self._waiting else None
            if request is not None and not request.given_up:
                self._begin(request)
            self._pass()

    def _begin(self, request: _Request) -> None:
        try:
            self._before()
            with torch.inference_mode():
                given = request.begin()
            if not isinstance(request, _Drafting):
                request.answers.put((given,))
                return
            if request.given_up:  # while its film was seen
                return
            after = None if request.after is None else [request.after]
            task = Task(self._model, given, request.config, request.proposer, retell=request.retell, after=after)
            (request.search,) = task.searches
            task.step()
        except BaseException as error:
            request.answers.put(error if isinstance(request, _Drafting) else (error,))
            return
        self._tell(request)
        if not task.over and not request.given_up:
            self._add(task, request)

    def _add(self, task: Task, request: _Drafting) -> None:
        """Go on with a draft, beside those of the same settings where there are any."""
        for known, drafts in self._under_way:
            if task.joinable and drafts[0].config == request.config and drafts[0].proposer is request.proposer:
                drafts.append(request)
                try:
                    known.join(task)
                except BaseException as error:  # half joined, neither can go on
                    self._fail(drafts, error)
                return
        self._under_way.append((task, [request]))

    def _pass(self) -> None:
        for task, drafts in list(self._under_way):
            try:
                self._before()
                task.drop([d.search for d in drafts if d.given_up and d.search is not None])
                if not task.over:
                    task.step()
                for draft in drafts:
                    self._tell(draft)
            except BaseException as error:
                self._fail(drafts, error)
            drafts[:] = [d for d in drafts if d.search is not None and not d.search.over]
        self._under_way = [(task, drafts) for task, drafts in self._under_way if drafts]

    def _fail(self, drafts: list[_Drafting], error: BaseException) -> None:
        """Whatever goes wrong is told to whom it concerns: the computing thread must not end, or everyone would wait for ever."""
        for draft in drafts:
            draft.answers.put(error)
        drafts.clear()

    def _tell(self, draft: _Drafting) -> None:
        assert draft.search is not None
        draft.answers.put(draft.search.writing())
        if draft.search.over:
            draft.answers.put(None)
