"""From the widgets of Load Lumina2 to checked files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.context import StepContext
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.lumina2.models import base_files
from lumina2_trainer.trainer_core.lumina2.models.base_files import find_model_files
from lumina2_trainer.trainer_core.lumina2.models.model_files import LoadSettings
from safetensors import safe_open

from ..tiny_files import train_spiece, write_all_in_one, write_diffusers_folder, write_split
from ..tiny_models import CPU, TINY


def make_context(tmp_path: Path) -> StepContext:
    kinds = ("checkpoints", "diffusion_models", "diffusers", "text_encoders", "vae")
    for kind in kinds:
        (tmp_path / kind).mkdir(exist_ok=True)
    dirs = {kind: (tmp_path / kind,) for kind in kinds}
    return StepContext(output_dir=tmp_path / "out", loras_dir=tmp_path / "loras", device=CPU, model_dirs=dirs)


def test_all_in_one_file_serves_all_parts(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    path = write_all_in_one(tmp_path / "checkpoints" / "tiny.safetensors")
    model = find_model_files(
        LoadSettings(base="tiny.safetensors", precision="fp32", text_attention="original"), context=context
    )
    assert {model.base_path, model.text_encoder_path, model.vae_path} == {str(path)}
    assert (model.name, model.precision, model.text_attention) == ("tiny.safetensors", "fp32", "original")
    assert len(model.fingerprint) == 64


def test_split_files_are_found_in_their_folders(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    write_split(tmp_path / "diffusion_models", "transformer")
    write_split(tmp_path / "text_encoders", "text_encoder")
    write_split(tmp_path / "vae", "vae")
    settings = LoadSettings(
        base="transformer.safetensors", text_encoder="text_encoder.safetensors", vae="vae.safetensors"
    )
    model = find_model_files(settings, context=context)
    assert Path(model.base_path).parent.name == "diffusion_models"
    assert Path(model.text_encoder_path).parent.name == "text_encoders"
    assert Path(model.vae_path).parent.name == "vae"


def test_fingerprint_follows_every_part(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    write_all_in_one(tmp_path / "checkpoints" / "tiny.safetensors")
    write_split(tmp_path / "vae", "vae")
    whole = find_model_files(LoadSettings(base="tiny.safetensors"), context=context)
    mixed = find_model_files(LoadSettings(base="tiny.safetensors", vae="vae.safetensors"), context=context)
    assert whole.fingerprint != mixed.fingerprint


def test_diffusers_folder_is_one_model(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    write_diffusers_folder(tmp_path / "diffusers" / "tiny")
    model = find_model_files(LoadSettings(base="tiny"), context=context)
    assert model.name == "tiny"


def test_parts_that_a_split_base_lacks_are_named(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    write_split(tmp_path / "diffusion_models", "transformer")
    write_split(tmp_path / "text_encoders", "text_encoder")
    with pytest.raises(TrainerError, match=r"base transformer\.safetensors holds no text encoder: choose one"):
        find_model_files(LoadSettings(base="transformer.safetensors"), context=context)
    settings = LoadSettings(base="transformer.safetensors", text_encoder="text_encoder.safetensors")
    with pytest.raises(TrainerError, match=r"base transformer\.safetensors holds no VAE: choose one"):
        find_model_files(settings, context=context)


def test_text_encoder_of_another_width_is_refused(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    write_all_in_one(tmp_path / "checkpoints" / "wide.safetensors", dataclasses.replace(TINY, cap_feat_dim=44))
    with pytest.raises(TrainerError, match=r"text_encoder wide\.safetensors is 40 wide but base .* reads 44"):
        find_model_files(LoadSettings(base="wide.safetensors"), context=context)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    with pytest.raises(TrainerError, match=r"base 'nothing\.safetensors' was not found; searched"):
        find_model_files(LoadSettings(base="nothing.safetensors"), context=context)


def test_demo_is_the_packs_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "demo.safetensors"
    monkeypatch.setattr(base_files, "DEMO_MODEL_PATH", path)
    with pytest.raises(TrainerError, match="is not part of this copy"):
        find_model_files(LoadSettings(), context=make_context(tmp_path))
    write_all_in_one(path)
    assert find_model_files(LoadSettings(), context=make_context(tmp_path)).base_path == str(path)


def test_all_in_one_file_has_the_names_that_comfyui_reads(tmp_path: Path) -> None:
    with safe_open(write_all_in_one(tmp_path / "tiny.safetensors"), "pt") as file:
        names = set(file.keys())
        assert {
            "model.diffusion_model.layers.0.attention.qkv.weight",
            "model.diffusion_model.cap_embedder.1.weight",
            "text_encoders.gemma2_2b.transformer.model.embed_tokens.weight",
            "text_encoders.gemma2_2b.transformer.model.layers.2.post_feedforward_layernorm.weight",
            "text_encoders.gemma2_2b.transformer.model.norm.weight",
            "vae.encoder.down.0.block.0.conv1.weight",
            "vae.decoder.mid.attn_1.proj_out.weight",
        } <= names
        assert file.get_slice("vae.decoder.mid.attn_1.q.weight").get_shape() == [96, 96, 1, 1]
        spiece = file.get_tensor("text_encoders.spiece_model")
        assert spiece.dtype == torch.uint8
        assert bytes(spiece.numpy()) == train_spiece()
        assert file.metadata() == {
            "modelspec.title": "tiny",
            "lumina2_trainer.axes_dims": json.dumps(TINY.axes_dims),
        }
