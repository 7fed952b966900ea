"""Masked losses on a real GPU, where steps are captured as graphs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.training import graphs
from PIL import Image

from ..training_setup import PICTURES, TRAIN, make_setup

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")


@pytest.mark.parametrize("host_bound", [0.0, 1.0])
def test_masked_run_on_the_gpu_follows_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host_bound: float
) -> None:
    """With every shape captured, and with none."""
    monkeypatch.setattr(graphs, "HOST_BOUND", host_bound)
    (tmp_path / "masks").mkdir()
    for name, size in {"red": (64, 64), "pink": (70, 64)}.items():
        mask = Image.new("L", size, 255)
        mask.paste(0, (0, 0, size[0] // 2, size[1]))
        mask.save(tmp_path / "masks" / f"{name}.png")
    setup = make_setup(tmp_path, [replace(PICTURES, mask_folder="masks", is_mask_required=False)])
    train = replace(TRAIN, steps=16)
    on_cpu = setup.train(train)
    context = replace(setup.context, device=torch.device("cuda"), output_dir=tmp_path / "gpu")
    assert replace(setup, context=context).train(train).losses == pytest.approx(on_cpu.losses, rel=5e-3)
