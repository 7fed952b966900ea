"""Float32 products with bfloat16 weights."""

from __future__ import annotations

import torch
from lumina2_trainer.trainer_core.lumina2.encoders.upcast_linear import UpcastLinear, split_float32


def test_three_bfloat16_parts_hold_every_bit_of_a_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, generator=generator) * 10.0 ** torch.randint(-20, 20, (1000,), generator=generator)
    parts = split_float32(torch.cat([x, torch.tensor([0.0, 1.0, -1.0, 1 + 2**-23, 1 - 2**-24, 3e38])]))
    assert {part.dtype for part in parts} == {torch.bfloat16}
    assert torch.equal(sum(part.double() for part in parts).float()[:1000], x)
    assert parts[0][-1].isfinite()


def test_products_of_the_parts_add_up_to_the_float32_product() -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight = torch.randn(5, 300, generator=generator), torch.randn(7, 300, generator=generator).bfloat16()
    exact = x.double() @ weight.double().T
    in_parts = sum(part.double() @ weight.double().T for part in split_float32(x))
    assert torch.equal(in_parts.float(), exact.float())


def test_computes_in_the_inputs_precision() -> None:
    linear = UpcastLinear(3, 2, bias=False).bfloat16()
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    out = linear(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, x @ linear.weight.float().T)
