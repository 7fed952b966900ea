"""The progress widget on Train LoRA, in both kinds of node rendering."""

from __future__ import annotations

from collections.abc import Callable

from ..host.prompts import training_prompt
from ..host.server import HostServer
from .frontend import CLASSIC, Frontend, renderings
from .panel import PANEL, load_prompt, panel_state, wait_for


def test_numbers_move_while_it_trains_and_stop_works(clear_page: Callable[..., Frontend], server: HostServer) -> None:
    for number, settings in enumerate(renderings(server)):
        check_numbers_move_and_stop_works(clear_page(settings=settings), f"widget_{number}")


def check_numbers_move_and_stop_works(frontend: Frontend, run_name: str) -> None:
    load_prompt(frontend, training_prompt(run_name=run_name, steps=2000))
    assert panel_state(frontend)["status"] == "idle"
    frontend.queue()
    first = wait_for(frontend, lambda state: state["step"] > 0)
    assert first["status"] == "running"
    later = wait_for(frontend, lambda state: state["step"] > first["step"] and all(state["pictures"] or [0]))
    assert later["points"] > first["points"]
    assert all(later["facts"].values())
    assert f"{later['step']} of 2000" in later["text"]
    assert later["pictures"] == [64, 64]
    frontend.page.locator(f"{PANEL} [data-action=stop]").click()
    stopped = wait_for(frontend, lambda state: state["status"] == "stopped")
    assert stopped["step"] < 2000
    assert frontend.errors == []


def test_refused_request_says_why(clear_page: Callable[..., Frontend]) -> None:
    frontend = clear_page(settings=CLASSIC)
    prompt = training_prompt(run_name="refused", steps=2000)
    del prompt["train"]["inputs"]["validation"]
    load_prompt(frontend, prompt)
    frontend.queue()
    wait_for(frontend, lambda state: state["step"] > 0)
    frontend.page.locator(f"{PANEL} [data-action=validate]").click()
    frontend.page.get_by_text("run 'refused' has no validation prompts").wait_for(timeout=10_000)
    frontend.page.locator(f"{PANEL} [data-action=stop]").click()
    wait_for(frontend, lambda state: state["status"] == "stopped")


def test_notice_of_a_failed_upload_stays_on_the_node(clear_page: Callable[..., Frontend]) -> None:
    frontend = clear_page(settings=CLASSIC)
    prompt = training_prompt(run_name="notice", steps=3)
    hub = {"repo_id": "my-lora", "push": "end", "private": True, "base_model": "a/b", "license": "", "note": ""}
    prompt["hub"] = {"class_type": "Lumina2HubUpload", "inputs": {**hub, "not_for_all_audiences": False}}
    prompt["train"]["inputs"]["hub"] = ["hub", 0]
    load_prompt(frontend, prompt)
    frontend.queue()
    wait_for(frontend, lambda state: state["status"] == "finished")
    message = frontend.page.locator(f"{PANEL} .lumina2-message")
    message.get_by_text("there is no token: run `hf auth login`").wait_for(timeout=10_000)
    assert message.get_attribute("data-level") == "warning"
    assert frontend.errors == []


def test_state_is_restored_when_the_page_opens_later(open_page: Callable[..., Frontend], server: HostServer) -> None:
    server.run_prompt(training_prompt(run_name="opened_later", steps=5))
    frontend = open_page(settings=CLASSIC)
    load_prompt(frontend, training_prompt(run_name="opened_later", steps=5))
    frontend.load_workflow(frontend.to_workflow())
    state = wait_for(frontend, lambda state: state["status"] == "finished")
    assert (state["step"], state["points"], len(state["pictures"])) == (5, 5, 2)


