"""8-bit weights: how exact they and their products are, what they weigh, and that they act as a Linear everywhere."""

from __future__ import annotations

import pytest
import torch
from lumina2_trainer.trainer_core.adapters.lora import LoRASettings, attach_lora
from lumina2_trainer.trainer_core.lumina2.quant import eight_bit
from lumina2_trainer.trainer_core.lumina2.quant.eight_bit import QuantizedLinear, quantize_weight
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..tiny_models import CPU, relative_error

FP8, INT8 = torch.float8_e4m3fn, torch.int8
DTYPES = (FP8, INT8)
NORMAL_ERROR = {FP8: 0.03, INT8: 0.01}
"""Relative error of normally distributed weights, 96 in a row: 3 bits of mantissa; 127 steps up to the largest."""


def random_weight(num_rows: int = 48, num_columns: int = 96) -> Tensor:
    return torch.randn(num_rows, num_columns, generator=torch.Generator().manual_seed(0)) * 0.05


def make_linear(dtype: torch.dtype, *, has_bias: bool = True) -> tuple[QuantizedLinear, Tensor, Tensor | None]:
    """A layer, and the float32 weight and bias it was made of."""
    weight = random_weight()
    bias = torch.randn(48, generator=torch.Generator().manual_seed(1)) if has_bias else None
    return QuantizedLinear(weight, bias, dtype), weight, bias


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_take_one_byte_and_stay_close(dtype: torch.dtype) -> None:
    linear, weight, _ = make_linear(dtype, has_bias=False)
    stored = [*linear.parameters(), *linear.buffers()]
    assert sum(x.numel() * x.element_size() for x in stored) == weight.numel() + 4 * len(weight)
    assert 0 < relative_error(linear.weight, weight) < NORMAL_ERROR[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 40])
def test_products_follow_the_8_bit_weight_exactly(dtype: torch.dtype, num_rows: int) -> None:
    linear, weight, bias = make_linear(dtype)
    x = torch.randn(num_rows, 96, generator=torch.Generator().manual_seed(2), requires_grad=True)
    out = linear(x)
    grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    (grad,) = torch.autograd.grad(out, x, grad_out)
    torch.testing.assert_close(out, x @ linear.weight.t() + bias)
    torch.testing.assert_close(grad, grad_out @ linear.weight)
    assert relative_error(out.detach(), (x @ weight.t() + bias).detach()) < NORMAL_ERROR[dtype]
    assert relative_error(grad, grad_out @ weight) < NORMAL_ERROR[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_bfloat16_products_lose_no_more_than_bfloat16_does(dtype: torch.dtype) -> None:
    linear, _, bias = make_linear(dtype)
    x = torch.randn(3, 5, 96, generator=torch.Generator().manual_seed(2))
    expected = x.bfloat16().float() @ linear.weight.t() + bias
    with torch.autocast("cpu", torch.bfloat16):
        out = linear(x)
    assert out.dtype == torch.bfloat16 and out.shape == (3, 5, 48)
    assert relative_error(out, expected) < 0.005


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_zeros_and_an_outlier_disturb_no_other_row(dtype: torch.dtype) -> None:
    weight = random_weight()
    alone, _ = quantize_weight(weight, dtype)
    weight[3], weight[5, 7] = 0, 1e4
    together = QuantizedLinear(weight, None, dtype)
    others = [row for row in range(len(weight)) if row not in (3, 5)]
    assert torch.equal(together.weight_8[others].float(), alone[others].float())
    assert together.weight[3].count_nonzero() == 0
    assert together.weight[5, 7].item() == pytest.approx(1e4, rel=0.04)
    assert together.weight.isfinite().all()


def test_a_weight_that_was_fp8_stays_what_it_was() -> None:
    weight = random_weight().to(FP8).bfloat16()
    assert torch.equal(QuantizedLinear(weight, None, FP8).weight, weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantising_in_parts_changes_nothing(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = quantize_weight(random_weight(), dtype)
    monkeypatch.setattr(eight_bit, "QUANTIZED_AT_ONCE", 7 * 96)
    parts = quantize_weight(random_weight(), dtype)
    assert torch.equal(whole[0].float(), parts[0].float()) and torch.equal(whole[1], parts[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_updates_are_not_rounded_away(dtype: torch.dtype) -> None:
    linear, _, bias = make_linear(dtype)
    before = linear.weight
    x = torch.randn(4, 96, requires_grad=True)
    updates = [(1e-4 * torch.randn(48, 2), torch.randn(2, 96)), (1e-4 * torch.randn(48, 3), torch.randn(3, 96))]
    for up, down in updates:
        linear.add_update(up, down)
    expected = before + sum(up @ down for up, down in updates)
    torch.testing.assert_close(linear.weight, expected)
    out = linear(x)
    torch.testing.assert_close(out, x @ expected.t() + bias)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), x)[0], expected.sum(0).expand(4, -1))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_lora_trains_on_top(dtype: torch.dtype, dropout: float) -> None:
    """With dropout the update is added to what the layer gives."""
    base, _, bias = make_linear(dtype)
    module = nn.Sequential(base)
    settings = LoRASettings(targets="all_linear", dropout=dropout)
    parameters = attach_lora(module, settings, rank=4, alpha=4.0, seed=0)
    x = torch.randn(40, 96)
    torch.testing.assert_close(module(x), x @ base.weight.t() + bias)
    a, b = parameters.values()
    assert a.dtype == b.dtype == torch.float32 and len(a.unique()) > 300  # not rounded to 8 bits
    module.train()
    module(x).sum().backward()
    assert b.grad is not None and b.grad.abs().sum() > 0
    module.eval()
    b.data.normal_()
    torch.testing.assert_close(module(x), x @ (base.weight + b @ a).t() + bias)


def test_dora_reads_the_real_weight() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    base, _, bias = make_linear(INT8)
    module = nn.Sequential(base)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["0"], use_dora=True), module)
    x = torch.randn(4, 96)
    torch.testing.assert_close(module(x), x @ base.weight.t() + bias, rtol=1e-4, atol=1e-5)


def test_assigning_the_weight_is_an_error() -> None:
    linear, weight, _ = make_linear(INT8)
    with pytest.raises((AttributeError, KeyError)):
        linear.weight = nn.Parameter(weight)  # type: ignore[misc]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_device_without_8_bit_products_says_so_once(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    eight_bit.has_8_bit_products.cache_clear()
    linear, _, _ = make_linear(dtype)
    x = torch.randn(40, 96).bfloat16()
    linear(x)
    linear(x)
    (record,) = caplog.records
    assert "multiplied in 16 bits" in record.getMessage() and f"{CPU.type} has no products" in record.getMessage()


def test_weight_of_a_swapped_layer_can_be_read_where_it_lies() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):  # has devices that this machine lacks
        layer = QuantizedLinear(torch.empty(32, 16, device="cuda", dtype=torch.bfloat16), None, torch.int8)
        layer.add_update(torch.empty(32, 2), torch.empty(2, 16))
        assert layer.weight.device.type == "cuda"
        layer.weight_8 = torch.nn.Parameter(layer.weight_8.cpu(), requires_grad=False)
        assert layer.weight_scale.device.type == "cuda"
        assert layer.weight.device.type == "cpu"
