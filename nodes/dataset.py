"""Dataset Folder and Dataset From Images: name captioned pictures as a dataset and report on it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..trainer_core.data.folder import Dataset, DatasetFolderSettings
from ..trainer_core.stages.dataset import (
    DatasetFromImagesSettings,
    DatasetReport,
    read_dataset_folder,
    read_dataset_from_images,
)
from . import file_watch, host, sockets
from .host_values import read_images
from .widgets import build_widgets, check_widgets


def report_outputs() -> list[Any]:
    """What every node that names a dataset gives; see `show_report`."""
    return [
        sockets.Dataset.Output(display_name="dataset", tooltip="For Cache Latents and Cache Text Embeds."),
        io.String.Output(display_name="report", tooltip="Counts, buckets and warnings, for people."),
        io.Image.Output(display_name="contact_sheet", tooltip="The pictures as they are cropped, with captions."),
    ]


def show_report(report: DatasetReport) -> io.NodeOutput:
    """The outputs, with report and contact sheet on the node."""
    sheet = read_images([report.contact_sheet_path])
    ui = {**host.show_pictures([report.contact_sheet_path]), "text": [report.text]}
    return io.NodeOutput(report.dataset, report.text, sheet, ui=ui)


class DatasetFolder(io.ComfyNode):
    """A folder of captioned pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Lumina2DatasetFolder",
            display_name="Dataset Folder (Lumina2)",
            category="Lumina2 Trainer",
            description="Reads a folder of pictures with captions and reports what it found, problems included.",
            inputs=[
                *build_widgets(DatasetFolderSettings),
                sockets.Dataset.Input(
                    "dataset", optional=True, tooltip="An earlier dataset that this folder is added to."
                ),
            ],
            outputs=report_outputs(),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, **widgets: Any) -> bool:
        host.check_dataset_folder(widgets.get("folder"))
        return check_widgets(DatasetFolderSettings, widgets)

    @classmethod
    def fingerprint_inputs(cls, **widgets: Any) -> str:
        return host.fingerprint_folder(widgets.get("folder"), widgets.get("metadata_file"), widgets.get("mask_folder"))

    @classmethod
    def execute(cls, dataset: Dataset | None = None, **widgets: Any) -> io.NodeOutput:
        with host.running_step(cls.hidden, uses_device=False) as context:
            report = read_dataset_folder(DatasetFolderSettings(**widgets), dataset=dataset, context=context)
            return show_report(report)


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
