"""Reading workflow files of both formats, changing values, and running them without ComfyUI."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lumina2_trainer.trainer_core.cli.main import main
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.settings import describe_settings
from lumina2_trainer.trainer_core.workflow.file import Link, read_workflow, with_values
from lumina2_trainer.trainer_core.workflow.nodes import NODE_STEPS
from lumina2_trainer.trainer_core.workflow.runner import run_workflow

from ..training_setup import Setup


def api_workflow() -> dict[str, Any]:
    """Load, read, cache, train and save, as Export (API) writes it, with a node of ComfyUI's beside."""
    return {
        "1": {"class_type": "Lumina2Load", "inputs": {"base": "tiny.safetensors", "precision": "fp32"}},
        "2": {"class_type": "Lumina2DatasetFolder", "inputs": {"folder": "pictures", "resolution": 64}},
        "3": {"class_type": "Lumina2CacheLatents", "inputs": {"model": ["1", 0], "dataset": ["2", 0]}},
        "4": {"class_type": "Lumina2CacheTextEmbeds", "inputs": {"model": ["1", 0], "dataset": ["2", 0]}},
        "5": {
            "class_type": "Lumina2TrainLoRA",
            "inputs": {
                "model": ["1", 0],
                "latents": ["3", 0],
                "embeds": ["4", 0],
                "steps": 3,
                "rank": 2,
                "run_name": "from_file",
            },
        },
        "6": {"class_type": "Lumina2SaveAdapter", "inputs": {"adapter": ["5", 0], "name": "saved", "format": "both"}},
        "7": {"class_type": "PreviewImage", "inputs": {"images": ["5", 3]}},
    }


def canvas_workflow() -> dict[str, Any]:
    """The same as Save writes it: values by position, a reroute, a muted node and a note."""
    api = api_workflow()
    nodes, links = [], []

    def link(source: int, slot: int, target: int, target_slot: int) -> int:
        links.append([len(links) + 1, source, slot, target, target_slot, "*"])
        return len(links)

    for node_id, node in api.items():
        step = NODE_STEPS.get(node["class_type"])
        values = [node["inputs"].get(f.name, f.default) for f in describe_settings(step.settings)] if step else []
        sockets = []
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                sockets.append(
                    {"name": name, "type": "*", "link": link(int(value[0]), value[1], int(node_id), len(sockets))}
                )
        nodes.append(
            {"id": int(node_id), "type": node["class_type"], "inputs": sockets, "widgets_values": values, "mode": 0}
        )
    nodes.append({"id": 8, "type": "Reroute", "inputs": [{"name": "", "link": link(1, 0, 8, 0)}], "mode": 0})
    caching = next(node for node in nodes if node["id"] == 3)
    caching["inputs"][0]["link"] = link(8, 0, 3, 0)
    nodes.append(
        {"id": 9, "type": "Lumina2SaveAdapter", "mode": 2, "inputs": [], "widgets_values": ["x", "comfyui", "bf16"]}
    )
    nodes.append({"id": 10, "type": "MarkdownNote", "mode": 0, "widgets_values": ["# Notes"]})
    return {"nodes": nodes, "links": links, "version": 0.4}


def write(content: Any, folder: Path) -> Path:
    path = folder / "workflow.json"
    path.write_text(json.dumps(content))
    return path


def test_both_formats_mean_the_same(tmp_path: Path) -> None:
    api = read_workflow(write(api_workflow(), tmp_path))
    canvas = read_workflow(write(canvas_workflow(), tmp_path))
    assert [node.id for node in canvas.nodes] == [node.id for node in api.nodes]
    for theirs, ours in zip(canvas.nodes, api.nodes, strict=True):
        assert theirs.type == ours.type
        assert theirs.links == ours.links
        assert ours.values.items() <= theirs.values.items()
    assert api.left_out == ("7 (PreviewImage)",)
    assert canvas.left_out == ("7 (PreviewImage)", "10 (MarkdownNote)")


@pytest.mark.parametrize("make", [api_workflow, canvas_workflow])
def test_workflow_runs_to_a_saved_adapter(fresh: Setup, tmp_path: Path, make: Any) -> None:
    context = replace(fresh.context, loras_dir=tmp_path / "loras", workflow="{}")
    results = run_workflow(read_workflow(write(make(), tmp_path)), context)
    assert (context.loras_dir / "saved_00001.safetensors").exists()
    assert (context.runs_dir / "diffusers" / "saved_00001.safetensors").exists()
    assert (context.runs_dir / "from_file" / "workflow.json").read_text() == "{}"
    assert len(results["5"].losses) == 3


