"""The workflow file of an import: what the canvas needs, and that it says what was translated."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from lumina2_trainer.trainer_core.cli.main import main
from lumina2_trainer.trainer_core.importers.simpletuner.command import read_translation
from lumina2_trainer.trainer_core.settings import describe_settings
from lumina2_trainer.trainer_core.workflow.file import read_workflow
from lumina2_trainer.trainer_core.workflow.nodes import NODE_STEPS

from .quickstart_files import LOKR, PICTURES, QUICKSTART, TEXT_EMBEDS, minimal, write_files

MORE_PICTURES = {
    "id": "more",
    "instance_data_dir": "more",
    "cache_dir_vae": "cache/more",
    "caption_strategy": "filename",
}
CASES: dict[str, dict[str, Any]] = {
    "quickstart": {},
    "minimal": {"config": minimal()},
    "lycoris": {"config": {**QUICKSTART, "lora_type": "lycoris"}, "lycoris": LOKR},
    "full": {"config": {**QUICKSTART, "model_type": "full"}},
    "rollout": {
        "config": minimal(scheduled_sampling_max_step_offset=8, scheduled_sampling_ramp_steps=100),
    },
    "three_folders": {"backends": [PICTURES, TEXT_EMBEDS, MORE_PICTURES, {**MORE_PICTURES, "id": "third"}]},
}


@pytest.fixture(params=CASES)
def imported(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """The configuration, and the workflow that the command makes of it."""
    config = write_files(tmp_path / "simpletuner", **CASES[request.param])
    workflow = tmp_path / "made" / "workflow.json"
    assert main(["import-simpletuner", str(config), "--output", str(workflow)]) == 0
    return config, workflow


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def test_reading_the_file_gives_the_translated_settings(imported: tuple[Path, Path]) -> None:
    config, path = imported
    translation = read_translation(config)
    nodes = read_workflow(path).nodes
    built = [NODE_STEPS[node.type].settings(**node.values) for node in nodes]
    for settings in (*translation.settings.values(), *translation.datasets):
        assert settings in built
    assert len(built) == len(translation.settings) + len(translation.datasets)


def test_every_widget_has_its_value(imported: tuple[Path, Path]) -> None:
    for node in read_json(imported[1])["nodes"]:
        if node["type"] in NODE_STEPS:
            fields = describe_settings(NODE_STEPS[node["type"]].settings)
            assert [type(value) for value in node["widgets_values"]] == [type(field.default) for field in fields]


def test_links_agree_with_the_sockets_they_join(imported: tuple[Path, Path]) -> None:
    content = read_json(imported[1])
    nodes = {node["id"]: node for node in content["nodes"]}
    assert content["last_node_id"] == max(nodes)
    for number, source, slot, target, socket, kind in content["links"]:
        output, taken = nodes[source]["outputs"][slot], nodes[target]["inputs"][socket]
        assert number in output["links"]
        assert (taken["link"], taken["type"], output["type"]) == (number, kind, kind)
    joined = [link for node in nodes.values() for slot in node["outputs"] for link in slot["links"]]
    assert sorted(joined) == [link[0] for link in content["links"]]


def test_sockets_are_those_of_the_nodes(imported: tuple[Path, Path]) -> None:
    for node in read_json(imported[1])["nodes"]:
        if node["type"] in NODE_STEPS:
            step = NODE_STEPS[node["type"]]
            assert [socket["name"] for socket in node["inputs"]] == list(step.sockets)
            assert len(node["outputs"]) == len(step.outputs)


def test_required_sockets_are_linked_and_datasets_are_a_chain(imported: tuple[Path, Path]) -> None:
    workflow = read_workflow(imported[1])
    folders = [node for node in workflow.nodes if node.type == "Lumina2DatasetFolder"]
    for earlier, later in itertools.pairwise(folders):
        assert later.links["dataset"].node == earlier.id
    for node in workflow.nodes:
        if node.type in ("Lumina2CacheLatents", "Lumina2CacheTextEmbeds"):
            assert node.links["dataset"].node == folders[-1].id
        if node.type in ("Lumina2TrainLoRA", "Lumina2TrainFull"):
            present = {other.type for other in workflow.nodes}
            settings = {
                "Lumina2Optimizer": "optimizer_settings",
                "Lumina2LoRASettings": "adapter_settings",
                "Lumina2LyCORISSettings": "adapter_settings",
                "Lumina2ValidationPrompts": "validation",
                "Lumina2Rollout": "rollout",
                "Lumina2Tracking": "tracking",
                "Lumina2HubUpload": "hub",
            }
            wanted = {"model", "latents", "embeds", "noise_schedule", "checkpoints"}
            assert set(node.links) == wanted | {settings[name] for name in present & set(settings)}


def test_nodes_lie_apart_and_within_their_groups(imported: tuple[Path, Path]) -> None:
    content = read_json(imported[1])
    boxes = [(*node["pos"], *node["size"]) for node in content["nodes"]]
    for (x, y, width, height), (u, v, w, h) in itertools.combinations(boxes, 2):
        assert x + width <= u or u + w <= x or y + height <= v or v + h <= y
    for x, y, width, height in boxes[1:]:
        holding = [
            group
            for left, top, w, h in [group["bounding"] for group in content["groups"]]
            if left <= x and top <= y and x + width <= left + w and y + height <= top + h
            for group in [(left, top)]
        ]
        assert len(holding) == 1


def test_note_names_what_is_not_used(tmp_path: Path) -> None:
    config = write_files(tmp_path, minimal(lora_rnak=8, snr_gamma=5))
    assert main(["import-simpletuner", str(config), "-o", str(tmp_path / "w.json")]) == 0
    (note,) = [node for node in read_json(tmp_path / "w.json")["nodes"] if node["type"] == "MarkdownNote"]
    (text,) = note["widgets_values"]
    assert "* `lora_rnak` 8: not known" in text
    assert "* `snr_gamma` 5: flow matching does not use it" in text


def test_note_names_what_needs_a_look(tmp_path: Path) -> None:
    config = write_files(tmp_path, minimal(user_prompt_library="my.json", init_lora="old.safetensors"))
    assert main(["import-simpletuner", str(config), "-o", str(tmp_path / "w.json")]) == 0
    (note,) = [node for node in read_json(tmp_path / "w.json")["nodes"] if node["type"] == "MarkdownNote"]
    (text,) = note["widgets_values"]
    assert "* **Validation Prompts: prompt_library** `my.json`: put the file into ComfyUI's input folder" in text
    assert "* **LoRA Settings: start_from** `old.safetensors`: put the file into models/loras" in text


@pytest.mark.parametrize("name", ["config.json", "multidatabackend.json", "notes.txt"])
def test_only_a_workflow_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    config = write_files(tmp_path, minimal())
    (tmp_path / "notes.txt").write_text("mine")
    content = (tmp_path / name).read_bytes()
    assert main(["import-simpletuner", str(config), "-o", str(tmp_path / name)]) == 1
    assert "exists and is no workflow: choose another --output" in capsys.readouterr().err
    assert (tmp_path / name).read_bytes() == content
    for _ in range(2):
        assert main(["import-simpletuner", str(config), "-o", str(tmp_path / "w.json")]) == 0


def test_command_prints_every_key_and_takes_the_second_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_files(tmp_path / "a", {**QUICKSTART, "data_backend_config": "elsewhere.json"})
    backends = write_files(tmp_path / "b").parent / "multidatabackend.json"
    assert main(["import-simpletuner", str(config), "-o", str(tmp_path / "w.json")]) == 1
    assert "data_backend_config is 'elsewhere.json', which was not found" in capsys.readouterr().err
    assert main(["import-simpletuner", str(config), str(backends), "--output", str(tmp_path / "w.json")]) == 0
    out = capsys.readouterr().out
    assert "Train LoRA: rank = 16" in out
    assert all(key in out for key in (*QUICKSTART, *PICTURES, *TEXT_EMBEDS))
