"""One function for each optimizer: parameter groups and numbers in, an optimizer out. Libraries are imported here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .optim.muon import MuonWithAdamW
from .optim.rounded_adamw import RoundedAdamW

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
