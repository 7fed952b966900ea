"""8-bit products and 4-bit weights on a real GPU: how exact they are, and what they do to gradients and memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.adapters.lora import LoRASettings, attach_lora
from lumina2_trainer.trainer_core.lumina2.memory.recompute import RecomputeBlocks
from lumina2_trainer.trainer_core.lumina2.models.checkpoint import place_weight
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Config, Lumina2Transformer
from lumina2_trainer.trainer_core.lumina2.objective import flow_matching_loss, make_noisy_batch
from lumina2_trainer.trainer_core.lumina2.quant.eight_bit import (
    MIN_CAPABILITY,
    QuantizedLinear,
    has_8_bit_products,
    quantize_weight,
)
from lumina2_trainer.trainer_core.lumina2.quant.four_bit import FourBitLinear, make_levels, pack, unpack
from lumina2_trainer.trainer_core.lumina2.quant.precision import PRECISIONS, computation
from torch import Tensor

from ..lumina2.tiny_models import random_samples, relative_error, tiny_transformer
from ..training_setup import PROMPTS, TRAIN, make_setup

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")

CONFIG = Lumina2Config(
    hidden_size=1152,
    num_layers=4,
    num_refiner_layers=1,
    num_attention_heads=12,
    num_kv_heads=4,
    cap_feat_dim=256,
    mlp_size=4608,
)
SAMPLES = random_samples([(40, 64, 60)], cap_feat_dim=256)
"""40 tokens of caption and 960 of the picture."""
GPU = torch.device("cuda")
PRODUCT_ERROR = {"fp8": 0.05, "int8": 0.02}
"""Relative error against float32: both sides are rounded, to 3 bits of mantissa or 127 steps up to a row's largest."""
MIN_COSINE = {"fp8": 0.99, "int8": 0.998, "nf4": 0.88}


def dtype_of(precision: str) -> torch.dtype:
    """What matrices are stored as; skips where the GPU is too old for its products."""
    dtype = PRECISIONS[precision].matrix_dtype
    assert dtype is not None
    if torch.cuda.get_device_capability() < MIN_CAPABILITY.get(dtype, (0, 0)):
        pytest.skip(f"this GPU has no products of {precision}")
    return dtype


def make_transformer(precision: str) -> Lumina2Transformer:
    """Random weights, frozen on the GPU."""
    weights = tiny_transformer(CONFIG).state_dict()
    with torch.device("meta"):
        transformer = Lumina2Transformer(CONFIG)
    known = PRECISIONS[precision]
    for name, weight in weights.items():
        place_weight(transformer, name, weight.to(GPU, known.dtype), matrix_dtype=known.matrix_dtype)
    return transformer.requires_grad_(False)


def lora_gradients(precision: str, targets: str = "attention_mlp_modulation", *, has_recomputation: bool) -> Tensor:
    """Gradients of every factor of a LoRA with random values, behind one another."""
    transformer = make_transformer(precision)
    parameters = attach_lora(transformer, LoRASettings(targets=targets), rank=16, alpha=16.0, seed=0)
    generator = torch.Generator().manual_seed(3)
    for parameter in parameters.values():
        scale = 0.1 * parameter.shape[1] ** -0.5
        parameter.data = (scale * torch.randn(parameter.shape, generator=generator)).to(GPU)
    if has_recomputation:
        transformer.run_block = RecomputeBlocks(num_recomputed=len(transformer.blocks))
    latents, embeds, timesteps_B = SAMPLES
    noise = [torch.randn(x.shape, generator=torch.Generator().manual_seed(i)) for i, x in enumerate(latents)]
    batch = make_noisy_batch(latents, noise, timesteps_B, embeds, CONFIG.axes_dims, GPU)
    with computation(precision, GPU):
        loss_B = flow_matching_loss(transformer.train(), batch)
    loss_B.mean().backward()
    return torch.cat([p.grad.float().flatten() for p in parameters.values() if p.grad is not None])


@pytest.mark.parametrize("precision", PRODUCT_ERROR)
def test_8_bit_products_are_used_and_close_to_float32(precision: str) -> None:
    dtype = dtype_of(precision)
    assert has_8_bit_products(GPU, dtype)
    torch.manual_seed(0)
    weight, x, grad = torch.randn(768, 512), torch.randn(1000, 512), torch.randn(1000, 768)
    x[3], x[5], x[7, 9], grad[11] = 0, 100 * x[5], 1000.0, 0
    linear = QuantizedLinear(weight.to(GPU, torch.bfloat16), None, dtype)
    on_gpu = x.to(GPU, torch.bfloat16)
    assert linear.is_8_bit(on_gpu)
    out, grad_x = (
        linear.product(on_gpu).float().cpu(),
        linear.input_gradient(grad.to(GPU, torch.bfloat16)).float().cpu(),
    )
    regular = [row for row in range(1000) if row != 7]  # one outlier leaves few steps for the rest of its row
    assert relative_error(out[regular], (x @ weight.t())[regular]) < PRODUCT_ERROR[precision]
    assert relative_error(grad_x, grad @ weight) < PRODUCT_ERROR[precision]
    assert out[3].count_nonzero() == 0 and grad_x[11].count_nonzero() == 0
    assert relative_error(out[7], x[7] @ weight.t()) < 2 * PRODUCT_ERROR[precision]


