"""Finds Gemma2's weights and its SentencePiece file in every layout users have, and checks them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import TrainerError
from ..weights.foreign_models import describe_foreign
from ..weights.module_weights import Shapes, check_names_and_shapes, check_storage
from ..weights.weight_files import TensorEntry, read_bytes, read_folder_weights, read_weights

ALL_IN_ONE_TEXT_PREFIX = "text_encoders.gemma2_2b.transformer.model."
ALL_IN_ONE_TOKENIZER_NAME = "text_encoders.spiece_model"
SPLIT_TEXT_PREFIX = "model."
SPLIT_TOKENIZER_NAME = "spiece_model"

HEAD_SIZE = 256
"""Of Gemma-2-2B. ComfyUI fixes it, and no shape tells it apart from the number of heads."""


@dataclass(frozen=True, kw_only=True)
class GemmaSizes:
    """What differs between Gemma-2-2B and a smaller one of its kind."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int

    def shapes(self) -> Shapes:
        """Every weight of transformers' Gemma2Model; written out here because importing it takes seconds."""
        width, mlp = self.hidden_size, self.intermediate_size
        query_rows, key_rows = self.num_attention_heads * HEAD_SIZE, self.num_key_value_heads * HEAD_SIZE
        layer: Shapes = {
            "self_attn.q_proj": (query_rows, width),
            "self_attn.k_proj": (key_rows, width),
            "self_attn.v_proj": (key_rows, width),
            "self_attn.o_proj": (width, query_rows),
            "mlp.gate_proj": (mlp, width),
            "mlp.up_proj": (mlp, width),
            "mlp.down_proj": (width, mlp),
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
            "pre_feedforward_layernorm": (width,),
            "post_feedforward_layernorm": (width,),
        }
        layers = {
            f"layers.{i}.{name}.weight": shape for i in range(self.num_hidden_layers) for name, shape in layer.items()
        }
        return {"embed_tokens.weight": (self.vocab_size, width), "norm.weight": (width,), **layers}


@dataclass(frozen=True, kw_only=True)
class TextFiles:
    """A checked text encoder, before a weight is read."""

    what: str
    """The file, for messages."""
    sizes: GemmaSizes
    tensors: Mapping[str, TensorEntry]
    """By the names of transformers' Gemma2Model."""
    spiece: TensorEntry | Path
    """The SentencePiece model: a uint8 tensor among the weights, or a file."""

    def read_spiece(self) -> bytes:
        """The content of the SentencePiece file."""
        return self.spiece.read_bytes() if isinstance(self.spiece, Path) else read_bytes(self.spiece)


def find_text_files(path: Path) -> TextFiles:
    """Find weights and tokenizer and check them from the headers alone.

    Args:
        path: All-in-one or text encoder `.safetensors`, or a diffusers folder.

    Raises:
        TrainerError: It is not a whole Gemma2 with its tokenizer.
    """
    what = f"text_encoder {path.name}"
    tensors, spiece = _find_in_folder(what, path) if path.is_dir() else _find_in_file(what, path)
    sizes = _infer_sizes(what, {name: entry.shape for name, entry in tensors.items()})
    check_names_and_shapes(what, sizes.shapes(), {name: entry.shape for name, entry in tensors.items()})
    check_storage(what, {name: [entry] for name, entry in tensors.items()})
    return TextFiles(what=what, sizes=sizes, tensors=tensors, spiece=spiece)


def _find_in_file(what: str, path: Path) -> tuple[Mapping[str, TensorEntry], TensorEntry]:
    weights = read_weights(path)
    layouts = ((ALL_IN_ONE_TEXT_PREFIX, ALL_IN_ONE_TOKENIZER_NAME), (SPLIT_TEXT_PREFIX, SPLIT_TOKENIZER_NAME))
    for prefix, tokenizer_name in layouts:
        if f"{prefix}embed_tokens.weight" in weights.tensors:
            spiece = weights.tensors.get(tokenizer_name)
            if spiece is None or spiece.dtype != "U8":
                raise TrainerError(
                    f"{what} has no {tokenizer_name}, the tokenizer: choose a file made for ComfyUI's Lumina2"
                )
            return weights.select(prefix).tensors, spiece
    foreign = describe_foreign(weights.tensors)
    is_other = f" but {foreign}" if foreign and foreign != "a text encoder" else ""
    raise TrainerError(
        f"{what} is no Gemma2{is_other}: choose Lumina2's Gemma-2-2B, or an all-in-one file that holds it"
    )


def _find_in_folder(what: str, path: Path) -> tuple[Mapping[str, TensorEntry], Path]:
    config_path, spiece_path = path / "text_encoder" / "config.json", path / "tokenizer" / "tokenizer.model"
    for needed in (config_path, spiece_path):
        if not needed.is_file():
            raise TrainerError(
                f"{what} is a folder without {needed.parent.name}/{needed.name}: choose a whole diffusers model folder"
            )
    config = json.loads(config_path.read_text("utf-8"))
    if config.get("model_type") != "gemma2" or config.get("head_dim", HEAD_SIZE) != HEAD_SIZE:
        raise TrainerError(
            f"{what} is a {config.get('model_type')} with heads of {config.get('head_dim')}:"
            f" Lumina2 has a gemma2 with heads of {HEAD_SIZE}"
        )
    weights = read_folder_weights(config_path.parent)
    inner = weights.select(SPLIT_TEXT_PREFIX)
    return (inner if inner.tensors else weights).tensors, spiece_path


def _infer_sizes(what: str, shapes: Shapes) -> GemmaSizes:
    needed = (
        "embed_tokens.weight",
        "layers.0.mlp.gate_proj.weight",
        "layers.0.self_attn.q_proj.weight",
        "layers.0.self_attn.k_proj.weight",
    )
    for name in needed:
        if len(shapes.get(name, ())) != 2:
            raise TrainerError(f"{what} has no {name} as Gemma2 has it: choose Lumina2's Gemma-2-2B")
    if "layers.0.self_attn.q_norm.weight" in shapes or "layers.0.post_feedforward_layernorm.weight" not in shapes:
        raise TrainerError(f"{what} is a language model other than Gemma2: choose Lumina2's Gemma-2-2B")
    query_rows, key_rows = shapes[needed[2]][0], shapes[needed[3]][0]
    if query_rows % HEAD_SIZE or key_rows % HEAD_SIZE:
        raise TrainerError(f"{what} has {query_rows} query rows: Gemma-2-2B has heads of {HEAD_SIZE}; choose that one")
    return GemmaSizes(
        vocab_size=shapes[needed[0]][0],
        hidden_size=shapes[needed[0]][1],
        intermediate_size=shapes[needed[1]][0],
        num_hidden_layers=len({name.split(".")[1] for name in shapes if name.startswith("layers.")}),
        num_attention_heads=query_rows // HEAD_SIZE,
        num_key_value_heads=key_rows // HEAD_SIZE,
    )
