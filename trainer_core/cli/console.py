"""Progress of a run in a terminal, and stopping it by Ctrl-C."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from ..events import Event
from ..launch import launched_index, num_launched
from ..run.plan import format_duration

SECONDS_BETWEEN_LINES = 5.0
SECONDS_OF_ECHO = 5.0
"""After a signal; launchers of several processes hand on the Ctrl-C that the terminal has sent to all."""


@dataclass(kw_only=True)
class ConsoleReporter:
    """Prints events as lines: at most one every few seconds for progress, each of the others."""

    _last_line: float = field(default=float("-inf"))

    def __call__(self, event: Event) -> None:
        data = event.data
        if event.kind == "progress":
            is_last = data["step"] == data["total"]
            if time.monotonic() - self._last_line < SECONDS_BETWEEN_LINES and not is_last:
                return
            self._last_line = time.monotonic()
            print(f"{event.run}: {_progress_text(event)}", flush=True)
        elif event.kind == "planned":
            print(
                f"{event.run}: about {format_duration(data['predicted_seconds'])} from step {data['step']}", flush=True
            )
        elif event.kind == "forecast":
            text = data["message"] or f"will take about {format_duration(data['predicted_seconds'])}"
            print(f"{event.run}: {text}", flush=True)
        elif event.kind == "validation":
            print(f"{event.run}: step {data['step']}: {len(data['images'])} validation pictures", flush=True)
        elif event.kind == "checkpoint":
            print(f"{event.run}: step {data['step']}: checkpoint saved", flush=True)
        elif event.kind == "finished":
            print(f"{event.run}: {'already finished, reused' if data.get('reused') else 'finished'}", flush=True)


def _progress_text(event: Event) -> str:
    data = event.data
    text = f"{data['step']}/{data['total']}"
    if "loss" in data:
        text += f"  loss {data['loss']:.4f}  lr {data['learning_rate']:.2e}  {data['seconds_per_step']:.2f} s/step"
    eta = data["eta_seconds"]
    return text + (f"  {format_duration(eta)} left" if eta else "")


@dataclass(kw_only=True)
class StopFlag:
    """Set by the first Ctrl-C or termination signal."""

    is_set: bool = False

    def __call__(self) -> bool:
        return self.is_set


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """The first signal asks for a stop after the current step; a second one interrupts at once."""
    flag = StopFlag()
    first = math.inf

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not flag.is_set:
            flag.is_set, first = True, time.monotonic()
            if launched_index() == 0:
                print("Stopping after this step; once more to stop at once.", file=sys.stderr, flush=True)
        elif num_launched() == 1 or time.monotonic() - first > SECONDS_OF_ECHO:
            raise KeyboardInterrupt

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
