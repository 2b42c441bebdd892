"""The findings of a report as a DICOM Comprehensive SR (PS3.3 A.35.3) after TID 1500, Measurement Report (PS3.16).

Imaging Measurement Report      language, observers (the device that drafted, the reader who signed), procedure reported
├── Image Library               the films that another file can refer to
├── Imaging Measurements        a Measurement Group for each finding that the report states, doubts or denies, and one for the cardiothoracic ratio
│   └── Measurement Group       tracking, Finding, Finding Site, Presence, Certainty of Finding, the report's sentences; TID 1410 with an Image Region
│                               where the finding's map has a contour, a group per region, under one tracking UID; TID 1501 without
└── Qualitative Evaluations     the mark where anything is unreviewed, the notice

What is stated, doubted and denied is read from the report as it stands, after the reader's edits, by the label reader. Number and contour are the
draft's. A finding has a contour on a film only where the draft read it as present, on no other side than the report names, and where it is
known which pixels of the file the film's are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import ComprehensiveSRStorage

from emrrg_core.errors import EmrrgError
from emrrg_core.explain.contours import DRAWN, SPECK, isolines
from emrrg_core.explain.heat_map import lay_over
from emrrg_core.export import ANY_STUDY, STUDY_CODES, Reader, banner, clean, notice, version
from emrrg_core.export.dicom import (
    Kind,
    Origin,
    Source,
    device_uid,
    document,
    document_uid,
    moment,
    origin,
    referable,
    to_bytes,
)
from emrrg_core.films.film import quiet_decoders
from emrrg_core.report.draft import NOT_REVIEWED, Draft, FilmRecord
from emrrg_core.report.report import Choice, Report
from emrrg_core.text.consistency import Row, findings_table
from emrrg_core.text.labeler import (
    NO_FINDING,
    SUPPORT_DEVICES,
    Mention,
    Status,
    is_abnormal,
    read_findings,
    report_text,
)

KIND = Kind(ComprehensiveSRStorage, "SR", 9004, "EMRRG findings, research only")
OWN = "99EMRRG"  # the scheme of our own codes, for what no code could be verified
Concept = tuple[str, str, str]  # value, scheme, meaning
LUNG, PLEURA = ("39607008", "SCT", "Lung"), ("3120008", "SCT", "Pleura")
CHEST = ("816094009", "SCT", "Chest")
HEART, MEDIASTINUM = ("80891009", "SCT", "Heart"), ("72410000", "SCT", "Mediastinum")
# of each label: the finding, and the site of which a side is one; None: its place is not known from the label alone
CODES: dict[str, tuple[Concept, Concept | None]] = {
    NO_FINDING: (("C9440", "NCIt", "Abnormality"), CHEST),  # a normal film denies it
    "Enlarged Cardiomediastinum": (("mediastinum", OWN, "Enlarged cardiomediastinum"), MEDIASTINUM),
    "Cardiomegaly": (("8186001", "SCT", "Cardiomegaly"), HEART),
    "Lung Opacity": (("112001", "DCM", "Opacity"), LUNG),
    "Lung Lesion": (("52988006", "SCT", "Lesion"), LUNG),
    "Edema": (("19242006", "SCT", "Pulmonary edema"), LUNG),
    "Consolidation": (("95436008", "SCT", "Lung consolidation"), LUNG),
    "Pneumonia": (("233604007", "SCT", "Pneumonia"), LUNG),
    "Atelectasis": (("46621007", "SCT", "Atelectasis"), LUNG),
    "Pneumothorax": (("36118008", "SCT", "Pneumothorax"), PLEURA),
    "Pleural Effusion": (("60046008", "SCT", "Pleural effusion"), PLEURA),
    "Pleural Other": (("pleural-other", OWN, "Pleural finding other than effusion and pneumothorax"), PLEURA),
    "Fracture": (("125605004", "SCT", "Fracture of bone"), None),
    SUPPORT_DEVICES: (("support-device", OWN, "Support device"), None),
}
OUTLINE = (
    "Outline: all regions of this finding on this film together hold about {share:.0%} of its map there. "
    "It shows what the model's reading rests on, and is no measured border."
)
_SIDES = {
    "left": ("7771000", "SCT", "Left"),
    "right": ("24028007", "SCT", "Right"),
    "bilateral": ("51440002", "SCT", "Bilateral"),
}
_PRESENCE = ("705057003", "SCT", "Presence")
# CID 240, Present-Absent
_STATUS = {
    Status.POSITIVE: ("52101004", "SCT", "Present"),
    Status.NEGATIVE: ("272519000", "SCT", "Absent"),
    Status.UNCERTAIN: ("373068000", "SCT", "Undetermined"),
}
_HOW = ("probability", OWN, "Calibrated probability that the finding is present")
_RATIO = ("ctr", OWN, "Cardiothoracic ratio")
_QUALITATIVE, _COMMENT = ("C0034375", "UMLS", "Qualitative Evaluations"), ("121106", "DCM", "Comment")
_LAID = 320  # pixels along each side of the map on a film: contours are shares of the film


@dataclass(frozen=True)
class _Stated:
    """What a report says of one label. side: "" where it names none, or does not hold for all that it says."""

    label: str
    status: Status
    side: str
    sentences: tuple[str, ...]


def to_dicom_measurements(
    report: Report, draft: Draft, films: Sequence[Source], *, at: datetime, reader: Reader | None = None
) -> bytes:
    """The findings of a report, coded, with their contours on the films. films and flags: as for `to_dicom_sr`.

    Coordinates are columns and rows of the file's own pixel matrix, from the top left corner of its top left pixel (PS3.3 C.18.6.1.1). Films
    without a header have no contours, for there is no image to refer to. Raises FilmError as `origin` does, and EmrrgError where the report
    says nothing of any label and no cardiothoracic ratio was measured: TID 1500 is nothing without a finding or a number.
    """
    signed = datetime.fromisoformat(report.signed) if report.signed else None
    whose = origin(draft, films)
    made = document(KIND, whose, draft, at)
    _stand(made, report, signed, reader)
    scheme = Dataset()
    scheme.CodingSchemeDesignator, scheme.CodingSchemeName = OWN, "EMRRG's own codes"
    scheme.CodingSchemeResponsibleOrganization = "EMRRG"
    made.CodingSchemeIdentificationSequence = [scheme]

    from highdicom.sr.utils import collect_evidence

    with quiet_decoders():
        tree = _tree(report, draft, whose, reader if signed else None)
        made.update(tree)
        same, other = collect_evidence(whose.images, tree, made.StudyInstanceUID) if whose.images else ([], [])
    if same:
        made.CurrentRequestedProcedureEvidenceSequence = same
    if other:
        made.PertinentOtherEvidenceSequence = other
    return to_bytes(made)


def _stand(made: Dataset, report: Report, signed: datetime | None, reader: Reader | None) -> None:
    """How far the report is: unsigned ones are partial, and verified only who signed and is named (PS3.3 C.17.2)."""
    left = len(report.unreviewed)
    kept = sum(line.choice is not Choice.DELETED for line in report.lines)
    unsigned = f"Not signed; {left} of {kept} sentences not reviewed"
    made.CompletionFlag = "COMPLETE" if signed else "PARTIAL"
    made.CompletionFlagDescription = "Signed by a reader" if signed else unsigned
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


# --- what the report says ---------------------------------------------------------------------------------------------


def _stated(report: Report) -> Iterator[_Stated]:
    """What the report says of each label that it speaks of, in the order of LABELS; of No Finding only where it calls the film normal."""
    texts = {"findings": report.findings, "impression": report.impression}
    mentions = [mention for text in texts.values() for mention in read_findings(text)]
    rows = findings_table(report.findings, report.impression)
    normal = rows[0].status is Status.POSITIVE and rows[0].places and not is_abnormal(report_text(*texts.values()))
    for row in rows:
        if row.status is None or (row.label == NO_FINDING and not normal):
            continue
        mine = [mention for mention in mentions if mention.label == row.label and mention.status is row.status]
        status = Status.NEGATIVE if row.label == NO_FINDING else row.status
        yield _Stated(row.label, status, _side(mine, row.status), tuple(_quoted(report, row, texts)))


def _side(mentions: Sequence[Mention], status: Status) -> str:
    """The side that a label's mentions name together. What is denied without a side somewhere is denied on both."""
    named = {mention.side or "" for mention in mentions}
    if status is Status.NEGATIVE and "" in named:
        return ""
    named.discard("")
    return "bilateral" if len(named) > 1 else next(iter(named), "")


