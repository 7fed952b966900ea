"""Nodes that hold settings only: each turns its widgets into one settings socket."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer_core.adapters.lora import LoRASettings as LoRASettingsValues
from ..trainer_core.adapters.lycoris_settings import LyCORISSettings as LyCORISSettingsValues
from ..trainer_core.lumina2.timesteps import NoiseSettings
from ..trainer_core.publish.settings import HubSettings, TrackingSettings
from ..trainer_core.training.optim.settings import OptimizerSettings as OptimizerSettingsValues
from ..trainer_core.training.rollout_settings import RolloutSettings
from ..trainer_core.training.settings import CheckpointSettings
from ..trainer_core.validation.settings import ValidationSettings
from . import host, sockets
from .file_watch import fingerprint_prompt_library
from .widgets import build_widgets, check_widgets

CATEGORY = "Lumina2 Trainer/settings"


class LoRASettings(io.ComfyNode):
    """Settings of the adapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Lumina2LoRASettings",
            display_name="LoRA Settings (Lumina2)",
            category=CATEGORY,
            description="Which layers a LoRA adapts and how. Connect to Train LoRA; rank and alpha are set there.",
            inputs=build_widgets(LoRASettingsValues),
            outputs=[
                sockets.AdapterSettings.Output(
                    display_name="adapter_settings", tooltip="For adapter_settings of Train LoRA."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, **widgets: Any) -> bool:
        return check_widgets(LoRASettingsValues, widgets)

    @classmethod
    def fingerprint_inputs(cls, **widgets: Any) -> str:
        return host.fingerprint_lora(widgets.get("start_from"))

    @classmethod
    def execute(cls, **widgets: Any) -> io.NodeOutput:
        with host.readable_errors():
            return io.NodeOutput(LoRASettingsValues(**widgets))


class LyCORISSettings(io.ComfyNode):
    """Settings of an adapter of LyCORIS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Lumina2LyCORISSettings",
            display_name="LyCORIS Settings (Lumina2)",
            category=CATEGORY,
            description=(
                "Trains another kind of adapter than LoRA: LoKr, LoHa, DyLoRA, GLoRA, OFT, BOFT or a full difference."
                " Connect to Train LoRA; rank and alpha are set there. Needs the package lycoris-lora."
            ),
            inputs=build_widgets(LyCORISSettingsValues),
            outputs=[
                sockets.AdapterSettings.Output(
                    display_name="adapter_settings", tooltip="For adapter_settings of Train LoRA."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, **widgets: Any) -> bool:
        return check_widgets(LyCORISSettingsValues, widgets)

    @classmethod
    def fingerprint_inputs(cls, **widgets: Any) -> str:
        return host.fingerprint_lora(widgets.get("start_from"))

    @classmethod
    def execute(cls, **widgets: Any) -> io.NodeOutput:
        with host.readable_errors():
            return io.NodeOutput(LyCORISSettingsValues(**widgets))


class OptimizerSettings(io.ComfyNode):
    """Settings of optimizer and learning-rate schedule."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Lumina2Optimizer",
            display_name="Optimizer (Lumina2)",
            category=CATEGORY,
            description="Learning-rate schedule, weight decay, gradient accumulation, clipping. For a Train node.",
            inputs=build_widgets(OptimizerSettingsValues),
            outputs=[
                sockets.OptimizerSettings.Output(
                    display_name="optimizer_settings", tooltip="For optimizer_settings of a Train node."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, **widgets: Any) -> bool:
        return check_widgets(OptimizerSettingsValues, widgets)

    @classmethod
    def execute(cls, **widgets: Any) -> io.NodeOutput:
        with host.readable_errors():
            return io.NodeOutput(OptimizerSettingsValues(**widgets))


class NoiseSchedule(io.ComfyNode):
    """Settings of the noise levels that are trained on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Lumina2NoiseSchedule",
            display_name="Noise Schedule (Lumina2)",
            category=CATEGORY,
            description=(
                "Which noise levels are trained on, and how errors count. The default is Lumina2's own. For a Train"
                " node."
            ),
            inputs=build_widgets(NoiseSettings),
            outputs=[
                sockets.NoiseSchedule.Output(
                    display_name="noise_schedule", tooltip="For noise_schedule of a Train node."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, **widgets: Any) -> bool:
        return check_widgets(NoiseSettings, widgets)

    @classmethod
    def execute(cls, **widgets: Any) -> io.NodeOutput:
        with host.readable_errors():
            return io.NodeOutput(NoiseSettings(**widgets))


class ValidationPrompts(io.ComfyNode):
    """Prompts and sampler of the pictures drawn during training."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Lumina2ValidationPrompts",
            display_name="Validation Prompts (Lumina2)",
            category=CATEGORY,
            description="Pictures drawn during training. Connect to both Cache Text Embeds and a Train node.",
            inputs=build_widgets(ValidationSettings),
            outputs=[
                sockets.ValidationPrompts.Output(
                    display_name="validation", tooltip="For validation of Cache Text Embeds and of a Train node."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, **widgets: Any) -> bool:
        return check_widgets(ValidationSettings, widgets)

    @classmethod
    def fingerprint_inputs(cls, **widgets: Any) -> str:
        return fingerprint_prompt_library(widgets.get("prompt_library"), host.build_context())

    @classmethod
    def execute(cls, **widgets: Any) -> io.NodeOutput:
        with host.readable_errors():
            return io.NodeOutput(ValidationSettings(**widgets))


class Checkpoints(io.ComfyNode):
    """When a run is written to disk."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Lumina2Checkpoints",
            display_name="Checkpoints and EMA (Lumina2)",
            category=CATEGORY,
            description="How often a run is written to disk, and whether a running average is kept. For a Train node.",
            inputs=build_widgets(CheckpointSettings),
            outputs=[
                sockets.Checkpoints.Output(display_name="checkpoints", tooltip="For checkpoints of a Train node.")
            ],
        )

    @classmethod
    def validate_inputs(cls, **widgets: Any) -> bool:
        return check_widgets(CheckpointSettings, widgets)

    @classmethod
    def execute(cls, **widgets: Any) -> io.NodeOutput:
        with host.readable_errors():
            return io.NodeOutput(CheckpointSettings(**widgets))


class Rollout(io.ComfyNode):
    """Settings of scheduled sampling."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Lumina2Rollout",
            display_name="Rollout (Lumina2)",
            category=CATEGORY,
            description=(
                "Scheduled sampling: some pictures are shown as the model itself leaves them on the way from noise, so"
                " that it learns to go on from its own errors. Slower. For a Train node."
            ),
            inputs=build_widgets(RolloutSettings),
            outputs=[sockets.Rollout.Output(display_name="rollout", tooltip="For rollout of a Train node.")],
        )

    @classmethod
    def validate_inputs(cls, **widgets: Any) -> bool:
        return check_widgets(RolloutSettings, widgets)

    @classmethod
    def execute(cls, **widgets: Any) -> io.NodeOutput:
        with host.readable_errors():
            return io.NodeOutput(RolloutSettings(**widgets))


class Tracking(io.ComfyNode):
    """Where a run's numbers and pictures go."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Lumina2Tracking",
            display_name="Tracking (Lumina2)",
            category=CATEGORY,
            description=(
                "Sends losses, speed, memory, settings and validation pictures to an experiment tracker. A tracker that"
                " fails never stops a run. For a Train node."
            ),
            inputs=build_widgets(TrackingSettings),
            outputs=[sockets.Tracking.Output(display_name="tracking", tooltip="For tracking of a Train node.")],
        )

    @classmethod
    def validate_inputs(cls, **widgets: Any) -> bool:
        return check_widgets(TrackingSettings, widgets)

    @classmethod
    def execute(cls, **widgets: Any) -> io.NodeOutput:
        with host.readable_errors():
            return io.NodeOutput(TrackingSettings(**widgets))


class HubUpload(io.ComfyNode):
    """Where a run's weights go."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Lumina2HubUpload",
            display_name="Hub Upload (Lumina2)",
            category=CATEGORY,
            description=(
                "Sends weights, validation pictures and a model card to huggingface.co, privately unless you say"
                " otherwise. A failed upload never stops a run; queue the finished job again to send what is missing."
            ),
            inputs=build_widgets(HubSettings),
            outputs=[sockets.Hub.Output(display_name="hub", tooltip="For hub of a Train node.")],
        )

    @classmethod
    def validate_inputs(cls, **widgets: Any) -> bool:
        return check_widgets(HubSettings, widgets)

    @classmethod
    def execute(cls, **widgets: Any) -> io.NodeOutput:
        with host.readable_errors():
            return io.NodeOutput(HubSettings(**widgets))
