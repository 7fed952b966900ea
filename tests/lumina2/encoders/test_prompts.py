"""What the nodes with a system prompt refuse."""

from __future__ import annotations

import pytest
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.stages.caches import CacheTextEmbedsSettings
from lumina2_trainer.trainer_core.stages.caption_table import CaptionTableSettings
from lumina2_trainer.trainer_core.validation.settings import ValidateSettings


@pytest.mark.parametrize("settings", [CacheTextEmbedsSettings, CaptionTableSettings, ValidateSettings])
def test_a_typed_system_prompt_goes_with_the_choice_custom_only(settings: type) -> None:
    settings(system_prompt="custom", custom_system_prompt="You draw.")
    settings(system_prompt="anime", custom_system_prompt=" \n")
    with pytest.raises(TrainerError, match="system_prompt is custom but custom_system_prompt is empty: write"):
        settings(system_prompt="custom", custom_system_prompt=" \n")
    with pytest.raises(TrainerError, match=r"custom_system_prompt is 'You draw\.' but system_prompt is anime"):
        settings(system_prompt="anime", custom_system_prompt="You draw.\n")
