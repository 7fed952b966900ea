"""Settings of a training run that are shared by LoRA and full training."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import TrainerError
from ..settings import check_settings, check_unused, setting
from .lr_schedules import LR_SCHEDULES, SCHEDULE_SETTINGS
from .optim.optimizers import OPTIMIZER_STATES, OWN
from .weight_views import VALIDATED_WEIGHTS


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """Widgets of Optimizer."""

    lr_schedule: str = setting("constant", choices=LR_SCHEDULES)
    """How the learning rate moves after warm-up: "constant" keeps it, the others let it fall until the last step:
    "linear" evenly, "cosine" in half a wave, "cosine_with_restarts" in several, "polynomial" as a power of linear."""
    num_warmup_steps: int = setting(0, minimum=0, maximum=1000000)
    """Optimizer steps over which the learning rate rises from zero."""
    weight_decay: float = setting(0.01, minimum=0.0, maximum=10.0, step=0.001)
    """Decoupled weight decay. Norms, biases and other vectors are not decayed."""
    beta1: float = setting(OWN, minimum=OWN, maximum=0.9999, step=0.01, is_advanced=True)
    """Decay of the running mean of gradients; of muon the momentum. -1 is the optimizer's own: 0.9, of muon 0.95."""
    beta2: float = setting(OWN, minimum=OWN, maximum=0.999999, step=0.001, is_advanced=True)
    """Decay of the running mean of squared gradients. -1 is the optimizer's own: 0.999, of lion and stableadamw 0.99.
    """
    epsilon: float = setting(OWN, minimum=OWN, maximum=1.0, step=1e-8, is_advanced=True)
    """Added to the denominator of the update. -1 is the optimizer's own: 1e-8, of stableadamw 1e-6."""
    gradient_accumulation_steps: int = setting(1, minimum=1, maximum=1024)
    """Batches added up before each optimizer step: a larger batch in the same memory, in more time. In full training
    with adamw8bit or adamw_bf16 more than 1 keeps all gradients, 4.9 GiB more: raise batch_size first."""
    max_grad_norm: float = setting(1.0, minimum=0.0, maximum=1000.0, step=0.1)
    """Gradients longer than this are shortened to it; 0 turns clipping off. Full training with adamw8bit or adamw_bf16
    updates each weight before all gradients are known, so there it limits the RMS of each weight's update instead
    (StableAdamW); 1 suits both."""
    optimizer_state: str = setting("device", choices=OPTIMIZER_STATES, is_optional=True, is_advanced=True)
    """Where adamw8bit and adamw_bf16 keep their running means. "host" moves them to the computer's memory: 5 or 10 GiB
    less on the GPU for full training, in up to twice the time."""
    lr_end_ratio: float = setting(0.0, minimum=0.0, maximum=1.0, step=0.01, is_optional=True, is_advanced=True)
    """Share of the learning rate that a falling schedule still has at the last step."""
    lr_num_cycles: int = setting(1, minimum=1, maximum=1000, is_optional=True, is_advanced=True)
    """Waves of "cosine_with_restarts"."""
    lr_power: float = setting(1.0, minimum=0.01, maximum=100.0, step=0.1, is_optional=True, is_advanced=True)
    """Power of "polynomial": above 1 the learning rate falls early, below 1 late."""

    def __post_init__(self) -> None:
        check_settings(self)
        for field in ("beta1", "beta2", "epsilon"):
            if OWN < getattr(self, field) < 0:
                raise TrainerError(f"{field} is {getattr(self, field):g}: it must be at least 0, or {OWN:g}")
        check_unused(self, SCHEDULE_SETTINGS, used=LR_SCHEDULES[self.lr_schedule].uses, chooser="lr_schedule")


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
