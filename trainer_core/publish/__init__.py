"""Telling others of a run: experiment trackers and the Hugging Face hub."""
