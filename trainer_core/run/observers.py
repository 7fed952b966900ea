"""Who is told of a run besides its folder and the screen: the tracker and the hub.

What they are told of its settings and data has no paths, no file names and no captions.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any, Protocol

from ..adapters.export import read_adapter, to_diffusers
from ..context import StepContext
from ..data.index import EmbedIndex, LatentIndex
from ..errors import TrainerError
from ..events import Event, Level, make_notice
from ..files import write_safetensors_atomically
from ..publish.hub import FinishedFiles, HubUpload, UploadSource, link_or_copy
from ..publish.model_card import CardDataset, CardFacts
from ..publish.notices import Report
from ..publish.tracking import Tracking
from ..validation.pictures import plan_pictures
from ..validation.settings import PictureSettings
from .folder import RunFolder, choose_file
from .job import TrainJob, package_versions

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
            self._emit(make_notice(self._run_name, message, level))


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


SHARED_PARTS = ("train", "adapter", "optimizer", "noise", "rollout")
"""Parts of a job that say how it learns."""
PRIVATE_FIELDS = frozenset({"folder", "caption"})
"""Of a dataset's folder."""
PROMPT_FIELDS = frozenset({"prompts", "prompt_library", "named_prompts"})
"""Of validation."""


def describe_settings_for_others(job: TrainJob) -> dict[str, Any]:
    """Settings of the job by "group/name": numbers, strings and booleans."""
    settings = {}
    for part in SHARED_PARTS:
        value = getattr(job, part)
        for name, setting in dataclasses.asdict(value).items() if value is not None else ():
            settings[f"{part}/{name}"] = _without_folders(setting)
    return settings


def describe_sampler(job: TrainJob) -> dict[str, str]:
    """How validation pictures are drawn, without the prompts; empty if none are."""
    if job.validation is None or not plan_pictures(job.validation):
        return {}
    names = {field.name for field in dataclasses.fields(PictureSettings)} - PROMPT_FIELDS
    values = dataclasses.asdict(job.validation)
    return {name: str(_without_folders(value)) for name, value in values.items() if name in names}


def describe_datasets(latents: LatentIndex) -> tuple[CardDataset, ...]:
    """The dataset's folders by their last name, with what differs from the defaults."""
    counts = Counter(sample.id.partition("/")[0] for sample in latents.samples)
    return tuple(
        CardDataset(
            name=_last_name(folder.folder),
            num_pictures=counts[str(number)],
            settings=_changed_settings(folder),
        )
        for number, folder in enumerate(latents.folders, start=1)
    )


def _changed_settings(folder: Any) -> Mapping[str, str]:
    changed = {}
    for field in dataclasses.fields(folder):
        value = getattr(folder, field.name)
        if field.name not in PRIVATE_FIELDS and value != field.default:
            changed[field.name] = str(_without_folders(value))
    return changed


def _without_folders(value: Any) -> Any:
    """A path as its last name; other texts, numbers and booleans as they are; anything else as text."""
    if not isinstance(value, (str, int, float, bool)):
        return str(value)
    is_path = isinstance(value, str) and (value.startswith(("/", "~", "\\")) or PureWindowsPath(value).is_absolute())
    return _last_name(str(value)) if is_path else value


def _last_name(path: str) -> str:
    return PureWindowsPath(path).name or path
