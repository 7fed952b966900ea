"""What a batch holds, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.data.batches import SampleStream
from lumina2_trainer.trainer_core.data.cache import TrainingSample
from lumina2_trainer.trainer_core.data.entries import write_entry
from lumina2_trainer.trainer_core.lumina2.network import padding
from lumina2_trainer.trainer_core.lumina2.network.padding import ShapeLimiter
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Config
from lumina2_trainer.trainer_core.lumina2.objective import make_noisy_batch
from lumina2_trainer.trainer_core.lumina2.timesteps import NoiseSettings
from lumina2_trainer.trainer_core.training.batch_builder import BatchBuilder, TrainingBatch
from lumina2_trainer.trainer_core.training.graphs import shape_key
from torch import Tensor

from .test_prefetch import SIZES, new_builder


def write_constants(folder: Path, kind: str, shape: tuple[int, ...], count: int) -> tuple[Path, ...]:
    """Entries full of 0, 1, 2, ..."""
    paths = tuple(folder / f"{kind}{number}.safetensors" for number in range(count))
    for number, path in enumerate(paths):
        write_entry(path, torch.full(shape, float(number)))
    return paths


def builder_with_variants(
    folder: Path, *, num_crops: int, num_captions: int, batch_size: int = 1, caption_dropout: float = 0.0
) -> BatchBuilder:
    latents = write_constants(folder, "latents", (16, 4, 4), num_crops)
    embeds = write_constants(folder, "embeds", (3, 6), num_captions)
    sample = TrainingSample(
        id="1/a.png",
        file_name="a.png",
        latents_path=latents[0],
        more_latents_paths=latents[1:],
        embeds_path=embeds[0],
        more_embeds_paths=embeds[1:],
        caption="",
        width=32,
        height=32,
        repeats=1,
    )
    return BatchBuilder(
        [sample],
        SampleStream([1], seed=5),
        unconditional=torch.zeros(1, 6),
        batch_size=batch_size,
        caption_dropout=caption_dropout,
        seed=5,
        noise=NoiseSettings(),
        samples_per_step=1,
        axes_dims=(8, 8, 8),
        shapes=ShapeLimiter(Lumina2Config(), torch.device("cpu"), torch.float32),
    )


def caption_of(batch: TrainingBatch) -> int:
    return int(batch.noisy.prompt_embeds_L[0, 0])


def noise_of(batch: TrainingBatch) -> Tensor:
    """The noise, from what is shown and what is to be answered."""
    return batch.noisy.noisy_TC - batch.timesteps_B * batch.noisy.target_TC


def crop_of(batch: TrainingBatch) -> int:
    return round((noise_of(batch) + batch.noisy.target_TC).mean().item())


def test_every_caption_and_crop_is_drawn_about_as_often(tmp_path: Path) -> None:
    builder = builder_with_variants(tmp_path, num_crops=2, num_captions=3)
    drawn = [(crop_of(batch), caption_of(batch)) for batch in map(builder.build, range(600))]
    for pair in [(crop, caption) for crop in range(2) for caption in range(3)]:
        assert 70 <= drawn.count(pair) <= 130, pair


def test_draws_depend_on_seed_and_position_alone(tmp_path: Path) -> None:
    first, second = (builder_with_variants(tmp_path, num_crops=2, num_captions=3) for _ in range(2))
    forwards = [first.build(position) for position in range(20)]
    backwards = [second.build(position) for position in reversed(range(20))][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        torch.testing.assert_close(one.noisy.noisy_TC, other.noisy.noisy_TC, rtol=0, atol=0)
        assert caption_of(one) == caption_of(other)


def test_more_captions_and_crops_leave_noise_and_times_alone(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    one = builder_with_variants(tmp_path / "one", num_crops=1, num_captions=1)
    several = builder_with_variants(tmp_path, num_crops=2, num_captions=3)
    for position in range(10):
        alone, chosen = one.build(position), several.build(position)
        assert torch.equal(alone.timesteps_B, chosen.timesteps_B)
        torch.testing.assert_close(noise_of(alone), noise_of(chosen), rtol=1e-5, atol=1e-5)


def test_the_same_samples_in_any_order_have_one_shape(tmp_path: Path) -> None:
    builder = new_builder(tmp_path, batch_size=len(SIZES), caption_dropout=0.0)
    one_by_one = new_builder(tmp_path, batch_size=1, caption_dropout=0.0)
    orders, keys = set(), set()
    for start in range(0, 8 * len(SIZES), len(SIZES)):
        orders.add(tuple(one_by_one.build(start + i).ids[0] for i in range(len(SIZES))))
        keys.add(shape_key(builder.build(start).noisy))
    assert len(orders) > 1
    assert len(keys) == 1


def test_every_sample_keeps_the_draws_of_its_position(tmp_path: Path) -> None:
    batch = new_builder(tmp_path, batch_size=len(SIZES)).build(0)
    one_by_one = new_builder(tmp_path, batch_size=1)
    alone = {single.ids[0]: single for single in map(one_by_one.build, range(len(SIZES)))}
    assert sorted(batch.ids) == sorted(alone)
    parts = batch.noisy.noisy_TC.split(batch.noisy.layout.image.segments.lengths)
    for name, timestep, part in zip(batch.ids, batch.timesteps_B, parts, strict=True):
        torch.testing.assert_close(timestep[None], alone[name].timesteps_B)
        torch.testing.assert_close(part, alone[name].noisy.noisy_TC)


def test_samples_that_share_only_their_sums_have_other_shapes() -> None:
    keys = set()
    for captions, rows in (((100, 164), (64, 63)), ((164, 100), (63, 64))):
        noisy = make_noisy_batch(
            [torch.zeros(16, 2 * count, 128) for count in rows],
            [torch.zeros(16, 2 * count, 128) for count in rows],
            torch.ones(2) / 2,
            [torch.zeros(count, 6) for count in captions],
            (8, 8, 8),
            torch.device("cpu"),
        )
        assert noisy.layout.joint.segments.lengths == (4196, 4196)
        keys.add(shape_key(noisy))
    assert len(keys) == 2


def test_a_picture_and_its_shrunk_copy_are_not_filled_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padding, "has_padded_attention", lambda *_: True)
    for weight, is_filled_up in ((0.0, True), (1.0, False)):
        noise = NoiseSettings(low_resolution_weight=weight)
        builder = new_builder(tmp_path, batch_size=1, noise=noise, dtype=torch.bfloat16)
        layouts = [builder.build(position).noisy.layout for position in range(20)]
        assert any(layout.image.segments.is_padding_S is not None for layout in layouts) is is_filled_up


@pytest.mark.parametrize("rate", [0.0, 0.6, 1.0])
def test_captions_are_dropped_at_their_rate(tmp_path: Path, rate: float) -> None:
    builder = builder_with_variants(tmp_path, num_crops=1, num_captions=1, batch_size=100, caption_dropout=rate)
    count = 1500
    batches = [builder.build(position) for position in range(0, count, 100)]
    lengths = [length for batch in batches for length in batch.noisy.layout.caption.segments.lengths]
    assert len(lengths) == count and set(lengths) <= {1, 3}
    # Within three deviations of so many draws; 0.8 of the rate is nine away.
    assert lengths.count(1) == pytest.approx(count * rate, abs=3 * (count * rate * (1 - rate)) ** 0.5)
