"""Sizes of a VAE, and from them the shapes of its weights, without building it: importing diffusers takes seconds.

Names are those of the LDM layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import TrainerError
from ..weights.foreign_models import describe_foreign
from ..weights.module_weights import Shapes
from .vae_names import NUM_LEVELS

LATENT_CHANNELS = 16
NUM_GROUPS = 32
"""Groups of every group norm; ComfyUI and the LDM layout know no other number."""
PICTURE_CHANNELS = 3

Named = Iterator[tuple[str, tuple[int, ...]]]
"""Name and shape."""


@dataclass(frozen=True, kw_only=True)
class VaeSizes:
    """What differs between VAEs of this kind."""

    channels: tuple[int, ...]
    """By level, from the picture to the latents."""
    layers_per_block: int
    """Residual blocks of a level of the encoder; the decoder has one more."""
    has_quant_conv: bool
    has_post_quant_conv: bool

    def shapes(self) -> Shapes:
        """Shape of every weight."""
        return dict(self._encoder()) | dict(self._decoder())

    def _encoder(self) -> Named:
        first, last = self.channels[0], self.channels[-1]
        yield from _conv("encoder.conv_in", PICTURE_CHANNELS, first)
        before = first
        for level, width in enumerate(self.channels):
            for number in range(self.layers_per_block):
                yield from _residual(f"encoder.down.{level}.block.{number}", before, width)
                before = width
            if level < len(self.channels) - 1:
                yield from _conv(f"encoder.down.{level}.downsample.conv", width, width)
        yield from _middle("encoder", last)
        yield from _norm("encoder.norm_out", last)
        yield from _conv("encoder.conv_out", last, 2 * LATENT_CHANNELS)
        if self.has_quant_conv:
            yield from _conv("quant_conv", 2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, size=1)

    def _decoder(self) -> Named:
        first, last = self.channels[0], self.channels[-1]
        if self.has_post_quant_conv:
            yield from _conv("post_quant_conv", LATENT_CHANNELS, LATENT_CHANNELS, size=1)
        yield from _conv("decoder.conv_in", LATENT_CHANNELS, last)
        yield from _middle("decoder", last)
        before = last
        for level, width in reversed(list(enumerate(self.channels))):
            for number in range(self.layers_per_block + 1):
                yield from _residual(f"decoder.up.{level}.block.{number}", before, width)
                before = width
            if level > 0:
                yield from _conv(f"decoder.up.{level}.upsample.conv", width, width)
        yield from _norm("decoder.norm_out", first)
        yield from _conv("decoder.conv_out", first, PICTURE_CHANNELS)


def infer_sizes(what: str, shapes: Shapes) -> VaeSizes:
    """Channels and residual blocks from stored shapes, of which some may be missing or wrong.

    Raises:
        TrainerError: It is no VAE, or not one with Lumina2's latents.
    """
    for name in ("decoder.conv_in.weight", "encoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight"):
        if len(shapes.get(name, ())) != 4:
            foreign = describe_foreign(shapes)
            is_other = f" but {foreign}" if foreign and foreign != "a VAE" else ""
            raise TrainerError(f"{what} is no VAE of Lumina2{is_other}: choose the Flux VAE, such as ae.safetensors")
    latent_channels = shapes["decoder.conv_in.weight"][1]
    channels = tuple(
        shapes[name][0]
        for name in (f"encoder.down.{level}.block.0.conv1.weight" for level in range(NUM_LEVELS + 1))
        if name in shapes
    )
    if latent_channels != LATENT_CHANNELS or len(channels) != NUM_LEVELS:
        raise TrainerError(
            f"{what} has {latent_channels} latent channels on {len(channels)} levels where Lumina2 has"
            f" {LATENT_CHANNELS} on {NUM_LEVELS}: choose the Flux VAE, such as ae.safetensors"
        )
    if any(count % NUM_GROUPS for count in channels):
        raise TrainerError(f"{what} has {list(channels)} channels: each must be a multiple of {NUM_GROUPS}")
    return VaeSizes(
        channels=channels,
        layers_per_block=sum(f"encoder.down.0.block.{i}.conv1.weight" in shapes for i in range(len(shapes))),
        has_quant_conv="quant_conv.weight" in shapes,
        has_post_quant_conv="post_quant_conv.weight" in shapes,
    )


def _conv(name: str, before: int, after: int, *, size: int = 3) -> Named:
    yield f"{name}.weight", (after, before, size, size)
    yield f"{name}.bias", (after,)


def _norm(name: str, width: int) -> Named:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _residual(name: str, before: int, after: int) -> Named:
    yield from _norm(f"{name}.norm1", before)
    yield from _conv(f"{name}.conv1", before, after)
    yield from _norm(f"{name}.norm2", after)
    yield from _conv(f"{name}.conv2", after, after)
    if before != after:
        yield from _conv(f"{name}.nin_shortcut", before, after, size=1)


def _middle(side: str, width: int) -> Named:
    yield from _residual(f"{side}.mid.block_1", width, width)
    yield from _norm(f"{side}.mid.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        yield from _conv(f"{side}.mid.attn_1.{part}", width, width, size=1)
    yield from _residual(f"{side}.mid.block_2", width, width)
