"""FlashAttention 4 on a Hopper GPU, against PyTorch's attention."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from lumina2_trainer.trainer_core.lumina2.memory.recompute import RecomputeBlocks
from lumina2_trainer.trainer_core.lumina2.network.layout import PaddedLengths
from lumina2_trainer.trainer_core.lumina2.ops import attention
from lumina2_trainer.trainer_core.lumina2.ops.flash_attention import has_flash_attention

from ..lumina2.ops.test_flash_attention import SAMPLES, run
from ..lumina2.tiny_models import relative_error, tiny_transformer


def _is_installed() -> bool:
    return (
        importlib.util.find_spec("flash_attn") is not None and importlib.util.find_spec("flash_attn.cute") is not None
    )


def _is_hopper() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9


pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine"),
    pytest.mark.skipif(not _is_installed(), reason="flash-attn-4 is not installed"),
    pytest.mark.skipif(not _is_hopper(), reason="no Hopper GPU on this machine"),
]


@pytest.mark.parametrize("is_recomputed", [False, True])
@pytest.mark.parametrize("padded", [None, PaddedLengths(caption=16, image=32)], ids=["ragged", "padded"])
def test_gradients_are_those_of_pytorchs_attention(
    monkeypatch: pytest.MonkeyPatch, padded: PaddedLengths | None, is_recomputed: bool
) -> None:
    device = torch.device("cuda")
    assert has_flash_attention(device), "installed, but not used"
    transformer = tiny_transformer().bfloat16().to(device)
    latents, prompts, timesteps = SAMPLES
    samples = [x.to(device) for x in latents], [x.to(device) for x in prompts], timesteps.to(device)
    with monkeypatch.context() as patch:
        patch.setattr(attention, "has_flash_attention", lambda _: False)
        expected = run(transformer, None, samples=samples)
    if is_recomputed:
        transformer.run_block = RecomputeBlocks(num_recomputed=100, num_keeping=100)
    actual = run(transformer, padded, samples=samples)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-2, atol=0)
    errors = [relative_error(x, y) for x, y in zip(actual[1:], expected[1:], strict=True) if y.any()]
    assert sorted(errors)[len(errors) // 2] < 0.03 and max(errors) < 0.15


@pytest.mark.parametrize("lengths", [(1,), (40, 1), (100, 250), (4096, 120)])
def test_sequences_of_any_length_agree(lengths: tuple[int, ...]) -> None:
    device, generator = torch.device("cuda"), torch.Generator("cuda").manual_seed(0)
    segments = attention.Segments.build(lengths, device)
    query, key, value = leaves = [
        torch.randn(sum(lengths), heads, 96, device=device, generator=generator).bfloat16().requires_grad_()
        for heads in (24, 8, 8)
    ]
    results = []
    for attend in (attention.attend, attention._attend_padded if len(lengths) > 1 else _attend_one):
        out = attend(query, key, value, segments)
        results.append([out, *torch.autograd.grad(out.float().square().sum(), leaves)])
    assert max(relative_error(x, y) for x, y in zip(*results, strict=True)) < 0.02


def _attend_one(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _: attention.Segments) -> torch.Tensor:
    return attention._attend_equal(query, key, value, 1)
