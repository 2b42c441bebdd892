"""Threads are chosen by the cores that are free."""

import subprocess
import sys
import time

import pytest

from emrrg_core.model import threads
from emrrg_core.model.threads import Sample, allowed_cores, free_between


@pytest.mark.parametrize(
    ("others", "own", "free"),
    [
        (0.0, 0.0, 4.0),
        (0.0, 40.0, 4.0),  # what we use ourselves is ours
        (10.0, 20.0, 3.0),
        (20.0, 0.0, 2.0),
        (60.0, 0.0, 0.0),  # of a machine with more cores than we may use
        (-1.0, 0.0, 4.0),  # clocks are coarse
    ],
)
def test_free_is_what_is_allowed_less_what_others_use(others, own, free):
    assert free_between(Sample(5, 100, 30), Sample(15, 100 + others + own, 30 + own), 4.0) == free


@pytest.mark.parametrize(
    ("text", "cores"), [("150000 100000", 1.5), ("50000 100000", 0.5), ("max 100000", None), ("", None)]
)
def test_a_containers_quota_counts(tmp_path, text, cores):
    without = allowed_cores(tmp_path)
    (tmp_path / "cpu.max").write_text(text)
    assert allowed_cores(tmp_path) == (min(cores, without) if cores else without)


def test_the_older_form_of_a_quota_counts(tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000")
    for quota, cores in (("-1", None), ("50000", 0.5)):
        (tmp_path / "cpu/cpu.cfs_quota_us").write_text(quota)
        assert allowed_cores(tmp_path) == (cores or allowed_cores(tmp_path / "none"))


def test_a_busy_neighbour_is_seen():
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(int(allowed_cores()) + 1)]
    try:
        time.sleep(0.5)
        before = threads.sample()
        time.sleep(0.5)
        assert free_between(before, threads.sample(), allowed_cores()) < allowed_cores() - 0.5
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_use_is_not_measured_anew_within_the_window(monkeypatch):
    slept = []
    monkeypatch.setattr(threads.time, "sleep", slept.append)
    monkeypatch.setattr(threads, "_last", None)
    first = threads.free_cores()
    assert slept == [threads.WINDOW]
    assert threads.free_cores() == first
    assert slept == [threads.WINDOW]


def test_at_least_one_thread_computes(monkeypatch):
    import torch

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    had = torch.get_num_threads()
    try:
        for free, expected in ((0.0, 1), (0.4, 1), (1.5, 2), (2.0, 2)):
            monkeypatch.setattr(threads, "free_cores", lambda free=free: free)
            assert threads.use_free_cores() == expected == torch.get_num_threads()
    finally:
        torch.set_num_threads(had)


def test_what_the_user_has_set_stands(monkeypatch):
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(threads, "free_cores", lambda: 7.0)
    assert threads.use_free_cores() == torch.get_num_threads() != 7
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    threads.wait_quietly()
    assert threads.os.environ["OMP_WAIT_POLICY"] == "active"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    threads.wait_quietly()
    assert threads.os.environ["OMP_WAIT_POLICY"] == "passive"
