"""Gemma2 in the way that fits: whole where the device has room, else layer by layer; also after memory ran out."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...device import available_memory, free_memory, is_out_of_memory
from .streamed_text_encoder import StreamedTextEncoder, StreamPlan, plan_stream, whole_bytes
from .text_encoder import (
    MAX_BATCH_TOKENS,
    TextEncoder,
    count_tokens,
    describe_differences,
    load_text_encoder,
    load_tokenizer,
)
from .text_files import find_text_files

logger = logging.getLogger(__name__)

GIB = 2**30


class FittingTextEncoder:
    """Turns prompts into the embeddings that the network reads; loads Gemma2 when the first are wanted."""

    def __init__(self, path: Path, *, device: torch.device, dtype: torch.dtype, text_attention: str) -> None:
        """
        Args:
            path: All-in-one or text encoder `.safetensors`, or a diffusers folder.
            device: Where Gemma2 computes.
            dtype: What its weights are stored as there.
            text_attention: Key of TEXT_ATTENTIONS.

        Raises:
            TrainerError: It is not a whole Gemma2 with its tokenizer.
        """
        self._path = path
        self._device = device
        self._dtype = dtype
        self._text_attention = text_attention
        self._files = find_text_files(path)
        self._tokenizer = load_tokenizer(self._files)
        self._encoder: TextEncoder | StreamedTextEncoder | None = None
        self._plan: StreamPlan | None = None  # the whole encoder

    @property
    def max_batch_tokens(self) -> int:
        """Tokens, with padding, to encode at once."""
        return MAX_BATCH_TOKENS.get(self._device.type, MAX_BATCH_TOKENS["cpu"])

    def count_tokens(self, prompt: str) -> int:
        """Tokens of a prompt before it is cut to MAX_PROMPT_TOKENS, the beginning of the sequence included."""
        return count_tokens(self._tokenizer, prompt)

    def describe_differences(self, prompts: Sequence[str]) -> list[str]:
        """Say which prompts ComfyUI would encode differently by design, and why; a sentence each."""
        return describe_differences(self._tokenizer, prompts)

    def encode_batches(self, batches: Sequence[Sequence[str]], check: Callable[[], None]) -> Iterator[list[Tensor]]:
        """Encode batches in order, each as soon as it is wanted where the whole encoder fits.

        Args:
            batches: Prompts to encode together.
            check: Called between parts of the work; may raise.

        Yields:
            [tokens, width] float32 of each prompt of a batch; see `TextEncoder.encode`.
        """
        if self._encoder is None:
            self._plan = self._choose_plan()
        num_done = 0
        while num_done < len(batches):
            try:
                self._encoder = self._encoder or self._load()
                for embeds in self._encoder.encode_batches(batches[num_done:], check):
                    num_done += 1
                    yield embeds
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or not self._shrink(error):
                    raise

    def _choose_plan(self) -> StreamPlan | None:
        """None if the whole encoder fits."""
        if self._device.type != "cuda":
            return None
        free, _ = available_memory(self._device)
        needed = whole_bytes(self._files.sizes, self._dtype)
        if needed <= free:
            return None
        logger.info(
            "Gemma2 takes %.1f GiB of the GPU's memory and %.1f are free: its layers are read from the file one after"
            " the other, for many captions at once",
            needed / GIB,
            free / GIB,
        )
        return plan_stream(self._files.sizes, self._dtype, free)

    def _load(self) -> TextEncoder | StreamedTextEncoder:
        if self._plan is None:
            return load_text_encoder(
                self._path, device=self._device, dtype=self._dtype, text_attention=self._text_attention
            )
        return StreamedTextEncoder(
            self._files,
            self._tokenizer,
            device=self._device,
            dtype=self._dtype,
            text_attention=self._text_attention,
            plan=self._plan,
        )

    def _shrink(self, error: BaseException) -> bool:
        """Free what ran out of memory and take the next smaller plan; whether there is one."""
        traceback.clear_frames(error.__traceback__)  # they hold tensors
        self._encoder = None
        free_memory(self._device)
        if self._plan is None:
            plan: StreamPlan | None = plan_stream(self._files.sizes, self._dtype, available_memory(self._device)[0])
        else:
            plan = self._plan.shrink()
        if plan is None:
            return False
        self._plan = plan
        logger.warning(
            "encoding captions ran out of memory: going on with Gemma2's layers read from the file one after the other,"
            " %d tokens at once",
            plan.batch_tokens,
        )
        return True
