"""Replicas behind Ray Serve: what they answer, what they refuse, and what becomes of a draft whose replica dies."""

import inspect
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

import app
from emrrg_core.__main__ import main
from emrrg_core.config import DecodeConfig
from emrrg_core.errors import ConfigError, EmrrgError, FilmError
from emrrg_core.explain.faithfulness import drawn_chest
from emrrg_core.films.film import read_film
from emrrg_core.reporter import Reporter
from emrrg_core.scale import serve

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray warns of its own libraries
PORT, WAITING = 8265 + os.getpid() % 1000, 8
DOOR = f"http://127.0.0.1:{PORT}"


def test_all_that_a_reporter_is_asked_is_asked_of_replicas():
    public = {name for name, _ in inspect.getmembers(Reporter, callable) if not name.startswith("_")}
    built_on_others = {"read", "check", "draft"}
    own = public - built_on_others - {"load"}
    for name in own:
        mine, theirs = (inspect.signature(getattr(c, name)) for c in (serve.RemoteReporter, Reporter))
        assert name in vars(serve.RemoteReporter)
        assert list(mine.parameters) == list(theirs.parameters), name
    for name in built_on_others:
        assert "self._model" not in inspect.getsource(getattr(Reporter, name))


@pytest.mark.parametrize("settings", [{"replicas": 0}, {"replicas": 3, "most": 2}, {"threads": 0}, {"waiting": -1}])
def test_settings_that_will_not_do_are_refused(settings):
    with pytest.raises(ConfigError, match="at least one"):
        serve.start(**settings)


def test_without_ray_it_is_said_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert main(["serve"]) == 2
    assert "pip install -r requirements-cluster.txt" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- two replicas


@pytest.fixture(scope="module")
def remote() -> Iterator[serve.RemoteReporter]:
    """Two replicas of the shipped checkpoint, a thread each."""
    yield serve.start(replicas=2, threads=1, port=PORT, waiting=WAITING)
    serve.stop()


@pytest.fixture(scope="module")
def own() -> Reporter:
    return Reporter.load()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    """A real film, and drawn chests."""
    folder = tmp_path_factory.mktemp("films")
    made = [Path(str(get_testdata_file("RG1_UNCR.dcm", download=False)))]
    for seed in range(3):
        made.append(folder / f"{seed}.png")
        Image.fromarray((drawn_chest(512, np.random.default_rng(seed)) * 255).astype(np.uint8)).save(made[-1])
    return made


def post(file: Path, **fields: str) -> httpx.Response:
    return httpx.post(f"{DOOR}/draft", files={"films": file.read_bytes()}, data=fields, timeout=120)


@pytest.mark.slow
def test_replicas_write_what_a_reporter_writes_and_no_reader_gets_anothers(remote, own, files):
    films = [read_film(path) for path in files]
    expected = [own.draft([film]) for film in films]
    assert len({draft.text() for draft in expected}) > 1  # or nothing could be mixed up
    with ThreadPoolExecutor(8) as readers:
        drafts = list(readers.map(lambda film: remote.draft([film]), films * 2))
        answers = list(readers.map(post, files))
    for draft, known in zip(drafts, expected * 2, strict=True):
        assert draft.text() == known.text()
        assert [t.log_prob for t in draft.tokens] == pytest.approx([t.log_prob for t in known.tokens], abs=1e-3)
        assert draft.model == own.names
    for answer, known in zip(answers, expected, strict=True):
        assert answer.status_code == 200
        assert (answer.json()["findings"], answer.json()["impression"]) == (known.findings, known.impression)
    assert httpx.get(f"{DOOR}/about").json()["model"] == own.names


