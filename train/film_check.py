"""Fits the detector of chest films (`emrrg_core.films.film_check`) to a checkpoint, and measures its errors.

    python -m train.film_check --checkpoint assets/checkpoints/small --films FILMS.jsonl --out assets/checkpoints/small/looks.safetensors \\
        [--others FILE...] [--docs docs/refusals.md]

The detector is fitted on films of the split `train`, turned and mirrored, on the lateral films of any split, and on images drawn by
`train.negative_images`. Its limits are set on one half of the patients of the split `val` and on images drawn with other seeds. Its errors are
measured on the other half, and on real images that are no chest films and were never fitted to: those that come with pydicom, matplotlib and
Gradio, and the files named by --others. The table goes between the markers `<!-- looks -->` of the document.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, Python looks beside the script only

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from emrrg_core.data.studies import FilmCache, Study, augment, eight_bits, normalise, read_studies
from emrrg_core.errors import FilmError
from emrrg_core.films.film import OVERRIDABLE, model_input, read_film
from emrrg_core.films.film_check import FILE, KINDS, Detector, FilmCheck, features
from emrrg_core.model import checkpoint
from emrrg_core.model.emrrg import Emrrg
from train import negative_images
from train.confidence import publish, rate

ROOT = Path(__file__).resolve().parent.parent
FITTED = {"frontal": 300, "upside down": 80, "sideways": 80, "mirrored": 240, "other": 24, "phantom": 16}
JUDGED = {"frontal": 180, "upside down": 50, "sideways": 50, "mirrored": 90, "other": 8, "phantom": 30}
# "other": of each kind that is drawn
SIDES = 40  # lateral films at most
COPIES = 12  # how often each of them is varied to be fitted on
FOLDS = 5  # in how many parts they are judged

# Real images that are no chest film, by package and file; a file that is not there is left out.
REAL = {
    "limbs and hips": {"data_store": "data/RG3_UNCR.dcm"},
    "CT slices": {
        "data_store": "data/693_J2KR.dcm data/bad_sequence.dcm data/explicit_VR-UN.dcm",
        "pydicom": "data/test_files/CT_small.dcm data/test_files/J2K_pixelrep_mismatch.dcm",
    },
    "MR slices": {
        "data_store": "data/MR-SIEMENS-DICOM-WithOverlays.dcm data/MR2_J2KR.dcm",
        "pydicom": "data/test_files/examples_overlay.dcm",
    },
    "ultrasound": {
        "data_store": "data/JPGLosslessP14SV1_1s_1f_8b.dcm data/OBXXXX1A.dcm data/US1_J2KR.dcm data/gdcm-US-ALOKA-16.dcm",
        "pydicom": "data/test_files/examples_palette.dcm",
    },
    "bone scan": {"data_store": "data/JPEG-LL.dcm"},
    "test patterns": {
        "data_store": "data/mlut_18.dcm",
        "pydicom": "data/test_files/GDCMJ2K_TextGBR.dcm data/test_files/image_dfl.dcm",
    },
    "photographs and pictures": {
        "data_store": "data/OT-PAL-8-face.dcm",
        "gradio": " ".join(
            ("test_data/cheetah2.jpg", *(f"media_assets/images/{n}" for n in ("cheetah.jpg", "cheetah1.jpg", "groot.jpeg", "lion.jpg", "tower.jpg")))
        ),
        "matplotlib": " ".join(f"mpl-data/sample_data/{n}" for n in ("grace_hopper.jpg", "logo2.png", "Minduka_Present_Blue_Pack.png")),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """One image as the tower sees it, and what it is."""

    kind: str  # one of KINDS
    row: str  # of the table
    grey: np.ndarray  # (size, size) uint8


# ------------------------------------------------------------------------------------------------------------- pictures


def spread(studies: Sequence[Study], count: int, rng: np.random.Generator) -> list[Study]:
    """So many frontal studies, as equally of every source as there are, in random order."""
    pools: dict[str, list[Study]] = {}
    for i in rng.permutation(len(studies)):
        if (studies[i].view or "").lower() != "lateral":
            pools.setdefault(studies[i].source, []).append(studies[i])
    chosen: list[Study] = []
    while len(chosen) < count and any(pools.values()):
        chosen += [pool.pop() for pool in pools.values() if pool]
    return [chosen[i] for i in rng.permutation(len(chosen))][:count]


def turned(kind: str, grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A frontal film as it looks when hung wrongly."""
    if kind == "upside down":
        return grey[::-1, ::-1] if rng.random() < 0.5 else grey[::-1]
    if kind == "sideways":
        return np.rot90(grey, rng.choice([1, 3]))
    return grey[:, ::-1] if kind == "mirrored" else grey


