"""The weights of a run as they are drawn with and saved: there may be several sets of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ..weight_names import EMA, LIVE
from .ema import Ema
from .optim.optimizers import AveragingOptimizer, usable_weights

VALIDATED_WEIGHTS: dict[str, tuple[str, ...]] = {"both": (LIVE, EMA), LIVE: (LIVE,), EMA: (EMA,)}
"""Which weights are drawn with during a run that keeps an average."""


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
