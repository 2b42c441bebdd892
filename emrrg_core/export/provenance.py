"""JSON with the whole provenance ("emrrg.export/1", docs/export.md): enough to draft the same text again and to follow
every edit from there to the report."""

import dataclasses
import json
import platform
from importlib import metadata

from emrrg_core.export import Reader, notice, version
from emrrg_core.export.text import plain
from emrrg_core.report.draft import Draft
from emrrg_core.report.report import Report

SCHEMA = "emrrg.export/1"
LIBRARIES = ("torch", "transformers", "pydicom", "numpy")


def to_json(report: Report, draft: Draft, *, reader: Reader | None = None) -> bytes:
    """One JSON object, indented, UTF-8 as it is; no time in it but those of the edits. reader: who signed."""
    signer = reader if report.signed else None
    whole = {
        "schema": SCHEMA,
        "notice": notice(report, reader),
        "header": {
            "status": report.status,
            "signed": report.signed,
            "reader": {"name": signer.plain, "organization": signer.organization} if signer else None,
            **dataclasses.asdict(report.fields),
        },
        "text": plain(report, reader),
        "report": report.to_dict(),
        "draft": draft.to_dict(),
        "versions": {
            "emrrg": version(),
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in LIBRARIES},
        },
    }
    text = json.dumps(whole, ensure_ascii=False, allow_nan=False, indent=2)
    return text.encode(errors="backslashreplace") + b"\n"  # half a character becomes its escape, as JSON writes it
