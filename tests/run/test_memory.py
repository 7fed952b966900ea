"""The memory setting of a run: the same training whatever the plan, and what is told of it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.adapters.lora import LoRASettings
from lumina2_trainer.trainer_core.errors import StopTraining, TrainerError
from lumina2_trainer.trainer_core.events import Event
from lumina2_trainer.trainer_core.lumina2.memory.block_swap import SwappedWeights
from lumina2_trainer.trainer_core.lumina2.memory.estimate import Measures
from lumina2_trainer.trainer_core.lumina2.memory.plan import MemoryPlan
from lumina2_trainer.trainer_core.run import memory
from lumina2_trainer.trainer_core.run import plan as run_plan
from lumina2_trainer.trainer_core.run.job import TrainFullSettings, TrainJob
from lumina2_trainer.trainer_core.run.trained_weights import choose_trained_weights
from lumina2_trainer.trainer_core.training.optim.settings import OptimizerSettings
from lumina2_trainer.trainer_core.training.settings import CheckpointSettings
from lumina2_trainer.trainer_core.training.updates import MAX_EXCHANGED_BYTES
from safetensors.torch import load_file

from ..training_setup import PROMPTS, TRAIN, Setup, make_setup
from .test_train import StopAfter

SWAP = MemoryPlan(
    measures=Measures(num_recomputed=7, num_offloaded=6, swapped=(0, 2, 3, 6)),
    sentence="memory: as the test wants it",
    input_bytes=2**20,
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return make_setup(tmp_path_factory.mktemp("memory"))


@pytest.fixture
def fresh(shared: Setup, tmp_path: Path) -> Setup:
    return shared.moved_to(tmp_path)


def final_tensors(setup: Setup, **options: object) -> dict[str, torch.Tensor]:
    return load_file(setup.train(**options).adapter.path)  # type: ignore[arg-type]


def test_a_run_with_swapped_blocks_learns_the_same(
    fresh: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = final_tensors(fresh, validation=replace(PROMPTS, every_num_steps=3))
    used = []

    class Watched(SwappedWeights):
        def present(self, index: int, now: object) -> object:
            used.append(now)
            return super().present(index, now)  # type: ignore[arg-type]

    monkeypatch.setattr(run_plan, "plan_memory", lambda *arguments: SWAP)
    monkeypatch.setattr("lumina2_trainer.trainer_core.lumina2.memory.plan.SwappedWeights", Watched)
    actual = final_tensors(fresh.moved_to(tmp_path / "swapped"), validation=replace(PROMPTS, every_num_steps=3))
    assert set(used) == {"forward", "backward", "inference"}
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_another_plan_goes_on_with_the_same_run(fresh: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StopTraining):
        fresh.with_stop(StopAfter(3)).train()
    monkeypatch.setattr(run_plan, "plan_memory", lambda *arguments: SWAP)
    resumed = fresh.train(replace(TRAIN, memory="3"))
    assert Path(resumed.adapter.run_dir).name == "run"
    assert len(resumed.losses) == 6


def test_the_plan_is_told_in_log_and_events(fresh: Setup, caplog: pytest.LogCaptureFixture) -> None:
    events: list[Event] = []
    with caplog.at_level(logging.INFO):
        fresh.with_events(events).train(replace(TRAIN, gradient_checkpointing=True))
    sentence = "memory: on the CPU, computing all activations again, for gradient_checkpointing is on"
    assert f"Run run: {sentence}" in caplog.text
    (planned,) = (e.data for e in events if e.kind == "planned")
    assert planned["memory_plan"] == sentence
    assert (planned["step"], planned["total"], planned["predicted_peak_gib"]) == (0, 6, None)
    assert planned["predicted_seconds"] > 0


def test_a_number_of_gib_is_kept_to(fresh: Setup) -> None:
    events: list[Event] = []
    fresh.with_events(events).train(replace(TRAIN, memory="2"))
    (planned,) = (e.data for e in events if e.kind == "planned")
    plan = planned["memory_plan"]
    assert plan.startswith("memory: 2 GiB allowed, keeping all activations, predicted peak 0.0 GiB")
    with pytest.raises(TrainerError, match=r"0\.001 GiB allowed, but training takes at least 0\.1 GiB: raise memory"):
        fresh.train(replace(TRAIN, memory="0.001", run_name="small"))


def test_memory_is_checked_before_any_work() -> None:
    with pytest.raises(TrainerError, match="memory is 'lots'"):
        replace(TRAIN, memory="lots")


def test_auto_counts_what_is_free_less_a_reserve(fresh: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    gib = memory.GIB
    monkeypatch.setattr(memory, "available_memory", lambda device: (int(7.5 * gib), 8 * gib))
    budget = memory._budget(None, torch.device("cuda"), memory.Freedom())
    assert budget.num_bytes == 7 * gib
    assert budget.reason == "7.5 GiB free, 0.5 of them reserved"
    everything = memory._budget(None, torch.device("cuda"), memory.Freedom(recompute=False))
    assert everything.num_bytes == 7.5 * gib


def test_the_reserve_of_a_large_gpu_that_others_fill_is_a_share_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gib = memory.GIB
    monkeypatch.setattr(memory, "available_memory", lambda device: (6 * gib, 140 * gib))
    budget = memory._budget(None, torch.device("cuda"), memory.Freedom())
    assert budget.num_bytes == 5.25 * gib


def test_a_number_of_gib_is_cut_to_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    gib = memory.GIB
    monkeypatch.setattr(memory, "available_memory", lambda device: (8 * gib, 8 * gib))
    assert memory._budget(8, torch.device("cuda"), memory.Freedom()).num_bytes == 8 * gib
    budget = memory._budget(10.5, torch.device("cuda"), memory.Freedom())
    assert budget.num_bytes == 7.5 * gib
    assert budget.reason == "10.5 GiB allowed, but only 8.0 free"


def test_the_plan_counts_the_running_average_where_it_is(fresh: Setup) -> None:
    def optimizer_bytes(**ema: object) -> int:
        job = TrainJob(
            model=fresh.model,
            latents=fresh.latents,
            embeds=fresh.embeds,
            train=TRAIN,
            adapter=LoRASettings(),
            checkpoints=CheckpointSettings(**ema),
        )
        return memory.measure_job(job, choose_trained_weights(job), torch.device("cpu")).optimizer_bytes

    moments = optimizer_bytes()  # two for each weight, as large as it is
    assert optimizer_bytes(use_ema=True) == 1.5 * moments
    assert optimizer_bytes(use_ema=True, ema_device="cpu") == moments


def test_the_plan_counts_gradients_under_way_to_other_processes(fresh: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    train = TrainFullSettings(steps=1, learning_rate=1e-3, optimizer="adamw8bit", run_name="run")
    optimizer = OptimizerSettings(gradient_accumulation_steps=1)
    job = TrainJob(model=fresh.model, latents=fresh.latents, embeds=fresh.embeds, train=train, optimizer=optimizer)
    alone = memory.measure_job(job, choose_trained_weights(job), torch.device("cpu"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    together = memory.measure_job(job, choose_trained_weights(job), torch.device("cpu"))
    assert together.fixed_bytes - alone.fixed_bytes == MAX_EXCHANGED_BYTES
