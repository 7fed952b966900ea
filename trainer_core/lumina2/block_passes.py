"""The two computations of a block that is recomputed: one without a graph, one with the backward pass behind it.

Shape suffixes: S tokens, D width, B samples, P size of the time embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .memory.kept_results import KeptResults
from .network.layout import TokenStream
from .network.transformer import Block, Modulation
from .quant.frozen_linear import apply_linear


def run_in_slices(
    block: Block, x_SD: Tensor, stream: TokenStream, time_embed_BP: Tensor | None, feed_slice: int | None
) -> Tensor:
    """The block's output without a graph, in slices as in the backward pass: dropout must draw the same numbers."""
    if feed_slice is None:
        return block(x_SD, stream, time_embed_BP)
    modulation = block.modulate(time_embed_BP)
    x_SD, h_SD = block.attend(x_SD, stream, modulation)
    for rows in slices(len(x_SD), feed_slice):
        x_SD[rows] = block.feed(x_SD[rows], h_SD[rows], stream.sample_index[rows], modulation)
    return x_SD


def run_keeping(
    block: Block, x_SD: Tensor, stream: TokenStream, time_embed_BP: Tensor | None, kept: KeptResults
) -> Tensor:
    """The block's output without a graph, and the results that are kept."""
    modulation = block.modulate(time_embed_BP)
    x_SD, h_SD = block.enter(x_SD, stream, modulation)
    branch_SD = apply_linear(block.attention.out, block.attention.mix(h_SD, stream, kept.attend_first))
    x_SD, h_SD = block.join(x_SD, branch_SD, stream, modulation)
    fed_SD = block.feed_forward(h_SD)
    kept.fed_SD = fed_SD if block.feed_forward.uses_known_result(h_SD) else None
    return block.add_fed(x_SD, fed_SD, stream.sample_index, modulation)


def go_back_through(
    block: Block,
    x_SD: Tensor,
    stream: TokenStream,
    modulation: Modulation,
    grad_SD: Tensor,
    feed_slice: int | None,
    kept: KeptResults | None,
) -> None:
    """Compute a block again and add the gradients to x_SD, the modulation (leaves all) and the parameters.

    Each stage has a graph of its own, from leaves that share memory with the results of the stage before, and is freed
    when its gradients are known.
    """
    residual_SD, h_SD = block.enter(x_SD, stream, modulation)
    h_leaf = leaf_of(h_SD)
    mixed_SD = block.attention.mix(h_leaf, stream, None if kept is None else kept.attend_again)
    mixed_leaf = leaf_of(mixed_SD)
    branch_SD = apply_linear(block.attention.out, mixed_leaf)
    residual_leaf, branch_leaf = leaf_of(residual_SD), leaf_of(branch_SD)
    mid_SD, fed_SD = block.join(residual_leaf, branch_leaf, stream, modulation)
    grad_fed_SD = _feed_backward(
        block,
        mid_SD.detach(),
        fed_SD,
        stream.sample_index,
        modulation,
        grad_SD,
        feed_slice,
        None if kept is None else kept.take_fed(),
    )
    go_back([(mid_SD, grad_SD), (fed_SD, grad_fed_SD)])  # the MLP is added to mid: their gradients are the same
    del mid_SD, fed_SD, grad_SD, grad_fed_SD
    go_back([(branch_SD, branch_leaf.grad)])
    del branch_SD, branch_leaf
    go_back([(mixed_SD, mixed_leaf.grad)])
    del mixed_SD, mixed_leaf
    go_back([(residual_SD, residual_leaf.grad), (h_SD, h_leaf.grad)])


def go_back(pairs: Sequence[tuple[Tensor, Tensor | None]]) -> None:
    """Run the backward pass from tensors and their gradients, as far as there are any."""
    wanted = [(x, grad) for x, grad in pairs if grad is not None and x.requires_grad]
    if wanted:
        torch.autograd.backward([x for x, _ in wanted], [grad for _, grad in wanted])


def leaf_of(x: Tensor) -> Tensor:
    """The same values outside the graph, asking for a gradient if `x` does."""
    return x.detach().requires_grad_(x.requires_grad)


def take_over(grad: Tensor) -> Tensor:
    """The gradient in a tensor that can be freed: autograd holds the one it gave us until the whole block is done.

    Emptying that one is safe as long as nobody else was given it. Readers of a block's output, which are the next block
    and index operations, all make a new gradient; one that did not would fail by its shape.
    """
    taken = grad.detach()
    with torch.no_grad():
        grad.set_()  # type: ignore[call-overload]
    return taken


def _feed_backward(
    block: Block,
    mid_SD: Tensor,
    fed_SD: Tensor,
    sample_index_S: Tensor,
    modulation: Modulation,
    grad_SD: Tensor,
    feed_slice: int | None,
    known_SD: Tensor | None,
) -> Tensor | None:
    """Compute the MLP again and go back through it, slice by slice.

    Args:
        mid_SD: The residual stream before the MLP, not asking for a gradient.
        fed_SD: Input of the MLP; with slices, its memory is given to the gradient.
        grad_SD: Gradient of the block's output.
        feed_slice: See `RecomputeBlocks`.
        known_SD: The MLP's result, if it was kept.

    Returns:
        Gradient of the MLP's input, if that asks for one.
    """
    if feed_slice is None or feed_slice >= len(mid_SD):
        leaf = leaf_of(fed_SD)
        result_SD = block.feed_forward(leaf, known_SD)
        go_back([(block.add_fed(mid_SD, result_SD, sample_index_S, modulation), grad_SD)])
        return leaf.grad
    fed = fed_SD.detach()
    for rows in slices(len(mid_SD), feed_slice):
        leaf = fed[rows].requires_grad_(fed_SD.requires_grad)
        go_back([(block.feed(mid_SD[rows], leaf, sample_index_S[rows], modulation), grad_SD[rows])])
        if leaf.grad is not None:
            fed[rows] = leaf.grad
    return fed if fed_SD.requires_grad else None


def slices(length: int, size: int) -> Iterator[slice]:
    """Slices of about equal length, at most `size` rounded up to 16: kernels like their tensors aligned."""
    step = -(-length // -(-length // size))
    step = -(-step // 16) * 16
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
