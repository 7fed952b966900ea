"""Save Adapter: writes a trained adapter to ComfyUI's LoRA folder."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer_core.run.job import Adapter
from ..trainer_core.stages import caches
from . import host, sockets
from .widgets import build_widgets, check_widgets


class SaveAdapter(io.ComfyNode):
    """Writes an adapter under a new name."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Lumina2SaveAdapter",
            display_name="Save Adapter (Lumina2)",
            category="Lumina2 Trainer",
            description="Writes the adapter to ComfyUI's LoRA folder under a new name. Press R to see it in loaders.",
            inputs=[
                sockets.Adapter.Input("adapter", tooltip="From Train LoRA."),
                *build_widgets(caches.SaveAdapterSettings),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="The files written, one a line.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, **widgets: Any) -> bool:
        return check_widgets(caches.SaveAdapterSettings, widgets)

    @classmethod
    def execute(cls, adapter: Adapter, **widgets: Any) -> io.NodeOutput:
        with host.running_step(cls.hidden, uses_device=False) as context:
            settings = caches.SaveAdapterSettings(**widgets)
            text = "\n".join(str(path) for path in caches.save_adapter(settings, adapter=adapter, context=context))
            return io.NodeOutput(text, ui={"text": [text]})
