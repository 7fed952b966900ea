"""Measure how long a training run takes to its first finished step, and the host memory it needs on the way.

    python benchmarks/start_up.py --scratch DIR --output results.json

DIR takes 11 GB: an all-in-one base of real size with random weights, which is used again if it is there, pictures and
their caches. Each run is a fresh process with the caches ready, timed from before its interpreter starts: once with
the base out of the system's page cache ("cold", as far as the system complies), then with it inside ("warm"). Memory
is the most that was resident up to the first step, less that of an interpreter with torch imported and the GPU in use.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lumina2_trainer.benchmarks.processes import MACHINE_SCRIPT, headline, run_alone, write_report

TIMEOUT_SECONDS = 600
NUM_LAYERS = 26
"""Of the real transformer."""
NUM_PICTURES = 4
RUNS = ("cold", "warm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="folder for the base and its caches; a temporary one by default")
    parser.add_argument("--base", type=Path, help="an all-in-one file to use instead of a random one")
    parser.add_argument("--precision", default="bf16", help="of the frozen base")
    parser.add_argument("--tiny", action="store_true", help="the demo's base at 128 pixels, for a CPU")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        from lumina2_trainer.benchmarks.first_step import PARTS

        part, started = options.only
        print(json.dumps(PARTS[part](options.scratch, options.precision, float(started))))
        return
    if options.scratch is not None:
        options.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="start-up-", dir=options.scratch) as work:
        measure(options, Path(work))


def measure(options: argparse.Namespace, work: Path) -> None:
    """Prepare, and time the first step from a cold and from a warm file."""
    from lumina2_trainer.benchmarks.base_file import ensure_base_file
    from lumina2_trainer.benchmarks.first_step import prepare
    from lumina2_trainer.trainer_core.lumina2.models.base_files import DEMO_MODEL_PATH

    machine = run_alone(MACHINE_SCRIPT, [], TIMEOUT_SECONDS)
    print(headline(machine) if "error" not in machine else machine["error"], flush=True)
    base = DEMO_MODEL_PATH if options.tiny else options.base
    if base is None:
        base = ensure_base_file(options.scratch or work, num_layers=NUM_LAYERS)
    prepare(work, base, NUM_PICTURES, is_tiny=options.tiny)
    print(f"base of {base.stat().st_size / 1e9:.1f} GB", flush=True)
    results: dict[str, Any] = {}

    def run(part: str, name: str) -> dict[str, Any]:
        arguments = ["--scratch", str(work), "--precision", options.precision, "--only", part, str(time.time())]
        results[name] = run_alone(__file__, arguments, TIMEOUT_SECONDS)
        write_report(options.output, {"machine": machine, "results": results})
        if "error" in results[name]:
            sys.exit(f"{name}: {results[name]['error']}")
        return results[name]

    made = run("caches", "caches")
    print(f"caches of {NUM_PICTURES} pictures made in {made['seconds']:.1f} s", flush=True)
    interpreter = run("interpreter", "interpreter")["peak_gib"]
    print(f"interpreter with torch and the GPU in use: {interpreter:.2f} GiB")
    print(f"{'file':6} {'imported':>9} {'checked':>8} {'first step':>11} {'peak GiB':>9} {'above':>6}", flush=True)
    for name in RUNS:
        if name == "cold":
            drop_from_page_cache(base)
        first = run("first-step", name)
        first["above_interpreter_gib"] = first["peak_gib"] - interpreter
        write_report(options.output, {"machine": machine, "results": results})
        print(
            f"{name:6} {first['imported']:9.2f} {first['checked']:8.2f} {first['first_step']:11.2f}"
            f" {first['peak_gib']:9.2f} {first['above_interpreter_gib']:6.2f}",
            flush=True,
        )


def drop_from_page_cache(path: Path) -> None:
    """Ask the system to forget a file's content; it may keep it."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