@pytest.mark.parametrize("precision", PRODUCT_ERROR)
def test_weights_are_the_same_numbers_as_on_the_cpu(precision: str) -> None:
    dtype = PRECISIONS[precision].matrix_dtype
    assert dtype is not None
    weight = torch.randn(300, 4096, generator=torch.Generator().manual_seed(0)).bfloat16()
    on_cpu, on_gpu = quantize_weight(weight, dtype), quantize_weight(weight.to(GPU), dtype)
    assert all(torch.equal(a.float(), b.float().cpu()) for a, b in zip(on_cpu, on_gpu, strict=True))


@pytest.mark.parametrize("precision", PRODUCT_ERROR)
def test_values_that_are_not_finite_stay_so(precision: str) -> None:
    dtype = dtype_of(precision)
    linear = QuantizedLinear(torch.randn(64, 64, device=GPU, dtype=torch.bfloat16), None, dtype)
    x = torch.randn(40, 64, device=GPU, dtype=torch.bfloat16)
    x[3, 5] = torch.nan
    is_finite = linear.product(x).isfinite().all(1).tolist()
    assert is_finite == [row != 3 for row in range(40)]


@pytest.mark.parametrize("has_recomputation", [False, True])
@pytest.mark.parametrize("targets", ["attention", "attention_mlp_modulation"])
@pytest.mark.parametrize("precision", MIN_COSINE)
def test_gradients_point_where_bfloat16_points(precision: str, targets: str, has_recomputation: bool) -> None:
    dtype_of(precision)
    actual = lora_gradients(precision, targets, has_recomputation=has_recomputation)
    expected = lora_gradients("bf16", targets, has_recomputation=has_recomputation)
    cosine = torch.nn.functional.cosine_similarity(actual, expected, dim=0).item()
    print(f"{precision} {targets}: cosine {cosine:.5f}")
    assert MIN_COSINE[precision] <= cosine < 0.99999


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(300, 4096), (7, 90), (3, 6)])
def test_4_bit_weights_are_the_same_numbers_as_on_the_cpu(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    on_cpu, on_gpu = pack(weight), pack(weight.to(GPU))
    assert all(torch.equal(a, b.cpu()) for a, b in zip(on_cpu, on_gpu, strict=True))
    expected = unpack(*on_cpu, make_levels(weight.device), dtype)
    assert torch.equal(unpack(*on_gpu, make_levels(GPU), dtype).cpu(), expected)


def test_a_4_bit_product_keeps_nothing_beyond_its_result() -> None:
    linear = FourBitLinear(torch.randn(2048, 1024, device=GPU, dtype=torch.bfloat16), None)
    x = torch.randn(512, 1024, device=GPU, dtype=torch.bfloat16, requires_grad=True)
    linear(x).sum().backward()  # cuBLAS has its workspace from here on
    x.grad = None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = linear(x)
    assert torch.cuda.memory_allocated() - before == out.nbytes
    assert torch.cuda.max_memory_allocated() - before <= out.nbytes + 2 * 2048 * 1024 + 2**16
    out.sum().backward()
    torch.testing.assert_close(x.grad, (torch.ones_like(out) @ linear.weight), rtol=0.02, atol=0.5)


@pytest.mark.parametrize(("precision", "share"), [("fp8", 0.53), ("int8", 0.53), ("nf4", 0.32)])
def test_weights_take_a_share_of_the_memory(precision: str, share: float) -> None:
    def bytes_of(name: str) -> int:
        before = torch.cuda.memory_allocated()
        transformer = make_transformer(name)
        size = torch.cuda.memory_allocated() - before
        del transformer
        return size

    assert bytes_of(precision) < share * bytes_of("bf16")


@pytest.mark.parametrize("precision", MIN_COSINE)
def test_run_on_the_gpu_follows_the_cpu_and_gives_memory_back(tmp_path: Path, precision: str) -> None:
    setup = make_setup(tmp_path)
    setup = replace(setup, model=replace(setup.model, precision=precision))
    on_cpu = setup.train()
    gpu = replace(setup, context=replace(setup.context, device=GPU, output_dir=tmp_path / "gpu"))
    before = torch.cuda.memory_allocated()
    on_gpu = gpu.train(replace(TRAIN, gradient_checkpointing=True), validation=PROMPTS)
    assert on_gpu.losses == pytest.approx(on_cpu.losses, rel=0.2)
    assert len(on_gpu.validation_images) == 2
    assert torch.cuda.memory_allocated() <= before + 2**20
