"""Running a workflow without ComfyUI."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..context import StepContext
from ..errors import TrainerError
from ..settings import describe_settings
from .file import Workflow, WorkflowNode
from .nodes import NODE_STEPS, NodeStep

logger = logging.getLogger(__name__)


def run_workflow(workflow: Workflow, context: StepContext) -> dict[str, Any]:
    """Call the step of every node.

    All settings are built, and so checked, before the first step runs.

    Returns:
        The result of each step by node id.

    Raises:
        TrainerError: A setting is wrong, a socket is missing, or a step fails.
    """
    settings = check_workflow(workflow)
    results: dict[str, Any] = {}
    for node in workflow.nodes:
        step = NODE_STEPS[node.type]
        if step.run is None:
            results[node.id] = settings[node.id]
            continue
        logger.info("%s (node %s)", node.type, node.id)
        results[node.id] = _call(step, settings[node.id], read_sockets(node, workflow, results), context)
    return results


def _call(step: NodeStep, settings: Any, sockets: Mapping[str, Any], context: StepContext) -> Any:
    """The result of a step; where it is not for all processes, the main one's."""
    assert step.run is not None
    if step.is_shared:
        return step.run(settings, **sockets, context=context)
    return context.processes.from_main(partial(step.run, settings, **sockets, context=context.alone))


def check_workflow(workflow: Workflow) -> dict[str, Any]:
    """The settings of every node by its id, none of which is wrong.

    Raises:
        TrainerError: A setting is wrong, or a socket is missing.
    """
    settings = {node.id: read_settings(node) for node in workflow.nodes}
    for node in workflow.nodes:
        _check_links(node, workflow)
    return settings


def read_settings(node: WorkflowNode) -> Any:
    """The settings dataclass of a node.

    Raises:
        TrainerError: A value is wrong, or comes from a node that needs ComfyUI.
    """
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
        called = step.make_job or step.run
        if name not in node.links and called is not None and _is_required(called, name):
            raise TrainerError(f"node {node.id} ({node.type}): {name} is not connected")


def _is_required(run: Callable[..., Any], name: str) -> bool:
    return inspect.signature(run).parameters[name].default is inspect.Parameter.empty


def read_sockets(node: WorkflowNode, workflow: Workflow, results: Mapping[str, Any]) -> dict[str, Any]:
    """What a node's sockets get, by name.

    Args:
        node: The node.
        workflow: The whole of it.
        results: Of the nodes before it, by id.

    Raises:
        TrainerError: An output is one that only ComfyUI's nodes take.
    """
    return {
        name: _output(results, workflow, node, name) for name in node.links if name in NODE_STEPS[node.type].sockets
    }


def _output(results: Mapping[str, Any], workflow: Workflow, node: WorkflowNode, socket: str) -> Any:
    link = node.links[socket]
    source = next(other for other in workflow.nodes if other.id == link.node)
    outputs = NODE_STEPS[source.type].outputs
    attribute = outputs[link.slot] if link.slot < len(outputs) else None
    if attribute is None:
        raise TrainerError(f"node {node.id} ({node.type}): output {link.slot} of {source.type} exists in ComfyUI only")
    return getattr(results[link.node], attribute) if attribute else results[link.node]
