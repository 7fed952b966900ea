"""Drives ComfyUI's own frontend in Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Locator, Page, sync_playwright

from ..host.server import HostServer

CHROMIUM_ARGS = ("--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
"""Tests need no network: whatever the frontend asks of other hosts fails at once."""
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
IS_READY = "() => window.app?.extensionManager && window.app.graph && window.app.canvas"
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Locale": "en",
    "Comfy.Workflow.Persist": False,
    "Comfy.InstalledVersion": "99.0.0",
}


EMPTY_WORKFLOW = {"version": 0.4, "last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "groups": []}
BARS = (70, 60)
"""Pixels that the frontend's sidebar takes at the left and its run buttons at the top."""
CLASSIC = {"Comfy.VueNodes.Enabled": False}
NODES_2 = {"Comfy.VueNodes.Enabled": True}


def renderings(server: HostServer) -> list[dict[str, bool]]:
    """Settings for each way a host draws nodes; Nodes 2.0 of ComfyUI 0.3 is a preview without text widgets."""
    return [CLASSIC] if server.host.version.startswith("0.3.") else [CLASSIC, NODES_2]


def find_chromium() -> str | None:
    """Path of an installed Chromium, or None."""
    return next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


@dataclass(frozen=True, kw_only=True)
class Frontend:
    """The open frontend."""

    page: Page
    errors: list[str]
    """What scripts of this pack reported as errors."""

    def wait_until_ready(self) -> None:
        """Wait for the frontend, on a page that is being loaded."""
        self.page.wait_for_function(IS_READY, timeout=120_000)
        self.page.wait_for_timeout(1500)

    def load_workflow(self, workflow: Mapping[str, Any]) -> None:
        """Put a workflow on the canvas, as opening its file would."""
        self.page.evaluate("async (workflow) => { await window.app.loadGraphData(workflow) }", workflow)
        self.page.wait_for_timeout(500)

    def clear(self) -> None:
        """Take everything off the canvas, and forget the errors."""
        self.load_workflow(EMPTY_WORKFLOW)
        self.errors.clear()

    def to_prompt(self) -> dict[str, Any]:
        """The canvas in the API's format, by the frontend's own conversion."""
        return self.page.evaluate("async () => (await window.app.graphToPrompt()).output")

    def to_workflow(self) -> dict[str, Any]:
        """The canvas as it would be saved."""
        return self.page.evaluate("() => JSON.parse(JSON.stringify(window.app.graph.serialize()))")

    def add_node(self, node_type: str) -> None:
        """Put a new node on an empty canvas, in its middle."""
        self.page.evaluate(
            """(type) => {
                const graph = window.app.graph
                graph.clear()
                const node = window.LiteGraph.createNode(type)
                graph.add(node)
                node.pos = [100, 100]
                return node.id
            }""",
            node_type,
        )
        self.page.wait_for_timeout(300)
        self.fit_view()

    def type_number(self, name: str, text: str) -> None:
        """Type into a number widget of the only node on the canvas, as a user does."""
        field = self._number_field(name)
        if field.count():
            field.focus()
            field.fill(text)
            field.press("Enter")
            return
        self._click_widget(name, 0.5)
        field = self.page.locator(".graphdialog input")
        field.fill(text)
        field.press("Enter")

    def raise_number(self, name: str) -> None:
        """Click the right arrow of a number widget of the only node on the canvas."""
        buttons = self.page.locator(f'.lg-node [aria-label="{name}"] [data-testid=increment]')
        if buttons.count():
            buttons.click()
        else:
            self._click_widget(name, 0.92)

    def _click_widget(self, name: str, share_of_width: float) -> None:
        place = self.page.evaluate(
            """([name, share]) => {
                const { canvas, graph } = window.app
                const node = (graph.nodes ?? graph._nodes)[0]
                const widget = node.widgets.find((widget) => widget.name === name)
                const box = canvas.canvas.getBoundingClientRect()
                const x = node.pos[0] + node.size[0] * share
                const y = node.pos[1] + (widget.y ?? widget.last_y) + 10
                const { offset, scale } = canvas.ds
                return [box.left + (x + offset[0]) * scale, box.top + (y + offset[1]) * scale]
            }""",
            [name, share_of_width],
        )
        self.page.mouse.click(*place)
        self.page.wait_for_timeout(400)  # a second click at once would be a double click

    def drag_corner(self, right: int, down: int) -> None:
        """Make the only node on the canvas larger by its lower right corner, by pixels of the screen."""
        x, y = self.page.evaluate(
            """() => {
                const drawn = document.querySelector(".lg-node")?.getBoundingClientRect()
                if (drawn) return [drawn.right - 3, drawn.bottom - 3]
                const { canvas, graph } = window.app
                const [node] = graph.nodes ?? graph._nodes
                const box = canvas.canvas.getBoundingClientRect()
                const { offset, scale } = canvas.ds
                return [0, 1].map((i) => [box.left, box.top][i] + (node.pos[i] + node.size[i] - 4 + offset[i]) * scale)
            }"""
        )
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + right / 2, y + down / 2)
        self.page.mouse.move(x + right, y + down)
        self.page.mouse.up()
        self.page.wait_for_timeout(400)

    def shown_number(self, name: str) -> float:
        """What a number widget of the only node on the canvas shows."""
        field = self._number_field(name)
        if field.count():
            return float(field.input_value())
        widget = "(window.app.graph.nodes ?? window.app.graph._nodes)[0].widgets.find((w) => w.name === name)"
        return float(self.page.evaluate(f"(name) => {widget}._displayValue", name))

    def _number_field(self, name: str) -> Locator:
        """Where Nodes 2.0 takes a number; empty where nodes are drawn on the canvas."""
        return self.page.locator(f'.lg-node [aria-label="{name}"] input')

    def queue(self) -> None:
        """Press Run."""
        self.page.evaluate("async () => { await window.app.queuePrompt(0) }")

    def fit_view(self) -> None:
        """Show the whole graph, beside the frontend's own bars."""
        self.page.evaluate(
            """([bar_left, bar_top]) => {
                const app = window.app
                const nodes = app.graph.nodes ?? app.graph._nodes
                const left = Math.min(...nodes.map(n => n.pos[0])) - 40
                const top = Math.min(...nodes.map(n => n.pos[1])) - 90
                const right = Math.max(...nodes.map(n => n.pos[0] + n.size[0])) + 40
                const bottom = Math.max(...nodes.map(n => n.pos[1] + n.size[1])) + 40
                const box = app.canvas.canvas.getBoundingClientRect()
                const width = box.width - bar_left
                const height = box.height - bar_top
                const scale = Math.min(width / (right - left), height / (bottom - top))
                app.canvas.ds.scale = scale
                app.canvas.ds.offset = [-left + (bar_left + (width - (right - left) * scale) / 2) / scale,
                                        -top + (bar_top + (height - (bottom - top) * scale) / 2) / scale]
                app.canvas.setDirty(true, true)
            }""",
            BARS,
        )
        self.page.wait_for_timeout(600)


