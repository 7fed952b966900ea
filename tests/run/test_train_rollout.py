"""Runs with a rollout: they learn, resume exactly, say how often it acted, and without it nothing changes."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.adapters.lora import LoRASettings
from lumina2_trainer.trainer_core.adapters.lycoris_settings import LyCORISSettings
from lumina2_trainer.trainer_core.errors import StopTraining, TrainerError
from lumina2_trainer.trainer_core.lumina2.timesteps import NoiseSettings
from lumina2_trainer.trainer_core.training import session as session_module
from lumina2_trainer.trainer_core.training.optim.settings import OptimizerSettings
from lumina2_trainer.trainer_core.training.rollout_settings import RolloutSettings

from ..full_setup import TRAIN_FULL, train_full
from ..training_setup import PICTURES, TRAIN, Setup, make_setup
from .test_train import StopAfter, assert_equal_tensors, final_tensors, log_of

pytestmark = pytest.mark.train

RAMP = RolloutSettings(
    num_ramp_steps=4,
    probability_end=0.8,
    max_step_offset=300,
    num_sampler_steps=2,
    target="corrective",
    use_reflexflow=True,
    reflexflow_beta1=0.5,
)
OFTEN = RolloutSettings(probability=0.7, max_step_offset=300)


@pytest.mark.train
def test_a_run_with_a_rollout_lowers_the_loss(fresh: Setup) -> None:
    train = replace(TRAIN, steps=60, batch_size=4, learning_rate=3e-3, caption_dropout=0.0)
    result = fresh.train(train, rollout=OFTEN)
    losses = torch.tensor(result.losses)
    assert losses[-15:].mean() < 0.8 * losses[:10].mean()
    numbers = [record["num_rolled"] for record in log_of(result.adapter.run_dir)]
    assert 0.6 < sum(numbers) / 240 < 0.8


@pytest.mark.train
@pytest.mark.parametrize("adapter", [LoRASettings(dropout=0.3), LyCORISSettings(algorithm="lokr", dropout=0.3)])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(fresh: Setup, tmp_path: Path, adapter: object) -> None:
    sockets = {
        "rollout": RAMP,
        "adapter_settings": adapter,
        "optimizer_settings": OptimizerSettings(gradient_accumulation_steps=2),
        "noise_schedule": NoiseSettings(input_perturbation=0.1),
    }
    whole = fresh.train(**sockets)
    stopped = fresh.moved_to(tmp_path / "stopped")
    with pytest.raises(StopTraining):
        stopped.with_stop(StopAfter(3)).train(**sockets)
    resumed = stopped.train(**sockets)
    assert resumed.losses == whole.losses
    assert_equal_tensors(final_tensors(whole.adapter.run_dir), final_tensors(resumed.adapter.run_dir))
    logs = [[r["num_rolled"] for r in log_of(run.adapter.run_dir)] for run in (whole, resumed)]
    assert logs[0] == logs[1] and sum(logs[0][3:]) > 3 and logs[0][0] == 0


def test_accumulated_batches_equal_one_large_batch(fresh: Setup) -> None:
    tame = OptimizerSettings(epsilon=1.0)  # Adam's division by tiny gradients would blow up rounding
    large = fresh.train(replace(TRAIN, batch_size=4, run_name="large"), optimizer_settings=tame, rollout=OFTEN)
    small = fresh.train(
        replace(TRAIN, batch_size=2, run_name="small"),
        optimizer_settings=replace(tame, gradient_accumulation_steps=2),
        rollout=OFTEN,
    )
    logs = [log_of(run.adapter.run_dir) for run in (large, small)]
    assert [r["num_rolled"] for r in logs[0]] == [r["num_rolled"] for r in logs[1]]
    for key in ("loss", "grad_norm"):
        assert [r[key] for r in logs[0]] == pytest.approx([r[key] for r in logs[1]], rel=1e-5)


def test_it_acts_from_start_step_on_and_before_that_nothing_differs(fresh: Setup) -> None:
    plain = fresh.trained()
    late = fresh.train(
        replace(TRAIN, run_name="late"), rollout=RolloutSettings(start_step=4, probability=1.0, max_step_offset=300)
    )
    assert [r["num_rolled"] for r in log_of(late.adapter.run_dir)] == [0, 0, 0, 2, 2, 2]
    assert "num_rolled" not in log_of(plain.adapter.run_dir)[0]
    assert late.losses[:3] == plain.losses[:3]
    assert late.losses[3:] != plain.losses[3:]


def test_without_a_rollout_none_of_its_code_runs_and_the_job_is_the_same(
    fresh: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fresh.trained()
    identity = json.loads((Path(first.adapter.run_dir) / "job.json").read_text())
    assert identity["rollout"] is None

    def fail(*args: object) -> None:
        raise AssertionError("a rollout nobody asked for")

    monkeypatch.setattr(session_module, "with_rollout", fail)
    again = fresh.moved_to(fresh.context.output_dir / "again").train()
    assert again.losses == first.losses
    assert_equal_tensors(final_tensors(first.adapter.run_dir), final_tensors(again.adapter.run_dir))


def test_another_rollout_is_another_job(fresh: Setup) -> None:
    short = replace(TRAIN, steps=1)
    dirs = [Path(fresh.train(short, rollout=rollout).adapter.run_dir).name for rollout in (None, OFTEN, RAMP, OFTEN)]
    assert dirs == ["run", "run-2", "run-3", "run-2"]


def test_full_training_rolls_too(fresh: Setup, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        result = train_full(fresh, replace(TRAIN_FULL, steps=3), rollout=OFTEN)
    records = log_of(str(Path(result.model.base_path).parents[1]))
    assert len(result.losses) == 3 and sum(record["num_rolled"] for record in records) > 0
    assert "rollout: 1 more forward pass for" in caplog.text


def test_regularisation_samples_keep_the_bases_answer_to_their_own_input(tmp_path: Path) -> None:
    setup = make_setup(tmp_path / "setup", (PICTURES, replace(PICTURES, is_regularisation=True)))
    train = replace(TRAIN, steps=12, batch_size=1, learning_rate=0.0)
    records = log_of(setup.train(train, rollout=replace(OFTEN, probability=1.0)).adapter.run_dir)
    is_kept = [record["files"][0].startswith("2/") for record in records]
    assert [record["num_rolled"] for record in records] == [0 if kept else 1 for kept in is_kept]
    assert 3 <= sum(is_kept) <= 9
    assert all((record["loss"] == 0) == kept for record, kept in zip(records, is_kept, strict=True))


def test_a_rollout_that_would_begin_after_the_run_is_refused(fresh: Setup) -> None:
    with pytest.raises(TrainerError, match="start_step of Rollout is 7 but the run has only 6 steps: lower it"):
        fresh.train(rollout=replace(OFTEN, start_step=7))
