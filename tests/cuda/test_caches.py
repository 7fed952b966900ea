"""Weights and caches on a GPU: reading, batches, float32 products with bfloat16 weights, memory, writing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.data.entries import EntryWriter, NewEntry, read_entry
from lumina2_trainer.trainer_core.data.progress import Progress
from lumina2_trainer.trainer_core.lumina2.encoders import upcast_linear
from lumina2_trainer.trainer_core.lumina2.encoders.text_encoder import load_text_encoder
from lumina2_trainer.trainer_core.lumina2.encoders.vae import LatentEncoder, load_latent_encoder
from lumina2_trainer.trainer_core.lumina2.encoders.vae_memory import estimate_bytes
from lumina2_trainer.trainer_core.lumina2.weights.weight_files import read_weights
from lumina2_trainer.trainer_core.lumina2.weights.weight_reader import WeightReader
from safetensors.torch import save_file

from ..data.sample_files import make_context
from ..lumina2.tiny_files import SENTENCES, split_state, tiny_vae, write_split
from ..lumina2.tiny_models import CPU, relative_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")

GPU = torch.device("cuda")
PICTURES = torch.randint(0, 256, (5, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_latents_of_the_gpu_equal_the_cpus(batch_size: int, tmp_path: Path) -> None:
    path = write_split(tmp_path, "vae")
    on_gpu = load_latent_encoder(path, device=GPU)
    latents = torch.cat([on_gpu.encode(batch) for batch in PICTURES.split(batch_size)]).cpu()
    expected = load_latent_encoder(path, device=CPU).encode(PICTURES)
    # cuDNN's convolutions round their inputs to TF32, PyTorch's default.
    assert relative_error(latents, expected) <= 3e-3


def test_a_picture_takes_no_more_memory_than_is_planned_for() -> None:
    vae = tiny_vae((128, 256, 512, 512), 2).to(GPU).requires_grad_(False)
    encoder = LatentEncoder(vae, GPU)
    for num_pictures in (1, 2):
        pictures = torch.zeros(num_pictures, 3, 1024, 1024, dtype=torch.uint8)
        encoder.encode(pictures)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        encoder.encode(pictures)
        peak = torch.cuda.max_memory_allocated() - before
        planned = num_pictures * estimate_bytes(vae.encoder, 1024, 1024, None)
        assert peak <= planned, f"{peak / 2**30:.2f} GiB for {num_pictures}"
    assert encoder.choose_batch_size(1024, 1024) <= 4


@pytest.mark.skipif(not hasattr(torch.ops.aten.mm, "dtype"), reason="torch.mm has out_dtype since 2.8")
def test_three_bfloat16_products_are_as_exact_as_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 60, 2304, generator=generator), torch.randn(512, 2304, generator=generator).bfloat16()
    exact = x.double() @ weight.double().T
    in_parts = upcast_linear._multiply_in_parts(x.to(GPU), weight.to(GPU)).cpu()
    assert in_parts.shape == exact.shape
    assert relative_error(in_parts.double(), exact) <= 5e-6


def test_text_embeds_of_the_gpu_equal_the_cpus(tmp_path: Path) -> None:
    rounded = {n: t.bfloat16() if t.is_floating_point() else t for n, t in split_state("text_encoder").items()}
    path = write_split(tmp_path, "text_encoder", rounded)
    ours, theirs = (
        load_text_encoder(path, device=device, dtype=torch.bfloat16, text_attention="comfyui").encode(SENTENCES)
        for device in (GPU, CPU)
    )
    for actual, expected in zip(ours, theirs, strict=True):
        assert relative_error(actual.cpu(), expected) <= 1e-5


def test_entries_are_what_the_gpu_computed(tmp_path: Path) -> None:
    progress = Progress("test", total=20, num_done=0, context=make_context(tmp_path))
    with EntryWriter(torch.bfloat16, progress) as writer:
        for number in range(20):
            tensors = [torch.full((size, 300), float(number), device=GPU) for size in (3, 5)]
            names = [tmp_path / f"{number}-{size}.safetensors" for size in (3, 5)]
            writer.write(tensors, [NewEntry(path=path, problem="not finite") for path in names])
    for number in range(20):
        for size in (3, 5):
            entry = read_entry(tmp_path / f"{number}-{size}.safetensors")
            assert torch.equal(entry, torch.full((size, 300), float(number)))


@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float32])
def test_weights_larger_than_the_buffers_reach_the_gpu(wanted: torch.dtype, tmp_path: Path) -> None:
    weight = torch.randn(2**26 + 5, generator=torch.Generator().manual_seed(0)).bfloat16()  # 4 chunks and a bit
    save_file({"weight": weight}, tmp_path / "w.safetensors")
    entry = read_weights(tmp_path / "w.safetensors").tensors["weight"]
    with WeightReader([entry]) as reader:
        assert torch.equal(reader.read_new(entry, device=GPU, dtype=wanted).cpu(), weight.to(wanted))
