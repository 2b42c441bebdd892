"""The selective scan and the causal convolution: kernels agree with the definition, and the definition is right."""

import itertools
import logging
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from emrrg_core.errors import ConfigError
from emrrg_core.model.selective_scan import (
    available_backends,
    causal_conv_silu,
    chosen_backend,
    chosen_isa,
    compiler,
    cpu,
    cuda,
    selective_scan,
)
from emrrg_core.model.selective_scan import reference as definition

needs_compiler = pytest.mark.skipif("cpu" not in available_backends(), reason="no C compiler on this machine")
needs_cuda = pytest.mark.skipif("cuda" not in available_backends(), reason="no CUDA device with mamba-ssm")
KERNELS = [pytest.param("cpu", marks=needs_compiler), pytest.param("cuda", marks=needs_cuda)]


def scan_inputs(
    b: int = 2, length: int = 20, d: int = 17, n: int = 4, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """u, delta, A, B, C, D as a Mamba block makes them: delta small and positive, A negative."""
    draw = torch.Generator().manual_seed(length * 10_000 + d * 100 + n)
    normal = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)  # noqa: E731
    delta = torch.nn.functional.softplus(normal(b, length, d) - 2)
    inputs = [normal(b, length, d), delta, -normal(d, n).exp(), normal(b, length, n), normal(b, length, n), normal(d)]
    return [tensor.to(dtype) for tensor in inputs]


def conv_inputs(
    b: int = 2, length: int = 20, d: int = 17, k: int = 4, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    draw = torch.Generator().manual_seed(length * 10_000 + d * 100 + k)
    return [
        torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype) for shape in ((b, length, d), (d, k), (d,))
    ]


def outputs_and_gradients(function: Callable[..., Tensor], inputs: list[Tensor], backend: str) -> list[Tensor]:
    """y and the gradient of every input, for an upstream gradient that differs everywhere, all on the CPU."""
    device = "cuda" if backend == "cuda" else "cpu"
    leaves = [tensor.detach().to(device).requires_grad_() for tensor in inputs]
    y = function(*leaves, backend=backend)
    upstream = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=device).reshape(y.shape).cos()
    return [tensor.cpu() for tensor in (y.detach(), *torch.autograd.grad(y, leaves, upstream))]


def assert_agree(actual: list[Tensor], expected: list[Tensor], tolerance: float = 2e-5) -> None:
    """The largest difference is small beside the largest value. Exact zeros must be zeros."""
    for number, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        difference, scale = (ours.double() - theirs.double()).abs().max(), theirs.double().abs().max()
        assert ours.shape == theirs.shape
        assert difference <= tolerance * scale, f"tensor {number}: {difference:.2e} beside {scale:.2e}"


# ------------------------------------------------------------------------------------------------- the definition


def test_the_reference_scan_equals_the_recurrence_written_out_number_by_number() -> None:
    inputs = scan_inputs(b=2, length=5, d=3, n=2, dtype=torch.float64)
    u, delta, A, B, C, D = (tensor.numpy() for tensor in inputs)
    expected = np.zeros_like(u)
    for b in range(2):
        for channel in range(3):
            state = [0.0, 0.0]
            for t in range(5):
                step, x = delta[b, t, channel], u[b, t, channel]
                state = [np.exp(step * A[channel, j]) * state[j] + step * B[b, t, j] * x for j in range(2)]
                expected[b, t, channel] = sum(C[b, t, j] * state[j] for j in range(2)) + D[channel] * x
    np.testing.assert_allclose(selective_scan(*inputs, backend="reference").numpy(), expected, rtol=1e-12, atol=1e-12)


