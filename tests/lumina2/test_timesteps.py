"""Which noise levels are trained on."""

import math

import pytest
import torch
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.lumina2.timesteps import (
    SHIFT_MODES,
    TIMESTEP_SAMPLERS,
    NoiseSettings,
    auto_shift,
    draw_timesteps,
)


def test_default_draw_at_1024_has_the_originals_distribution():
    tokens = (64 * 64,)
    t = draw_timesteps(NoiseSettings(), tokens * 200_000, torch.Generator().manual_seed(0))
    sigma = 1 - t
    low, median, high = torch.quantile(sigma, torch.tensor([0.1, 0.5, 0.9])).tolist()
    assert median == pytest.approx(0.760, abs=0.005)
    assert low == pytest.approx(0.468, abs=0.01)
    assert high == pytest.approx(0.919, abs=0.01)


def test_auto_shift_matches_published_values():
    assert auto_shift(64 * 64) == pytest.approx(3.158, abs=5e-4)
    assert auto_shift(32 * 32) == pytest.approx(1.878, abs=5e-4)
    assert auto_shift(256) == pytest.approx(math.exp(0.5))


def test_shift_depends_on_each_samples_size():
    settings = NoiseSettings()
    together = draw_timesteps(settings, (256, 4096), torch.Generator().manual_seed(3))
    sigma = torch.sigmoid(torch.randn(2, generator=torch.Generator().manual_seed(3)))
    for t, s, tokens in zip(together, sigma, (256, 4096), strict=True):
        shift = auto_shift(tokens)
        torch.testing.assert_close(1 - t, shift * s / (1 + (shift - 1) * s))


@pytest.mark.parametrize("mode", SHIFT_MODES)
@pytest.mark.parametrize("sampler", TIMESTEP_SAMPLERS)
def test_every_choice_stays_between_noise_and_image(sampler, mode):
    levels = "0.1 0.5 0.9" if sampler.startswith("custom") else ""
    settings = NoiseSettings(
        timestep_sampling=sampler, shift_mode=mode, static_shift=4.0, custom_sigmas=levels, beta_alpha=2.0
    )
    t = draw_timesteps(settings, (96,) * 1000, torch.Generator().manual_seed(1))
    assert t.shape == (1000,) and t.dtype == torch.float32
    assert t.min() >= 0 and t.max() <= 1
    is_shifted = TIMESTEP_SAMPLERS[sampler].is_shifted
    median = {"auto": auto_shift(96), "static": 4.0, "none": 1.0}[mode] if is_shifted else 1.0
    assert (1 - t).median().item() == pytest.approx(median / (1 + median), abs=0.05)


def test_unknown_sampler_is_named():
    with pytest.raises(TrainerError, match=r"timestep_sampling is 'cosmap': choose one of logit_normal, uniform"):
        NoiseSettings(timestep_sampling="cosmap")


def sigmas_of(count: int = 20_000, position: int = 0, **settings: object) -> torch.Tensor:
    """Unshifted draws."""
    chosen = NoiseSettings(shift_mode="none", **settings)
    return 1 - draw_timesteps(chosen, (256,) * count, torch.Generator().manual_seed(2), position)


def test_logit_normal_takes_scale_and_offset():
    logits = torch.logit(sigmas_of(logit_scale=0.5, logit_offset=-1.0))
    assert logits.mean().item() == pytest.approx(-1.0, abs=0.02)
    assert logits.std().item() == pytest.approx(0.5, abs=0.02)


def test_beta_has_its_mean_and_spread():
    sigmas = sigmas_of(timestep_sampling="beta", beta_alpha=2.0, beta_beta=6.0)
    assert sigmas.mean().item() == pytest.approx(0.25, abs=0.005)
    assert sigmas.var().item() == pytest.approx(2 * 6 / (8**2 * 9), rel=0.05)


def test_custom_levels_are_drawn_alike_and_not_shifted():
    settings = NoiseSettings(timestep_sampling="custom", custom_sigmas="0.25, 0.5 1", shift_mode="static")
    sigmas = 1 - draw_timesteps(settings, (4096,) * 3000, torch.Generator().manual_seed(2))
    levels, counts = sigmas.unique(return_counts=True)
    assert levels.tolist() == [0.25, 0.5, 1.0]
    assert counts.min() > 900


def test_custom_levels_come_in_turn_from_any_position():
    in_turn = {"timestep_sampling": "custom_in_turn", "custom_sigmas": "0.25,0.5,0.75"}
    assert sigmas_of(4, **in_turn).tolist() == [0.25, 0.5, 0.75, 0.25]
    assert sigmas_of(2, position=8, **in_turn).tolist() == [0.75, 0.25]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timestep_sampling": "custom"}, "custom_sigmas is empty, from which timestep_sampling custom draws"),
        (
            {"timestep_sampling": "custom", "custom_sigmas": "0.5, 800"},
            r"custom_sigmas has '800': write numbers from 0 \(picture\) to 1",
        ),
        ({"timestep_sampling": "custom", "custom_sigmas": "half"}, "custom_sigmas has 'half'"),
        ({"beta_alpha": 3.0}, "beta_alpha is 3.0, which timestep_sampling logit_normal does not use: set it to 2.0"),
        ({"timestep_sampling": "uniform", "logit_scale": 0.5}, "logit_scale is 0.5, which timestep_sampling uniform"),
        ({"custom_sigmas": "0.5"}, "custom_sigmas is '0.5', which timestep_sampling logit_normal does not use"),
        ({"loss_delta": 0.2}, "loss_delta is 0.2, which loss l2 does not use"),
        ({"loss_delta_schedule": "snr"}, "loss_delta_schedule is 'snr', which loss l2 does not use"),
        ({"input_perturbation_steps": 10}, "input_perturbation_steps is 10, but input_perturbation is 0"),
        ({"loss": "l3"}, "loss is 'l3': choose one of l2, huber, smooth_l1"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, message):
    with pytest.raises(TrainerError, match=message):
        NoiseSettings(**settings)


def test_perturbation_falls_to_nothing_or_stays():
    falling = NoiseSettings(input_perturbation=0.2, input_perturbation_steps=4)
    assert [falling.perturbation_at(step) for step in (1, 3, 5, 9)] == pytest.approx([0.2, 0.1, 0.0, 0.0])
    assert NoiseSettings(input_perturbation=0.2).perturbation_at(1000) == 0.2


def test_static_shift_moves_every_draw_by_the_formula():
    plain = sigmas_of(100)
    static = NoiseSettings(shift_mode="static", static_shift=2.5)
    shifted = 1 - draw_timesteps(static, (256,) * 100, torch.Generator().manual_seed(2))
    torch.testing.assert_close(shifted, 2.5 * plain / (1 + 1.5 * plain))
