"""Writing entries in the background."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.data import entries
from lumina2_trainer.trainer_core.data.entries import EntryWriter, NewEntry, read_entry, read_notes
from lumina2_trainer.trainer_core.data.progress import Progress
from lumina2_trainer.trainer_core.errors import TrainerError

from .sample_files import Listener, make_context


def new_progress(tmp_path: Path, total: int) -> tuple[Progress, Listener]:
    listener = Listener()
    return Progress("test", total=total, num_done=0, context=make_context(tmp_path, emit=listener)), listener


def entry(tmp_path: Path, name: str) -> NewEntry:
    return NewEntry(path=tmp_path / f"{name}.safetensors", notes=(f"note of {name}",), problem=f"{name} is not finite")


def test_tensors_of_any_shape_arrive_with_their_notes(tmp_path: Path) -> None:
    tensors = [torch.randn(3, 4), torch.randn(1, 4), torch.randn(2, 5, 7)]
    progress, listener = new_progress(tmp_path, 3)
    with EntryWriter(torch.float32, progress) as writer:
        writer.write(tensors[:2], [entry(tmp_path, "a"), entry(tmp_path, "b")])
        writer.write(tensors[2:], [entry(tmp_path, "c")])
    for name, tensor in zip("abc", tensors, strict=True):
        assert torch.equal(read_entry(entry(tmp_path, name).path), tensor)
        assert read_notes(entry(tmp_path, name).path) == [f"note of {name}"]
    assert [event.data["step"] for event in listener.events] == [2, 3]


def write_each(tmp_path: Path, progress: Progress, values: dict[str, float], failure: Exception | None = None) -> None:
    """One batch for each value, and then a failure of another part."""
    with EntryWriter(torch.bfloat16, progress) as writer:
        for name, value in values.items():
            writer.write([torch.full((2, 2), value)], [entry(tmp_path, name)])
        if failure:
            raise failure


def test_what_was_written_before_an_error_is_kept(tmp_path: Path) -> None:
    progress, _ = new_progress(tmp_path, 3)
    with pytest.raises(TrainerError, match="b is not finite"):
        write_each(tmp_path, progress, {"a": 1.0, "b": float("inf"), "c": 2.0})
    assert sorted(path.stem for path in tmp_path.glob("*.safetensors")) == ["a", "c"]
    assert progress.num_done == 1


def test_an_error_elsewhere_waits_for_the_entries_under_way(tmp_path: Path) -> None:
    progress, _ = new_progress(tmp_path, 2)
    with pytest.raises(RuntimeError, match="the encoder failed"):
        write_each(tmp_path, progress, {"a": 1.0, "b": 2.0}, RuntimeError("the encoder failed"))
    assert sorted(path.stem for path in tmp_path.glob("*.safetensors")) == ["a", "b"]


def test_progress_counts_only_what_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write, write_entry = threading.Event(), entries.write_entry

    def write_when_allowed(*arguments: object) -> None:
        assert may_write.wait(10)
        write_entry(*arguments)

    monkeypatch.setattr(entries, "write_entry", write_when_allowed)
    progress, listener = new_progress(tmp_path, 2)
    with EntryWriter(torch.float32, progress) as writer:
        for name in "ab":
            writer.write([torch.ones(2)], [entry(tmp_path, name)])
        assert not listener.events
        may_write.set()
        writer.finish()
        assert progress.num_done == 2


def test_no_thread_is_left(tmp_path: Path) -> None:
    before = threading.active_count()
    progress, _ = new_progress(tmp_path, 8)
    with EntryWriter(torch.float32, progress) as writer:
        writer.write([torch.ones(2)] * 8, [entry(tmp_path, str(i)) for i in range(8)])
    assert threading.active_count() == before
