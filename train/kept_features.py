"""What a frozen tower makes of films, kept on disk: each film goes through the tower once, for all epochs, stages and runs that share the folder.

    folder/tower-KEY/FILM.safetensors      tokens, lungs, stem of one film (`Emrrg.look`)

KEY is a hash of everything that decides what the tower answers: its weights, settings and precision. FILM is a hash of the pixels as the tower gets
them, so a film that was turned, exposed or drawn on otherwise is another film. Nothing is ever out of date; what is no longer used may be deleted.
Of the shipped tower a film takes 0.4 MB, so only films that come again are worth keeping.
"""

import hashlib
import json
import os
import tempfile
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from emrrg_core.errors import ConfigError, DataError
from emrrg_core.model.emrrg import Emrrg, TowerFeatures

_FORM = 1  # of the files; another number for a tower whose code answers otherwise
_NAMES = tuple(field.name for field in fields(TowerFeatures))


class KeptFeatures:
    """Stands for `Emrrg.look` while the tower is frozen: `model.see(images, look=kept)`.

    The tower sees new films as in a draft, without dropout, those of one call together; they differ by rounding from what it makes of each alone.
    `found` and `computed` count films.
    """

    def __init__(self, model: Emrrg, folder: Path) -> None:
        """Raises ConfigError where the tower learns: what is kept would soon be false."""
        learning = [
            name
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name.startswith(("visual_encoder.", "lungs."))
        ]
        if learning:
            raise ConfigError(
                f"`ways` keeps what a frozen tower sees, and this one learns ({learning[0]}): set tower = false, or leave `ways` out."
            )
        self._model, self._folder, self._tower = model, folder, tower_hash(model)
        self.found = self.computed = 0

    def __call__(self, films: Tensor) -> TowerFeatures:
        """(n, 3, s, s), normalised, to what the tower makes of them, on their device. Raises DataError when it cannot be written."""
        folder = self._folder / f"tower-{self._tower}-{_precision(films)}"
        paths = [folder / f"{_film_hash(film)}.safetensors" for film in films.cpu()]
        rows = [_read(path) for path in paths]
        missing = [i for i, row in enumerate(rows) if row is None]
        if missing:
            computed = self._look(films[missing])
            for i, row in zip(missing, computed, strict=True):
                rows[i] = row
                _write(row, paths[i])
        self.found += len(films) - len(missing)
        self.computed += len(missing)
        kept = [row for row in rows if row is not None]
        return TowerFeatures(
            **{name: torch.stack([row[name] for row in kept]).to(films.device) for name in _NAMES if name in kept[0]}
        )

    @torch.no_grad()
    def _look(self, films: Tensor) -> list[dict[str, Tensor]]:
        tower = self._model.visual_encoder
        training = tower.training
        tower.eval()
        try:
            found = self._model.look(films)
        finally:
            tower.train(training)
        whole = {name: value.cpu() for name in _NAMES if (value := getattr(found, name)) is not None}
        return [{name: value[i].contiguous() for name, value in whole.items()} for i in range(len(films))]


def tower_hash(model: Emrrg) -> str:
    """Of the weights and settings that decide what `model.look` answers, 16 hexadecimal digits."""
    config = model.config
    stem = config.queries.depth > 0 and config.queries.stem
    settings = [_FORM, config.vision.to_dict(), config.adapters.to_dict(), config.queries.depth > 0, stem]
    found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        if name.startswith(("visual_encoder.", "lungs.")):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _precision(films: Tensor) -> str:
    device = films.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else films.dtype
    return f"{device}-{str(dtype).removeprefix('torch.')}"


def _film_hash(film: Tensor) -> str:
    return hashlib.sha256(film.numpy().tobytes()).hexdigest()[:32]


def _read(path: Path) -> dict[str, Tensor] | None:
    """None where there is no such file, or one that is torn."""
    try:
        return load_file(path) if path.is_file() else None
    except (OSError, SafetensorError):
        return None


def _write(row: dict[str, Tensor], path: Path) -> None:
    """Whole or not at all; of two processes that write the same, the later replaces equal by equal."""
    beside = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=path.parent, suffix=".part")
        os.close(handle)
        save_file(row, beside)
        os.replace(beside, path)
    except (OSError, SafetensorError) as error:
        if beside:
            Path(beside).unlink(missing_ok=True)
        raise DataError(f"What the tower sees cannot be kept in {path.parent}: {error}. Leave `ways` out.") from error
