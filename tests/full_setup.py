"""Training the tiny base itself in tests."""

from __future__ import annotations

from lumina2_trainer.trainer_core.run.job import TrainFullSettings
from lumina2_trainer.trainer_core.stages import train
from lumina2_trainer.trainer_core.stages.train import TrainFullResult

from .training_setup import Setup

TRAIN_FULL = TrainFullSettings(
    steps=6, batch_size=2, learning_rate=3e-3, run_name="model", gradient_checkpointing=False
)


def train_full(setup: Setup, settings: TrainFullSettings = TRAIN_FULL, **sockets: object) -> TrainFullResult:
    """Run the step with a setup's sockets."""
    return train.train_full(
        settings, model=setup.model, latents=setup.latents, embeds=setup.embeds, context=setup.context, **sockets
    )


def trained_full(setup: Setup, settings: TrainFullSettings = TRAIN_FULL, **sockets: object) -> TrainFullResult:
    """What `train_full` gives, for tests that need a finished run: it is trained once a session, and copied here."""
    return setup.copied(lambda own: train_full(own, settings, **sockets), settings, sockets)
