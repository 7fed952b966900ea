"""Train with one and with several processes, one for each GPU of this machine: speed, memory, and equality of losses.

    python benchmarks/several_gpus.py --scratch DIR --out rows.jsonl [--ranks 1 2] [--cases NAME ...] [--steps 25]

Each row is the product's `run` under torchrun on a workflow file, with a model of real size and random weights and
random pictures, ended when log.jsonl has enough steps. DIR takes 6 GB: the base is used again if it is there, and so
are the caches of pictures and captions, which the first case of each precision fills.

`s/step` is the median of what log.jsonl says, after the first steps; `cycle` is the median from one line of the log to
the next, which has also what processes do between steps. `samples/s` is that of a cycle, `eff` its share of so many
times one rank's. `with all` is the same by the mean over these steps, with validation and whatever else was done, and
`outside` the share of time that no step took. `torch` is the allocator's peak of the first process, `GPUs` what
nvidia-smi says of each, in GiB. Cases named `same` split the same batches among the ranks: `loss` is the largest
relative difference of a step's loss from that of one rank. OMP_NUM_THREADS is what torchrun makes it: 1 for several.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumina2_trainer.benchmarks.processes import MACHINE_SCRIPT, headline, run_alone
from lumina2_trainer.benchmarks.watched_run import RunFailed, WatchedRun, watch_run

NUM_LAYERS = 26
"""Of the real transformer."""
NUM_COLD_STEPS = 8
"""Steps that are left out, or half of them if there are fewer than twice as many."""
NUM_STEPS_LEFT = 1000
"""That the workflow would go on for when it is ended."""
NUM_PICTURES = 12
SQUARE, MIXED = "square", "mixed"
"""Folders of pictures: of one shape with one caption, and of five shapes with captions of any length."""
SQUARE_SIZE = {False: (1224, 1224), True: (160, 160)}
"""By whether all is tiny."""
RESOLUTION = {False: 1024, True: 128}
CAPTION = " ".join(["a red fox sits on a wooden chair beside a window and looks at the rain outside"] * 4)
PROMPTS = "a fox in the rain\na chair at a window"
NUM_INFERENCE_STEPS = {False: 8, True: 2}
HELD_OUT_SHARE = 0.2
LEAST_SECONDS = 10.0
"""A run is not started with less time left."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run, in several numbers of processes."""

    name: str
    is_full: bool = False
    """Whether every weight is trained, not a LoRA."""
    precision: str = "bf16"
    batch_size: int = 1
    """Samples of a batch of each process."""
    splits_batch: bool = False
    """Whether instead a batch of as many samples as the most ranks of all rows is divided among them."""
    gradient_accumulation_steps: int = 1
    pictures: str = SQUARE
    is_validated: bool = False
    """Whether pictures are drawn and held-out losses measured every two fifths of the steps."""


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case(name="lora-b1"),
        Case(name="lora-b4", batch_size=4),
        Case(name="full-b1", is_full=True),
        Case(name="full-b1-accumulated", is_full=True, gradient_accumulation_steps=4),
        Case(name="fp8-lora-b1", precision="fp8"),
        Case(name="mixed-lora-b1", pictures=MIXED),
        Case(name="validated-lora-b1", is_validated=True),
        Case(name="same-bf16", splits_batch=True),
        Case(name="same-fp32", splits_batch=True, precision="fp32"),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", help="numbers of processes; by default 1, 2, 4, 8 as GPUs go")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--steps", type=int, default=25, help="optimizer steps of each run")
    parser.add_argument("--scratch", type=Path, help="folder for base, pictures and runs; a temporary one by default")
    parser.add_argument("--tiny", action="store_true", help="the demo's base at 128 pixels, on the CPU over gloo")
    parser.add_argument("--timeout", type=float, default=120, help="seconds that a run may take")
    parser.add_argument("--seconds", type=float, default=3600, help="that all may take; rows beyond say so")
    parser.add_argument("--out", type=Path, help="file to which each row is added as a line of JSON")
    options = parser.parse_args()
    if options.steps < 2:
        parser.error("--steps must be 2 at least")
    options.ranks = sorted(set(options.ranks or usual_ranks(is_tiny=options.tiny)))
    if options.scratch is not None:
        measure(options, options.scratch)
        return
    with tempfile.TemporaryDirectory(prefix="several-gpus-") as scratch:
        measure(options, Path(scratch))


def usual_ranks(*, is_tiny: bool) -> list[int]:
    """1, 2, 4 and 8, as far as there are GPUs."""
    import torch

    num_gpus = 2 if is_tiny else torch.cuda.device_count()
    return [1, *(count for count in (2, 4, 8) if count <= num_gpus)]


