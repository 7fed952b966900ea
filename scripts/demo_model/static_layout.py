"""A TokenLayout of fixed shape, built on the device, so that the training step compiles once and never waits.

Captions differ in length from batch to batch. Here the caption tokens of a batch are filled up to a fixed number by
segments of their own, which belong to no sample and come last in every sequence; nothing looks at them.

Shape suffixes: B samples, G segments (samples and filling), L caption tokens with filling, T image tokens, S both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from lumina2_trainer.trainer_core.lumina2.network.layout import RotaryTable, TokenLayout, TokenStream
from lumina2_trainer.trainer_core.lumina2.ops.attention import Segments
from torch import Tensor

FILLING_SEGMENT = 64
"""Tokens of a filling segment at most, so that none is longer than a sample."""


@dataclass(frozen=True, kw_only=True)
class RotaryRows:
    """Rotation of every token that can occur: first captions by position, then images by caption length and patch."""

    table: RotaryTable
    max_caption_tokens: int
    num_patches: int

    @property
    def num_caption_rows(self) -> int:
        return max(self.max_caption_tokens, FILLING_SEGMENT)

    @classmethod
    def build(
        cls, max_caption_tokens: int, image_size: tuple[int, int], axes_dims: tuple[int, ...], device: torch.device
    ) -> RotaryRows:
        """Take the rows from ordinary layouts of one sample each.

        Args:
            max_caption_tokens: Of one caption.
            image_size: (rows, columns) of every picture in patches.
            axes_dims: Head dimensions rotated by caption position, row and column.
            device: Where the rows are put.
        """

        def layout(num_tokens: int) -> TokenLayout:
            return TokenLayout.build((num_tokens,), (image_size,), axes_dims, torch.device("cpu"))

        images = [layout(num_tokens).image.rotary for num_tokens in range(1, max_caption_tokens + 1)]
        tables = [layout(max(max_caption_tokens, FILLING_SEGMENT)).caption.rotary, *images]
        return cls(
            table=RotaryTable(
                cos=torch.cat([table.cos for table in tables]).to(device),
                sin=torch.cat([table.sin for table in tables]).to(device),
            ),
            max_caption_tokens=max_caption_tokens,
            num_patches=image_size[0] * image_size[1],
        )


def build_static_layout(lengths_B: Tensor, num_caption_tokens: int, rows: RotaryRows) -> TokenLayout:
    """Lay out a batch of pictures of one size.

    Args:
        lengths_B: [B] int64 on the device, caption tokens of each sample; their sum is at most `num_caption_tokens`.
        num_caption_tokens: Caption tokens with filling.
        rows: Rotations, of the same device.
    """
    device, patches, num_samples = lengths_B.device, rows.num_patches, lengths_B.shape[0]
    num_fillings = -(-(num_caption_tokens - num_samples) // FILLING_SEGMENT)
    left_over = num_caption_tokens - lengths_B.sum()
    fillings = (left_over - FILLING_SEGMENT * torch.arange(num_fillings, device=device)).clamp(0, FILLING_SEGMENT)
    caption_G = torch.cat([lengths_B, fillings])
    joint_G = torch.cat([lengths_B + patches, fillings])

    segment_L, position_L = members(caption_G, num_caption_tokens)
    image_T = torch.arange(num_samples * patches, device=device)
    sample_T = image_T // patches
    caption_index_L = torch.arange(num_caption_tokens, device=device) + patches * segment_L.clamp(max=num_samples)
    image_index_T = image_T + lengths_B.cumsum(0)[sample_T]
    image_row_T = rows.num_caption_rows + (lengths_B[sample_T] - 1) * patches + image_T % patches
    row_S = torch.cat([position_L, image_row_T])
    row_S = row_S.index_copy(0, torch.cat([caption_index_L, image_index_T]), row_S)
    image_segments = Segments(
        lengths=(patches,) * num_samples,
        offsets=torch.arange(num_samples + 1, device=device, dtype=torch.int32) * patches,
        padded_index_BN=None,
        packed_index_S=None,
        mask_B11N=None,
    )
    return TokenLayout(
        caption=_stream(caption_G, rows.num_caption_rows, position_L, num_samples, rows.table),
        image=TokenStream(
            segments=image_segments,
            rotary=_take(rows.table, image_row_T),
            sample_index=sample_T,
            num_tokens_B=torch.full((num_samples,), float(patches), device=device),
        ),
        joint=_stream(joint_G, max(rows.max_caption_tokens + patches, FILLING_SEGMENT), row_S, num_samples, rows.table),
        caption_index_L=caption_index_L,
        image_index_T=image_index_T,
    )


def members(lengths_G: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Segment of each of `total` tokens, and its position in that segment."""
    ends_G = lengths_G.cumsum(0)
    token = torch.arange(total, device=lengths_G.device)
    segment = torch.searchsorted(ends_G, token, right=True)
    return segment, token - (ends_G - lengths_G)[segment]


def _stream(lengths_G: Tensor, longest: int, row_S: Tensor, num_samples: int, table: RotaryTable) -> TokenStream:
    total = row_S.shape[0]
    segment, position = members(lengths_G, total)
    offsets = F.pad(lengths_G.cumsum(0), (1, 0))
    position_N = torch.arange(longest, device=lengths_G.device)
    segments = Segments(
        lengths=(longest,) * lengths_G.shape[0],
        offsets=offsets.int(),
        padded_index_BN=(offsets[:-1, None] + position_N).clamp(max=total - 1),
        packed_index_S=segment * longest + position,
        # An empty segment keeps one key: a softmax over none is not a number.
        mask_B11N=(position_N < lengths_G[:, None].clamp(min=1))[:, None, None],
    )
    return TokenStream(
        segments=segments,
        rotary=_take(table, row_S),
        sample_index=segment.clamp(max=num_samples - 1),
        num_tokens_B=lengths_G.float(),
    )


def _take(table: RotaryTable, row: Tensor) -> RotaryTable:
    return RotaryTable(cos=table.cos[row], sin=table.sin[row])
