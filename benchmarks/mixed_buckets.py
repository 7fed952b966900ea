"""Train on pictures of many shapes with captions of any length from a cold start, and on one shape beside it.

    python benchmarks/mixed_buckets.py --output results.json [--resolution 512] [--batch-size 4] [--recompute]

Each run has a process and empty compile caches of its own. The run of one shape has the mixed run's mean number of
tokens. `ratio` is the mixed run's seconds a step over the fixed run's, both medians after step 20.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lumina2_trainer.benchmarks.processes import MACHINE_SCRIPT, headline, run_alone, write_report

RUNS = ("mixed", "fixed")
NUM_BUCKETS = 9
SAMPLES_PER_BUCKET = 8
MAX_ASPECT = 2.5
CAPTION_TOKENS = (10, 250)
"""Shortest and longest caption."""
NUM_COLD_STEPS = 20
"""Steps that are left out of the median."""
NUM_FIXED_STEPS = 60
TIMEOUT_SECONDS = 900
TINY_RESOLUTION = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=1024, help="side in pixels of the square of equal area")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of the mixed run")
    parser.add_argument("--recompute", action="store_true", help="recompute activations in the backward pass")
    parser.add_argument("--precision", default="bf16", help="of the frozen base")
    parser.add_argument("--tiny", action="store_true", help="the demo's sizes in float32, for a CPU")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--only", choices=RUNS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps <= NUM_COLD_STEPS:
        parser.error(f"--steps must be more than {NUM_COLD_STEPS}, the steps that are left out of the median")
    if options.tiny:
        options.resolution, options.precision = TINY_RESOLUTION, "fp32"
    if options.only:
        print(json.dumps(run(options)))
        return
    compare(options)


def compare(options: argparse.Namespace) -> None:
    """Both runs, each told of at once."""
    machine = run_alone(MACHINE_SCRIPT, [], TIMEOUT_SECONDS)
    print(headline(machine) if "error" not in machine else machine["error"])
    print(
        f"{'run':6} {'first':>7} {'s/step':>8} {'mean':>8} {'total':>7} {'tokens':>7} {'graphs':>7} {'kernels':>8}"
        f" {'GiB':>6}",
        flush=True,
    )
    results: dict[str, Any] = {}
    for name in RUNS:
        with tempfile.TemporaryDirectory(prefix="compile-caches-") as caches:
            environment = {
                **os.environ,
                "TRITON_CACHE_DIR": f"{caches}/triton",
                "TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor",
            }
            result = run_alone(__file__, [*sys.argv[1:], "--only", name], TIMEOUT_SECONDS, environment)
        results[name] = result
        print(format_row(name, result), flush=True)
        write_report(options.output, {"machine": machine, "options": describe(options), "results": results})
    if any("error" in result for result in results.values()):
        sys.exit(1)
    print(f"ratio {results['mixed']['median'] / results['fixed']['median']:.3f}")


def describe(options: argparse.Namespace) -> dict[str, Any]:
    """The options, as JSON."""
    return {name: value for name, value in vars(options).items() if name not in ("output", "only")}


def format_row(name: str, result: dict[str, Any]) -> str:
    """One run in the table."""
    if "error" in result:
        return f"{name:6} {result['error']}"
    return (
        f"{name:6} {result['first']:7.2f} {result['median']:8.4f} {result['mean']:8.4f} {result['total']:7.1f}"
        f" {result['tokens']:7.0f} {result['graphs']:7d} {result['kernels']:8d} {result['peak_gib']:6.2f}"
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """One run, in this process: seconds of steps, and what was compiled."""
    import torch
    from lumina2_trainer.benchmarks.cases import SIZES
    from lumina2_trainer.benchmarks.compiles import CompileCounter
    from lumina2_trainer.benchmarks.shapes import fixed_samples, mean_num_tokens, mixed_samples
    from lumina2_trainer.benchmarks.trainers import ours

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = SIZES["demo" if options.tiny else "full"]
    samples = mixed_samples(
        options.resolution,
        num_buckets=NUM_BUCKETS,
        samples_per_bucket=SAMPLES_PER_BUCKET,
        max_aspect=MAX_ASPECT,
        caption_tokens=CAPTION_TOKENS,
        text_width=config.cap_feat_dim,
    )
    num_steps = options.steps
    if options.only == "fixed":
        samples = fixed_samples(samples, options.resolution, text_width=config.cap_feat_dim)
        num_steps = min(options.steps, NUM_FIXED_STEPS)
    counter = CompileCounter()
    with tempfile.TemporaryDirectory(prefix="mixed-buckets-") as folder:
        transformer = ours.build_transformer(config, options.precision, device, has_recomputation=options.recompute)
        session = ours.start_lora_session(
            transformer, samples, Path(folder), batch_size=options.batch_size, precision=options.precision
        )
        seconds = []
        for _ in range(num_steps):
            started = time.perf_counter()
            record = session.train_step()
            seconds.append(time.perf_counter() - started)
    warm = seconds[NUM_COLD_STEPS:]
    return {
        "first": seconds[0],
        "median": statistics.median(warm),
        "mean": statistics.fmean(warm),
        "slowest": max(warm),
        "total": sum(seconds),
        "steps": num_steps,
        "tokens": mean_num_tokens(samples),
        "shapes": len({(s.latents.shape[1:], len(s.prompt_embeds)) for s in samples}),
        "graphs": counter.num_graphs,
        "kernels": counter.num_kernels,
        "peak_gib": record.peak_memory_gib,
    }


if __name__ == "__main__":
    main()
