"""Films that are sent here: a storage SCP (PS3.4 B) that drafts a study once nothing of it has come for some seconds.

    handlers, in pynetdicom's threads    store a film → incoming/<hash of its study>/, on the disk before it is acknowledged
    step, in the caller's thread         quiet studies → drafts → outbox → destination; films deleted once results are stored

A stop or a crash loses nothing that was acknowledged: films and results lie in the outbox, and the next start goes on with them.
"""

import hashlib
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydicom
from pydicom.uid import UID
from pynetdicom import ALL_TRANSFER_SYNTAXES, evt
from pynetdicom.ae import ApplicationEntity

from emrrg_core.errors import ConfigError, EmrrgError, FilmError
from emrrg_core.films.film import header_value, quiet_decoders
from emrrg_core.hospital import log
from emrrg_core.hospital.archive import prepare
from emrrg_core.hospital.destination import Archive, Entity
from emrrg_core.hospital.outbox import LONGEST, Outbox, write_private
from emrrg_core.hospital.study import FILM_CLASSES
from emrrg_core.reporter import Reporter

VERIFICATION = "1.2.840.10008.1.1"  # C-ECHO
QUIET = 10.0  # seconds without a new film after which a study is drafted
ROUND = 0.25  # seconds between two looks at what is quiet and what waits
SUCCESS, NO_ROOM, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xC000  # PS3.4 B.2.3
# films are single pictures: no video, and no pixels that lie elsewhere
SYNTAXES = [
    syntax
    for syntax in ALL_TRANSFER_SYNTAXES
    if not any(word in UID(syntax).name for word in ("MPEG", "HEVC", "JPIP", "SMPTE"))
]


