"""Released weights to our format, strictly: every key of a file is placed, or named with the reason why it is not.

    Pretrain-{B,L}.pth                        stage 1 (docs/method.md 2.1)       -> a tower, by the conversion of 2.2
    MambaXrayCLIP-{B,L}.pth                   stage 2 (docs/method.md 1.7, 2.3) -> a tower
    *-Finetune-{B,L}.pth, EMRRG-CXP.pth       stage 3 (docs/method.md 1.7, 5.4) -> a checkpoint

A tower is a folder with tower.safetensors, under the tower's own names, and config.json: what the training stages start from. A checkpoint is
the folder of emrrg_core.model.checkpoint. Values keep the precision of the file; whatever loads them computes in float32.

A .pth file is a pickle, which can run code. Here nothing does: torch reads it with `weights_only=True`, and the few names that the authors' pickled
settings need are given stand-ins that only hold values. Any other name is an error.
"""

import hashlib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from emrrg_core.config import (
    VISION_PRESETS,
    AdapterConfig,
    HybridConfig,
    ModelConfig,
    PromptConfig,
    PromptTokens,
    Stem,
    VisionConfig,
)
from emrrg_core.errors import CheckpointError, ConfigError
from emrrg_core.model import checkpoint
from emrrg_core.model.pretraining import PRETRAINING_PRESETS, ClusterPredictor, to_tower
from emrrg_core.model.vision_mamba import VisionMamba

TOWER_SCHEMA = "emrrg.tower/1"
TOWER_WEIGHTS, MODEL_WEIGHTS, CONFIG = "tower.safetensors", "model.safetensors", "config.json"

# The language model that a projector of this width was trained beside (docs/method.md 2.4, 5.1).
_LANGUAGE = {4096: "llama2-7b", 2048: "Qwen/Qwen1.5-1.8B-Chat"}
_NOT_FOR_DRAFTS = {  # what else a stage-2 file holds: start of the key -> why it is left out
    "text_encoder.": "Bio_ClinicalBERT reads the reports of stage 2; drafts are written by another language model",
    "text_proj.": "it compares reports with films, in stage 2 only",
    "vision_proj.": "it compares films with reports, in stage 2 only",
    "logit_scale": "it compares films with reports, in stage 2 only",
}
_PREDICTS = "it predicts pixels, in stage 1 only"


class Stage(StrEnum):
    """Which of the method's stages a released file comes from."""

    PRETRAINED = "pretrained"
    ALIGNED = "aligned"
    FINETUNED = "finetuned"


@dataclass(frozen=True)
class Conversion:
    """What became of a released file. Keys are the file's own, but for `fresh`, which are ours."""

    folder: Path
    stage: Stage
    size: str  # the preset
    placed: tuple[str, ...]
    left_out: dict[str, str]  # key -> why
    fresh: tuple[str, ...]  # weights of ours that the file does not have: they start anew

    def to_dict(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "stage": str(self.stage),
            "size": self.size,
            "placed": list(self.placed),
            "left_out": self.left_out,
            "fresh": list(self.fresh),
        }


