"""What the settings of pictures refuse, and the order of their widgets."""

from __future__ import annotations

import pytest
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.settings import describe_settings
from lumina2_trainer.trainer_core.validation.pictures import plan_pictures
from lumina2_trainer.trainer_core.validation.settings import ValidateSettings, ValidationSettings


@pytest.mark.parametrize("settings", [ValidationSettings, ValidateSettings])
def test_rescaling_without_guidance_is_refused(settings: type) -> None:
    with pytest.raises(TrainerError, match=r"guidance_rescale is 0\.5, but guidance_scale 1 means no guidance"):
        settings(guidance_rescale=0.5, guidance_scale=1)


@pytest.mark.parametrize(
    ("settings", "last"), [(ValidationSettings, "every_num_steps"), (ValidateSettings, "custom_system_prompt")]
)
def test_newer_widgets_come_after_those_that_saved_workflows_know(settings: type, last: str) -> None:
    fields = describe_settings(settings)
    names = [field.name for field in fields]
    assert [field.is_optional for field in fields] == [index > names.index(last) for index in range(len(fields))]


def test_sizes_are_width_and_height_first_and_each_once() -> None:
    settings = ValidationSettings(width=64, height=96, more_sizes=" 128x64, 64X96,512 ,")
    assert settings.sizes == ((64, 96), (128, 64), (512, 512))
    assert ValidationSettings(width=64, height=96).sizes == ((64, 96),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("big", "more_sizes has 'big': write sizes such as"),
        ("64x", "more_sizes has '64x': write sizes"),
        ("100x64", "more_sizes has '100x64': sides must be multiples of 16 from 64 to 4096"),
        ("48", "more_sizes has '48': sides must be"),
        ("8192", "more_sizes has '8192': sides must be"),
    ],
)
def test_a_size_that_cannot_be_drawn_is_refused(text: str, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        ValidationSettings(more_sizes=text)


def test_names_sort_as_pictures_are_ordered() -> None:
    settings = ValidationSettings(
        prompts="\n".join(f"prompt {number}" for number in range(101)), more_sizes="64", draw_unconditional=True
    )
    pictures = plan_pictures(settings)
    assert (pictures[0].stem, pictures[-1].stem) == ("000-1024x1024", "101-unconditional-64x64")
    assert [picture.stem[:3] for picture in pictures] == sorted(picture.stem[:3] for picture in pictures)
    assert [picture.is_unconditional for picture in pictures] == [False] * 202 + [True] * 2
