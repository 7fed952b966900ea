"""Drawing pictures: Euler over a shifted schedule with classifier-free guidance.

Two schedules, each equal to what its program draws: KSampler of ComfyUI (euler, simple, plain guidance), and
Lumina2Pipeline of diffusers (FlowMatchEuler, guidance with normalisation). sigma is the share of noise; t = 1 - sigma.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .network.layout import TokenLayout, patchify, unpatchify
from .network.transformer import Lumina2Transformer
from .timesteps import apply_shift

COMFYUI_TIMESTEPS = 1000


def comfyui_sigmas(num_steps: int, shift: float) -> Tensor:
    """ComfyUI's "simple" scheduler: every n-th of 1000 shifted sigmas, from the noisiest.

    Source: ComfyUI, comfy/samplers.py (simple_scheduler) and comfy/model_sampling.py (ModelSamplingDiscreteFlow).
    """
    table = apply_shift(torch.arange(1, COMFYUI_TIMESTEPS + 1) / COMFYUI_TIMESTEPS, shift)
    stride = COMFYUI_TIMESTEPS / num_steps
    return torch.tensor([float(table[-(1 + int(i * stride))]) for i in range(num_steps)] + [0.0])


def diffusers_sigmas(num_steps: int, shift: float) -> Tensor:
    """Lumina2Pipeline's schedule: 1 to 1 / n in equal parts, shifted.

    Source: diffusers, pipelines/lumina2/pipeline_lumina2.py and FlowMatchEulerDiscreteScheduler.
    """
    return torch.cat([apply_shift(torch.linspace(1.0, 1 / num_steps, num_steps), shift), torch.zeros(1)])


def plain_guidance(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """negative + scale * (positive - negative) (Ho and Salimans, arXiv:2207.12598)."""
    return negative + scale * (positive - negative)


def normalised_guidance(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Plain guidance scaled back to the length of `positive` along each row of the latents, as diffusers does."""
    guided = plain_guidance(positive, negative, scale)
    return guided * (positive.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))


def rescale_guided(guided: Tensor, positive: Tensor, rescale: float) -> Tensor:
    """The guided prediction with its standard deviation moved to that of `positive`, all the way at rescale 1.

    Guidance spreads values, which shows as overexposure (Lin et al., arXiv:2305.08891, section 3.4).
    """
    return guided * (rescale * positive.std() / guided.std() + 1 - rescale)


SCHEDULES: dict[str, tuple[Callable[[int, float], Tensor], Callable[[Tensor, Tensor, float], Tensor]]] = {
    "comfyui": (comfyui_sigmas, plain_guidance),
    "diffusers": (diffusers_sigmas, normalised_guidance),
}
"""The sigmas for a number of steps and a shift, and the rule of guidance."""


def initial_noise(seed: int, channels: int, height: int, width: int) -> Tensor:
    """The noise KSampler and Lumina2Pipeline start from: float32, drawn on the CPU.

    Args:
        seed: As typed into the sampler.
        channels: Latent channels.
        height: Latent rows.
        width: Latent columns.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(1, channels, height, width, generator=generator, dtype=torch.float32)[0]


@torch.no_grad()
def sample_latents(
    transformer: Lumina2Transformer,
    positive: Tensor,
    negative: Tensor,
    noise: Tensor,
    *,
    schedule: str,
    num_inference_steps: int,
    guidance_scale: float,
    shift: float,
    guidance_rescale: float = 0.0,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    before_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Draw one picture's latents.

    Args:
        transformer: With or without an adapter.
        positive: [tokens, width] text states of the prompt.
        negative: [tokens, width] text states of the negative prompt; not looked at when guidance_scale is 1.
        noise: [channels, height, width], from `initial_noise`.
        schedule: Key of SCHEDULES.
        num_inference_steps: Euler steps.
        guidance_scale: 1 turns guidance off.
        shift: Of the schedule, usually 6.
        guidance_rescale: See `rescale_guided`; 0 leaves the guided prediction as it is.
        autocast: Context in which the network runs.
        before_step: Called before each Euler step; may raise to end the drawing.

    Returns:
        [channels, height, width] float32 scaled latents.
    """
    make_sigmas, guide = SCHEDULES[schedule]
    sigmas = make_sigmas(num_inference_steps, shift)
    device, dtype = transformer.x_embedder.weight.device, transformer.x_embedder.weight.dtype
    prompts = [positive] if guidance_scale == 1 else [positive, negative]
    rows, columns = noise.shape[-2] // 2, noise.shape[-1] // 2
    layout = TokenLayout.build(
        tuple(len(p) for p in prompts), ((rows, columns),) * len(prompts), transformer.config.axes_dims, device
    )
    prompt_embeds_L = torch.cat(prompts).to(device, dtype)
    latents = noise.to(device)
    for sigma, next_sigma in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        before_step()
        tokens_TC = patchify(latents).to(dtype).repeat(len(prompts), 1)
        timesteps_B = torch.full((len(prompts),), 1 - sigma, device=device)
        with autocast():
            velocity_TC = transformer(tokens_TC, timesteps_B, prompt_embeds_L, layout)
        velocity = [unpatchify(v, rows, columns) for v in velocity_TC.float().split(rows * columns)]
        guided = velocity[0] if len(velocity) == 1 else guide(velocity[0], velocity[1], guidance_scale)
        if guidance_rescale:
            guided = rescale_guided(guided, velocity[0], guidance_rescale)
        latents = latents + (sigma - next_sigma) * guided
    return latents
