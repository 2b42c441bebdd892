"""One model for many readers: everyone's text is what it would be alone, no one waits for another's end, and what is given up takes no time."""

import threading
import time
from collections.abc import Callable

import pytest
import torch

from emrrg_core.config import DecodeConfig
from emrrg_core.model.engine import Engine
from emrrg_core.model.generation import Task, write
from emrrg_core.model.writing import Writing
from tests.test_proposals import Guess, assert_same, ids

LONG = DecodeConfig(max_new_tokens=40)
WAIT = 30.0  # seconds after which a thread that has not ended never will


@pytest.fixture
def model(build, open_gates, tokenizer):
    made = open_gates(build(queries=True), seed=1).requires_grad_(False)
    made.llm.lm_head.weight[tokenizer.eos_token_id] *= 3.0
    return made


@pytest.fixture
def films(model):
    """Six films and their drafts, of unequal length, one of them unended."""
    torch.manual_seed(5)
    seen = [model.encode(torch.randn(1, 1, 3, 64, 64) * (1 + i / 2)) for i in range(6)]
    alone = [write(model, film, LONG)[0] for film in seen]
    assert len({len(draft.tokens) for draft in alone}) > 2
    return list(zip(seen, alone, strict=True))


def together(*work: Callable[[], object]) -> list[object]:
    """What each gives, run at the same time; raises what one of them raises."""
    found: list[object] = [None] * len(work)

    def run(i: int) -> None:
        try:
            found[i] = work[i]()
        except BaseException as error:
            found[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return found


def last(texts) -> Writing:
    *_, whole = texts
    return whole


@pytest.mark.parametrize("guessing", [False, True])
def test_everyones_draft_is_what_it_would_be_alone(model, films, guessing):
    """With guesses that go wrong in the middle, rows are of unequal length; without, they join at unequal passes."""
    engine = Engine(model)

    def half_right(written: list[int]) -> list[int]:
        known = next((ids(d) for _, d in films if ids(d)[: len(written)] == written), [])
        rest = known[len(written) :]
        return [*rest[:3], *((token + 1) % 200 for token in rest[3:6])]

    guess = Guess(half_right) if guessing else None
    drafts = together(*(lambda film=film: last(engine.stream(lambda: film, LONG, guess)) for film, _ in films))
    assert_same(drafts, [draft for _, draft in films])


def passes(model) -> list[tuple[int, int]]:
    """Rows and tokens of every pass from now on."""
    seen: list[tuple[int, int]] = []
    model.llm.model.layers[0].register_forward_pre_hook(
        lambda _m, args, kwargs: seen.append(tuple((args[0] if args else kwargs["hidden_states"]).shape[:2])),
        with_kwargs=True,
    )
    return seen


def held(engine: Engine) -> tuple[threading.Event, threading.Thread]:
    """Keep the engine from starting until the event is set, so that requests wait in a known order."""
    go, busy = threading.Event(), threading.Event()

    def wait() -> None:
        busy.set()
        go.wait(WAIT)

    thread = threading.Thread(target=lambda: engine.run(wait))
    thread.start()
    busy.wait(WAIT)
    return go, thread


def submitted(engine: Engine, *work: Callable[[], object]) -> list[threading.Thread]:
    """Start each in turn, and wait until the engine knows of it."""
    threads = []
    for one in work:
        before = len(engine._waiting)
        threads.append(threading.Thread(target=one))
        threads[-1].start()
        limit = time.monotonic() + WAIT
        while len(engine._waiting) == before and time.monotonic() < limit:
            time.sleep(0.001)
    return threads


def test_drafts_are_written_in_one_batch(model, films):
    engine, seen = Engine(model), passes(model)
    go, first = held(engine)
    threads = submitted(engine, *(lambda film=film: last(engine.stream(lambda: film, LONG)) for film, _ in films[:4]))
    go.set()
    for thread in [first, *threads]:
        thread.join(WAIT)
    longest = max(len(draft.tokens) for _, draft in films[:4])
    assert max(rows for rows, _ in seen) > 2
    assert len(seen) < longest + 2 * len(films[:4])  # not the sum of their lengths


def test_first_words_come_by_arrival_and_before_anyone_has_ended(model, films):
    engine, events = Engine(model), []

    def draft(number: int) -> None:
        film, _ = films[number]
        for i, _text in enumerate(engine.stream(lambda: film, LONG)):
            if not i:
                events.append(number)

    go, first = held(engine)
    threads = submitted(engine, *(lambda n=n: draft(n) for n in (3, 1, 4, 0)))
    go.set()
    for thread in [first, *threads]:
        thread.join(WAIT)
    assert sorted(events) == [0, 1, 3, 4]
    assert events[0] == 3


def test_a_draft_that_is_given_up_leaves_with_the_next_pass(model, films):
    """Work is let through piece by piece, so that both are under way when one is given up."""
    model.llm.lm_head.weight[model.tokenizer.eos_token_id] = 0.0  # none ends by itself
    allowed, seen = threading.Semaphore(0), passes(model)
    engine = Engine(model, lambda: allowed.acquire(timeout=WAIT))
    film, _ = films[0]

    def reached(count: int) -> None:
        limit = time.monotonic() + WAIT
        while len(seen) < count and time.monotonic() < limit:
            time.sleep(0.001)
        assert len(seen) == count

    (kept,) = submitted(engine, lambda: last(engine.stream(lambda: film, LONG)))
    allowed.release()  # the first pass of one
    reached(1)
    left = engine.stream(lambda: film, LONG)
    (other,) = submitted(engine, lambda: next(left))
    allowed.release(3)  # a pass, the first pass of the other, and a pass of both
    reached(4)
    other.join(WAIT)
    left.close()
    allowed.release(1000)
    kept.join(WAIT)
    rows = [rows for rows, _ in seen]
    assert rows[:4] == [1, 1, 1, 2]
    assert set(rows[5:]) == {1}  # the pass that was under way may still have had both
    assert len(rows) <= LONG.max_new_tokens + 1


def test_a_stop_before_the_first_word_leaves_nothing_to_compute(model, films):
    """Whoever stops while they wait is not seen; whoever stops while their film is seen is not written about. Neither waits for the others."""
    engine, seen, stopped = Engine(model), passes(model), threading.Event()
    film, draft = films[0]
    asked: list[str] = []

    def see(name: str, *, stop: bool = False):
        asked.append(name)
        if stop:
            stopped.set()
        return film

    texts: dict[str, list[Writing]] = {}

    def reader(name: str, stop: bool, stopped: Callable[[], bool]) -> None:
        texts[name] = list(engine.stream(lambda: see(name, stop=stop), LONG, stopped=stopped))

    go, first = held(engine)
    waiting = threading.Event()
    threads = submitted(
        engine,
        lambda: reader("waiting", False, waiting.is_set),
        lambda: reader("seen", True, stopped.is_set),
    )
    waiting.set()
    threads[0].join(WAIT)
    assert not threads[0].is_alive()  # before the engine has come to it
    go.set()
    for thread in [first, *threads]:
        thread.join(WAIT)
    assert engine.run(lambda: len(seen)) == 0
    assert (asked, texts) == (["seen"], {"waiting": [], "seen": []})
    assert_same([last(engine.stream(lambda: film, LONG))], [draft])


def test_a_stop_ends_a_draft_within_a_pass(model, films):
    model.llm.lm_head.weight[model.tokenizer.eos_token_id] = 0.0
    engine, seen, (film, _) = Engine(model), passes(model), films[0]
    found: list[Writing] = []
    for text in engine.stream(lambda: film, LONG, stopped=lambda: len(seen) >= 5):
        found.append(text)
    engine.run(lambda: None)
    assert len(found) <= 5
    assert len(seen) == 5


def test_drafts_that_cannot_be_joined_fail_and_the_engine_goes_on(model, films, monkeypatch):
    model.llm.lm_head.weight[model.tokenizer.eos_token_id] = 0.0
    engine, (film, _) = Engine(model), films[0]

    def broken(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(Task, "join", broken)
    told = []

    def draft() -> None:
        try:
            list(engine.stream(lambda: film, LONG))
        except MemoryError as error:
            told.append(str(error))

    go, first = held(engine)
    threads = submitted(engine, draft, draft)
    go.set()
    for thread in [first, *threads]:
        thread.join(WAIT)
        assert not thread.is_alive()
    assert told == ["no room"] * 2
    assert engine.run(lambda: "still here") == "still here"


def test_what_fails_is_told_to_its_own_reader_alone(model, films):
    engine, (film, draft) = Engine(model), films[0]

    def broken():
        raise MemoryError("too large")

    def fails() -> str:
        with pytest.raises(MemoryError, match="too large"):
            list(engine.stream(broken, LONG))
        with pytest.raises(ZeroDivisionError):
            engine.run(lambda: 1 / 0)
        return "told"

    told, whole = together(fails, lambda: last(engine.stream(lambda: film, LONG)))
    assert told == "told"
    assert_same([whole], [draft])


def test_other_work_takes_its_turn_between_passes(model, films):
    model.llm.lm_head.weight[model.tokenizer.eos_token_id] = 0.0
    engine, (film, _) = Engine(model), films[0]
    texts = engine.stream(lambda: film, LONG)
    next(texts)
    assert engine.run(lambda: "now") == "now"
    written = len(next(texts).tokens)
    assert written < LONG.max_new_tokens
    assert len(last(texts).tokens) == LONG.max_new_tokens


def test_beams_and_other_settings_are_written_beside(model, films):
    engine = Engine(model)
    (one, _), (two, draft), (three, _) = films[:3]
    beams, short = DecodeConfig(max_new_tokens=12, beams=3), DecodeConfig(max_new_tokens=3)
    found = together(
        lambda: last(engine.stream(lambda: one, beams, Guess(lambda written: [1, 2]))),
        lambda: last(engine.stream(lambda: two, LONG)),
        lambda: last(engine.stream(lambda: three, short)),
    )
    assert_same(found, [write(model, one, beams)[0], draft, write(model, three, short)[0]])


def test_before_every_piece_of_work_the_threads_are_chosen(model, films):
    calls: list[str] = []
    engine = Engine(model, lambda: calls.append(threading.current_thread().name))
    list(engine.stream(lambda: films[0][0], DecodeConfig(max_new_tokens=3)))
    assert len(calls) >= 3
    assert set(calls) == {"emrrg-engine"}


def test_a_closed_engine_has_no_thread_and_takes_nothing_more(tiny):
    engine = Engine(tiny)
    assert engine.run(lambda: 5) == 5
    thread = engine._thread
    assert thread is not None
    engine.close()
    assert not thread.is_alive()
    with pytest.raises(RuntimeError, match="ending"):
        engine.run(lambda: 5)
