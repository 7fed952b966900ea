"""The steps of the Train nodes: sockets and widgets become a job, and the job is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..adapters.kinds import AdapterSettings
from ..adapters.lora import LoRASettings
from ..context import StepContext
from ..data.cache import EmbedCache, LatentCache
from ..lumina2.models.checkpoint import fingerprint_files
from ..lumina2.models.model_files import Lumina2Model
from ..lumina2.timesteps import NoiseSettings
from ..publish.settings import HubSettings, TrackingSettings
from ..run.folder import describe_scores
from ..run.job import Adapter, TrainFullSettings, TrainJob, TrainLoRASettings
from ..training.optim.settings import OptimizerSettings
from ..training.rollout_settings import RolloutSettings
from ..training.settings import CheckpointSettings
from ..validation.pictures import with_files
from ..validation.settings import ValidationSettings


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What training an adapter gives."""

    adapter: Adapter
    losses: tuple[float, ...]
    """Loss of each optimizer step of the run."""
    validation_images: tuple[Path, ...]
    """Pictures of the last validation, in the order of the prompts; empty without validation."""
    reused: bool
    """The run had already finished and nothing was trained."""
    scores: str
    """What was measured, for people; empty if nothing was."""


@dataclass(frozen=True, kw_only=True)
class TrainFullResult:
    """What training the model itself gives."""

    model: Lumina2Model
    """The trained transformer with text encoder and VAE of the base."""
    losses: tuple[float, ...]
    """Loss of each optimizer step of the run."""
    validation_images: tuple[Path, ...]
    """Pictures of the last validation, in the order of the prompts; empty without validation."""
    reused: bool
    """The run had already finished and nothing was trained."""
    scores: str
    """What was measured, for people; empty if nothing was."""


def make_job(
    settings: TrainLoRASettings | TrainFullSettings,
    *,
    model: Lumina2Model,
    latents: LatentCache,
    embeds: EmbedCache,
    adapter_settings: AdapterSettings | None = None,
    optimizer_settings: OptimizerSettings | None = None,
    noise_schedule: NoiseSettings | None = None,
    validation: ValidationSettings | None = None,
    checkpoints: CheckpointSettings | None = None,
    tracking: TrackingSettings | None = None,
    hub: HubSettings | None = None,
    rollout: RolloutSettings | None = None,
    context: StepContext,
) -> TrainJob:
    """What a Train node stands for.

    Args:
        settings: Widgets of Train LoRA or of Train Full Model; the other arguments are the node's sockets.
        adapter_settings: Of Train LoRA alone.

    Raises:
        TrainerError: Settings contradict one another, or a file they name is not there.
    """
    return TrainJob(
        model=model,
        latents=latents,
        embeds=embeds,
        train=settings,
        adapter=(
            _located(adapter_settings or LoRASettings(), context) if isinstance(settings, TrainLoRASettings) else None
        ),
        optimizer=optimizer_settings or OptimizerSettings(),
        noise=noise_schedule or NoiseSettings(),
        validation=validation and with_files(validation, context),
        checkpoints=checkpoints or CheckpointSettings(),
        tracking=tracking,
        hub=hub,
        rollout=rollout,
    )


def train_lora(settings: TrainLoRASettings, *, context: StepContext, **sockets: Any) -> TrainResult:
    """Train an adapter, resume it, or return the finished one; sockets are those of `make_job`."""
    from ..run.train import train

    run, was_finished = train(make_job(settings, context=context, **sockets), context)
    return TrainResult(
        adapter=Adapter(path=str(run.final_path), run_dir=str(run.path), step=settings.steps),
        losses=run.losses(),
        validation_images=run.last_samples(),
        reused=was_finished,
        scores=describe_scores(run),
    )


def train_full(settings: TrainFullSettings, *, context: StepContext, **sockets: Any) -> TrainFullResult:
    """Train the model's own weights, resume, or return the finished model; sockets are those of `make_job`."""
    from ..run.train import train

    job = make_job(settings, context=context, **sockets)
    run, was_finished = train(job, context)
    parts = [run.final_path, Path(job.model.text_encoder_path), Path(job.model.vae_path)]
    return TrainFullResult(
        model=replace(job.model, base_path=str(run.final_path), fingerprint=fingerprint_files(parts), name=run.name),
        losses=run.losses(),
        validation_images=run.last_samples(),
        reused=was_finished,
        scores=describe_scores(run),
    )


def _located(settings: AdapterSettings, context: StepContext) -> AdapterSettings:
    """The same settings with the path of the file that the adapter starts from."""
    if not settings.start_from:
        return settings
    return replace(settings, start_from=str(context.find_model(("loras",), settings.start_from, "start_from")))
