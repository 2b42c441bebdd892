"""The CPU kernel as differentiable torch functions. Shapes as in reference.py; GROUP and CHUNK as in kernels.c.

Computes in float32 whatever the inputs' dtype and returns the first input's dtype; gradients come back in the dtype of
the input they belong to. Runs on torch.get_num_threads() threads; the result does not depend on how many. The gradient
cannot be differentiated again.

The library holds the kernels for several instruction sets. The best that the processor has computes; the environment
variable EMRRG_SCAN_ISA (avx512, avx2 or baseline; on ARM only neon) asks for another.
"""

import ctypes
import functools
import logging
import os
import threading
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from emrrg_core.errors import ConfigError
from emrrg_core.model.selective_scan.compiler import ISAS, CompileError, build

log = logging.getLogger("emrrg")

GROUP = 64  # channels that a thread works on at a time: 16 states of them fit the fastest cache
CHUNK = 16  # tokens between two states kept for the backward
_FUNCTIONS = {  # name -> number of pointers between the four sizes and the number of threads
    "emrrg_scan_forward": 9,
    "emrrg_scan_backward": 15,
    "emrrg_conv_forward": 5,
    "emrrg_conv_backward": 8,
}
_lock = threading.Lock()


def kernels() -> dict[str, dict[str, Any]]:
    """The compiled functions by name, for each instruction set that this processor has, best first; empty, after one line
    in the log, where they cannot be had."""
    with _lock:
        return _kernels()


def chosen_isa() -> str | None:
    """The instruction set that computes; None without a kernel. ConfigError: EMRRG_SCAN_ISA names one not to be had."""
    available, wanted = kernels(), os.environ.get("EMRRG_SCAN_ISA")
    if available and wanted and wanted not in available:
        raise ConfigError(f"EMRRG_SCAN_ISA is {wanted!r}: here it can be {' or '.join(available)}, or unset it.")
    return wanted if available and wanted else next(iter(available), None)


@functools.cache
def _kernels() -> dict[str, dict[str, Any]]:
    try:
        library = build({"GROUP": GROUP, "CHUNK": CHUNK})
    except CompileError as error:
        log.warning("The fast CPU scan is not available, the slow reference takes its place: %s", error)
        return {}
    found: dict[str, dict[str, Any]] = {}
    for isa in ISAS:
        if not (hasattr(library, f"emrrg_runs_{isa}") and library[f"emrrg_runs_{isa}"]()):
            continue  # this compiler could not build it, or this processor cannot run it
        found[isa] = {}
        for name, pointers in _FUNCTIONS.items():
            function, scratch = library[f"{name}_{isa}"], library[f"{name}_scratch_{isa}"]
            function.argtypes = [ctypes.c_long] * 4 + [ctypes.c_void_p] * pointers + [ctypes.c_int]
            function.restype = None
            scratch.argtypes = [ctypes.c_long] * 4 + [ctypes.c_int]
            scratch.restype = ctypes.c_long
            found[isa] |= {name: function, f"{name}_scratch": scratch}
    return found


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """As reference.selective_scan. Needs kernels()."""
    inputs = (u, delta, A, B, C, D)
    if _wants_gradient(inputs):
        return _Scan.apply(*inputs)
    return _scan_forward(*_plain(inputs), states=None).to(u.dtype)


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As reference.causal_conv_silu. Needs kernels()."""
    inputs = (x, weight, bias)
    if _wants_gradient(inputs):
        return _Conv.apply(*inputs)
    return _conv_forward(*_plain(inputs)).to(x.dtype)


class _Scan(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        u, delta, A, B, C, D = _plain(inputs)
        b, length, d = u.shape
        states = u.new_empty(b, _blocks(d, GROUP), _blocks(length, CHUNK), A.shape[1], GROUP)
        y = _scan_forward(u, delta, A, B, C, D, states=states)
        ctx.save_for_backward(u, delta, A, B, C, D, states)
        ctx.dtypes = [tensor.dtype for tensor in inputs]
        return y.to(inputs[0].dtype)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, A, B, C, D, states = ctx.saved_tensors
        (dy,) = _plain(upstream)
        gradients = tuple(torch.empty_like(tensor) for tensor in (u, delta, A, B, C, D))
        sizes = (*u.shape, A.shape[1])
        _call("emrrg_scan_backward", sizes, (u, delta, A, B, C, D, states, dy, *gradients))
        return _wanted(ctx, gradients)


class _Conv(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        x, weight, bias = _plain(inputs)
        ctx.save_for_backward(x, weight, bias)
        ctx.dtypes = [tensor.dtype for tensor in inputs]
        return _conv_forward(x, weight, bias).to(inputs[0].dtype)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        (dy,) = _plain(upstream)
        gradients = tuple(torch.empty_like(tensor) for tensor in (x, weight, bias))
        _call("emrrg_conv_backward", (*x.shape, weight.shape[1]), (x, weight, bias, dy, *gradients))
        return _wanted(ctx, gradients)


def _scan_forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, states: Tensor | None
) -> Tensor:
    y = torch.empty_like(u)
    _call("emrrg_scan_forward", (*u.shape, A.shape[1]), (u, delta, A, B, C, D, y, states))
    return y


def _conv_forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y = torch.empty_like(x)
    _call("emrrg_conv_forward", (*x.shape, weight.shape[1]), (x, weight, bias, y))
    return y


def _call(name: str, sizes: tuple[int, ...], tensors: tuple[Tensor | None, ...]) -> None:
    """Calls a kernel with the sizes, the tensors' addresses (None: a null pointer), scratch and the thread count."""
    isa = chosen_isa()
    if isa is None:
        raise RuntimeError("the CPU kernel was called although it could not be compiled")
    functions, threads = kernels()[isa], torch.get_num_threads()
    scratch = torch.empty(functions[f"{name}_scratch"](*sizes, threads), dtype=torch.float32, device="cpu")
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in (*tensors, scratch)]
    functions[name](*sizes, *pointers, threads)


def _plain(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """As the kernels read them: float32, one row after the other."""
    return tuple(tensor.to(torch.float32).contiguous() for tensor in tensors)


def _wants_gradient(tensors: tuple[Tensor, ...]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _wanted(ctx: Any, gradients: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """Each gradient in its input's dtype; None where autograd did not ask for one."""
    asked = zip(gradients, ctx.dtypes, ctx.needs_input_grad, strict=True)
    return tuple(gradient.to(dtype) if needed else None for gradient, dtype, needed in asked)


def _blocks(length: int, size: int) -> int:
    return -(-length // size)
