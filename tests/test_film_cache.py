"""The cache of decoded films: one whole file or none, whoever builds it and however the build ends."""

import hashlib
import json
import shutil
import threading
import tracemalloc
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from emrrg_core.data.studies import FilmCache, Study
from emrrg_core.errors import DataError
from tests.phantom import make_phantom

SIZE = 48


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> list[Path]:
    """Four different phantoms on disk."""
    folder = tmp_path_factory.mktemp("films")
    paths = [folder / f"{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        make_phantom(i, height=128, width=128 + 8 * i).save_png(path)
    return paths


def study(name: str, *files: Path) -> Study:
    return Study(name, "ours", "train", name, files, {}, None, "", "")


@pytest.fixture
def studies(films) -> list[Study]:
    """Three studies: one film, two films, one film."""
    return [study("one", films[0]), study("two", films[1], films[2]), study("three", films[3])]


@pytest.fixture
def decodes(monkeypatch) -> Callable[[Callable[[str, Path, int], np.ndarray]], None]:
    """Puts another decoder in place."""
    return lambda decode: monkeypatch.setattr(FilmCache, "_decode", staticmethod(decode))


def forbidden(name: str, file: Path, size: int) -> np.ndarray:
    raise AssertionError(f"{file} was decoded")


def names(folder: Path) -> list[str]:
    return sorted(path.name.split("-")[0] + path.suffix for path in folder.iterdir())


def test_views_are_all_films_of_a_study_in_their_order_and_an_item_is_the_first(films, studies, tmp_path):
    cache = FilmCache(studies, tmp_path, SIZE)
    alone = FilmCache([study(path.name, path) for path in films], tmp_path, SIZE)
    by_file = {path: alone[study(path.name, path)] for path in films}
    for one in studies:
        views = cache.views(one)
        assert (views.shape, views.dtype) == ((len(one.files), SIZE, SIZE), np.uint8)
        np.testing.assert_array_equal(views, np.stack([by_file[file] for file in one.files]))
        np.testing.assert_array_equal(cache[one], views[0])
    assert len({film.tobytes() for film in by_file.values()}) == 4


def test_a_cache_of_an_earlier_version_is_still_used(studies, tmp_path, decodes):
    """Its name: the size, and a hash of every study's id, first file's bytes and time."""
    single = [studies[0], studies[2]]
    stamps = [[s.id, s.files[0].stat().st_size, s.files[0].stat().st_mtime_ns] for s in single]
    key = hashlib.sha256(json.dumps([SIZE, stamps]).encode()).hexdigest()[:16]
    stored = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE), dtype=np.uint8)
    np.save(tmp_path / f"films-{SIZE}-{key}.npy", stored)
    decodes(forbidden)
    cache = FilmCache(single, tmp_path, SIZE)
    np.testing.assert_array_equal(np.stack([cache[s] for s in single]), stored)


def test_worker_processes_write_the_same_file_and_name_a_film_that_cannot_be_read(films, studies, tmp_path):
    many = [study(f"{i}", films[i % 4]) for i in range(70)]  # more than two tasks
    FilmCache(many, tmp_path / "here", SIZE)
    FilmCache(many, tmp_path / "there", SIZE, workers=2)
    (here,), (there,) = (list((tmp_path / name).iterdir()) for name in ("here", "there"))
    assert here.name == there.name
    assert here.read_bytes() == there.read_bytes()
    (tmp_path / "torn.png").write_bytes(films[0].read_bytes()[:200])
    with pytest.raises(DataError, match="study torn"):
        FilmCache([*many, study("torn", tmp_path / "torn.png")], tmp_path / "torn", SIZE, workers=2)
    assert names(tmp_path / "torn") == []


@pytest.mark.parametrize("end", [KeyboardInterrupt, MemoryError, DataError])
def test_a_build_that_ends_early_leaves_nothing(studies, tmp_path, decodes, end):
    def decode(name: str, file: Path, size: int) -> np.ndarray:
        if name == "three":
            raise end
        return np.zeros((size, size), np.uint8)

    decodes(decode)
    with pytest.raises(end):
        FilmCache(studies, tmp_path, SIZE)
    assert names(tmp_path) == []


def test_two_that_build_at_once_do_not_meet(studies, tmp_path, decodes):
    """Both are amid their build before either ends."""
    both, real, caches = threading.Barrier(2, timeout=60), FilmCache._decode, []

    def decode(name: str, file: Path, size: int) -> np.ndarray:
        if name == "three":
            both.wait()
        return real(name, file, size)

    decodes(decode)
    builders = [threading.Thread(target=lambda: caches.append(FilmCache(studies, tmp_path, SIZE))) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    decodes(real)
    expected = FilmCache(studies, tmp_path / "alone", SIZE)
    assert len(caches) == 2
    for cache in [*caches, FilmCache(studies, tmp_path, SIZE)]:
        for one in studies:
            np.testing.assert_array_equal(cache.views(one), expected.views(one))
    shutil.rmtree(tmp_path / "alone")
    assert names(tmp_path) == ["films.npy", "views.npy"]


def test_memory_does_not_grow_with_the_set(films, tmp_path, decodes):
    decodes(lambda name, file, size: np.zeros((size, size), np.uint8))
    many = [study(f"{i}", films[0]) for i in range(400)]  # 400 × 160² = 10 MB
    tracemalloc.start()
    try:
        FilmCache(many, tmp_path, 160)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


def test_a_disk_without_room_is_told_before_anything_is_decoded(studies, tmp_path, decodes, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 3 * SIZE * SIZE - 1))
    decodes(forbidden)
    with pytest.raises(DataError, match=f"needs {3 * SIZE * SIZE:,} bytes"):
        FilmCache(studies, tmp_path, SIZE)


def test_what_cannot_be_cached_is_refused_in_words(films, studies, tmp_path):
    with pytest.raises(DataError, match="study lost"):
        FilmCache([study("lost", tmp_path / "nowhere.png")], tmp_path, SIZE)
    with pytest.raises(DataError, match="Of 4 studies only 3 have an id of their own"):
        FilmCache([*studies, study("one", films[3])], tmp_path, SIZE)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        FilmCache(studies, tmp_path / "file", SIZE)
