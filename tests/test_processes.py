"""Several processes that train one run together, as `accelerate launch` starts them: on the CPU, over gloo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lumina2_trainer.trainer_core.cli.main import main
from PIL import Image
from safetensors.torch import load_file

from .lumina2.tiny_models import relative_error
from .training_setup import Setup

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")
STEPS = 6


def write_workflow(folder: Path, *, is_whole: bool = False) -> Path:
    """Caches and six steps, of an adapter that is saved or of the model itself."""
    train = {
        "model": ["1", 0],
        "latents": ["3", 0],
        "embeds": ["4", 0],
        "checkpoints": ["5", 0],
        "optimizer_settings": ["6", 0],
        "steps": STEPS,
        "learning_rate": 1e-2,
        "run_name": "run",
    }
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "1": ("Lumina2Load", {"base": "tiny.safetensors", "precision": "fp32"}),
        "2": ("Lumina2DatasetFolder", {"folder": "pictures", "resolution": 64}),
        "3": ("Lumina2CacheLatents", {"model": ["1", 0], "dataset": ["2", 0]}),
        "4": ("Lumina2CacheTextEmbeds", {"model": ["1", 0], "dataset": ["2", 0]}),
        "5": ("Lumina2Checkpoints", {"checkpoint_step_interval": 2}),
        "6": ("Lumina2Optimizer", {"gradient_accumulation_steps": 1}),
    }
    if is_whole:
        nodes["7"] = "Lumina2TrainFull", {**train, "learning_rate": 1e-3}
        nodes["8"] = "Lumina2SaveModel", {"model": ["7", 0], "name": "saved"}
    else:
        nodes["7"] = "Lumina2TrainLoRA", {**train, "rank": 2}
        nodes["8"] = "Lumina2SaveAdapter", {"adapter": ["7", 0], "name": "saved"}
    path = folder / "workflow.json"
    path.write_text(
        json.dumps({name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()})
    )
    return path


@pytest.fixture
def arguments(setup: Setup, tmp_path: Path) -> list[str]:
    """Of the command line, but for the output folder."""
    root = setup.context.roots[0]
    models = tmp_path / "models"
    models.mkdir()
    (models / "checkpoints").symlink_to(root / "checkpoints")
    return ["run", str(write_workflow(tmp_path)), "--device", "cpu", "--root", str(root), "--models", str(models)]


def launch(launcher: Sequence[str], arguments: Sequence[object]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, *launcher, "-m", "lumina2_trainer", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


def run_together(launcher: Sequence[str], arguments: Sequence[object], status: int = 0) -> str:
    """What two processes printed."""
    process = launch(launcher, arguments)
    try:
        printed, _ = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(process.communicate()[0]) from None
    assert (process.returncode == 0) is (status == 0), printed
    return printed


def log_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "lumina2_trainer/run/log.jsonl").read_text().splitlines()]


def assert_same_run(together: Path, alone: Path) -> None:
    """The same samples in the same steps, and the same weights but for rounding."""
    ours, expected = log_of(together), log_of(alone)
    assert [line["files"] for line in ours] == [line["files"] for line in expected]
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in expected], rel=1e-4)
    assert [line["grad_norm"] for line in ours] == pytest.approx([line["grad_norm"] for line in expected], rel=1e-3)
    (actual, wanted) = (
        load_file(next((output / "lumina2_trainer/run/final").glob("*.safetensors"))) for output in (together, alone)
    )
    assert max(relative_error(actual[name], wanted[name]) for name in wanted) < 1e-3


@pytest.mark.process
def test_two_processes_learn_what_one_learns_of_twice_the_batches(arguments: list[str], tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert main([*arguments, "--output", str(alone), "--set", "6.gradient_accumulation_steps=2"]) == 0
    printed = run_together(ACCELERATE, [*arguments, "--output", together])
    assert_same_run(together, alone)
    assert printed.count("run: finished") == 1
    assert len(list((together / "loras").iterdir())) == 1
    entries = [sorted(p.name for p in (o / "lumina2_trainer/cache").rglob("*.safetensors")) for o in (alone, together)]
    assert entries[0] == entries[1]
    assert json.loads((together / "lumina2_trainer/run/job.json").read_text())["num_processes"] == 2


@pytest.mark.process
def test_two_processes_train_the_model_itself(arguments: list[str], tmp_path: Path) -> None:
    write_workflow(tmp_path, is_whole=True)
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert main([*arguments, "--output", str(alone), "--set", "6.gradient_accumulation_steps=2"]) == 0
    run_together(TORCHRUN, [*arguments, "--output", together])
    assert_same_run(together, alone)
    assert len(list((together / "checkpoints").iterdir())) == 1


def add_validation(path: Path) -> None:
    """Pictures of two prompts and of the base, and held-out losses, every second step."""
    workflow = json.loads(path.read_text())
    validation = {
        "prompts": "a red square\na blue square\na grey square",
        "width": 64,
        "height": 64,
        "num_inference_steps": 2,
        "every_num_steps": 2,
        "draw_base": True,
        "held_out_share": 0.4,
        "held_out_step_interval": 2,
    }
    workflow["9"] = {"class_type": "Lumina2ValidationPrompts", "inputs": validation}
    for node in ("4", "7"):
        workflow[node]["inputs"]["validation"] = ["9", 0]
    path.write_text(json.dumps(workflow))


@pytest.mark.process
def test_validation_is_shared_out_and_gives_what_one_process_gives(arguments: list[str], tmp_path: Path) -> None:
    add_validation(tmp_path / "workflow.json")
    command = [*arguments, "--set", "7.steps=3"]
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert main([*command, "--output", str(alone), "--set", "6.gradient_accumulation_steps=2"]) == 0
    printed = run_together(TORCHRUN, [*command, "--output", together])
    assert printed.count("step 2: 6 validation pictures") == 1
    ours, expected = (read_held_out(output) for output in (together, alone))
    assert [(line["step"], line["weights"]) for line in ours] == [(0, "base"), (2, "live"), (3, "live")]
    assert ours[0]["losses"] == pytest.approx(expected[0]["losses"], rel=1e-6)
    for line, other in zip(ours, expected, strict=True):
        assert line["losses"] == pytest.approx(other["losses"], rel=1e-4)
    folders = [output / "lumina2_trainer/run/samples" for output in (together, alone)]
    pictures, others = (sorted(path.relative_to(folder) for path in folder.rglob("*.png")) for folder in folders)
    assert pictures == others and len(pictures) == 3 + 6 + 6
    for path in pictures:
        difference = np.abs(np.subtract(*(np.asarray(Image.open(folder / path), dtype=int) for folder in folders)))
        assert difference.max() <= (1 if path.parent.name.startswith("base") else 2)
    assert_same_run(together, alone)


def read_held_out(output: Path) -> list[dict[str, Any]]:
    [path] = (output / "lumina2_trainer/run").rglob("held_out.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def wait_for_checkpoint(output: Path, step: int, process: subprocess.Popen[Any]) -> None:
    path = output / f"lumina2_trainer/run/checkpoints/step-{step:06d}/training_state.json"
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, "training ended before it could be stopped"
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.01)


@pytest.mark.process
def test_a_stop_keeps_the_finished_steps_and_one_process_goes_on(arguments: list[str], tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    alone = ["--set", "6.gradient_accumulation_steps=2"]
    steps = ["--set", "7.steps=40"]
    process = launch(TORCHRUN, [*arguments, *steps, "--output", stopped])
    wait_for_checkpoint(stopped, 2, process)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal: to the launcher and to all
    printed, _ = process.communicate(timeout=120)
    assert printed.count("Stopping after this step") == 1, printed
    newest = sorted((stopped / "lumina2_trainer/run/checkpoints").iterdir())[-1]
    assert 2 <= int(newest.name.rpartition("-")[2]) == log_of(stopped)[-1]["step"] < 40, printed
    assert main([*arguments, *steps, *alone, "--output", str(stopped)]) == 0
    assert [path.name for path in (stopped / "lumina2_trainer").glob("run*")] == ["run"]
    assert main([*arguments, *steps, *alone, "--output", str(whole)]) == 0
    assert_same_run(stopped, whole)


@pytest.mark.process
def test_a_mistake_is_said_once_and_ends_all(arguments: list[str], tmp_path: Path) -> None:
    command = [*arguments, "--output", tmp_path / "wrong", "--set", "7.memory=0.001"]
    printed = run_together(TORCHRUN, command, status=1)
    assert printed.count("lumina2-trainer: memory: 0.001 GiB allowed") >= 1


def run_script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *TORCHRUN, str(Path(__file__).parent / name), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )


@pytest.mark.process
def test_what_processes_say_to_one_another() -> None:
    done = run_script("script_processes.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("as it should be") == 2


@pytest.mark.process
@pytest.mark.parametrize(("how", "num_notice"), [("killed", 1), ("frozen", 1), ("failed", 2)])
def test_who_is_lost_is_noticed(how: str, num_notice: int) -> None:
    done = run_script("script_presence.py", how)
    assert done.stdout.count("noticed") == num_notice, done.stderr
    assert (done.returncode == 0) is (how != "killed"), done.stderr


@pytest.mark.process
@pytest.mark.parametrize("killed", ["0", "1"])
def test_the_steps_of_a_killed_process_are_kept_and_one_goes_on(
    arguments: list[str], tmp_path: Path, killed: str
) -> None:
    output = tmp_path / "output"
    command = [*arguments, "--set", "7.steps=60", "--set", "5.checkpoint_step_interval=50", "--output", output]
    process = launch(TORCHRUN, command)
    log_path = output / "lumina2_trainer/run/log.jsonl"
    deadline = time.monotonic() + 120
    while not log_path.exists() or len(log_path.read_text().splitlines()) < 3:
        assert process.poll() is None, "training ended before a process could be killed"
        assert time.monotonic() < deadline, "no step came"
        time.sleep(0.01)
    os.kill(find_process(process.pid, f"RANK={killed}"), signal.SIGKILL)
    printed, _ = process.communicate(timeout=120)
    name = "the main process" if killed == "0" else "process 1"
    assert f"{name} is gone: it was ended" in printed, printed
    [checkpoint] = (output / "lumina2_trainer/run/checkpoints").iterdir()
    step = int(checkpoint.name.rpartition("-")[2])
    assert 3 <= step < 50
    steps = ["--set", f"7.steps={step + 2}", "--set", "6.gradient_accumulation_steps=2"]
    assert main([*map(str, command), *steps]) == 0


def find_process(launcher: int, variable: str) -> int:
    """The child that was started with a variable in its environment."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return next(int(pid) for pid in children if variable in Path(f"/proc/{pid}/environ").read_text().split("\0"))


def test_other_commands_refuse_a_launcher(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["demo"]) == 1
    assert "only the command run is for several processes" in capsys.readouterr().err


def test_one_device_for_several_processes_is_refused(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    where = arguments.index("cpu")
    assert main([*arguments[:where], "cuda:1", *arguments[where + 1 :], "--output", str(tmp_path / "output")]) == 1
    assert "--device cuda:1 is one device for 2 processes: leave it out" in capsys.readouterr().err
