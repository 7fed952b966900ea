"""Runs that hold pictures out: what is trained on, what is measured and kept, and that measuring changes nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from lumina2_trainer.trainer_core.adapters.export import read_adapter
from lumina2_trainer.trainer_core.adapters.merge import merge_adapter
from lumina2_trainer.trainer_core.data.cache import join_samples, read_embed_index, read_latent_index
from lumina2_trainer.trainer_core.data.held_out import split_samples
from lumina2_trainer.trainer_core.errors import StopTraining, TrainerError
from lumina2_trainer.trainer_core.events import Event
from lumina2_trainer.trainer_core.lumina2.models.base_files import load_base_transformer
from lumina2_trainer.trainer_core.lumina2.timesteps import NoiseSettings
from lumina2_trainer.trainer_core.run import held_out as held_out_watch
from lumina2_trainer.trainer_core.run.held_out import NUM_DRAWS, to_held_out_sample
from lumina2_trainer.trainer_core.run_names import BASE
from lumina2_trainer.trainer_core.stages import save, validate
from lumina2_trainer.trainer_core.training.settings import CheckpointSettings
from lumina2_trainer.trainer_core.validation.held_out_log import HeldOutLog
from lumina2_trainer.trainer_core.validation.held_out_loss import held_out_losses
from lumina2_trainer.trainer_core.validation.settings import ValidateSettings, ValidationSettings
from PIL import Image
from safetensors.torch import load_file

from ..full_setup import train_full
from ..training_setup import PICTURES, TRAIN, Setup, make_setup
from .test_train import StopAfter, assert_equal_tensors, final_tensors, log_of

pytestmark = pytest.mark.train

HELD_OUT = ValidationSettings(held_out_share=0.3, held_out_step_interval=2)


def held_out_samples(setup: Setup) -> Any:
    samples = join_samples(read_latent_index(setup.latents), read_embed_index(setup.embeds))
    return split_samples(samples, HELD_OUT.held_out_share)[1]


def log(run_dir: str | Path) -> HeldOutLog:
    return HeldOutLog(path=Path(run_dir) / "held_out.jsonl")


def test_held_out_pictures_are_never_trained_on_and_each_measurement_is_logged(fresh: Setup) -> None:
    events: list[Event] = []
    result = fresh.with_events(events).train(validation=HELD_OUT)
    held_out = {sample.id for sample in held_out_samples(fresh)}
    lines = log_of(result.adapter.run_dir)
    assert len(held_out) == 2
    assert held_out.isdisjoint(file for line in lines for file in line["files"])
    assert [line["step"] for line in lines if "held_out" in line] == [2, 4, 6]
    last = lines[-1]["held_out"]
    assert last.keys() == {"loss", "margin", "change", "change_margin", "best_step", "is_overfit"}
    measured = log(result.adapter.run_dir).read()
    assert [(m.step, m.weights) for m in measured] == [(0, BASE), (2, "live"), (4, "live"), (6, "live")]
    assert last["change"] == pytest.approx(measured[-1].loss - measured[0].loss)
    sent = [event.data for event in events if event.kind == "held_out"]
    assert [data["step"] for data in sent] == [2, 4, 6] and sent[-1]["loss"] == last["loss"]
    assert result.scores.startswith("Held-out loss of 2 pictures at step 6 (live weights, 95% intervals): ")
    assert json.loads((Path(result.adapter.run_dir) / "job.json").read_text())["num_samples"] == 3


def test_loss_is_that_of_the_base_and_of_the_saved_adapter(fresh: Setup) -> None:
    result = fresh.trained(validation=HELD_OUT)
    transformer = load_base_transformer(fresh.model, torch.device("cpu"))

    def measure(batch_size: int) -> dict[str, float]:
        return held_out_losses(
            transformer,
            [to_held_out_sample(sample) for sample in held_out_samples(fresh)],
            noise_settings=NoiseSettings(),
            precision="fp32",
            num_draws=NUM_DRAWS,
            seed=held_out_watch.derive_seed(TRAIN.seed, "held-out"),
            batch_size=batch_size,
        )

    base, *_, last = log(result.adapter.run_dir).read()
    assert measure(1) == pytest.approx(base.losses, rel=1e-5)
    merge_adapter(transformer, read_adapter(Path(result.adapter.path)).tensors, 1.0)
    assert measure(2) == pytest.approx(last.losses, rel=1e-4)
    assert fmean(measure(2).values()) != pytest.approx(base.loss, rel=1e-3)


@pytest.mark.train
def test_measuring_changes_nothing_and_what_is_held_out_is_another_job(fresh: Setup, tmp_path: Path) -> None:
    often = fresh.train(validation=replace(HELD_OUT, held_out_step_interval=1))
    never = fresh.moved_to(tmp_path / "never").train(validation=replace(HELD_OUT, held_out_step_interval=0))
    assert often.losses == never.losses
    assert_equal_tensors(final_tensors(often.adapter.run_dir), final_tensors(never.adapter.run_dir))
    assert [m.step for m in log(never.adapter.run_dir).read()] == [0, 6]
    again = fresh.train(validation=HELD_OUT)
    assert again.reused and again.scores == often.scores
    assert Path(fresh.train().adapter.run_dir).name == "run-2"


def fake_losses(monkeypatch: pytest.MonkeyPatch, by_call: list[float]) -> None:
    """Measurements give these means, the first for the base; pictures differ, changes hardly."""
    values = iter(by_call)

    def fake(*_: Any, samples: Any = None, **__: Any) -> dict[str, float]:
        value = next(values)
        return {"a": value, "b": value + 0.5, "c": value * 1.001 + 0.2}

    monkeypatch.setattr(held_out_watch, "held_out_losses", fake)


def test_weights_of_the_lowest_loss_are_kept_and_can_be_saved_and_overfit_is_said(
    fresh: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_losses(monkeypatch, [0.9, 0.8, 0.6, 0.7])
    events: list[Event] = []
    checkpoints = CheckpointSettings(checkpoint_step_interval=2, num_checkpoints_kept=20)
    result = fresh.with_events(events).train(validation=HELD_OUT, checkpoints=checkpoints)
    run_dir = Path(result.adapter.run_dir)
    best = read_adapter(run_dir / "final" / "adapter_best.safetensors")
    assert_equal_tensors(dict(best.tensors), load_file(run_dir / "checkpoints/step-000004/adapter.safetensors"))
    assert (best.metadata["ss_steps"], best.metadata["lumina2_trainer.weights"]) == ("4", "best")
    assert [path.name for path in (run_dir / "best").iterdir()] == ["step-000004"]
    [path] = save.save_adapter(
        save.SaveAdapterSettings(dtype="fp32", weights="best"), adapter=result.adapter, context=fresh.context
    )
    assert_equal_tensors(load_file(path), dict(best.tensors))
    assert [line["held_out"]["is_overfit"] for line in log_of(run_dir) if "held_out" in line] == [False, False, True]
    [notice] = [event.data for event in events if event.kind == "notice"]
    assert notice["level"] == "warning" and "has risen by 0.1000" in notice["message"]
    settings = ValidateSettings(prompts="a red square", width=64, height=64, num_inference_steps=1)
    scores = validate.validate(settings, model=fresh.model, adapter=result.adapter, context=fresh.context).scores
    assert "OVERFIT" in scores and "since step 4" in scores
    assert validate.validate(settings, model=fresh.model, context=fresh.context).scores == ""


def test_other_files_beside_the_best_weights_and_folders_in_use_stay(
    fresh: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_losses(monkeypatch, [0.9, 0.8, 0.7, 0.6])
    true_rmtree = shutil.rmtree

    def rmtree(path: Path, **options: Any) -> None:
        if Path(path).name == "step-000002":
            raise PermissionError(f"{path} is in use")
        true_rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    best_dir = fresh.context.runs_dir / "run" / "best"
    with pytest.raises(StopTraining):
        fresh.with_stop(StopAfter(3)).train(validation=HELD_OUT)
    (best_dir / ".DS_Store").touch()
    fresh.train(validation=HELD_OUT)
    assert {path.name for path in best_dir.iterdir()} == {".DS_Store", "step-000002", "step-000006"}
    assert "step-000002 cannot be deleted now" in caplog.text


@pytest.mark.train
@pytest.mark.parametrize("stop_after", [3, 5])
def test_resumed_run_measures_and_keeps_the_same(fresh: Setup, tmp_path: Path, stop_after: int) -> None:
    ema = CheckpointSettings(use_ema=True, ema_decay=0.9)
    whole = fresh.trained(validation=HELD_OUT, checkpoints=ema)
    other = fresh.moved_to(tmp_path / "stopped")
    asked = 0

    def should_stop() -> bool:  # asked between steps and before each batch of a measurement
        nonlocal asked
        asked += 1
        log_path = other.context.runs_dir / "run" / "log.jsonl"
        return log_path.exists() and len(log_path.read_text().splitlines()) >= stop_after

    with pytest.raises(StopTraining):
        other.with_stop(should_stop).train(validation=HELD_OUT, checkpoints=ema)
    assert asked > stop_after
    resumed = other.train(validation=HELD_OUT, checkpoints=ema)
    assert log(resumed.adapter.run_dir).read() == log(whole.adapter.run_dir).read()
    assert {m.weights for m in log(whole.adapter.run_dir).read()} == {BASE, "live", "ema"}
    files = [Path(result.adapter.run_dir) / "final" / "adapter_best.safetensors" for result in (whole, resumed)]
    assert_equal_tensors(load_file(files[0]), load_file(files[1]))
    assert [line.get("held_out_ema") for line in log_of(resumed.adapter.run_dir)] == [
        line.get("held_out_ema") for line in log_of(whole.adapter.run_dir)
    ]


def test_crash_before_the_checkpoint_of_the_best_step_loses_neither_weights_nor_numbers(
    fresh: Setup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_losses(monkeypatch, [0.9, 0.8, 0.6])  # at step 4 the run dies without a checkpoint
    every_third = CheckpointSettings(checkpoint_step_interval=3)
    with monkeypatch.context() as dying:
        dying.setattr("lumina2_trainer.trainer_core.run.train._rescue", lambda *arguments: None)
        dying.setattr("lumina2_trainer.trainer_core.run.recorder.Recorder._emit_progress", _die_at(4))
        with pytest.raises(KeyboardInterrupt):
            fresh.train(validation=HELD_OUT, checkpoints=every_third)
    fake_losses(monkeypatch, [0.7])  # step 4 is not measured again, step 6 is
    result = fresh.train(validation=HELD_OUT, checkpoints=every_third)
    assert [m.step for m in log(result.adapter.run_dir).read()] == [0, 2, 4, 6]
    assert [line["step"] for line in log_of(result.adapter.run_dir) if "held_out" in line] == [2, 4, 6]
    best = read_adapter(Path(result.adapter.run_dir) / "final" / "adapter_best.safetensors")
    assert best.metadata["ss_steps"] == "4"


def _die_at(step: int) -> Any:
    def emit_progress(self: Any, record: Any) -> None:
        if record.step == step:
            raise KeyboardInterrupt

    return emit_progress


@pytest.mark.train
def test_stop_during_a_measurement_keeps_the_step_and_makes_up_for_it(fresh: Setup, tmp_path: Path) -> None:
    whole = fresh.trained(validation=HELD_OUT)
    other = fresh.moved_to(tmp_path / "stopped")
    batches = NUM_DRAWS  # of the base, both pictures in one batch
    with pytest.raises(StopTraining):
        other.with_stop(StopAfter(batches + 3 + 1)).train(validation=HELD_OUT)  # within the measurement after step 2
    assert [line["step"] for line in log_of(other.context.runs_dir / "run")] == [1, 2]
    resumed = other.train(validation=HELD_OUT)
    assert resumed.losses == whole.losses
    assert log(resumed.adapter.run_dir).read() == log(whole.adapter.run_dir).read()
    lines = [log_of(result.adapter.run_dir) for result in (whole, resumed)]
    assert [line.get("held_out") for line in lines[0]] == [line.get("held_out") for line in lines[1]]


@pytest.mark.train
def test_full_training_measures_the_base_before_it_is_gone(fresh: Setup, tmp_path: Path) -> None:
    whole = train_full(fresh, validation=HELD_OUT)
    other = fresh.moved_to(tmp_path / "stopped")
    with pytest.raises(StopTraining):
        train_full(other.with_stop(StopAfter(2 * NUM_DRAWS + 5)), validation=HELD_OUT)
    resumed = train_full(other, validation=HELD_OUT)
    run_dirs = [Path(result.model.base_path).parent.parent for result in (whole, resumed)]
    assert log(run_dirs[0]).read()[0].weights == BASE
    assert log(run_dirs[0]).read()[0] == log(run_dirs[1]).read()[0]
    saved = load_file(run_dirs[0] / "final" / "model_best.safetensors")
    assert saved.keys() == load_file(whole.model.base_path).keys()
    assert resumed.scores.startswith("Held-out loss of 2 pictures")


def test_best_weights_that_were_not_kept_cannot_be_saved(fresh: Setup) -> None:
    adapter = fresh.train(validation=replace(HELD_OUT, keep_best=False)).adapter
    with pytest.raises(TrainerError, match=r'weights is "best", but there is no .* hold pictures out .held_out_share'):
        save.save_adapter(save.SaveAdapterSettings(weights="best"), adapter=adapter, context=fresh.context)


def test_a_share_that_leaves_nothing_is_refused_before_weights_load(
    fresh: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lumina2_trainer.trainer_core.data.held_out._position", lambda content_hash: 0.0)
    with pytest.raises(TrainerError, match=r"held_out_share is 0\.3, which would hold out 5 of 5 pictures"):
        fresh.train(validation=HELD_OUT)
    assert not fresh.context.runs_dir.exists()


def test_a_folder_is_measured_in_place_of_a_share(tmp_path: Path) -> None:
    for name in ("setup", "plain"):
        (tmp_path / name / "other").mkdir(parents=True)
        for grey in (10, 90, 170):
            Image.new("RGB", (64, 64), (grey,) * 3).save(tmp_path / name / "other" / f"{grey}.png")
    other = replace(PICTURES, folder="other", caption_source="filename")
    setup = make_setup(tmp_path / "setup", (PICTURES, replace(other, is_held_out=True)))
    with pytest.raises(TrainerError, match="is_held_out is on for a folder, but nothing says when to measure it"):
        setup.train()
    result = setup.train(validation=replace(HELD_OUT, held_out_share=0.0))
    lines = log_of(result.adapter.run_dir)
    assert all(file.startswith("1/") for line in lines for file in line["files"])
    assert [line["step"] for line in lines if "held_out" in line] == [2, 4, 6]
    assert result.scores.startswith("Held-out loss of 3 pictures at step 6")
    plain = make_setup(tmp_path / "plain", (PICTURES, other))
    assert plain.latents.fingerprint != setup.latents.fingerprint, "another run"
