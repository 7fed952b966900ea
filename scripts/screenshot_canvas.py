"""Takes the pictures of the canvas: those of README in docs/, and the thumbnails of example_workflows.

Run it from the repository's root, with a ComfyUI checkout where the host tests find one and a Chromium:

    .venv/bin/python scripts/screenshot_canvas.py [EXAMPLE ...]

README's pictures are taken with the example train_lora_on_demo.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from lumina2_trainer.tests.browser.frontend import BARS, Frontend, launch_chromium, open_frontend
from lumina2_trainer.tests.host.checkouts import PACK_DIR, find_checkouts, open_host, read_version
from lumina2_trainer.tests.host.server import HostServer, start_server
from lumina2_trainer.trainer_core.cli.demo import DEMO_DIR
from PIL import Image, ImageFilter
from playwright.sync_api import FloatRect

DOCS_DIR = PACK_DIR / "docs"
CANVAS_EXAMPLE = "train_lora_on_demo"
FAULTY_FOLDER = "my_pictures"
WINDOW_SIZE = (2200, 1150)
TALL_WINDOW_SIZE = (1500, 2300)
THUMBNAIL_WINDOW_SIZE = (3300, 2000)
"""Large enough that nodes are drawn with their widgets."""
THUMBNAIL_WIDTH = 800
SPACE = 60
"""Between the graph and what the frontend shows above it, in pixels."""
MARGIN = 16
"""Of a thumbnail before it is made smaller, in pixels."""
STEP_IS_REACHED = "(step) => Number(document.querySelector('.lumina2-progress').dataset.step) >= step"
IS_FINISHED = "() => document.querySelector('.lumina2-progress').dataset.status === 'finished'"
SETTINGS = {"Comfy.VueNodes.Enabled": False, "Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False}


def main() -> None:
    """Run every example in the newest checkout and photograph it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=int, default=30, help="step at which README's picture is taken")
    parser.add_argument("example", nargs="*", metavar="EXAMPLE", help="names of workflows; all of them by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        packages_dir, base_dir = Path(folder) / "packages", Path(folder) / "comfyui"
        packages_dir.mkdir()
        newest = max(find_checkouts(), key=lambda path: [int(part) for part in read_version(path).split(".")])
        with (
            start_server(open_host(newest, packages_dir), base_dir) as server,
            launch_chromium() as browser,
        ):
            for path in sorted((PACK_DIR / "example_workflows").glob("*.json")):
                if arguments.example and path.stem not in arguments.example:
                    continue
                with open_frontend(browser, server, settings=SETTINGS, size=WINDOW_SIZE) as frontend:
                    photograph(frontend, server, path, arguments.step)
                    if path.stem == CANVAS_EXAMPLE:
                        photograph_panel(frontend)
            if not arguments.example or CANVAS_EXAMPLE in arguments.example:
                write_faulty_folder(base_dir / "input" / FAULTY_FOLDER)
                with open_frontend(browser, server, settings=SETTINGS, size=TALL_WINDOW_SIZE) as frontend:
                    photograph_report(frontend)


def photograph(frontend: Frontend, server: HostServer, path: Path, step: int) -> None:
    """Queue one example; keep a picture of it in the middle and one of the end."""
    frontend.load_workflow(json.loads(path.read_text("utf-8")))
    frontend.fit_view()
    frontend.queue()
    if path.stem == CANVAS_EXAMPLE:
        frontend.page.wait_for_function(STEP_IS_REACHED, arg=step, timeout=600_000)
        frontend.page.screenshot(path=DOCS_DIR / "canvas.png")
    frontend.page.wait_for_function(IS_FINISHED, timeout=600_000)
    while server.request("/queue")[1]["queue_running"]:
        frontend.page.wait_for_timeout(500)
    photograph_graph(frontend, path.with_suffix(".jpg"))


def photograph_graph(frontend: Frontend, path: Path) -> None:
    """The nodes and groups alone, without what the frontend shows around them."""
    page = frontend.page
    page.set_viewport_size(dict(zip(("width", "height"), THUMBNAIL_WINDOW_SIZE, strict=True)))
    page.wait_for_timeout(8000)  # until the canvas has the window's size, and the queue's toast is gone
    frontend.fit_view()
    page.evaluate(
        """(space) => {
            const { ds } = window.app.canvas
            ds.scale *= 0.94
            ds.offset = [ds.offset[0] + space / ds.scale, ds.offset[1] + space / ds.scale]
            window.app.canvas.setDirty(true, true)
        }""",
        SPACE,
    )
    page.wait_for_timeout(2000)
    with tempfile.TemporaryDirectory() as folder:
        picture_path = Path(folder) / "end.png"
        page.screenshot(path=picture_path, clip=graph_box(frontend))
        with Image.open(picture_path) as picture:
            size = (THUMBNAIL_WIDTH, round(picture.height * THUMBNAIL_WIDTH / picture.width))
            picture.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(path, quality=85)
    page.set_viewport_size(dict(zip(("width", "height"), WINDOW_SIZE, strict=True)))


def photograph_panel(frontend: Frontend) -> None:
    """The panel of a finished run, and the viewer that compares its last pictures with its first."""
    show_node(frontend, "Lumina2TrainLoRA")
    frontend.page.locator(".lumina2-progress").screenshot(path=DOCS_DIR / "panel.png")
    frontend.page.locator(".lumina2-progress .lumina2-picture").first.dispatch_event("click")
    frontend.page.wait_for_timeout(1000)
    frontend.page.locator("dialog.lumina2-viewer").screenshot(path=DOCS_DIR / "viewer.png")
    frontend.page.keyboard.press("Escape")


def write_faulty_folder(folder: Path) -> None:
    """A dataset as people have them: good pictures, and some that are not."""
    folder.mkdir(parents=True)
    good = sorted((DEMO_DIR / "dataset").glob("*.webp"))[:8]
    for path in good:
        shutil.copy(path, folder)
        shutil.copy(path.with_suffix(".txt"), folder)
    shutil.copy(good[0], folder / "copy.webp")
    (folder / "copy.txt").write_text(good[1].with_suffix(".txt").read_text("utf-8"), "utf-8")
    with Image.open(good[2]) as picture:
        picture.filter(ImageFilter.GaussianBlur(8)).save(folder / "out_of_focus.png")
        picture.resize((32, 24)).save(folder / "tiny.png")
    (folder / "tiny.txt").write_text("a thumbnail", "utf-8")
    (folder / f"{good[3].stem}.txt").write_text("a cherry blossom in the morning light, " * 40, "utf-8")
    (folder / "broken.webp").write_bytes(good[3].read_bytes()[:500])


def photograph_report(frontend: Frontend) -> None:
    """What Dataset Folder has to say of the faulty folder: its report and contact sheet, without the widgets above."""
    frontend.add_node("Lumina2DatasetFolder")
    frontend.page.evaluate(
        """(folder) => {
            const node = (window.app.graph.nodes ?? window.app.graph._nodes)[0]
            const values = { folder, resolution: 128 }
            for (const [name, value] of Object.entries(values)) node.widgets.find((w) => w.name === name).value = value
        }""",
        FAULTY_FOLDER,
    )
    frontend.queue()
    frontend.page.wait_for_function("() => document.querySelector('.lumina2-text')?.textContent.includes('Pictures')")
    show_node(frontend, "Lumina2DatasetFolder", size=(780, 2150))
    clip, text = node_box(frontend), frontend.page.locator(".lumina2-text").bounding_box()
    assert text is not None
    clip["height"] -= text["y"] - clip["y"]
    clip["y"] = text["y"]
    frontend.page.screenshot(path=DOCS_DIR / "dataset_report.png", clip=clip)


def show_node(frontend: Frontend, node_type: str, size: tuple[int, int] | None = None) -> None:
    """Fill the window with one node.

    Args:
        frontend: With the node on the canvas.
        node_type: Its type; the first one is taken.
        size: Width and height to give it; its own by default.
    """
    frontend.page.evaluate(
        """([type, size, bars]) => {
            const app = window.app
            const node = (app.graph.nodes ?? app.graph._nodes).find((node) => node.type === type)
            if (size) node.setSize(size)
            const box = app.canvas.canvas.getBoundingClientRect()
            const height = node.size[1] + 30
            const scale = Math.min((box.width - bars[0]) / node.size[0], (box.height - bars[1]) / height)
            app.canvas.ds.scale = scale
            app.canvas.ds.offset = [-node.pos[0] + (bars[0] + 20) / scale, -node.pos[1] + 30 + bars[1] / scale]
            app.canvas.setDirty(true, true)
            window.shownNode = node
        }""",
        [node_type, list(size) if size else None, list(BARS)],
    )
    frontend.page.wait_for_timeout(1500)


def graph_box(frontend: Frontend) -> FloatRect:
    """Where the graph is in the window."""
    return frontend.page.evaluate(
        """(margin) => {
            const { canvas, graph } = window.app
            const window_box = canvas.canvas.getBoundingClientRect()
            const { offset, scale } = canvas.ds
            const nodes = (graph.nodes ?? graph._nodes).map((node) => node.boundingRect ?? node.getBounding())
            const groups = (graph.groups ?? graph._groups).map((group) => [...group.pos, ...group.size])
            const boxes = [...nodes, ...groups]
            const left = Math.min(...boxes.map((box) => box[0])), top = Math.min(...boxes.map((box) => box[1]))
            const right = Math.max(...boxes.map((box) => box[0] + box[2]))
            const bottom = Math.max(...boxes.map((box) => box[1] + box[3]))
            return {
                x: window_box.left + (left + offset[0]) * scale - margin,
                y: window_box.top + (top + offset[1]) * scale - margin,
                width: (right - left) * scale + 2 * margin,
                height: (bottom - top) * scale + 2 * margin,
            }
        }""",
        MARGIN,
    )


def node_box(frontend: Frontend) -> FloatRect:
    """Where `show_node` put the node in the window, its title included."""
    return frontend.page.evaluate(
        """() => {
            const { canvas } = window.app
            const node = window.shownNode
            const box = canvas.canvas.getBoundingClientRect()
            const { offset, scale } = canvas.ds
            const x = box.left + (node.pos[0] + offset[0]) * scale
            const y = box.top + (node.pos[1] - 30 + offset[1]) * scale
            return { x, y, width: node.size[0] * scale, height: (node.size[1] + 30) * scale }
        }"""
    )


if __name__ == "__main__":
    main()
