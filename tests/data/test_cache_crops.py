from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.context import StepContext
from lumina2_trainer.trainer_core.data.cache import LatentCache, load_latents, read_latent_index
from lumina2_trainer.trainer_core.data.cache_latents import fill_latent_cache
from lumina2_trainer.trainer_core.data.entries import entry_name
from lumina2_trainer.trainer_core.data.folder import Dataset
from lumina2_trainer.trainer_core.data.images import decode_picture, to_picture_tensor
from lumina2_trainer.trainer_core.data.scan import scan_dataset
from lumina2_trainer.trainer_core.errors import CacheDamagedError
from PIL.Image import Resampling

from .sample_files import FakeVAE, make_context, open_folder, write_pictures


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    return make_context(tmp_path)


def fill(dataset: Dataset, context: StepContext, vae: FakeVAE) -> LatentCache:
    return fill_latent_cache(
        dataset,
        load_encoder=vae.load,
        encoder_fingerprint="vae 1",
        dtype=torch.float32,
        batch_size=2,
        context=context,
    )


def test_usual_crops_keep_the_names_they_always_had(context: StepContext, tmp_path: Path) -> None:
    write_pictures(tmp_path / "input" / "set", {"a.png": (100, 90)})
    index = read_latent_index(fill(open_folder(context, resolution=128), context, FakeVAE()))
    sample = index.samples[0]
    facts = (sample.content_hash, sample.width, sample.height, "vae 1", "torch.float32")
    assert sample.latents == entry_name("latents", 1, *facts)
    assert sample.more_latents == ()


def test_random_crops_are_cached_each_and_checked(tmp_path: Path, context: StepContext) -> None:
    write_pictures(tmp_path / "input" / "wide", {"a.png": (200, 64), "b.png": (64, 64)})
    settings = {"aspect": "square", "crop_style": "random", "num_crops": 3}
    vae = FakeVAE()
    cache = fill(open_folder(context, "wide", **settings), context, vae)
    index = read_latent_index(cache)
    assert vae.num_encoded == 4
    wide, square = index.samples
    assert (len(index.paths_of(wide)), len(index.paths_of(square))) == (3, 1)
    scanned = scan_dataset(open_folder(context, "wide", **settings), context)
    picture = scanned.pictures[0]
    image = decode_picture(picture.path.read_bytes()).image
    for path, (left, top, right, bottom) in zip(index.paths_of(wide), picture.boxes, strict=True):
        assert right - left == pytest.approx(64) and bottom - top == 64
        expected = FakeVAE().encode(
            to_picture_tensor(image.resize((64, 64), Resampling.LANCZOS, (left, top, right, bottom)))[None]
        )
        torch.testing.assert_close(load_latents(path), expected[0])
    again = FakeVAE()
    assert fill(open_folder(context, "wide", **settings), context, again) == cache
    assert again.num_loads == 0
    assert fill(open_folder(context, "wide", **{**settings, "num_crops": 2}), context, again) != cache
    assert again.num_loads == 0, "fewer of the same crops"
    index.paths_of(wide)[2].unlink()
    with pytest.raises(CacheDamagedError, match="1 of 4 cache entries are gone"):
        read_latent_index(cache)
