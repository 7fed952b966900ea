"""Gemma2 layer by layer on a GPU: the same embeddings, within the memory it plans for, and after memory ran out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.lumina2.encoders import fitting_text_encoder
from lumina2_trainer.trainer_core.lumina2.encoders.fitting_text_encoder import FittingTextEncoder
from lumina2_trainer.trainer_core.lumina2.encoders.streamed_text_encoder import (
    NUM_SLOTS,
    RESERVED_BYTES,
    StreamedTextEncoder,
    plan_stream,
    whole_bytes,
)
from lumina2_trainer.trainer_core.lumina2.encoders.text_encoder import (
    TEXT_ATTENTIONS,
    load_text_encoder,
    load_tokenizer,
)
from lumina2_trainer.trainer_core.lumina2.encoders.text_files import GemmaSizes, find_text_files
from torch import Tensor

from ..lumina2.tiny_files import SENTENCES, VOCAB_SIZE, split_state, write_split
from ..lumina2.tiny_models import CPU, relative_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")

GPU = torch.device("cuda")
MIDDLE = GemmaSizes(
    vocab_size=VOCAB_SIZE,
    hidden_size=576,
    intermediate_size=2304,
    num_hidden_layers=13,
    num_attention_heads=2,
    num_key_value_heads=1,
)
"""A quarter of Gemma-2-2B's width, in the same proportions."""
LAYER_BYTES = sum(2 * math.prod(shape) for name, shape in MIDDLE.shapes().items() if name.startswith("layers.0."))
TOKEN_BYTES = 4 * MIDDLE.hidden_size
BATCHES = [SENTENCES, *[["word " * 400, "a red chair " * 100] * 8] * 5]
"""The last have 16 prompts of 256 tokens each."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in bfloat16, of the size a trained one's have."""
    generator = torch.Generator().manual_seed(0)
    state = {"spiece_model": split_state("text_encoder")["spiece_model"]}
    for name, shape in MIDDLE.shapes().items():
        drawn = torch.randn(shape, generator=generator) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.1)
        state[f"model.{name}"] = drawn.bfloat16()
    return write_split(tmp_path_factory.mktemp("text"), "text_encoder", state)


def encode_whole(path: Path, text_attention: str = "comfyui", *, device: torch.device = GPU) -> Iterator[list[Tensor]]:
    encoder = load_text_encoder(path, device=device, dtype=torch.bfloat16, text_attention=text_attention)
    return encoder.encode_batches(BATCHES, lambda: None)


def on_the_cpu(batches: Iterator[list[Tensor]]) -> list[Tensor]:
    return [embeds.cpu() for batch in batches for embeds in batch]


def test_middle_gemma_equals_the_cpus(path: Path) -> None:
    ours, theirs = (next(encode_whole(path, device=device)) for device in (GPU, CPU))
    for actual, expected in zip(ours, theirs, strict=True):
        assert relative_error(actual.cpu(), expected) <= 1e-5


@pytest.mark.parametrize("text_attention", TEXT_ATTENTIONS)
@pytest.mark.parametrize(("batch_tokens", "resident_tokens"), [(4096, 65536), (4096, 6000), (1024, 0)])
def test_layers_take_no_more_memory_than_is_planned_for(
    batch_tokens: int, resident_tokens: int, text_attention: str, path: Path
) -> None:
    expected = on_the_cpu(encode_whole(path, text_attention))
    files = find_text_files(path)
    working = batch_tokens * MIDDLE.intermediate_size * 11 * 4
    allowed = NUM_SLOTS * LAYER_BYTES + working + resident_tokens * TOKEN_BYTES
    plan = plan_stream(MIDDLE, torch.bfloat16, allowed + RESERVED_BYTES)
    assert (plan.batch_tokens, plan.resident_tokens) == (batch_tokens, resident_tokens)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    encoder = StreamedTextEncoder(
        files, load_tokenizer(files), device=GPU, dtype=torch.bfloat16, text_attention=text_attention, plan=plan
    )
    actual = on_the_cpu(encoder.encode_batches(BATCHES, lambda: None))
    peak = torch.cuda.max_memory_allocated() - before
    assert peak <= allowed, f"{peak / 2**20:.0f} of {allowed / 2**20:.0f} MiB"
    del encoder
    assert torch.cuda.memory_allocated() == before
    for ours, theirs in zip(actual, expected, strict=True):
        if batch_tokens == 4096:  # the batches of the whole
            assert torch.equal(ours, theirs)
        else:
            assert relative_error(ours, theirs) <= 1e-5


@pytest.mark.parametrize("is_enough", [True, False])
def test_free_memory_decides(
    is_enough: bool, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free = whole_bytes(MIDDLE, torch.bfloat16) - (0 if is_enough else 1)
    monkeypatch.setattr(fitting_text_encoder, "available_memory", lambda device: (free, 2 * free))
    encoder = FittingTextEncoder(path, device=GPU, dtype=torch.bfloat16, text_attention="comfyui")
    with caplog.at_level(logging.INFO):
        actual = on_the_cpu(encoder.encode_batches(BATCHES, lambda: None))
    assert ["one after the other" in record.getMessage() for record in caplog.records] == [True] * (not is_enough)
    for ours, theirs in zip(actual, on_the_cpu(encode_whole(path)), strict=True):
        assert torch.equal(ours, theirs)


@pytest.fixture
def limit_memory() -> Iterator[Callable[[int], None]]:
    """Sets how much more the allocator may take."""
    total = torch.cuda.get_device_properties(GPU).total_memory

    def limit(num_bytes: int) -> None:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + num_bytes) / total)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_what_does_not_fit_after_all_goes_on_layer_by_layer(
    path: Path, limit_memory: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    expected = next(encode_whole(path))
    encoder = FittingTextEncoder(path, device=GPU, dtype=torch.bfloat16, text_attention="comfyui")
    limit_memory((MIDDLE.num_hidden_layers - 3) * LAYER_BYTES)
    (actual,) = encoder.encode_batches(BATCHES[:1], lambda: None)
    assert ["ran out of memory" in record.getMessage() for record in caplog.records] == [True]
    for ours, theirs in zip(actual, expected, strict=True):
        assert torch.equal(ours, theirs)
