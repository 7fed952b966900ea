"""The weights of a run as they are drawn with and saved: those trained, and perhaps their running average."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..run_names import EMA, LIVE
from .optim.averaging import AveragingOptimizer, kept_weights, usable_weights


class Ema:
    """Follows the weights with a delay; often draws better than they do.

    In bfloat16 it would stand still: at a decay of 0.999 a step changes it by less than half of what bfloat16 can tell.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], *, decay: float, step_interval: int, device: torch.device
    ) -> None:
        """
        Args:
            parameters: What is averaged; the average starts from their values.
            decay: Share of the average that is left after one optimizer step.
            step_interval: Optimizer steps from one update to the next.
            device: Where the average is kept: 4 bytes a weight.
        """
        self.average = {
            name: parameter.detach().to(device, torch.float32, copy=True) for name, parameter in parameters.items()
        }
        """By name of the parameter, as it was after the last update."""
        self._decay = decay
        self._step_interval = step_interval

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter], step: int) -> None:
        """Take in the weights after an optimizer step, if it is the turn of that step."""
        if step % self._step_interval:
            return
        weight = 1.0 - ema_decay(self._decay, step, self._step_interval)
        same: list[tuple[Tensor, Tensor]] = []
        for name, average in self.average.items():
            value = parameters[name].detach()
            if value.device == average.device and value.dtype == average.dtype:
                same.append((average, value))
            else:
                average.lerp_(value.to(average.device, average.dtype), weight)
        if same:  # an adapter's many small tensors in one call
            averages, values = (list(tensors) for tensors in zip(*same, strict=True))
            torch._foreach_lerp_(averages, values, weight)

    @contextmanager
    def in_use(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """The parameters hold the average within the context, and afterwards what they held before, bit for bit."""
        with kept_weights(parameters):
            for name, average in self.average.items():
                parameters[name].copy_(average)
            yield


def ema_decay(decay: float, step: int, step_interval: int) -> float:
    """Share of the average that an update leaves.

    The first updates leave less, so that the average forgets the start: after n of them at most (1 + n) / (10 + n), as
    in TensorFlow's ExponentialMovingAverage. Updates of every n-th step leave the n-th power, so that the average
    reaches back equally far.
    """
    num_updates = step // step_interval
    return min(decay**step_interval, (1 + num_updates) / (10 + num_updates))


@dataclass(frozen=True, kw_only=True)
class WeightView:
    """One set of weights."""

    name: str
    """LIVE or EMA."""
    in_use: Callable[[], AbstractContextManager[None]]
    """Puts it into the parameters; afterwards they are what they were, bit for bit."""
    is_trained: bool
    """It is what the optimizer steps, so training can go on from it."""


def weight_views(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, ema: Ema | None
) -> tuple[WeightView, ...]:
    """The weights as trained (averaged, if the optimizer does so), and the average of a run that keeps one."""
    live = WeightView(
        name=LIVE,
        in_use=partial(usable_weights, optimizer, parameters),
        is_trained=not isinstance(optimizer, AveragingOptimizer),
    )
    if ema is None:
        return (live,)
    return live, WeightView(name=EMA, in_use=partial(ema.in_use, parameters), is_trained=False)
