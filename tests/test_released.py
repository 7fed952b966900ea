"""Workflows saved by released versions open with every value in its place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from lumina2_trainer.trainer_core.settings import SettingField, describe_settings
from lumina2_trainer.trainer_core.workflow.file import read_workflow
from lumina2_trainer.trainer_core.workflow.nodes import NODE_STEPS

RELEASED_DIR = Path(__file__).parent / "released"
"""Written by scripts/record_widgets.py before each release."""
WIDGETS: dict[str, Mapping[str, Mapping[str, Any]]] = {
    folder.name: json.loads((folder / "widgets.json").read_text("utf-8")) for folder in sorted(RELEASED_DIR.iterdir())
}
WORKFLOWS = [path for path in sorted(RELEASED_DIR.glob("*/*.json")) if path.name != "widgets.json"]
RECORDED = [(version, node) for version, nodes in WIDGETS.items() for node in nodes]


def fields_of(node: str) -> list[SettingField]:
    return describe_settings(NODE_STEPS[node].settings)


@pytest.mark.parametrize(("version", "node"), RECORDED)
def test_widgets_keep_their_places_and_new_ones_come_last(version: str, node: str) -> None:
    recorded = list(WIDGETS[version][node])
    assert [field.name for field in fields_of(node)][: len(recorded)] == recorded


@pytest.mark.parametrize(("version", "node"), RECORDED)
def test_prompts_without_newer_widgets_are_accepted(version: str, node: str) -> None:
    newer = fields_of(node)[len(WIDGETS[version][node]) :]
    assert [field.name for field in newer if not field.is_optional] == []


@pytest.mark.parametrize("node", NODE_STEPS)
def test_canvas_keeps_the_order_of_the_fields(node: str) -> None:
    """The frontend draws optional widgets behind the others, whatever the order in which they are declared."""
    is_optional = [field.is_optional for field in fields_of(node)]
    assert is_optional == sorted(is_optional)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_saved_workflows_give_their_own_values(path: Path) -> None:
    saved = {str(node["id"]): node for node in json.loads(path.read_text("utf-8"))["nodes"]}
    for node in read_workflow(path).nodes:
        names = WIDGETS[path.parent.name][node.type]
        assert dict(node.values) == dict(zip(names, saved[node.id].get("widgets_values") or [], strict=True))
