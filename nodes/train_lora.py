"""Train LoRA."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer_core.data.cache import EmbedCache, LatentCache
from ..trainer_core.lumina2.models.model_files import Lumina2Model
from ..trainer_core.run.job import TrainLoRASettings
from . import file_watch, host, sockets
from .host_values import read_lora, to_loss_map
from .pictures import read_images
from .train_schema import data_inputs, report_outputs, settings_inputs
from .widgets import build_widgets, check_widgets


class TrainLoRA(io.ComfyNode):
    """Trains a LoRA, resumes it, or returns the finished one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Lumina2TrainLoRA",
            display_name="Train LoRA (Lumina2)",
            category="Lumina2 Trainer",
            description=(
                "Trains a LoRA and shows loss and validation pictures while it runs. Cancel keeps the work: queueing"
                " the same job again resumes it, and a finished job returns at once."
            ),
            inputs=[
                *data_inputs(),
                *build_widgets(TrainLoRASettings),
                sockets.AdapterSettings.Input(
                    "adapter_settings",
                    optional=True,
                    tooltip="From LoRA Settings or LyCORIS Settings: what kind of adapter, and on which layers.",
                ),
                *settings_inputs(),
            ],
            outputs=[
                sockets.Adapter.Output(
                    display_name="adapter", tooltip="For Save Adapter, Validate and Lumina2 for Inference."
                ),
                io.LoraModel.Output(
                    display_name="lora_model", tooltip="The weights, for ComfyUI's Load LoRA Model and Save LoRA."
                ),
                *report_outputs(),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, **widgets: Any) -> bool:
        return check_widgets(TrainLoRASettings, widgets)

    @classmethod
    def fingerprint_inputs(cls, **widgets: Any) -> int:
        return file_watch.count_lost_runs(widgets.get("run_name"))

    @classmethod
    def execute(
        cls,
        model: Lumina2Model,
        latents: LatentCache,
        embeds: EmbedCache,
        adapter_settings: Any = None,
        optimizer_settings: Any = None,
        noise_schedule: Any = None,
        validation: Any = None,
        checkpoints: Any = None,
        tracking: Any = None,
        hub: Any = None,
        rollout: Any = None,
        **widgets: Any,
    ) -> io.NodeOutput:
        with host.running_step(cls.hidden) as context:
            settings = TrainLoRASettings(**widgets)
            result = host.call_stage(
                "Lumina2TrainLoRA",
                settings,
                model=model,
                latents=latents,
                embeds=embeds,
                adapter_settings=adapter_settings,
                optimizer_settings=optimizer_settings,
                noise_schedule=noise_schedule,
                validation=validation,
                checkpoints=checkpoints,
                tracking=tracking,
                hub=hub,
                rollout=rollout,
                context=context,
            )
            file_watch.watch_run(settings.run_name, result.adapter.path)
            pictures = read_images(result.validation_images)
            lora, losses = read_lora(result.adapter.path), to_loss_map(result.losses)
            return io.NodeOutput(result.adapter, lora, losses, pictures, result.scores)
