"""Training in a process of its own inside the real host: the server hears of it, survives it and ends it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from .checkouts import Host
from .prompts import training_prompt, write_tiny_files
from .server import PACK_FOLDER, HostServer, start_server

SWITCH = """
import sys, threading, time

NODE_CLASS_MAPPINGS = {}

def switch():
    while True:
        for name in list(sys.modules):
            module = sys.modules.get(name)
            if name.endswith(".nodes.host") and hasattr(module, "DEVICES_OF_CHILDREN"):
                module.DEVICES_OF_CHILDREN.add("cpu")
                print("training runs in children", flush=True)
                return
        time.sleep(0.05)

threading.Thread(target=switch, daemon=True).start()
"""
"""A custom node pack loaded before or after ours: on a CPU, training usually stays in the host's process."""


@pytest.fixture(scope="module")
def server(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    base_dir = tmp_path_factory.mktemp("children")
    write_tiny_files(base_dir)
    (base_dir / "custom_nodes" / "zz_switch").mkdir(parents=True)
    (base_dir / "custom_nodes" / "zz_switch" / "__init__.py").write_text(SWITCH)
    with start_server(host, base_dir, "--whitelist-custom-nodes", PACK_FOLDER, "zz_switch") as running:
        yield running


def find_child(server: HostServer) -> psutil.Process:
    """The process that trains."""
    family = psutil.Process(server.process.pid).children(recursive=True)
    children = [process for process in family if "child" in process.cmdline()]
    assert len(children) == 1, [process.cmdline() for process in family]
    return children[0]


def at_step(step: int, act: Callable[[], Any]) -> Callable[[str, Mapping[str, Any]], None]:
    """Act once, when so many steps are done."""
    done: list[int] = []

    def look(kind: str, data: Mapping[str, Any]) -> None:
        if kind == "lumina2_trainer.progress" and data["node"] == "train" and data["step"] >= step and not done:
            done.append(data["step"])
            act()

    return look


def last_checkpoint(server: HostServer, run: str) -> str:
    folders = (server.output_dir / "lumina2_trainer" / run / "checkpoints").iterdir()
    return max(path.name for path in folders)


def test_a_child_trains_and_its_result_goes_on_in_the_graph(server: HostServer) -> None:
    children: list[int] = []
    prompt = training_prompt(run_name="child", steps=60)
    outcome = server.run_prompt(prompt, on_message=at_step(1, lambda: children.append(find_child(server).pid)))
    assert outcome.kind == "execution_success", outcome.data
    assert children
    assert not psutil.pid_exists(children[0])
    (planned,) = outcome.of_kind("lumina2_trainer.planned")
    assert (planned["run"], planned["node"]) == ("child", "train")
    assert outcome.of_kind("lumina2_trainer.validation")[-1]["images"]
    assert (server.output_dir / "lumina2_trainer" / "child" / "final" / "adapter.safetensors").exists()


def test_a_child_that_is_killed_is_one_red_node(server: HostServer) -> None:
    prompt = training_prompt(run_name="killed", steps=2000)
    outcome = server.run_prompt(prompt, on_message=at_step(3, lambda: find_child(server).kill()))
    assert outcome.kind == "execution_error"
    assert re.match(
        r"the process that trained ended without a word .*queue the same job again", outcome.data["exception_message"]
    )
    assert outcome.data["node_id"] == "train"
    assert server.request("/system_stats")[0] == 200
    assert server.request("/lumina2_trainer/runs/killed")[1]["status"] == "failed"


def test_cancel_reaches_the_child_which_keeps_its_steps(server: HostServer) -> None:
    prompt = training_prompt(run_name="stopped", steps=2000)
    outcome = server.run_prompt(prompt, on_message=at_step(3, lambda: server.request("/interrupt", {})))
    assert outcome.kind == "execution_interrupted"
    first = last_checkpoint(server, "stopped")
    outcome = server.run_prompt(
        prompt, on_message=at_step(3, lambda: server.request("/lumina2_trainer/runs/stopped/stop", {}))
    )
    assert outcome.kind == "execution_interrupted"
    assert last_checkpoint(server, "stopped") > first


def test_what_is_wrong_is_shown_as_one_sentence(server: HostServer, tmp_path: Path) -> None:
    prompt = training_prompt(run_name="wrong", steps=4)
    prompt["other"] = {**prompt["prompts"], "inputs": {**prompt["prompts"]["inputs"], "prompts": "a cat"}}
    prompt["train"]["inputs"]["validation"] = ["other", 0]
    outcome = server.run_prompt(prompt)
    assert outcome.kind == "execution_error"
    assert "the validation prompt 'a cat' is not in the text cache" in outcome.data["exception_message"]


def test_a_child_ends_with_the_server_and_keeps_its_steps(server: HostServer) -> None:
    prompt = training_prompt(run_name="orphan", steps=100000)
    found: list[psutil.Process] = []

    def end_server() -> None:
        found.append(find_child(server))
        psutil.Process(server.process.pid).kill()

    with pytest.raises(Exception, match=r"."):  # the connection is gone
        server.run_prompt(prompt, on_message=at_step(3, end_server))
    assert psutil.wait_procs(found, timeout=60)[0], "the child outlived the server"
    assert last_checkpoint(server, "orphan")