def test_the_reference_convolution_equals_the_sum_written_out_number_by_number() -> None:
    inputs = conv_inputs(b=2, length=5, d=3, k=4, dtype=torch.float64)
    x, weight, bias = (tensor.numpy() for tensor in inputs)
    expected = np.zeros_like(x)
    for b, t, channel in np.ndindex(*x.shape):
        z = bias[channel] + sum(weight[channel, j] * x[b, t - 3 + j, channel] for j in range(4) if t - 3 + j >= 0)
        expected[b, t, channel] = z / (1 + np.exp(-z))
    np.testing.assert_allclose(causal_conv_silu(*inputs, backend="reference").numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("function", "inputs"), [(selective_scan, scan_inputs), (causal_conv_silu, conv_inputs)])
def test_the_gradients_of_the_reference_are_those_of_finite_differences(function, inputs) -> None:
    leaves = [tensor.requires_grad_() for tensor in inputs(1, 4, 3, 2, torch.float64)]
    assert torch.autograd.gradcheck(lambda *tensors: function(*tensors, backend="reference"), leaves)


def test_the_reference_convolution_is_torchs_own() -> None:
    x, weight, bias = conv_inputs(dtype=torch.float64)
    y = torch.nn.functional.conv1d(x.mT, weight[:, None], bias, padding=3, groups=17)[..., : x.shape[1]].mT
    torch.testing.assert_close(definition.causal_conv_silu(x, weight, bias), torch.nn.functional.silu(y))


# -------------------------------------------------------------------------------------- kernels beside the definition

LENGTHS = [(length, 17, 16) for length in (1, 2, 3, 15, 16, 17, 63, 64, 65, 197, 800)]
WIDTHS = [(33, d, n) for d in (1, 3, 17, 33, 63, 64, 65, 130) for n in (1, 3, 16, 20)]


@pytest.mark.parametrize(("length", "d", "n"), LENGTHS + WIDTHS)
@pytest.mark.parametrize("backend", KERNELS)
def test_a_scan_kernel_and_its_gradients_agree_with_the_definition(backend, length, d, n) -> None:
    inputs = scan_inputs(2, length, d, n)
    exact = outputs_and_gradients(selective_scan, [tensor.double() for tensor in inputs], "reference")
    assert_agree(outputs_and_gradients(selective_scan, inputs, backend), exact)


@pytest.mark.parametrize(
    ("length", "d", "k"), [(1, 17, 4), (2, 64, 4), (3, 65, 4), (197, 33, 4), (9, 130, 3), (5, 1, 1), (4, 3, 7)]
)
@pytest.mark.parametrize("backend", KERNELS)
def test_a_convolution_kernel_and_its_gradients_agree_with_the_definition(backend, length, d, k) -> None:
    inputs = conv_inputs(2, length, d, k)
    exact = outputs_and_gradients(causal_conv_silu, [tensor.double() for tensor in inputs], "reference")
    assert_agree(outputs_and_gradients(causal_conv_silu, inputs, backend), exact)


@pytest.mark.parametrize("isa", cpu.kernels())
@pytest.mark.parametrize(("length", "d", "n"), [(1, 1, 1), (17, 65, 20), (197, 130, 16), (800, 17, 3)])
def test_every_instruction_set_of_this_processor_agrees_with_the_definition(isa, length, d, n, monkeypatch) -> None:
    monkeypatch.setenv("EMRRG_SCAN_ISA", isa)
    for function, inputs in (
        (selective_scan, scan_inputs(2, length, d, n)),
        (causal_conv_silu, conv_inputs(2, length, d)),
    ):
        exact = outputs_and_gradients(function, [tensor.double() for tensor in inputs], "reference")
        assert_agree(outputs_and_gradients(function, inputs, "cpu"), exact)


