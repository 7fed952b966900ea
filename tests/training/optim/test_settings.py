"""Learning-rate schedules: hand values, warm-up, and what refuses to be ignored."""

from __future__ import annotations

import math

import pytest
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.training.optim.settings import LR_SCHEDULES, OptimizerSettings, lr_factor


def factors(num_steps: int, **settings: object) -> list[float]:
    chosen = OptimizerSettings(**settings)
    return [lr_factor(chosen, step, num_steps) for step in range(1, num_steps + 1)]


@pytest.mark.parametrize("schedule", LR_SCHEDULES)
def test_warm_up_rises_evenly_and_the_schedule_begins_at_the_top(schedule: str) -> None:
    values = factors(24, lr_schedule=schedule, num_warmup_steps=4)
    assert values[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert all(0 <= value <= 1 for value in values)
    assert values[-1] == pytest.approx(1.0 if schedule == "constant" else 0.0)


@pytest.mark.parametrize("schedule", [name for name in LR_SCHEDULES if name != "constant"])
def test_last_step_has_the_share_that_is_to_be_left(schedule: str) -> None:
    values = factors(11, lr_schedule=schedule, lr_end_ratio=0.2)
    assert values[0] == pytest.approx(1.0)
    assert values[-1] == pytest.approx(0.2)


def test_hand_values() -> None:
    assert factors(5, lr_schedule="linear") == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
    assert factors(5, lr_schedule="polynomial", lr_power=2.0) == pytest.approx([1.0, 0.5625, 0.25, 0.0625, 0.0])
    half = math.cos(math.pi / 4)
    assert factors(5, lr_schedule="cosine") == pytest.approx([1.0, (1 + half) / 2, 0.5, (1 - half) / 2, 0.0])
    assert factors(9, lr_schedule="cosine_with_restarts", lr_num_cycles=2) == pytest.approx(
        [1.0, (1 + half) / 2, 0.5, (1 - half) / 2, 1.0, (1 + half) / 2, 0.5, (1 - half) / 2, 0.0]
    )


def test_one_step_is_at_the_full_rate() -> None:
    assert [factors(1, lr_schedule=schedule) for schedule in LR_SCHEDULES] == [[1.0]] * len(LR_SCHEDULES)


@pytest.mark.parametrize(
    ("schedule", "setting"),
    [("constant", {"lr_end_ratio": 0.1}), ("cosine", {"lr_num_cycles": 2}), ("linear", {"lr_power": 2.0})],
)
def test_setting_that_a_schedule_ignores_is_refused(schedule: str, setting: dict) -> None:
    with pytest.raises(TrainerError, match=f"{next(iter(setting))} is .*, which lr_schedule {schedule} does not use"):
        OptimizerSettings(lr_schedule=schedule, **setting)
