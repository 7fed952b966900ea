"""What every trainer is given: the same random weights, the same samples, and a fixed batch to compare losses on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Config, Lumina2Transformer
from torch import Tensor

from .cases import CAPTION_LENGTHS, SIZES, Case

FIXED_TIME = 0.4
"""t of the batch whose loss is compared."""
CHANNELS = 16
PIXELS_PER_LATENT = 8


@dataclass(frozen=True, kw_only=True)
class Checkouts:
    """Source trees of the trainers that are no packages; None where there is none."""

    comfyui: Path | None = None
    sd_scripts: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a trainer is prepared for."""

    case: Case
    device: torch.device
    scratch_dir: Path
    """Empty folder that is removed after the measurement."""
    checkouts: Checkouts

    @property
    def config(self) -> Lumina2Config:
        """Sizes of the network."""
        return SIZES[self.case.size]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Random latents and text states of one picture."""

    latents: Tensor
    """[16, height / 8, width / 8] float32 on the CPU, scaled for the network."""
    prompt_embeds: Tensor
    """[tokens, width] float32 on the CPU."""


def make_sample(width: int, height: int, num_tokens: int, text_width: int, generator: torch.Generator) -> Sample:
    """Draw a sample.

    Args:
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        num_tokens: Length of its caption.
        text_width: Of the text encoder.
        generator: On the CPU.
    """
    shape = (CHANNELS, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
    return Sample(
        latents=torch.randn(shape, generator=generator),
        prompt_embeds=torch.randn(num_tokens, text_width, generator=generator),
    )


def make_samples(case: Case) -> list[Sample]:
    """The batch of a case."""
    generator = torch.Generator().manual_seed(1)
    lengths, text_width = CAPTION_LENGTHS[case.size], SIZES[case.size].cap_feat_dim
    return [
        make_sample(case.resolution, case.resolution, lengths[i % len(lengths)], text_width, generator)
        for i in range(case.batch_size)
    ]


def fixed_noise(samples: list[Sample]) -> list[Tensor]:
    """Noise of the batch whose loss is compared, [16, height / 8, width / 8] of each sample."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(sample.latents.shape, generator=generator) for sample in samples]


def random_weights(config: Lumina2Config, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Weights by native names, drawn on the device: matrices with standard deviation 0.02, norms around 1."""
    with torch.device("meta"):
        shapes = Lumina2Transformer(config).state_dict()
    generator = torch.Generator(device).manual_seed(0)
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape.shape, generator=generator, device=device)
        is_norm = name.endswith("weight") and shape.ndim == 1
        weights[name] = ((1 + 0.1 * noise) if is_norm else 0.02 * noise).to(dtype)
    return weights
