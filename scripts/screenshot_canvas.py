"""Takes the pictures of the canvas: docs/canvas.png for README, and the thumbnails of example_workflows.

Run it from the repository's root, with a ComfyUI checkout where the host tests find one and a Chromium:

    .venv/bin/python scripts/screenshot_canvas.py
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from lumina2_trainer.tests.browser.frontend import Frontend, launch_chromium, open_frontend
from lumina2_trainer.tests.host.checkouts import PACK_DIR, find_checkouts, open_host, read_version
from lumina2_trainer.tests.host.server import start_server
from PIL import Image

CANVAS_PATH = PACK_DIR / "docs" / "canvas.png"
CANVAS_EXAMPLE = "train_lora_on_demo"
WINDOW_SIZE = (2200, 1150)
THUMBNAIL_WIDTH = 800
STEP_IS_REACHED = "(step) => Number(document.querySelector('.lumina2-progress').dataset.step) >= step"
IS_FINISHED = "() => document.querySelector('.lumina2-progress').dataset.status === 'finished'"
SETTINGS = {"Comfy.VueNodes.Enabled": False, "Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False}


def main() -> None:
    """Run every example in the newest checkout and photograph it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=int, default=30, help="step at which README's picture is taken")
    step = parser.parse_args().step
    with tempfile.TemporaryDirectory() as folder:
        packages_dir, base_dir = Path(folder) / "packages", Path(folder) / "comfyui"
        packages_dir.mkdir()
        newest = max(find_checkouts(), key=lambda path: [int(part) for part in read_version(path).split(".")])
        with (
            start_server(open_host(newest, packages_dir), base_dir) as server,
            launch_chromium() as browser,
        ):
            for path in sorted((PACK_DIR / "example_workflows").glob("*.json")):
                with open_frontend(browser, server, settings=SETTINGS, size=WINDOW_SIZE) as frontend:
                    photograph(frontend, path, step)


def photograph(frontend: Frontend, path: Path, step: int) -> None:
    """Queue one example; keep a picture of it in the middle and one of the end."""
    frontend.load_workflow(json.loads(path.read_text("utf-8")))
    frontend.fit_view()
    frontend.queue()
    if path.stem == CANVAS_EXAMPLE:
        frontend.page.wait_for_function(STEP_IS_REACHED, arg=step, timeout=600_000)
        CANVAS_PATH.parent.mkdir(exist_ok=True)
        frontend.page.screenshot(path=CANVAS_PATH)
    frontend.page.wait_for_function(IS_FINISHED, timeout=600_000)
    frontend.page.wait_for_function("async () => (await (await fetch('/queue')).json()).queue_running.length === 0")
    frontend.page.wait_for_timeout(2000)
    with tempfile.TemporaryDirectory() as folder:
        picture_path = Path(folder) / "end.png"
        frontend.page.screenshot(path=picture_path)
        with Image.open(picture_path) as picture:
            size = (THUMBNAIL_WIDTH, round(picture.height * THUMBNAIL_WIDTH / picture.width))
            picture.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(path.with_suffix(".jpg"), quality=85)


if __name__ == "__main__":
    main()
