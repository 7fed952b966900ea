"""What the system is asked to read before the weights are."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from lumina2_trainer.trainer_core.lumina2 import read_ahead as module
from lumina2_trainer.trainer_core.lumina2.models.checkpoint import ALL_IN_ONE_PREFIX, inspect_transformer
from lumina2_trainer.trainer_core.lumina2.read_ahead import read_ahead
from lumina2_trainer.trainer_core.lumina2.weights.weight_files import TensorEntry, read_weights

from ..tiny_files import write_all_in_one

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
