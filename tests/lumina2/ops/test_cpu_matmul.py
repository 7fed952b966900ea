"""Products on the CPU are the same by whichever library."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lumina2_trainer.trainer_core.lumina2.ops import cpu_matmul
from lumina2_trainer.trainer_core.lumina2.ops.cpu_matmul import add_product, linear, multiply
from torch import Tensor

SHAPES = [(560, 256, 1024), (1, 16, 3), (7, 5, 1), (0, 16, 8)]


@pytest.fixture(params=[True, False], ids=["oneDNN", "BLAS"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param and not cpu_matmul._has_onednn():
        pytest.skip("this PyTorch has no oneDNN, or this is no x86 CPU")
    monkeypatch.setattr(cpu_matmul, "_has_onednn", lambda: request.param)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("is_transposed", [False, True])
def test_products_are_those_of_float64(rows: int, inputs: int, outputs: int, is_transposed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x_SI, bias_O, sum_SO = (
        torch.randn(shape, generator=generator) for shape in ((rows, inputs), (outputs,), (rows, outputs))
    )
    weight_OI = torch.randn(outputs, inputs, generator=generator)
    if is_transposed:  # as a gradient takes it
        weight_OI = weight_OI.t().contiguous().t()
    exact = x_SI.double() @ weight_OI.double().t()
    # 1e-6 of what is added up, in a product of at most 256 terms of size 1
    tolerance = {"rtol": 0, "atol": 1e-6 * max(1.0, inputs)}
    torch.testing.assert_close(multiply(x_SI, weight_OI).double(), exact, **tolerance)
    torch.testing.assert_close(multiply(x_SI, weight_OI, bias_O).double(), exact + bias_O, **tolerance)
    expected = exact + sum_SO.double()
    added = add_product(sum_SO, x_SI, weight_OI)
    assert added.data_ptr() == sum_SO.data_ptr(), "in the memory of the sum"
    torch.testing.assert_close(added.double(), expected, **tolerance)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("is_frozen", [False, True], ids=["trained", "frozen"])
def test_gradients_are_those_of_pytorch(has_bias: bool, is_frozen: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator) for shape in ((2, 9, 24), (16, 24), (16,))]
    if not has_bias:
        tensors.pop()

    def run(function: Callable[..., Tensor]) -> list[Tensor]:
        inputs = [tensor.clone().requires_grad_(i == 0 or not is_frozen) for i, tensor in enumerate(tensors)]
        out = function(*inputs, *(() if has_bias else (None,)))
        out.square().sum().backward()
        return [out.detach(), *(x.grad for x in inputs if x.grad is not None)]

    actual, expected = run(linear), run(torch.nn.functional.linear)
    assert len(actual) == (2 if is_frozen else 1 + len(tensors))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)


def test_other_numbers_are_left_to_pytorch() -> None:
    x_SI, weight_OI = torch.randn(6, 8).bfloat16(), torch.randn(4, 8).bfloat16()
    assert torch.equal(multiply(x_SI, weight_OI), torch.nn.functional.linear(x_SI, weight_OI))
