"""Which samples are rolled, how far and over which times, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.training.rollout import draw_offset, plan_path
from lumina2_trainer.trainer_core.training.rollout_settings import (
    RAMP_SHAPES,
    REFLEXFLOW_SETTINGS,
    STRATEGIES,
    RolloutSettings,
)

ALWAYS = RolloutSettings(probability=1.0, max_step_offset=400)


def test_probability_follows_the_ramp() -> None:
    ramp = RolloutSettings(num_ramp_steps=10, start_step=5, probability_start=0.2, probability_end=0.6)
    steps = (1, 5, 10, 15, 1000)
    assert [ramp.probability_at(step) for step in steps] == pytest.approx([0.2, 0.2, 0.4, 0.6, 0.6])
    cosine = replace(ramp, ramp_shape="cosine")
    expected = [0.2, 0.2, 0.4, 0.6, 0.6]
    assert [cosine.probability_at(step) for step in steps] == pytest.approx(expected)
    quarter = 0.2 + 0.4 * (0.5 - 0.5 * math.cos(math.pi * 0.2))
    assert cosine.probability_at(7) == pytest.approx(quarter)
    constant = RolloutSettings(probability=0.3, start_step=4)
    assert [constant.probability_at(step) for step in (1, 3, 4, 99)] == [0.0, 0.0, 0.3, 0.3]


@pytest.mark.parametrize("shape", RAMP_SHAPES)
def test_every_ramp_goes_from_zero_to_one(shape: str) -> None:
    values = [RAMP_SHAPES[shape](i / 10) for i in range(11)]
    assert values[0] == 0 and values[-1] == pytest.approx(1)
    assert values == sorted(values)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    # Share of offsets among the first and the last fifth: P(U < 0.2), P(U^2 < 0.2) = sqrt(0.2), and the other way.
    [("uniform", (0.2, 0.2)), ("biased_early", (0.2**0.5, 1 - 0.8**0.5)), ("biased_late", (1 - 0.8**0.5, 0.2**0.5))],
)
def test_offsets_follow_the_strategy(strategy: str, expected: tuple[float, float]) -> None:
    settings = RolloutSettings(strategy=strategy, max_step_offset=100, probability=0.75)
    offsets = [draw_offset(settings, 1, position, 1) for position in range(8000)]
    rolled = [offset for offset in offsets if offset]
    assert len(rolled) / len(offsets) == pytest.approx(0.75, abs=0.02), "the probability is the share that is rolled"
    assert min(rolled) == 1 and max(rolled) == 100
    first, last = (sum(low < offset <= low + 20 for offset in rolled) / len(rolled) for low in (0, 80))
    assert (first, last) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_offset_of_one_is_all_there_is_below_two(strategy: str) -> None:
    assert {STRATEGIES[strategy](u, 1) for u in (0.0, 0.5, 0.999999)} == {1}


def test_a_path_ends_at_the_samples_time_and_starts_no_earlier_than_noise() -> None:
    path = plan_path(replace(ALWAYS, num_sampler_steps=4), [0.9, 0.1], [200, 300])
    torch.testing.assert_close(path.timesteps_NB[:, 0], torch.tensor([0.7, 0.75, 0.8, 0.85]))
    torch.testing.assert_close(path.timesteps_NB[:, 1], torch.tensor([0.0, 0.025, 0.05, 0.075]))
    torch.testing.assert_close(path.timesteps_NB[-1] + path.sizes_NB[-1], path.ends_B)
    torch.testing.assert_close(path.sizes_NB.sum(0), torch.tensor([0.2, 0.1]))
    assert path.timesteps_NB.dtype is torch.float32


def test_unit_steps_are_a_thousandth_each_and_shorter_paths_wait() -> None:
    path = plan_path(replace(ALWAYS, sampler="euler_unit"), [0.5, 0.8], [3, 1])
    torch.testing.assert_close(path.timesteps_NB, torch.tensor([[0.497, 0.799], [0.498, 0.799], [0.499, 0.799]]))
    torch.testing.assert_close(path.sizes_NB, torch.tensor([[0.001, 0.0], [0.001, 0.0], [0.001, 0.001]]))


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, "1 more forward pass for"),
        ({"sampler": "heun", "num_sampler_steps": 3}, "6 more forward passes for"),
        ({"sampler": "euler_unit", "max_step_offset": 8, "use_reflexflow": True}, "up to 9 more forward passes for"),
    ],
)
def test_the_log_says_what_it_costs(changes: dict[str, object], passes: str) -> None:
    assert f"rollout: {passes} the rolled samples" in RolloutSettings(**changes).sentence  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_step_offset": 0}, "max_step_offset is 0: it must be at least 1"),
        ({"probability": 0.0}, "probability is 0, so no sample would be rolled"),
        ({"num_ramp_steps": 5, "probability_end": 0.0}, "probability_start and probability_end are 0"),
        ({"num_ramp_steps": 5, "probability": 0.7}, "probability is 0.7, which num_ramp_steps 5 does not use"),
        ({"probability_start": 0.1}, "probability_start is 0.1, which num_ramp_steps 0 does not use"),
        ({"ramp_shape": "cosine"}, "ramp_shape is 'cosine', which num_ramp_steps 0 does not use"),
        (
            {"sampler": "euler_unit", "num_sampler_steps": 3},
            "num_sampler_steps is 3, which sampler euler_unit does not",
        ),
        ({"sampler": "dpm"}, "sampler is 'dpm': choose one of euler, euler_unit, heun"),
        *(({name: 2.0}, f"{name} is 2.0, which use_reflexflow False does not use") for name in REFLEXFLOW_SETTINGS),
    ],
)
def test_combinations_without_a_meaning_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        RolloutSettings(**changes)  # type: ignore[arg-type]
