"""Steps as CUDA graphs against the same steps started kernel by kernel."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lumina2_trainer.trainer_core.adapters.lora import LoRASettings
from lumina2_trainer.trainer_core.training import graphs, session
from lumina2_trainer.trainer_core.training.rollout_settings import RolloutSettings

from ..training_setup import TRAIN, make_setup

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")


@pytest.mark.parametrize("precision", ["bf16", "nf4"])
@pytest.mark.parametrize("is_recomputed", [False, True])
def test_graphs_train_as_single_kernels_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_recomputed: bool, precision: str
) -> None:
    setup = make_setup(tmp_path)
    setup = replace(
        setup,
        model=replace(setup.model, precision=precision),
        context=replace(setup.context, device=torch.device("cuda")),
    )
    train = replace(TRAIN, steps=24, gradient_checkpointing=is_recomputed)
    captured = []
    capture = graphs.GraphedPass._capture
    monkeypatch.setattr(
        graphs.GraphedPass, "_capture", lambda self, batch: captured.append(batch) or capture(self, batch)
    )
    monkeypatch.setattr(graphs, "HOST_BOUND", 0.0)
    with_graphs = setup.train(replace(train, run_name="graphs")).losses
    assert captured, "no shape came often enough"
    monkeypatch.setattr(session, "can_be_captured", lambda _: False)
    num_captured = len(captured)
    without = setup.train(replace(train, run_name="kernels")).losses
    assert len(captured) == num_captured
    assert with_graphs == pytest.approx(without, rel=5e-3)


def test_a_rollout_is_outside_of_the_graphs_and_trains_as_single_kernels_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = make_setup(tmp_path)
    setup = replace(
        setup,
        model=replace(setup.model, precision="bf16"),
        context=replace(setup.context, device=torch.device("cuda")),
    )
    rollout = RolloutSettings(probability=0.6, max_step_offset=300, target="corrective", use_reflexflow=True)
    train = replace(TRAIN, steps=24, batch_size=1, learning_rate=1e-3)
    num_captured = []
    capture = graphs.GraphedPass._capture

    def count(self: graphs.GraphedPass, batch: object) -> object:
        num_captured.append(batch)
        return capture(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(graphs.GraphedPass, "_capture", count)
    monkeypatch.setattr(graphs, "HOST_BOUND", 0.0)
    with_graphs = setup.train(replace(train, run_name="graphs"), rollout=rollout).losses
    assert num_captured, "no shape came often enough"
    monkeypatch.setattr(session, "can_be_captured", lambda _: False)
    without = setup.train(replace(train, run_name="kernels"), rollout=rollout).losses
    assert with_graphs == pytest.approx(without, rel=2e-2)


@pytest.mark.parametrize("fault", ["waits", "out of memory"])
def test_a_capture_that_fails_leaves_cuda_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    setup = make_setup(tmp_path)
    setup = replace(
        setup,
        model=replace(setup.model, precision="bf16"),
        context=replace(setup.context, device=torch.device("cuda")),
    )
    differentiate = session._differentiate

    def faulty(*arguments: Any) -> torch.Tensor:
        loss_B = differentiate(*arguments)
        if torch.cuda.is_current_stream_capturing():
            if fault == "waits":
                loss_B.sum().item()
            raise torch.OutOfMemoryError("no memory")
        return loss_B

    monkeypatch.setattr(graphs, "HOST_BOUND", 0.0)
    train = replace(TRAIN, steps=24)
    dropout = LoRASettings(dropout=0.1)
    with_graphs = setup.train(replace(train, run_name="graphs")).losses
    before = torch.cuda.memory_allocated()
    with monkeypatch.context() as patched:
        patched.setattr(session, "_differentiate", faulty)
        broken = setup.train(replace(train, run_name="broken")).losses
    assert caplog.text.count("could not be captured as a CUDA graph") == 1
    torch.rand(3, device="cuda")  # random numbers still come
    assert broken == pytest.approx(with_graphs, rel=5e-3)
    assert all(
        math.isfinite(loss) for loss in setup.train(replace(train, run_name="dropout"), adapter_settings=dropout).losses
    )
    assert torch.cuda.memory_allocated() <= before + 2**20
