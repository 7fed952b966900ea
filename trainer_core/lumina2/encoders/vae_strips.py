"""Runs the VAE's encoder or decoder in strips of rows, with little memory and to the same result as whole.

Tiles would show seams or need blending, as each has group norms of its own. Here layer follows layer over the whole
picture: a convolution reads a strip of rows and one row around it, and while a strip is written, the mean and variance
of its channels are taken, so that the next norm knows those of the whole picture. Beside a few strips only a layer's
input and output exist, and what of them is too large for the device waits in the computer's memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# Shapes: C channels, H rows of the picture, R rows of a strip, W columns, N tokens = rows * columns, G groups,
# K channels of a group, S strips.

PIECE_BYTES = 64 * 2**20
"""Of the computer's memory pinned at once, or a row's bytes if these are more."""


@dataclass(frozen=True, kw_only=True)
class StripPlan:
    """How a picture is computed in strips."""

    strip_bytes: int
    """The size of a strip of a layer's input or output, the larger; at least a row of each is computed at once."""
    kept_bytes: float
    """Activations up to this size stay on the device, larger ones go to the computer's memory."""

    def strips(self, height: int, row_bytes: int, *, multiple: int = 1) -> Iterator[tuple[int, int]]:
        """First row and row after the last of each strip, the number of rows a multiple of a number."""
        num_rows = max(1, self.strip_bytes // (row_bytes * multiple)) * multiple
        return ((top, min(top + num_rows, height)) for top in range(0, height, num_rows))


@torch.no_grad()
def run_in_strips(part: Any, inputs_1CHW: Tensor, plan: StripPlan) -> Tensor:
    """What the VAE's encoder or decoder returns, computed in strips.

    Args:
        part: The encoder or decoder.
        inputs_1CHW: [1, C, H, W] on its device, of its dtype.
        plan: See `choose_strips`.
    """
    rows = _Rows([inputs_1CHW[0].transpose(0, 1)], inputs_1CHW.device)  # [1, C, H, W] -> [H, C, W]
    for layer in list_layers(part):
        rows = LAYERS[type(layer).__name__](layer, rows, plan)
    rows = _store(_convolve(rows, part.conv_out, rows.take_activation(part.conv_norm_out), plan), rows.device, plan)
    return rows.read(0, rows.height).contiguous()


def list_layers(part: Any) -> list[Any]:
    """Layers in their order, but for the last norm and convolution."""
    is_encoder = hasattr(part, "down_blocks")
    sides = [part.conv_in] if is_encoder else []
    for block in part.down_blocks if is_encoder else part.up_blocks:
        sides += [*block.resnets, *((block.downsamplers if is_encoder else block.upsamplers) or ())]
    first, *resnets = part.mid_block.resnets
    middle = [first]
    for attention, resnet in zip(part.mid_block.attentions, resnets, strict=True):
        middle += [attention, resnet]
    return [*sides, *middle] if is_encoder else [part.conv_in, *middle, *sides]


class _Rows:
    """Activations of one picture, rows first so that a strip is one piece of memory, with what a norm must know."""

    def __init__(self, pieces_RCW: Sequence[Tensor], device: torch.device) -> None:
        """
        Args:
            pieces_RCW: [R, C, W] each, the same number of rows but in the last: on the device or in the computer's
                memory.
            device: Where it is computed.
        """
        self._pieces_RCW = pieces_RCW
        self._moments: list[tuple[int, Tensor, Tensor]] = []  # rows, means [C] and variances [C] of each strip written
        self.device = device
        self.height = sum(map(len, pieces_RCW))
        _, self.channels, self.width = pieces_RCW[0].shape
        self.dtype = pieces_RCW[0].dtype
        self.row_bytes = pieces_RCW[0][0].numel() * pieces_RCW[0].element_size()

    def read(self, top: int, bottom: int) -> Tensor:
        """[1, C, R, W] on the device; rows below the last are left out."""
        strip_RCW = torch.empty(
            min(bottom, self.height) - top, self.channels, self.width, dtype=self.dtype, device=self.device
        )
        for piece_RCW, rows in self._locate(top, top + len(strip_RCW)):
            strip_RCW[rows].copy_(piece_RCW, non_blocking=True)
        return strip_RCW.transpose(0, 1)[None]  # [R, C, W] -> [1, C, R, W]

    def write(self, top: int, strip_1CRW: Tensor) -> None:
        """Store a strip; strips must not overlap."""
        variance_C, mean_C = torch.var_mean(strip_1CRW.float(), dim=(0, 2, 3), correction=0)
        strip_RCW = strip_1CRW[0].transpose(0, 1)  # [1, C, R, W] -> [R, C, W]
        self._moments.append((len(strip_RCW), mean_C, variance_C))
        for piece_RCW, rows in self._locate(top, top + len(strip_RCW)):
            piece_RCW.copy_(strip_RCW[rows], non_blocking=True)

    def _locate(self, top: int, bottom: int) -> Iterator[tuple[Tensor, slice]]:
        """Where rows lie: parts of pieces, and which of the rows each holds."""
        piece_rows = len(self._pieces_RCW[0])
        for number in range(top // piece_rows, -(-bottom // piece_rows)):
            start = number * piece_rows
            first, end = max(top, start), min(bottom, start + piece_rows)
            yield self._pieces_RCW[number][first - start : end - start], slice(first - top, end - top)

    def take_norm(self, norm: nn.GroupNorm) -> Callable[[Tensor], Tensor]:
        """The norm of strips with the statistics of all that is written; what is written next makes new ones."""
        num_rows, means, variances = zip(*self._moments, strict=True)
        self._moments = []
        share_S11 = torch.tensor(num_rows, device=self.device)[:, None, None] / sum(num_rows)
        share_S11 = share_S11 * norm.num_groups / norm.num_channels
        mean_SGK, variance_SGK = (torch.stack(x).unflatten(1, (norm.num_groups, -1)) for x in (means, variances))
        mean_1G1 = (share_S11 * mean_SGK).sum((0, 2), keepdim=True)
        # The variance of all is the mean of the variances and the variance of the means (Chan, Golub and LeVeque 1979).
        variance_1G1 = (share_S11 * (variance_SGK + (mean_SGK - mean_1G1) ** 2)).sum((0, 2), keepdim=True)
        scale_1GK = (variance_1G1 + norm.eps).rsqrt() * norm.weight.float().unflatten(0, (norm.num_groups, -1))
        shift_1GK = norm.bias.float().unflatten(0, (norm.num_groups, -1)) - mean_1G1 * scale_1GK
        scale_C11, shift_C11 = (x.reshape(-1, 1, 1) for x in (scale_1GK, shift_1GK))
        return lambda strip_1CRW: torch.addcmul(shift_C11, strip_1CRW.float(), scale_C11).to(strip_1CRW.dtype)

    def take_activation(self, norm: nn.GroupNorm) -> Callable[[Tensor], Tensor]:
        """The norm and the SiLU after it; see `take_norm`."""
        normalise = self.take_norm(norm)
        return lambda strip_1CRW: F.silu(normalise(strip_1CRW), inplace=True)


def _store(strips: Iterable[tuple[int, int, Tensor]], device: torch.device, plan: StripPlan) -> _Rows:
    """Strips as rows of a new activation.

    Args:
        strips: The first row, the height of the whole and the strip.
        device: Where they are computed.
        plan: Says where they are kept.
    """
    rows = None
    for top, height, strip_1CRW in strips:
        if rows is None:
            rows = _Rows(_allocate(height, strip_1CRW[0, :, 0], plan), device)
        rows.write(top, strip_1CRW)
    assert rows is not None, "a picture has rows"
    return rows


def _allocate(height: int, like_CW: Tensor, plan: StripPlan) -> list[Tensor]:
    """Room for rows like one: on the device in one piece, else pinned in pieces of one size, so that PyTorch, which
    keeps pinned memory and rounds it up to powers of two, has a use for each again."""
    row_bytes = like_CW.numel() * like_CW.element_size()
    if height * row_bytes <= plan.kept_bytes:
        return [like_CW.new_empty(height, *like_CW.shape)]
    piece_rows = max(1, PIECE_BYTES // row_bytes)
    sizes = [min(piece_rows, height - top) for top in range(0, height, piece_rows)]
    return [_take_piece(size * like_CW.numel(), like_CW).view(size, *like_CW.shape) for size in sizes]


def _take_piece(num_elements: int, like: Tensor) -> Tensor:
    if like.is_cuda:
        whole_piece = max(num_elements, PIECE_BYTES // like.element_size())
        try:
            return torch.empty(whole_piece, dtype=like.dtype, pin_memory=True)[:num_elements]
        except RuntimeError as error:
            logger.debug("So much memory cannot be pinned: copies are slower", exc_info=error)
    return torch.empty(num_elements, dtype=like.dtype)


def _convolve(
    rows: _Rows, conv: nn.Conv2d, prepare: Callable[[Tensor], Tensor], plan: StripPlan, *, scale: int = 1
) -> Iterator[tuple[int, int, Tensor]]:
    """Strips of a convolution of 3 x 3, padded by one; rows that have been yielded may be overwritten.

    Args:
        rows: Its input.
        conv: The convolution.
        prepare: What comes before it, row by row.
        plan: Says how large strips are.
        scale: Rows that `prepare` makes of one.
    """
    height = rows.height
    row_bytes = max(rows.row_bytes, rows.row_bytes * conv.out_channels * scale**2 // rows.channels)
    above_1C1W: Tensor | None = None

    def compute(top: int, bottom: int) -> Tensor:
        nonlocal above_1C1W
        num_rows = scale * (bottom - top)
        strip_1CRW = prepare(rows.read(top, bottom + 1))[:, :, : num_rows + 1]
        edge_1C1W = torch.zeros_like(strip_1CRW[:, :, :1])
        below = [edge_1C1W] if bottom == height else []
        padded_1CRW = torch.cat([edge_1C1W if above_1C1W is None else above_1C1W, strip_1CRW, *below], dim=2)
        del strip_1CRW
        above_1C1W = padded_1CRW[:, :, num_rows : num_rows + 1].clone()
        return F.conv2d(padded_1CRW, conv.weight, conv.bias, padding=(0, 1))

    for top, bottom in plan.strips(height, row_bytes):
        yield scale * top, scale * height, compute(top, bottom)


def _run_conv(layer: Any, rows: _Rows, plan: StripPlan) -> _Rows:
    return _store(_convolve(rows, layer, lambda strip: strip, plan), rows.device, plan)


def _run_resnet(layer: Any, rows: _Rows, plan: StripPlan) -> _Rows:
    hidden = _store(_convolve(rows, layer.conv1, rows.take_activation(layer.norm1), plan), rows.device, plan)
    for top, _, strip_1CRW in _convolve(hidden, layer.conv2, hidden.take_activation(layer.norm2), plan):
        residual_1CRW = rows.read(top, top + strip_1CRW.shape[2])
        if layer.conv_shortcut is not None:
            residual_1CRW = layer.conv_shortcut(residual_1CRW.contiguous())
        hidden.write(top, strip_1CRW.add_(residual_1CRW))
    return hidden


def _run_upsampling(layer: Any, rows: _Rows, plan: StripPlan) -> _Rows:
    double = partial(F.interpolate, scale_factor=2.0, mode="nearest")
    return _store(_convolve(rows, layer.conv, double, plan, scale=2), rows.device, plan)


def _run_downsampling(layer: Any, rows: _Rows, plan: StripPlan) -> _Rows:
    """The encoder pads below and on the right only, so that a strip needs one row below it."""
    height = rows.height
    assert height % 2 == 0, f"{height} rows cannot be halved"

    def compute(top: int, bottom: int) -> Tensor:
        strip_1CRW = F.pad(rows.read(top, bottom + 1), (0, 1, 0, int(bottom == height)))
        return F.conv2d(strip_1CRW, layer.conv.weight, layer.conv.bias, stride=2)

    strips = plan.strips(height, rows.row_bytes, multiple=2)
    return _store(((top // 2, height // 2, compute(top, bottom)) for top, bottom in strips), rows.device, plan)


def _run_attention(layer: Any, rows: _Rows, plan: StripPlan) -> _Rows:
    """Attention of every latent to every other, of some queries at a time.

    Plain products: PyTorch's fused kernels take one head of 512 only in some versions, and where none does, all scores
    at once would be 16 GiB for a picture of 2048 x 2048.
    """
    assert layer.heads == 1, "a VAE's attention has one head"
    height, channels, width = rows.height, rows.channels, rows.width
    normalise = rows.take_norm(layer.group_norm)
    strips = list(plan.strips(height, rows.row_bytes))
    keys_NC, values_NC = (torch.empty(height * width, channels, dtype=rows.dtype, device=rows.device) for _ in range(2))

    def read_tokens(top: int, bottom: int) -> Tensor:
        return normalise(rows.read(top, bottom))[0].flatten(1).T  # [1, C, R, W] -> [R * W, C]

    for top, bottom in strips:
        tokens_NC = read_tokens(top, bottom)
        keys_NC[top * width : bottom * width] = layer.to_k(tokens_NC)
        values_NC[top * width : bottom * width] = layer.to_v(tokens_NC)
    num_queries = max(1, plan.strip_bytes // (len(keys_NC) * keys_NC.element_size()))
    for top, bottom in strips:
        queries_NC = layer.to_q(read_tokens(top, bottom)) * channels**-0.5
        mixed_NC = torch.cat(
            [torch.softmax(q_NC @ keys_NC.T, dim=-1) @ values_NC for q_NC in queries_NC.split(num_queries)]
        )
        strip_1CRW = layer.to_out[0](mixed_NC).T.unflatten(1, (-1, width))[None]  # [R * W, C] -> [1, C, R, W]
        rows.write(top, strip_1CRW + rows.read(top, bottom))
    return rows


LAYERS: dict[str, Callable[[Any, _Rows, StripPlan], _Rows]] = {
    "Conv2d": _run_conv,
    "ResnetBlock2D": _run_resnet,
    "Attention": _run_attention,
    "Upsample2D": _run_upsampling,
    "Downsample2D": _run_downsampling,
}
"""By the name of diffusers' class, which is not imported for it."""
SCALES = {"Upsample2D": 2, "Downsample2D": 0.5}
"""A layer's output's height and width over its input's, where they differ."""
