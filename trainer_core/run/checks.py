"""What a job, its samples and its device must agree on, whether its caches are filled or are yet to be."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import torch

from ..errors import TrainerError
from ..run_names import BEST
from ..training.low_resolution import SizedSample, check_low_resolution
from ..training.optim.optimizers import check_optimizer_device
from .job import TrainJob


class CheckedSample(SizedSample, Protocol):
    """What is looked at of a sample; see `TrainingSample`."""

    @property
    def is_regularisation(self) -> bool: ...


def check_run(
    job: TrainJob,
    *,
    samples: Sequence[CheckedSample],
    held_out: Sequence[CheckedSample],
    prompts: Collection[str],
    negative_prompts: Collection[str],
    device: torch.device,
) -> None:
    """Refuse what cannot be trained.

    Args:
        job: The run.
        samples: What is trained on.
        held_out: What is measured on.
        prompts: Prompts in its text cache, as typed.
        negative_prompts: Negative prompts there.
        device: Where it would be trained.

    Raises:
        TrainerError: What is wrong.
    """
    _check_validation(job, prompts, negative_prompts)
    _check_held_out(job, held_out)
    _check_regularisation(job, samples)
    check_optimizer_device(job.train.optimizer, device)
    check_low_resolution(job.noise, samples)


def _check_validation(job: TrainJob, prompts: Collection[str], negative_prompts: Collection[str]) -> None:
    """Every prompt must have been encoded, for the text encoder is not loaded during training."""
    if job.validation is None:
        return
    missing = [prompt for prompt in job.validation.prompt_list if prompt not in prompts]
    if job.validation.negative_prompt not in negative_prompts:
        missing.append(job.validation.negative_prompt)
    if missing:
        raise TrainerError(
            f"the validation prompt {missing[0]!r} is not in the text cache:"
            " connect Validation Prompts to Cache Text Embeds as well as to Train"
        )


def _check_held_out(job: TrainJob, held_out: Sequence[CheckedSample]) -> None:
    if held_out and job.validation is None:
        raise TrainerError(
            "is_held_out is on for a folder, but nothing says when to measure it: connect Validation Prompts (its"
            " prompts may be empty), or turn is_held_out off in Dataset Folder"
        )
    if not held_out and job.hub is not None and job.hub.weights == BEST:
        raise TrainerError(
            'weights of Hub Upload is "best" but no picture is held out to tell which are: raise held_out_share of'
            ' Validation Prompts, turn is_held_out on for a folder, or choose "live"'
        )


def _check_regularisation(job: TrainJob, samples: Sequence[CheckedSample]) -> None:
    """It needs the base beside what is trained."""
    if job.adapter is None and any(sample.is_regularisation for sample in samples):
        raise TrainerError(
            "is_regularisation is on for a folder, but Train Full Model changes the base that would be the target:"
            " turn it off in Dataset Folder, or train a LoRA"
        )
    if all(sample.is_regularisation for sample in samples):
        raise TrainerError(
            "is_regularisation is on for all folders, so there is nothing to learn: add a folder without it"
        )
