"""The live panel of a Train node, as tests read it."""

from __future__ import annotations

import time
from collections.abc import Callable

from playwright.sync_api import JSHandle

from .frontend import Frontend

PANEL = ".lumina2-progress"


def load_prompt(frontend: Frontend, prompt: dict) -> None:
    """Put a graph on the canvas."""
    frontend.page.evaluate("(prompt) => window.app.loadApiJson(prompt, 'tiny')", _numbered(prompt))
    frontend.page.wait_for_timeout(500)
    frontend.fit_view()


def _numbered(prompt: dict) -> dict:
    """The canvas wants numbers for node ids."""
    numbers = {name: str(i) for i, name in enumerate(prompt, 1)}
    nodes = {}
    for name, node in prompt.items():
        inputs = {k: [numbers[v[0]], v[1]] if isinstance(v, list) else v for k, v in node["inputs"].items()}
        nodes[numbers[name]] = {**node, "inputs": inputs}
    return nodes


def find_panel(frontend: Frontend, node: str) -> JSHandle:
    """The panel of a node, which may be in a subgraph that is not open.

    Args:
        frontend: The open frontend.
        node: The server's id of the node, such as "6" or "12:6".
    """
    return frontend.page.evaluate_handle(
        """(way) => {
            let graph = window.app.graph
            const ids = way.split(":")
            const find = (id) => (graph.nodes ?? graph._nodes).find((node) => String(node.id) === id)
            for (const id of ids.slice(0, -1)) graph = find(id).subgraph
            return find(ids.at(-1)).widgets.find((widget) => widget.name === "progress").element
        }""",
        node,
    )


def panel_state(frontend: Frontend, node: str = "") -> dict:
    """What a panel shows: of a node as `find_panel` takes it, or of the only one on the page."""
    panel = find_panel(frontend, node) if node else frontend.page.locator(PANEL)
    return panel.evaluate(
        """(panel) => {
            const facts = {}
            const shown = panel.querySelectorAll("[data-fact]:not([hidden])")
            for (const value of shown) facts[value.dataset.fact] = value.textContent
            return {
                status: panel.dataset.status, step: Number(panel.dataset.step), facts,
                text: panel.querySelector(".lumina2-status").textContent,
                points: panel.querySelector(".lumina2-curve-steps").getAttribute("points").split(" ").length,
                pictures: [...panel.querySelectorAll("img")].map(i => i.naturalWidth),
                sources: [...panel.querySelectorAll("img")].map(i => i.src),
            }
        }"""
    )


def record_texts(frontend: Frontend, node: str, part: str = ".lumina2-status") -> None:
    """From now on, keep what a part of a panel says, or with an empty one all of it."""
    find_panel(frontend, node).evaluate(
        """(panel, part) => {
            panel.seen = []
            const watched = part ? panel.querySelector(part) : panel
            const keep = () => panel.seen.push(watched.textContent)
            new MutationObserver(keep).observe(watched, { childList: true, subtree: true })
        }""",
        part,
    )


def recorded_texts(frontend: Frontend, node: str) -> list[str]:
    """What a panel said since `record_texts`, in order."""
    return find_panel(frontend, node).evaluate("(panel) => panel.seen")


def wait_for(frontend: Frontend, is_reached: Callable[[dict], bool], seconds: float = 90, node: str = "") -> dict:
    """A panel's state once it fulfils a condition."""
    deadline = time.monotonic() + seconds
    state = panel_state(frontend, node)
    while not is_reached(state):
        assert time.monotonic() < deadline, state
        frontend.page.wait_for_timeout(100)
        state = panel_state(frontend, node)
    return state
