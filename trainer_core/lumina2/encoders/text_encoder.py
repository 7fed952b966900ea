"""The text encoder: transformers' Gemma2 up to the second-last hidden state, and its SentencePiece tokenizer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import TrainerError
from ..weights.module_weights import fill_parameters
from .prompts import MAX_PROMPT_TOKENS, describe_syntax, shorten, unescape
from .text_files import HEAD_SIZE, TextFiles, find_text_files
from .upcast_linear import UpcastLinear

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from transformers import Gemma2Model

TEXT_ATTENTIONS: dict[str, float | None] = {"comfyui": None, "original": 50.0}
"""tanh cap of Gemma2's attention logits by choice: ComfyUI has none, Gemma2 was trained with 50."""
MAX_BATCH_TOKENS = {"cuda": 4096, "cpu": 1024}
"""Tokens of a batch by the kind of device, padding included: where more no longer helps. On a GPU the intermediate
values of Gemma-2-2B take about 1.5 GiB, on a CPU 0.2."""


class TextEncoder:
    """Turns prompts into the embeddings that the network reads."""

    def __init__(self, model: Gemma2Model, tokenizer: SentencePieceProcessor) -> None:
        """Take a Gemma2 without its last layer and final norm; `load_text_encoder` makes one."""
        self.model = model
        self.tokenizer = tokenizer

    @property
    def device(self) -> torch.device:
        """Where the weights are and the embeddings come out."""
        return self.model.device

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """Gemma2's hidden_states[-2] of each prompt, encoded together.

        The computation is float32 even where the weights are not, as in ComfyUI.

        Args:
            prompts: With their system prompt; see `prompts.build_prompt`.

        Returns:
            [tokens, width] float32 of each prompt on the encoder's device: the beginning-of-sequence token first, no
            padding, at most MAX_PROMPT_TOKENS tokens.
        """
        ids = [tokenize(self.tokenizer, prompt)[:MAX_PROMPT_TOKENS] for prompt in prompts]
        longest = max(len(row) for row in ids)
        # Attention is causal, so padding on the right changes no token before it and needs no mask.
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids], device=self.device)
        embeds = scale_embeds(self.model, F.embedding(padded, self.model.embed_tokens.weight))
        hidden_states = self.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        return [hidden[: len(row)].float() for hidden, row in zip(hidden_states, ids, strict=True)]

    def encode_batches(self, batches: Sequence[Sequence[str]], check: Callable[[], None]) -> Iterator[list[Tensor]]:
        """Encode one batch after the other, each when it is wanted.

        Args:
            batches: See `encode`.
            check: Called before each batch; may raise.
        """
        for batch in batches:
            check()
            yield self.encode(batch)


def tokenize(tokenizer: SentencePieceProcessor, prompt: str) -> list[int]:
    """Token ids of a prompt before it is cut, the beginning of the sequence first."""
    return tokenizer.encode(unescape(prompt))


def scale_embeds(model: Gemma2Model, rows: Tensor) -> Tensor:
    """What Gemma2 takes in place of token ids.

    Args:
        model: Who takes it.
        rows: [B, L, width] of the embedding table, in its dtype.

    Returns:
        [B, L, width] float32.
    """
    if hasattr(model.embed_tokens, "embed_scale"):  # transformers 5; older ones scale inside the model
        return rows.float() * rows.shape[-1] ** 0.5
    return rows.float()


def count_tokens(tokenizer: SentencePieceProcessor, prompt: str) -> int:
    """Tokens of a prompt before it is cut to MAX_PROMPT_TOKENS, the beginning of the sequence included."""
    return len(tokenize(tokenizer, prompt))


def describe_differences(tokenizer: SentencePieceProcessor, prompts: Sequence[str]) -> list[str]:
    """Say which prompts ComfyUI would encode differently by design, and why.

    Args:
        tokenizer: Gemma2's.
        prompts: As for `TextEncoder.encode`.

    Returns:
        A sentence for each reason and prompt; empty if all are encoded alike.
    """
    messages = []
    for prompt in prompts:
        messages += describe_syntax(prompt)
        num_tokens = count_tokens(tokenizer, prompt)
        if num_tokens > MAX_PROMPT_TOKENS:
            messages.append(
                f"{shorten(prompt)} has {num_tokens} tokens: training reads the first {MAX_PROMPT_TOKENS},"
                " ComfyUI reads them all"
            )
    return messages


def load_token_counter(path: Path) -> Callable[[str], int]:
    """What counts a prompt's tokens as `count_tokens` does, without reading the model's weights.

    Args:
        path: As for `load_text_encoder`.

    Raises:
        TrainerError: It is not a whole Gemma2 with its tokenizer.
    """
    return functools.partial(count_tokens, load_tokenizer(find_text_files(path)))


def load_text_encoder(path: Path, *, device: torch.device, dtype: torch.dtype, text_attention: str) -> TextEncoder:
    """Load Gemma2 and its tokenizer, frozen and in evaluation mode.

    Args:
        path: All-in-one or text encoder `.safetensors`, or a diffusers folder.
        device: Where the weights go, one by one.
        dtype: What they are stored as there.
        text_attention: Key of TEXT_ATTENTIONS.

    Raises:
        TrainerError: It is not a whole Gemma2 with its tokenizer.
    """
    files = find_text_files(path)
    tokenizer = load_tokenizer(files)
    model = build_without_last_layer(files, text_attention)
    needed = dict(model.named_parameters())
    plan = {name: [entry] for name, entry in files.tensors.items() if name in needed}
    fill_parameters(model, plan, device=device, dtype=dtype)
    return TextEncoder(model.to(device).eval().requires_grad_(False), tokenizer)


def load_tokenizer(files: TextFiles) -> SentencePieceProcessor:
    """Gemma2's tokenizer, which must be of the same model as the weights.

    Raises:
        TrainerError: It is damaged or of another model.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        tokenizer = SentencePieceProcessor(model_proto=files.read_spiece(), add_bos=True, add_eos=False)
    except RuntimeError:
        raise TrainerError(f"{files.what} has a damaged tokenizer: download the file again") from None
    if tokenizer.get_piece_size() > files.sizes.vocab_size:
        raise TrainerError(
            f"{files.what} embeds {files.sizes.vocab_size} tokens but its tokenizer has {tokenizer.get_piece_size()}:"
            " they are of different models"
        )
    return tokenizer


def build_without_last_layer(files: TextFiles, text_attention: str) -> Gemma2Model:
    """Gemma2 whose output is hidden_states[-2]: parameters on the meta device, computed tables on the host."""
    from accelerate import init_empty_weights
    from transformers import Gemma2Config, Gemma2Model

    sizes = files.sizes
    config = Gemma2Config(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.num_hidden_layers - 1,
        num_attention_heads=sizes.num_attention_heads,
        num_key_value_heads=sizes.num_key_value_heads,
        head_dim=HEAD_SIZE,
        query_pre_attn_scalar=HEAD_SIZE,
        attn_logit_softcapping=TEXT_ATTENTIONS[text_attention],
        attn_implementation="eager",  # transformers 5.23 has the soft cap in no other
    )
    with init_empty_weights(include_buffers=False):
        model = Gemma2Model(config)
        for name, linear in [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]:
            owner, _, attribute = name.rpartition(".")
            upcast = UpcastLinear(linear.in_features, linear.out_features, bias=False)
            setattr(model.get_submodule(owner), attribute, upcast)
    model.norm = nn.Identity()
    return model