def convert(source: Path | str, out: Path | str) -> Conversion:
    """Convert a released .pth file; `out` is a folder that is new or empty.

    Raises CheckpointError, and writes nothing, when the file is damaged, of no published layout or size, has a key that cannot be placed, a
    value that is not finite, or names in its pickle that are not plain settings.
    """
    source, out = Path(source), Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CheckpointError(f"{out} is there already: name a new folder for the converted weights.")
    released = _Released(source.name, read(source))
    stage = released.stage()
    make = {Stage.PRETRAINED: _pretrained, Stage.ALIGNED: _aligned, Stage.FINETUNED: _finetuned}[stage]
    state, size, left_out, fresh = make(released)
    placed = tuple(sorted(released.state.keys() - left_out.keys()))
    result = Conversion(out, stage, size, placed, left_out, fresh)
    with open(source, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    reasons = {why: sum(w == why for w in left_out.values()) for why in dict.fromkeys(left_out.values())}
    notes = {"converted_from": source.name, "sha256": digest, "stage": str(stage), "left_out": reasons, "fresh": fresh}
    if stage is not Stage.FINETUNED:
        save_tower(out, state, VISION_PRESETS[size], notes)
        return result
    config = _model_config(size, len(state["layer_norm.weight"]))
    language = {"name": config.language, "sha256": None}
    content = {"schema": checkpoint.SCHEMA, "model": config.to_dict(), "language_model": language, "training": notes}
    _write(out, MODEL_WEIGHTS, state, content)
    return result


def save_tower(folder: Path | str, state: Mapping[str, Tensor], vision: VisionConfig, training: dict[str, Any]) -> Path:
    """Write a tower's state and its configuration into a folder, each file whole or not at all; returns that of the weights.

    training: free notes on where it comes from. Raises CheckpointError when the folder cannot be written to.
    """
    config = {"schema": TOWER_SCHEMA, "vision": vision.to_dict(), "training": training}
    return _write(Path(folder), TOWER_WEIGHTS, state, config)


def load_tower(folder: Path | str) -> VisionMamba:
    """The tower that `save_tower` wrote into a folder, float32 and ready to be trained on.

    Strict: raises CheckpointError when a file is missing or damaged, or a key missing, unexpected or of another shape.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict) or config.get("schema") != TOWER_SCHEMA:
            raise CheckpointError(f"{folder} holds no tower: its {CONFIG} is not of the form {TOWER_SCHEMA}.")
        tower = VisionMamba(VisionConfig.from_dict(config.get("vision")))
        tower.load_state_dict(load_file(folder / TOWER_WEIGHTS), strict=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} holds no tower: it needs {CONFIG} and {TOWER_WEIGHTS}.") from error
    except (OSError, ValueError, RuntimeError, SafetensorError, ConfigError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise CheckpointError(f"The tower in {folder} cannot be used: {said}.") from error
    return tower


def _write(folder: Path, weights: str, state: Mapping[str, Tensor], config: dict[str, Any]) -> Path:
    aside = folder / f".{weights}.partial", folder / f".{CONFIG}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in state.items()}, aside[0])
        aside[0].chmod(0o644)  # safetensors writes for its owner's eyes only
        aside[1].write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        os.replace(aside[0], folder / weights)
        os.replace(aside[1], folder / CONFIG)  # last: a folder that has it is whole
    except (OSError, SafetensorError) as error:
        said = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{folder} cannot be written to ({said}): name another folder.") from error
    finally:
        for path in aside:
            if path.exists():
                path.unlink()
    return folder / weights


# ------------------------------------------------------------------------------------------------------------ reading


class _Settings:
    """Stands in for argparse.Namespace and for paths: holds what it is given."""

    def __init__(self, *values: Any) -> None:
        self.values = values


class _Table:
    """Stands in for Lightning's AttributeDict, a kind of dict: a plain one, the only kind that torch will fill."""

    def __new__(cls, *values: Any) -> Any:
        return {}


_STAND_INS: list[Any] = [
    (_Settings, "argparse.Namespace"),
    (_Settings, "pathlib.PosixPath"),
    (_Settings, "pathlib.WindowsPath"),
    # where Lightning has kept it, from the first version to the last
    (_Table, "lightning.fabric.utilities.data.AttributeDict"),
    (_Table, "lightning.pytorch.utilities.parsing.AttributeDict"),
    (_Table, "lightning_fabric.utilities.data.AttributeDict"),
    (_Table, "pytorch_lightning.utilities.parsing.AttributeDict"),
]
# what torch and its unpickler raise for a damaged archive
_DAMAGE = (RuntimeError, pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, AttributeError)


def read(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a .pth file under their names, without running any of its code.

    The file is a dict of tensors, or one below "model" beside plain settings. Raises CheckpointError for any other.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}: name a released .pth file.")
    try:
        # torch has written zip archives since 2020, long before these files
        if not zipfile.is_zipfile(path):
            raise CheckpointError(
                f"{path.name} is not a PyTorch checkpoint, or it has been cut short: fetch the released .pth file again."
            )
        with torch.serialization.safe_globals(_STAND_INS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}).") from error
    except _DAMAGE as error:
        if foreign := re.search(r"GLOBAL (\S+)", str(error)):
            raise CheckpointError(
                f"{path.name} asks for {foreign[1]}, which is no plain setting: a file can run code that way, so it is "
                "not read. Take the file that the authors released."
            ) from error
        said = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise CheckpointError(f"{path.name} is damaged ({said}): fetch the released .pth file again.") from error
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"{path.name} is not a checkpoint of MambaXray-VL or EMRRG: it holds no named weights.")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path.name} is not a checkpoint of MambaXray-VL or EMRRG: {name} is no weight.")
    return state


