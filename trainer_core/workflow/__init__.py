"""A workflow file without ComfyUI: read, run, forecast, and laid out for the canvas."""
