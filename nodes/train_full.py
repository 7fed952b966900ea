"""Train Full Model."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer_core.data.cache import EmbedCache, LatentCache
from ..trainer_core.lumina2.models.model_files import Lumina2Model
from ..trainer_core.run.job import TrainFullSettings
from . import file_watch, host, sockets
from .host_values import to_loss_map
from .pictures import read_images
from .train_schema import data_inputs, report_outputs, settings_inputs
from .widgets import build_widgets, check_widgets


class TrainFullModel(io.ComfyNode):
    """Trains the model itself, resumes, or returns the finished one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Lumina2TrainFull",
            display_name="Train Full Model (Lumina2)",
            category="Lumina2 Trainer",
            description=(
                "Trains all weights of the model, from 8 GiB of GPU memory on, and shows loss and validation pictures"
                " while it runs. Cancel keeps the work: queueing the same job again resumes it, and a finished job"
                " returns at once."
            ),
            inputs=[*data_inputs(), *build_widgets(TrainFullSettings), *settings_inputs()],
            outputs=[
                sockets.Lumina2Model.Output(
                    display_name="model",
                    tooltip="For Save Model, Validate, Lumina2 for Inference, and further training.",
                ),
                *report_outputs(),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, **widgets: Any) -> bool:
        return check_widgets(TrainFullSettings, widgets)

    @classmethod
    def fingerprint_inputs(cls, **widgets: Any) -> int:
        return file_watch.count_lost_runs(widgets.get("run_name"))

    @classmethod
    def execute(
        cls,
        model: Lumina2Model,
        latents: LatentCache,
        embeds: EmbedCache,
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
            settings = TrainFullSettings(**widgets)
            result = host.call_stage(
                "Lumina2TrainFull",
                settings,
                model=model,
                latents=latents,
                embeds=embeds,
                optimizer_settings=optimizer_settings,
                noise_schedule=noise_schedule,
                validation=validation,
                checkpoints=checkpoints,
                tracking=tracking,
                hub=hub,
                rollout=rollout,
                context=context,
            )
            file_watch.watch_run(settings.run_name, result.model.base_path)
            pictures = read_images(result.validation_images)
            return io.NodeOutput(result.model, to_loss_map(result.losses), pictures, result.scores)
