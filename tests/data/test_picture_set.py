"""Pictures written as a folder: without loss, by content, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lumina2_trainer.trainer_core.data.picture_set import (
    CaptionedPixels,
    read_picture_set,
    to_pixels,
    write_picture_set,
)
from lumina2_trainer.trainer_core.data.progress import Progress
from lumina2_trainer.trainer_core.errors import StopTraining, TrainerError
from PIL import Image
from torch import Tensor

from .sample_files import make_context


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Of a picture's values as an 8-bit file gives them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator).float() / 255


def captioned(images: Tensor, *captions: str) -> list[CaptionedPixels]:
    pixels = to_pixels([images])
    return [CaptionedPixels(pixels=picture, caption=text) for picture, text in zip(pixels, captions, strict=True)]


@pytest.fixture
def progress(tmp_path: Path) -> Progress:
    return Progress("test", total=9, num_done=0, context=make_context(tmp_path))


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of all files that are not hidden."""
    paths = [path for path in folder.rglob("[!.]*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def test_every_8_bit_value_survives() -> None:
    values = torch.arange(256, dtype=torch.float32) / 255
    (pixels,) = to_pixels([values.reshape(1, 16, 16, 1)])
    assert pixels.reshape(-1).tolist() == list(range(256))


def test_values_outside_are_clipped() -> None:
    (pixels,) = to_pixels([torch.tensor([-0.5, 0.5, 1.5]).reshape(1, 1, 1, 3)])
    assert pixels.reshape(-1).tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "images holds no picture"),
        ([torch.zeros(0, 4, 4, 3)], "images holds no picture"),
        ([torch.zeros(4, 4, 3)], r"images has the shape \(4, 4, 3\)"),
        ([torch.zeros(1, 4, 4, 2)], r"images has the shape \(1, 4, 4, 2\)"),
        ([torch.zeros(1, 4, 4, 3), torch.full((1, 2, 2, 3), torch.nan)], "picture 2 of images holds values that"),
    ],
)
def test_what_is_no_picture_is_refused(images: list[Tensor], message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        to_pixels(images)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_written_pictures_are_read_back_exactly(tmp_path: Path, progress: Progress, channels: int) -> None:
    pictures = captioned(noise(12, 6, 10, channels), *(f"caption {i}" for i in range(12)))
    path = write_picture_set(tmp_path / "set", pictures, progress)
    again = read_picture_set(tmp_path / "set")
    assert all(np.array_equal(a, b.pixels) for a, b in zip(again, pictures, strict=True))
    assert [p.read_text("utf-8") for p in sorted(path.glob("*.txt"))] == [p.caption for p in pictures]


def test_same_pictures_are_not_written_again(tmp_path: Path, progress: Progress) -> None:
    first = write_picture_set(tmp_path / "set", captioned(noise(2, 6, 10, 3), "a", "b"), progress)
    before = state(tmp_path / "set")
    assert write_picture_set(tmp_path / "set", captioned(noise(2, 6, 10, 3), "a", "b"), progress) == first
    assert state(tmp_path / "set") == before


def test_other_captions_keep_the_bytes_of_the_pictures(tmp_path: Path, progress: Progress) -> None:
    first = write_picture_set(tmp_path / "set", captioned(noise(2, 6, 10, 3), "a", "b"), progress)
    for path in first.glob("*.png"):  # as another version of Pillow would have written it
        Image.open(path).save(path, compress_level=0)
    before = {path.name: path.read_bytes() for path in first.glob("*.png")}
    second = write_picture_set(tmp_path / "set", captioned(noise(2, 6, 10, 3), "a", "c"), progress)
    assert second != first
    assert {path.name: path.read_bytes() for path in second.glob("*.png")} == before


def test_other_pictures_replace_the_set(tmp_path: Path, progress: Progress) -> None:
    first = write_picture_set(tmp_path / "set", captioned(noise(2, 6, 10, 3), "a", "b"), progress)
    second = write_picture_set(tmp_path / "set", captioned(noise(2, 6, 10, 3, seed=1), "a", "b"), progress)
    assert [path for path in (tmp_path / "set").iterdir() if path.is_dir()] == [second]
    assert not first.exists()


def test_equal_pictures_may_have_different_captions(tmp_path: Path, progress: Progress) -> None:
    path = write_picture_set(tmp_path / "set", captioned(noise(1, 6, 10, 3).repeat(2, 1, 1, 1), "a", "b"), progress)
    assert [file.read_text() for file in sorted(path.glob("*.txt"))] == ["a", "b"]


@pytest.mark.parametrize("damage", ["picture", "caption", "missing", "more"])
def test_changed_set_is_put_back(tmp_path: Path, progress: Progress, damage: str) -> None:
    pictures = captioned(noise(2, 6, 10, 3), "a", "b")
    path = write_picture_set(tmp_path / "set", pictures, progress)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    picture = sorted(path.glob("*.png"))[0]
    if damage == "picture":
        picture.write_bytes(b"no picture")
    elif damage == "caption":
        picture.with_suffix(".txt").write_text("other")
    elif damage == "missing":
        picture.unlink()
    else:
        (path / "more.png").write_bytes(picture.read_bytes())
    assert write_picture_set(tmp_path / "set", pictures, progress) == path
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_stopped_writing_leaves_what_was_there(tmp_path: Path, progress: Progress) -> None:
    write_picture_set(tmp_path / "set", captioned(noise(1, 6, 10, 3), "a"), progress)
    before = state(tmp_path / "set")
    asked = iter([False, True])
    stopping = Progress("test", total=2, num_done=0, context=make_context(tmp_path, should_stop=lambda: next(asked)))
    with pytest.raises(StopTraining):
        write_picture_set(tmp_path / "set", captioned(noise(2, 6, 10, 3, seed=1), "a", "b"), stopping)
    assert state(tmp_path / "set") == before
    assert not list((tmp_path / "set").glob(".*.tmp"))


def test_files_and_folders_of_others_stay(tmp_path: Path, progress: Progress) -> None:
    others = [tmp_path / "set" / "mine", tmp_path / "set" / "0123456789abcdeg", tmp_path / "set" / "plain.tmp"]
    for path in others:
        path.mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "set" / "0123456789abcdef").symlink_to(outside, target_is_directory=True)
    write_picture_set(tmp_path / "set", captioned(noise(1, 6, 10, 3), "a"), progress)
    assert all(path.is_dir() for path in [*others, outside])


def test_reading_needs_exactly_one_set(tmp_path: Path, progress: Progress) -> None:
    with pytest.raises(TrainerError, match="0 sets of pictures"):
        read_picture_set(tmp_path / "set")
    write_picture_set(tmp_path / "set", captioned(noise(1, 6, 10, 3), "a"), progress)
    (tmp_path / "set" / ("0" * 16)).mkdir()
    with pytest.raises(TrainerError, match="2 sets of pictures"):
        read_picture_set(tmp_path / "set")
