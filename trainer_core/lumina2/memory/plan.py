"""Choosing what is done to save memory: the fastest of everything that fits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ...errors import TrainerError
from ..network.transformer import BlockRunner, Lumina2Transformer, keep_activations
from .block_offload import OffloadedInputs
from .block_swap import NUM_SLOTS, SwappedWeights
from .estimate import Measures, StepEstimate
from .recompute import InputsOnDevice, RecomputeBlocks, WeightsOnDevice

GIB = 2**30
FEED_SLICES: dict[int | None, float] = {None: 0.0, 2048: 1.0, 1024: 1.5, 512: 3.0}
"""Time lost by slices of the MLP of this many tokens, in forward passes of a block. A slow GPU loses less, but on a
fast one Python cannot start so many small kernels in time: 0.45 s a step where swapping takes 0.19 (H100, fp8)."""
KEPT_ATTENTION_TIME, KEPT_FEED_TIME = 0.22, 0.18
"""Saved by a recomputed block that keeps the result of its attention, and of its MLP, in the same unit: together 0.43
to 0.5 on an H100."""
OFFLOAD_TIME = 0.1
"""Of a block's input that goes to host memory and comes back, in the same unit. Copies run beside the computation, so
this is less than their duration."""
SWAP_TIME = 0.3
"""Of a block's matrices that come from host memory for both passes, mostly beside the computation as well."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much memory training may take."""

    num_bytes: float
    reason: str
    """Where the number comes from, as in "12.0 GiB free"."""
    remedy: str
    """How to raise it."""


@dataclass(frozen=True, kw_only=True)
class Freedom:
    """What may be done to save memory."""

    recompute: bool = True
    slice_feed: bool = True
    """Not for training the model's own weights, see `RecomputeBlocks.feed_slice`."""
    keep_results: bool = True
    """The device's attention is one of those whose results can be kept, see `kept_results.py`."""
    move: bool = True
    """There is a GPU, whose memory is not the computer's."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What is done to save memory, and why."""

    measures: Measures
    sentence: str
    """For people."""
    input_bytes: int = 0
    """Of the largest input of a block."""
    peak_bytes: int | None = None
    """Predicted; None where nothing was asked for."""

    def make_runner(self, transformer: Lumina2Transformer, device: torch.device) -> BlockRunner:
        """How the transformer's blocks are run. Matrices of swapped blocks are moved to host memory.

        Args:
            transformer: With its adapter.
            device: Where it runs.

        Raises:
            TrainerError: There is not enough host memory.
        """
        measures, blocks = self.measures, transformer.blocks
        if measures.num_recomputed == 0:
            return keep_activations
        swapped = {index: blocks[index] for index in measures.swapped}
        return RecomputeBlocks(
            num_recomputed=measures.num_recomputed,
            feed_slice=measures.feed_slice,
            num_keeping=measures.num_keeping,
            weights=SwappedWeights(swapped, device) if swapped else WeightsOnDevice(),
            inputs=OffloadedInputs(measures.num_offloaded, self.input_bytes, device)
            if measures.num_offloaded
            else InputsOnDevice(),
        )


def choose_plan(estimate: StepEstimate, budget: Budget, freedom: Freedom) -> MemoryPlan:
    """The fastest plan whose predicted peak is within the budget.

    Raises:
        TrainerError: No plan is; says what would be needed.
    """
    num_blocks = len(estimate.model.blocks)
    fitting = (m for m in _candidates(estimate, freedom) if estimate.peak(m) <= budget.num_bytes)
    best = min(fitting, key=lambda measures: relative_time(measures), default=None)
    if best is None:
        raise TrainerError(_too_small(estimate, budget, freedom))
    peak = estimate.peak(best)
    return MemoryPlan(
        measures=best,
        input_bytes=estimate.input_bytes,
        peak_bytes=peak,
        sentence=f"memory: {budget.reason}, {describe(best, num_blocks)}, predicted peak {peak / GIB:.1f} GiB",
    )


def smallest_peak(estimate: StepEstimate, freedom: Freedom) -> int:
    """Bytes of the plan that takes the least."""
    return min(estimate.peak(measures) for measures in _candidates(estimate, freedom))


