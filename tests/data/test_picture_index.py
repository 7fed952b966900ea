"""Sharpness and likeness of pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lumina2_trainer.trainer_core.data.picture_index import BLURRY, difference_hash, find_look_alikes, measure_sharpness
from lumina2_trainer.trainer_core.data.report import write_report
from lumina2_trainer.trainer_core.data.scan import scan_dataset
from PIL import Image, ImageEnhance, ImageFilter

from .sample_files import make_context, open_folder


def scene(seed: int, size: tuple[int, int] = (600, 400)) -> Image.Image:
    """Rectangles of any colour over a fine grain, as a photograph has it."""
    random = np.random.default_rng(seed)
    pixels = np.full((size[1], size[0], 3), 120.0)
    for _ in range(30):
        x, y = random.integers(0, size[0]), random.integers(0, size[1])
        pixels[y : y + random.integers(20, 200), x : x + random.integers(20, 200)] = random.integers(0, 255, 3)
    return Image.fromarray((pixels + random.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8))


def test_blur_is_told_from_focus_at_every_size() -> None:
    for seed in range(5):
        sharp = scene(seed)
        assert measure_sharpness(sharp) > 5 * BLURRY
        assert measure_sharpness(sharp.resize((2400, 1600))) > BLURRY
        assert measure_sharpness(sharp.filter(ImageFilter.GaussianBlur(12))) < BLURRY
    assert measure_sharpness(Image.new("RGB", (64, 64), "red")) == 0
    assert measure_sharpness(Image.new("RGB", (1, 1))) == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((300, 200)),
        lambda image: image.resize((1200, 800), Image.Resampling.BICUBIC),
        lambda image: ImageEnhance.Brightness(image).enhance(1.1),
        lambda image: image.convert("L").convert("RGB"),
    ],
    ids=["smaller", "larger", "brighter", "grey"],
)
def test_changed_copies_look_the_same(change: Callable[[Image.Image], Image.Image]) -> None:
    hashes = {f"{seed}": difference_hash(scene(seed)) for seed in range(40)}
    hashes["copy"] = difference_hash(change(scene(7)))
    assert find_look_alikes(hashes) == [("7", "copy")]


def test_groups_hold_all_that_look_the_same() -> None:
    near = {"a": 0x1234567890ABCDEF, "b": 0x1234567890ABCDEE, "c": 0x9234567890ABCDEE, "far": 0xF00F}
    assert find_look_alikes({name: f"{value:016x}" for name, value in near.items()}) == [("a", "b", "c")]


def test_pictures_that_have_nothing_in_common_are_not_grouped() -> None:
    random = np.random.default_rng(0)
    hashes = {str(i): f"{int(value):016x}" for i, value in enumerate(random.integers(0, 2**63, 10_000))}
    assert find_look_alikes(hashes) == []


def test_report_names_what_may_spoil_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "input" / "set"
    folder.mkdir(parents=True)
    scene(1).save(folder / "first.png")
    scene(1).resize((450, 300)).save(folder / "again.png")
    scene(2).filter(ImageFilter.GaussianBlur(12)).save(folder / "blurry.png")
    scene(3).save(folder / "other.png")
    for name in ("first", "again", "blurry"):
        (folder / f"{name}.txt").write_text("a scene")
    (folder / "other.txt").write_text("another scene")
    context = make_context(tmp_path)
    report = write_report(scan_dataset(open_folder(context, resolution=128), context)).splitlines()
    assert "  1/again.png ~ 1/first.png" in report
    assert "Blurry, or hardly anything in them (1):" in report
    assert any(line.startswith("  1/blurry.png: sharpness ") for line in report)
    assert "  3 have 'a scene': 1/again.png, 1/blurry.png, 1/first.png" in report
    same = open_folder(context, resolution=128, caption_source="one_text", caption="a scene")
    assert not any("have 'a scene'" in line for line in write_report(scan_dataset(same, context)).splitlines())
