"""Every optimizer of the registry by its contract: learns, resumes exactly, decays matrices only, minds settings."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.training.checkpoints import load_checkpoint, save_checkpoint
from lumina2_trainer.trainer_core.training.optim.averaging import usable_weights
from lumina2_trainer.trainer_core.training.optim.optimizers import (
    OPTIMIZERS,
    check_optimizer,
    check_optimizer_device,
    make_optimizer,
)
from lumina2_trainer.trainer_core.training.optim.settings import OptimizerSettings
from lumina2_trainer.trainer_core.training.updates import UpdateAfterBackward
from torch import Tensor, nn

from .test_rounded_adamw import final_loss, small_network

CPU = torch.device("cpu")
RATES = {"prodigy": 1.0, "lion": 1e-3, "muon": 3e-3}
NUM_STEPS = {"prodigy": 300}
"""It has to find its rate first, from 1e-6 on."""
HERE = [name for name, kind in OPTIMIZERS.items() if not kind.devices]


def rate_of(name: str) -> float:
    return RATES.get(name, 1e-2)


def make(name: str, network: nn.Module, settings: OptimizerSettings | None = None) -> torch.optim.Optimizer:
    parameters = dict(network.named_parameters())
    return make_optimizer(
        name, parameters, learning_rate=rate_of(name), settings=settings or OptimizerSettings(), seed=7
    )


def losses_of(network: nn.Module, step: int) -> Tensor:
    """A fixed linear map is to be learned."""
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(32, 32, generator=generator)
    first = next(network.parameters())
    inputs = inputs.to(first.device)
    return (network(inputs.to(first.dtype)).float() - inputs[:, :8]).square().mean(-1)


def train(name: str, network: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    update = UpdateAfterBackward(dict(network.named_parameters()), optimizer, 1.0)
    losses = []
    for step in steps:
        loss_B = losses_of(network, step)
        update.prepare(loss_B.detach(), rate_of(name), is_last=True)
        loss_B.mean().backward()
        update.measure()
        update.apply()
        losses.append(loss_B.mean().item())
    return losses


def test_libraries_are_installed_for_tests() -> None:
    missing = [
        kind.package for kind in OPTIMIZERS.values() if kind.module and not importlib.util.find_spec(kind.module)
    ]
    assert missing == []


@pytest.mark.parametrize("name", HERE)
def test_loss_falls(name: str) -> None:
    network = small_network()
    losses = torch.tensor(train(name, network, make(name, network), range(NUM_STEPS.get(name, 80))))
    assert losses[-5:].mean() < 0.5 * losses[:2].mean()
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("name", HERE)
def test_stored_state_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    whole, part, later = small_network(), small_network(), small_network()
    expected = train(name, whole, make(name, whole), range(9))
    optimizer = make(name, part)
    train(name, part, optimizer, range(5))
    save(tmp_path / "step-5", part, optimizer)
    resumed = make(name, later)
    load_checkpoint(tmp_path / "step-5", dict(later.named_parameters()), resumed)
    assert train(name, later, resumed, range(5, 9)) == expected[5:]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), later.parameters(), strict=True))
    first, second = make(name, whole).param_groups, resumed.param_groups
    assert [len(group["params"]) for group in first] == [len(group["params"]) for group in second]


def save(folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    parameters = dict(network.named_parameters())
    save_checkpoint(folder, step=5, parameters=parameters, optimizer=optimizer, files=[])


@pytest.mark.parametrize("name", HERE)
def test_only_matrices_are_decayed(name: str) -> None:
    shrunk = {}
    for weight_decay in (0.0, 0.5):
        network = small_network()
        optimizer = make(name, network, OptimizerSettings(weight_decay=weight_decay))
        train(name, network, optimizer, range(1))
        shrunk[weight_decay] = dict(network.named_parameters())
    for key, plain in shrunk[0.0].items():
        decayed = shrunk[0.5][key]
        assert torch.equal(plain, decayed) == (plain.ndim == 1), key


@pytest.mark.parametrize("name", [name for name in HERE if OPTIMIZERS[name].trains_bf16])
def test_small_updates_of_bfloat16_weights_are_not_lost(name: str) -> None:
    def build(parameters: object, lr: float) -> torch.optim.Optimizer:
        named = {str(number): parameter for number, parameter in enumerate(parameters)}  # type: ignore[call-overload]
        return make_optimizer(name, named, learning_rate=lr, settings=OptimizerSettings(), seed=0)

    rate = 3e-4 if name == "lion" else 3e-3
    exact = final_loss(torch.float32, build, learning_rate=rate)
    assert final_loss(torch.bfloat16, build, learning_rate=rate) == pytest.approx(exact, rel=0.1)


def test_averaged_weights_are_what_is_seen_and_the_run_goes_on_as_if_nobody_had_looked() -> None:
    network = small_network()
    optimizer = make("schedulefree", network)
    # The average by hand: z takes the steps, x is the mean of all z so far, weighted alike at a constant rate.
    mean = {}
    for step in range(6):
        train("schedulefree", network, optimizer, range(step, step + 1))
        for key, parameter in network.named_parameters():
            z = optimizer.state[parameter]["z"]
            mean[key] = z.clone() if step == 0 else mean[key] + (z - mean[key]) / (step + 1)
    before = {key: parameter.detach().clone() for key, parameter in network.named_parameters()}
    with usable_weights(optimizer, dict(network.named_parameters())):
        for key, parameter in network.named_parameters():
            torch.testing.assert_close(parameter.detach(), mean[key], rtol=1e-5, atol=1e-6)
            assert not torch.equal(parameter, before[key])
    assert all(torch.equal(parameter, before[key]) for key, parameter in network.named_parameters())
    train("schedulefree", network, optimizer, range(6, 7))


def test_beta_and_epsilon_are_the_optimizers_own_unless_chosen() -> None:
    network = small_network()
    own = make("lion", network).param_groups[0]
    assert (own["beta1"], own["beta2"]) == (0.9, 0.99)
    chosen = make("adamw", network, OptimizerSettings(beta1=0.5, beta2=0.6, epsilon=1e-3)).param_groups[0]
    assert (chosen["betas"], chosen["eps"]) == ((0.5, 0.6), 1e-3)
    assert make("muon", network).param_groups[0]["momentum"] == 0.95


REFUSED = [
    ("lion", {"epsilon": 1e-6}, "epsilon is 1e-06, which optimizer lion does not have: set it to -1"),
    ("adafactor", {"beta1": 0.9}, "beta1 is 0.9, which optimizer adafactor does not have"),
    ("muon", {"beta2": 0.99}, "beta2 is 0.99, which optimizer muon does not have"),
    ("prodigy", {}, "learning_rate is 0.0001, but prodigy finds the rate itself .* set it to 1"),
    ("schedulefree", {"lr_schedule": "cosine"}, "lr_schedule is cosine, but schedulefree replaces schedules"),
    ("schedulefree", {"beta1": 0.0}, "beta1 is 0, with which schedulefree does not average"),
    ("adamw", {"optimizer_state": "host"}, '"host", which adamw cannot do: choose optimizer adamw8bit or adamw_bf16'),
]


@pytest.mark.parametrize(("name", "settings", "message"), REFUSED)
def test_settings_that_would_do_nothing_are_refused(name: str, settings: dict, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        check_optimizer(name, 1e-4, OptimizerSettings(**settings))


def test_what_is_missing_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrainerError, match="lion needs the package torch-optimi: run `python -m pip install torch-op"):
        check_optimizer("lion", 1e-4, OptimizerSettings())
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(TrainerError, match=r"muon needs a PyTorch that has torch\.optim\.Muon, and this is 2\."):
        check_optimizer("muon", 1e-4, OptimizerSettings())


def test_weights_and_devices_it_cannot_train_are_refused() -> None:
    with pytest.raises(TrainerError, match="optimizer is adamw, whose small updates bf16 weights would lose: choose"):
        check_optimizer("adamw", 1e-4, OptimizerSettings(), full_precision="bf16")
    with pytest.raises(TrainerError, match=r"adamw8bit_bnb needs a GPU \(cuda or xpu\), and this run is on cpu"):
        check_optimizer_device("adamw8bit_bnb", CPU)
    for name in HERE:
        check_optimizer(name, 1.0, OptimizerSettings())
        check_optimizer_device(name, CPU)


@pytest.mark.parametrize("beta", [-0.5, 0.99999])
def test_numbers_out_of_range_are_refused(beta: float) -> None:
    with pytest.raises(TrainerError, match="beta1 is"):
        OptimizerSettings(beta1=beta)


@pytest.mark.parametrize("value", [0.0, 10.0])
def test_adafactor_steps_by_the_learning_rate_whatever_the_size_of_a_weight(value: float) -> None:
    weight = nn.Parameter(torch.full((3, 5), value))
    settings = OptimizerSettings(weight_decay=0.0)
    optimizer = make_optimizer("adafactor", {"weight": weight}, learning_rate=0.01, settings=settings, seed=0)
    weight.grad = torch.full_like(weight, 0.3)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full_like(weight, value - 0.01))


def prodigy_by_hand(rates: list[float]) -> list[float]:
    """A weight that starts at 0 and whose gradient is always 1, after each step of Prodigy (arXiv:2306.06101).

    Its estimate of the distance divides by gradients that count alike whatever the rate, so that warm-up, in which
    the weight hardly moves, does not raise it.
    """
    beta1, beta2 = 0.9, 0.999
    distance = start = 1e-6
    weight = mean = square = numerator = gradients = 0.0
    weights = []
    for step, rate in enumerate(rates, start=1):
        size = distance * rate * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        numerator = math.sqrt(beta2) * numerator - size * distance / start * weight
        gradients = math.sqrt(beta2) * gradients + distance * distance / start
        mean = beta1 * mean + (1 - beta1) * distance
        square = beta2 * square + (1 - beta2) * distance**2
        distance = max(distance, numerator / gradients)
        weight -= size * mean / (math.sqrt(square) + 1e-8 * distance)
        weights.append(weight)
    return weights


def test_prodigy_keeps_warm_up_out_of_its_estimate() -> None:
    rates = [0.125 * min(step, 8) for step in range(1, 31)]
    weight = nn.Parameter(torch.zeros(1, 1))
    settings = OptimizerSettings(weight_decay=0.0)
    optimizer = make_optimizer("prodigy", {"weight": weight}, learning_rate=1.0, settings=settings, seed=0)
    found = []
    for rate in rates:
        for group in optimizer.param_groups:
            group["lr"] = rate
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        found.append(weight.item())
    assert found == pytest.approx(prodigy_by_hand(rates), rel=1e-4)
