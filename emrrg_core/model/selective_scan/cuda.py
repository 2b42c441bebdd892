"""The CUDA kernels of others: mamba-ssm's selective scan and causal-conv1d's convolution. Shapes as in reference.py.

Both are optional packages (requirements-cuda.txt). They are imported where they are needed; only their absence, or a
build that does not fit this torch, which also shows as ImportError, leads to the reference, and the log says so once.
"""

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

log = logging.getLogger("emrrg")


@functools.cache
def scan_kernel() -> Callable[..., Tensor] | None:
    """mamba-ssm's function; None, after one line in the log, where the package cannot be imported."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError as error:
        log.warning("mamba-ssm cannot be imported, the slow reference scan takes its place on the GPU: %s", error)
        return None
    return selective_scan_fn


@functools.cache
def conv_kernel() -> Callable[..., Tensor] | None:
    """causal-conv1d's function; None, after one line in the log, where the package cannot be imported."""
    try:
        from causal_conv1d import causal_conv1d_fn
    except ImportError as error:
        log.warning("causal-conv1d cannot be imported, the reference convolution takes its place on the GPU: %s", error)
        return None
    return causal_conv1d_fn


def selective_scan(
    kernel: Callable[..., Tensor], u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> Tensor:
    """As reference.selective_scan. The kernel wants channels before tokens, one dtype for what depends on the token
    (here the widest of the four), and float32 for A and D; it keeps its state in float32."""
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in (u, delta, B, C)))
    across = [tensor.to(dtype).transpose(1, 2).contiguous() for tensor in (u, delta, B, C)]  # (b, d or n, l)
    x, delta, B, C = across
    y = kernel(x, delta, A.to(torch.float32).contiguous(), B, C, D.to(torch.float32), delta_softplus=False)
    return y.transpose(1, 2).to(u.dtype)  # (b, l, d)


def conv_takes(x: Tensor, weight: Tensor) -> bool:
    """Whether causal-conv1d can compute this: 2 to 4 taps, and more than one token, whose layout it would misread."""
    return weight.shape[1] in range(2, 5) and x.shape[1] > 1


def causal_conv_silu(kernel: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As reference.causal_conv_silu, for what `conv_takes` takes."""
    across = x.transpose(1, 2).contiguous()  # (b, d, l)
    y = kernel(across, weight.to(x.dtype).contiguous(), bias.to(x.dtype), activation="silu")
    return y.transpose(1, 2)  # (b, l, d)
