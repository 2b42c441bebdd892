"""Where films come from and results go: an archive by DICOMweb (PS3.18), or an application entity by C-STORE (PS3.4 B).

    Archive(url)                       QIDO-RS to find, WADO-RS to fetch, STOW-RS to store
    Entity(host, port, title, own)     C-STORE, and nothing else: it cannot be asked what it has

User and password of a web archive come from ~/.netrc, its certificate authority from REQUESTS_CA_BUNDLE: requests reads
both. No error quotes an address with a UID in it, a header, or what the other side says in words.
"""

import re
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import requests
from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.ae import ApplicationEntity

from emrrg_core.errors import ConfigError, EmrrgError
from emrrg_core.films.film import quiet_decoders
from emrrg_core.hospital.outbox import ArchiveError, LinkError, write_private
from emrrg_core.hospital.study import FILM_CLASSES

CONNECT, ANSWER = 10.0, 60.0  # seconds to wait for a connection, for an answer
DUPLICATE = 0x0111  # PS3.7 C.5.10: it has this very object
_LATER = (408, 425, 429)  # HTTP: not now
_STUDY, _SERIES, _INSTANCE, _CLASS = "0020000D", "0020000E", "00080018", "00080016"


class Archive:
    """A DICOMweb archive. url: of the service, such as http://127.0.0.1:8042/dicom-web. Raises ConfigError for another URL."""

    def __init__(self, url: str) -> None:
        self.address = url.rstrip("/")
        if not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s?#]*)?", self.address):
            raise ConfigError(
                "The archive's URL is http://HOST:PORT/PATH of its DICOMweb service, without user, password or query."
            )
        try:
            self._client = DICOMwebClient(
                self.address, headers={"Accept": "application/dicom+json"}, timeout=(CONNECT, ANSWER)
            )
        except ValueError as error:
            raise ConfigError(
                "The archive's URL is not one: give http://HOST:PORT/PATH of its DICOMweb service."
            ) from error
        self._client.set_http_retry_params(retry=False)  # the outbox tries again

    def studies(self, date: str) -> list[str]:
        """UIDs of the studies of a day or of days (YYYYMMDD or YYYYMMDD-YYYYMMDD) with CR or DX in them, in order of their UIDs."""
        found: set[str] = set()
        for modality in ("CR", "DX"):
            filters = {"StudyDate": date, "ModalitiesInStudy": modality}
            found |= {row[0] for row in self._all("studies", [_STUDY], search_filters=filters)}
        return sorted(found)

    def films(self, study: str, folder: Path, *, but: Collection[str] = ()) -> list[Path]:
        """Fetches the CR and DX images of a study into a folder, each as the archive keeps it. Empty where the study has none.

        but: SOP Instance UIDs that are not needed.
        """
        paths: list[Path] = []
        rows = self._all("instances", [_INSTANCE, _SERIES, _CLASS], study_instance_uid=study, fields=["SOPClassUID"])
        for instance, series, sop_class in sorted(rows):
            if sop_class not in FILM_CLASSES or instance in but:
                continue
            with _web():
                made = self._client.retrieve_instance(
                    study, series, instance, media_types=(("application/dicom", "*"),)
                )
                whole = BytesIO()
                pydicom.dcmwrite(whole, made, enforce_file_format=True)
            paths.append(folder / f"{len(paths):04}.dcm")
            write_private(paths[-1], whole.getvalue())
        return paths

    def held(self, study: str) -> set[str]:
        """SOP Instance UIDs of all that the archive has of a study."""
        return {row[0] for row in self._all("instances", [_INSTANCE], study_instance_uid=study)}

    def holds(self, study: str, uids: Sequence[str]) -> bool:
        """Whether any of these is in the study: an archive need not take every kind."""
        return not self.held(study).isdisjoint(uids)

    def store(self, files: Sequence[bytes]) -> list[str]:
        """Stores files of one study there, but those that the archive has. Returns why some were refused for good.

        Raises LinkError, ArchiveError where none or not all could be stored now: to be called again with all of them.
        """
        with quiet_decoders():
            made = [pydicom.dcmread(BytesIO(data)) for data in files]
        held = self.held(str(made[0].StudyInstanceUID))
        new = [one for one in made if one.SOPInstanceUID not in held]
        if not new:
            return []
        with _web():
            try:
                said = self._client.store_instances(new, study_instance_uid=str(made[0].StudyInstanceUID))
            except requests.HTTPError as error:
                if error.response is None or error.response.status_code != 409:  # 409: it stored none, and says why
                    raise
                said = Dataset.from_json(error.response.json())
            items = said.get("FailedSOPSequence") or ()
            failed = {str(item.ReferencedSOPInstanceUID): int(item.FailureReason) for item in items}
        return _judged([(_class_name(one.SOPClassUID), failed.get(str(one.SOPInstanceUID), 0)) for one in new])

    def _all(self, what: str, wanted: Sequence[str], **asked: Any) -> set[tuple[str, ...]]:
        """Values of the wanted elements in every row of a search, page after page until one brings nothing new."""
        search: Callable[..., list[dict[str, dict]]] = getattr(self._client, f"search_for_{what}")
        found: set[tuple[str, ...]] = set()
        seen = 0
        while True:
            try:
                with _web():
                    rows = search(**asked, **({"offset": seen} if seen else {}))
                    page = {tuple(str(row[tag]["Value"][0]) for tag in wanted) for row in rows}
            except _NotFoundError:  # what some archives answer where nothing was found: see whether it is one
                with _web():
                    self._client.search_for_studies(limit=1)
                return found
            seen += len(rows)
            if not page - found:
                return found
            found |= page


