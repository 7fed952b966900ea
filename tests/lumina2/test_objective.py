"""The flow-matching objective: direction, target, and the loss of each sample."""

import dataclasses
import math

import pytest
import torch
from lumina2_trainer.trainer_core.lumina2.losses import DELTA_SCHEDULES, LOSSES
from lumina2_trainer.trainer_core.lumina2.network.layout import PaddedLengths, patchify, unpatchify
from lumina2_trainer.trainer_core.lumina2.objective import (
    flow_matching_loss,
    loss_by_timestep_bin,
    make_noisy_batch,
)
from lumina2_trainer.trainer_core.lumina2.timesteps import NoiseSettings

from .tiny_models import TINY, tiny_transformer

CPU = torch.device("cpu")


def make_batch(timesteps):
    generator = torch.Generator().manual_seed(0)
    latents = [torch.randn(16, 6, 10, generator=generator), torch.randn(16, 8, 4, generator=generator)]
    noise = [torch.randn(x.shape, generator=generator) for x in latents]
    prompts = [torch.randn(n, TINY.cap_feat_dim, generator=generator) for n in (5, 3)]
    batch = make_noisy_batch(latents, noise, torch.tensor(timesteps), prompts, TINY.axes_dims, CPU)
    return latents, noise, prompts, batch


def test_time_zero_is_noise_and_time_one_is_the_image():
    latents, noise, _, batch = make_batch([0.0, 1.0])
    torch.testing.assert_close(batch.noisy_TC[:15], patchify(noise[0]))
    torch.testing.assert_close(batch.noisy_TC[15:], patchify(latents[1]))


def test_target_points_from_noise_to_image():
    latents, noise, _, batch = make_batch([0.25, 0.5])
    torch.testing.assert_close(batch.target_TC[:15], patchify(latents[0] - noise[0]))
    x_t = unpatchify(batch.noisy_TC[:15], 3, 5)
    velocity = unpatchify(batch.target_TC[:15], 3, 5)
    torch.testing.assert_close(x_t + 0.75 * velocity, latents[0])
    torch.testing.assert_close(x_t - 0.25 * velocity, noise[0])


def test_loss_of_each_sample_does_not_depend_on_the_others():
    latents, noise, prompts, batch = make_batch([0.3, 0.8])
    transformer = tiny_transformer(seed=1)
    together = flow_matching_loss(transformer, batch)
    assert together.shape == (2,)
    for i, t in enumerate([0.3, 0.8]):
        alone = make_noisy_batch(
            latents[i : i + 1], noise[i : i + 1], torch.tensor([t]), prompts[i : i + 1], TINY.axes_dims, CPU
        )
        velocity = transformer(alone.noisy_TC, alone.timesteps_B, alone.prompt_embeds_L, alone.layout)
        expected = (velocity - patchify(latents[i] - noise[i])).square().mean()
        torch.testing.assert_close(together[i], expected, rtol=1e-5, atol=1e-6)


def test_loss_by_bin_averages_within_each_bin():
    assert loss_by_timestep_bin([1.0, 3.0, 5.0], [0.01, 0.04, 1.0]) == {0: 2.0, 19: pytest.approx(5.0)}


