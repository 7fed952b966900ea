"""Adapter kinds and their file formats."""
