"""Everything one training run is made of, checked before a weight is read, and what tells two runs apart."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..adapters.kinds import AdapterSettings
from ..data.cache import EmbedCache, LatentCache
from ..errors import TrainerError
from ..lumina2.models.checkpoint import fingerprint_files
from ..lumina2.models.model_files import Lumina2Model
from ..lumina2.timesteps import NoiseSettings
from ..publish.settings import AT_CHECKPOINTS, HubSettings, TrackingSettings
from ..run_names import BEST, EMA
from ..settings import check_file_name, check_settings, setting
from ..training.optim.optimizers import OPTIMIZERS, check_optimizer
from ..training.optim.settings import OptimizerSettings
from ..training.rollout_settings import RolloutSettings
from ..training.settings import CheckpointSettings
from ..validation.settings import ValidationSettings

RESERVED_RUN_NAMES = frozenset({"cache", "datasets", "diffusers", "validations"})
"""Folders beside the runs that hold something else."""
FULL_PRECISIONS = ("bf16", "fp32")
"""Precisions of a model whose own weights are trained."""

AUTO = "auto"


def parse_memory(text: str) -> float | None:
    """GiB of the `memory` setting, None for "auto".

    Raises:
        TrainerError: It is neither.
    """
    if text.strip().lower() == AUTO:
        return None
    number = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(?:gib|gb|g)?\s*", text, re.IGNORECASE)
    if number is None or float(number[1]) <= 0:
        raise TrainerError(f'memory is {text!r}: write "auto", or how many GiB training may take, such as 8 or 11.5')
    return float(number[1])


@dataclass(frozen=True, kw_only=True)
class TrainLoRASettings:
    """Widgets of Train LoRA."""

    steps: int = setting(1000, minimum=1, maximum=10000000)
    """Optimizer steps of the run."""
    batch_size: int = setting(1, minimum=1, maximum=4096)
    """Pictures a batch. Pictures of different shape share a batch."""
    learning_rate: float = setting(1e-4, minimum=0.0, maximum=1.0, step=1e-7)
    """Learning rate after warm-up. 1e-4 suits most LoRAs; halve it if the result looks burnt."""
    rank: int = setting(16, minimum=1, maximum=512)
    """Size of the adapter: 8 to 32 for a subject or style, more for much new material."""
    alpha: float = setting(16.0, minimum=0.001, maximum=4096.0, step=0.1)
    """The adapter's output is scaled by alpha / rank; equal to rank is the plain choice."""
    optimizer: str = setting("adamw", choices=OPTIMIZERS)
    """The rule that turns gradients into updates; prodigy finds the learning rate itself and wants learning_rate 1."""
    seed: int = setting(42, minimum=0, maximum=2**63 - 1)
    """Decides the order of pictures and every random draw: the same seed gives the same run."""
    run_name: str = setting("my_lora")
    """Name of the run's folder in output/lumina2_trainer. The same job under the same name resumes or returns what is
    finished."""
    caption_dropout: float = setting(0.1, minimum=0.0, maximum=1.0, step=0.05)
    """Share of samples trained with the empty caption, which guidance needs."""
    gradient_checkpointing: bool = setting(True)
    """Activations may be computed again in the backward pass where memory is short; off keeps them all."""
    memory: str = setting("auto", is_optional=True)
    """GiB that training may take on the GPU, or "auto" for what is free. The fastest way that fits is taken: keeping
    activations, computing them again, moving parts to the computer's memory. PyTorch itself takes half a GiB more."""

    def __post_init__(self) -> None:
        check_settings(self)
        parse_memory(self.memory)
        _check_run_name(self.run_name)


