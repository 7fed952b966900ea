"""Reading a workflow file, in the canvas's format or in the API's, as the steps it stands for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import TrainerError
from ..settings import describe_settings
from .nodes import NODE_STEPS

MUTED, BYPASSED = 2, 4
"""Node modes of the canvas."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """The output a socket takes its value from."""

    node: str
    slot: int


@dataclass(frozen=True, kw_only=True)
class WorkflowNode:
    """One node: its widgets' values and its links."""

    id: str
    type: str
    values: Mapping[str, Any]
    links: Mapping[str, Link]


@dataclass(frozen=True, kw_only=True)
class Workflow:
    """The nodes that can run without ComfyUI, each behind those it depends on."""

    nodes: tuple[WorkflowNode, ...]
    left_out: tuple[str, ...]
    """"<id> (<type>)" of nodes that belong to ComfyUI or other packs."""


def read_workflow(path: Path) -> Workflow:
    """Read a file of either format.

    Raises:
        TrainerError: The file is no workflow, holds none of this pack's nodes, or uses a subgraph.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TrainerError(f"{path.name} cannot be read as a workflow: {error}") from error
    return parse_workflow(content, path.name)


def parse_workflow(content: Any, name: str) -> Workflow:
    """Read the content of a file of either format.

    Args:
        content: As JSON gives it.
        name: What messages call it.

    Raises:
        TrainerError: It is no workflow, holds none of this pack's nodes, or uses a subgraph.
    """
    if not isinstance(content, dict):
        raise TrainerError(f"{name} is not a workflow: save it in ComfyUI with Save or with Export (API)")
    nodes = _read_canvas_format(content) if isinstance(content.get("nodes"), list) else _read_api_format(content)
    ours = {node.id: node for node in nodes if node.type in NODE_STEPS}
    if not ours:
        raise TrainerError(f"{name} holds no node of this pack that can run without ComfyUI")
    left_out = tuple(f"{node.id} ({node.type})" for node in nodes if node.type not in NODE_STEPS)
    return Workflow(nodes=tuple(_in_order(ours)), left_out=left_out)


def _read_api_format(content: Mapping[str, Any]) -> list[WorkflowNode]:
    nodes = []
    for node_id, node in content.items():
        if not isinstance(node, dict) or "class_type" not in node:
            raise TrainerError(f"node {node_id!r} has no class_type: this is not a workflow of ComfyUI")
        inputs = node.get("inputs", {})
        links = {k: Link(node=str(v[0]), slot=int(v[1])) for k, v in inputs.items() if _is_link(v)}
        values = {k: v for k, v in inputs.items() if k not in links}
        nodes.append(WorkflowNode(id=str(node_id), type=node["class_type"], values=values, links=links))
    return nodes


def _is_link(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and isinstance(value[0], (str, int)) and isinstance(value[1], int)
    )


def _read_canvas_format(content: Mapping[str, Any]) -> list[WorkflowNode]:
    subgraphs = {graph["id"] for graph in (content.get("definitions") or {}).get("subgraphs", [])}
    origins = {link[0]: Link(node=str(link[1]), slot=int(link[2])) for link in content.get("links", [])}
    by_id = {str(node["id"]): node for node in content["nodes"]}
    nodes = []
    for node_id, node in by_id.items():
        if node.get("mode", 0) == BYPASSED and node["type"] in NODE_STEPS:
            raise TrainerError(f"node {node_id} ({node['type']}) is bypassed: mute it or take it out, then save again")
        if node.get("mode", 0) in (MUTED, BYPASSED) or node["type"] in ("Reroute", "PrimitiveNode"):
            continue
        if node["type"] in subgraphs:
            raise TrainerError(f"node {node_id} is a subgraph: export the workflow with Export (API) and run that file")
        values = _widget_values(node)
        links = {}
        for socket in node.get("inputs") or []:
            if socket.get("link") is None:
                continue
            if socket["link"] not in origins:
                raise TrainerError(
                    f"node {node_id} has a link {socket['link']} that the file does not hold: save it again"
                )
            origin = _follow_reroutes(origins[socket["link"]], by_id, origins)
            source = by_id.get(origin.node)
            if source is not None and source["type"] == "PrimitiveNode":
                values[socket["name"]] = source["widgets_values"][0]
            elif source is not None and source.get("mode", 0) not in (MUTED, BYPASSED):
                links[socket["name"]] = origin
        nodes.append(WorkflowNode(id=node_id, type=node["type"], values=values, links=links))
    return nodes


def _follow_reroutes(origin: Link, by_id: Mapping[str, Any], origins: Mapping[int, Link]) -> Link:
    seen = set()
    while (node := by_id.get(origin.node)) is not None and node["type"] == "Reroute":
        incoming = node["inputs"][0].get("link")
        if incoming is None:
            break
        if origin.node in seen:
            raise TrainerError(f"reroute {origin.node} leads back to itself: the workflow has a loop")
        seen.add(origin.node)
        origin = origins[incoming]
    return origin


def _widget_values(node: Mapping[str, Any]) -> dict[str, Any]:
    """Widget values are stored by position, in the order of the settings' fields."""
    values = node.get("widgets_values") or []
    if isinstance(values, dict):
        return dict(values)
    if node["type"] not in NODE_STEPS:
        return {}
    names = [field.name for field in describe_settings(NODE_STEPS[node["type"]].settings)]
    if len(values) > len(names):
        raise TrainerError(
            f"node {node['id']} ({node['type']}) has {len(values)} widget values but {len(names)} widgets:"
            " it was saved by a newer version of this pack, or is damaged"
        )
    return dict(zip(names, values, strict=False))


