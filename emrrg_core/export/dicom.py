"""What the three DICOM exports share: whose films they are, from the films' own files, and the header round a document.

An `Origin` lives as long as one export. It is the only place of EMRRG that holds a patient's name, and it is never
kept, logged or put into a message.

Where a draft was made from pictures without a header there is no patient to copy: the attributes that the standard
wants in every file stay empty (type 2, PS3.5 7.4.3), and nothing is invented but UIDs. Those are UUIDs under 2.25
(PS3.5 B.2), drawn from what they name, so that the same input gives the same file and another input another one.
"""

import hashlib
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from emrrg_core.errors import FilmError
from emrrg_core.export import version
from emrrg_core.films.film import header_value, pixel_digest, quiet_decoders, stored_values
from emrrg_core.report.draft import Draft

Source = Path | str | bytes | None  # a film's file or its content; None, or a picture, has nothing to copy

# PS3.3 C.7.1.1 Patient and C.7.2.1 General Study, the attributes that every file must have, if only empty
REQUIRED = "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime AccessionNumber ReferringPhysicianName StudyID"
# what else tells patients, studies and de-identified data apart: the same modules, C.7.2.2 Patient Study, C.7.1.3 and
# C.7.2.3 Clinical Trial Subject and Study; remarks and histories in free text stay where they are
COPIED = (
    "IssuerOfPatientID TypeOfPatientID IssuerOfPatientIDQualifiersSequence OtherPatientIDsSequence OtherPatientNames "
    "PatientBirthTime EthnicGroupCodeSequence PatientIdentityRemoved DeidentificationMethod "
    "DeidentificationMethodCodeSequence PatientAge PatientSize PatientWeight AdmissionID IssuerOfAdmissionIDSequence "
    "IssuerOfAccessionNumberSequence ReferringPhysicianIdentificationSequence StudyDescription ProcedureCodeSequence "
    "ReferencedStudySequence ClinicalTrialSponsorName ClinicalTrialProtocolID ClinicalTrialProtocolName "
    "ClinicalTrialSiteID ClinicalTrialSiteName ClinicalTrialSubjectID ClinicalTrialSubjectReadingID "
    "ClinicalTrialTimePointID ClinicalTrialTimePointDescription"
)
POINTERS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")


class Kind(NamedTuple):
    """A kind of document."""

    sop_class: str
    modality: str
    series: int  # its Series Number: high, so that it meets no series of the modality's own
    description: str


@dataclass(frozen=True, eq=False)
class Origin:
    """Whose films they are.

    subject  Patient and Study modules, in Unicode
    headers  per film of the draft its header; None for a picture
    zone     of the films' dates and times; None where their headers do not say
    """

    subject: Dataset
    headers: tuple[Dataset | None, ...]
    zone: timezone | None

    @property
    def images(self) -> list[Dataset]:
        """The films that another file can refer to: those with all their UIDs."""
        return [header for header in self.headers if header is not None and referable(header)]


def origin(draft: Draft, films: Sequence[Source]) -> Origin:
    """Read the headers of the films that a draft was made from, in the draft's order.

    Patient and study are those of the first film that has a header. Raises FilmError where a file is not the film that
    was drafted (its pixels tell), or where the films are of two patients: a report under a wrong name does harm.
    """
    if len(films) != len(draft.films):
        raise ValueError(f"the draft was made from {len(draft.films)} films, not {len(films)}")
    with quiet_decoders():
        headers = tuple(
            _header(source, film.source_sha256 or film.sha256, film.name) if film.format == "DICOM" else None
            for film, source in zip(draft.films, films, strict=True)
        )
        known = [header for header in headers if header is not None]
        if len({str(header.get("PatientID") or header.get("PatientName") or "") for header in known}) > 1:
            raise FilmError("These films are of different patients: draft and export each patient's films alone.")
        subject = Dataset()
        for keyword in f"{REQUIRED} {COPIED}".split():
            if known and keyword in known[0]:
                subject[keyword] = known[0][keyword]
            elif keyword in REQUIRED.split():
                setattr(subject, keyword, None)
        _to_unicode(subject)
        study = header_value(known[0], "StudyInstanceUID") if known else None
        subject.add_new("StudyInstanceUID", "UI", study or _uid("study", *(film.sha256 for film in draft.films)))
        return Origin(subject, headers, _zone(known[0]) if known else None)


def referable(header: Dataset) -> bool:
    return all(header_value(header, keyword) for keyword in POINTERS)


