"""What was measured of a run, in sentences for people."""

from __future__ import annotations

from .run_folder import RunFolder
from .validation.held_out_log import describe_held_out


def describe_scores(run: RunFolder) -> str:
    """The last measurements; empty if there are none."""
    return describe_held_out(run.held_out_log.read())
