from __future__ import annotations

import pytest
from lumina2_trainer.trainer_core.data.buckets import (
    GRID,
    Bucket,
    bucket_for,
    list_buckets,
    list_edge_buckets,
)
from lumina2_trainer.trainer_core.data.crops import crop_box, kept_fraction, upscale_factor


@pytest.mark.parametrize("resolution", [64, 128, 192, 512, 1024, 1536, 4096])
def test_list_buckets_keeps_grid_area_and_aspect(resolution: int) -> None:
    buckets = list_buckets(resolution)
    assert Bucket(width=resolution, height=resolution) in buckets
    for bucket in buckets:
        assert bucket.width % GRID == bucket.height % GRID == 0
        assert 0.75 <= bucket.width * bucket.height / resolution**2 <= 1.25
        assert 1 / 4 <= bucket.width / bucket.height <= 4
        assert Bucket(width=bucket.height, height=bucket.width) in buckets


def test_list_buckets_of_a_small_resolution() -> None:
    assert [str(bucket) for bucket in list_buckets(128)] == [
        "64 x 256",
        "64 x 192",
        "128 x 128",
        "192 x 64",
        "256 x 64",
    ]
    assert list_buckets(64) == (Bucket(width=64, height=64),)


@pytest.mark.parametrize(
    ("width", "height", "resolution", "expected"),
    [
        (4000, 3000, 1024, "1152 x 896"),
        (3000, 4000, 1024, "896 x 1152"),
        (1920, 1080, 1024, "1344 x 768"),
        (1001, 999, 1024, "1024 x 1024"),
        (300, 200, 128, "128 x 128"),
        (200, 100, 128, "192 x 64"),
        (5000, 10, 128, "256 x 64"),
        (1, 5000, 512, "256 x 1024"),
        (5000, 10, 64, "64 x 64"),
    ],
)
def test_bucket_for_takes_the_nearest_aspect(width: int, height: int, resolution: int, expected: str) -> None:
    assert str(bucket_for(width, height, resolution)) == expected


def test_bucket_for_loses_least_of_the_picture() -> None:
    for width, height in [(640, 480), (333, 1000), (17, 13), (2500, 1111)]:

        def kept(bucket: Bucket, width: int = width, height: int = height) -> float:
            return kept_fraction(width, height, crop_box(width, height, bucket))

        assert kept(bucket_for(width, height, 512)) == pytest.approx(max(map(kept, list_buckets(512))))


def test_edge_buckets_have_the_resolution_as_short_side() -> None:
    assert [str(bucket) for bucket in list_edge_buckets(64)] == [
        "64 x 256",
        "64 x 192",
        "64 x 128",
        "64 x 64",
        "128 x 64",
        "192 x 64",
        "256 x 64",
    ]
    assert {min(bucket.width, bucket.height) for bucket in list_edge_buckets(512)} == {512}


@pytest.mark.parametrize(
    ("size", "bucket", "box"),
    [
        ((300, 100), (64, 64), (100, 0, 200, 100)),
        ((100, 301), (64, 64), (0, 100.5, 100, 200.5)),
        ((400, 300), (192, 64), (0, 250 / 3, 400, 650 / 3)),
        ((10, 10), (128, 128), (0, 0, 10, 10)),
    ],
)
def test_crop_box_is_centred_and_as_large_as_possible(
    size: tuple[int, int], bucket: tuple[int, int], box: tuple[float, ...]
) -> None:
    assert crop_box(*size, Bucket(width=bucket[0], height=bucket[1])) == pytest.approx(box)


def test_kept_fraction_and_upscale_factor() -> None:
    square = Bucket(width=128, height=128)
    assert kept_fraction(200, 100, crop_box(200, 100, square)) == pytest.approx(0.5)
    assert upscale_factor(square, crop_box(64, 100, square)) == pytest.approx(2.0)
    assert upscale_factor(square, crop_box(256, 512, square)) == pytest.approx(0.5)
