"""FHIR: one DiagnosticReport, in release R5 (5.0.0) or R4B (4.3.0), checked by fhir.resources.

R4 (4.0.1) servers take the R4B form: of DiagnosticReport R4B changed only which kinds of subject it may have (HL7's
diagnosticreport.diff.json). Which codes are used, where each was checked and which were left out: docs/export.md.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from emrrg_core.errors import ConfigError
from emrrg_core.export import (
    ANY_STUDY,
    EMPTY,
    HEADINGS,
    STUDY_CODES,
    TITLE,
    Reader,
    banner,
    clean,
    header,
    notice,
    passages,
    preface,
    version,
)
from emrrg_core.report.draft import NOT_REVIEWED, Draft
from emrrg_core.report.report import Report
from emrrg_core.text.labeler import NO_FINDING, Status, labels, report_text

RELEASES = {"R5": "fhir.resources.diagnosticreport", "R4B": "fhir.resources.R4B.diagnosticreport"}
LABELS_SYSTEM = "urn:uuid:616ca536-d808-5fc1-9aca-d8ab73889cdb"  # ours (docs/export.md): a label and what is said of it
LOINC, SCT, DCM = "http://loinc.org", "http://snomed.info/sct", "http://dicom.nema.org/resources/ontology/DCM"
# Only codes that could be checked, and only for what the report affirms: a code for pneumothorax beside "negative" would
# be read as pneumothorax.
FINDING_CODES = {
    "Lung Opacity": (DCM, "112001", "Opacity"),
    "Edema": (SCT, "19242006", "Pulmonary edema"),
    "Pneumonia": (SCT, "233604007", "Pneumonia"),
    "Pneumothorax": (SCT, "36118008", "Pneumothorax"),
    "Pleural Effusion": (SCT, "60046008", "Pleural effusion"),
}
_MEANS = {  # read alone, "negative" would be taken for a normal film
    (NO_FINDING, Status.POSITIVE): " (nothing abnormal is stated)",
    (NO_FINDING, Status.NEGATIVE): " (something abnormal is stated)",
}
_ABSENT = {"extension": [{"url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason", "valueCode": "unknown"}]}


def diagnostic_report(
    report: Report,
    draft: Draft,
    *,
    release: str = "R5",
    presented: bytes | None = None,
    sources: Sequence[Any] = (),
    subject: str | None = None,
    effective: str | None = None,
    issued: str | None = None,
    reader: Reader | None = None,
) -> bytes:
    """A DiagnosticReport as JSON, UTF-8.

    release    "R5" or "R4B"
    presented  the PDF of the same report, attached with its SHA-1 (what FHIR's Attachment.hash is)
    sources    headers (pydicom Datasets) of the films that have one: their study, series and instance UIDs are copied
               into this export, nothing else of them
    subject    a reference such as "Patient/123"; without it the report has no subject
    effective  when the films were taken, issued when the report was: FHIR dateTime and instant; never made up
    reader     who signed: the resultsInterpreter of a signed report

    Indication, comparison and technique stand in the narrative: a DiagnosticReport has no elements for them, and a
    ServiceRequest or Procedure to hold them would claim an order or an act that nobody told of.

    Raises ConfigError for another release, or a reference or time that FHIR does not take.
    """
    if release not in RELEASES:
        raise ConfigError(f"FHIR release {release} cannot be written: choose one of {', '.join(RELEASES)}.")
    studies = _studies(sources, subject, release)
    signer = reader if report.signed else None
    people = _people(signer) if signer else []
    resource: dict[str, Any] = {
        "resourceType": "DiagnosticReport",
        "language": "en",
        "text": {"status": "additional", "div": _narrative(report, draft, signer)},
        "contained": [_device(draft, release), _provenance(report, draft, issued, signer), *people, *studies],
        "status": report.status,
        "category": [
            _concept("http://terminology.hl7.org/CodeSystem/v2-0074", "RAD", "Radiology"),
        ],
        "code": _concept(LOINC, *STUDY_CODES.get(len(draft.films), ANY_STUDY)),
    }
    if subject:
        resource["subject"] = {"reference": subject}
    if effective:
        resource["effectiveDateTime"] = effective
    if issued:
        resource["issued"] = issued
    if people:
        resource["resultsInterpreter"] = [{"reference": "#signer"}]
    if studies:
        key = "study" if release == "R5" else "imagingStudy"
        resource[key] = [{"reference": f"#{study['id']}"} for study in studies]
    if conclusion := _said(report, "impression"):
        # markdown since R5, where a tag would be markup
        resource["conclusion"] = re.sub(r"<(?=[A-Za-z/!?])", r"\\<", conclusion) if release == "R5" else conclusion
    if codes := _conclusion_codes(report):
        resource["conclusionCode"] = codes
    if presented:
        resource["presentedForm"] = [
            {
                "contentType": "application/pdf",
                "language": "en",
                "data": base64.b64encode(presented).decode(),
                "hash": base64.b64encode(hashlib.sha1(presented, usedforsecurity=False).digest()).decode(),
                "title": TITLE,
            }
        ]
    return json.dumps(_checked(resource, RELEASES[release]), ensure_ascii=False, indent=2).encode() + b"\n"


def _checked(resource: Mapping[str, Any], module: str) -> dict[str, Any]:
    """The resource as fhir.resources writes it, after its own validation."""
    kind = import_module(module).DiagnosticReport
    try:
        return json.loads(kind.model_validate(resource).model_dump_json())
    except ValueError as error:  # pydantic's own is one
        raise ConfigError(
            f"FHIR does not take this report; look at the reference and the times given: {error}"
        ) from error


def _concept(system: str, code: str, display: str) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code, "display": display}], "text": display}


def _said(report: Report, section: str) -> str:
    return " ".join(f"[{NOT_REVIEWED}] {text}" if marked else text for text, marked in passages(report, section))


def _conclusion_codes(report: Report) -> list[dict[str, Any]]:
    """What the report says of each of the 14 labels that it speaks of."""
    codes = []
    for label, status in labels(report_text(report.findings, report.impression)).items():
        if status is None:
            continue
        words = f"{label}: {status.value}{_MEANS.get((label, status), '')}"
        concept = _concept(LABELS_SYSTEM, f"{label.lower().replace(' ', '-')}.{status.value}", words)
        if status is Status.POSITIVE and label in FINDING_CODES:
            system, code, display = FINDING_CODES[label]
            concept["coding"].append({"system": system, "code": code, "display": display})
        codes.append(concept)
    return codes


def _device(draft: Draft, release: str) -> dict[str, Any]:
    """The software that drafted."""
    named, kind = "EMRRG", {"text": "Software that drafts chest X-ray reports, for research and teaching"}
    name = (
        {"value": named, "type": "user-friendly-name"}
        if release == "R5"
        else {"name": named, "type": "user-friendly-name"}
    )
    versions = {
        "EMRRG": version(),
        f"SHA-256 of checkpoint {draft.model['checkpoint']}": draft.model["checkpoint_sha256"],
        f"SHA-256 of language model {draft.model['language_model']}": draft.model["language_model_sha256"],
    }
    if settings := draft.model.get("settings_sha256"):  # drafts made before this key came have none
        versions[f"SHA-256 of the settings of {draft.model['checkpoint']}"] = settings
    return {
        "resourceType": "Device",
        "id": "emrrg",
        "type": [kind] if release == "R5" else kind,
        "name" if release == "R5" else "deviceName": [name],
        "version": [{"type": {"text": clean(of)}, "value": value} for of, value in versions.items()],
    }


def _people(reader: Reader) -> list[dict[str, Any]]:
    """Who signed, and for which organization: the PractitionerRole is what the rest refers to."""
    family, given, middle, prefix, suffix = reader.parts
    name: dict[str, Any] = {"text": reader.plain}
    name |= {"family": family} if family else {}
    rows = {"given": [given, middle], "prefix": [prefix], "suffix": [suffix]}
    name |= {key: kept for key, parts in rows.items() if (kept := [part for part in parts if part])}
    return [
        {"resourceType": "Practitioner", "id": "reader", "name": [name]},
        {
            "resourceType": "PractitionerRole",
            "id": "signer",
            "practitioner": {"reference": "#reader"},
            "organization": {"display": clean(reader.organization)},
        },
    ]


def _provenance(report: Report, draft: Draft, issued: str | None, signer: Reader | None) -> dict[str, Any]:
    """Who drafted this resource and from what. It names the containing resource ("#") as its target, so that the device
    is bound to it: a DiagnosticReport has no place for a device of its own."""
    recorded = issued or (report.edits[-1].time if report.edits else None)
    done = "reviewed and signed by a reader" if report.signed else "not signed by a reader"
    return {
        "resourceType": "Provenance",
        "id": "drafted",
        "target": [{"reference": "#"}],
        **({"recorded": recorded} if recorded else {"_recorded": _ABSENT}),
        "activity": {"text": f"Drafted by software, {done}"},
        "agent": [
            {"type": {"text": "drafted the report"}, "who": {"reference": "#emrrg"}},
            *([{"type": {"text": "signed the report"}, "who": {"reference": "#signer"}}] if signer else []),
        ],
        "entity": [
            {
                "role": "source",
                "what": {"display": clean(f"{film.name}, {film.format}, SHA-256 of its stored pixels {film.sha256}")},
            }
            for film in draft.films
        ],
    }


def _studies(sources: Sequence[Any], subject: str | None, release: str) -> list[dict[str, Any]]:
    """One ImagingStudy for each study that the headers name, with the series and instances that were read."""
    found: dict[str, dict[str, list[Any]]] = {}
    for source in sources:
        found.setdefault(str(source.StudyInstanceUID), {}).setdefault(str(source.SeriesInstanceUID), []).append(source)
    studies = []
    for number, (study, series) in enumerate(found.items(), 1):
        rows = []
        for uid, headers in series.items():
            modality = {"system": DCM, "code": str(headers[0].Modality)}
            instances = [
                {
                    "uid": str(source.SOPInstanceUID),
                    "sopClass": {"system": "urn:ietf:rfc:3986", "code": f"urn:oid:{source.SOPClassUID}"},
                }
                for source in headers
            ]
            rows.append(
                {
                    "uid": uid,
                    "modality": {"coding": [modality]} if release == "R5" else modality,
                    "instance": instances,
                }
            )
        studies.append(
            {
                "resourceType": "ImagingStudy",
                "id": f"study-{number}",
                "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{study}"}],
                "status": "available",
                "subject": {"reference": subject} if subject else _ABSENT,
                "series": rows,
            }
        )
    return studies


def _narrative(report: Report, draft: Draft, signer: Reader | None) -> str:
    """The whole report as XHTML (FHIR's Narrative): what a program that knows no codes shows."""
    parts = [f"<p><b>{top}</b></p>"] if (top := banner(report)) else []
    facts = "<br/>".join(f"{name}: {html.escape(value)}" for name, value in header(report, signer))
    parts.append(f"<p>{facts}</p>")
    parts += [f"<h3>{heading}</h3><p>{html.escape(words)}</p>" for heading, words in preface(report)]
    for section, heading in HEADINGS.items():
        parts.append(f"<h3>{heading}</h3><p>{html.escape(_said(report, section)) or EMPTY}</p>")
    wrote = f"Drafted by EMRRG {version()} with the checkpoint {draft.model['checkpoint']}."
    parts.append(f"<p>{html.escape(clean(wrote))} {html.escape(notice(report, signer))}</p>")
    return f'<div xmlns="http://www.w3.org/1999/xhtml" lang="en" xml:lang="en">{"".join(parts)}</div>'
