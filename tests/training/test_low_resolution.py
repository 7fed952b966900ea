"""The second loss at a quarter of the size, and additional noise: what a batch holds, and what a run does with it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.data.batches import SampleStream
from lumina2_trainer.trainer_core.data.cache import TrainingSample
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.lumina2.network.layout import patchify
from lumina2_trainer.trainer_core.lumina2.network.padding import ShapeLimiter
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Config
from lumina2_trainer.trainer_core.lumina2.objective import flow_matching_loss
from lumina2_trainer.trainer_core.lumina2.timesteps import NoiseSettings
from lumina2_trainer.trainer_core.training.batch_builder import BatchBuilder, TrainingBatch
from lumina2_trainer.trainer_core.training.low_resolution import (
    check_low_resolution,
    num_low_resolution_tokens,
    shrink_latents,
)

from ..lumina2.tiny_models import TINY, tiny_transformer
from .cached_samples import write_sample

CPU = torch.device("cpu")
SECOND = NoiseSettings(low_resolution_weight=0.5)


def build(folder: Path, noise: NoiseSettings, position: int = 0, samples_per_step: int = 2) -> TrainingBatch:
    samples = [
        write_sample(folder, number, size, 3 + number, TINY.cap_feat_dim)
        for number, size in enumerate([(16, 24), (20, 10)])
    ]
    builder = BatchBuilder(
        samples,
        SampleStream([1, 1], seed=5),
        unconditional=torch.zeros(1, TINY.cap_feat_dim),
        batch_size=2,
        caption_dropout=0.0,
        seed=5,
        noise=noise,
        samples_per_step=samples_per_step,
        axes_dims=TINY.axes_dims,
        shapes=ShapeLimiter(Lumina2Config(), CPU, torch.float32),
    )
    return builder.build(position)


def test_latents_are_averaged_over_four_by_four() -> None:
    latents = torch.arange(8 * 20, dtype=torch.float32).view(1, 8, 20).repeat(2, 1, 1)
    small = shrink_latents(latents)
    assert small.shape == (2, 2, 4)  # 20 columns make 5 averages, and a patch is two of them
    assert small[0, 1, 2].item() == latents[0, 4:8, 8:12].mean().item()
    assert num_low_resolution_tokens(160, 64) == 2


def test_batch_holds_each_sample_once_more_and_the_first_ones_unchanged(tmp_path: Path) -> None:
    plain, both = build(tmp_path, NoiseSettings()), build(tmp_path, SECOND)
    num_tokens = len(plain.noisy.target_TC)
    assert torch.equal(both.noisy.noisy_TC[:num_tokens], plain.noisy.noisy_TC)
    assert torch.equal(both.timesteps_B[:2], plain.timesteps_B)
    assert both.ids == plain.ids * 2
    assert both.is_extra == (False, False, True, True)
    torch.testing.assert_close(both.noisy.weights_B, torch.tensor([0.5, 0.5, 0.25, 0.25]))
    assert plain.noisy.weights_B is None


def test_shrunk_samples_have_a_noise_and_a_time_of_their_own_and_the_shrunk_picture_as_target(tmp_path: Path) -> None:
    both = build(tmp_path, SECOND)
    lengths = both.noisy.layout.image.segments.lengths
    assert sorted(lengths[2:]) == [2, 6]
    assert len(set(both.timesteps_B.tolist())) == 4
    parts = zip(both.noisy.noisy_TC.split(lengths), both.noisy.target_TC.split(lengths), both.timesteps_B, strict=True)
    pictures = [x_t + (1 - t) * target for x_t, target, t in parts]
    latents = [patchify(torch.randn(16, *size, generator=torch.Generator().manual_seed(i))) for i, size in SIZES]
    shrunk = [
        patchify(shrink_latents(torch.randn(16, *size, generator=torch.Generator().manual_seed(i))))
        for i, size in SIZES
    ]
    order = [int(name) for name in both.ids[:2]]
    for actual, expected in zip(pictures, [latents[i] for i in order] + [shrunk[i] for i in order], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


SIZES = [(0, (16, 24)), (1, (20, 10))]


def test_times_of_shrunk_samples_are_shifted_as_those_of_the_whole_pictures(tmp_path: Path) -> None:
    plain = build(tmp_path, replace(SECOND, shift_mode="none"))
    shifted = build(tmp_path, SECOND)
    assert shifted.ids == plain.ids
    for name, is_extra, plain_t, t in zip(
        plain.ids, plain.is_extra, plain.timesteps_B.tolist(), shifted.timesteps_B.tolist(), strict=True
    ):
        height, width = dict(SIZES)[int(name)]
        shift = math.exp(0.5 + 0.65 * (height * width / 4 - 256) / 3840)  # tokens of the whole picture
        expected = 1 - shift * (1 - plain_t) / (1 + (shift - 1) * (1 - plain_t))
        assert t == pytest.approx(expected, abs=1e-5), (name, is_extra)


def test_loss_is_that_of_the_whole_pictures_plus_the_weighted_one_of_the_shrunk(tmp_path: Path) -> None:
    transformer = tiny_transformer(seed=1)
    both = build(tmp_path, SECOND).noisy
    loss_B = flow_matching_loss(transformer, both)
    expected = loss_B[:2].mean() + 0.5 * loss_B[2:].mean()
    torch.testing.assert_close(both.reduce(loss_B), expected)


def test_additional_noise_is_shown_but_not_asked_for_and_fades(tmp_path: Path) -> None:
    settings = NoiseSettings(input_perturbation=0.5, input_perturbation_steps=2)
    sizes = []
    for position in (0, 2, 4):
        plain, more = build(tmp_path, NoiseSettings(), position), build(tmp_path, settings, position)
        assert torch.equal(more.noisy.target_TC, plain.noisy.target_TC)
        assert torch.equal(more.timesteps_B, plain.timesteps_B)
        lengths = plain.noisy.layout.image.segments.lengths
        share = torch.repeat_interleave(1 - plain.timesteps_B, torch.tensor(lengths))[:, None]
        sizes.append(((more.noisy.noisy_TC - plain.noisy.noisy_TC) / share).std().item())
    assert sizes == pytest.approx([0.5, 0.25, 0.0], abs=0.02)


def test_pictures_that_cannot_be_shrunk_are_named() -> None:
    path = Path("x")
    sample = TrainingSample(
        id="1/a.png",
        file_name="a.png",
        latents_path=path,
        embeds_path=path,
        caption="",
        width=48,
        height=96,
        repeats=1,
    )
    check_low_resolution(NoiseSettings(), [sample])
    with pytest.raises(TrainerError, match=r"low_resolution_weight is 0\.5, but 1/a\.png is trained at 48 x 96 pixels"):
        check_low_resolution(SECOND, [sample])


def test_a_run_logs_the_second_loss_beside_the_first(large_pictures: object) -> None:
    from ..training_setup import TRAIN, Setup

    assert isinstance(large_pictures, Setup)
    settings = replace(TRAIN, steps=2, caption_dropout=0.0)
    plain = large_pictures.train(settings)
    both = large_pictures.train(settings, noise_schedule=SECOND)
    assert both.adapter.run_dir != plain.adapter.run_dir
    logs = [
        [json.loads(line) for line in (Path(result.adapter.run_dir) / "log.jsonl").read_text().splitlines()]
        for result in (plain, both)
    ]
    assert "low_resolution_loss" not in logs[0][0]
    assert logs[1][0]["loss"] == pytest.approx(logs[0][0]["loss"], rel=1e-5)  # the first step sees the same weights
    assert logs[1][0]["low_resolution_loss"] > 0
    assert logs[1][0]["grad_norm"] != pytest.approx(logs[0][0]["grad_norm"], rel=1e-3)
    assert logs[1][0]["files"] == logs[0][0]["files"] and len(logs[1][0]["files"]) == 2
    assert logs[1][0]["loss_by_bin"].keys() == logs[0][0]["loss_by_bin"].keys()


@pytest.fixture
def large_pictures(tmp_path: Path) -> object:
    """A tiny base with pictures of at least 64 pixels a side."""
    from lumina2_trainer.trainer_core.data.folder import DatasetFolderSettings
    from lumina2_trainer.trainer_core.stages import caches
    from lumina2_trainer.trainer_core.stages.dataset import read_dataset_folder

    from ..training_setup import make_setup

    setup = make_setup(tmp_path)
    folder = DatasetFolderSettings(folder="pictures", resolution=128)
    dataset = read_dataset_folder(folder, context=setup.context).dataset
    latents = caches.cache_latents(
        caches.CacheLatentsSettings(), model=setup.model, dataset=dataset, context=setup.context
    )
    embeds = caches.cache_text_embeds(
        caches.CacheTextEmbedsSettings(), model=setup.model, dataset=dataset, context=setup.context
    )
    return replace(setup, latents=latents, embeds=embeds)
