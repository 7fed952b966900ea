"""What a run tells others of its settings and data: no paths, no file names, no captions."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import PureWindowsPath
from typing import Any

from .data.index import LatentIndex
from .publish.model_card import CardDataset
from .run.job import TrainJob
from .validation.pictures import plan_pictures
from .validation.settings import PictureSettings

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
