"""Values of ComfyUI's own sockets: LORA_MODEL, LOSS_MAP and IMAGE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
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


EMPTY_SIZE = 64


def read_images(paths: Sequence[Path]) -> Tensor:
    """Read pictures; smaller ones are put in the middle of black ones as large as the largest.

    Args:
        paths: Picture files.

    Returns:
        [B, height, width, 3] in [0, 1]; one small black picture if there are no paths, because IMAGE can't be empty.
    """
    if not paths:
        return torch.zeros(1, EMPTY_SIZE, EMPTY_SIZE, 3)
    pictures = []
    for path in paths:
        with Image.open(path) as picture:
            pictures.append(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    return torch.from_numpy(np.stack([_put_in_the_middle(picture, height, width) for picture in pictures]))


def _put_in_the_middle(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (height - picture.shape[0]) // 2, (width - picture.shape[1]) // 2
    bottom, right = height - picture.shape[0] - top, width - picture.shape[1] - left
    return np.pad(picture, ((top, bottom), (left, right), (0, 0)))
