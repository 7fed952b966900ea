"""Small random models written in every layout that users have."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from lumina2_trainer.trainer_core.files import write_safetensors_atomically
from lumina2_trainer.trainer_core.lumina2.encoders.vae_names import to_ldm_state_dict
from lumina2_trainer.trainer_core.lumina2.models.checkpoint import AXES_DIMS_KEY
from lumina2_trainer.trainer_core.lumina2.models.name_map import to_diffusers_state_dict
from lumina2_trainer.trainer_core.lumina2.models.save import join_parts
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Config, Lumina2Transformer
from safetensors.torch import save_file
from torch import Tensor

from .tiny_models import TINY, randomise, tiny_transformer

GEMMA_WIDTH = TINY.cap_feat_dim
NUM_GEMMA_LAYERS = 3
VOCAB_SIZE = 400

SENTENCES = [
    "a red (wooden) chair beside the window",
    "two cats sleep on a warm roof :)",
    "an old map, drawn by hand (1:20000)",
    "एक लाल कुर्सी खिड़की के पास",
    "一只猫睡在屋顶上",
    "a smiling face 😀 on white",
]


@functools.cache
def train_spiece() -> bytes:
    """A SentencePiece model of Gemma's kind: byte pairs with byte fallback, and pad 0, eos 1, bos 2, unk 3."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return model.getvalue()


def tiny_gemma(softcap: float | None = None) -> torch.nn.Module:
    """transformers' Gemma2Model with random weights, whole."""
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=GEMMA_WIDTH,
        intermediate_size=56,
        num_hidden_layers=NUM_GEMMA_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        attn_logit_softcapping=softcap,
        attn_implementation="eager",
    )
    return randomise(Gemma2Model(config), seed=3).eval()


def tiny_vae(
    channels: tuple[int, ...] = (32, 64, 96, 96), layers_per_block: int = 1, *, quant_convs: bool = False
) -> torch.nn.Module:
    """diffusers' AutoencoderKL with random weights."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=layers_per_block,
        latent_channels=16,
        use_quant_conv=quant_convs,
        use_post_quant_conv=quant_convs,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )
    return randomise(vae, seed=4).eval()


def save_all_in_one(
    path: Path,
    *,
    transformer: Lumina2Transformer,
    text_encoder_state: Mapping[str, Tensor],
    spiece_bytes: bytes,
    vae_state: Mapping[str, Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write transformer, text encoder, tokenizer and VAE, each weight in the dtype it has.

    Args:
        path: The `.safetensors` file.
        transformer: Without an adapter.
        text_encoder_state: A transformers Gemma2Model's weights (`embed_tokens.weight`, `layers.0...`, `norm.weight`).
        spiece_bytes: The SentencePiece model's file.
        vae_state: A diffusers AutoencoderKL's weights.
        metadata: Added to the file's metadata; the head's axes are written by themselves.
    """
    tensors = join_parts(transformer.state_dict(), text_encoder_state, spiece_bytes, to_ldm_state_dict(vae_state))
    axes = {AXES_DIMS_KEY: json.dumps(list(transformer.config.axes_dims))}
    write_safetensors_atomically(path, tensors, {**metadata, **axes})


def write_all_in_one(path: Path, config: Lumina2Config = TINY) -> Path:
    """One file with all three parts in float32."""
    save_all_in_one(
        path,
        transformer=tiny_transformer(config),
        text_encoder_state=tiny_gemma().state_dict(),
        spiece_bytes=train_spiece(),
        vae_state=tiny_vae().state_dict(),
        metadata={"modelspec.title": "tiny"},
    )
    return path


def split_state(part: str) -> dict[str, Tensor]:
    """Weights of one part as a split file holds them: "transformer", "text_encoder" or "vae"."""
    if part == "transformer":
        return dict(tiny_transformer().state_dict())
    if part == "vae":
        return {name: tensor.contiguous() for name, tensor in to_ldm_state_dict(tiny_vae().state_dict()).items()}
    gemma = {f"model.{name}": tensor for name, tensor in tiny_gemma().state_dict().items()}
    return {**gemma, "spiece_model": torch.frombuffer(bytearray(train_spiece()), dtype=torch.uint8)}


def write_split(folder: Path, part: str, state: dict[str, Tensor] | None = None) -> Path:
    """One part as a file of its own; TINY's unequal axes are in the metadata."""
    path = folder / f"{part}.safetensors"
    metadata = {"lumina2_trainer.axes_dims": json.dumps(TINY.axes_dims)} if part == "transformer" else None
    save_file(state if state is not None else split_state(part), path, metadata)
    return path


def write_diffusers_folder(folder: Path, *, is_sharded: bool = False) -> Path:
    """All parts as diffusers saves them, through diffusers' and transformers' own writers where they have one."""
    from diffusers import Lumina2Transformer2DModel

    transformer = Lumina2Transformer2DModel(
        hidden_size=TINY.hidden_size,
        num_layers=TINY.num_layers,
        num_attention_heads=TINY.num_attention_heads,
        num_kv_heads=TINY.num_kv_heads,
        cap_feat_dim=TINY.cap_feat_dim,
        axes_dim_rope=TINY.axes_dims,
    )
    transformer.load_state_dict(to_diffusers_state_dict(tiny_transformer().state_dict(), TINY))
    transformer.save_pretrained(folder / "transformer", max_shard_size="1MB" if is_sharded else "10GB")
    tiny_gemma().save_pretrained(folder / "text_encoder")
    tiny_vae().save_pretrained(folder / "vae")
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.model").write_bytes(train_spiece())
    return folder
