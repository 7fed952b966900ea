"""Optimizers by name: how each is made, what it can do, what it ignores, and what it needs installed.

A library is imported by the function that makes its optimizer.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import TrainerError
from .adamw_bf16 import bf16_moments_size
from .moments import moments_size
from .muon import MuonWithAdamW
from .rounded_adamw import RoundedAdamW
from .settings import OWN, OptimizerSettings

SMALL_8_BIT = 4096
"""bitsandbytes keeps the moments of fewer elements in 32 bits."""

Groups = Sequence[dict[str, Any]]
"""Parameter groups as every optimizer of PyTorch takes them; each says its weight_decay."""
BATCHED_ELEMENTS = 2**27
"""Up to this many elements all parameters are updated in one call, which needs as much memory again."""


@dataclass(frozen=True, kw_only=True)
class OptimizerNumbers:
    """What an optimizer is made with; `betas` and `epsilon` are its own where the user has not chosen."""

    learning_rate: float
    betas: tuple[float, float]
    epsilon: float
    weight_decay: float
    seed: int
    """Of random rounding."""
    is_state_on_host: bool


def adamw(groups: Groups, numbers: OptimizerNumbers) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101), PyTorch's own; fused on CUDA."""
    is_cuda = all(parameter.is_cuda for group in groups for parameter in group["params"])
    return torch.optim.AdamW(list(groups), **_adam_arguments(numbers), fused=is_cuda or None)


def adamw8bit(groups: Groups, numbers: OptimizerNumbers) -> torch.optim.Optimizer:
    """AdamW with moments of 8 bits; see `optim/rounded_adamw.py`."""
    return _rounded(groups, numbers, "8bit")


def adamw_bf16(groups: Groups, numbers: OptimizerNumbers) -> torch.optim.Optimizer:
    """AdamW with moments in bfloat16, rounded at random; see `optim/adamw_bf16.py`."""
    return _rounded(groups, numbers, "bf16")


def adamw8bit_bnb(groups: Groups, numbers: OptimizerNumbers) -> torch.optim.Optimizer:
    """AdamW with moments of 8 bits by bitsandbytes (Dettmers et al., arXiv:2110.02861)."""
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(list(groups), **_adam_arguments(numbers))


def lion(groups: Groups, numbers: OptimizerNumbers) -> torch.optim.Optimizer:
    """Lion (Chen et al., arXiv:2302.06675) by torch-optimi, which compensates the rounding of bfloat16 weights."""
    from optimi import Lion

    return Lion(
        list(groups),
        lr=numbers.learning_rate,
        betas=numbers.betas,
        weight_decay=numbers.weight_decay,
        foreach=False,  # its batched path is deprecated; on a GPU it uses Triton
    )


def stableadamw(groups: Groups, numbers: OptimizerNumbers) -> torch.optim.Optimizer:
    """StableAdamW (Wortsman et al., arXiv:2304.13013) by torch-optimi, which limits each weight's update by itself."""
    from optimi import StableAdamW

    return StableAdamW(list(groups), **_adam_arguments(numbers), foreach=False)


def prodigy(groups: Groups, numbers: OptimizerNumbers) -> torch.optim.Optimizer:
    """Prodigy (Mishchenko and Defazio, arXiv:2306.06101) by pytorch-optimizer, with the settings its authors advise for
    diffusion models: bias correction, and warm-up kept out of the estimate."""
    from pytorch_optimizer import Prodigy

    return Prodigy(
        list(groups),
        **_adam_arguments(numbers),
        bias_correction=True,
        safeguard_warmup=True,
        foreach=_is_batched(groups),
    )


def schedulefree(groups: Groups, numbers: OptimizerNumbers) -> torch.optim.Optimizer:
    """Schedule-free AdamW (Defazio et al., arXiv:2405.15682) by pytorch-optimizer; see `usable_weights`."""
    from pytorch_optimizer import ScheduleFreeAdamW

    return ScheduleFreeAdamW(list(groups), **_adam_arguments(numbers), foreach=_is_batched(groups))


