"""What a run is made of, before anything of it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..context import StepContext
from ..data.cache import TrainingSample
from ..data.index import EmbedIndex
from .folder import RunFolder
from .job import TrainJob
from .trained_weights import TrainedWeights


@dataclass(frozen=True, kw_only=True)
class Run:
    """A job that was checked, with its folder, its samples and its surroundings."""

    job: TrainJob
    folder: RunFolder
    weights: TrainedWeights
    """How training an adapter, or the model itself, is done."""
    samples: Sequence[TrainingSample]
    """What is trained on."""
    held_out: Sequence[TrainingSample]
    """What is measured on and never trained on."""
    embeds: EmbedIndex
    context: StepContext

    @property
    def name(self) -> str:
        """Name of the run in events, routes and the log."""
        return self.folder.name
