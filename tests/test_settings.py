"""Settings whose values are only partly known, as those of a node before the nodes in front of it have run."""

from __future__ import annotations

from typing import Any

import pytest
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.settings import check_known
from lumina2_trainer.trainer_core.stages.caches import CacheTextEmbedsSettings
from lumina2_trainer.trainer_core.stages.save import SaveAdapterSettings


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        (SaveAdapterSettings, {"name": "my cat/.."}, r"name is 'my cat/\.\.': use letters"),
        (CacheTextEmbedsSettings, {"system_prompt": "custom"}, "custom_system_prompt is empty"),
        (CacheTextEmbedsSettings, {"custom_system_prompt": None, "batch_size": 1025}, "batch_size is 1025: it must be"),
        (SaveAdapterSettings, {"name": None, "format": "zip"}, "format is 'zip': choose one of"),
    ],
)
def test_what_is_known_to_be_wrong_is_refused(settings: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        check_known(settings, values)


def test_what_is_not_known_yet_may_come_out_right() -> None:
    check_known(CacheTextEmbedsSettings, {"system_prompt": "custom", "custom_system_prompt": None})
    check_known(CacheTextEmbedsSettings, {"system_prompt": None, "custom_system_prompt": "You draw."})
    check_known(SaveAdapterSettings, {"adapter": None, "name": "cat"})
