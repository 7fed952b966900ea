"""Compare Checkpoints in a real host."""

from __future__ import annotations

import json

from PIL import Image

from .prompts import training_prompt
from .server import HostServer


def test_grid_of_a_run_is_drawn_behind_its_training(server: HostServer) -> None:
    prompt = training_prompt(run_name="compared", steps=4)
    prompt["checkpoints"] = {
        "class_type": "Lumina2Checkpoints",
        "inputs": {"checkpoint_step_interval": 2, "num_checkpoints_kept": 3},
    }
    prompt["train"]["inputs"]["checkpoints"] = ["checkpoints", 0]
    sampler = {key: value for key, value in prompt["prompts"]["inputs"].items() if key != "every_num_steps"}
    prompt["compare"] = {
        "class_type": "Lumina2Compare",
        "inputs": {
            "model": ["load", 0],
            "adapter": ["train", 0],
            **sampler,
            "checkpoints": "all",
            "strengths": "0, 1",
        },
    }
    outcome = server.run_prompt(prompt)
    assert outcome.kind == "execution_success", json.dumps(outcome.data)
    (grid_path,) = (server.output_dir / "lumina2_trainer" / "compared" / "comparisons").glob("*.png")
    with Image.open(grid_path) as grid:
        assert grid.width == 3 * (64 + 12) + 12  # base, step 2, final
    prompt["compare"]["inputs"]["checkpoints"] = "3"
    refused = server.run_prompt(prompt)
    assert refused.kind == "execution_error"
    assert "asks for '3' of compared, which has 2, final" in json.dumps(refused.data)