@pytest.mark.slow
def test_the_other_questions_get_the_answers_of_a_reporter(remote, own, files):
    film = remote.check(read_film(files[0]))
    assert remote.check_film(film).chest
    assert remote.parameters() == own.parameters()
    assert remote.study("stitch") == own.study("stitch")
    draft, told = remote.draft([film]), []
    text = "There is a left pleural effusion."
    assert remote.impression([film], draft, text) == own.impression([film], draft, text)
    why = remote.why([film], draft, 0, progress=lambda done, of: told.append((done, of)))
    assert why.drop == pytest.approx(own.why([film], draft, 0).drop, abs=1e-3)
    assert told[-1] == (1, 1)
    assert remote.looking([film], draft).blank == pytest.approx(own.looking([film], draft).blank, abs=1e-3)
    assert remote.rescore([film], draft, [film.pixels]).before == pytest.approx(
        own.rescore([film], draft, [film.pixels]).before, abs=1e-2
    )
    with pytest.raises(EmrrgError, match="there is no sentence 99"):
        remote.why([film], draft, 99)
    with pytest.raises(FilmError, match="at most 4"):
        remote.draft([film] * 5)
    soon: Future[Reporter] = Future()
    app.load_behind(soon, None, cluster="auto")
    assert soon.result(30).draft([film]).text() == draft.text()


@pytest.mark.slow
def test_the_door_refuses_in_words(remote, files, tmp_path):
    page = tmp_path / "page.dcm"
    page.write_text("<html>")
    assert "must be a DICOM, PNG, JPEG or TIFF" in post(page).json()["error"]
    assert post(page).status_code == 422
    for answer in (
        httpx.post(f"{DOOR}/draft", data={"films": "text"}),
        httpx.post(f"{DOOR}/draft", files=[("films", b"x")] * 5),
        post(files[0], beams="many"),
        post(files[0], beams="0"),
        post(files[0], anyway="everything"),
    ):
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]
    assert httpx.get(f"{DOOR}/else").status_code == 404


@pytest.mark.slow
def test_when_too_many_wait_the_next_is_told_so_and_nothing_is_lost(remote, own, files):
    with ThreadPoolExecutor(40) as readers:
        answers = list(readers.map(post, [files[1]] * 40))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 0 < len(refused) < 40
    assert all(a.status_code == 503 and a.headers["retry-after"] and "try again" in a.json()["error"] for a in refused)
    known = own.draft([read_film(files[1])]).findings
    assert all(answer.json()["findings"] == known for answer in answers if answer.status_code == 200)


@pytest.mark.slow
def test_a_replica_is_killed_during_eight_drafts_and_each_arrives_once(remote, own, files, monkeypatch):
    film = read_film(files[0])
    known, died = own.draft([film]), []
    usual = serve._died
    monkeypatch.setattr(serve, "_died", lambda error: died.append(error) or usual(error))
    replica = remote._replicas.process.remote().result()

    def stream(_: int) -> list[int]:
        """How many tokens each yield has; the last is whole."""
        drafts = list(remote.stream([film], DecodeConfig()))
        assert drafts[-1].text() == known.text()
        assert [bool(draft.timings) for draft in drafts] == [False] * (len(drafts) - 1) + [True]
        return [len(draft.tokens) for draft in drafts]

    with ThreadPoolExecutor(8) as readers:
        answers = [readers.submit(stream, number) for number in range(8)]
        time.sleep(1.0)
        assert not all(answer.done() for answer in answers)
        os.kill(replica, signal.SIGKILL)
        lengths = [answer.result() for answer in answers]
    assert died, "no draft was on the replica that was killed"
    assert all(sorted(mine) == mine for mine in lengths)  # no text goes back

    ends, living = time.monotonic() + 90, set()  # another is started in its place
    while len(living - {replica}) < 2 and time.monotonic() < ends:
        living.add(remote._replicas.process.remote().result())
    assert len(living - {replica}) == 2


@pytest.mark.slow
def test_a_reader_who_stops_frees_the_replica(remote, files):
    film = read_film(files[0])
    drafts = remote.stream([film])
    next(drafts)
    drafts.close()
    assert remote.draft([film]).finished
