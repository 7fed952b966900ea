"""Experiment trackers, each behind the same four calls; built on accelerate's tracker classes."""

from __future__ import annotations

import importlib.util
import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import TrainerError
from .pictures import Picture

PICTURES = "validation"
"""Name of the pictures in a tracker."""
METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """The run as a tracker is told of it when it starts."""

    project_name: str
    run_name: str
    folder: Path
    """`tracking/` in the run folder; what a tracker writes lies there and goes on there when the run resumes."""
    step: int
    """Optimizer steps that are done: what a tracker has beyond them is drawn again."""
    config: Mapping[str, Any]
    """Settings of the job by "group/name": numbers, strings and booleans."""
    is_offline: bool


class Tracker(Protocol):
    """One open run of a tracker; any call may fail in any way."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one optimizer step."""

    def log_pictures(self, pictures: Sequence[Picture], step: int) -> None:
        """Validation pictures with their prompts."""

    def finish(self) -> None:
        """Send what is left, and close."""


class NoTracker:
    """Keeps nothing: log.jsonl alone."""

    def __init__(self, run: TrackedRun) -> None:
        pass

    def log(self, values: Mapping[str, float], step: int) -> None:
        pass

    def log_pictures(self, pictures: Sequence[Picture], step: int) -> None:
        pass

    def finish(self) -> None:
        pass


class JsonlTracker:
    """One line of JSON for each step and each validation, after a first line with the settings."""

    def __init__(self, run: TrackedRun) -> None:
        run.folder.mkdir(parents=True, exist_ok=True)
        self._path = run.folder / METRICS_FILE
        self._run_dir = run.folder.parent
        names = {"project": run.project_name, "run": run.run_name}
        kept = [line for line in self._read() if 0 < line.get("step", 0) <= run.step]
        lines = [{**names, "config": dict(run.config)}, *kept]
        self._path.write_text("".join(_to_line(line) for line in lines), encoding="utf-8")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._append({"step": step, **values})

    def log_pictures(self, pictures: Sequence[Picture], step: int) -> None:
        entries = [{"path": p.path.relative_to(self._run_dir).as_posix(), "prompt": p.prompt} for p in pictures]
        self._append({"step": step, PICTURES: entries})

    def finish(self) -> None:
        pass

    def _append(self, line: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_to_line(line))

    def _read(self) -> list[dict[str, Any]]:
        lines = []
        for line in self._path.read_bytes().splitlines() if self._path.exists() else ():
            try:
                lines.append(json.loads(line))
            except ValueError:  # cut short by a crash
                break
        return lines


def _to_line(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"


class TensorBoardTracker:
    """Event files in the run folder: `tensorboard --logdir` of the folder with all runs compares them."""

    def __init__(self, run: TrackedRun) -> None:
        tracking = _accelerate_tracking()
        folder = run.folder / "tensorboard" / run.project_name
        # purge_step has readers drop what an interrupted run logged beyond its checkpoint
        self._tracker = tracking.TensorBoardTracker(run.run_name, folder, purge_step=run.step + 1)
        self._tracker.start()
        if run.step == 0:
            self._store_config(run.config)

    def _store_config(self, config: Mapping[str, Any]) -> None:
        """accelerate's own way makes a further run, named by the time, for the hyperparameters."""
        from torch.utils.tensorboard.summary import hparams

        writer = self._tracker.tracker.file_writer
        for summary in hparams(dict(config), {"train/loss_smoothed": 0.0}):
            writer.add_summary(summary)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(values), step=step)

    def log_pictures(self, pictures: Sequence[Picture], step: int) -> None:
        import numpy
        from PIL import Image

        for number, picture in enumerate(pictures):
            name = f"{PICTURES}/{number:02d}"
            with Image.open(picture.path) as image:
                pixels_1HWC = numpy.asarray(image.convert("RGB"))[None]
            self._tracker.log_images({name: pixels_1HWC}, step=step, dataformats="NHWC")
            self._tracker.log({f"{name}/prompt": picture.prompt}, step=step)

    def finish(self) -> None:
        self._tracker.finish()


class WandbTracker:
    """Weights & Biases, on its server or in the run folder."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        # wandb reads its environment once a process, which may have been before the variable was set
        mode = "offline" if run.is_offline else os.environ.get("WANDB_MODE")
        is_online = (mode or "online") in ("online", "shared", "run")
        # wandb would ask for a key in the terminal and wait for an answer
        if is_online and not wandb.login(timeout=1):
            raise TrainerError("wandb has no key: run `wandb login`, set WANDB_API_KEY, or turn offline on")
        run.folder.mkdir(parents=True, exist_ok=True)
        self._tracker = _accelerate_tracking().WandBTracker(
            run.project_name,
            name=run.run_name,
            id=_run_id(run.folder),
            resume="allow",
            dir=str(run.folder),
            mode=mode,
            config=dict(run.config),
            reinit="create_new",
            # neither the terminal's text nor a repository that happens to lie around is the run's
            settings=wandb.Settings(console="off", disable_git=True, save_code=False),
        )
        self._tracker.start()

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(values), step=step)

    def log_pictures(self, pictures: Sequence[Picture], step: int) -> None:
        import wandb

        images = [wandb.Image(str(picture.path), caption=picture.prompt) for picture in pictures]
        self._tracker.log({PICTURES: images}, step=step)

    def finish(self) -> None:
        self._tracker.finish()


class TrackioTracker:
    """trackio, in its own folder on this machine; `trackio show` opens it."""

    def __init__(self, run: TrackedRun) -> None:
        self._tracker = _accelerate_tracking().TrackioTracker(
            run.project_name,
            name=run.run_name,
            resume="allow" if run.step else "never",
            config=dict(run.config),
            embed=False,
            auto_log_cpu=False,
        )
        self._tracker.start()

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(values), step=step)

    def log_pictures(self, pictures: Sequence[Picture], step: int) -> None:
        import trackio

        for number, picture in enumerate(pictures):
            image = trackio.Image(str(picture.path), caption=picture.prompt)
            self._tracker.log({f"{PICTURES}/{number:02d}": image}, step=step)

    def finish(self) -> None:
        self._tracker.finish()


TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "none": NoTracker,
    "jsonl": JsonlTracker,
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "trackio": TrackioTracker,
}
"""Each opens its run, or goes on with it."""
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}
"""What pip installs for a tracker."""


def open_tracker(name: str, run: TrackedRun) -> Tracker:
    """Open the run in a tracker.

    Raises:
        TrainerError: Its library is not installed, or it wants a key.
        Exception: Whatever the library or its server makes of it.
    """
    package = PACKAGES.get(name)
    if package and importlib.util.find_spec(package) is None:
        raise TrainerError(f"{package} is not installed: run `pip install {package}` in this Python environment")
    return TRACKERS[name](run)


def _run_id(folder: Path) -> str:
    """The id of this run at a tracker's server: drawn once, kept beside what the tracker writes."""
    path = folder / "id"
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _accelerate_tracking() -> Any:
    from accelerate import PartialState, tracking

    PartialState()  # accelerate's loggers refuse to work without it
    return tracking
