"""Schedules and guidance against ComfyUI's rule by hand and against diffusers."""

import pytest
import torch
from lumina2_trainer.trainer_core.lumina2.sampling import (
    comfyui_sigmas,
    diffusers_sigmas,
    initial_noise,
    normalised_guidance,
    plain_guidance,
    rescale_guided,
    sample_latents,
)

from .diffusers_reference import diffusers_pipeline, diffusers_transformer
from .tiny_models import TINY, tiny_transformer


def test_comfyui_schedule_takes_every_nth_of_a_thousand():
    sigmas = comfyui_sigmas(4, 6.0)
    expected = [6 * t / (1 + 5 * t) for t in (1.0, 0.75, 0.5, 0.25)] + [0.0]
    torch.testing.assert_close(sigmas, torch.tensor(expected))


def test_comfyui_schedule_rounds_its_places_down():
    # int(i * 1000 / 7) and not the nearest, which would be 143, 286 and 429.
    places = [0, 142, 285, 428, 571, 714, 857]
    expected = [6 * t / (1 + 5 * t) for t in ((1000 - place) / 1000 for place in places)] + [0.0]
    torch.testing.assert_close(comfyui_sigmas(7, 6.0), torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_diffusers_schedule_equals_its_scheduler():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    scheduler.set_timesteps(sigmas=[1 - i / 7 for i in range(7)])
    torch.testing.assert_close(diffusers_sigmas(7, 6.0), scheduler.sigmas.float(), rtol=1e-6, atol=1e-6)


def test_guidance_rules_by_hand():
    positive, negative = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[3.0, 0.0]]])
    torch.testing.assert_close(plain_guidance(positive, negative, 2.0), torch.tensor([[[3.0, 8.0]]]))
    guided = normalised_guidance(positive, negative, 2.0)
    torch.testing.assert_close(guided.norm(dim=-1), positive.norm(dim=-1))
    torch.testing.assert_close(guided[0, 0, 1] / guided[0, 0, 0], torch.tensor(8 / 3))


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_rescaling_is_that_of_diffusers(rescale):
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    generator = torch.Generator().manual_seed(3)
    positive, negative = torch.randn(2, 16, 6, 10, generator=generator)
    guided = plain_guidance(positive, negative, 7.5)
    expected = rescale_noise_cfg(guided[None], positive[None], rescale)[0]
    torch.testing.assert_close(rescale_guided(guided, positive, rescale), expected)


def test_rescaling_acts_on_what_is_drawn_and_only_with_guidance():
    transformer = tiny_transformer(seed=2)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randn(length, TINY.cap_feat_dim, generator=generator) for length in (5, 2)]

    def draw(guidance_scale, **rescale):
        return sample_latents(
            transformer,
            *prompts,
            initial_noise(9, 16, 6, 10),
            schedule="comfyui",
            num_inference_steps=3,
            guidance_scale=guidance_scale,
            shift=6.0,
            **rescale,
        )

    assert torch.equal(draw(8.0), draw(8.0, guidance_rescale=0.0))
    changed = draw(8.0, guidance_rescale=0.9)
    assert (changed - draw(8.0)).abs().max() > 0.01
    assert not torch.isnan(changed).any()
    torch.testing.assert_close(draw(1.0, guidance_rescale=0.9), draw(1.0))


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_diffusers_choice_draws_what_lumina2pipeline_draws(guidance_scale):
    transformer = tiny_transformer(seed=2)
    pipeline = diffusers_pipeline(diffusers_transformer(transformer))
    generator = torch.Generator().manual_seed(1)
    positive = torch.randn(5, TINY.cap_feat_dim, generator=generator)
    negative = torch.randn(2, TINY.cap_feat_dim, generator=generator)
    padded_negative = torch.cat([negative, torch.zeros(3, TINY.cap_feat_dim)])
    expected = pipeline(
        prompt_embeds=positive[None],
        prompt_attention_mask=torch.ones(1, 5, dtype=torch.bool),
        negative_prompt_embeds=padded_negative[None],
        negative_prompt_attention_mask=torch.tensor([[1, 1, 0, 0, 0]], dtype=torch.bool),
        guidance_scale=guidance_scale,
        num_inference_steps=5,
        height=48,
        width=80,
        generator=torch.Generator().manual_seed(9),
        output_type="latent",
    ).images[0]
    ours = sample_latents(
        transformer,
        positive,
        negative,
        initial_noise(9, 16, 6, 10),
        schedule="diffusers",
        num_inference_steps=5,
        guidance_scale=guidance_scale,
        shift=6.0,
    )
    assert (ours - expected).abs().max() / expected.abs().max() < 1e-4


def test_noise_is_that_of_a_seeded_cpu_generator():
    expected = torch.randn(1, 16, 4, 6, generator=torch.Generator().manual_seed(7))[0]
    assert torch.equal(initial_noise(7, 16, 4, 6), expected)