def _quoted(report: Report, row: Row, texts: dict[str, str]) -> Iterator[str]:
    """The sentences behind a row, each with the mark where nobody has said yes to the line that it stands in."""
    open_lines = [clean(line.text) for line in report.unreviewed] if report.signed is None else []
    for place in row.places:
        words = clean(texts[place.section][place.start : place.end])
        yield f"[{NOT_REVIEWED}] {words}" if any(words in line for line in open_lines) else words


# --- where the draft saw it -------------------------------------------------------------------------------------------


def _regions(said: _Stated, draft: Draft, whose: Origin) -> Iterator[tuple[int, Dataset, np.ndarray]]:
    """Film number, its header and a closed ring (n, 2) of columns and rows, per region of a finding that has contours.

    Gaps within a region are left out: SCOORD has no way to say them.
    """
    finding = next((f for f in draft.read or () if f.label == said.label), None)
    if finding is None or not finding.maps or finding.presence != "present":
        return
    if said.status is Status.NEGATIVE or said.side not in ("", finding.side):
        return
    for number, (record, weights, header) in enumerate(zip(draft.films, finding.maps, whose.headers, strict=True)):
        if header is None or not record.read or not referable(header) or not _same_matrix(record, header):
            continue
        heat = lay_over(weights, draft.grid, _LAID, _LAID, record.place)
        if heat.sum() < SPECK * weights.sum():  # of stitched films: it lies on another one
            continue
        for ring in isolines(heat):
            if not ring.hole:
                points = ring.points * (header.Columns, header.Rows)
                yield number, header, np.vstack([points, points[:1]])


