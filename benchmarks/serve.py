"""Replicas on this machine: python benchmarks/serve.py [--json] [--films N]

one          one replica with every core
many         as many replicas as cores, a thread each
alone        the same drafts by a Reporter in this process, READERS at a time, with every core

Drafts a minute of drawn films, READERS asked for at once through the HTTP door; medians of --repeats waves after one to warm up. peak_mb:
memory of all replicas and Ray's own processes.
"""

import argparse
import io
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from emrrg_core.model.threads import wait_quietly

READERS = 8
PORT = 8377


def films(count: int) -> list[bytes]:
    """Drawn chests as PNG files."""
    import numpy as np
    from PIL import Image

    from emrrg_core.explain.faithfulness import drawn_chest

    made = []
    for seed in range(count):
        file = io.BytesIO()
        Image.fromarray((drawn_chest(512, np.random.default_rng(seed)) * 255).astype(np.uint8)).save(file, "PNG")
        made.append(file.getvalue())
    return made


def drafts_a_minute(draft: Callable[[bytes], object], given: Sequence[bytes], repeats: int) -> float:
    seconds = []
    with ThreadPoolExecutor(READERS) as readers:
        for _ in range(repeats + 1):
            begun = time.perf_counter()
            list(readers.map(draft, given))
            seconds.append(time.perf_counter() - begun)
    return 60 * len(given) / statistics.median(seconds[1:])


def memory() -> float:
    """MB of this process's descendants, what they share counted once."""
    import psutil

    return sum(p.memory_full_info().pss for p in psutil.Process().children(recursive=True)) / 1e6


def replicas(count: int, given: Sequence[bytes], repeats: int) -> dict[str, float]:
    import httpx

    from emrrg_core.scale import serve

    begun = time.perf_counter()
    serve.start(replicas=count, port=PORT)
    started = time.perf_counter() - begun

    def draft(film: bytes) -> None:
        httpx.post(f"http://127.0.0.1:{PORT}/draft", files={"films": film}, timeout=300).raise_for_status()

    try:
        return {"start_s": started, "drafts_a_minute": drafts_a_minute(draft, given, repeats), "peak_mb": memory()}
    finally:
        serve.stop()


def alone(given: Sequence[bytes], repeats: int) -> dict[str, float]:
    import tempfile

    from emrrg_core import Reporter

    reporter = Reporter.load()

    def draft(film: bytes) -> None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(film)
            file.flush()
            reporter.draft([reporter.read(file.name)]).to_dict()

    return {"drafts_a_minute": drafts_a_minute(draft, given, repeats)}


def main(argv: Sequence[str] | None = None) -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--films", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    wait_quietly()
    given, cores = films(args.films), os.cpu_count() or 1
    found: dict[str, Any] = {
        "machine": f"{platform.processor() or platform.machine()}, {cores} cores, torch {torch.__version__}",
        "one": replicas(1, given, args.repeats),
        "many": replicas(cores, given, args.repeats) | {"replicas": cores},
        "alone": alone(given, args.repeats),
    }
    found["many_over_one"] = found["many"]["drafts_a_minute"] / found["one"]["drafts_a_minute"]
    found["one_over_alone"] = found["one"]["drafts_a_minute"] / found["alone"]["drafts_a_minute"]
    if args.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        for key, number in (value if isinstance(value, dict) else {"": value}).items():
            shown = f"{number:10.2f}" if isinstance(number, float) else f"{number!s:>10}"
            print(f"{f'{name} {key}'.strip():34} {shown}")


if __name__ == "__main__":
    main()
