"""Training inside the real host: events, results, Cancel, resume, reuse, and drawing afterwards."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lumina2_trainer.trainer_core.adapters.lycoris_settings import LyCORISSettings
from lumina2_trainer.trainer_core.settings import describe_settings

from .prompts import generation_nodes, training_prompt
from .server import HostServer


def run_dir(server: HostServer, name: str) -> Path:
    return server.output_dir / "lumina2_trainer" / name


def count_steps(server: HostServer, name: str) -> int:
    """Steps in a run's log."""
    return len((run_dir(server, name) / "log.jsonl").read_bytes().splitlines())


def test_training_sends_events_and_leaves_a_finished_run(server: HostServer) -> None:
    outcome = server.run_prompt(training_prompt(run_name="events", steps=6))
    assert outcome.kind == "execution_success", outcome.data
    (planned,) = outcome.of_kind("lumina2_trainer.planned")
    assert (planned["run"], planned["node"], planned["total"]) == ("events", "train", 6)
    assert planned["predicted_seconds"] > 0
    progress = [data for data in outcome.of_kind("lumina2_trainer.progress") if data["run"] == "events"]
    assert progress
    assert {data["node"] for data in progress} == {"train"}
    assert all(data["total"] == 6 and data["loss"] > 0 for data in progress)
    validations = outcome.of_kind("lumina2_trainer.validation")
    assert [data["step"] for data in validations] == [2, 4, 6], "only progress is thinned out"
    pictures = validations[-1]["images"]
    status, _ = server.request(
        f"/view?filename={pictures[0]['filename']}&subfolder={pictures[0]['subfolder']}&type=output"
    )
    assert status == 200
    assert outcome.of_kind("lumina2_trainer.finished")[-1]["run"] == "events"
    assert (run_dir(server, "events") / "final" / "adapter.safetensors").exists()
    _, state = server.request("/lumina2_trainer/runs/events")
    assert (state["status"], state["step"], state["total"], len(state["losses"])) == ("finished", 6, 6, 6)
    assert (state["validation"]["step"], len(state["validation"]["images"])) == (6, 2)


def test_cancel_keeps_the_work_and_queueing_again_resumes(server: HostServer) -> None:
    prompt = training_prompt(run_name="cancelled", steps=200)
    steps_seen: list[int] = []
    steps_logged: list[int] = []

    def cancel(kind: str, data: Mapping[str, Any]) -> None:
        if kind == "lumina2_trainer.progress" and data["run"] == "cancelled":
            steps_seen.append(data["step"])
            if len(steps_seen) == 2:
                server.request("/interrupt", {})
                steps_logged.append(count_steps(server, "cancelled"))

    outcome = server.run_prompt(prompt, on_message=cancel)
    assert outcome.kind == "execution_interrupted"
    _, state = server.request("/lumina2_trainer/runs/cancelled")
    assert state["status"] == "stopped"
    assert state["step"] == count_steps(server, "cancelled") <= steps_logged[0] + 1, "the step in flight may end"
    checkpoints = sorted(path.name for path in (run_dir(server, "cancelled") / "checkpoints").iterdir())
    assert checkpoints[-1] == f"step-{state['step']:06d}"

    after = server.run_prompt(prompt, on_message=_stop_at_first_step(server, "cancelled"))
    first = next(d for d in after.of_kind("lumina2_trainer.progress") if d["run"] == "cancelled")
    assert first["step"] > state["step"]


def test_workflow_of_the_canvas_lies_in_the_run_folder(server: HostServer) -> None:
    workflow = {"nodes": [{"id": 1, "type": "Note", "title": "日本"}], "links": [], "version": 0.4}
    server.run_prompt(training_prompt(run_name="with_workflow", steps=1), workflow=workflow)
    assert json.loads((run_dir(server, "with_workflow") / "workflow.json").read_text("utf-8")) == workflow


def test_stop_route_stops_within_a_step_and_is_refused_for_a_run_at_rest(server: HostServer) -> None:
    outcome = server.run_prompt(
        training_prompt(run_name="asked", steps=200), on_message=_stop_at_first_step(server, "asked")
    )
    assert outcome.kind == "execution_interrupted"
    assert outcome.of_kind("lumina2_trainer.stopped") == [{"run": "asked", "node": "train"}]
    assert server.request("/lumina2_trainer/runs/asked/stop", {})[0] == 409


