"""The definition of both operations, in plain torch: slow, obvious, differentiable by autograd.

b batch · l tokens · d channels · n state size · k taps of the convolution

Every other backend is tested against this file. It computes in float32, or in float64 if any input is float64, and uses
no matrix product or convolution, so autocast cannot lower its precision.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any of the tensors is, else float32: half precision is never enough for the state."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """h[t] = exp(delta[t]·A)·h[t-1] + delta[t]·B[t]·u[t];   y[t] = C[t]·h[t] + D·u[t];   h[-1] = 0.

    u, delta: (b, l, d)   A: (d, n)   B, C: (b, l, n)   D: (d,)   returns y: (b, l, d), in u's dtype

    Source: Mamba (arXiv 2312.00752), algorithm 2 and equation 4, with B discretised as delta·B as in the authors' code.
    """
    dtype = working_dtype(u, delta, A, B, C, D)
    x, delta, A, B, C, D = (tensor.to(dtype) for tensor in (u, delta, A, B, C, D))
    state = x.new_zeros(x.shape[0], *A.shape)  # (b, d, n)
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * A)  # (b, d, n)
        state = decay * state + (delta[:, t] * x[:, t])[:, :, None] * B[:, t, None, :]  # (b, d, n)
        outputs.append((state * C[:, t, None, :]).sum(-1) + D * x[:, t])  # (b, d)
    return torch.stack(outputs, 1).to(u.dtype)  # (b, l, d)


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """SiLU of a depthwise convolution that sees the token itself and the k - 1 tokens before it.

    x: (b, l, d)   weight: (d, k), the last tap on the token itself   bias: (d,)   returns (b, l, d), in x's dtype
    """
    dtype = working_dtype(x, weight, bias)
    length, taps = x.shape[1], weight.shape[1]
    padded = F.pad(x.to(dtype), (0, 0, taps - 1, 0))  # (b, k - 1 + l, d)
    total = bias.to(dtype).expand_as(x)  # (b, l, d)
    for tap, column in enumerate(weight.to(dtype).unbind(1)):
        total = total + column * padded[:, tap : tap + length]
    return F.silu(total).to(x.dtype)
