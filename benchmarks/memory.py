"""Remembered cases in number: python benchmarks/memory.py [--entries 10000000] [--json]

Vectors of a memory's width, drawn around 5,000 centres. Build time, memory, and milliseconds a query, median of --queries, one at a time.

flat         every vector compared, from a mapped file
faiss        the same by FAISS, in memory
clustered    inverted lists over quantised vectors; recall: how many of the ten nearest it finds

`faiss-cpu` is needed.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from emrrg_core.memory.cases import WIDTH
from emrrg_core.memory.index import Clustered, Faiss, Flat, Index, normalised

NEAR, CENTRES, BLOCK = 10, 5_000, 500_000


def draw(path: Path, entries: int) -> np.ndarray:
    """Vectors of length 1, (entries, WIDTH) float32, as a mapped file."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CENTRES, WIDTH)).astype(np.float32)
    made = np.lib.format.open_memmap(path, "w+", np.float32, (entries, WIDTH))
    for first in range(0, entries, BLOCK):
        n = min(BLOCK, entries - first)
        noise = rng.standard_normal((n, WIDTH), dtype=np.float32)
        made[first : first + n] = normalised(centres[rng.integers(0, CENTRES, n)] + 0.4 * noise)
    made.flush()
    return np.load(path, mmap_mode="r")


def asked(index: Index, queries: np.ndarray) -> tuple[float, np.ndarray]:
    """Milliseconds a query, and what was found."""
    times, found = [], []
    for query in queries:
        begun = time.perf_counter()
        found.append(index.search(query[None], NEAR)[1][0])
        times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times), np.array(found)


def resident() -> float:
    """MB of this process that are no file's."""
    import psutil

    info = psutil.Process().memory_info()
    return (info.rss - info.shared) / 1e6


def measure(entries: int, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "entries": entries,
        "width": WIDTH,
    }
    with tempfile.TemporaryDirectory() as folder:
        matrix = draw(Path(folder) / "vectors.npy", entries)
        rng = np.random.default_rng(1)
        queries = normalised(
            matrix[np.sort(rng.choice(entries, count, replace=False))] + 0.05 * rng.standard_normal((count, WIDTH))
        )
        truth = None
        for name, kind in (("flat", Flat), ("faiss", Faiss), ("clustered", Clustered)):
            before, begun = resident(), time.perf_counter()
            index = kind(matrix)
            row = {"build_s": time.perf_counter() - begun, "memory_mb": resident() - before}
            row["ms_a_query"], near = asked(index, queries[: count if name != "flat" else 5])
            if name == "faiss":
                truth = near
            elif name == "clustered" and truth is not None:
                row["recall_at_10"] = float(
                    np.mean([len(set(a) & set(b)) / NEAR for a, b in zip(near, truth, strict=True)])
                )
            found[name] = row
            del index
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    found = measure(args.entries, args.queries)
    if args.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        for key, number in (value if isinstance(value, dict) else {"": value}).items():
            shown = f"{number:12.2f}" if isinstance(number, float) else f"{number!s:>12}"
            print(f"{f'{name} {key}'.strip():30} {shown}")


if __name__ == "__main__":
    main()