@dataclass(frozen=True, kw_only=True)
class TrainFullSettings:
    """Widgets of Train Full Model."""

    steps: int = setting(1000, minimum=1, maximum=10000000)
    """Optimizer steps of the run."""
    batch_size: int = setting(1, minimum=1, maximum=4096)
    """Pictures a batch. Pictures of different shape share a batch."""
    learning_rate: float = setting(1e-5, minimum=0.0, maximum=1.0, step=1e-7)
    """Learning rate after warm-up. The whole model wants a tenth of a LoRA's: 1e-5, or 5e-6 for a long run."""
    optimizer: str = setting("adamw8bit", choices=OPTIMIZERS)
    """The rule that turns gradients into updates. "adamw8bit" trains bf16 weights in 12 GiB; "adamw_bf16",
    "lion" and "stableadamw" train them too, the others want precision fp32 in Load Lumina2, "adamw" with 42 GiB."""
    seed: int = setting(42, minimum=0, maximum=2**63 - 1)
    """Decides the order of pictures and every random draw: the same seed gives the same run."""
    run_name: str = setting("my_model")
    """Name of the run's folder in output/lumina2_trainer. The same job under the same name resumes or returns what is
    finished."""
    caption_dropout: float = setting(0.1, minimum=0.0, maximum=1.0, step=0.05)
    """Share of samples trained with the empty caption, which guidance needs."""
    gradient_checkpointing: bool = setting(True)
    """Activations may be computed again in the backward pass where memory is short; off keeps them all."""
    memory: str = setting("auto", is_optional=True)
    """GiB that training may take on the GPU, or "auto" for what is free. The fastest way that fits is taken: keeping
    activations, computing them again, moving parts to the computer's memory. PyTorch itself takes half a GiB more."""

    def __post_init__(self) -> None:
        check_settings(self)
        parse_memory(self.memory)
        _check_run_name(self.run_name)


def _check_run_name(run_name: str) -> None:
    check_file_name("run_name", run_name)
    if run_name.casefold() in RESERVED_RUN_NAMES:
        raise TrainerError(f"run_name is {run_name!r}: that name is taken, choose another")


def is_due(step: int, interval: int, last_step: int | None = None) -> bool:
    """Whether something is due after a step: every so many of them, never if that is 0, and after the last one.

    Args:
        step: Optimizer step, from 1.
        interval: Steps from one time to the next.
        last_step: Of the run, where the thing is always done at its end.
    """
    return step == last_step or (interval > 0 and step % interval == 0)


def count_due(interval: int, first_step: int, last_step: int) -> int:
    """How many steps after `first_step` up to the last one are followed by what `is_due`."""
    regular = last_step // interval - first_step // interval if interval else 0
    return regular + (not interval or last_step % interval > 0)


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One run: what is trained, on what, and how."""

    model: Lumina2Model
    latents: LatentCache
    embeds: EmbedCache
    train: TrainLoRASettings | TrainFullSettings
    adapter: AdapterSettings | None = None
    """What is put on the model and trained; None trains the model's own weights."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    validation: ValidationSettings | None = None
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)
    tracking: TrackingSettings | None = None
    hub: HubSettings | None = None
    rollout: RolloutSettings | None = None
    """Which samples come from the model itself; None is none."""

    def __post_init__(self) -> None:
        if self.optimizer.num_warmup_steps >= self.train.steps:
            raise TrainerError(
                f"num_warmup_steps is {self.optimizer.num_warmup_steps} but the run has only {self.train.steps} steps:"
                " lower the warm-up or raise steps"
            )
        if self.rollout is not None and self.rollout.start_step > self.train.steps:
            raise TrainerError(
                f"start_step of Rollout is {self.rollout.start_step} but the run has only {self.train.steps} steps:"
                " lower it, or disconnect Rollout"
            )
        if self.hub is not None:
            _check_hub(self.hub, self.checkpoints, self.validation)
        if self.checkpoints.use_ema and OPTIMIZERS[self.train.optimizer].averages:
            raise TrainerError(
                f"use_ema is on, but optimizer {self.train.optimizer} averages the weights itself:"
                " turn it off, or choose another optimizer"
            )
        if self.adapter is None and self.model.precision not in FULL_PRECISIONS:
            raise TrainerError(
                f"precision is {self.model.precision}, which stores weights that cannot be trained:"
                f" choose {' or '.join(FULL_PRECISIONS)} in Load Lumina2 to train the full model"
            )
        full_precision = self.model.precision if self.adapter is None else None
        check_optimizer(self.train.optimizer, self.train.learning_rate, self.optimizer, full_precision=full_precision)


