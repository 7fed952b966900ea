"""Data backends as chained datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.importers.simpletuner.translate import IGNORED, MAPPED

from .quickstart_files import PICTURES, TEXT_EMBEDS, minimal, translate_files

FOLDER = {"id": "a", "instance_data_dir": "cats"}


def read(tmp_path: Path, *entries: dict[str, Any], **options: Any) -> Any:
    return translate_files(tmp_path, minimal(**options), entries)


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ({}, {"aspect": "buckets", "crop_style": "center", "caption_source": "filename", "resolution": 1024}),
        ({"crop": True}, {"aspect": "square", "crop_style": "random"}),
        ({"crop": True, "crop_aspect": "preserve", "crop_style": "centre"}, {"aspect": "buckets"}),
        ({"crop": True, "crop_style": "face"}, {"crop_style": "center"}),
        (
            {"crop": True, "crop_aspect": "random", "crop_aspect_buckets": [1.0, {"aspect_ratio": 1.5, "weight": 2}]},
            {"aspect": "random", "aspect_ratios": "1, 1.5, 1.5"},
        ),
        ({"resolution": 500}, {"resolution": 512}),
        ({"resolution": 0.25, "resolution_type": "area"}, {"resolution_type": "area", "megapixels": 0.25}),
        ({"maximum_image_size": 2048}, {"maximum_image_size": 0.0}),
        ({"repeats": 4, "probability": 0.5}, {"repeats": 5, "probability": 0.5}),
        ({"caption_strategy": "textfile"}, {"caption_lines": "one_each"}),
        ({"caption_strategy": "textfile", "disable_multiline_split": True}, {"caption_lines": "join"}),
        (
            {"caption_strategy": "instanceprompt", "instance_prompt": "a cat"},
            {"caption_source": "one_text", "caption": "a cat"},
        ),
        ({"instance_prompt": "xyz", "prepend_instance_prompt": True}, {"trigger_words": "xyz", "caption": ""}),
        (
            {"instance_prompt": "xyz", "only_instance_prompt": True},
            {"caption_source": "one_text", "caption": "xyz"},
        ),
        (
            {
                "caption_strategy": "parquet",
                "metadata_backend": "parquet",
                "parquet": {"path": "t.parquet", "filename_column": "f", "caption_column": "c", "width_column": "w"},
            },
            {"caption_source": "parquet", "metadata_file": "t.parquet", "file_column": "f", "caption_column": "c"},
        ),
        (
            {"caption_strategy": "parquet", "parquet": {"path": "t.jsonl"}},
            {"caption_source": "jsonl", "metadata_file": "t.jsonl"},
        ),
        (
            {"caption_shuffle": {"enable": True, "count": 3, "split_on": "comma", "position_start": 2}},
            {"num_tag_shuffles": 3, "tag_separator": ",", "num_tags_kept": 2},
        ),
        ({"caption_shuffle": {"enable": False, "count": 3}}, {"num_tag_shuffles": 0}),
        ({"is_regularisation_data": True}, {"is_regularisation": True}),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_entry_becomes_settings(tmp_path: Path, entry: dict[str, Any], wanted: dict[str, Any]) -> None:
    (dataset,) = read(tmp_path, {**FOLDER, **entry}).datasets
    assert {name: getattr(dataset, name) for name in wanted} == wanted


def test_entries_keep_their_order_and_share_the_sampling(tmp_path: Path) -> None:
    dogs = {"id": "b", "instance_data_dir": "dogs", "resolution": 512}
    datasets = read(tmp_path, FOLDER, TEXT_EMBEDS, dogs, data_backend_sampling="uniform", resolution=768).datasets
    assert [(dataset.folder, dataset.resolution) for dataset in datasets] == [("cats", 768), ("dogs", 512)]
    assert {dataset.sampling for dataset in datasets} == {"uniform"}


def test_value_of_the_configuration_is_said_to_be_from_there(tmp_path: Path) -> None:
    translation = read(tmp_path, FOLDER, resolution=700)
    row = next(row for row in translation.rows if row.key == "resolution" and row.where.endswith(", a"))
    assert (row.state, row.settings) == (MAPPED, {"dataset.resolution": 704})
    assert row.note == "as config.json says; the nearest multiple of 64"


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"disabled": True}, "disabled"),
        ({"type": "aws"}, "type aws"),
        ({"dataset_type": "image_embeds"}, "latents are cached"),
        ({"dataset_type": "conditioning", "conditioning_type": "controlnet"}, "Lumina2 takes no others"),
        ({"dataset_type": "conditioning", "conditioning_type": "mask"}, "no data backend with pictures names it"),
        ({"dataset_type": "conditioning", "conditioning_type": "mask", "type": "aws"}, "type aws"),
    ],
)
def test_entry_that_is_no_folder_of_pictures_is_left_out(tmp_path: Path, entry: dict[str, Any], reason: str) -> None:
    translation = read(tmp_path, {**PICTURES, **entry, "id": "other"}, FOLDER)
    assert len(translation.datasets) == 1
    row = next(row for row in translation.rows if row.where.endswith(", other"))
    assert row.state == IGNORED
    assert reason in row.note


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": "huggingface"}, "no entry with pictures to train on"),
        ({"instance_data_dir": None}, "multidatabackend.json, a: instance_data_dir is missing"),
        ({"resolution": "large"}, "multidatabackend.json, a: resolution is 'large': it must be a number"),
        ({"probability": 0}, "a: probability, as Dataset Folder: probability is 0"),
        ({"minimum_image_size": 99999}, "a: minimum_image_size, as Dataset Folder: minimum_image_size is 99999"),
        ({"crop": True, "crop_aspect": "round"}, "crop_aspect is 'round': it must be one of square"),
        ({"caption_strategy": "huggingface"}, "caption_strategy is 'huggingface': it must be of a kind"),
        ({"dataset_type": "video"}, "dataset_type is 'video': it must be one of image"),
        ({"caption_shuffle": 3}, "caption_shuffle is 3: it must be an object"),
    ],
)
def test_bad_entry_is_one_sentence(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainerError, match=message) as caught:
        read(tmp_path, {**FOLDER, **entry})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{"a": 1}, [1], []])
def test_backend_file_of_another_shape_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(TrainerError, match=r"multidatabackend\.json"):
        translate_files(tmp_path, minimal(), content)