@needs_compiler
@pytest.mark.parametrize("isa", cpu.kernels())
def test_the_kernels_exponential_is_right_to_a_millionth_and_ends_in_zero_and_infinity(isa, monkeypatch) -> None:
    monkeypatch.setenv("EMRRG_SCAN_ISA", isa)
    x = torch.cat([torch.linspace(-87, 88, 20_001), torch.tensor([0.0, -88.1, -1e4, -torch.inf, 89.0, 1e4])])
    # one state, started at 1 by the first token and only decaying at the second: y[1] = exp(delta·A)
    u, delta = torch.zeros(1, 2, len(x)), torch.ones(1, 2, len(x))
    u[:, 0], delta[:, 0] = 1024, 1 / 1024
    ones = torch.ones(1, 2, 1)
    y = selective_scan(u, delta, x[:, None], ones, ones, torch.zeros(len(x)), backend="cpu")[0, 1]
    torch.testing.assert_close(y[:20_001].double(), x[:20_001].double().exp(), rtol=1e-6, atol=0)
    assert y[20_001:].tolist() == [1.0, 0.0, 0.0, 0.0, torch.inf, torch.inf]


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_in_float32_and_come_back_in_their_own_dtype(backend, dtype) -> None:
    for function, inputs in ((selective_scan, scan_inputs(dtype=dtype)), (causal_conv_silu, conv_inputs(dtype=dtype))):
        actual = outputs_and_gradients(function, inputs, backend)
        exact = outputs_and_gradients(function, [tensor.double() for tensor in inputs], "reference")
        assert {tensor.dtype for tensor in actual} == {dtype}
        assert_agree(actual, exact, tolerance=torch.finfo(dtype).eps)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_compiler)])
def test_autocast_changes_nothing(backend) -> None:
    for function, inputs in ((selective_scan, scan_inputs()), (causal_conv_silu, conv_inputs())):
        plain = outputs_and_gradients(function, inputs, backend)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = outputs_and_gradients(function, inputs, backend)
        for one, other in zip(plain, cast, strict=True):
            assert one.dtype == other.dtype == torch.float32
            assert torch.equal(one, other)


@needs_compiler
def test_each_gradient_has_the_dtype_of_its_input() -> None:
    u, *rest = scan_inputs()
    leaves = [u.bfloat16().requires_grad_(), *(tensor.requires_grad_() for tensor in rest)]
    y = selective_scan(*leaves, backend="cpu")
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert [leaf.grad.dtype for leaf in leaves] == [torch.bfloat16] + [torch.float32] * 5


@pytest.mark.parametrize("backend", KERNELS)
def test_memory_layout_does_not_matter(backend) -> None:
    u, delta, A, B, C, D = scan_inputs()
    both = torch.cat([B, C], -1)  # B and C as slices of one projection, u and delta transposed, A by columns
    odd = [u.mT.contiguous().mT, delta.mT.contiguous().mT, A.T.contiguous().T, both[..., :4], both[..., 4:], D]
    even = [tensor.contiguous() for tensor in odd]
    assert not any(tensor.is_contiguous() for tensor in odd[:5])
    for one, other in zip(
        outputs_and_gradients(selective_scan, odd, backend),
        outputs_and_gradients(selective_scan, even, backend),
        strict=True,
    ):
        if backend == "cuda":  # seen on a GPU: the last bits differ
            assert_agree([one], [other])
        else:
            assert torch.equal(one, other)


@needs_compiler
def test_an_expanded_upstream_gradient_is_read_rightly() -> None:
    for function, inputs in ((selective_scan, scan_inputs()), (causal_conv_silu, conv_inputs())):
        gradients = []
        for backend in ("cpu", "reference"):
            leaves = [tensor.clone().requires_grad_() for tensor in inputs]
            function(*leaves, backend=backend).sum().backward()  # autograd hands over one number, expanded
            gradients.append([leaf.grad for leaf in leaves])
        assert_agree(*gradients)


@needs_compiler
@pytest.mark.parametrize("wanted", range(6))
def test_a_gradient_can_be_asked_for_alone(wanted) -> None:
    inputs = scan_inputs()
    everything = outputs_and_gradients(selective_scan, inputs, "cpu")
    inputs[wanted].requires_grad_()
    y = selective_scan(*inputs, backend="cpu")
    upstream = torch.linspace(-1, 1, y.numel()).reshape(y.shape).cos()
    (gradient,) = torch.autograd.grad(y, [inputs[wanted]], upstream)
    assert torch.equal(gradient, everything[1 + wanted])


