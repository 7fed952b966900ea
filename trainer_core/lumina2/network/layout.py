"""How a batch of samples becomes one token sequence: patches, packing, and the rotary tables that go with it.

Shape suffixes: S caption and image tokens of all samples, L caption tokens, T image tokens, E head size.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.attention import Segments

ROPE_THETA = 10000.0
MAX_CAPTION_TOKENS = 299
"""RoPE tables of the original hold 300 caption positions and the image takes position L."""
POSITIONS_AT_ONCE = 512
"""Positions whose angles are computed together: every caption, and pictures of up to 8192 pixels a side."""


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
    num_tokens_B: Tensor
    """[B] float32, tokens of each sample without padding."""

    def mean_by_sample(self, x_S: Tensor) -> Tensor:
        """Mean over each sample's tokens, without padding: [tokens] -> [B]."""
        if self.segments.is_padding_S is not None:
            x_S = x_S.masked_fill(self.segments.is_padding_S, 0)
        return torch.stack([x.sum() for x in x_S.split(self.segments.lengths)]) / self.num_tokens_B


@dataclass(frozen=True, kw_only=True)
class PaddedLengths:
    """Tokens that every sample of a batch takes up, so that batches of many sizes have few shapes."""

    caption: int
    image: int


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
        padded: PaddedLengths | None = None,
    ) -> TokenLayout:
        """Lay out a batch; samples may differ in caption length and picture size.

        Args:
            caption_lengths: Caption tokens of each sample, 1 to 299.
            image_sizes: (rows, columns) of each sample in patches of 2 x 2 latents.
            axes_dims: Head dimensions rotated by caption position, row and column.
            device: Where the tables are put.
            padded: Tokens that captions and images are filled up to; None leaves them as they are.
        """
        assert len(caption_lengths) == len(image_sizes), "one caption for each image"
        assert max(caption_lengths) <= MAX_CAPTION_TOKENS, f"a caption has more than {MAX_CAPTION_TOKENS} tokens"
        parts = [
            (_caption_positions(length), _image_positions(length, rows, columns))
            for length, (rows, columns) in zip(caption_lengths, image_sizes, strict=True)
        ]
        caption_fill, image_fill = (None, None) if padded is None else (padded.caption, padded.image)
        captions = [_Positions.filled(caption, caption_fill) for caption, _ in parts]
        images = [_Positions.filled(image, image_fill) for _, image in parts]
        joint, is_caption = zip(*[_join(*pair) for pair in zip(captions, images, strict=True)], strict=True)
        is_caption_S = torch.cat(is_caption)
        return cls(
            caption=_stream(captions, axes_dims, device, is_padded=padded is not None),
            image=_stream(images, axes_dims, device, is_padded=padded is not None),
            joint=_stream(joint, axes_dims, device, is_padded=padded is not None),
            caption_index_L=is_caption_S.nonzero().flatten().to(device, non_blocking=True),
            image_index_T=(~is_caption_S).nonzero().flatten().to(device, non_blocking=True),
        )


@dataclass(frozen=True, kw_only=True)
class _Positions:
    """Where the tokens of one sample are, and which of them are padding."""

    position: Tensor
    """[tokens, 3] float64, caption position, row and column."""
    is_padding: Tensor
    """[tokens] bool."""

    @classmethod
    def filled(cls, position: Tensor, length: int | None) -> _Positions:
        """Fill up to a length, with padding at the origin."""
        missing = (length or len(position)) - len(position)
        assert missing >= 0, f"{len(position)} tokens do not fit into {length}"
        is_padding = torch.zeros(len(position) + missing, dtype=torch.bool)
        is_padding[len(position) :] = True
        return cls(position=F.pad(position, (0, 0, 0, missing)), is_padding=is_padding)


def _join(caption: _Positions, image: _Positions) -> tuple[_Positions, Tensor]:
    """Both behind one another with their padding at the end, and which tokens are the caption's."""
    is_padding = torch.cat([caption.is_padding, image.is_padding])
    order = is_padding.int().argsort(stable=True)
    position = torch.cat([caption.position, image.position])
    return _Positions(position=position[order], is_padding=is_padding[order]), order < len(caption.position)


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
    samples: Sequence[_Positions], axes_dims: tuple[int, ...], device: torch.device, *, is_padded: bool
) -> TokenStream:
    lengths = tuple(len(sample.position) for sample in samples)
    is_padding_S = torch.cat([sample.is_padding for sample in samples])
    num_tokens_B = torch.tensor([float((~sample.is_padding).sum()) for sample in samples])
    sample_index = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return TokenStream(
        segments=Segments.build(lengths, device, is_padding_S if is_padded else None),
        rotary=_rotary_table(torch.cat([sample.position for sample in samples]), axes_dims, device),
        sample_index=sample_index.to(device, non_blocking=True),
        num_tokens_B=num_tokens_B.to(device, non_blocking=True),
    )


def _rotary_table(position_S3: Tensor, axes_dims: tuple[int, ...], device: torch.device) -> RotaryTable:
    """Angles in float64, as the original computes them, stored as float32."""
    position_3S = position_S3.T.long().contiguous()
    size = -(-(int(position_3S.max()) + 1) // POSITIONS_AT_ONCE) * POSITIONS_AT_ONCE
    cosines, sines = [], []
    for dim, position_S in zip(axes_dims, position_3S, strict=True):
        cos_PE, sin_PE = _axis_tables(dim, size)
        cosines.append(cos_PE.index_select(0, position_S))
        sines.append(sin_PE.index_select(0, position_S))
    cos, sin = (torch.cat(parts, -1)[:, None] for parts in (cosines, sines))  # [S, E / 2] -> [S, 1, E / 2]
    return RotaryTable(cos=cos.to(device, non_blocking=True), sin=sin.to(device, non_blocking=True))


@functools.cache
def _axis_tables(dim: int, size: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of an axis at every position, [size, dim / 2] each: positions are few and come again."""
    frequency = ROPE_THETA ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = torch.arange(size, dtype=torch.float64)[:, None] * frequency
    return angle.cos().float(), angle.sin().float()


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
