"""Caption Table: shows the captions of a dataset as training will read them."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer_core.data.folder import Dataset
from ..trainer_core.lumina2.models.model_files import Lumina2Model
from ..trainer_core.stages.caption_table import CaptionTableSettings, read_caption_table
from . import host, sockets
from .widgets import build_widgets, check_widgets


class CaptionTable(io.ComfyNode):
    """A row for each picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Lumina2CaptionTable",
            display_name="Caption Table (Lumina2)",
            category="Lumina2 Trainer",
            description=(
                "Shows every picture's captions as training will read them, and marks missing, identical and too long"
                " ones."
            ),
            inputs=[
                sockets.Dataset.Input("dataset", tooltip="From Dataset Folder or Dataset From Images."),
                *build_widgets(CaptionTableSettings),
                sockets.Lumina2Model.Input(
                    "model",
                    optional=True,
                    tooltip="From Load Lumina2: its tokenizer counts, no weights are read. Without it characters are"
                    " counted, and long captions are guessed.",
                ),
            ],
            outputs=[
                sockets.Dataset.Output(display_name="dataset", tooltip="The dataset as it came."),
                io.String.Output(display_name="table", tooltip="All rows, with tabs between cells."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, **widgets: Any) -> bool:
        return check_widgets(CaptionTableSettings, widgets)

    @classmethod
    def execute(cls, dataset: Dataset, model: Lumina2Model | None = None, **widgets: Any) -> io.NodeOutput:
        with host.running_step(cls.hidden, uses_device=False) as context:
            settings = CaptionTableSettings(**widgets)
            table = read_caption_table(settings, dataset=dataset, model=model, context=context)
            return io.NodeOutput(table.dataset, table.text, ui={"caption_table": [table.view]})
