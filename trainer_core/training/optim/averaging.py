"""Weights that are exchanged for a while: for an optimizer's average, and back bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import nn


@contextmanager
def kept_weights(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Whatever is written to the weights within the context, in place, is undone bit for bit at its end.

    Their values wait in host memory: 5.2 GB for the whole model in bfloat16.
    """
    with torch.no_grad():
        kept = {name: parameter.detach().to("cpu", copy=True) for name, parameter in parameters.items()}
        try:
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.copy_(kept[name])


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
