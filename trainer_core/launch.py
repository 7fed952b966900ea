"""What `accelerate launch` and torchrun tell each process they start, in its environment."""

from __future__ import annotations

import os


def num_launched() -> int:
    """How many processes were started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_index() -> int:
    """Which of them this is; the first one writes and reports."""
    return int(os.environ.get("RANK", "0"))


def local_index() -> int:
    """Which of those on this machine this is."""
    return int(os.environ.get("LOCAL_RANK", "0"))
