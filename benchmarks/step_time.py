"""Measure a training step of this project and of others, side by side on equal work.

    python benchmarks/step_time.py --output results.json [CASE ...]

Every measurement has a process of its own; a table is printed last.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import CASES
from benchmarks.measure import matrix_rate, measure_steps
from benchmarks.trainers import TRAINERS

TIMEOUT_SECONDS = 240
MAX_LOSS_DIFFERENCE = 0.01
"""Relative; beyond it two trainers did not do the same work."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all that suit the device")
    parser.add_argument("--trainers", nargs="*", default=list(TRAINERS), choices=TRAINERS)
    parser.add_argument("--output", type=Path, default=None, help="JSON file for the results")
    parser.add_argument("--only", nargs=2, metavar=("TRAINER", "CASE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(*options.only)))
        return
    has_gpu = torch.cuda.is_available()
    cases = options.cases or [name for name, case in CASES.items() if (case.size == "full") == has_gpu]
    results = {case: {trainer: run(trainer, case) for trainer in options.trainers} for case in cases}
    device = torch.cuda.get_device_name() if has_gpu else "CPU"
    rate = matrix_rate(torch.device("cuda")) if has_gpu else None
    if options.output:
        report = {"device": device, "torch": torch.__version__, "matrix_tflops": rate, "results": results}
        options.output.write_text(json.dumps(report, indent=2))
    print(f"{device}, torch {torch.__version__}" + (f", bf16 matrix product {rate:.0f} TFLOP/s" if rate else ""))
    print_table(results)


def measure(trainer: str, case_name: str) -> dict[str, Any]:
    """One measurement, in this process."""
    case = CASES[case_name]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    step, loss = TRAINERS[trainer](case, device)
    return dataclasses.asdict(measure_steps(step, loss, device))


def run(trainer: str, case: str) -> dict[str, Any]:
    """One measurement, in a process of its own."""
    command = [sys.executable, __file__, "--only", trainer, case]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"more than {TIMEOUT_SECONDS} seconds"}
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def print_table(results: dict[str, dict[str, dict[str, Any]]]) -> None:
    """A row for each case and trainer; ratios are against the first trainer of the case."""
    print(f"{'case':20} {'trainer':10} {'s/step':>8} {'range':>15} {'first':>7} {'GiB':>6} {'loss':>9} {'speed':>6}")
    for case, by_trainer in results.items():
        reference = next((r for r in by_trainer.values() if "error" not in r), None)
        for trainer, result in by_trainer.items():
            if "error" in result:
                print(f"{case:20} {trainer:10} {result['error']}")
                continue
            assert reference is not None, "a result without a reference"
            spread = f"{result['fastest']:.3f}-{result['slowest']:.3f}"
            is_equal = abs(result["loss"] / reference["loss"] - 1) < MAX_LOSS_DIFFERENCE
            print(
                f"{case:20} {trainer:10} {result['seconds']:8.4f} {spread:>15} {result['first_step_seconds']:7.1f}"
                f" {result['peak_gib']:6.2f} {result['loss']:9.5f} {reference['seconds'] / result['seconds']:6.2f}"
                f"{'' if is_equal else '  NOT THE SAME LOSS'}"
            )


if __name__ == "__main__":
    main()
