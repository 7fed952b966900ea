"""What a host knows of the pack once it has started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lumina2_trainer.trainer_core.settings import describe_settings
from lumina2_trainer.trainer_core.workflow.nodes import NODE_STEPS

from .checkouts import PACK_DIR
from .server import PACK_FOLDER, HostServer

NODE_IDS = {
    "Lumina2Load",
    "Lumina2DatasetFolder",
    "Lumina2DatasetFromImages",
    "Lumina2CaptionTable",
    "Lumina2CacheLatents",
    "Lumina2CacheTextEmbeds",
    "Lumina2TrainLoRA",
    "Lumina2TrainFull",
    "Lumina2Validate",
    "Lumina2Compare",
    "Lumina2SaveAdapter",
    "Lumina2SaveModel",
    "Lumina2Inference",
    "Lumina2LoRASettings",
    "Lumina2LyCORISSettings",
    "Lumina2Optimizer",
    "Lumina2NoiseSchedule",
    "Lumina2ValidationPrompts",
    "Lumina2Checkpoints",
    "Lumina2Rollout",
    "Lumina2Tracking",
    "Lumina2HubUpload",
}
OUTPUTS = {
    "Lumina2Load": ["LUMINA2_MODEL"],
    "Lumina2DatasetFolder": ["LUMINA2_DATASET", "STRING", "IMAGE"],
    "Lumina2DatasetFromImages": ["LUMINA2_DATASET", "STRING", "IMAGE"],
    "Lumina2CaptionTable": ["LUMINA2_DATASET", "STRING"],
    "Lumina2CacheLatents": ["LUMINA2_LATENTS"],
    "Lumina2CacheTextEmbeds": ["LUMINA2_EMBEDS"],
    "Lumina2TrainLoRA": ["LUMINA2_ADAPTER", "LORA_MODEL", "LOSS_MAP", "IMAGE", "STRING"],
    "Lumina2TrainFull": ["LUMINA2_MODEL", "LOSS_MAP", "IMAGE", "STRING"],
    "Lumina2Validate": ["IMAGE", "STRING"],
    "Lumina2Compare": ["IMAGE", "IMAGE", "STRING"],
    "Lumina2SaveAdapter": ["STRING"],
    "Lumina2SaveModel": ["STRING"],
    "Lumina2Inference": ["MODEL", "CLIP", "VAE"],
}
LANGUAGES = ("en", "zh", "ja", "hi")


@pytest.fixture(scope="module")
def nodes(server: HostServer) -> dict:
    """The pack's part of /object_info."""
    _, info = server.request("/object_info")
    return {name: node for name, node in info.items() if name.startswith("Lumina2")}


def test_every_node_is_there_with_the_contracts_outputs(nodes: dict) -> None:
    assert set(nodes) == NODE_IDS
    assert {name: nodes[name]["output"] for name in OUTPUTS} == OUTPUTS


def test_every_input_and_output_has_a_tooltip_and_every_node_a_description(nodes: dict) -> None:
    for name, node in nodes.items():
        assert node["description"], name
        assert all(node["output_tooltips"]), name
        for inputs in (node["input"].get("required", {}), node["input"].get("optional", {})):
            for input_id, (_, options) in inputs.items():
                assert options["tooltip"], f"{name}.{input_id}"


def test_rarely_used_inputs_are_marked_as_advanced(nodes: dict) -> None:
    for name, step in NODE_STEPS.items():
        inputs = {**nodes[name]["input"].get("required", {}), **nodes[name]["input"].get("optional", {})}
        marked = {field.name for field in describe_settings(step.settings) if field.is_advanced}
        assert {field for field, (_, options) in inputs.items() if options.get("advanced")} == marked
    assert "crop_style" in marked_of(nodes["Lumina2DatasetFolder"])


def marked_of(node: dict) -> set[str]:
    return {field for field, (_, options) in node["input"]["optional"].items() if options.get("advanced")}


def test_seeds_stay_as_they_are_after_queueing(nodes: dict) -> None:
    assert nodes["Lumina2TrainLoRA"]["input"]["required"]["seed"][1]["control_after_generate"] is False


def test_tiny_model_is_offered_beside_the_demo(nodes: dict) -> None:
    options = nodes["Lumina2Load"]["input"]["required"]["base"][1]["options"]
    assert options[0] == "demo"
    assert "tiny.safetensors" in options


