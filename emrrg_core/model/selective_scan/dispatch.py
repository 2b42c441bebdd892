"""Chooses who computes. Shapes are checked here, once, for every backend.

"auto" takes the CPU kernel for tensors on a CPU, mamba-ssm's for tensors on a CUDA device, and the reference for every
other device and for float64. The environment variable EMRRG_SCAN (reference, cpu or cuda) replaces "auto", and
EMRRG_SCAN_ISA chooses the CPU kernel's instruction set (cpu.py). Where a kernel is not available the reference
computes, which is slower and gives the same answers; the log says so once.
"""

import os
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from emrrg_core.errors import ConfigError
from emrrg_core.model.selective_scan import cpu, cuda, reference

Backend = Literal["auto", "reference", "cpu", "cuda"]


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, backend: Backend = "auto"
) -> Tensor:
    """h[t] = exp(delta[t]·A)·h[t-1] + delta[t]·B[t]·u[t];   y[t] = C[t]·h[t] + D·u[t];   h[-1] = 0.

    u, delta: (b, l, d)   A: (d, n)   B, C: (b, l, n)   D: (d,)   returns y: (b, l, d), in u's dtype

    delta is used as it is: apply softplus before. The state is float32 (float64 if an input is float64), also under
    autocast. Differentiable in every input, once.

    Raises ValueError if shapes or devices do not fit together, a tensor is not floating point, or `backend` cannot
    compute on the tensors' device; ConfigError if EMRRG_SCAN holds no backend's name, or one for another device, or
    EMRRG_SCAN_ISA an instruction set that is not to be had here.
    Source: Mamba (arXiv 2312.00752), algorithm 2.
    """
    _check("selective_scan", {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D}, _scan_shapes(u, A))
    choice = _choose(backend, u.device, reference.working_dtype(u, delta, A, B, C, D))
    if choice == "cpu":
        return cpu.selective_scan(u, delta, A, B, C, D)
    if choice == "cuda" and (kernel := cuda.scan_kernel()):
        return cuda.selective_scan(kernel, u, delta, A, B, C, D)
    return reference.selective_scan(u, delta, A, B, C, D)


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor, *, backend: Backend = "auto") -> Tensor:
    """SiLU of a depthwise convolution over the token itself and the k - 1 tokens before it (zeros before the first).

    x: (b, l, d)   weight: (d, k), the last tap on the token itself   bias: (d,)   returns (b, l, d), in x's dtype

    Precision, gradients and errors as in `selective_scan`. On a CUDA device the kernel knows 2 to 4 taps and more
    than one token; for others the reference computes.
    """
    _check("causal_conv_silu", {"x": x, "weight": weight, "bias": bias}, _conv_shapes(x, weight))
    choice = _choose(backend, x.device, reference.working_dtype(x, weight, bias))
    if choice == "cpu":
        return cpu.causal_conv_silu(x, weight, bias)
    if choice == "cuda" and cuda.conv_takes(x, weight) and (kernel := cuda.conv_kernel()):
        return cuda.causal_conv_silu(kernel, x, weight, bias)
    return reference.causal_conv_silu(x, weight, bias)


def available_backends() -> tuple[str, ...]:
    """The backends that can compute on this machine. The first call may compile the CPU kernel (some seconds)."""
    names = ["reference"]
    if cpu.kernels():
        names.append("cpu")
    if torch.cuda.is_available() and cuda.scan_kernel():
        names.append("cuda")
    return tuple(names)


def chosen_backend(device: torch.device | str) -> str:
    """The backend that `selective_scan` takes by itself for float32 tensors on this device, EMRRG_SCAN considered."""
    choice = _choose("auto", torch.device(device), torch.float32)
    return "reference" if choice == "cuda" and cuda.scan_kernel() is None else choice


def _choose(backend: Backend, device: torch.device, dtype: torch.dtype) -> str:
    wanted = _from_environment() if backend == "auto" else backend
    if wanted not in get_args(Backend):
        raise ValueError(f"There is no scan backend {wanted!r}: choose one of {', '.join(get_args(Backend))}.")
    if wanted == "auto":
        wanted = cast(Backend, device.type if device.type in ("cpu", "cuda") else "reference")
    if wanted in ("cpu", "cuda") and wanted != device.type:
        if backend == "auto":
            raise ConfigError(f"EMRRG_SCAN is {wanted!r}, but this model runs on {device.type!r}: unset EMRRG_SCAN.")
        raise ValueError(
            f"The scan backend {wanted!r} was asked for, but the tensors are on {device.type!r}: move them, "
            'or leave the choice to backend="auto".'
        )
    if dtype == torch.float64:  # only the reference computes in double precision
        return "reference"
    return "reference" if wanted == "cpu" and cpu.chosen_isa() is None else wanted


def _from_environment() -> Backend:
    name = os.environ.get("EMRRG_SCAN") or "auto"
    if name not in get_args(Backend):
        raise ConfigError(f"EMRRG_SCAN is {name!r}: set it to reference, cpu or cuda, or unset it.")
    return cast(Backend, name)


def _scan_shapes(u: Tensor, A: Tensor) -> dict[str, tuple[int, ...]] | None:
    if u.dim() != 3 or A.dim() != 2:
        return None
    (b, length, d), n = u.shape, A.shape[1]
    return {"delta": (b, length, d), "A": (d, n), "B": (b, length, n), "C": (b, length, n), "D": (d,)}


def _conv_shapes(x: Tensor, weight: Tensor) -> dict[str, tuple[int, ...]] | None:
    if x.dim() != 3 or weight.dim() != 2:
        return None
    return {"weight": (x.shape[2], weight.shape[1]), "bias": (x.shape[2],)}


def _check(function: str, tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]] | None) -> None:
    """The first tensor decides on sizes and device; the others must fit it."""
    (leader, first), *_ = tensors.items()
    matrix = "A" if "A" in tensors else "weight"
    if shapes is None:
        raise ValueError(
            f"{function} needs {leader} as (batch, tokens, channels) and {matrix} with one row per channel, "
            f"but they have {first.dim()} and {tensors[matrix].dim()} dimensions."
        )
    for name, expected in shapes.items():
        if tuple(tensors[name].shape) != expected:
            raise ValueError(
                f"{function}: {name} has shape {tuple(tensors[name].shape)}, but {leader} of shape "
                f"{tuple(first.shape)} and {matrix} of shape {tuple(tensors[matrix].shape)} need {expected}."
            )
    if 0 in (*first.shape[1:], tensors[matrix].shape[1]):
        raise ValueError(f"{function} needs at least one token, one channel and one column of {matrix}.")
    for name, tensor in tensors.items():
        if not tensor.dtype.is_floating_point:
            raise ValueError(f"{function}: {name} must be floating point, but it is {tensor.dtype}.")
        if tensor.device != first.device:
            raise ValueError(f"{function}: {name} is on {tensor.device}, but {leader} is on {first.device}.")
