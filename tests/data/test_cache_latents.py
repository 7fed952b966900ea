from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.context import StepContext
from lumina2_trainer.trainer_core.data.cache import LatentCache, load_latents, read_latent_index
from lumina2_trainer.trainer_core.data.cache_latents import fill_latent_cache
from lumina2_trainer.trainer_core.data.folder import Dataset, DatasetFolderSettings, open_dataset
from lumina2_trainer.trainer_core.data.images import decode_picture, fit_to_bucket, to_picture_tensor
from lumina2_trainer.trainer_core.data.scan import scan_dataset
from lumina2_trainer.trainer_core.errors import StopTraining, TrainerError
from safetensors.torch import save_file
from torch import Tensor

from .sample_files import FakeVAE, Listener, make_context, noise_picture, open_folder, write_pictures

SIZES = {"a.png": (100, 90), "b.png": (300, 80), "c.png": (37, 41), "d.png": (50, 200), "e.png": (64, 64)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "input" / "set"
    write_pictures(path, SIZES)
    return path


@pytest.fixture
def context(tmp_path: Path, folder: Path) -> StepContext:
    return make_context(tmp_path)


@pytest.fixture
def dataset(context: StepContext) -> Dataset:
    return open_folder(context, resolution=128)


def fill(
    dataset: Dataset,
    context: StepContext,
    vae: FakeVAE,
    *,
    fingerprint: str = "vae 1",
    dtype: torch.dtype = torch.float32,
    batch_size: int = 2,
) -> LatentCache:
    return fill_latent_cache(
        dataset,
        load_encoder=vae.load,
        encoder_fingerprint=fingerprint,
        dtype=dtype,
        batch_size=batch_size,
        context=context,
    )


def entry_paths(cache: LatentCache) -> dict[str, Path]:
    index = read_latent_index(cache)
    return {sample.file_name: index.path_of(sample) for sample in index.samples}


def test_every_picture_is_cached_in_its_bucket(dataset: Dataset, context: StepContext, folder: Path) -> None:
    vae = FakeVAE()
    index = read_latent_index(fill(dataset, context, vae))
    assert [(sample.id, sample.width, sample.height) for sample in index.samples] == [
        ("1/a.png", 128, 128),
        ("1/b.png", 256, 64),
        ("1/c.png", 128, 128),
        ("1/d.png", 64, 256),
        ("1/e.png", 128, 128),
    ]
    assert vae.batches == [(2, 3, 128, 128), (1, 3, 128, 128), (1, 3, 64, 256), (1, 3, 256, 64)]
    assert index.folders == (dataset.folders[0].settings,)
    for sample, picture in zip(index.samples, scan_dataset(dataset, context).pictures, strict=True):
        image = decode_picture((folder / sample.file_name).read_bytes()).image
        expected = FakeVAE().encode(to_picture_tensor(fit_to_bucket(image, picture.bucket))[None])[0]
        torch.testing.assert_close(load_latents(index.path_of(sample)), expected)


@pytest.mark.parametrize("batch_size", [0, 1, 3, 100])
def test_batch_size_changes_nothing_that_is_cached(dataset: Dataset, context: StepContext, batch_size: int) -> None:
    first = fill(dataset, context, FakeVAE())
    kept = {name: load_latents(path) for name, path in entry_paths(first).items()}
    for path in entry_paths(first).values():
        path.unlink()
    again = fill(dataset, context, FakeVAE(), batch_size=batch_size)
    assert again == first
    for name, path in entry_paths(again).items():
        torch.testing.assert_close(load_latents(path), kept[name])


def test_unchanged_pictures_need_no_encoder(dataset: Dataset, context: StepContext) -> None:
    vae = FakeVAE()
    first = fill(dataset, context, vae)
    assert fill(dataset, context, vae) == first
    assert (vae.num_loads, vae.num_encoded) == (1, 5)


def test_a_changed_picture_alone_is_redone(dataset: Dataset, context: StepContext, folder: Path) -> None:
    first = fill(dataset, context, FakeVAE())
    noise_picture(100, 90, seed=77).save(folder / "a.png")
    vae = FakeVAE()
    second = fill(dataset, context, vae)
    assert vae.num_encoded == 1
    assert second.fingerprint != first.fingerprint
    before, after = entry_paths(first), entry_paths(second)
    assert [name for name in before if before[name] != after[name]] == ["a.png"]


@pytest.mark.parametrize("change", [{"fingerprint": "vae 2"}, {"dtype": torch.bfloat16}])
def test_another_vae_or_dtype_redoes_everything(
    dataset: Dataset, context: StepContext, change: dict[str, object]
) -> None:
    first, vae = fill(dataset, context, FakeVAE()), FakeVAE()
    second = fill(dataset, context, vae, **change)
    assert vae.num_encoded == 5
    assert second.fingerprint != first.fingerprint
    assert not set(entry_paths(first).values()) & set(entry_paths(second).values())
    assert read_latent_index(first).fingerprint == first.fingerprint


def test_bfloat16_latents_are_rounded_once(dataset: Dataset, context: StepContext) -> None:
    exact = load_latents(entry_paths(fill(dataset, context, FakeVAE()))["a.png"])
    rounded = load_latents(entry_paths(fill(dataset, context, FakeVAE(), dtype=torch.bfloat16))["a.png"])
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, exact.bfloat16().float())


def test_captions_and_repeats_redo_nothing(dataset: Dataset, context: StepContext, folder: Path) -> None:
    first, vae = fill(dataset, context, FakeVAE()), FakeVAE()
    (folder / "a.txt").unlink()
    changed = open_folder(context, resolution=128, trigger_words="tok", repeats=3)
    second = fill(changed, context, vae)
    assert vae.num_loads == 0
    assert second.fingerprint != first.fingerprint
    assert {sample.repeats for sample in read_latent_index(second).samples} == {3}


