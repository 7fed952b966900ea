"""The table on Caption Table, in both kinds of node rendering."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image

from ..host.server import HostServer
from .frontend import CLASSIC, Frontend, renderings

REGION = ".lumina2-table"
NUM_PICTURES = 305
MANY = "many_captions"


def write_many(server: HostServer) -> None:
    """More pictures than the canvas shows: the first without caption, two with the same, and a very long one."""
    folder = server.base_dir / "input" / MANY
    folder.mkdir(exist_ok=True)
    captions = ["", "the same", "the same", "<b>long</b> " * 400]
    for number in range(NUM_PICTURES):
        Image.new("RGB", (8, 8), (number % 256, number // 256, 0)).save(folder / f"{number}.png")
        caption = captions[number] if number < len(captions) else f"caption {number}"
        if caption:
            (folder / f"{number}.txt").write_text(caption, "utf-8")


def table_prompt(folder: str) -> dict[str, Any]:
    widgets = {"resolution": 64, "aspect": "buckets", "caption_source": "textfile", "caption": "", "trigger_words": ""}
    return {
        "1": {
            "class_type": "Lumina2DatasetFolder",
            "inputs": {"folder": folder, "repeats": 1, "include_subfolders": True, **widgets},
        },
        "2": {
            "class_type": "Lumina2CaptionTable",
            "inputs": {"dataset": ["1", 0], "system_prompt": "none", "custom_system_prompt": ""},
        },
    }


def show(frontend: Frontend, folder: str) -> None:
    """Put both nodes on the canvas, run them and wait for the table."""
    frontend.page.evaluate("(prompt) => window.app.loadApiJson(prompt, 'captions')", table_prompt(folder))
    frontend.page.wait_for_timeout(500)
    frontend.fit_view()
    frontend.queue()
    frontend.page.locator(f"{REGION} tbody tr").first.wait_for(timeout=60_000)


def test_table_shows_the_first_rows_with_marks(clear_page: Callable[..., Frontend], server: HostServer) -> None:
    write_many(server)
    for settings in renderings(server):
        frontend = clear_page(settings=settings)
        show(frontend, MANY)
        region = frontend.page.locator(REGION)
        assert region.locator("caption").text_content() == (
            "305 pictures, 1 without caption, 2 with a shared caption, 1 perhaps too long;"
            " the first 300 are shown, the table output has all"
        )
        rows = region.locator("tbody tr")
        assert rows.count() == 300
        cells = rows.evaluate_all("rows => rows.slice(0, 5).map(r => [...r.cells].map(c => c.textContent))")
        assert [row[0] for row in cells] == [f"1/{number}.png" for number in range(5)]
        assert [row[1] for row in cells] == ["64 x 64"] * 5
        assert [row[3] for row in cells] == ["No caption", "Shared by 2", "Shared by 2", "Perhaps too long", ""]
        assert "no text file" in cells[0][4]
        assert cells[1][2:] == ["8", "Shared by 2", "the same"]
        assert cells[3][4].startswith("<b>long</b> <b>")  # text, not markup
        assert frontend.errors == [], settings


def test_table_is_read_by_screen_readers_and_keys(clear_page: Callable[..., Frontend], server: HostServer) -> None:
    write_many(server)
    for settings in renderings(server):
        frontend = clear_page(settings=settings)
        show(frontend, MANY)
        page = frontend.page
        region = page.get_by_role("region", name="Captions")
        heads = region.get_by_role("columnheader").all_text_contents()
        assert heads == ["Picture", "Size", "Characters", "Marks", "Caption"]
        assert region.locator("tbody tr").first.get_by_role("rowheader").text_content() == "1/0.png"
        region.focus()
        page.keyboard.press("PageDown")
        page.wait_for_function("document.querySelector('.lumina2-table').scrollTop > 0", timeout=5000)


def test_wheel_scrolls_the_table_and_not_the_canvas(clear_page: Callable[..., Frontend], server: HostServer) -> None:
    write_many(server)
    for settings in renderings(server):
        frontend = clear_page(settings=settings)
        show(frontend, MANY)
        page = frontend.page
        box = page.locator(REGION).bounding_box()
        assert box is not None
        assert 100 < box["height"] < 400, settings  # not as high as its rows
        scale = page.evaluate("window.app.canvas.ds.scale")
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.wheel(0, 200)
        page.wait_for_function("document.querySelector('.lumina2-table').scrollTop > 0", timeout=5000)
        assert page.evaluate("window.app.canvas.ds.scale") == scale, settings


def test_captions_are_in_neither_prompt_nor_saved_workflow(
    clear_page: Callable[..., Frontend], server: HostServer
) -> None:
    for settings in renderings(server):
        frontend = clear_page(settings=settings)
        show(frontend, "pictures")
        assert "disc" in (frontend.page.locator(REGION).text_content() or "")
        assert "disc" not in str(frontend.to_workflow())
        table = next(node for node in frontend.to_workflow()["nodes"] if node["type"] == "Lumina2CaptionTable")
        assert table["widgets_values"] == ["none", ""]
        prompt = next(n for n in frontend.to_prompt().values() if n["class_type"] == "Lumina2CaptionTable")
        assert set(prompt["inputs"]) == {"dataset", "system_prompt", "custom_system_prompt"}


def test_table_speaks_the_users_language(clear_page: Callable[..., Frontend]) -> None:
    frontend = clear_page(settings={**CLASSIC, "Comfy.Locale": "ja"})
    show(frontend, "pictures")
    assert (frontend.page.locator(f"{REGION} caption").text_content() or "").startswith("画像 5 枚")


def test_report_and_contact_sheet_of_made_pictures_are_on_the_node(
    clear_page: Callable[..., Frontend], server: HostServer
) -> None:
    made = {"images": ["1", 0], "name": "in_browser", "captions": "red", "resolution": 64, "aspect": "buckets"}
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 2, "color": 0xFF0000}},
        "2": {"class_type": "Lumina2DatasetFromImages", "inputs": {**made, "trigger_words": "", "repeats": 1}},
    }
    for settings in renderings(server):
        frontend = clear_page(settings=settings)
        frontend.page.evaluate("(prompt) => window.app.loadApiJson(prompt, 'made')", prompt)
        frontend.page.wait_for_timeout(500)
        frontend.fit_view()
        text = frontend.page.locator(".lumina2-text")
        height = text.evaluate("element => element.clientHeight")
        frontend.queue()
        frontend.page.get_by_text("Pictures used: 2").wait_for(timeout=60_000)
        assert 0 < text.evaluate("element => element.clientHeight") <= height, settings  # a picture may take some
        assert frontend.errors == [], settings
