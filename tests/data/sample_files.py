"""Small datasets on disk, and encoders that count what they are asked."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lumina2_trainer.trainer_core.context import StepContext
from lumina2_trainer.trainer_core.data.folder import Dataset, DatasetFolderSettings, open_dataset
from lumina2_trainer.trainer_core.events import Event
from PIL import Image
from torch import Tensor


def make_context(tmp_path: Path, **changes: Any) -> StepContext:
    """A context whose only root is `input`, which is made."""
    (tmp_path / "input").mkdir(exist_ok=True)
    settings = {
        "output_dir": tmp_path / "output",
        "loras_dir": tmp_path / "loras",
        "device": torch.device("cpu"),
        "roots": (tmp_path / "input",),
    }
    return StepContext(**{**settings, **changes})


def noise_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture like no other."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write_pictures(folder: Path, sizes: dict[str, tuple[int, int]]) -> None:
    """Pictures with a caption file beside each."""
    for seed, (name, (width, height)) in enumerate(sizes.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise_picture(width, height, seed).save(path)
        path.with_suffix(".txt").write_text(f"caption of {path.stem}", encoding="utf-8")


def _write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


TABLE_WRITERS: dict[str, Callable[[Path, Sequence[dict[str, Any]]], None]] = {
    "jsonl": _write_jsonl,
    "csv": _write_csv,
    "parquet": _write_parquet,
}
"""By caption source."""


def open_folder(context: StepContext, folder: str = "set", **settings: Any) -> Dataset:
    """A dataset of one folder at a small resolution."""
    return open_dataset(DatasetFolderSettings(folder=folder, **{"resolution": 64, **settings}), context=context)


@dataclass
class FakeVAE:
    """Averages blocks of 8 x 8 pixels; remembers how many pictures each call brought."""

    batches: list[tuple[int, ...]] = field(default_factory=list)
    num_loads: int = 0
    after_batch: Callable[[], None] = lambda: None

    def load(self) -> FakeVAE:
        self.num_loads += 1
        return self

    def choose_batch_size(self, width: int, height: int) -> int:
        return max(1, 2**15 // (width * height))

    def encode(self, pictures_B3HW: Tensor) -> Tensor:
        assert pictures_B3HW.dtype == torch.uint8
        self.batches.append(tuple(pictures_B3HW.shape))
        latents_B1HW = torch.nn.functional.avg_pool2d(pictures_B3HW.float() / 127.5 - 1, 8).mean(1, keepdim=True)
        self.after_batch()
        return latents_B1HW.expand(-1, 16, -1, -1)

    @property
    def num_encoded(self) -> int:
        """Pictures of all batches."""
        return sum(shape[0] for shape in self.batches)


@dataclass
class FakeTextEncoder:
    """As many rows as a prompt has words, all different; remembers the prompts."""

    prompts: list[str] = field(default_factory=list)
    batches: list[list[str]] = field(default_factory=list)
    num_loads: int = 0
    after_batch: Callable[[], None] = lambda: None

    def load(self) -> FakeTextEncoder:
        self.num_loads += 1
        return self

    max_batch_tokens: int = 1000

    def count_tokens(self, prompt: str) -> int:
        return len(prompt.split()) + 1

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        self.prompts += prompts
        self.batches.append(list(prompts))
        self.after_batch()
        return [fake_embeds(prompt) for prompt in prompts]

    def encode_batches(self, batches: Sequence[Sequence[str]], check: Callable[[], None]) -> Iterator[list[Tensor]]:
        for batch in batches:
            check()
            yield self.encode(batch)

    def describe_differences(self, prompts: Sequence[str]) -> list[str]:
        return [f"{prompt!r} has a weight" for prompt in prompts if "(" in prompt]


def fake_embeds(prompt: str) -> Tensor:
    """[words + 1, 8] of a prompt."""
    seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big")
    return torch.randn(len(prompt.split()) + 1, 8, generator=torch.Generator().manual_seed(seed))


@dataclass
class Listener:
    """Keeps the events of a step."""

    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)