def relative_time(measures: Measures) -> float:
    """Time that a plan costs, in forward passes of one block."""
    recomputed = measures.num_recomputed * (1 + FEED_SLICES[measures.feed_slice])
    saved = measures.num_keeping * (KEPT_ATTENTION_TIME + (KEPT_FEED_TIME if measures.keeps_feed else 0))
    return recomputed - saved + measures.num_offloaded * OFFLOAD_TIME + len(measures.swapped) * SWAP_TIME


def _candidates(estimate: StepEstimate, freedom: Freedom) -> Iterator[Measures]:
    """Each step is only worth taking once all blocks have taken the one before."""
    yield Measures()
    if not freedom.recompute:
        return
    num_blocks = len(estimate.model.blocks)
    if freedom.keep_results:
        keeps_feed = estimate.can_keep_feed
        for count in range(1, num_blocks + 1):
            yield Measures(num_recomputed=count, num_keeping=count, keeps_feed=keeps_feed)
        for count in range(num_blocks - 1, 0, -1):
            yield Measures(num_recomputed=num_blocks, num_keeping=count, keeps_feed=keeps_feed)
    for feed_slice in FEED_SLICES if freedom.slice_feed else [None]:
        for count in range(1, num_blocks + 1):
            yield Measures(num_recomputed=count, feed_slice=feed_slice)
        if not freedom.move:
            continue
        everything = Measures(num_recomputed=num_blocks, feed_slice=feed_slice)
        for count in range(1, num_blocks):
            yield dataclasses.replace(everything, num_offloaded=count)
        can_swap = all(block.matrix_bytes > 0 for block in estimate.model.blocks)
        for count in range(NUM_SLOTS + 1, num_blocks + 1) if can_swap else []:
            swapped = spread(count, num_blocks, estimate.model.config.num_refiner_layers)
            yield dataclasses.replace(everything, num_offloaded=num_blocks - 1, swapped=swapped)


def spread(count: int, num_blocks: int, num_last: int) -> tuple[int, ...]:
    """Numbers of the blocks that are swapped, far from one another, so that each has time to come.

    Args:
        count: How many.
        num_blocks: Of all.
        num_last: Of the first ones, which compute over captions only and give a copy no time; taken last.
    """
    usual = range(num_last, num_blocks)
    if count >= len(usual):
        return tuple(range(num_blocks - count, num_blocks))
    return tuple(usual[math.floor((i + 0.5) * len(usual) / count)] for i in range(count))


def describe(measures: Measures, num_blocks: int) -> str:
    """A plan in words."""
    kept = num_blocks - measures.num_recomputed
    if kept == num_blocks:
        return "keeping all activations"
    parts = [f"keeping {kept} of {num_blocks} blocks' activations" if kept else "computing all activations again"]
    if measures.num_keeping:
        which = f"{measures.num_keeping} more" if kept else f"{measures.num_keeping} of {num_blocks} blocks"
        results = "results of attention and MLP" if measures.keeps_feed else "results of attention"
        parts.append(f"{results} kept in {which}")
    if measures.feed_slice is not None:
        parts.append(f"MLPs in slices of {measures.feed_slice} tokens")
    if measures.num_offloaded:
        parts.append(f"inputs of {measures.num_offloaded} blocks in host memory")
    if measures.swapped:
        parts.append(f"{len(measures.swapped)} of {num_blocks} blocks swapped with host memory")
    return ", ".join(parts)


def _too_small(estimate: StepEstimate, budget: Budget, freedom: Freedom) -> str:
    needed = math.ceil(smallest_peak(estimate, freedom) / GIB * 10) / 10
    remedies = [budget.remedy, "lower batch_size or the resolution of the dataset"]
    if not freedom.recompute:
        remedies.append("turn gradient_checkpointing on")
    if not estimate.model.is_8_bit and not estimate.model.is_whole:
        remedies.append("choose precision fp8, int8 or nf4 in Load Lumina2")
    return (
        f"memory: {budget.reason}, but training takes at least {needed:.1f} GiB:"
        f" {', '.join(remedies[:-1])}, or {remedies[-1]}"
    )
