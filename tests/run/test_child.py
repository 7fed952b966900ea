"""A node's work in a process of its own: what it tells, what it hears, and what is left when it dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lumina2_trainer.trainer_core.errors import CacheDamagedError, StopTraining, TrainerError
from lumina2_trainer.trainer_core.events import Event
from lumina2_trainer.trainer_core.run.child import COMMAND, run_in_child
from lumina2_trainer.trainer_core.socket_json import from_json, to_json
from safetensors.torch import load_file

from ..training_setup import PROMPTS, TRAIN, Setup

pytestmark = pytest.mark.process


def start(script: str, **options: Any) -> Any:
    """Run a small program in place of the trainer."""
    program = "import json, os, sys, time\ntask = json.loads(sys.stdin.readline())\n" + script
    defaults = {"emit": lambda event: None, "should_stop": lambda: False, "take_requests": lambda run: frozenset()}
    return run_in_child({"number": 4}, command=(sys.executable, "-c", program), **{**defaults, **options})


def test_the_task_goes_in_and_the_result_comes_back() -> None:
    assert start("print(json.dumps({'result': task['number'] + 1}))") == 5


def test_events_come_as_they_are_sent() -> None:
    events: list[Event] = []
    script = """
for step in (1, 2):
    print(json.dumps({"event": {"kind": "progress", "run": "cat", "data": {"step": step}}}))
print(json.dumps({"result": None}))
"""
    start(script, emit=events.append)
    assert [(event.run, event.data["step"]) for event in events] == [("cat", 1), ("cat", 2)]


def test_a_wish_to_stop_and_requests_reach_the_child() -> None:
    requests = iter([frozenset({"save"})])
    script = """
print(json.dumps({"event": {"kind": "progress", "run": "cat", "data": {}}}), flush=True)
words = sorted(sys.stdin.readline().strip() for _ in range(2))
print(json.dumps({"stopped": True} if words == ["save", "stop"] else {"result": words}))
"""
    with pytest.raises(StopTraining):
        start(script, should_stop=lambda: True, take_requests=lambda run: next(requests, frozenset()))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"kind": "TrainerError", "message": "steps is 0"}, TrainerError),
        ({"kind": "CacheDamagedError", "message": "gone", "cache": "latents"}, CacheDamagedError),
        ({"kind": "ModuleNotFoundError", "message": "No module named 'peft'", "name": "peft"}, ModuleNotFoundError),
    ],
)
def test_errors_are_raised_as_they_were_in_the_child(error: dict[str, str], expected: type[Exception]) -> None:
    with pytest.raises(expected, match=error["message"]):
        start(f"print(json.dumps({{'error': {error!r}}}))")


def test_a_child_that_dies_is_one_sentence_with_the_end_of_its_log() -> None:
    script = "print('the GPU is lost', file=sys.stderr, flush=True); os.abort()"
    with pytest.raises(TrainerError, match=r"ended without a word .*queue the same job again") as caught:
        start(script)
    assert str(caught.value).endswith("the GPU is lost")


def test_the_hosts_allocator_is_not_the_childs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:cudaMallocAsync,max_split_size_mb:64")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "backend:cudaMallocAsync")
    names = "['PYTORCH_CUDA_ALLOC_CONF', 'PYTORCH_ALLOC_CONF']"
    answer = start(f"print(json.dumps({{'result': [os.environ.get(name) for name in {names}]}}))")
    assert answer == ["max_split_size_mb:64", None]


def task_of(setup: Setup, **sockets: Any) -> dict[str, Any]:
    """What a Train node hands over."""
    context = {"output_dir": setup.context.output_dir, "loras_dir": setup.context.loras_dir, "device": "cpu"}
    return {
        "node": "Lumina2TrainLoRA",
        "settings": to_json(TRAIN),
        "sockets": to_json({"model": setup.model, "latents": setup.latents, "embeds": setup.embeds, **sockets}),
        "context": to_json({**context, "roots": setup.context.roots, "model_dirs": setup.context.model_dirs}),
    }


def run(setup: Setup, events: list[Event] | None = None, should_stop: Any = lambda: False, **sockets: Any) -> Any:
    """Train in a child."""
    emit = (lambda event: None) if events is None else events.append
    task = task_of(setup, **sockets)
    return from_json(run_in_child(task, emit=emit, should_stop=should_stop, take_requests=lambda run: frozenset()))


def test_a_child_trains_what_this_process_does_and_goes_on_where_it_was_stopped(fresh: Setup, tmp_path: Path) -> None:
    validation = replace(PROMPTS, every_num_steps=3)
    whole = fresh.moved_to(tmp_path / "whole").train(validation=validation)
    events: list[Event] = []

    def after_two_steps() -> bool:
        return any(event.kind == "progress" and event.data["step"] >= 2 for event in events)

    with pytest.raises(StopTraining):
        run(fresh, events, after_two_steps, validation=validation)
    assert list((fresh.context.runs_dir / "run" / "checkpoints").iterdir())
    result = run(fresh, events, validation=validation)
    assert type(result) is type(whole)
    assert result.losses == whole.losses
    assert {"planned", "progress", "validation", "finished"} <= {event.kind for event in events}
    ours, theirs = load_file(result.adapter.path), load_file(whole.adapter.path)
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_what_is_wrong_is_said_as_in_this_process(fresh: Setup) -> None:
    with pytest.raises(TrainerError, match="the validation prompt 'a cat' is not in the text cache: connect"):
        run(fresh, validation=replace(PROMPTS, prompts="a cat"))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_child_whose_parent_is_killed_keeps_its_steps_and_ends(fresh: Setup) -> None:
    task = task_of(fresh)
    task["settings"] = to_json(replace(TRAIN, steps=100000))
    child = subprocess.Popen(list(COMMAND), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ})
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(json.dumps(task).encode() + b"\n")
    child.stdin.flush()
    while json.loads(child.stdout.readline()).get("event", {}).get("kind") != "progress":
        pass
    child.stdin.close()  # all that the system leaves of a parent
    deadline = time.monotonic() + 60
    while child.poll() is None and time.monotonic() < deadline:
        child.stdout.readline()
    assert child.wait(timeout=60) == 130
    assert list((fresh.context.runs_dir / "run" / "checkpoints").iterdir())
