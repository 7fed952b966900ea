"""A training loop of the usual kind around a network that takes captions padded to one length.

Shape suffixes: B samples, C channels, H and W latent rows and columns, L caption tokens, D width of the text encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from ..cases import LEARNING_RATE, Case
from ..material import FIXED_TIME, Setup, fixed_noise, make_samples
from .prepared import PreparedTrainer, repeat

Predict = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Velocity of (noisy_BCHW, timesteps_B, prompt_embeds_BLD, mask_BL)."""


def autocast(case: Case, device: torch.device) -> AbstractContextManager[object]:
    """The case's precision."""
    return nullcontext() if case.dtype is torch.float32 else torch.autocast(device.type, case.dtype)


def train_padded(setup: Setup, predict: Predict, parameters: list[nn.Parameter]) -> PreparedTrainer:
    """AdamW, gradient clipping and the flow-matching loss; captions are padded to the longest of the batch."""
    case, device = setup.case, setup.device
    samples = make_samples(case)
    latents_BCHW = torch.stack([sample.latents for sample in samples]).to(device)
    embeds_BLD = nn.utils.rnn.pad_sequence([sample.prompt_embeds for sample in samples], batch_first=True)
    embeds_BLD = embeds_BLD.to(device, case.dtype)
    lengths_B = torch.tensor([len(sample.prompt_embeds) for sample in samples])
    mask_BL = (torch.arange(embeds_BLD.shape[1]) < lengths_B[:, None]).to(device)
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=device.type == "cuda")

    def loss_of(noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        t = t_B.view(-1, 1, 1, 1)
        noisy_BCHW = ((1 - t) * noise_BCHW + t * latents_BCHW).to(case.dtype)
        with autocast(case, device):
            velocity_BCHW = predict(noisy_BCHW, t_B, embeds_BLD, mask_BL)
        return (velocity_BCHW.float() - (latents_BCHW - noise_BCHW)).square().mean()

    def step() -> None:
        loss_of(torch.randn_like(latents_BCHW), torch.sigmoid(torch.randn(len(samples), device=device))).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with torch.no_grad():
        noise_BCHW = torch.stack(fixed_noise(samples)).to(device)
        loss = loss_of(noise_BCHW, torch.full((len(samples),), FIXED_TIME, device=device)).item()
    return PreparedTrainer(loss=loss, train=repeat(step))
