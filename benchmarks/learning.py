"""Measure what adapter kinds, optimizers and other choices bring: held-out loss on the demo, after the same training.

    python benchmarks/learning.py --output results.json [--steps 60] [--seeds 3] [NAME or GROUP ...]

The demo's LoRA is the reference; every row changes one thing. Noise and times of the measurement are the same for all,
so rows differ by what was learned. `spread` is the distance of the highest from the lowest loss over the seeds:
a difference within it says nothing. The network is small and the training short, so the order of rows need not hold for
another model; a row worse than `before` is a choice that does not work.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lumina2_trainer.benchmarks.processes import MACHINE_SCRIPT, headline, run_alone, write_report
from lumina2_trainer.trainer_core.adapters.kinds import AdapterSettings
from lumina2_trainer.trainer_core.adapters.lycoris_settings import LYCORIS_ALGORITHMS, LyCORISSettings
from lumina2_trainer.trainer_core.cli import demo
from lumina2_trainer.trainer_core.context import StepContext
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.lumina2.models.base_files import find_model_files
from lumina2_trainer.trainer_core.lumina2.models.model_files import LoadSettings
from lumina2_trainer.trainer_core.stages import caches, save
from lumina2_trainer.trainer_core.stages import train as train_steps
from lumina2_trainer.trainer_core.stages.dataset import read_dataset_folder
from lumina2_trainer.trainer_core.training.optim.optimizers import OPTIMIZERS
from lumina2_trainer.trainer_core.training.rollout_settings import RolloutSettings
from lumina2_trainer.trainer_core.training.settings import CheckpointSettings

FIRST_SEED = 42
MACHINE_TIMEOUT_SECONDS = 120
REFERENCE = "lora"
COLUMNS = f"{'group':10} {'choice':14} {'lr':>8} {'after':>8} {'spread':>8} {'from lora':>10} {'MB':>6} {'s/step':>7}"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is changed of the demo's training."""

    group: str
    adapter: AdapterSettings = demo.LORA
    train: Mapping[str, Any] = field(default_factory=dict)
    """Fields of TrainLoRASettings."""
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    """Fields of OptimizerSettings."""
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)
    weights: str = "live"
    """What is measured, see Save Adapter."""
    rollout: RolloutSettings | None = None


def _lycoris(algorithm: str) -> Choice:
    settings = LyCORISSettings(algorithm=algorithm, targets=demo.LORA.targets, factor=4 if algorithm == "lokr" else 16)
    # Rotations and whole differences move every weight at once.
    learning_rate = {"diag-oft": 2e-4, "boft": 2e-5, "full": 2e-4}.get(algorithm, demo.TRAIN.learning_rate)
    return Choice(group="adapter", adapter=settings, train={"learning_rate": learning_rate})


def _lora(**changes: Any) -> Choice:
    return Choice(group="adapter", adapter=dataclasses.replace(demo.LORA, **changes))


LEARNING_RATES = {"lion": 1e-4, "prodigy": 1.0, "schedulefree": 2e-3, "came": 1e-4, "muon": 2e-3}
"""Of optimizers that want another one than AdamW's."""
CHOICES: dict[str, Choice] = {
    REFERENCE: Choice(group="adapter"),
    "gaussian": _lora(init="gaussian"),
    "pissa": _lora(init="pissa"),
    "olora": _lora(init="olora"),
    "rslora": _lora(use_rslora=True),
    "dora": _lora(use_dora=True),
    **{name: _lycoris(name) for name in LYCORIS_ALGORITHMS},
    **{
        name: Choice(
            group="optimizer",
            train={"optimizer": name, "learning_rate": LEARNING_RATES.get(name, demo.TRAIN.learning_rate)},
            optimizer={"lr_schedule": "constant"} if OPTIMIZERS[name].averages else {},
        )
        for name in OPTIMIZERS
        if name != demo.TRAIN.optimizer
    },
    "ema": Choice(group="other", checkpoints=CheckpointSettings(use_ema=True, ema_decay=0.95), weights="ema"),
    "rollout": Choice(group="other", rollout=RolloutSettings()),
    "corrective": Choice(group="other", rollout=RolloutSettings(target="corrective")),
    "reflexflow": Choice(group="other", rollout=RolloutSettings(use_reflexflow=True)),
}
"""By name of the row."""
GROUPS = tuple(dict.fromkeys(choice.group for choice in CHOICES.values()))


