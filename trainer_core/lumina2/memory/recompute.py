"""Running blocks without keeping their activations: each is computed again when the backward pass reaches it.

The second computation goes back stage by stage, and through the MLP a slice of the tokens at a time, so that no
activation outlives its use and the widest ones exist for one slice only. Nothing is computed more than twice, and what
takes long and is small only once where there is room to keep it.

Shape suffixes: S tokens, D width, B samples, P size of the time embedding.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..block_passes import go_back, go_back_through, leaf_of, run_in_slices, run_keeping, take_over
from ..network.layout import TokenStream
from ..network.transformer import Block
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
