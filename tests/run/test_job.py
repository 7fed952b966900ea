"""What a job refuses before any work."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.publish.settings import HubSettings

from ..training_setup import PROMPTS, TRAIN, Setup


@pytest.mark.parametrize("name", ["cache", "Cache", "datasets", "nul", "NUL.txt", "a.", "../a", "", "a b"])
def test_run_names_that_some_system_cannot_have_are_refused(name: str) -> None:
    with pytest.raises(TrainerError, match="run_name is"):
        replace(TRAIN, run_name=name)


@pytest.mark.parametrize(
    ("sockets", "hub", "sentence"),
    [
        ({}, {}, 'weights of Hub Upload is "best" but none are kept: connect Validation Prompts'),
        ({"validation": replace(PROMPTS, keep_best=False)}, {}, 'weights of Hub Upload is "best" but none are kept'),
        ({"validation": PROMPTS}, {"push": "checkpoints"}, 'and push is "checkpoints", which hold no best weights'),
        ({"validation": PROMPTS}, {}, 'weights of Hub Upload is "best" but no picture is held out'),
    ],
)
def test_best_weights_that_there_will_not_be_are_not_sent(
    fresh: Setup, sockets: dict[str, object], hub: dict[str, str], sentence: str
) -> None:
    with pytest.raises(TrainerError, match=sentence):
        fresh.train(hub=HubSettings(repo_id="a/b", weights="best", **hub), **sockets)
    assert not fresh.context.runs_dir.exists()
