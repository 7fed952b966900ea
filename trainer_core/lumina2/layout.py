"""How a batch of samples is packed into one token sequence, and the rotary tables that go with it.

Shape suffixes: S caption and image tokens of all samples, L caption tokens, T image tokens, E head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import Segments

ROPE_THETA = 10000.0
MAX_CAPTION_TOKENS = 299
"""RoPE tables of the original hold 300 caption positions and the image takes position L."""


@dataclass(frozen=True, kw_only=True)
class RotaryTable:
    """Rotation of each token, as cosine and sine of its angles."""

    cos: Tensor
    """[tokens, 1, E / 2]."""
    sin: Tensor
    """[tokens, 1, E / 2]."""


@dataclass(frozen=True, kw_only=True)
class TokenStream:
    """One packed sequence: which tokens belong to which sample, and their rotation."""

    segments: Segments
    rotary: RotaryTable
    sample_index: Tensor
    """[tokens] int64, the sample each token belongs to."""


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """The three sequences of the network: captions, images, and both joined sample by sample."""

    caption: TokenStream
    image: TokenStream
    joint: TokenStream
    caption_index_L: Tensor
    """[L] int64, where each caption token lies in the joint sequence."""
    image_index_T: Tensor
    """[T] int64, where each image token lies in the joint sequence."""

    @classmethod
    def build(
        cls,
        caption_lengths: tuple[int, ...],
        image_sizes: tuple[tuple[int, int], ...],
        axes_dims: tuple[int, ...],
        device: torch.device,
    ) -> TokenLayout:
        """Lay out a batch; samples may differ in caption length and picture size.

        Args:
            caption_lengths: Caption tokens of each sample, 1 to 299.
            image_sizes: (rows, columns) of each sample in patches of 2 x 2 latents.
            axes_dims: Head dimensions rotated by caption position, row and column.
            device: Where the tables are put.
        """
        assert len(caption_lengths) == len(image_sizes), "one caption for each image"
        assert max(caption_lengths) <= MAX_CAPTION_TOKENS, f"a caption has more than {MAX_CAPTION_TOKENS} tokens"
        image_lengths = tuple(rows * columns for rows, columns in image_sizes)
        joint_lengths = tuple(a + b for a, b in zip(caption_lengths, image_lengths, strict=True))
        captions, images = [], []
        for length, (rows, columns) in zip(caption_lengths, image_sizes, strict=True):
            captions.append(_caption_positions(length))
            images.append(_image_positions(length, rows, columns))
        joint = [part for pair in zip(captions, images, strict=True) for part in pair]
        is_caption_S = torch.cat(
            [torch.arange(total) < length for length, total in zip(caption_lengths, joint_lengths, strict=True)]
        )
        return cls(
            caption=_stream(caption_lengths, captions, axes_dims, device),
            image=_stream(image_lengths, images, axes_dims, device),
            joint=_stream(joint_lengths, joint, axes_dims, device),
            caption_index_L=is_caption_S.nonzero().flatten().to(device, non_blocking=True),
            image_index_T=(~is_caption_S).nonzero().flatten().to(device, non_blocking=True),
        )


def _caption_positions(length: int) -> Tensor:
    """[length, 3]: caption token i is at (i, 0, 0)."""
    position = torch.zeros(length, 3, dtype=torch.float64)
    position[:, 0] = torch.arange(length)
    return position


def _image_positions(caption_length: int, rows: int, columns: int) -> Tensor:
    """[rows * columns, 3]: the token at row r, column c is at (caption_length, r, c)."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    start = torch.full_like(row, caption_length)
    return torch.stack([start, row, column], -1).flatten(0, 1).double()


def _stream(
    lengths: tuple[int, ...], positions: list[Tensor], axes_dims: tuple[int, ...], device: torch.device
) -> TokenStream:
    sample_index = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return TokenStream(
        segments=Segments.build(lengths, device),
        rotary=_rotary_table(torch.cat(positions), axes_dims, device),
        sample_index=sample_index.to(device, non_blocking=True),
    )


def _rotary_table(position_S3: Tensor, axes_dims: tuple[int, ...], device: torch.device) -> RotaryTable:
    """Angles in float64, as the original computes them, stored as float32."""
    angles = []
    for axis, dim in enumerate(axes_dims):
        frequency = ROPE_THETA ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angles.append(position_S3[:, axis, None] * frequency)
    angle = torch.cat(angles, -1)[:, None]  # [S, E / 2] -> [S, 1, E / 2]
    return RotaryTable(
        cos=angle.cos().float().to(device, non_blocking=True), sin=angle.sin().float().to(device, non_blocking=True)
    )
