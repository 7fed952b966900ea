"""The command `child`: does one node's work for a parent process and reports by pipes, see run/child.py."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

from ..errors import CacheDamagedError, StopTraining, TrainerError
from ..events import Event, Request

EXIT_STOPPED = 130


def run_child() -> int:
    """Read a task from standard input, do it, and report on standard output; returns the exit status."""
    pipe, lines = _take_over_stdout(), _read_lines(sys.stdin.fileno())
    task = json.loads(next(lines))
    wishes = _Wishes(lines)

    def send(message: Mapping[str, Any]) -> None:
        pipe.write(json.dumps(message) + "\n")
        pipe.flush()

    try:
        send({"result": _do(task, wishes, send)})
        return 0
    except StopTraining:
        send({"stopped": True})
        return EXIT_STOPPED
    except Exception as error:  # logged here, and raised by the parent
        if not isinstance(error, TrainerError):
            traceback.print_exc()
        send({"error": _describe(error)})
        return 1


def _do(task: Mapping[str, Any], wishes: _Wishes, send: Callable[[Mapping[str, Any]], None]) -> Any:
    import torch

    from ..context import StepContext
    from ..device import preserved_torch_state
    from ..socket_json import from_json, to_json
    from ..workflow.nodes import NODE_STEPS

    def emit(event: Event) -> None:
        send({"event": {"kind": event.kind, "run": event.run, "data": event.data}})

    surroundings = from_json(task["context"])
    context = StepContext(
        **{**surroundings, "device": torch.device(surroundings["device"])},
        emit=emit,
        should_stop=wishes.should_stop,
        take_requests=wishes.take_requests,
    )
    stage = NODE_STEPS[task["node"]].run
    assert stage is not None, f"{task['node']} does nothing"
    with preserved_torch_state(context.device):
        return to_json(stage(from_json(task["settings"]), **from_json(task["sockets"]), context=context))


def _take_over_stdout() -> IO[str]:
    """The pipe to the parent; what libraries print goes to the log from here on."""
    pipe = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return pipe


def _read_lines(pipe: int) -> Iterator[str]:
    """Lines of a pipe, read without Python's buffer: its lock, held by a waiting thread, would block the exit."""
    rest = b""
    while block := os.read(pipe, 2**16):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            yield line.decode()


class _Wishes:
    """What the parent asks for, read in a thread of its own."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._requests: set[Request] = set()
        self._is_stopping = False
        self._lock = threading.Lock()
        threading.Thread(target=self._read, args=(lines,), daemon=True).start()

    def _read(self, lines: Iterator[str]) -> None:
        for word in lines:
            with self._lock:
                if word == "stop":
                    self._is_stopping = True
                elif word in ("save", "validate"):
                    self._requests.add(word)  # type: ignore[arg-type]
        self._is_stopping = True  # the parent is gone

    def should_stop(self) -> bool:
        return self._is_stopping

    def take_requests(self, run: str) -> frozenset[Request]:
        with self._lock:
            taken, self._requests = frozenset(self._requests), set()
        return taken


def _describe(error: Exception) -> dict[str, Any]:
    if isinstance(error, CacheDamagedError):
        return {"kind": "CacheDamagedError", "message": str(error), "cache": error.cache}
    if isinstance(error, ModuleNotFoundError):
        return {"kind": "ModuleNotFoundError", "message": str(error), "name": error.name or ""}
    if isinstance(error, TrainerError):
        return {"kind": "TrainerError", "message": str(error)}
    return {"kind": "Exception", "message": f"{type(error).__name__}: {error}"}
