"""What was measured of a run, in sentences for people."""

from __future__ import annotations

from .run.folder import CLIP_SCORE, RunFolder
from .validation.clip_report import describe_clip_scores
from .validation.held_out_log import describe_held_out


def describe_run_losses(run: RunFolder) -> str:
    """The last held-out losses; empty if there are none."""
    return describe_held_out(run.held_out_log.read())


def describe_scores(run: RunFolder) -> str:
    """The last measurements of every kind; empty if there are none."""
    texts = [describe_run_losses(run)]
    last = next((line for line in reversed(run.read_log()) if CLIP_SCORE in line), None)
    if last is not None:
        texts.append(describe_clip_scores(last[CLIP_SCORE], last["step"]))
    return "\n".join(filter(None, texts))
