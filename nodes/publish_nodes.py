"""Nodes that hold settings of trackers and of the hub: each turns its widgets into one settings socket."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer_core.publish.settings import HubSettings, TrackingSettings
from . import host, sockets
from .settings_nodes import CATEGORY
from .widgets import build_widgets, check_widgets


class Tracking(io.ComfyNode):
    """Where a run's numbers and pictures go."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Lumina2Tracking",
            display_name="Tracking (Lumina2)",
            category=CATEGORY,
            description=(
                "Sends losses, speed, memory, settings and validation pictures to an experiment tracker. A tracker that"
                " fails never stops a run. For a Train node."
            ),
            inputs=build_widgets(TrackingSettings),
            outputs=[sockets.Tracking.Output(display_name="tracking", tooltip="For tracking of a Train node.")],
        )

    @classmethod
    def validate_inputs(cls, **widgets: Any) -> bool:
        return check_widgets(TrackingSettings, widgets)

    @classmethod
    def execute(cls, **widgets: Any) -> io.NodeOutput:
        with host.readable_errors():
            return io.NodeOutput(TrackingSettings(**widgets))


class HubUpload(io.ComfyNode):
    """Where a run's weights go."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Lumina2HubUpload",
            display_name="Hub Upload (Lumina2)",
            category=CATEGORY,
            description=(
                "Sends weights, validation pictures and a model card to huggingface.co, privately unless you say"
                " otherwise. A failed upload never stops a run; queue the finished job again to send what is missing."
            ),
            inputs=build_widgets(HubSettings),
            outputs=[sockets.Hub.Output(display_name="hub", tooltip="For hub of a Train node.")],
        )

    @classmethod
    def validate_inputs(cls, **widgets: Any) -> bool:
        return check_widgets(HubSettings, widgets)

    @classmethod
    def execute(cls, **widgets: Any) -> io.NodeOutput:
        with host.readable_errors():
            return io.NodeOutput(HubSettings(**widgets))
