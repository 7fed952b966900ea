"""Load Lumina2: names the model's files."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer_core.lumina2.models.model_files import LoadSettings
from ..trainer_core.stages import caches
from . import host, sockets
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
            return io.NodeOutput(caches.load_lumina2(LoadSettings(**widgets), context=context))
