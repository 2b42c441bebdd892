"""Checkpoints: a folder with config.json and model.safetensors (float16, the calibration float32: a threshold must not move), all of it ours;
the language model stays in its own folder.

Saved aside and renamed, so a folder is whole or not there. Loaded strictly: every key is expected and every expected key is there.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from emrrg_core.config import ModelConfig
from emrrg_core.errors import CheckpointError, ConfigError
from emrrg_core.model.emrrg import Emrrg
from emrrg_core.model.language_model import LanguageModel, load_language_model
from emrrg_core.model.prior_film import PriorFilm

SCHEMA = "emrrg.checkpoint/3"
_EARLIER = ("emrrg.checkpoint/1", "emrrg.checkpoint/2")
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_EXACT = "calibration."  # kept in float32


def save(model: Emrrg, directory: Path | str, *, language: dict[str, Any], training: dict[str, Any]) -> Path:
    """Write the model's own weights (float16, the calibration float32) and everything needed to build it again; returns the folder.

    language: what the weights were trained beside (name, hash). training: free notes (data, steps, seed). An existing folder is replaced
    only once the new one is whole. Raises CheckpointError when a weight is not finite in float16.
    """
    directory = Path(directory)
    tensors: dict[str, Tensor] = {}
    for name, value in model.own_state().items():
        dtype = torch.float32 if name.startswith(_EXACT) else torch.float16
        kept = value.detach().to("cpu", dtype).contiguous()
        if not torch.isfinite(kept).all():
            said = str(dtype).removeprefix("torch.")
            raise CheckpointError(f"{name} has values that {said} cannot hold; the model has not been saved.")
        tensors[name] = kept
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        aside.chmod(0o755)
        save_file(tensors, aside / _WEIGHTS)
        (aside / _WEIGHTS).chmod(0o644)  # safetensors writes for its owner's eyes only
        config = {"schema": SCHEMA, "model": model.config.to_dict(), "language_model": language, "training": training}
        (aside / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        old = Path(f"{aside}-old")
        if directory.exists():
            os.replace(directory, old)
        try:
            os.replace(aside, directory)
        except OSError:
            if old.exists():
                os.replace(old, directory)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return directory


def read_config(directory: Path | str) -> dict[str, Any]:
    """The checkpoint's config.json with "model" as a ModelConfig. Raises CheckpointError, saying what to do."""
    directory = Path(directory)
    path = directory / _CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"There is no checkpoint in {directory}: it has no {_CONFIG}. Name a folder made by training."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise CheckpointError(f"{path} is damaged ({error}). Copy the checkpoint again.") from error
    if isinstance(content, dict) and content.get("schema") in _EARLIER:
        raise CheckpointError(
            f"{path} was made by an earlier version of this software, which read a film otherwise: use the checkpoint that comes with this "
            "version, or train again."
        )
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise CheckpointError(f"{path} is not of the form {SCHEMA}; it was made by another version of this software.")
    try:
        return {**content, "model": ModelConfig.from_dict(content.get("model"))}
    except ConfigError as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error


def fingerprint(directory: Path | str) -> str:
    """SHA-256 of the weights file, hexadecimal."""
    with open(Path(directory) / _WEIGHTS, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def settings_fingerprint(directory: Path | str) -> str:
    """SHA-256 of what config.json says of the model, hexadecimal: the same weights draft otherwise under other settings.

    Of the object "model" as JSON with sorted keys and no spaces. Raises CheckpointError as `read_config` does.
    """
    read_config(directory)
    content = json.loads((Path(directory) / _CONFIG).read_text(encoding="utf-8"))
    settings = json.dumps(content["model"], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(settings.encode()).hexdigest()


def load(
    directory: Path | str, *, language_model: str | Path | None = None, device: str = "cpu", download: bool = True
) -> tuple[Emrrg, LanguageModel]:
    """Build the model of a checkpoint beside its language model, in evaluation mode, float32.

    language_model: a folder or preset to use instead of the one the checkpoint names. Raises CheckpointError when files are missing or
    damaged or any key is missing, unexpected or of another shape; LanguageModelError when the language model cannot be had.
    """
    directory = Path(directory)
    config: ModelConfig = read_config(directory)["model"]
    _weights(directory)  # what is missing is said before the language model is loaded
    language = load_language_model(language_model or config.language, device=device, download=download)
    try:
        model = Emrrg(config, language.model, language.tokenizer).to(device)
    except ValueError as error:  # peft finds no target, or attention that cannot be joined
        raise CheckpointError(
            f"{directory} cannot be built beside {language.name}: {str(error).rstrip('.')}."
        ) from error
    restore(model, directory)
    if config.queries.depth:
        weights = fingerprint(directory)
        width = language.model.config.hidden_size
        model.prior = PriorFilm.load(directory, width, model.hybrid, config.hybrid, weights=weights)
        model.to(device)
    model.requires_grad_(False)
    return model.eval(), language


def restore(model: Emrrg, directory: Path | str) -> None:
    """Put a checkpoint's weights into a model of the same configuration, for instance to train it on.

    Strict: raises CheckpointError when the file is damaged or a key is missing, unexpected or of another shape.
    """
    weights = _weights(Path(directory))
    try:
        with safe_open(weights, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 — not a dict
    except SafetensorError as error:
        raise CheckpointError(f"{weights} is damaged ({error}). Copy the checkpoint again.") from error
    own = model.own_state()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unexpected:
        raise CheckpointError(
            f"{directory} does not fit its configuration: {len(missing)} weights missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}."
        )
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise CheckpointError(
                f"{directory}: {name} has shape {tuple(value.shape)}, but {tuple(own[name].shape)} is needed. "
                "The checkpoint was trained beside another language model or configuration."
            )
    model.load_state_dict(state, strict=False)  # strict above; what is absent is the borrowed language model


def _weights(directory: Path) -> Path:
    weights = directory / _WEIGHTS
    if not weights.is_file():
        raise CheckpointError(f"{directory} has no {_WEIGHTS}; the checkpoint is incomplete. Copy the folder again.")
    return weights
