"""Everything that crosses a socket is the same after its way through JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lumina2_trainer.trainer_core.run.job import Adapter
from lumina2_trainer.trainer_core.socket_json import from_json, to_json
from lumina2_trainer.trainer_core.stages.train import TrainResult
from lumina2_trainer.trainer_core.workflow.nodes import NODE_STEPS

from .training_setup import Setup


def there_and_back(value: Any) -> Any:
    """Through text, as between two processes."""
    return from_json(json.loads(json.dumps(to_json(value))))


@pytest.mark.parametrize("node", NODE_STEPS)
def test_the_settings_of_every_node_are_the_same_afterwards(node: str) -> None:
    needed = {"Lumina2DatasetFromImages": {"captions": "a cat"}, "Lumina2HubUpload": {"repo_id": "me/cat"}}.get(
        node, {}
    )
    settings = NODE_STEPS[node].settings(**needed)
    assert there_and_back(settings) == settings


def test_models_caches_and_results_are_the_same_afterwards(setup: Setup) -> None:
    result = TrainResult(
        adapter=Adapter(path="a", run_dir="b", step=3),
        losses=(0.1, 1e-9),
        validation_images=(Path("c") / "d.png",),
        reused=False,
        scores="é",
    )
    for value in (setup.model, setup.latents, setup.embeds, result, {"a": (1, [None, True])}):
        assert there_and_back(value) == value
