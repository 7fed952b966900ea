"""Sizes that decide how much memory training takes: of a model with what is trained on it, and of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch

from ..network.padding import MAX_EXACT_SHAPES, choose_padding, most_stored, next_multiples
from ..network.transformer import Block, Lumina2Config, Lumina2Transformer
from ..quant.eight_bit import MIN_CAPABILITY
from ..quant.precision import MATRIX_FORMATS, Precision
from .block_swap import swappable_tensors

LAYERS = ("attention.qkv", "attention.out", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")


class SampleTokens(NamedTuple):
    """Of one sample, as it may come."""

    captions: tuple[int, ...]
    """Tokens of each caption it may come with, the empty one of caption dropout among them."""
    image: int
    repeats: int
    """Times in one pass over the samples."""


@dataclass(frozen=True, kw_only=True)
class BatchSize:
    """Tokens of a batch."""

    caption_tokens: int
    image_tokens: int
    is_ragged: bool
    """Samples differ in length, so attention repeats grouped heads."""


@dataclass(frozen=True, kw_only=True)
class BlockSize:
    """Of one block, whatever the batch."""

    matrix_bytes: int
    """What can be swapped: frozen matrices."""
    adapted: frozenset[str]
    """Names of its layers that are trained, such as `attention.qkv`."""
    trains_norms: bool
    """Norms or modulation get gradients, which are summed in float32."""


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Of a model with what is trained on it."""

    config: Lumina2Config
    itemsize: int
    """Bytes of an activation."""
    is_8_bit: bool
    """Products may be of 8-bit matrices."""
    unpacked_bytes: int
    """Of the largest matrix while it is multiplied with, where that is not the stored one; else 0."""
    has_dropout: bool
    is_whole: bool
    """The model's own weights are trained."""
    blocks: tuple[BlockSize, ...]
    """In order of execution."""
    fixed_bytes: int
    """What always stays on the device: weights, but for the blocks' frozen matrices, and what processes exchange."""
    gradient_bytes: int
    """Of all gradients that are alive at the end of a backward pass."""
    gradients_stay: bool
    """They are there from the beginning, of a batch before or of a CUDA graph."""
    optimizer_bytes: int


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """What the estimate must know of a device."""

    is_fused: bool
    """Norms and activations are triton's kernels."""
    workspace_bytes: int
    """cuBLAS keeps for itself: one workspace for each pass."""


def measure_model(
    network: Lumina2Transformer,
    precision: Precision,
    *,
    is_whole: bool,
    has_dropout: bool,
    state_bytes: Callable[[int, int], float],
    updates_in_backward: bool,
    gradients_stay: bool,
    exchanged_bytes: int = 0,
) -> ModelSize:
    """Count a model.

    Args:
        network: With its adapter; may be on the meta device.
        precision: How it will be stored.
        is_whole: Its own weights are trained, in that precision; adapters are float32.
        has_dropout: Of the adapter.
        state_bytes: Bytes of an optimizer's state on the device, of a parameter with this many elements of this size.
        updates_in_backward: Each gradient is freed as soon as it is complete.
        gradients_stay: See `ModelSize`.
        exchanged_bytes: Of gradients that are under way to other processes while the next are computed.
    """
    itemsize = precision.dtype.itemsize
    trained_size = itemsize if is_whole else 4
    matrices = [[tensor.shape for tensor in swappable_tensors(block)] for block in network.blocks]
    stored = {shape: _measure_matrix(shape, precision) for shape in set().union(*matrices)}
    trained = [p.numel() for p in network.parameters() if p.requires_grad]
    frozen = sum(p.numel() for p in network.parameters() if not p.requires_grad)
    frozen -= sum(shape.numel() for shapes in matrices for shape in shapes)
    beside = sum(stored[shape].beside for shapes in matrices for shape in shapes)
    gradients = sorted(trained)[-2:] if updates_in_backward else trained
    return ModelSize(
        config=network.config,
        itemsize=itemsize,
        is_8_bit=precision.matrix_dtype in MIN_CAPABILITY,
        unpacked_bytes=max((matrix.unpacked for matrix in stored.values()), default=0),
        has_dropout=has_dropout,
        is_whole=is_whole,
        blocks=tuple(
            _measure_block(block, sum(stored[shape].swappable for shape in shapes))
            for block, shapes in zip(network.blocks, matrices, strict=True)
        ),
        fixed_bytes=frozen * itemsize + beside + sum(trained) * trained_size + exchanged_bytes,
        gradient_bytes=sum(gradients) * trained_size,
        gradients_stay=gradients_stay and not updates_in_backward,
        optimizer_bytes=round(sum(state_bytes(numel, trained_size) for numel in trained)),
    )


