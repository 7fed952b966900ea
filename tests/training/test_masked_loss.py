"""The loss with masks: what it counts, and that white masks change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.data.batches import SampleStream
from lumina2_trainer.trainer_core.lumina2.network.layout import patchify
from lumina2_trainer.trainer_core.lumina2.network.padding import ShapeLimiter
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Config
from lumina2_trainer.trainer_core.lumina2.objective import flow_matching_loss, make_noisy_batch, predict_velocity
from lumina2_trainer.trainer_core.lumina2.timesteps import NoiseSettings
from lumina2_trainer.trainer_core.training.batch_builder import BatchBuilder, TrainingBatch
from lumina2_trainer.trainer_core.training.graphs import shape_key
from lumina2_trainer.trainer_core.training.low_resolution import shrink_latents
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ..lumina2.tiny_models import CPU, TINY, random_samples, tiny_transformer
from ..training_setup import PICTURES, TRAIN, make_setup
from .cached_samples import write_sample

SIZES = [(16, 24), (24, 16)]
PLAIN = NoiseSettings()


def build(
    folder: Path, masks: list[Tensor | None], outside: float = 0.0, noise: NoiseSettings = PLAIN
) -> TrainingBatch:
    samples = []
    for number, (size, mask) in enumerate(zip(SIZES, masks, strict=True)):
        mask_path = folder / f"mask-{number}"
        if mask is not None:
            save_file({"tensor": mask}, mask_path)
        samples.append(
            write_sample(
                folder,
                number,
                size,
                3 + number,
                TINY.cap_feat_dim,
                mask_paths=() if mask is None else (mask_path,),
                mask_outside_weight=outside,
            )
        )
    builder = BatchBuilder(
        samples,
        SampleStream([1, 1], seed=5),
        unconditional=torch.zeros(1, TINY.cap_feat_dim),
        batch_size=2,
        caption_dropout=0.0,
        seed=5,
        noise=noise,
        samples_per_step=2,
        axes_dims=TINY.axes_dims,
        shapes=ShapeLimiter(Lumina2Config(), CPU, torch.float32),
    )
    return builder.build(0)


def half_masks() -> list[Tensor]:
    """White on the left."""
    return [torch.arange(width).lt(width // 2).float().expand(1, height, width).contiguous() for height, width in SIZES]


def white_masks() -> list[Tensor]:
    return [torch.ones(1, height, width) for height, width in SIZES]


def losses(batch: TrainingBatch, noise: NoiseSettings = PLAIN) -> Tensor:
    return flow_matching_loss(tiny_transformer(), batch.noisy, noise).detach()


@pytest.mark.parametrize("noise", [NoiseSettings(), NoiseSettings(low_resolution_weight=0.5, loss="huber")])
@pytest.mark.parametrize("outside", [0.0, 0.3])
def test_white_masks_equal_no_masks_exactly(tmp_path: Path, outside: float, noise: NoiseSettings) -> None:
    without = build(tmp_path, [None, None], noise=noise)
    white = build(tmp_path, white_masks(), outside, noise)
    mixed = build(tmp_path, [None, white_masks()[1]], outside, noise)
    assert without.noisy.loss_weights_TC is None
    assert torch.equal(losses(white, noise), losses(without, noise))
    assert torch.equal(losses(mixed, noise), losses(without, noise))


def test_black_masks_with_full_weight_outside_equal_no_masks_exactly(tmp_path: Path) -> None:
    black = [torch.zeros_like(mask) for mask in white_masks()]
    assert torch.equal(losses(build(tmp_path, black, 1.0)), losses(build(tmp_path, [None, None])))


@pytest.mark.parametrize("outside", [0.0, 0.25])
def test_loss_is_the_weighted_mean_of_each_sample(tmp_path: Path, outside: float) -> None:
    batch = build(tmp_path, half_masks(), outside).noisy
    transformer = tiny_transformer()
    square_TC = (predict_velocity(transformer, batch) - batch.target_TC).square().detach()
    # Sorted by size: the first has 16 rows.
    expected = []
    parts = square_TC.split([8 * 12, 12 * 8])
    for part, mask, (height, width) in zip(parts, half_masks(), SIZES, strict=True):
        weights = patchify((mask + outside * (1 - mask)).expand(16, height, width))
        expected.append((part * weights).sum() / weights.sum())
    torch.testing.assert_close(flow_matching_loss(transformer, batch), torch.stack(expected))


def test_nothing_is_learned_where_a_mask_is_black(tmp_path: Path) -> None:
    batch = build(tmp_path, half_masks()).noisy
    assert batch.loss_weights_TC is not None
    velocity_TC = torch.randn_like(batch.target_TC, requires_grad=True)
    (velocity_TC - batch.target_TC).square().mul(batch.loss_weights_TC).sum().backward()
    first = velocity_TC.grad[: 8 * 12].view(8, 12, -1)
    assert (first[:, :6] != 0).all() and (first[:, 6:] == 0).all()


def test_one_masked_sample_leaves_the_others_whole(tmp_path: Path) -> None:
    mixed = losses(build(tmp_path, [None, half_masks()[1]]))
    plain, masked = losses(build(tmp_path, [None, None])), losses(build(tmp_path, half_masks()))
    assert mixed.tolist() == [plain[0].item(), masked[1].item()] and plain[1] != masked[1]


def test_the_second_loss_has_the_shrunk_mask(tmp_path: Path) -> None:
    batch = build(tmp_path, half_masks(), noise=NoiseSettings(low_resolution_weight=0.5)).noisy
    assert batch.loss_weights_TC is not None
    shrunk = [shrink_latents(mask) for mask in half_masks()]
    expected = [patchify((s / s.mean()).expand(16, *s.shape[1:])) for s in shrunk]
    torch.testing.assert_close(batch.loss_weights_TC[2 * 96 :], torch.cat(expected))


def test_a_mask_that_is_black_after_all_teaches_nothing(tmp_path: Path) -> None:
    found = losses(build(tmp_path, [torch.zeros(1, 16, 24), None]))
    assert found[0] == 0 and found[1] > 0


def test_batches_with_and_without_masked_samples_are_one_shape(tmp_path: Path) -> None:
    one, both = build(tmp_path, [None, half_masks()[1]]), build(tmp_path, half_masks())
    assert shape_key(one.noisy) == shape_key(both.noisy)


def test_padding_counts_nothing() -> None:
    from lumina2_trainer.trainer_core.lumina2.network.layout import PaddedLengths

    latents, embeds, timesteps = random_samples([(5, 6, 10), (3, 4, 8)])
    masks = [torch.rand(1, *x.shape[1:], generator=torch.Generator().manual_seed(1)) for x in latents]
    plain, padded = (
        make_noisy_batch(latents, latents, timesteps, embeds, TINY.axes_dims, CPU, lengths, loss_weights=masks)
        for lengths in (None, PaddedLengths(caption=8, image=16))
    )
    transformer = tiny_transformer()
    torch.testing.assert_close(flow_matching_loss(transformer, padded), flow_matching_loss(transformer, plain))


def test_runs_learn_from_masked_and_whole_pictures_together(tmp_path: Path) -> None:
    """Through the caches: white masks train the same adapter as none, half ones another."""
    results = {}
    for name, shade in {"none": None, "white": 255, "half": 0}.items():
        root = tmp_path / name
        setup_folder = PICTURES if shade is None else replace(PICTURES, mask_folder="masks", is_mask_required=False)
        if shade is not None:
            (root / "masks").mkdir(parents=True)
            for picture, size in {"red": (64, 64), "pink": (70, 64)}.items():
                mask = Image.new("L", size, 255)
                mask.paste(shade, (0, 0, size[0] // 2, size[1]))
                mask.save(root / "masks" / f"{picture}.png")
        noise = NoiseSettings(low_resolution_weight=0.5)
        results[name] = make_setup(root, [setup_folder]).train(replace(TRAIN, steps=3), noise_schedule=noise).losses
    assert results["white"] == results["none"] != results["half"]
