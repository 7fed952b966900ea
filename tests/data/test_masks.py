"""Masks: found beside a dataset, checked, cropped as their pictures are, and cached with the latents."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lumina2_trainer.trainer_core.context import StepContext
from lumina2_trainer.trainer_core.data.cache import LatentCache, load_mask, read_latent_index
from lumina2_trainer.trainer_core.data.cache_latents import fill_latent_cache
from lumina2_trainer.trainer_core.data.cache_masks import reduce_mask
from lumina2_trainer.trainer_core.data.folder import Dataset, DatasetFolderSettings
from lumina2_trainer.trainer_core.data.listing import fingerprint_dataset_folder
from lumina2_trainer.trainer_core.data.report import write_report
from lumina2_trainer.trainer_core.data.scan import scan_dataset
from lumina2_trainer.trainer_core.data.sizing import Bucket
from lumina2_trainer.trainer_core.errors import TrainerError
from PIL import Image
from torch import Tensor

from .sample_files import FakeVAE, make_context, open_folder, write_pictures


def write_mask(path: Path, width: int, height: int, white: tuple[int, int, int, int]) -> None:
    """Black, but for a rectangle: left, top, right, bottom."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((height, width), dtype=np.uint8)
    left, top, right, bottom = white
    pixels[top:bottom, left:right] = 255
    Image.fromarray(pixels).save(path)


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    """A folder `set` with two pictures, masks inside it."""
    context = make_context(tmp_path)
    write_pictures(tmp_path / "input/set", {"a.png": (64, 64), "deep/b.png": (96, 64)})
    write_mask(tmp_path / "input/set/masks/a.png", 64, 64, (0, 0, 32, 64))
    write_mask(tmp_path / "input/set/masks/deep/b.png", 96, 64, (0, 0, 96, 64))
    return context


def cache(dataset: Dataset, context: StepContext) -> LatentCache:
    return fill_latent_cache(
        dataset,
        load_encoder=FakeVAE,
        encoder_fingerprint="fake",
        dtype=torch.float32,
        batch_size=0,
        context=context,
    )


def cached_masks(context: StepContext, **settings: Any) -> dict[str, list[Tensor]]:
    index = read_latent_index(cache(open_folder(context, **settings), context))
    return {sample.id: [load_mask(path) for path in index.mask_paths_of(sample)] for sample in index.samples}


def test_masks_are_found_by_path_and_are_no_pictures(context: StepContext) -> None:
    scanned = scan_dataset(open_folder(context, mask_folder="masks"), context)
    assert [(p.id, p.mask and p.mask.name) for p in scanned.pictures] == [
        ("1/a.png", "a.png"),
        ("1/deep/b.png", "deep/b.png"),
    ]
    assert "2 masked, the rest counts 0" in write_report(scanned)
    masks = cached_masks(context, mask_folder="masks")
    assert torch.equal(masks["1/a.png"][0], torch.cat([torch.ones(1, 8, 4), torch.zeros(1, 8, 4)], dim=2))
    assert masks["1/deep/b.png"][0].unique().tolist() == [1.0]


def test_a_folder_elsewhere_may_hold_them_with_another_ending(context: StepContext, tmp_path: Path) -> None:
    for name in ("a", "deep/b"):
        path = tmp_path / f"input/elsewhere/{name}.webp"
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(tmp_path / f"input/set/masks/{name}.png") as mask:
            mask.save(path, lossless=True)
    (tmp_path / "input/set/masks").rename(tmp_path / "input/set/.masks")
    masks = cached_masks(context, mask_folder="elsewhere")
    assert masks["1/a.png"][0].mean().item() == 0.5


