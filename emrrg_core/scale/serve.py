"""Drafting on more than one machine: replicas of the reporter behind Ray Serve (requirements-cluster.txt, docs/scaling.md).

start      runs the replicas, and a door for programs that speak HTTP; what `python -m emrrg_core serve` does
connect    gives a Reporter whose model is in those replicas; what `python app.py --cluster` uses

A replica is a process with a model of its own; its engine writes the drafts of its requests side by side.
When a replica dies, Ray starts another, and what it was asked is asked again of one that lives: a draft depends on its films and settings only,
so it comes out the same, and it is answered once. When too many wait, the next is told so at once.
"""

import asyncio
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np

from emrrg_core.config import MOST_FILMS, DecodeConfig, StudyConfig, Views
from emrrg_core.errors import ConfigError, EmrrgError, FilmError
from emrrg_core.explain.faithfulness import PLACES
from emrrg_core.films.film import OVERRIDABLE, Film
from emrrg_core.report.draft import Draft
from emrrg_core.reporter import Progress, Reporter, Summary

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle
    from starlette.requests import Request
    from starlette.responses import Response

    from emrrg_core.explain.faithfulness import DependenceTest, Why
    from emrrg_core.explain.occlusion import Rescored
    from emrrg_core.films.film_check import FilmCheck
    from emrrg_core.model.finding_tokens import Finding
    from emrrg_core.model.parameter_count import Counts
    from emrrg_core.report.rewrite import Rewritten
    from emrrg_core.report.told import Said

T = TypeVar("T")

APP = "emrrg"  # its name in the cluster
AT_ONCE = 8  # requests that a replica works on side by side
TRIES = 3  # replicas that are asked one after the other, when they die
MOST_BYTES = 500_000_000  # of one request
BUSY = "All replicas are busy, and too many requests wait already: try again in a few seconds."
_ASKED = ("check_film", "findings", "impression", "rewrite", "why", "looking", "rescore", "parameters", "study")


class Replica:
    """One process with one model. What cannot be done comes back as an EmrrgError, not raised: Ray would put its own words around it."""

    def __init__(self, checkpoint: str | None, language_model: str | None, device: str) -> None:
        self._reporter = Reporter.load(checkpoint, language_model=language_model, device=device)
        self._threads = ThreadPoolExecutor(AT_ONCE, "request")

    async def names(self) -> dict[str, str]:
        return self._reporter.names

    async def process(self) -> int:
        """Its process id."""
        return os.getpid()

    async def ask(self, what: str, arguments: Sequence[Any], settings: dict[str, Any]) -> Any:
        """A method of the reporter."""
        if what not in _ASKED:
            return EmrrgError(f"A replica does not know {what!r}.")
        return await self._run(lambda: getattr(self._reporter, what)(*arguments, **settings))

    async def draft(self, films: Sequence[bytes], decoding: dict[str, Any], anyway: Sequence[str]) -> Any:
        """The JSON object of a draft (docs/draft.md) on the files of one study."""
        return await self._run(lambda: self._draft(films, decoding, anyway))

    def _draft(self, films: Sequence[bytes], decoding: dict[str, Any], anyway: Sequence[str]) -> dict[str, Any]:
        read = []
        for number, film in enumerate(films, 1):
            with tempfile.NamedTemporaryFile(prefix="emrrg-") as file:
                file.write(film)
                file.flush()
                try:
                    read.append(self._reporter.read(file.name, name=f"Film {number}", anyway=anyway))
                except FilmError as error:
                    raise FilmError(
                        f"Film {number}: {error}", rule=error.rule, overridable=error.overridable
                    ) from error
        return self._reporter.draft(read, DecodeConfig.from_dict(decoding)).to_dict()

    async def _run(self, work: Callable[[], Any]) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except EmrrgError as error:
            return error

    async def stream(
        self, films: Sequence[Film], decoding: DecodeConfig | None, study: StudyConfig | None, prior: Sequence[Film]
    ) -> Any:
        """The drafts of `Reporter.stream`. Whoever stops asking gives the draft up."""
        loop, drafts, given_up = asyncio.get_running_loop(), asyncio.Queue[Any](), threading.Event()

        def write() -> None:
            texts = self._reporter.stream(films, decoding, study, prior=prior, stopped=given_up.is_set)
            try:
                for draft in texts:
                    loop.call_soon_threadsafe(drafts.put_nowait, draft)
                    if given_up.is_set():
                        break
            except Exception as error:
                loop.call_soon_threadsafe(drafts.put_nowait, error)
            finally:
                texts.close()  # type: ignore[attr-defined]  # a generator
                loop.call_soon_threadsafe(drafts.put_nowait, None)

        self._threads.submit(write)
        try:
            while (draft := await drafts.get()) is not None:
                if isinstance(draft, Exception) and not isinstance(draft, EmrrgError):
                    raise draft
                yield draft
        finally:
            given_up.set()