def test_save_and_validate_routes_act_at_the_next_step(server: HostServer) -> None:
    asked = []

    def ask(kind: str, data: Mapping[str, Any]) -> None:
        if kind == "lumina2_trainer.progress" and data["run"] == "asks" and not asked:
            asked.append(data["step"])
            assert server.request("/lumina2_trainer/runs/asks/save", {})[0] == 200
            assert server.request("/lumina2_trainer/runs/asks/validate", {})[0] == 200
        if kind == "lumina2_trainer.validation" and data["run"] == "asks":
            server.request("/lumina2_trainer/runs/asks/stop", {})

    prompt = training_prompt(run_name="asks", steps=500)
    prompt["prompts"]["inputs"]["every_num_steps"] = 0
    outcome = server.run_prompt(prompt, on_message=ask)
    assert outcome.of_kind("lumina2_trainer.checkpoint")[0]["step"] < 500
    assert outcome.of_kind("lumina2_trainer.validation")[0]["step"] < 500


def test_validate_route_is_refused_with_the_reason_where_there_are_no_prompts(server: HostServer) -> None:
    answers = []

    def ask(kind: str, data: Mapping[str, Any]) -> None:
        if kind == "lumina2_trainer.progress" and data["run"] == "bare" and not answers:
            answers.append(server.request("/lumina2_trainer/runs/bare/validate", {}))
            server.request("/lumina2_trainer/runs/bare/stop", {})

    prompt = training_prompt(run_name="bare", steps=500)
    del prompt["train"]["inputs"]["validation"]
    server.run_prompt(prompt, on_message=ask)
    status, answer = answers[0]
    assert status == 409
    assert "has no validation prompts" in answer["error"]


def test_ksampler_draws_with_the_adapter_after_training(server: HostServer) -> None:
    prompt = {**training_prompt(run_name="draws", steps=2), **generation_nodes()}
    outcome = server.run_prompt(prompt)
    assert outcome.kind == "execution_success", outcome.data
    assert list(server.output_dir.glob("after_training*.png"))
    assert "lora key not loaded" not in server.read_log()
    assert "NOT LOADED" not in server.read_log()


def lycoris_prompt(**widgets: Any) -> dict[str, Any]:
    """Training with a LyCORIS adapter, and a picture drawn with it."""
    prompt = {**training_prompt(run_name="lycoris", steps=2), **generation_nodes()}
    defaults = {field.name: field.default for field in describe_settings(LyCORISSettings)}
    prompt["kind"] = {"class_type": "Lumina2LyCORISSettings", "inputs": {**defaults, **widgets}}
    prompt["train"]["inputs"]["adapter_settings"] = ["kind", 0]
    return prompt


