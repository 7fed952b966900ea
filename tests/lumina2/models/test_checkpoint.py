"""Loading and refusing base models."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.lumina2.models.checkpoint import (
    fingerprint_files,
    load_transformer,
    read_config,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..tiny_files import split_state, write_all_in_one, write_diffusers_folder, write_split
from ..tiny_models import CPU, TINY, tiny_transformer

META = {"lumina2_trainer.axes_dims": json.dumps(TINY.axes_dims)}


def assert_same_weights(actual: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, **tolerance)


@pytest.mark.parametrize("layout", ["all_in_one", "split", "diffusers", "sharded"])
def test_every_layout_gives_the_same_transformer(layout: str, tmp_path: Path) -> None:
    writers = {
        "all_in_one": lambda: write_all_in_one(tmp_path / "model.safetensors"),
        "split": lambda: write_split(tmp_path, "transformer"),
        "diffusers": lambda: write_diffusers_folder(tmp_path / "model"),
        "sharded": lambda: write_diffusers_folder(tmp_path / "model", is_sharded=True),
    }
    path = writers[layout]()
    if layout == "sharded":
        assert len(list((path / "transformer").glob("*.safetensors"))) > 1
    transformer = load_transformer(path, device=CPU, dtype=torch.float32)
    assert transformer.config == TINY
    assert not transformer.training
    assert not any(p.requires_grad for p in transformer.parameters())
    assert_same_weights(transformer.state_dict(), tiny_transformer().state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_stored_precisions_are_read_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    stored = {name: tensor.to(dtype) for name, tensor in split_state("transformer").items()}
    path = write_split(tmp_path, "transformer", stored)
    loaded = load_transformer(path, device=CPU, dtype=torch.bfloat16)
    expected = {name: tensor.float().bfloat16() for name, tensor in stored.items()}
    assert_same_weights(loaded.state_dict(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("scale_name", ["scale_weight", "weight_scale"])
def test_scaled_fp8_is_multiplied_out(scale_name: str, tmp_path: Path) -> None:
    state = split_state("transformer")
    stored: dict[str, Tensor] = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in state.items():
        if tensor.ndim == 2:
            scale = tensor.abs().max() / 448
            stored[name] = (tensor / scale).to(torch.float8_e4m3fn)
            stored[f"{name.removesuffix('.weight')}.{scale_name}"] = scale
        else:
            stored[name] = tensor
    loaded = load_transformer(write_split(tmp_path, "transformer", stored), device=CPU, dtype=torch.float32)
    assert_same_weights(loaded.state_dict(), state, rtol=0.07, atol=1e-3)


def test_equal_axes_are_assumed_where_nothing_is_said(tmp_path: Path) -> None:
    save_file(split_state("transformer"), tmp_path / "m.safetensors")
    assert read_config(tmp_path / "m.safetensors").axes_dims == (8, 8, 8)


def test_unused_final_norm_is_ignored(tmp_path: Path) -> None:
    state = {**split_state("transformer"), "norm_final.weight": torch.ones(96)}
    assert read_config(write_split(tmp_path, "transformer", state)) == TINY


def without(name: str) -> dict[str, Tensor]:
    return {n: t for n, t in split_state("transformer").items() if n != name}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda: without("layers.1.feed_forward.w2.weight"), r"lacks the tensor layers\.1\.feed_forward\.w2\.weight"),
        (lambda: without("x_embedder.weight"), r"no tensor x_embedder\.weight as Lumina2 has it"),
        (
            lambda: {n: t for n, t in split_state("transformer").items() if not n.startswith("layers.1.")},
            r"lacks 13 tensors \(layers\.1\.attention\.qkv\.weight and others\)",
        ),
        (
            lambda: {**without(""), "layers.0.attention.gate": torch.ones(2)},
            r"the tensor layers.0.attention.gate too many",
        ),
        (
            lambda: {**without(""), "layers.2.attention.out.weight": torch.ones(96, 95)},
            r"layers\.2\.attention\.out\.weight of shape \[96, 95\] where \[96, 96\] is needed",
        ),
        (
            lambda: {**without(""), "x_embedder.bias": torch.ones(96, dtype=torch.int32)},
            "stores x_embedder.bias as I32",
        ),
        (lambda: {**without(""), "cap_pad_token": torch.ones(1, 96)}, "is a Z-Image model, not a Lumina2 model"),
        (lambda: {**without(""), "clip_text_pooled_proj.0.weight": torch.ones(9)}, "is a NewBie model"),
        (lambda: {"double_blocks.0.img_attn.qkv.weight": torch.ones(9, 3)}, "is a Flux model"),
        (lambda: {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": torch.ones(9, 3)}, "is a Flux model"),
        (
            lambda: {
                "model.diffusion_model.input_blocks.0.0.weight": torch.ones(3),
                "model.diffusion_model.label_emb.0.0.weight": torch.ones(3),
            },
            "is an SDXL model",
        ),
        (lambda: {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(3)}, "is a Stable Diffusion 1.5 or 2"),
        (lambda: {"diffusion_model.layers.0.attention.qkv.lora_A.weight": torch.ones(3)}, "is an adapter"),
        (lambda: {"model.layers.0.mlp.up_proj.weight": torch.ones(3)}, "is a text encoder, not a Lumina2 model"),
        (lambda: {"decoder.conv_in.weight": torch.ones(3)}, "is a VAE, not a Lumina2 model"),
        (lambda: {"something.weight": torch.ones(3)}, r"no tensor x_embedder\.weight as Lumina2 has it"),
    ],
)
def test_wrong_content_is_refused_in_one_sentence(state: object, message: str, tmp_path: Path) -> None:
    path = write_split(tmp_path, "transformer", state())  # type: ignore[operator]
    with pytest.raises(TrainerError, match=message) as caught:
        read_config(path)
    assert "\n" not in str(caught.value)


def test_axes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file(split_state("transformer"), path, {"lumina2_trainer.axes_dims": "[8, 8, 10]"})
    with pytest.raises(TrainerError, match=r"positions in \[8, 8, 10\]: three even numbers with the sum 24"):
        read_config(path)
    save_file(split_state("transformer"), path, {"lumina2_trainer.axes_dims": "many"})
    with pytest.raises(TrainerError, match="must be a JSON list"):
        read_config(path)


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write_split(tmp_path, "transformer")
    whole = path.stat().st_size
    os.truncate(path, whole - 100)
    with pytest.raises(TrainerError, match=f"cut short: {whole - 100} of {whole} bytes; download it again"):
        read_config(path)
    os.truncate(path, 500)
    with pytest.raises(TrainerError, match=r"not a safetensors file \(500 bytes\)"):
        read_config(path)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"<!doctype html><html></html>", b"\x02\0\0\0\0\0\0\0[]" + b"x" * 9])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(TrainerError, match="is not a safetensors file"):
        read_config(path)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
def test_pickles_are_never_opened(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    with pytest.raises(TrainerError, match="is a pickle, which can run code when it is read"):
        read_config(path)


def test_diffusers_folder_of_another_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"without transformer/config\.json"):
        read_config(tmp_path)
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    with pytest.raises(TrainerError, match="holds a FluxTransformer2DModel, not a Lumina2Transformer2DModel"):
        read_config(tmp_path)


def test_diffusers_folder_with_a_missing_part_is_refused(tmp_path: Path) -> None:
    folder = write_diffusers_folder(tmp_path / "model", is_sharded=True)
    sorted((folder / "transformer").glob("*.safetensors"))[0].unlink()
    with pytest.raises(TrainerError, match=r"its index names .*, which is missing"):
        read_config(folder)


def test_variants_beside_the_weights_are_not_mixed_in(tmp_path: Path) -> None:
    folder = write_diffusers_folder(tmp_path / "model")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    zeros = {name: torch.zeros_like(tensor) for name, tensor in load_file(weights).items()}
    save_file(zeros, weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert load_transformer(folder, device=CPU, dtype=torch.float32).x_embedder.weight.any()
    weights.unlink()
    assert not load_transformer(folder, device=CPU, dtype=torch.float32).x_embedder.weight.any()
    save_file(zeros, weights.with_name("other.safetensors"))
    with pytest.raises(TrainerError, match=r"holds 2 \.safetensors files, none named diffusion_pytorch_model or model"):
        read_config(folder)


def test_damaged_index_is_refused(tmp_path: Path) -> None:
    folder = write_diffusers_folder(tmp_path / "model", is_sharded=True)
    next((folder / "transformer").glob("*.index.json")).write_text("[]")
    with pytest.raises(TrainerError, match=r"index\.json is damaged"):
        read_config(folder)


def test_index_cannot_name_files_outside_of_its_folder(tmp_path: Path) -> None:
    folder = write_diffusers_folder(tmp_path / "model", is_sharded=True)
    index = next((folder / "transformer").glob("*.index.json"))
    index.write_text('{"weight_map": {"a": "../../other.safetensors"}}')
    with pytest.raises(TrainerError, match="which is missing"):
        read_config(folder)


def test_fingerprint_follows_content_and_role(tmp_path: Path) -> None:
    first = write_split(tmp_path, "transformer")
    second = tmp_path / "copy.safetensors"
    second.write_bytes(first.read_bytes())
    assert fingerprint_files([first]) == fingerprint_files([second])
    assert fingerprint_files([first, first]) != fingerprint_files([first])
    data = bytearray(second.read_bytes())
    data[-1] ^= 1
    second.write_bytes(bytes(data))
    assert fingerprint_files([first]) != fingerprint_files([second])
    assert fingerprint_files([first, second]) != fingerprint_files([second, first])


def test_fingerprint_of_a_folder_follows_its_weights(tmp_path: Path) -> None:
    folder = write_diffusers_folder(tmp_path / "model")
    before = fingerprint_files([folder])
    (folder / "README.md").write_text("not read")
    assert fingerprint_files([folder]) == before
    (folder / "tokenizer" / "tokenizer.model").write_bytes(b"other")
    assert fingerprint_files([folder]) != before


def test_large_files_are_sampled(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(b"start")
    os.truncate(path, 200 * 2**20)
    before = fingerprint_files([path])
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    assert fingerprint_files([path]) != before


MEASURE = """
import sys, torch
from pathlib import Path
from lumina2_trainer.trainer_core.lumina2.models.checkpoint import load_transformer, read_config
def peak():
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
read_config(Path(sys.argv[1]))
before = peak()
model = load_transformer(Path(sys.argv[1]), device=torch.device("cpu"), dtype=torch.float32)
print(peak() - before)
"""


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells a process its peak memory in /proc")
def test_loading_holds_no_second_copy(tmp_path: Path) -> None:
    config = dataclasses.replace(
        TINY, hidden_size=768, num_attention_heads=32, num_kv_heads=16, num_layers=2, mlp_size=3072
    )
    path = tmp_path / "model.safetensors"
    save_file(tiny_transformer(config).state_dict(), path, META)
    size = path.stat().st_size
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    assert 0.8 * size < int(done.stdout) < 1.3 * size
