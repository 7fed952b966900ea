"""Running blocks without keeping their activations: each is computed again when the backward pass reaches it.

The second computation of the MLP takes a slice of the tokens at a time and runs its backward pass at once, so the
widest activations of the network exist for one slice only. Nothing is computed more than twice.

Shape suffixes: S tokens, D width, B samples, P size of the time embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .layout import TokenStream
from .transformer import Block, Modulation


@dataclass(frozen=True, kw_only=True)
class RecomputeBlocks:
    """A block runner (see `Lumina2Transformer.run_block`) that keeps the activations of the last blocks only."""

    num_recomputed: int
    """How many blocks, the first ones, are computed again."""
    feed_slice: int | None = None
    """Most tokens in a slice of a recomputed MLP; None takes all at once."""

    def __call__(
        self, index: int, block: Block, x_SD: Tensor, stream: TokenStream, time_embed_BP: Tensor | None
    ) -> Tensor:
        if index >= self.num_recomputed or not torch.is_grad_enabled():
            return block(x_SD, stream, time_embed_BP)
        # Autograd calls backward() only if an input asks for gradients, which those of the first block do not.
        anchor = torch.empty(0, device=x_SD.device, requires_grad=True)
        return _RecomputedBlock.apply(anchor, x_SD, time_embed_BP, block, stream, self.feed_slice)


class _RecomputedBlock(torch.autograd.Function):
    """Keeps a block's input, and computes the rest again."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        x_SD: Tensor,
        time_embed_BP: Tensor | None,
        block: Block,
        stream: TokenStream,
        feed_slice: int | None,
    ) -> Tensor:
        ctx.save_for_backward(x_SD, time_embed_BP)
        ctx.block, ctx.stream, ctx.feed_slice = block, stream, feed_slice
        ctx.conditions = _Conditions.now(x_SD.device)
        return block(x_SD, stream, time_embed_BP)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        block: Block = ctx.block
        x_SD, time_embed_BP = ctx.saved_tensors
        x_SD, time_embed_BP = _leaf(x_SD), None if time_embed_BP is None else _leaf(time_embed_BP)
        with torch.enable_grad(), ctx.conditions.restored():
            modulation = block.modulate(time_embed_BP)
            leaves = [None if m is None else _leaf(m) for m in modulation]
            mid_SD, h_SD = block.attend(x_SD, ctx.stream, leaves)
            grad_mid_SD, grad_h_SD = _feed_backward(
                block, _leaf(mid_SD), _leaf(h_SD), ctx.stream.sample_index, leaves, grads[0], ctx.feed_slice
            )
        torch.autograd.backward([mid_SD, h_SD], [grad_mid_SD, grad_h_SD])
        pairs = [
            (m, leaf.grad) for m, leaf in zip(modulation, leaves, strict=True) if m is not None and leaf is not None
        ]
        wanted = [(m, grad) for m, grad in pairs if grad is not None]
        if wanted:
            torch.autograd.backward([m for m, _ in wanted], [grad for _, grad in wanted])
        return None, x_SD.grad, None if time_embed_BP is None else time_embed_BP.grad, None, None, None


def _leaf(x: Tensor) -> Tensor:
    """The same values outside the graph, asking for a gradient if `x` does."""
    return x.detach().requires_grad_(x.requires_grad)


def _gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None, "a part of a block passed no gradient on"
    return leaf.grad


def _feed_backward(
    block: Block,
    mid_SD: Tensor,
    h_SD: Tensor,
    sample_index_S: Tensor,
    modulation: Modulation,
    grad_SD: Tensor,
    feed_slice: int | None,
) -> tuple[Tensor, Tensor]:
    """Compute the MLP again and go back through it, slice by slice; gradients of its two inputs, which are leaves."""
    if feed_slice is None or feed_slice >= len(mid_SD):
        torch.autograd.backward(block.feed(mid_SD, h_SD, sample_index_S, modulation), grad_SD)
        return _gradient(mid_SD), _gradient(h_SD)
    grad_mid_SD, grad_h_SD = torch.empty_like(mid_SD), torch.empty_like(h_SD)
    for rows in slices(len(mid_SD), feed_slice):
        mid, h = _leaf(mid_SD[rows]), _leaf(h_SD[rows])
        torch.autograd.backward(block.feed(mid, h, sample_index_S[rows], modulation), grad_SD[rows])
        grad_mid_SD[rows], grad_h_SD[rows] = _gradient(mid), _gradient(h)
    return grad_mid_SD, grad_h_SD


def slices(length: int, size: int) -> Iterator[slice]:
    """Slices of about equal length, at most `size` rounded up to 16: kernels like their tensors aligned."""
    step = -(-length // -(-length // size))
    step = -(-step // 16) * 16
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


@dataclass(frozen=True, kw_only=True)
class _Conditions:
    """What the second computation must find as the first did: random numbers (for dropout) and autocast."""

    device: torch.device
    cpu_rng: Tensor
    device_rng: Tensor | None
    autocast_dtype: torch.dtype | None

    @classmethod
    def now(cls, device: torch.device) -> _Conditions:
        is_cuda = device.type == "cuda"
        is_autocast = torch.is_autocast_enabled(device.type)
        return cls(
            device=device,
            cpu_rng=torch.get_rng_state(),
            device_rng=torch.cuda.get_rng_state(device) if is_cuda else None,
            autocast_dtype=torch.get_autocast_dtype(device.type) if is_autocast else None,
        )

    @contextmanager
    def restored(self) -> Iterator[None]:
        devices = [] if self.device_rng is None else [self.device]
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self.cpu_rng)
            if self.device_rng is not None:
                torch.cuda.set_rng_state(self.device_rng, self.device)
            enabled = self.autocast_dtype is not None
            with torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=enabled):
                yield
