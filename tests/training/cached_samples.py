"""Samples whose cache entries hold random numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lumina2_trainer.trainer_core.data.cache import TrainingSample
from lumina2_trainer.trainer_core.data.entries import write_entry


def write_sample(
    folder: Path,
    number: int,
    size: tuple[int, int],
    num_tokens: int,
    width: int,
    generator: torch.Generator | None = None,
    **fields: Any,
) -> TrainingSample:
    """A sample with its latents and its caption.

    Args:
        folder: Of the entries.
        number: Its name, and the seed of its numbers where there is no generator.
        size: Height and width of the latents.
        num_tokens: Of the caption.
        width: Of the text states.
        generator: Of its numbers.
        **fields: More of TrainingSample.
    """
    generator = generator or torch.Generator().manual_seed(number)
    latents_path, embeds_path = (folder / f"{kind}{number}.safetensors" for kind in ("latents", "embeds"))
    write_entry(latents_path, torch.randn(16, *size, generator=generator))
    write_entry(embeds_path, torch.randn(num_tokens, width, generator=generator))
    return TrainingSample(
        id=str(number),
        file_name=f"{number}.png",
        latents_path=latents_path,
        embeds_path=embeds_path,
        caption="",
        width=8 * size[1],
        height=8 * size[0],
        repeats=1,
        **fields,
    )
