"""Save Adapter and Save Model: write what was trained to ComfyUI's folders."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer_core.lumina2.models.model_files import Lumina2Model
from ..trainer_core.run.job import Adapter
from ..trainer_core.stages import save
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
                *build_widgets(save.SaveAdapterSettings),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="The files written, one a line.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, **widgets: Any) -> bool:
        return check_widgets(save.SaveAdapterSettings, widgets)

    @classmethod
    def execute(cls, adapter: Adapter, **widgets: Any) -> io.NodeOutput:
        with host.running_step(cls.hidden, uses_device=False) as context:
            settings = save.SaveAdapterSettings(**widgets)
            text = "\n".join(str(path) for path in save.save_adapter(settings, adapter=adapter, context=context))
            return io.NodeOutput(text, ui={"text": [text]})


class SaveModel(io.ComfyNode):
    """Writes a model under a new name."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Lumina2SaveModel",
            display_name="Save Model (Lumina2)",
            category="Lumina2 Trainer",
            description="Writes the model to ComfyUI's model folders under a new name. Press R to see it in loaders.",
            inputs=[
                sockets.Lumina2Model.Input(
                    "model", tooltip="From Train Full Model, or from Load Lumina2 to convert it."
                ),
                *build_widgets(save.SaveModelSettings),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="The file or folder written.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, **widgets: Any) -> bool:
        return check_widgets(save.SaveModelSettings, widgets)

    @classmethod
    def execute(cls, model: Lumina2Model, **widgets: Any) -> io.NodeOutput:
        with host.running_step(cls.hidden, uses_device=False) as context:
            text = str(save.save_model(save.SaveModelSettings(**widgets), model=model, context=context))
            return io.NodeOutput(text, ui={"text": [text]})
