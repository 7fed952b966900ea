"""Each panel shows its own node's runs: with two Train nodes on a canvas, and within subgraphs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ..host.prompts import training_prompt
from ..host.server import HostServer
from .frontend import CLASSIC, Frontend, renderings
from .panel import find_panel, load_prompt, panel_state, record_texts, recorded_texts, wait_for

TRAIN, TRAIN_TOO = "6", "7"
"""Ids on the canvas of the nodes of `training_prompt` and of one behind them."""


def is_finished(state: dict[str, Any]) -> bool:
    return state["status"] == "finished" and all(state["pictures"] or [0])


def totals(texts: list[str]) -> set[int]:
    """The numbers of steps that a panel spoke of."""
    return {int(total) for text in texts for total in re.findall(r" of (\d+)", text)}


def test_two_train_nodes_show_their_own_runs(open_page: Callable[..., Frontend]) -> None:
    frontend = open_page(settings=CLASSIC)
    for names in (("first", "second"), ("same", "same")):
        check_two_train_nodes(frontend, *names)


def check_two_train_nodes(frontend: Frontend, *names: str) -> None:
    steps = {TRAIN: 6, TRAIN_TOO: 9}
    prompt = training_prompt(run_name=names[0], steps=steps[TRAIN])
    others = {"run_name": names[1], "steps": steps[TRAIN_TOO]}
    prompt["train_too"] = {**prompt["train"], "inputs": {**prompt["train"]["inputs"], **others}}
    load_prompt(frontend, prompt)
    for node in steps:
        record_texts(frontend, node)
    frontend.queue()
    shown = {node: wait_for(frontend, is_finished, node=node) for node in steps}
    for node, total in steps.items():
        assert totals(recorded_texts(frontend, node)) == {total}
        assert shown[node]["step"] == total
    folders = {node: {source.split("%2F")[1] for source in shown[node]["sources"]} for node in steps}
    assert len(folders[TRAIN]) == len(folders[TRAIN_TOO]) == 1
    assert folders[TRAIN] != folders[TRAIN_TOO]
    frontend.load_workflow(frontend.to_workflow())
    for node in steps:
        again = wait_for(frontend, is_finished, node=node)
        assert (again["step"], again["sources"]) == (shown[node]["step"], shown[node]["sources"])
    assert frontend.errors == []


def put_into_subgraph(frontend: Frontend, node: str) -> str:
    """Convert a node to a subgraph as the frontend's menu does, and open it; the node's id for the server."""
    return frontend.page.evaluate(
        """(id) => {
            const { canvas, graph } = window.app
            const node = (graph.nodes ?? graph._nodes).find((node) => String(node.id) === id)
            const { subgraph, node: holder } = graph.convertToSubgraph(new Set([node]))
            canvas.openSubgraph(subgraph, holder)
            const [inner] = subgraph.nodes ?? subgraph._nodes
            return `${holder.id}:${inner.id}`
        }""",
        node,
    )


def send_progress(frontend: Frontend, node: str, run: str) -> None:
    """What the server would send of the last of seven steps."""
    numbers = {"loss": 0.5, "learning_rate": 1e-4, "grad_norm": 0.1, "seconds_per_step": 1.0, "eta_seconds": 0.0}
    detail = {"run": run, "node": node, "step": 7, "total": 7, "peak_memory_gib": 1.0, "loss_by_bin": {}, **numbers}
    frontend.page.evaluate(
        "(detail) => window.app.api.dispatchEvent(new CustomEvent('lumina2_trainer.progress', { detail }))", detail
    )


def set_steps(frontend: Frontend, node: str, steps: int) -> None:
    """Write into the widget of a node that `panel_state` finds."""
    holder, inner = node.split(":")
    frontend.page.evaluate(
        """([holder, inner, steps]) => {
            const find = (graph, id) => (graph.nodes ?? graph._nodes).find((node) => String(node.id) === id)
            const node = find(find(window.app.graph, holder).subgraph, inner)
            node.widgets.find((widget) => widget.name === "steps").value = steps
        }""",
        [holder, inner, steps],
    )


def test_panel_in_a_subgraph_moves_and_hears_of_no_other_node(
    open_page: Callable[..., Frontend], server: HostServer
) -> None:
    for number, settings in enumerate(renderings(server)):
        check_panel_in_a_subgraph(open_page(settings=settings), f"inside_{number}")


def check_panel_in_a_subgraph(frontend: Frontend, run_name: str) -> None:
    load_prompt(frontend, training_prompt(run_name=run_name, steps=4))
    frontend.queue()
    wait_for(frontend, is_finished)
    inner = put_into_subgraph(frontend, TRAIN)
    assert wait_for(frontend, is_finished, node=inner)["step"] == 4, "it is the same node still"

    set_steps(frontend, inner, 12)
    record_texts(frontend, inner)
    frontend.queue()
    wait_for(frontend, lambda state: state["step"] == 12 and is_finished(state), node=inner)
    texts = recorded_texts(frontend, inner)
    assert any(text.startswith("Training") for text in texts)
    box = find_panel(frontend, inner).as_element().bounding_box()
    assert box and box["height"] > 50

    same_id = inner.split(":")[1]
    record_texts(frontend, inner)
    for other in (same_id, f"99:{inner}", f"99:{same_id}"):
        send_progress(frontend, other, f"{run_name}-2")
    assert recorded_texts(frontend, inner) == []
    assert panel_state(frontend, inner)["step"] == 12
    send_progress(frontend, inner, f"{run_name}-2")
    assert panel_state(frontend, inner)["step"] == 7, "its own"
    assert frontend.errors == []
