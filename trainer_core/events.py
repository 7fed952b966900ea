"""What a running step tells its surroundings, and what they may ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

EventKind = Literal[
    "forecast", "planned", "progress", "validation", "checkpoint", "finished", "failed", "notice", "held_out"
]
Request = Literal["save", "validate"]
Level = Literal["info", "warning"]
"""How much a notice matters."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One message, sent as the websocket event `lumina2_trainer.<kind>`.

    docs/api.md shows the fields of each kind as JSON.
    """

    kind: EventKind
    run: str
    """Name of the run folder, or of the step ("cache_latents") where there is no run."""
    data: Mapping[str, Any]
    """Plain numbers, strings and lists; pictures as paths relative to the run folder."""

    def to_json(self) -> dict[str, Any]:
        """The event's payload without its kind."""
        return {"run": self.run, **self.data}


def make_notice(run: str, message: str, level: Level = "warning") -> Event:
    """A sentence for the user about a run that goes on.

    Args:
        run: Name of the run folder.
        message: The sentence.
        level: See `Level`.
    """
    return Event(kind="notice", run=run, data={"level": level, "message": message})
