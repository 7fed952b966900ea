"""Training inside the real host: events, results, Cancel, resume, reuse, and drawing afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .prompts import generation_nodes, training_prompt
from .server import HostServer


def run_dir(server: HostServer, name: str):
    return server.output_dir / "lumina2_trainer" / name


def test_training_sends_events_and_leaves_a_finished_run(server: HostServer) -> None:
    outcome = server.run_prompt(training_prompt(run_name="events", steps=6))
    assert outcome.kind == "execution_success", outcome.data
    progress = [data for data in outcome.of_kind("lumina2_trainer.progress") if data["run"] == "events"]
    assert progress
    assert {data["node"] for data in progress} == {"train"}
    assert all(data["total"] == 6 and data["loss"] > 0 for data in progress)
    pictures = outcome.of_kind("lumina2_trainer.validation")[-1]["images"]
    status, _ = server.request(
        f"/view?filename={pictures[0]['filename']}&subfolder={pictures[0]['subfolder']}&type=output"
    )
    assert status == 200
    assert outcome.of_kind("lumina2_trainer.finished")[-1]["run"] == "events"
    assert (run_dir(server, "events") / "final" / "adapter.safetensors").exists()
    _, state = server.request("/lumina2_trainer/runs/events")
    assert (state["status"], state["step"], state["total"], len(state["losses"])) == ("finished", 6, 6, 6)
    assert state["validation"]["images"] == pictures


def test_cancel_keeps_the_work_and_queueing_again_resumes(server: HostServer) -> None:
    prompt = training_prompt(run_name="cancelled", steps=200)
    steps_seen: list[int] = []

    def cancel(kind: str, data: Mapping[str, Any]) -> None:
        if kind == "lumina2_trainer.progress" and data["run"] == "cancelled":
            steps_seen.append(data["step"])
            if len(steps_seen) == 2:
                server.request("/interrupt", {})

    outcome = server.run_prompt(prompt, on_message=cancel)
    assert outcome.kind == "execution_interrupted"
    _, state = server.request("/lumina2_trainer/runs/cancelled")
    assert state["status"] == "stopped"
    assert state["step"] < 200
    checkpoints = sorted(path.name for path in (run_dir(server, "cancelled") / "checkpoints").iterdir())
    assert checkpoints[-1] == f"step-{state['step']:06d}"

    after = server.run_prompt(prompt, on_message=_stop_at_first_step(server, "cancelled"))
    first = next(d for d in after.of_kind("lumina2_trainer.progress") if d["run"] == "cancelled")
    assert first["step"] > state["step"]


def test_stop_route_stops_within_a_step_and_is_refused_for_a_run_at_rest(server: HostServer) -> None:
    outcome = server.run_prompt(
        training_prompt(run_name="asked", steps=200), on_message=_stop_at_first_step(server, "asked")
    )
    assert outcome.kind == "execution_interrupted"
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
    import shutil

    server.run_prompt(training_prompt(run_name="deleted"))
    shutil.rmtree(run_dir(server, "deleted"))
    outcome = server.run_prompt(training_prompt(run_name="deleted"))
    assert outcome.kind == "execution_success"
    assert (run_dir(server, "deleted") / "final" / "adapter.safetensors").exists()


def test_ksampler_draws_with_the_adapter_after_training(server: HostServer) -> None:
    prompt = {**training_prompt(run_name="draws", steps=2), **generation_nodes()}
    outcome = server.run_prompt(prompt)
    assert outcome.kind == "execution_success", outcome.data
    assert list(server.output_dir.glob("after_training*.png"))
    assert "lora key not loaded" not in server.read_log()
    assert "NOT LOADED" not in server.read_log()


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
    outcome = server.run_prompt(training_prompt(run_name="no/such/name"))
    assert outcome.kind == "execution_error"
    assert outcome.data["exception_message"].strip().startswith("run_name is 'no/such/name': use letters")
    assert outcome.data["node_id"] == "train"


def test_cache_nodes_report_count_and_rate(server: HostServer) -> None:
    prompt = training_prompt(run_name="caches")
    prompt["dataset"]["inputs"]["trigger_words"] = "newstyle"
    outcome = server.run_prompt(prompt)
    counts = [data for data in outcome.of_kind("lumina2_trainer.progress") if data["run"] == "cache_text_embeds"]
    assert counts[-1]["step"] == counts[-1]["total"] > 0
    assert counts[-1]["node"] == "embeds"


def _stop_at_first_step(server: HostServer, run: str):
    def stop(kind: str, data: Mapping[str, Any]) -> None:
        if kind == "lumina2_trainer.progress" and data["run"] == run:
            server.request(f"/lumina2_trainer/runs/{run}/stop", {})

    return stop
