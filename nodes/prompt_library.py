"""Noticing that a prompt library file changed, so that the host runs the nodes that read it again."""

from __future__ import annotations

from ..trainer_core.errors import TrainerError
from . import host


def fingerprint_prompt_library(path: str | None) -> str:
    """Changes when the file does; empty if there is none, or one that the step itself will refuse."""
    if not path or not path.strip():
        return ""
    try:
        stat = host.build_context().resolve_inside_roots(path.strip(), "prompt_library").stat()
    except (TrainerError, OSError):
        return ""
    return f"{stat.st_size}:{stat.st_mtime_ns}"
