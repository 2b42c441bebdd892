"""Readers at once, on this machine: python benchmarks/load.py [--json]

Readers ask the one reporter for a draft of a film each at the same moment, as the app's tabs do.

together     seconds until the last draft is there, for 1, 4 and 8 readers, over one reader's
first word   seconds until each reader's first words: median and 95th percentile
no guesses   the same token by token: there the batch is what helps
peak         memory of the process, with all eight under way

Medians of --repeats after a warm-up. Films are drawn chests, so no two drafts are of one film.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from emrrg_core.model.threads import wait_quietly

READERS = (1, 4, 8)


def wave(reporter: Any, films: Sequence[Any]) -> tuple[float, list[float]]:
    """Seconds until all drafts are there, and until each has its first words."""
    first, begun = [0.0] * len(films), time.perf_counter()

    def read(i: int) -> None:
        texts = reporter.stream([films[i]])
        next(texts)
        first[i] = time.perf_counter() - begun
        for _ in texts:
            pass

    threads = [threading.Thread(target=read, args=(i,)) for i in range(len(films))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begun, first


def measure(repeats: int) -> dict[str, Any]:
    import numpy as np
    import torch

    from emrrg_core import Reporter
    from emrrg_core.explain.faithfulness import drawn_chest
    from emrrg_core.films.film import Film

    rng = np.random.default_rng(0)
    films = [
        Film(
            pixels=drawn_chest(512, rng).astype(np.float32),
            name=f"Film {i}",
            format="PNG",
            spacing=None,
            steps=(),
            sha256=str(i),
            view=None,
        )
        for i in range(max(READERS))
    ]
    reporter = Reporter.load(share_cores=True)
    found: dict[str, Any] = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    }
    guesses = reporter._proposer
    for name, proposer in (("", guesses), ("_no_guesses", None)):
        reporter._proposer = proposer
        wave(reporter, films[:1])
        times: dict[int, list[float]] = {n: [] for n in READERS}
        firsts: dict[int, list[float]] = {n: [] for n in READERS}
        for _ in range(repeats if proposer else max(repeats // 2, 1)):
            for n in READERS:
                whole, first = wave(reporter, films[:n])
                times[n].append(whole)
                firsts[n] += first
        found[f"seconds{name}"] = {n: statistics.median(times[n]) for n in READERS}
        found[f"eight_over_one{name}"] = statistics.median(times[8]) / statistics.median(times[1])
        found[f"first_word_s{name}"] = {n: statistics.median(firsts[n]) for n in READERS}
        found[f"p95_first_word_s{name}"] = float(np.quantile(firsts[8], 0.95))
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    wait_quietly()
    found = measure(args.repeats)
    if args.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        for key, number in (value if isinstance(value, dict) else {"": value}).items():
            shown = f"{number:8.2f}" if isinstance(number, float) else f"{number!s:>8}"
            print(f"{f'{name} {key}'.strip():34} {shown}")


if __name__ == "__main__":
    main()