@needs_compiler
def test_without_gradients_the_answer_is_the_same_and_has_no_history() -> None:
    for function, inputs in ((selective_scan, scan_inputs()), (causal_conv_silu, conv_inputs())):
        with_history = function(*(tensor.clone().requires_grad_() for tensor in inputs), backend="cpu")
        with torch.no_grad():
            without = function(*(tensor.clone().requires_grad_() for tensor in inputs), backend="cpu")
        assert torch.equal(with_history, without)
        assert with_history.requires_grad
        assert not without.requires_grad


@needs_compiler
def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    inputs = [tensor.requires_grad_() for tensor in scan_inputs()]
    (gradient,) = torch.autograd.grad(
        selective_scan(*inputs, backend="cpu").square().sum(), inputs[:1], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@needs_compiler
def test_the_same_input_gives_the_same_bits_on_one_thread_and_on_two(two_threads) -> None:
    for function, inputs in (
        (selective_scan, scan_inputs(3, 70, 130, 16)),
        (causal_conv_silu, conv_inputs(3, 70, 130)),
    ):
        first = outputs_and_gradients(function, inputs, "cpu")
        second = outputs_and_gradients(function, inputs, "cpu")
        torch.set_num_threads(1)
        alone = outputs_and_gradients(function, inputs, "cpu")
        torch.set_num_threads(2)
        assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
        assert all(torch.equal(*pair) for pair in zip(first, alone, strict=True))


# ------------------------------------------------------------------------------------------------ what must not happen


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_nothing_before_a_changed_token_changes(backend) -> None:
    device = "cuda" if backend == "cuda" else "cpu"
    for function, inputs in ((selective_scan, scan_inputs()), (causal_conv_silu, conv_inputs())):
        first, *rest = [tensor.to(device) for tensor in inputs]
        changed = first.clone()
        changed[:, 11] += 1
        before, after = function(first, *rest, backend=backend), function(changed, *rest, backend=backend)
        assert torch.equal(before[:, :11], after[:, :11])
        assert (before[:, 11] != after[:, 11]).all()


@pytest.mark.parametrize("isa", cpu.kernels())
@pytest.mark.parametrize("wanted", range(6))
def test_a_nan_in_the_input_comes_out_as_a_nan_in_the_same_places(wanted, isa, monkeypatch) -> None:
    monkeypatch.setenv("EMRRG_SCAN_ISA", isa)
    inputs = scan_inputs(2, 20, 70, 5)
    inputs[wanted].view(-1)[inputs[wanted].numel() // 2] = torch.nan
    actual = outputs_and_gradients(selective_scan, inputs, "cpu")
    expected = outputs_and_gradients(selective_scan, inputs, "reference")
    assert expected[0].isnan().any()
    for ours, theirs in zip(actual, expected, strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())


@needs_compiler
@pytest.mark.parametrize("wanted", range(3))
def test_a_nan_in_the_convolutions_input_comes_out_as_a_nan_in_the_same_places(wanted) -> None:
    inputs = conv_inputs(2, 20, 70)
    # in the weight this is a last tap: at the first tokens an earlier one meets only padding, which a kernel may skip
    inputs[wanted].view(-1)[inputs[wanted].numel() // 2 + 3] = torch.nan
    actual = outputs_and_gradients(causal_conv_silu, inputs, "cpu")
    expected = outputs_and_gradients(causal_conv_silu, inputs, "reference")
    assert expected[0].isnan().any()
    for ours, theirs in zip(actual, expected, strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_a_large_step_forgets_the_past_and_stays_finite(backend) -> None:
    u, delta, A, B, C, D = scan_inputs()
    delta = torch.full_like(delta, 1e4)
    results = outputs_and_gradients(selective_scan, [u, delta, A - 1, B, C, D], backend)
    assert all(tensor.isfinite().all() for tensor in results)
    forgotten = delta * u * (B * C).sum(-1, keepdim=True) + D * u  # exp(-10000) is 0: only the token itself is left
    assert_agree(results[:1], [forgotten])


@needs_compiler
def test_silu_of_very_large_and_very_small_numbers_is_finite() -> None:
    x = torch.tensor([-1e30, -200.0, -80.0, 80.0, 200.0, 1e30])[None, :, None]
    results = outputs_and_gradients(causal_conv_silu, [x, torch.ones(1, 1), torch.zeros(1)], "cpu")
    assert all(tensor.isfinite().all() for tensor in results)
    torch.testing.assert_close(results[0], torch.nn.functional.silu(x), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize(
    ("position", "shape", "sentence"),
    [
        (1, (2, 20, 16), r"delta has shape \(2, 20, 16\)"),
        (2, (16, 4), r"A has shape \(16, 4\)"),
        (3, (2, 20, 5), r"B has shape \(2, 20, 5\)"),
        (4, (2, 19, 4), r"C has shape \(2, 19, 4\)"),
        (5, (1,), r"D has shape \(1,\)"),
        (0, (20, 17), "needs u as"),
        (2, (17,), "needs u as"),
    ],
)
def test_shapes_that_do_not_fit_are_named(position, shape, sentence) -> None:
    inputs = scan_inputs()
    inputs[position] = torch.ones(shape)
    with pytest.raises(ValueError, match=sentence):
        selective_scan(*inputs)


def test_other_impossible_inputs_are_refused_in_a_sentence() -> None:
    x, weight, bias = conv_inputs()
    with pytest.raises(ValueError, match=r"weight has shape \(16, 4\)"):
        causal_conv_silu(x, weight[:16], bias)
    with pytest.raises(ValueError, match="at least one token"):
        causal_conv_silu(x[:, :0], weight, bias)
    with pytest.raises(ValueError, match="must be floating point"):
        causal_conv_silu(x, weight, bias.int())
    with pytest.raises(ValueError, match="bias is on meta"):
        causal_conv_silu(x, weight, bias.to("meta"))


# ------------------------------------------------------------------------------------------------------ who computes


def test_double_precision_is_left_to_the_definition() -> None:
    inputs = scan_inputs(dtype=torch.float64)
    y = selective_scan(*inputs, backend="cpu")
    assert y.dtype == torch.float64
    assert torch.equal(y, definition.selective_scan(*inputs))


def test_the_environment_variable_chooses(monkeypatch) -> None:
    inputs = scan_inputs()
    monkeypatch.setenv("EMRRG_SCAN", "reference")
    assert chosen_backend("cpu") == "reference"
    assert torch.equal(selective_scan(*inputs), selective_scan(*inputs, backend="reference"))
    monkeypatch.setenv("EMRRG_SCAN", "fast")
    with pytest.raises(ConfigError, match="EMRRG_SCAN is 'fast'"):
        selective_scan(*inputs)
    monkeypatch.setenv("EMRRG_SCAN", "cuda")
    with pytest.raises(ConfigError, match="this model runs on 'cpu'"):
        selective_scan(*inputs)
    with pytest.raises(ValueError, match="the tensors are on 'cpu'"):
        selective_scan(*inputs, backend="cuda")


@needs_compiler
def test_the_environment_variable_chooses_the_instruction_set_and_no_other_one_computes(monkeypatch) -> None:
    called = set()
    plain = cpu.kernels()
    spies = {
        isa: {
            name: lambda *given, isa=isa, function=function: called.add(isa) or function(*given)
            for name, function in functions.items()
        }
        for isa, functions in plain.items()
    }
    monkeypatch.setattr(cpu, "kernels", lambda: spies)
    for wanted, used in [(None, next(iter(plain))), ("", next(iter(plain))), *((isa, isa) for isa in plain)]:
        monkeypatch.delenv("EMRRG_SCAN_ISA", raising=False)
        if wanted is not None:
            monkeypatch.setenv("EMRRG_SCAN_ISA", wanted)
        called.clear()
        outputs_and_gradients(selective_scan, scan_inputs(), "cpu")
        outputs_and_gradients(causal_conv_silu, conv_inputs(), "cpu")
        assert called == {used} == {chosen_isa()}


@pytest.mark.skipif(len(cpu.kernels()) < 2, reason="this processor has one instruction set")
def test_the_instruction_sets_are_compiled_apart(monkeypatch) -> None:
    """They add in another order, in vectors of another width: the last bits of a sum over many channels tell."""
    found = []
    for isa in cpu.kernels():
        monkeypatch.setenv("EMRRG_SCAN_ISA", isa)
        found.append(outputs_and_gradients(selective_scan, scan_inputs(2, 40, 128, 16), "cpu")[4])  # of B
    for number, one in enumerate(found):
        assert not any(torch.equal(one, other) for other in found[number + 1 :])


@needs_compiler
def test_an_instruction_set_that_is_not_to_be_had_is_refused_with_those_that_are(monkeypatch) -> None:
    monkeypatch.setenv("EMRRG_SCAN_ISA", "mmx")
    for ask in (chosen_isa, lambda: chosen_backend("cpu"), lambda: selective_scan(*scan_inputs())):
        with pytest.raises(ConfigError, match="EMRRG_SCAN_ISA is 'mmx': here it can be") as told:
            ask()
        assert all(isa in str(told.value) for isa in cpu.kernels())
    assert torch.equal(  # nobody asks the kernel
        selective_scan(*scan_inputs(), backend="reference"), definition.selective_scan(*scan_inputs())
    )


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="no scan backend 'triton'"):
        selective_scan(*scan_inputs(), backend="triton")


@needs_compiler
def test_left_alone_the_kernel_computes_on_the_cpu_and_the_definition_on_unknown_devices(monkeypatch) -> None:
    monkeypatch.delenv("EMRRG_SCAN", raising=False)
    inputs = scan_inputs()
    assert chosen_backend("cpu") == "cpu"
    assert chosen_backend(torch.device("meta")) == "reference"
    assert torch.equal(selective_scan(*inputs), selective_scan(*inputs, backend="cpu"))


def test_the_gpu_kernels_are_called_in_their_own_layout() -> None:
    """The real ones cannot run here; plain functions with their documented layout stand where they would."""

    def scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False):
        assert (u.is_contiguous(), delta_softplus, A.dtype, D.dtype) == (True, False, torch.float32, torch.float32)
        assert len({tensor.dtype for tensor in (u, delta, B, C)}) == 1
        return definition.selective_scan(u.mT, delta.mT, A, B.mT, C.mT, D).mT

    def conv(x, weight, bias=None, activation=None):
        assert activation == "silu"
        return definition.causal_conv_silu(x.mT, weight, bias).mT

    inputs = scan_inputs()
    assert_agree([cuda.selective_scan(scan, *inputs)], [definition.selective_scan(*inputs)])  # in another layout
    mixed = [inputs[0].bfloat16(), *inputs[1:]]
    assert cuda.selective_scan(scan, *mixed).dtype == torch.bfloat16
    inputs = conv_inputs()
    assert_agree([cuda.causal_conv_silu(conv, *inputs)], [definition.causal_conv_silu(*inputs)])


@pytest.mark.skipif(cuda.scan_kernel() is not None, reason="mamba-ssm is installed")
def test_a_missing_mamba_ssm_is_told_once(caplog) -> None:
    cuda.scan_kernel.cache_clear()
    with caplog.at_level(logging.WARNING, logger="emrrg"):
        assert cuda.scan_kernel() is None
        assert cuda.scan_kernel() is None
    assert [record.getMessage().split(",")[0] for record in caplog.records] == ["mamba-ssm cannot be imported"]


# ---------------------------------------------------------------------------------------------------- the compilation


@pytest.fixture
def first_use(monkeypatch, tmp_path) -> Iterator[Path]:
    """As in a process that has not used the kernel yet, on a machine that never compiled it. Gives the cache folder."""
    monkeypatch.setenv("EMRRG_HOME", str(tmp_path))
    monkeypatch.delenv("EMRRG_SCAN", raising=False)
    monkeypatch.delenv("EMRRG_SCAN_ISA", raising=False)
    cpu._kernels.cache_clear()
    yield tmp_path / "kernels"
    cpu._kernels.cache_clear()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_without_a_compiler_one_line_is_logged_and_the_definition_answers(first_use, monkeypatch, caplog) -> None:
    monkeypatch.setenv("CC", "/nonexistent")
    monkeypatch.setenv("PATH", "")
    inputs, conv = scan_inputs(), conv_inputs()
    with caplog.at_level(logging.INFO, logger="emrrg"):
        for backend in ("auto", "cpu"):
            assert torch.equal(selective_scan(*inputs, backend=backend), definition.selective_scan(*inputs))
            assert torch.equal(causal_conv_silu(*conv, backend=backend), definition.causal_conv_silu(*conv))
        assert chosen_backend("cpu") == "reference"
        assert "cpu" not in available_backends()
    (line,) = warnings_of(caplog)
    assert "slow reference" in line
    assert "no C compiler was found" in line


def test_a_compiler_that_fails_is_named_with_its_own_words(first_use, monkeypatch, caplog, tmp_path) -> None:
    broken = tmp_path / "mycc"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "out of registers" >&2\nexit 3\n')
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("PATH", "")
    assert chosen_backend("cpu") == "reference"
    (line,) = warnings_of(caplog)
    assert "mycc failed with status 3: out of registers" in line
    assert list(first_use.iterdir()) == []


@pytest.mark.skipif(len(compiler.ISAS) < 2, reason="this architecture has one instruction set")
@needs_compiler
def test_what_a_compiler_does_not_know_is_left_out(first_use, monkeypatch, caplog, tmp_path) -> None:
    (real, *_), (best, *others) = compiler._compilers(), compiler.ISAS
    old = tmp_path / "oldcc"
    old.write_text(
        f'#!/bin/sh\ncase "$*" in *-DISA={best}*) echo "what is {best}?" >&2; exit 1;; esac\nexec {real[0]} "$@"\n'
    )
    old.chmod(0o755)
    monkeypatch.setenv("CC", str(old))
    with caplog.at_level(logging.INFO, logger="emrrg"):
        assert best not in cpu.kernels()
    assert list(cpu.kernels())[-1] == others[-1]
    assert any(f"what is {best}?" in record.getMessage() for record in caplog.records)
    assert warnings_of(caplog) == []
    assert_agree([selective_scan(*scan_inputs())], [definition.selective_scan(*scan_inputs())])


@pytest.mark.skipif(len(cpu.kernels()) < 2, reason="this processor has one instruction set")
def test_what_the_processor_cannot_run_is_neither_chosen_nor_given(first_use, monkeypatch) -> None:
    best, *others = cpu.kernels()
    cpu._kernels.cache_clear()
    plain = cpu.build

    class OlderProcessor:
        def __init__(self, definitions: dict[str, int]) -> None:
            self.library = plain(definitions)

        def __getattr__(self, name: str) -> object:
            return self[name]

        def __getitem__(self, name: str) -> object:
            return (lambda: 0) if name == f"emrrg_runs_{best}" else self.library[name]

    monkeypatch.setattr(cpu, "build", OlderProcessor)
    assert list(cpu.kernels()) == others
    assert chosen_isa() == others[0]
    monkeypatch.setenv("EMRRG_SCAN_ISA", best)
    with pytest.raises(ConfigError, match=f"EMRRG_SCAN_ISA is '{best}'"):
        chosen_isa()


@needs_compiler
def test_the_second_use_takes_the_compiled_file(first_use, monkeypatch) -> None:
    assert chosen_backend("cpu") == "cpu"
    (built,) = first_use.iterdir()
    stamp = built.stat().st_mtime_ns
    cpu._kernels.cache_clear()
    assert chosen_backend("cpu") == "cpu"
    assert [path.stat().st_mtime_ns for path in first_use.iterdir()] == [stamp]


@needs_compiler
def test_another_source_is_another_file(first_use, monkeypatch, tmp_path) -> None:
    assert chosen_backend("cpu") == "cpu"
    changed = tmp_path / "changed.c"
    changed.write_text(compiler.SOURCE.read_text() + "\n/* changed */\n")
    monkeypatch.setattr(compiler, "SOURCE", changed)
    cpu._kernels.cache_clear()
    assert chosen_backend("cpu") == "cpu"
    assert len(list(first_use.iterdir())) == 2


@needs_compiler
def test_a_damaged_compiled_file_is_replaced(first_use, caplog) -> None:
    assert chosen_backend("cpu") == "cpu"
    (built,) = first_use.iterdir()
    built.unlink()  # the loaded file itself must not be written to
    built.write_bytes(b"half a file")
    cpu._kernels.cache_clear()
    assert chosen_backend("cpu") == "cpu"
    assert built.stat().st_size > 1000
    assert warnings_of(caplog) == []


@needs_compiler
def test_a_cache_folder_that_cannot_be_written_costs_only_time(first_use, monkeypatch, tmp_path, caplog) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EMRRG_HOME", str(tmp_path / "file"))  # a file where the folder should be
    inputs = scan_inputs()
    assert chosen_backend("cpu") == "cpu"
    assert_agree([selective_scan(*inputs)], [definition.selective_scan(*inputs)])
    assert warnings_of(caplog) == []


@needs_compiler
def test_two_processes_may_compile_at_once(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("EMRRG_HOME", str(tmp_path))
    program = (
        "import runpy, sys; compiler = runpy.run_path(sys.argv[1]); library = compiler['build']({'GROUP': 64, 'CHUNK': 16});"
        "print([library[f'emrrg_conv_forward_{isa}'] for isa in compiler['ISAS']])"
    )
    command = [sys.executable, "-c", program, compiler.__file__]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ended = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    assert [path.suffix for path in (tmp_path / "kernels").iterdir()] == [".so"]


@needs_compiler
def test_two_threads_may_ask_at_once(first_use, monkeypatch) -> None:
    builds, plain = [], cpu.build
    monkeypatch.setattr(cpu, "build", lambda definitions: builds.append(1) or plain(definitions))
    threads = [threading.Thread(target=cpu.kernels) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert builds == [1]


@needs_compiler
def test_the_kernel_compiles_without_openmp_and_without_a_single_warning(tmp_path) -> None:
    build = runpy.run_path(compiler.__file__)
    (command, *_) = build["_compilers"]()
    warnings = ["-Wall", "-Wextra", "-Werror", "-DGROUP=64", "-DCHUNK=16"]
    openmps = (["-fopenmp"], ["-fopenmp-simd"], ["-Wno-unknown-pragmas"])
    for openmp, (isa, wide) in itertools.product(openmps, compiler.ISAS.items()):
        flags = [*build["_ALWAYS"], *openmp, *wide, f"-DISA={isa}", *warnings]
        done = subprocess.run(
            [*command, *flags, "-c", str(compiler.SOURCE), "-o", str(tmp_path / "scan.o")], capture_output=True
        )
        assert done.returncode == 0, done.stderr.decode()
