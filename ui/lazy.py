"""What the screens take from the core, each name imported when it is first needed, so that the page answers at once.

Films and errors come quickly. What drafts brings torch and transformers, seconds of work that the loading thread does; who needs it waits for the
reporter first, so that no two threads import them in different orders.
"""

import importlib
from typing import Any

HOMES = {
    "MOST_MARKS": "explain.marks",
    "Macros": "report.macros",
    "Mark": "explain.marks",
    "Fields": "report.report",
    "Said": "report.told",
    "Template": "report.macros",
    "builtin_macros": "report.macros:builtin",
    "from_mrrt": "report.macros",
    "macros_path": "report.macros:default_path",
    "cautions": "report.cautions",
    "draw_marks": "explain.marks",
    "offers": "report.links",
    "ClassGoneError": "teaching.classroom",
    "Classes": "teaching.classroom",
    "ConfigError": "errors",
    "DISCLAIMER": "report.draft",
    "DecodeConfig": "config",
    "Draft": "report.draft",
    "EmrrgError": "errors",
    "Fill": "explain.occlusion",
    "FilmError": "errors",
    "KeyImage": "export",
    "DependenceTest": "explain.faithfulness",
    "Memory": "memory.cases",
    "Reader": "export.dicom_sr",
    "Report": "report.report",
    "SessionConflictError": "report.session_store",
    "SessionError": "report.session_store",
    "SessionGoneError": "report.session_store",
    "Sessions": "report.session_store",
    "answers_csv": "teaching.classroom",
    "burned_in_warning": "films.burned_in_text",
    "compare": "text.compare",
    "contradictions": "text.consistency",
    "differences": "reporter",
    "linked": "report.links",
    "disagreements": "memory.cases",
    "diagnostic_report": "export.fhir",
    "findings_table": "text.consistency",
    "flags": "text.consistency",
    "heat_map": "explain.heat_map",
    "is_abnormal": "text.labeler",
    "isolines": "explain.contours",
    "lay_over": "explain.heat_map",
    "no_map": "explain.heat_map",
    "origin": "export.dicom",
    "overlay": "explain.heat_map",
    "MARKABLE": "teaching.locate",
    "locate": "teaching.locate",
    "marks_of": "teaching.locate",
    "model_agrees": "teaching.locate",
    "model_places": "teaching.locate",
    "plain_marks": "teaching.locate",
    "write_case": "teaching.authoring",
    "own_folder": "teaching.authoring",
    "picture": "export.dicom_capture",
    "read_cases": "teaching.cases",
    "read_film": "films.film",
    "read_report": "text.labeler",
    "retouched": "explain.occlusion",
    "sentences": "text.labeler",
    "suggested_corners": "films.straighten",
    "svg_path": "explain.contours",
    "sort": "films.arrivals",
    "straighten": "films.straighten",
    "turned": "films.straighten",
    "to_dicom_capture": "export.dicom_capture",
    "to_dicom_measurements": "export.dicom_tid1500",
    "to_dicom_pdf": "export.dicom_pdf",
    "to_dicom_sr": "export.dicom_sr",
    "to_docx": "export.docx",
    "to_json": "export.provenance",
    "to_pdf": "export.pdf",
    "to_text": "export.text",
    "version": "export",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"the screens take no {name} from emrrg_core: add it to HOMES")
    home, _, there = HOMES[name].partition(":")  # its name there, where that is too short to stand alone
    value = globals()[name] = getattr(importlib.import_module(f"emrrg_core.{home}"), there or name)
    return value
