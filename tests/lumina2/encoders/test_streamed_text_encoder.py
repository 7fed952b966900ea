"""Gemma2 layer by layer: the same embeddings, what it plans for, and what it does when memory runs out."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lumina2_trainer.benchmarks.base_file import GEMMA_2_2B
from lumina2_trainer.trainer_core.data.cache import load_embeds, read_embed_index
from lumina2_trainer.trainer_core.errors import StopTraining
from lumina2_trainer.trainer_core.lumina2.encoders import fitting_text_encoder, streamed_text_encoder, text_encoder
from lumina2_trainer.trainer_core.lumina2.encoders.fitting_text_encoder import FittingTextEncoder
from lumina2_trainer.trainer_core.lumina2.encoders.streamed_text_encoder import (
    GROUP_TOKENS,
    RESERVED_BYTES,
    StreamedTextEncoder,
    StreamPlan,
    plan_stream,
    whole_bytes,
)
from lumina2_trainer.trainer_core.lumina2.encoders.text_encoder import (
    TEXT_ATTENTIONS,
    TextEncoder,
    load_text_encoder,
    load_tokenizer,
)
from lumina2_trainer.trainer_core.lumina2.encoders.text_files import find_text_files
from lumina2_trainer.trainer_core.lumina2.models.base_files import find_model_files
from lumina2_trainer.trainer_core.lumina2.models.model_files import LoadSettings
from lumina2_trainer.trainer_core.lumina2.weights.weight_files import TensorEntry
from lumina2_trainer.trainer_core.lumina2.weights.weight_reader import WeightReader
from lumina2_trainer.trainer_core.stages.caches import encode_prompts
from torch import Tensor

from ...data.sample_files import make_context
from ..tiny_files import SENTENCES, split_state, write_all_in_one, write_split
from ..tiny_models import CPU, relative_error

BATCHES = [["", "a red chair"], ["\n two  lines\n\n", "一只猫 😀", "x"], ["word " * 400, "chair " * 300], SENTENCES]
ALL = StreamPlan(batch_tokens=4096, resident_tokens=GROUP_TOKENS)
GIB = 2**30


def fp8_state() -> dict[str, Tensor]:
    """The tiny text encoder with scaled fp8 matrices, as ComfyUI reads them."""
    state: dict[str, Tensor] = {}
    for name, tensor in split_state("text_encoder").items():
        if tensor.ndim == 2:
            state[name] = (tensor * 3).to(torch.float8_e4m3fn)
            state[name.removesuffix(".weight") + ".scale_weight"] = torch.tensor([1 / 3])
        else:
            state[name] = tensor
    return state


@pytest.fixture(scope="module", params=["fp32", "fp8"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    return write_split(folder, "text_encoder", fp8_state() if request.param == "fp8" else None)


@pytest.fixture(scope="module")
def fp32_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_split(tmp_path_factory.mktemp("text"), "text_encoder")


@pytest.fixture
def layer_reads(monkeypatch: pytest.MonkeyPatch) -> list[TensorEntry]:
    """What is read of the file, in order, but for rows of the table."""
    reads = []
    read = WeightReader.read

    def remember(reader: WeightReader, entry: TensorEntry, target: Tensor) -> None:
        if len(entry.shape) == 2:
            reads.append(entry)
        read(reader, entry, target)

    monkeypatch.setattr(WeightReader, "read", remember)
    return reads


def stream(
    path: Path, *, plan: StreamPlan = ALL, dtype: torch.dtype = torch.float32, text_attention: str = "comfyui"
) -> StreamedTextEncoder:
    files = find_text_files(path)
    settings: dict[str, Any] = {"device": CPU, "dtype": dtype, "text_attention": text_attention}
    return StreamedTextEncoder(files, load_tokenizer(files), plan=plan, **settings)


def encode_whole(path: Path, **settings: Any) -> list[list[Tensor]]:
    defaults = {"device": CPU, "dtype": torch.float32, "text_attention": "comfyui"}
    encoder = load_text_encoder(path, **{**defaults, **settings})
    return [encoder.encode(batch) for batch in BATCHES]


def assert_equal(actual: Sequence[Sequence[Tensor]], expected: Sequence[Sequence[Tensor]]) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == other.dtype == torch.float32
            assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("text_attention", TEXT_ATTENTIONS)
def test_layer_by_layer_gives_what_the_whole_gives(text_attention: str, dtype: torch.dtype, path: Path) -> None:
    expected = encode_whole(path, dtype=dtype, text_attention=text_attention)
    encoder = stream(path, dtype=dtype, text_attention=text_attention)
    for _ in range(2):  # the last layer's slot does not disturb the next sweep
        assert_equal(list(encoder.encode_batches(BATCHES, lambda: None)), expected)


@pytest.mark.parametrize("resident_tokens", [0, 30, 600])
def test_where_hidden_states_lie_changes_nothing(resident_tokens: int, fp32_path: Path) -> None:
    plan = StreamPlan(batch_tokens=4096, resident_tokens=resident_tokens)
    assert_equal(list(stream(fp32_path, plan=plan).encode_batches(BATCHES, lambda: None)), encode_whole(fp32_path))


@pytest.mark.parametrize("batch_tokens", [1, 300])
def test_smaller_batches_give_the_same_but_for_rounding(batch_tokens: int, fp32_path: Path) -> None:
    plan = StreamPlan(batch_tokens=batch_tokens, resident_tokens=0)
    actual = list(stream(fp32_path, plan=plan).encode_batches(BATCHES, lambda: None))
    for ours, theirs in zip(actual, encode_whole(fp32_path), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert relative_error(one, other) <= 1e-5


@pytest.mark.parametrize(("group_tokens", "num_sweeps"), [(GROUP_TOKENS, 1), (600, 2), (1, len(BATCHES))])
def test_each_layer_is_read_once_for_a_group_of_batches(
    group_tokens: int,
    num_sweeps: int,
    fp32_path: Path,
    layer_reads: list[TensorEntry],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streamed_text_encoder, "GROUP_TOKENS", group_tokens)
    assert len(list(stream(fp32_path).encode_batches(BATCHES, lambda: None))) == len(BATCHES)
    matrices = [name for name in find_text_files(fp32_path).tensors if name.startswith(("layers.0", "layers.1"))]
    num_matrices = sum("proj" in name for name in matrices)
    assert len(layer_reads) == num_sweeps * num_matrices


def test_whole_gemma_needs_what_an_8_gb_card_has_free() -> None:
    assert 6 * GIB < whole_bytes(GEMMA_2_2B, torch.bfloat16) < 6.9 * GIB
    assert whole_bytes(GEMMA_2_2B, torch.float32) > 10 * GIB


@pytest.mark.parametrize(
    ("free_gib", "batch_tokens", "is_all_resident"),
    [(5.2, 4096, True), (3.4, 4096, True), (2.5, 4096, False), (1.6, 2048, False), (0.5, 256, False)],
)
def test_plan_fits_into_what_is_free(free_gib: float, batch_tokens: int, is_all_resident: bool) -> None:
    plan = plan_stream(GEMMA_2_2B, torch.bfloat16, int(free_gib * GIB))
    assert plan.batch_tokens == batch_tokens
    assert (plan.resident_tokens == GROUP_TOKENS) == is_all_resident
    layer = sum(math.prod(shape) for name, shape in GEMMA_2_2B.shapes().items() if name.startswith("layers.0."))
    hidden = plan.resident_tokens * GEMMA_2_2B.hidden_size * 4
    working = plan.batch_tokens / 4096 * 1.5 * GIB
    assert free_gib < 1 or 2 * 2 * layer + hidden + working + RESERVED_BYTES <= free_gib * GIB


class OutOfMemory:
    """Raises once, or always, as an allocator does."""

    def __init__(self, *, times: int) -> None:
        self.times = times

    def ask(self) -> None:
        self.times -= 1
        if self.times >= 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def fitting(path: Path) -> FittingTextEncoder:
    return FittingTextEncoder(path, device=CPU, dtype=torch.float32, text_attention="comfyui")


def test_loading_that_runs_out_of_memory_goes_on_layer_by_layer(
    fp32_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    memory, expected = OutOfMemory(times=1), encode_whole(fp32_path)
    fill = text_encoder.fill_parameters
    monkeypatch.setattr(text_encoder, "fill_parameters", lambda *args, **kwargs: (memory.ask(), fill(*args, **kwargs)))
    with caplog.at_level(logging.WARNING):
        assert_equal(list(fitting(fp32_path).encode_batches(BATCHES, lambda: None)), expected)
    assert ["ran out of memory" in record.getMessage() for record in caplog.records] == [True]


def test_encoding_that_runs_out_of_memory_goes_on_where_it_was(
    fp32_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, encode, encoded = encode_whole(fp32_path), TextEncoder.encode, []

    def encode_two(encoder: TextEncoder, prompts: Sequence[str]) -> list[Tensor]:
        encoded.append(prompts)
        OutOfMemory(times=len(encoded) - 2).ask()
        return encode(encoder, prompts)

    monkeypatch.setattr(TextEncoder, "encode", encode_two)
    whole_left: list[int] = []
    monkeypatch.setattr(
        fitting_text_encoder, "free_memory", lambda device: (gc.collect(), whole_left.append(count(TextEncoder)))
    )
    assert_equal(list(fitting(fp32_path).encode_batches(BATCHES, lambda: None)), expected)
    assert encoded == BATCHES[:3]
    assert whole_left == [0]  # gone before memory is asked for again


def count(kind: type) -> int:
    """How many instances are alive."""
    return sum(type(thing) is kind for thing in gc.get_objects())


def test_layers_that_run_out_of_memory_take_fewer_tokens_at_once(
    fp32_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = encode_whole(fp32_path)
    largest = []
    scale = streamed_text_encoder.scale_embeds

    def scale_few(model: torch.nn.Module, rows: Tensor) -> Tensor:
        if rows[..., 0].numel() > 300:
            OutOfMemory(times=1).ask()
        largest.append(rows[..., 0].numel())
        return scale(model, rows)

    monkeypatch.setattr(streamed_text_encoder, "scale_embeds", scale_few)
    monkeypatch.setattr(fitting_text_encoder, "load_text_encoder", lambda path, **kwargs: OutOfMemory(times=1).ask())
    for ours, theirs in zip(fitting(fp32_path).encode_batches(BATCHES, lambda: None), expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert relative_error(one, other) <= 1e-5
    assert max(largest) == 256


def test_an_encoder_that_never_fits_says_so(fp32_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = OutOfMemory(times=100)
    monkeypatch.setattr(fitting_text_encoder, "load_text_encoder", lambda path, **kwargs: memory.ask())
    monkeypatch.setattr(streamed_text_encoder, "scale_embeds", lambda model, rows: memory.ask())
    with pytest.raises(torch.OutOfMemoryError):
        list(fitting(fp32_path).encode_batches(BATCHES, lambda: None))
    assert memory.times == 100 - 6  # whole, then 4096, 2048, 1024, 512 and 256 tokens


def test_errors_other_than_memory_pass(fp32_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, **settings: Any) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(fitting_text_encoder, "load_text_encoder", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(fitting(fp32_path).encode_batches(BATCHES, lambda: None))


@pytest.fixture
def streaming(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Gemma2 is encoded layer by layer, in groups of two or three of the tiny prompts."""
    monkeypatch.setattr(FittingTextEncoder, "_choose_plan", lambda encoder: ALL)
    monkeypatch.setattr(streamed_text_encoder, "GROUP_TOKENS", 40)
    return


