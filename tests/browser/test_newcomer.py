"""The path of somebody who has just installed the pack, with the bundled model; follow it by hand as well.

1. Open ComfyUI, then Workflow, Browse Templates (in newer versions Templates in the side bar).
2. Choose lumina2-trainer, then the card train_then_generate. The graph appears, all of its nodes known.
3. To be quick, set steps of Train LoRA to 4, and its run_name to one of your own. Leave everything else.
4. Press Run.
5. Watch the panel on Train LoRA: steps count up, the loss gets a curve, and at the end there are four pictures.
6. KSampler draws with the new adapter, and the picture appears on Save Image.
7. Set the seed of KSampler to 2 and press Run: nothing is trained again, and another picture appears.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from playwright.sync_api import Page, TimeoutError

from .frontend import CLASSIC, Frontend
from .panel import record_texts, recorded_texts, wait_for

TRAIN, SAMPLER, PICTURE = "7", "12", "14"
"""Ids of Train LoRA, KSampler and Save Image in the template."""
STEPS = 4
IS_OPEN = "(id) => (app.graph.nodes ?? app.graph._nodes).some((node) => String(node.id) === id)"
PICTURE_OF = """(id) => {
    const node = (app.graph.nodes ?? app.graph._nodes).find((node) => String(node.id) === id)
    const [picture] = node.imgs ?? []
    return picture?.complete && picture.naturalWidth ? { size: picture.naturalWidth, source: picture.src } : null
}"""


def set_widget(frontend: Frontend, node: str, name: str, value: Any) -> None:
    """What typing into a widget leaves."""
    frontend.page.evaluate(
        """([id, name, value]) => {
            const node = (app.graph.nodes ?? app.graph._nodes).find((node) => String(node.id) === id)
            node.widgets.find((widget) => widget.name === name).value = value
        }""",
        [node, name, value],
    )


def wait_for_picture(frontend: Frontend, *, other_than: str = "") -> dict[str, Any]:
    """The picture on Save Image, once it is there."""
    is_there = f"([id, old]) => {{ const found = ({PICTURE_OF})(id); return found && found.source !== old && found }}"
    return frontend.page.wait_for_function(is_there, arg=[PICTURE, other_than], timeout=60_000).json_value()


def choose_template(page: Page, pack: str, name: str) -> None:
    """Click the pack, and its card; once more while the dialog is still loading, which takes the first click away."""
    card = page.get_by_text(name, exact=True)
    for _ in range(10):
        page.get_by_text(pack).first.click()
        try:
            return card.click(timeout=10_000)
        except TimeoutError:
            continue
    raise AssertionError(f"no card {name}: {page.locator('body').inner_text()[:2000]}")


def test_newcomer_trains_and_generates(open_page: Callable[..., Frontend]) -> None:
    # 1. and 2. Open the template.
    frontend = open_page(settings=CLASSIC)
    page = frontend.page
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    choose_template(page, "lumina2-trainer", "train_then_generate")
    page.wait_for_function(IS_OPEN, arg=PICTURE)
    frontend.fit_view()

    # 3. A short run.
    set_widget(frontend, TRAIN, "steps", STEPS)
    set_widget(frontend, TRAIN, "run_name", "newcomer")
    record_texts(frontend, TRAIN)

    # 4. and 5. Run, and watch the panel.
    frontend.queue()
    state = wait_for(frontend, lambda state: state["status"] == "finished" and state["points"] == STEPS, 180)
    assert (state["step"], len(state["pictures"])) == (STEPS, 4)
    texts = recorded_texts(frontend, TRAIN)
    assert any(text.startswith("Training") for text in texts), texts

    # 6. The picture drawn with the adapter.
    first = wait_for_picture(frontend)
    assert first["size"] == 128
    assert "lumina2_demo" in first["source"]

    # 7. Another picture, without training again.
    record_texts(frontend, TRAIN)
    set_widget(frontend, SAMPLER, "seed", 2)
    frontend.queue()
    second = wait_for_picture(frontend, other_than=first["source"])
    assert "lumina2_demo" in second["source"]
    assert not any(text.startswith("Training") for text in recorded_texts(frontend, TRAIN))
    assert frontend.errors == []
