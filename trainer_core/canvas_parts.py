"""The parts that a graph of this pack is made of: nodes by a short name, with what goes in and out of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .workflow.nodes import NODE_STEPS


@dataclass(frozen=True, kw_only=True)
class Part:
    """A node."""

    node: str
    """Its type."""
    title: str
    """Its name on the canvas, without the pack's."""
    outputs: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs that take links."""
        return NODE_STEPS[self.node].sockets


TRAINED = ("loss_map", "validation_images", "scores")
PARTS: Mapping[str, Part] = {
    "model": Part(node="Lumina2Load", title="Load Lumina2", outputs=("model",)),
    "dataset": Part(
        node="Lumina2DatasetFolder", title="Dataset Folder", outputs=("dataset", "report", "contact_sheet")
    ),
    "latents": Part(node="Lumina2CacheLatents", title="Cache Latents", outputs=("latents",)),
    "embeds": Part(node="Lumina2CacheTextEmbeds", title="Cache Text Embeds", outputs=("embeds",)),
    "validation": Part(node="Lumina2ValidationPrompts", title="Validation Prompts", outputs=("validation",)),
    "lora": Part(node="Lumina2LoRASettings", title="LoRA Settings", outputs=("adapter_settings",)),
    "lycoris": Part(node="Lumina2LyCORISSettings", title="LyCORIS Settings", outputs=("adapter_settings",)),
    "optimizer": Part(node="Lumina2Optimizer", title="Optimizer", outputs=("optimizer_settings",)),
    "noise": Part(node="Lumina2NoiseSchedule", title="Noise Schedule", outputs=("noise_schedule",)),
    "rollout": Part(node="Lumina2Rollout", title="Rollout", outputs=("rollout",)),
    "checkpoints": Part(node="Lumina2Checkpoints", title="Checkpoints and EMA", outputs=("checkpoints",)),
    "tracking": Part(node="Lumina2Tracking", title="Tracking", outputs=("tracking",)),
    "hub": Part(node="Lumina2HubUpload", title="Hub Upload", outputs=("hub",)),
    "train": Part(node="Lumina2TrainLoRA", title="Train LoRA", outputs=("adapter", "lora_model", *TRAINED)),
    "train_full": Part(node="Lumina2TrainFull", title="Train Full Model", outputs=("model", *TRAINED)),
    "compare": Part(node="Lumina2Compare", title="Compare Checkpoints", outputs=("grid", "images", "grid_path")),
    "save": Part(node="Lumina2SaveAdapter", title="Save Adapter", outputs=("path",)),
    "save_full": Part(node="Lumina2SaveModel", title="Save Model", outputs=("path",)),
}
"""By name. What "train" and "save" mean depends on what is trained, see FULL_PARTS."""

FULL_PARTS = {"train": "train_full", "save": "save_full"}
"""What stands in the place of a part where the whole model is trained."""
