"""Run by two processes, the second of which is killed, frozen, or fails while the first waits for its tensors."""

from __future__ import annotations

import os
import signal
import sys
import threading

import pytest
import torch
from lumina2_trainer.trainer_core import presence
from lumina2_trainer.trainer_core.errors import OtherProcessFailed
from lumina2_trainer.trainer_core.processes import Processes, joined


def lose_second(here: Processes, signal_number: int, why: str) -> None:
    pids = here.gather(os.getpid())
    if here.index == 1:
        os.kill(os.getpid(), signal_number)
        return
    with pytest.raises(OtherProcessFailed, match=f"process 1 is gone: {why}"):
        here.wait()
    print("noticed", flush=True)
    if signal_number == signal.SIGSTOP:
        os.kill(pids[1], signal.SIGCONT)


def fail_in_second(here: Processes) -> None:
    assert here.presence is not None
    has_aborted = threading.Event()
    here.presence.abort = has_aborted.set
    if here.index == 1:
        with pytest.raises(ValueError, match="mine"), here.telling_failure(sends_tensors=True):
            raise ValueError("mine")
    else:
        assert has_aborted.wait(20)  # as if for tensors
        with pytest.raises(OtherProcessFailed, match="process 1 failed: mine"), here.telling_failure():
            here.check()
    assert here.gather(here.index) == [0, 1]
    print("noticed", flush=True)


if __name__ == "__main__":
    presence.PATIENCE, presence.GRACE = 3, 2
    signal.signal(signal.SIGTERM, lambda *_: None)  # the launcher's, after one was killed
    with joined(torch.device("cpu")) as processes:
        match sys.argv[1]:
            case "killed":
                lose_second(processes, signal.SIGKILL, "it was ended")
            case "frozen":
                lose_second(processes, signal.SIGSTOP, "no sign of life for 3 seconds")
            case "failed":
                fail_in_second(processes)
