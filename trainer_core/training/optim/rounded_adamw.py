"""AdamW whose small numbers are rounded at random: moments of 8 or 16 bits, weights in bfloat16 or float32.

Small enough to train the whole model. Our own because none of the libraries does all of this (torchao 0.18: needs
torch.compile and torch's global generator, cannot limit an update or skip it; bitsandbytes 0.50: rounds bfloat16
weights to the nearest, which loses small updates; torch-optimi 0.3: compensates instead, two more bytes a weight): one
parameter at a time from within the backward pass, stochastic rounding whose bits follow from seed and step, so that a
resumed run is exact, no waiting for the device, moments in host memory.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .adamw_8bit_eager import update_eager
from .adamw_8bit_numbers import Guard, UpdateNumbers
from .adamw_bf16 import bf16_moments_size, update_bf16
from .moment_stores import HostMoments, MomentStore, ResidentMoments
from .moments import moments_size

MOMENTS = "moments"
DTYPES = (torch.float32, torch.bfloat16)


Update = Callable[[Tensor, Tensor, Tensor, UpdateNumbers, Guard | None], None]
"""Changes a parameter and its moments in place, by its gradient."""


@dataclass(frozen=True, kw_only=True)
class MomentFormat:
    """How both moments of a parameter are stored in one buffer, which is all zeros at first."""

    size: Callable[[int], int]
    """Bytes for a number of elements."""
    update_on: Callable[[torch.device], Update]
    """The update for parameters on a device."""


def update_8bit_on(device: torch.device) -> Update:
    """Triton's kernels on a GPU, where there is Triton, else plain PyTorch."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return update_eager
    from .adamw_8bit_triton import update_triton

    return update_triton


MOMENT_FORMATS: dict[str, MomentFormat] = {
    "8bit": MomentFormat(size=moments_size, update_on=update_8bit_on),
    "bf16": MomentFormat(size=bf16_moments_size, update_on=lambda device: update_bf16),
}
"""See `moments.py` and `adamw_bf16.py`."""


class RoundedAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101) with moments in one of MOMENT_FORMATS.

    `step` updates every parameter that has a gradient. To update them one by one: `start_step`, `step_parameter` for
    each, and `end_step` once it is known that all went well.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        seed: int = 0,
        is_state_on_host: bool = False,
        moments: str = "8bit",
    ) -> None:
        """
        Args:
            parameters: As for every optimizer of PyTorch; float32 or bfloat16.
            lr: Learning rate.
            betas: Decay of the mean and of the mean square.
            eps: Added to the denominator.
            weight_decay: Decoupled.
            seed: Of the random rounding.
            is_state_on_host: Keep moments in host memory instead of beside the parameters.
            moments: Key of MOMENT_FORMATS.
        """
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._seed = seed
        self._format = MOMENT_FORMATS[moments]
        self._places: dict[Tensor, tuple[int, dict[str, Any]]] = {}
        """Index and group of each parameter."""
        for group in self.param_groups:
            for parameter in group["params"]:
                assert parameter.dtype in DTYPES, f"RoundedAdamW trains float32 and bfloat16, not {parameter.dtype}"
                self._places[parameter] = (len(self._places), group)
        sizes = [self._format.size(parameter.numel()) for parameter in self._places]
        device = next(iter(self._places)).device
        self._update = self._format.update_on(device)
        self._store: MomentStore = HostMoments(sizes, device) if is_state_on_host else ResidentMoments()
        self._updated: list[dict[str, Any]] = []
        """State of the parameters that the step in progress has updated."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "no optimizer of this project takes a closure"
        self.start_step()
        for parameter in self._places:
            if parameter.grad is not None:
                self.step_parameter(parameter)
        self.end_step()

    def start_step(self) -> None:
        """Updates of single parameters follow."""
        self._updated.clear()
        self._store.start_step()

    def end_step(self) -> None:
        """All updates since `start_step` count; after one that a guard has refused, don't call it."""
        for state in self._updated:
            state["step"] += 1
        self._updated.clear()

    @torch.no_grad()
    def step_parameter(self, parameter: Tensor, guard: Guard | None = None) -> None:
        """Update one parameter from its gradient.

        Args:
            parameter: One of this optimizer's.
            guard: Skips the update after a gradient that is not finite, and limits its size.
        """
        grad = parameter.grad
        assert grad is not None, "a parameter without gradient has no update"
        assert parameter.is_contiguous(), "weights lie in one piece"
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state[MOMENTS] = self._store.create(self._format.size(parameter.numel()), parameter.device)
        with self._store.visit(state[MOMENTS]) as moments:
            numbers = self._numbers(parameter, state["step"] + 1)
            self._update(parameter.detach(), grad.contiguous(), moments, numbers, guard)
        self._updated.append(state)

    def _numbers(self, parameter: Tensor, step: int) -> UpdateNumbers:
        index, group = self._places[parameter]
        return UpdateNumbers(
            learning_rate=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            epsilon=group["eps"],
            weight_decay=group["weight_decay"],
            step=step,
            seed=self._seed,
            stream=index,
        )

    def state_dict(self) -> dict[str, Any]:
        """As every optimizer's; `moments` of each parameter is the buffer itself, not a copy."""
        self._store.synchronize()
        return super().state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take a state into buffers of this optimizer's own, one parameter after another.

        PyTorch's own would turn the moments into the dtype of their parameter.
        """
        for group, stored in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({key: value for key, value in stored.items() if key != "params"})
        parameters = list(self._places)
        for index, stored in state_dict["state"].items():
            parameter = parameters[index]
            moments = self._store.create(self._format.size(parameter.numel()), parameter.device)
            self.state[parameter] = {"step": stored["step"], MOMENTS: moments.copy_(stored[MOMENTS])}
