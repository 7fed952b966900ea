"""Batches built ahead in another thread."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.data.batches import SampleStream
from lumina2_trainer.trainer_core.errors import CacheDamagedError
from lumina2_trainer.trainer_core.lumina2.network.padding import ShapeLimiter
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Config
from lumina2_trainer.trainer_core.lumina2.timesteps import NoiseSettings
from lumina2_trainer.trainer_core.training import session as session_module
from lumina2_trainer.trainer_core.training.batch_builder import BatchBuilder, TrainingBatch
from lumina2_trainer.trainer_core.training.prefetch import Prefetcher

from ..training_setup import Setup
from .cached_samples import write_sample

SIZES = ((8, 8, 3), (8, 12, 7), (12, 8, 1), (16, 8, 5))


def new_builder(
    folder: Path,
    *,
    batch_size: int = 2,
    caption_dropout: float = 0.3,
    noise: NoiseSettings | None = None,
    dtype: torch.dtype = torch.float32,
) -> BatchBuilder:
    generator = torch.Generator().manual_seed(0)
    samples = [
        write_sample(folder, number, (height, width), num_tokens, 6, generator)
        for number, (height, width, num_tokens) in enumerate(SIZES)
    ]
    return BatchBuilder(
        samples,
        SampleStream([1] * len(samples), seed=5),
        unconditional=torch.zeros(1, 6),
        batch_size=batch_size,
        caption_dropout=caption_dropout,
        seed=5,
        noise=noise or NoiseSettings(),
        samples_per_step=2,
        axes_dims=(8, 8, 8),
        shapes=ShapeLimiter(Lumina2Config(), torch.device("cpu"), dtype),
    )


def new_prefetcher(build: Callable[[int], object], end: int = 20) -> Prefetcher[object]:
    return Prefetcher(build, stride=2, end=end, is_threaded=True)


def wait_until(is_so: Callable[[], bool]) -> bool:
    """Whether it comes true within five seconds."""
    deadline = time.monotonic() + 5
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.005)
    return is_so()


def assert_same_batch(actual: TrainingBatch, expected: TrainingBatch) -> None:
    assert actual.ids == expected.ids
    assert torch.equal(actual.timesteps_B, expected.timesteps_B)
    for name in ("noisy_TC", "target_TC", "timesteps_B", "prompt_embeds_L"):
        assert torch.equal(getattr(actual.noisy, name), getattr(expected.noisy, name)), name
    for name in ("caption", "image", "joint"):
        ours, theirs = (getattr(batch.noisy.layout, name) for batch in (actual, expected))
        assert ours.segments.lengths == theirs.segments.lengths
        assert torch.equal(ours.rotary.cos, theirs.rotary.cos)
        assert torch.equal(ours.rotary.sin, theirs.rotary.sin)


def test_batches_built_ahead_equal_those_built_inline(tmp_path: Path) -> None:
    ahead, inline = new_prefetcher(new_builder(tmp_path).build), new_builder(tmp_path)
    for position in (0, 2, 4, 6, 14, 16, 2, 4):  # with jumps, as after resuming
        assert_same_batch(ahead.take(position), inline.build(position))


def test_moving_a_batch_keeps_every_value(tmp_path: Path) -> None:
    batch = new_builder(tmp_path).build(2)
    assert_same_batch(batch.on(torch.device("cpu")), batch)
    on_meta = batch.on(torch.device("meta"))
    assert on_meta.timesteps_B.device.type == "cpu"
    layout = on_meta.noisy.layout
    moved = (on_meta.noisy.noisy_TC, layout.image_index_T, layout.joint.rotary.cos, layout.joint.segments.offsets)
    assert {tensor.device.type for tensor in moved} == {"meta"}


def test_the_next_batch_is_built_by_another_thread_and_none_beyond_the_end() -> None:
    built: list[tuple[int, str]] = []

    def build(position: int) -> int:
        built.append((position, threading.current_thread().name))
        return position

    prefetcher = new_prefetcher(build, end=6)
    for position in (0, 2, 4):
        assert prefetcher.take(position) == position
        following = position + 2
        assert wait_until(lambda following=following: following == 6 or built[-1][0] == following)
    assert [position for position, _ in built] == [0, 2, 4]
    assert built[0][1] == threading.current_thread().name
    assert all(name.startswith("batch-builder") for _, name in built[1:])


def test_an_error_is_raised_where_its_batch_is_asked_for_and_only_there(tmp_path: Path) -> None:
    builder = new_builder(tmp_path)
    order = SampleStream([1] * len(SIZES), seed=5)
    damaged = tmp_path / f"latents{order.sample_at(2)}.safetensors"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1])
    prefetcher = new_prefetcher(builder.build)
    prefetcher.take(0)
    with pytest.raises(CacheDamagedError, match=damaged.name):
        prefetcher.take(2)
    damaged.write_bytes(content)
    assert_same_batch(prefetcher.take(2), builder.build(2))


def test_no_thread_outlives_its_owner() -> None:
    before = threading.active_count()
    for _ in range(100):
        new_prefetcher(lambda position: position).take(0)
    assert wait_until(lambda: threading.active_count() == before)


def test_inline_batches_start_no_thread() -> None:
    before = threading.active_count()
    prefetcher = Prefetcher(lambda position: position, stride=2, end=20, is_threaded=False)
    assert [prefetcher.take(position) for position in (0, 2, 4)] == [0, 2, 4]
    assert threading.active_count() == before


def test_a_run_with_batches_built_ahead_equals_one_without(
    fresh: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inline = fresh.trained()
    sessions: list[weakref.ref[object]] = []
    threads_before = threading.active_count()

    class Threaded(Prefetcher):
        def __init__(self, build: Callable[[int], object], **settings: object) -> None:
            super().__init__(build, **{**settings, "is_threaded": True})
            sessions.append(weakref.ref(self))

    monkeypatch.setattr(session_module, "Prefetcher", Threaded)
    ahead = fresh.moved_to(tmp_path / "ahead").train()
    assert ahead.losses == inline.losses
    gc.collect()
    assert [session() for session in sessions] == [None]
    assert wait_until(lambda: threading.active_count() == threads_before)
