"""Training the model's own weights: all of the transformer."""

from __future__ import annotations

from torch import nn


def unfreeze(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """Make every weight trainable, in place.

    Returns:
        The parameters by their native names, in the dtype they have: matrices first, then norms and biases, which are
        not decayed.
    """
    transformer.requires_grad_(True)
    named = list(transformer.named_parameters())
    return dict(sorted(named, key=lambda item: item[1].ndim <= 1))