def test_lycoris_trains_on_the_canvas_or_says_what_to_install(server: HostServer) -> None:
    outcome = server.run_prompt(lycoris_prompt(algorithm="loha", overrides=".*attention.* rank=3"))
    command = [str(server.host.python), "-c", "import lycoris.modules.loha"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        assert 'run "pip install lycoris-lora"' in outcome.data["exception_message"]
        return
    assert outcome.kind == "execution_success", outcome.data
    assert "lora key not loaded" not in server.read_log()
    assert "NOT LOADED" not in server.read_log()


def test_lycoris_settings_that_contradict_are_one_sentence(server: HostServer) -> None:
    [error] = refusal_of(server, lycoris_prompt(algorithm="loha", factor=8), "kind")
    assert error["details"].startswith("factor is 8 but algorithm loha does not use it")


def test_lora_settings_run_in_prompts_that_do_not_know_the_newer_ones(server: HostServer) -> None:
    prompt = training_prompt(run_name="older", steps=1)
    widgets = {"targets": "attention", "target_pattern": "", "dropout": 0.1}
    prompt["kind"] = {"class_type": "Lumina2LoRASettings", "inputs": widgets}
    prompt["train"]["inputs"]["adapter_settings"] = ["kind", 0]
    outcome = server.run_prompt(prompt)
    assert outcome.kind == "execution_success", outcome.data


def test_outputs_serve_the_hosts_own_nodes(server: HostServer) -> None:
    _, nodes = server.request("/object_info")
    save = "SaveLoRA" if "SaveLoRA" in nodes else "SaveLoRANode"
    prompt = {
        **training_prompt(run_name="outputs", steps=1),
        "inference": {"class_type": "Lumina2Inference", "inputs": {"model": ["load", 0], "strength": 1.0}},
        "apply": {
            "class_type": "LoraModelLoader",
            "inputs": {"model": ["inference", 0], "lora": ["train", 1], "strength_model": 1.0, "bypass": False},
        },
        "unpatched": {"class_type": "ModelSamplingAuraFlow", "inputs": {"model": ["apply", 0], "shift": 6.0}},
        "save_lora": {"class_type": save, "inputs": {"lora": ["train", 1], "prefix": "loras/host_saved"}},
        "graph": {"class_type": "LossGraphNode", "inputs": {"loss": ["train", 2], "filename_prefix": "loss"}},
        "pictures": {"class_type": "PreviewImage", "inputs": {"images": ["train", 3]}},
        "adapter": {
            "class_type": "Lumina2SaveAdapter",
            "inputs": {"adapter": ["train", 0], "name": "tiny", "format": "both", "dtype": "bf16"},
        },
    }
    outcome = server.run_prompt(prompt)
    assert outcome.kind == "execution_success", outcome.data
    assert list((server.output_dir / "loras").glob("host_saved*.safetensors"))
    assert list((server.base_dir / "models" / "loras").glob("tiny*.safetensors"))


def test_full_training_feeds_inference_saving_and_the_next_training(server: HostServer) -> None:
    prompt = {**training_prompt(run_name="before_full", steps=1), **generation_nodes()}
    lora = prompt.pop("train")["inputs"]
    sockets = {name: lora[name] for name in ("model", "latents", "embeds", "validation")}
    shared = ("batch_size", "learning_rate", "seed", "caption_dropout", "gradient_checkpointing")
    widgets = {name: lora[name] for name in shared} | {"steps": 3, "optimizer": "adamw8bit"}
    save = {"model": ["full", 0], "name": "trained", "dtype": "bf16"}
    prompt["full"] = {"class_type": "Lumina2TrainFull", "inputs": {**sockets, **widgets, "run_name": "full"}}
    prompt["on_top"] = {"class_type": "Lumina2TrainLoRA", "inputs": {**lora, "model": ["full", 0], "run_name": "top"}}
    prompt["inference"]["inputs"] = {"model": ["full", 0], "strength": 1.0}
    prompt["graph"] = {"class_type": "LossGraphNode", "inputs": {"loss": ["full", 1], "filename_prefix": "full"}}
    prompt["pictures"] = {"class_type": "PreviewImage", "inputs": {"images": ["full", 2]}}
    for layout in ("all-in-one", "transformer", "diffusers"):
        prompt[layout] = {"class_type": "Lumina2SaveModel", "inputs": {**save, "layout": layout}}
    outcome = server.run_prompt(prompt)
    assert outcome.kind == "execution_success", outcome.data
    finished = {data["run"]: data for data in outcome.of_kind("lumina2_trainer.finished")}
    assert finished["full"]["model"] == "final/model.safetensors"
    assert finished["top"]["adapter"] == "final/adapter.safetensors"
    _, state = server.request("/lumina2_trainer/runs/full")
    assert (state["status"], state["step"], state["total"]) == ("finished", 3, 3)
    models = server.base_dir / "models"
    assert (models / "checkpoints" / "trained_00001.safetensors").is_file()
    assert (models / "diffusion_models" / "trained_00001.safetensors").is_file()
    assert (models / "diffusers" / "trained_00001" / "model_index.json").is_file()
    again = server.run_prompt(prompt)
    assert "full" in again.of_kind("execution_cached")[-1]["nodes"]


def test_validate_shows_pictures_with_and_without_adapter(server: HostServer) -> None:
    prompt = training_prompt(run_name="validated", steps=2)
    validate = {
        **prompt["prompts"]["inputs"],
        "strength": 1.0,
        "system_prompt": "from adapter",
        "custom_system_prompt": "",
        "model": ["load", 0],
    }
    validate.pop("every_num_steps")
    prompt["with"] = {"class_type": "Lumina2Validate", "inputs": {**validate, "adapter": ["train", 0]}}
    prompt["without"] = {"class_type": "Lumina2Validate", "inputs": {**validate, "system_prompt": "none"}}
    outcome = server.run_prompt(prompt)
    assert outcome.kind == "execution_success", outcome.data
    shown = {data["node"]: data["output"]["images"] for data in outcome.of_kind("executed") if data["node"] in prompt}
    assert len(shown["with"]) == len(shown["without"]) == 2


def test_mistake_is_one_sentence(server: HostServer) -> None:
    [error] = refusal_of(server, training_prompt(run_name="no/such/name"), "train")
    assert error["details"].startswith("run_name is 'no/such/name': use letters")


def test_a_name_to_save_by_is_checked_before_training(server: HostServer) -> None:
    prompt = training_prompt(run_name="unsaved")
    prompt["save"] = {
        "class_type": "Lumina2SaveAdapter",
        "inputs": {"adapter": ["train", 0], "name": "my cat/..", "format": "comfyui", "dtype": "bf16"},
    }
    del prompt["train"]["inputs"]["steps"]  # nothing is to be trained here
    [error] = refusal_of(server, prompt, "save")
    assert error["details"].startswith("name is 'my cat/..': use letters")


def refusal_of(server: HostServer, prompt: Mapping[str, Any], node: str) -> list[Any]:
    """What the host says of a node when the prompt is queued."""
    _, answer = server.request("/prompt", {"prompt": prompt})
    return answer["node_errors"][node]["errors"]


def _stop_at_first_step(server: HostServer, run: str):
    def stop(kind: str, data: Mapping[str, Any]) -> None:
        if kind == "lumina2_trainer.progress" and data["run"] == run:
            server.request(f"/lumina2_trainer/runs/{run}/stop", {})

    return stop
