"""Inputs and outputs that the Train nodes share."""

from __future__ import annotations

from comfy_api.latest import io

from . import sockets


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
