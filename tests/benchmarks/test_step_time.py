"""Measuring training steps: the clock, the equality of the work, and the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lumina2_trainer.benchmarks import measure
from lumina2_trainer.benchmarks.cases import Case
from lumina2_trainer.benchmarks.material import Checkouts, Setup
from lumina2_trainer.benchmarks.measure import EnoughSteps, measure_steps
from lumina2_trainer.benchmarks.table import format_row
from lumina2_trainer.benchmarks.trainers import TRAINERS
from lumina2_trainer.benchmarks.trainers.prepared import repeat

CPU = torch.device("cpu")
SCRIPT = Path(measure.__file__).parent / "step_time.py"
PACKAGED = [(t, name) for t, by_name in TRAINERS.items() for name in by_name if name in ("ours", "diffusers")]


def make_setup(folder: Path, **changes: object) -> Setup:
    """Two samples with captions of different length on the demo's network."""
    fields = {"name": "tiny", "size": "demo", "resolution": 64, "batch_size": 2, "has_recomputation": True}
    case = Case(**{**fields, "dtype": torch.float32, **changes})
    return Setup(case=case, device=CPU, scratch_dir=folder, checkouts=Checkouts())


def test_measuring_makes_warmup_and_measured_steps() -> None:
    num_steps = []
    result = measure_steps(repeat(lambda: num_steps.append(1)), 2.5, CPU)
    assert len(num_steps) == measure.NUM_WARMUP_STEPS + measure.NUM_STEPS
    assert (result.num_steps, result.loss, result.peak_gib) == (measure.NUM_STEPS, 2.5, 0.0)
    assert 0 <= result.fastest <= result.seconds <= result.slowest


def test_measuring_ends_early_where_steps_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MAX_SECONDS", 0.0)
    num_steps = []
    result = measure_steps(repeat(lambda: num_steps.append(1)), 0.0, CPU)
    assert result.num_steps == measure.MIN_STEPS
    assert len(num_steps) == measure.MIN_WARMUP_STEPS + measure.MIN_STEPS


def test_losses_of_a_fixed_batch_are_equal(tmp_path: Path) -> None:
    losses = {}
    for i, (trained, name) in enumerate(PACKAGED):
        folder = tmp_path / str(i)
        folder.mkdir()
        losses[trained, name] = TRAINERS[trained][name](make_setup(folder, trained=trained)).loss
    assert len(losses) >= 3
    for loss in losses.values():
        assert loss == pytest.approx(losses["lora", "ours"], rel=2e-6)


@pytest.mark.parametrize(("trained", "name"), PACKAGED)
def test_trainer_trains(trained: str, name: str, tmp_path: Path) -> None:
    prepared = TRAINERS[trained][name](make_setup(tmp_path, trained=trained))
    num_steps = []

    def on_step() -> None:
        num_steps.append(1)
        if len(num_steps) == 2:
            raise EnoughSteps

    with pytest.raises(EnoughSteps):
        prepared.train(on_step)
    assert prepared.loss > 0


def test_row_tells_of_another_loss() -> None:
    result = {"seconds": 0.5, "fastest": 0.4, "slowest": 0.6, "first_step_seconds": 3.0, "peak_gib": 1.5, "loss": 2.0}
    same = format_row("case", "other", {**result, "seconds": 1.0, "loss": 2.0001}, result)
    different = format_row("case", "other", {**result, "loss": 2.01}, result)
    assert " 0.50" in same and "DIFFERS" not in same
    assert different.endswith("LOSS DIFFERS BY +0.50%")
    assert format_row("case", "other", {"error": "out of memory"}, result).endswith("out of memory")


def test_command_writes_each_result(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    command = [sys.executable, str(SCRIPT), "demo-cpu", "--trainers", "ours", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True, env=without_gpu())
    report = json.loads(output.read_text("utf-8"))
    assert report["machine"]["torch"] == torch.__version__
    assert report["results"]["demo-cpu"]["ours"]["seconds"] > 0
    assert done.stdout.splitlines()[-1].split()[:2] == ["demo-cpu", "ours"]


def test_command_asks_for_a_checkout() -> None:
    command = [sys.executable, str(SCRIPT), "--trainers", "comfyui"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "comfyui needs --comfyui DIR" in done.stderr


def without_gpu() -> dict[str, str]:
    """Environment of a process that sees no GPU."""

    return {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
