"""The whole tower with our scan, with others' scans, and beside a ViT, in one run, on this machine: python benchmarks/tower.py [--json]

ours        the tower as it is
mambapy     the same tower with mambapy's parallel scan
plain       the same tower with the scan's plain twin (emrrg_core.model.selective_scan.reference)
vit         a ViT of equal width and depth, heads of 64, MLP of four times the width, through torch's fused attention

Each at films of 224, 448 and 896 pixels with linear patches of 16: forward, and forward with backward (train). `doubling` is the time at one size
over the time at half of it: 4 would be in proportion to the pixels. `scan_share` is the part of the tower's time that passes in the scan's
kernels.

Each repeat times every form once, after a warm-up; the numbers are medians. One film a batch at 896 pixels, two below. The scans of others are left
out at more than --others-to pixels, where they take minutes and tens of gigabytes; plain trains at the smallest size only.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.scan import machine, milliseconds, parallel_scan
from emrrg_core.config import VisionConfig
from emrrg_core.model import vision_mamba
from emrrg_core.model.selective_scan import cpu, reference

SIZES = (224, 448, 896)
SHAPES = {"small": (256, 4), "base": (768, 12)}  # width, depth


class ViT(nn.Module):
    """A plain vision transformer: (b, 3, s, s) -> (b, l, d)."""

    def __init__(self, width: int, depth: int, size: int) -> None:
        super().__init__()
        self.heads = width // 64
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.positions = nn.Parameter(torch.zeros(1, (size // 16) ** 2 + 1, width))
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width),
                    "qkv": nn.Linear(width, 3 * width),
                    "out": nn.Linear(width, width),
                    "norm2": nn.LayerNorm(width),
                    "mlp": nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)),
                }
            )
            for _ in range(depth)
        )

    def forward(self, films: Tensor) -> Tensor:
        x = F.pad(self.patches(films).flatten(2).mT, (0, 0, 1, 0)) + self.positions
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleDict)
            q, k, v = layer["qkv"](layer["norm1"](x)).unflatten(-1, (3, self.heads, 64)).permute(2, 0, 3, 1, 4)
            x = x + layer["out"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            x = x + layer["mlp"](layer["norm2"](x))
        return x


@contextmanager
def scanning(scan: Callable[..., Tensor]) -> Iterator[None]:
    """The tower's scans done by another function."""
    kept = vision_mamba.selective_scan
    vision_mamba.selective_scan = scan  # type: ignore[assignment]
    try:
        yield
    finally:
        vision_mamba.selective_scan = kept


def with_scan(scan: Callable[..., Tensor], work: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        with scanning(scan):
            work()

    return run


def scan_share(work: Callable[[], object], repeats: int) -> float:
    """The part of the work that passes inside the scan's kernels, forward and backward."""
    call, inside, shares = cpu._call, [0.0], []

    def timed(name: str, *given: Any) -> None:
        begun = time.perf_counter()
        call(name, *given)
        inside[0] += (time.perf_counter() - begun) * name.startswith("emrrg_scan")

    cpu._call = timed
    try:
        work()
        for _ in range(repeats):
            inside[0], begun = 0.0, time.perf_counter()
            work()
            shares.append(inside[0] / (time.perf_counter() - begun))
    finally:
        cpu._call = call
    return statistics.median(shares)


def forward(model: nn.Module, films: Tensor) -> Callable[[], object]:
    def work() -> Tensor:
        with torch.no_grad():
            return model(films)

    return work


def train(model: nn.Module, films: Tensor) -> Callable[[], object]:
    def work() -> None:
        model.zero_grad()
        model(films).square().mean().backward()

    return work


def measure(width: int, depth: int, sizes: Sequence[int], repeats: int, *, others_to: int) -> dict[str, Any]:
    """Milliseconds a film by form, then by size."""
    found: dict[str, Any] = {"forward_ms": {}, "train_ms": {}}
    shares: dict[str, dict[int, float]] = {"forward_scan_share": {}, "train_scan_share": {}}
    for size in sizes:
        torch.manual_seed(0)
        films = torch.randn(1 if size > 448 else 2, 3, size, size)
        tower = vision_mamba.VisionMamba(VisionConfig(d_model=width, depth=depth, image_size=size, drop_path=0.0))
        vit = ViT(width, depth, size)
        for kind, way in (("forward", forward), ("train", train)):
            run = way(tower, films)
            forms = {"ours": run, "vit": way(vit, films)}
            if size <= others_to:
                forms["mambapy"] = with_scan(parallel_scan, run)
            if size <= (others_to if kind == "forward" else min(others_to, *sizes)):
                forms["plain"] = with_scan(reference.selective_scan, run)
            for name, value in milliseconds(forms, repeats).items():
                found[f"{kind}_ms"].setdefault(name, {})[size] = value / len(films)
            shares[f"{kind}_scan_share"][size] = scan_share(run, repeats)
    for kind in ("forward", "train"):
        found[f"{kind}_doubling"] = {
            name: {big: times[big] / times[small] for small, big in pairwise(sizes) if big in times}
            for name, times in found[f"{kind}_ms"].items()
        }
    return found | {name: {"ours": rows} for name, rows in shares.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*SHAPES], default="small")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--others-to", type=int, default=448, help="the largest films for the slow scans of others, in pixels"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    width, depth = SHAPES[args.shape]
    found = measure(width, depth, args.sizes, args.repeats, others_to=args.others_to)
    if args.json:
        print(
            json.dumps(
                {"machine": machine(), "threads": torch.get_num_threads(), "shape": args.shape, **found}, indent=2
            )
        )
        return
    print(f"{machine()}, {torch.get_num_threads()} threads, {args.shape}: width {width}, depth {depth}")
    for name, rows in found.items():
        for form, values in rows.items():
            print(f"{name:19}{form:8}", *(f"{size}: {value:9.2f}" for size, value in values.items()))


if __name__ == "__main__":
    main()
