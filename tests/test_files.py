"""Files as other programs read them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.files import (
    StoredTensor,
    replacing_folder,
    write_bytes_atomically,
    write_safetensors_atomically,
)
from safetensors import safe_open
from safetensors.torch import load_file


def test_safetensors_are_read_by_its_own_library(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "odd": torch.randint(0, 255, (7,), generator=generator).to(torch.uint8),
        "matrix": torch.randn(3, 5, generator=generator).bfloat16(),
        "turned": torch.randn(4, 6, generator=generator).T,
        "number": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "eighth": torch.randn(2, 3, generator=generator).to(torch.float8_e4m3fn),
    }
    path = tmp_path / "folder" / "file.safetensors"
    write_safetensors_atomically(path, tensors, {"title": "日本"})
    stored = load_file(path)
    assert stored.keys() == tensors.keys()
    assert all(
        torch.equal(stored[n].view(torch.uint8), t.contiguous().view(torch.uint8)) for n, t in tensors.items() if t.ndim
    )
    assert stored["number"] == 3.5
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"title": "日本"}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_stored_tensors_are_made_one_at_a_time(tmp_path: Path) -> None:
    alive = []

    def read() -> torch.Tensor:
        alive.append(len(alive))
        return torch.full((1000,), float(alive[-1]))

    tensors = {f"t{i}": StoredTensor(shape=(1000,), dtype=torch.float32, read=read) for i in range(4)}
    write_safetensors_atomically(tmp_path / "file.safetensors", tensors)
    stored = load_file(tmp_path / "file.safetensors")
    assert [stored[f"t{i}"][0].item() for i in range(4)] == [0.0, 1.0, 2.0, 3.0]


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_safetensors_atomically(path, {"a": torch.ones(3)})

    def fail() -> torch.Tensor:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_safetensors_atomically(path, {"a": StoredTensor(shape=(3,), dtype=torch.float32, read=fail)})
    assert torch.equal(load_file(path)["a"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_new_folder_takes_the_place_of_another_and_has_its_rights(tmp_path: Path) -> None:
    folder, plain = tmp_path / "new" / "pictures", tmp_path / "plain"
    plain.mkdir()
    for name in ("first", "second"):
        with replacing_folder(folder) as temporary:
            (temporary / name).touch()
    assert [path.name for path in folder.iterdir()] == ["second"]
    assert folder.stat().st_mode == plain.stat().st_mode
    with pytest.raises(OSError, match="full"), replacing_folder(folder):
        raise OSError("the disk is full")
    assert [path.name for path in folder.parent.iterdir()] == ["pictures"]


def test_a_file_that_another_program_reads_is_replaced_once_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_replace, refusals = Path.replace, [PermissionError("in use")] * 2

    def replace(self: Path, target: Path) -> Path:
        if refusals:
            raise refusals.pop()
        return true_replace(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    write_bytes_atomically(tmp_path / "log.jsonl", b"new")
    assert (tmp_path / "log.jsonl").read_bytes() == b"new"
