"""What trackers are told of a run, that a resumed run goes on in the same one, and that none can stop a run."""

from __future__ import annotations

import json
import struct
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lumina2_trainer.trainer_core.errors import StopTraining, TrainerError
from lumina2_trainer.trainer_core.events import Event
from lumina2_trainer.trainer_core.publish import tracking as tracking_module
from lumina2_trainer.trainer_core.publish.notices import describe_error
from lumina2_trainer.trainer_core.publish.settings import TrackingSettings
from lumina2_trainer.trainer_core.publish.trackers import PACKAGES, TRACKERS, NoTracker
from lumina2_trainer.trainer_core.publish.tracking import Smoothed, flatten_line
from lumina2_trainer.trainer_core.training.settings import CheckpointSettings

from ..run.test_train import StopAfter, log_of
from ..training_setup import PROMPTS, Setup

EVERY_STEP = {"train/loss", "train/loss_smoothed", "train/learning_rate", "train/grad_norm", "train/seconds"}
RUNS = {"validation": replace(PROMPTS, every_num_steps=4)}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """wandb and trackio write to this test's folder and talk to nobody."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb_home"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def notices_of(events: list[Event]) -> list[str]:
    return [event.data["message"] for event in events if event.kind == "notice"]


def run_twice(setup: Setup, report_to: str, **more: Any) -> tuple[Path, list[Event]]:
    """Train to step 3 of 6, stop, and resume; the run's folder and all events."""
    events: list[Event] = []
    settings = {"tracking": TrackingSettings(report_to=report_to, project_name="tests", **more), **RUNS}
    with pytest.raises(StopTraining):
        setup.with_events(events).with_stop(StopAfter(3)).train(**settings)
    result = setup.with_events(events).train(**settings)
    return Path(result.adapter.run_dir), events


WITH_PROCESS = {"wandb": pytest.mark.process}
"""It starts a service of its own."""


@pytest.mark.parametrize("report_to", [pytest.param(name, marks=WITH_PROCESS.get(name, ())) for name in TRACKERS])
def test_every_tracker_takes_a_stopped_and_resumed_run_without_a_word(
    fresh: Setup, report_to: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if report_to == "trackio":
        use_trackio_folder(monkeypatch, tmp_path / "trackio")
    run_dir, events = run_twice(fresh, report_to)
    assert notices_of(events) == []
    assert len(log_of(str(run_dir))) == 6


def test_jsonl_holds_settings_steps_and_pictures(fresh: Setup) -> None:
    run_dir, _ = run_twice(fresh, "jsonl", run_name="mine")
    first, *lines = [json.loads(line) for line in (run_dir / "tracking" / "metrics.jsonl").read_text().splitlines()]
    assert (first["project"], first["run"]) == ("tests", "mine")
    assert first["config"]["train/learning_rate"] == 0.01
    assert first["config"]["num_pictures"] == 5
    assert str(fresh.context.output_dir.parent) not in json.dumps(first)
    steps = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert all(line.keys() >= EVERY_STEP for line in steps)
    log = log_of(str(run_dir))
    assert [line["train/loss"] for line in steps] == [record["loss"] for record in log]
    pictures = [line for line in lines if "validation" in line]
    assert [line["step"] for line in pictures] == [4, 6]
    assert pictures[0]["validation"][1] == {"path": "samples/step-000004/01.png", "prompt": "a blue square"}
    assert (run_dir / pictures[0]["validation"][1]["path"]).exists()


def test_smoothed_loss_goes_on_where_a_stopped_run_left_it(fresh: Setup, tmp_path: Path) -> None:
    run_dir, _ = run_twice(fresh, "jsonl")
    whole = fresh.moved_to(tmp_path / "whole").train(tracking=TrackingSettings(), **RUNS)

    def smoothed(folder: Path) -> list[float]:
        lines = (folder / "tracking" / "metrics.jsonl").read_text().splitlines()
        return [line["train/loss_smoothed"] for line in map(json.loads, lines) if "train/loss_smoothed" in line]

    assert smoothed(run_dir) == smoothed(Path(whole.adapter.run_dir))


def test_jsonl_drops_what_lay_beyond_the_checkpoint(fresh: Setup) -> None:
    with pytest.raises(StopTraining):
        fresh.with_stop(StopAfter(3)).train(tracking=TrackingSettings())
    path = fresh.context.runs_dir / "run" / "tracking" / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 4, "train/loss": 99.0}\n{"step": 5, "tra')
    fresh.train(tracking=TrackingSettings())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines[1:]] == [1, 2, 3, 4, 5, 6]
    assert 99.0 not in [line["train/loss"] for line in lines[1:]]


