"""Training the model itself: what it learns, resumes, refuses and leaves behind."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lumina2_trainer.trainer_core.data.folder import DatasetFolderSettings
from lumina2_trainer.trainer_core.errors import StopTraining, TrainerError
from lumina2_trainer.trainer_core.lumina2.models.checkpoint import load_transformer, read_config
from lumina2_trainer.trainer_core.stages import caches, validate
from lumina2_trainer.trainer_core.stages.dataset import read_dataset_folder
from lumina2_trainer.trainer_core.training.optim.settings import OptimizerSettings
from lumina2_trainer.trainer_core.training.settings import CheckpointSettings
from lumina2_trainer.trainer_core.validation.settings import ValidateSettings
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from ..full_setup import TRAIN_FULL, train_full, trained_full
from ..lumina2.tiny_models import CPU, TINY
from ..training_setup import PROMPTS, TRAIN, Setup
from .test_train import StopAfter, assert_equal_tensors, log_of

pytestmark = pytest.mark.train


def run_dir_of(result: caches.TrainFullResult) -> Path:
    return Path(result.model.base_path).parent.parent


def with_precision(setup: Setup, precision: str) -> Setup:
    return replace(setup, model=replace(setup.model, precision=precision))


@pytest.mark.train
@pytest.mark.parametrize(
    ("precision", "optimizer"),
    [("fp32", "adamw"), ("fp32", "adamw8bit"), ("bf16", "adamw8bit"), ("bf16", "adamw_bf16"), ("bf16", "lion")],
)
def test_training_lowers_the_loss_on_its_own_samples(fresh: Setup, precision: str, optimizer: str) -> None:
    rate = 3e-4 if optimizer == "lion" else 2e-3
    settings = replace(TRAIN_FULL, steps=24, batch_size=4, learning_rate=rate, caption_dropout=0.0, optimizer=optimizer)
    losses = torch.tensor(train_full(with_precision(fresh, precision), settings).losses)
    assert losses[-8:].mean() < 0.6 * losses[:4].mean()


@pytest.mark.train
def test_optimizers_and_precisions_learn_alike(fresh: Setup) -> None:
    settings = replace(TRAIN_FULL, steps=8, learning_rate=1e-3)
    free = OptimizerSettings(max_grad_norm=0.0)
    exact = train_full(fresh, replace(settings, optimizer="adamw"), optimizer_settings=free)
    small = train_full(fresh, replace(settings, run_name="small"), optimizer_settings=free)
    rounded = train_full(with_precision(fresh, "bf16"), replace(settings, run_name="bf16"), optimizer_settings=free)
    assert small.losses == pytest.approx(exact.losses, rel=0.05)
    assert rounded.losses == pytest.approx(exact.losses, rel=0.1)


@pytest.mark.train
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(fresh: Setup, tmp_path: Path, precision: str) -> None:
    settings = {"optimizer_settings": OptimizerSettings(lr_schedule="cosine", gradient_accumulation_steps=2)}
    setup = with_precision(fresh, precision)
    short = replace(TRAIN_FULL, steps=4)
    whole = train_full(setup, short, **settings)
    other = setup.moved_to(tmp_path / "stopped")
    with pytest.raises(StopTraining):
        train_full(other.with_stop(StopAfter(2)), short, **settings)
    # Where the state lies changes nothing, so a run may go on with it elsewhere.
    settings["optimizer_settings"] = replace(settings["optimizer_settings"], optimizer_state="host")
    resumed = train_full(other, short, **settings)
    assert resumed.losses == whole.losses
    assert_equal_tensors(load_file(whole.model.base_path), load_file(resumed.model.base_path))


@pytest.mark.train
def test_recomputation_gives_the_same_result(fresh: Setup) -> None:
    plain = trained_full(fresh)
    recomputed = train_full(
        fresh.moved_to(fresh.context.output_dir / "again"), replace(TRAIN_FULL, gradient_checkpointing=True)
    )
    assert recomputed.losses == pytest.approx(plain.losses, rel=1e-5)


def test_every_weight_moves(fresh: Setup) -> None:
    trained = load_file(trained_full(fresh).model.base_path)
    base = load_transformer(Path(fresh.model.base_path), device=CPU, dtype=torch.float32).state_dict()
    assert trained.keys() == base.keys()
    assert [name for name in base if torch.equal(trained[name], base[name])] == []


def test_norms_and_biases_are_not_decayed(fresh: Setup) -> None:
    strong = OptimizerSettings(weight_decay=10.0, max_grad_norm=0.0, epsilon=1.0)  # epsilon: the gradient moves nothing
    trained = load_file(
        train_full(fresh, replace(TRAIN_FULL, learning_rate=1e-2), optimizer_settings=strong).model.base_path
    )
    base = load_transformer(Path(fresh.model.base_path), device=CPU, dtype=torch.float32).state_dict()
    shrunk = 0.9**6
    for name, weight in base.items():
        ratio = (trained[name].norm() / weight.norm()).item()
        assert ratio == pytest.approx(shrunk if weight.ndim > 1 else 1.0, rel=0.1), name


def test_finished_model_says_what_it_is_and_holds_no_paths(fresh: Setup) -> None:
    result = train_full(with_precision(fresh, "bf16"))
    path = Path(result.model.base_path)
    assert path.relative_to(fresh.context.runs_dir).as_posix() == "model/final/model.safetensors"
    assert read_config(path) == TINY
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
    assert metadata["modelspec.architecture"] == "lumina-2"
    assert metadata["ss_steps"] == "6"
    assert "ss_network_dim" not in metadata
    assert not any(str(fresh.context.output_dir.parent) in value for value in metadata.values())


def test_checkpoints_hold_each_weight_once_and_can_be_loaded_as_a_base(fresh: Setup) -> None:
    schedule = CheckpointSettings(checkpoint_step_interval=2, num_checkpoints_kept=2)
    result = train_full(fresh, checkpoints=schedule)
    checkpoints = sorted((run_dir_of(result) / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["step-000004", "step-000006"]
    assert read_config(checkpoints[0] / "model.safetensors") == TINY
    names = load_file(checkpoints[0] / "training_state.safetensors").keys()
    assert {name.split("/")[0] for name in names} == {"optimizer"}
    assert {name.rpartition("/")[2] for name in names} == {"moments"}


def test_finished_job_returns_at_once(fresh: Setup) -> None:
    events: list = []
    first = train_full(fresh)
    again = train_full(fresh.with_events(events))
    assert again.reused
    assert (again.model, again.losses) == (first.model, first.losses)
    assert events[-1].data == {"step": 6, "model": "final/model.safetensors", "reused": True}


@pytest.mark.train
def test_trained_model_is_validated_and_trained_again_as_any_base(fresh: Setup) -> None:
    trained = train_full(fresh, validation=PROMPTS)
    assert len(trained.validation_images) == 2
    # The file says which system prompt it was trained with, so "from adapter" need not be changed.
    settings = ValidateSettings(prompts=PROMPTS.prompts, width=64, height=96, num_inference_steps=2)
    drawn = validate.validate(settings, model=trained.model, context=fresh.context)
    for ours, theirs in zip(drawn.images, trained.validation_images, strict=True):
        pictures = [np.asarray(Image.open(path), dtype=int) for path in (ours, theirs)]
        assert abs(pictures[0] - pictures[1]).max() <= 1
    behind = replace(fresh, model=trained.model)
    lora = behind.train(replace(TRAIN, run_name="on_top"))
    assert len(lora.losses) == 6
    further = train_full(behind, replace(TRAIN_FULL, run_name="further"))
    assert run_dir_of(further).name == "further"
    folder = DatasetFolderSettings(folder="pictures", resolution=64)
    dataset = read_dataset_folder(folder, context=fresh.context).dataset
    caches.cache_text_embeds(
        caches.CacheTextEmbedsSettings(), model=trained.model, dataset=dataset, context=fresh.context
    )


@pytest.mark.train
def test_non_finite_loss_updates_nothing_and_keeps_the_work(fresh: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    from lumina2_trainer.trainer_core.training import session as session_module

    whole = trained_full(fresh.moved_to(fresh.context.output_dir / "whole"))
    true_loss, calls = session_module.flow_matching_loss, []

    def poisoned(*arguments):
        calls.append(1)
        loss_B = true_loss(*arguments)
        return loss_B * torch.tensor([1.0, math.nan]) if len(calls) == 4 else loss_B

    monkeypatch.setattr(session_module, "flow_matching_loss", poisoned)
    with pytest.raises(TrainerError, match=r"step 4: the loss is not a finite number, .*Nothing was updated"):
        train_full(fresh)
    assert [p.name for p in (fresh.context.runs_dir / "model" / "checkpoints").iterdir()] == ["step-000003"]
    monkeypatch.undo()
    assert train_full(fresh).losses == whole.losses


@pytest.mark.train
def test_gradient_that_is_not_finite_sends_the_run_back_to_its_checkpoint(
    fresh: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lumina2_trainer.trainer_core.training.optim.rounded_adamw import RoundedAdamW

    whole = trained_full(fresh.moved_to(fresh.context.output_dir / "whole"))
    true_update, calls = RoundedAdamW.step_parameter, []

    def poisoned(self, parameter, guard=None):
        calls.append(1)
        num_parameters = sum(len(group["params"]) for group in self.param_groups)
        if len(calls) == 3 * num_parameters + 5:
            parameter.grad.view(-1)[0] = math.inf
        true_update(self, parameter, guard)

    monkeypatch.setattr(RoundedAdamW, "step_parameter", poisoned)
    with pytest.raises(TrainerError, match=r"the gradient is not a finite number, .* goes on from its last checkpoint"):
        train_full(fresh, checkpoints=CheckpointSettings(checkpoint_step_interval=2))
    monkeypatch.undo()
    assert [p.name for p in (fresh.context.runs_dir / "model" / "checkpoints").iterdir()] == ["step-000002"]
    assert train_full(fresh).losses == whole.losses


def test_what_cannot_train_the_model_is_refused_before_any_weight_is_read(fresh: Setup) -> None:
    with pytest.raises(TrainerError, match="optimizer is adamw, whose small updates bf16 weights would lose"):
        train_full(with_precision(fresh, "bf16"), replace(TRAIN_FULL, optimizer="adamw"))
    with pytest.raises(TrainerError, match='optimizer_state is "host", which adamw cannot do'):
        fresh.train(optimizer_settings=OptimizerSettings(optimizer_state="host"))
    with pytest.raises(TrainerError, match="run_name is 'cache': that name is taken"):
        replace(TRAIN_FULL, run_name="cache")
    assert not fresh.context.runs_dir.exists()


def test_log_tells_the_length_of_all_gradients(fresh: Setup) -> None:
    by_step = [
        log_of(run_dir_of(train_full(fresh, replace(TRAIN_FULL, run_name=name, optimizer=name))))[0]
        for name in ("adamw", "adamw8bit")
    ]
    assert by_step[1]["grad_norm"] == pytest.approx(by_step[0]["grad_norm"], rel=1e-5)
    assert json.dumps(by_step[1])
