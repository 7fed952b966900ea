"""When the weights are updated: after the backward pass, or parameter by parameter within it."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from ..processes import ALONE, Processes
from .optim.adamw_8bit_numbers import Guard, new_guard_tensors
from .optim.rounded_adamw import RoundedAdamW

SMALL_BYTES = 2**22
"""Gradients smaller than this are exchanged among processes together, once they are as much."""
MAX_BYTES_UNDER_WAY = 2**27
"""Of gradients that are being exchanged while the backward pass goes on to the next."""
MAX_EXCHANGED_BYTES = MAX_BYTES_UNDER_WAY + 2 * SMALL_BYTES
"""What the gradients of `UpdateInBackward` take in all while they are exchanged."""


class WeightUpdate(Protocol):
    """What a step does with gradients; called in this order, `prepare` before each backward pass."""

    keeps_gradients: ClassVar[bool]
    """Whether gradients stay until `apply`, and `prepare` may also be called after the backward pass."""

    @property
    def is_consistent(self) -> bool:
        """False while some weights are of this step and others of the last."""

    def prepare(self, loss_B: Tensor, learning_rate: float, *, is_last: bool) -> None:
        """A backward pass follows.

        Args:
            loss_B: Its losses.
            learning_rate: Of this step.
            is_last: No other pass of this step comes after it.
        """

    def measure(self) -> Tensor:
        """The length of all gradients together, before any limit; a number on the device."""

    def apply(self) -> None:
        """Losses and length are finite: finish the step."""

    def discard(self) -> str:
        """They are not: drop the gradients, and say what was updated, as a sentence."""


class UpdateAfterBackward:
    """Keeps all gradients, shortens them to a common length, then updates: any optimizer."""

    keeps_gradients: ClassVar[bool] = True

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float,
        processes: Processes = ALONE,
    ) -> None:
        """
        Args:
            parameters: What is trained.
            optimizer: Of these parameters.
            max_grad_norm: 0 for no limit.
            processes: Whose gradients are averaged.
        """
        self.is_consistent = True
        self._processes = processes
        self._parameters = list(parameters.values())
        self._optimizer = optimizer
        self._max_grad_norm = max_grad_norm or math.inf
        self._learning_rate = 0.0

    def prepare(self, loss_B: Tensor, learning_rate: float, *, is_last: bool) -> None:
        self._learning_rate = learning_rate

    def measure(self) -> Tensor:
        self._processes.average_gradients(self._parameters)
        return nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm).detach().float()

    def apply(self) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate
        self.is_consistent = False
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.is_consistent = True

    def discard(self) -> str:
        self._optimizer.zero_grad(set_to_none=True)
        return "Nothing was updated"


class UpdateInBackward:
    """Updates each parameter as soon as its gradient is there, and frees the gradient.

    The length of all gradients is not known in time to shorten them, so each parameter's update is limited instead, see
    `Guard.max_rms`. The device itself refuses every update after a loss or gradient that is not finite.
    """

    keeps_gradients: ClassVar[bool] = False

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizer: RoundedAdamW,
        max_rms: float,
        processes: Processes = ALONE,
    ) -> None:
        """
        Args:
            parameters: What is trained.
            optimizer: Of these parameters.
            max_rms: 0 for no limit.
            processes: Whose gradients are averaged.
        """
        self.is_consistent = True
        self._processes = processes
        self._names = {parameter: name for name, parameter in parameters.items()}
        self._optimizer = optimizer
        self._max_rms = max_rms or math.inf
        self._is_armed = False
        self._has_begun = False
        self._updated: dict[nn.Parameter, None] = {}
        """In the order of this step."""
        self._small: list[nn.Parameter] = []
        """Their gradients wait until they are exchanged together."""
        self._under_way: deque[tuple[list[nn.Parameter], Callable[[], None]]] = deque()
        """Whose gradients are being exchanged, and what waits for these; the oldest first."""
        device = next(iter(parameters.values())).device
        self._is_finite, self._square_norm = new_guard_tensors(len(parameters), device)
        hook = partial(_update_if_alive, weakref.ref(self))  # the model must not keep this object, and so itself, alive
        for parameter in parameters.values():
            parameter.register_post_accumulate_grad_hook(hook)

    @torch.no_grad()
    def prepare(self, loss_B: Tensor, learning_rate: float, *, is_last: bool) -> None:
        if not self._has_begun:
            self._is_finite[0] = 1.0
        self._is_finite[0] *= loss_B.isfinite().all()
        self._has_begun = True
        if not is_last:
            return
        self._processes.is_everywhere(self._is_finite[:1])
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.start_step()
        self._is_armed, self.is_consistent = True, False

    def update(self, parameter: nn.Parameter) -> None:
        """Called by autograd when a gradient is complete."""
        if not self._is_armed:
            return
        if self._processes.count == 1:
            self._update(parameter)
        elif parameter.nbytes >= SMALL_BYTES:
            self._start_exchange([parameter])
        else:
            self._small.append(parameter)
            if _size(self._small) >= SMALL_BYTES:
                self._exchange_small()

    def _exchange_small(self) -> None:
        piece, self._small = self._small, []
        self._start_exchange(piece)

    def _start_exchange(self, piece: list[nn.Parameter]) -> None:
        gradients = [parameter.grad for parameter in piece if parameter.grad is not None]
        assert len(gradients) == len(piece), "a hook without a gradient"
        self._under_way.append((piece, self._processes.start_averaging(gradients)))
        while sum(_size(exchanged) for exchanged, _ in self._under_way) > MAX_BYTES_UNDER_WAY:
            self._finish_exchange()

    def _finish_exchange(self) -> None:
        piece, finish = self._under_way.popleft()
        finish()
        for parameter in piece:
            self._update(parameter)

    def _update(self, parameter: nn.Parameter) -> None:
        assert parameter not in self._updated, f"the gradient of {self._names[parameter]} came in parts"
        guard = Guard(
            is_finite=self._is_finite,
            square_norm=self._square_norm,
            position=len(self._updated),
            max_rms=self._max_rms,
        )
        self._optimizer.step_parameter(parameter, guard)
        self._updated[parameter] = None
        parameter.grad = None

    def measure(self) -> Tensor:
        self._is_armed = False
        if self._small:
            self._exchange_small()
        while self._under_way:
            self._finish_exchange()
        return self._square_norm[: len(self._updated)].sum().sqrt()

    def apply(self) -> None:
        self._optimizer.end_step()
        self._updated.clear()
        self._has_begun, self.is_consistent = False, True

    def discard(self) -> str:
        num_done = int(self._is_finite[: len(self._updated) + 1].sum().item()) - 1
        bad = None if num_done < 0 else self._names[list(self._updated)[num_done]]
        total = len(self._updated)
        self._updated.clear()
        self._has_begun, self.is_consistent = False, num_done <= 0
        if num_done <= 0:
            return "Nothing was updated"
        return (
            f"The gradient of {bad} was the first; {num_done} of {total} weights were updated before it, so the run"
            " goes on from its last checkpoint"
        )


def _size(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.nbytes for parameter in parameters)


def _update_if_alive(update: weakref.ref[UpdateInBackward], parameter: nn.Parameter) -> None:
    owner = update()
    if owner is not None:
        owner.update(parameter)