def _in_order(nodes: Mapping[str, WorkflowNode]) -> list[WorkflowNode]:
    ordered: dict[str, WorkflowNode] = {}
    visiting: set[str] = set()

    def visit(node: WorkflowNode) -> None:
        if node.id in ordered:
            return
        if node.id in visiting:
            raise TrainerError(f"node {node.id} depends on itself: the workflow has a loop")
        visiting.add(node.id)
        for link in node.links.values():
            if link.node in nodes:
                visit(nodes[link.node])
        ordered[node.id] = node

    for node in nodes.values():
        visit(node)
    return list(ordered.values())


def with_values(workflow: Workflow, assignments: Mapping[str, str]) -> Workflow:
    """Replace widget values, as `--set NODE.INPUT=VALUE` asks.

    Args:
        workflow: As read.
        assignments: Text by "NODE.INPUT", NODE being an id, or a node type that occurs once.

    Raises:
        TrainerError: No such node or input, or the text is not of the input's type.
    """
    nodes = list(workflow.nodes)
    for target, text in assignments.items():
        name, _, input_id = target.rpartition(".")
        found = [i for i, node in enumerate(nodes) if name in (node.id, node.type)]
        if len(found) != 1:
            known = ", ".join(f"{node.id} ({node.type})" for node in nodes)
            raise TrainerError(f"--set {target}: {len(found)} nodes are called {name!r}; the nodes are {known}")
        node = nodes[found[0]]
        fields = {field.name: field for field in describe_settings(NODE_STEPS[node.type].settings)}
        if input_id not in fields:
            raise TrainerError(f"--set {target}: {node.type} has no input {input_id!r}; it has {', '.join(fields)}")
        value = _parse(text, type(fields[input_id].default), target)
        links = {k: v for k, v in node.links.items() if k != input_id}
        nodes[found[0]] = replace(node, values={**node.values, input_id: value}, links=links)
    return replace(workflow, nodes=tuple(nodes))


def _parse(text: str, kind: type, target: str) -> Any:
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return text if kind is str else {int: int, float: float}[kind](text)
    except (KeyError, ValueError):
        raise TrainerError(f"--set {target}: {text!r} is not of type {kind.__name__}") from None