def _check_hub(hub: HubSettings, checkpoints: CheckpointSettings, validation: ValidationSettings | None) -> None:
    if hub.push == AT_CHECKPOINTS and not checkpoints.checkpoint_step_interval:
        raise TrainerError(
            'push is "checkpoints" but checkpoint_step_interval is 0, so there are none before the end:'
            ' choose push "end", or raise checkpoint_step_interval in Checkpoints and EMA'
        )
    if hub.weights == EMA and not checkpoints.use_ema:
        raise TrainerError(
            'weights of Hub Upload is "ema" but use_ema is off, so there is no average to send: turn use_ema on in'
            ' Checkpoints and EMA, or choose "live"'
        )
    if hub.weights == BEST and (validation is None or not validation.keep_best):
        raise TrainerError(
            'weights of Hub Upload is "best" but none are kept: connect Validation Prompts with keep_best on, or'
            ' choose "live"'
        )
    if hub.weights == BEST and hub.push == AT_CHECKPOINTS:
        raise TrainerError(
            'weights of Hub Upload is "best" and push is "checkpoints", which hold no best weights: choose push "end",'
            " or other weights"
        )


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A trained adapter: what travels on the LUMINA2_ADAPTER socket."""

    path: str
    """`adapter.safetensors` with ComfyUI keys and full metadata."""
    run_dir: str
    """The run it came from."""
    step: int
    """Optimizer steps it was trained for."""


PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors")
IDENTITY_EXCLUDES = frozenset({"run_name", "gradient_checkpointing", "memory", "optimizer_state"})
"""Widgets of Train and Optimizer that change neither data, objective nor result."""


def fingerprint_job(job: TrainJob, num_processes: int = 1) -> str:
    """Identifies what is learned: base, data, adapter, optimizer, noise, rollout.

    How a run is watched is left out (validation except the share held out, checkpoints, recomputation, tracking, hub),
    so that changing it resumes the run. So is how the batches of a step are shared out: two processes go on with what
    one began with twice the gradient_accumulation_steps.
    """
    optimizer = _identity_of(job.optimizer)
    optimizer["gradient_accumulation_steps"] *= num_processes
    identity: dict[str, Any] = {
        "model": [job.model.fingerprint, job.model.precision, job.model.text_attention],
        "data": [job.latents.fingerprint, job.embeds.fingerprint],
        "train": _identity_of(job.train),
        "adapter": None if job.adapter is None else _adapter_identity(job.adapter),
        "optimizer": optimizer,
        "noise": dataclasses.asdict(job.noise),
        **({} if job.rollout is None else {"rollout": dataclasses.asdict(job.rollout)}),  # not in older versions
        "ema": [job.checkpoints.ema_decay, job.checkpoints.ema_step_interval] if job.checkpoints.use_ema else None,
    }
    if job.validation is not None and job.validation.held_out_share:
        identity["held_out_share"] = job.validation.held_out_share
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _identity_of(settings: Any) -> dict[str, Any]:
    return {k: v for k, v in dataclasses.asdict(settings).items() if k not in IDENTITY_EXCLUDES}


def _adapter_identity(settings: AdapterSettings) -> dict[str, Any]:
    """Its settings, with the content of the file it starts from instead of the name."""
    identity = dataclasses.asdict(settings)
    if identity.get("start_from"):
        identity["start_from"] = fingerprint_files([Path(identity["start_from"])])
    return identity


def describe_job(job: TrainJob, num_samples: int, device: str, num_processes: int = 1) -> dict[str, Any]:
    """What job.json holds: every setting, the versions, the fingerprints."""
    return {
        **dataclasses.asdict(job),
        "fingerprint": fingerprint_job(job, num_processes),
        "num_samples": num_samples,
        "device": device,
        "num_processes": num_processes,
        "versions": package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what comes out."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