@contextmanager
def launch_chromium() -> Iterator[Browser]:
    """A running Chromium until the block ends; one at a time in a process."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=CHROMIUM_ARGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_frontend(
    browser: Browser,
    server: HostServer,
    *,
    settings: Mapping[str, Any] | None = None,
    size: tuple[int, int] = (1600, 1000),
) -> Iterator[Frontend]:
    """Open a server's frontend in a fresh profile until the block ends.

    Args:
        browser: From `launch_chromium`.
        server: A running host.
        settings: More of the frontend's settings, such as {"Comfy.VueNodes.Enabled": True}.
        size: Width and height of the window in pixels.
    """
    for key, value in {**SETTINGS, **(settings or {})}.items():
        server.request(f"/settings/{key}", value)
    context = browser.new_context(viewport={"width": size[0], "height": size[1]})
    try:
        yield open_tab(context, server)
    finally:
        context.close()


def open_tab(context: BrowserContext, server: HostServer) -> Frontend:
    """Open a server's frontend in one more tab; it closes with its context."""
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: _keep_exception(error, errors))
    page.on("console", lambda message: _keep_error(message, errors))
    page.goto(server.url)
    frontend = Frontend(page=page, errors=errors)
    frontend.wait_until_ready()
    return frontend


def _keep_exception(error: Any, errors: list[str]) -> None:
    if "lumina2" in f"{error.message}{error.stack}".lower():
        errors.append(f"{error.message}\n{error.stack}")


def _keep_error(message: Any, errors: list[str]) -> None:
    location = (message.location or {}).get("url", "")
    if message.type == "error" and "lumina2" in f"{message.text}{location}".lower():
        errors.append(f"{message.text} ({location})")
