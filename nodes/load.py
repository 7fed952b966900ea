"""Load Lumina2 names the model's files; Lumina2 for Inference hands them, with an adapter, to ComfyUI's own nodes."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer_core.lumina2.models.base_files import find_model_files
from ..trainer_core.lumina2.models.model_files import LoadSettings, Lumina2Model
from ..trainer_core.run.job import Adapter
from ..trainer_core.validation.settings import ValidateSettings
from . import host, host_models, sockets
from .widgets import build_widgets


class LoadLumina2(io.ComfyNode):
    """Which files the model is made of."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Lumina2Load",
            display_name="Load Lumina2",
            category="Lumina2 Trainer",
            description="Finds and checks a Lumina2 model for training. It takes no memory: weights are read later.",
            inputs=build_widgets(LoadSettings, choices=host.list_model_choices()),
            outputs=[
                sockets.Lumina2Model.Output(
                    display_name="model",
                    tooltip="The model's files, for the caches, Train LoRA, Validate and inference.",
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **widgets: Any) -> str:
        return host.fingerprint_models(widgets)

    @classmethod
    def execute(cls, **widgets: Any) -> io.NodeOutput:
        with host.running_step(cls.hidden, uses_device=False) as context:
            return io.NodeOutput(find_model_files(LoadSettings(**widgets), context=context))


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