# --------------------------------------------------------------------------------------------------------- placing

_State = dict[str, Tensor]
_Placed = tuple[_State, str, dict[str, str], tuple[str, ...]]  # our state, preset, keys left out and why, fresh keys


@dataclass(frozen=True)
class _Released:
    name: str  # of the file
    state: _State

    def stage(self) -> Stage:
        """Which stage the keys are of. Raises CheckpointError for none, and for what no stage of ours can hold."""
        if of_language := self._starting("llama_model."):
            raise CheckpointError(
                f"{self.name} holds layers of its language model ({_some(of_language)}): the released code put Qwen layers "
                "with random biases into Llama (docs/method.md 10, E15, E16), which no sound model can take over."
            )
        self._refuse_adapters()
        keys = self.state.keys()
        if {"ar_token", "enc2dec.weight"} <= keys:
            return Stage.PRETRAINED
        tower, head = self._starting("visual_encoder."), self._starting("llama_proj.")
        if tower:
            return Stage.FINETUNED if head else Stage.ALIGNED
        if head:
            raise CheckpointError(
                f"{self.name} holds a projector without its tower, which was frozen while it was trained: there is no "
                "film encoder to go with it. Convert the MambaXrayCLIP file that it was trained on, and train a projector."
            )
        raise CheckpointError(
            f"{self.name} is of no layout that is known here (its first keys are {_some(sorted(keys))}): "
            "give a Pretrain, MambaXrayCLIP, Finetune or EMRRG file."
        )

    def _starting(self, prefix: str) -> list[str]:
        return sorted(name for name in self.state if name.startswith(prefix))

    def _refuse_adapters(self) -> None:
        updates = sorted(name for name in self.state if "lora" in name.lower())
        if not updates:
            return
        ups = [name for name in updates if name.endswith("lora_X.adapter_up.weight")]
        if not ups:
            raise CheckpointError(
                f"{self.name} holds low-rank updates ({_some(updates)}) that the released tower never reads (docs/method.md 10, E8): "
                "there is nothing learned to take over. Convert the MambaXrayCLIP file and train adapters anew."
            )
        rows, down = len(self.state[ups[0]]), self.state.get(ups[0].replace("adapter_up", "adapter_down"))
        needed = down.shape[-1] if down is not None else 2 * rows
        raise CheckpointError(
            f"{self.name} holds {len(ups)} adapters of half width ({_some(updates)}): {rows} rows where LoRA_p(X) has "
            f"{needed}. The released code adds them to what a mixer gives instead of to X (docs/method.md 10, E1, E2), and beside them "
            "every layer runs the mixer of the last one (E3), so what they learned fits no other tower. Convert the "
            "MambaXrayCLIP file and train adapters anew."
        )

    def size(self, prefix: str = "") -> str:
        """The preset of a tower whose keys start with this. Raises CheckpointError when it is of no published size."""
        positions = self.state.get(f"{prefix}pos_embed")
        layers = {int(m[1]) for name in self.state if (m := re.match(rf"{re.escape(prefix)}layers\.(\d+)\.", name))}
        d = positions.shape[-1] if positions is not None and positions.dim() == 3 else 0
        published = {n: c for n, c in VISION_PRESETS.items() if c.stem is Stem.PATCH}
        for name, config in published.items():
            if (d, len(layers)) == (config.d_model, config.depth):
                return name
        known = ", ".join(f"{name} ({c.depth} layers of {c.d_model})" for name, c in published.items())
        raise CheckpointError(
            f"{self.name} has {len(layers)} layers and positions of width {d}; the published sizes are {known}."
        )

    def check(self, expected: Mapping[str, Tensor], known: Mapping[str, str]) -> None:
        """Raises CheckpointError unless the keys are those expected, of their shapes, and those known to be left out, all of them finite."""
        missing = sorted(expected.keys() - self.state.keys())
        unexpected = sorted(self.state.keys() - expected.keys() - known.keys())
        if missing:
            raise CheckpointError(f"{self.name} lacks {len(missing)} weights: {_some(missing)}.")
        if unexpected:
            raise CheckpointError(f"{self.name} has {len(unexpected)} weights without a place: {_some(unexpected)}.")
        for name, like in expected.items():
            value = self.state[name]
            if value.shape != like.shape:
                raise CheckpointError(
                    f"{self.name}: {name} has shape {tuple(value.shape)}, but {tuple(like.shape)} is needed."
                )
            finite = value.is_floating_point() and bool(torch.isfinite(value).all())
            if not finite and name != "mask":  # which is 0 and -∞
                raise CheckpointError(
                    f"{self.name}: {name} holds values that are no finite fractions; fetch the released .pth file again."
                )