def test_padding_changes_neither_loss_nor_gradients():
    latents, noise, prompts, plain = make_batch([0.3, 0.8])
    padded = make_noisy_batch(
        latents,
        noise,
        torch.tensor([0.3, 0.8]),
        prompts,
        TINY.axes_dims,
        CPU,
        padded=PaddedLengths(caption=8, image=24),
    )
    assert len(padded.noisy_TC) == 48 and len(padded.prompt_embeds_L) == 16
    results = []
    for batch in (plain, padded):
        transformer = tiny_transformer(seed=1)
        loss_B = flow_matching_loss(transformer, batch)
        loss_B.mean().backward()
        results.append((loss_B.detach(), [p.grad for p in transformer.parameters()]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", ["huber", "smooth_l1"])
@pytest.mark.parametrize("schedule", DELTA_SCHEDULES)
def test_loss_of_the_chosen_kind_is_the_formula(loss, schedule):
    latents, noise, _, batch = make_batch([0.3, 0.8])
    transformer = tiny_transformer(seed=1)
    settings = NoiseSettings(loss=loss, loss_delta=0.25, loss_delta_schedule=schedule)
    actual = flow_matching_loss(transformer, batch, settings)
    velocity = transformer(batch.noisy_TC, batch.timesteps_B, batch.prompt_embeds_L, batch.layout).double()
    for i, (t, rows) in enumerate([(0.3, slice(0, 15)), (0.8, slice(15, None))]):
        error = velocity[rows] - patchify(latents[i] - noise[i]).double()
        root = math.sqrt(t / (1 - t + 1e-4))
        delta = {"constant": 0.25, "exponential": 0.25 ** (1 - t), "snr": 0.75 / (1 + root) ** 2 + 0.25}[schedule]
        scale = 2 * delta if loss == "huber" else 2
        expected = (scale * ((error.square() + delta**2).sqrt() - delta)).mean()
        assert actual[i].item() == pytest.approx(expected.item(), rel=1e-5)


def test_losses_are_squared_for_small_errors_and_straight_for_large_ones():
    error = torch.tensor([[1e-4, 1e3]])
    assert LOSSES["huber"].measure(error, 0.1).tolist()[0] == pytest.approx([1e-8, 2 * 0.1 * 1e3], rel=1e-3)
    assert LOSSES["smooth_l1"].measure(error, 0.1).tolist()[0] == pytest.approx([1e-7, 2e3], rel=1e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_of_every_loss_is_finite_where_there_is_no_error(loss):
    error = torch.zeros(2, 3, requires_grad=True)
    LOSSES[loss].measure(error, 0.1).sum().backward()
    assert torch.equal(error.grad, torch.zeros(2, 3))


def test_weights_say_what_each_sample_counts():
    *_, batch = make_batch([0.3, 0.8])
    losses = torch.tensor([2.0, 3.0])
    assert batch.reduce(losses).item() == 2.5
    assert dataclasses.replace(batch, weights_B=torch.tensor([0.5, 4.0])).reduce(losses).item() == 13.0


def test_shown_noise_is_mixed_in_and_the_other_is_asked_for():
    latents, noise, prompts, _ = make_batch([0.3, 0.8])
    shown = [2 * n for n in noise]
    batch = make_noisy_batch(latents, noise, torch.tensor([0.3, 0.8]), prompts, TINY.axes_dims, CPU, shown_noise=shown)
    torch.testing.assert_close(batch.noisy_TC[:15], patchify(0.7 * shown[0] + 0.3 * latents[0]))
    torch.testing.assert_close(batch.target_TC[:15], patchify(latents[0] - noise[0]))


def test_places_count_by_their_weights_whose_scale_does_not_matter():
    latents, noise, prompts, plain = make_batch([0.3, 0.8])
    generator = torch.Generator().manual_seed(4)
    weights = [torch.rand(1, *x.shape[1:], generator=generator) for x in latents]
    transformer = tiny_transformer(seed=1)
    velocity = transformer(plain.noisy_TC, plain.timesteps_B, plain.prompt_embeds_L, plain.layout)
    error = (velocity - plain.target_TC).square()
    expected = []
    for rows, weight, x in zip((slice(0, 15), slice(15, None)), weights, latents, strict=True):
        counts = patchify(weight.expand(x.shape))
        expected.append((error[rows] * counts).sum() / counts.sum())
    for scale in (1.0, 0.25):
        batch = make_noisy_batch(
            latents,
            noise,
            torch.tensor([0.3, 0.8]),
            prompts,
            TINY.axes_dims,
            CPU,
            loss_weights=[scale * weight for weight in weights],
        )
        torch.testing.assert_close(flow_matching_loss(transformer, batch), torch.stack(expected))