class Demo:
    """The demo's model and caches, read once."""

    def __init__(self, folder: Path) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._folder = folder
        self.context = StepContext(output_dir=folder / "output", loras_dir=folder / "loras", device=device)
        self._model = find_model_files(LoadSettings(base="demo", precision="fp32"), context=self.context)
        dataset = read_dataset_folder(demo.demo_folder("dataset"), context=self.context).dataset
        self._latents = caches.cache_latents(
            caches.CacheLatentsSettings(), model=self._model, dataset=dataset, context=self.context
        )
        self._embeds = caches.cache_text_embeds(
            caches.CacheTextEmbedsSettings(system_prompt="none"),
            model=self._model,
            dataset=dataset,
            context=self.context,
        )

    @cached_property
    def _held_out(self) -> demo.HeldOutSamples:
        return demo.read_held_out(self._model, self.context)

    def measure(self, adapter: Path | None = None) -> float:
        """Held-out loss of the base, or with an adapter."""
        losses = demo.measure(self._model, self._held_out, self.context, adapter)
        return statistics.mean(losses.values())

    def train(self, name: str, choice: Choice, num_steps: int, seed: int) -> dict[str, float]:
        """Train once: held-out loss, seconds a step and size of the file."""
        run_name = f"{name}-{seed}"
        changed = {**choice.train, "steps": num_steps, "seed": seed, "run_name": run_name}
        warmup = min(demo.OPTIMIZER.num_warmup_steps, num_steps // 2)
        started = time.perf_counter()
        trained = train_steps.train_lora(
            dataclasses.replace(demo.TRAIN, **changed),
            model=self._model,
            latents=self._latents,
            embeds=self._embeds,
            adapter_settings=choice.adapter,
            optimizer_settings=dataclasses.replace(demo.OPTIMIZER, num_warmup_steps=warmup, **choice.optimizer),
            checkpoints=choice.checkpoints,
            rollout=choice.rollout,
            context=self.context,
        )
        seconds = (time.perf_counter() - started) / num_steps
        settings = save.SaveAdapterSettings(name=run_name, weights=choice.weights)
        path = save.save_adapter(settings, adapter=trained.adapter, context=self.context)[0]
        return {
            "after": self.measure(path),
            "seconds_per_step": seconds,
            "file_mb": path.stat().st_size / 1e6,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = f"of {', '.join(CHOICES)}, or of the groups {', '.join(GROUPS)}; all of them"
    parser.add_argument("names", nargs="*", metavar="NAME", help=known)
    parser.add_argument("--steps", type=int, default=60, help="of each training")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each choice")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in CHOICES and name not in GROUPS]
    if unknown:
        parser.error(f"no choice {unknown[0]!r}: choose {known}")
    wanted = [
        name for name, choice in CHOICES.items() if not options.names or {name, choice.group} & set(options.names)
    ]
    machine = run_alone(MACHINE_SCRIPT, [], MACHINE_TIMEOUT_SECONDS)
    print(headline(machine) if "error" not in machine else machine["error"])
    print(f"{options.steps} steps, {options.seeds} seeds", COLUMNS, sep="\n", flush=True)
    results: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="learning-") as folder:
        subject = Demo(Path(folder))
        before = subject.measure()
        print(f"before: {before:.4f}", flush=True)
        for name in dict.fromkeys([REFERENCE, *wanted]):
            seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
            try:
                results[name] = [subject.train(name, CHOICES[name], options.steps, seed) for seed in seeds]
            except TrainerError as error:  # such as an optimizer for GPUs on a CPU
                print(f"{CHOICES[name].group:10} {name:14} {error}", flush=True)
                continue
            print(format_row(name, results[name], results[REFERENCE]), flush=True)
            report = {"machine": machine, "steps": options.steps, "before": before, "results": results}
            write_report(options.output, report)


def format_row(name: str, trained: list[dict[str, float]], reference: list[dict[str, float]]) -> str:
    """A line of the table."""
    choice = CHOICES[name]
    after = [result["after"] for result in trained]
    distance = statistics.mean(after) - statistics.mean(result["after"] for result in reference)
    return (
        f"{choice.group:10} {name:14} {choice.train.get('learning_rate', demo.TRAIN.learning_rate):8.0e}"
        f" {statistics.mean(after):8.4f} {max(after) - min(after):8.4f} {distance:+10.4f}"
        f" {trained[0]['file_mb']:6.2f} {statistics.median(result['seconds_per_step'] for result in trained):7.3f}"
    )


if __name__ == "__main__":
    main()
