"""EMRRG drafts a chest X-ray report and shows where it looked. Research and teaching only, not a medical device."""

from emrrg_core.config import DecodeConfig
from emrrg_core.errors import CheckpointError, ConfigError, DataError, EmrrgError, FilmError, LanguageModelError
from emrrg_core.evidence import gate_figure, heat_map, overlay
from emrrg_core.films import Film, read_film
from emrrg_core.report import DISCLAIMER, Draft, Sentence, as_text
from emrrg_core.reporter import Reporter

__all__ = [
    "DISCLAIMER",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DecodeConfig",
    "Draft",
    "EmrrgError",
    "Film",
    "FilmError",
    "LanguageModelError",
    "Reporter",
    "Sentence",
    "as_text",
    "gate_figure",
    "heat_map",
    "overlay",
    "read_film",
]
