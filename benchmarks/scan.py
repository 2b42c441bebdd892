"""The scan beside the forms others use, in one run, on this machine: python benchmarks/scan.py [--device cuda] [--json]

forward   ours against the form of mamba-ssm's `selective_scan_ref`: exp(delta·A) and delta·B·u for all tokens by
          einsum, then a Python loop over tokens, in its (batch, channels, tokens) layout
train     forward and backward, ours against mambapy's parallel scan, called as its MambaBlock.selective_scan calls it
conv      causal convolution with SiLU, forward and backward, ours against torch's conv1d and silu with the two
          transpositions that its layout needs; no part of the two ratios above

Each repeat times every form once, one after the other, so that a busy moment of the machine meets all of them; the
numbers are medians. Threads: torch's default. --device cuda times mamba-ssm's and causal-conv1d's kernels as this
project calls them (emrrg_core/model/selective_scan/cuda.py), beside the same forms on the same GPU.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

try:
    from mambapy.pscan import pscan
except ImportError:
    sys.exit("This benchmark measures beside mambapy: pip install -r requirements-dev.txt")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from emrrg_core.model.selective_scan import causal_conv_silu, chosen_backend, selective_scan


def loop_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The form of mamba-ssm's reference: u, delta (b, d, l), A (d, n), B, C (b, n, l), D (d,) -> (b, d, l)."""
    decays = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    inputs = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
    state = A.new_zeros(u.shape[0], *A.shape)
    outputs = []
    for t in range(u.shape[2]):
        state = decays[:, :, t] * state + inputs[:, :, t]
        outputs.append(torch.einsum("bdn,bn->bd", state, C[:, :, t]))
    return torch.stack(outputs, dim=2) + u * D[:, None]


def parallel_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """mambapy's: shapes as ours."""
    decays = torch.exp(delta[..., None] * A)  # (b, l, d, n)
    inputs = delta[..., None] * B[:, :, None] * u[..., None]  # (b, l, d, n)
    states = pscan(decays, inputs)
    return (states @ C[..., None]).squeeze(3) + D * u


def torch_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """torch's own convolution, as a Mamba block without kernels writes it: shapes as ours."""
    taps, length = weight.shape[1], x.shape[1]
    y = F.conv1d(x.transpose(1, 2), weight[:, None], bias, padding=taps - 1, groups=weight.shape[0])
    return F.silu(y[..., :length]).transpose(1, 2)


def milliseconds(forms: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median time of each form; the repeats of all forms take turns, after one round that is not counted."""
    settle = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None  # a GPU answers before it is done
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for repeat in range(repeats + 1):
        for name, form in forms.items():
            settle()
            start = time.perf_counter()
            form()
            settle()
            if repeat:
                taken[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(times) for name, times in taken.items()}


def train_step(function: Callable[..., Tensor], inputs: list[Tensor], upstream: Tensor) -> Callable[[], object]:
    """One forward and backward, the gradients of all inputs."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    return lambda: torch.autograd.grad(function(*leaves), leaves, upstream)


def measure(
    batch: int, length: int, width: int, state: int, repeats: int, device: str = "cpu"
) -> dict[str, dict[str, float]]:
    """All numbers, by the names that --json prints."""
    torch.manual_seed(0)
    torch.set_default_device(device)
    u, upstream = torch.randn(batch, length, width), torch.randn(batch, length, width)
    delta = F.softplus(torch.randn(batch, length, width) - 3)
    A = -torch.arange(1.0, state + 1).repeat(width, 1)
    B, C = torch.randn(batch, length, state), torch.randn(batch, length, state)
    inputs = [u, delta, A, B, C, torch.randn(width)]
    across = [u.mT.contiguous(), delta.mT.contiguous(), A, B.mT.contiguous(), C.mT.contiguous(), inputs[5]]
    conv = [u, torch.randn(width, 4), torch.randn(width)]

    with torch.no_grad():  # a race between different answers would be worth nothing
        torch.testing.assert_close(selective_scan(*inputs), loop_scan(*across).mT, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(selective_scan(*inputs), parallel_scan(*inputs), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(causal_conv_silu(*conv), torch_conv(*conv), rtol=1e-3, atol=1e-4)
        forward = milliseconds(
            {"ours_ms": lambda: selective_scan(*inputs), "reference_ms": lambda: loop_scan(*across)}, repeats
        )
    train = milliseconds(
        {
            "ours_ms": train_step(selective_scan, inputs, upstream),
            "mambapy_ms": train_step(parallel_scan, inputs, upstream),
        },
        repeats,
    )
    convolution = milliseconds(
        {"ours_ms": train_step(causal_conv_silu, conv, upstream), "torch_ms": train_step(torch_conv, conv, upstream)},
        repeats,
    )
    results = {"forward": forward, "train": train, "conv": convolution}
    for times in results.values():
        ours, other = times.values()
        times["ratio"] = other / ours
    return results


def machine() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description="Times the scan beside the forms others use.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=196)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--state", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    wanted = parser.parse_args()

    sizes = {"batch": wanted.batch, "length": wanted.length, "width": wanted.width, "state": wanted.state}
    if wanted.device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no CUDA device here.")
    backend = chosen_backend(wanted.device)
    if wanted.device == "cuda" and backend != "cuda":
        sys.exit("mamba-ssm is not installed here (requirements-cuda.txt): the scan would be the reference.")
    results = measure(**sizes, repeats=wanted.repeats, device=wanted.device)
    about = {
        "machine": torch.cuda.get_device_name() if wanted.device == "cuda" else machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "backend": backend,
        "shape": sizes,
        "repeats": wanted.repeats,
    }
    if wanted.json:
        print(json.dumps(about | results))
        return
    print(f"{about['machine']}, {about['cores']} cores, {about['threads']} threads, torch {about['torch']}")
    print(f"backend {about['backend']}, " + ", ".join(f"{name} {size}" for name, size in sizes.items()))
    print(f"{'':10}{'ours':>12}{'theirs':>12}{'ratio':>9}   theirs is")
    theirs = {"forward": "the loop of selective_scan_ref", "train": "mambapy's pscan", "conv": "torch conv1d + silu"}
    for name, (ours, other, ratio) in ((name, times.values()) for name, times in results.items()):
        print(f"{name:10}{ours:9.2f} ms{other:9.1f} ms{ratio:9.1f}   {theirs[name]}")


if __name__ == "__main__":
    main()
