"""The state of a run as the progress widget needs it: read from its folder, with what is live on top."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..trainer_core.job import RESERVED_RUN_NAMES
from ..trainer_core.run_folder import RunFolder, is_step

MAX_CURVE_POINTS = 500
NUM_RECENT_STEPS = 20
"""Steps over which the seconds of a step are averaged."""


def is_run_name(name: str) -> bool:
    """Whether a run folder may have this name; keeps paths out of the routes."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]{0,119}", name, re.ASCII) is not None and name not in RESERVED_RUN_NAMES


def find_newest_run(runs_dir: Path, name: str) -> str:
    """Of `name`, `name-2`, `name-3` and so on the one written last: another job under a taken name gets a number."""
    pattern = re.compile(re.escape(name) + r"(-\d+)?")
    logs = [path / "log.jsonl" for path in runs_dir.glob(f"{name}*") if pattern.fullmatch(path.name)]
    newest = max((log for log in logs if log.exists()), key=lambda log: log.stat().st_mtime_ns, default=None)
    return newest.parent.name if newest else name


def read_state(
    path: Path, live: Mapping[str, Any] | None, view_of: Callable[[Path], dict[str, str]]
) -> dict[str, Any] | None:
    """State of a run, as README documents it.

    Args:
        path: The run's folder; it may not exist yet.
        live: What this process knows of the run, see `LiveRuns.snapshot`.
        view_of: Gives the browser's way to a picture file.

    Returns:
        None if there is neither a folder nor anything live.
    """
    run = RunFolder(path=path)
    if live is None and not run.job_path.exists():
        return None
    records = [record for record in run.read_log() if is_step(record)]
    last = records[-1] if records else {}
    progress = (live or {}).get("progress", {})
    samples = run.last_samples()
    return {
        "run": run.name,
        "node": (live or {}).get("node", ""),
        "status": (live or {}).get("status") or ("finished" if run.is_finished else "stopped"),
        "message": (live or {}).get("message", ""),
        "notice": {key: (live or {}).get("notice", {}).get(key, "") for key in ("level", "message")},
        "step": last.get("step", 0),
        "total": progress.get("total") or _num_steps(run),
        "loss": last.get("loss"),
        "learning_rate": last.get("learning_rate"),
        "seconds_per_step": _mean_seconds(records),
        "losses": _thin_out([[record["step"], record["loss"]] for record in records]),
        "validation": {
            "step": int(samples[0].parent.name.rpartition("-")[2]) if samples else 0,
            "images": [view_of(sample) for sample in samples],
        },
    }


def draws_pictures(path: Path) -> bool:
    """Whether a run has validation prompts."""
    validation = _read_job(RunFolder(path=path)).get("validation") or {}
    return any(
        (validation.get("prompts", "").strip(), validation.get("named_prompts"), validation.get("draw_unconditional"))
    )


def _num_steps(run: RunFolder) -> int:
    return _read_job(run).get("train", {}).get("steps", 0)


def _read_job(run: RunFolder) -> dict[str, Any]:
    return json.loads(run.job_path.read_text(encoding="utf-8")) if run.job_path.exists() else {}


def _mean_seconds(records: list[dict[str, Any]]) -> float | None:
    seconds = [record["seconds"] for record in records[-NUM_RECENT_STEPS:] if "seconds" in record]
    return sum(seconds) / len(seconds) if seconds else None


def _thin_out(points: list[list[float]]) -> list[list[float]]:
    """At most MAX_CURVE_POINTS points: means of equal stretches, so that a peak moves the curve and doesn't vanish."""
    if len(points) <= MAX_CURVE_POINTS:
        return points
    bounds = [round(i * len(points) / MAX_CURVE_POINTS) for i in range(MAX_CURVE_POINTS + 1)]
    stretches = [points[a:b] for a, b in itertools.pairwise(bounds)]
    return [[stretch[-1][0], sum(p[1] for p in stretch) / len(stretch)] for stretch in stretches]
