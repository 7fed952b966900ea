"""Forward and backward pass as CUDA graphs, for steps whose kernels run out before Python can start more.

A step of Lumina2 starts about 2,000 kernels. On an H100 at 512 x 512 they run for 50 ms, while starting them one by one
takes Python 125 ms; a graph starts them all at once. Where the GPU is the slower side, nothing is captured.
"""

from __future__ import annotations

import gc
import logging
import math
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..device import available_memory
from ..lumina2.memory.rng_autocast import draws_random_numbers
from ..lumina2.objective import NoisyBatch
from .nested_tensors import change_tensors, list_tensors

logger = logging.getLogger(__name__)

MAX_GRAPHS = 16
"""Each also holds some MB of kernel arguments."""
NUM_EAGER_PASSES = 2
"""Passes of a shape before it is captured; the first compiles kernels, the second is timed."""
HOST_BOUND = 0.6
"""Share of a pass that Python needs to start it, beyond which a graph pays; its pace varies while it builds batches."""
PROMISING_ALLOCATOR = "cudaMallocAsync"
"""An allocator whose memory is only promised while a graph is captured: Triton (3.6) asks the driver about the pointers
of a kernel's tensors, is told that they are none, and the torn capture ends the process."""

Differentiate = Callable[[NoisyBatch], Tensor]
"""Adds the gradients of a batch to the parameters' .grad, and returns the loss of each sample [B], detached."""


@dataclass(frozen=True, kw_only=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    """What the graph reads."""
    loss_B: Tensor
    """What it writes, beside the gradients."""


class GraphedPass:
    """Calls a differentiating function, or replays what it did for a batch of the same shape."""

    def __init__(
        self,
        differentiate: Differentiate,
        parameters: Mapping[str, nn.Parameter],
        device: torch.device,
        memory_limit: float = math.inf,
    ) -> None:
        """
        Args:
            differentiate: Without randomness and without waiting for the device.
            parameters: Whose gradients it adds to.
            device: A CUDA GPU.
            memory_limit: Bytes that training may take there.
        """
        self._differentiate = differentiate
        self._parameters = list(parameters.values())
        self._device = device
        self._memory_limit = memory_limit
        self._num_passes: Counter[Any] = Counter()
        self._captured: dict[Any, _Captured] = {}
        self._host_share: dict[Any, float] = {}
        self._num_bytes: dict[Any, int] = {}
        self._gradients: list[Tensor] = []
        self._pool: Any = None
        self._has_failed = False
        """A capture did not work, so none is tried any more."""

    @property
    def num_graphs(self) -> int:
        """Shapes captured so far."""
        return len(self._captured)

    def __call__(self, batch: NoisyBatch) -> Tensor:
        """See `Differentiate`."""
        key = shape_key(batch)
        self._num_passes[key] += 1
        self._attach_gradients()
        if key not in self._captured and self._is_worth_capturing(key):
            self._try_to_capture(batch, key)
        captured = self._captured.get(key)
        if captured is None:
            return self._run(batch, key)
        torch._foreach_copy_(captured.inputs, list_tensors(batch))
        captured.graph.replay()
        return captured.loss_B.clone()

    def _run(self, batch: NoisyBatch, key: Any) -> Tensor:
        """Without a graph; the pass that decides about one is waited for."""
        if self._num_passes[key] != NUM_EAGER_PASSES:
            return self._differentiate(batch)
        torch.cuda.synchronize(self._device)
        before = torch.cuda.memory_allocated(self._device)
        started = time.perf_counter()
        loss_B = self._differentiate(batch)
        issued = time.perf_counter()
        torch.cuda.synchronize(self._device)
        self._host_share[key] = (issued - started) / (time.perf_counter() - started)
        self._num_bytes[key] = torch.cuda.max_memory_allocated(self._device) - before
        return loss_B

    def _is_worth_capturing(self, key: Any) -> bool:
        if self._has_failed or len(self._captured) >= MAX_GRAPHS:
            return False
        return self._host_share.get(key, 0.0) > HOST_BOUND and self._has_room(self._num_bytes[key])

    def _has_room(self, num_bytes: int) -> bool:
        """What a graph uses stays its own, so passes without a graph need as much again."""
        free, _ = available_memory(self._device)
        return 2 * num_bytes < min(free, self._memory_limit - torch.cuda.memory_allocated(self._device))

    def _try_to_capture(self, batch: NoisyBatch, key: Any) -> None:
        """Capture a pass; a run whose passes cannot be captured goes on without graphs."""
        started = time.perf_counter()
        inputs = change_tensors(batch, Tensor.clone)
        if not self._gradients:
            self._gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self._parameters]
        kept = [gradient.clone() for gradient in self._gradients]  # the capture itself computes nothing
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        try:
            self._captured[key] = self._capture(inputs)
            logger.info("Captured a step of %s in %.1f s", describe(batch), time.perf_counter() - started)
        except RuntimeError as error:
            traceback.clear_frames(error.__traceback__)
            self._has_failed = True
            logger.warning(
                "A step could not be captured as a CUDA graph, so steps are started kernel by kernel: %s",
                str(error).partition("\n")[0],
            )
        finally:
            torch._foreach_copy_(self._gradients, kept)

    def _capture(self, inputs: NoisyBatch) -> _Captured:
        """Raises RuntimeError if the pass cannot be captured; CUDA is as usable then as it was before."""
        pool = torch.cuda.graph_pool_handle() if self._pool is None else self._pool
        graph = torch.cuda.CUDAGraph()
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.synchronize(self._device)
        # Always the same stream: cuBLAS keeps a workspace for each.
        with torch.cuda.stream(torch.cuda.graph(graph).capture_stream):
            # Other threads (which read the next batch) may go on using CUDA meanwhile.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                loss_B = self._differentiate(inputs)
            finally:
                _end_capture(graph, pool)
        self._pool = pool
        return _Captured(graph=graph, inputs=list_tensors(inputs), loss_B=loss_B)

    def _attach_gradients(self) -> None:
        """Graphs write to fixed places: put those under the parameters, with what has been added so far."""
        if not self._gradients or self._parameters[0].grad is self._gradients[0]:
            return
        torch._foreach_zero_(self._gradients)
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            assert parameter.grad is None, "gradients from elsewhere"
            parameter.grad = gradient


