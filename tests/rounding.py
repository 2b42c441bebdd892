"""How far apart two computations of the same number may lie, on any processor. No test needs a tolerance of its own for that.

A sum of floats depends on its order, and matrix kernels choose another order for another number of rows, on another processor and with another
number of threads. Only the same kernel on the same shapes gives the same bits: compare those with `==` or `torch.equal`, all else with this.
"""

import math

import torch
from torch import nn

DEVIATIONS = 10  # of the walk below: nothing but a mistake goes as far


def additions(*models: nn.Module) -> int:
    """How many numbers are added up on the way through these models: what one output of every linear layer and convolution has for terms."""
    layers = [m for model in models for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]
    return sum(layer.weight[0].numel() for layer in layers)


def rounding(size: float, additions: int, dtype: torch.dtype = torch.float32) -> float:
    """The most by which rounding moves a number of this size behind so many additions when they are grouped otherwise.

    An addition is off by half an eps at most, up or down: evenly spread, eps / √12 is its deviation. Errors of either sign walk at random, so
    they grow with the root of their number; and two computations are compared, each with a walk of its own.
    """
    return DEVIATIONS * math.sqrt(2 * additions / 12) * torch.finfo(dtype).eps * abs(size)


def assert_alike(actual: torch.Tensor, expected: torch.Tensor, *models: nn.Module) -> None:
    """Equal but for the rounding on the way through these models, by the size of the largest number."""
    size = float(expected.detach().abs().max())
    torch.testing.assert_close(actual, expected, rtol=0, atol=rounding(size, additions(*models), expected.dtype))
