"""The live panel keeps its size while it trains, grows with its node, and can be read in both themes."""

from __future__ import annotations

from collections.abc import Callable

from ..host.prompts import training_prompt
from ..host.server import HostServer
from .frontend import Frontend, renderings
from .panel import PANEL, load_prompt, wait_for

READABLE = 4.5
"""Least contrast of small text by WCAG 2.1, criterion 1.4.3."""
CONTRASTS = """(panel) => {
    const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true })
    const pixel = (colour) => {
        paint.clearRect(0, 0, 1, 1)
        paint.fillStyle = colour
        paint.fillRect(0, 0, 1, 1)
        return [...paint.getImageData(0, 0, 1, 1).data]
    }
    const linear = (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4
    const luminance = (colour) => {
        const [red, green, blue] = pixel(colour).map((value) => linear(value / 255))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue
    }
    const backgroundOf = (element) => {
        const colour = getComputedStyle(element).backgroundColor
        return pixel(colour)[3] ? colour : backgroundOf(element.parentElement)
    }
    const hasText = (element) => [...element.childNodes].some((part) => part.nodeType === 3 && part.data.trim())
    for (const button of panel.querySelectorAll("button")) button.disabled = false
    const found = {}
    for (const element of [...panel.querySelectorAll("*")].filter(hasText)) {
        if (!element.getClientRects().length) continue
        const lights = [getComputedStyle(element).color, backgroundOf(element)].map(luminance).sort((a, b) => b - a)
        found[`${element.className} ${element.textContent}`] = (lights[0] + 0.05) / (lights[1] + 0.05)
    }
    return found
}"""


def test_panel_keeps_its_size_and_is_readable(open_page: Callable[..., Frontend], server: HostServer) -> None:
    for number, settings in enumerate(renderings(server)):
        frontend = open_page(settings=settings)
        check_size_stays(frontend, f"looks_{number}")
        check_contrast(frontend)
        check_panel_grows(frontend)
        assert frontend.errors == []


def check_size_stays(frontend: Frontend, run_name: str) -> None:
    """From queueing to the end of a run with pictures, held-out loss and a warning."""
    prompt = training_prompt(run_name=run_name, steps=4)
    prompt["prompts"]["inputs"] |= {"held_out_share": 0.4, "held_out_step_interval": 2}
    hub = {"repo_id": "my-lora", "push": "end", "private": True, "base_model": "a/b", "license": "", "note": ""}
    prompt["hub"] = {"class_type": "Lumina2HubUpload", "inputs": {**hub, "not_for_all_audiences": False}}
    prompt["train"]["inputs"]["hub"] = ["hub", 0]
    load_prompt(frontend, prompt)
    frontend.page.evaluate(
        """() => {
            const node = (app.graph.nodes ?? app.graph._nodes).find((node) => node.type === "Lumina2TrainLoRA")
            const { element } = node.widgets.find((widget) => widget.name === "progress")
            window.sizes = new Set()
            const note = () => {
                window.sizes.add(`node ${[...node.size]}, panel ${[element.offsetWidth, element.offsetHeight]}`)
                requestAnimationFrame(note)
            }
            note()
        }"""
    )
    frontend.queue()
    wait_for(frontend, lambda state: state["status"] == "finished" and len(state["pictures"]) == 2)
    frontend.page.locator(f"{PANEL} .lumina2-message[data-level=warning]").get_by_text("hf auth login").wait_for()
    frontend.page.wait_for_timeout(300)
    sizes = frontend.page.evaluate("() => [...window.sizes]")
    assert len(sizes) == 1, sizes


def check_contrast(frontend: Frontend) -> None:
    for palette in ("dark", "light"):
        frontend.page.evaluate("(name) => app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
        frontend.page.wait_for_timeout(500)
        contrasts = frontend.page.locator(PANEL).evaluate(CONTRASTS)
        assert {"lumina2-status", "lumina2-message", "lumina2-value"} <= {name.split()[0] for name in contrasts}
        assert {name: ratio for name, ratio in contrasts.items() if ratio < READABLE} == {}, palette
    frontend.page.evaluate("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")


def check_panel_grows(frontend: Frontend) -> None:
    """Drag the node's lower right corner, as a user does."""
    frontend.add_node("Lumina2TrainLoRA")
    panel = frontend.page.locator(PANEL)
    size = "(panel) => [panel.offsetWidth, panel.offsetHeight]"
    before = panel.evaluate(size)
    frontend.drag_corner(80, 60)
    after = panel.evaluate(size)
    scale = frontend.page.evaluate("() => app.canvas.ds.scale")
    grown = [(new - old) * scale for old, new in zip(before, after, strict=True)]
    assert abs(grown[0] - 80) < 12, (before, after, scale)
    assert abs(grown[1] - 60) < 12, (before, after, scale)
