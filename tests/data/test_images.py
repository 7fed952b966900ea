from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import torch
from lumina2_trainer.trainer_core.data import images
from lumina2_trainer.trainer_core.data.images import UnreadablePicture, decode_picture, fit_to_bucket, to_picture_tensor
from lumina2_trainer.trainer_core.data.sizing import Bucket
from PIL import Image

from .sample_files import noise_picture


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(image: Image.Image, kind: str = "PNG", **options: Any) -> np.ndarray:
    result = decode_picture(encoded(image, kind, **options)).image
    assert result.mode == "RGB"
    return np.asarray(result)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "JPEG", "WEBP", "AVIF"])
def test_every_format_decodes_an_odd_size(kind: str) -> None:
    image = Image.new("RGB", (37, 23), (200, 40, 90))
    assert np.abs(decoded(image, kind).astype(int) - (200, 40, 90)).max() <= 6


def test_exif_orientation_turns_the_picture() -> None:
    image = noise_picture(5, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    result = decoded(image, exif=exif)
    np.testing.assert_array_equal(result, np.rot90(np.asarray(image), -1))


def test_alpha_is_shown_on_white() -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((1, 2), (100, 0, 0, 255))
    image.putpixel((2, 2), (0, 0, 0, 128))
    result = decoded(image)
    assert result[0, 0].tolist() == [255, 255, 255]
    assert result[2, 1].tolist() == [100, 0, 0]
    assert result[2, 2].tolist() == [127, 127, 127]


def test_palette_grey_and_bilevel_pictures_become_rgb() -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert decoded(palette)[0, 0].tolist() == [10, 20, 30]
    assert decoded(palette, transparency=1)[0, 0].tolist() == [255, 255, 255]
    assert decoded(Image.new("L", (4, 4), 77))[0, 0].tolist() == [77, 77, 77]
    assert decoded(Image.new("LA", (4, 4), (77, 0)))[0, 0].tolist() == [255, 255, 255]
    assert decoded(Image.new("1", (4, 4), 1))[0, 0].tolist() == [255, 255, 255]
    assert decoded(Image.new("CMYK", (4, 4), (0, 0, 0, 0)), "JPEG")[0, 0].min() >= 253


def test_16_bit_grey_keeps_its_range() -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    result = decoded(Image.fromarray(values))
    assert result[0, :, 0].tolist() == [0, 1, 128, 255]


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    picture = decode_picture(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True))
    assert picture.is_animated
    assert np.asarray(picture.image)[0, 0].tolist() == [255, 0, 0]
    assert not decode_picture(encoded(frames[0], "WEBP")).is_animated


@pytest.mark.parametrize("kind", ["PNG", "BMP", "JPEG", "WEBP", "AVIF"])
def test_a_truncated_file_is_unreadable(kind: str) -> None:
    content = encoded(noise_picture(64, 48), kind)
    with pytest.raises(UnreadablePicture, match=r"damaged|not a jpg"):
        decode_picture(content[: len(content) // 2])


@pytest.mark.parametrize("content", [b"", b"not a picture", bytes(5000)])
def test_other_content_is_unreadable(content: bytes) -> None:
    with pytest.raises(UnreadablePicture, match="not a jpg, png, webp, avif or bmp picture"):
        decode_picture(content)


def test_other_formats_are_not_opened() -> None:
    with pytest.raises(UnreadablePicture, match="not a jpg"):
        decode_picture(encoded(noise_picture(8, 8), "TIFF"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_small_file_that_claims_to_be_huge_is_refused() -> None:
    header = bytearray(encoded(Image.new("1", (8, 8)), "BMP"))
    header[18:26] = (20000).to_bytes(4, "little") + (8000).to_bytes(4, "little")
    with pytest.raises(UnreadablePicture, match="20000 x 8000 pixels are more than 134 megapixels"):
        decode_picture(bytes(header))
    header[18:26] = (60000).to_bytes(4, "little") * 2
    with pytest.raises(UnreadablePicture):
        decode_picture(bytes(header))


def test_random_bytes_never_escape_as_other_errors() -> None:
    rng = np.random.default_rng(1)
    for kind in ("PNG", "BMP", "JPEG", "WEBP", "AVIF"):
        content = encoded(noise_picture(24, 17), kind)
        for _ in range(60):
            damaged = bytearray(content)
            for position in rng.integers(0, len(damaged), 8):
                damaged[position] = rng.integers(0, 256)
            with contextlib.suppress(UnreadablePicture):
                assert decode_picture(bytes(damaged)).image.mode == "RGB"


def test_decode_errors_of_any_parser_are_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: Image.Image) -> Image.Image:
        raise KeyError(0x0112)

    monkeypatch.setattr(images.ImageOps, "exif_transpose", fail)
    with pytest.raises(UnreadablePicture, match="damaged"):
        decode_picture(encoded(noise_picture(8, 8), "PNG"))


def test_fit_to_bucket_crops_the_centre() -> None:
    image = Image.new("RGB", (300, 100), "black")
    image.paste("white", (100, 0, 200, 100))
    result = np.asarray(fit_to_bucket(image, Bucket(width=64, height=64)))
    assert result.shape == (64, 64, 3)
    assert result.min() >= 240


def test_fit_to_bucket_scales_up_small_pictures() -> None:
    assert fit_to_bucket(noise_picture(3, 5), Bucket(width=128, height=64)).size == (128, 64)


def test_picture_tensor_keeps_bytes_and_channels_last() -> None:
    pixels_HW3 = np.array([[[0, 255, 0], [255, 0, 51]]], dtype=np.uint8)
    tensor_3HW = to_picture_tensor(Image.fromarray(pixels_HW3))
    assert torch.equal(tensor_3HW, torch.tensor([[[0, 255]], [[255, 0]], [[0, 51]]], dtype=torch.uint8))
    assert tensor_3HW.stride() == (1, 6, 3)
