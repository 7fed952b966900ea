"""The training loop: its live parts are made of the job, and taken to where the run was left."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from ..adapters.kinds import without_adapter
from ..context import StepContext
from ..data.cache import join_samples, load_embeds, read_embed_index, read_latent_index
from ..data.held_out import split_samples
from ..data.sample_sizes import size_of
from ..device import (
    OutOfMemoryError,
    explained_out_of_memory,
    free_memory,
    preserved_torch_state,
    start_peak_memory,
    without_frames,
)
from ..errors import OtherProcessFailed, StopTraining, TrainerError
from ..events import Event, make_notice
from ..lumina2.memory.plan import MemoryPlan
from ..lumina2.models.base_files import expect_base_transformer, load_base_transformer
from ..processes import Processes
from ..run_names import step_of
from ..seeds import derive_seed
from ..training.checkpoints import list_checkpoints, load_checkpoint
from ..training.optim.optimizers import make_optimizer
from ..training.session import StepPlan, TrainingSession
from ..training.settings import CheckpointSettings
from ..training.weight_views import Ema
from ..validation.settings import PictureSettings
from .checks import check_run
from .folder import RunFolder, open_run
from .job import TrainJob, describe_job
from .memory import memory_limit, memory_remedies, plan_less_memory
from .observers import RunObserver, observing
from .plan import RunPlan, plan_run
from .prepared import Run
from .recorder import Recorder
from .trained_weights import choose_trained_weights

logger = logging.getLogger(__name__)

STOP = "stop"
"""Among what a process was asked, beside the requests of a user."""


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
    processes = context.processes
    record = describe_job(job, len(samples), str(context.device), processes.count)
    weights = choose_trained_weights(job)
    folder = processes.from_main(
        lambda: open_run(context.runs_dir, job.train.run_name, record, context.workflow, weights.file_name)
    )
    run = Run(
        job=job, folder=folder, weights=weights, samples=samples, held_out=held_out, embeds=embeds, context=context
    )
    with observing(job, folder, latents, embeds, context) if processes.is_main else nullcontext(()) as observers:
        was_finished = _train_or_reuse(run, record, observers)
        for observer in observers:
            observer.finished()
    final_path = folder.final_path.relative_to(folder.path)
    data = {"step": job.train.steps, final_path.stem: final_path.as_posix(), "reused": was_finished}
    context.emit(Event(kind="finished", run=run.name, data=data))
    return folder, was_finished


def _train_or_reuse(run: Run, record: Mapping[str, Any], observers: Sequence[RunObserver]) -> bool:
    """Train to the end, unless that was done before; whether it was."""
    lock, context = FileLock(run.folder.path / ".lock", timeout=0), run.context
    try:
        was_finished = context.processes.from_main(partial(_take_over, lock, run, record))
        if was_finished:
            _tell_of_other_validation(run)
        else:
            with preserved_torch_state(context.device):
                _train_to_end(run, observers)
        return was_finished
    finally:
        lock.release()
        free_memory(context.device)


def _take_over(lock: FileLock, run: Run, record: Mapping[str, Any]) -> bool:
    """Keep other processes away; whether the run is finished."""
    try:
        lock.acquire()
    except Timeout:
        raise TrainerError(f"run {run.name!r} is being trained by another process: wait, or change run_name") from None
    is_finished = run.folder.final_path.exists()
    if not is_finished:
        run.folder.write_job(record, run.context.workflow)  # how it is watched may have changed
    return is_finished


def _train_to_end(run: Run, observers: Sequence[RunObserver]) -> None:
    """Train to the last step. Where memory runs out, go on from the last finished step with a plan that takes less."""
    device = run.context.device
    start_peak_memory(device)
    memory: MemoryPlan | None = None
    is_told = False
    try:
        free_memory(device)  # of nodes before this one
        while True:
            memory = _announce_plan(run, memory).memory
            try:
                _train_as_planned(run, memory, observers, is_told=is_told)
                return
            except OutOfMemoryError as error:
                failure = without_frames(error)
            free_memory(device)  # before the next plan looks at what is free
            is_told = True
            memory = _plan_less(run, memory, failure)
            if memory is None:
                raise failure
            _tell_of_less_memory(run, failure)
    except BaseException as error:
        _tell_failure(run, error)
        raise


def _train_as_planned(run: Run, memory: MemoryPlan, observers: Sequence[RunObserver], *, is_told: bool) -> None:
    """Train from the newest checkpoint to the end; whatever ends it early, the finished steps are kept.

    Args:
        run: What is trained.
        memory: How it is made to fit.
        observers: Who is told of the steps.
        is_told: They know that the run has started.
    """
    context, remedies = run.context, memory_remedies(run.job, memory)
    processes = context.processes
    with processes.failing_together():
        expect_base_transformer(run.job.model)
        run.weights.check(Path(run.job.model.base_path))
        with explained_out_of_memory("loading the model", remedies):
            session = start_session(run, memory)
            resume_session(session, run)
    session.take_wishes = partial(_take_wishes, run)
    processes.take_from_main(list(session.parameters.values()))
    processes.from_main(lambda: run.folder.truncate_log(session.step))
    for observer in () if is_told else observers:
        observer.started(session.step)
    recorder = Recorder(run=replace(run, context=context.alone), session=session, observers=observers)
    try:
        with processes.telling_failure(sends_tensors=True), explained_out_of_memory("training", remedies):
            recorder.start()
            while session.step < run.job.train.steps:
                if STOP in session.wishes if processes.count > 1 else context.should_stop():
                    raise StopTraining
                recorder.record_step(session.train_step())
            recorder.finish()
    except BaseException as error:
        _rescue(session, recorder, error, processes)
        raise


def _take_wishes(run: Run) -> frozenset[str]:
    """What this process was asked."""
    asked = frozenset[str](run.context.take_requests(run.name))
    return asked | ({STOP} if run.context.should_stop() else frozenset())


def _announce_plan(run: Run, memory: MemoryPlan | None) -> RunPlan:
    """Decide how the run is made to fit, unless that is settled, and say what it will take."""
    job, context = run.job, run.context
    sizes, held_out_sizes = ([size_of(sample) for sample in some] for some in (run.samples, run.held_out))
    is_first, first_step = memory is None, last_saved_step(run.folder)
    plan = plan_run(job, run.weights, sizes, held_out_sizes, context.device, first_step, memory)
    logger.info("Run %s: %s", run.name, plan.memory.sentence)
    context.emit(Event(kind="planned", run=run.name, data=plan.to_json()))
    if context.processes.is_main:
        run.folder.extend_job({"memory_plan": plan.memory.sentence})
    if job.rollout is not None and is_first:
        logger.info("Run %s: %s", run.name, job.rollout.sentence)
    return plan


def _plan_less(run: Run, failed: MemoryPlan, failure: OutOfMemoryError) -> MemoryPlan | None:
    """The plan after one that ran out of memory; None where no plan would help."""
    device = run.context.device
    if run.context.processes.count > 1 or not (failure.is_of_device or device.type == "cpu"):
        return None
    return plan_less_memory(run.job, run.weights, [size_of(sample) for sample in run.samples], device, failed)


def _tell_of_less_memory(run: Run, failure: OutOfMemoryError) -> None:
    work = str(failure).partition(" ran out of memory")[0]
    message = (
        f"{work} ran out of memory after step {last_saved_step(run.folder)}: going on from there in less memory, and"
        " slower. Nothing is lost"
    )
    logger.warning("%s: %s", run.name, message)
    run.context.emit(make_notice(run.name, message))


def _tell_failure(run: Run, error: BaseException) -> None:
    if not isinstance(error, StopTraining):
        data = {"step": last_saved_step(run.folder), "message": str(error)}
        run.context.emit(Event(kind="failed", run=run.name, data=data))


def _rescue(session: TrainingSession, recorder: Recorder, error: BaseException, processes: Processes) -> None:
    """Keep the finished steps; a failure to do so must not hide what ended the run."""

    def save() -> None:
        if not session.is_consistent:
            return
        try:
            recorder.save_checkpoint()
        except Exception:
            logger.exception("The steps since the last checkpoint could not be saved")

    if processes.presence is not None and not isinstance(error, StopTraining):
        processes.presence.abort()  # else the GPU goes on waiting for tensors that never come
    if not isinstance(error, KeyboardInterrupt):
        with suppress(OtherProcessFailed, StopTraining):
            processes.from_main(save)  # the others wait: a launcher ends what outlives a process that failed
    if processes.stands_in or (processes.is_main and isinstance(error, KeyboardInterrupt)):
        save()


def _tell_of_other_validation(run: Run) -> None:
    drawn = json.loads(run.folder.job_path.read_text(encoding="utf-8"))["validation"]
    if run.job.validation is None:
        return
    asked, defaults = (
        json.loads(json.dumps(dataclasses.asdict(settings))) for settings in (run.job.validation, PictureSettings())
    )
    if any(asked[name] != (drawn or {}).get(name, default) for name, default in defaults.items()):
        logger.warning("Run %s is finished, with pictures of other prompts: draw new ones with Validate", run.name)


def last_saved_step(run: RunFolder) -> int:
    """Of the newest checkpoint; 0 if there is none."""
    checkpoints = list_checkpoints(run.checkpoints_dir)
    return step_of(checkpoints[-1]) if checkpoints else 0


def start_session(run: Run, memory: MemoryPlan) -> TrainingSession:
    """Load the base, attach what is trained, and run it as the memory plan says."""
    job, weights, context = run.job, run.weights, run.context
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
        samples=run.samples,
        unconditional=load_embeds(run.embeds.unconditional),
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


def resume_session(session: TrainingSession, run: Run) -> None:
    """Go on from the newest checkpoint."""
    checkpoints = list_checkpoints(run.folder.checkpoints_dir)
    if checkpoints:
        session.step = load_checkpoint(checkpoints[-1], session.parameters, session.optimizer, session.average)
        run.weights.restore(checkpoints[-1] / run.weights.file_name)
        logger.info("Run %s goes on from step %d", run.name, session.step)
