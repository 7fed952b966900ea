"""Training on several folders, captions and crops at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.adapters.kinds import ADAPTERS, without_adapter
from lumina2_trainer.trainer_core.adapters.lora import LoRASettings
from lumina2_trainer.trainer_core.data.folder import DatasetFolderSettings
from lumina2_trainer.trainer_core.errors import StopTraining, TrainerError
from lumina2_trainer.trainer_core.lumina2.models.base_files import load_base_transformer
from lumina2_trainer.trainer_core.lumina2.objective import make_noisy_batch, predict_velocity
from lumina2_trainer.trainer_core.run.job import TrainFullSettings
from lumina2_trainer.trainer_core.stages import train as train_steps
from lumina2_trainer.trainer_core.training.base_targets import with_base_targets

from ..run.test_train import StopAfter, assert_equal_tensors, final_tensors, log_of
from ..training_setup import PICTURES, TRAIN, Setup, make_setup

MIXED = (
    DatasetFolderSettings(
        folder="pictures",
        resolution=64,
        aspect="square",
        crop_style="random",
        num_crops=3,
        probability=4.0,
        trigger_words="tok",
        caption_source="one_text",
        caption="red, blue, green, square",
        num_tag_shuffles=3,
    ),
    DatasetFolderSettings(folder="pictures", resolution=64, more_resolutions="128", caption_lines="one_each"),
)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return make_setup(tmp_path_factory.mktemp("mixed") / "setup", MIXED)


def test_a_mixed_run_resumes_bit_for_bit(mixed: Setup, tmp_path: Path) -> None:
    train = replace(TRAIN, steps=8, seed=11)
    whole = mixed.moved_to(tmp_path / "whole").train(train)
    stopped = mixed.moved_to(tmp_path / "stopped")
    with pytest.raises(StopTraining):
        stopped.with_stop(StopAfter(3)).train(train)
    resumed = stopped.train(train)
    assert resumed.losses == whole.losses
    assert_equal_tensors(final_tensors(whole.adapter.run_dir), final_tensors(resumed.adapter.run_dir))
    files = [record["files"] for record in log_of(whole.adapter.run_dir)]
    assert files == [record["files"] for record in log_of(resumed.adapter.run_dir)]
    assert {name[0] for batch in files for name in batch} >= {"1", "2"}


def test_regularisation_compares_the_adapter_with_the_base(tmp_path: Path) -> None:
    setup = make_setup(tmp_path / "setup", (PICTURES, replace(PICTURES, is_regularisation=True)))

    def losses_of(learning_rate: float) -> dict[bool, list[float]]:
        """By whether the sample is one of regularisation."""
        train = replace(TRAIN, steps=12, batch_size=1, learning_rate=learning_rate, run_name=f"lr{learning_rate:g}")
        train = replace(train, gradient_checkpointing=True)
        losses: dict[bool, list[float]] = {True: [], False: []}
        for record in log_of(setup.train(train).adapter.run_dir):
            losses[record["files"][0].startswith("2/")].append(record["loss"])
        return losses

    unchanged, trained = losses_of(0.0), losses_of(1e-3)
    assert len(unchanged[True]) >= 3 and len(unchanged[False]) >= 3
    assert max(unchanged[True]) == 0, "a new adapter is the base"
    assert 0 < max(trained[True]) < 0.1 * min(trained[False])
    assert min(unchanged[False]) > 0.1


def test_the_targets_of_other_samples_stay(tmp_path: Path) -> None:
    setup = make_setup(tmp_path / "setup")
    transformer = load_base_transformer(setup.model, torch.device("cpu")).requires_grad_(False)
    lora = LoRASettings()
    parameters = ADAPTERS["lora"].attach(transformer, lora, rank=2, alpha=2.0, seed=0)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.normal_(0, 0.2)
    generator = torch.Generator().manual_seed(0)
    latents = [torch.randn(16, 6, 10, generator=generator), torch.randn(16, 8, 4, generator=generator)]
    config = transformer.config
    batch = make_noisy_batch(
        latents,
        [torch.randn(x.shape, generator=generator) for x in latents],
        torch.tensor([0.3, 0.8]),
        [torch.randn(length, config.cap_feat_dim, generator=generator) for length in (3, 5)],
        config.axes_dims,
        torch.device("cpu"),
    )
    with torch.no_grad(), without_adapter(transformer):
        base_TC = predict_velocity(transformer, batch)
    changed = with_base_targets(transformer, without_adapter, batch, (False, True), "fp32", torch.device("cpu"))
    assert torch.equal(changed.target_TC[:15], batch.target_TC[:15])
    torch.testing.assert_close(changed.target_TC[15:], base_TC[15:])
    assert not torch.allclose(predict_velocity(transformer, batch).detach()[15:], base_TC[15:], atol=1e-3)
    assert all(parameter.requires_grad for parameter in parameters.values())
    assert with_base_targets(transformer, without_adapter, batch, (False, False), "fp32", torch.device("cpu")) is batch


def test_regularisation_without_something_else_or_without_an_adapter_is_refused(tmp_path: Path) -> None:
    kept = replace(PICTURES, is_regularisation=True)
    setup = make_setup(tmp_path / "one", (kept,))
    with pytest.raises(TrainerError, match="is_regularisation is on for all folders, so there is nothing to learn"):
        setup.train()
    both = make_setup(tmp_path / "two", (PICTURES, kept))
    with pytest.raises(TrainerError, match="is_regularisation is on for a folder, but Train Full Model"):
        train_steps.train_full(
            TrainFullSettings(run_name="full", optimizer="adamw"),
            model=both.model,
            latents=both.latents,
            embeds=both.embeds,
            context=both.context,
        )
