"""Training from caches to a finished run: what it learns, resumes, refuses and leaves behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.adapters.export import read_adapter
from lumina2_trainer.trainer_core.device import OutOfMemoryError
from lumina2_trainer.trainer_core.errors import StopTraining, TrainerError
from lumina2_trainer.trainer_core.training.optim.settings import OptimizerSettings
from lumina2_trainer.trainer_core.training.session import TrainingSession
from lumina2_trainer.trainer_core.training.settings import CheckpointSettings
from safetensors.torch import load_file

from ..training_setup import PROMPTS, TRAIN, Setup


class StopAfter:
    """Asks to stop once it was asked a number of times."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def final_tensors(run_dir: str) -> dict[str, torch.Tensor]:
    return load_file(Path(run_dir) / "final" / "adapter.safetensors")


def log_of(run_dir: str) -> list[dict]:
    return [json.loads(line) for line in (Path(run_dir) / "log.jsonl").read_text().splitlines()]


def assert_equal_tensors(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_training_lowers_the_loss_on_its_own_samples(fresh: Setup) -> None:
    result = fresh.train(replace(TRAIN, steps=60, batch_size=4, learning_rate=3e-3, caption_dropout=0.0))
    losses = torch.tensor(result.losses)
    assert len(losses) == 60
    assert losses[-15:].mean() < 0.8 * losses[:10].mean()


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(fresh: Setup, tmp_path: Path, stop_after: int) -> None:
    settings = {"optimizer_settings": OptimizerSettings(lr_schedule="cosine", num_warmup_steps=2)}
    whole = fresh.trained(**settings)
    other = fresh.moved_to(tmp_path / "stopped")
    with pytest.raises(StopTraining):
        other.with_stop(StopAfter(stop_after)).train(**settings)
    assert len(log_of(other.context.runs_dir / "run")) == stop_after
    resumed = other.train(**settings)
    assert resumed.losses == whole.losses
    assert_equal_tensors(final_tensors(whole.adapter.run_dir), final_tensors(resumed.adapter.run_dir))
    assert [r["files"] for r in log_of(whole.adapter.run_dir)] == [r["files"] for r in log_of(resumed.adapter.run_dir)]


def test_log_beyond_the_last_checkpoint_is_redone(fresh: Setup, tmp_path: Path) -> None:
    whole = fresh.trained()
    other = fresh.moved_to(tmp_path / "killed")
    with pytest.raises(StopTraining):
        other.with_stop(StopAfter(4)).train()
    run_dir = other.context.runs_dir / "run"
    with (run_dir / "log.jsonl").open("a") as log:
        log.write('{"step": 5, "loss": 123.0}\n{"step": 6, "lo')
    resumed = other.train()
    assert resumed.losses == whole.losses
    assert_equal_tensors(final_tensors(whole.adapter.run_dir), final_tensors(str(run_dir)))


def test_finished_job_returns_at_once_and_a_changed_one_starts_anew(
    fresh: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fresh.train()
    changed = fresh.train(replace(TRAIN, learning_rate=2e-2))
    assert Path(first.adapter.run_dir).name == "run"
    assert Path(changed.adapter.run_dir).name == "run-2"

    def fail(self: TrainingSession) -> None:
        raise AssertionError("a finished job was trained again")

    monkeypatch.setattr(TrainingSession, "train_step", fail)
    again = fresh.train()
    assert again.reused
    assert again.adapter == first.adapter
    assert again.losses == first.losses
    assert fresh.train(replace(TRAIN, learning_rate=2e-2)).adapter == changed.adapter


def test_how_a_run_is_watched_does_not_start_a_new_one(fresh: Setup) -> None:
    first = fresh.trained()
    watched = fresh.train(
        replace(TRAIN, gradient_checkpointing=True),
        checkpoints=CheckpointSettings(checkpoint_step_interval=2),
        validation=PROMPTS,
    )
    assert watched.adapter.run_dir == first.adapter.run_dir


def test_accumulated_batches_equal_one_large_batch(fresh: Setup) -> None:
    tame = OptimizerSettings(epsilon=1.0)  # Adam's division by tiny gradients would blow up rounding
    large = fresh.train(replace(TRAIN, batch_size=4, run_name="large"), optimizer_settings=tame)
    small = fresh.train(
        replace(TRAIN, batch_size=2, run_name="small"),
        optimizer_settings=replace(tame, gradient_accumulation_steps=2),
    )
    for key in ("loss", "grad_norm"):
        values = [record[key] for record in log_of(small.adapter.run_dir)]
        assert [record[key] for record in log_of(large.adapter.run_dir)] == pytest.approx(values, rel=1e-6)
    a, b = final_tensors(large.adapter.run_dir), final_tensors(small.adapter.run_dir)
    assert all((a[name] - b[name]).norm() <= 1e-6 * a[name].norm() for name in a)


def test_recomputation_gives_the_same_result(fresh: Setup) -> None:
    plain = fresh.trained()
    recomputed = fresh.moved_to(fresh.context.output_dir / "again").train(
        replace(TRAIN, run_name="recomputed", gradient_checkpointing=True)
    )
    assert recomputed.losses == pytest.approx(plain.losses, rel=1e-6)


def test_bfloat16_follows_float32(fresh: Setup) -> None:
    exact = fresh.trained()
    model = replace(fresh.model, precision="bf16")
    rounded = replace(fresh, model=model).train(replace(TRAIN, run_name="rounded"))
    assert rounded.losses == pytest.approx(exact.losses, rel=0.05)
    assert all(t.dtype == torch.float32 for t in final_tensors(rounded.adapter.run_dir).values())


def test_checkpoints_come_on_time_and_old_ones_go(fresh: Setup) -> None:
    result = fresh.train(checkpoints=CheckpointSettings(checkpoint_step_interval=1, num_checkpoints_kept=2))
    folders = sorted(path.name for path in (Path(result.adapter.run_dir) / "checkpoints").iterdir())
    assert folders == ["step-000005", "step-000006"]
    checkpoint = read_adapter(Path(result.adapter.run_dir) / "checkpoints" / "step-000005" / "adapter.safetensors")
    assert checkpoint.metadata["ss_steps"] == "5"


def test_non_finite_loss_stops_with_step_and_files_and_keeps_the_work(
    fresh: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lumina2_trainer.trainer_core.training import session as session_module

    true_loss = session_module.flow_matching_loss
    calls = []

    def poisoned(*arguments):
        calls.append(1)
        loss_B = true_loss(*arguments)
        return loss_B * torch.tensor([1.0, float("nan")]) if len(calls) == 4 else loss_B

    monkeypatch.setattr(session_module, "flow_matching_loss", poisoned)
    with pytest.raises(TrainerError, match=r"step 4: the loss is not a finite number, for 1/\w+\.png") as caught:
        fresh.train()
    run_dir = fresh.context.runs_dir / "run"
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["step-000003"]
    assert str(caught.value).count(".png") == 1
    assert not (run_dir / "final").exists()


def test_any_error_keeps_the_finished_steps(fresh: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fresh.moved_to(fresh.context.output_dir / "whole").trained()
    true_step = TrainingSession.train_step

    def out_of_memory(self: TrainingSession):
        if self.step == 2:
            raise torch.OutOfMemoryError("no memory")
        return true_step(self)

    monkeypatch.setattr(TrainingSession, "train_step", out_of_memory)
    events: list = []
    with pytest.raises(OutOfMemoryError, match=r"^training ran out of memory: turn gradient_checkpointing on, lower"):
        fresh.with_events(events).train()
    (failed,) = (event.data for event in events if event.kind == "failed")
    assert failed["step"] == 2
    assert "\nno memory" in failed["message"]
    monkeypatch.undo()
    assert fresh.train().losses == whole.losses


def test_a_model_that_does_not_load_is_told_as_a_failure(fresh: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr("lumina2_trainer.trainer_core.run.train.load_base_transformer", out_of_memory)
    events: list = []
    with pytest.raises(OutOfMemoryError, match=r"^loading the model ran out of memory: turn gradient_checkpointing on"):
        fresh.with_events(events).train()
    kinds = [event.kind for event in events if event.run == "run"]
    assert kinds == ["planned", "failed"]
    assert events[-1].data["step"] == 0


def test_log_and_job_tell_what_was_done(fresh: Setup) -> None:
    events: list = []
    result = fresh.with_events(events).train(validation=replace(PROMPTS, every_num_steps=4))
    record = log_of(result.adapter.run_dir)[2]
    assert record["step"] == 3
    assert {"loss", "loss_by_bin", "learning_rate", "grad_norm", "seconds", "peak_memory_gib", "files"} <= record.keys()
    assert len(record["files"]) == 2
    job = json.loads((Path(result.adapter.run_dir) / "job.json").read_text())
    assert job["train"]["steps"] == 6
    assert job["model"]["fingerprint"] == fresh.model.fingerprint
    assert job["versions"]["torch"].startswith("2.")
    assert [e.data["step"] for e in events if e.kind == "progress"] == [1, 2, 3, 4, 5, 6]
    assert [(e.data["step"], e.data["images"]) for e in events if e.kind == "validation"] == [
        (4, ["samples/step-000004/00.png", "samples/step-000004/01.png"]),
        (6, ["samples/step-000006/00.png", "samples/step-000006/01.png"]),
    ]
    assert events[-1].kind == "finished"
    assert [path.name for path in result.validation_images] == ["00.png", "01.png"]


def test_metadata_names_what_managers_read_and_no_paths(fresh: Setup) -> None:
    result = fresh.trained()
    metadata = read_adapter(Path(result.adapter.path)).metadata
    assert metadata["ss_network_dim"] == "2"
    assert metadata["lumina2_trainer.alpha"] == "3.0"
    assert metadata["modelspec.architecture"] == "lumina-2/lora"
    assert metadata["ss_sd_model_name"] == "tiny.safetensors"
    assert metadata["lumina2_trainer.system_prompt"].startswith("You are an assistant designed to generate superior")
    assert not any(str(fresh.context.output_dir.parent) in value or "/root" in value for value in metadata.values())


def test_prompts_that_were_not_encoded_are_named_before_weights_load(fresh: Setup) -> None:
    with pytest.raises(TrainerError, match="the validation prompt 'a cat' is not in the text cache: connect"):
        fresh.train(validation=replace(PROMPTS, prompts="a cat"))
    assert not fresh.context.runs_dir.exists()


def test_torch_state_is_left_as_it_was(fresh: Setup) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fresh.train()
    assert torch.equal(torch.rand(3), expected)


def test_two_processes_cannot_train_the_same_run(fresh: Setup) -> None:
    from filelock import FileLock

    with pytest.raises(StopTraining):
        fresh.with_stop(StopAfter(1)).train()
    with (
        FileLock(fresh.context.runs_dir / "run" / ".lock"),
        pytest.raises(TrainerError, match="run 'run' is being trained by another process"),
    ):
        fresh.train()


def test_pictures_of_another_validation_of_the_same_step_do_not_mix(fresh: Setup) -> None:
    import shutil

    first = fresh.trained(validation=PROMPTS)
    assert len(first.validation_images) == 2
    for name in ("final", "checkpoints"):
        shutil.rmtree(Path(first.adapter.run_dir) / name)
    again = fresh.train(validation=replace(PROMPTS, prompts="a red square"))
    assert [path.name for path in again.validation_images] == ["00.png"]


def test_resume_is_exact_with_dropout_and_accumulation(fresh: Setup, tmp_path: Path) -> None:
    from lumina2_trainer.trainer_core.adapters.lora import LoRASettings

    settings = {
        "adapter_settings": LoRASettings(dropout=0.5),
        "optimizer_settings": OptimizerSettings(gradient_accumulation_steps=2),
    }
    whole = fresh.trained(**settings)
    other = fresh.moved_to(tmp_path / "stopped")
    with pytest.raises(StopTraining):
        other.with_stop(StopAfter(3)).train(**settings)
    resumed = other.train(**settings)
    assert resumed.losses == whole.losses
    assert_equal_tensors(final_tensors(whole.adapter.run_dir), final_tensors(resumed.adapter.run_dir))


def test_whole_numbers_from_the_canvas_name_the_same_job(fresh: Setup) -> None:
    first = fresh.trained(replace(TRAIN, alpha=3.0))
    assert fresh.train(replace(TRAIN, alpha=3)).adapter.run_dir == first.adapter.run_dir


def test_log_cut_inside_a_character_does_not_block_resuming(fresh: Setup) -> None:
    with pytest.raises(StopTraining):
        fresh.with_stop(StopAfter(2)).train()
    with (fresh.context.runs_dir / "run" / "log.jsonl").open("ab") as log:
        log.write('{"step": 3, "files": ["1/बिल्'.encode()[:-1])
    assert len(fresh.train().losses) == 6


def test_other_prompts_of_a_finished_run_are_not_passed_over_in_silence(
    fresh: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    fresh.trained(validation=PROMPTS)
    fresh.train(validation=PROMPTS)
    assert "draw new ones with Validate" not in caplog.text
    fresh.train(validation=replace(PROMPTS, prompts="a red square"))
    assert "draw new ones with Validate" in caplog.text
