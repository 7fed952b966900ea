"""Reading weights in chunks."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.lumina2.models.checkpoint import ALL_IN_ONE_PREFIX, inspect_transformer
from lumina2_trainer.trainer_core.lumina2.weights import weight_reader
from lumina2_trainer.trainer_core.lumina2.weights import weight_reader as module
from lumina2_trainer.trainer_core.lumina2.weights.weight_files import TensorEntry, read_weights
from lumina2_trainer.trainer_core.lumina2.weights.weight_reader import WeightReader, read_ahead
from safetensors.torch import save_file
from torch import Tensor

from ..tiny_files import write_all_in_one
from ..tiny_models import CPU

STORED = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn]


def write(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"matrix": (37, 11), "vector": (5,), "number": (), "nothing": (0, 3)}
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    save_file(tensors, path)
    return tensors


@pytest.mark.parametrize("chunk_bytes", [64, 1024, 2**20])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", STORED)
def test_chunks_of_any_size_give_the_stored_values(
    stored: torch.dtype, wanted: torch.dtype, chunk_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_reader, "CHUNK_BYTES", chunk_bytes)
    expected = write(tmp_path / "w.safetensors", stored)
    entries = read_weights(tmp_path / "w.safetensors").tensors
    with WeightReader(entries.values()) as reader:
        for name in ("vector", "matrix", "number", "nothing", "matrix"):
            weight = reader.read_new(entries[name], device=CPU, dtype=wanted)
            assert weight.shape == expected[name].shape
            assert torch.equal(weight, expected[name].to(wanted))


def test_a_part_of_a_larger_weight_is_filled(tmp_path: Path) -> None:
    expected = write(tmp_path / "w.safetensors", torch.float16)
    entries = read_weights(tmp_path / "w.safetensors").tensors
    whole = torch.full((47, 11), 7.0)
    with WeightReader(entries.values()) as reader:
        reader.read(entries["matrix"], whole[5:42])
    assert torch.equal(whole[5:42], expected["matrix"].float())
    assert (whole[:5] == 7).all()
    assert (whole[42:] == 7).all()


def test_fp8_chunks_are_multiplied_by_their_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_reader, "CHUNK_BYTES", 16)
    stored = torch.randn(9, 7, generator=torch.Generator().manual_seed(1)).to(torch.float8_e4m3fn)
    save_file({"a.weight": stored, "a.scale_weight": torch.tensor(0.5)}, tmp_path / "w.safetensors")
    entry = read_weights(tmp_path / "w.safetensors").tensors["a.weight"]
    with WeightReader([entry]) as reader:
        weight = reader.read_new(entry, device=CPU, dtype=torch.bfloat16)
    assert torch.equal(weight, (stored.float() * 0.5).bfloat16())


def test_files_are_closed(tmp_path: Path) -> None:
    write(tmp_path / "w.safetensors", torch.float32)
    entry = read_weights(tmp_path / "w.safetensors").tensors["matrix"]
    with WeightReader([entry]) as reader:
        pass
    with pytest.raises(ValueError, match="closed file"):
        reader.read_new(entry, device=CPU, dtype=torch.float32)


needs_advice = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system cannot be asked")


def entries_of(path: Path) -> list[TensorEntry]:
    _, plan = inspect_transformer(path)
    return list(itertools.chain(*plan.values()))


@needs_advice
def test_the_transformers_bytes_are_asked_for_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "base.safetensors"
    write_all_in_one(path)
    asked: set[int] = set()

    def advise(file: int, start: int, size: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED and 0 < size <= 1000
        assert os.fstat(file).st_ino == path.stat().st_ino
        asked.update(range(start, start + size))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(module, "ASKED_AT_ONCE", 1000)
    thread = read_ahead(entries_of(path))
    assert thread is not None
    thread.join(timeout=60)
    wanted = read_weights(path).select(ALL_IN_ONE_PREFIX).tensors.values()
    assert asked == {place for entry in wanted for place in range(entry.start, entry.start + entry.num_bytes)}


@needs_advice
def test_a_file_that_is_gone_is_left_to_its_reader(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    write_all_in_one(path)
    entries = entries_of(path)
    path.unlink()
    thread = read_ahead(entries)
    assert thread is not None
    thread.join(timeout=60)
    assert not thread.is_alive()


def test_a_system_that_cannot_be_asked_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    path = tmp_path / "base.safetensors"
    write_all_in_one(path)
    assert read_ahead(entries_of(path)) is None
