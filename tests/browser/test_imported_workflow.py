"""A workflow imported from SimpleTuner, opened in the real frontend."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lumina2_trainer.trainer_core.importers.simpletuner.command import import_simpletuner

from ..host.server import HostServer
from ..importers.simpletuner.quickstart_files import LOKR, PICTURES, QUICKSTART, TEXT_EMBEDS, write_files
from .frontend import Frontend, renderings

MORE = {"id": "more", "instance_data_dir": "demo"}
LYCORIS = {**QUICKSTART, "lora_type": "lycoris"}
CASES: dict[str, dict[str, Any]] = {
    "quickstart": {},
    "lycoris_two_folders": {"config": LYCORIS, "lycoris": LOKR, "backends": [PICTURES, MORE, TEXT_EMBEDS]},
}


def import_case(folder: Path, case: str) -> dict[str, Any]:
    config = write_files(folder / "simpletuner", **CASES[case])
    import_simpletuner(config, None, folder / "workflow.json")
    return json.loads((folder / "workflow.json").read_text("utf-8"))


@pytest.mark.parametrize("case", CASES)
def test_imported_workflow_opens_with_all_settings(
    clear_page: Callable[..., Frontend], server: HostServer, tmp_path: Path, case: str
) -> None:
    workflow = import_case(tmp_path, case)
    for settings in renderings(server):
        frontend = clear_page(settings=settings)
        frontend.load_workflow(workflow)
        shown = {node["id"]: node for node in frontend.to_workflow()["nodes"]}
        for node in workflow["nodes"]:
            assert (shown[node["id"]].get("widgets_values") or []) == node["widgets_values"], node["type"]
        prompt = frontend.to_prompt()
        train = next(node for node in prompt.values() if node["class_type"] == "Lumina2TrainLoRA")["inputs"]
        assert (train["steps"], train["rank"], train["optimizer"]) == (400000, 16, "adamw_bf16")
        sockets = {"model", "latents", "embeds", "adapter_settings", "optimizer_settings", "noise_schedule"}
        sockets |= {"validation", "checkpoints", "tracking", "hub"}
        assert all(isinstance(train[name], list) for name in sockets)
        boxes = [(*node["pos"], *node["size"]) for node in shown.values()]
        for (x, y, width, height), (u, v, w, h) in itertools.combinations(boxes, 2):
            assert x + width <= u or u + w <= x or y + height <= v or v + h <= y
        assert frontend.errors == []


def test_sockets_of_an_imported_workflow_are_the_nodes_own(server: HostServer, tmp_path: Path) -> None:
    _, info = server.request("/object_info")
    for case in CASES:
        for node in import_case(tmp_path / case, case)["nodes"]:
            if not node["type"].startswith("Lumina2"):
                continue
            known = info[node["type"]]
            inputs = {**known["input"].get("required", {}), **known["input"].get("optional", {})}
            assert all(inputs[socket["name"]][0] == socket["type"] for socket in node["inputs"]), node["type"]
            outputs = list(zip(known["output_name"], known["output"], strict=True))
            assert [(socket["name"], socket["type"]) for socket in node["outputs"]] == outputs, node["type"]
