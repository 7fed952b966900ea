"""Whether an optimizer can do what it is asked for, before a weight is read."""

from __future__ import annotations

import importlib.util

import torch

from ..errors import TrainerError
from .optim.optimizers import OPTIMIZERS, OWN, OptimizerKind
from .settings import OptimizerSettings


def check_optimizer(
    name: str, learning_rate: float, settings: OptimizerSettings, *, full_precision: str | None = None
) -> None:
    """Check an optimizer against its settings.

    Args:
        name: Key of OPTIMIZERS.
        learning_rate: Of the Train node.
        settings: Of the Optimizer node.
        full_precision: Precision of a model whose own weights are trained; None for an adapter, which is float32.

    Raises:
        TrainerError: It is not installed, cannot train these weights, or would ignore a setting.
    """
    kind = OPTIMIZERS[name]
    _check_installed(name, kind)
    for field in ("beta1", "beta2", "epsilon"):
        if getattr(kind, field) is None and getattr(settings, field) != OWN:
            raise TrainerError(
                f"{field} is {getattr(settings, field):g}, which optimizer {name} does not have: set it to {OWN:g}"
            )
    if settings.optimizer_state == "host" and not kind.updates_in_backward:
        raise TrainerError(
            f'optimizer_state is "host", which {name} cannot do: choose optimizer'
            f' {_names_of("updates_in_backward")}, or optimizer_state "device"'
        )
    if kind.averages and settings.lr_schedule != "constant":
        raise TrainerError(
            f"lr_schedule is {settings.lr_schedule}, but {name} replaces schedules by averaging: choose constant"
        )
    if kind.averages and settings.beta1 == 0:
        raise TrainerError(f"beta1 is 0, with which {name} does not average: choose more, or {OWN:g} for 0.9")
    if 0 < learning_rate < kind.smallest_learning_rate:
        raise TrainerError(
            f"learning_rate is {learning_rate:g}, but {name} finds the rate itself and only multiplies it by this"
            " number: set it to 1"
        )
    if full_precision == "bf16" and not kind.trains_bf16:
        raise TrainerError(
            f"optimizer is {name}, whose small updates bf16 weights would lose: choose"
            f" {_names_of('trains_bf16')}, or precision fp32 in Load Lumina2"
        )


def check_optimizer_device(name: str, device: torch.device) -> None:
    """Check that an optimizer runs on a device.

    Raises:
        TrainerError: It does not.
    """
    kind = OPTIMIZERS[name]
    if kind.devices and device.type not in kind.devices:
        raise TrainerError(
            f"optimizer {name} needs a GPU ({' or '.join(kind.devices)}), and this run is on {device.type}:"
            " choose adamw8bit, which runs everywhere"
        )


def _check_installed(name: str, kind: OptimizerKind) -> None:
    if kind.module is not None and importlib.util.find_spec(kind.module) is None:
        raise TrainerError(
            f"optimizer {name} needs the package {kind.package}: run `python -m pip install {kind.package}`"
            " with ComfyUI's Python, or choose another optimizer"
        )
    if kind.torch_class is not None and not hasattr(torch.optim, kind.torch_class):
        raise TrainerError(
            f"optimizer {name} needs a PyTorch that has torch.optim.{kind.torch_class}, and this is"
            f" {torch.__version__}: update PyTorch, or choose another optimizer"
        )


def _names_of(ability: str) -> str:
    return " or ".join(name for name, kind in OPTIMIZERS.items() if getattr(kind, ability))
