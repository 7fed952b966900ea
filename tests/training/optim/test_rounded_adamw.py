"""AdamW with small moments against PyTorch's in float32: loss, small updates, exact resume, refused updates."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable

import pytest
import torch
from lumina2_trainer.trainer_core.training.optim.adamw_8bit_numbers import Guard, new_guard_tensors
from lumina2_trainer.trainer_core.training.optim.moment_stores import HostMoments
from lumina2_trainer.trainer_core.training.optim.rounded_adamw import MOMENT_FORMATS, RoundedAdamW
from torch import Tensor, nn

Maker = Callable[..., torch.optim.Optimizer]
MakeRounded = Callable[..., RoundedAdamW]


@pytest.fixture(params=MOMENT_FORMATS)
def rounded(request: pytest.FixtureRequest) -> MakeRounded:
    """The optimizer with each format of its moments."""
    return functools.partial(RoundedAdamW, moments=request.param)


def small_network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Linear(32, 128), nn.SiLU(), nn.Linear(128, 96), nn.SiLU(), nn.Linear(96, 8))
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5
    return network.to(dtype)


def final_loss(dtype: torch.dtype, make: Maker, num_steps: int = 600, learning_rate: float = 3e-3) -> float:
    """Loss of a small network after learning a teacher from inputs of very different size."""
    network, generator = small_network(dtype), torch.Generator().manual_seed(1)
    inputs = torch.randn(1024, 32, generator=generator) * torch.logspace(-2, 1, 32)
    weights = torch.randn(32, 8, generator=generator) * 32**-0.5
    targets = torch.tanh(inputs @ weights)
    optimizer = make(network.parameters(), lr=learning_rate)
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        index = torch.randint(0, 1024, (64,), generator=generator)
        (network(inputs[index].to(dtype)).float() - targets[index]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return (network(inputs.to(dtype)).float() - targets).square().mean().item()


def test_loss_follows_float32_adamw_where_plain_bfloat16_falls_behind(rounded: MakeRounded) -> None:
    exact = final_loss(torch.float32, torch.optim.AdamW)
    assert final_loss(torch.float32, rounded) == pytest.approx(exact, rel=0.02)
    assert final_loss(torch.bfloat16, rounded) == pytest.approx(exact, rel=0.04)
    assert final_loss(torch.bfloat16, torch.optim.AdamW) > 1.15 * exact


def test_first_step_equals_adamw(rounded: MakeRounded) -> None:
    ours, theirs = small_network(), small_network()
    for network, make in ((ours, rounded), (theirs, torch.optim.AdamW)):
        optimizer = make(network.parameters(), lr=1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3)
        network(torch.ones(3, 32)).square().mean().backward()
        optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_updates_far_below_a_bfloat16_step_add_up(rounded: MakeRounded) -> None:
    # One step of bfloat16 at 1 is 2 ** -7; each update is a hundredth of that.
    weight = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = rounded([weight], lr=2**-7 / 100, weight_decay=0.0)
    for _ in range(500):
        weight.grad = torch.full_like(weight, -0.5)
        optimizer.step()
    drift = (weight.float() - 1).mean().item()
    assert drift == pytest.approx(500 * 2**-7 / 100, rel=0.02)


def test_weight_decay_alone_shrinks_bfloat16_weights_at_its_rate(rounded: MakeRounded) -> None:
    weight = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = rounded([weight], lr=1e-3, weight_decay=0.1)
    for _ in range(1000):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    assert weight.float().mean().item() == pytest.approx(math.exp(-0.1), rel=1e-3)


def test_squares_forget_at_their_rate() -> None:
    # Each step changes the mean square by a thousandth: rounding to the nearest of 256 codes would never change it.
    weight = nn.Parameter(torch.zeros(4096))
    optimizer = RoundedAdamW([weight], lr=0.0)
    generator = torch.Generator().manual_seed(0)
    loud = torch.ones(4096)
    for step in range(1500):
        loud[1:] = 1.0 if step < 500 else 0.03
        weight.grad = loud * torch.randn(4096, generator=generator).sign()
        optimizer.step()
    from lumina2_trainer.trainer_core.training.optim.moments import decode_square, split_moments

    moments = split_moments(optimizer.state[weight]["moments"])
    squares = decode_square(moments.square_KB, moments.square_scale_K).flatten()[1:]
    old, new = 1 - 0.999**500, 1 - 0.999**1000
    assert squares.mean().item() == pytest.approx(old * 0.999**1000 + new * 0.03**2, rel=0.03)


def test_bfloat16_squares_forget_at_their_rate() -> None:
    weight = nn.Parameter(torch.zeros(4096))
    optimizer = RoundedAdamW([weight], lr=0.0, moments="bf16")
    for step in range(1500):
        weight.grad = torch.full_like(weight, 1.0 if step < 500 else 0.03)
        optimizer.step()
    means, squares = optimizer.state[weight]["moments"].view(torch.bfloat16).chunk(2)
    assert means.float().mean().item() == pytest.approx(0.03, rel=1e-3)
    old, new = 1 - 0.999**500, 1 - 0.999**1000
    assert squares.float().mean().item() == pytest.approx(old * 0.999**1000 + new * 0.03**2, rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_state_on_host", [False, True])
def test_state_resumes_bit_for_bit(rounded: MakeRounded, dtype: torch.dtype, is_state_on_host: bool) -> None:
    def train(network: nn.Module, optimizer: RoundedAdamW, steps: range) -> None:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            network(torch.randn(5, 32, generator=generator).to(dtype)).float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    whole, part = small_network(dtype), small_network(dtype)
    train(whole, rounded(whole.parameters(), lr=1e-2, seed=3), range(6))
    first = rounded(part.parameters(), lr=1e-2, seed=3, is_state_on_host=is_state_on_host)
    train(part, first, range(4))
    second = rounded(part.parameters(), lr=1e-2, seed=3, is_state_on_host=is_state_on_host)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(part, second, range(4, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), part.parameters(), strict=True))


def guarded_update(weight: nn.Parameter, optimizer: RoundedAdamW, max_rms: float = math.inf) -> tuple[Tensor, Tensor]:
    is_finite, square_norm = new_guard_tensors(1, weight.device)
    guard = Guard(is_finite=is_finite, square_norm=square_norm, position=0, max_rms=max_rms)
    optimizer.start_step()
    optimizer.step_parameter(weight, guard)
    optimizer.end_step()
    return is_finite, square_norm


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_gradient_that_is_not_finite_changes_nothing(rounded: MakeRounded, bad: float) -> None:
    weight = nn.Parameter(torch.ones(40, 77))
    optimizer = rounded([weight], lr=0.1)
    weight.grad = torch.ones_like(weight)
    guarded_update(weight, optimizer)
    before, moments = weight.detach().clone(), optimizer.state[weight]["moments"].clone()
    weight.grad[3, 5] = bad
    is_finite, _ = guarded_update(weight, optimizer)
    assert is_finite.tolist() == [1.0, 0.0]
    assert torch.equal(weight, before) and torch.equal(optimizer.state[weight]["moments"], moments)


def test_sudden_gradients_move_the_weight_less(rounded: MakeRounded) -> None:
    moved = []
    for max_rms in (math.inf, 1.0):
        weight = nn.Parameter(torch.zeros(40, 77))
        optimizer = rounded([weight], lr=0.1, betas=(0.0, 0.99), weight_decay=0.0)
        for size in (*[1.0] * 20, 30.0):
            before = weight.detach().clone()
            weight.grad = torch.full_like(weight, size)
            _, square_norm = guarded_update(weight, optimizer, max_rms)
        assert square_norm.item() == pytest.approx(900 * 40 * 77)
        moved.append((weight - before).abs().mean().item())
    correction = 1 - 0.99**21
    rms = 30 / math.sqrt((0.99 * (1 - 0.99**20) + 0.01 * 900) / correction)
    assert moved[0] == pytest.approx(0.1 * rms, rel=0.02)
    assert moved[1] == pytest.approx(0.1, rel=0.02)


def test_host_moments_come_back_whole_in_any_order() -> None:
    sizes = [300, 64, 1000, 5, 200, 77, 640, 12]
    store = HostMoments(sizes, torch.device("cpu"))
    buffers = [store.create(size, torch.device("cpu")) for size in sizes]
    expected = [0] * len(sizes)
    orders = [range(8), range(8), [7, 3, 1, 0, 2, 4, 6, 5], [0, 1], range(8), reversed(range(8)), [6, 2], range(8)]
    for step, order in enumerate(orders, start=1):
        store.start_step()
        for index in order:
            with store.visit(buffers[index]) as content:
                assert len(content) == sizes[index] and (content == expected[index]).all(), (step, index)
                expected[index] = 10 * step + index
                content.fill_(expected[index])
    store.synchronize()
    assert all((buffer == value).all() for buffer, value in zip(buffers, expected, strict=True))
