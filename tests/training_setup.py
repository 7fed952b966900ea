"""A tiny base, a small dataset and their caches, to train on in tests."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from lumina2_trainer.trainer_core.context import StepContext
from lumina2_trainer.trainer_core.data.cache import EmbedCache, LatentCache
from lumina2_trainer.trainer_core.data.folder import DatasetFolderSettings
from lumina2_trainer.trainer_core.events import Event
from lumina2_trainer.trainer_core.lumina2.models.base_files import find_model_files
from lumina2_trainer.trainer_core.lumina2.models.model_files import LoadSettings, Lumina2Model
from lumina2_trainer.trainer_core.run.job import TrainLoRASettings
from lumina2_trainer.trainer_core.stages import caches
from lumina2_trainer.trainer_core.stages import train as train_steps
from lumina2_trainer.trainer_core.stages.dataset import read_dataset_folder
from lumina2_trainer.trainer_core.stages.train import TrainFullResult, TrainResult
from lumina2_trainer.trainer_core.validation.settings import ValidationSettings
from PIL import Image

from .lumina2.tiny_files import write_all_in_one

PROMPTS = ValidationSettings(
    prompts="a red square\na blue square", width=64, height=96, num_inference_steps=2, every_num_steps=0
)
TRAIN = TrainLoRASettings(
    steps=6, batch_size=2, learning_rate=1e-2, rank=2, alpha=3.0, run_name="run", gradient_checkpointing=False
)


Result = TypeVar("Result", TrainResult, TrainFullResult)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything a training step takes."""

    model: Lumina2Model
    latents: LatentCache
    embeds: EmbedCache
    context: StepContext
    finished_dir: Path
    """Runs that `copied` has made, each in an output folder of its own."""

    def train(self, settings: TrainLoRASettings = TRAIN, **sockets: object) -> TrainResult:
        """Run the step with this setup's sockets."""
        return train_steps.train_lora(
            settings, model=self.model, latents=self.latents, embeds=self.embeds, context=self.context, **sockets
        )

    def trained(self, settings: TrainLoRASettings = TRAIN, **sockets: object) -> TrainResult:
        """What `train` gives, for tests that need a finished run: it is trained once a session, and copied here."""
        return self.copied(lambda setup: setup.train(settings, **sockets), settings, sockets)

    def copied(self, train: Callable[[Setup], Result], *job: object) -> Result:
        """The result of a training, made in a folder of its own unless that was done before, and copied here.

        Args:
            train: Trains with a setup.
            job: All that this run depends on besides the setup, with a telling repr.
        """
        identity = repr((self.model, self.latents, self.embeds, job))
        source = self.moved_to(self.finished_dir / hashlib.sha256(identity.encode()).hexdigest()[:16])
        if not source.context.output_dir.exists():
            train(source)
        shutil.copytree(source.context.runs_dir, self.context.runs_dir, dirs_exist_ok=True)
        result = train(self)
        assert result.reused, "the copy is not the run that was asked for"
        return result

    def moved_to(self, output_dir: Path) -> Setup:
        """The same caches, but runs go elsewhere."""
        return replace(self, context=replace(self.context, output_dir=output_dir))

    def with_stop(self, should_stop: Callable[[], bool]) -> Setup:
        """Stops when asked."""
        return replace(self, context=replace(self.context, should_stop=should_stop))

    def with_events(self, events: list[Event]) -> Setup:
        """Collects what is sent."""
        return replace(self, context=replace(self.context, emit=events.append))


def write_pictures(folder: Path) -> None:
    """Five captioned pictures of different shape."""
    folder.mkdir(parents=True)
    colours = {
        "red": (220, 30, 30),
        "blue": (30, 60, 220),
        "green": (20, 180, 60),
        "grey": (128, 128, 128),
        "pink": (250, 150, 200),
    }
    sizes = [(64, 64), (64, 64), (96, 48), (48, 96), (70, 64)]
    for (name, colour), size in zip(colours.items(), sizes, strict=True):
        Image.new("RGB", size, colour).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {name} square")


PICTURES = DatasetFolderSettings(folder="pictures", resolution=64)


def make_setup(folder: Path, folders: Sequence[DatasetFolderSettings] = (PICTURES,)) -> Setup:
    """Write base and pictures, and fill both caches.

    Args:
        folder: An empty one.
        folders: What the dataset is made of.
    """
    models = folder / "checkpoints"
    models.mkdir(parents=True)
    write_all_in_one(models / "tiny.safetensors")
    write_pictures(folder / "pictures")
    context = StepContext(
        output_dir=folder / "output",
        loras_dir=folder / "loras",
        device=torch.device("cpu"),
        roots=(folder,),
        model_dirs={"checkpoints": (models,)},
    )
    model = find_model_files(LoadSettings(base="tiny.safetensors", precision="fp32"), context=context)
    dataset = None
    for settings in folders:
        dataset = read_dataset_folder(settings, dataset=dataset, context=context).dataset
    assert dataset is not None
    return Setup(
        model=model,
        latents=caches.cache_latents(caches.CacheLatentsSettings(), model=model, dataset=dataset, context=context),
        embeds=caches.cache_text_embeds(
            caches.CacheTextEmbedsSettings(), model=model, dataset=dataset, validation=PROMPTS, context=context
        ),
        context=context,
        finished_dir=folder / "finished",
    )
