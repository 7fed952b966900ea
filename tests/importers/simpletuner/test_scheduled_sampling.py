"""Scheduled sampling as the settings of Rollout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.importers.simpletuner.translate import DEFAULT, IGNORED, Translation
from lumina2_trainer.trainer_core.training.rollout_settings import RolloutSettings

from .quickstart_files import QUICKSTART, minimal, translate_files

PREFIX = "scheduled_sampling_"


def translate_sampling(folder: Path, **options: Any) -> Translation:
    """A configuration with these keys of scheduled sampling."""
    return translate_files(folder, minimal(**{PREFIX + key: value for key, value in options.items()}))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"probability": 1.0, "reflexflow": False}, {"probability": 1.0}),
        ({"probability": "0.25", "reflexflow": "false", "strategy": "biased_late"}, {"strategy": "biased_late"}),
        ({"probability": 1.0, "start_step": 50, "ramp_shape": "cosine"}, {"start_step": 1, "ramp_shape": "linear"}),
        ({"probability": 1.0, "reflexflow_alpha": 2, "reflexflow_beta1": 3}, {"use_reflexflow": True}),
        ({"probability": 1.0, "reflexflow_alpha": 2}, {"reflexflow_alpha": 2.0, "reflexflow_beta1": 10.0}),
        ({"probability": 1.0, "reflexflow": None, "reflexflow_beta2": 0.5}, {"reflexflow_beta2": 0.5}),
        ({"probability": 1.0, "reflexflow": False, "reflexflow_beta1": 3}, {"reflexflow_beta1": 10.0}),
        ({"probability": 1.0, "sampler": "unipc", "order": 3}, {"sampler": "euler_unit", "num_sampler_steps": 1}),
        (
            {"ramp_steps": 100, "start_step": 0},
            {"num_ramp_steps": 100, "start_step": 1, "probability_start": 0.0, "probability_end": 0.5},
        ),
        (
            {"ramp_steps": 100, "start_step": 20, "prob_start": 0.1, "prob_end": 0.9, "ramp_shape": "cosine"},
            {"start_step": 20, "probability_start": 0.1, "probability_end": 0.9, "ramp_shape": "cosine"},
        ),
        ({"ramp_steps": 100, "probability": 0.2}, {"probability_start": 0.2, "probability_end": 0.5}),
    ],
    ids=str,
)
def test_keys_become_settings_of_rollout(tmp_path: Path, options: dict[str, Any], wanted: dict[str, Any]) -> None:
    rollout = translate_sampling(tmp_path, max_step_offset=8, **options).settings["rollout"]
    assert isinstance(rollout, RolloutSettings)
    assert rollout.max_step_offset == 8
    assert rollout.sampler == "euler_unit"
    assert {name: getattr(rollout, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"probability": 1.0}, "max_step_offset is 0"),
        ({"max_step_offset": 0, "ramp_steps": 10}, "max_step_offset is 0"),
        ({"max_step_offset": 8}, "probability is 0 and there is no ramp, so nothing would be rolled"),
        ({"max_step_offset": 8, "reflexflow": True}, "nothing would be rolled"),
        ({"max_step_offset": 8, "ramp_steps": 10, "prob_end": 0}, "every probability is 0"),
    ],
    ids=str,
)
def test_nothing_rolled_is_no_node_and_every_key_says_why(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    translation = translate_sampling(tmp_path, **options)
    assert "rollout" not in translation.settings
    rows = [row for row in translation.rows if row.key.startswith(PREFIX)]
    assert [row.key for row in rows] == [PREFIX + key for key in options]
    assert all(row.state == IGNORED and row.note for row in rows)
    assert any(reason in row.note for row in rows)


def test_quickstart_says_nothing_of_it(tmp_path: Path) -> None:
    translation = translate_files(tmp_path, QUICKSTART)
    assert "rollout" not in translation.settings
    assert not [row for row in translation.rows if row.key.startswith(PREFIX)]


def test_defaults_that_act_are_named(tmp_path: Path) -> None:
    translation = translate_sampling(tmp_path, max_step_offset=8, ramp_steps=10)
    defaults = {row.key.removeprefix(PREFIX) for row in translation.rows if row.state == DEFAULT}
    assert {"prob_start", "prob_end", "reflexflow", "sampler"} <= defaults
    assert "probability" not in defaults


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_step_offset": 1001}, "max_step_offset, as Rollout: max_step_offset is 1001: it must be at most 1000"),
        ({"max_step_offset": -1}, "max_step_offset is -1: it must be 0 or more"),
        ({"probability": 2}, "probability, as Rollout: probability is 2.0: it must be at most 1"),
        ({"strategy": "late"}, "strategy is 'late': it must be one of uniform, biased_early, biased_late"),
        ({"reflexflow": "perhaps"}, "reflexflow is 'perhaps': it must be true or false"),
        ({"ramp_steps": 5, "ramp_shape": "steep"}, "ramp_shape is 'steep': it must be one of linear, cosine"),
    ],
    ids=str,
)
def test_bad_value_is_one_sentence(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        translate_sampling(tmp_path, **{"max_step_offset": 8, "probability": 1.0, **options})
