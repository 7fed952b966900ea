"""Train LoRA and Train Full Model, which share most of their sockets."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer_core.data.cache import EmbedCache, LatentCache
from ..trainer_core.lumina2.models.model_files import Lumina2Model
from ..trainer_core.run.job import TrainFullSettings, TrainLoRASettings
from . import file_watch, host, sockets
from .host_values import read_images, read_lora, to_loss_map
from .widgets import build_widgets, check_widgets


def data_inputs() -> list[io.Input]:
    """What is trained and on what."""
    return [
        sockets.Lumina2Model.Input("model", tooltip="From Load Lumina2."),
        sockets.Latents.Input("latents", tooltip="From Cache Latents."),
        sockets.Embeds.Input("embeds", tooltip="From Cache Text Embeds."),
    ]


def settings_inputs() -> list[io.Input]:
    """The optional settings sockets."""
    return [
        sockets.OptimizerSettings.Input(
            "optimizer_settings",
            optional=True,
            tooltip="From Optimizer: learning-rate schedule, weight decay, gradient accumulation.",
        ),
        sockets.NoiseSchedule.Input(
            "noise_schedule", optional=True, tooltip="From Noise Schedule: which noise levels are trained on."
        ),
        sockets.ValidationPrompts.Input(
            "validation", optional=True, tooltip="From Validation Prompts: pictures drawn during training."
        ),
        sockets.Checkpoints.Input(
            "checkpoints", optional=True, tooltip="From Checkpoints and EMA: how often the run is written to disk."
        ),
        sockets.Tracking.Input(
            "tracking", optional=True, tooltip="From Tracking: where losses and pictures go besides the run folder."
        ),
        sockets.Hub.Input("hub", optional=True, tooltip="From Hub Upload: the repository the result is sent to."),
        sockets.Rollout.Input(
            "rollout", optional=True, tooltip="From Rollout: which samples come from the model itself."
        ),
    ]


def report_outputs() -> list[io.Output]:
    """What tells how training went."""
    return [
        io.LossMap.Output(display_name="loss_map", tooltip="The loss of each step, for ComfyUI's loss graph."),
        io.Image.Output(
            display_name="validation_images",
            tooltip="Pictures of the last validation; one small black picture if there was none.",
        ),
        io.String.Output(
            display_name="scores", tooltip="Held-out loss and other measurements, for people; empty without any."
        ),
    ]


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
