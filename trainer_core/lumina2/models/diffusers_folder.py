"""Writes a whole model as the folder that diffusers' Lumina2Pipeline opens."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch

from ...errors import TrainerError
from ...files import write_bytes_atomically, write_json_atomically, write_safetensors_atomically
from ..encoders.text_files import HEAD_SIZE, TextFiles, find_text_files
from ..network.transformer import Lumina2Config
from ..tokenizer_json import build_tokenizer
from .model_files import Lumina2Model
from .name_map import diffusers_config
from .stored_parts import text_encoder_tensors, to_diffusers_tensors, transformer_tensors, vae_tensors

INFERENCE_SHIFT = 6.0
"""Of the schedule that Lumina2 draws with."""
GEMMA_SOFT_CAP = 50.0
MLP_MULTIPLE = 256
"""diffusers rounds the MLP's width up to this."""
TOKENIZER_CHECK = "word word, a (red:1.2) chair\n\n on  white 😀 日本 कुर्सी"
MODEL_INDEX = {
    "_class_name": "Lumina2Pipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Gemma2Model"],
    "tokenizer": ["transformers", "GemmaTokenizerFast"],
    "transformer": ["diffusers", "Lumina2Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def write_diffusers_folder(model: Lumina2Model, folder: Path, dtype: torch.dtype) -> None:
    """Write all parts, one tensor at a time; the folder appears whole or not at all.

    Args:
        model: Its files.
        folder: Its final path, which must be free.
        dtype: Of the transformer; the other parts keep theirs.

    Raises:
        TrainerError: diffusers cannot build a transformer of this size.
    """
    import diffusers

    config, native = transformer_tensors(Path(model.base_path), dtype)
    transformer_config = _transformer_config(config, diffusers.__version__)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        write_json_atomically(temporary / "transformer" / "config.json", transformer_config)
        weights_path = temporary / "transformer" / "diffusion_pytorch_model.safetensors"
        write_safetensors_atomically(weights_path, to_diffusers_tensors(native, config), {"format": "pt"})
        _write_text_encoder(find_text_files(Path(model.text_encoder_path)), temporary)
        _write_vae(Path(model.vae_path), temporary / "vae")
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=INFERENCE_SHIFT)
        scheduler.save_pretrained(temporary / "scheduler")
        write_json_atomically(
            temporary / "model_index.json", {**MODEL_INDEX, "_diffusers_version": diffusers.__version__}
        )
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _transformer_config(config: Lumina2Config, version: str) -> dict[str, Any]:
    mlp_size = -(-4 * config.hidden_size // MLP_MULTIPLE) * MLP_MULTIPLE
    if config.mlp_size != mlp_size:
        raise TrainerError(
            f"the model's MLP is {config.mlp_size} wide, but diffusers' Lumina2 has {mlp_size} at width"
            f" {config.hidden_size}: save it in another layout"
        )
    return {
        "_class_name": "Lumina2Transformer2DModel",
        "_diffusers_version": version,
        **diffusers_config(config),
        "patch_size": config.patch_size,
        "in_channels": config.in_channels,
        "multiple_of": MLP_MULTIPLE,
        "norm_eps": config.norm_eps,
    }


def _write_text_encoder(files: TextFiles, folder: Path) -> None:
    from transformers import Gemma2Config

    sizes = files.sizes
    config = Gemma2Config(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.num_hidden_layers,
        num_attention_heads=sizes.num_attention_heads,
        num_key_value_heads=sizes.num_key_value_heads,
        head_dim=HEAD_SIZE,
        query_pre_attn_scalar=HEAD_SIZE,
        attn_logit_softcapping=GEMMA_SOFT_CAP,
        architectures=["Gemma2Model"],
    )
    config.save_pretrained(folder / "text_encoder")
    write_safetensors_atomically(
        folder / "text_encoder" / "model.safetensors", text_encoder_tensors(files), {"format": "pt"}
    )
    write_tokenizer(files.read_spiece(), folder / "tokenizer")


def write_tokenizer(spiece: bytes, folder: Path) -> None:
    """The SentencePiece file as it is, and as tokenizer.json."""
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_proto=spiece)
    tokenizer = build_tokenizer(spiece, pieces.bos_id())
    if tokenizer.encode(TOKENIZER_CHECK).ids != [pieces.bos_id(), *pieces.encode(TOKENIZER_CHECK)]:
        raise TrainerError(
            "the text encoder's tokenizer is not of Gemma2's kind, and tokenizer.json would read prompts differently:"
            " save the model in another layout"
        )
    ids = {"bos": pieces.bos_id(), "eos": pieces.eos_id(), "unk": pieces.unk_id(), "pad": pieces.pad_id()}
    names = {f"{kind}_token": pieces.id_to_piece(index) for kind, index in ids.items()}
    facts = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "add_eos_token": False, **names}
    write_bytes_atomically(folder / "tokenizer.model", spiece)
    write_bytes_atomically(folder / "tokenizer.json", tokenizer.to_str().encode())
    write_json_atomically(folder / "tokenizer_config.json", facts)


def _write_vae(path: Path, folder: Path) -> None:
    vae, tensors = vae_tensors(path)
    vae.save_config(folder)
    write_safetensors_atomically(folder / "diffusion_pytorch_model.safetensors", tensors, {"format": "pt"})
