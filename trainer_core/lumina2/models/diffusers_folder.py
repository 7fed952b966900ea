"""Writes a whole model as the folder that diffusers' Lumina2Pipeline opens."""

from __future__ import annotations

import os
import shutil
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...errors import TrainerError
from ...files import write_bytes_atomically, write_json_atomically, write_safetensors_atomically
from ..encoders.text_files import HEAD_SIZE, TextFiles, find_text_files
from ..network.transformer import Lumina2Config
from .model_files import Lumina2Model
from .name_map import diffusers_config
from .stored_parts import text_encoder_tensors, to_diffusers_tensors, transformer_tensors, vae_tensors

if TYPE_CHECKING:
    from tokenizers import Tokenizer


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


NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""Kinds of pieces that are treated differently; the others are bytes and unused pieces."""
SPACE = "\u2581"
"""What SentencePiece writes for a space."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One token of the vocabulary."""

    text: str
    score: float
    """The higher, the earlier its parts are joined."""
    kind: int


def read_pieces(spiece: bytes) -> list[Piece]:
    """The vocabulary of a SentencePiece file, in the order of token ids.

    Source: sentencepiece, src/sentencepiece_model.proto: field 1 of the model is a piece, with text, score and kind.
    """
    pieces = []
    for number, value in _read_fields(spiece):
        if number == 1 and isinstance(value, bytes):
            fields = dict(_read_fields(value))
            text, score, kind = fields[1], fields.get(2, b"\0\0\0\0"), fields.get(3, NORMAL)
            assert isinstance(text, bytes) and isinstance(score, bytes) and isinstance(kind, int), "no piece"
            pieces.append(Piece(text=text.decode(), score=struct.unpack("<f", score)[0], kind=kind))
    return pieces


def _read_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protobuf message, https://protobuf.dev/programming-guides/encoding."""
    position = 0

    def read_varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(data):
        number, wire_type = divmod(read_varint(), 8)
        if wire_type == 0:
            yield number, read_varint()
            continue
        length = {1: 8, 5: 4}.get(wire_type) or read_varint()
        yield number, data[position : position + length]
        position += length


def build_tokenizer(spiece: bytes, bos_id: int) -> Tokenizer:
    """A tokenizer that gives the ids of SentencePiece's byte-pair encoding, the beginning of the sequence first.

    transformers can convert the file too, but only with protobuf and sentencepiece installed.

    Args:
        spiece: The SentencePiece file.
        bos_id: Token id of the beginning of the sequence.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    pieces = read_pieces(spiece)
    vocabulary = {piece.text: index for index, piece in enumerate(pieces)}
    unknown = next(piece.text for piece in pieces if piece.kind == UNKNOWN)
    model = models.BPE(
        vocab=vocabulary, merges=_find_merges(pieces), unk_token=unknown, fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    special = [piece.text for piece in pieces if piece.kind in (UNKNOWN, CONTROL)]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    tokenizer.add_tokens([AddedToken(p.text, normalized=True) for p in pieces if p.kind == USER_DEFINED])
    bos = pieces[bos_id].text
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:1 $B:1", special_tokens=[(bos, bos_id)]
    )
    return tokenizer


def _find_merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes another, the highest score first: SentencePiece keeps the result only."""
    scores = {piece.text: piece.score for piece in pieces if piece.kind == NORMAL}
    pairs = [
        (text[:cut], text[cut:])
        for text in sorted(scores, key=lambda text: -scores[text])
        for cut in range(1, len(text))
    ]
    return [pair for pair in pairs if pair[0] in scores and pair[1] in scores]
