"""EMRRG drafts a chest X-ray report and shows where it looked. Research and teaching only, not a medical device."""

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
    from emrrg_core.config import DecodeConfig
    from emrrg_core.consistency import Contradiction, Flag, contradictions, findings_table, flags
    from emrrg_core.errors import CheckpointError, ConfigError, DataError, EmrrgError, FilmError, LanguageModelError
    from emrrg_core.evidence import Looking, Why, gate_figure, heat_map, overlay
    from emrrg_core.films import Film, read_film
    from emrrg_core.report import DISCLAIMER, Choice, Difference, Draft, Edit, Line, Piece, Report, Sentence, as_text
    from emrrg_core.reporter import Reporter
    from emrrg_core.session import Session, SessionConflictError, SessionError, SessionGoneError, Sessions

__all__ = [
    "DISCLAIMER",
    "CheckpointError",
    "Choice",
    "ConfigError",
    "Contradiction",
    "DataError",
    "DecodeConfig",
    "Difference",
    "Draft",
    "Edit",
    "EmrrgError",
    "Film",
    "FilmError",
    "Flag",
    "LanguageModelError",
    "Line",
    "Looking",
    "Piece",
    "Report",
    "Reporter",
    "Sentence",
    "Session",
    "SessionConflictError",
    "SessionError",
    "SessionGoneError",
    "Sessions",
    "Why",
    "as_text",
    "contradictions",
    "findings_table",
    "flags",
    "gate_figure",
    "heat_map",
    "overlay",
    "read_film",
]

# Where these names are at home. Each is fetched when first asked for (PEP 562), so that a film can be read and an error
# caught without waiting seconds for torch and transformers.
_HOMES = {
    "config": {"DecodeConfig"},
    "consistency": {"Contradiction", "Flag", "contradictions", "findings_table", "flags"},
    "errors": {"CheckpointError", "ConfigError", "DataError", "EmrrgError", "FilmError", "LanguageModelError"},
    "evidence": {"Looking", "Why", "gate_figure", "heat_map", "overlay"},
    "films": {"Film", "read_film"},
    "report": {"DISCLAIMER", "Choice", "Difference", "Draft", "Edit", "Line", "Piece", "Report", "Sentence", "as_text"},
    "reporter": {"Reporter"},
    "session": {"Session", "SessionConflictError", "SessionError", "SessionGoneError", "Sessions"},
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
