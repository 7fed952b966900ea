"""Progress of a cache in one line of plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def describe_progress(payload: Mapping[str, Any]) -> str:
    """Such as "12 of 40, 3.1 a second, about 9 seconds left"; empty for a training step, which has its own widget."""
    if "rate" not in payload:
        return ""
    parts = [f"{payload['step']} of {payload['total']}"]
    if payload["rate"]:
        parts.append(f"{payload['rate']:.1f} a second")
    if payload["eta"]:
        parts.append(f"{describe_seconds(payload['eta'])} left")
    return ", ".join(parts)


def describe_seconds(seconds: float) -> str:
    """Such as "about 40 seconds", "about 3 minutes" or "about 2 hours"."""
    for size, name in ((3600, "hour"), (60, "minute")):
        if seconds >= 1.5 * size:
            return f"about {round(seconds / size)} {name}s"
    return f"about {max(1, round(seconds))} seconds"