def test_tensorboard_files_read_back(fresh: Setup) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir, _ = run_twice(fresh, "tensorboard", run_name="mine")
    folder = run_dir / "tracking" / "tensorboard" / "tests" / "mine"
    assert [path for path in folder.iterdir() if path.is_dir()] == []
    board = EventAccumulator(str(folder)).Reload()
    tags = board.Tags()
    assert set(tags["scalars"]) >= EVERY_STEP
    assert any(tag.startswith("loss_by_t/") for tag in tags["scalars"])
    losses = board.Scalars("train/loss")
    assert [event.step for event in losses] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in losses] == pytest.approx([r["loss"] for r in log_of(str(run_dir))], rel=1e-6)
    assert [event.step for event in board.Images("validation/01")] == [4, 6]
    assert (board.Images("validation/01")[0].width, board.Images("validation/01")[0].height) == (64, 96)
    prompt = board.Tensors("validation/01/prompt/text_summary")[0].tensor_proto.string_val[0]
    assert prompt == b"a blue square"
    hparams = board.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    assert b"train/learning_rate" in hparams


def test_tensorboard_readers_drop_what_lay_beyond_the_checkpoint(fresh: Setup, tmp_path: Path) -> None:
    from lumina2_trainer.trainer_core.publish.trackers import TensorBoardTracker, TrackedRun
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = TrackedRun(project_name="p", run_name="r", folder=tmp_path, step=0, config={"a": 1}, is_offline=False)
    killed = TensorBoardTracker(run)
    for step in range(1, 6):
        killed.log({"loss": 1.0}, step)
    killed.finish()
    resumed = TensorBoardTracker(replace(run, step=2))
    for step in range(3, 5):
        resumed.log({"loss": 2.0}, step)
    resumed.finish()
    losses = EventAccumulator(str(tmp_path / "tensorboard" / "p" / "r")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in losses] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def read_wandb(path: Path) -> list[Any]:
    """All records of an offline run's file: protobuf messages in LevelDB's log format, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, message, records = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # no header fits into the rest of a block
            position += 32768 - position % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        message += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole message, or its last part
            records.append(wandb_internal_pb2.Record.FromString(message))
            message = b""
    return records


@pytest.mark.process
@pytest.mark.parametrize("offline_setting", [True, False])
def test_wandb_offline_run_holds_everything_and_resumes_under_one_id(
    fresh: Setup, offline_setting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online" if offline_setting else "offline")
    run_dir, events = run_twice(fresh, "wandb", run_name="mine", offline=offline_setting)
    assert notices_of(events) == []
    files = sorted((run_dir / "tracking" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    records = [record for file in files for record in read_wandb(file)]
    runs = [record.run for record in records if record.HasField("run")]
    assert {(run.run_id, run.project, run.display_name) for run in runs} == {
        ((run_dir / "tracking" / "id").read_text(), "tests", "mine")
    }
    config = {item.key: item.value_json for run in runs for item in run.config.update}
    assert json.loads(config["train/learning_rate"]) == 0.01
    history: dict[int, dict[str, Any]] = {}
    for record in records:
        if record.HasField("history"):
            items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            history.setdefault(items["_step"], {}).update(items)
    losses = [values["train/loss"] for _, values in sorted(history.items()) if "train/loss" in values]
    assert losses == pytest.approx([record["loss"] for record in log_of(str(run_dir))])
    captions = [values["validation/captions"] for values in history.values() if "validation/captions" in values]
    assert captions == [["a red square", "a blue square"]] * 2


def use_trackio_folder(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """trackio reads its folder from the environment once, when it is imported."""
    import importlib
    import sys

    monkeypatch.setenv("TRACKIO_DIR", str(folder))
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    importlib.import_module("trackio")


def test_trackio_keeps_one_run_on_this_machine(fresh: Setup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_trackio_folder(monkeypatch, tmp_path / "trackio")
    run_dir, events = run_twice(fresh, "trackio", run_name="mine")
    assert notices_of(events) == []
    import trackio

    (run,) = trackio.Api().runs("tests")
    assert run.name == "mine"
    from trackio.sqlite_storage import SQLiteStorage

    lines = [line for line in SQLiteStorage.get_logs("tests", "mine") if "train/loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["train/loss"] for line in lines] == [record["loss"] for record in log_of(str(run_dir))]
    assert list((tmp_path / "trackio").rglob("*.png"))


class FailingTracker(NoTracker):
    """Fails at a given call, as a network may."""

    fails_at = "log"

    def _fail(self, name: str) -> None:
        if name == self.fails_at:
            raise ConnectionError(f"no route to host in {name}")

    def log(self, values: Any, step: int) -> None:
        self._fail("log")

    def log_pictures(self, pictures: Any, step: int) -> None:
        self._fail("log_pictures")

    def finish(self) -> None:
        self._fail("finish")


@pytest.mark.parametrize("fails_at", ["log", "log_pictures", "finish"])
def test_a_tracker_that_fails_is_named_once_and_the_run_goes_on(
    fresh: Setup, monkeypatch: pytest.MonkeyPatch, fails_at: str, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(FailingTracker, "fails_at", fails_at)
    monkeypatch.setitem(TRACKERS, "jsonl", FailingTracker)
    events: list[Event] = []
    result = fresh.with_events(events).train(tracking=TrackingSettings(), **RUNS)
    assert len(result.losses) == 6
    sentence = f"jsonl is switched off, the run goes on without it: ConnectionError: no route to host in {fails_at}"
    assert notices_of(events) == [sentence]
    assert caplog.text.count(sentence) == 1


@pytest.mark.parametrize("report_to", PACKAGES)
def test_a_missing_library_is_named_with_its_pip_command(
    fresh: Setup, report_to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    events: list[Event] = []
    result = fresh.with_events(events).train(tracking=TrackingSettings(report_to=report_to))
    assert len(result.losses) == 6
    (notice,) = notices_of(events)
    assert notice.startswith(f"{report_to} is switched off")
    assert f"`pip install {PACKAGES[report_to]}`" in notice


def test_wandb_without_a_key_says_so_instead_of_asking(
    fresh: Setup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    events: list[Event] = []
    result = fresh.with_events(events).train(tracking=TrackingSettings(report_to="wandb"))
    assert len(result.losses) == 6
    (notice,) = notices_of(events)
    assert notice.startswith("wandb is switched off")
    assert "wandb login" in notice


def test_a_tracker_that_hangs_is_not_waited_for(fresh: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()

    class Hanging(NoTracker):
        def log(self, values: Any, step: int) -> None:
            held.wait(30)

    monkeypatch.setitem(TRACKERS, "jsonl", Hanging)
    monkeypatch.setattr(tracking_module, "PATIENCE_SECONDS", 0.2)
    events: list[Event] = []
    result = fresh.with_events(events).train(tracking=TrackingSettings())
    assert len(result.losses) == 6
    held.set()
    assert "TimeoutError: no answer in 0 seconds" in notices_of(events)[0]


def test_how_a_run_is_tracked_does_not_start_a_new_one(fresh: Setup) -> None:
    first = fresh.trained()
    again = fresh.train(tracking=TrackingSettings(report_to="tensorboard"), checkpoints=CheckpointSettings())
    assert again.adapter == first.adapter


def test_smoothed_loss_is_a_mean_without_bias() -> None:
    smoothed = Smoothed(0.9)
    assert smoothed.add(2.0) == pytest.approx(2.0)
    assert smoothed.add(4.0) == pytest.approx((0.9 * 2 + 4) / 1.9)


def test_lines_become_named_numbers() -> None:
    line = {"step": 3, "loss": 0.5, "epoch": 0, "files": ["a"], "grad_norm": float("nan"), "loss_by_bin": {4: 0.25}}
    assert flatten_line(line) == {"train/loss": 0.5, "train/epoch": 0, "loss_by_t/0.20-0.25": 0.25}
    measured = {"loss": 0.5, "held_out": {"loss": 0.3, "is_overfit": True}, "held_out_ema": {"loss": 0.2}}
    expected = {"train/loss": 0.5, "held_out/loss": 0.3, "held_out/is_overfit": 1.0, "held_out_ema/loss": 0.2}
    assert flatten_line(measured) == expected
    assert flatten_line({"step": 9, "clip_score": {"live": 27.5}}) == {"clip_score/live": 27.5}


def test_tokens_are_blanked_in_what_a_service_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "wandb_secret")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    text = describe_error(RuntimeError("403 for wandb_secret and hf_secret\nmore"))
    assert text == "RuntimeError: 403 for *** and ***"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"report_to": "paper"}, "report_to is 'paper': choose one of none, jsonl, tensorboard, wandb, trackio"),
        ({"project_name": "a/b"}, "project_name is 'a/b'"),
        ({"project_name": ""}, "project_name is ''"),
        ({"run_name": "../up"}, "run_name is '../up'"),
        ({"offline": "yes"}, "offline is 'yes': it must be of type bool"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(values: dict, sentence: str) -> None:
    with pytest.raises(TrainerError, match=sentence):
        TrackingSettings(**values)
