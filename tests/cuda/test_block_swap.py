"""Swapped blocks and offloaded inputs beside the computation, where only events keep the order."""

from __future__ import annotations

import gc

import pytest
import torch
from lumina2_trainer.trainer_core.adapters.lora import LoRASettings, attach_lora
from lumina2_trainer.trainer_core.lumina2.memory.block_offload import OffloadedInputs
from lumina2_trainer.trainer_core.lumina2.memory.block_swap import SwappedWeights
from lumina2_trainer.trainer_core.lumina2.memory.recompute import RecomputeBlocks
from lumina2_trainer.trainer_core.lumina2.models.checkpoint import place_weight
from lumina2_trainer.trainer_core.lumina2.network.layout import TokenLayout
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Config, Lumina2Transformer
from torch import Tensor

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")

DEVICE = torch.device("cuda")
CONFIG = Lumina2Config(
    hidden_size=768,
    num_layers=10,
    num_attention_heads=8,
    num_kv_heads=2,
    cap_feat_dim=256,
    mlp_size=3072,
)
"""Blocks large enough that copying one takes longer than computing it."""
CAPTION, SIDE = 40, 16


def make_transformer(matrix_dtype: torch.dtype | None) -> Lumina2Transformer:
    with torch.device("meta"):
        transformer = Lumina2Transformer(CONFIG)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in list(transformer.named_parameters()):
        weight = torch.randn(parameter.shape, generator=generator) * (0.02 if parameter.ndim > 1 else 0.1)
        weight = (weight + (parameter.ndim == 1)).to(DEVICE, torch.bfloat16)
        place_weight(transformer, name, weight, matrix_dtype=matrix_dtype)
    for parameter in attach_lora(transformer, LoRASettings(), rank=4, alpha=4.0, seed=0).values():
        parameter.data.fill_(0.02)
    return transformer.train()


def step(transformer: Lumina2Transformer, seed: int) -> list[Tensor]:
    """Gradients of one batch; Python runs far ahead of the GPU."""
    generator = torch.Generator().manual_seed(seed)
    layout = TokenLayout.build((CAPTION,), ((SIDE, SIDE),), CONFIG.axes_dims, DEVICE)
    image = torch.randn(SIDE * SIDE, CONFIG.patch_channels, generator=generator).to(DEVICE, torch.bfloat16)
    text = torch.randn(CAPTION, CONFIG.cap_feat_dim, generator=generator).to(DEVICE, torch.bfloat16)
    transformer.zero_grad()
    with torch.autocast("cuda", torch.bfloat16):
        out = transformer(image, torch.tensor([0.4], device=DEVICE), text, layout)
    out.float().square().mean().backward()
    return [p.grad.clone() for p in transformer.parameters() if p.grad is not None]


@pytest.mark.parametrize("matrix_dtype", [None, torch.int8, torch.uint8])
@pytest.mark.parametrize("indices", [range(14), range(1, 14, 2)], ids=["all", "every other"])
def test_swapped_blocks_on_the_gpu_give_the_same_gradients(indices: range, matrix_dtype: torch.dtype | None) -> None:
    transformer = make_transformer(matrix_dtype)
    blocks = transformer.blocks
    transformer.run_block = RecomputeBlocks(num_recomputed=14)
    expected = [step(transformer, seed) for seed in range(4)]
    transformer.run_block = RecomputeBlocks(
        num_recomputed=14,
        weights=SwappedWeights({index: blocks[index] for index in indices}, DEVICE),
        inputs=OffloadedInputs(13, (CAPTION + SIDE * SIDE) * CONFIG.hidden_size * 2, DEVICE),
    )
    actual = [step(transformer, seed) for seed in range(4)]
    torch.testing.assert_close(actual, expected, rtol=2e-2, atol=1e-5)


def test_swapping_takes_the_weights_off_the_gpu_and_gives_everything_back() -> None:
    gc.collect()
    before = torch.cuda.memory_allocated()
    transformer = make_transformer(None)
    blocks = transformer.blocks
    loaded = torch.cuda.memory_allocated() - before
    block_bytes = sum(p.nbytes for p in blocks[-1].parameters() if p.ndim == 2 and not p.requires_grad)
    weights = SwappedWeights(dict(enumerate(blocks)), DEVICE)
    swapped = torch.cuda.memory_allocated() - before
    assert loaded - swapped > 11 * block_bytes
    transformer.run_block = RecomputeBlocks(num_recomputed=14, weights=weights)
    step(transformer, 0)
    del transformer, blocks, weights
    gc.collect()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before + 2**20 + 64 * 2**20  # cuBLAS keeps a workspace