class _MatrixBytes(NamedTuple):
    swappable: int
    beside: int
    """What always stays on the device, such as scales."""
    unpacked: int


def _measure_matrix(shape: torch.Size, precision: Precision) -> _MatrixBytes:
    """Bytes of a frozen matrix of a block, as it will be stored."""
    itemsize, dtype = precision.dtype.itemsize, precision.matrix_dtype
    if dtype is None:
        return _MatrixBytes(shape.numel() * itemsize, 0, 0)
    layer = MATRIX_FORMATS[dtype](torch.empty(shape, dtype=precision.dtype, device="meta"), None)
    total = sum(x.nbytes for x in chain(layer.parameters(), layer.buffers()))
    swappable = sum(x.nbytes for x in swappable_tensors(layer))
    unpacked = 0 if dtype in MIN_CAPABILITY else shape.numel() * itemsize
    return _MatrixBytes(swappable, total - swappable, unpacked)


def _measure_block(block: Block, matrix_bytes: int) -> BlockSize:
    trained = [name for name, parameter in block.named_parameters() if parameter.requires_grad]
    return BlockSize(
        matrix_bytes=matrix_bytes,
        adapted=frozenset(layer for layer in LAYERS if any(name.startswith(layer) for name in trained)),
        trains_norms=any(not name.startswith(LAYERS) for name in trained),
    )


def largest_batch(samples: Sequence[SampleTokens], batch_size: int, *, pads: bool) -> BatchSize:
    """The batch with the most tokens that a stream of samples may bring; where it is filled up, no batch has more.

    Args:
        samples: All of them.
        batch_size: Samples of a batch. A sample may come as often as its repeats, and again in the next pass.
        pads: Batches of many sizes are filled up to a few, and samples of a batch to one, see `choose_padding`.
    """
    largest = sorted(samples, key=lambda sample: max(sample.captions) + sample.image, reverse=True)
    chosen: list[tuple[int, int]] = []
    for sample in largest:
        chosen += [(max(sample.captions), sample.image)] * min(2 * sample.repeats, batch_size - len(chosen))
    while len(chosen) < batch_size:  # fewer samples than a batch holds: passes follow one another within it
        chosen += chosen[: batch_size - len(chosen)]
    captions, images = sum(caption for caption, _ in chosen), sum(image for _, image in chosen)
    shapes = {(caption, sample.image) for sample in samples for caption in sample.captions}
    totals = {caption + image for caption, image in shapes}
    if pads and len(shapes) > (MAX_EXACT_SHAPES if batch_size == 1 else 1):
        captions, images = _filled_up(shapes, batch_size, captions, images)
    return BatchSize(
        caption_tokens=captions,
        image_tokens=images,
        is_ragged=batch_size > 1 and len(totals) > 1 and (not pads or _may_differ_much(shapes, batch_size)),
    )


def _filled_up(shapes: Iterable[tuple[int, int]], batch_size: int, captions: int, images: int) -> tuple[int, int]:
    """Most caption and image tokens of a batch of such samples that is filled up.

    Args:
        shapes: Caption and image tokens.
        batch_size: Samples of a batch.
        captions: Caption tokens of the largest batch before.
        images: Image tokens of the same.
    """
    if batch_size == 1:
        largest = max((next_multiples(*shape) for shape in shapes), key=lambda padded: padded.caption + padded.image)
        return largest.caption, largest.image
    longest = next_multiples(*(max(sizes) for sizes in zip(*shapes, strict=True)))
    filled = batch_size * longest.caption
    total = min(filled + batch_size * longest.image, most_stored(captions + images))
    return filled, max(images, total - filled)


def _may_differ_much(shapes: Iterable[tuple[int, int]], batch_size: int) -> bool:
    """Whether samples of a batch can be too different to be filled up."""
    worst = [[max(sizes), *[min(sizes)] * (batch_size - 1)] for sizes in zip(*shapes, strict=True)]
    return choose_padding(*worst) is None
