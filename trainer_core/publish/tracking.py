"""What a run tells a tracker, in a thread of its own; a tracker that fails is named once and told no more."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .background import Background
from .notices import Report, describe_error
from .pictures import read_pictures
from .settings import TrackingSettings
from .trackers import TrackedRun, Tracker, open_tracker

SMOOTHING = 0.98
"""Weight of the past in the smoothed loss: a mean over about 50 steps."""
PATIENCE_SECONDS = 60.0
"""How long a finished run waits for a tracker to take the last values."""
NUM_BINS = 20
"""Of t in the log's `loss_by_bin`."""
MEASURED = ("held_out", "clip_score")
"""What names of groups of numbers in the log begin with."""


class Tracking:
    """Hands steps and pictures of a run to its tracker."""

    def __init__(
        self,
        settings: TrackingSettings,
        *,
        run_name: str,
        folder: Path,
        config: Mapping[str, Any],
        read_losses: Callable[[], Sequence[float]],
        report: Report,
        should_stop: Callable[[], bool],
    ) -> None:
        """
        Args:
            settings: Which tracker, and its names.
            run_name: Name of the run folder.
            folder: See `TrackedRun.folder`.
            config: See `TrackedRun.config`.
            read_losses: Losses of the steps that are done, for the smoothed loss of a resumed run.
            report: Told once if the tracker fails.
            should_stop: Whether the user stopped: then nothing is waited for.
        """
        self._settings = settings
        self._run_name = settings.run_name or run_name
        self._folder = folder
        self._config = config
        self._read_losses = read_losses
        self._report = report
        self._should_stop = should_stop
        self._background = Background("tracking", self._switch_off)
        self._tracker: Tracker | None = None
        self._is_off = False
        self._smoothed = Smoothed(SMOOTHING)

    def started(self, step: int) -> None:
        """Open the tracker's run, or go on with it after this many steps."""
        run = TrackedRun(
            project_name=self._settings.project_name,
            run_name=self._run_name,
            folder=self._folder,
            step=step,
            config=self._config,
            is_offline=self._settings.offline,
        )
        for loss in self._read_losses():
            self._smoothed.add(loss)
        self._background.submit(lambda: self._open(run))

    def _open(self, run: TrackedRun) -> None:
        self._tracker = open_tracker(self._settings.report_to, run)

    def stepped(self, line: Mapping[str, Any]) -> None:
        """Log a line of log.jsonl."""
        values = {**flatten_line(line), "train/loss_smoothed": self._smoothed.add(line["loss"])}
        self._tell(lambda tracker: tracker.log(values, line["step"]))

    def measured(self, line: Mapping[str, Any]) -> None:
        """Log a line of log.jsonl that is not of a step."""
        values = flatten_line(line)
        self._tell(lambda tracker: tracker.log(values, line["step"]))

    def checkpointed(self, step: int, weights_path: Path) -> None:
        """Trackers keep no weights."""

    def validated(self, step: int, picture_paths: Sequence[Path]) -> None:
        """Log validation pictures."""
        self._tell(lambda tracker: tracker.log_pictures(read_pictures(picture_paths), step))

    def finished(self) -> None:
        """Nothing is left to tell."""

    def close(self) -> None:
        """Close the tracker's run, and wait a while for it."""
        self._tell(lambda tracker: tracker.finish())
        if not self._background.close(self._should_stop, PATIENCE_SECONDS) and not self._should_stop():
            self._switch_off(TimeoutError(f"no answer in {PATIENCE_SECONDS:.0f} seconds"))

    def _tell(self, call: Callable[[Tracker], None]) -> None:
        def tell_if_open() -> None:
            if self._tracker is not None and not self._is_off:
                call(self._tracker)

        self._background.submit(tell_if_open)

    def _switch_off(self, error: Exception) -> None:
        if self._is_off:
            return
        self._is_off = True
        reason = describe_error(error)
        self._report("warning", f"{self._settings.report_to} is switched off, the run goes on without it: {reason}")


class Smoothed:
    """Exponential mean without the start's bias towards zero, as in Adam (https://arxiv.org/abs/1412.6980)."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._sum = 0.0
        self._weight = 0.0

    def add(self, value: float) -> float:
        """The mean with a further value."""
        self._sum = self._decay * self._sum + (1 - self._decay) * value
        self._weight = self._decay * self._weight + (1 - self._decay)
        return self._sum / self._weight


def flatten_line(line: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of a line of log.jsonl by the names trackers group: "train/...", "loss_by_t/...", "held_out/...".

    Bins of t are named by their range: 0 is noise, 1 the picture.
    """
    values = {}
    for name, value in line.items():
        if name != "step" and isinstance(value, (int, float)) and math.isfinite(value):
            values[f"train/{name}"] = value
    for group in (name for name in line if name.startswith(MEASURED)):
        values |= {f"{group}/{name}": float(value) for name, value in line[group].items()}
    for number, loss in line.get("loss_by_bin", {}).items():
        start = int(number) / NUM_BINS
        values[f"loss_by_t/{start:.2f}-{start + 1 / NUM_BINS:.2f}"] = loss
    return values
