"""Run by test_ops.py: compares operations with their formulas, values and gradients, and prints how many there were."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from lumina2_trainer.trainer_core.lumina2.ops import ops
from lumina2_trainer.trainer_core.lumina2.ops.kernels import quantize
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import reference_ops  # run as a script, this file is in no package

DEVICE = torch.device(sys.argv[1])
EPS = 1e-5
SAMPLE_INDEX = torch.tensor([0, 0, 1, 1, 1, 2, 2], device=DEVICE)
NUM_TOKENS, WIDTH, NUM_SAMPLES = 7, 36, 3

Outputs = Tensor | tuple[Tensor, ...]


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape).to(DEVICE).requires_grad_()


def run(function: Callable[[], Outputs], leaves: list[Tensor]) -> tuple[list[Tensor], list[Tensor | None]]:
    """Outputs, and gradients of a weighted sum of them."""
    for x in leaves:
        x.grad = None
    outputs = function()
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator).to(DEVICE) for x in outputs]
    torch.stack([(x * weight).sum() for x, weight in zip(outputs, weights, strict=True)]).sum().backward()
    return [x.detach().clone() for x in outputs], [x.grad for x in leaves]


def compare(name: str, leaves: list[Tensor], inputs: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]) -> None:
    """An operation in both ways against its formula.

    Args:
        name: Of the operation.
        leaves: Whose gradients are compared.
        inputs: Arguments made of the leaves, anew each time: operations may overwrite them in the backward pass.
    """

    def call(module: ModuleType) -> Outputs:
        arguments, keywords = inputs()
        return getattr(module, name)(*arguments, **keywords)

    expected = run(lambda: call(reference_ops), leaves)
    for is_fused in (False, True):
        with mock.patch.object(ops, "is_fused", lambda x, is_fused=is_fused: is_fused):
            torch.testing.assert_close(run(lambda: call(ops), leaves), expected, rtol=1e-4, atol=1e-5)


def compare_residual_norm() -> int:
    x, branch, branch_weight, next_weight = leaf(7, 36), leaf(7, 36), leaf(36), leaf(36)
    gate, scale = leaf(NUM_SAMPLES, WIDTH), leaf(NUM_SAMPLES, WIDTH)
    parts = [
        {"branch_SD": branch, "branch_weight_D": branch_weight, "gate_BD": gate},
        {"branch_SD": branch, "branch_weight_D": branch_weight},
        {"next_weight_D": next_weight, "scale_BD": scale},
        {"next_weight_D": next_weight},
    ]
    cases = [parts[0], parts[2], parts[0] | parts[2], parts[1] | parts[3]]
    for case in cases:
        for is_trained in (True, False):
            for weight in (branch_weight, next_weight, gate, scale):
                weight.requires_grad_(is_trained)
            keywords = {"sample_index_S": SAMPLE_INDEX, "eps": EPS, **case}
            trained = [x, *case.values()] if is_trained else [x]
            compare(
                "residual_norm",
                trained,
                lambda keywords=keywords: (
                    (x,),
                    {n: value * 1 if n == "branch_SD" else value for n, value in keywords.items()},
                ),
            )
    return 2 * len(cases)


def compare_rotation() -> int:
    qkv, query_weight, key_weight = leaf(7, (3 + 2) * 12), leaf(12), leaf(12)
    angle = torch.randn(7, 1, 6, device=DEVICE)
    for padding in (None, torch.tensor([False, True] * 3 + [False], device=DEVICE)):
        keywords = {"num_kv_heads": 1, "eps": EPS, "is_padding_S": padding}
        compare(
            "normalise_and_rotate",
            [qkv, query_weight, key_weight],
            lambda keywords=keywords: ((qkv * 1, query_weight, key_weight, angle.cos(), angle.sin()), keywords),
        )
    return 2


def compare_swiglu() -> int:
    gate, up = leaf(5, 9), leaf(5, 9)
    compare("swiglu", [gate, up], lambda: ((gate * 1, up * 1), {}))
    return 1


def compare_quantization() -> int:
    x = torch.randn(5, 48, device=DEVICE) * torch.tensor([1e-3, 1.0, 30.0, 0.0, 1.0], device=DEVICE)[:, None]
    columns = torch.rand(48, device=DEVICE)
    for column_scale in (None, columns):
        x8, scale, _ = quantize.quantize_rows(x, torch.int8, column_scale)
        expected = x if column_scale is None else x * column_scale
        assert ((x8.float() * scale - expected).abs() <= scale * 0.501).all()
        product = quantize.rescale(x8.int(), scale, None, torch.float32)
        torch.testing.assert_close(product, x8.float() * scale)
    assert torch.equal(quantize.transpose(x8), x8.t())
    return 2


if __name__ == "__main__":
    torch.manual_seed(0)
    count = compare_residual_norm() + compare_rotation() + compare_swiglu() + compare_quantization()
    print(f"{count} comparisons")
