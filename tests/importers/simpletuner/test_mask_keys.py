"""Masks of SimpleTuner, which are data backends of their own, as mask folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.importers.simpletuner.translate import IGNORED, MAPPED, Row, Translation

from .quickstart_files import minimal, translate_files

CATS = {"id": "cats", "instance_data_dir": "cats", "conditioning_data": "cat-masks"}
MASKS = {
    "id": "cat-masks",
    "type": "local",
    "dataset_type": "conditioning",
    "conditioning_type": "mask",
    "instance_data_dir": "masks",
}
DOGS = {"id": "dogs", "instance_data_dir": "dogs"}


def row_of(translation: Translation, entry: str, key: str) -> Row:
    return next(row for row in translation.rows if row.where.endswith(f", {entry}") and key in row.key)


@pytest.mark.parametrize(
    ("cats", "masks", "options", "weight"),
    [
        ({}, {}, {}, 0.0),
        ({"conditioning_data": ["cat-masks"]}, {}, {}, 0.0),
        ({}, {}, {"masked_loss_probability": 0.5}, 0.0),
        ({}, {"conditioning_type": "segmentation"}, {}, 0.0),
        ({}, {"conditioning_type": "segmentation"}, {"masked_loss_probability": 1}, 0.0),
        ({}, {"conditioning_type": "segmentation"}, {"masked_loss_probability": "0.75"}, 0.25),
        ({}, {"conditioning_type": "segmentation"}, {"masked_loss_probability": 0}, 1.0),
    ],
    ids=str,
)
def test_named_masks_become_the_mask_folder(
    tmp_path: Path, cats: dict[str, Any], masks: dict[str, Any], options: dict[str, Any], weight: float
) -> None:
    entries = [{**MASKS, **masks}, {**CATS, **cats}, DOGS]
    translation = translate_files(tmp_path, minimal(**options), entries)
    with_masks, without = translation.datasets
    assert (with_masks.folder, with_masks.mask_folder, with_masks.mask_outside_weight) == ("cats", "masks", weight)
    assert (without.folder, without.mask_folder, without.mask_outside_weight) == ("dogs", "", 0.0)
    assert row_of(translation, "cats", "conditioning_data").state == MAPPED
    row = row_of(translation, "cat-masks", "instance_data_dir")
    assert (row.state, "mask_folder" in row.note) == (MAPPED, True)


@pytest.mark.parametrize(
    ("cats", "masks", "reason"),
    [
        ({"conditioning_data": "other"}, {}, "no data backend has the id other"),
        ({"conditioning_data": "dogs"}, {}, "dogs: its dataset_type is not conditioning"),
        ({}, {"conditioning_type": "controlnet"}, "masks are what conditioning pictures can be here"),
        ({}, {"disabled": True}, "it is disabled"),
        ({}, {"type": "aws"}, "it is of type aws"),
        ({}, {"instance_data_dir": ""}, "instance_data_dir is missing"),
        ({"conditioning_data": []}, {}, "empty"),
    ],
    ids=str,
)
def test_masks_that_cannot_be_found_are_named_and_left_out(
    tmp_path: Path, cats: dict[str, Any], masks: dict[str, Any], reason: str
) -> None:
    config = minimal(masked_loss_probability=0.5)
    translation = translate_files(tmp_path, config, [{**CATS, **cats}, {**MASKS, **masks}, DOGS])
    assert {dataset.mask_folder for dataset in translation.datasets} == {""}
    row = row_of(translation, "cats", "conditioning_data")
    assert (row.state, reason in row.note) == (IGNORED, True)
    whole = row_of(translation, "cat-masks", "instance_data_dir")
    assert (whole.state, "left out" in whole.note) == (IGNORED, True)


def test_first_usable_masks_count_and_others_are_named(tmp_path: Path) -> None:
    cats = {**CATS, "conditioning_data": ["edges", "cat-masks", "more"]}
    entries = [cats, MASKS, {**MASKS, "id": "edges", "conditioning_type": "canny"}, {**MASKS, "id": "more"}]
    translation = translate_files(tmp_path, minimal(), entries)
    assert translation.datasets[0].mask_folder == "masks"
    assert "so not edges, more" in row_of(translation, "cats", "conditioning_data").note
    assert row_of(translation, "more", "instance_data_dir").state == IGNORED


def test_masks_of_pictures_that_are_left_out_are_left_out(tmp_path: Path) -> None:
    translation = translate_files(tmp_path, minimal(), [{**CATS, "disabled": True}, MASKS, DOGS])
    assert row_of(translation, "cat-masks", "instance_data_dir").state == IGNORED


@pytest.mark.parametrize(
    ("cats", "options", "message"),
    [
        ({"conditioning_data": 3}, {}, "cats: conditioning_data is 3: it must be the id of a data backend"),
        ({}, {"masked_loss_probability": 2}, "masked_loss_probability is 2: it must be from 0 to 1"),
        ({}, {"masked_loss_probability": "x"}, "masked_loss_probability is 'x': it must be a number"),
    ],
    ids=str,
)
def test_bad_value_is_one_sentence(tmp_path: Path, cats: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        translate_files(tmp_path, minimal(**options), [{**CATS, **cats}, MASKS])