def document(kind: Kind, origin: Origin, draft: Draft, at: datetime) -> Dataset:
    """A document's header: everything but what it holds. at: when it was made, with its time zone."""
    if at.tzinfo is None:
        raise ValueError("the time of an export needs its time zone")
    made = Dataset()
    made.update(origin.subject)
    made.SpecificCharacterSet = "ISO_IR 192"
    made.SOPClassUID = kind.sop_class
    # an offset goes for every date and time of a file (PS3.3 C.12.1), those copied from the film among them
    local = at.astimezone(origin.zone) if origin.zone else at
    if origin.zone or not made.StudyDate:
        made.TimezoneOffsetFromUTC = local.strftime("%z")[:5]
    made.InstanceCreationDate = made.ContentDate = local.strftime("%Y%m%d")
    made.InstanceCreationTime = made.ContentTime = local.strftime("%H%M%S")
    made.ContentQualification = "RESEARCH"  # C.8.13.2.1.1: not for diagnosis
    made.Modality, made.SeriesNumber, made.SeriesDescription = kind.modality, kind.series, kind.description
    made.InstanceNumber = 1
    made.Manufacturer, made.ManufacturerModelName = "EMRRG", "EMRRG chest X-ray report drafter"
    made.DeviceUID = device_uid(draft)
    made.DeviceSerialNumber = draft.model.get("checkpoint_sha256", "")[:64]
    checkpoint = draft.model.get("checkpoint", "unnamed").replace("\\", " ")[:64]
    made.SoftwareVersions = [f"EMRRG {version()}", checkpoint]
    return made


def device_uid(draft: Draft) -> str:
    """Of the device that drafted: the same for the same weights under the same settings."""
    parts = [draft.model.get("checkpoint_sha256", ""), draft.model.get("language_model_sha256", "")]
    if settings := draft.model.get("settings_sha256"):  # drafts made before this key came have none
        parts.append(settings)
    return _uid("device", *parts)


def reference(header: Dataset) -> Dataset:
    """An item that refers to a film (PS3.3 10.8)."""
    item = Dataset()
    item.add_new("ReferencedSOPClassUID", "UI", header.SOPClassUID)
    item.add_new("ReferencedSOPInstanceUID", "UI", header.SOPInstanceUID)
    return item


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """An item that holds a code (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def moment(time: datetime) -> str:
    """A DT value that says its time zone (PS3.5 6.2)."""
    return time.strftime("%Y%m%d%H%M%S%z")[:19]


def to_bytes(made: Dataset) -> bytes:
    """A DICOM Part 10 file, explicit VR little endian, in a series of its own, with UIDs drawn from all it holds."""
    with quiet_decoders():
        plain = BytesIO()
        pydicom.dcmwrite(plain, made, implicit_vr=False, little_endian=True)
        digest = hashlib.sha256(plain.getvalue()).hexdigest()
        made.SeriesInstanceUID, made.SOPInstanceUID = _uid("series", digest), _uid("instance", digest)
        made.file_meta = FileMetaDataset()
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        whole = BytesIO()
        pydicom.dcmwrite(whole, made, enforce_file_format=True)
    return whole.getvalue()


def identified(data: bytes, *words: str) -> bytes:
    """The same document under UIDs drawn from `words` alone: those who make it again make the same object.

    data: a file that `to_bytes` gave. Its SOP Instance UID becomes `document_uid(*words)`.
    """
    with quiet_decoders():
        made = pydicom.dcmread(BytesIO(data))
        made.SeriesInstanceUID, made.SOPInstanceUID = _uid("result series", *words), document_uid(*words)
        made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
        whole = BytesIO()
        pydicom.dcmwrite(whole, made, enforce_file_format=True)
    return whole.getvalue()


def document_uid(*words: str) -> str:
    """The SOP Instance UID that `identified` gives."""
    return _uid("result", *words)


def _uid(*words: str) -> str:
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, 'emrrg:' + ':'.join(words)).int}"


def _header(source: Source, sha256: str, name: str) -> Dataset:
    """A film's header, once its pixels are known to be those that were drafted."""
    problem = f"The file given for {name} is not the DICOM film that was drafted: give that one."
    if source is None:
        raise FilmError(problem)
    try:
        header = pydicom.dcmread(BytesIO(source) if isinstance(source, bytes) else source, force=True)
        same = pixel_digest(stored_values(header, [])[0]) == sha256
        header.decode()
    except Exception as error:  # a file that is no film may fail in as many ways as there are files
        raise FilmError(problem) from error
    if not same:
        raise FilmError(problem)
    del header.PixelData
    return header


def _zone(header: Dataset) -> timezone | None:
    match = re.fullmatch(r"([+-])(\d\d)([0-5]\d)", str(header_value(header, "TimezoneOffsetFromUTC") or "").strip())
    if match is None:
        return None
    offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
    return timezone(-offset if match[1] == "-" else offset) if offset < timedelta(hours=15) else None


def _to_unicode(dataset: Dataset) -> None:
    """Items may name another character set than their file; what is decoded is written in that of the file."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                item.pop("SpecificCharacterSet", None)
                _to_unicode(item)
