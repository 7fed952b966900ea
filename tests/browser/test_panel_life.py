"""The live panel outlives the page, other pages see it too, and it outlives the server."""

from __future__ import annotations

from collections.abc import Callable

from ..host.prompts import training_prompt
from ..host.server import HostServer
from .frontend import CLASSIC, Frontend, open_tab
from .panel import PANEL, load_prompt, panel_state, record_texts, recorded_texts, wait_for

TRAIN = "6"
"""Id on the canvas of Train in `training_prompt`."""

STEPS = 50_000
MIN_CURVE_POINTS = 400
"""Longer curves are thinned out, but not to fewer points."""
CHECKPOINT_INTERVAL = 4


def long_prompt(run_name: str) -> dict:
    """A run that no test waits for, with a checkpoint every few steps."""
    prompt = training_prompt(run_name=run_name, steps=STEPS)
    inputs = {"checkpoint_step_interval": CHECKPOINT_INTERVAL, "num_checkpoints_kept": 1}
    prompt["checkpoints"] = {"class_type": "Lumina2Checkpoints", "inputs": inputs}
    prompt["train"]["inputs"]["checkpoints"] = ["checkpoints", 0]
    prompt["prompts"]["inputs"]["every_num_steps"] = 50
    return prompt


def check_it_moves_on(frontend: Frontend, step: int) -> int:
    """The panel goes beyond a step, with the steps before it on its curve; where it is now."""
    num_points = min(step, MIN_CURVE_POINTS)
    shown = wait_for(frontend, lambda state: state["step"] > step and state["points"] >= num_points)
    assert shown["status"] == "running"
    assert f"{shown['step']} of {STEPS}" in shown["text"]
    return wait_for(frontend, lambda state: state["step"] > shown["step"])["step"]


def test_panel_outlives_the_page_and_the_server(open_page: Callable[..., Frontend], server: HostServer) -> None:
    try:
        check_panel_outlives(open_page, server)
    finally:
        server.request("/interrupt", {})


def check_panel_outlives(open_page: Callable[..., Frontend], server: HostServer) -> None:
    frontend = open_page(settings={**CLASSIC, "Comfy.Workflow.Persist": True})
    load_prompt(frontend, long_prompt("long_life"))
    workflow = frontend.to_workflow()
    frontend.queue()
    step = wait_for(frontend, lambda state: state["step"] >= 5)["step"]

    frontend.page.reload()
    frontend.wait_until_ready()
    step = check_it_moves_on(frontend, step)

    tab = open_tab(frontend.page.context, server)
    elsewhere = open_page(settings=CLASSIC)
    for other in (tab, elsewhere):
        other.load_workflow(workflow)
        step = check_it_moves_on(other, step)

    for page in (frontend, tab, elsewhere):
        assert page.errors == []
    server.restart()
    for page in (frontend, tab, elsewhere):
        forget_refused(page)
    for page in (frontend, tab, elsewhere):
        stopped = wait_for(page, lambda state: state["status"] == "stopped")
        assert stopped["step"] >= step

    tab.queue()
    resumed = wait_for(frontend, lambda state: state["status"] == "running")
    assert resumed["step"] >= stopped["step"] - CHECKPOINT_INTERVAL
    for page in (frontend, elsewhere):
        check_it_moves_on(page, stopped["step"])
    elsewhere.page.locator(f"{PANEL} [data-action=stop]").click()
    for page in (frontend, tab, elsewhere):
        wait_for(page, lambda state: state["status"] == "stopped")
    for page in (frontend, tab, elsewhere):
        assert page.errors == []


def forget_refused(page: Frontend) -> None:
    """Leave out pictures that were asked for while the server was down."""
    page.errors[:] = [error for error in page.errors if "ERR_CONNECTION_REFUSED" not in error]


def test_a_late_answer_does_not_bring_back_an_older_state(open_page: Callable[..., Frontend]) -> None:
    """The state asked for at the start arrives after the run was stopped."""
    frontend = open_page(settings=CLASSIC)
    load_prompt(frontend, training_prompt(run_name="late"))
    record_texts(frontend, TRAIN)
    frontend.page.evaluate(
        """async (node) => {
            const { api } = window.app
            const answers = [["running", 1000], ["stopped", 0]]
            const fetchApi = api.fetchApi
            api.fetchApi = (path, ...others) => {
                if (!path.startsWith("/lumina2_trainer/runs/late")) return fetchApi.call(api, path, ...others)
                const [status, delay] = answers.shift()
                const state = { run: "late", node, status, step: 0, total: 4 }
                return new Promise((answer) => setTimeout(() => answer(Response.json(state)), delay))
            }
            const pause = (delay) => new Promise((resume) => setTimeout(resume, delay))
            const send = (kind, more) => {
                const detail = { run: "late", node, ...more }
                api.dispatchEvent(new CustomEvent(`lumina2_trainer.${kind}`, { detail }))
            }
            send("planned", { step: 0, total: 4, memory_plan: "", predicted_seconds: 9 })
            await pause(50)
            send("stopped", {})
            await pause(2000)
        }""",
        TRAIN,
    )
    texts = recorded_texts(frontend, TRAIN)
    assert texts[0].startswith("Training")
    assert all(text.startswith("Stopped") for text in texts[1:]), texts
    assert panel_state(frontend)["status"] == "stopped"


def test_pictures_missed_while_the_server_was_away_come_with_the_connection(
    open_page: Callable[..., Frontend], server: HostServer
) -> None:
    frontend = open_page(settings=CLASSIC)
    load_prompt(frontend, training_prompt(run_name="missed"))
    frontend.page.route("**/api/view?*", lambda route: route.abort("connectionrefused"))
    frontend.queue()
    wait_for(frontend, lambda state: state["status"] == "finished")
    picture = frontend.page.locator(f"{PANEL} .lumina2-picture").first
    width = "(picture) => picture.complete ? picture.naturalWidth : -1"
    assert picture.evaluate(width) == 0
    frontend.page.unroute("**/api/view?*")
    forget_refused(frontend)
    frontend.page.evaluate("window.app.api.dispatchEvent(new CustomEvent('reconnected'))")
    frontend.page.wait_for_function(
        f"document.querySelector('{PANEL} .lumina2-picture')?.naturalWidth > 0", timeout=10_000
    )
    assert frontend.errors == []
