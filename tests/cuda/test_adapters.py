"""Every kind of adapter on a GPU: it follows the CPU, and graphs change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.training import graphs, session

from ..adapters.test_kinds import ALPHA, RANK, VARIANTS
from ..training_setup import TRAIN, Setup

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")


def on_gpu(setup: Setup, output_dir: Path, precision: str) -> Setup:
    context = replace(setup.context, device=torch.device("cuda"), output_dir=output_dir)
    return replace(setup, model=replace(setup.model, precision=precision), context=context)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "lora, pissa"])
def test_training_follows_the_cpu(setup: Setup, tmp_path: Path, variant: str) -> None:
    """PiSSA starts from a random projection, which differs by device."""
    train = replace(TRAIN, rank=RANK, alpha=ALPHA, steps=4, learning_rate=1e-3)
    cpu = setup.moved_to(tmp_path / "cpu").train(train, adapter_settings=VARIANTS[variant])
    gpu = on_gpu(setup, tmp_path / "gpu", "fp32").train(train, adapter_settings=VARIANTS[variant])
    if variant != "dylora":
        assert gpu.losses == pytest.approx(cpu.losses, rel=2e-3)


@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_graphs_train_as_single_kernels_do(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str, precision: str
) -> None:
    gpu = on_gpu(setup, tmp_path, precision)
    train = replace(TRAIN, rank=RANK, alpha=ALPHA, steps=16, learning_rate=1e-3, gradient_checkpointing=True)
    monkeypatch.setattr(graphs, "HOST_BOUND", 0.0)
    with_graphs = gpu.train(replace(train, run_name="graphs"), adapter_settings=VARIANTS[variant])
    monkeypatch.setattr(session, "can_be_captured", lambda _: False)
    without = gpu.train(replace(train, run_name="kernels"), adapter_settings=VARIANTS[variant])
    assert with_graphs.losses == pytest.approx(without.losses, rel=1e-2)
