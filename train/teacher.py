"""Stores what an earlier checkpoint reads in every training film, so that the tower can learn new findings without losing the old ones.

    git show 0ae5197:assets/checkpoints/small/model.safetensors > runs/november.safetensors
    python -m train.teacher --weights runs/november.safetensors --films FILMS.jsonl FILMS_MORE.jsonl --out runs/teacher

The checkpoint of November 2026 read a film with four networks: three convolutional stems for the labels, and a tower for places. Its third stem
alone reads nearly as well as all three, so our tower starts from it (train/tower.py). Its labels and the old tower's places are targets for films
whose label or place is unknown (distillation, Hinton et al. 2015, arXiv 1503.02531). Both networks learned from the same training films.
Validation films are not read.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from emrrg_core.config import VISION_PRESETS, AdapterConfig
from emrrg_core.data.studies import FilmCache, Study, normalise, read_studies
from emrrg_core.errors import CheckpointError
from emrrg_core.model.language_model import prefers_bfloat16
from emrrg_core.model.partial_lora import attach
from emrrg_core.model.vision_mamba import ConvolutionalStem, VisionMamba
from emrrg_core.text.labeler import LABELS, NO_FINDING

LEARNED = (NO_FINDING, "Lung Opacity", "Pneumonia")  # labels that it had learned well
PLACES = ("right lung", "left lung", "nodule", "opacity", "effusion")  # what it read in every patch
STEM = "second.stems.2."  # of its three stems the one that reads nearly as well alone


class Teacher(nn.Module):
    """The readers of the November checkpoint, from its weights file alone. Raises CheckpointError for another file."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        config = VISION_PRESETS["small"]
        self.tower = VisionMamba(config)
        attach(self.tower, AdapterConfig())
        self.stem = ConvolutionalStem(config)
        self.labels = nn.Linear(2 * config.d_model, len(LABELS))
        self.places = nn.Linear(config.d_model, len(PLACES))
        state = weights_of(weights)
        mine: dict[str, Tensor] = {}
        for ours, theirs in (
            ("tower.", "visual_encoder."),
            ("stem.", STEM),
            ("labels.", "second.labels."),
            ("places.", "signs.places."),
        ):
            mine |= {
                ours + name.removeprefix(theirs): value for name, value in state.items() if name.startswith(theirs)
            }
        if (whole := mine.get("labels.weight")) is not None:
            # the mean of three stems' readings, as one layer: of the third its own part (its bias is only known as the mean of three)
            mine["labels.weight"] = 3 * whole[:, 4 * config.d_model :]
        try:
            self.load_state_dict(mine)
        except RuntimeError as error:
            raise CheckpointError(f"{weights} is not the checkpoint of November 2026: {error}") from error
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 3, s, s) -> logits of the labels (n, 14), and of PLACES in every patch (n, g², 5)."""
        patches = self.stem(images)
        labels = self.labels(torch.cat([patches.mean(1), patches.amax(1)], dim=1))
        tokens, middle = self.tower(images), self.tower.config.class_position
        return labels, self.places(torch.cat([tokens[:, :middle], tokens[:, middle + 1 :]], dim=1))


def weights_of(path: Path) -> dict[str, Tensor]:
    """A weights file in float32. Raises CheckpointError when it cannot be read."""
    try:
        return {name: value.float() for name, value in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as weights: {error}") from error


class Readings:
    """What the teacher read, by study: `labels` (14,), NaN where it had not learned one, and `places` (g², 5), logits; None for a study that it did
    not read."""

    def __init__(self, folder: Path) -> None:
        path = folder / "readings.safetensors"
        try:
            state = load_file(path)
            names = (folder / "studies.txt").read_text().splitlines()
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder} has no readings of train.teacher: {error}") from error
        self._at = {name: i for i, name in enumerate(names)}
        self._labels, self._places = state["labels"], state["places"]

    def __getitem__(self, study: Study) -> tuple[np.ndarray, np.ndarray] | None:
        if (i := self._at.get(study.id)) is None:
            return None
        return self._labels[i].float().numpy(), self._places[i].float().numpy()


@torch.inference_mode()
def read(teacher: Teacher, studies: Sequence[Study], cache: FilmCache) -> tuple[Tensor, Tensor]:
    """Labels (n, 14), NaN but for LEARNED, and places (n, g², 5) of the first film of every study, float16 on the CPU."""
    device = teacher.labels.weight.device
    labels, places = [], []
    for i in range(0, len(studies), 32):
        films = torch.from_numpy(normalise(np.stack([cache[s] for s in studies[i : i + 32]]))).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=prefers_bfloat16(device)):
            found = teacher(films)
        labels.append(found[0].half().cpu())
        places.append(found[1].half().cpu())
        if i % 960 == 0:
            print(f"{i} of {len(studies)} films", flush=True)
    every = torch.cat(labels)
    every[:, [i for i, name in enumerate(LABELS) if name not in LEARNED]] = float("nan")
    return every, torch.cat(places)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="model.safetensors of the November checkpoint")
    parser.add_argument("--films", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--workers", type=int, default=0, help="processes that decode the films on the first run")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    studies = [study for path in args.films for study in read_studies(path)]
    cache = FilmCache(studies, args.cache, workers=args.workers)
    teacher = Teacher(args.weights).to("cuda" if torch.cuda.is_available() else "cpu")
    learn = [s for s in studies if s.split == "train"]
    labels, places = read(teacher, learn, cache)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "studies.txt").write_text("".join(f"{s.id}\n" for s in learn))
    save_file({"labels": labels, "places": places}, args.out / "readings.safetensors")
    kept = {n: v for n, v in teacher.state_dict().items() if n.startswith(("stem.", "labels."))}
    save_file({name: value.contiguous().cpu() for name, value in kept.items()}, args.out / "reader.safetensors")


if __name__ == "__main__":
    main()
