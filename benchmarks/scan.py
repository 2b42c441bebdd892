"""The scan beside the forms others use, in one run, on this machine: python benchmarks/scan.py [--device cuda] [--json]

forward   ours against the form of mamba-ssm's `selective_scan_ref`: exp(delta·A) and delta·B·u for all tokens by
          einsum, then a Python loop over tokens, in its (batch, channels, tokens) layout
train     forward and backward, ours against mambapy's parallel scan, called as its MambaBlock.selective_scan calls it
conv      causal convolution with SiLU, forward and backward, ours against torch's conv1d and silu with the two
          transpositions that its layout needs; no part of the two ratios above

Each repeat times every form once, one after the other, so that a busy moment of the machine meets all of them; the
numbers are medians. Threads: torch's default.

On a CPU, also our forward and backward alone, compiled for each instruction set that the processor has, and the share of
the roofline that each reaches: the least time that this machine could need, over the time taken. The least time is the
longer of two. Operations over the measured peak, a float32 matrix product; bytes over the measured bandwidth, a triad
(a = b + 3 c) of arrays too large for the caches. Both take turns with the scan, on the same threads.

operations   every addition, multiplication, comparison and shift of kernels.c is one, so that a fused multiply-add is two.
             The exponential has 22: its polynomial 10, its argument 7, its scale 3, two comparisons. The peak is of fused
             ones alone, but only 10 of the forward's 18 instructions a state are fused
bytes        what the kernel reads and writes, each array once; the parts of dB and dC that are summed, twice

--device cuda times mamba-ssm's and causal-conv1d's kernels as this
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
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

try:
    from mambapy.pscan import pscan
except ImportError:
    sys.exit("This benchmark measures beside mambapy: pip install -r requirements-dev.txt")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from emrrg_core.model.selective_scan import causal_conv_silu, chosen_backend, cpu, selective_scan


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


def example(batch: int, length: int, width: int, state: int) -> tuple[list[Tensor], Tensor]:
    """u, delta, A, B, C, D as a Mamba block makes them, and a gradient of y."""
    torch.manual_seed(0)
    u, upstream = torch.randn(batch, length, width), torch.randn(batch, length, width)
    delta = F.softplus(torch.randn(batch, length, width) - 3)
    A = -torch.arange(1.0, state + 1).repeat(width, 1)
    B, C = torch.randn(batch, length, state), torch.randn(batch, length, state)
    return [u, delta, A, B, C, torch.randn(width)], upstream


def measure(
    batch: int, length: int, width: int, state: int, repeats: int, device: str = "cpu"
) -> dict[str, dict[str, float]]:
    """The times beside other forms, by the names that --json prints."""
    torch.set_default_device(device)
    inputs, upstream = example(batch, length, width, state)
    u, delta, A, B, C, D = inputs
    across = [u.mT.contiguous(), delta.mT.contiguous(), A, B.mT.contiguous(), C.mT.contiguous(), D]
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


def demands(b: int, length: int, d: int, n: int) -> dict[str, tuple[float, float]]:
    """Operations and bytes of one forward and of one backward, as kernels.c does them."""
    groups, chunks = -(-d // cpu.GROUP), -(-length // cpu.CHUNK)
    wide, narrow, rates = b * length * d, b * length * n, d * n
    exponential = 22
    forward = wide * (n * (exponential + 6) + 2)
    backward = wide * (n * (exponential + 4 + 14) + 9)  # the states again, then the gradients
    read = 3 * wide + 2 * narrow + b * chunks * groups * cpu.GROUP * n + rates + d  # u, delta, dy; B, C; states; A; D
    written = 2 * wide + 2 * narrow + rates + d
    parts = 2 * (2 * groups * narrow + b * groups * cpu.GROUP * (n + 1))  # written and read again
    return {
        "forward": (forward, 4 * (3 * wide + 2 * narrow + rates + d)),
        "backward": (backward, 4 * (read + written + parts)),
    }


def isas_and_roofline(batch: int, length: int, width: int, state: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of forward and backward by instruction set; peaks of this machine; shares of the roofline."""
    inputs, upstream = example(batch, length, width, state)
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    y = selective_scan(*leaves)
    side, large = 2048, 32 << 20
    square, a, b, c = torch.randn(side, side), torch.empty(large), torch.ones(large), torch.ones(large)
    before = os.environ.get("EMRRG_SCAN_ISA")

    def with_isa(isa: str, work: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            os.environ["EMRRG_SCAN_ISA"] = isa
            work()

        return run

    forms: dict[str, Callable[[], object]] = {
        "matmul": lambda: square @ square,
        "triad": lambda: torch.add(b, c, alpha=3, out=a),
    }
    for isa in cpu.kernels():
        forms[f"{isa} forward"] = with_isa(isa, lambda: selective_scan(*inputs))
        forms[f"{isa} backward"] = with_isa(isa, lambda: torch.autograd.grad(y, leaves, upstream, retain_graph=True))
    took = milliseconds(forms, repeats)
    os.environ.pop("EMRRG_SCAN_ISA")
    if before is not None:
        os.environ["EMRRG_SCAN_ISA"] = before
    peak, bandwidth = 2 * side**3 / took["matmul"] * 1e3, 3 * 4 * large / took["triad"] * 1e3  # a second
    found: dict[str, Any] = {"peak_gflops": peak / 1e9, "bandwidth_gb_s": bandwidth / 1e9, "passes": {}, "isas": {}}
    for name, (operations, moved) in demands(batch, length, width, state).items():
        least = {"arithmetic": operations / peak * 1e3, "memory": moved / bandwidth * 1e3}
        bound = max(least, key=lambda kind: least[kind])
        found["passes"][name] = {
            "operations": operations,
            "bytes": moved,
            "bound": bound,
            "least_ms": least[bound],
        }
        for isa in cpu.kernels():
            took_ms = took[f"{isa} {name}"]
            found["isas"].setdefault(isa, {})[name] = {"ms": took_ms, "share": least[bound] / took_ms}
    return found


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
    roofline = isas_and_roofline(**sizes, repeats=wanted.repeats) if backend == "cpu" else {}
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
        print(json.dumps(about | results | ({"roofline": roofline} if roofline else {})))
        return
    print(f"{about['machine']}, {about['cores']} cores, {about['threads']} threads, torch {about['torch']}")
    print(f"backend {about['backend']}, " + ", ".join(f"{name} {size}" for name, size in sizes.items()))
    print(f"{'':10}{'ours':>12}{'theirs':>12}{'ratio':>9}   theirs is")
    theirs = {"forward": "the loop of selective_scan_ref", "train": "mambapy's pscan", "conv": "torch conv1d + silu"}
    for name, (ours, other, ratio) in ((name, times.values()) for name, times in results.items()):
        print(f"{name:10}{ours:9.2f} ms{other:9.1f} ms{ratio:9.1f}   {theirs[name]}")
    if not roofline:
        return
    peaks = f"{roofline['peak_gflops']:.0f} thousand million operations a second, {roofline['bandwidth_gb_s']:.1f} GB/s"
    print(f"\nthis machine's peaks, measured: {peaks}")
    for name, told in roofline["passes"].items():
        density = told["operations"] / told["bytes"]
        print(
            f"{name:10}{told['least_ms']:9.2f} ms at least: {told['bound']} is the bound, {density:.0f} operations a byte"
        )
    for isa, passes in roofline["isas"].items():
        cells = (f"{name} {took['ms']:7.2f} ms, {took['share']:4.0%} of the roofline" for name, took in passes.items())
        print(f"{isa:10}", ";   ".join(cells))


if __name__ == "__main__":
    main()
