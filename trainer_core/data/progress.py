"""Count, rate and time left of long work over many files, and the stop between two of them."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..context import StepContext
from ..errors import StopTraining
from ..events import Event

SECONDS_BETWEEN_EVENTS = 0.34
"""Three in a second and the last one make four, which is what listeners are promised at most."""


class Progress:
    """Sends `progress` events while entries are worked off."""

    def __init__(self, run: str, *, total: int, num_done: int, context: StepContext) -> None:
        """
        Args:
            run: Name of the step, such as "cache_latents".
            total: Entries altogether.
            num_done: Entries that were done before and are reused; they don't count for the rate.
            context: Takes the events and knows whether to stop.
        """
        self.run = run
        self.total = total
        self.num_done = num_done
        self.context = context
        self._num_reused = num_done
        self._started = time.monotonic()
        self._last_event = -SECONDS_BETWEEN_EVENTS

    def advance(self, count: int) -> None:
        """Entries were finished and are on disk."""
        count *= self.context.processes.count  # the others do as much meanwhile
        self.num_done = min(self.num_done + count, self.total)
        now = time.monotonic()
        if self.num_done == self.total or now - self._last_event >= SECONDS_BETWEEN_EVENTS:
            self._last_event = now
            self._emit(now - self._started)

    def stop_if_asked(self, finish: Callable[[], None] = lambda: None) -> None:
        """Call it between entries.

        Args:
            finish: Called before stopping; ends what is under way.

        Raises:
            StopTraining: The user asked to stop.
        """
        if self.context.should_stop():
            finish()
            raise StopTraining(f"{self.run} stopped after {self.num_done} of {self.total}: queue it again to go on")

    def _emit(self, seconds: float) -> None:
        rate = (self.num_done - self._num_reused) / max(seconds, 1e-6)
        eta = (self.total - self.num_done) / rate if rate else 0.0
        data = {"step": self.num_done, "total": self.total, "rate": rate, "eta_seconds": eta}
        self.context.emit(Event(kind="progress", run=self.run, data=data))