def test_a_mask_is_found_however_accents_are_stored(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    picture, mask = (unicodedata.normalize(form, "caf\u00e9.png") for form in ("NFC", "NFD"))
    write_pictures(tmp_path / "input/set", {picture: (64, 64)})
    write_mask(tmp_path / "input/set/masks" / mask, 64, 64, (0, 0, 32, 64))
    (found,) = scan_dataset(open_folder(context, mask_folder="masks"), context).pictures
    assert found.mask is not None and found.mask.name == mask


def test_masks_are_cropped_where_their_pictures_are(tmp_path: Path) -> None:
    """Each mask is its picture, so its averages are those of the picture's latents."""
    context = make_context(tmp_path)
    ramp = np.linspace(0, 255, 200).astype(np.uint8)
    picture = Image.fromarray(np.broadcast_to(ramp[None, :, None], (100, 200, 3)).copy())
    for folder in ("set", "masks"):
        (tmp_path / "input" / folder).mkdir()
        picture.save(tmp_path / "input" / folder / "a.png")
    dataset = open_folder(
        context, mask_folder="masks", caption_source="filename", aspect="square", crop_style="random", num_crops=3
    )
    index = read_latent_index(cache(dataset, context))
    (sample,) = index.samples
    from lumina2_trainer.trainer_core.data.cache import load_latents

    pairs = list(zip(index.paths_of(sample), index.mask_paths_of(sample), strict=True))
    assert len({path for _, path in pairs}) == 3
    for latents_path, mask_path in pairs:
        seen = load_latents(latents_path)[:1] / 2 + 0.5  # the fake VAE averages 8 x 8 pixels
        torch.testing.assert_close(load_mask(mask_path), seen, rtol=0, atol=0.02)


def test_a_smaller_mask_of_the_same_shape_covers_the_same_part() -> None:
    bucket, box = Bucket(width=64, height=64), (30.0, 0.0, 94.0, 64.0)
    large = np.zeros((64, 96), dtype=np.uint8)
    large[:, 62:] = 255
    mask = Image.fromarray(large)
    whole = reduce_mask(mask, (96, 64), bucket, box)
    half = reduce_mask(mask.resize((48, 32), Image.Resampling.BOX), (96, 64), bucket, box)
    assert torch.equal(whole, half) and whole[0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_area_counts_where_a_mask_is_finer_than_the_grid() -> None:
    pixels = np.zeros((64, 64), dtype=np.uint8)
    pixels[:4, :8] = 255
    pixels[8:10, 8:12] = 128
    small = reduce_mask(Image.fromarray(pixels), (64, 64), Bucket(width=64, height=64), (0, 0, 64, 64))
    assert small[0, 0, 0].item() == pytest.approx(0.5, abs=0.003)
    assert small[0, 1, 1].item() == pytest.approx(128 / 255 * 8 / 64, abs=0.003)
    assert small.count_nonzero() == 2


@pytest.mark.parametrize(
    ("write", "settings", "message"),
    [
        (lambda masks: (masks / "a.png").unlink(), {}, "mask missing for a.png: add a.png to mask_folder 'masks'"),
        (lambda masks: write_mask(masks / "a.png", 64, 96, (0, 0, 9, 9)), {}, "mask a.png has 64 x 96 pixels but"),
        (lambda masks: write_mask(masks / "a.png", 64, 64, (0, 0, 0, 0)), {}, "mask a.png of 1/a.png is black all"),
        (lambda masks: (masks / "a.png").write_bytes(b"no"), {}, "mask a.png of a.png: not a jpg"),
        (lambda masks: write_mask(masks / "a.jpg", 64, 64, (0, 0, 9, 9)), {}, "holds a.jpg and a.png, which belong"),
        (lambda masks: None, {"mask_folder": "none"}, "none"),
        (lambda masks: None, {"mask_folder": "."}, "mask_folder '.' holds the pictures themselves"),
        (lambda masks: None, {"mask_folder": "a.png"}, "mask_folder 'a.png' is not a folder"),
        (lambda masks: None, {"mask_folder": "", "mask_outside_weight": 0.1}, "mask_outside_weight is 0.1 but"),
    ],
)
def test_what_cannot_be_used_is_said(
    context: StepContext, tmp_path: Path, write: Any, settings: dict[str, Any], message: str
) -> None:
    write(tmp_path / "input/set/masks")
    with pytest.raises(TrainerError, match=message):
        cached_masks(context, **{"mask_folder": "masks", **settings})


def test_black_masks_and_missing_ones_are_allowed_where_it_is_said(context: StepContext, tmp_path: Path) -> None:
    write_mask(tmp_path / "input/set/masks/a.png", 64, 64, (0, 0, 0, 0))
    (tmp_path / "input/set/masks/deep/b.png").unlink()
    masks = cached_masks(context, mask_folder="masks", mask_outside_weight=0.5, is_mask_required=False)
    assert masks["1/a.png"][0].count_nonzero() == 0 and masks["1/deep/b.png"] == []
    with pytest.raises(TrainerError, match="black all over"):  # now that the entry is there
        cached_masks(context, mask_folder="masks", is_mask_required=False)


def test_fingerprints_change_with_masks_and_only_with_them(context: StepContext, tmp_path: Path) -> None:
    def seen() -> list[str]:
        plain, masked = open_folder(context, include_subfolders=False), {"mask_folder": "masks"}
        datasets = [plain, *(open_folder(context, **masked, mask_outside_weight=w) for w in (0.0, 0.5))]
        prints = [cache(dataset, context).fingerprint for dataset in datasets]
        return [*prints, fingerprint_dataset_folder("set", context, "", "masks")]

    before = seen()
    assert len(set(before)) == 4
    write_mask(tmp_path / "input/set/masks/a.png", 64, 64, (0, 0, 8, 64))
    after = seen()
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, False, False]


def test_an_index_from_before_masks_is_read(context: StepContext) -> None:
    found = cache(open_folder(context, include_subfolders=False), context)
    content = json.loads(Path(found.index_path).read_text("utf-8"))
    for sample in content["samples"]:
        del sample["masks"]
    for folder in content["folders"]:
        for name in ("mask_folder", "mask_outside_weight", "is_mask_required"):
            del folder[name]
    Path(found.index_path).write_text(json.dumps(content), "utf-8")
    index = read_latent_index(found)
    assert [sample.masks for sample in index.samples] == [()] and index.fingerprint == found.fingerprint


def test_every_resolution_has_its_masks(context: StepContext) -> None:
    masks = cached_masks(context, mask_folder="masks", more_resolutions="128")
    assert {id: tuple(of_one[0].shape) for id, of_one in masks.items() if "a.png" in id} == {
        "1/a.png": (1, 8, 8),
        "2/a.png": (1, 16, 16),
    }


def test_settings_hold_by_themselves() -> None:
    settings = DatasetFolderSettings(folder="demo", mask_folder="masks", mask_outside_weight=1.0)
    with pytest.raises(TrainerError, match=r"mask_outside_weight is 1\.5"):
        replace(settings, mask_outside_weight=1.5)
