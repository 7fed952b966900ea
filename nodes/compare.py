"""Compare: a labelled grid of a run's checkpoints at several strengths."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer_core.lumina2.models.model_files import Lumina2Model
from ..trainer_core.run.job import Adapter
from ..trainer_core.stages.compare import CompareSettings, compare
from . import host, sockets
from .pictures import read_images
from .widgets import build_widgets, check_widgets


class Compare(io.ComfyNode):
    """Draws a run's checkpoints side by side."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Lumina2Compare",
            display_name="Compare Checkpoints (Lumina2)",
            category="Lumina2 Trainer",
            description=(
                "Draws every prompt with each checkpoint of a run at each strength, in one labelled grid: to see where"
                " training was best, and where it went too far."
            ),
            inputs=[
                sockets.Lumina2Model.Input("model", tooltip="From Load Lumina2: the base the adapter was trained on."),
                sockets.Adapter.Input("adapter", tooltip="From Train LoRA; its run's checkpoints are compared."),
                *build_widgets(CompareSettings),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="A row for each prompt, a column for each version."),
                io.Image.Output(display_name="images", tooltip="The pictures themselves, column by column."),
                io.String.Output(display_name="grid_path", tooltip="Where the grid lies, as a PNG."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, **widgets: Any) -> bool:
        return check_widgets(CompareSettings, widgets)

    @classmethod
    def execute(cls, model: Lumina2Model, adapter: Adapter, **widgets: Any) -> io.NodeOutput:
        with host.running_step(cls.hidden) as context:
            result = compare(CompareSettings(**widgets), model=model, adapter=adapter, context=context)
            grid = (result.grid_path,)
            return io.NodeOutput(
                read_images(grid), read_images(result.images), str(result.grid_path), ui=host.show_pictures(grid)
            )
