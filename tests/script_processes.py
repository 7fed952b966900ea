"""Run by two processes at once: every way in which they talk."""

from __future__ import annotations

import math

import pytest
import torch
from lumina2_trainer.trainer_core import processes as module
from lumina2_trainer.trainer_core.device import OutOfMemoryError, explained_out_of_memory
from lumina2_trainer.trainer_core.errors import OtherProcessFailed, StopTraining, TrainerError
from lumina2_trainer.trainer_core.processes import Processes, joined
from lumina2_trainer.trainer_core.training import updates
from lumina2_trainer.trainer_core.training.optim.rounded_adamw import RoundedAdamW
from torch import Tensor, nn

LEARNING_RATE = 1e-2


def check_values(here: Processes) -> None:
    index = here.index
    assert here.gather(("from", index)) == [("from", 0), ("from", 1)]
    assert list(here.share(range(5))) == [[0, 2, 4], [1, 3]][index]
    assert here.join(torch.arange(1.0 + index) + index, [1, 2]).tolist() == [0, 1, 2]
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


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


def losses_of(network: nn.Module, seed: int) -> Tensor:
    return network(torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))).square().mean(-1)


def expected_after(num_steps: int) -> list[Tensor]:
    """What one process makes of the mean of both gradients."""
    network = make_network()
    parameters = list(network.parameters())
    optimizer = RoundedAdamW(parameters, lr=LEARNING_RATE)
    for step in range(num_steps):
        both = [torch.autograd.grad(losses_of(network, 2 * step + index).mean(), parameters) for index in range(2)]
        for parameter, *gradients in zip(parameters, *both, strict=True):
            parameter.grad = (gradients[0] + gradients[1]) / 2
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def check_updates_in_backward(here: Processes) -> None:
    network = make_network()
    parameters = dict(network.named_parameters())
    optimizer = RoundedAdamW(parameters.values(), lr=0.0)
    update = updates.UpdateInBackward(parameters, optimizer, 0.0, here)
    most = 0
    for step in range(3):
        loss_B = losses_of(network, 2 * step + here.index)
        update.prepare(loss_B.detach(), LEARNING_RATE, is_last=True)
        loss_B.mean().backward()
        most = max(most, sum(p.grad.nbytes for p in network.parameters() if p.grad is not None))
        assert update.measure().isfinite()
        update.apply()
        assert all(parameter.grad is None for parameter in network.parameters())
    assert 0 < most <= updates.MAX_BYTES_UNDER_WAY + updates.SMALL_BYTES
    for parameter, expected in zip(network.parameters(), expected_after(3), strict=True):
        assert torch.equal(parameter.detach(), expected)


def check_loss_of_one_that_is_not_finite(here: Processes) -> None:
    network = make_network()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    parameters = dict(network.named_parameters())
    update = updates.UpdateInBackward(parameters, RoundedAdamW(parameters.values(), lr=0.0), 0.0, here)
    for _ in range(here.index):  # only the last pass of a step is for all
        update.prepare(torch.tensor([1.0, math.nan]), LEARNING_RATE, is_last=False)
    loss_B = losses_of(network, here.index)
    update.prepare(loss_B.detach(), LEARNING_RATE, is_last=True)
    loss_B.mean().backward()
    update.measure()
    assert update.discard() == "Nothing was updated"
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


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


def run_out_of_memory_in_second(here: Processes) -> None:
    if here.is_main:
        here.wait()
    with explained_out_of_memory("work", ["do less"]), here.telling_failure():
        raise MemoryError  # told here, and not again as the error it becomes


def check_failure_outside_of_meetings(here: Processes) -> None:
    """The others learn of it at whatever meeting is their next."""
    for meet in (here.wait, lambda: here.gather(1), lambda: here.from_main(lambda: 1)):
        if here.is_main:
            with pytest.raises(OtherProcessFailed, match="process 1 failed: mine"):
                meet()
        else:
            with pytest.raises(ValueError, match="mine"), here.telling_failure():
                raise ValueError("mine")
    with pytest.raises(OtherProcessFailed if here.is_main else OutOfMemoryError), here.telling_failure():
        run_out_of_memory_in_second(here)
    with pytest.raises(TrainerError, match="same"), here.telling_failure():  # all know it by themselves
        raise TrainerError("the same in all")
    assert here.gather(here.index) == [0, 1]


if __name__ == "__main__":
    module.MAX_BYTES_AT_ONCE = 2**7  # so that there are several pieces
    updates.SMALL_BYTES, updates.MAX_BYTES_UNDER_WAY = 2**8, 2**10  # some gradients go together, some alone
    with joined(torch.device("cpu")) as processes:
        assert processes.count == 2
        check_values(processes)
        check_tensors(processes)
        check_updates_in_backward(processes)
        check_loss_of_one_that_is_not_finite(processes)
        check_failures(processes)
        check_failure_outside_of_meetings(processes)
        print("as it should be", flush=True)
        processes.wait()
        if processes.is_main:  # the other one leaves
            with pytest.raises(OtherProcessFailed, match="process 1 is gone: it was ended, or has left"):
                processes.wait()
