"""Prompt library files: what is read, and what is refused in one sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from lumina2_trainer.trainer_core.context import StepContext
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.validation.pictures import plan_pictures, with_prompt_library
from lumina2_trainer.trainer_core.validation.prompt_library import NamedPrompt, read_prompt_library
from lumina2_trainer.trainer_core.validation.settings import ValidationSettings


def write(folder: Path, text: str) -> Path:
    path = folder / "library.json"
    path.write_text(text, encoding="utf-8")
    return path


def test_prompts_keep_their_order_and_names(tmp_path: Path) -> None:
    content = {"zebra": " a zebra ", "alps": {"prompt": "山と湖"}, "a_2": "two\nlines"}
    assert read_prompt_library(write(tmp_path, json.dumps(content))) == (
        NamedPrompt(name="zebra", prompt="a zebra"),
        NamedPrompt(name="alps", prompt="山と湖"),
        NamedPrompt(name="a_2", prompt="two\nlines"),
    )


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    assert read_prompt_library(write(tmp_path, '\ufeff{"a": "b"}')) == (NamedPrompt(name="a", prompt="b"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": "b",', r"prompt_library library\.json is not valid JSON"),
        ("[" * 100000, r"is not valid JSON"),
        ("[]", "holds no prompts: write"),
        ('["a"]', "holds no prompts: write"),
        ("{}", "holds no prompts: write"),
        ('{"a": "x", "a": "y"}', "'a' is there twice"),
        ('{"a": ""}', "'a' in prompt_library library.json has no prompt"),
        ('{"a": 3}', "'a' in prompt_library library.json has no prompt"),
        ('{"a": {"text": "x"}}', "has the key 'text', which is not known"),
        ('{"a/b": "x"}', "a name in prompt_library library.json is 'a/b': use letters"),
        ('{"cat_ema": "x"}', "ends in _ema, which marks pictures of other weights"),
        ('{"cat_base": "x"}', "ends in _base"),
    ],
)
def test_what_is_no_library_is_named_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        read_prompt_library(write(tmp_path, text))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "library.json"
    path.write_bytes(b'{"a": "\xff\xfe"}')
    with pytest.raises(TrainerError, match="is not valid JSON"):
        read_prompt_library(path)


def test_library_lies_in_an_allowed_folder_and_follows_the_typed_prompts(context: StepContext, tmp_path: Path) -> None:
    write(tmp_path / "input", '{"cat": "a cat", "dog": "a dog"}')
    settings = ValidationSettings(prompts="a house\na cat", prompt_library="library.json")
    whole = with_prompt_library(settings, context)
    assert whole.prompt_list == ("a house", "a cat", "a dog")
    assert [picture.stem for picture in plan_pictures(whole)] == ["00", "01", "02-cat", "03-dog"]
    with pytest.raises(TrainerError, match=r"prompt_library 'none\.json' does not exist"):
        with_prompt_library(replace(settings, prompt_library="none.json"), context)
    outside = write(tmp_path, '{"a": "b"}')
    with pytest.raises(TrainerError, match="lies outside of the allowed folders"):
        with_prompt_library(replace(settings, prompt_library=str(outside)), context)
    (tmp_path / "input" / "folder.json").mkdir()
    with pytest.raises(TrainerError, match=r"prompt_library folder\.json cannot be read"):
        with_prompt_library(replace(settings, prompt_library="folder.json"), context)


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    import torch

    (tmp_path / "input").mkdir()
    return StepContext(
        output_dir=tmp_path / "output",
        loras_dir=tmp_path / "loras",
        device=torch.device("cpu"),
        roots=(tmp_path / "input",),
    )
