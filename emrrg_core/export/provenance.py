"""JSON with the whole provenance ("emrrg.export/1", docs/export.md): enough to draft the same text again and to follow
every edit from there to the report."""

import json
import platform
from importlib import metadata

from emrrg_core.export import notice, version
from emrrg_core.export.text import plain
from emrrg_core.report.draft import Draft
from emrrg_core.report.report import Report

SCHEMA = "emrrg.export/1"
LIBRARIES = ("torch", "transformers", "pydicom", "numpy")


def to_json(report: Report, draft: Draft) -> bytes:
    """One JSON object, indented, UTF-8 as it is; no time in it but those of the edits."""
    whole = {
        "schema": SCHEMA,
        "notice": notice(report),
        "text": plain(report),
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
