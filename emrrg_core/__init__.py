"""EMRRG drafts a chest X-ray report and shows where it looked. Research and teaching only, not a medical device."""

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
    from emrrg_core.config import DecodeConfig
    from emrrg_core.errors import EmrrgError, FilmError
    from emrrg_core.explain.heat_map import gate_figure, heat_map, lay_over, no_map, overlay
    from emrrg_core.export import version
    from emrrg_core.films.film import Film, read_film
    from emrrg_core.model.finding_tokens import Finding
    from emrrg_core.report.draft import DISCLAIMER, Draft, Sentence
    from emrrg_core.report.report import Report
    from emrrg_core.report.session_store import Sessions
    from emrrg_core.reporter import Reporter
    from emrrg_core.teaching.cases import read_cases
    from emrrg_core.text.compare import compare
    from emrrg_core.text.consistency import contradictions, findings_table, flags
    from emrrg_core.text.labeler import is_abnormal, read_report

__all__ = [
    "DISCLAIMER",
    "DecodeConfig",
    "Draft",
    "EmrrgError",
    "Film",
    "FilmError",
    "Finding",
    "Report",
    "Reporter",
    "Sentence",
    "Sessions",
    "compare",
    "contradictions",
    "findings_table",
    "flags",
    "gate_figure",
    "heat_map",
    "is_abnormal",
    "lay_over",
    "no_map",
    "overlay",
    "read_cases",
    "read_film",
    "read_report",
    "version",
]

# Where these names are at home. Each is fetched when first asked for (PEP 562), so that a film can be read and an error
# caught without waiting seconds for torch and transformers.
_HOMES = {
    "config": {"DecodeConfig"},
    "errors": {"EmrrgError", "FilmError"},
    "explain.heat_map": {"gate_figure", "heat_map", "lay_over", "no_map", "overlay"},
    "export": {"version"},
    "films.film": {"Film", "read_film"},
    "model.finding_tokens": {"Finding"},
    "report.draft": {"DISCLAIMER", "Draft", "Sentence"},
    "report.report": {"Report"},
    "report.session_store": {"Sessions"},
    "reporter": {"Reporter"},
    "teaching.cases": {"read_cases"},
    "text.compare": {"compare"},
    "text.consistency": {"contradictions", "findings_table", "flags"},
    "text.labeler": {"is_abnormal", "read_report"},
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
