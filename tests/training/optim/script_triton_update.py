"""Runs the Triton kernels on the CPU (TRITON_INTERPRET=1) beside plain PyTorch, and prints how far they are apart."""

from __future__ import annotations

import json
import math

import torch
from lumina2_trainer.trainer_core.training.optim.adamw_8bit_eager import update_eager
from lumina2_trainer.trainer_core.training.optim.adamw_8bit_numbers import Guard, UpdateNumbers, new_guard_tensors
from lumina2_trainer.trainer_core.training.optim.adamw_8bit_triton import update_triton
from lumina2_trainer.trainer_core.training.optim.moments import moments_size


def compare(dtype: torch.dtype, shape: tuple[int, ...], *, has_guard: bool) -> dict[str, float]:
    """Five updates of one parameter by both, the fourth with a sudden gradient and the fifth refused."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator).to(dtype)] * 2
    weights = [weight.clone() for weight in weights]
    buffers = [torch.zeros(moments_size(weights[0].numel()), dtype=torch.uint8) for _ in range(2)]
    guards = [new_guard_tensors(2, torch.device("cpu")) for _ in range(2)]
    for step in range(1, 6 if has_guard else 5):
        grad = torch.randn(shape, generator=generator) * torch.rand(shape, generator=generator) ** 3
        grad = (grad * (20 if step == 4 else 1)).to(dtype)
        if step == 5:
            grad.view(-1)[-1] = math.nan
        numbers = UpdateNumbers(
            learning_rate=1e-2,
            beta1=0.9,
            beta2=0.99,
            epsilon=1e-8,
            weight_decay=0.1,
            step=step,
            seed=2**61 + 7,
            stream=3,
        )
        for update, weight, buffer, (is_finite, square_norm) in zip(
            (update_eager, update_triton), weights, buffers, guards, strict=True
        ):
            guard = Guard(is_finite=is_finite, square_norm=square_norm, position=1, max_rms=1.0)
            update(weight, grad, buffer, numbers, guard if has_guard else None)
    return {
        "unequal_weights": (weights[0] != weights[1]).double().mean().item(),
        "largest_difference": (weights[0].double() - weights[1].double()).abs().max().item(),
        "unequal_moments": (buffers[0] != buffers[1]).double().mean().item(),
        "is_finite": guards[1][0].tolist() if has_guard else [1.0, 1.0, 0.0],
    }


if __name__ == "__main__":
    shapes = ((96,), (40, 77), (3, 5), (64, 256), (2304, 3))
    cases = [(dtype, shape, g) for dtype in (torch.bfloat16, torch.float32) for shape in shapes for g in (False, True)]
    print(json.dumps({str(case): compare(case[0], case[1], has_guard=case[2]) for case in cases}))
