"""Compiling the text encoder, and checking gradients against the plain network before they are trusted.

The transformer has fused operations of its own. Compiled as well, PyTorch 2.11 on an H100 gave the right loss and wrong
gradients (hundreds of times too long).
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .network import DemoNetwork

MAX_GRADIENT_ERROR = 0.05
"""bf16 against bf16; the plain network is off by 0.007 from float32."""


def compile_pieces(network: DemoNetwork) -> None:
    """Compile the text encoder in place."""
    network.text_encoder.compile(dynamic=False)


def check_gradients(network: DemoNetwork, loss: Callable[[nn.Module], Tensor]) -> float:
    """Compare compiled with plain gradients, at weights where every gradient counts.

    Args:
        network: Its sizes are used, not its weights.
        loss: Loss of a fixed batch.

    Returns:
        Length of the difference over the length of the plain gradient, all parameters together.
    """
    plain = copy.deepcopy(network)
    generator = torch.Generator(next(plain.parameters()).device).manual_seed(0)
    with torch.no_grad():
        for parameter in plain.transformer.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05, generator=generator)
    compiled = copy.deepcopy(plain)
    for one in (plain, compiled):
        if one is compiled:
            compile_pieces(one)
        loss(one).backward()
    pairs = [(a.grad.float(), b.grad.float()) for a, b in zip(compiled.parameters(), plain.parameters(), strict=True)]
    difference = torch.stack([(a - b).square().sum() for a, b in pairs]).sum().sqrt()
    return float(difference / torch.stack([b.square().sum() for _, b in pairs]).sum().sqrt())
