"""Measure a training step of this project and of others, side by side on equal work.

    python benchmarks/step_time.py --output results.json [--comfyui DIR] [--sd-scripts DIR] [CASE ...]

Every trainer has a process of its own, which must be able to import what a checkout needs, and makes all cases in it;
after a failure the cases that are left get another. Rows are printed and the file is written after each process.
`first` is the first step with all that happens once: ComfyUI's node moves the model to the GPU in it. `GiB` is the most
memory allocated from then on. `speed` is against the first trainer of the case, and so is the check of the loss.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lumina2_trainer.benchmarks.cases import CASES
from lumina2_trainer.benchmarks.material import Checkouts, Setup
from lumina2_trainer.benchmarks.processes import MACHINE_SCRIPT, headline, run_alone, run_for_lines, write_report
from lumina2_trainer.benchmarks.table import COLUMNS, format_row
from lumina2_trainer.benchmarks.trainers import NEED_CHECKOUT, TRAINER_NAMES, TRAINERS

TIMEOUT_SECONDS = 240


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all that suit the device")
    parser.add_argument("--trainers", nargs="+", choices=TRAINER_NAMES, help="all that can run")
    parser.add_argument("--comfyui", type=Path, metavar="DIR", help="checkout of ComfyUI, for its Train LoRA node")
    parser.add_argument("--sd-scripts", type=Path, metavar="DIR", help="checkout of kohya-ss/sd-scripts")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    checkouts = Checkouts(comfyui=options.comfyui, sd_scripts=options.sd_scripts)
    if options.only:
        for case in options.cases:
            print(json.dumps(measure(options.only, case, checkouts)), flush=True)
        return
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        parser.error(f"no case {unknown[0]!r}: choose of {', '.join(CASES)}")
    trainers = options.trainers or [name for name in TRAINER_NAMES if has_checkout(name, checkouts)]
    without = [name for name in trainers if not has_checkout(name, checkouts)]
    if without:
        parser.error(f"{without[0]} needs --{without[0]} DIR, an existing checkout")
    compare(options.cases, trainers, checkouts, options.output)


def has_checkout(trainer: str, checkouts: Checkouts) -> bool:
    """Whether a trainer's source is there."""
    path = getattr(checkouts, NEED_CHECKOUT[trainer]) if trainer in NEED_CHECKOUT else Path()
    return path is not None and path.is_dir()


def compare(cases: list[str], trainers: list[str], checkouts: Checkouts, output: Path | None) -> None:
    """Measure every trainer in every case, and tell of each at once."""
    machine = run_alone(MACHINE_SCRIPT, [], TIMEOUT_SECONDS)
    if "error" in machine:
        sys.exit(machine["error"])
    size = "full" if machine["matrix_tflops"] else "demo"
    cases = cases or [name for name, case in CASES.items() if case.size == size]
    print(headline(machine), COLUMNS, sep="\n", flush=True)
    results: dict[str, dict[str, Any]] = {case: {} for case in cases}
    for trainer in trainers:
        for case, result in measure_alone(
            trainer, [c for c in cases if trainer in TRAINERS[CASES[c].trained]], checkouts
        ):
            results[case][trainer] = result
            reference = next((r for r in results[case].values() if "error" not in r), result)
            print(format_row(case, trainer, result, reference), flush=True)
        write_report(output, {"machine": machine, "results": results})


def measure_alone(trainer: str, cases: list[str], checkouts: Checkouts) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure a trainer in other processes: each case, and what was measured or an error."""
    while cases:
        arguments = [*checkout_options(checkouts), "--only", trainer, *cases]
        lines, error = run_for_lines(__file__, arguments, TIMEOUT_SECONDS)
        results = [json.loads(line) for line in lines if line.startswith("{")]
        if error:
            results.append({"error": error})
        yield from zip(cases, results, strict=False)
        cases = cases[len(results) :]


def checkout_options(checkouts: Checkouts) -> list[str]:
    """The command line that gives these checkouts."""
    given = {"--comfyui": checkouts.comfyui, "--sd-scripts": checkouts.sd_scripts}
    return [word for option, path in given.items() if path is not None for word in (option, str(path))]


def measure(trainer: str, case_name: str, checkouts: Checkouts) -> dict[str, Any]:
    """One measurement, in this process."""
    import gc

    import torch
    from lumina2_trainer.benchmarks.measure import measure_steps

    case = CASES[case_name]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(prefix="step-time-") as scratch:
        setup = Setup(case=case, device=device, scratch_dir=Path(scratch), checkouts=checkouts)
        prepared = TRAINERS[case.trained][trainer](setup)
        measurement = measure_steps(prepared.train, prepared.loss, device)
    del prepared
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return dataclasses.asdict(measurement)


if __name__ == "__main__":
    main()
