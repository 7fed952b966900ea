"""Gemma2 on a device that cannot hold it: its layers come from the file one after the other, for many prompts at once.

Two layers lie on the device, 156 MB each of Gemma-2-2B in bfloat16: one computes while the next is read. A sweep over
the layers reads 3.9 GB; the embedding table stays in the file, of which the rows of the prompts' tokens are read.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..weights.module_weights import set_parameter
from ..weights.weight_files import TensorEntry
from ..weights.weight_reader import WeightReader
from .prompts import MAX_PROMPT_TOKENS
from .text_encoder import MAX_BATCH_TOKENS, build_without_last_layer, scale_embeds, tokenize
from .text_files import GemmaSizes, TextFiles

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from transformers import Gemma2Model

GROUP_TOKENS = 2**16
"""Tokens of a sweep, padding included: some 500 captions. On a GPU of 10 TFLOPS they take about 25 s, longer than
most disks need for the layers; the hidden states between two layers take 0.6 GB."""
NUM_SLOTS = 2
"""Layers on the device: one computes, the next is read."""
RESERVED_BYTES = 2**29
"""Left free for kernels, workspaces, what the allocator cannot use, and fp8 weights on their way to another dtype."""
WORKING_VALUES = 11
"""Float32 values that live at once for each token and each of the MLP's inner features: those 1.5 GiB that
MAX_BATCH_TOKENS names."""


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """How much is computed and kept on the device at a time."""

    batch_tokens: int
    """Tokens that go through a layer together, padding included."""
    resident_tokens: int
    """Tokens of a group whose hidden states stay on the device between two layers; those of the others lie in the
    computer's memory meanwhile."""

    def shrink(self) -> StreamPlan | None:
        """The next smaller plan, or None if there is none that is worth a try."""
        if self.batch_tokens <= MAX_PROMPT_TOKENS:
            return None
        return StreamPlan(batch_tokens=self.batch_tokens // 2, resident_tokens=0)


def whole_bytes(sizes: GemmaSizes, dtype: torch.dtype) -> int:
    """Bytes that the whole encoder takes on a GPU while it encodes, with what is left free beside it."""
    last = f"layers.{sizes.num_hidden_layers - 1}."
    shapes = {name: shape for name, shape in sizes.shapes().items() if not name.startswith((last, "norm."))}
    weights = sum(map(math.prod, shapes.values())) * dtype.itemsize
    return weights + _working_bytes(sizes, MAX_BATCH_TOKENS["cuda"]) + RESERVED_BYTES


def plan_stream(sizes: GemmaSizes, dtype: torch.dtype, free_bytes: int) -> StreamPlan:
    """Divide a device's free memory among layers, intermediate values and hidden states.

    Args:
        sizes: Of the encoder.
        dtype: Of its weights on the device.
        free_bytes: What may be taken there.

    Returns:
        The batches that the whole encoder takes if there is room for them, else smaller ones.
    """
    layer = {name: shape for name, shape in sizes.shapes().items() if name.startswith("layers.0.")}
    usable = free_bytes - RESERVED_BYTES - NUM_SLOTS * sum(map(math.prod, layer.values())) * dtype.itemsize
    batch_tokens = MAX_BATCH_TOKENS["cuda"]
    while batch_tokens > MAX_PROMPT_TOKENS and _working_bytes(sizes, batch_tokens) > usable:
        batch_tokens //= 2
    resident_bytes = max(0, usable - _working_bytes(sizes, batch_tokens))
    return StreamPlan(
        batch_tokens=batch_tokens, resident_tokens=min(resident_bytes // (4 * sizes.hidden_size), GROUP_TOKENS)
    )


def _working_bytes(sizes: GemmaSizes, num_tokens: int) -> int:
    return num_tokens * sizes.intermediate_size * WORKING_VALUES * 4


@dataclass(kw_only=True)
class _Piece:
    """Prompts that go through the layers together, with the state they are in."""

    lengths: Sequence[int]
    hidden_BLW: Tensor
    home: torch.device
    """Where the hidden states lie between two layers."""


class StreamedTextEncoder:
    """Turns prompts into the same embeddings as `TextEncoder`, with two of Gemma2's layers on the device."""

    def __init__(
        self,
        files: TextFiles,
        tokenizer: SentencePieceProcessor,
        *,
        device: torch.device,
        dtype: torch.dtype,
        text_attention: str,
        plan: StreamPlan,
    ) -> None:
        """Take two layers' memory on the device.

        Args:
            files: Stay where they are; read in each sweep.
            tokenizer: Of the same model.
            device: Where the layers compute.
            dtype: What they are stored as there.
            text_attention: Key of TEXT_ATTENTIONS.
            plan: See `plan_stream`.
        """
        model = build_without_last_layer(files, text_attention)
        self._layers = list(model.layers)
        self._first_layer = _InputsOfLayer(model.layers[0])
        model.layers = nn.ModuleList([self._first_layer])
        model.rotary_emb.to(device)
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._files = files
        self._device = device
        self._dtype = dtype
        self._plan = plan
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._fill_slots()

    def encode_batches(self, batches: Sequence[Sequence[str]], check: Callable[[], None]) -> Iterator[list[Tensor]]:
        """Encode many prompts with few readings of the layers.

        Args:
            batches: Prompts that the whole encoder would encode together.
            check: Called between layers and batches; may raise.

        Yields:
            The embeddings of each batch, as `TextEncoder.encode` gives them, but on either device.
        """
        ids = ([tokenize(self._tokenizer, prompt)[:MAX_PROMPT_TOKENS] for prompt in batch] for batch in batches)
        for group in _group(ids):
            pieces_of_batches = self._embed(group)
            self._sweep([piece for pieces in pieces_of_batches for piece in pieces], check)
            for pieces in pieces_of_batches:
                yield [
                    hidden[:length].float()
                    for piece in pieces
                    for hidden, length in zip(piece.hidden_BLW, piece.lengths, strict=True)
                ]
                pieces.clear()  # so that less and less memory is held

    def _fill_slots(self) -> None:
        """Give all layers the same few sets of parameters in turn."""
        for number, layer in enumerate(self._layers):
            for name, parameter in list(layer.named_parameters()):
                if number < NUM_SLOTS:
                    weight = torch.empty(parameter.shape, device=self._device, dtype=self._dtype)
                else:
                    weight = self._layers[number - NUM_SLOTS].get_parameter(name)
                set_parameter(layer, name, weight)

    @torch.no_grad()
    def _embed(self, group: Sequence[Sequence[Sequence[int]]]) -> list[list[_Piece]]:
        """The first layer's input for the batches of a group, divided as the plan says."""
        known, rows_NW = self._read_rows({token for batch in group for row in batch for token in row} | {0})
        places = {token: place for place, token in enumerate(known)}
        room = self._plan.resident_tokens
        batches: list[list[_Piece]] = []
        for batch in group:
            longest = max(map(len, batch))
            size = max(1, self._plan.batch_tokens // longest)
            padded_BL = torch.tensor([[places[t] for t in (*row, *[0] * (longest - len(row)))] for row in batch])
            batches.append([])
            for start in range(0, len(batch), size):
                part_BL = padded_BL[start : start + size]
                room -= part_BL.numel()
                home = self._device if room >= 0 else torch.device("cpu")
                embeds_BLW = scale_embeds(self._model, F.embedding(part_BL, rows_NW).to(self._device))
                hidden_BLW, _ = self._first_layer.record(self._model, embeds_BLW)
                lengths = [len(row) for row in batch[start : start + size]]
                batches[-1].append(_Piece(lengths=lengths, hidden_BLW=hidden_BLW.to(home), home=home))
        return batches

    def _read_rows(self, tokens: set[int]) -> tuple[list[int], Tensor]:
        """The tokens in order, and the table's row of each, on the CPU."""
        table, ordered = self._files.tensors["embed_tokens.weight"], sorted(tokens)
        rows_NW = torch.empty(len(ordered), table.shape[1], dtype=self._dtype)
        with WeightReader([table]) as reader:
            for token, row in zip(ordered, rows_NW, strict=True):
                reader.read(_row(table, token), row)
        return ordered, rows_NW

    @torch.no_grad()
    def _sweep(self, pieces: Sequence[_Piece], check: Callable[[], None]) -> None:
        """Take all pieces through all layers."""
        inputs: dict[int, dict[str, Any]] = {}  # by length; masks and rotations do not depend on the prompt
        entries = [entry for name, entry in self._files.tensors.items() if name.startswith("layers.")]
        with WeightReader(entries) as reader, self._finished_copies(), ThreadPoolExecutor(1, "layer-reader") as pool:
            reading = self._start_reading(0, reader, pool)
            for number, layer in enumerate(self._layers):
                arrived = reading.result()
                if arrived is not None:
                    torch.cuda.current_stream(self._device).wait_event(arrived)
                if number + 1 < len(self._layers):
                    reading = self._start_reading(number + 1, reader, pool)
                for piece in pieces:
                    check()
                    hidden_BLW = piece.hidden_BLW.to(self._device)
                    length = hidden_BLW.shape[1]
                    if length not in inputs:
                        _, inputs[length] = self._first_layer.record(self._model, hidden_BLW[:1])
                    output = layer(hidden_BLW, **inputs[length])
                    # transformers 4 gives a tuple
                    piece.hidden_BLW = (output[0] if isinstance(output, tuple) else output).to(piece.home)

    def _start_reading(
        self, number: int, reader: WeightReader, pool: ThreadPoolExecutor
    ) -> Future[torch.cuda.Event | None]:
        """Have a layer read into its slot once the layer that was there before has computed.

        Returns:
            The event after which it lies on the device; None on a CPU.
        """
        stream = self._stream
        computed = None if stream is None else torch.cuda.current_stream(self._device).record_event()

        def read() -> torch.cuda.Event | None:
            with torch.cuda.stream(stream):
                if computed is not None:
                    torch.cuda.current_stream().wait_event(computed)
                for name, parameter in self._layers[number].named_parameters():
                    reader.read(self._files.tensors[f"layers.{number}.{name}"], parameter.detach())
                return None if stream is None else stream.record_event()

        return pool.submit(read)

    @contextlib.contextmanager
    def _finished_copies(self) -> Iterator[None]:
        """Let no copy to a slot be under way when its memory may be given away, also after an error."""
        try:
            yield
        finally:
            if self._stream is not None:
                self._stream.synchronize()


class _InputsOfLayer(nn.Module):
    """Stands for Gemma2's layers and keeps what the model gives them, which differs among transformers' versions."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        if hasattr(layer, "attention_type"):  # transformers 4.53 and later 4 choose the mask by it
            self.attention_type = layer.attention_type
        self._inputs: tuple[Tensor, dict[str, Any]] | None = None

    def forward(self, hidden_states: Tensor, **inputs: Any) -> tuple[Tensor]:
        self._inputs = hidden_states, inputs
        return (hidden_states,)

    def record(self, model: Gemma2Model, embeds_BLW: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """The first layer's hidden states, and the mask and positions that every layer is given.

        All layers get the same: prompts are shorter than the window of those that have one.
        """
        assert embeds_BLW.shape[1] <= model.config.sliding_window, "windows hide tokens"
        model(inputs_embeds=embeds_BLW, use_cache=False)
        recorded, self._inputs = self._inputs, None
        assert recorded is not None, "the model called no layer"
        return recorded


def _group(batches: Iterable[list[list[int]]]) -> Iterator[list[list[list[int]]]]:
    """Batches of token ids, as many together as a sweep takes."""
    group: list[list[list[int]]] = []
    room = GROUP_TOKENS
    for batch in batches:
        num_tokens = len(batch) * max(map(len, batch))
        if group and num_tokens > room:
            yield group
            group, room = [], GROUP_TOKENS
        group.append(batch)
        room -= num_tokens
    if group:
        yield group


def _row(table: TensorEntry, number: int) -> TensorEntry:
    """One row of a stored table."""
    num_bytes = table.num_bytes // table.shape[0]
    return replace(table, shape=table.shape[1:], start=table.start + number * num_bytes, num_bytes=num_bytes)
