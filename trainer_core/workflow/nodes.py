"""Which step each node calls: what lets a workflow file run without ComfyUI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..adapters.lora import LoRASettings
from ..adapters.lycoris_settings import LyCORISSettings
from ..data.folder import DatasetFolderSettings
from ..lumina2.models.base_files import find_model_files
from ..lumina2.models.model_files import LoadSettings
from ..lumina2.timesteps import NoiseSettings
from ..publish.settings import HubSettings, TrackingSettings
from ..run.job import TrainFullSettings, TrainJob, TrainLoRASettings
from ..stages import caches, dataset, save, train, validate
from ..stages.caption_table import CaptionTableSettings, read_caption_table
from ..stages.compare import CompareSettings, compare
from ..stages.dataset import DatasetFromImagesSettings, read_dataset_from_images
from ..training.optim.settings import OptimizerSettings
from ..training.rollout_settings import RolloutSettings
from ..training.settings import CheckpointSettings
from ..validation.settings import ValidateSettings, ValidationSettings


@dataclass(frozen=True, kw_only=True)
class NodeStep:
    """A node as the headless runner sees it."""

    settings: type
    """Dataclass of its widgets, in the order of the widgets."""
    run: Callable[..., Any] | None = None
    """Called with the settings, the linked sockets by name and the context; None hands the settings on."""
    make_job: Callable[..., TrainJob] | None = None
    """For what trains: called as `run` is, gives the job that it trains."""
    sockets: tuple[str, ...] = ()
    """Names of the inputs that take links from other nodes."""
    is_shared: bool = False
    """Whether several processes work on it together; the main one alone does otherwise."""
    outputs: tuple[str | None, ...] = ("",)
    """For each output the attribute of the result; "" is the result itself, None a value only ComfyUI's nodes take."""


NODE_STEPS: dict[str, NodeStep] = {
    "Lumina2Load": NodeStep(settings=LoadSettings, run=find_model_files),
    "Lumina2DatasetFolder": NodeStep(
        settings=DatasetFolderSettings,
        run=dataset.read_dataset_folder,
        sockets=("dataset",),
        outputs=("dataset", None, None),
    ),
    "Lumina2DatasetFromImages": NodeStep(
        settings=DatasetFromImagesSettings,
        run=read_dataset_from_images,
        sockets=("dataset",),
        outputs=("dataset", None, None),
    ),
    "Lumina2CaptionTable": NodeStep(
        settings=CaptionTableSettings,
        run=read_caption_table,
        sockets=("dataset", "model"),
        outputs=("dataset", None),
    ),
    "Lumina2CacheLatents": NodeStep(
        settings=caches.CacheLatentsSettings, run=caches.cache_latents, is_shared=True, sockets=("model", "dataset")
    ),
    "Lumina2CacheTextEmbeds": NodeStep(
        settings=caches.CacheTextEmbedsSettings,
        run=caches.cache_text_embeds,
        is_shared=True,
        sockets=("model", "dataset", "validation"),
    ),
    "Lumina2TrainLoRA": NodeStep(
        settings=TrainLoRASettings,
        run=train.train_lora,
        is_shared=True,
        make_job=train.make_job,
        sockets=(
            "model",
            "latents",
            "embeds",
            "adapter_settings",
            "optimizer_settings",
            "noise_schedule",
            "validation",
            "checkpoints",
            "tracking",
            "hub",
            "rollout",
        ),
        outputs=("adapter", None, None, None, "scores"),
    ),
    "Lumina2TrainFull": NodeStep(
        settings=TrainFullSettings,
        run=train.train_full,
        is_shared=True,
        make_job=train.make_job,
        sockets=(
            "model",
            "latents",
            "embeds",
            "optimizer_settings",
            "noise_schedule",
            "validation",
            "checkpoints",
            "tracking",
            "hub",
            "rollout",
        ),
        outputs=("model", None, None, "scores"),
    ),
    "Lumina2Validate": NodeStep(
        settings=ValidateSettings, run=validate.validate, sockets=("model", "adapter"), outputs=(None, "scores")
    ),
    "Lumina2Compare": NodeStep(
        settings=CompareSettings, run=compare, sockets=("model", "adapter"), outputs=(None, None, "grid_path")
    ),
    "Lumina2SaveAdapter": NodeStep(
        settings=save.SaveAdapterSettings, run=save.save_adapter, sockets=("adapter",), outputs=(None,)
    ),
    "Lumina2SaveModel": NodeStep(
        settings=save.SaveModelSettings, run=save.save_model, sockets=("model",), outputs=(None,)
    ),
    "Lumina2LoRASettings": NodeStep(settings=LoRASettings),
    "Lumina2LyCORISSettings": NodeStep(settings=LyCORISSettings),
    "Lumina2Optimizer": NodeStep(settings=OptimizerSettings),
    "Lumina2NoiseSchedule": NodeStep(settings=NoiseSettings),
    "Lumina2ValidationPrompts": NodeStep(settings=ValidationSettings),
    "Lumina2Checkpoints": NodeStep(settings=CheckpointSettings),
    "Lumina2Rollout": NodeStep(settings=RolloutSettings),
    "Lumina2Tracking": NodeStep(settings=TrackingSettings),
    "Lumina2HubUpload": NodeStep(settings=HubSettings),
}
"""By node id. The nodes of this pack that are missing here need ComfyUI."""
