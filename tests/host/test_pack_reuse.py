"""What is done again and what is not: finished runs, caches, and files that were deleted."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from .prompts import generation_nodes, training_prompt, write_discs
from .server import HostServer
from .test_pack_training import run_dir


def test_finished_job_returns_at_once_in_a_changed_graph(server: HostServer) -> None:
    server.run_prompt(training_prompt(run_name="again"))
    changed = training_prompt(run_name="again", gradient_checkpointing=True)
    outcome = server.run_prompt(changed)
    assert outcome.kind == "execution_success"
    assert outcome.of_kind("lumina2_trainer.finished")[-1]["reused"] is True
    assert not [data for data in outcome.of_kind("lumina2_trainer.progress") if data["run"] == "again"]


def test_same_prompt_again_runs_nothing(server: HostServer) -> None:
    server.run_prompt(training_prompt(run_name="cached"))
    outcome = server.run_prompt(training_prompt(run_name="cached"))
    assert outcome.kind == "execution_success"
    assert "train" in outcome.of_kind("execution_cached")[-1]["nodes"]


def test_deleted_run_folder_is_trained_again(server: HostServer) -> None:
    server.run_prompt(training_prompt(run_name="deleted"))
    shutil.rmtree(run_dir(server, "deleted"))
    outcome = server.run_prompt(training_prompt(run_name="deleted"))
    assert outcome.kind == "execution_success"
    assert (run_dir(server, "deleted") / "final" / "adapter.safetensors").exists()


def test_deleting_one_run_leaves_what_hangs_on_another_alone(server: HostServer) -> None:
    def prompt(run_name: str) -> dict[str, Any]:
        save = {"adapter": ["train", 0], "name": "alone", "format": "comfyui", "dtype": "bf16"}
        return {
            **training_prompt(run_name=run_name, steps=1, seed=7),
            **generation_nodes(),
            "adapter": {"class_type": "Lumina2SaveAdapter", "inputs": save},
        }

    server.run_prompt(prompt("earlier"))
    server.run_prompt(prompt("later"))
    shutil.rmtree(run_dir(server, "earlier"))
    outcome = server.run_prompt(prompt("later"))
    assert outcome.kind == "execution_success"
    assert {"latents", "embeds", "train", "adapter", "inference", "sampler"} <= set(
        outcome.of_kind("execution_cached")[-1]["nodes"]
    )


def delete_first_entry(cache_dir: Path, folder: str) -> None:
    """Delete the entry of the first picture in the cache written last."""
    index_path = max((cache_dir / "indexes").glob(f"{folder}-*.json"), key=lambda path: path.stat().st_mtime_ns)
    samples = json.dumps(json.loads(index_path.read_text("utf-8"))["samples"])
    match = re.search(r"[0-9a-f]{64}\.safetensors", samples)
    assert match, index_path
    (cache_dir / folder / match[0]).unlink()


@pytest.mark.parametrize(
    ("folder", "node", "remedy"),
    [
        ("latents", "latents", "queue Cache Latents again"),
        ("text_embeds", "embeds", "queue Cache Text Embeds again"),
    ],
)
def test_queueing_again_mends_a_cache_that_lost_an_entry(
    server: HostServer, folder: str, node: str, remedy: str
) -> None:
    own_folder = f"mended_{folder}"
    write_discs(server.input_dir / own_folder, captions=f"a {{colour}} disc, {folder}", background="gray")

    def prompt(steps: int) -> dict[str, Any]:
        prompt = training_prompt(run_name=own_folder, steps=steps)
        prompt["dataset"]["inputs"]["folder"] = own_folder
        return prompt

    server.run_prompt(prompt(steps=1))
    delete_first_entry(server.output_dir / "lumina2_trainer" / "cache", folder)
    again = prompt(steps=2)
    broken = server.run_prompt(again)
    assert broken.kind == "execution_error"
    assert remedy in broken.data["exception_message"]
    outcome = server.run_prompt(again)
    assert outcome.kind == "execution_success", outcome.data
    ran = {data["node"] for data in outcome.of_kind("executing")}
    assert ran & {"latents", "embeds"} == {node}


def test_cache_nodes_report_count_and_rate(server: HostServer) -> None:
    prompt = training_prompt(run_name="caches")
    prompt["dataset"]["inputs"]["trigger_words"] = "newstyle"
    outcome = server.run_prompt(prompt)
    counts = [data for data in outcome.of_kind("lumina2_trainer.progress") if data["run"] == "cache_text_embeds"]
    assert counts[-1]["step"] == counts[-1]["total"] > 0
    assert counts[-1]["node"] == "embeds"


def test_runs_are_forecast_before_their_pictures_are_encoded(server: HostServer) -> None:
    write_discs(server.input_dir / "forecast", captions="a {colour} disc, forecast", background="pink")
    prompt = training_prompt(run_name="forecast", steps=3)
    prompt["dataset"]["inputs"]["folder"] = "forecast"
    prompt["train_too"] = {**prompt["train"], "inputs": {**prompt["train"]["inputs"], "run_name": "too", "steps": 5}}
    states = []

    def ask(kind: str, data: Mapping[str, Any]) -> None:
        """As a page does that opens now."""
        if kind == "lumina2_trainer.forecast":
            states.append(server.request(f"/lumina2_trainer/runs/{data['run']}?newest=1&node={data['node']}")[1])

    outcome = server.run_prompt(prompt, on_message=ask)
    assert outcome.kind == "execution_success", outcome.data
    assert [(state["status"], state["total"]) for state in states] == [("waiting", 3), ("waiting", 5)]
    after = server.request("/lumina2_trainer/runs/forecast?newest=1&node=train")[1]
    assert (after["status"], after["step"]) == ("finished", 3)
    forecasts = outcome.of_kind("lumina2_trainer.forecast")
    assert sorted((data["run"], data["node"], data["total"]) for data in forecasts) == [
        ("forecast", "train", 3),
        ("too", "train_too", 5),
    ]
    planned = {data["node"]: data for data in outcome.of_kind("lumina2_trainer.planned")}
    for data in forecasts:
        assert data["message"] == ""
        assert data["memory_plan"] == planned[data["node"]]["memory_plan"]
        assert data["predicted_seconds"] > 0
    kinds = [kind for kind, _ in outcome.messages]
    encoded = next(
        i for i, (_, data) in enumerate(outcome.messages) if data.get("run") == "cache_latents" and data["step"]
    )
    assert kinds.index("lumina2_trainer.forecast") < encoded
