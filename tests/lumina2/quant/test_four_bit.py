"""4-bit weights: how exact they are, what they weigh, and that they act as a Linear everywhere."""

from __future__ import annotations

import pytest
import torch
from lumina2_trainer.trainer_core.adapters.lora import LoRASettings, attach_lora
from lumina2_trainer.trainer_core.lumina2.memory.block_swap import swappable_tensors
from lumina2_trainer.trainer_core.lumina2.quant import four_bit
from lumina2_trainer.trainer_core.lumina2.quant.four_bit import FourBitLinear, make_levels, pack, unpack
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..tiny_models import CPU, relative_error

NORMAL_ERROR = 0.1
"""Relative error of normally distributed weights."""
LEVELS = make_levels(CPU)


def random_weight(num_rows: int = 48, num_columns: int = 96, seed: int = 0) -> Tensor:
    return torch.randn(num_rows, num_columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def make_linear(*, has_bias: bool = True) -> tuple[FourBitLinear, Tensor | None]:
    bias = torch.randn(48, generator=torch.Generator().manual_seed(1)) if has_bias else None
    return FourBitLinear(random_weight(), bias), bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_equal_those_of_bitsandbytes(dtype: torch.dtype) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = random_weight(40, 192).to(dtype)
    expected_packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    packed, scales = pack(weight)
    assert torch.equal(packed.view(-1), expected_packed.view(-1))
    torch.testing.assert_close(
        unpack(packed, scales, LEVELS, dtype), functional.dequantize_4bit(expected_packed, state), rtol=0, atol=0
    )


def test_weights_take_half_a_byte_and_stay_close() -> None:
    linear, _ = make_linear(has_bias=False)
    weight = random_weight()
    assert 0 < relative_error(linear.weight, weight) < NORMAL_ERROR
    stored = [linear.weight_4, linear.weight_scale_N1]
    assert sum(x.nbytes for x in stored) == weight.numel() // 2 + 4 * weight.numel() // 64
    assert {x.data_ptr() for x in swappable_tensors(linear)} == {x.data_ptr() for x in stored}


def test_the_largest_of_a_block_and_zeros_are_exact() -> None:
    weight = random_weight(2, 128)
    weight[1, 64:] = 0
    weight[0, 70] = 3e4
    again = FourBitLinear(weight, None).weight
    assert again[1, 64:].count_nonzero() == 0 and again[0, 70] == 3e4
    assert relative_error(again[0, :64], weight[0, :64]) < NORMAL_ERROR  # the neighbour's outlier is none of its own


@pytest.mark.parametrize(("num_rows", "num_columns"), [(3, 6), (5, 64), (7, 90)])
def test_a_last_block_that_is_not_full_is_stored_too(num_rows: int, num_columns: int) -> None:
    weight = random_weight(num_rows, num_columns)
    again = FourBitLinear(weight, None).weight
    assert again.shape == weight.shape and relative_error(again, weight) < 1.3 * NORMAL_ERROR


def test_converting_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_weight(7, 90)
    packed, scales = pack(weight)
    whole = unpack(packed, scales, LEVELS, torch.bfloat16)
    monkeypatch.setattr(four_bit, "CONVERTED_AT_ONCE", 128)
    assert all(torch.equal(a, b) for a, b in zip(pack(weight), (packed, scales), strict=True))
    assert torch.equal(unpack(packed, scales, LEVELS, torch.bfloat16), whole)


def test_products_and_gradients_are_those_of_the_weight() -> None:
    linear, bias = make_linear()
    x = torch.randn(3, 5, 96, generator=torch.Generator().manual_seed(2), requires_grad=True)
    out = linear(x)
    grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    (grad,) = torch.autograd.grad(out, x, grad_out)
    torch.testing.assert_close(out, x @ linear.weight.t() + bias)
    torch.testing.assert_close(grad, grad_out @ linear.weight)
    with torch.autocast("cpu", torch.bfloat16):
        half = linear(x)
    assert half.dtype == torch.bfloat16 and relative_error(half.float().detach(), out.detach()) < 0.006


def test_nothing_is_kept_for_the_backward_pass() -> None:
    linear, _ = make_linear()
    kept: list[Tensor] = []
    x = torch.randn(4, 96, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved) or saved, lambda saved: saved):
        linear(x)
    assert all(saved.numel() < 48 * 96 for saved in kept)


def test_small_updates_are_not_rounded_away() -> None:
    linear, bias = make_linear()
    before = linear.weight
    up, down = 1e-4 * torch.randn(48, 2), torch.randn(2, 96)
    linear.add_update(up, down)
    linear.add_update(up, down)
    x = torch.randn(4, 96)
    torch.testing.assert_close(linear.weight, before + 2 * up @ down)
    torch.testing.assert_close(linear(x), x @ linear.weight.t() + bias)


@pytest.mark.parametrize(
    "settings", [LoRASettings(targets="all_linear", use_dora=use_dora) for use_dora in (False, True)]
)
def test_lora_and_dora_train_on_top(settings: LoRASettings) -> None:
    base, bias = make_linear()
    module = nn.Sequential(base)
    parameters = attach_lora(module, settings, rank=4, alpha=4.0, seed=0)
    x = torch.randn(40, 96)
    torch.testing.assert_close(module(x), x @ base.weight.t() + bias, rtol=1e-4, atol=1e-5)
    module(x).sum().backward()
    assert all(p.dtype == torch.float32 for p in parameters.values())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters.values())


def test_weight_of_a_swapped_layer_can_be_read_where_it_lies() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):  # has devices that this machine lacks
        layer = FourBitLinear(torch.empty(32, 16, device="cuda", dtype=torch.bfloat16), None)
        layer.add_update(torch.empty(32, 2), torch.empty(2, 16))
        layer.weight_4 = nn.Parameter(layer.weight_4.cpu(), requires_grad=False)
        layer.weight_scale_N1 = layer.weight_scale_N1.cpu()
        assert layer.levels.device.type == "cuda" and layer.weight.device.type == "cpu"
