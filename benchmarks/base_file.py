"""An all-in-one base of real size with random weights, written as fast as the disk takes it."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from io import BufferedWriter
from pathlib import Path

import torch
from lumina2_trainer.trainer_core.lumina2.encoders.text_files import (
    ALL_IN_ONE_TEXT_PREFIX,
    ALL_IN_ONE_TOKENIZER_NAME,
    GemmaSizes,
    find_text_files,
)
from lumina2_trainer.trainer_core.lumina2.encoders.vae import ALL_IN_ONE_VAE_PREFIX
from lumina2_trainer.trainer_core.lumina2.encoders.vae_names import to_ldm_state_dict
from lumina2_trainer.trainer_core.lumina2.models.base_files import DEMO_MODEL_PATH
from lumina2_trainer.trainer_core.lumina2.models.checkpoint import ALL_IN_ONE_PREFIX
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Config, Lumina2Transformer

GEMMA_2_2B = GemmaSizes(
    vocab_size=256000,
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
)
SHORT_GEMMA = replace(GEMMA_2_2B, vocab_size=2048, num_hidden_layers=1)
"""As wide as the real one and 5 GB smaller, for what only reads its text states."""
FLUX_VAE_CHANNELS = (128, 256, 512, 512)
WEIGHT_SCALE = 0.02
"""Standard deviation of every weight but norms."""
NUM_DRAWN = 2**25
"""Values that are drawn; the weights are this sequence over and over."""

Shapes = Mapping[str, tuple[int, ...]]


def ensure_base_file(folder: Path, *, num_layers: int, text_encoder: GemmaSizes = GEMMA_2_2B) -> Path:
    """The file of a Lumina2 with a Gemma2 and the Flux VAE, written if it is not there yet.

    Args:
        folder: Where it lies.
        num_layers: Of the transformer; 26 make the real one of 10.6 GB.
        text_encoder: Sizes of Gemma2.
    """
    path = folder / f"lumina2-{num_layers}-gemma-{text_encoder.num_hidden_layers}-layers.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            write_base_file(temporary, Lumina2Config(num_layers=num_layers), text_encoder, FLUX_VAE_CHANNELS)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def write_base_file(
    path: Path, transformer: Lumina2Config, text_encoder: GemmaSizes, vae_channels: tuple[int, ...]
) -> None:
    """Write an all-in-one file in bfloat16 without holding it in memory.

    Args:
        path: The `.safetensors` file.
        transformer: Sizes of the network.
        text_encoder: Sizes of Gemma2; its vocabulary must hold the demo's tokenizer, which goes with it.
        vae_channels: Of the VAE's four levels.
    """
    parts = {
        ALL_IN_ONE_PREFIX: _transformer_shapes(transformer),
        ALL_IN_ONE_TEXT_PREFIX: text_encoder.shapes(),
        ALL_IN_ONE_VAE_PREFIX: _vae_shapes(vae_channels),
    }
    shapes = {f"{prefix}{name}": shape for prefix, part in parts.items() for name, shape in part.items()}
    tokenizer = find_text_files(DEMO_MODEL_PATH).read_spiece()
    with path.open("wb") as file:
        _write_header(file, shapes, len(tokenizer))
        noise = _Noise()
        for name, shape in shapes.items():
            # Gemma2's norms scale by 1 + weight.
            is_scale = name.endswith("weight") and len(shape) == 1 and not name.startswith(ALL_IN_ONE_TEXT_PREFIX)
            for chunk in _ones(shape) if is_scale else noise.take(math.prod(shape)):
                file.write(chunk)
        file.write(tokenizer)


def _transformer_shapes(config: Lumina2Config) -> Shapes:
    with torch.device("meta"):
        return {name: tuple(weight.shape) for name, weight in Lumina2Transformer(config).state_dict().items()}


def _vae_shapes(channels: tuple[int, ...]) -> Shapes:
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            block_out_channels=channels,
            layers_per_block=2,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    return {name: tuple(weight.shape) for name, weight in to_ldm_state_dict(vae.state_dict()).items()}


def _write_header(file: BufferedWriter, shapes: Shapes, tokenizer_size: int) -> None:
    """The header of the safetensors format: its length, then dtype, shape and place of each tensor as JSON."""
    header, position = {}, 0
    for name, shape in shapes.items():
        end = position + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    place = [position, position + tokenizer_size]
    header[ALL_IN_ONE_TOKENIZER_NAME] = {"dtype": "U8", "shape": [tokenizer_size], "data_offsets": place}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)


def _to_bytes(values: torch.Tensor) -> memoryview:
    return values.to(torch.bfloat16).view(torch.uint8).numpy().data


def _ones(shape: tuple[int, ...]) -> Iterator[memoryview]:
    yield _to_bytes(torch.ones(shape))


class _Noise:
    """An endless sequence of random bfloat16 values, as bytes."""

    def __init__(self) -> None:
        values = torch.randn(NUM_DRAWN, generator=torch.Generator().manual_seed(0))
        self._bytes = _to_bytes(values.mul_(WEIGHT_SCALE))
        self._position = 0

    def take(self, count: int) -> Iterator[memoryview]:
        """The next `count` values, in pieces."""
        left = 2 * count
        while left:
            piece = self._bytes[self._position : self._position + left]
            self._position = (self._position + len(piece)) % len(self._bytes)
            left -= len(piece)
            yield piece