def test_charts_are_chosen_by_tabs(clear_page: Callable[..., Frontend], server: HostServer) -> None:
    server.run_prompt(training_prompt(run_name="charts", steps=6))
    for settings in renderings(server):
        frontend = clear_page(settings=settings)
        load_prompt(frontend, training_prompt(run_name="charts", steps=6))
        frontend.load_workflow(frontend.to_workflow())
        wait_for(frontend, lambda state: state["status"] == "finished")
        tabs = frontend.page.locator(f"{PANEL} [role=tab]")
        names = tabs.evaluate_all("tabs => tabs.map(tab => tab.dataset.chart)")
        assert names == ["loss", "byNoise", "learningRate", "gradNorm", "memory"]
        tabs.nth(0).focus()
        for name in [*names[1:], names[0]]:
            frontend.page.keyboard.press("ArrowRight")
            chosen = frontend.page.locator(f"{PANEL} [role=tab][aria-selected=true]")
            assert chosen.get_attribute("data-chart") == name
            shown = frontend.page.locator(f"#{chosen.get_attribute('aria-controls')}")
            assert shown.is_visible()
            if name == "byNoise":
                heights = shown.locator(".lumina2-noise-bar").evaluate_all("bars => bars.map(b => b.clientHeight)")
                assert len(heights) == 20
                assert sum(height > 0 for height in heights) >= 3
            else:
                points = shown.locator(".lumina2-curve-mean").get_attribute("points") or ""
                assert len(points.split()) == 6
        assert frontend.errors == []


def test_memory_and_time_are_shown_before_the_first_step(
    clear_page: Callable[..., Frontend], server: HostServer
) -> None:
    server.run_prompt(training_prompt(run_name="planned"))
    frontend = clear_page(settings=CLASSIC)
    load_prompt(frontend, training_prompt(run_name="planned"))
    frontend.load_workflow(frontend.to_workflow())
    wait_for(frontend, lambda state: state["status"] == "finished")
    node = frontend.page.evaluate("() => String(window.app.graph._nodes.find((n) => n.type === 'Lumina2TrainLoRA').id)")
    planned = {
        "run": "planned",
        "node": node,
        "step": 0,
        "total": 1000,
        "memory_plan": "memory: 7.5 GiB free, keeping 4 of 30 blocks' activations, predicted peak 6.9 GiB",
        "predicted_peak_gib": 6.93,
        "predicted_seconds": 742.0,
    }
    frontend.page.evaluate(
        "(detail) => window.app.api.dispatchEvent(new CustomEvent('lumina2_trainer.planned', { detail }))", planned
    )
    state = panel_state(frontend)
    assert (state["status"], state["text"]) == ("running", "Training · Step 0 of 1000")
    assert (state["facts"]["memory"], state["facts"]["timeLeft"]) == ("fits in 6.9 GiB", "about 12 min")
    assert frontend.errors == []


def test_held_out_loss_is_drawn_beside_the_loss(clear_page: Callable[..., Frontend], server: HostServer) -> None:
    prompt = training_prompt(run_name="held_out", steps=4)
    prompt["prompts"]["inputs"] |= {"held_out_share": 0.4, "held_out_step_interval": 2}
    frontend = clear_page(settings=CLASSIC)
    load_prompt(frontend, prompt)
    frontend.queue()
    live = wait_for(frontend, lambda state: state["status"] == "finished")
    assert "(Step 4)" in live["facts"]["heldOut"]
    frontend.load_workflow(frontend.to_workflow())
    again = wait_for(frontend, lambda state: state["status"] == "finished")
    assert again["facts"]["heldOut"] == live["facts"]["heldOut"]
    other = frontend.page.locator(f"{PANEL} .lumina2-curve-other").first
    assert len((other.get_attribute("points") or "").split()) == 3  # the base, steps 2 and 4
    assert frontend.errors == []


def test_gallery_goes_back_and_compares(clear_page: Callable[..., Frontend], server: HostServer) -> None:
    server.run_prompt(training_prompt(run_name="gallery", steps=6))
    for settings in renderings(server):
        frontend = clear_page(settings=settings)
        load_prompt(frontend, training_prompt(run_name="gallery", steps=6))
        frontend.load_workflow(frontend.to_workflow())
        wait_for(frontend, lambda state: state["status"] == "finished" and len(state["pictures"]) == 2)
        page = frontend.page
        caption = page.locator(f"{PANEL} .lumina2-validations .lumina2-caption")
        assert caption.text_content() == "Validation at step 6"
        slider = page.locator(f"{PANEL} .lumina2-slider")
        slider.focus()
        page.keyboard.press("ArrowLeft")
        assert caption.text_content() == "Validation at step 4"
        picture = page.locator(f"{PANEL} .lumina2-picture").nth(1)
        assert "step-000004" in (picture.get_attribute("src") or "")
        assert picture.get_attribute("alt") == "a blue disc"
        picture.dispatch_event("click")
        viewer = page.locator("dialog.lumina2-viewer")
        assert viewer.locator(".lumina2-viewer-prompt").text_content() == "a blue disc"
        sources = viewer.locator("img").evaluate_all("images => images.map(image => image.src)")
        assert ["step-000004" in sources[0], "step-000002" in sources[1]] == [True, True]
        viewer.locator("input").fill("20")
        clip = viewer.locator(".lumina2-viewer-before").evaluate("image => image.style.clipPath")
        assert clip.startswith("inset(0px 80% 0px 0px") or clip.startswith("inset(0 80% 0 0")
        page.keyboard.press("Escape")
        viewer.wait_for(state="detached")
        assert frontend.errors == []


