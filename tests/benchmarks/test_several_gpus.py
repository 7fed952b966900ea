"""Rows of several processes, and the runs they are made from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lumina2_trainer.benchmarks import several_gpus
from lumina2_trainer.benchmarks.gpu_memory import read_peaks
from lumina2_trainer.benchmarks.several_gpus import (
    CASES,
    compare,
    describe,
    find_batch_size,
    format_row,
    make_environment,
    make_workflow,
)
from lumina2_trainer.benchmarks.watched_run import RunFailed, WatchedRun, watch_run
from lumina2_trainer.trainer_core.run.folder import RunFolder
from lumina2_trainer.trainer_core.workflow.file import read_workflow
from lumina2_trainer.trainer_core.workflow.runner import check_workflow

SCRIPT = Path(several_gpus.__file__)


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_a_workflow_that_goes_on_beyond_its_steps(name: str, tmp_path: Path) -> None:
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(make_workflow(CASES[name], "run", "demo", 3, 25, is_tiny=True)))
    settings = check_workflow(read_workflow(path))
    assert settings["8"].batch_size == 3 and settings["8"].steps > 25
    assert settings["6"].gradient_accumulation_steps == CASES[name].gradient_accumulation_steps


def watched(seconds: float, between: float, losses: list[float]) -> WatchedRun:
    """Steps of which the first one takes a minute longer."""
    records = [{"seconds": seconds, "peak_memory_gib": 5.0, "loss": loss} for loss in losses]
    arrivals = [60 + (i + 1) * (seconds + between) for i in range(len(losses))]
    return WatchedRun(records=records, arrivals=arrivals, gpu_peaks_gib=[6.0, 0.5])


def test_row_compares_with_one_rank_and_leaves_out_the_start() -> None:
    alone = {"case": "same-bf16", "ranks": 1, "batch_size": 2, **describe(watched(0.2, 0.0, [1.0] * 20), 2)}
    alone |= compare(alone, [])
    both = {"case": "same-bf16", "ranks": 2, "batch_size": 1, **describe(watched(0.1, 0.025, [1.0] * 19 + [0.9]), 2)}
    both |= compare(both, [alone])
    assert alone["efficiency"] == 1 and "loss_difference" not in alone
    assert both["samples_per_second"] == pytest.approx(16)
    assert both["efficiency"] == pytest.approx(0.8) == both["efficiency_with_all"]
    assert both["outside_share"] == pytest.approx(0.2) and both["outside_seconds"] == pytest.approx(12 * 0.025)
    assert both["loss_difference"] == pytest.approx(0.1)
    assert "80.0%" in format_row(both) and format_row(both).endswith("1.0e-01  6.0 0.5")


def test_nothing_is_compared_with_a_run_that_failed() -> None:
    both = {"case": "lora-b1", "ranks": 2, "batch_size": 1, **describe(watched(0.1, 0.0, [1.0] * 4), 2)}
    assert compare(both, [{"case": "lora-b1", "ranks": 1, "error": "no memory"}]) == {}
    assert format_row({"case": "lora-b1", "ranks": 1, "error": "no memory"}).endswith(" 1 no memory")


def test_ranks_share_a_batch_only_if_it_can_be_divided() -> None:
    assert [find_batch_size(CASES["same-fp32"], ranks, 4) for ranks in (1, 2, 4)] == [4, 2, 1]
    assert find_batch_size(CASES["lora-b4"], 2, 4) == 4
    with pytest.raises(RunFailed, match="3 ranks cannot share batches of 4"):
        find_batch_size(CASES["same-fp32"], 3, 4)


def test_peaks_are_those_of_each_gpu() -> None:
    assert read_peaks("0, 1024\n1, 2048\n0, 3072\n1, 512\n0, 10") == [3.0, 2.0]  # the last line was cut short
    assert read_peaks("") == []


def test_run_that_fails_says_why(tmp_path: Path) -> None:
    workflow = tmp_path / "workflow.json"
    workflow.write_text(json.dumps(make_workflow(CASES["lora-b1"], "run", "missing", 1, 2, is_tiny=True)))
    with pytest.raises(RunFailed, match=r"exit code 1 after 0 steps: lumina2-trainer: .*missing"):
        watch_run(
            ["run", str(workflow), "--output", str(tmp_path / "output"), "--device", "cpu"],
            num_ranks=1,
            run=RunFolder(path=tmp_path / "output/lumina2_trainer/run"),
            num_steps=2,
            timeout_seconds=200,
            printed_path=tmp_path / "printed.txt",
            environment=make_environment(is_tiny=True),
        )


def test_command_goes_on_after_a_row_that_failed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    # Two ranks cannot share the batches of three.
    command = [sys.executable, str(SCRIPT), "--tiny", "--cases", "same-fp32", "--ranks", "2", "3", "--steps", "2"]
    done = subprocess.run(
        [*command, "--timeout", "200", "--out", str(path)], capture_output=True, text=True, timeout=240, check=True
    )
    machine, failed, row = (json.loads(line) for line in path.read_text("utf-8").splitlines())
    assert machine["is_tiny"] and failed["error"] == "2 ranks cannot share batches of 3"
    assert row["samples_per_step"] == 3 and len(row["losses"]) == 2 and "efficiency" not in row
    assert done.stdout.splitlines()[-1] == format_row(row)
