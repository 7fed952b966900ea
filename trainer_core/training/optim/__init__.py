"""The optimizers, and our own AdamW with moments of few bits."""
