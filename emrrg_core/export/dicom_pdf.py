"""A PDF inside a DICOM file (Encapsulated PDF, PS3.3 A.45.1), so that an archive keeps it with the film."""

from collections.abc import Sequence
from datetime import datetime

from pydicom.uid import EncapsulatedPDFStorage

from emrrg_core.export import TITLE, banner
from emrrg_core.export.dicom import Kind, Source, code, document, moment, origin, reference, to_bytes
from emrrg_core.report.draft import Draft
from emrrg_core.report.report import Report

KIND = Kind(EncapsulatedPDFStorage, "DOC", 9002, "EMRRG report (PDF), research only")


def to_dicom_pdf(
    pdf: bytes, report: Report, draft: Draft, films: Sequence[Source], *, at: datetime, burned_in: bool | None = None
) -> bytes:
    """The report's PDF with the patient and study of the films. films: as for `to_dicom_sr`.

    burned_in: whether the pages show who the patient is; None, where nobody knows, is written as YES, the careful answer
    (PS3.3 C.24.2). Always UNVERIFIED: this kind of file has no place for the name of who verified it. Raises FilmError
    as `origin` does, ValueError where the bytes are no PDF.
    """
    if not pdf.startswith(b"%PDF-"):
        raise ValueError("these bytes are no PDF document")
    whose = origin(draft, films)
    made = document(KIND, whose, draft, at)
    made.ConversionType = "WSD"
    made.AcquisitionDateTime = moment(at)
    made.BurnedInAnnotation = "NO" if burned_in is False else "YES"
    made.DocumentTitle = f"{TITLE} ({state})" if (state := banner(report)) else TITLE
    made.ConceptNameCodeSequence = [code("43468-8", "LN", "X-Ray Report")]
    made.VerificationFlag = "UNVERIFIED"
    if whose.images:
        made.SourceInstanceSequence = [reference(image) for image in whose.images]
    made.MIMETypeOfEncapsulatedDocument = "application/pdf"
    made.EncapsulatedDocument, made.EncapsulatedDocumentLength = pdf, len(pdf)
    return to_bytes(made)
