"""Scheduled sampling: where rolled samples land, what they should answer, and which samples stay as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.adapters.kinds import ADAPTERS
from lumina2_trainer.trainer_core.adapters.lora import LoRASettings
from lumina2_trainer.trainer_core.data.batches import SampleStream
from lumina2_trainer.trainer_core.lumina2.network.layout import patchify
from lumina2_trainer.trainer_core.lumina2.network.padding import ShapeLimiter
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Config, Lumina2Transformer
from lumina2_trainer.trainer_core.lumina2.timesteps import NoiseSettings
from lumina2_trainer.trainer_core.training.batch_builder import BatchBuilder, TrainingBatch
from lumina2_trainer.trainer_core.training.rollout import plan_path, roll, with_rollout
from lumina2_trainer.trainer_core.training.rollout_settings import (
    ROLLOUT_SAMPLERS,
    ROLLOUT_TARGETS,
    RolloutSettings,
)
from torch import Tensor, nn

from ..lumina2.tiny_models import TINY, tiny_transformer
from .cached_samples import write_sample

CPU = torch.device("cpu")
SIZES = ((16, 24, 3), (8, 12, 7), (12, 8, 1), (16, 8, 5))
"""Height, width and caption tokens of four samples; large enough for the second loss."""
ALWAYS = RolloutSettings(probability=1.0, max_step_offset=400)


def new_builder(
    folder: Path,
    rollout: RolloutSettings | None,
    *,
    batch_size: int = 4,
    samples_per_step: int = 4,
    noise: NoiseSettings | None = None,
    regularisation: tuple[int, ...] = (),
    shapes: ShapeLimiter | None = None,
) -> BatchBuilder:
    samples = [
        write_sample(
            folder,
            number,
            (height, width),
            num_tokens,
            TINY.cap_feat_dim,
            is_regularisation=number in regularisation,
        )
        for number, (height, width, num_tokens) in enumerate(SIZES)
    ]
    return BatchBuilder(
        samples,
        SampleStream([1] * len(samples), seed=5),
        unconditional=torch.zeros(1, TINY.cap_feat_dim),
        batch_size=batch_size,
        caption_dropout=0.0,
        seed=5,
        noise=noise or NoiseSettings(),
        samples_per_step=samples_per_step,
        axes_dims=TINY.axes_dims,
        shapes=shapes or ShapeLimiter(Lumina2Config(), CPU, torch.float32),
        rollout=rollout,
    )


def latents_of(name: str) -> Tensor:
    height, width, _ = SIZES[int(name)]
    return patchify(torch.randn(16, height, width, generator=torch.Generator().manual_seed(int(name))))


def by_sample(batch: TrainingBatch, tokens: Tensor) -> dict[str, Tensor]:
    """Real tokens of each sample of the first loss, by its id."""
    parts = tokens.split(batch.noisy.layout.image.segments.lengths)
    own = [i for i, is_extra in enumerate(batch.is_extra) if not is_extra]
    return {batch.ids[i]: parts[i][: len(latents_of(batch.ids[i]))] for i in own}


class Straight(nn.Module):
    """A network whose velocity is exact: from where it is, straight to the picture."""

    def __init__(self, batch: TrainingBatch) -> None:
        super().__init__()
        self.x_embedder = nn.Linear(1, 1)
        assert batch.rolled is not None
        lengths = batch.rolled.start.layout.image.segments.lengths
        self.latents_TC = torch.zeros(sum(lengths), 64)
        self.latents_TC[batch.rolled.own_rows_R] = torch.cat([latents_of(name) for name in batch.ids])  # all rolled
        self.times: list[Tensor] = []

    def forward(self, noisy_TC: Tensor, timesteps_B: Tensor, prompt_embeds_L: Tensor, layout: object) -> Tensor:
        self.times.append(timesteps_B)
        t_T1 = timesteps_B[layout.image.sample_index][:, None]  # type: ignore[attr-defined]
        return (self.latents_TC - noisy_TC) / (1 - t_T1).clamp_min(1e-6)


@pytest.mark.parametrize("sampler", ROLLOUT_SAMPLERS)
@pytest.mark.parametrize("target", ROLLOUT_TARGETS)
def test_an_exact_velocity_leads_along_the_straight_line(tmp_path: Path, sampler: str, target: str) -> None:
    steps = 1 if ROLLOUT_SAMPLERS[sampler].has_unit_steps else 3
    settings = replace(ALWAYS, max_step_offset=30, sampler=sampler, target=target, num_sampler_steps=steps)
    batch = new_builder(tmp_path, settings).build(0)
    assert batch.num_rolled == 4
    network = Straight(batch)
    rolled = with_rollout(network, batch.noisy, batch.rolled, settings, "fp32", CPU)  # type: ignore[arg-type]
    assert batch.rolled is not None
    num_passes = len(batch.rolled.path.sizes_NB) * ROLLOUT_SAMPLERS[sampler].passes_per_step
    assert len(network.times) == num_passes and num_passes > 1
    torch.testing.assert_close(rolled.noisy_TC, batch.noisy.noisy_TC, rtol=0, atol=1e-5)
    assert rolled.noisy_TC.dtype is torch.float32
    # An input that is right leaves nothing to correct; near the picture rounding is divided by little noise.
    torch.testing.assert_close(rolled.target_TC, batch.noisy.target_TC, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(rolled.timesteps_B, batch.noisy.timesteps_B, rtol=0, atol=0)


@pytest.mark.parametrize("sampler", ROLLOUT_SAMPLERS)
def test_samples_rolled_together_equal_those_rolled_alone(tmp_path: Path, sampler: str) -> None:
    steps = 1 if ROLLOUT_SAMPLERS[sampler].has_unit_steps else 2
    settings = RolloutSettings(probability=0.7, max_step_offset=9, sampler=sampler, num_sampler_steps=steps)
    transformer = tiny_transformer(seed=2)
    together = new_builder(tmp_path, settings)
    alone = new_builder(tmp_path, settings, batch_size=1)
    num_rolled = []
    for start in (0, 4, 8):
        batch = together.build(start)
        rolled = by_sample(batch, roll_out(transformer, batch, settings))
        num_rolled.append(batch.num_rolled)
        for position in range(start, start + 4):
            single = alone.build(position)
            (name,) = single.ids
            expected = by_sample(single, roll_out(transformer, single, settings))[name]
            torch.testing.assert_close(rolled[name], expected, rtol=0, atol=2e-5)
    assert 0 < sum(num_rolled) < 12 and len(set(num_rolled)) > 1


def roll_out(transformer: Lumina2Transformer, batch: TrainingBatch, settings: RolloutSettings) -> Tensor:
    return with_rollout(transformer, batch.noisy, batch.rolled, settings, "fp32", CPU).noisy_TC


def test_padding_of_either_batch_changes_nothing(tmp_path: Path) -> None:
    class Padding(ShapeLimiter):
        def padded_lengths(self, caption_lengths: object, image_lengths: object) -> object:
            from lumina2_trainer.trainer_core.lumina2.network.layout import PaddedLengths

            assert isinstance(image_lengths, list)
            return PaddedLengths(caption=8, image=max(image_lengths) + 3)

    settings = replace(ALWAYS, probability=0.5, use_reflexflow=True)
    transformer = tiny_transformer(seed=2)
    plain = new_builder(tmp_path, settings).build(8)
    padded = new_builder(tmp_path, settings, shapes=Padding(Lumina2Config(), CPU, torch.float32)).build(8)
    assert 0 < plain.num_rolled == padded.num_rolled < 4
    results = [with_rollout(transformer, batch.noisy, batch.rolled, settings, "fp32", CPU) for batch in (plain, padded)]
    assert padded.rolled is not None
    is_padding_T = padded.rolled.start.layout.image.segments.is_padding_S
    assert roll(transformer, padded.rolled, settings)[is_padding_T].abs().max() == 0
    for read in (
        lambda result: result.noisy_TC,
        lambda result: result.target_TC,
        lambda result: result.reflection.clean_TC,
        lambda result: result.reflection.direction_TC,
    ):
        one, other = (by_sample(batch, read(r)) for batch, r in zip((plain, padded), results, strict=True))
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=5e-5)
    assert torch.equal(results[0].reflection.is_rolled_B, results[1].reflection.is_rolled_B)


def test_only_rolled_samples_change_and_by_the_networks_error(tmp_path: Path) -> None:
    settings = replace(ALWAYS, probability=0.5)
    transformer = tiny_transformer(seed=2)
    batch = new_builder(tmp_path, settings).build(8)
    before, after = (by_sample(batch, x) for x in (batch.noisy.noisy_TC, roll_out(transformer, batch, settings)))
    is_changed = [not torch.equal(before[name], after[name]) for name in before]
    assert 0 < sum(is_changed) == batch.num_rolled < 4


def test_the_corrective_target_leads_to_the_picture(tmp_path: Path) -> None:
    settings = RolloutSettings(probability=1.0, max_step_offset=20, target="corrective")
    batch = new_builder(tmp_path, settings).build(0)
    result = with_rollout(tiny_transformer(seed=2), batch.noisy, batch.rolled, settings, "fp32", CPU)
    plain = with_rollout(
        tiny_transformer(seed=2), batch.noisy, batch.rolled, replace(settings, target="velocity"), "fp32", CPU
    )
    assert torch.equal(plain.target_TC, batch.noisy.target_TC)
    assert torch.equal(plain.noisy_TC, result.noisy_TC)
    noisy, target = (by_sample(batch, x) for x in (result.noisy_TC, result.target_TC))
    for name, t in zip(batch.ids, batch.timesteps_B, strict=True):
        assert 1 - t > 0.02, "so that nothing is held back"
        torch.testing.assert_close(target[name], (latents_of(name) - noisy[name]) / (1 - t), rtol=1e-4, atol=1e-4)


def test_a_correction_near_the_picture_is_no_larger_than_the_error_on_the_way(tmp_path: Path) -> None:
    settings = RolloutSettings(probability=1.0, max_step_offset=500, target="corrective")
    noise = NoiseSettings(timestep_sampling="custom", custom_sigmas="0.0001")
    batch = new_builder(tmp_path, settings, noise=noise).build(0)
    assert batch.rolled is not None
    result = with_rollout(tiny_transformer(seed=2), batch.noisy, batch.rolled, settings, "fp32", CPU)
    correction = (result.target_TC - batch.noisy.target_TC)[batch.rolled.rows_R]
    error = (batch.noisy.noisy_TC - result.noisy_TC)[batch.rolled.rows_R]
    index_R = batch.rolled.start.layout.image.sample_index[batch.rolled.own_rows_R]
    torch.testing.assert_close(correction, error / batch.rolled.path.distances_B[index_R][:, None])


def test_regularisation_the_second_loss_and_pure_noise_are_not_rolled(tmp_path: Path) -> None:
    large = replace(ALWAYS, max_step_offset=20)
    noise = NoiseSettings(low_resolution_weight=0.5)
    assert new_builder(tmp_path, large, noise=noise).build(0).num_rolled == 4
    kept = new_builder(tmp_path, large, noise=noise, regularisation=(0, 2)).build(0)
    assert kept.num_rolled == 2
    rolled = by_sample(kept, roll_out(tiny_transformer(seed=2), kept, large))
    before = by_sample(kept, kept.noisy.noisy_TC)
    assert {name for name in before if not torch.equal(before[name], rolled[name])} == {"1", "3"}
    pure = NoiseSettings(timestep_sampling="custom", custom_sigmas="1")
    assert new_builder(tmp_path, large, noise=pure).build(0).rolled is None


def test_dropout_is_off_meanwhile_and_no_gradient_is_kept(tmp_path: Path) -> None:
    batch = new_builder(tmp_path, ALWAYS).build(0)
    results = []
    for dropout in (0.0, 0.9):
        transformer = tiny_transformer(seed=2)
        lora = LoRASettings(dropout=dropout)
        parameters = ADAPTERS["lora"].attach(transformer, lora, rank=2, alpha=2.0, seed=0)
        with torch.no_grad():
            for number, parameter in enumerate(parameters.values()):
                parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(number))
        transformer.train()
        state = torch.get_rng_state()
        results.append(with_rollout(transformer, batch.noisy, batch.rolled, ALWAYS, "fp32", CPU))
        assert torch.equal(torch.get_rng_state(), state)
        assert all(module.training for module in transformer.modules())
    assert not results[0].noisy_TC.requires_grad
    torch.testing.assert_close(results[0].noisy_TC, results[1].noisy_TC, rtol=0, atol=1e-5)


def test_draws_of_a_rollout_leave_all_others_alone_and_depend_on_the_position(tmp_path: Path) -> None:
    plain, rolled = new_builder(tmp_path, None), new_builder(tmp_path, replace(ALWAYS, probability=0.5))
    later = new_builder(tmp_path, replace(ALWAYS, probability=0.5))
    for position in (8, 0, 4):
        one, other = plain.build(position), rolled.build(position)
        assert torch.equal(one.noisy.noisy_TC, other.noisy.noisy_TC)
        assert one.ids == other.ids and one.rolled is None and one.noisy.reflection is None
        again = later.build(position)
        assert again.num_rolled == other.num_rolled
        if other.rolled is not None and again.rolled is not None:
            assert torch.equal(other.rolled.start.noisy_TC, again.rolled.start.noisy_TC)


def test_moving_a_batch_moves_the_rolled_samples(tmp_path: Path) -> None:
    rolled = new_builder(tmp_path, ALWAYS).build(0).on(torch.device("meta")).rolled
    assert rolled is not None
    moved = (rolled.start.noisy_TC, rolled.rows_R, rolled.path.sizes_NB, rolled.start.layout.image_index_T)
    assert {tensor.device.type for tensor in moved} == {"meta"}


def test_reflexflow_gives_every_batch_the_same_tensors(tmp_path: Path) -> None:
    settings = replace(ALWAYS, probability=0.2, use_reflexflow=True)
    builder = new_builder(tmp_path, settings, batch_size=1)
    transformer = tiny_transformer(seed=2)
    seen = set()
    for position in range(12):
        batch = builder.build(position)
        result = with_rollout(transformer, batch.noisy, batch.rolled, settings, "fp32", CPU)
        assert result.reflection is not None
        assert result.reflection.clean_TC.shape == result.reflection.direction_TC.shape == result.noisy_TC.shape
        assert result.reflection.is_rolled_B.tolist() == [float(batch.num_rolled)]
        seen.add(batch.num_rolled)
        if batch.num_rolled:
            direction = latents_of(batch.ids[0]) - result.noisy_TC
            torch.testing.assert_close(result.reflection.direction_TC, direction, rtol=1e-4, atol=1e-4)
    assert seen == {0, 1}


def test_a_path_goes_its_whole_way_in_equal_steps_and_not_beyond_pure_noise() -> None:
    settings = RolloutSettings(num_sampler_steps=2)
    path = plan_path(settings, timesteps=[0.9, 0.05], offsets=[200, 100])
    torch.testing.assert_close(path.timesteps_NB, torch.tensor([[0.7, 0.0], [0.8, 0.025]]))
    torch.testing.assert_close(path.sizes_NB, torch.tensor([[0.1, 0.025], [0.1, 0.025]]))
    torch.testing.assert_close(path.ends_B, torch.tensor([0.9, 0.05]))
    torch.testing.assert_close(path.distances_B, torch.tensor([0.2, 0.05]))


def test_samples_with_a_shorter_path_wait_where_it_begins() -> None:
    settings = RolloutSettings(sampler="euler_unit")
    path = plan_path(settings, timesteps=[0.5, 0.8], offsets=[3, 1])
    torch.testing.assert_close(path.timesteps_NB, torch.tensor([[0.497, 0.799], [0.498, 0.799], [0.499, 0.799]]))
    torch.testing.assert_close(path.sizes_NB, torch.tensor([[0.001, 0.0], [0.001, 0.0], [0.001, 0.001]]))
