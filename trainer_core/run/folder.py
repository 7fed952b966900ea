"""The run folder: where a run's job, log, checkpoints, samples and result lie, and what its log says of the result."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import TrainerError
from ..files import write_bytes_atomically, write_json_atomically
from ..run_names import BEST, EMA, list_step_folders, name_of, step_folder, weights_of
from ..validation.clip_report import describe_clip_scores
from ..validation.held_out_log import HeldOutLog, describe_held_out

ADAPTER_FILE, MODEL_FILE = "adapter.safetensors", "model.safetensors"
"""What training gives: an adapter, or a transformer with native names."""
CLIP_SCORE = "clip_score"
"""What a line of the log holds that is not of a step but of the pictures drawn after it."""
KEPT_BY = {
    EMA: "turn on use_ema in Checkpoints and EMA",
    BEST: "hold pictures out (held_out_share or is_held_out) and turn on keep_best in Validation Prompts",
}
"""What makes a run keep other weights than the live ones."""


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Paths and records of one run."""

    path: Path
    weights_file: str = ADAPTER_FILE
    """ADAPTER_FILE or MODEL_FILE."""

    @property
    def name(self) -> str:
        """Name of the folder, which is the name of the run in events and routes."""
        return self.path.name

    @property
    def job_path(self) -> Path:
        return self.path / "job.json"

    @property
    def log_path(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def checkpoints_dir(self) -> Path:
        return self.path / "checkpoints"

    @property
    def final_path(self) -> Path:
        """The finished adapter or model; it exists only when the run is finished."""
        return self.path / "final" / self.weights_file

    @property
    def best_dir(self) -> Path:
        """While the run goes on, weights with the lowest held-out loss, in a folder named by their step."""
        return self.path / "best"

    def best_path(self, step: int) -> Path:
        """The weights of a step that had the lowest held-out loss."""
        return self.best_dir / step_folder(step) / self.weights_file

    @property
    def held_out_log(self) -> HeldOutLog:
        """Held-out losses of the run."""
        return HeldOutLog(path=self.path / "held_out.jsonl")

    @property
    def is_finished(self) -> bool:
        """Whether the run has come to its end, of whichever kind it is."""
        return any((self.path / "final" / name).exists() for name in (ADAPTER_FILE, MODEL_FILE))

    def write_job(self, job: Mapping[str, Any], workflow: str) -> None:
        """Say what the run is made of and how it is watched.

        Args:
            job: What job.json holds, see `job_record.describe_job`.
            workflow: JSON text of the graph; if empty, that of before stays.
        """
        if workflow:
            write_bytes_atomically(self.path / "workflow.json", workflow.encode())
        write_json_atomically(self.job_path, job)

    def extend_job(self, facts: Mapping[str, Any]) -> None:
        """Add to job.json what became known of the run later."""
        write_json_atomically(self.job_path, {**json.loads(self.job_path.read_text(encoding="utf-8")), **facts})

    def samples_dir(self, step: int) -> Path:
        """Validation pictures of one step."""
        return self.path / "samples" / step_folder(step)

    def last_samples(self, weights: str | None = None) -> tuple[Path, ...]:
        """Pictures of the last validation, in the order of the prompts: of all weights, or of these."""
        folders = list_step_folders(self.path / "samples")
        pictures = sorted(folders[-1].glob("*.png")) if folders else []
        return tuple(p for p in pictures if weights in (None, weights_of(p)))

    def append_log(self, record: Mapping[str, Any]) -> None:
        """Add one optimizer step, or the scores of pictures, to log.jsonl."""
        with self.log_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """All records, see `is_step`; what a crash cut short is left out, with everything behind it."""
        if not self.log_path.exists():
            return []
        records = []
        for line in self.log_path.read_bytes().splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:  # half a line, or half a character
                break
        return records

    def flush_log(self) -> None:
        """Have the log on disk before a checkpoint that counts on it."""
        if self.log_path.exists():
            with self.log_path.open("rb+") as file:
                os.fsync(file.fileno())

    def truncate_log(self, step: int) -> None:
        """Drop what was logged after the checkpoint a run resumes from."""
        self._write_log([record for record in self.read_log() if record["step"] <= step])

    def extend_log(self, step: int, facts: Mapping[str, Any]) -> None:
        """Add to the line of an optimizer step what was found out later."""
        records = self.read_log()
        self._write_log([{**r, **facts} if r["step"] == step and is_step(r) else r for r in records])

    def _write_log(self, records: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        write_bytes_atomically(self.log_path, text.encode())

    def losses(self) -> tuple[float, ...]:
        """Loss of each optimizer step."""
        return tuple(record["loss"] for record in self.read_log() if is_step(record))


def is_step(record: Mapping[str, Any]) -> bool:
    """Whether a record of the log is of an optimizer step, not of the pictures drawn after it."""
    return CLIP_SCORE not in record


def choose_file(path: Path, weights: str) -> Path:
    """The file with these weights.

    Args:
        path: The finished adapter or model.
        weights: One of WEIGHTS.

    Raises:
        TrainerError: The run kept none.
    """
    chosen = path.with_name(name_of(path.name, weights))
    if chosen != path and not chosen.exists():
        raise TrainerError(
            f'weights is "{weights}", but there is no {chosen.name} beside {path.name}:'
            f' {KEPT_BY[weights]} and train again, or choose "live"'
        )
    return chosen


def open_run(runs_dir: Path, run_name: str, job: Mapping[str, Any], workflow: str, weights_file: str) -> RunFolder:
    """The folder of a job: the one it was started in, or a new one.

    Another job under the same name is left alone: the new one gets `<name>-2`, `-3` and so on.

    Args:
        runs_dir: Parent of all runs.
        run_name: As the user typed it.
        job: What job.json holds; its fingerprint identifies it.
        workflow: JSON text of the graph, or empty.
        weights_file: What the run will give, see RunFolder.

    Raises:
        TrainerError: The folder holds something that is not a run.
    """
    runs_dir.mkdir(parents=True, exist_ok=True)
    pattern = re.compile(re.escape(run_name) + r"(?:-(\d+))?", re.IGNORECASE)  # some disks ignore case
    taken = {path.name.casefold(): path for path in runs_dir.iterdir() if pattern.fullmatch(path.name)}
    for path in sorted(taken.values()):
        if _fingerprint_of(path) == job["fingerprint"]:
            return RunFolder(path=path, weights_file=weights_file)
    number = 1
    while (name := run_name if number == 1 else f"{run_name}-{number}").casefold() in taken:
        number += 1
    run = RunFolder(path=runs_dir / name, weights_file=weights_file)
    run.path.mkdir()
    run.write_job(job, workflow)
    return run


def _fingerprint_of(path: Path) -> str | None:
    job_path = path / "job.json"
    if not job_path.exists():
        return None
    try:
        return json.loads(job_path.read_text(encoding="utf-8")).get("fingerprint")
    except json.JSONDecodeError as error:
        raise TrainerError(
            f"{job_path} is damaged: delete the folder {path.name} or choose another run_name"
        ) from error


def describe_run_losses(run: RunFolder) -> str:
    """The last held-out losses; empty if there are none."""
    return describe_held_out(run.held_out_log.read())


def describe_scores(run: RunFolder) -> str:
    """The last measurements of every kind; empty if there are none."""
    texts = [describe_run_losses(run)]
    last = next((line for line in reversed(run.read_log()) if CLIP_SCORE in line), None)
    if last is not None:
        texts.append(describe_clip_scores(last[CLIP_SCORE], last["step"]))
    return "\n".join(filter(None, texts))
