"""Running out of memory is an event, not an end: the run goes on in less memory, and nothing of it changes."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.device import OutOfMemoryError, is_out_of_memory
from lumina2_trainer.trainer_core.events import Event
from lumina2_trainer.trainer_core.run import memory
from lumina2_trainer.trainer_core.run.memory import plan_less_memory
from lumina2_trainer.trainer_core.training.session import TrainingSession

from ..training_setup import TRAIN, Setup
from .failing_allocator import FailingAllocator, is_equal, outcome, train, undisturbed

NUM_MOMENTS = 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    with undisturbed(tmp_path_factory.mktemp("memory")) as found:
        yield found


@pytest.mark.train
@pytest.mark.parametrize("moment", range(NUM_MOMENTS))
def test_whenever_memory_runs_out_the_result_is_the_same(whole, tmp_path: Path, moment: int) -> None:
    setup, expected, num_requests = whole
    number = 1 + num_requests * moment // NUM_MOMENTS
    allocator = FailingAllocator(number)
    result = train(setup.moved_to(tmp_path), allocator)
    assert allocator.num_requests > number, "the run did not go on"
    assert is_equal(outcome(result), expected)


def test_the_run_says_that_it_goes_on_in_less_memory(fresh: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    true_step = TrainingSession.train_step

    def run_out_once(self: TrainingSession):
        if self.step == 2:
            monkeypatch.undo()
            raise torch.OutOfMemoryError("no memory")
        return true_step(self)

    monkeypatch.setattr(TrainingSession, "train_step", run_out_once)
    events: list[Event] = []
    result = fresh.with_events(events).train(replace(TRAIN, gradient_checkpointing=True))
    first, second = (event.data["memory_plan"] for event in events if event.kind == "planned")
    assert "a plan of 0.0 GiB ran out of memory, " in second
    assert first != second
    (notice,) = (event.data for event in events if event.kind == "notice")
    assert notice["message"].startswith("training ran out of memory after step 2: going on from there")
    assert json.loads((Path(result.adapter.run_dir) / "job.json").read_text())["memory_plan"] == second
    assert "failed" not in {event.kind for event in events}
    assert len(result.losses) == TRAIN.steps


def test_a_run_for_which_no_plan_is_small_enough_ends_with_a_checkpoint(
    fresh: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_step, tried = TrainingSession.train_step, []

    def run_out(self: TrainingSession):
        if self.step == 2:
            tried.append(self.step)
            raise torch.OutOfMemoryError("no memory")
        return true_step(self)

    monkeypatch.setattr(TrainingSession, "train_step", run_out)
    with pytest.raises(OutOfMemoryError, match="training ran out of memory"):
        fresh.train(replace(TRAIN, gradient_checkpointing=True))
    assert 1 < len(tried) < 10
    assert [path.name for path in (fresh.context.runs_dir / "run" / "checkpoints").iterdir()] == ["step-000002"]


def test_each_plan_takes_less_than_the_one_that_ran_out(fresh: Setup) -> None:
    from lumina2_trainer.trainer_core.adapters.lora import LoRASettings
    from lumina2_trainer.trainer_core.data.cache import join_samples, read_embed_index, read_latent_index
    from lumina2_trainer.trainer_core.data.sample_sizes import size_of
    from lumina2_trainer.trainer_core.run.job import TrainJob
    from lumina2_trainer.trainer_core.run.trained_weights import choose_trained_weights

    job = TrainJob(model=fresh.model, latents=fresh.latents, embeds=fresh.embeds, train=TRAIN, adapter=LoRASettings())
    job = replace(job, train=replace(TRAIN, gradient_checkpointing=True))
    weights, cpu = choose_trained_weights(job), torch.device("cpu")
    samples = [size_of(s) for s in join_samples(read_latent_index(job.latents), read_embed_index(job.embeds))]
    estimate = memory.estimate_step(job, weights, samples, cpu)
    plan = memory.plan_memory(job, weights, samples, cpu)
    peaks = []
    while plan is not None:
        peaks.append(estimate.peak(plan.measures))
        plan = plan_less_memory(job, weights, samples, cpu, plan)
    assert len(peaks) > 1
    assert all(later < earlier for earlier, later in pairwise(peaks))


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "Allocation on device 0 would exceed allowed memory. (out of memory)",
        "Triton Error [CUDA]: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_every_way_of_saying_that_memory_ran_out_is_understood(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))


@pytest.mark.parametrize(("free", "expected"), [(2**28, True), (2**32, False)])
def test_a_library_that_fails_has_run_out_of_memory_only_on_a_full_gpu(
    monkeypatch: pytest.MonkeyPatch, free: int, expected: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 2**35))
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR")) is expected
    assert is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered")) is False
