"""Each example, as it is: opened in the real frontend, converted by it, queued, and waited for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ..host.checkouts import PACK_DIR
from ..host.server import HostServer
from .frontend import CLASSIC, Frontend

EXAMPLES = sorted((PACK_DIR / "example_workflows").glob("*.json"))
QUEUED = ("train_lora_on_demo", "train_then_generate")
"""Run in the host; `tests/demo` runs all that need no nodes of ComfyUI."""


def open_example(frontend: Frontend, path: Path) -> None:
    """Put an example on the canvas, with all values in place."""
    workflow = json.loads(path.read_text("utf-8"))
    frontend.load_workflow(workflow)
    saved = {node["id"]: node.get("widgets_values") or [] for node in frontend.to_workflow()["nodes"]}
    assert saved == {node["id"]: node.get("widgets_values") or [] for node in workflow["nodes"]}


def links_of(workflow: Mapping[str, Any]) -> set[tuple[int, str, int, str]]:
    """Each link as node and output, node and input."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    return {
        (source, nodes[source]["outputs"][out]["name"], target, nodes[target]["inputs"][slot]["name"])
        for _, source, out, target, slot, _ in workflow["links"]
    }


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_opens_as_it_was_saved(clear_page: Callable[..., Frontend], path: Path) -> None:
    workflow = json.loads(path.read_text("utf-8"))
    assert [group["title"].split(".")[0] for group in workflow["groups"]] == [
        str(number) for number in range(1, len(workflow["groups"]) + 1)
    ]
    frontend = clear_page(settings=CLASSIC)
    open_example(frontend, path)
    assert links_of(frontend.to_workflow()) == links_of(workflow)
    assert frontend.errors == []


@pytest.mark.parametrize("name", QUEUED)
def test_example_runs_as_it_is(open_page: Callable[..., Frontend], server: HostServer, name: str) -> None:
    frontend = open_page(settings=CLASSIC)
    open_example(frontend, PACK_DIR / "example_workflows" / f"{name}.json")
    outcome = server.run_prompt(frontend.to_prompt(), workflow=frontend.to_workflow(), timeout_seconds=600)
    assert outcome.kind == "execution_success", outcome.data
    assert outcome.of_kind("lumina2_trainer.finished")
    frontend.page.wait_for_selector(".lumina2-progress[data-status=finished]", timeout=10_000)
    assert frontend.page.locator(".lumina2-progress img").count() == 4
    assert frontend.errors == []
