"""Socket types of this pack; each carries a frozen dataclass of trainer_core."""

from __future__ import annotations

from comfy_api.latest import io

Lumina2Model = io.Custom("LUMINA2_MODEL")
Dataset = io.Custom("LUMINA2_DATASET")
Latents = io.Custom("LUMINA2_LATENTS")
Embeds = io.Custom("LUMINA2_EMBEDS")
Adapter = io.Custom("LUMINA2_ADAPTER")
AdapterSettings = io.Custom("LUMINA2_ADAPTER_SETTINGS")
OptimizerSettings = io.Custom("LUMINA2_OPTIMIZER_SETTINGS")
NoiseSchedule = io.Custom("LUMINA2_NOISE_SCHEDULE")
ValidationPrompts = io.Custom("LUMINA2_VALIDATION_PROMPTS")
Checkpoints = io.Custom("LUMINA2_CHECKPOINTS")
Tracking = io.Custom("LUMINA2_TRACKING")
Hub = io.Custom("LUMINA2_HUB")
Rollout = io.Custom("LUMINA2_ROLLOUT")
