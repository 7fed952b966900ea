"""Dataset From Images: pictures made in the graph as a dataset."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..trainer_core.data.folder import Dataset
from ..trainer_core.stages.dataset import DatasetFromImagesSettings, read_dataset_from_images
from . import file_watch, host, sockets
from .dataset import report_outputs, show_report
from .widgets import build_widgets, check_widgets


class DatasetFromImages(io.ComfyNode):
    """Writes pictures with captions and names them as a dataset."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Lumina2DatasetFromImages",
            display_name="Dataset From Images (Lumina2)",
            category="Lumina2 Trainer",
            description=(
                "Writes pictures made in the graph, with captions, to the output folder and reads them as a dataset."
            ),
            inputs=[
                io.Image.Input("images", tooltip="Pictures; a batch, or a list of batches of different sizes."),
                *build_widgets(DatasetFromImagesSettings),
                sockets.Dataset.Input(
                    "dataset", optional=True, tooltip="An earlier dataset that these pictures are added to."
                ),
            ],
            outputs=report_outputs(),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            is_input_list=True,
        )

    @classmethod
    def validate_inputs(cls, **inputs: Any) -> bool:
        return check_widgets(DatasetFromImagesSettings, {name: values[0] for name, values in inputs.items()})

    @classmethod
    def fingerprint_inputs(cls, name: list[str | None] | None = None, **widgets: Any) -> int:
        return file_watch.count_lost_pictures(name[0] if name else None)

    @classmethod
    def execute(cls, images: list[Tensor], dataset: list[Dataset] | None = None, **widgets: Any) -> io.NodeOutput:
        with host.running_step(cls.hidden, uses_device=False) as context:
            settings = DatasetFromImagesSettings(**{name: values[0] for name, values in widgets.items()})
            report = read_dataset_from_images(
                settings, images=images, dataset=dataset[0] if dataset else None, context=context
            )
            file_watch.watch_pictures(settings.name, report.dataset.folders[-1].path)
            return show_report(report)
