"""Results that wait until they are stored, and what is needed to begin again after a stop.

    <folder>/<hash of where they go>/waiting/<key>/*.dcm    results of a study, to be stored together
                                     incoming/<hash>/*.dcm  films that `listen` took and that are not done with
                                     sent                   keys of what was stored, one a line
                                     lock                   held while a process uses it

<folder> is $EMRRG_HOME/outbox unless given; all of it is readable by its owner only. Results and films name their patient: they
are deleted as soon as the results are stored. A folder of results appears whole or not at all, by renaming.
"""

import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import filelock

from emrrg_core.errors import EmrrgError
from emrrg_core.hospital import log
from emrrg_core.model.language_model import cache_home

FIRST, LONGEST = 2.0, 900.0  # seconds to the second try, and at most between two
Store = Callable[
    [Sequence[bytes]], list[str]
]  # files of a study → why some were refused for good; raises to be called again


class ArchiveError(EmrrgError):
    """The other side refuses what was asked, and will again until somebody changes its settings or ours."""


class LinkError(ArchiveError):
    """The other side cannot be reached, or cannot now: to be tried again."""


class Outbox:
    """Of one destination. to: its address. Raises EmrrgError where the folder cannot be written, or another process uses it."""

    def __init__(self, folder: Path | None, to: str, *, first: float = FIRST, longest: float = LONGEST) -> None:
        root = (folder or cache_home() / "outbox").absolute()
        self.folder = root / hashlib.sha256(to.encode()).hexdigest()[:16]
        self.incoming, self._waiting = self.folder / "incoming", self.folder / "waiting"
        self._first, self._longest = first, longest
        self._tries, self._next = 0, 0.0
        with writing(root):
            for made in (root, self.folder, self.incoming, self._waiting):
                made.mkdir(parents=True, exist_ok=True, mode=0o700)
                made.chmod(0o700)
            self._lock = filelock.FileLock(self.folder / "lock", mode=0o600)
            try:
                self._lock.acquire(timeout=0)
            except filelock.Timeout as error:
                raise EmrrgError(
                    "Another EMRRG sends to the same archive from this outbox: name another with --outbox."
                ) from error
            for left in [*self.folder.glob("tmp-*"), *self.incoming.glob("*/.*")]:  # of a process that was killed
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            held = (self.folder / "sent").read_text() if (self.folder / "sent").exists() else ""
        self._sent = set(re.findall("^[0-9a-f]{64}$", held, re.MULTILINE))

    def close(self) -> None:
        self._lock.release()

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for as long as the block."""
        with tempfile.TemporaryDirectory(prefix="tmp-", dir=self.folder) as made:
            yield Path(made)

    def put(self, key: str, files: Mapping[str, bytes]) -> None:
        """Keeps results until `deliver` has stored them. key: `Study.key`; files: by their kind."""
        with writing(self.folder):
            aside = Path(tempfile.mkdtemp(prefix="tmp-", dir=self.folder))
            for kind, data in files.items():
                write_private(aside / f"{kind}.dcm", data)
            os.replace(aside, self._waiting / key)

    def waiting(self) -> list[str]:
        """Keys of the studies whose results wait, in the order of their coming."""
        return [path.name for path in sorted(self._waiting.iterdir(), key=lambda path: path.stat().st_mtime_ns)]

    def waits(self, key: str) -> bool:
        return (self._waiting / key).is_dir()

    def sent(self, key: str) -> bool:
        return key in self._sent

    def due(self) -> bool:
        return time.monotonic() >= self._next

    def deliver(self, store: Store) -> int:
        """Stores what waits, one study after the other, and deletes it here; how many studies. Raises the first of what `store` raised.

        A LinkError ends the round, for the next study would meet it too. After a failure `due` is False for FIRST seconds, and twice as
        long each time, up to LONGEST.
        """
        done, failed = 0, None
        for key in self.waiting():
            home = self._waiting / key
            try:
                for why in store([path.read_bytes() for path in sorted(home.glob("*.dcm"))]):
                    log.warning("%s", why)
                with writing(self.folder):  # what is stored and not noted is stored again, as the same objects
                    write_private(self.folder / "sent", f"{key}\n".encode(), append=True)
                    shutil.rmtree(home)
            except EmrrgError as error:
                failed = failed or error
                if isinstance(error, LinkError):
                    break
                continue
            self._sent.add(key)
            done += 1
        if done or failed is None:
            self._tries, self._next = 0, 0.0
        if failed is not None:
            self._next = time.monotonic() + min(self._longest, self._first * 2.0**self._tries)
            self._tries = min(self._tries + 1, 32)
            raise failed
        return done


def write_private(path: Path, data: bytes, *, append: bool = False) -> None:
    """For its owner only, and on the disk when it returns. A file appears whole."""
    aside = path if append else path.with_name(f".{path.name}")
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else os.O_TRUNC), 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if not append:
        os.replace(aside, path)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        said = error.strerror or type(error).__name__
        raise EmrrgError(
            f"The outbox {folder} cannot be written ({said}): make room, or name another folder with --outbox."
        ) from error
