"""Lumina2 for Inference: the trainer's model and adapter for ComfyUI's own nodes."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer_core.lumina2.models.model_files import Lumina2Model
from ..trainer_core.run.job import Adapter
from ..trainer_core.validation.settings import ValidateSettings
from . import host, host_models, sockets
from .widgets import build_widgets


class Lumina2ForInference(io.ComfyNode):
    """MODEL, CLIP and VAE of the host, for any size of Lumina2."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Lumina2Inference",
            display_name="Lumina2 for Inference",
            category="Lumina2 Trainer",
            description="Hands the model, with the adapter just trained, to KSampler and ComfyUI's other nodes.",
            inputs=[
                sockets.Lumina2Model.Input("model", tooltip="From Load Lumina2 or Train Full Model."),
                *build_widgets(ValidateSettings, only=("strength",)),
                sockets.Adapter.Input(
                    "adapter", optional=True, tooltip="From Train LoRA; leave open for the bare model."
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For KSampler."),
                io.Clip.Output(display_name="clip", tooltip="For CLIP Text Encode (Lumina2) or CLIP Text Encode."),
                io.Vae.Output(display_name="vae", tooltip="For VAE Decode."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: Lumina2Model, strength: float, adapter: Adapter | None = None) -> io.NodeOutput:
        with host.readable_errors():
            return io.NodeOutput(*host_models.load_host_models(model, adapter, strength))
