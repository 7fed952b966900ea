"""The panel says what a run will take while pictures and captions are encoded for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ..host.prompts import training_prompt, write_discs
from ..host.server import HostServer
from .frontend import CLASSIC, Frontend, renderings
from .panel import load_prompt, record_texts, recorded_texts, wait_for

TRAIN = "6"
"""Id on the canvas of Train in `training_prompt`."""


def prompt_of_new_pictures(server: HostServer, name: str, background: str, **train: Any) -> dict[str, Any]:
    """Training on pictures that no cache holds, for no other ones have their background."""
    write_discs(server.input_dir / name, captions=f"a {{colour}} disc, {name}", background=background)
    prompt = training_prompt(run_name=name, **train)
    prompt["dataset"]["inputs"]["folder"] = name
    return prompt


def test_memory_and_time_are_shown_while_pictures_are_encoded(
    open_page: Callable[..., Frontend], server: HostServer
) -> None:
    for i, settings in enumerate(renderings(server)):
        frontend = open_page(settings=settings)
        load_prompt(frontend, prompt_of_new_pictures(server, f"ahead-{i}", f"#{i}0a0b0", steps=3, memory="3"))
        record_texts(frontend, TRAIN, part="")
        frontend.queue()
        wait_for(frontend, lambda state: state["status"] == "finished")
        texts = recorded_texts(frontend, TRAIN)
        waiting = next(text for text in texts if "Encoding first, then training · Step 0 of 3" in text)
        assert re.search(r"about .*fits in 0\.\d GiB.*memory: 3 GiB allowed", waiting, re.DOTALL), waiting
        assert texts.index(waiting) < next(i for i, text in enumerate(texts) if "Training · Step" in text)
        assert frontend.errors == []


def test_a_run_that_cannot_fit_is_known_before_encoding(open_page: Callable[..., Frontend], server: HostServer) -> None:
    frontend = open_page(settings=CLASSIC)
    load_prompt(frontend, prompt_of_new_pictures(server, "too_large", "navy", memory="0.001"))
    record_texts(frontend, TRAIN, part="")
    frontend.queue()
    wait_for(frontend, lambda state: state["status"] == "failed")
    problem = "0.001 GiB allowed, but training takes at least"
    texts = [text for text in recorded_texts(frontend, TRAIN) if problem in text]
    assert "Encoding first" in texts[0]
    assert "Failed" in texts[-1]


def test_a_prompt_that_ends_before_its_run_leaves_no_panel_waiting(
    open_page: Callable[..., Frontend], server: HostServer
) -> None:
    frontend = open_page(settings=CLASSIC)
    load_prompt(frontend, prompt_of_new_pictures(server, "cut_short", "olive", steps=500))
    frontend.page.evaluate(
        """() => window.app.api.addEventListener("lumina2_trainer.forecast", () => window.app.api.interrupt())"""
    )
    record_texts(frontend, TRAIN, part="")
    frontend.queue()

    def has_waited() -> bool:
        return any("Encoding first" in text for text in recorded_texts(frontend, TRAIN))

    wait_for(frontend, lambda _: has_waited())
    state = wait_for(frontend, lambda state: state["status"] in ("idle", "stopped"))
    assert state["facts"]["timeLeft"] == ""


def test_a_page_that_did_not_queue_hears_of_it_too(open_page: Callable[..., Frontend], server: HostServer) -> None:
    """Of how a prompt ended, the host tells only the page that queued it."""
    frontend = open_page(settings=CLASSIC)
    load_prompt(frontend, prompt_of_new_pictures(server, "unseen", "teal", steps=500))
    record_texts(frontend, TRAIN, part="")
    queued = frontend.page.evaluate("async () => (await window.app.graphToPrompt()).output")

    def interrupt(kind: str, data: Mapping[str, Any]) -> None:
        if kind == "lumina2_trainer.forecast":
            server.request("/interrupt", {})

    outcome = server.run_prompt(queued, on_message=interrupt)
    assert outcome.kind == "execution_interrupted"
    wait_for(frontend, lambda state: state["status"] == "stopped")
    assert any("Encoding first" in text for text in recorded_texts(frontend, TRAIN))
