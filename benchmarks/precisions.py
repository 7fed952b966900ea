"""Measure what the precision of the base costs in quality: held-out loss on the demo, after the same short training.

    python benchmarks/precisions.py --output results.json [--steps 200] [--seeds 3] [PRECISION ...]

The demo's LoRA is trained with each precision and seed. A precision is good enough if its mean loss lies within the
spread of float32 over the seeds; the noise and times of the measurement are the same for all. A CPU rounds the weights
alone: 8-bit products, whose other side is rounded too, need a GPU that has them.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lumina2_trainer.benchmarks.processes import MACHINE_SCRIPT, headline, run_alone, write_report
from lumina2_trainer.trainer_core.cli import demo
from lumina2_trainer.trainer_core.context import StepContext
from lumina2_trainer.trainer_core.lumina2.models.base_files import find_model_files
from lumina2_trainer.trainer_core.lumina2.models.model_files import LoadSettings
from lumina2_trainer.trainer_core.lumina2.quant.precision import PRECISIONS
from lumina2_trainer.trainer_core.stages import caches, train
from lumina2_trainer.trainer_core.stages.dataset import read_dataset_folder

FIRST_SEED = 42
MACHINE_TIMEOUT_SECONDS = 120
COLUMNS = f"{'precision':10} {'before':>8} {'after':>8} {'spread':>8} {'from fp32':>10} {'s/step':>7}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("precisions", nargs="*", metavar="PRECISION", help=f"of {', '.join(PRECISIONS)}; all of them")
    parser.add_argument("--steps", type=int, default=demo.TRAIN.steps, help="of each training")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each precision")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    unknown = [name for name in options.precisions if name not in PRECISIONS]
    if unknown:
        parser.error(f"no precision {unknown[0]!r}: choose of {', '.join(PRECISIONS)}")
    machine = run_alone(MACHINE_SCRIPT, [], MACHINE_TIMEOUT_SECONDS)
    print(headline(machine) if "error" not in machine else machine["error"])
    print(f"{options.steps} steps, {options.seeds} seeds", COLUMNS, sep="\n", flush=True)
    names = ["fp32", *(name for name in options.precisions or PRECISIONS if name != "fp32")]
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="precisions-") as folder:
        for name in names:
            results[name] = measure(name, options.steps, options.seeds, Path(folder))
            print(format_row(name, results[name], results["fp32"]), flush=True)
            write_report(options.output, {"machine": machine, "steps": options.steps, "results": results})


def measure(precision: str, num_steps: int, num_seeds: int, folder: Path) -> dict[str, Any]:
    """Train with each seed; held-out losses before and after, and seconds a step."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    context = StepContext(output_dir=folder / "output", loras_dir=folder / "loras", device=device)
    model = find_model_files(LoadSettings(base="demo", precision=precision), context=context)
    held_out = demo.read_held_out(model, context)
    dataset = read_dataset_folder(demo.demo_folder("dataset"), context=context).dataset
    latents = caches.cache_latents(caches.CacheLatentsSettings(), model=model, dataset=dataset, context=context)
    embeds = caches.cache_text_embeds(
        caches.CacheTextEmbedsSettings(system_prompt="none"), model=model, dataset=dataset, context=context
    )
    warmup = min(demo.OPTIMIZER.num_warmup_steps, num_steps // 2)
    result: dict[str, Any] = {"before": [], "after": [], "seconds_per_step": []}
    for seed in range(FIRST_SEED, FIRST_SEED + num_seeds):
        settings = dataclasses.replace(demo.TRAIN, steps=num_steps, seed=seed, run_name=f"{precision}-{seed}")
        started = time.perf_counter()
        trained = train.train_lora(
            settings,
            model=model,
            latents=latents,
            embeds=embeds,
            adapter_settings=demo.LORA,
            optimizer_settings=dataclasses.replace(demo.OPTIMIZER, num_warmup_steps=warmup),
            context=context,
        )
        result["seconds_per_step"].append((time.perf_counter() - started) / num_steps)
        before, after = demo.measure_adapter(model, held_out, Path(trained.adapter.path), context)
        result["before"].append(statistics.fmean(before.values()))
        result["after"].append(statistics.fmean(after.values()))
    return result


def format_row(name: str, result: dict[str, Any], exact: dict[str, Any]) -> str:
    """Means over the seeds; the spread is the distance of the highest from the lowest."""
    after = statistics.mean(result["after"])
    spread = max(result["after"]) - min(result["after"])
    return (
        f"{name:10} {statistics.mean(result['before']):8.4f} {after:8.4f} {spread:8.4f}"
        f" {after - statistics.mean(exact['after']):+10.4f} {statistics.median(result['seconds_per_step']):7.3f}"
    )


if __name__ == "__main__":
    main()
