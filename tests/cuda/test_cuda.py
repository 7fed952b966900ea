"""What only a GPU shows: packed flash attention, bfloat16 gradients, and a whole run with its memory given back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.adapters.lora import LoRASettings, attach_lora
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Transformer
from lumina2_trainer.trainer_core.lumina2.objective import flow_matching_loss, make_noisy_batch
from lumina2_trainer.trainer_core.lumina2.quant.precision import computation
from torch import Tensor

from ..lumina2.tiny_models import CPU, TINY, random_samples, tiny_transformer
from ..training_setup import PROMPTS, TRAIN, make_setup

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")

SAMPLES = random_samples([(5, 6, 10), (40, 8, 8), (1, 4, 4)])


def loss_and_gradients(device: torch.device, precision: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of each sample and LoRA gradients of one batch of unequal samples."""
    transformer: Lumina2Transformer = tiny_transformer()
    parameters = attach_lora(transformer, LoRASettings(targets="attention_mlp"), rank=4, alpha=4.0, seed=0)
    generator = torch.Generator().manual_seed(3)
    for parameter in parameters.values():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    trained = [name for name, p in transformer.named_parameters() if p.requires_grad]
    transformer.to(device)
    if precision == "bf16":
        for name, parameter in transformer.named_parameters():
            if name not in trained:
                parameter.data = parameter.data.bfloat16()
    latents, embeds, timesteps_B = SAMPLES
    noise = [torch.randn(x.shape, generator=torch.Generator().manual_seed(i)) for i, x in enumerate(latents)]
    batch = make_noisy_batch(latents, noise, timesteps_B, embeds, TINY.axes_dims, device)
    with computation(precision, device):
        loss_B = flow_matching_loss(transformer, batch)
    loss_B.mean().backward()
    named = dict(transformer.named_parameters())
    return loss_B.detach().cpu(), {name: named[name].grad.float().cpu() for name in trained}


def test_float32_on_the_gpu_equals_the_cpu() -> None:
    loss_B, gradients = loss_and_gradients(torch.device("cuda"), "fp32")
    expected_B, expected = loss_and_gradients(CPU, "fp32")
    torch.testing.assert_close(loss_B, expected_B, rtol=1e-4, atol=1e-5)
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).norm() <= 1e-3 * expected[name].norm()


def test_bfloat16_gradients_of_packed_samples_point_the_same_way() -> None:
    loss_B, gradients = loss_and_gradients(torch.device("cuda"), "bf16")
    expected_B, expected = loss_and_gradients(CPU, "fp32")
    torch.testing.assert_close(loss_B, expected_B, rtol=0.05, atol=0.05)
    ours, theirs = (torch.cat([g[name].flatten() for name in expected]) for g in (gradients, expected))
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.999


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_run_on_the_gpu_follows_the_cpu_and_gives_memory_back(tmp_path: Path, precision: str) -> None:
    setup = make_setup(tmp_path)
    on_cpu = setup.train()
    gpu = replace(
        setup,
        model=replace(setup.model, precision=precision),
        context=replace(setup.context, device=torch.device("cuda"), output_dir=tmp_path / "gpu"),
    )
    before = torch.cuda.memory_allocated()
    on_gpu = gpu.train(replace(TRAIN, gradient_checkpointing=True), validation=PROMPTS)
    assert on_gpu.losses == pytest.approx(on_cpu.losses, rel=0.1 if precision == "bf16" else 2e-3)
    assert len(on_gpu.validation_images) == 2
    assert torch.cuda.memory_allocated() <= before + 2**20
