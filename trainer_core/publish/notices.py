"""One sentence about a service that failed, without secrets."""

from __future__ import annotations

import os
from collections.abc import Callable

from ..errors import TrainerError
from ..events import Level

Report = Callable[[Level, str], None]
"""Takes a sentence for the log and for the user's screen, from any thread."""
MAX_LENGTH = 300
"""Characters of a service's own words."""
SECRET_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "TRACKIO_WRITE_TOKEN")


def describe_error(error: BaseException) -> str:
    """What went wrong in the service's words: the first line, with every token blanked out."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    if not isinstance(error, TrainerError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return without_secrets(text)[:MAX_LENGTH]


def without_secrets(text: str) -> str:
    """The text with every token this process knows replaced: a server's answer may repeat what it was sent."""
    from huggingface_hub import get_token

    secrets = {os.environ.get(name, "").strip() for name in SECRET_VARIABLES} | {get_token() or ""}
    for secret in secrets - {""}:
        text = text.replace(secret, "***")
    return text
