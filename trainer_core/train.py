"""The training loop."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from .adapters.kinds import without_adapter
from .context import StepContext
from .data.batches import derive_seed
from .data.cache import TrainingSample, join_samples, load_embeds, read_embed_index, read_latent_index
from .data.held_out import split_samples
from .data.index import EmbedIndex
from .data.sample_sizes import size_of
from .errors import StopTraining, TrainerError
from .events import Event
from .job import TrainJob
from .job_record import describe_job
from .lumina2.base_files import load_base_transformer
from .observers import RunObserver, observing
from .out_of_memory import explained_out_of_memory
from .recorder import Recorder
from .run_folder import RunFolder, open_run
from .run_memory import memory_limit, memory_remedies
from .run_plan import RunPlan, plan_run
from .step_folders import step_of
from .torch_state import preserved_torch_state
from .train_checks import check_run
from .trained_weights import TrainedWeights, choose_trained_weights
from .training.checkpoints import list_checkpoints, load_checkpoint
from .training.ema import Ema
from .training.memory import free_memory, start_peak_memory
from .training.memory_plan import MemoryPlan
from .training.optimizers import make_optimizer
from .training.session import StepPlan, TrainingSession
from .training.settings import CheckpointSettings
from .validation.settings import PictureSettings

logger = logging.getLogger(__name__)


def train(job: TrainJob, context: StepContext) -> tuple[RunFolder, bool]:
    """Train a job to its end, from where it was left; a finished job returns at once.

    Returns:
        The run, and whether it had already finished.

    Raises:
        StopTraining: The user asked to stop; a checkpoint was written.
        TrainerError: The job cannot run, or its loss is no longer finite.
    """
    embeds = read_embed_index(job.embeds)
    latents = read_latent_index(job.latents)
    samples, held_out = split_samples(
        join_samples(latents, embeds), job.validation.held_out_share if job.validation else 0.0
    )
    check_run(
        job,
        samples=samples,
        held_out=held_out,
        prompts=embeds.prompts,
        negative_prompts=embeds.negative_prompts,
        device=context.device,
    )
    record = describe_job(job, len(samples), str(context.device))
    weights = choose_trained_weights(job)
    run = open_run(context.runs_dir, job.train.run_name, record, context.workflow, weights.file_name)
    with observing(job, run, latents, embeds, context) as observers:
        was_finished = _train_or_reuse(job, record, weights, run, samples, held_out, embeds, observers, context)
        for observer in observers:
            observer.finished()
    final_path = run.final_path.relative_to(run.path)
    data = {"step": job.train.steps, final_path.stem: final_path.as_posix(), "reused": was_finished}
    context.emit(Event(kind="finished", run=run.name, data=data))
    return run, was_finished


def _train_or_reuse(
    job: TrainJob,
    record: Mapping[str, Any],
    weights: TrainedWeights,
    run: RunFolder,
    samples: Sequence[TrainingSample],
    held_out: Sequence[TrainingSample],
    embeds: EmbedIndex,
    observers: Sequence[RunObserver],
    context: StepContext,
) -> bool:
    """Train to the end, unless that was done before; whether it was."""
    try:
        with FileLock(run.path / ".lock", timeout=0):
            was_finished = run.final_path.exists()
            if was_finished:
                _tell_of_other_validation(run, job)
            else:
                run.write_job(record, context.workflow)  # how it is watched may have changed
                with preserved_torch_state(context.device):
                    _train_to_end(job, weights, run, samples, held_out, embeds, observers, context)
            return was_finished
    except Timeout:
        raise TrainerError(f"run {run.name!r} is being trained by another process: wait, or change run_name") from None
    finally:
        free_memory(context.device)


def _train_to_end(
    job: TrainJob,
    weights: TrainedWeights,
    run: RunFolder,
    samples: Sequence[TrainingSample],
    held_out: Sequence[TrainingSample],
    embeds: EmbedIndex,
    observers: Sequence[RunObserver],
    context: StepContext,
) -> None:
    free_memory(context.device)  # of steps before this one
    start_peak_memory(context.device)
    first_step = _last_saved_step(run)
    try:
        weights.check(Path(job.model.base_path))
        plan = _announce_plan(job, weights, run, samples, held_out, first_step, context)
        remedies = memory_remedies(job, plan.memory)
        with explained_out_of_memory("loading the model", remedies):
            session = _start_session(job, weights, plan.memory, samples, embeds, context)
            _resume(session, run, weights)
    except BaseException as error:
        _tell_failure(run, first_step, error, context)
        raise
    for observer in observers:
        observer.started(session.step)
    recorder = Recorder(
        job=job,
        run=run,
        session=session,
        weights=weights,
        samples=samples,
        held_out=held_out,
        embeds=embeds,
        observers=observers,
        context=context,
    )
    try:
        with explained_out_of_memory("training", remedies):
            recorder.start()
            while session.step < job.train.steps:
                if context.should_stop():
                    raise StopTraining
                recorder.record_step(session.train_step())
            recorder.finish()
    except BaseException as error:
        _tell_failure(run, session.step, error, context)
        _rescue(session, recorder)
        raise


def _announce_plan(
    job: TrainJob,
    weights: TrainedWeights,
    run: RunFolder,
    samples: Sequence[TrainingSample],
    held_out: Sequence[TrainingSample],
    first_step: int,
    context: StepContext,
) -> RunPlan:
    """Decide how the run is made to fit, and say what it will take."""
    sizes, held_out_sizes = ([size_of(sample) for sample in some] for some in (samples, held_out))
    plan = plan_run(job, weights, sizes, held_out_sizes, context.device, first_step)
    logger.info("Run %s: %s", run.name, plan.memory.sentence)
    context.emit(Event(kind="planned", run=run.name, data=plan.to_json()))
    if job.rollout is not None:
        logger.info("Run %s: %s", run.name, job.rollout.sentence)
    return plan


def _last_saved_step(run: RunFolder) -> int:
    checkpoints = list_checkpoints(run.checkpoints_dir)
    return step_of(checkpoints[-1]) if checkpoints else 0


def _tell_failure(run: RunFolder, step: int, error: BaseException, context: StepContext) -> None:
    if not isinstance(error, StopTraining):
        context.emit(Event(kind="failed", run=run.name, data={"step": step, "message": str(error)}))


def _rescue(session: TrainingSession, recorder: Recorder) -> None:
    """Keep the finished steps; a failure to do so must not hide what ended the run."""
    if not session.is_consistent:
        return
    try:
        recorder.save_checkpoint()
    except Exception:
        logger.exception("The steps since the last checkpoint could not be saved")


def _start_session(
    job: TrainJob,
    weights: TrainedWeights,
    memory: MemoryPlan,
    samples: Sequence[TrainingSample],
    embeds: EmbedIndex,
    context: StepContext,
) -> TrainingSession:
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
        update=weights.make_update(parameters, optimizer, job.optimizer.max_grad_norm),
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


def _resume(session: TrainingSession, run: RunFolder, weights: TrainedWeights) -> None:
    """Go on from the newest checkpoint, and drop what was logged after it."""
    checkpoints = list_checkpoints(run.checkpoints_dir)
    if checkpoints:
        session.step = load_checkpoint(checkpoints[-1], session.parameters, session.optimizer, session.average)
        weights.restore(checkpoints[-1] / weights.file_name)
        logger.info("Run %s goes on from step %d", run.name, session.step)
    run.truncate_log(session.step)


def _tell_of_other_validation(run: RunFolder, job: TrainJob) -> None:
    drawn = json.loads(run.job_path.read_text(encoding="utf-8"))["validation"]
    if job.validation is None:
        return
    asked, defaults = (
        json.loads(json.dumps(dataclasses.asdict(settings))) for settings in (job.validation, PictureSettings())
    )
    if any(asked[name] != (drawn or {}).get(name, default) for name, default in defaults.items()):
        logger.warning("Run %s is finished, with pictures of other prompts: draw new ones with Validate", run.name)
