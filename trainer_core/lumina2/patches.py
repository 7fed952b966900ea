"""Latents as tokens of 2 x 2 patches, and back."""

from __future__ import annotations

from torch import Tensor


def patchify(latents: Tensor, patch_size: int = 2) -> Tensor:
    """Cut latents into tokens.

    Args:
        latents: [channels, height, width]; height and width multiples of `patch_size`.

    Returns:
        [rows * columns, patch_size * patch_size * channels], each patch laid out (row, column, channel).
    """
    channels, height, width = latents.shape
    rows, columns = height // patch_size, width // patch_size
    x = latents.reshape(channels, rows, patch_size, columns, patch_size)
    return x.permute(1, 3, 2, 4, 0).reshape(rows * columns, -1)  # [C, R, p, W, p] -> [R, W, p, p, C]


def unpatchify(tokens: Tensor, rows: int, columns: int, patch_size: int = 2) -> Tensor:
    """The inverse of `patchify`.

    Args:
        tokens: [rows * columns, patch_size * patch_size * channels].

    Returns:
        [channels, rows * patch_size, columns * patch_size].
    """
    x = tokens.reshape(rows, columns, patch_size, patch_size, -1)
    x = x.permute(4, 0, 2, 1, 3)  # [R, W, p, p, C] -> [C, R, p, W, p]
    return x.reshape(-1, rows * patch_size, columns * patch_size)
