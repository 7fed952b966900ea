"""Validate and Compare: draw prompts with an adapter, or with a run's checkpoints side by side."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer_core.lumina2.models.model_files import Lumina2Model
from ..trainer_core.run.job import Adapter
from ..trainer_core.stages import validate
from ..trainer_core.stages.compare import CompareSettings, compare
from ..trainer_core.validation.settings import ValidateSettings
from . import host, sockets
from .file_watch import fingerprint_prompt_library
from .host_values import read_images
from .widgets import build_widgets, check_widgets


class Validate(io.ComfyNode):
    """Draws prompts, as ComfyUI's KSampler would."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Lumina2Validate",
            display_name="Validate (Lumina2)",
            category="Lumina2 Trainer",
            description="Draws prompts with the model, with or without a trained adapter, as ComfyUI's KSampler would.",
            inputs=[
                sockets.Lumina2Model.Input("model", tooltip="From Load Lumina2 or Train Full Model."),
                *build_widgets(ValidateSettings),
                sockets.Adapter.Input(
                    "adapter", optional=True, tooltip="From Train LoRA; leave open for the bare model."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="One picture for each prompt, in order."),
                io.String.Output(
                    display_name="scores",
                    tooltip="What was measured of the run, such as its held-out loss, for people.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, **widgets: Any) -> bool:
        return check_widgets(ValidateSettings, widgets)

    @classmethod
    def fingerprint_inputs(cls, **widgets: Any) -> str:
        return fingerprint_prompt_library(widgets.get("prompt_library"), host.build_context())

    @classmethod
    def execute(cls, model: Lumina2Model, adapter: Adapter | None = None, **widgets: Any) -> io.NodeOutput:
        with host.running_step(cls.hidden) as context:
            result = validate.validate(ValidateSettings(**widgets), model=model, adapter=adapter, context=context)
            return io.NodeOutput(read_images(result.images), result.scores, ui=host.show_pictures(result.images))


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
