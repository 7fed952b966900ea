"""What a job and its samples must agree on."""

from __future__ import annotations

from collections.abc import Sequence

from .data.cache import TrainingSample
from .data.index import EmbedIndex
from .errors import TrainerError
from .job import TrainJob


def check_validation(job: TrainJob, embeds: EmbedIndex) -> None:
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


def check_held_out(job: TrainJob, held_out: Sequence[TrainingSample]) -> None:
    if held_out and job.validation is None:
        raise TrainerError(
            "is_held_out is on for a folder, but nothing says when to measure it: connect Validation Prompts (its"
            " prompts may be empty), or turn is_held_out off in Dataset Folder"
        )


def check_regularisation(job: TrainJob, samples: Sequence[TrainingSample]) -> None:
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
