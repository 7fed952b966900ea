"""The layer computes what peft's own does."""

from __future__ import annotations

import copy

import pytest
import torch
from lumina2_trainer.trainer_core.adapters.fused_lora import FusedLoRALinear
from lumina2_trainer.trainer_core.adapters.lora import LoRASettings, attach_lora
from lumina2_trainer.trainer_core.lumina2.quant.eight_bit import QuantizedLinear
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

INPUTS, OUTPUTS = 96, 64


def by_peft(base: nn.Linear, dropout: float) -> nn.Module:
    """peft's own LoRA on a base, with the factors of `set_factors`."""
    config = LoraConfig(r=4, lora_alpha=12, lora_dropout=dropout, target_modules=["0"])
    return set_factors(inject_adapter_in_model(config, nn.Sequential(base)))


def by_this_project(base: nn.Linear, dropout: float) -> nn.Module:
    """The same as trained here."""
    module = nn.Sequential(base)
    attach_lora(module, LoRASettings(targets="all_linear", dropout=dropout), rank=4, alpha=12.0, seed=0)
    assert isinstance(module[0], FusedLoRALinear)
    return set_factors(module)


def set_factors(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in factors(model):
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model.train()


def factors(model: nn.Module) -> list[nn.Parameter]:
    """A and B."""
    found = {name.split(".")[1]: parameter for name, parameter in model.named_parameters() if ".lora_" in name}
    return [found["lora_A"], found["lora_B"]]


def run(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, and gradients of x, A and B."""
    torch.manual_seed(2)
    x = x.clone().requires_grad_()
    out = model(x)
    out.square().sum().backward()
    gradients = [tensor.grad for tensor in (x, *factors(model)) if tensor.grad is not None]
    assert len(gradients) == 3
    return [out.detach(), *gradients]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("is_compressed", [False, True], ids=["plain", "int8"])
def test_values_and_gradients_are_those_of_peft(dropout: float, is_compressed: bool) -> None:
    torch.manual_seed(0)
    base = nn.Linear(INPUTS, OUTPUTS).requires_grad_(False)
    compressed = QuantizedLinear(base.weight.detach(), base.bias.detach(), torch.int8)
    if is_compressed:  # peft computes with the weight as it was rounded
        base.weight.data = compressed.weight
    x = torch.randn(40, INPUTS)
    actual = run(by_this_project(compressed if is_compressed else copy.deepcopy(base), dropout), x)
    expected = run(by_peft(base, dropout), x)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3 * float(theirs.abs().max()))
