"""Optimizers by name: how each is made, what it can do, what it ignores, and what it needs installed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import nn

from .. import optimizer_builders as builders
from ..kept_weights import kept_weights
from ..optimizer_builders import Groups, OptimizerNumbers
from .adamw_bf16 import bf16_moments_size
from .moments import moments_size

if TYPE_CHECKING:
    from ..settings import OptimizerSettings

OWN = -1.0
"""Of beta1, beta2 and epsilon: what the optimizer is usually given."""
OPTIMIZER_STATES = ("device", "host")
"""Where the state of an optimizer is kept."""
SMALL_8_BIT = 4096
"""bitsandbytes keeps the moments of fewer elements in 32 bits."""


@dataclass(frozen=True, kw_only=True)
class OptimizerKind:
    """An optimizer of the registry."""

    build: Callable[[Groups, OptimizerNumbers], torch.optim.Optimizer]
    state_bytes: Callable[[int, int], float]
    """Bytes of its state for a parameter with this many elements of this size."""
    beta1: float | None = 0.9
    """Its usual value; None where it has no such number, here and in the next two."""
    beta2: float | None = 0.999
    epsilon: float | None = 1e-8
    trains_bf16: bool = False
    """It trains bfloat16 weights without losing small updates; others need float32 weights."""
    updates_in_backward: bool = False
    """It can update each weight within the backward pass, and keep its state in host memory."""
    averages: bool = False
    """What it steps is not what it gives: see `usable_weights`."""
    smallest_learning_rate: float = 0.0
    """Of learning rates that can be meant."""
    package: str | None = None
    """What has to be installed, by the name pip knows."""
    module: str | None = None
    """What has to be importable then."""
    torch_class: str | None = None
    """What torch.optim must have."""
    devices: tuple[str, ...] = ()
    """Types of device it runs on; empty for all."""


def _factored(numel: int) -> float:
    """Row and column of a square matrix; of a LoRA's narrow ones it is more, but then it is nothing."""
    return 2 * math.sqrt(numel) * 4


OPTIMIZERS: dict[str, OptimizerKind] = {
    "adamw": OptimizerKind(build=builders.adamw, state_bytes=lambda numel, size: 2 * numel * size),
    "adamw8bit": OptimizerKind(
        build=builders.adamw8bit,
        state_bytes=lambda numel, size: moments_size(numel),
        trains_bf16=True,
        updates_in_backward=True,
    ),
    "adamw_bf16": OptimizerKind(
        build=builders.adamw_bf16,
        state_bytes=lambda numel, size: bf16_moments_size(numel),
        trains_bf16=True,
        updates_in_backward=True,
    ),
    "adamw8bit_bnb": OptimizerKind(
        build=builders.adamw8bit_bnb,
        state_bytes=lambda numel, size: 2 * numel * (1 if numel >= SMALL_8_BIT else 4),
        package="bitsandbytes",
        module="bitsandbytes",
        devices=("cuda", "xpu"),
    ),
    "lion": OptimizerKind(
        build=builders.lion,
        state_bytes=lambda numel, size: numel * size * (2 if size == 2 else 1),
        beta2=0.99,
        epsilon=None,
        trains_bf16=True,
        package="torch-optimi",
        module="optimi",
    ),
    "stableadamw": OptimizerKind(
        build=builders.stableadamw,
        state_bytes=lambda numel, size: numel * size * (3 if size == 2 else 2),
        beta2=0.99,
        epsilon=1e-6,
        trains_bf16=True,
        package="torch-optimi",
        module="optimi",
    ),
    "prodigy": OptimizerKind(
        build=builders.prodigy,
        state_bytes=lambda numel, size: 4 * numel * size,
        smallest_learning_rate=0.01,
        package="pytorch-optimizer",
        module="pytorch_optimizer",
    ),
    "schedulefree": OptimizerKind(
        build=builders.schedulefree,
        state_bytes=lambda numel, size: 2 * numel * size,
        averages=True,
        package="pytorch-optimizer",
        module="pytorch_optimizer",
    ),
    "adafactor": OptimizerKind(
        build=builders.adafactor,
        state_bytes=lambda numel, size: _factored(numel),
        beta1=None,
        beta2=None,
        epsilon=None,
    ),
    "came": OptimizerKind(
        build=builders.came,
        state_bytes=lambda numel, size: numel * size + 2 * _factored(numel),
        epsilon=None,
        package="pytorch-optimizer",
        module="pytorch_optimizer",
    ),
    "muon": OptimizerKind(
        build=builders.muon,
        state_bytes=lambda numel, size: numel * size,
        beta1=0.95,
        beta2=None,
        epsilon=None,
        torch_class="Muon",
    ),
}
"""Which of them suits what is said in web/docs/Lumina2Optimizer.md, which library and why in docs/dependencies.md."""


def make_optimizer(
    name: str,
    parameters: Mapping[str, nn.Parameter],
    *,
    learning_rate: float,
    settings: OptimizerSettings,
    seed: int,
) -> torch.optim.Optimizer:
    """An optimizer of some parameters; norms, biases and other vectors are not decayed.

    Args:
        name: Key of OPTIMIZERS.
        parameters: By name.
        learning_rate: Of the first step.
        settings: Everything else.
        seed: Of random rounding.
    """
    kind = OPTIMIZERS[name]
    numbers = OptimizerNumbers(
        learning_rate=learning_rate,
        betas=(_choose(settings.beta1, kind.beta1), _choose(settings.beta2, kind.beta2)),
        epsilon=_choose(settings.epsilon, kind.epsilon),
        weight_decay=settings.weight_decay,
        seed=seed,
        is_state_on_host=settings.optimizer_state == "host",
    )
    return kind.build(decay_groups(parameters.values(), settings.weight_decay), numbers)


def _choose(chosen: float, own: float | None) -> float:
    return chosen if chosen != OWN else own or 0.0


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices, and vectors such as norms and biases, which are not decayed."""
    parameters = list(parameters)
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def state_bytes_on_device(name: str, numel: int, itemsize: int, settings: OptimizerSettings) -> float:
    """Bytes that an optimizer keeps on the device for a parameter with this many elements of this size."""
    return 0 if settings.optimizer_state == "host" else OPTIMIZERS[name].state_bytes(numel, itemsize)


@runtime_checkable
class AveragingOptimizer(Protocol):
    """One that steps weights of its own and turns them into the average on request, in place."""

    def train(self) -> None:
        """The weights that are stepped."""

    def eval(self) -> None:
        """The average, which is the result."""


@contextmanager
def usable_weights(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """The weights as they are to be drawn with and saved; afterwards they are what they were, bit for bit.

    For a schedule-free optimizer that is the average; its own way back from there would add rounding errors, so that a
    run would depend on how often it was looked at. For others nothing changes.
    """
    if not isinstance(optimizer, AveragingOptimizer):
        yield
        return
    with kept_weights(parameters):
        optimizer.eval()
        try:
            yield
        finally:
            optimizer.train()
