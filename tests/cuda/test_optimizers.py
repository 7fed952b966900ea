"""Every optimizer on a GPU, where some have other code: Triton's, bitsandbytes' and PyTorch's fused kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.training.checkpoints import load_checkpoint
from lumina2_trainer.trainer_core.training.optim.optimizers import OPTIMIZERS
from lumina2_trainer.trainer_core.training.optim.rounded_adamw import RoundedAdamW
from lumina2_trainer.trainer_core.training.updates import UpdateInBackward
from lumina2_trainer.trainer_core.training.weight_views import Ema

from ..training.optim.test_optimizers import NUM_STEPS, losses_of, make, save, train
from ..training.optim.test_rounded_adamw import small_network

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
CUDA = torch.device("cuda")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_loss_falls(name: str) -> None:
    network = small_network().to(CUDA)
    losses = torch.tensor(train(name, network, make(name, network), range(NUM_STEPS.get(name, 80))))
    assert losses[-5:].mean() < 0.5 * losses[:2].mean()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stored_state_resumes(name: str, tmp_path: Path) -> None:
    whole, part, later = (small_network().to(CUDA) for _ in range(3))
    expected = train(name, whole, make(name, whole), range(9))
    optimizer = make(name, part)
    train(name, part, optimizer, range(5))
    save(tmp_path / "step-5", part, optimizer)
    resumed = make(name, later)
    load_checkpoint(tmp_path / "step-5", dict(later.named_parameters()), resumed)
    assert train(name, later, resumed, range(5, 9)) == pytest.approx(expected[5:], rel=1e-4)


@pytest.mark.parametrize("is_state_on_host", [False, True])
def test_bfloat16_moments_in_the_backward_pass_give_the_same_weights(is_state_on_host: bool) -> None:
    networks = [small_network(torch.bfloat16).to(CUDA) for _ in range(2)]
    plain = RoundedAdamW(networks[0].parameters(), lr=1e-2, moments="bf16")
    parameters = dict(networks[1].named_parameters())
    within = RoundedAdamW(parameters.values(), lr=1e-2, moments="bf16", is_state_on_host=is_state_on_host)
    update = UpdateInBackward(parameters, within, 0.0)
    for step in range(4):
        losses_of(networks[0], step).mean().backward()
        plain.step()
        plain.zero_grad()
        loss_B = losses_of(networks[1], step)
        update.prepare(loss_B.detach(), 1e-2, is_last=True)
        loss_B.mean().backward()
        assert update.measure().isfinite()
        update.apply()
    for a, b in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("ema_device", ["cuda", "cpu"])
def test_average_is_the_same_on_either_device(ema_device: str) -> None:
    network = small_network().to(CUDA)
    parameters = dict(network.named_parameters())
    ema = Ema(parameters, decay=0.9, step_interval=1, device=torch.device(ema_device))
    expected = {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}
    for step in range(100, 110):
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.add_(0.1)
        ema.update(parameters, step)
        for name, parameter in parameters.items():
            expected[name].lerp_(parameter.detach().cpu(), 0.1)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with ema.in_use(parameters):
        for name, parameter in parameters.items():
            torch.testing.assert_close(parameter.detach().cpu(), expected[name], rtol=1e-5, atol=1e-6)
    assert all(torch.equal(parameter, before[name]) for name, parameter in parameters.items())
