"""Compare predicted with measured memory, and see what saving memory costs in time.

    python benchmarks/memory.py --output results.json [--tiny] [CASE ...]

A LoRA of rank 16 on attention of the real model with random weights, every case in a process of its own. A case ends in
a fixed way to run the blocks, such as `keep` or `recompute`, or in the GiB that the plan is chosen for. `allocated` is
what the prediction is about; `reserved` is what PyTorch took from the GPU for it. The seconds of cases with the same
start can be compared. With --tiny the demo's network stands in, to try the command on a CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lumina2_trainer.benchmarks.cases import RANK, SIZES, Case
from lumina2_trainer.benchmarks.material import Sample, make_samples
from lumina2_trainer.benchmarks.measure import measure_steps
from lumina2_trainer.benchmarks.processes import MACHINE_SCRIPT, headline, run_alone, write_report
from lumina2_trainer.benchmarks.trainers.ours import build_transformer, start_lora_session
from lumina2_trainer.benchmarks.trainers.prepared import repeat
from lumina2_trainer.trainer_core.adapters.lora import LoRASettings, attach_lora
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.lumina2.memory.estimate import Measures, StepEstimate
from lumina2_trainer.trainer_core.lumina2.memory.plan import GIB, Budget, Freedom, MemoryPlan, choose_plan
from lumina2_trainer.trainer_core.lumina2.memory.sizes import BatchSize, measure_model
from lumina2_trainer.trainer_core.lumina2.network.padding import ShapeLimiter
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Config, Lumina2Transformer
from lumina2_trainer.trainer_core.lumina2.quant.precision import PRECISIONS
from lumina2_trainer.trainer_core.run.memory import device_facts

TIMEOUT_SECONDS = 240
COLUMNS = (
    f"{'case':24} {'predicted':>9} {'allocated':>9} {'error':>6} {'reserved':>8} {'s/step':>7} {'graphs':>6}"
    f" {'loss':>8}  plan"
)


@dataclass(frozen=True, kw_only=True)
class MemoryCase:
    """One way to train, and how much memory it may take."""

    precision: str
    """Key of PRECISIONS."""
    resolution: int
    batch_size: int
    way: str
    """One of WAYS, or a number of GiB."""

    @property
    def name(self) -> str:
        prefix = "" if self.precision == "bf16" else f"{self.precision}-"
        return f"{prefix}{self.resolution}-b{self.batch_size}-{self.way}"


WAYS = ("keep", "results", "recompute", "slices", "offload")
"""See `fixed_measures`."""
CASES: dict[str, MemoryCase] = {
    case.name: case
    for precision, resolution, batch_size, ways in (
        ("bf16", 1024, 1, ("keep", "results", "recompute", "slices", "offload", "11", "8", "5.7", "4")),
        ("bf16", 1024, 4, ("results", "recompute", "slices", "12")),
        ("bf16", 512, 2, ("keep", "results", "recompute", "8")),
        ("fp8", 1024, 1, ("keep", "results", "recompute", "slices", "8", "3.4", "2")),
        ("fp8", 1024, 4, ("results", "recompute", "4")),
        ("nf4", 1024, 1, ("keep", "results", "recompute", "3")),
    )
    for way in ways
    for case in [MemoryCase(precision=precision, resolution=resolution, batch_size=batch_size, way=way)]
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all of them")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--tiny", action="store_true", help="the demo's network at a quarter of the resolution")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(CASES[options.only], is_tiny=options.tiny)))
        return
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        parser.error(f"no case {unknown[0]!r}: choose of {', '.join(CASES)}")
    machine = run_alone(MACHINE_SCRIPT, [], TIMEOUT_SECONDS)
    if "error" in machine:
        sys.exit(machine["error"])
    print(headline(machine), COLUMNS, sep="\n", flush=True)
    results: dict[str, Any] = {}
    for name in options.cases or CASES:
        flags = ["--tiny"] if options.tiny else []
        results[name] = run_alone(__file__, [*flags, "--only", name], TIMEOUT_SECONDS)
        print(format_row(name, results[name]), flush=True)
        write_report(options.output, {"machine": machine, "results": results})


def format_row(name: str, result: dict[str, Any]) -> str:
    """A line of the table."""
    if "error" in result:
        return f"{name:24} {result['error']}"
    allocated = result["allocated_gib"]
    error = f"{result['predicted_gib'] / allocated - 1:+6.1%}" if allocated else f"{'-':>6}"
    return (
        f"{name:24} {result['predicted_gib']:9.2f} {allocated:9.2f} {error} {result['reserved_gib']:8.2f}"
        f" {result['seconds']:7.3f} {result['num_graphs']:6d} {result['loss']:8.4f}  {result['plan']}"
    )


def measure(case: MemoryCase, *, is_tiny: bool) -> dict[str, Any]:
    """One measurement, in this process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size, resolution = ("demo", case.resolution // 4) if is_tiny else ("full", case.resolution)
    samples = make_samples(
        Case(name="", size=size, resolution=resolution, batch_size=case.batch_size, has_recomputation=False)
    )
    try:
        plan = choose(case, SIZES[size], samples, device)
    except TrainerError as error:
        sys.exit(str(error))
    transformer = build_transformer(SIZES[size], case.precision, device, has_recomputation=False)
    transformer.run_block = plan.make_runner(transformer, device)
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        session = start_lora_session(
            transformer, samples, Path(folder), batch_size=case.batch_size, precision=case.precision
        )
        losses: list[float] = []
        if device.type == "cuda":
            torch.cuda.empty_cache()
        measured = measure_steps(repeat(lambda: losses.append(session.train_step().loss)), 0.0, device)
    return {
        **asdict(measured),
        "loss": losses[0],
        "predicted_gib": (plan.peak_bytes or 0) / 2**30,
        "allocated_gib": measured.peak_gib,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if device.type == "cuda" else 0.0,
        "num_graphs": session.num_graphs,
        "plan": plan.sentence.removeprefix("memory: "),
    }


def choose(case: MemoryCase, config: Lumina2Config, samples: Sequence[Sample], device: torch.device) -> MemoryPlan:
    """The plan of a case."""
    with torch.device("meta"):
        network = Lumina2Transformer(config)
        attach_lora(network, LoRASettings(targets="attention"), rank=RANK, alpha=float(RANK), seed=0)
    model = measure_model(
        network,
        PRECISIONS[case.precision],
        is_whole=False,
        has_dropout=False,
        state_bytes=lambda numel, itemsize: 2 * numel * itemsize,
        updates_in_backward=False,
        gradients_stay=False,
    )
    estimate = StepEstimate(model, measure_batch(config, samples, device), device_facts(device))
    if case.way not in WAYS:
        reason = f"{case.way} GiB allowed"
        budget = Budget(num_bytes=float(case.way) * GIB, reason=reason, remedy="raise memory")
        return choose_plan(estimate, budget, Freedom())
    measures = fixed_measures(case.way, len(model.blocks))
    return MemoryPlan(
        measures=measures,
        sentence=case.way,
        input_bytes=estimate.input_bytes,
        peak_bytes=estimate.peak(measures),
    )


def measure_batch(config: Lumina2Config, samples: Sequence[Sample], device: torch.device) -> BatchSize:
    """The samples as one batch, filled up where a run fills it up."""
    captions = [len(sample.prompt_embeds) for sample in samples]
    images = [sample.latents.shape[1] * sample.latents.shape[2] // 4 for sample in samples]
    limiter = ShapeLimiter(config, device, torch.bfloat16)
    padded = limiter.padded_lengths(captions, images)
    return BatchSize(
        caption_tokens=sum(captions) if padded is None else len(samples) * padded.caption,
        image_tokens=sum(images) if padded is None else len(samples) * padded.image,
        is_ragged=len(set(captions)) > 1 and padded is None,
    )


def fixed_measures(way: str, num_blocks: int) -> Measures:
    """What one of WAYS means."""
    if way == "keep":
        return Measures()
    if way == "results":
        return Measures(num_recomputed=num_blocks, num_keeping=num_blocks)
    feed_slice = None if way == "recompute" else 1024
    num_offloaded = num_blocks - 1 if way == "offload" else 0
    return Measures(num_recomputed=num_blocks, feed_slice=feed_slice, num_offloaded=num_offloaded)


if __name__ == "__main__":
    main()
