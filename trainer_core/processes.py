"""The processes that work on one workflow together, one for each GPU: a handle that one process alone has too.

`accelerate launch` and torchrun start them. Each reads other samples of a step; gradients are averaged, so that the
weights stay the same in all. What only one may do, such as writing files, the main process does.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import OtherProcessFailed, StopTraining
from .launch import num_launched
from .presence import Presence

T = TypeVar("T")

logger = logging.getLogger(__name__)

PATIENCE = {"cpu": datetime.timedelta(seconds=60), "cuda": datetime.timedelta(minutes=10)}
"""How long tensors of the others are waited for. Work that takes longer ends in a meeting, see `presence.py`."""
MAX_BYTES_AT_ONCE = 2**25
"""Of gradients that are exchanged in one piece, which takes as much memory again; two pieces are under way at once."""

TOLD = "is_told"
"""Attribute of an exception that all processes know of."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process and the others. Every method but `share` must be called by all of them, in the same order."""

    index: int = 0
    count: int = 1
    presence: Presence | None = field(default=None, repr=False)
    """Of all of them; None alone."""

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and reports."""
        return self.index == 0

    @property
    def stands_in(self) -> bool:
        """Whether this one writes because the main process is gone."""
        return self.index == 1 and self.presence is not None and 0 in self.presence.gone

    def check(self) -> None:
        """Raise OtherProcessFailed if tensors that were just exchanged may be none, for another process is gone."""
        if self.presence is not None:
            self.presence.check()

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The items that are this process's to work on."""
        return items[self.index :: self.count]

    def wait(self) -> None:
        """Until all have come this far."""
        self.gather(None)

    def from_main(self, make: Callable[[], T]) -> T:
        """What the main process makes, in all of them; what it raises is raised in all of them.

        Raises:
            StopTraining: The main process stopped.
            OtherProcessFailed: It failed, or another did before.
        """
        if self.count == 1:
            return make()
        if not self.is_main:
            return self._meet(None)[0]
        with self.telling_failure():
            result = make()
        self._meet(result)
        return result

    @contextmanager
    def telling_failure(self, *, sends_tensors: bool = False) -> Iterator[None]:
        """What only one process raises in its block is raised in the others where they meet next, if it was not yet.

        Args:
            sends_tensors: In the block, so that others may be waiting for them, and the exchange ends.
        """
        try:
            yield
        except BaseException as error:
            if self.count > 1 and not _is_told(error):
                vars(error)[TOLD] = True
                problem = self._tell(error)
                if self.presence is not None and sends_tensors:
                    self.presence.tell_failure(str(problem))
                with suppress(OtherProcessFailed, StopTraining):
                    self._meet(None, problem)
            raise

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """What is raised in one process's block ends the block of every other too, which so waits for none in vain.

        Raises:
            StopTraining: Another process stopped.
            OtherProcessFailed: It failed.
        """
        with self.telling_failure():
            yield
        self.wait()

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in their order. Does not wait for the GPU."""
        return [value] if self.count == 1 else self._meet(value)

    def _meet(self, value: Any, problem: OtherProcessFailed | StopTraining | None = None) -> list[Any]:
        """What each has brought. All meetings are the same exchange: who failed finds the others at any of them."""
        if self.presence is not None:
            self.presence.arrive()
        words: list[Any] = [None] * self.count
        _talk(dist.all_gather_object, words, (value, problem))
        for index, (_, theirs) in enumerate(words):
            if theirs is not None and index != self.index:
                raise theirs
        return [value for value, _ in words]

    def _tell(self, error: BaseException) -> OtherProcessFailed | StopTraining:
        who = "the main process" if self.is_main else f"process {self.index}"
        is_stop = isinstance(error, StopTraining | KeyboardInterrupt)
        problem = StopTraining() if is_stop else OtherProcessFailed(f"{who} failed: {error}")
        vars(problem)[TOLD] = True
        return problem

    def join(self, own: Tensor, lengths: Sequence[int]) -> Tensor:
        """The tensors of all processes one after another, on the device.

        Args:
            own: [n].
            lengths: n of each process.
        """
        if self.count == 1:
            return own
        joined = own.new_zeros(sum(lengths))
        start = sum(lengths[: self.index])
        joined[start : start + len(own)] = own
        dist.all_reduce(joined)
        return joined

    def is_everywhere(self, is_so: Tensor) -> Tensor:
        """The product of a number of each process, in its place on the device: 0 if one of them is 0."""
        if self.count > 1:
            dist.all_reduce(is_so, dist.ReduceOp.PRODUCT)
        return is_so

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its mean over the processes, to which one without a gradient adds nothing."""
        if self.count == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        finish: Callable[[], None] = _nothing
        for part in _parts([parameter.grad for parameter in parameters if parameter.grad is not None]):
            finish_last, finish = finish, self.start_averaging(part)
            finish_last()
        finish()

    @torch.no_grad()
    def start_averaging(self, tensors: Sequence[Tensor]) -> Callable[[], None]:
        """Begin to replace each tensor by its mean over the processes, all in one piece, while other work goes on.

        Returns:
            Must be called before they are read. It waits for the mean; on a GPU, only what is started later does.
        """
        flat = torch.cat([tensor.flatten() for tensor in tensors]) if len(tensors) > 1 else tensors[0].contiguous()
        # NCCL divides by itself, gloo cannot.
        work = dist.all_reduce(flat, dist.ReduceOp.AVG if flat.is_cuda else dist.ReduceOp.SUM, async_op=True)

        @torch.no_grad()
        def finish() -> None:
            work.wait()
            if not flat.is_cuda:
                flat.div_(self.count)
            if flat is not tensors[0]:
                pieces = flat.split([tensor.numel() for tensor in tensors]) if len(tensors) > 1 else [flat]
                torch._foreach_copy_(
                    list(tensors), [piece.view_as(own) for piece, own in zip(pieces, tensors, strict=True)]
                )

        return finish

    def take_from_main(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by the main process's, so that all start from the very same numbers."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)


ALONE = Processes()


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Meet the other processes that the launcher started, if any, until the block ends.

    Args:
        device: Of this process.
    """
    if num_launched() == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Two ways of talking: a GPU's tensors go by NCCL; flags and results go by gloo, which does not wait for the GPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE[device.type])
    index, count = dist.get_rank(), dist.get_world_size()
    presence = Presence(index, count, abort_tensors if device.type == "cuda" else _nothing)
    processes = Processes(index=index, count=count, presence=presence)
    logger.info("%d processes train together", processes.count)
    presence.start()
    try:
        with processes.telling_failure():
            yield processes
    finally:
        presence.end()
        dist.destroy_process_group()


def abort_tensors() -> None:
    """End every exchange of GPUs that has not ended, and allow none any more."""
    if dist.is_initialized():
        world = dist.group.WORLD
        assert world is not None, "processes have met"
        world._get_backend(torch.device("cuda")).abort()


def _talk(exchange: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """An exchange over the network, which ends with an error when another process is gone."""
    try:
        exchange(*arguments, **options)
    except RuntimeError as error:
        raise OtherProcessFailed(f"another process is gone ({error}): its own message says why") from error


def _is_told(error: BaseException) -> bool:
    """Whether others know of it, or of the one in whose place it was raised."""
    part: BaseException | None = error
    while part is not None and TOLD not in vars(part):
        part = part.__context__
    return part is not None


def _nothing() -> None:
    pass


def _parts(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype that follow one another, as many as are exchanged at once."""
    part: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if part and (tensor.dtype != part[0].dtype or size + tensor.nbytes > MAX_BYTES_AT_ONCE):
            yield part
            part, size = [], 0
        part.append(tensor)
        size += tensor.nbytes
    if part:
        yield part
