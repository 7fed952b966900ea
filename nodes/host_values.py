"""Values of ComfyUI's own training sockets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor


def read_lora(path: str | Path) -> dict[str, Tensor]:
    """An adapter file as LORA_MODEL: ComfyUI's keys, on the CPU, each tensor with memory of its own.

    Call it outside of inference mode: the host's savers refuse inference tensors.
    """
    from safetensors.torch import load_file

    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def to_loss_map(losses: Sequence[float]) -> dict[str, list[float]]:
    """Losses as LOSS_MAP.

    The host's loss graph divides by the largest minus the smallest loss, so a run whose losses are all equal (of one
    step, say) gets one more value that differs in the last digit.
    """
    values = [float(loss) for loss in losses if math.isfinite(loss)]
    if len(set(values)) < 2:
        last = values[-1] if values else 0.0
        values = [*(values or [last]), math.nextafter(last, math.inf)]
    return {"loss": values}
