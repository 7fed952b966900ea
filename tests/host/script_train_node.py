"""Runs in the host: its own Train LoRA node through the benchmark's trainer, on a tiny network."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lumina2_trainer.benchmarks.cases import Case
from lumina2_trainer.benchmarks.material import Checkouts, Setup
from lumina2_trainer.benchmarks.measure import EnoughSteps
from lumina2_trainer.benchmarks.trainers import comfyui, ours


def main(checkout: str) -> dict[str, Any]:
    case = Case(name="tiny", size="demo", resolution=64, batch_size=2, has_recomputation=True, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as scratch:
        setup = Setup(
            case=case,
            device=torch.device("cpu"),
            scratch_dir=Path(scratch),
            checkouts=Checkouts(comfyui=Path(checkout)),
        )
        prepared = comfyui.train_lora(setup)
        num_steps = 0

        def on_step() -> None:
            nonlocal num_steps
            num_steps += 1
            if num_steps == 3:
                raise EnoughSteps

        with suppress(EnoughSteps):
            prepared.train(on_step)
        return {"loss": prepared.loss, "our_loss": ours.train_lora(setup).loss, "num_steps": num_steps}
