"""The training loop."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence

from filelock import FileLock, Timeout

from .context import StepContext
from .data.batches import derive_seed
from .data.cache import TrainingSample, join_samples, load_embeds, read_embed_index, read_latent_index
from .data.index import EmbedIndex
from .errors import StopTraining, TrainerError
from .events import Event
from .job import TrainJob
from .job_record import describe_job, fingerprint_job
from .lumina2.base_files import load_base_transformer
from .recorder import Recorder
from .run_folder import RunFolder, open_run
from .run_memory import memory_limit, plan_memory
from .torch_state import preserved_torch_state
from .trained_weights import TrainedWeights, choose_trained_weights
from .training.checkpoints import list_checkpoints, load_checkpoint
from .training.memory import free_memory, start_peak_memory
from .training.memory_plan import MemoryPlan
from .training.optimizers import OPTIMIZERS
from .training.session import StepPlan, TrainingSession

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
    samples = join_samples(read_latent_index(job.latents), embeds)
    _check_validation(job, embeds)
    record = describe_job(job, len(samples), str(context.device))
    weights = choose_trained_weights(job)
    identity = fingerprint_job(job)
    run = open_run(context.runs_dir, job.train.run_name, identity, record, context.workflow, weights.file_name)
    try:
        with FileLock(run.path / ".lock", timeout=0):
            was_finished = run.final_path.exists()
            if was_finished:
                _tell_of_other_validation(run, job)
            else:
                with preserved_torch_state(context.device):
                    _train_to_end(job, weights, run, samples, embeds, context)
    except Timeout:
        raise TrainerError(f"run {run.name!r} is being trained by another process: wait, or change run_name") from None
    finally:
        free_memory(context.device)
    final_path = run.final_path.relative_to(run.path)
    data = {"step": job.train.steps, final_path.stem: final_path.as_posix(), "reused": was_finished}
    context.emit(Event(kind="finished", run=run.name, data=data))
    return run, was_finished


def _train_to_end(
    job: TrainJob,
    weights: TrainedWeights,
    run: RunFolder,
    samples: Sequence[TrainingSample],
    embeds: EmbedIndex,
    context: StepContext,
) -> None:
    free_memory(context.device)  # of steps before this one
    start_peak_memory(context.device)
    memory = plan_memory(job, weights, samples, context.device)
    logger.info("Run %s: %s", run.name, memory.sentence)
    session = _start_session(job, weights, memory, samples, embeds, context)
    _resume(session, run)
    recorder = Recorder(
        job=job,
        run=run,
        session=session,
        weights=weights,
        memory=memory,
        samples=samples,
        embeds=embeds,
        context=context,
    )
    try:
        while session.step < job.train.steps:
            if context.should_stop():
                raise StopTraining
            recorder.record_step(session.train_step())
        recorder.finish()
    except BaseException as error:
        if not isinstance(error, StopTraining):
            context.emit(Event(kind="failed", run=run.name, data={"step": session.step, "message": str(error)}))
        _rescue(session, recorder)
        raise


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
    optimizer = OPTIMIZERS[train.optimizer](
        weights.groups(parameters), train.learning_rate, job.optimizer, derive_seed(train.seed, "rounding")
    )
    return TrainingSession(
        transformer=transformer.train(),
        parameters=parameters,
        optimizer=optimizer,
        update=weights.make_update(parameters, optimizer, job.optimizer.max_grad_norm),
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
        ),
        device=context.device,
        memory_limit=memory_limit(job),
    )


def _resume(session: TrainingSession, run: RunFolder) -> None:
    """Go on from the newest checkpoint, and drop what was logged after it."""
    checkpoints = list_checkpoints(run.checkpoints_dir)
    if checkpoints:
        session.step = load_checkpoint(checkpoints[-1], session.parameters, session.optimizer)
        logger.info("Run %s goes on from step %d", run.name, session.step)
    run.truncate_log(session.step)


def _tell_of_other_validation(run: RunFolder, job: TrainJob) -> None:
    drawn = json.loads(run.job_path.read_text(encoding="utf-8"))["validation"]
    if job.validation is not None and drawn != dataclasses.asdict(job.validation):
        logger.warning("Run %s is finished, with pictures of other prompts: draw new ones with Validate", run.name)


def _check_validation(job: TrainJob, embeds: EmbedIndex) -> None:
    """Every prompt must have been encoded, for the text encoder is not loaded during training."""
    if job.validation is None:
        return
    prompts = [prompt for prompt in job.validation.prompt_list if prompt not in embeds.prompts]
    if prompts or embeds.find_negative(job.validation.negative_prompt) is None:
        missing = prompts[0] if prompts else job.validation.negative_prompt
        raise TrainerError(
            f"the validation prompt {missing!r} is not in the text cache:"
            " connect Validation Prompts to Cache Text Embeds as well as to Train"
        )