class Listener:
    """Takes CR and DX images under the title `aet`, drafts, and sends what was made to `destination`.

    allowed: titles that may call; none: any. quiet: seconds. May be used as a context, which starts and stops it.
    """

    def __init__(
        self,
        reporter: Reporter,
        destination: Archive | Entity,
        outbox: Outbox,
        *,
        host: str = "127.0.0.1",
        port: int = 11112,
        aet: str = "EMRRG",
        allowed: Sequence[str] = (),
        quiet: float = QUIET,
    ) -> None:
        self._reporter, self._destination, self._outbox = reporter, destination, outbox
        self._address, self._quiet = (host, port), quiet
        try:
            self._entity = entity = ApplicationEntity(ae_title=aet)
            entity.require_called_aet, entity.require_calling_aet = True, list(allowed)
        except ValueError as error:
            raise ConfigError("An application entity title has 1 to 16 characters, no backslash among them.") from error
        entity.add_supported_context(VERIFICATION)
        for sop_class in FILM_CLASSES:
            entity.add_supported_context(sop_class, SYNTAXES)
        self._server: Any = None
        self._lock = threading.Lock()
        self._when: dict[str, float] = {}  # by folder of a study: when it is drafted, if no further film comes
        self._tries: dict[str, int] = {}
        self._refused: set[str] = set()  # kinds of files of which that was said
        self._numbers: dict[str, int] = {}
        self._drafted: dict[
            str, str | None
        ] = {}  # by folder: the key of results that must be stored before its films go

    def __enter__(self) -> "Listener":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """Where it listens; of port 0, the one that was free."""
        return int(self._server.socket.getsockname()[1])

    def start(self) -> None:
        """Raises ConfigError where nothing can listen there."""
        for home in sorted(self._outbox.incoming.iterdir()):  # of an earlier run
            self._when[home.name] = time.monotonic()
        handlers: list[Any] = [
            (evt.EVT_C_ECHO, lambda event: SUCCESS),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_ACCEPTED, self._accepted),
            (evt.EVT_REJECTED, _rejected),
        ]
        try:
            self._server = self._entity.start_server(self._address, block=False, evt_handlers=handlers)
        except OSError as error:
            said = error.strerror or error
            raise ConfigError(
                f"Nothing can listen on {self._address[0]}, port {self._address[1]} ({said}): name another."
            ) from error

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def run(self) -> None:
        """Until it is interrupted."""
        while True:
            self.step()
            time.sleep(ROUND)

    def step(self) -> None:
        """One round: what is quiet is drafted, what waits is sent, what is done with is deleted."""
        for home in self._ripe():
            self._draft(home)
        if self._outbox.due() and self._outbox.waiting():
            try:
                self._outbox.deliver(self._destination.store)
            except EmrrgError as error:
                log.warning("%d studies wait in the outbox. %s", len(self._outbox.waiting()), error)
        for name, key in list(self._drafted.items()):
            if key is None or not self._outbox.waits(key):
                if key is not None:
                    log.info("%s: stored.", self._called(name))
                self._forget(name)

    def _ripe(self) -> list[Path]:
        now = time.monotonic()
        with self._lock:
            names = [name for name, when in self._when.items() if when <= now]
            for name in names:
                del self._when[name]
        return [self._outbox.incoming / name for name in names]

    def _draft(self, home: Path) -> None:
        name = self._called(home.name)
        paths = sorted(home.glob("*.dcm"))
        key: str | None = None
        try:
            with self._outbox.scratch() as folder:
                key = prepare(
                    name, [*paths, *self._others(paths, folder)], self._reporter, self._outbox, self._destination
                )
        except FilmError as error:
            log.warning("%s: no draft. %s", name, " ".join(str(error).split()))
        except (
            EmrrgError,
            OSError,
        ) as error:  # an archive that does not answer, a full disk: nothing could be sent now anyway
            said = str(error) if isinstance(error, EmrrgError) else error.strerror or type(error).__name__
            log.warning("%s waits. %s", name, said)
            tries = self._tries[home.name] = self._tries.get(home.name, 0) + 1
            with self._lock:
                self._when.setdefault(home.name, time.monotonic() + min(LONGEST, self._quiet * 2.0 ** min(tries, 32)))
            return
        else:
            log.info("%s: %s", name, "drafted." if key else "its results are there already.")
        self._tries.pop(home.name, None)
        self._drafted[home.name] = key

    def _others(self, paths: Sequence[Path], folder: Path) -> list[Path]:
        """The films of the study that an archive has besides: a late film is drafted with those that came before it."""
        if not isinstance(self._destination, Archive) or not paths:
            return []
        with quiet_decoders():
            heads = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
            here = {str(head.SOPInstanceUID) for head in heads}
        return self._destination.films(str(heads[0].StudyInstanceUID), folder, but=here)

    def _forget(self, name: str) -> None:
        with self._lock:
            del self._drafted[name]
            if name not in self._when:  # else another film has come, and needs those that lie here
                shutil.rmtree(self._outbox.incoming / name, ignore_errors=True)

    def _called(self, name: str) -> str:
        number = self._numbers.setdefault(name, len(self._numbers) + 1)
        return f"Study {number} ({name[:8]})"

    def _store(self, event: Any) -> int:
        """Takes a film; its DIMSE status."""
        try:
            with quiet_decoders():
                uids = [str(header_value(event.dataset, word) or "") for word in ("StudyInstanceUID", "SOPInstanceUID")]
                data = event.encoded_dataset()
        except Exception:  # what is sent may be damaged in as many ways as a file
            uids, data = [""], b""
        if not all(uids):
            log.warning("A film was refused: it cannot be read, or has no UIDs.")
            return NOT_UNDERSTOOD
        study, film = (hashlib.sha256(uid.encode()).hexdigest() for uid in uids)
        home = self._outbox.incoming / study[:32]
        try:
            with self._lock:
                home.mkdir(mode=0o700, exist_ok=True)
                write_private(home / f"{film[:32]}.dcm", data)
                self._when[home.name] = time.monotonic() + self._quiet
        except OSError:
            log.warning("A film was refused: the outbox cannot be written. Make room.")
            return NO_ROOM
        return SUCCESS

    def _accepted(self, event: Any) -> None:
        """Says once of every kind of file that it is refused: many senders offer all kinds each time, and send one."""
        taken = {context.abstract_syntax for context in event.assoc.accepted_contexts}
        refused = {UID(context.abstract_syntax) for context in event.assoc.rejected_contexts} - taken
        names = {"a private kind" if uid.is_private else uid.name for uid in refused} - self._refused
        self._refused |= names
        if names:
            first, more = sorted(names)[:5], f" and {len(names) - 5} more" if len(names) > 5 else ""
            said = "Only CR and DX films are taken, in a transfer syntax for single pictures."
            log.warning("Refused: %s%s. %s", ", ".join(first), more, said)


def _rejected(event: Any) -> None:
    log.warning(
        "An association was refused: its calling title is not one of --from, or it calls another title than --aet."
    )
