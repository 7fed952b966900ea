"""A node's work in a process of its own, which reports by a pipe.

Training inside ComfyUI's process would share its memory allocator, its interpreter lock and its fate. In a process of
its own it chooses its allocator, a crash is one red node, and all memory comes back when it ends. This file starts the
command and talks to it; it knows nothing of what is trained. The other end is cli/child.py.

The parent writes one line of JSON, the task, and then words: "stop", "save" or "validate". The child answers with lines
of JSON: {"event": ...} as it goes, then one of {"result": ...}, {"stopped": true} and {"error": ...}. A pipe that ends
tells the child that its parent is gone: it stops and keeps what was done.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ..errors import CacheDamagedError, StopTraining, TrainerError
from ..events import Event, Request

logger = logging.getLogger(__name__)

PACK_DIR = Path(__file__).resolve().parent.parent.parent
COMMAND = (sys.executable, str(PACK_DIR), "child")
"""Runs the command line of this package from its folder, installed or not."""
POLL_SECONDS = 0.2
"""Time between two questions whether to stop."""
STOP_SECONDS = 600.0
"""Patience with a child that was asked to stop: it may be loading a model, or writing a checkpoint of 10 GB."""
NUM_LAST_LINES = 12
"""Lines of a child's log that are shown when it ends without a word."""
ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""ComfyUI sets its own allocator there, which is not for the child."""


def run_in_child(
    task: Mapping[str, Any],
    *,
    emit: Callable[[Event], None],
    should_stop: Callable[[], bool],
    take_requests: Callable[[str], frozenset[Request]],
    command: Iterable[str] = COMMAND,
) -> Any:
    """Do a task in a process of its own, and wait for it.

    Args:
        task: What cli/child.py reads, as JSON's types.
        emit: Takes the events that the child sends.
        should_stop: Asked several times a second; the child is told.
        take_requests: Gives what was asked of a run since the last call; the child is told.
        command: What is started.

    Returns:
        The result, as JSON's types.

    Raises:
        StopTraining: The child stopped when it was asked to.
        TrainerError: The child says what is wrong, or it ended without a word.
        ModuleNotFoundError: The child lacks a package.
    """
    child = subprocess.Popen(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(os.environ),
        # Ctrl-C in a terminal is for the parent, who asks the child to stop; Windows would open a console too.
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) | getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    log: deque[str] = deque(maxlen=NUM_LAST_LINES)
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threads = [
        threading.Thread(target=_pass_on_log, args=(child.stderr, log), daemon=True),
        threading.Thread(target=_read_lines, args=(child.stdout, lines), daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        _say(child.stdin, json.dumps(task))
        answer = _listen(child, lines, emit, should_stop, take_requests)
    finally:
        _end(child)
        for thread in threads:
            thread.join(timeout=STOP_SECONDS)
    return _result_of(answer, child.returncode, log)


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The child's variables: the parent's, less the allocator that ComfyUI chose for itself."""
    own = dict(environment)
    for name in ALLOCATOR_VARIABLES:
        parts = [part for part in own.pop(name, "").split(",") if part and not part.startswith("backend:")]
        if parts:
            own[name] = ",".join(parts)
    return {**own, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}


def _listen(
    child: subprocess.Popen[bytes],
    lines: queue.SimpleQueue[bytes | None],
    emit: Callable[[Event], None],
    should_stop: Callable[[], bool],
    take_requests: Callable[[str], frozenset[Request]],
) -> dict[str, Any] | None:
    """The child's last word, or None if it ended without one; on the way, its events and what it is asked."""
    assert child.stdin is not None
    answer, runs, asked_at = None, dict[str, None](), None
    while True:
        try:
            line = lines.get(timeout=POLL_SECONDS)
            if line is None:
                return answer
            message = json.loads(line)
            if "event" in message:
                event = Event(**message["event"])
                runs[event.run] = None
                emit(event)
            else:
                answer = message
        except queue.Empty:
            pass
        if asked_at is None and should_stop():
            asked_at = time.monotonic()
            _say(child.stdin, "stop")
        if asked_at is not None and time.monotonic() - asked_at > STOP_SECONDS:
            child.kill()
        for request in {request for run in runs for request in take_requests(run)}:
            _say(child.stdin, request)


def _say(pipe: IO[bytes], text: str) -> None:
    """Write a line; a child that is gone says so by its exit."""
    with suppress(OSError):
        pipe.write(f"{text}\n".encode())
        pipe.flush()


def _end(child: subprocess.Popen[bytes]) -> None:
    """Let the child end: the pipe's end asks it to, should it still be at work."""
    assert child.stdin is not None
    with suppress(OSError):
        child.stdin.close()
    try:
        child.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _read_lines(pipe: IO[bytes], lines: queue.SimpleQueue[bytes | None]) -> None:
    for line in pipe:
        lines.put(line)
    lines.put(None)


def _pass_on_log(pipe: IO[bytes], log: deque[str]) -> None:
    """Show what the child logs as if it were the parent's, and keep the end."""
    for line in pipe:
        text = line.decode("utf-8", errors="replace").rstrip()
        log.append(text)
        logger.info("%s", text)


def _result_of(answer: Mapping[str, Any] | None, status: int, log: Iterable[str]) -> Any:
    if answer is None:
        raise TrainerError(
            f"the process that trained ended without a word (status {status}); queue the same job again to go on from"
            " its last checkpoint\n" + "\n".join(log)
        )
    if "result" in answer:
        return answer["result"]
    if "stopped" in answer:
        raise StopTraining
    raise _error_of(answer["error"])


def _error_of(error: Mapping[str, Any]) -> Exception:
    kind, message = error["kind"], error["message"]
    if kind == "CacheDamagedError":
        return CacheDamagedError(message, cache=error["cache"])
    if kind == "ModuleNotFoundError":
        return ModuleNotFoundError(message, name=error["name"])
    return TrainerError(message)
