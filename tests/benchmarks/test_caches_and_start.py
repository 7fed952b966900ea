"""The cache and start-up benchmarks on the demo's base."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from lumina2_trainer.benchmarks import first_step
from lumina2_trainer.benchmarks.cache_sides import MAX_DIFFERENCE, SIDES, compare_outputs, measure_side, prepare
from lumina2_trainer.benchmarks.pictures import PHOTO_SIZES, write_photos
from lumina2_trainer.trainer_core.lumina2.models.base_files import DEMO_MODEL_PATH
from PIL import Image


@pytest.mark.parametrize("kind", list(SIDES))
def test_both_sides_write_equal_outputs(kind: str, tmp_path: Path) -> None:
    prepare(tmp_path, tmp_path, {kind: 4}, short_share=2, num_layers=1, is_tiny=True)
    for side in ("plain", "ours"):
        result = measure_side(kind, side, tmp_path, resolution=128)
        assert result["count"] == 4 and result["total"] > 0
    assert compare_outputs(kind, tmp_path) < MAX_DIFFERENCE


def test_photos_have_the_size_and_the_weight_of_photos(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    write_photos(folder, 2, PHOTO_SIZES)
    png, jpg = folder / "00000.png", folder / "00001.jpg"
    assert [Image.open(path).size for path in (png, jpg)] == list(PHOTO_SIZES[:2])
    assert jpg.stat().st_size > 100_000 and png.stat().st_size > 1_000_000
    assert png.with_suffix(".txt").read_text("utf-8") != jpg.with_suffix(".txt").read_text("utf-8")


def test_first_step_is_timed_in_order(tmp_path: Path) -> None:
    first_step.prepare(tmp_path, DEMO_MODEL_PATH, 2, is_tiny=True)
    assert first_step.make_caches(tmp_path, "fp32", time.time())["seconds"] > 0
    result = first_step.train_first_step(tmp_path, "fp32", time.time())
    assert 0 < result["imported"] < result["checked"] < result["first_step"]
    assert 0 < result["step_seconds"] < result["first_step"]
    assert result["peak_gib"] >= first_step.start_interpreter(tmp_path, "fp32", time.time())["peak_gib"] > 0
