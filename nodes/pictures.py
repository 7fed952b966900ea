"""Picture files as the host's IMAGE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

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
