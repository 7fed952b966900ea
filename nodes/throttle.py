"""Keeps browsers from being flooded by messages of one kind."""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS_BETWEEN = 0.34
"""Three in a second and the last one make four, which is what listeners are promised at most."""


class Throttle:
    """Lets a message through if none of its kind went through just before."""

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
