"""Keys of validation pictures, their scores and the held-out loss as the settings of Validation Prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.importers.simpletuner.translate import IGNORED, MAPPED, Row, Translation
from lumina2_trainer.trainer_core.validation.settings import ValidationSettings

from .quickstart_files import PICTURES, minimal, translate_files

CLIP = "openai/clip-vit-large-patch14"
EVAL = {"id": "measured", "type": "local", "dataset_type": "eval", "instance_data_dir": "measured"}
PROMPT = {"validation_prompt": "a cat"}


def validation_of(translation: Translation) -> ValidationSettings:
    settings = translation.settings["validation"]
    assert isinstance(settings, ValidationSettings)
    return settings


def row_of(translation: Translation, key: str) -> Row:
    return next(row for row in translation.rows if row.key == key)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, {"draw_unconditional": True, "draw_base": True, "clip_model": "", "held_out_share": 0.0}),
        ({"validation_disable_unconditional": True}, {"draw_unconditional": False}),
        ({"disable_benchmark": True}, {"draw_base": False}),
        ({"validation_guidance_rescale": 0.7}, {"guidance_rescale": 0.7}),
        ({"validation_guidance_rescale": 0.7, "validation_guidance": 1}, {"guidance_rescale": 0.0}),
        ({"validation_resolution": "1024"}, {"width": 1024, "height": 1024, "more_sizes": ""}),
        (
            {"validation_resolution": "1024x768, 512,500x1001"},
            {"width": 1024, "height": 768, "more_sizes": "512x512, 496x1008"},
        ),
        ({"evaluation_type": "none"}, {"clip_model": ""}),
        ({"evaluation_type": "clip"}, {"clip_model": CLIP}),
        (
            {"evaluation_type": "clip", "pretrained_evaluation_model_name_or_path": f"{CLIP}-336"},
            {"clip_model": CLIP},
        ),
        ({"evaluation_type": "clip", "pretrained_evaluation_model_name_or_path": "my/clip"}, {"clip_model": "my/clip"}),
        ({"pretrained_evaluation_model_name_or_path": "my/clip"}, {"clip_model": ""}),
        ({"user_prompt_library": "config/my_prompts.json"}, {"prompt_library": "my_prompts.json"}),
        ({"user_prompt_library": r"C:\config\my.json"}, {"prompt_library": "my.json"}),
        ({"validation_prompt_library": "my.json"}, {"prompt_library": "my.json"}),
        ({"validation_prompt_library": "my.json", "user_prompt_library": "a.json"}, {"prompt_library": "a.json"}),
        ({"validation_prompt_library": True}, {"prompt_library": ""}),
        ({"validation_prompt_library": "false", "user_prompt_library": None}, {"prompt_library": ""}),
    ],
    ids=str,
)
def test_keys_become_settings(tmp_path: Path, options: dict[str, Any], wanted: dict[str, Any]) -> None:
    validation = validation_of(translate_files(tmp_path, minimal(**PROMPT, **options)))
    assert {name: getattr(validation, name) for name in wanted} == wanted


def test_library_is_enough_to_draw_pictures_and_where_it_lies_is_said(tmp_path: Path) -> None:
    translation = translate_files(tmp_path, minimal(user_prompt_library="my.json"))
    assert validation_of(translation).prompt_library == "my.json"
    assert "input folder" in row_of(translation, "user_prompt_library").note


def test_own_library_of_simpletuner_is_said_to_be_missing(tmp_path: Path) -> None:
    translation = translate_files(tmp_path, minimal(**PROMPT, validation_prompt_library=True))
    row = row_of(translation, "validation_prompt_library")
    assert (row.state, "not part of this pack" in row.note) == (IGNORED, True)


def test_what_clip_needs_is_said(tmp_path: Path) -> None:
    note = row_of(translate_files(tmp_path, minimal(**PROMPT, evaluation_type="clip")), "evaluation_type").note
    assert "pip install torchmetrics" in note
    assert "downloaded" in note


def test_interval_without_pictures_to_measure_does_nothing(tmp_path: Path) -> None:
    translation = translate_files(tmp_path, minimal(**PROMPT, eval_steps_interval=50))
    row = row_of(translation, "eval_steps_interval")
    assert (row.state, "dataset_type eval" in row.note) == (IGNORED, True)
    assert validation_of(translation).held_out_share == 0


@pytest.mark.parametrize("options", [PROMPT, {}, {**PROMPT, "validation_disable": True}], ids=str)
def test_folder_to_measure_becomes_one_that_is_held_out(tmp_path: Path, options: dict[str, Any]) -> None:
    config = minimal(**options, eval_steps_interval=50, num_eval_images=4, evaluation_type="clip")
    translation = translate_files(tmp_path, config, [PICTURES, EVAL])
    validation = validation_of(translation)
    assert (validation.held_out_share, validation.held_out_step_interval) == (0.0, 50)
    assert [(dataset.folder, dataset.is_held_out) for dataset in translation.datasets] == [
        (PICTURES["instance_data_dir"], False),
        (EVAL["instance_data_dir"], True),
    ]
    row = next(row for row in translation.rows if row.where.endswith(", measured") and row.key == "dataset_type")
    assert row.state == MAPPED
    is_drawn = options == PROMPT
    assert validation.typed_prompts == (("a cat",) if is_drawn else ())
    assert bool(validation.clip_model) == validation.draw_base == validation.draw_unconditional == is_drawn


@pytest.mark.parametrize(
    ("entry", "options"), [({"disabled": True}, {}), ({}, {"eval_loss_disable": True})], ids=["disabled", "no loss"]
)
def test_folder_that_is_not_measured_is_left_out(
    tmp_path: Path, entry: dict[str, Any], options: dict[str, Any]
) -> None:
    translation = translate_files(tmp_path, minimal(**options, eval_steps_interval=50), [PICTURES, {**EVAL, **entry}])
    assert "validation" not in translation.settings
    row = next(row for row in translation.rows if row.where.endswith(", measured"))
    assert (row.state, "left out" in row.note) == (IGNORED, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_resolution": "1024,"}, r"validation_resolution is '1024,': it must be a size such as"),
        ({"validation_resolution": "512, 8192"}, r"validation_resolution, as Validation Prompts: more_sizes has"),
        ({"validation_guidance_rescale": 1.5}, r"validation_guidance_rescale, as Validation Prompts: guidance_rescale"),
        ({"evaluation_type": "fid"}, r"evaluation_type is 'fid': it must be one of"),
        ({"user_prompt_library": ["a"]}, r"user_prompt_library is \['a'\]: it must be a text"),
    ],
    ids=str,
)
def test_bad_value_is_one_sentence(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        translate_files(tmp_path, minimal(**PROMPT, **options))