def test_a_stop_between_layers_keeps_what_was_written(
    streaming: None, tmp_path: Path, layer_reads: list[TensorEntry]
) -> None:
    write_all_in_one(tmp_path / "tiny.safetensors")
    model_dirs = {"checkpoints": (tmp_path,)}
    stopping = make_context(tmp_path, model_dirs=model_dirs, should_stop=lambda: len(layer_reads) > 3 * 7)
    model = find_model_files(LoadSettings(base="tiny.safetensors", precision="fp32"), context=stopping)
    prompts = tuple(SENTENCES)
    with pytest.raises(StopTraining, match=r"stopped after [1-5] of 7") as stop:
        encode_prompts(model, system_prompt="", context=stopping, validation_prompts=prompts, batch_size=1)
    assert count(StreamedTextEncoder) == 0, f"{stop} holds it"
    written = set(stopping.cache_dir.glob("text_embeds/*.safetensors"))
    assert 1 <= len(written) <= 5
    times = {path: path.stat().st_mtime_ns for path in written}
    context = make_context(tmp_path, model_dirs=model_dirs)
    cache = encode_prompts(model, system_prompt="", context=context, validation_prompts=prompts, batch_size=1)
    assert {path: path.stat().st_mtime_ns for path in written} == times
    encoder = load_text_encoder(
        tmp_path / "tiny.safetensors", device=CPU, dtype=torch.float32, text_attention="comfyui"
    )
    for prompt, entry in read_embed_index(cache).prompts.items():
        assert torch.equal(load_embeds(entry), encoder.encode([prompt])[0])