class _NotFoundError(ArchiveError):
    """HTTP 404."""


@contextmanager
def _web() -> Iterator[None]:
    """What can go wrong on the web, in words. Raises LinkError or ArchiveError."""
    try:
        with warnings.catch_warnings(), quiet_decoders():
            yield
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise LinkError("The archive cannot be reached: see whether it runs, and the URL.") from error
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status >= 500 or status in _LATER:
            raise LinkError(f"The archive cannot answer now (HTTP {status}).") from error
        if status in (401, 403):
            raise ArchiveError(
                f"The archive lets nobody in without a right to it (HTTP {status}): put user and password into ~/.netrc."
            ) from error
        kind = _NotFoundError if status == 404 else ArchiveError
        raise kind(
            f"The archive refuses the request (HTTP {status}): is this the URL of its DICOMweb service?"
        ) from error
    except EmrrgError:
        raise
    except Exception as error:  # no JSON, no UIDs, no DICOM in the answer: as many kinds as there are other services
        raise ArchiveError("The archive's answer is not DICOMweb's: give the URL of its DICOMweb service.") from error


class Entity:
    """An application entity that takes C-STORE. own: the title under which we call it."""

    def __init__(self, host: str, port: int, title: str, own: str) -> None:
        self.address = f"{host}:{port}/{title}"
        self._host, self._port, self._title, self._own = host, port, title, own

    def holds(self, study: str, uids: Sequence[str]) -> bool | None:
        """None: C-STORE has no such question."""
        return None

    def store(self, files: Sequence[bytes]) -> list[str]:
        """As `Archive.store`."""
        with quiet_decoders():
            made = [pydicom.dcmread(BytesIO(data)) for data in files]
        entity = ApplicationEntity(ae_title=self._own)
        entity.connection_timeout, entity.acse_timeout, entity.dimse_timeout = CONNECT, CONNECT, ANSWER
        for sop_class in sorted({str(one.SOPClassUID) for one in made}):
            entity.add_requested_context(sop_class, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        link = entity.associate(self._host, self._port, ae_title=self._title)
        try:
            if link.is_rejected:
                raise ArchiveError(
                    "The archive refuses the association: it has to know both application entity titles."
                )
            if link.is_aborted and link.rejected_contexts:
                return _judged([(_class_name(one.SOPClassUID), 0x0122) for one in made])
            if not link.is_established:
                raise LinkError("The archive cannot be reached: see whether it runs, its host and port.")
            return _judged([(_class_name(one.SOPClassUID), _stored(link, one)) for one in made])
        finally:
            if link.is_established:
                link.release()


def _stored(link: Any, made: Dataset) -> int:
    """The status of one C-STORE (PS3.4 B.2.3)."""
    if not any(context.abstract_syntax == made.SOPClassUID for context in link.accepted_contexts):
        return 0x0122  # SOP class not supported
    try:
        with quiet_decoders():
            status = link.send_c_store(made)
    except RuntimeError as error:  # the association ended in between
        raise LinkError("The archive ended the association.") from error
    if "Status" not in status:
        raise LinkError("The archive does not answer.")
    return int(status.Status)


def _judged(statuses: Sequence[tuple[str, int]]) -> list[str]:
    """Why files were refused for good. (what it is, DIMSE status or STOW-RS Failure Reason, which has the same numbers).

    Raises LinkError where the archive had no room.
    """
    refused = []
    for name, status in statuses:
        if status in (0, DUPLICATE) or 0xB000 <= status <= 0xBFFF or status in (0x0001, 0x0107, 0x0116):
            continue
        if 0xA700 <= status <= 0xA7FF:
            raise LinkError(f"The archive has no room now (status {status:04X}).")
        refused.append(f"The archive does not take our {name} (status {status:04X}).")
    return refused


def _class_name(sop_class: str) -> str:
    name = UID(sop_class).name
    return name if name != sop_class else "files of this kind"


def destination(to: str, own: str) -> Archive | Entity:
    """URL → Archive; HOST:PORT/AET → Entity. Raises ConfigError for what is neither."""
    if to.startswith(("http://", "https://")):
        return Archive(to)
    match = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[\w.-]+):(\d{1,5})/([\x21-\x5b\x5d-\x7e]{1,16})", to)
    if match is None or not 0 < int(match[2]) < 65536:
        raise ConfigError("Results go to a DICOMweb URL, or to HOST:PORT/AET with a title of 1 to 16 characters.")
    return Entity(match[1].strip("[]"), int(match[2]), match[3], own)
