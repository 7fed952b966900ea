"""Measures the held-out loss while a run goes on, and keeps the weights it was lowest with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.cache import TrainingSample, load_embeds, load_latents
from ..events import Event, make_notice
from ..files import delete_folders
from ..lumina2.encoders.vae import VAE_SCALE
from ..lumina2.encoders.vae_sizes import LATENT_CHANNELS
from ..run_names import BASE, list_step_folders, suffix_of
from ..seeds import derive_seed
from ..training.session import TrainingSession
from ..training.weight_views import WeightView
from ..validation.held_out_log import (
    HeldOutLine,
    HeldOutLog,
    Verdict,
    describe_overfit,
    find_best,
    judge,
)
from ..validation.held_out_loss import HeldOutSample, held_out_losses
from ..validation.settings import ValidationSettings
from .job import is_due
from .prepared import Run

logger = logging.getLogger(__name__)

NUM_DRAWS = 8
"""Noise and times drawn for each held-out sample."""


@dataclass(kw_only=True)
class HeldOutWatch:
    """Of one run."""

    run: Run
    settings: ValidationSettings
    session: TrainingSession
    views: Sequence[WeightView]
    """The weights that are measured."""
    write: Callable[[WeightView, Path], None]
    """Writes the file of some weights."""
    before_batch: Callable[[], None]
    """May raise to end a measurement."""
    _was_told: bool = False

    @property
    def log(self) -> HeldOutLog:
        """Of the run."""
        return self.run.folder.held_out_log

    def start(self) -> None:
        """Go on after the step the run is at, and measure the base if that was not done yet; by all processes."""
        if self.session.processes.from_main(self._goes_on_with_base):
            return
        if self.session.base_only is not None:
            with self.session.base_only(self.session.transformer):
                self._measure_base()
        elif self.session.step == 0:  # later the base is gone
            self._measure_base()

    def _goes_on_with_base(self) -> bool:
        self.log.truncate(self.session.step)
        return self.log.find(0, BASE) is not None

    def _measure_base(self) -> None:
        line = self._measure(0, BASE)
        self.session.processes.from_main(lambda: self.log.append(line))

    def is_due(self, step: int) -> bool:
        """Whether a step is followed by a measurement."""
        return is_due(step, self.settings.held_out_step_interval, self.run.job.train.steps)

    def measure(self) -> dict[str, Any]:
        """Measure after a step, and keep the weights if the loss is the lowest so far; by all processes.

        Returns:
            What log.jsonl says of it: a group of numbers for each kind of weights, named "held_out" and their suffix.
        """
        step, facts = self.session.step, {}
        from_main = self.session.processes.from_main
        for view in self.views:
            # There is a line if the run goes on from before its best step.
            line = from_main(partial(self.log.find, step, view.name))
            if line is None:
                with view.in_use():
                    line = self._measure(step, view.name)
                from_main(partial(self._take, view, line))
            facts[f"held_out{suffix_of(view.name)}"] = from_main(partial(self._judge, line)).to_json()
        return facts

    def _judge(self, line: HeldOutLine) -> Verdict:
        return judge(self.log.read(), line)

    def _measure(self, step: int, weights: str) -> HeldOutLine:
        losses = held_out_losses(
            self.session.transformer,
            [to_held_out_sample(sample) for sample in self.run.held_out],
            noise_settings=self.run.job.noise,
            precision=self.run.job.model.precision,
            num_draws=NUM_DRAWS,
            seed=derive_seed(self.run.job.train.seed, "held-out"),
            batch_size=self.run.job.train.batch_size,
            before_batch=self.before_batch,
            processes=self.session.processes,
        )
        return HeldOutLine(step=step, weights=weights, losses=losses)

    def _take(self, view: WeightView, line: HeldOutLine) -> None:
        self._record(view, line)
        self._tell(self._judge(line))

    def _record(self, view: WeightView, line: HeldOutLine) -> None:
        """Log a measurement; weights with the lowest loss are on disk before the line that names them."""
        best = find_best(self.log.read())
        if not self.settings.keep_best or (best is not None and best.loss <= line.loss):
            self.log.append(line)
            return
        path = self.run.folder.best_path(line.step)
        self.write(view, path)
        self.log.append(line)
        delete_folders(folder for folder in list_step_folders(self.run.folder.best_dir) if folder != path.parent)

    def _tell(self, verdict: Verdict) -> None:
        """Send the numbers, and warn once of a run that overfits."""
        line = verdict.line
        data = {"step": line.step, "weights": line.weights, **verdict.to_json()}
        self.run.context.emit(Event(kind="held_out", run=self.run.name, data=data))
        if verdict.is_overfit and not self._was_told:
            self._was_told = True
            message = describe_overfit(verdict)
            logger.warning("%s: %s", self.run.name, message)
            self.run.context.emit(make_notice(self.run.name, message))


def to_held_out_sample(sample: TrainingSample) -> HeldOutSample:
    """A sample as the measurement takes it: its first crop and first caption."""

    def load() -> tuple[Tensor, Tensor]:
        return load_latents(sample.latents_path), load_embeds(sample.embeds_path)

    return HeldOutSample(
        picture=sample.content_hash,
        latent_shape=(LATENT_CHANNELS, sample.height // VAE_SCALE, sample.width // VAE_SCALE),
        load=load,
    )
