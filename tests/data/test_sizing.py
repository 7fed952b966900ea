from __future__ import annotations

import random
from collections import Counter

import pytest
from lumina2_trainer.trainer_core.data.folder import DatasetFolderSettings
from lumina2_trainer.trainer_core.data.sizing import (
    ASPECTS,
    CROP_STYLES,
    GRID,
    RESOLUTION_TYPES,
    Bucket,
    SizedPicture,
    crop_box,
    kept_fraction,
    list_buckets,
    list_edge_buckets,
    nearest_bucket,
    parse_aspect_ratios,
    size_picture,
    upscale_factor,
)
from lumina2_trainer.trainer_core.errors import TrainerError

HASHES = [f"{number:064x}" for number in range(400)]


def sized(width: int, height: int, content_hash: str = HASHES[0], **settings: object) -> SizedPicture:
    plan = DatasetFolderSettings(folder="set", **settings).size_plan
    found = size_picture(plan, width, height, content_hash)
    assert isinstance(found, SizedPicture), found
    return found


@pytest.mark.parametrize(
    ("settings", "size", "bucket", "box"),
    [
        # The whole height of 333 becomes 512: scale 512 / 333, so 512 of width are 333.
        ({"resolution": 512, "aspect": "square"}, (1001, 333), "512 x 512", (334, 0, 667, 333)),
        ({"resolution": 512, "aspect": "square", "crop_style": "corner"}, (1001, 333), "512 x 512", (0, 0, 333, 333)),
        ({"resolution": 512, "aspect": "square", "crop_style": "corner"}, (333, 1001), "512 x 512", (0, 0, 333, 333)),
        # 1001 / 333 = 3.006; of the sizes near 512 x 512, 896 x 320 is 2.8 and 960 x 256 is 3.75.
        ({"resolution": 512}, (1001, 333), "896 x 320", (34.3, 0, 966.7, 333)),
        # The short side is 512; 512 * 3.006 = 1539.1 on the grid is 1536: 1536 / 512 = 3, so 3 * 333 = 999 wide.
        ({"resolution": 512, "resolution_type": "pixel"}, (1001, 333), "1536 x 512", (1, 0, 1000, 333)),
        ({"resolution": 512, "resolution_type": "pixel"}, (333, 1001), "512 x 1536", (0, 1, 333, 1000)),
        # A shape beyond 4:1 is cut to 4:1.
        ({"resolution": 64, "resolution_type": "pixel"}, (999, 99), "256 x 64", (301.5, 0, 697.5, 99)),
        # 0.25 megapixels are 512 x 512; resolution is not read.
        ({"resolution_type": "area", "megapixels": 0.25}, (777, 777), "512 x 512", (0, 0, 777, 777)),
        ({"resolution_type": "area", "megapixels": 1.0}, (4000, 3000), "1152 x 896", (71.4286, 0, 3928.5714, 3000)),
        # 0.5 megapixels: a side of 724.08, 11.3 steps of 64.
        ({"resolution_type": "area", "megapixels": 0.5, "aspect": "square"}, (99, 99), "704 x 704", (0, 0, 99, 99)),
        # 641 / 479 = 1.34 is nearest to 3:2 of the two; at 512 its bucket is 640 x 384: 641 * 0.6 = 384.6 high.
        (
            {"resolution": 512, "aspect": "closest", "aspect_ratios": "3:2, 1:2"},
            (641, 479),
            "640 x 384",
            (0, 47.2, 641, 431.8),
        ),
        ({"resolution": 64, "aspect": "random", "aspect_ratios": "1"}, (301, 201), "64 x 64", (50, 0, 251, 201)),
    ],
)
def test_sizes_and_crops_by_hand(
    settings: dict[str, object], size: tuple[int, int], bucket: str, box: tuple[float, ...]
) -> None:
    found = sized(*size, **settings)
    assert str(found.bucket) == bucket
    assert found.boxes == (pytest.approx(box, abs=1e-3),)


LARGE = {"maximum_image_size": 1024, "target_downsample_size": 512}


@pytest.mark.parametrize(
    ("settings", "size", "box"),
    [
        # Scaled so that sqrt(w * h) is 512, a factor of 1 / 4: the crop of 256 is 1024 of the picture's pixels.
        ({"resolution": 256, **LARGE}, (2048, 2048), (512, 512, 1536, 1536)),
        # Not larger than 1024: as much as possible is kept.
        ({"resolution": 256, **LARGE}, (1024, 1024), (0, 0, 1024, 1024)),
        ({"resolution": 256, "crop_style": "corner", **LARGE}, (2048, 2048), (0, 0, 1024, 1024)),
        # The short side becomes 512, a factor of 512 / 1101: 256 x 1101 / 512 = 550.5.
        (
            {"resolution": 256, "resolution_type": "pixel", "aspect": "square", **LARGE},
            (3303, 1101),
            (1376.25, 275.25, 1926.75, 825.75),
        ),
        # 4 megapixels become 0.25: a factor of 1 / 4 again.
        (
            {
                "resolution_type": "area",
                "megapixels": 0.0625,
                "maximum_image_size": 1,
                "target_downsample_size": 0.25,
            },
            (2048, 2048),
            (512, 512, 1536, 1536),
        ),
        # The quickstart's own numbers: the target is the resolution, so the largest square is kept all the same.
        (
            {
                "resolution": 1024,
                "aspect": "square",
                "minimum_image_size": 512,
                "maximum_image_size": 2048,
                "target_downsample_size": 1024,
            },
            (4001, 3001),
            (500, 0, 3501, 3001),
        ),
    ],
)
def test_large_pictures_are_scaled_down_before_they_are_cropped(
    settings: dict[str, object], size: tuple[int, int], box: tuple[float, ...]
) -> None:
    assert sized(*size, **settings).boxes == (pytest.approx(box, abs=1e-3),)


