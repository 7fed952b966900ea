"""What the runs of this process are doing, what was asked of them, and how often browsers are told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from ..trainer_core.events import Request

Status = Literal["running", "stopped", "finished", "failed"]


class LiveRuns:
    """Last state and open requests of each run; written by the worker thread, read by the server's."""

    def __init__(self) -> None:
        self._states: dict[str, dict[str, Any]] = {}
        self._requests: dict[str, set[str]] = {}
        self._forecasts: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def record(self, kind: str, payload: Mapping[str, Any]) -> None:
        """Keep the last event of each kind.

        Args:
            kind: Kind of the event.
            payload: What is sent to the browser, with `run` and `node`.
        """
        run = payload["run"]
        with self._lock:
            state = self._states.setdefault(run, {"run": run})
            state["node"] = payload["node"]
            self._forecasts.pop(payload["node"], None)
            if state.get("status") != "running":  # what was said of an earlier execution
                state.pop("notice", None)
            state["status"] = kind if kind in ("finished", "failed") else "running"
            state[kind] = dict(payload)

    def record_forecast(self, payload: Mapping[str, Any]) -> None:
        """Keep what a node will train, until it does.

        Args:
            payload: What is sent to the browser, with `run` and `node`.
        """
        with self._lock:
            self._forecasts[payload["node"]] = {**payload, "status": "waiting"}

    def withdraw(self, node: str) -> None:
        """The node will not train what was forecast."""
        with self._lock:
            self._forecasts.pop(node, None)

    def forecast_of(self, nodes: Iterable[str], run: str) -> dict[str, Any] | None:
        """What one of these nodes will train under a name, or None."""
        with self._lock:
            forecasts = (self._forecasts.get(node, {}) for node in nodes)
            return next((dict(forecast) for forecast in forecasts if forecast.get("run") == run), None)

    def end(self, run: str, status: Status, message: str) -> None:
        """The step is over; what was asked of it is forgotten."""
        with self._lock:
            self._requests.pop(run, None)
            if run in self._states:
                self._states[run].update(status=status, message=message)

    def snapshot(self, run: str) -> dict[str, Any] | None:
        """The run's state, or None if this process knows nothing of it."""
        with self._lock:
            state = self._states.get(run)
            return None if state is None else dict(state)

    def runs_of(self, nodes: Iterable[str]) -> frozenset[str]:
        """Names of the runs that one of these nodes trained last."""
        wanted = set(nodes)
        with self._lock:
            return frozenset(run for run, state in self._states.items() if state["node"] in wanted)

    def ask(self, run: str, action: str) -> bool:
        """Ask a running run for an action at its next step; False if it isn't running."""
        with self._lock:
            if self._states.get(run, {}).get("status") != "running":
                return False
            self._requests.setdefault(run, set()).add(action)
            return True

    def is_stop_requested(self, run: str) -> bool:
        """Whether the run was asked to stop."""
        with self._lock:
            return "stop" in self._requests.get(run, ())

    def take_requests(self, run: str) -> frozenset[Request]:
        """Requests since the last call, without a stop."""
        with self._lock:
            requests = self._requests.get(run, set())
            taken = requests - {"stop"}
            requests -= taken
            return frozenset(taken)  # type: ignore[arg-type]


RUNS = LiveRuns()
"""Runs of this process."""

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
