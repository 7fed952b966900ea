"""Steps as CUDA graphs against the same steps started kernel by kernel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.training import graphs, session

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