def measure(options: argparse.Namespace, scratch: Path) -> None:
    """All rows, each told of at once."""
    deadline = time.monotonic() + options.seconds
    machine = run_alone(MACHINE_SCRIPT, [], options.timeout)
    print(headline(machine) if "error" not in machine else machine["error"], flush=True)
    add_line(options.out, {"machine": machine, "steps": options.steps, "is_tiny": options.tiny})
    started = time.perf_counter()
    base = prepare(scratch, is_tiny=options.tiny)
    print(f"base and pictures written in {time.perf_counter() - started:.0f} s")
    print(HEADER, flush=True)
    for name in options.cases:
        rows: list[dict[str, Any]] = []
        for num_ranks in options.ranks:
            row = {"case": name, "ranks": num_ranks}
            try:
                row |= measure_row(CASES[name], num_ranks, base, scratch, deadline, options)
                row |= compare(row, rows)
            except RunFailed as failure:
                row["error"] = str(failure)
            rows.append(row)
            print(format_row(row), flush=True)
            add_line(options.out, row)


def prepare(scratch: Path, *, is_tiny: bool) -> str:
    """Write pictures and the base, as far as they are not there; the base as Load Lumina2 names it."""
    from lumina2_trainer.benchmarks.base_file import SHORT_GEMMA, ensure_base_file
    from lumina2_trainer.benchmarks.pictures import PHOTO_SIZES, TINY_SIZES, write_photos

    sizes = {SQUARE: (SQUARE_SIZE[is_tiny],), MIXED: TINY_SIZES if is_tiny else PHOTO_SIZES}
    for name, shapes in sizes.items():
        folder = scratch / "pictures" / name
        if folder.exists():
            continue
        unfinished = folder.with_name(f"{name}.tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        write_photos(unfinished, NUM_PICTURES, shapes)
        for path in unfinished.glob("*.txt") if name == SQUARE else ():
            path.write_text(CAPTION, encoding="utf-8")
        unfinished.rename(folder)
    checkpoints = scratch / "models" / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    if is_tiny:
        return "demo"
    return ensure_base_file(checkpoints, num_layers=NUM_LAYERS, text_encoder=SHORT_GEMMA).name


def measure_row(
    case: Case, num_ranks: int, base: str, scratch: Path, deadline: float, options: argparse.Namespace
) -> dict[str, Any]:
    """One case in one number of processes.

    Raises:
        RunFailed: It could not be measured.
    """
    from lumina2_trainer.trainer_core.run.folder import RunFolder

    seconds_left = deadline - time.monotonic()
    if seconds_left < LEAST_SECONDS:
        raise RunFailed("not run: the time for all was up")
    batch_size = find_batch_size(case, num_ranks, max(options.ranks))
    name = f"{case.name}-{num_ranks}"
    workflow, output = scratch / f"{name}.json", scratch / "output"
    nodes = make_workflow(case, name, base, batch_size, options.steps, is_tiny=options.tiny)
    workflow.write_text(json.dumps(nodes, indent=1), encoding="utf-8")
    run = RunFolder(path=output / "lumina2_trainer" / name)
    shutil.rmtree(run.path, ignore_errors=True)  # it would be gone on with
    folders = ["--root", str(scratch / "pictures"), "--models", str(scratch / "models"), "--output", str(output)]
    watched = watch_run(
        ["run", str(workflow), *folders, *(["--device", "cpu"] if options.tiny else [])],
        num_ranks=num_ranks,
        run=run,
        num_steps=options.steps,
        timeout_seconds=min(options.timeout, seconds_left),
        printed_path=scratch / f"{name}.txt",
        environment=make_environment(is_tiny=options.tiny),
    )
    shutil.rmtree(run.path, ignore_errors=True)
    samples_per_step = num_ranks * batch_size * case.gradient_accumulation_steps
    return {"batch_size": batch_size, "samples_per_step": samples_per_step, **describe(watched, samples_per_step)}


def find_batch_size(case: Case, num_ranks: int, most_ranks: int) -> int:
    """Find how many samples a batch of each process has.

    Raises:
        RunFailed: The ranks cannot share the batch.
    """
    if not case.splits_batch:
        return case.batch_size
    if most_ranks % num_ranks:
        raise RunFailed(f"{num_ranks} ranks cannot share batches of {most_ranks}")
    return most_ranks // num_ranks


def make_workflow(
    case: Case, run_name: str, base: str, batch_size: int, num_steps: int, *, is_tiny: bool
) -> dict[str, Any]:
    """Load, caches and one Train node, in ComfyUI's API format."""
    resolution = RESOLUTION[is_tiny]
    interval = max(1, 2 * num_steps // 5) if case.is_validated else 0
    validation = {
        "prompts": PROMPTS,
        "width": resolution,
        "height": resolution,
        "num_inference_steps": NUM_INFERENCE_STEPS[is_tiny],
        "every_num_steps": interval,
        "draw_base": True,
        "held_out_share": HELD_OUT_SHARE,
        "held_out_step_interval": interval,
    }
    train = {
        "model": ["1", 0],
        "latents": ["3", 0],
        "embeds": ["4", 0],
        "optimizer_settings": ["6", 0],
        "checkpoints": ["7", 0],
        **({"validation": ["5", 0]} if case.is_validated else {}),
        "steps": num_steps + NUM_STEPS_LEFT,
        "batch_size": batch_size,
        "caption_dropout": 0.0,
        "run_name": run_name,
    }
    accumulation = {"gradient_accumulation_steps": case.gradient_accumulation_steps}
    embeds = {"model": ["1", 0], "dataset": ["2", 0], "validation": ["5", 0], "system_prompt": "none"}
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "1": ("Lumina2Load", {"base": base, "precision": case.precision}),
        "2": ("Lumina2DatasetFolder", {"folder": case.pictures, "resolution": resolution}),
        "3": ("Lumina2CacheLatents", {"model": ["1", 0], "dataset": ["2", 0]}),
        "4": ("Lumina2CacheTextEmbeds", embeds),
        "5": ("Lumina2ValidationPrompts", validation),
        "6": ("Lumina2Optimizer", accumulation),
        "7": ("Lumina2Checkpoints", {"checkpoint_step_interval": 0}),
        "8": ("Lumina2TrainFull" if case.is_full else "Lumina2TrainLoRA", train),
    }
    return {number: {"class_type": kind, "inputs": inputs} for number, (kind, inputs) in nodes.items()}


def make_environment(*, is_tiny: bool) -> dict[str, str]:
    """The variables of the processes, which talk over this machine's own network."""
    environment = {"GLOO_SOCKET_IFNAME": "lo", **os.environ}
    return environment | ({"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} if is_tiny else {})


def describe(watched: WatchedRun, samples_per_step: int) -> dict[str, Any]:
    """Numbers of the steps after the first ones.

    Args:
        watched: What was seen, of two steps at least.
        samples_per_step: Of all processes.
    """
    records, arrivals = watched.records, watched.arrivals
    num_cold = min(NUM_COLD_STEPS, len(records) // 2)
    seconds = [record["seconds"] for record in records[num_cold:]]
    cycles = [later - earlier for earlier, later in zip(arrivals[num_cold - 1 :], arrivals[num_cold:], strict=False)]
    outside = max(0.0, sum(cycles) - sum(seconds))
    return {
        "seconds_per_step": statistics.median(seconds),
        "seconds_per_cycle": statistics.median(cycles),
        "samples_per_second": samples_per_step / statistics.median(cycles),
        "samples_per_second_with_all": samples_per_step / statistics.fmean(cycles),
        "outside_share": outside / sum(cycles),
        "outside_seconds": outside,
        "first_step_after": arrivals[0],
        "torch_peak_gib": records[-1]["peak_memory_gib"],
        "gpu_peaks_gib": watched.gpu_peaks_gib,
        "losses": [record["loss"] for record in records],
    }


def compare(row: dict[str, Any], earlier: list[dict[str, Any]]) -> dict[str, Any]:
    """A row beside that of one rank, if there is one."""
    alone = next((other for other in [*earlier, row] if other["ranks"] == 1 and "error" not in other), None)
    if alone is None:
        return {}
    keys = {"efficiency": "samples_per_second", "efficiency_with_all": "samples_per_second_with_all"}
    efficiency = {name: row[key] / (row["ranks"] * alone[key]) for name, key in keys.items()}
    if row is alone or not CASES[row["case"]].splits_batch:
        return efficiency
    pairs = zip(row["losses"], alone["losses"], strict=True)
    return {**efficiency, "loss_difference": max(abs(ours / expected - 1) for ours, expected in pairs)}


HEADER = (
    f"{'case':20} {'ranks':>5} {'batch':>5} {'s/step':>8} {'cycle':>8} {'samples/s':>9} {'eff':>6} {'with all':>8}"
    f" {'outside':>15} {'first':>6} {'torch':>6} {'loss':>8}  GPUs"
)


def format_row(row: dict[str, Any]) -> str:
    """One row of the table."""
    start = f"{row['case']:20} {row['ranks']:5d} "
    if "error" in row:
        return start + row["error"]
    efficiency, with_all = (f"{row[name]:.1%}" if name in row else "" for name in ("efficiency", "efficiency_with_all"))
    outside = f"{row['outside_share']:.1%} {row['outside_seconds']:.2f} s"
    difference = f"{row['loss_difference']:.1e}" if "loss_difference" in row else ""
    return (
        f"{start}{row['batch_size']:5d} {row['seconds_per_step']:8.4f} {row['seconds_per_cycle']:8.4f}"
        f" {row['samples_per_second']:9.2f} {efficiency:>6} {with_all:>8} {outside:>15} {row['first_step_after']:6.1f}"
        f" {row['torch_peak_gib']:6.2f} {difference:>8}  {' '.join(f'{peak:.1f}' for peak in row['gpu_peaks_gib'])}"
    ).rstrip()


def add_line(path: Path | None, content: dict[str, Any]) -> None:
    """Add a line of JSON to a file; nothing without one."""
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