def pictures(
    studies: Sequence[Study], cache: FilmCache, counts: dict[str, int], seed: int, phantoms: int
) -> list[Picture]:
    """Films as they are and turned, no film twice, and drawn images. phantoms: the seed of the first one."""
    rng = np.random.default_rng(seed)
    todo, found = iter(studies), []
    for kind in ("frontal", "mirrored", "upside down", "sideways"):
        for _, study in zip(range(counts[kind]), todo, strict=False):
            found.append(Picture(kind, f"films, {kind}", np.ascontiguousarray(turned(kind, cache[study], rng))))
    films = [picture.grey for picture in found if picture.kind == "frontal"]
    size = cache.size
    for row, draw in negative_images.DRAWN.items():
        found += [Picture("other", row, _eight_bits(draw(size, rng))) for _ in range(counts["other"])]
    for i in rng.permutation(len(films))[: counts["other"]]:
        found.append(Picture("other", "films cut in tiles", _eight_bits(negative_images.jigsaw(films[i] / 255, rng))))
    found += [Picture("frontal", "phantoms", grey) for grey in _phantoms(counts["phantom"], phantoms, size)]
    return found


def _eight_bits(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _seen(pixels: np.ndarray, size: int) -> np.ndarray:
    """Pixels (height, width) in [0, 1] as the cache keeps a film."""
    return eight_bits(model_input(pixels.astype(np.float32), size))


def _phantoms(count: int, first: int, size: int) -> list[np.ndarray]:
    """The drawn chests of the tests and examples: they are meant to look like chest films, so they must pass as such."""
    make_phantom = import_module("tests.phantom").make_phantom  # of this folder, not of a package
    return [_seen(make_phantom(seed).pixels, size) for seed in range(first, first + count)]


def real(others: Sequence[Path], size: int) -> list[Picture]:
    """The real images that nothing is fitted to, no two alike."""
    known: set[str] = set()
    found = []
    named = [(row, files(home) / name) for row, homes in REAL.items() for home, names in homes.items() for name in names.split()]  # fmt: skip
    for row, path in [*(("limbs and hips", path) for path in others), *named]:
        try:
            film = read_film(Path(str(path)), anyway=OVERRIDABLE)
        except FilmError as error:
            print(f"left out: {path.name}: {error}", file=sys.stderr)
            continue
        if film.sha256 not in known:
            known.add(film.sha256)
            found.append(Picture("other", row, _seen(film.pixels, size)))
    return found


def varied(greys: Sequence[np.ndarray], seed: int) -> list[Picture]:
    """Lateral films facing either way, and as another technician might have taken them."""
    rng = np.random.default_rng(seed)
    flipped = [grey[:, ::-1] if n % 2 else grey for grey in greys for n in range(COPIES)]
    return [Picture("lateral", "laterals, varied", np.rint(augment(grey, rng)[0]).astype(np.uint8)) for grey in flipped]


def see(model: Emrrg, found: Sequence[Picture], batch: int = 16) -> Tensor:
    """Patch tokens of the tower: (pictures, g², d) float32."""
    device = model.device
    rows = []
    for start in tqdm(range(0, len(found), batch), unit="batch", disable=None):
        greys = np.stack([picture.grey for picture in found[start : start + batch]])
        with torch.inference_mode():
            tokens = model.see(torch.from_numpy(normalise(greys))[:, None].to(device)).tokens
        rows.append(model.patches(tokens).float().cpu())
    return torch.cat(rows)


# ------------------------------------------------------------------------------------------------------------------ fit

PENALTY, DIRECTIONS = 3e-3, 48  # of the softmax's weights; along which chest films' own spread is kept
TURNS = ("frontal", "upside down", "sideways", "mirrored")


def fit(tokens: Tensor, found: Sequence[Picture], *, weights: str) -> Detector:
    """The softmax and the spread of chest films; no limits yet. weights: SHA-256 of the checkpoint's."""
    x = features(tokens).double()
    chests = x[torch.tensor([picture.row.startswith("films, ") for picture in found])]
    shift, scale = chests.mean(0), chests.std(0).clamp(min=1e-3)
    z = (x - shift) / scale
    y = torch.tensor([KINDS.index(picture.kind) for picture in found])
    share = (1 / torch.bincount(y, minlength=len(KINDS)).clamp(min=1).double())[y]  # each kind counts alike
    weight = torch.zeros(len(KINDS), x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(KINDS), dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        descent.zero_grad()
        missed = torch.nn.functional.cross_entropy(z @ weight.T + bias, y, reduction="none")
        value = (missed * share).sum() / share.sum() + PENALTY * weight.square().sum()
        value.backward()
        return value

    descent.step(loss)
    own = (chests - shift) / scale
    _, values, directions = torch.linalg.svd(own, full_matrices=False)
    variance = values.square() / (len(own) - 1)
    r = min(DIRECTIONS, len(own) // 2)
    rest = ((variance.sum() - variance[:r].sum()) / (x.shape[1] - r)).sqrt()
    tensors = {
        "shift": shift, "scale": scale, "weight": weight.detach(), "bias": bias.detach(), "basis": directions[:r],
        "spread": variance[:r].sqrt(), "rest": rest, "limits": torch.ones(len(KINDS) + 1),
    }  # fmt: skip
    return Detector({name: tensor.float() for name, tensor in tensors.items()}, weights=weights)


def limit(detector: Detector, tokens: Tensor, found: Sequence[Picture]) -> None:
    """Sets the limits: what one chest film in a hundred reaches, and never below an even chance.

    For "other" the chest films are those that are turned or mirrored too; for a turned kind, those of every other kind.
    """
    x = features(tokens)
    chances, kinds = detector.chances(x), np.array([picture.kind for picture in found])
    chest = np.isin(kinds, TURNS)
    limits = torch.ones(len(KINDS) + 1)
    for i, kind in enumerate(KINDS[1:], 1):
        rest = torch.from_numpy(chest & (kinds != kind))
        limits[i] = max(0.5, float(torch.quantile(chances[rest, i], 0.99)))
    limits[-1] = 1.1 * torch.quantile(detector.distances(x)[torch.from_numpy(chest)], 0.995)
    detector.tensors["limits"] = limits


# ---------------------------------------------------------------------------------------------------------------- table


def table(found: Sequence[Picture], judged: Sequence[FilmCheck]) -> str:
    """A row for each kind of image: what it was taken for, and how often that was wrong."""
    taken: dict[tuple[str, str], list[str]] = {}
    for picture, looks in zip(found, judged, strict=True):
        taken.setdefault((picture.kind, picture.row), []).append(looks.kind)
    names = ["refused" if kind == "other" else kind for kind in KINDS]
    lines = [f"| images | should be | {' | '.join(names)} | wrong |", "|---" * (len(KINDS) + 3) + "|"]
    order = [*KINDS]
    for (kind, row), got in sorted(taken.items(), key=lambda item: order.index(item[0][0])):
        counts = " | ".join(str(got.count(k)) for k in KINDS)
        wrong = sum(k != kind for k in got)
        lines.append(f"| {row} | {names[KINDS.index(kind)]} | {counts} | {rate(wrong, len(got))} |")
    drawn = {
        row for kind, row in taken if kind == "other" and (row in negative_images.DRAWN or row == "films cut in tiles")
    }
    for words, rows in (
        ("all drawn ones", drawn),
        ("all real ones", {row for k, row in taken if k == "other"} - drawn),
    ):
        got = [k for (kind, row), some in taken.items() if kind == "other" and row in rows for k in some]
        counts = " | ".join(f"**{got.count(k)}**" for k in KINDS)
        lines.append(
            f"| **no chest film, {words}** | refused | {counts} | **{rate(sum(k != 'other' for k in got), len(got))}** |"
        )
    return "\n".join(lines)


def fitted(
    model: Emrrg,
    learned: Sequence[Picture],
    limiting: Sequence[Picture],
    judged: Sequence[Picture],
    sides: Sequence[np.ndarray],
    weights: str,
) -> tuple[Detector, str]:
    """The detector, and its table. The lateral films are so few that each is judged by a detector that was fitted to the others."""
    learned = [*learned, *varied(sides, 0)]
    mine = [None] * (len(learned) - COPIES * len(sides)) + [n % FOLDS for n in range(len(sides)) for _ in range(COPIES)]
    tokens, set_on = see(model, learned), see(model, limiting)

    def without(fold: int | None) -> Detector:
        kept = [i for i, own in enumerate(mine) if own is None or own != fold]
        made = fit(tokens[kept], [learned[i] for i in kept], weights=weights)
        limit(made, set_on, limiting)
        return made

    detector = without(None)
    found, looks = list(judged), detector(see(model, judged))
    own = [Picture("lateral", "films, lateral", grey) for grey in sides]
    own_tokens = see(model, own) if own else tokens[:0]
    for fold in sorted({n % FOLDS for n in range(len(own))}):
        some = [n for n in range(len(own)) if n % FOLDS == fold]
        found += [own[n] for n in some]
        looks += without(fold)(own_tokens[some])
    note = (
        f"Checkpoint `{weights[:12]}…`. Fitted on {len(learned)} images, limits set on {len(limiting)}, judged on others. The {len(own)} lateral "
        "films were judged by detectors fitted without them, the one in use is fitted on all. In brackets Wilson's 95 % interval, in percent."
    )
    return detector, f"{table(found, looks)}\n\n{note}"


def run(args: argparse.Namespace) -> str:
    """Fits the detector, saves it, and returns its table."""
    studies = read_studies(args.films)
    model, _ = checkpoint.load(args.checkpoint)
    size, rng = model.config.vision.image_size, np.random.default_rng(args.seed)
    held = [study for study in studies if study.split == "val"]
    half = set(sorted({study.patient for study in held})[::2])
    pools = [
        [study for study in studies if study.split == "train"],
        [study for study in held if study.patient in half],
        [study for study in held if study.patient not in half],
    ]
    needed = [sum(counts[kind] for kind in TURNS) for counts in (FITTED, JUDGED, JUDGED)]
    chosen = [spread(pool, count, rng) for pool, count in zip(pools, needed, strict=True)]
    sides = [study for study in studies if (study.view or "").lower() == "lateral"][:SIDES]
    cache = FilmCache([*(study for some in chosen for study in some), *sides], args.cache, size)
    learned, limiting, judged = (
        pictures(some, cache, counts, args.seed + n, 1000 * n)
        for n, (some, counts) in enumerate(zip(chosen, (FITTED, JUDGED, JUDGED), strict=True))
    )
    judged += real(args.others, size)
    weights = checkpoint.fingerprint(args.checkpoint)
    detector, text = fitted(model, learned, limiting, judged, [cache[study] for study in sides], weights)
    detector.save(args.out or args.checkpoint / FILE)
    return text


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--films", type=Path, required=True)
    parser.add_argument(
        "--out", type=Path, help="default: looks.safetensors in the checkpoint's folder, where it is found"
    )
    parser.add_argument("--others", type=Path, nargs="*", default=[], metavar="FILE", help="films of limbs and hips")
    parser.add_argument("--docs", type=Path, help="a document to put the table in; default: print it only")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "cache")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    return publish(lambda: run(args), args.docs, "looks")


if __name__ == "__main__":
    sys.exit(main())
