"""What a run leaves behind after each step: log lines, checkpoints, pictures, events, and the finished weights."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import Tensor

from ..adapters.metadata import RunFacts
from ..errors import StopTraining
from ..events import Event
from ..files import copy_atomically, write_safetensors_atomically
from ..run_names import BEST, LIVE, VALIDATED_WEIGHTS, name_of, step_folder
from ..training.checkpoints import WeightsFile, prune_checkpoints, save_checkpoint
from ..training.session import TrainingSession
from ..training.step_record import StepRecord
from ..training.weight_views import WeightView
from ..validation.clip_report import ClipReport
from ..validation.held_out_log import find_best
from ..validation.pictures import plan_pictures
from .folder import CLIP_SCORE
from .held_out import HeldOutWatch
from .images import RunPictures
from .job import is_due
from .observers import RunObserver
from .prepared import Run

SPEED_WINDOW = 20
"""Steps over which seconds a step is averaged."""
WEIGHTS_KEY = "lumina2_trainer.weights"
"""Metadata of a file: which weights it holds."""


@dataclass(kw_only=True)
class Recorder:
    """Keeps the run folder and the listeners up to date; the main process writes, all draw and measure.

    All processes call `start`, `record_step`, `validate` and `finish`, the main one alone `save_checkpoint`.
    """

    run: Run
    session: TrainingSession
    observers: Sequence[RunObserver]
    _seconds: list[float] = field(default_factory=list)
    _validated_step: int = -1
    _held_out: HeldOutWatch | None = None
    _pictures: RunPictures | None = None

    def start(self) -> None:
        """Before the first step of a run, or of its continuation."""
        settings, views = self.run.job.validation, self._validated_views()
        if settings is None:
            return
        if plan_pictures(settings):
            self._pictures = RunPictures(run=self.run, settings=settings, session=self.session, views=views)
            self._pictures.start()
        if self.run.held_out:
            self._held_out = HeldOutWatch(
                run=self.run,
                settings=settings,
                session=self.session,
                views=views,
                write=self._write_best,
                before_batch=self._stop_if_asked,
            )
            self._held_out.start()
        self._make_up()

    def _make_up(self) -> None:
        """Do what was due after the step a run goes on from and was cut short."""
        step, validation = self.session.step, self.run.job.validation
        if step == 0 or validation is None:
            return
        from_main = self.session.processes.from_main
        if self._held_out is not None and self._held_out.is_due(step):
            facts = self._held_out.measure()
            from_main(lambda: self.run.folder.extend_log(step, facts))
        if is_due(step, validation.every_num_steps) and not from_main(self.run.folder.samples_dir(step).exists):
            self.validate()

    def _stop_if_asked(self) -> None:
        if self.run.context.should_stop():
            raise StopTraining

    def record_step(self, record: StepRecord) -> None:
        """Log one step and do what is due after it or was asked for; only then do processes wait for the main one."""
        processes = self.session.processes
        line = {name: value for name, value in dataclasses.asdict(record).items() if value is not None}
        try:
            if self._held_out is not None and self._held_out.is_due(record.step):
                line |= self._held_out.measure()
        finally:  # the step is done, whatever becomes of the measurement
            if processes.is_main:
                self.run.folder.append_log(line)
        for observer in self.observers:
            observer.stepped(line)
        self._seconds = [*self._seconds[1 - SPEED_WINDOW :], record.seconds]
        self._emit_progress(record)
        wishes = self.run.context.take_requests(self.run.name) if processes.count == 1 else self.session.wishes
        if is_due(record.step, self.run.job.checkpoints.checkpoint_step_interval) or "save" in wishes:
            processes.from_main(self.save_checkpoint)
        validation = self.run.job.validation
        if "validate" in wishes or (validation and is_due(record.step, validation.every_num_steps)):
            self.validate()

    def _emit_progress(self, record: StepRecord) -> None:
        seconds_per_step = sum(self._seconds) / len(self._seconds)
        total = self.run.job.train.steps
        data = {
            "step": record.step,
            "total": total,
            "loss": record.loss,
            "loss_by_bin": record.loss_by_bin,
            "learning_rate": record.learning_rate,
            "grad_norm": record.grad_norm,
            "seconds_per_step": seconds_per_step,
            "eta_seconds": seconds_per_step * (total - record.step),
            "peak_memory_gib": record.peak_memory_gib,
            "epoch": record.epoch,
        }
        self.run.context.emit(Event(kind="progress", run=self.run.name, data=data))

    def save_checkpoint(self) -> None:
        """Write a checkpoint of the current step and delete the oldest beyond the number kept."""
        step = self.session.step
        if step == 0:
            return
        folder = self.run.folder.checkpoints_dir / step_folder(step)
        self.run.folder.flush_log()
        save_checkpoint(
            folder,
            step=step,
            parameters=self.session.parameters,
            optimizer=self.session.optimizer,
            files=self._files(),
            average=self.session.average,
        )
        for observer in self.observers:
            observer.checkpointed(step, folder / self.run.weights.file_name)
        prune_checkpoints(self.run.folder.checkpoints_dir, self.run.job.checkpoints.num_checkpoints_kept)
        path = (folder / self.run.weights.file_name).relative_to(self.run.folder.path).as_posix()
        self.run.context.emit(Event(kind="checkpoint", run=self.run.name, data={"step": step, "path": path}))

    def validate(self) -> None:
        """Draw the validation prompts with the weights as they are, with their average, or both."""
        if self._pictures is None or self._validated_step == self.session.step:
            return
        paths = self._pictures.draw()
        self._validated_step = self.session.step
        for observer in self.observers:
            observer.validated(self.session.step, paths)
        report = self._pictures.score(paths)
        if self.session.processes.is_main:
            self._tell_of_pictures(self._pictures, paths, report)

    def _tell_of_pictures(self, pictures: RunPictures, paths: Sequence[Path], report: ClipReport | None) -> None:
        images = [path.relative_to(self.run.folder.path).as_posix() for path in paths]
        prompts, names = pictures.describe()
        data = {"step": self.session.step, "images": images, "prompts": prompts, "weights": names}
        if report is not None:
            line = {"step": self.session.step, CLIP_SCORE: report.summary()}
            self.run.folder.append_log(line)
            for observer in self.observers:
                observer.measured(line)
            data["clip_scores"] = list(report.scores)
        self.run.context.emit(Event(kind="validation", run=self.run.name, data=data))

    def _validated_views(self) -> list[WeightView]:
        """The weights that are looked at: as they are, their average, or both."""
        chosen = VALIDATED_WEIGHTS[self.run.job.checkpoints.ema_validation] if self.session.ema else (LIVE,)
        return [view for view in self.session.views if view.name in chosen]

    def finish(self) -> None:
        """Last checkpoint, last pictures, and the finished weights, whose presence ends the run."""
        self.session.processes.from_main(self.save_checkpoint)
        self.validate()
        self.session.processes.from_main(self._write_final)

    def _write_final(self) -> None:
        self._finish_best()
        for file in reversed(self._files()):  # the live weights last
            with file.opened() as tensors:
                write_safetensors_atomically(self.run.folder.final_path.with_name(file.name), tensors, file.metadata)

    def _write_best(self, view: WeightView, path: Path) -> None:
        with self._export(view) as tensors:
            write_safetensors_atomically(path, tensors, {**self._metadata(), WEIGHTS_KEY: BEST})

    def _finish_best(self) -> None:
        """Put the weights with the lowest held-out loss beside where the others will be."""
        best = find_best(self.run.folder.held_out_log.read()) if self._held_out is not None else None
        if best is not None and self.run.folder.best_path(best.step).exists():
            final = self.run.folder.final_path
            copy_atomically(self.run.folder.best_path(best.step), final.with_name(name_of(final.name, BEST)))

    def _files(self) -> list[WeightsFile]:
        """What other programs read, the live weights first."""
        metadata = self._metadata()
        return [
            WeightsFile(
                name=name_of(self.run.weights.file_name, view.name),
                opened=partial(self._export, view),
                metadata={**metadata, WEIGHTS_KEY: view.name},
                is_trained=view.is_trained,
            )
            for view in self.session.views
        ]

    @contextmanager
    def _export(self, view: WeightView) -> Iterator[Mapping[str, Tensor]]:
        with view.in_use():
            yield self.run.weights.export(self.session.parameters)

    def _metadata(self) -> dict[str, str]:
        job, train = self.run.job, self.run.job.train
        width, height = max(((s.width, s.height) for s in self.run.samples), key=math.prod)
        facts = RunFacts(
            title=self.run.name,
            base_name=job.model.name,
            base_fingerprint=job.model.fingerprint,
            trigger_words=self.run.embeds.trigger_words,
            system_prompt=self.run.embeds.system_prompt,
            text_attention=job.model.text_attention,
            resolution=f"{width}x{height}",
            step=self.session.step,
            num_steps=train.steps,
            num_images=len(self.run.samples),
            batch_size=train.batch_size,
            gradient_accumulation_steps=job.optimizer.gradient_accumulation_steps,
            learning_rate=train.learning_rate,
            optimizer=train.optimizer,
            lr_schedule=job.optimizer.lr_schedule,
            seed=train.seed,
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )
        return self.run.weights.metadata(facts, self.session.transformer)
