"""Run by two processes at once: every way in which they talk."""

from __future__ import annotations

import pytest
import torch
from lumina2_trainer.trainer_core import processes as module
from lumina2_trainer.trainer_core.errors import OtherProcessFailed, StopTraining, TrainerError
from lumina2_trainer.trainer_core.processes import Processes, joined
from torch import nn


def check_values(here: Processes) -> None:
    index = here.index
    assert here.gather(("from", index)) == [("from", 0), ("from", 1)]
    assert list(here.share(range(5))) == [[0, 2, 4], [1, 3]][index]
    assert here.any_of(index == 1) and not here.any_of(False)
    assert here.from_main(lambda: f"made by {index}") == "made by 0"
    assert here.is_everywhere(torch.tensor(float(index))).item() == 0
    assert here.is_everywhere(torch.tensor(1.0)).item() == 1


def check_tensors(here: Processes) -> None:
    index = here.index
    gradients = [
        torch.full((3, 4), float(index)),
        torch.arange(6.0).view(2, 3).t() * (1 + index),  # not contiguous
        torch.full((5,), 2.0 * index, dtype=torch.bfloat16),
        torch.ones(2**10) if index == 0 else None,
    ]
    shapes = [(3, 4), (3, 2), (5,), (2**10,)]
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    parameters[2] = nn.Parameter(parameters[2].bfloat16())
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    here.average_gradients(parameters)
    expected = [
        torch.full((3, 4), 0.5),
        torch.arange(6.0).view(2, 3).t() * 1.5,
        torch.ones(5, dtype=torch.bfloat16),
        torch.full((2**10,), 0.5),
    ]
    for parameter, mean in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, mean, rtol=0, atol=0)
    parameter = nn.Parameter(torch.full((4,), float(index)))
    here.take_from_main([parameter])
    assert torch.equal(parameter.detach(), torch.zeros(4))


def fail_in_second(here: Processes) -> None:
    with here.failing_together():
        if here.index == 1:
            raise ValueError("mine")


def check_failures(here: Processes) -> None:
    def fail() -> None:
        raise TrainerError("too little of everything")

    def stop() -> None:
        raise StopTraining

    kind = TrainerError if here.is_main else OtherProcessFailed
    with pytest.raises(kind, match="too little of everything"):
        here.from_main(fail)
    with pytest.raises(StopTraining):
        here.from_main(stop)
    with pytest.raises(OtherProcessFailed if here.is_main else ValueError):
        fail_in_second(here)
    with here.failing_together():
        pass


if __name__ == "__main__":
    module.MAX_BYTES_AT_ONCE = 2**7  # so that there are several pieces
    with joined(torch.device("cpu")) as processes:
        assert processes.count == 2
        check_values(processes)
        check_tensors(processes)
        check_failures(processes)
        print("as it should be", flush=True)
        processes.wait()
        if processes.is_main:  # the other one leaves
            with pytest.raises(OtherProcessFailed, match="another process is gone"):
                processes.wait()
