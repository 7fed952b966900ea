"""diffusers' network with the weights of one of ours."""

from __future__ import annotations

from typing import Any

import torch
from lumina2_trainer.trainer_core.lumina2.models.name_map import diffusers_config, to_diffusers_state_dict
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Transformer
from torch import Tensor


def diffusers_transformer(transformer: Lumina2Transformer) -> Any:
    """A Lumina2Transformer2DModel with the same weights, by our own name map."""
    from diffusers import Lumina2Transformer2DModel

    config = transformer.config
    theirs = Lumina2Transformer2DModel(**diffusers_config(config))
    theirs.load_state_dict(to_diffusers_state_dict(transformer.state_dict(), config))
    return theirs


def diffusers_pipeline(theirs: Any) -> Any:
    """A Lumina2Pipeline around the network alone, with the schedule of the published model."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline

    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    pipeline = Lumina2Pipeline(transformer=theirs, scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def run_diffusers(theirs: Any, latents: list[Tensor], embeds: list[Tensor], timesteps_B: Tensor) -> list[Tensor]:
    """Velocity of each sample, one sample at a time."""
    return [
        theirs(x[None], t[None], e[None], torch.ones(1, len(e), dtype=torch.bool)).sample[0]
        for x, e, t in zip(latents, embeds, timesteps_B, strict=True)
    ]
