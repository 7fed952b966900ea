"""The running average of weights: hand values, precision, and leaving the weights alone."""

from __future__ import annotations

import pytest
import torch
from lumina2_trainer.trainer_core.training.weight_views import Ema, ema_decay
from torch import nn

CPU = torch.device("cpu")


def parameters_of(dtype: torch.dtype, value: float = 0.0) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.full((3, 5), value, dtype=dtype)) for name in ("first", "second")}


def follow(parameters: dict[str, nn.Parameter], ema: Ema, steps: range, value: float) -> None:
    for step in steps:
        for parameter in parameters.values():
            parameter.data.fill_(value)
        ema.update(parameters, step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_average_follows_the_weights_at_its_rate(dtype: torch.dtype) -> None:
    parameters = parameters_of(dtype)
    ema = Ema(parameters, decay=0.999, step_interval=1, device=CPU)
    follow(parameters, ema, range(20001, 20501), 1.0)
    # In bfloat16 an average near 1/4 could not change by the 0.0007 of a step.
    for average in ema.average.values():
        torch.testing.assert_close(average, torch.full_like(average, 1 - 0.999**500), rtol=1e-5, atol=0)


def test_first_updates_forget_the_start() -> None:
    assert [ema_decay(0.999, step, 1) for step in (1, 2, 90, 8991, 20000)] == pytest.approx(
        [2 / 11, 3 / 12, 0.91, 8992 / 9001, 0.999]
    )
    parameters = parameters_of(torch.float32)
    ema = Ema(parameters, decay=0.999, step_interval=1, device=CPU)
    follow(parameters, ema, range(1, 3), 1.0)
    assert ema.average["first"][0, 0].item() == pytest.approx(1 - 2 / 11 * 3 / 12)


def test_rare_updates_look_back_equally_far() -> None:
    averages = []
    for step_interval in (1, 10):
        parameters = parameters_of(torch.float32)
        ema = Ema(parameters, decay=0.99, step_interval=step_interval, device=CPU)
        follow(parameters, ema, range(20001, 20101), 1.0)
        averages.append(ema.average["second"][0, 0].item())
    assert averages == pytest.approx([1 - 0.99**100] * 2, rel=1e-4)


def test_rare_updates_come_at_multiples_of_their_interval_and_count_themselves() -> None:
    parameters = parameters_of(torch.float32)
    ema = Ema(parameters, decay=0.9999, step_interval=5, device=CPU)
    seen = []
    for step in range(1, 12):
        follow(parameters, ema, range(step, step + 1), 1.0)
        seen.append(ema.average["first"][0, 0].item())
    first, second = 1 - 2 / 11, 1 - 2 / 11 * 3 / 12  # an update leaves (1 + n) / (10 + n)
    assert seen == pytest.approx([0.0] * 4 + [first] * 5 + [second] * 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_average_is_put_to_use_and_the_weights_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    parameters = {"weight": nn.Parameter(torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).to(dtype))}
    ema = Ema(parameters, decay=0.5, step_interval=1, device=CPU)
    ema.average["weight"].mul_(2)
    before, place = parameters["weight"].detach().clone(), parameters["weight"].data_ptr()

    def look_and_be_stopped() -> None:
        with ema.in_use(parameters):
            assert torch.equal(parameters["weight"], (2 * before.float()).to(dtype))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look_and_be_stopped()
    assert torch.equal(parameters["weight"], before)
    assert parameters["weight"].data_ptr() == place  # CUDA graphs read it there
