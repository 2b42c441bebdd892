"""Nearest vectors by cosine: a flat matrix on the disk, read as it is needed, or FAISS where there are very many.

Up to MANY entries every vector is compared: exact, without a further package, and quick. Beyond, FAISS (`pip install faiss-cpu`) does the same, and
its approximate index, `Clustered`, looks into a part of them only (measured by benchmarks/memory.py).
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from emrrg_core.errors import ConfigError

MANY = 100_000  # entries from which FAISS is asked for
_BLOCK = 65_536  # vectors compared at once: 64 MB of width 256


class Index(Protocol):
    """What finds neighbours."""

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Of queries (q, d): the cosines of the k nearest, best first, and their numbers: (q, k) float32 and int64; -1 where there are fewer."""


def normalised(vectors: np.ndarray) -> np.ndarray:
    """(n, d) to length 1, float32; one of length 0 stays."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


class Flat:
    """Compares with every vector. matrix: (n, d), of length 1, any float type; may be a memory map."""

    def __init__(self, matrix: np.ndarray) -> None:
        self._matrix = matrix

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        queries = normalised(queries)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        numbers = np.full((len(queries), k), -1, np.int64)
        for first in range(0, len(self._matrix), _BLOCK):
            block = np.asarray(self._matrix[first : first + _BLOCK], np.float32)
            both = np.concatenate([scores, queries @ block.T], axis=1)
            own = np.broadcast_to(np.arange(first, first + len(block)), (len(queries), len(block)))
            known = np.concatenate([numbers, own], axis=1)
            best = _best(both, known, k)
            scores, numbers = np.take_along_axis(both, best, 1), np.take_along_axis(known, best, 1)
        return scores, numbers


def _best(scores: np.ndarray, numbers: np.ndarray, k: int) -> np.ndarray:
    """Which k of each row, best first; by number where two are alike."""
    some = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    order = np.lexsort((np.take_along_axis(numbers, some, 1), -np.take_along_axis(scores, some, 1)), axis=1)
    return np.take_along_axis(some, order, 1)


class Faiss:
    """FAISS' exact index of inner products: the answers of Flat, several times as quick, with all vectors in memory as float32."""

    def __init__(self, matrix: np.ndarray) -> None:
        self._index = _faiss().IndexFlatIP(matrix.shape[1])
        _add(self._index, matrix)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores, numbers = self._index.search(normalised(queries), k)
        return scores, numbers


class Clustered:
    """FAISS' inverted lists over product-quantised vectors: for millions. Approximate: it looks into `probes` of its `lists`.

    Learns the lists from `sample` vectors. `save` and `load` keep it on the disk, where it can be mapped instead of read.
    """

    def __init__(
        self,
        matrix: np.ndarray,
        *,
        lists: int | None = None,
        bytes_each: int = 18,
        probes: int = 32,
        sample: int = 200_000,
        seed: int = 0,
    ) -> None:
        faiss, (n, d) = _faiss(), matrix.shape
        lists = lists or max(1, int(4 * n**0.5))
        self._index = faiss.index_factory(d, f"IVF{lists},PQ{bytes_each}x8", faiss.METRIC_INNER_PRODUCT)
        chosen = np.sort(np.random.default_rng(seed).choice(n, min(n, sample), replace=False))
        self._index.train(np.asarray(matrix[chosen], np.float32))
        _add(self._index, matrix)
        self._index.nprobe = probes

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores, numbers = self._index.search(normalised(queries), k)
        return scores, numbers

    def save(self, path: Path) -> None:
        _faiss().write_index(self._index, str(path))


def _add(index: Any, matrix: np.ndarray) -> None:
    for first in range(0, len(matrix), _BLOCK):
        index.add(np.ascontiguousarray(matrix[first : first + _BLOCK], np.float32))


def index_of(matrix: np.ndarray) -> Index:
    """What suits so many entries. Raises ConfigError where FAISS is wanted and not installed."""
    return Flat(matrix) if len(matrix) < MANY else Faiss(matrix)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            f"A memory of {MANY:,} entries or more needs FAISS ({error}): pip install faiss-cpu."
        ) from error
    return faiss
