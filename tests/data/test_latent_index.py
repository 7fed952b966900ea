"""The latent cache's index, and what is left of a cache that was moved, deleted or killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lumina2_trainer.trainer_core.context import StepContext
from lumina2_trainer.trainer_core.data.cache import LatentCache, load_latents, read_latent_index
from lumina2_trainer.trainer_core.data.folder import Dataset
from lumina2_trainer.trainer_core.data.index import LatentIndex
from lumina2_trainer.trainer_core.errors import TrainerError

from .sample_files import FakeVAE, noise_picture
from .test_cache_latents import context, dataset, entry_paths, fill, folder

__all__ = ["context", "dataset", "folder"]


def test_index_survives_the_round_trip(dataset: Dataset, context: StepContext) -> None:
    index = read_latent_index(fill(dataset, context, FakeVAE()))
    assert LatentIndex.from_json(index.to_json(), index.cache_dir) == index


def test_an_old_socket_stays_valid(dataset: Dataset, context: StepContext, folder: Path) -> None:
    old = fill(dataset, context, FakeVAE())
    index = read_latent_index(old)
    noise_picture(100, 90, seed=5).save(folder / "a.png")
    fill(dataset, context, FakeVAE())
    assert read_latent_index(old) == index


def test_a_moved_cache_can_be_read(dataset: Dataset, context: StepContext, tmp_path: Path) -> None:
    cache = fill(dataset, context, FakeVAE())
    context.cache_dir.rename(tmp_path / "moved")
    moved = LatentCache(
        index_path=str(tmp_path / "moved" / "indexes" / Path(cache.index_path).name), fingerprint=cache.fingerprint
    )
    assert load_latents(entry_paths(moved)["a.png"]).shape == (16, 16, 16)


def test_deleted_caches_say_what_to_do(dataset: Dataset, context: StepContext) -> None:
    cache = fill(dataset, context, FakeVAE())
    path = entry_paths(cache)["a.png"]
    path.unlink()
    with pytest.raises(TrainerError, match=r"1 of 5 cache entries are gone.*queue Cache Latents again"):
        read_latent_index(cache)
    with pytest.raises(TrainerError, match=r"missing or damaged.*queue Cache Latents again"):
        load_latents(path)
    for content in ("{", "[]", '{"kind": "latents", "version": 1}'):
        Path(cache.index_path).write_text(content)
        with pytest.raises(TrainerError, match=r"missing or damaged.*queue Cache Latents again"):
            read_latent_index(cache)
    Path(cache.index_path).unlink()
    with pytest.raises(TrainerError, match=r"missing or damaged.*queue Cache Latents again"):
        read_latent_index(cache)


SLOW_ENCODER = """
import sys, time
from pathlib import Path
from sample_files import FakeVAE, make_context, open_folder
from lumina2_trainer.trainer_core.data.cache_latents import fill_latent_cache
import torch

context = make_context(Path(sys.argv[1]))
fill_latent_cache(
    open_folder(context, resolution=128),
    load_encoder=FakeVAE(after_batch=lambda: time.sleep(0.2)).load,
    encoder_fingerprint="vae 1", dtype=torch.float32, batch_size=1, context=context,
)
"""


@pytest.mark.process
def test_a_killed_process_loses_only_what_it_was_at(dataset: Dataset, context: StepContext, tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(SLOW_ENCODER)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=environment)
    entries = context.cache_dir / "latents"
    deadline = time.monotonic() + 60
    while len(list(entries.glob("*.safetensors"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    num_kept = len(list(entries.glob("*.safetensors")))
    assert 2 <= num_kept < 5
    rest = FakeVAE()
    assert len(read_latent_index(fill(dataset, context, rest)).samples) == 5
    assert rest.num_encoded == 5 - num_kept
