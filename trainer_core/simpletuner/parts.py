"""The parts of an imported workflow: which node each becomes, and what its name is on the canvas."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Part:
    """A node of the workflow."""

    node: str
    """Its type."""
    title: str
    """Its name on the canvas, without the pack's."""


PARTS: dict[str, Part] = {
    "model": Part(node="Lumina2Load", title="Load Lumina2"),
    "dataset": Part(node="Lumina2DatasetFolder", title="Dataset Folder"),
    "latents": Part(node="Lumina2CacheLatents", title="Cache Latents"),
    "embeds": Part(node="Lumina2CacheTextEmbeds", title="Cache Text Embeds"),
    "validation": Part(node="Lumina2ValidationPrompts", title="Validation Prompts"),
    "lora": Part(node="Lumina2LoRASettings", title="LoRA Settings"),
    "lycoris": Part(node="Lumina2LyCORISSettings", title="LyCORIS Settings"),
    "optimizer": Part(node="Lumina2Optimizer", title="Optimizer"),
    "noise": Part(node="Lumina2NoiseSchedule", title="Noise Schedule"),
    "checkpoints": Part(node="Lumina2Checkpoints", title="Checkpoints and EMA"),
    "tracking": Part(node="Lumina2Tracking", title="Tracking"),
    "hub": Part(node="Lumina2HubUpload", title="Hub Upload"),
    "train": Part(node="Lumina2TrainLoRA", title="Train LoRA"),
    "train_full": Part(node="Lumina2TrainFull", title="Train Full Model"),
    "save": Part(node="Lumina2SaveAdapter", title="Save Adapter"),
    "save_full": Part(node="Lumina2SaveModel", title="Save Model"),
}
"""By the name that the tables of keys use. What "train" and "save" mean depends on model_type, see `for_full`."""

FULL_PARTS = {"train": "train_full", "save": "save_full"}
"""What stands in the place of a part where the whole model is trained."""
