"""Measure Cache Latents and Cache Text Embeds beside plain loops, on generated pictures and a base of real size.

    python benchmarks/cache_rate.py --output results.json [--scratch DIR] [--pictures 64] [--captions 256]

The plain loops take one picture through diffusers' VAE and one caption through transformers' Gemma2 at a time, from
the same file, in float32 as Cache Latents and Cache Text Embeds do, and in bfloat16. `total` is everything from
loading the model to the last file; `per second` is the difference between a long and a short data set, so loading is
left out. `error` is the largest difference of a picture or caption from the plain float32 loop's, as a share of its
norm.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from lumina2_trainer.benchmarks.processes import MACHINE_SCRIPT, headline, run_alone, write_report

TIMEOUT_SECONDS = 600
NUM_LAYERS = 1
"""Of the transformer beside the text encoder and the VAE, which is not run."""
SHORT_SHARE = 8
"""The long data set is so many times as long as the short one."""
KINDS = ("latents", "embeds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=64, help="of the long data set")
    parser.add_argument("--captions", type=int, default=256, help="of the long data set")
    parser.add_argument("--resolution", type=int, default=1024, help="side in pixels of the square of equal area")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--scratch", type=Path, help="folder for 7 GB; a base file written there is used again")
    parser.add_argument("--tiny", action="store_true", help="the demo's base at 128 pixels, for a CPU")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if min(options.pictures, options.captions) < 2 * SHORT_SHARE:
        parser.error(f"--pictures and --captions must be {2 * SHORT_SHARE} at least")
    if options.tiny:
        options.resolution = 128
    if options.only:
        from lumina2_trainer.benchmarks.cache_sides import measure_side

        kind, side = options.only
        print(json.dumps(measure_side(kind, side, options.scratch, options.resolution)))
        return
    with tempfile.TemporaryDirectory(prefix="cache-rate-", dir=options.scratch) as work:
        options.scratch = options.scratch or Path(work)
        compare(options, Path(work))


def compare(options: argparse.Namespace, work: Path) -> None:
    """Write what is read, and measure both sides of each kind."""
    from lumina2_trainer.benchmarks.cache_sides import MAX_DIFFERENCE, SIDES, compare_outputs, prepare

    machine = run_alone(MACHINE_SCRIPT, [], TIMEOUT_SECONDS)
    print(headline(machine) if "error" not in machine else machine["error"], flush=True)
    counts = {"latents": options.pictures, "embeds": options.captions}
    started = time.perf_counter()
    prepare(work, options.scratch, counts, SHORT_SHARE, NUM_LAYERS, options.tiny)
    print(f"pictures, captions and base written in {time.perf_counter() - started:.0f} s")
    print(f"{'kind':8} {'side':10} {'number':>7} {'total':>8} {'per second':>11} {'GiB':>6} {'speed':>6} {'error':>8}")
    arguments = ["--scratch", str(work), "--resolution", str(options.resolution)]
    results: dict[str, dict[str, Any]] = {}
    for kind in options.kinds:
        by_side = results.setdefault(kind, {})
        for side in SIDES[kind]:
            result = run_alone(__file__, [*arguments, "--only", kind, side], TIMEOUT_SECONDS)
            if "error" not in result and side == "ours" and "error" not in by_side["plain"]:
                result["difference"] = compare_outputs(kind, work)
                result["is_equal"] = result["difference"] <= MAX_DIFFERENCE
            by_side[side] = result
            print(format_row(kind, side, result, by_side["plain"]), flush=True)
            write_report(options.output, {"machine": machine, "results": results})


def format_row(kind: str, side: str, result: dict[str, Any], plain: dict[str, Any]) -> str:
    """One side in the table."""
    start = f"{kind:8} {side:10} "
    if "error" in result:
        return start + result["error"]
    speed = result["per_second"] / plain["per_second"] if "error" not in plain else float("nan")
    row = (
        f"{start}{result['count']:7d} {result['total']:8.2f} {result['per_second']:11.2f} {result['peak_gib']:6.2f}"
        f" {speed:6.2f}"
    )
    if "difference" in result:
        row += f" {result['difference']:8.5f}{'' if result['is_equal'] else '  OUTPUTS DIFFER'}"
    return row


if __name__ == "__main__":
    main()
