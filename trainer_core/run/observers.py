"""Who is told of a run besides its folder and the screen: the tracker and the hub."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ..adapters.export import read_adapter, to_diffusers
from ..context import StepContext
from ..data.index import EmbedIndex, LatentIndex
from ..errors import TrainerError
from ..events import Event
from ..files import write_safetensors_atomically
from ..job_record import package_versions
from ..publish.hub import FinishedFiles, HubUpload, UploadSource, link_or_copy
from ..publish.model_card import CardFacts
from ..publish.notices import Level, Report
from ..publish.tracking import Tracking
from ..shared_facts import describe_datasets, describe_sampler, describe_settings_for_others
from .folder import RunFolder, choose_file
from .job import TrainJob

logger = logging.getLogger(__name__)

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
"""The name that `load_lora_weights` looks for."""


class RunObserver(Protocol):
    """Told of a run as it goes. None of these calls raises or takes long."""

    def started(self, step: int) -> None:
        """Training begins, or goes on, after this many steps."""

    def stepped(self, line: Mapping[str, Any]) -> None:
        """A step is done; its line of log.jsonl."""

    def measured(self, line: Mapping[str, Any]) -> None:
        """Pictures were scored; their line of log.jsonl."""

    def checkpointed(self, step: int, weights_path: Path) -> None:
        """A checkpoint is on disk; its weights may be deleted after this call."""

    def validated(self, step: int, picture_paths: Sequence[Path]) -> None:
        """Validation pictures are on disk."""

    def finished(self) -> None:
        """The finished weights are on disk, from this call of the job or from an earlier one."""

    def close(self) -> None:
        """Nothing more will come, whichever way the run ended."""


@contextmanager
def observing(
    job: TrainJob, run: RunFolder, latents: LatentIndex, embeds: EmbedIndex, context: StepContext
) -> Iterator[Sequence[RunObserver]]:
    """Those who want to be told of a run; in the end they are waited for, unless the user stopped."""
    notices = _Notices(run.name, context.emit)
    observers: list[RunObserver] = []
    if job.tracking is not None:
        observers.append(_make_tracking(job, run, latents, notices, context.should_stop))
    if job.hub is not None:
        observers.append(_make_upload(job, run, latents, embeds, notices, context.should_stop))
    try:
        yield observers
    finally:
        for observer in observers:
            observer.close()
        notices.is_over = True


class _Notices:
    """Sends sentences to log and screen; to the log alone once the run is over."""

    def __init__(self, run_name: str, emit: Callable[[Event], None]) -> None:
        self._run_name = run_name
        self._emit = emit
        self.is_over = False

    def __call__(self, level: Level, message: str) -> None:
        logger.log(logging.WARNING if level == "warning" else logging.INFO, "%s: %s", self._run_name, message)
        if not self.is_over:
            data = {"level": level, "message": message}
            self._emit(Event(kind="notice", run=self._run_name, data=data))


def _make_tracking(
    job: TrainJob, run: RunFolder, latents: LatentIndex, report: Report, should_stop: Callable[[], bool]
) -> Tracking:
    assert job.tracking is not None
    return Tracking(
        job.tracking,
        run_name=run.name,
        folder=run.path / "tracking",
        config={
            **describe_settings_for_others(job),
            "base": job.model.name,
            "num_pictures": len(latents.samples),
            **{f"versions/{name}": version for name, version in package_versions().items()},
        },
        read_losses=run.losses,
        report=report,
        should_stop=should_stop,
    )


def _make_upload(
    job: TrainJob,
    run: RunFolder,
    latents: LatentIndex,
    embeds: EmbedIndex,
    report: Report,
    should_stop: Callable[[], bool],
) -> HubUpload:
    assert job.hub is not None
    is_adapter, weights = job.adapter is not None, job.hub.weights
    card = CardFacts(
        title=run.name,
        repo_id=job.hub.repo_id,
        base_model=job.hub.base_model,
        base_name=job.model.name,
        is_adapter=is_adapter,
        license=job.hub.license,
        note=job.hub.note,
        not_for_all_audiences=job.hub.not_for_all_audiences,
        trigger_words=embeds.trigger_words,
        system_prompt=embeds.system_prompt,
        num_steps=job.train.steps,
        settings={name: str(value) for name, value in describe_settings_for_others(job).items()},
        sampler=describe_sampler(job),
        datasets=describe_datasets(latents),
        versions=package_versions(),
    )

    def write_finished(folder: Path) -> FinishedFiles:
        return _write_finished(run, folder, is_adapter, weights)

    source = UploadSource(
        name=run.name,
        folder=run.path / "hub",
        num_steps=job.train.steps,
        card=card,
        list_pictures=lambda: run.last_samples(weights),  # of the weights that are uploaded
        write_finished=write_finished,
    )
    return HubUpload(job.hub, source=source, report=report, should_stop=should_stop)


def _write_finished(run: RunFolder, folder: Path, is_adapter: bool, weights: str) -> FinishedFiles:
    name = f"{run.name}.safetensors"
    path = choose_file(run.final_path, weights)
    link_or_copy(path, folder / name)
    if not is_adapter:
        return FinishedFiles(comfyui=name)
    try:
        adapter = read_adapter(path)
        tensors = to_diffusers(adapter.tensors)
    except TrainerError as error:
        logger.info("%s: no file for diffusers goes to the hub: %s", run.name, error)
        return FinishedFiles(comfyui=name)
    metadata = dict(sorted(adapter.metadata.items()))  # the same bytes each time: the hub takes them once
    write_safetensors_atomically(folder / DIFFUSERS_FILE, tensors, metadata)
    return FinishedFiles(comfyui=name, diffusers=DIFFUSERS_FILE)
