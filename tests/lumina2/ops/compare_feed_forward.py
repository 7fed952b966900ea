"""Run by test_ops.py: the MLP of frozen matrices as one operation against its parts; prints how many cases there were.

Triton's interpreter cuts fp8 off where a GPU rounds, hence its tolerance.
"""

from __future__ import annotations

import itertools
import sys
from unittest import mock

import torch
from lumina2_trainer.trainer_core.adapters.lora import LoRASettings, attach_lora
from lumina2_trainer.trainer_core.lumina2.network import feed_forward
from lumina2_trainer.trainer_core.lumina2.network.transformer import FeedForward, Lumina2Config
from lumina2_trainer.trainer_core.lumina2.ops import ops
from lumina2_trainer.trainer_core.lumina2.quant import eight_bit, four_bit
from lumina2_trainer.trainer_core.lumina2.quant.precision import MATRIX_FORMATS
from torch import Tensor, nn

DEVICE = torch.device(sys.argv[1])
CONFIG = Lumina2Config(hidden_size=32, mlp_size=80)
NUM_TOKENS = 40
TOLERANCE = {
    torch.int8: 0.04,
    torch.float8_e4m3fn: 0.16 if DEVICE.type == "cpu" else 0.1,
    torch.uint8: 0.05,  # the interpreter cuts bf16 off too, see compare_unpacking
}
ADAPTED = {"none": "", "all": "w[123]", "in": "w1", "out": "w2"}
"""Which of the matrices have a LoRA."""


def make_mlp(dtype: torch.dtype, adapted: str) -> nn.Module:
    """An MLP with random matrices, frozen below an adapter; 8 or 4 bits or float32."""
    torch.manual_seed(0)
    mlp = FeedForward(CONFIG).requires_grad_(False)
    if dtype != torch.float32:
        for name, linear in list(mlp.named_children()):
            setattr(mlp, name, MATRIX_FORMATS[dtype](linear.weight.bfloat16(), None))
    if ADAPTED[adapted]:
        settings = LoRASettings(targets="pattern", target_pattern=ADAPTED[adapted])
        for parameter in attach_lora(mlp, settings, rank=4, alpha=6.0, seed=0).values():
            parameter.data.normal_(0, 0.2)
    return mlp.to(DEVICE)


def compare_unpacking(num_rows: int, num_columns: int) -> None:
    """By triton and plain, in float32: the interpreter cuts bf16 off too."""
    packed, scales_N1 = four_bit.pack(torch.randn(num_rows, num_columns, device=DEVICE))
    results = []
    for is_fused in (True, False):
        with mock.patch.object(four_bit, "is_fused", return_value=is_fused):
            results.append(four_bit.unpack(packed, scales_N1, four_bit.make_levels(DEVICE), torch.float32))
    assert torch.equal(*results), f"{num_rows} x {num_columns}"


def run(mlp: nn.Module, x_SD: Tensor, *, is_fused: bool, known_SD: Tensor | None = None) -> list[Tensor]:
    """Output, and the gradients of the input and of every adapter."""
    x_SD = x_SD.detach().requires_grad_()
    trained = [p for p in mlp.parameters() if p.requires_grad]
    target = torch.randn(x_SD.shape, generator=torch.Generator().manual_seed(1)).to(x_SD)
    with (
        mock.patch.object(ops, "is_fused", return_value=is_fused),
        mock.patch.object(feed_forward, "is_fused", return_value=is_fused),
        mock.patch.object(four_bit, "is_fused", return_value=is_fused),
        mock.patch.object(eight_bit, "has_8_bit_products", return_value=is_fused),
    ):
        out = mlp(x_SD, known_SD)
        grads = torch.autograd.grad((out * target).sum(), [x_SD, *trained])
    return [x.detach().float() for x in (out, *grads)]


def compare(dtype: torch.dtype, adapted: str) -> None:
    mlp = make_mlp(dtype, adapted)
    x = torch.randn(NUM_TOKENS, CONFIG.hidden_size, device=DEVICE)
    x[3], x[5] = 0, 30 * x[5]
    x = x if dtype == torch.float32 else x.bfloat16()
    fused, plain = (run(mlp, x, is_fused=is_fused) for is_fused in (True, False))
    known = fused[0].to(x.dtype) + 1
    again = run(mlp, x, is_fused=True, known_SD=known)
    torch.testing.assert_close(again[0], known.float(), rtol=0, atol=0)  # taken as it is given
    torch.testing.assert_close(again[1:], fused[1:], rtol=0, atol=0)
    if dtype == torch.float32:
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)
        return
    for actual, expected in zip(fused, plain, strict=True):
        error = ((actual - expected).norm() / expected.norm()).item()
        assert 0 < error <= TOLERANCE[dtype], f"{dtype} {adapted}: relative error {error}"


if __name__ == "__main__":
    torch.manual_seed(0)
    cases = list(itertools.product([torch.float32, *TOLERANCE], ADAPTED))
    for case in cases:
        compare(*case)
    sizes = [(7, 90), (33, 1024), (2, 64)]
    for size in sizes:
        compare_unpacking(*size)
    print(f"{len(cases) + len(sizes)} comparisons")
