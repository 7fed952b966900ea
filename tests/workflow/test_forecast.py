"""What runs will take is known before anything is encoded, and is what they say when they start."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lumina2_trainer.trainer_core.cli.headless import make_context
from lumina2_trainer.trainer_core.cli.main import main
from lumina2_trainer.trainer_core.data.folder import DatasetFolderSettings
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.events import Event
from lumina2_trainer.trainer_core.run import plan
from lumina2_trainer.trainer_core.workflow.file import Workflow, parse_workflow
from lumina2_trainer.trainer_core.workflow.forecast import announcing_runs, forecast_runs, nodes_behind, plan_workflow
from lumina2_trainer.trainer_core.workflow.runner import run_workflow
from PIL import Image, ImageOps

from ..lumina2.tiny_files import write_all_in_one
from ..training_setup import write_pictures


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base among models and two folders of pictures."""
    folder = tmp_path_factory.mktemp("forecast")
    (folder / "models" / "checkpoints").mkdir(parents=True)
    write_all_in_one(folder / "models" / "checkpoints" / "tiny.safetensors")
    for name in ("pictures", "more"):
        write_pictures(folder / name)
    for path in (folder / "more").glob("*.png"):  # other pictures, not copies
        with Image.open(path) as picture:
            ImageOps.invert(picture).save(path)
    return folder


@pytest.fixture
def collect(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes the surroundings, whose events go to a list; the machine does ten billion operations a second."""
    monkeypatch.setattr(plan, "measure_rate", lambda device, dtype: 1e10)

    def make(events: list[Event]) -> Any:
        return make_context(
            output_dir=tmp_path / "output", device="cpu", roots=[files], models=[files / "models"], emit=events.append
        )

    return make


def prompt(**train: Any) -> dict[str, Any]:
    """Two folders, both caches and Train LoRA, in the API's format; keywords replace widgets of Train LoRA."""
    widgets = {"steps": 6, "batch_size": 2, "rank": 2, "run_name": "cat", "memory": "3", **train}
    return {
        "1": node("Lumina2Load", base="tiny.safetensors", precision="fp32"),
        "2": node("Lumina2DatasetFolder", folder="pictures", resolution=64, repeats=3),
        "3": node("Lumina2DatasetFolder", folder="more", resolution=128, probability=0.25, dataset=["2", 0]),
        "4": node("Lumina2CacheLatents", model=["1", 0], dataset=["3", 0]),
        "5": node("Lumina2CacheTextEmbeds", model=["1", 0], dataset=["3", 0], validation=["6", 0]),
        "6": node("Lumina2ValidationPrompts", prompts="", held_out_share=0.4),
        "7": node(
            "Lumina2TrainLoRA", model=["1", 0], latents=["4", 0], embeds=["5", 0], validation=["6", 0], **widgets
        ),
    }


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def read(content: dict[str, Any]) -> Workflow:
    return parse_workflow(content, "the test")


def test_a_forecast_is_what_the_run_says_when_it_starts(collect: Callable[..., Any]) -> None:
    events: list[Event] = []
    workflow, context = read(prompt()), collect(events)
    run_workflow(workflow, announcing_runs(workflow, context))
    kinds = [event.kind for event in events]
    (forecast,) = (event for event in events if event.kind == "forecast")
    assert kinds.index("forecast") < next(i for i, event in enumerate(events) if event.run == "cache_latents")
    (planned,) = (event for event in events if event.kind == "planned")
    assert planned.data["predicted_peak_gib"] > 0
    assert forecast.run == planned.run == "cat"
    assert forecast.data == {**planned.data, "node": "7", "message": ""}


def test_nothing_is_forecast_where_caches_are_full(collect: Callable[..., Any]) -> None:
    events: list[Event] = []
    workflow, context = read(prompt()), collect(events)
    run_workflow(workflow, context)
    events.clear()
    again = read(prompt(steps=7))
    run_workflow(again, announcing_runs(again, context))
    assert {"planned", "finished"} <= {event.kind for event in events}
    assert "forecast" not in {event.kind for event in events}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"memory": "0.001"}, "0.001 GiB allowed, but training takes at least 0.1 GiB: raise memory"),
        ({"start_from": "none.safetensors"}, "start_from 'none.safetensors' was not found"),
    ],
)
def test_what_keeps_a_run_from_starting(collect: Callable[..., Any], changes: dict[str, Any], problem: str) -> None:
    start_from = changes.pop("start_from", "")
    content = prompt(**changes)
    content["8"] = node("Lumina2LoRASettings", start_from=start_from)
    content["7"]["inputs"]["adapter_settings"] = ["8", 0]
    (forecast,) = forecast_runs(read(content), collect([]), known={})
    assert forecast.plan is None and problem in forecast.problem
    with pytest.raises(TrainerError, match=f"^cat: .*{problem[:20]}"):
        plan_workflow(read(content), collect([]))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [({"run_name": "my cat"}, "run_name is 'my cat': use letters"), ({"memory": "much"}, "memory is 'much'")],
)
def test_what_is_wrong_with_trains_own_settings_is_forecast(
    collect: Callable[..., Any], changes: dict[str, Any], problem: str
) -> None:
    workflow = read(prompt(**changes))
    (forecast,) = forecast_runs(workflow, collect([]), known={})
    assert (forecast.node, forecast.plan) == ("7", None) and problem in forecast.problem
    assert not forecast_runs(workflow, collect([]), known={}, wanted=())


