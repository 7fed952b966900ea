"""Values that ComfyUI's own nodes take."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from lumina2_trainer.nodes.host_values import read_images, read_lora, to_loss_map
from PIL import Image
from safetensors.torch import save_file


@pytest.mark.parametrize("losses", [(), (0.5,), (0.5, 0.5), (0.0,), (math.nan, 1.0), (1.0, math.inf, 2.0)])
def test_loss_map_has_two_distinct_finite_values(losses: tuple[float, ...]) -> None:
    values = to_loss_map(losses)["loss"]
    assert all(map(math.isfinite, values))
    assert max(values) > min(values)


def test_loss_map_keeps_ordinary_losses() -> None:
    assert to_loss_map((3.0, 2.0, 1.0)) == {"loss": [3.0, 2.0, 1.0]}


def test_lora_outlives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    save_file({"diffusion_model.layers.0.attention.qkv.lora_A.weight": torch.ones(2, 3)}, path)
    lora = read_lora(path)
    path.write_bytes(b"")
    torch.testing.assert_close(lora["diffusion_model.layers.0.attention.qkv.lora_A.weight"], torch.ones(2, 3))


def test_pictures_become_a_batch(tmp_path: Path) -> None:
    for name, colour in (("a.png", (255, 0, 0)), ("b.png", (0, 0, 51))):
        Image.new("RGB", (10, 6), colour).save(tmp_path / name)
    images = read_images([tmp_path / "a.png", tmp_path / "b.png"])
    assert images.shape == (2, 6, 10, 3)
    torch.testing.assert_close(images[1, 0, 0], torch.tensor([0.0, 0.0, 0.2]))


def test_no_pictures_are_one_black_one() -> None:
    images = read_images([])
    assert images.shape[0] == 1
    assert images.max() == 0


def test_pictures_of_several_sizes_lie_in_the_middle_of_the_largest(tmp_path: Path) -> None:
    sizes = [(8, 12), (16, 4)]
    for number, size in enumerate(sizes):
        Image.new("RGB", size, "white").save(tmp_path / f"{number}.png")
    images = read_images([tmp_path / "0.png", tmp_path / "1.png"])
    assert images.shape == (2, 12, 16, 3)
    for image, (width, height) in zip(images, sizes, strict=True):
        top, left = (12 - height) // 2, (16 - width) // 2
        assert image[top : top + height, left : left + width].min() == 1
        assert image.sum() == width * height * 3
