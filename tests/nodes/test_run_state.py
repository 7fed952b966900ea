"""State of a run as the routes give it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from lumina2_trainer.nodes.run_state import MAX_CURVE_POINTS, draws_pictures, find_newest_run, is_run_name, read_state
from PIL import Image
from PIL.PngImagePlugin import PngInfo


def view_of(path: Path) -> dict[str, str]:
    return {"filename": path.name}


def write_run(folder: Path, num_steps: int, total: int = 100) -> Path:
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"train": {"steps": total}}), "utf-8")
    numbers = {"learning_rate": 1e-4, "grad_norm": 0.25, "peak_memory_gib": 1.5, "seconds": 0.5}
    lines = [
        json.dumps({"step": step, "loss": 1 / step, "loss_by_bin": {str(step % 2): float(step)}, **numbers})
        for step in range(1, num_steps + 1)
    ]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def test_unknown_run_has_no_state(tmp_path: Path) -> None:
    assert read_state(tmp_path / "none", None, view_of) is None


def test_state_is_rebuilt_from_the_folder(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", 7)
    for step in (2, 4):
        samples = folder / "samples" / f"step-{step:06d}"
        samples.mkdir(parents=True)
        (samples / "00.png").write_bytes(b"")
    (folder / "samples" / "step-000004 copy").mkdir()  # of the user
    state = read_state(folder, None, view_of)
    assert state is not None
    assert (state["status"], state["step"], state["total"]) == ("stopped", 7, 100)
    assert state["seconds_per_step"] == pytest.approx(0.5)
    assert state["losses"][-1] == [7, 1 / 7]
    assert state["validation"] == {"step": 4, "images": [{"filename": "00.png"}]}


def test_curves_and_noise_levels_are_read_from_the_log(tmp_path: Path) -> None:
    state = read_state(write_run(tmp_path / "a", 5), None, view_of)
    assert state is not None
    assert (state["grad_norm"], state["peak_memory_gib"]) == (0.25, 1.5)
    assert state["curves"]["grad_norm"] == [[step, 0.25] for step in range(1, 6)]
    assert state["loss_by_bin"] == {"0": 3.0, "1": 3.0}  # (2 + 4) / 2 and (1 + 3 + 5) / 3


def test_held_out_losses_begin_with_the_base(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", 5)
    lines = [(0, "base", 0.5), (2, "live", 0.4), (2, "ema", 0.1), (4, "live", 0.3)]
    text = "\n".join(json.dumps({"step": s, "weights": w, "losses": {"a": x, "b": x}}) for s, w, x in lines)
    (folder / "held_out.jsonl").write_text(text, "utf-8")
    state = read_state(folder, None, view_of)
    assert state is not None
    assert state["held_out"] == [[0, 0.5], [2, 0.4], [4, 0.3]]


def test_every_validation_is_listed_with_its_prompts(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", 7)
    for step, names in (
        (10, {"00.png": "a cat", "00_ema.png": "a cat", "01.png": "a dog"}),
        (2, {"00.png": "a cat"}),
    ):
        samples = folder / "samples" / f"step-{step:06d}"
        samples.mkdir(parents=True)
        for name, prompt in names.items():
            about = PngInfo()
            about.add_itxt("prompt", prompt)
            Image.new("RGB", (1, 1)).save(samples / name, pnginfo=about)
    (samples / "02.png").write_bytes(b"half")
    state = read_state(folder, None, view_of)
    assert state is not None
    assert [(v["step"], v["prompts"]) for v in state["validations"]] == [
        (2, ["a cat", ""]),
        (10, ["a cat", "a cat", "a dog"]),
    ]
    assert state["validations"][1]["weights"] == ["live", "ema", "live"]
    assert json.dumps(state)


def test_finished_adapter_makes_the_run_finished(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", 3)
    (folder / "final").mkdir()
    (folder / "final" / "adapter.safetensors").write_bytes(b"")
    state = read_state(folder, None, view_of)
    assert state is not None
    assert state["status"] == "finished"


def test_live_state_comes_first(tmp_path: Path) -> None:
    live = {"run": "a", "node": "5", "status": "running", "progress": {"step": 3, "total": 40}}
    state = read_state(write_run(tmp_path / "a", 3), live, view_of)
    assert state is not None
    assert (state["status"], state["node"], state["total"]) == ("running", "5", 40)


def test_long_curve_is_thinned_to_means(tmp_path: Path) -> None:
    state = read_state(write_run(tmp_path / "a", 1234), None, view_of)
    assert state is not None
    assert len(state["losses"]) == MAX_CURVE_POINTS
    assert state["losses"][-1][0] == 1234
    assert state["losses"][0][1] == pytest.approx((1 + 1 / 2) / 2)


def test_newest_run_is_the_one_written_last(tmp_path: Path) -> None:
    for seconds, name in enumerate(["a", "a-3", "a-2", "ab-9", "a-2-x"]):
        log = write_run(tmp_path / name, 1) / "log.jsonl"
        os.utime(log, (seconds, seconds))
    assert find_newest_run(tmp_path, "a") == "a-2"
    assert find_newest_run(tmp_path, "a", own={"a", "a-3", "b"}) == "a-3"
    assert find_newest_run(tmp_path, "a", own={"b"}) == "a-2", "this node trained nothing of the name"
    assert find_newest_run(tmp_path, "none") == "none"


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        ({"validation": {"prompts": "a cat\n"}}, True),
        ({"validation": {"prompts": " \n"}}, False),
        ({"validation": None}, False),
        ({}, False),
    ],
)
def test_a_run_draws_pictures_only_with_validation_prompts(tmp_path: Path, job: dict, expected: bool) -> None:
    (tmp_path / "job.json").write_text(json.dumps(job), "utf-8")
    assert draws_pictures(tmp_path) is expected


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "-a", "cache", "a\n", "ä", "a" * 121])
def test_paths_are_no_run_names(name: str) -> None:
    assert not is_run_name(name)


@pytest.mark.parametrize("name", ["my_lora", "my_lora-2", "v1.0", "A"])
def test_run_names_are(name: str) -> None:
    assert is_run_name(name)
