"""What the steps give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .lumina2.models.model_files import Lumina2Model
from .run.job import Adapter


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What training an adapter gives."""

    adapter: Adapter
    losses: tuple[float, ...]
    """Loss of each optimizer step of the run."""
    validation_images: tuple[Path, ...]
    """Pictures of the last validation, in the order of the prompts; empty without validation."""
    reused: bool
    """The run had already finished and nothing was trained."""
    scores: str
    """What was measured, for people; empty if nothing was."""


@dataclass(frozen=True, kw_only=True)
class TrainFullResult:
    """What training the model itself gives."""

    model: Lumina2Model
    """The trained transformer with text encoder and VAE of the base."""
    losses: tuple[float, ...]
    """Loss of each optimizer step of the run."""
    validation_images: tuple[Path, ...]
    """Pictures of the last validation, in the order of the prompts; empty without validation."""
    reused: bool
    """The run had already finished and nothing was trained."""
    scores: str
    """What was measured, for people; empty if nothing was."""


@dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """What Validate gives."""

    images: tuple[Path, ...]
    scores: str
    """What was measured, for people; empty if nothing was."""
