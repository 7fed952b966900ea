"""Whether the processes that work together are all still there: each shows a sign of life every second, and all watch.

One that is killed, frozen, or out of memory would keep the others waiting for good, for its word or for its tensors.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import torch.distributed as dist

from .errors import OtherProcessFailed

SECONDS_BETWEEN_SIGNS = 1.0
PATIENCE = 45
"""Signs of a process's own in which it sees none of another, until it gives that one up. The main one may be busy for
long, but its sign comes from a thread. A launcher ends a frozen process 30 seconds after the others have ended."""
GRACE = 10
"""Signs in which a process must come to a meeting after another failed, else it is taken to wait for tensors."""
MAX_PAUSE = 0.02
"""Seconds between two looks whether all have come."""
FAILURE = "failure"


class Presence:
    """Of this process and the others, which tell one another by the launcher's store."""

    def __init__(self, index: int, count: int, abort: Callable[[], None]) -> None:
        """
        Args:
            index: Of this process.
            count: Of all.
            abort: Ends every wait for tensors of others, also that of the device.
        """
        self.gone: dict[int, str] = {}
        """Who will not come again, and why."""
        self.abort = abort
        self._index, self._count = index, count
        self._failure = ""
        """Why tensors that this process waits for will not come."""
        self._num_meetings = 0
        self._store, self._watched = _connect(), _connect()  # a client that waits lets no other thread use it
        self._store.set(f"place/{index}", f"{os.environ.get('GROUP_RANK', index)} {os.getpid()}")
        places = [self._store.get(f"place/{other}").decode().split() for other in range(count)]
        self._pids = {i: int(pid) for i, (group, pid) in enumerate(places) if group == places[index][0]}
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="presence", daemon=True)

    def start(self) -> None:
        """Show signs of life, and look for those of the others."""
        self._thread.start()

    def end(self) -> None:
        """Others will soon take this process for gone."""
        self._has_ended.set()
        self._thread.join()

    def arrive(self) -> None:
        """Wait until all have come to this meeting.

        Raises:
            OtherProcessFailed: One will not come.
        """
        self._num_meetings += 1
        number = self._num_meetings
        keys = [f"meeting/{number}/{index}" for index in range(self._count)]
        started = time.monotonic()
        self._store.set(keys[self._index], "")
        while not self._store.check(keys):
            for why in self.gone.values():
                raise OtherProcessFailed(why)
            time.sleep(min(MAX_PAUSE, (time.monotonic() - started) / 10))
        self._store.delete_key(f"meeting/{number - 2}/{self._index}")  # all have left that one

    def check(self) -> None:
        """Raise OtherProcessFailed if what came by tensors may not be theirs: another process is gone, or failed."""
        for why in (*self.gone.values(), *[self._failure] * bool(self._failure)):
            raise OtherProcessFailed(why)

    def tell_failure(self, why: str) -> None:
        """Tell those who wait for tensors of this process, and so do not come to its next meeting."""
        with suppress(RuntimeError):
            self._store.set(FAILURE, f"{self._num_meetings + 1} {why}")

    def _watch(self) -> None:
        others = [index for index in range(self._count) if index != self._index]
        signs, silence = dict.fromkeys(others, -1), dict.fromkeys(others, 0)
        num_awaited = 0
        while not self._has_ended.wait(SECONDS_BETWEEN_SIGNS):
            try:
                self._watched.add(f"sign/{self._index}", 1)
                for other in others:
                    sign = self._watched.add(f"sign/{other}", 0)
                    silence[other] = silence[other] + 1 if sign == signs[other] else 0
                    signs[other] = sign
                has_failed = self._watched.check([FAILURE])
            except RuntimeError as error:
                self._give_up({other: f"{_name(other)} is gone: the launcher's store is ({error})" for other in others})
                return
            lost = {other: why for other in others if (why := self._why_gone(other, silence[other]))}
            if lost:
                self._give_up(lost)
                return
            if has_failed and not self._failure:
                meeting, _, why = self._watched.get(FAILURE).decode().partition(" ")
                num_awaited = num_awaited + 1 if self._num_meetings < int(meeting) else 0
                if num_awaited > GRACE:
                    self._failure = why
                    self.abort()

    def _why_gone(self, other: int, silence: int) -> str:
        if other in self._pids and not _is_running(self._pids[other]):
            return f"{_name(other)} is gone: it was ended, or has left"
        if silence >= PATIENCE:
            return f"{_name(other)} is gone: no sign of life for {silence * SECONDS_BETWEEN_SIGNS:.0f} seconds"
        return ""

    def _give_up(self, lost: dict[int, str]) -> None:
        self.gone = lost  # before a wait for tensors ends, whose result nobody may take for theirs
        self.abort()


def _name(index: int) -> str:
    return "the main process" if index == 0 else f"process {index}"


def _is_running(pid: int) -> bool:
    """Whether a process of this machine has not ended."""
    if os.name != "posix":  # there os.kill would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _connect() -> dist.Store:
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"lumina2_trainer/{attempt}", dist.TCPStore(host, port, is_master=False))
