"""The live parts of a run: made of its job, and taken to where the run was left."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from .adapters.kinds import without_adapter
from .context import StepContext
from .data.batches import derive_seed
from .data.cache import TrainingSample, load_embeds
from .data.index import EmbedIndex
from .lumina2.memory.plan import MemoryPlan
from .lumina2.models.base_files import load_base_transformer
from .run.folder import RunFolder
from .run.job import TrainJob
from .run.memory import memory_limit
from .run.trained_weights import TrainedWeights
from .run_names import step_of
from .training.checkpoints import list_checkpoints, load_checkpoint
from .training.ema import Ema
from .training.optim.optimizers import make_optimizer
from .training.session import StepPlan, TrainingSession
from .training.settings import CheckpointSettings

logger = logging.getLogger(__name__)


def last_saved_step(run: RunFolder) -> int:
    """Of the newest checkpoint; 0 if there is none."""
    checkpoints = list_checkpoints(run.checkpoints_dir)
    return step_of(checkpoints[-1]) if checkpoints else 0


def start_session(
    job: TrainJob,
    weights: TrainedWeights,
    memory: MemoryPlan,
    samples: Sequence[TrainingSample],
    embeds: EmbedIndex,
    context: StepContext,
) -> TrainingSession:
    """Load the base, attach what is trained, and run it as the memory plan says."""
    train = job.train
    transformer = load_base_transformer(job.model, context.device, host_blocks=memory.measures.swapped)
    parameters = weights.attach(transformer)
    transformer.run_block = memory.make_runner(transformer, context.device)
    optimizer = make_optimizer(
        train.optimizer,
        parameters,
        learning_rate=train.learning_rate,
        settings=job.optimizer,
        seed=derive_seed(train.seed, "rounding"),
    )
    return TrainingSession(
        transformer=transformer.train(),
        parameters=parameters,
        optimizer=optimizer,
        update=weights.make_update(parameters, optimizer, job.optimizer.max_grad_norm, context.processes),
        processes=context.processes,
        base_only=None if job.adapter is None else without_adapter,
        ema=_start_ema(parameters, job.checkpoints, context.device),
        samples=samples,
        unconditional=load_embeds(embeds.unconditional),
        plan=StepPlan(
            num_steps=train.steps,
            batch_size=train.batch_size,
            learning_rate=train.learning_rate,
            caption_dropout=train.caption_dropout,
            seed=train.seed,
            precision=job.model.precision,
            optimizer=job.optimizer,
            noise=job.noise,
            rollout=job.rollout,
        ),
        device=context.device,
        memory_limit=memory_limit(job),
    )


def _start_ema(
    parameters: Mapping[str, nn.Parameter], settings: CheckpointSettings, device: torch.device
) -> Ema | None:
    if not settings.use_ema:
        return None
    return Ema(
        parameters,
        decay=settings.ema_decay,
        step_interval=settings.ema_step_interval,
        device=torch.device("cpu") if settings.ema_device == "cpu" else device,
    )


def resume_session(session: TrainingSession, run: RunFolder, weights: TrainedWeights) -> None:
    """Go on from the newest checkpoint."""
    checkpoints = list_checkpoints(run.checkpoints_dir)
    if checkpoints:
        session.step = load_checkpoint(checkpoints[-1], session.parameters, session.optimizer, session.average)
        weights.restore(checkpoints[-1] / weights.file_name)
        logger.info("Run %s goes on from step %d", run.name, session.step)
