"""A thread for services that may be slow, hang or fail: a run never waits for them, and never ends by them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

GRACE_SECONDS = 5.0
"""Given to calls under way when the user stops."""
POLL_SECONDS = 0.05


class Background:
    """Makes calls one after another in a thread of its own, which ends with the program."""

    def __init__(self, name: str, on_error: Callable[[Exception], None]) -> None:
        """
        Args:
            name: Of the thread.
            on_error: Told of every error a call ends with.
        """
        self._on_error = on_error
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def submit(self, call: Callable[[], None]) -> None:
        """Make the call after those before it."""
        if self._thread.ident is None:
            self._thread.start()
        self._calls.put(call)

    def call_now(self, call: Callable[[], None]) -> None:
        """Make the call in the caller's thread, under the same rule."""
        try:
            call()
        except Exception as error:  # of any kind, from libraries and networks: the run must not end by it
            self._on_error(error)

    def close(self, should_stop: Callable[[], bool], patience_seconds: float = float("inf")) -> bool:
        """Take no more calls and wait for the others.

        Returns:
            Whether all were made; False if the user stopped or patience ended before.
        """
        if self._thread.ident is None:
            return True
        self._calls.put(None)
        start = time.monotonic()
        while self._thread.is_alive():
            self._thread.join(POLL_SECONDS)
            limit = min(patience_seconds, GRACE_SECONDS) if should_stop() else patience_seconds
            if time.monotonic() - start > limit:
                return not self._thread.is_alive()
        return True

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            self.call_now(call)