def test_command_line_runs_a_file_and_then_reuses_it(
    setup: Setup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = setup.context.roots[0]
    models = tmp_path / "models"
    models.mkdir()
    (models / "checkpoints").symlink_to(folder / "checkpoints")
    arguments = ["run", str(write(api_workflow(), tmp_path)), "--output", str(tmp_path / "out"), "--device", "cpu"]
    arguments += ["--root", str(folder), "--models", str(models)]
    arguments += [
        "--set",
        "Lumina2TrainLoRA.steps=2",
        "--set",
        "5.run_name=short",
        "--set",
        f"2.folder={folder}/pictures",
    ]
    assert main(arguments) == 0
    out = capsys.readouterr()
    assert "left out: node 7 (PreviewImage)" in out.err
    assert "short: 2/2" in out.out
    assert len((tmp_path / "out/lumina2_trainer/short/log.jsonl").read_text().splitlines()) == 2
    assert main(arguments) == 0
    assert "short: already finished, reused" in capsys.readouterr().out


def test_error_is_one_line_and_status_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = api_workflow()
    content["5"]["inputs"]["rank"] = 0
    assert main(["run", str(write(content, tmp_path)), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "lumina2-trainer: node 5 (Lumina2TrainLoRA): rank is 0: it must be at least 1"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("9.steps", "0 nodes are called '9'; the nodes are 1"),
        ("5.stepz", "has no input 'stepz'; it has steps"),
        ("5.steps", "'many' is not of type int"),
    ],
)
def test_wrong_assignment_is_explained(tmp_path: Path, target: str, message: str) -> None:
    workflow = read_workflow(write(api_workflow(), tmp_path))
    with pytest.raises(TrainerError, match=message):
        with_values(workflow, {target: "many"})


def test_loop_missing_socket_and_foreign_source_are_explained(setup: Setup, tmp_path: Path) -> None:
    loop = api_workflow()
    loop["2"]["inputs"]["dataset"] = ["2", 0]
    with pytest.raises(TrainerError, match="node 2 depends on itself"):
        read_workflow(write(loop, tmp_path))
    missing = api_workflow()
    del missing["5"]["inputs"]["latents"]
    with pytest.raises(TrainerError, match=r"node 5 \(Lumina2TrainLoRA\): latents is not connected"):
        run_workflow(read_workflow(write(missing, tmp_path)), setup.context)
    foreign = api_workflow()
    foreign["5"]["inputs"]["steps"] = ["7", 0]
    with pytest.raises(
        TrainerError, match=r"steps comes from a node that needs ComfyUI; give its value with --set 5.steps"
    ):
        run_workflow(read_workflow(write(foreign, tmp_path)), setup.context)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is not a workflow: save it in ComfyUI"),
        ({"1": {"class_type": "KSampler", "inputs": {}}}, "holds no node of this pack"),
        ({"a": 5}, "node 'a' has no class_type"),
    ],
)
def test_files_that_are_no_workflow_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        read_workflow(write(content, tmp_path))


def test_more_widget_values_than_widgets_is_an_error(tmp_path: Path) -> None:
    content = canvas_workflow()
    content["nodes"][0]["widgets_values"] += ["extra"] * 3
    with pytest.raises(TrainerError, match="was saved by a newer version of this pack"):
        read_workflow(write(content, tmp_path))


def test_links_are_read_as_node_and_slot(tmp_path: Path) -> None:
    workflow = read_workflow(write(api_workflow(), tmp_path))
    train = next(node for node in workflow.nodes if node.type == "Lumina2TrainLoRA")
    assert train.links["latents"] == Link(node="3", slot=0)


def test_unknown_input_dangling_link_and_loop_of_reroutes_are_explained(setup: Setup, tmp_path: Path) -> None:
    unknown = api_workflow()
    unknown["5"]["inputs"]["learningrate"] = 5
    with pytest.raises(TrainerError, match=r"node 5 \(Lumina2TrainLoRA\) has no input 'learningrate'"):
        run_workflow(read_workflow(write(unknown, tmp_path)), setup.context)
    dangling = canvas_workflow()
    dangling["links"] = [link for link in dangling["links"] if link[0] != 2]
    with pytest.raises(TrainerError, match="has a link 2 that the file does not hold"):
        read_workflow(write(dangling, tmp_path))
    loop = canvas_workflow()
    reroute = next(node for node in loop["nodes"] if node["id"] == 8)
    loop["links"].append([99, 8, 0, 8, 0, "*"])
    reroute["inputs"][0]["link"] = 99
    with pytest.raises(TrainerError, match="reroute 8 leads back to itself"):
        read_workflow(write(loop, tmp_path))
    bypassed = canvas_workflow()
    bypassed["nodes"][1]["mode"] = 4
    with pytest.raises(TrainerError, match=r"node 2 \(Lumina2DatasetFolder\) is bypassed"):
        read_workflow(write(bypassed, tmp_path))


def test_home_in_a_typed_path_is_understood(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(setup.context.roots[0]))
    monkeypatch.setenv("USERPROFILE", str(setup.context.roots[0]))
    arguments = ["run", str(write(api_workflow(), tmp_path)), "--output", str(tmp_path / "out"), "--device", "cpu"]
    arguments += [
        "--set",
        "1.base=~/checkpoints/tiny.safetensors",
        "--set",
        "2.folder=~/pictures",
        "--set",
        "5.steps=1",
    ]
    assert main(arguments) == 0
