"""Everything one training run is made of, checked before a weight is read."""

from __future__ import annotations

from dataclasses import dataclass, field

from .adapters.lora import LoRASettings
from .data.cache import EmbedCache, LatentCache
from .errors import TrainerError
from .lumina2.model_files import Lumina2Model
from .lumina2.timesteps import NoiseSettings
from .settings import check_file_name, check_settings, setting
from .training.optimizers import OPTIMIZERS
from .training.settings import CheckpointSettings, OptimizerSettings
from .validation.settings import ValidationSettings

RESERVED_RUN_NAMES = frozenset({"cache", "diffusers", "validations"})
"""Folders beside the runs that hold something else."""


@dataclass(frozen=True, kw_only=True)
class TrainLoRASettings:
    """Widgets of Train LoRA."""

    steps: int = setting(1000, minimum=1, maximum=10000000)
    """Optimizer steps of the run."""
    batch_size: int = setting(1, minimum=1, maximum=4096)
    """Pictures a batch. Pictures of different shape share a batch."""
    learning_rate: float = setting(1e-4, minimum=0.0, maximum=1.0, step=1e-7)
    """Learning rate after warm-up. 1e-4 suits most LoRAs; halve it if the result looks burnt."""
    rank: int = setting(16, minimum=1, maximum=512)
    """Size of the adapter: 8 to 32 for a subject or style, more for much new material."""
    alpha: float = setting(16.0, minimum=0.001, maximum=4096.0, step=0.1)
    """The adapter's output is scaled by alpha / rank; equal to rank is the plain choice."""
    optimizer: str = setting("adamw", choices=OPTIMIZERS)
    """The rule that turns gradients into updates."""
    seed: int = setting(42, minimum=0, maximum=2**63 - 1)
    """Decides the order of pictures and every random draw: the same seed gives the same run."""
    run_name: str = setting("my_lora")
    """Name of the run's folder in output/lumina2_trainer. The same job under the same name resumes or returns what is
    finished."""
    caption_dropout: float = setting(0.1, minimum=0.0, maximum=1.0, step=0.05)
    """Share of samples trained with the empty caption, which guidance needs."""
    gradient_checkpointing: bool = setting(True)
    """Recompute activations in the backward pass: about a third of the memory for a third more time."""

    def __post_init__(self) -> None:
        check_settings(self)
        check_file_name("run_name", self.run_name)
        if self.run_name.casefold() in RESERVED_RUN_NAMES:
            raise TrainerError(f"run_name is {self.run_name!r}: that name is taken, choose another")


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One run: what is trained, on what, and how."""

    model: Lumina2Model
    latents: LatentCache
    embeds: EmbedCache
    train: TrainLoRASettings
    adapter: LoRASettings = field(default_factory=LoRASettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    validation: ValidationSettings | None = None
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)

    def __post_init__(self) -> None:
        if self.optimizer.num_warmup_steps >= self.train.steps:
            raise TrainerError(
                f"num_warmup_steps is {self.optimizer.num_warmup_steps} but the run has only {self.train.steps} steps:"
                " lower the warm-up or raise steps"
            )


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A trained adapter: what travels on the LUMINA2_ADAPTER socket."""

    path: str
    """`adapter.safetensors` with ComfyUI keys and full metadata."""
    run_dir: str
    """The run it came from."""
    step: int
    """Optimizer steps it was trained for."""