def _same_matrix(record: FilmRecord, header: Dataset) -> bool:
    """Whether a film shows the file's pixel matrix as it lies there, if only with its pixels made square: shares of the one are shares of the other.

    A film that the reader turned or cropped does not, nor one of another size without that step.
    """
    rows, columns = int(header.Rows), int(header.Columns)
    square = f"pixels made square: {columns} × {rows} resampled to {record.width} × {record.height}"
    return record.source_sha256 is None and ((record.height, record.width) == (rows, columns) or square in record.steps)


# --- the tree ---------------------------------------------------------------------------------------------------------


def _concept(code: Concept) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(*code)


def _text(words: str) -> Any:
    from highdicom import sr

    return sr.TextContentItem(_concept(_COMMENT), words, sr.RelationshipTypeValues.CONTAINS)


def _container(name: Concept, items: Sequence[Any]) -> Any:
    from highdicom import sr

    made = sr.ContainerContentItem(_concept(name), relationship_type=sr.RelationshipTypeValues.CONTAINS)
    made.ContentSequence = sr.ContentSequence(items)
    return made


def _tree(report: Report, draft: Draft, whose: Origin, reader: Reader | None) -> Dataset:
    from highdicom import sr
    from pydicom.sr.codedict import codes

    groups = [group for said in _stated(report) for group in _groups(said, draft, whose)]
    if draft.ratio is not None:
        groups.append(_ratio(draft, draft.ratio, whose))
    if not groups:
        raise EmrrgError(
            "This report says nothing that has a code: export it as a DICOM structured report of its sentences instead."
        )
    device = sr.DeviceObserverIdentifyingAttributes(
        device_uid(draft), name="EMRRG", manufacturer_name="EMRRG", model_name=draft.model.get("checkpoint")
    )
    person = reader and sr.PersonObserverIdentifyingAttributes(reader.name, organization_name=reader.organization)
    code, meaning = STUDY_CODES.get(len(draft.films), ANY_STUDY)
    tree = sr.MeasurementReport(
        sr.ObservationContext(
            observer_person_context=sr.ObserverContext(codes.cid270.Person, person) if person else None,
            observer_device_context=sr.ObserverContext(codes.cid270.Device, device),
        ),
        procedure_reported=_concept((code, "LN", meaning)),
        imaging_measurements=groups,
        language_of_content_item_and_descendants=sr.LanguageOfContentItemAndDescendants(
            sr.CodedConcept("en", "RFC5646", "English")
        ),
    )
    root: Dataset = tree[0]
    if whose.images:
        root.ContentSequence.insert(len(root.ContentSequence) - 1, _library(whose.images))
    top = [_text(words) for words in (banner(report), notice(report, reader)) if words]
    root.ContentSequence.append(_container(_QUALITATIVE, top))
    return root


