"""Parts of the training loop: optimizers, schedules, checkpoints."""
