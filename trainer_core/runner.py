"""Running a workflow without ComfyUI."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

from .context import StepContext
from .errors import TrainerError
from .node_steps import NODE_STEPS
from .settings import describe_settings
from .workflow import Workflow, WorkflowNode

logger = logging.getLogger(__name__)


def run_workflow(workflow: Workflow, context: StepContext) -> dict[str, Any]:
    """Call the step of every node.

    All settings are built, and so checked, before the first step runs.

    Returns:
        The result of each step by node id.

    Raises:
        TrainerError: A setting is wrong, a socket is missing, or a step fails.
    """
    settings = {node.id: _settings_of(node) for node in workflow.nodes}
    for node in workflow.nodes:
        _check_links(node, workflow)
    results: dict[str, Any] = {}
    for node in workflow.nodes:
        step = NODE_STEPS[node.type]
        if step.run is None:
            results[node.id] = settings[node.id]
            continue
        sockets = {name: _output(results, workflow, node, name) for name in node.links if name in step.sockets}
        logger.info("%s (node %s)", node.type, node.id)
        results[node.id] = step.run(settings[node.id], **sockets, context=context)
    return results


def _settings_of(node: WorkflowNode) -> Any:
    cls = NODE_STEPS[node.type].settings
    names = {field.name for field in describe_settings(cls)}
    linked = [name for name in node.links if name in names]
    if linked:
        raise TrainerError(
            f"node {node.id} ({node.type}): {linked[0]} comes from a node that needs ComfyUI;"
            f" give its value with --set {node.id}.{linked[0]}=VALUE"
        )
    unknown = [name for name in node.values if name not in names]
    if unknown:
        raise TrainerError(
            f"node {node.id} ({node.type}) has no input {unknown[0]!r}; it has {', '.join(sorted(names))}"
        )
    try:
        return cls(**node.values)
    except TrainerError as error:
        raise TrainerError(f"node {node.id} ({node.type}): {error}") from error


def _check_links(node: WorkflowNode, workflow: Workflow) -> None:
    step = NODE_STEPS[node.type]
    known = {other.id for other in workflow.nodes}
    for name in step.sockets:
        if name in node.links and node.links[name].node not in known:
            raise TrainerError(f"node {node.id} ({node.type}): {name} comes from a node that needs ComfyUI")
        if name not in node.links and step.run is not None and _is_required(step.run, name):
            raise TrainerError(f"node {node.id} ({node.type}): {name} is not connected")


def _is_required(run: Callable[..., Any], name: str) -> bool:
    return inspect.signature(run).parameters[name].default is inspect.Parameter.empty


def _output(results: dict[str, Any], workflow: Workflow, node: WorkflowNode, socket: str) -> Any:
    link = node.links[socket]
    source = next(other for other in workflow.nodes if other.id == link.node)
    outputs = NODE_STEPS[source.type].outputs
    attribute = outputs[link.slot] if link.slot < len(outputs) else None
    if attribute is None:
        raise TrainerError(f"node {node.id} ({node.type}): output {link.slot} of {source.type} exists in ComfyUI only")
    return getattr(results[link.node], attribute) if attribute else results[link.node]
