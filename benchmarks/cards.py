"""Train as users do on the cards they have: does it end well, how fast, and how much does the driver count?

    python benchmarks/cards.py --scratch DIR --out rows.jsonl [--cards 8 12] [--allocators expandable] [--steps 60]

Each row is the command `run` on a workflow of its own, with a model of real size and random weights, random pictures of
five shapes, pictures drawn twice and a running average, on a large GPU that is made a smaller one (small_cards.py). DIR
takes 11 GB: base and caches are used again if they are there.

`predicted` is what the plan announces of the step, `driver` the most that the driver counted beside what was in use
before, in GiB. `less` counts how often memory ran out and the run went on with a smaller plan. `s/step` is the median
of log.jsonl after the first steps, `all` the whole command.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumina2_trainer.benchmarks.gpu_memory import used_gib, watch_gpu_memory
from lumina2_trainer.benchmarks.small_cards import CARDS, Card, emulated

NUM_LAYERS = 26
NUM_PICTURES = 16
NUM_COLD_STEPS = 10
PROMPT = "a fox in the rain"
ALLOCATORS: dict[str, str] = {
    "expandable": "",
    "pytorch": "expandable_segments:False",
    "async": "backend:cudaMallocAsync",
}
"""PYTORCH_CUDA_ALLOC_CONF of each; the first is what the command line chooses."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained."""

    precision: str = "bf16"
    batch_size: int = 1
    is_full: bool = False


JOBS = {
    "lora-bf16-b1": Job(),
    "lora-fp8-b1": Job(precision="fp8"),
    "lora-nf4-b1": Job(precision="nf4"),
    "lora-fp8-b4": Job(precision="fp8", batch_size=4),
    "full-b1": Job(is_full=True),
    "full-b4": Job(is_full=True, batch_size=4),
}
USUAL_JOBS = {
    "4": ("lora-fp8-b1", "lora-nf4-b1"),
    "6": ("lora-fp8-b1",),
    "8": ("lora-fp8-b1", "lora-bf16-b1"),
    "10": ("lora-bf16-b1",),
    "12": ("lora-bf16-b1", "lora-fp8-b4"),
    "16": ("full-b1",),
    "24": ("full-b4",),
}
"""By card."""
HEADER = (
    f"{'card':>4} {'job':13} {'allocator':10} {'ended':>6} {'less':>4} {'predicted':>9} {'driver':>6} {'s/step':>7}"
    f" {'all':>6}  why"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="folder for base, pictures, caches and runs")
    parser.add_argument("--out", type=Path, help="file to which each row is added as a line of JSON")
    parser.add_argument("--cards", nargs="+", choices=CARDS, default=list(CARDS), help="GB on the box")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, help="by default what people train on each card")
    parser.add_argument("--allocators", nargs="+", choices=ALLOCATORS, default=list(ALLOCATORS))
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of each run")
    parser.add_argument("--timeout", type=float, default=170, help="seconds that a run may take")
    parser.add_argument("--seconds", type=float, default=3600, help="that all may take; rows beyond are left out")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    base = prepare(options.scratch)
    print(HEADER, flush=True)
    for name in options.cards:
        for job in options.jobs or USUAL_JOBS[name]:
            for allocator in options.allocators:
                if time.monotonic() < deadline:
                    with emulated(CARDS[name]) as environment:
                        row = measure(CARDS[name], job, allocator, base, environment, options)
                    report({"card": name, "job": job, "allocator": allocator, **row}, options.out)


def prepare(scratch: Path) -> str:
    """Write the base and pictures, and fill the caches on the whole GPU; gives the base's name."""
    from lumina2_trainer.benchmarks.base_file import ensure_base_file
    from lumina2_trainer.benchmarks.pictures import PHOTO_SIZES, write_photos

    base = ensure_base_file(scratch / "models" / "checkpoints", num_layers=NUM_LAYERS).name
    if not (scratch / "pictures").exists():
        write_photos(scratch / "pictures" / "set", NUM_PICTURES, PHOTO_SIZES)
    started = time.perf_counter()
    done = start(scratch, "caches", {**nodes_before(base, "bf16")}, dict(os.environ))
    status = done.wait()
    assert status == 0, (scratch / "caches.txt").read_text(encoding="utf-8")
    print(f"caches filled in {time.perf_counter() - started:.0f} s", flush=True)
    return base