@pytest.mark.parametrize(
    ("settings", "size", "reason"),
    [
        (
            {"minimum_image_size": 512},
            (700, 300),
            "700 x 300 pixels measure 458.3 pixels, less than minimum_image_size",
        ),
        ({"minimum_image_size": 512}, (700, 400), ""),
        ({"minimum_image_size": 512, "aspect": "square"}, (700, 400), "measure 400 pixels"),
        ({"minimum_image_size": 512, "resolution_type": "pixel"}, (700, 511), "measure 511 pixels"),
        ({"minimum_image_size": 512, "resolution_type": "pixel"}, (700, 512), ""),
        ({"minimum_image_size": 0.25, "resolution_type": "area"}, (512, 511), "measure 0.2495 megapixels"),
        ({"minimum_image_size": 0.25, "resolution_type": "area"}, (512, 512), ""),
    ],
)
def test_small_pictures_are_left_out(settings: dict[str, object], size: tuple[int, int], reason: str) -> None:
    found = size_picture(DatasetFolderSettings(folder="set", **settings).size_plan, *size, HASHES[0])
    assert reason in found if isinstance(found, str) else not reason


@pytest.mark.parametrize("resolution_type", RESOLUTION_TYPES)
@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize("crop_style", CROP_STYLES)
def test_every_crop_lies_in_the_picture_and_has_its_buckets_shape(
    resolution_type: str, aspect: str, crop_style: str
) -> None:
    rng = random.Random(3)
    limits = {"area": (1.2, 0.3)}.get(resolution_type, (700, 400))
    for content_hash in HASHES[:40]:
        width, height = rng.randint(1, 2500), rng.randint(1, 2500)
        found = sized(
            width,
            height,
            content_hash,
            resolution=256,
            megapixels=0.07,
            aspect=aspect,
            crop_style=crop_style,
            resolution_type=resolution_type,
            maximum_image_size=limits[0],
            target_downsample_size=limits[1],
        )
        for left, top, right, bottom in found.boxes:
            assert 0 <= left < right <= width * (1 + 1e-9) and 0 <= top < bottom <= height * (1 + 1e-9)
            assert (right - left) / (bottom - top) == pytest.approx(found.bucket.width / found.bucket.height)


def test_random_crops_are_the_pictures_own_and_spread() -> None:
    settings = {"resolution": 64, "aspect": "square", "crop_style": "random"}
    boxes = [sized(300, 100, content_hash, **settings).boxes[0] for content_hash in HASHES]
    assert boxes == [sized(300, 100, content_hash, **settings).boxes[0] for content_hash in HASHES]
    lefts = [left for left, _, _, _ in boxes]
    assert 0 <= min(lefts) < 10 and 190 < max(lefts) <= 200
    assert sum(lefts) / len(lefts) == pytest.approx(100, abs=15)


def test_several_crops_of_a_picture_differ() -> None:
    settings = {"resolution": 64, "aspect": "square", "crop_style": "random", "num_crops": 5}
    assert len(set(sized(300, 100, **settings).boxes)) == 5
    assert len(sized(100, 100, **settings).boxes) == 1, "there is nothing to choose"


def test_random_aspects_are_chosen_as_often_as_they_are_listed() -> None:
    settings = {"resolution": 512, "aspect": "random", "aspect_ratios": "1:1, 1:1, 3:2"}
    counts = Counter(str(sized(900, 700, content_hash, **settings).bucket) for content_hash in HASHES)
    assert set(counts) == {"512 x 512", "640 x 384"}
    assert counts["512 x 512"] == pytest.approx(len(HASHES) * 2 / 3, rel=0.1)


def test_aspect_ratios_are_parsed() -> None:
    assert parse_aspect_ratios(" 3:2,0.75 , 1, 9.5:19 ") == (1.5, 0.75, 1.0, 0.5)
    for text in ("3:0", "wide", "5:1", "nan", "1:1:1"):
        with pytest.raises(TrainerError, match=f"aspect_ratios holds '{text}': write ratios"):
            parse_aspect_ratios(f"1:1, {text}")


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
def test_nearest_bucket_has_the_nearest_aspect(width: int, height: int, resolution: int, expected: str) -> None:
    assert str(nearest_bucket(width / height, list_buckets(resolution), resolution)) == expected


def test_nearest_bucket_loses_least_of_the_picture() -> None:
    for width, height in [(640, 480), (333, 1000), (17, 13), (2500, 1111)]:

        def kept(bucket: Bucket, width: int = width, height: int = height) -> float:
            return kept_fraction(width, height, crop_box(width, height, bucket))

        nearest = nearest_bucket(width / height, list_buckets(512), 512)
        assert kept(nearest) == pytest.approx(max(map(kept, list_buckets(512))))


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
