"""Keeps browsers from being flooded: at most four messages of one kind a second."""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS_BETWEEN = 0.25


class Throttle:
    """Lets a message through if none of its kind went through in the last quarter of a second."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, float] = {}

    def allows(self, kind: str) -> bool:
        """Whether a message of this kind may be sent now; if so, it counts as sent."""
        now = self._clock()
        if kind in self._last and now - self._last[kind] < SECONDS_BETWEEN:
            return False
        self._last[kind] = now
        return True
