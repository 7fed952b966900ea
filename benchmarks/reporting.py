"""Measure what reporting costs: log line, events and bookkeeping of each step, beside the step itself.

    python benchmarks/reporting.py --output results.json [--steps 100]

Trains the demo's LoRA. A step of the demo is short on a GPU, and reporting takes the same time for every model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lumina2_trainer.benchmarks.processes import write_report
from lumina2_trainer.trainer_core.cli import demo
from lumina2_trainer.trainer_core.context import StepContext
from lumina2_trainer.trainer_core.events import Event
from lumina2_trainer.trainer_core.lumina2.models.base_files import find_model_files
from lumina2_trainer.trainer_core.lumina2.models.model_files import LoadSettings
from lumina2_trainer.trainer_core.run.job import TrainLoRASettings
from lumina2_trainer.trainer_core.run.recorder import Recorder
from lumina2_trainer.trainer_core.stages import caches, train
from lumina2_trainer.trainer_core.stages.dataset import read_dataset_folder
from lumina2_trainer.trainer_core.training.session import TrainingSession

LARGEST_SHARE = 0.02
"""Of a step's time that reporting may take."""
NUM_WARM_UP_STEPS = 5


def main() -> None:
    """Train, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the results")
    parser.add_argument("--steps", type=int, default=100, help="of the training")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure_reporting(Path(folder), arguments.steps)
    print(format_result(result))
    write_report(arguments.output, result)


def measure_reporting(folder: Path, num_steps: int) -> dict[str, Any]:
    """Median seconds of a training step and of its report.

    Args:
        folder: For caches and the run.
        num_steps: Steps of the training.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sent: list[str] = []

    def emit(event: Event) -> None:
        sent.append(json.dumps(event.to_json()))  # as a server would

    context = StepContext(output_dir=folder / "output", loras_dir=folder / "loras", device=device, emit=emit)
    model = find_model_files(LoadSettings(base="demo", precision="bf16"), context=context)
    dataset = read_dataset_folder(demo.demo_folder("dataset"), context=context).dataset
    latents = caches.cache_latents(caches.CacheLatentsSettings(), model=model, dataset=dataset, context=context)
    embeds = caches.cache_text_embeds(
        caches.CacheTextEmbedsSettings(system_prompt="none"), model=model, dataset=dataset, context=context
    )
    settings = TrainLoRASettings(
        steps=num_steps, batch_size=1, rank=16, alpha=16.0, run_name="reporting", gradient_checkpointing=False
    )
    with _timed(TrainingSession, "train_step") as training, _timed(Recorder, "record_step") as reporting:
        train.train_lora(settings, model=model, latents=latents, embeds=embeds, context=context)
    step_seconds = statistics.median(training[NUM_WARM_UP_STEPS:])
    report_seconds = statistics.median(reporting[NUM_WARM_UP_STEPS:])
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "steps": num_steps,
        "step_seconds": step_seconds,
        "report_seconds": report_seconds,
        "share": report_seconds / (step_seconds + report_seconds),
        "shortest_step_seconds": report_seconds / LARGEST_SHARE,
    }


def format_result(result: dict[str, Any]) -> str:
    """For people."""
    return (
        f"{result['device']}, {result['steps']} steps: a step takes {1e3 * result['step_seconds']:.1f} ms,"
        f" its report {1e3 * result['report_seconds']:.3f} ms, {result['share']:.2%} of both\n"
        f"reporting stays below {LARGEST_SHARE:.0%} of steps longer than"
        f" {1e3 * result['shortest_step_seconds']:.1f} ms"
    )


@contextmanager
def _timed(owner: type, name: str) -> Iterator[list[float]]:
    """Collect the seconds of each call of a method."""
    method, seconds = getattr(owner, name), []

    def call(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return method(*arguments, **options)
        finally:
            seconds.append(time.perf_counter() - started)

    with mock.patch.object(owner, name, call):
        yield seconds


if __name__ == "__main__":
    main()
