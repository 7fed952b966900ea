"""Runs that keep an average, or whose optimizer averages: checkpoints, pictures, files, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.errors import StopTraining, TrainerError
from lumina2_trainer.trainer_core.events import Event
from lumina2_trainer.trainer_core.lumina2.models.checkpoint import read_config
from lumina2_trainer.trainer_core.stages import save
from lumina2_trainer.trainer_core.training.settings import CheckpointSettings
from lumina2_trainer.trainer_core.training.weight_views import Ema, ema_decay
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from ..full_setup import TRAIN_FULL, train_full
from ..lumina2.tiny_models import TINY
from ..training_setup import PROMPTS, TRAIN, Setup
from .test_train import StopAfter, assert_equal_tensors, final_tensors

pytestmark = pytest.mark.train

EACH_STEP = CheckpointSettings(checkpoint_step_interval=1, num_checkpoints_kept=20)
EMA = replace(EACH_STEP, use_ema=True, ema_decay=0.9)


def file_of(run_dir: str | Path, step: int, name: str) -> Path:
    return Path(run_dir) / "checkpoints" / f"step-{step:06d}" / name


def test_average_of_an_adapter_is_the_average_of_its_checkpoints_and_changes_nothing_else(fresh: Setup) -> None:
    plain = fresh.moved_to(fresh.context.output_dir / "plain").trained()
    result = fresh.trained(checkpoints=EMA)
    assert result.losses == plain.losses
    assert_equal_tensors(final_tensors(plain.adapter.run_dir), final_tensors(result.adapter.run_dir))
    averages = load_file(Path(result.adapter.run_dir) / "final" / "adapter_ema.safetensors")
    # Everything is linear in A and B, so the average of exported tensors is the export of the averages.
    lives = [load_file(file_of(result.adapter.run_dir, step, "adapter.safetensors")) for step in range(1, 7)]
    for name, average in averages.items():
        start = average - average  # B starts at zero; of A the start is solved for below
        expected = start
        left = 1.0
        for step, live in enumerate(lives, start=1):
            decay = ema_decay(0.9, step, 1)
            expected, left = decay * expected + (1 - decay) * live[name], left * decay
        if ".lora_B." in name:
            torch.testing.assert_close(average, expected, rtol=1e-4, atol=1e-7)
        else:
            assert (average - expected).norm() <= left * 1.2 * lives[0][name].norm()
    assert_equal_tensors(averages, load_file(file_of(result.adapter.run_dir, 6, "adapter_ema.safetensors")))
    with safe_open(Path(result.adapter.run_dir) / "final" / "adapter_ema.safetensors", "pt") as file:
        assert file.metadata()["lumina2_trainer.weights"] == "ema"


def test_interrupt_between_weights_and_average_saves_no_step_that_is_neither(
    fresh: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(EMA, checkpoint_step_interval=2)
    whole = fresh.train(checkpoints=settings)
    other = fresh.moved_to(tmp_path / "interrupted")
    true_update = Ema.update

    def update(self: Ema, parameters: Mapping[str, nn.Parameter], step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt
        true_update(self, parameters, step)

    with monkeypatch.context() as interrupted:
        interrupted.setattr(Ema, "update", update)
        with pytest.raises(KeyboardInterrupt):
            other.train(checkpoints=settings)
    assert [path.name for path in (other.context.runs_dir / "run" / "checkpoints").iterdir()] == ["step-000002"]
    resumed = other.train(checkpoints=settings)
    assert resumed.losses == whole.losses
    assert_equal_tensors(final_tensors(whole.adapter.run_dir), final_tensors(resumed.adapter.run_dir))


@pytest.mark.parametrize("ema_device", ["device", "cpu"])
def test_average_resumes_bit_for_bit(fresh: Setup, tmp_path: Path, ema_device: str) -> None:
    settings = replace(EMA, ema_step_interval=2, checkpoint_step_interval=0, ema_device=ema_device)
    train = replace(TRAIN, steps=4)
    whole = fresh.train(train, checkpoints=settings)
    other = fresh.moved_to(tmp_path / "stopped")
    with pytest.raises(StopTraining):
        other.with_stop(StopAfter(3)).train(train, checkpoints=settings)
    resumed = other.train(train, checkpoints=settings)
    for name in ("adapter.safetensors", "adapter_ema.safetensors"):
        files = [Path(result.adapter.run_dir) / "final" / name for result in (whole, resumed)]
        assert_equal_tensors(load_file(files[0]), load_file(files[1]))


def test_pictures_of_both_lie_side_by_side(fresh: Setup) -> None:
    events: list[Event] = []
    fresh.with_events(events).train(checkpoints=EMA, validation=PROMPTS)
    drawn = next(event for event in events if event.kind == "validation").data
    names = [Path(image).name for image in drawn["images"]]
    assert names == ["00.png", "00_ema.png", "01.png", "01_ema.png"]
    assert drawn["weights"] == ["live", "ema"] * 2
    assert drawn["prompts"] == ["a red square"] * 2 + ["a blue square"] * 2
    folder = fresh.context.runs_dir / "run" / Path(drawn["images"][0]).parent
    assert (folder / "00.png").read_bytes() != (folder / "00_ema.png").read_bytes()


@pytest.mark.parametrize(("chosen", "names"), [("ema", ["00_ema.png", "01_ema.png"]), ("live", ["00.png", "01.png"])])
def test_pictures_of_one_where_that_is_asked_for(fresh: Setup, chosen: str, names: list[str]) -> None:
    result = fresh.train(checkpoints=replace(EMA, ema_validation=chosen), validation=PROMPTS)
    assert [path.name for path in result.validation_images] == names


def test_save_adapter_writes_the_chosen_weights(fresh: Setup) -> None:
    result = fresh.trained(checkpoints=EMA)
    saved = {}
    for weights in ("live", "ema"):
        settings = save.SaveAdapterSettings(name=weights, dtype="fp32", weights=weights)
        [path] = save.save_adapter(settings, adapter=result.adapter, context=fresh.context)
        saved[weights] = load_file(path)
    assert_equal_tensors(saved["live"], final_tensors(result.adapter.run_dir))
    assert_equal_tensors(saved["ema"], load_file(Path(result.adapter.run_dir) / "final" / "adapter_ema.safetensors"))


def test_average_that_was_not_kept_cannot_be_saved(fresh: Setup) -> None:
    settings = save.SaveAdapterSettings(weights="ema")
    message = r'weights is "ema", but there is no adapter_ema\.safetensors beside adapter\.safetensors: turn on use_ema'
    adapter = fresh.trained().adapter
    with pytest.raises(TrainerError, match=message):
        save.save_adapter(settings, adapter=adapter, context=fresh.context)
    with pytest.raises(TrainerError, match=r"there is no tiny_ema\.safetensors"):
        save.save_model(save.SaveModelSettings(weights="ema"), model=fresh.model, context=fresh.context)


def test_turning_the_average_on_starts_a_run_that_has_one(fresh: Setup) -> None:
    fresh.trained()
    assert Path(fresh.train(checkpoints=EMA).adapter.run_dir).name == "run-2"
    assert Path(fresh.train(checkpoints=replace(EMA, ema_device="cpu")).adapter.run_dir).name == "run-2"


@pytest.mark.train
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_average_of_the_full_model_resumes_and_is_saved_as_a_model(
    fresh: Setup, tmp_path: Path, precision: str
) -> None:
    setup = replace(fresh, model=replace(fresh.model, precision=precision))
    short = replace(TRAIN_FULL, steps=4)
    whole = train_full(setup, short, checkpoints=replace(EMA, checkpoint_step_interval=0))
    other = setup.moved_to(tmp_path / "stopped")
    with pytest.raises(StopTraining):
        train_full(other.with_stop(StopAfter(2)), short, checkpoints=EMA)
    resumed = train_full(other, short, checkpoints=EMA)
    path = Path(whole.model.base_path).with_name("model_ema.safetensors")
    average, live = load_file(path), load_file(whole.model.base_path)
    assert_equal_tensors(average, load_file(Path(resumed.model.base_path).with_name("model_ema.safetensors")))
    assert read_config(path) == TINY
    assert {name: x.dtype for name, x in average.items()} == {name: x.dtype for name, x in live.items()}
    assert not any(torch.equal(average[name], live[name]) for name in live if live[name].ndim > 1)
    settings = save.SaveModelSettings(layout="transformer", dtype="fp32", weights="ema")
    saved = load_file(save.save_model(settings, model=whole.model, context=fresh.context))
    assert_equal_tensors(saved, {name: x.float() for name, x in average.items()})


def test_schedule_free_gives_the_average_and_does_not_mind_being_looked_at(fresh: Setup, tmp_path: Path) -> None:
    settings = replace(TRAIN, optimizer="schedulefree")
    result = fresh.train(settings, checkpoints=EACH_STEP)
    watched = fresh.moved_to(tmp_path / "watched").train(settings, validation=replace(PROMPTS, every_num_steps=1))
    assert watched.losses == result.losses
    assert_equal_tensors(final_tensors(watched.adapter.run_dir), final_tensors(result.adapter.run_dir))
    # x is the mean of z, and y, which is trained, lies a tenth of the way from x to z.
    state = load_file(file_of(result.adapter.run_dir, 6, "training_state.safetensors"))
    exported = final_tensors(result.adapter.run_dir)
    names = [name.removeprefix("parameter/") for name in state if name.startswith("parameter/") and "lora_A" in name]
    for name in names:
        x = (state[f"parameter/{name}"] - 0.1 * state[f"optimizer/{name}/z"]) / 0.9
        same = [
            tensor for tensor in exported.values() if tensor.shape == x.shape and torch.allclose(tensor, x, atol=1e-5)
        ]
        assert same, name
    assert names


@pytest.mark.train
def test_schedule_free_trains_the_full_model(fresh: Setup, tmp_path: Path) -> None:
    settings = replace(TRAIN_FULL, optimizer="schedulefree")
    whole = train_full(fresh, settings)
    other = fresh.moved_to(tmp_path / "stopped")
    with pytest.raises(StopTraining):
        train_full(other.with_stop(StopAfter(3)), settings)
    record = json.loads(next((other.context.runs_dir / "model").glob("checkpoints/*/training_state.json")).read_text())
    assert record["exact_weights"] is None  # the file holds the average, from which training cannot go on
    resumed = train_full(other, settings)
    assert resumed.losses == whole.losses
    assert_equal_tensors(load_file(whole.model.base_path), load_file(resumed.model.base_path))


def test_average_of_an_average_is_refused(fresh: Setup) -> None:
    with pytest.raises(TrainerError, match="use_ema is on, but optimizer schedulefree averages the weights itself"):
        fresh.train(replace(TRAIN, optimizer="schedulefree"), checkpoints=EMA)
