"""Regularisation: samples whose target is what the base itself predicts, so that what is trained stays near it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch

from ..lumina2.network.transformer import Lumina2Transformer
from ..lumina2.objective import NoisyBatch, predict_velocity
from ..lumina2.quant.precision import computation

BaseOnly = Callable[[Lumina2Transformer], AbstractContextManager[None]]
"""Switches off what is trained, within a context."""


@torch.no_grad()
def with_base_targets(
    transformer: Lumina2Transformer,
    base_only: BaseOnly,
    batch: NoisyBatch,
    is_regularisation: Sequence[bool],
    precision: str,
    device: torch.device,
) -> NoisyBatch:
    """The batch with the base's prediction as the target of some samples.

    One more forward pass for the whole batch. Tensors keep their shapes, so a CUDA graph of the step still serves.

    Args:
        transformer: With its adapter.
        base_only: Switches the adapter off.
        batch: On the device.
        is_regularisation: Which of its samples get another target.
        precision: Key of PRECISIONS.
        device: Where the transformer is.
    """
    if not any(is_regularisation):
        return batch
    with base_only(transformer), computation(precision, device):
        velocity_TC = predict_velocity(transformer, batch)
    chosen_B = torch.tensor(is_regularisation).to(device, non_blocking=True)
    chosen_T1 = chosen_B[batch.layout.image.sample_index][:, None]
    return dataclasses.replace(batch, target_TC=torch.where(chosen_T1, velocity_TC, batch.target_TC))
