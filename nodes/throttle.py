"""Keeps browsers from being flooded by the messages that come with every step."""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS_BETWEEN = 0.34
"""Three in a second and the last one make four, which is what listeners are promised at most."""


class Throttle:
    """Lets a message through if none went through just before."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: float | None = None

    def allows(self) -> bool:
        """Whether a message may be sent now; if so, it counts as sent."""
        now = self._clock()
        if self._last is not None and now - self._last < SECONDS_BETWEEN:
            return False
        self._last = now
        return True
