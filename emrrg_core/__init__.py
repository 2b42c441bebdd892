"""EMRRG drafts a chest X-ray report and shows where it looked. Research and teaching only, not a medical device."""

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
    from emrrg_core.config import DecodeConfig
    from emrrg_core.errors import CheckpointError, ConfigError, DataError, EmrrgError, FilmError, LanguageModelError
    from emrrg_core.explain.faithfulness import Looking, Why
    from emrrg_core.explain.heat_map import gate_figure, heat_map, lay_over, no_map, overlay
    from emrrg_core.explain.occlusion import Fill, Rescored, retouched
    from emrrg_core.export import KeyImage, version
    from emrrg_core.export.dicom import origin
    from emrrg_core.export.dicom_capture import to_dicom_capture
    from emrrg_core.export.dicom_pdf import to_dicom_pdf
    from emrrg_core.export.dicom_sr import Reader, to_dicom_sr
    from emrrg_core.export.docx import to_docx
    from emrrg_core.export.fhir import diagnostic_report
    from emrrg_core.export.pdf import to_pdf
    from emrrg_core.export.provenance import to_json
    from emrrg_core.export.text import to_text
    from emrrg_core.films.burned_in_text import Box, burned_in, burned_in_warning
    from emrrg_core.films.film import Film, read_film
    from emrrg_core.films.film_check import Looks
    from emrrg_core.model.finding_tokens import Finding
    from emrrg_core.model.parameter_count import Counts
    from emrrg_core.report.draft import DISCLAIMER, Draft, Sentence, as_text
    from emrrg_core.report.report import Choice, Difference, Edit, Line, Piece, Report
    from emrrg_core.report.session_store import Session, SessionConflictError, SessionError, SessionGoneError, Sessions
    from emrrg_core.reporter import Reporter
    from emrrg_core.teaching.cases import Case, CaseError, Cases, read_cases
    from emrrg_core.teaching.classroom import Answer, Class, ClassError, Classes, ClassGoneError, Learner, answers_csv
    from emrrg_core.text.compare import Comparison, Match, compare
    from emrrg_core.text.consistency import Contradiction, Flag, Row, contradictions, findings_table, flags
    from emrrg_core.text.labeler import is_abnormal, read_report, sentences

__all__ = [
    "DISCLAIMER",
    "Answer",
    "Box",
    "Case",
    "CaseError",
    "Cases",
    "CheckpointError",
    "Choice",
    "Class",
    "ClassError",
    "ClassGoneError",
    "Classes",
    "Comparison",
    "ConfigError",
    "Contradiction",
    "Counts",
    "DataError",
    "DecodeConfig",
    "Difference",
    "Draft",
    "Edit",
    "EmrrgError",
    "Fill",
    "Film",
    "FilmError",
    "Finding",
    "Flag",
    "KeyImage",
    "LanguageModelError",
    "Learner",
    "Line",
    "Looking",
    "Looks",
    "Match",
    "Piece",
    "Reader",
    "Report",
    "Reporter",
    "Rescored",
    "Row",
    "Sentence",
    "Session",
    "SessionConflictError",
    "SessionError",
    "SessionGoneError",
    "Sessions",
    "Why",
    "answers_csv",
    "as_text",
    "burned_in",
    "burned_in_warning",
    "compare",
    "contradictions",
    "diagnostic_report",
    "findings_table",
    "flags",
    "gate_figure",
    "heat_map",
    "is_abnormal",
    "lay_over",
    "no_map",
    "origin",
    "overlay",
    "read_cases",
    "read_film",
    "read_report",
    "retouched",
    "sentences",
    "to_dicom_capture",
    "to_dicom_pdf",
    "to_dicom_sr",
    "to_docx",
    "to_json",
    "to_pdf",
    "to_text",
    "version",
]

# Where these names are at home. Each is fetched when first asked for (PEP 562), so that a film can be read and an error
# caught without waiting seconds for torch and transformers.
_HOMES = {
    "config": {"DecodeConfig"},
    "errors": {"CheckpointError", "ConfigError", "DataError", "EmrrgError", "FilmError", "LanguageModelError"},
    "explain.faithfulness": {"Looking", "Why"},
    "explain.heat_map": {"gate_figure", "heat_map", "lay_over", "no_map", "overlay"},
    "explain.occlusion": {"Fill", "Rescored", "retouched"},
    "export": {"KeyImage", "version"},
    "export.dicom": {"origin"},
    "export.dicom_capture": {"to_dicom_capture"},
    "export.dicom_pdf": {"to_dicom_pdf"},
    "export.dicom_sr": {"Reader", "to_dicom_sr"},
    "export.docx": {"to_docx"},
    "export.fhir": {"diagnostic_report"},
    "export.pdf": {"to_pdf"},
    "export.provenance": {"to_json"},
    "export.text": {"to_text"},
    "films.burned_in_text": {"Box", "burned_in", "burned_in_warning"},
    "films.film": {"Film", "read_film"},
    "films.film_check": {"Looks"},
    "model.finding_tokens": {"Finding"},
    "model.parameter_count": {"Counts"},
    "report.draft": {"DISCLAIMER", "Draft", "Sentence", "as_text"},
    "report.report": {"Choice", "Difference", "Edit", "Line", "Piece", "Report"},
    "report.session_store": {"Session", "SessionConflictError", "SessionError", "SessionGoneError", "Sessions"},
    "reporter": {"Reporter"},
    "teaching.cases": {"Case", "CaseError", "Cases", "read_cases"},
    "teaching.classroom": {"Answer", "Class", "ClassError", "Classes", "ClassGoneError", "Learner", "answers_csv"},
    "text.compare": {"Comparison", "Match", "compare"},
    "text.consistency": {"Contradiction", "Flag", "Row", "contradictions", "findings_table", "flags"},
    "text.labeler": {"is_abnormal", "read_report", "sentences"},
}

if not _typing.TYPE_CHECKING:  # a type checker that saw it would take any name for a public one

    def __getattr__(name: str) -> object:
        for home, names in _HOMES.items():
            if name in names:
                value = globals()[name] = getattr(_importlib.import_module(f"emrrg_core.{home}"), name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
