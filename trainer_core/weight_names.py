"""The names of the sets of weights that a run is drawn with, measured with and saved as."""

from __future__ import annotations

from pathlib import Path

LIVE, EMA, BEST = "live", "ema", "best"
WEIGHTS = (LIVE, EMA, BEST)
"""The weights as trained, their running average, and those with the lowest held-out loss: what can be chosen where a
file is written."""
BASE = "base"
"""The model without what is trained."""
MARKED = (EMA, BASE)
"""Whose pictures are marked in their files' names."""


def suffix_of(weights: str) -> str:
    """What is added to the names of files that hold, or were drawn with, these weights."""
    return "" if weights == LIVE else f"_{weights}"


def weights_of(picture: Path) -> str:
    """The weights a picture was drawn with, by its file's name."""
    return next((weights for weights in MARKED if picture.stem.endswith(suffix_of(weights))), LIVE)
