"""How many threads to compute with: as many as there are cores free, not as many as the machine has.

Two threads that wait for each other on one core are slower than one thread, and worse where waiting threads spin: so the programs also set
OMP_WAIT_POLICY=passive before torch is imported (`wait_quietly`).
"""

import math
import os
import time
from pathlib import Path
from typing import NamedTuple

import psutil

WINDOW = 0.1  # seconds over which use is measured at least
STALE = 20.0  # seconds after which an earlier sample says nothing of now


def wait_quietly() -> None:
    """Threads that wait give their core away. Must be called before torch is imported; what the user has set stands."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def allowed_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores that this process may use: by its affinity and by its container's quota (cgroup v2 cpu.max, v1 cpu.cfs_quota_us)."""
    try:
        cores = float(len(os.sched_getaffinity(0)))
    except AttributeError:  # not on every system
        cores = float(os.cpu_count() or 1)
    for quota, period in (
        (cgroup / "cpu.max", None),
        (cgroup / "cpu/cpu.cfs_quota_us", cgroup / "cpu/cpu.cfs_period_us"),
    ):
        try:
            words = quota.read_text().split() + (period.read_text().split() if period else [])
            if float(words[0]) > 0 < float(words[1]):
                return min(cores, float(words[0]) / float(words[1]))
        except (OSError, ValueError, IndexError):  # there is no such file, or it says "max"
            continue
    return cores


class Sample(NamedTuple):
    """How long cores have been at work since the machine's start, seconds: all of them, and for this process."""

    at: float
    all: float
    own: float


def sample() -> Sample:
    times = psutil.cpu_times()
    busy = sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
    own = os.times()
    return Sample(time.monotonic(), busy, own.user + own.system + own.children_user + own.children_system)


_last: tuple[Sample, float] | None = None  # the latest sample, and what was free until then


def free_cores() -> float:
    """Allowed cores less those that other programs use: 0 at least. Measured since the last call; not anew within WINDOW of it."""
    global _last
    if _last is not None and time.monotonic() - _last[0].at < WINDOW:
        return _last[1]
    before = _last[0] if _last is not None else None
    if before is None or time.monotonic() - before.at > STALE:
        before = sample()
        time.sleep(WINDOW)
    now = sample()
    _last = now, free_between(before, now, allowed_cores())
    return _last[1]


def free_between(before: Sample, now: Sample, allowed: float) -> float:
    """Of `allowed` cores, those that others left free between two samples."""
    seconds = max(now.at - before.at, 1e-6)
    others = (now.all - before.all - (now.own - before.own)) / seconds
    return min(max(allowed - max(others, 0.0), 0.0), allowed)


def use_free_cores() -> int:
    """Let torch compute with as many threads as cores are free, at least one, in the calling thread. Returns how many.

    A number that the user has set (OMP_NUM_THREADS) stands.
    """
    import torch

    if os.environ.get("OMP_NUM_THREADS"):
        return int(torch.get_num_threads())
    count = max(1, math.floor(free_cores() + 0.5))
    if count != torch.get_num_threads():
        torch.set_num_threads(count)
    return count