def test_pictures_of_base_and_average_are_marked(clear_page: Callable[..., Frontend]) -> None:
    prompt = training_prompt(run_name="marked", steps=4)
    prompt["prompts"]["inputs"]["draw_base"] = True
    prompt["checkpoints"] = {
        "class_type": "Lumina2Checkpoints",
        "inputs": {"checkpoint_step_interval": 0, "num_checkpoints_kept": 1, "use_ema": True},
    }
    prompt["train"]["inputs"]["checkpoints"] = ["checkpoints", 0]
    frontend = clear_page(settings=CLASSIC)
    load_prompt(frontend, prompt)
    frontend.queue()
    wait_for(frontend, lambda state: state["status"] == "finished" and len(state["pictures"]) == 6)
    for _ in range(2):  # as the events told it, and as the server remembers it
        marks = frontend.page.locator(f"{PANEL} .lumina2-mark").all_text_contents()
        assert sorted(marks) == ["average"] * 2 + ["base"] * 2
        average = frontend.page.locator(f"{PANEL} .lumina2-picture[alt='a red disc, average']")
        average.dispatch_event("click")
        sources = frontend.page.locator("dialog img").evaluate_all("images => images.map(image => image.src)")
        assert ["00_ema.png" in source for source in sources] == [True, True]
        frontend.page.keyboard.press("Escape")
        frontend.load_workflow(frontend.to_workflow())
        wait_for(frontend, lambda state: state["status"] == "finished" and len(state["pictures"]) == 6)
    assert frontend.errors == []


def test_widget_is_in_neither_prompt_nor_saved_values(clear_page: Callable[..., Frontend], server: HostServer) -> None:
    for settings in renderings(server):
        check_prompt_and_saved_values(clear_page(settings=settings))


def check_prompt_and_saved_values(frontend: Frontend) -> None:
    load_prompt(frontend, training_prompt(run_name="saved"))
    train = next(node for node in frontend.to_workflow()["nodes"] if node["type"] == "Lumina2TrainLoRA")
    assert train["widgets_values"] == [4, 2, 0.001, 2, 2, "adamw", 42, "saved", 0.1, False, "auto"]
    prompt = next(node for node in frontend.to_prompt().values() if node["class_type"] == "Lumina2TrainLoRA")
    assert "progress" not in prompt["inputs"]
    assert len(prompt["inputs"]) == 11 + 4


def test_widget_speaks_the_users_language(clear_page: Callable[..., Frontend]) -> None:
    frontend = clear_page(settings={**CLASSIC, "Comfy.Locale": "zh"})
    load_prompt(frontend, training_prompt(run_name="in_chinese"))
    assert panel_state(frontend)["text"] == "尚未训练"


def test_numbers_are_said_in_plain_words(clear_page: Callable[..., Frontend]) -> None:
    frontend = clear_page(settings=CLASSIC)
    words = frontend.page.evaluate(
        """async () => {
            const { formatNumber, formatSeconds } = await import("/extensions/lumina2-trainer/js/format.js")
            const { describeCount } = await import("/extensions/lumina2-trainer/js/node_text.js")
            const seconds = [0.123, 4.56, 59.7, 200, 7500, NaN].map(formatSeconds)
            const numbers = [0.41234, 1e-5, 0].map(formatNumber)
            const words = { of: "of", rate: "a second", left: "left" }
            return [...seconds, ...numbers, describeCount({ step: 12, total: 40, rate: 3.14, eta_seconds: 9 }, words)]
        }"""
    )
    assert words == [
        "0.12 s",
        "4.6 s",
        "1 min 0 s",
        "3 min 20 s",
        "2 h 5 min",
        "",
        "0.4123",
        "1.00e-5",
        "0",
        "12 of 40, 3.1 a second, 9 s left",
    ]
