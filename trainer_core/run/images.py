"""The pictures of a run: the validation prompts drawn as it goes on, and those of the base, drawn once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..data.cache import load_embeds
from ..device import explained_out_of_memory, free_memory
from ..errors import TrainerError
from ..events import make_notice
from ..run_names import BASE, suffix_of
from ..training.session import TrainingSession
from ..training.weight_views import WeightView
from ..validation.clip_report import ClipReport, report_clip_scores
from ..validation.pictures import load_prompt_embeds, plan_pictures
from ..validation.render import NOTHING, render_pictures
from ..validation.settings import PictureSettings, ValidationSettings
from .prepared import Run

logger = logging.getLogger(__name__)

NOT_DRAWN = {"draw_base", "prompt_library", "clip_model", "clip_device"}
"""Settings that change no picture of the base."""


@dataclass(frozen=True, kw_only=True)
class RunPictures:
    """Draws them; all but `describe` is called by all processes of the run."""

    run: Run
    settings: ValidationSettings
    session: TrainingSession
    views: Sequence[WeightView]
    """The weights that are drawn with."""

    def start(self) -> None:
        """Draw the base, if that is wanted, not done yet and still possible."""
        if not self.settings.draw_base or self.session.processes.from_main(self._base_dir.exists):
            return
        if self.session.base_only is None and self.session.step > 0:
            logger.warning(
                "%s: draw_base was turned on after training began, and the model has changed since: draw the base with"
                " Validate",
                self.run.name,
            )
            return
        self._render(self._base_dir, {"": self._base_in_use})

    def draw(self) -> tuple[Path, ...]:
        """Draw with the weights of this step; pictures of the base lie beside them if there are any."""
        has_base = self.session.processes.from_main(lambda: self._has_base)
        beside = {suffix_of(BASE): self._base_dir} if has_base else {}
        weights = {suffix_of(view.name): view.in_use for view in self.views}
        return self._render(self.run.folder.samples_dir(self.session.step), weights, beside)

    def score(self, paths: Sequence[Path]) -> ClipReport | None:
        """CLIP scores of pictures that `draw` gave, if that is wanted; the run goes on where they cannot be had."""
        if not self.settings.clip_model:
            return None
        remedies = ["set clip_device of Validation Prompts to cpu"]
        try:
            with self.session.processes.telling_failure(), explained_out_of_memory("scoring pictures", remedies):
                return report_clip_scores(self.settings, paths, self.run.context, self.session.processes)
        except TrainerError as error:
            message = f"pictures of step {self.session.step} were not scored: {error}"
            logger.warning("%s: %s", self.run.name, message)
            self.run.context.emit(make_notice(self.run.name, message))
            return None
        finally:
            free_memory(self.run.context.device)

    def describe(self) -> tuple[list[str], list[str]]:
        """Prompt and weights of each picture that `draw` gives."""
        names = [view.name for view in self.views] + [BASE] * self._has_base
        pictures = plan_pictures(self.settings)
        return [picture.prompt for picture in pictures for _ in names], [name for _ in pictures for name in names]

    @property
    def _has_base(self) -> bool:
        return self.settings.draw_base and self._base_dir.exists()

    @property
    def _base_dir(self) -> Path:
        """Its name tells with which settings the base was drawn."""
        names = {field.name for field in dataclasses.fields(PictureSettings)} - NOT_DRAWN
        facts = {name: getattr(self.settings, name) for name in sorted(names)}
        facts["named_prompts"] = [dataclasses.astuple(named) for named in self.settings.named_prompts]
        key = hashlib.sha256(json.dumps([facts, self.run.embeds.system_prompt]).encode()).hexdigest()[:12]
        return self.run.folder.path / "samples" / f"base-{key}"

    @contextmanager
    def _base_in_use(self) -> Iterator[None]:
        if self.session.base_only is None:  # before the first step
            yield
            return
        with self.session.base_only(self.session.transformer):
            yield

    def _render(
        self,
        folder: Path,
        weights: Mapping[str, Callable[[], AbstractContextManager[None]]],
        beside: Mapping[str, Path] = NOTHING,
    ) -> tuple[Path, ...]:
        return render_pictures(
            self.settings,
            transformer=self.session.transformer,
            vae_path=Path(self.run.job.model.vae_path),
            prompt_embeds=load_prompt_embeds(self.settings, self.run.embeds),
            negative_embeds=load_embeds(self.run.embeds.negative_path(self.settings.negative_prompt)),
            precision=self.run.job.model.precision,
            folder=folder,
            should_stop=self.run.context.should_stop,
            weights=weights,
            beside=beside,
            processes=self.session.processes,
        )