def test_examples_are_listed_with_thumbnails(server: HostServer) -> None:
    stems = sorted(path.stem for path in (PACK_DIR / "example_workflows").glob("*.json"))
    _, listed = server.request("/api/workflow_templates")
    assert sorted(listed[PACK_FOLDER]) == stems
    for stem in stems:
        status, workflow = server.request(f"/api/workflow_templates/{PACK_FOLDER}/{stem}.json")
        assert (status, bool(workflow["nodes"])) == (200, True)
        assert server.request(f"/api/workflow_templates/{PACK_FOLDER}/{stem}.jpg")[0] == 200


def test_help_page_of_every_node_is_served(server: HostServer, nodes: dict) -> None:
    for name in nodes:
        status, text = server.request(f"/extensions/{PACK_FOLDER}/docs/{name}.md")
        assert status == 200, name
        assert text.startswith("# "), name


def test_locales_name_every_input_and_output(server: HostServer, nodes: dict) -> None:
    _, translations = server.request("/api/i18n")
    for language in LANGUAGES:
        known = {k: v for k, v in translations[language]["nodeDefs"].items() if k.startswith("Lumina2")}
        assert set(known) == set(nodes)
        for name, node in nodes.items():
            inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
            assert set(known[name]["inputs"]) == set(inputs), f"{language} {name}"
            assert set(known[name]["outputs"]) == {str(i) for i in range(len(node["output"]))}, f"{language} {name}"
            texts = [known[name]["description"], *(v["tooltip"] for v in known[name]["inputs"].values())]
            assert all(texts), f"{language} {name}"
            # Errors, logs and help pages call inputs by their ids, so a label says that too.
            assert [i for i, v in known[name]["inputs"].items() if i not in v["name"]] == [], f"{language} {name}"


def test_english_locale_says_what_the_nodes_say(nodes: dict) -> None:
    english = json.loads((PACK_DIR / "locales" / "en" / "nodeDefs.json").read_text("utf-8"))
    for name, node in nodes.items():
        assert english[name]["display_name"] == node["display_name"]
        assert english[name]["description"] == node["description"]
        for inputs in (node["input"].get("required", {}), node["input"].get("optional", {})):
            for input_id, (_, options) in inputs.items():
                assert english[name]["inputs"][input_id]["tooltip"] == options["tooltip"], f"{name}.{input_id}"


@pytest.mark.parametrize("name", ["..", "%2e%2e%2fsecret", "a%00b", "cache", "-x", "a" * 200])
def test_run_routes_refuse_what_is_no_run_name(server: HostServer, name: str) -> None:
    assert server.request(f"/lumina2_trainer/runs/{name}")[0] in (400, 404)
    assert server.request(f"/lumina2_trainer/runs/{name}/stop", {})[0] in (400, 404, 405)


def test_actions_need_json(server: HostServer) -> None:
    status, _ = server.request("/lumina2_trainer/runs/any/stop", method="POST", headers={"Content-Type": "text/plain"})
    assert status == 415


def test_unknown_run_is_not_found(server: HostServer) -> None:
    assert server.request("/lumina2_trainer/runs/never_trained")[0] == 404


def test_dataset_outside_of_the_roots_is_refused_before_the_prompt_runs(server: HostServer, tmp_path: Path) -> None:
    inputs = {"folder": str(tmp_path), "resolution": 64, "aspect": "buckets", "caption_source": "textfile"}
    more = {"caption": "", "trigger_words": "", "repeats": 1, "include_subfolders": True}
    prompt = {"1": {"class_type": "Lumina2DatasetFolder", "inputs": {**inputs, **more}}}
    status, answer = server.request("/prompt", {"prompt": prompt})
    assert status == 400
    assert "lies outside of the allowed folders" in json.dumps(answer["node_errors"])


def test_headless_runner_knows_the_same_sockets_widgets_and_outputs(nodes: dict) -> None:
    assert set(NODE_STEPS) == NODE_IDS - {"Lumina2Inference"}
    for name, step in NODE_STEPS.items():
        inputs = {**nodes[name]["input"].get("required", {}), **nodes[name]["input"].get("optional", {})}
        sockets = [input_id for input_id, spec in inputs.items() if str(spec[0]).startswith("LUMINA2_")]
        pictures = [input_id for input_id, spec in inputs.items() if spec[0] == "IMAGE"]
        widgets = [input_id for input_id in inputs if input_id not in [*sockets, *pictures]]
        assert set(sockets) == set(step.sockets), name
        assert widgets == [field.name for field in describe_settings(step.settings)], name
        assert len(nodes[name]["output"]) == len(step.outputs), name
