"""Updating within the backward pass: the same numbers, no gradients kept, and nothing touched after a bad loss."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import pytest
import torch
from lumina2_trainer.trainer_core.training.optim.rounded_adamw import MOMENT_FORMATS, RoundedAdamW
from lumina2_trainer.trainer_core.training.updates import UpdateAfterBackward, UpdateInBackward, WeightUpdate
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .optim.test_rounded_adamw import small_network

Made = tuple[nn.Sequential, RoundedAdamW, WeightUpdate]


def make(kind: type, limit: float = 0.0, **settings: Any) -> Made:
    network = small_network()
    parameters = dict(network.named_parameters())
    optimizer = RoundedAdamW(parameters.values(), lr=0.0, **settings)
    return network, optimizer, kind(parameters, optimizer, limit)


def losses_of(network: nn.Module, seed: int) -> Tensor:
    inputs = torch.randn(6, 32, generator=torch.Generator().manual_seed(seed))
    return checkpoint(network, inputs, use_reentrant=False).square().mean(-1)


def run_step(made: Made, step: int, num_batches: int = 1) -> float:
    network, _, update = made
    for number in range(num_batches):
        loss_B = losses_of(network, 10 * step + number)
        update.prepare(loss_B.detach(), 1e-2, is_last=number == num_batches - 1)
        (loss_B.mean() / num_batches).backward()
    norm = update.measure().item()
    update.apply()
    return norm


def weights_of(made: Made) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in made[0].parameters()]


@pytest.mark.parametrize("num_batches", [1, 3])
@pytest.mark.parametrize("is_state_on_host", [False, True])
@pytest.mark.parametrize("moments", MOMENT_FORMATS)
def test_both_ways_give_the_same_weights(num_batches: int, is_state_on_host: bool, moments: str) -> None:
    after = make(UpdateAfterBackward, moments=moments)
    within = make(UpdateInBackward, is_state_on_host=is_state_on_host, moments=moments)
    for step in range(4):
        norms = [run_step(made, step, num_batches) for made in (after, within)]
        assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(weights_of(after), weights_of(within), strict=True))


def test_each_gradient_is_gone_before_the_next_comes() -> None:
    network, _, update = make(UpdateInBackward)
    alive: list[int] = []
    for parameter in network.parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(p.grad is not None for p in network.parameters()))
        )
    loss_B = losses_of(network, 0)
    update.prepare(loss_B.detach(), 1e-2, is_last=True)
    loss_B.mean().backward()
    assert alive == [0] * 6


def test_nothing_is_updated_after_a_loss_that_is_not_finite() -> None:
    made = make(UpdateInBackward)
    run_step(made, 0)
    before, (network, optimizer, update) = weights_of(made), made
    for number in range(2):
        loss_B = losses_of(network, number)
        if number == 0:
            loss_B = loss_B * torch.tensor([1.0, math.nan, 1.0, 1.0, 1.0, 1.0])
        update.prepare(loss_B.detach(), 1e-2, is_last=number == 1)
        loss_B.mean().backward()
    assert not math.isfinite(update.measure().item())
    assert not update.is_consistent
    assert update.discard() == "Nothing was updated"
    assert update.is_consistent
    assert all(torch.equal(a, b) for a, b in zip(before, weights_of(made), strict=True))
    assert {state["step"] for state in optimizer.state.values()} == {1}


def test_gradient_that_is_not_finite_is_named_with_what_was_done_before_it() -> None:
    made = make(UpdateInBackward)
    before, (network, _, update) = weights_of(made), made
    network[2].weight.register_hook(lambda grad: grad * math.inf)
    loss_B = losses_of(network, 0)
    update.prepare(loss_B.detach(), 1e-2, is_last=True)
    loss_B.mean().backward()
    assert not math.isfinite(update.measure().item())
    message = update.discard()
    # Backward order: 4.bias, 4.weight, 2.bias, and then the bad one; all behind it stay as they were.
    assert message.startswith("The gradient of 2.weight was the first; 3 of 6 weights were updated before it")
    assert not update.is_consistent
    is_equal = [torch.equal(a, b) for a, b in zip(before, weights_of(made), strict=True)]
    assert is_equal == [True, True, True, False, False, False]


def test_gradients_beyond_their_running_mean_move_the_weights_less() -> None:
    free, limited = make(UpdateInBackward, 0.0), make(UpdateInBackward, 0.1)
    moved = []
    for made in (free, limited):
        before = weights_of(made)
        run_step(made, 0)
        moved.append(torch.stack([(a - b).norm() for a, b in zip(before, weights_of(made), strict=True)]))
    torch.testing.assert_close(moved[1], 0.1 * moved[0], rtol=1e-3, atol=0)


def test_a_model_is_freed_with_its_update() -> None:
    made = make(UpdateInBackward)
    run_step(made, 0)
    gc.disable()
    try:
        update = weakref.ref(made[2])
        del made
        assert update() is None
    finally:
        gc.enable()


def test_a_gradient_that_comes_in_parts_is_never_taken_for_a_whole_one() -> None:
    network, _, update = make(UpdateInBackward)
    loss_B = losses_of(network, 0)
    update.prepare(loss_B.detach(), 1e-2, is_last=True)
    loss_B[:3].mean().backward(retain_graph=True)
    with pytest.raises(AssertionError, match=r"the gradient of 4\.bias came in parts"):
        losses_of(network, 1).mean().backward()


@pytest.mark.parametrize(("limit", "share"), [(0.0, 1.0), (2.0, 2 / 13), (20.0, 1.0)])
def test_gradients_beyond_the_limit_are_shortened_together_and_their_own_length_is_told(
    limit: float, share: float
) -> None:
    gradients = {"first": torch.tensor([3.0, 4.0]), "second": torch.tensor([[12.0], [0.0]])}  # 13 long together
    parameters = {name: nn.Parameter(torch.zeros_like(gradient)) for name, gradient in gradients.items()}
    update = UpdateAfterBackward(parameters, torch.optim.SGD(parameters.values(), lr=1.0), limit)
    loss = sum((parameters[name] * gradients[name]).sum() for name in gradients)
    assert isinstance(loss, Tensor)
    update.prepare(loss.detach()[None], 0.5, is_last=True)
    loss.backward()
    assert update.measure().item() == pytest.approx(13.0)
    update.apply()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.detach(), -0.5 * share * gradients[name])
