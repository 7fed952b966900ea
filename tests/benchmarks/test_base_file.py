"""The random base of real size, in small."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lumina2_trainer.benchmarks import base_file
from lumina2_trainer.benchmarks.base_file import write_base_file
from lumina2_trainer.trainer_core.lumina2.encoders.text_encoder import load_text_encoder
from lumina2_trainer.trainer_core.lumina2.encoders.text_files import GemmaSizes, find_text_files
from lumina2_trainer.trainer_core.lumina2.encoders.vae import encode_pixels, load_vae
from lumina2_trainer.trainer_core.lumina2.models.checkpoint import load_transformer
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Config

CPU = torch.device("cpu")
CONFIG = Lumina2Config(
    hidden_size=96,
    num_layers=2,
    num_attention_heads=4,
    num_kv_heads=2,
    cap_feat_dim=64,
    axes_dims=(8, 8, 8),
    mlp_size=384,
)
GEMMA = GemmaSizes(
    vocab_size=1600,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
)


def test_base_file_loads_whole_and_computes(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    write_base_file(path, CONFIG, GEMMA, (32, 32, 64, 64))
    transformer = load_transformer(path, device=CPU, dtype=torch.float32)
    assert transformer.config == CONFIG
    spread = transformer.layers[1].feed_forward.w1.weight.std().item()
    assert abs(spread / base_file.WEIGHT_SCALE - 1) < 0.05
    assert (transformer.layers[0].attention_norm1.weight == 1).all()
    encoder = load_text_encoder(path, device=CPU, dtype=torch.float32, text_attention="comfyui")
    (embeds,) = encoder.encode(["a fox"])
    assert embeds.shape[1] == 64 and embeds.isfinite().all()
    vae = load_vae(path, device=CPU, dtype=torch.float32)
    latents = encode_pixels(vae, torch.rand(1, 3, 32, 32) * 2 - 1)
    assert latents.shape == (1, 16, 4, 4) and latents.isfinite().all() and latents.std() > 0.01


def test_weights_go_on_where_the_drawn_values_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "whole.safetensors"
    write_base_file(whole, CONFIG, GEMMA, (32, 32, 64, 64))
    monkeypatch.setattr(base_file, "NUM_DRAWN", 1000)
    repeated = tmp_path / "repeated.safetensors"
    write_base_file(repeated, CONFIG, GEMMA, (32, 32, 64, 64))
    assert repeated.stat().st_size == whole.stat().st_size
    weight = load_transformer(repeated, device=CPU, dtype=torch.float32).x_embedder.weight.flatten()
    assert torch.equal(weight[:1000], weight[1000:2000])


def test_full_sizes_are_those_of_the_model() -> None:
    num_gemma = sum(torch.Size(shape).numel() for shape in base_file.GEMMA_2_2B.shapes().values())
    assert round(num_gemma / 1e9, 1) == 2.6
    assert base_file.GEMMA_2_2B.hidden_size == Lumina2Config().cap_feat_dim
    assert find_text_files(base_file.DEMO_MODEL_PATH).sizes.vocab_size <= base_file.GEMMA_2_2B.vocab_size
