"""Settings of a training run that are shared by LoRA and full training."""

from __future__ import annotations

from dataclasses import dataclass

from ..run_names import VALIDATED_WEIGHTS
from ..settings import check_settings, setting

EMA_DEVICES = ("device", "cpu")
"""Where the running average is kept."""


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """Widgets of Checkpoints and EMA."""

    checkpoint_step_interval: int = setting(250, minimum=0, maximum=1000000)
    """Optimizer steps between checkpoints; 0 writes one only when the run is stopped or ends."""
    num_checkpoints_kept: int = setting(3, minimum=1, maximum=1000)
    """Older checkpoints beyond this number are deleted. One of Train Full Model takes 10.5 GB, with use_ema 26 GB."""
    use_ema: bool = setting(False, is_optional=True)
    """Keep a running average of the weights beside them, in float32, and save it as a second file; it often draws
    better. Save Adapter and Save Model choose between the two."""
    ema_decay: float = setting(0.999, minimum=0.0, maximum=0.999999, step=0.001, is_optional=True, is_advanced=True)
    """Share of the average that is left after one step: 0.999 looks back 1000 steps. The first steps leave less. For
    use_ema."""
    ema_step_interval: int = setting(1, minimum=1, maximum=1000, is_optional=True, is_advanced=True)
    """Optimizer steps between updates of the average; more saves time where the model is trained and ema_device is
    "cpu". The average looks back equally far. For use_ema."""
    ema_device: str = setting("device", choices=EMA_DEVICES, is_optional=True, is_advanced=True)
    """Where the average is kept: "device" needs 10.5 GB more on the GPU for the full model and little for a LoRA,
    "cpu" needs it in the computer's memory and takes time at each update. For use_ema."""
    ema_validation: str = setting("both", choices=VALIDATED_WEIGHTS, is_optional=True, is_advanced=True)
    """Validation pictures are drawn with the average ("ema"), the weights themselves ("live") or "both", side by side.
    For use_ema."""

    def __post_init__(self) -> None:
        check_settings(self)
