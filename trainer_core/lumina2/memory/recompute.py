"""Running blocks without keeping their activations: each is computed again when the backward pass reaches it.

The second computation goes back stage by stage, and through the MLP a slice of the tokens at a time, so that no
activation outlives its use and the widest ones exist for one slice only. Nothing is computed more than twice, and what
takes long and is small only once where there is room to keep it.

Shape suffixes: S tokens, D width, B samples, P size of the time embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..network.layout import TokenStream
from ..network.transformer import Block, Modulation
from ..quant.frozen_linear import apply_linear
from .kept_results import KeptResults
from .rng_autocast import Conditions, draws_random_numbers

Pass = Literal["forward", "backward", "inference"]
"""Of a training step, or without gradients."""


class BlockWeights(Protocol):
    """Where the weights of recomputed blocks are while they are not needed."""

    is_capturable: bool
    """Whether a CUDA graph may hold what this does."""

    def present(self, index: int, now: Pass) -> AbstractContextManager[None]:
        """The weights of this block are on the device within the context."""


class BlockInputs(Protocol):
    """Where the inputs of recomputed blocks are until the backward pass."""

    is_capturable: bool

    def store(self, index: int, x_SD: Tensor) -> Any:
        """Take a block's input away, and return what `fetch` knows it by; None leaves it."""

    def fetch(self, stored: Any) -> Tensor:
        """The input as it was."""

    def load_ahead(self) -> None:
        """An input will be fetched soon."""


class WeightsOnDevice:
    """They stay."""

    is_capturable = True

    def present(self, index: int, now: Pass) -> AbstractContextManager[None]:
        return nullcontext()


class InputsOnDevice:
    """They stay."""

    is_capturable = True

    def store(self, index: int, x_SD: Tensor) -> None:
        return None

    def fetch(self, stored: Any) -> Tensor:
        raise AssertionError("nothing was stored")

    def load_ahead(self) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class RecomputeBlocks:
    """A block runner (see `Lumina2Transformer.run_block`) that keeps the activations of the last blocks only."""

    num_recomputed: int
    """How many blocks, the first ones, are computed again."""
    feed_slice: int | None = None
    """Most tokens in a slice of a recomputed MLP; None takes all at once. Not for training the MLP's own weights, whose
    gradients would come in parts."""
    num_keeping: int = 0
    """Of the recomputed blocks, the last that keep some results beside their input (see `kept_results.py`). They take
    their MLP at once."""
    weights: BlockWeights = field(default_factory=WeightsOnDevice)
    inputs: BlockInputs = field(default_factory=InputsOnDevice)
    _is_random: MutableMapping[Block, dict[bool, bool]] = field(default_factory=WeakKeyDictionary)
    """By block and its mode, training or not: whether it draws random numbers. Looking takes a millisecond."""

    def __post_init__(self) -> None:
        assert self.num_keeping == 0 or self.feed_slice is None, "results are kept of the whole sequence"

    @property
    def is_capturable(self) -> bool:
        """Whether a CUDA graph may be made of a step."""
        return self.weights.is_capturable and self.inputs.is_capturable

    def __call__(
        self, index: int, block: Block, x_SD: Tensor, stream: TokenStream, time_embed_BP: Tensor | None
    ) -> Tensor:
        if index >= self.num_recomputed:
            return block(x_SD, stream, time_embed_BP)
        if not torch.is_grad_enabled():
            with self.weights.present(index, "inference"):
                return run_in_slices(block, x_SD, stream, time_embed_BP, self.feed_slice)
        # Autograd calls backward() only if an input asks for gradients, which those of the first block do not.
        anchor = torch.empty(0, device=x_SD.device, requires_grad=True)
        conditions = Conditions.now(x_SD.device, is_random=self._draws_random_numbers(block))
        kept = KeptResults() if index >= self.num_recomputed - self.num_keeping else None
        return _RecomputedBlock.apply(anchor, x_SD, time_embed_BP, self, index, block, stream, conditions, kept)

    def _draws_random_numbers(self, block: Block) -> bool:
        known = self._is_random.setdefault(block, {})
        if block.training not in known:
            known[block.training] = draws_random_numbers(block)
        return known[block.training]


class _RecomputedBlock(torch.autograd.Function):
    """Keeps a block's input, and computes the rest again."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        x_SD: Tensor,
        time_embed_BP: Tensor | None,
        runner: RecomputeBlocks,
        index: int,
        block: Block,
        stream: TokenStream,
        conditions: Conditions,
        kept: KeptResults | None,
    ) -> Tensor:
        ctx.kept = kept
        ctx.stored = runner.inputs.store(index, x_SD)
        ctx.save_for_backward(x_SD if ctx.stored is None else None, time_embed_BP)
        ctx.runner, ctx.index, ctx.block, ctx.stream, ctx.conditions = runner, index, block, stream, conditions
        with runner.weights.present(index, "forward"):
            if kept is not None:
                return run_keeping(block, x_SD, stream, time_embed_BP, kept)
            return run_in_slices(block, x_SD, stream, time_embed_BP, runner.feed_slice)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        block, runner = ctx.block, ctx.runner
        x_SD, time_embed_BP = ctx.saved_tensors
        if ctx.stored is not None:
            x_SD = runner.inputs.fetch(ctx.stored)
        else:
            runner.inputs.load_ahead()
        x_SD, time_embed_BP = leaf_of(x_SD), None if time_embed_BP is None else leaf_of(time_embed_BP)
        with runner.weights.present(ctx.index, "backward"):
            with torch.enable_grad(), ctx.conditions.restored():
                modulation = block.modulate(time_embed_BP)
                leaves = [None if m is None else leaf_of(m) for m in modulation]
                go_back_through(block, x_SD, ctx.stream, leaves, take_over(grads[0]), runner.feed_slice, ctx.kept)
            ctx.kept = None
            pairs = zip(modulation, leaves, strict=True)
            go_back([(m, leaf.grad) for m, leaf in pairs if m is not None and leaf is not None])
        return None, x_SD.grad, None if time_embed_BP is None else time_embed_BP.grad, *[None] * 6


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
    """Detach a tensor from the graph; the result asks for a gradient if `x` does."""
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