def adafactor(groups: Groups, numbers: OptimizerNumbers) -> torch.optim.Optimizer:
    """Adafactor (Shazeer and Stern, arXiv:1804.04235) by transformers, whose learning rate is meant as AdamW's.

    PyTorch's own multiplies it by the size of a weight, which for a LoRA's zeros is a thousandth.
    """
    from transformers.optimization import Adafactor

    return Adafactor(
        list(groups),
        lr=numbers.learning_rate,
        weight_decay=numbers.weight_decay,
        scale_parameter=False,
        relative_step=False,
        warmup_init=False,
    )


def came(groups: Groups, numbers: OptimizerNumbers) -> torch.optim.Optimizer:
    """CAME (Luo et al., arXiv:2307.02047) by pytorch-optimizer."""
    from pytorch_optimizer import CAME

    return CAME(
        list(groups),
        lr=numbers.learning_rate,
        betas=(*numbers.betas, 0.9999),
        weight_decay=numbers.weight_decay,
        foreach=_is_batched(groups),
    )


def muon(groups: Groups, numbers: OptimizerNumbers) -> torch.optim.Optimizer:
    """Muon for matrices with AdamW for the rest, both PyTorch's own; see `optim/muon.py`."""
    return MuonWithAdamW(groups, lr=numbers.learning_rate, momentum=numbers.betas[0], weight_decay=numbers.weight_decay)


def _rounded(groups: Groups, numbers: OptimizerNumbers, moments: str) -> RoundedAdamW:
    return RoundedAdamW(
        groups,
        **_adam_arguments(numbers),
        seed=numbers.seed,
        is_state_on_host=numbers.is_state_on_host,
        moments=moments,
    )


def _adam_arguments(numbers: OptimizerNumbers) -> dict[str, Any]:
    return {
        "lr": numbers.learning_rate,
        "betas": numbers.betas,
        "eps": numbers.epsilon,
        "weight_decay": numbers.weight_decay,
    }


def _is_batched(groups: Groups) -> bool:
    return sum(parameter.numel() for group in groups for parameter in group["params"]) <= BATCHED_ELEMENTS


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
    "adamw": OptimizerKind(build=adamw, state_bytes=lambda numel, size: 2 * numel * size),
    "adamw8bit": OptimizerKind(
        build=adamw8bit,
        state_bytes=lambda numel, size: moments_size(numel),
        trains_bf16=True,
        updates_in_backward=True,
    ),
    "adamw_bf16": OptimizerKind(
        build=adamw_bf16,
        state_bytes=lambda numel, size: bf16_moments_size(numel),
        trains_bf16=True,
        updates_in_backward=True,
    ),
    "adamw8bit_bnb": OptimizerKind(
        build=adamw8bit_bnb,
        state_bytes=lambda numel, size: 2 * numel * (1 if numel >= SMALL_8_BIT else 4),
        package="bitsandbytes",
        module="bitsandbytes",
        devices=("cuda", "xpu"),
    ),
    "lion": OptimizerKind(
        build=lion,
        state_bytes=lambda numel, size: numel * size * (2 if size == 2 else 1),
        beta2=0.99,
        epsilon=None,
        trains_bf16=True,
        package="torch-optimi",
        module="optimi",
    ),
    "stableadamw": OptimizerKind(
        build=stableadamw,
        state_bytes=lambda numel, size: numel * size * (3 if size == 2 else 2),
        beta2=0.99,
        epsilon=1e-6,
        trains_bf16=True,
        package="torch-optimi",
        module="optimi",
    ),
    "prodigy": OptimizerKind(
        build=prodigy,
        state_bytes=lambda numel, size: 4 * numel * size,
        smallest_learning_rate=0.01,
        package="pytorch-optimizer",
        module="pytorch_optimizer",
    ),
    "schedulefree": OptimizerKind(
        build=schedulefree,
        state_bytes=lambda numel, size: 2 * numel * size,
        averages=True,
        package="pytorch-optimizer",
        module="pytorch_optimizer",
    ),
    "adafactor": OptimizerKind(
        build=adafactor,
        state_bytes=lambda numel, size: _factored(numel),
        beta1=None,
        beta2=None,
        epsilon=None,
    ),
    "came": OptimizerKind(
        build=came,
        state_bytes=lambda numel, size: numel * size + 2 * _factored(numel),
        epsilon=None,
        package="pytorch-optimizer",
        module="pytorch_optimizer",
    ),
    "muon": OptimizerKind(
        build=muon,
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
