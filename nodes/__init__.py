"""ComfyUI nodes: a schema in, one call of trainer_core, a value out."""
