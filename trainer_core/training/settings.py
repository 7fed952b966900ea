"""Settings of a training run that are shared by LoRA and full training."""

from __future__ import annotations

from dataclasses import dataclass

from ..settings import check_settings, setting
from .lr_schedules import LR_SCHEDULES
from .optimizers import OPTIMIZER_STATES


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """Widgets of Optimizer."""

    lr_schedule: str = setting("constant", choices=LR_SCHEDULES)
    """How the learning rate moves after warm-up: "constant" keeps it, "cosine" lets it fall to zero at the last step.
    """
    num_warmup_steps: int = setting(0, minimum=0, maximum=1000000)
    """Optimizer steps over which the learning rate rises from zero."""
    weight_decay: float = setting(0.01, minimum=0.0, maximum=10.0, step=0.001)
    """Decoupled weight decay of AdamW. In full training norms and biases are not decayed."""
    beta1: float = setting(0.9, minimum=0.0, maximum=0.9999, step=0.01)
    """Decay of AdamW's running mean of gradients."""
    beta2: float = setting(0.999, minimum=0.0, maximum=0.999999, step=0.001)
    """Decay of AdamW's running mean of squared gradients."""
    epsilon: float = setting(1e-8, minimum=1e-20, maximum=1.0, step=1e-8)
    """Added to AdamW's denominator."""
    gradient_accumulation_steps: int = setting(1, minimum=1, maximum=1024)
    """Batches added up before each optimizer step: a larger batch in the same memory, in more time. In full training
    with adamw8bit more than 1 keeps all gradients, 4.9 GiB more: raise batch_size first."""
    max_grad_norm: float = setting(1.0, minimum=0.0, maximum=1000.0, step=0.1)
    """Gradients longer than this are shortened to it; 0 turns clipping off. Full training with adamw8bit updates each
    weight before all gradients are known, so there it limits the RMS of each weight's update instead (StableAdamW);
    1 suits both."""
    optimizer_state: str = setting("device", choices=OPTIMIZER_STATES, is_optional=True)
    """Where adamw8bit keeps its running means. "host" moves them to the computer's memory: 5 GiB less on the GPU for
    full training, in up to twice the time."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """Widgets of Checkpoints."""

    checkpoint_step_interval: int = setting(250, minimum=0, maximum=1000000)
    """Optimizer steps between checkpoints; 0 writes one only when the run is stopped or ends."""
    num_checkpoints_kept: int = setting(3, minimum=1, maximum=1000)
    """Older checkpoints beyond this number are deleted. One of Train Full Model takes 10.5 GB."""

    def __post_init__(self) -> None:
        check_settings(self)
