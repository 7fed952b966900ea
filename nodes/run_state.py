"""The state of a run as the progress widget needs it: read from its folder, with what is live on top."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ..trainer_core.run.folder import RunFolder, is_step
from ..trainer_core.run.job import RESERVED_RUN_NAMES
from ..trainer_core.run_names import BASE, LIVE, list_step_folders, step_of, weights_of

MAX_CURVE_POINTS = 500
NUM_RECENT_STEPS = 20
"""Steps over which the seconds of a step are averaged."""
NUM_BIN_STEPS = 500
"""Steps over which the loss of each noise level is averaged."""
PLANNED = ("memory_plan", "predicted_peak_gib", "predicted_seconds")
"""What is known of a running one before its first step."""
CURVES = ("learning_rate", "grad_norm", "peak_memory_gib")
"""What has a curve beside the loss."""


def is_run_name(name: str) -> bool:
    """Whether a run folder may have this name; keeps paths out of the routes."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]{0,119}", name, re.ASCII) is not None and name not in RESERVED_RUN_NAMES


def find_newest_run(runs_dir: Path, name: str, own: Collection[str] = ()) -> str:
    """Of `name`, `name-2`, `name-3` and so on the one written last: another job under a taken name gets a number.

    Args:
        runs_dir: Parent of all run folders.
        name: What run_name says.
        own: Runs of the node that asks; where one of them fits, no other run is looked at.
    """
    pattern = re.compile(re.escape(name) + r"(-\d+)?")
    names = [path.name for path in runs_dir.glob(f"{name}*") if pattern.fullmatch(path.name)]
    logs = [runs_dir / fitting / "log.jsonl" for fitting in set(names).intersection(own) or names]
    newest = max((log for log in logs if log.exists()), key=lambda log: log.stat().st_mtime_ns, default=None)
    return newest.parent.name if newest else name


def read_state(
    path: Path, live: Mapping[str, Any] | None, view_of: Callable[[Path], dict[str, str]]
) -> dict[str, Any] | None:
    """State of a run, as docs/api.md shows it.

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
    planned = (live or {}).get("planned", {})
    validations = _list_validations(run, view_of)
    latest = validations[-1] if validations else {"step": 0, "images": []}
    return {
        "run": run.name,
        "node": (live or {}).get("node", ""),
        "status": (live or {}).get("status") or ("finished" if run.is_finished else "stopped"),
        "message": (live or {}).get("message", ""),
        "notice": {key: (live or {}).get("notice", {}).get(key, "") for key in ("level", "message")},
        "step": last.get("step", 0),
        "total": progress.get("total") or planned.get("total") or _num_steps(run),
        "loss": last.get("loss"),
        **{name: last.get(name) for name in CURVES},
        **{name: planned.get(name) for name in PLANNED},
        "seconds_per_step": _mean_seconds(records),
        "losses": _thin_out([[record["step"], record["loss"]] for record in records]),
        "curves": {name: _thin_out([[r["step"], r[name]] for r in records if name in r]) for name in CURVES},
        "loss_by_bin": _mean_by_bin(records[-NUM_BIN_STEPS:]),
        "held_out": [[line.step, line.loss] for line in run.held_out_log.read() if line.weights in (BASE, LIVE)],
        "validation": {"step": latest["step"], "images": latest["images"]},
        "validations": validations,
    }


def draws_pictures(path: Path) -> bool:
    """Whether a run has validation prompts."""
    validation = _read_job(RunFolder(path=path)).get("validation") or {}
    return any(
        (validation.get("prompts", "").strip(), validation.get("named_prompts"), validation.get("draw_unconditional"))
    )


def _list_validations(run: RunFolder, view_of: Callable[[Path], dict[str, str]]) -> list[dict[str, Any]]:
    """Step, pictures, and what each was drawn from, of every validation in order."""
    found = []
    for folder in list_step_folders(run.path / "samples"):
        pictures = sorted(folder.glob("*.png"))
        found.append(
            {
                "step": step_of(folder),
                "images": [view_of(picture) for picture in pictures],
                "prompts": [_prompt_of(picture) for picture in pictures],
                "weights": [weights_of(picture) for picture in pictures],
            }
        )
    return found


def _prompt_of(picture: Path) -> str:
    """What it was drawn from, as its file says."""
    try:
        with Image.open(picture) as image:
            return str(image.info.get("prompt", ""))
    except OSError:  # half a file, or none any more
        return ""


def _mean_by_bin(records: list[dict[str, Any]]) -> dict[str, float]:
    """Mean loss of each bin of t that had a sample, by number."""
    losses: dict[str, list[float]] = {}
    for record in records:
        for number, loss in record.get("loss_by_bin", {}).items():
            losses.setdefault(number, []).append(loss)
    return {number: sum(values) / len(values) for number, values in sorted(losses.items(), key=lambda i: int(i[0]))}


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
