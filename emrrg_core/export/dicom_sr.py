"""A DICOM Basic Text SR (PS3.3 A.35.1) after TID 2000, Basic Diagnostic Imaging Report (PS3.16).

X-Ray Report            language, observers: the device that drafted, the reader who signed
├── Summary             the mark where anything is unreviewed, the notice
├── Indications for Procedure, Prior Procedure Descriptions, Current Procedure Descriptions
│                       the report's indication, comparison and technique, where they have words (CID 7001)
├── Findings            a TEXT per sentence, inferred from the images it was drafted from
└── Impressions         likewise
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage

from emrrg_core.export import Reader as Reader
from emrrg_core.export import banner, clean, notice, passages
from emrrg_core.export.dicom import Kind, Source, device_uid, document, moment, origin, to_bytes
from emrrg_core.films.film import quiet_decoders
from emrrg_core.report.draft import NOT_REVIEWED, Draft
from emrrg_core.report.report import Report

KIND = Kind(BasicTextSRStorage, "SR", 9001, "EMRRG report, research only")


def to_dicom_sr(
    report: Report, draft: Draft, films: Sequence[Source], *, at: datetime, reader: Reader | None = None
) -> bytes:
    """The report as a structured document. films: the files that the draft was made from, in its order.

    PARTIAL and PRELIMINARY until signed, then COMPLETE and FINAL. VERIFIED only when signed by a reader who is named:
    the standard ties that word to a name and an organization (PS3.3 C.17.2). Raises FilmError as `origin` does.
    """
    signed = datetime.fromisoformat(report.signed) if report.signed else None
    whose = origin(draft, films)
    made = document(KIND, whose, draft, at)
    left, kept = len(report.unreviewed), sum(len(passages(report, name)) for name in ("findings", "impression"))
    made.CompletionFlag = "COMPLETE" if signed else "PARTIAL"
    made.CompletionFlagDescription = (
        "Signed by a reader" if signed else f"Not signed; {left} of {kept} sentences not reviewed"
    )
    made.PreliminaryFlag = "FINAL" if signed else "PRELIMINARY"
    made.VerificationFlag = "UNVERIFIED"
    if signed and reader:
        observer = Dataset()
        observer.VerifyingObserverName, observer.VerifyingOrganization = reader.name, reader.organization
        observer.VerificationDateTime = moment(signed)
        observer.VerifyingObserverIdentificationCodeSequence = []
        made.VerificationFlag, made.VerifyingObserverSequence = "VERIFIED", [observer]
    made.PerformedProcedureCodeSequence = []
    made.ReferencedPerformedProcedureStepSequence = []

    from highdicom.sr.utils import collect_evidence

    with quiet_decoders():
        tree = _tree(report, draft, whose.images, reader if signed else None)
        made.update(tree)
        same, other = collect_evidence(whose.images, tree, made.StudyInstanceUID) if whose.images else ([], [])
    if same:
        made.CurrentRequestedProcedureEvidenceSequence = same
    if other:
        made.PertinentOtherEvidenceSequence = other
    return to_bytes(made)


def _tree(report: Report, draft: Draft, images: Sequence[Dataset], reader: Reader | None) -> Dataset:
    from highdicom import sr
    from pydicom.sr.codedict import codes

    def text(name: Any, words: str) -> Any:
        return sr.TextContentItem(name, words, sr.RelationshipTypeValues.CONTAINS)

    def heading(name: Any, items: list[Any]) -> Any:
        under = sr.ContainerContentItem(name, False, relationship_type=sr.RelationshipTypeValues.CONTAINS)
        under.ContentSequence = sr.ContentSequence(items)
        return under

    def sentences(section: str, name: Any) -> list[Any]:
        said = []
        for words, marked in passages(report, section):
            item = text(name, f"[{NOT_REVIEWED}] {words}" if marked else words)
            if images:
                item.ContentSequence = sr.ContentSequence(
                    [
                        sr.ImageContentItem(
                            codes.cid7003.BestIllustrationOfFinding,
                            image.SOPClassUID,
                            image.SOPInstanceUID,
                            relationship_type=sr.RelationshipTypeValues.INFERRED_FROM,
                        )
                        for image in images
                    ]
                )
            said.append(item)
        return said

    device = sr.DeviceObserverIdentifyingAttributes(
        device_uid(draft), name="EMRRG", manufacturer_name="EMRRG", model_name=draft.model.get("checkpoint")
    )
    observers = [*sr.ObserverContext(codes.cid270.Device, device)]
    if reader:
        person = sr.PersonObserverIdentifyingAttributes(reader.name, organization_name=reader.organization)
        observers += sr.ObserverContext(codes.cid270.Person, person)
    top = [words for words in (banner(report), notice(report, reader)) if words]
    fields = (
        (codes.cid7001.IndicationsForProcedure, codes.cid7001.IndicationsForProcedure, report.fields.indication),
        (codes.cid7001.PriorProcedureDescriptions, codes.cid7002.ProcedureDescription, report.fields.comparison),
        (codes.cid7001.CurrentProcedureDescriptions, codes.cid7002.ProcedureDescription, report.fields.technique),
    )
    sections = {
        codes.cid7001.Summary: [text(codes.cid7002.Summary, words) for words in top],
        **{under: [text(name, words)] for under, name, said in fields if (words := clean(said))},
        codes.cid7001.Findings: sentences("findings", codes.cid7002.Finding),
        codes.cid7001.Impressions: sentences("impression", codes.cid7002.Impression),
    }
    root = sr.ContainerContentItem(codes.cid7000.XRayReport, False, template_id="2000")
    root.ContentSequence = sr.ContentSequence(
        [
            *sr.LanguageOfContentItemAndDescendants(sr.CodedConcept("en", "RFC5646", "English")),
            *observers,
            *(heading(name, items) for name, items in sections.items() if items),
        ]
    )
    return root
