"""What every optimizer of the registry does for an adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.errors import StopTraining
from lumina2_trainer.trainer_core.training.optim.optimizers import OPTIMIZERS

from ..training_setup import TRAIN, Setup
from .test_train import StopAfter, assert_equal_tensors, final_tensors

RATES = {"prodigy": 1.0, "lion": 2e-3}
NUM_STEPS = {"prodigy": 120}
"""It has to find its rate first, from 1e-6 on."""
HERE = [name for name, kind in OPTIMIZERS.items() if not kind.devices]


@pytest.mark.parametrize("optimizer", HERE)
def test_a_short_run_resumes_bit_for_bit(fresh: Setup, tmp_path: Path, optimizer: str) -> None:
    settings = replace(TRAIN, steps=4, optimizer=optimizer, learning_rate=RATES.get(optimizer, TRAIN.learning_rate))
    whole = fresh.train(settings)
    other = fresh.moved_to(tmp_path / "stopped")
    with pytest.raises(StopTraining):
        other.with_stop(StopAfter(2)).train(settings)
    resumed = other.train(settings)
    assert resumed.losses == whole.losses
    assert_equal_tensors(final_tensors(whole.adapter.run_dir), final_tensors(resumed.adapter.run_dir))


@pytest.mark.train
@pytest.mark.parametrize("optimizer", HERE)
def test_loss_falls_and_a_resumed_run_equals_an_uninterrupted_one(fresh: Setup, tmp_path: Path, optimizer: str) -> None:
    steps, rate = NUM_STEPS.get(optimizer, 24), RATES.get(optimizer, TRAIN.learning_rate)
    settings = replace(TRAIN, steps=steps, batch_size=4, caption_dropout=0.0, optimizer=optimizer, learning_rate=rate)
    whole = fresh.train(settings)
    losses = torch.tensor(whole.losses)
    assert losses[-6:].mean() < 0.9 * losses[:4].mean()
    other = fresh.moved_to(tmp_path / "stopped")
    with pytest.raises(StopTraining):
        other.with_stop(StopAfter(13)).train(settings)
    resumed = other.train(settings)
    assert resumed.losses == whole.losses
    assert_equal_tensors(final_tensors(whole.adapter.run_dir), final_tensors(resumed.adapter.run_dir))