def measure(
    card: Card, name: str, allocator: str, base: str, environment: dict[str, str], options: argparse.Namespace
) -> dict[str, Any]:
    """One run on a card."""
    from lumina2_trainer.trainer_core.run.folder import RunFolder, is_step

    job, scratch = JOBS[name], options.scratch
    run_name = f"{name}-{card.total_gib:g}-{allocator}"
    run = RunFolder(path=scratch / "output" / "lumina2_trainer" / run_name)
    shutil.rmtree(run.path, ignore_errors=True)
    if ALLOCATORS[allocator]:
        environment = {**environment, "PYTORCH_CUDA_ALLOC_CONF": ALLOCATORS[allocator]}
    before, started = used_gib(), time.perf_counter()
    with watch_gpu_memory(scratch / "memory.csv") as peaks_gib:
        process = start(scratch, run_name, make_nodes(job, run_name, base, options.steps), environment)
        try:
            status: int | None = process.wait(timeout=options.timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = None
    printed = (scratch / f"{run_name}.txt").read_text(encoding="utf-8", errors="replace")
    records = [record for record in run.read_log() if is_step(record)]
    seconds = [record["seconds"] for record in records[min(NUM_COLD_STEPS, len(records) // 2) :]]
    plan = json.loads(run.job_path.read_text(encoding="utf-8")).get("memory_plan", "") if run.job_path.exists() else ""
    predicted = re.search(r"predicted peak ([\d.]+)", plan)
    shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
    shutil.rmtree(run.path / "final", ignore_errors=True)
    return {
        "ended_well": status == 0,
        "num_smaller_plans": printed.count("going on from there in less memory"),
        "plan": plan,
        "predicted_gib": float(predicted[1]) if predicted else None,
        "driver_gib": max(peaks_gib, default=0.0) - before,
        "seconds_per_step": statistics.median(seconds) if seconds else None,
        "num_steps": len(records),
        "losses": [record["loss"] for record in records],
        "seconds": time.perf_counter() - started,
        "reason": "" if status == 0 else (printed.strip().splitlines() or ["nothing printed"])[-1],
    }


def start(scratch: Path, name: str, nodes: dict[str, Any], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Run a workflow by the command line."""
    path = scratch / f"{name}.json"
    path.write_text(json.dumps(nodes), encoding="utf-8")
    folders = ["--root", str(scratch), "--models", str(scratch / "models"), "--output", str(scratch / "output")]
    command = [sys.executable, "-m", "lumina2_trainer", "run", str(path), *folders]
    with (scratch / f"{name}.txt").open("w", encoding="utf-8") as printed:
        return subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT, env=environment)


def nodes_before(base: str, precision: str) -> dict[str, Any]:
    """Load Lumina2, Dataset Folder, the caches and the prompts, in ComfyUI's API format."""
    prompts = {"prompts": PROMPT, "width": 1024, "height": 1024, "num_inference_steps": 12, "every_num_steps": 30}
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "1": ("Lumina2Load", {"base": base, "precision": precision}),
        "2": ("Lumina2DatasetFolder", {"folder": "pictures/set", "resolution": 1024}),
        "3": ("Lumina2CacheLatents", {"model": ["1", 0], "dataset": ["2", 0]}),
        "4": ("Lumina2CacheTextEmbeds", {"model": ["1", 0], "dataset": ["2", 0], "validation": ["5", 0]}),
        "5": ("Lumina2ValidationPrompts", prompts),
    }
    return {number: {"class_type": kind, "inputs": inputs} for number, (kind, inputs) in nodes.items()}


def make_nodes(job: Job, run_name: str, base: str, num_steps: int) -> dict[str, Any]:
    """The whole workflow of a run."""
    train: dict[str, Any] = {
        "model": ["1", 0],
        "latents": ["3", 0],
        "embeds": ["4", 0],
        "validation": ["5", 0],
        "checkpoints": ["6", 0],
        "steps": num_steps,
        "batch_size": job.batch_size,
        "run_name": run_name,
        **({} if job.is_full else {"rank": 16}),
    }
    kind = "Lumina2TrainFull" if job.is_full else "Lumina2TrainLoRA"
    return {
        **nodes_before(base, job.precision),
        "6": {"class_type": "Lumina2Checkpoints", "inputs": {"use_ema": not job.is_full}},
        "7": {"class_type": kind, "inputs": train},
    }


def report(row: dict[str, Any], out: Path | None) -> None:
    """Print a row, and add it to the file."""

    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    print(
        f"{row['card']:>4} {row['job']:13} {row['allocator']:10} {'well' if row['ended_well'] else 'BADLY':>6}"
        f" {row['num_smaller_plans']:4} {number(row['predicted_gib'], 1):>9} {number(row['driver_gib'], 2):>6}"
        f" {number(row['seconds_per_step'], 3):>7} {number(row['seconds'], 0):>6}  {row['reason'][:150]}",
        flush=True,
    )
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
