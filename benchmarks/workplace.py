"""The public steps of this project on a base and on folders of pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from lumina2_trainer.trainer_core.context import StepContext
from lumina2_trainer.trainer_core.data.cache import EmbedCache, LatentCache
from lumina2_trainer.trainer_core.data.folder import Dataset, DatasetFolder, DatasetFolderSettings
from lumina2_trainer.trainer_core.events import Event
from lumina2_trainer.trainer_core.lumina2.models.base_files import DEMO_BASE, find_model_files
from lumina2_trainer.trainer_core.lumina2.models.model_files import LoadSettings, Lumina2Model
from lumina2_trainer.trainer_core.stages import caches


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """A base and the device it runs on."""

    base_path: Path | None
    """An all-in-one file; None for the demo's."""
    device: torch.device
    resolution: int
    """Side in pixels of the square whose area every picture is scaled to."""
    precision: str

    def context(
        self,
        output_dir: Path,
        emit: Callable[[Event], None] = lambda event: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> StepContext:
        """What surrounds steps that write below `output_dir`."""
        folders = () if self.base_path is None else (self.base_path.parent,)
        return StepContext(
            output_dir=output_dir,
            loras_dir=output_dir / "loras",
            device=self.device,
            model_dirs={"checkpoints": folders},
            emit=emit,
            should_stop=should_stop,
        )

    def load(self, context: StepContext) -> Lumina2Model:
        """Load Lumina2's step, which reads no weights."""
        base = DEMO_BASE if self.base_path is None else self.base_path.name
        return find_model_files(LoadSettings(base=base, precision=self.precision), context=context)

    def dataset(self, folder: Path) -> Dataset:
        """A folder of pictures in buckets, captions beside them."""
        settings = DatasetFolderSettings(folder=str(folder), resolution=self.resolution)
        return Dataset(folders=(DatasetFolder(path=str(folder.resolve()), settings=settings),))

    def cache_latents(self, folder: Path, context: StepContext) -> LatentCache:
        """Cache Latents with its own defaults."""
        return caches.cache_latents(
            caches.CacheLatentsSettings(), model=self.load(context), dataset=self.dataset(folder), context=context
        )

    def cache_text_embeds(self, folder: Path, context: StepContext) -> EmbedCache:
        """Cache Text Embeds with its own defaults and bare captions."""
        return caches.cache_text_embeds(
            caches.CacheTextEmbedsSettings(system_prompt="none"),
            model=self.load(context),
            dataset=self.dataset(folder),
            context=context,
        )
