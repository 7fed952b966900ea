"""Settings of Tracking and Hub Upload. None of them holds a token: those come from the environment or a login."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import TrainerError
from ..run_names import LIVE, WEIGHTS
from ..settings import check_file_name, check_settings, setting
from .trackers import TRACKERS

AT_END, AT_CHECKPOINTS, NEVER = "end", "checkpoints", "never"
PUSH_TIMES = (AT_END, AT_CHECKPOINTS, NEVER)


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """Widgets of Tracking."""

    report_to: str = setting("jsonl", choices=TRACKERS)
    """Where losses, learning rate, speed, memory and validation pictures go, besides log.jsonl: "jsonl" and
    "tensorboard" write into the run folder, "trackio" into its own folder, "wandb" sends to its server."""
    project_name: str = setting("lumina2")
    """The project that runs are grouped by."""
    run_name: str = setting("")
    """The tracker's name for this run; empty takes the name of the run folder."""
    offline: bool = setting(False)
    """wandb keeps its records in the run folder, to be sent later by `wandb sync`. The others stay on this machine
    anyway."""

    def __post_init__(self) -> None:
        check_settings(self)
        check_file_name("project_name", self.project_name)
        if self.run_name:
            check_file_name("run_name", self.run_name)


@dataclass(frozen=True, kw_only=True)
class HubSettings:
    """Widgets of Hub Upload."""

    repo_id: str = setting("")
    """Repository on huggingface.co, as "your-name/my-lora"; it is made if it is not there. Log in by `hf auth login` or
    set HF_TOKEN before ComfyUI starts."""
    push: str = setting(AT_END, choices=PUSH_TIMES)
    """"end" sends the finished weights, "checkpoints" every checkpoint too, in the background. "never" only writes what
    would be sent into the run folder, with the model card."""
    private: bool = setting(True)
    """The repository is made private, and nothing is sent to one that is public."""
    base_model: str = setting("Alpha-VLLM/Lumina-Image-2.0")
    """The base's repository on the hub, for the card's link and its usage example."""
    license: str = setting("")
    """Licence named in the card, such as apache-2.0, which Lumina-Image-2.0 has; empty names none."""
    note: str = setting("", multiline=True)
    """Text at the top of the model card, in Markdown."""
    not_for_all_audiences: bool = setting(False)
    """Marks the repository as not for all audiences."""
    weights: str = setting(LIVE, choices=WEIGHTS, is_optional=True)
    """"live" sends the weights as trained, "ema" their running average, which use_ema of Checkpoints and EMA keeps; the
    pictures are those drawn with them."""

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.repo_id:
            raise TrainerError('repo_id is empty: name the repository to upload to, as "your-name/my-lora"')
        _check_repo_id("repo_id", self.repo_id)
        _check_repo_id("base_model", self.base_model)
        if self.license and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license):
            raise TrainerError(f"license is {self.license!r}: use the hub's short name, such as apache-2.0")


def _check_repo_id(what: str, repo_id: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise TrainerError(
            f'{what} is {repo_id!r}: write "name" or "owner/name" with letters, digits, "-", "_" and ".", at most 96'
            ' characters, no "--" or ".." and no ".git" at the end'
        ) from error
