"""Reads files of weights, and fills modules with them."""
