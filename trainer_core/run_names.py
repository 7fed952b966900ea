"""Folders named by a step: checkpoints, validation pictures, the best weights."""

from __future__ import annotations

import re
from pathlib import Path

NAME = re.compile(r"step-([0-9]+)")


def step_folder(step: int) -> str:
    """Folder name of a step."""
    return f"step-{step:06d}"


def step_of(folder: Path) -> int:
    """The step of a folder that `list_step_folders` gave."""
    match = NAME.fullmatch(folder.name)
    assert match is not None, f"{folder.name} is not named by a step"
    return int(match[1])


def list_step_folders(parent: Path) -> list[Path]:
    """The folders named by a step, lowest first; copies that a user made of one have other names and are left out.

    Args:
        parent: It may be missing.
    """
    return sorted((p for p in parent.glob("step-*") if NAME.fullmatch(p.name) and p.is_dir()), key=step_of)
