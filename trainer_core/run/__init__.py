"""One training run: its job, plan, loop and records."""