def allows_graphs(device: torch.device) -> bool:
    """Whether CUDA graphs can be captured on a device at all, see `PROMISING_ALLOCATOR`."""
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_allocator_backend() != PROMISING_ALLOCATOR


def _end_capture(graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    """End a capture; if it is broken, put right what torch (2.11) leaves behind when it says so.

    Raises:
        RuntimeError: It is broken.
    """
    try:
        graph.capture_end()
    except RuntimeError:
        device = torch.cuda.current_device()
        with suppress(RuntimeError):  # the allocator would go on taking memory from the graph's pool
            torch._C._cuda_endAllocateToPool(device, pool)
            torch._C._cuda_releasePool(device, pool)
        generator = torch.cuda.default_generators[device]  # its state believes that it is being captured
        generator.graphsafe_set_state(torch.Generator(f"cuda:{device}").graphsafe_get_state())
        torch.cuda.synchronize()
        raise


def can_be_captured(transformer: nn.Module) -> bool:
    """Whether a pass is the same kernels every time: not with dropout, nor where blocks come and go.

    A module that waits for the device says so by an attribute `is_capturable`.
    """
    parts = (transformer.run_block, *transformer.modules())
    return not draws_random_numbers(transformer) and all(getattr(part, "is_capturable", True) for part in parts)


def shape_key(batch: NoisyBatch) -> tuple[Any, ...]:
    """Equal for batches that run the same kernels."""
    layout = batch.layout
    lengths = (stream.segments.lengths for stream in (layout.caption, layout.image, layout.joint))
    return (*(tuple(x.shape) for x in list_tensors(batch)), *lengths)


def describe(batch: NoisyBatch) -> str:
    """Sizes of a batch, for the log."""
    return f"{len(batch.timesteps_B)} samples, {sum(batch.layout.joint.segments.lengths)} tokens"