def test_another_resolution_or_aspect_redoes_what_changes(dataset: Dataset, context: StepContext) -> None:
    fill(dataset, context, FakeVAE())
    vae = FakeVAE()
    fill(open_folder(context, resolution=128, aspect="square"), context, vae)
    assert vae.num_encoded == 2
    fill(open_folder(context, resolution=192), context, vae)
    assert vae.num_encoded == 7


def test_an_interrupted_cache_goes_on_where_it_stopped(dataset: Dataset, tmp_path: Path) -> None:
    vae = FakeVAE()
    stopping = make_context(tmp_path, should_stop=lambda: len(vae.batches) == 2)
    with pytest.raises(StopTraining, match="cache_latents stopped after 3 of 5: queue it again to go on"):
        fill(dataset, stopping, vae)
    assert vae.num_encoded == 3
    rest = FakeVAE()
    cache = fill(dataset, make_context(tmp_path), rest)
    assert rest.num_encoded == 2
    assert len(read_latent_index(cache).samples) == 5


def test_a_crash_keeps_what_was_encoded(dataset: Dataset, context: StepContext) -> None:
    def crash() -> None:
        if len(vae.batches) == 3:
            raise RuntimeError("out of memory")

    vae = FakeVAE(after_batch=crash)
    with pytest.raises(RuntimeError, match="out of memory"):
        fill(dataset, context, vae)
    rest = FakeVAE()
    fill(dataset, context, rest)
    assert rest.num_encoded == 2
    assert not list(context.cache_dir.rglob("*.tmp"))


def test_no_thread_is_left_after_a_stop_or_an_error(dataset: Dataset, context: StepContext) -> None:
    def crash() -> None:
        raise RuntimeError("out of memory")

    scan_dataset(dataset, context)
    before = threading.active_count()
    vae = FakeVAE()
    with pytest.raises(StopTraining):
        fill(dataset, replace(context, should_stop=lambda: len(vae.batches) == 1), vae)
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="out of memory"):
        fill(dataset, context, FakeVAE(after_batch=crash))
    assert threading.active_count() == before


def truncate(path: Path, others: list[Path]) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path, others: list[Path]) -> None:
    path.write_bytes(b"")


def zero(path: Path, others: list[Path]) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def swap(path: Path, others: list[Path]) -> None:
    path.write_bytes(others[0].read_bytes())


def replace_by_foreign_file(path: Path, others: list[Path]) -> None:
    save_file({"tensor": torch.zeros(16, 16, 16)}, path)


@pytest.mark.parametrize("damage", [truncate, empty, zero, swap, replace_by_foreign_file])
def test_damaged_and_foreign_entries_are_redone(
    dataset: Dataset, context: StepContext, damage: Callable[[Path, list[Path]], None]
) -> None:
    cache = fill(dataset, context, FakeVAE())
    path, *others = (entry_paths(cache)[name] for name in ("a.png", "c.png", "e.png"))
    kept = load_latents(path)
    damage(path, others)
    vae = FakeVAE()
    assert fill(dataset, context, vae) == cache
    assert vae.num_encoded == 1
    assert torch.equal(load_latents(path), kept)


def test_equal_pictures_are_encoded_once(context: StepContext, folder: Path) -> None:
    (folder / "f.png").write_bytes((folder / "a.png").read_bytes())
    both = open_dataset(
        DatasetFolderSettings(folder="set", resolution=128),
        earlier=open_folder(context, resolution=128),
        context=context,
    )
    vae = FakeVAE()
    assert len(read_latent_index(fill(both, context, vae)).samples) == 12
    assert vae.num_encoded == 5


def test_a_picture_that_changes_while_it_is_cached_is_an_error(
    dataset: Dataset, context: StepContext, folder: Path
) -> None:
    scan_dataset(dataset, context)
    status = (folder / "a.png").stat()
    content = bytearray((folder / "a.png").read_bytes())
    content[-1] ^= 1
    (folder / "a.png").write_bytes(content)
    os.utime(folder / "a.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(TrainerError, match=r"1/a\.png changed while latents were cached"):
        fill(dataset, context, FakeVAE())


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (torch.full((1, 16, 16, 16), torch.nan), r"not finite for 1/a\.png: set precision to fp32"),
        (torch.zeros(1, 4, 16, 16), r"latents of shape \(4, 16, 16\).*choose the Flux VAE"),
    ],
)
def test_latents_that_cannot_be_trained_on_are_an_error(
    dataset: Dataset, context: StepContext, latents: Tensor, message: str
) -> None:
    vae = FakeVAE()
    vae.encode = lambda pixels: latents  # type: ignore[method-assign]
    with pytest.raises(TrainerError, match=message):
        fill(dataset, context, vae, batch_size=1)
    assert not list((context.cache_dir / "latents").glob("*"))


def test_progress_has_count_rate_and_eta(dataset: Dataset, tmp_path: Path, folder: Path) -> None:
    listener = Listener()
    context = make_context(tmp_path, emit=listener)
    fill(dataset, context, FakeVAE(), batch_size=1)
    events = [event.to_json() for event in listener.events if event.run == "cache_latents"]
    assert {event.kind for event in listener.events} == {"progress"}
    assert (events[0]["step"], events[-1]["step"], events[-1]["total"]) == (1, 5, 5)
    assert events[-1]["rate"] > 0
    assert events[-1]["eta_seconds"] == 0
    assert len(events) <= 4
    listener.events.clear()
    fill(dataset, context, FakeVAE())
    done = {"run": "cache_latents", "step": 5, "total": 5, "rate": 0.0, "eta_seconds": 0.0}
    assert [event.to_json() for event in listener.events] == [done]