def test_pictures_without_captions_are_found_before_they_are_encoded(
    collect: Callable[..., Any], files: Path, tmp_path: Path
) -> None:
    write_pictures(tmp_path / "bare")
    (tmp_path / "bare" / "red.txt").unlink()
    content = prompt()
    content["2"]["inputs"]["folder"] = str(tmp_path / "bare")
    context = collect([])
    context = replace(context, roots=(*context.roots, tmp_path))
    (forecast,) = forecast_runs(read(content), context, known={})
    assert forecast.problem.startswith("1 of 10 pictures have no caption")


def bad_prompts() -> dict[str, dict[str, Any]]:
    """What Train refuses once its caches are full, by the reason."""
    held_out, regularised, rare, unconnected, no_base = (prompt() for _ in range(5))
    held_out["2"]["inputs"]["is_held_out"] = True
    del held_out["7"]["inputs"]["validation"]
    for folder in ("2", "3"):
        regularised[folder]["inputs"]["is_regularisation"] = True
    regularised["6"]["inputs"]["held_out_share"] = 0.0
    rare["7"]["inputs"]["optimizer"] = "adamw8bit_bnb"
    unconnected["6"]["inputs"]["prompts"] = "a cat"
    del unconnected["5"]["inputs"]["validation"]
    no_base["1"]["inputs"]["base"] = "none.safetensors"
    return {
        "is_held_out is on for a folder, but nothing says when": held_out,
        "is_regularisation is on for all folders": regularised,
        "adamw8bit_bnb": rare,
        "the validation prompt 'a cat' is not in the text cache": unconnected,
        "base 'none.safetensors' was not found": no_base,
    }


@pytest.mark.parametrize("reason", list(bad_prompts()))
def test_what_train_refuses_is_refused_before_anything_is_encoded(
    collect: Callable[..., Any], tmp_path: Path, reason: str
) -> None:
    workflow = read(bad_prompts()[reason])
    (forecast,) = forecast_runs(workflow, collect([]), known={})
    assert forecast.plan is None and reason in forecast.problem
    context = collect([])
    with pytest.raises(TrainerError, match=reason):
        run_workflow(workflow, announcing_runs(workflow, context))
    assert not list(tmp_path.rglob("*.safetensors")), "nothing was encoded"
    if "none" not in reason:
        with pytest.raises(TrainerError, match=reason):
            run_workflow(workflow, context)


def test_a_branch_that_fails_leaves_the_others_their_forecast(collect: Callable[..., Any]) -> None:
    content = prompt()
    content["20"] = node("Lumina2Load", base="none.safetensors")
    content["21"] = {**content["7"], "inputs": {**content["7"]["inputs"], "model": ["20", 0], "run_name": "broken"}}
    forecasts = {one.run: one for one in forecast_runs(read(content), collect([]), known={})}
    assert forecasts["cat"].plan is not None
    assert "none.safetensors" in forecasts["broken"].problem


def test_only_what_is_known_is_forecast(collect: Callable[..., Any]) -> None:
    """Of a second training of what the first one makes nothing is known; of one on other pictures it is."""
    content = prompt()
    content |= {
        "10": node("Lumina2TrainFull", run_name="whole", steps=2, model=["1", 0], latents=["4", 0], embeds=["5", 0]),
        "11": node("Lumina2TrainLoRA", run_name="after", model=["10", 0], latents=["4", 0], embeds=["5", 0]),
        "12": node("Lumina2DatasetFromImages", name="drawn", images=["99", 0]),
        "13": node("Lumina2CacheLatents", model=["1", 0], dataset=["12", 0]),
        "14": node("Lumina2CacheTextEmbeds", model=["1", 0], dataset=["12", 0]),
        "15": node("Lumina2TrainLoRA", run_name="images", model=["1", 0], latents=["13", 0], embeds=["14", 0]),
        "16": node("Lumina2TrainLoRA", run_name="linked", model=["1", 0], latents=["4", 0], embeds=["5", 0]),
    }
    content["16"]["inputs"]["steps"] = ["98", 0]
    workflow = read(content)
    assert {one.run for one in forecast_runs(workflow, collect([]), known={})} == {"cat", "whole"}
    assert {one.run for one in forecast_runs(workflow, collect([]), known={}, wanted={"10"})} == {"whole"}
    assert nodes_behind(workflow, "13") == {"15"}
    assert nodes_behind(workflow, "10") == {"11"}


def test_the_command_says_what_a_file_will_take(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "measure_rate", lambda device, dtype: 1e10)
    (tmp_path / "workflow.json").write_text(json.dumps(prompt()), "utf-8")
    surroundings = ["--output", tmp_path / "out", "--root", files, "--models", files / "models", "--device", "cpu"]
    arguments = ["plan", tmp_path / "workflow.json", *surroundings, "--set", "7.steps=600", "--set", "7.memory=2"]
    assert main([str(argument) for argument in arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "cat (node 7): 600 steps in about 6:31"
    assert lines[-1].startswith("  memory: 2 GiB allowed, keeping all activations, predicted peak 0.0 GiB")
    assert not list((tmp_path / "out").rglob("*.safetensors")), "nothing was encoded"
    assert main([str(argument) for argument in [*arguments, "--set", "7.memory=0.001"]]) == 1
    assert "cat: memory 0.001 GiB allowed" in capsys.readouterr().err.replace("memory: ", "memory ")


def test_settings_are_those_of_the_folder(collect: Callable[..., Any]) -> None:
    """More pictures at a higher resolution take longer."""

    def seconds(**folder: Any) -> float:
        content = prompt()
        content["2"]["inputs"] |= folder
        (forecast,) = forecast_runs(read(content), collect([]), known={})
        assert forecast.plan is not None
        return forecast.plan.seconds

    assert seconds(resolution=DatasetFolderSettings().resolution) > 3 * seconds()
