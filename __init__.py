"""Lumina2 trainer for ComfyUI: a custom node pack, and the package `lumina2_trainer`."""

from __future__ import annotations

from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """Called by ComfyUI to get the nodes."""
    from .nodes.extension import Lumina2TrainerExtension

    return Lumina2TrainerExtension()
