"""What a job refuses before any work."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lumina2_trainer.trainer_core.errors import TrainerError

from .training_setup import TRAIN


@pytest.mark.parametrize("name", ["cache", "Cache", "datasets", "nul", "NUL.txt", "a.", "../a", "", "a b"])
def test_run_names_that_some_system_cannot_have_are_refused(name: str) -> None:
    with pytest.raises(TrainerError, match="run_name is"):
        replace(TRAIN, run_name=name)