def _pretrained(released: _Released) -> _Placed:
    size = released.size()
    with torch.device("meta"):
        expected = ClusterPredictor(PRETRAINING_PRESETS[size]).state_dict()
    released.check(expected, {})
    left_out = {
        name: _PREDICTS for name in sorted(expected) if not name.startswith(("patch_embed.", "layers.", "pos_embed"))
    }
    fresh = ("cls_token", "norm_f.bias", "norm_f.weight")
    return to_tower(released.state, VISION_PRESETS[size]), size, left_out, fresh


def _aligned(released: _Released) -> _Placed:
    size = released.size("visual_encoder.")
    left_out = {
        name: why for name in sorted(released.state) for start, why in _NOT_FOR_DRAFTS.items() if name.startswith(start)
    }
    expected = _tower_weights(size)
    released.check(expected, left_out)
    return {name.removeprefix("visual_encoder."): released.state[name] for name in expected}, size, left_out, ()


def _finetuned(released: _Released) -> _Placed:
    size = released.size("visual_encoder.")
    norm = released.state.get("layer_norm.weight")
    width = len(norm) if norm is not None and norm.dim() == 1 else 0
    if width not in _LANGUAGE:
        raise CheckpointError(
            f"{released.name} was trained beside a language model of width {width}; known are those of "
            f"{', '.join(f'{name} ({w})' for w, name in _LANGUAGE.items())}."
        )
    expected = _tower_weights(size)
    with torch.device("meta"):
        expected |= {"llama_proj.weight": torch.empty(width, VISION_PRESETS[size].d_model)}
        expected |= {n: torch.empty(width) for n in ("llama_proj.bias", "layer_norm.weight", "layer_norm.bias")}
    released.check(expected, {})
    return released.state, size, {}, ()


def _tower_weights(size: str) -> dict[str, Tensor]:
    """Shapes of a published tower under the names of stages 2 and 3."""
    with torch.device("meta"):
        tower = VisionMamba(VISION_PRESETS[size])
    return {f"visual_encoder.{name}": value for name, value in tower.state_dict().items()}


def _model_config(size: str, width: int) -> ModelConfig:
    """MambaXray-VL as released: all tokens in the prompt, no adapters, and no hybrid layers, which no released script turns on
    (docs/method.md 10, E7)."""
    return ModelConfig(
        vision=VISION_PRESETS[size],
        adapters=AdapterConfig.only(),
        hybrid=HybridConfig(every_n=0),
        prompt=PromptConfig(tokens=PromptTokens.ALL),
        language=_LANGUAGE[width],
    )


def _some(names: list[str]) -> str:
    """At most three of them, for a sentence."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