def _library(images: Sequence[Dataset]) -> Any:
    """TID 1600. highdicom's own fails on films whose headers lack a spacing or an orientation, which the template does not ask for."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    relation = sr.RelationshipTypeValues
    entries = []
    for image in images:
        entry = sr.ImageContentItem(
            _concept(("260753009", "SCT", "Source")),
            image.SOPClassUID,
            image.SOPInstanceUID,
            relationship_type=relation.CONTAINS,
        )
        unit = _concept(("{pixels}", "UCUM", "Pixels"))
        kind = {"CR": codes.cid29.ComputedRadiography, "DX": codes.cid29.DigitalRadiography}.get(
            str(image.get("Modality")), codes.cid32.Other
        )
        sizes = {codes.DCM.PixelDataRows: image.Rows, codes.DCM.PixelDataColumns: image.Columns}
        entry.ContentSequence = sr.ContentSequence(
            [
                sr.CodeContentItem(codes.DCM.Modality, kind, relation.HAS_ACQ_CONTEXT),
                *(
                    sr.NumContentItem(name, int(size), unit, relationship_type=relation.HAS_ACQ_CONTEXT)
                    for name, size in sizes.items()
                ),
            ]
        )
        entries.append(entry)
    group = _container(("126200", "DCM", "Image Library Group"), entries)
    return _container(("111028", "DCM", "Image Library"), [group])


def _groups(said: _Stated, draft: Draft, whose: Origin) -> Iterator[Any]:
    """The measurement groups of one finding: one for each region that has a contour, else one for the study."""
    from highdicom import sr

    read = next((f for f in draft.read or () if f.label == said.label), None)
    finding, site = CODES[said.label]
    common: dict[str, Any] = {
        "finding_type": _concept(finding),
        "finding_sites": [
            sr.FindingSite(
                _concept(site), *([_concept(_SIDES[said.side])] if said.side and site in (LUNG, PLEURA) else [])
            )
        ]
        if site
        else None,
        "qualitative_evaluations": [sr.QualitativeEvaluation(_concept(_PRESENCE), _concept(_STATUS[said.status]))],
        "measurements": [_certainty(read.probability, draft)] if read else None,
    }
    uid = document_uid("tracking", said.label, *(film.sha256 for film in draft.films))
    regions = list(_regions(said, draft, whose))
    for count, (number, image, points) in enumerate(regions, 1):
        of = f", region {count} of {len(regions)}, {clean(draft.films[number].name)}"
        region = sr.ImageRegion(
            sr.GraphicTypeValues.POLYLINE, points, sr.SourceImageForRegion(image.SOPClassUID, image.SOPInstanceUID)
        )
        tracking = sr.TrackingIdentifier(uid, finding[2] + of)
        group: Any = sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking, referenced_region=region, algorithm_id=_algorithm(draft), **common
        )
        yield _commented(group, [*said.sentences, OUTLINE.format(share=DRAWN)])
    if not regions:
        group = sr.MeasurementsAndQualitativeEvaluations(
            sr.TrackingIdentifier(uid, finding[2]), source_images=_sources(draft, whose), **common
        )
        yield _commented(group, said.sentences)


def _ratio(draft: Draft, ratio: float, whose: Origin) -> Any:
    """The cardiothoracic ratio, as the draft measured it."""
    from highdicom import sr

    unit = _concept(("{ratio}", "UCUM", "ratio"))
    return sr.MeasurementsAndQualitativeEvaluations(
        sr.TrackingIdentifier(document_uid("tracking", "ratio", *(film.sha256 for film in draft.films)), _RATIO[2]),
        finding_sites=[sr.FindingSite(_concept(HEART))],
        measurements=[sr.Measurement(_concept(_RATIO), round(ratio, 3), unit, algorithm_id=_algorithm(draft))],
        source_images=_sources(draft, whose),
    )


def _certainty(probability: float, draft: Draft) -> Any:
    """Certainty of Finding in per cent, with what it is: of an absent finding a small number, not the certainty that it is absent."""
    from highdicom import sr

    name, unit = _concept(("111012", "DCM", "Certainty of Finding")), _concept(("%", "UCUM", "percent"))
    algorithm = _algorithm(draft)
    return sr.Measurement(name, round(100 * probability, 1), unit, method=_concept(_HOW), algorithm_id=algorithm)


def _algorithm(draft: Draft) -> Any:
    """TID 4019: what wrote the draft. The hashes of its weights are behind the device's UID."""
    from highdicom import sr

    model = f"{version()}, checkpoint {clean(draft.model.get('checkpoint', 'unnamed'))}"
    return sr.AlgorithmIdentification("EMRRG", model, manufacturer="EMRRG")


def _sources(draft: Draft, whose: Origin) -> Any:
    """The films that were read, where another file can refer to them."""
    from highdicom import sr

    read = [header for film, header in zip(draft.films, whose.headers, strict=True) if film.read]
    made = [
        sr.SourceImageForMeasurementGroup(header.SOPClassUID, header.SOPInstanceUID)
        for header in read
        if header is not None and referable(header)
    ]
    return made or None


def _commented(group: Any, comments: Sequence[str]) -> Any:
    group[0].ContentSequence.extend([_text(words) for words in comments])
    return group
