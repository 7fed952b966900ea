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
    settings = NoiseSettings(timestep_sampling=sampler, shift_mode=mode, static_shift=4.0)
    t = draw_timesteps(settings, (96,) * 1000, torch.Generator().manual_seed(1))
    assert t.shape == (1000,) and t.dtype == torch.float32
    assert t.min() >= 0 and t.max() <= 1
    median = {"auto": auto_shift(96), "static": 4.0, "none": 1.0}[mode]
    assert (1 - t).median().item() == pytest.approx(median / (1 + median), abs=0.05)


def test_unknown_sampler_is_named():
    with pytest.raises(TrainerError, match=r"timestep_sampling is 'cosmap': choose one of logit_normal, uniform"):
        NoiseSettings(timestep_sampling="cosmap")
