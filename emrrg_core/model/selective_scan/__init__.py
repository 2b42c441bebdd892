"""The selective scan and the causal convolution of Mamba: one definition, a CPU kernel, a CUDA kernel, one dispatcher.

reference.py   the definition, in plain torch
kernels.c      the CPU kernel, forward and backward, compiled at first use by compiler.py for several instruction sets, chosen and
               called by cpu.py
cuda.py        mamba-ssm's and causal-conv1d's kernels, where they are installed
dispatch.py    checks shapes, chooses
"""

from emrrg_core.model.selective_scan.cpu import chosen_isa
from emrrg_core.model.selective_scan.dispatch import (
    Backend,
    available_backends,
    causal_conv_silu,
    chosen_backend,
    selective_scan,
)

__all__ = ["Backend", "available_backends", "causal_conv_silu", "chosen_backend", "chosen_isa", "selective_scan"]
