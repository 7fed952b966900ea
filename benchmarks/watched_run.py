"""The product's own `run` under torchrun, watched from outside until its log has enough steps, then ended."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from lumina2_trainer.benchmarks.gpu_memory import watch_gpu_memory
from lumina2_trainer.trainer_core.run.folder import RunFolder, is_step

POLL_SECONDS = 0.001
"""Between looks at the log: a hundredth of the shortest step of the real model."""
COMPLAINT = re.compile(r"(?:\[rank\d+\]: ?)?(lumina2-trainer: .+|[\w.]*(?:Error|Exception|Failed): .+)")
LAUNCHER_COMPLAINT = "torch.distributed.elastic"
"""Begins what torchrun says itself, which names no reason."""


class RunFailed(Exception):
    """The run ended, or its time was up, before it had made its steps; says why."""


@dataclass(frozen=True, kw_only=True)
class WatchedRun:
    """What was seen of a run."""

    records: list[dict[str, Any]]
    """Lines of log.jsonl, one a step."""
    arrivals: list[float]
    """When each of them was written, in seconds since the launcher was started."""
    gpu_peaks_gib: list[float]
    """Most memory in use of each GPU of the machine, by nvidia-smi; empty where there is none."""


def watch_run(
    arguments: Sequence[str],
    *,
    num_ranks: int,
    run: RunFolder,
    num_steps: int,
    timeout_seconds: float,
    printed_path: Path,
    environment: Mapping[str, str],
) -> WatchedRun:
    """Start `lumina2-trainer run` in several processes, and end them as soon as they have made their steps.

    The end is a kill, so that nothing is saved: a model and its optimizer's state take longer than the steps.

    Args:
        arguments: Of the command line, from `run` on. The workflow's own number of steps must be larger.
        num_ranks: Processes.
        run: Its folder, which must not be there yet.
        num_steps: How many are waited for.
        timeout_seconds: After which it has failed.
        printed_path: File for what the processes print.
        environment: Of the processes.

    Raises:
        RunFailed: There were fewer steps.
    """
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks))
    command = [sys.executable, *launcher, "-m", "lumina2_trainer", *arguments]
    arrivals: list[float] = []
    memory_path = printed_path.with_suffix(".memory.csv")
    with printed_path.open("w", encoding="utf-8") as printed, watch_gpu_memory(memory_path) as peaks_gib:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT, env=environment)
        try:
            while len(arrivals) < num_steps:
                has_ended = process.poll() is not None  # asked first: what it wrote last counts
                seconds = time.perf_counter() - started
                arrivals += [seconds] * (_count_steps(run) - len(arrivals))
                if len(arrivals) < num_steps and (has_ended or seconds > timeout_seconds):
                    raise RunFailed(_reason(printed_path, process.poll(), timeout_seconds, len(arrivals)))
                time.sleep(POLL_SECONDS)
        finally:
            _kill(process)
    records = [record for record in run.read_log() if is_step(record)]
    return WatchedRun(records=records[:num_steps], arrivals=arrivals[:num_steps], gpu_peaks_gib=peaks_gib)


def _count_steps(run: RunFolder) -> int:
    """Lines of the log; scores of pictures, which are lines too, are not asked for here."""
    try:
        return run.log_path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The launcher first, which would end the others gently; each of them is a session of its own."""
    family = []
    if process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    process.wait()
    for child in family:
        if child.is_running():
            child.kill()
    psutil.wait_procs(family, timeout=30)


def _reason(printed_path: Path, status: int | None, timeout_seconds: float, num_done: int) -> str:
    """In one line."""
    lines = printed_path.read_text(encoding="utf-8", errors="replace").splitlines()
    complaints = [found[1] for line in lines if (found := COMPLAINT.match(line.strip()))]
    own = [complaint for complaint in complaints if not complaint.startswith(LAUNCHER_COMPLAINT)]
    # The first: what the other processes say is that this one is gone.
    what = own[0] if own else (lines or ["nothing printed"])[-1]
    ended = f"no end after {timeout_seconds:.0f} s" if status is None else f"exit code {status}"
    return f"{ended} after {num_done} steps: {what}"