# ----------------------------------------------------------------------------------------------------- asking replicas


class RemoteReporter(Reporter):
    """A Reporter whose model is in the replicas. Reads films itself; may be shared by many readers."""

    def __init__(self, replicas: "DeploymentHandle") -> None:
        self._replicas = replicas
        self._streaming = replicas.options(stream=True)
        self.names = self._tried(lambda: replicas.names.remote().result())

    def parameters(self) -> "Counts":
        counts: Counts = self._ask("parameters")
        return counts

    def study(self, views: Views | str | None = None, laterals: bool | None = None) -> StudyConfig:
        found: StudyConfig = self._ask("study", views, laterals)
        return found

    @property
    def reads_prior(self) -> bool:
        return "prior_sha256" in self.names

    def check_film(self, film: Film) -> "FilmCheck | None":
        found: FilmCheck | None = self._ask("check_film", film)
        return found

    def stream(
        self,
        films: Sequence[Film],
        decoding: DecodeConfig | None = None,
        study: StudyConfig | None = None,
        *,
        prior: Sequence[Film] = (),
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[Draft]:
        """As Reporter.stream. When the replica dies meanwhile, another begins anew: it goes on where more is written than was shown."""
        shown = 0
        for tries_left in reversed(range(TRIES)):
            drafts: Any = self._streaming.stream.remote(films, decoding, study, prior)  # a generator of responses
            try:
                for draft in drafts:
                    if isinstance(draft, EmrrgError):
                        raise draft
                    if stopped():
                        return
                    whole = bool(draft.timings)
                    if whole or len(draft.tokens) > shown:
                        shown = len(draft.tokens)
                        yield draft
                return
            except Exception as error:
                if not _died(error) or not tries_left:
                    _tell(error)
            finally:
                drafts.cancel()

    def findings(self, films: Sequence[Film], study: StudyConfig | None = None) -> "tuple[Finding, ...] | None":
        found: tuple[Finding, ...] | None = self._ask("findings", films, study)
        return found

    def impression(self, films: Sequence[Film], draft: Draft, findings: str) -> Summary:
        found: Summary = self._ask("impression", films, draft, findings)
        return found

    def rewrite(
        self, films: Sequence[Film], draft: Draft, changed: "Mapping[str, Said]", findings: str | None = None
    ) -> "Rewritten":
        found: Rewritten = self._ask("rewrite", films, draft, changed, findings)
        return found

    def why(
        self,
        films: Sequence[Film],
        draft: Draft,
        sentence: int,
        *,
        regions: int = PLACES,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> "Why | None":
        found: Why | None = self._ask("why", films, draft, sentence, regions=regions, seed=seed)
        return _done(found, progress)

    def looking(
        self, films: Sequence[Film], draft: Draft, *, seed: int = 0, progress: Progress | None = None
    ) -> "DependenceTest":
        found: DependenceTest = self._ask("looking", films, draft, seed=seed)
        return _done(found, progress)

    def rescore(
        self,
        films: Sequence[Film],
        draft: Draft,
        changed: Sequence[np.ndarray],
        *,
        earlier: "Rescored | None" = None,
        progress: Progress | None = None,
    ) -> "Rescored":
        found: Rescored = self._ask("rescore", films, draft, changed, earlier=earlier)
        return _done(found, progress)

    def _ask(self, what: str, *arguments: Any, **settings: Any) -> Any:
        found = self._tried(lambda: self._replicas.ask.remote(what, arguments, settings).result())
        if isinstance(found, EmrrgError):
            raise found
        return found

    @staticmethod
    def _tried(ask: Callable[[], T]) -> T:
        """Asked again as long as replicas die over it."""
        for tries_left in reversed(range(TRIES)):
            try:
                return ask()
            except Exception as error:
                if not _died(error) or not tries_left:
                    _tell(error)
        raise AssertionError("unreachable")


def _done(found: T, progress: Progress | None) -> T:
    """How far a replica is, is not told: only that it is done."""
    if progress is not None:
        progress(1, 1)
    return found


def _died(error: Exception) -> bool:
    from ray.exceptions import RayActorError

    return isinstance(error, RayActorError)


def _tell(error: Exception) -> NoReturn:
    """Raises what Ray says in our words, and whatever else as it is."""
    told = _in_words(error)
    if told is None:
        raise error
    raise told from error


def _in_words(error: Exception) -> EmrrgError | None:
    from ray.exceptions import RayError
    from ray.serve.exceptions import BackPressureError, RayServeException

    if isinstance(error, BackPressureError):
        return EmrrgError(BUSY)
    if _died(error):
        return EmrrgError(f"{TRIES} replicas died over this one after the other: their logs say why (docs/scaling.md).")
    if isinstance(error, RayServeException | RayError):
        return EmrrgError(f"The cluster did not answer ({type(error).__name__}): look at it with `serve status`.")
    return None


# ------------------------------------------------------------------------------------------------------------ the door


class Door:
    """HTTP for programs. POST /draft: a form with 1 to 4 `films`, and `beams`, `max_new_tokens`, `anyway` where wanted. GET /about: what runs."""

    def __init__(self, replicas: "DeploymentHandle") -> None:
        self._replicas = replicas

    async def __call__(self, request: "Request") -> "Response":
        from starlette.responses import JSONResponse

        ways = {("POST", "/draft"): self._draft, ("GET", "/about"): self._about}
        way = ways.get((request.method, request.url.path.rstrip("/")))
        if way is None:
            return JSONResponse({"error": "There are POST /draft and GET /about."}, 404)
        try:
            return JSONResponse(await way(request))
        except _RefusedError as error:
            return JSONResponse(
                {"error": str(error)}, error.status, {"Retry-After": "2"} if error.status == 503 else {}
            )

    async def _about(self, request: "Request") -> dict[str, Any]:
        return {"model": await self._tried(lambda: self._replicas.names.remote())}

    async def _draft(self, request: "Request") -> Any:
        films, decoding, anyway = await self._form(request)
        found = await self._tried(lambda: self._replicas.draft.remote(films, decoding, anyway))
        if isinstance(found, EmrrgError):
            raise _RefusedError(422, " ".join(str(found).split()))
        return found

    async def _form(self, request: "Request") -> tuple[list[bytes], dict[str, int], list[str]]:
        """Films, settings and rules to override."""
        from starlette.exceptions import HTTPException
        from starlette.formparsers import MultiPartException

        if int(request.headers.get("content-length") or 0) > MOST_BYTES:
            raise _RefusedError(413, f"One request may have at most {MOST_BYTES // 1_000_000} MB.")
        wanted = f"Send a form (multipart/form-data) with 1 to {MOST_FILMS} files named films."
        try:
            async with request.form(max_files=MOST_FILMS, max_fields=20) as form:
                films = [await film.read() for film in form.getlist("films") if not isinstance(film, str)]
                anyway = [str(rule) for rule in form.getlist("anyway")]
                decoding = {n: int(str(form[n])) for n in ("beams", "max_new_tokens") if n in form}
                DecodeConfig.from_dict(decoding)
        except (HTTPException, MultiPartException) as error:  # more files than that, or no form
            raise _RefusedError(400, wanted) from error
        except (ConfigError, ValueError) as error:
            raise _RefusedError(400, f"These settings will not do: {error}") from error
        if not films:
            raise _RefusedError(400, wanted)
        if unknown := sorted(set(anyway) - OVERRIDABLE):
            raise _RefusedError(400, f"{unknown[0]!r} is no rule that can be overridden: docs/refusals.md.")
        return films, decoding, anyway

    @staticmethod
    async def _tried(ask: Callable[[], Any]) -> Any:
        for tries_left in reversed(range(TRIES)):
            try:
                return await ask()
            except Exception as error:
                if not _died(error) or not tries_left:
                    if (told := _in_words(error)) is None:
                        raise
                    raise _RefusedError(503, str(told)) from error
        raise AssertionError("unreachable")


class _RefusedError(Exception):
    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


# ------------------------------------------------------------------------------------------------------------ starting


def start(
    *,
    replicas: int = 1,
    most: int | None = None,
    threads: int | None = None,
    waiting: int = 64,
    host: str = "127.0.0.1",
    port: int = 8000,
    cluster: str | None = None,
    checkpoint: Path | None = None,
    language_model: str | None = None,
    device: str = "cpu",
) -> RemoteReporter:
    """Run replicas and the door, and return when all are there. `stop` ends them.

    most      replicas grow to as many while requests wait, and shrink again
    threads   of each replica on a CPU; default: this machine's cores divided among them
    waiting   requests that may wait for a replica; the next is refused (HTTP 503)
    cluster   address of a Ray cluster that runs already; default: one that begins and ends with this process, on this machine alone

    Raises ConfigError for settings that will not do, or where Ray is not installed; EmrrgError where the replicas cannot start.
    """
    if replicas < 1 or (most is not None and most < replicas) or waiting < 0 or (threads is not None and threads < 1):
        raise ConfigError("There must be at least one replica and one thread, and at most as many replicas as `most`.")
    _, serve = _ray()
    threads = threads or max(1, (os.cpu_count() or 1) // (most or replicas))
    _join(cluster)
    needs: dict[str, Any] = {"num_gpus": 1} if device == "cuda" else {"num_cpus": threads}
    needs["runtime_env"] = {"env_vars": {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(threads)}}
    size: dict[str, Any] = {"num_replicas": replicas}
    if most is not None and most > replicas:
        size = {"autoscaling_config": {"min_replicas": replicas, "max_replicas": most, "target_ongoing_requests": AT_ONCE // 2}}  # fmt: skip
    replica = serve.deployment(
        Replica,
        max_ongoing_requests=AT_ONCE,
        max_queued_requests=waiting,
        ray_actor_options=needs,
        max_constructor_retry_count=TRIES,
        health_check_period_s=2,
        **size,
    ).bind(str(checkpoint.absolute()) if checkpoint else None, language_model, device)
    door = serve.deployment(Door, max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 0}).bind(replica)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    try:
        serve.start(proxy_location="EveryNode", http_options={"host": host, "port": port}, logging_config=quiet)
        serve.run(door, name=APP, route_prefix="/", logging_config=quiet)
    except Exception as error:
        raise EmrrgError(f"The replicas could not be started: {_last_line(error)}") from error
    return RemoteReporter(serve.get_deployment_handle("Replica", APP))


def stop() -> None:
    """Ends the replicas and, where it began with this process, the cluster."""
    ray, serve = _ray()
    serve.shutdown()
    ray.shutdown()


def connect(cluster: str) -> RemoteReporter:
    """A Reporter whose model is in the replicas of a Ray cluster, where `start` ran; "auto" for the one on this machine.

    Raises EmrrgError where there is no such cluster or no replica in it.
    """
    _, serve = _ray()
    _join(cluster)
    try:
        return RemoteReporter(serve.get_deployment_handle("Replica", APP))
    except Exception as error:
        raise EmrrgError(
            f"No replica answers in the cluster {cluster}: run `python -m emrrg_core serve --cluster {cluster}` first."
        ) from error


def _join(cluster: str | None) -> None:
    ray, _ = _ray()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray would tell its makers what runs here
    os.environ.setdefault("RAY_worker_niceness", "0")  # at Ray's own 15 a replica starves beside any other program
    if ray.is_initialized():
        return
    try:
        ray.init(
            cluster or "local",
            include_dashboard=None if cluster else False,
            log_to_driver=False,
            logging_level="warning",
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EmrrgError(
            f"There is no Ray cluster at {cluster} ({_last_line(error)}): begin one with `ray start --head`, or leave --cluster out."
        ) from error


def _ray() -> tuple[Any, Any]:
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ConfigError(
            f"Ray Serve cannot be imported ({error}): pip install -r requirements-cluster.txt."
        ) from error
    return ray, serve


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
