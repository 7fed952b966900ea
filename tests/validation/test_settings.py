"""What the settings of pictures refuse, and the order of their widgets."""

from __future__ import annotations

import pytest
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.settings import describe_settings
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
