"""Names within a run: of its folders for a step, and of its sets of weights.

Checkpoints, validation pictures and the best weights are named by a step. A set of weights is what a run is drawn with,
measured with and saved as.
"""

from __future__ import annotations

import re
from pathlib import Path

STEP_NAME = re.compile(r"step-([0-9]+)")


def step_folder(step: int) -> str:
    """Folder name of a step."""
    return f"step-{step:06d}"


def step_of(folder: Path) -> int:
    """The step of a folder that `list_step_folders` gave."""
    match = STEP_NAME.fullmatch(folder.name)
    assert match is not None, f"{folder.name} is not named by a step"
    return int(match[1])


def list_step_folders(parent: Path) -> list[Path]:
    """The folders named by a step, lowest first; copies that a user made of one have other names and are left out.

    Args:
        parent: It may be missing.
    """
    return sorted((p for p in parent.glob("step-*") if STEP_NAME.fullmatch(p.name) and p.is_dir()), key=step_of)


LIVE, EMA, BEST = "live", "ema", "best"
WEIGHTS = (LIVE, EMA, BEST)
"""The weights as trained, their running average, and those with the lowest held-out loss: what can be chosen where a
file is written."""
BASE = "base"
"""The model without what is trained."""
MARKED = (EMA, BASE)
"""Whose pictures are marked in their files' names."""

VALIDATED_WEIGHTS: dict[str, tuple[str, ...]] = {"both": (LIVE, EMA), LIVE: (LIVE,), EMA: (EMA,)}
"""Which weights are drawn with during a run that keeps an average."""


def suffix_of(weights: str) -> str:
    """What is added to the names of files that hold, or were drawn with, these weights."""
    return "" if weights == LIVE else f"_{weights}"


def name_of(weights_file: str, weights: str) -> str:
    """Name of the file that holds these weights, beside the one with the live ones."""
    path = Path(weights_file)
    return f"{path.stem}{suffix_of(weights)}{path.suffix}"


def weights_of(picture: Path) -> str:
    """The weights a picture was drawn with, by its file's name."""
    return next((weights for weights in MARKED if picture.stem.endswith(suffix_of(weights))), LIVE)
